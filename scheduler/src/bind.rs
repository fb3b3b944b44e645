//! What a decision writes: a binding, or the condition that says why there is none.

use http::{Method, Request};
use k8s_openapi::api::core::v1::PodCondition;
use kube::Client;
use machinery::api::ObjectKey;
use machinery::api::time::seconds;
use serde_json::{Value, json};

/// Why nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The server refused or did not answer.
    #[error("{0}")]
    Server(#[from] kube::Error),
    /// The request could not be made.
    #[error("{0}")]
    Request(#[from] http::Error),
}

fn path(pod: &ObjectKey, subresource: &str) -> String {
    format!("/api/v1/namespaces/{}/pods/{}/{subresource}", pod.namespace, pod.name)
}

async fn send(client: &Client, method: Method, path: String, kind: &str, body: &Value) -> Result<(), WriteError> {
    let request = Request::builder().method(method).uri(path).header(http::header::CONTENT_TYPE, kind);
    client.request::<Value>(request.body(body.to_string().into_bytes())?).await?;
    Ok(())
}

/// Binds a pod to a node.
pub async fn bind(client: &Client, pod: &ObjectKey, uid: &str, node: &str) -> Result<(), WriteError> {
    let binding = json!({
        "apiVersion": "v1", "kind": "Binding",
        "metadata": {"namespace": pod.namespace, "name": pod.name, "uid": uid},
        "target": {"kind": "Node", "name": node},
    });
    send(client, Method::POST, path(pod, "binding"), "application/json", &binding).await
}

/// The `PodScheduled` condition to write; none where it stands there already. Pure.
#[must_use]
pub fn condition(
    present: Option<&PodCondition>,
    generation: Option<i64>,
    reason: &str,
    message: &str,
    now: jiff::Timestamp,
) -> Option<Value> {
    let since = present.filter(|present| present.status == "False").and_then(|p| p.last_transition_time.as_ref());
    let same = present.is_some_and(|present| {
        present.status == "False"
            && present.reason.as_deref() == Some(reason)
            && present.message.as_deref() == Some(message)
            && (present.observed_generation == generation || generation.is_none())
    });
    if same {
        return None;
    }
    let mut condition = json!({
        "type": "PodScheduled", "status": "False", "reason": reason, "message": message,
        "lastProbeTime": null,
        "lastTransitionTime": since.map_or_else(|| seconds(now), |since| seconds(since.0)),
    });
    if let Some(generation) = generation {
        condition["observedGeneration"] = generation.into();
    }
    Some(condition)
}

/// Writes a condition.
pub async fn report(client: &Client, pod: &ObjectKey, uid: &str, condition: Value) -> Result<(), WriteError> {
    // The uid: a pod that was made again under the same name is another one.
    let patch = json!({"metadata": {"uid": uid}, "status": {"conditions": [condition]}});
    send(client, Method::PATCH, path(pod, "status"), "application/strategic-merge-patch+json", &patch).await
}
