//! API writes of a decision: the binding, or the `PodScheduled` condition with the reason for a failure.

use std::time::Duration;

use machinery_api::ObjectKey;
use machinery_api::time::seconds;
use machinery_client::request::{ApiClient, PatchType, status_code};
use machinery_client::{Condition, Informer, Kind, Pod};
use machinery_env::Env;
use serde_json::{Value, json};

use crate::plugins::PreBindPatch;
use crate::plugins::volumes::are_bound;
use crate::pod::PodInfo;

/// Upstream's prefix of the reason of a failed binding.
const FAILED: &str = "running Bind plugin \"DefaultBinder\"";
/// The maximum wait for the binding of a pod's claims (upstream's).
const CLAIMS_BOUND_MAX: Duration = Duration::from_secs(600);
/// The first interval between two checks of the claims, and the last.
const CLAIMS_LOOK_FIRST: Duration = Duration::from_millis(5);
const CLAIMS_LOOK_MAX: Duration = Duration::from_secs(1);

/// Writes the patches that `PreBind` plugins return.
///
/// # Errors
/// As [`bind`], with upstream's text.
pub async fn pre_bind(client: &ApiClient, first: Vec<(&'static str, PreBindPatch)>) -> Result<(), String> {
    for (plugin, PreBindPatch { kind, key, subresource, patch_type, patch }) in first {
        let written = client.patch::<Value>(&kind, &key, subresource, patch_type, &patch).await;
        written.map_err(|error| format!("running PreBind plugin {plugin:?}: {error}"))?;
    }
    Ok(())
}

/// Waits until the claims of a pod are bound.
///
/// # Errors
/// The claims can't be bound, or the wait timed out.
pub async fn until_bound(env: &Env, informer: &Informer, pod: &PodInfo, node: &str) -> Result<(), String> {
    let failed = |why: String| format!("running PreBind plugin \"VolumeBinding\": binding volumes: {why}");
    let wait = async {
        let mut wait = CLAIMS_LOOK_FIRST;
        while !informer.read(|view| are_bound(view, pod, node)).map_err(failed)? {
            env.sleep(wait).await;
            wait = (wait * 2).min(CLAIMS_LOOK_MAX);
        }
        Ok(())
    };
    env.timeout(CLAIMS_BOUND_MAX, wait).await.map_err(|_| failed("context deadline exceeded".into()))?
}

/// Binds a pod to a node.
///
/// # Errors
/// The server rejected the binding or did not answer; with upstream's text.
pub async fn bind(client: &ApiClient, pod: &ObjectKey, uid: &str, node: &str) -> Result<(), String> {
    let binding = json!({
        "apiVersion": "v1", "kind": "Binding",
        "metadata": {"namespace": pod.namespace, "name": pod.name, "uid": uid},
        "target": {"kind": "Node", "name": node},
    });
    let bound = client.post::<Value>(&Kind::of::<Pod>(), pod, "binding", &binding).await;
    match bound {
        Ok(_) => Ok(()),
        Err(error) if is_open(status_code(&error)) && is_bound(client, pod, uid, node).await => Ok(()),
        Err(kube::Error::Api(status)) => Err(format!("{FAILED}: {}", status.message)),
        Err(error) => Err(format!("{FAILED}: {error}")),
    }
}

/// Whether the outcome of a write is unknown after a failure with this status (0: no answer). Pure.
fn is_open(code: u16) -> bool {
    code == 0 || code >= 500
}

/// Reads back whether a pod is bound to a node: a write may succeed though its answer is an error. Without this check,
/// the pod's resources would be given to another pod until the watch event arrives.
async fn is_bound(client: &ApiClient, pod: &ObjectKey, uid: &str, node: &str) -> bool {
    let there = client.get::<Value>(&Kind::of::<Pod>(), pod).await;
    there.is_ok_and(|there| there["metadata"]["uid"] == uid && there["spec"]["nodeName"] == node)
}

/// The `PodScheduled` condition to write; none if the pod has it already. Pure.
#[must_use]
pub fn condition(
    present: Option<&Condition>,
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

/// Status changes of a pod that was not scheduled.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Report {
    /// The condition; none if the pod has it already.
    pub condition: Option<Value>,
    /// `status.nominatedNodeName`; the empty string clears it.
    pub nominated: Option<String>,
}

/// Writes a report into the pod's status.
///
/// # Errors
/// The server rejected the patch or did not answer.
pub async fn report(client: &ApiClient, pod: &ObjectKey, uid: &str, report: Report) -> Result<(), kube::Error> {
    // The uid is a precondition: a pod of the same name with another uid is another pod.
    let mut patch = json!({"metadata": {"uid": uid}, "status": {}});
    if let Some(condition) = report.condition {
        patch["status"]["conditions"] = json!([condition]);
    }
    if let Some(node) = report.nominated {
        patch["status"]["nominatedNodeName"] = if node.is_empty() { Value::Null } else { node.into() };
    }
    let kind = Kind::of::<Pod>();
    client.patch::<Value>(&kind, pod, Some("status"), PatchType::Strategic, &patch).await.map(drop)
}
