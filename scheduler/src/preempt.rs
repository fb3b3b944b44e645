//! What preemption writes: the pods of lower priority that go, and those that wait for the same node no more.

use std::sync::Arc;

use k8s_openapi::api::core::v1::ObjectReference;
use machinery_api::ObjectKey;
use machinery_api::time::seconds;
use machinery_client::request::{ApiClient, PatchType, status_code};
use machinery_client::{Kind, Pod};
use serde_json::{Value, json};
use tokio::task::JoinSet;

/// Victims that are told at once, as upstream.
const PARALLEL: usize = 16;

/// A pod that goes.
#[derive(Debug, Clone)]
pub struct Victim {
    /// Namespace and name.
    pub key: Arc<ObjectKey>,
    /// Another pod of that name isn't meant.
    pub uid: Box<str>,
    /// Of its spec.
    pub generation: Option<i64>,
    /// As events refer to it.
    pub about: ObjectReference,
}

/// A pod that no room is made for any more where it waited for some.
#[derive(Debug, Clone)]
pub struct Cleared {
    /// Namespace and name.
    pub key: Arc<ObjectKey>,
    /// Another pod of that name isn't meant.
    pub uid: Box<str>,
}

/// The condition of a pod that goes. Pure.
#[must_use]
pub fn disrupted(victim: &Victim, scheduler: &str, now: jiff::Timestamp) -> Value {
    let mut condition = json!({
        "type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler",
        "message": format!("{scheduler}: preempting to accommodate a higher priority pod"),
        "lastProbeTime": null, "lastTransitionTime": seconds(now),
    });
    if let Some(generation) = victim.generation {
        condition["observedGeneration"] = generation.into();
    }
    json!({"metadata": {"uid": victim.uid}, "status": {"conditions": [condition]}})
}

/// Has pods go: tells each why in its status, and deletes it. What is gone already, is. `told` is called for each that was
/// deleted.
///
/// # Errors
/// With the first refusal of the server; all others are tried all the same.
pub async fn have_go(
    client: &ApiClient,
    now: jiff::Timestamp,
    scheduler: &str,
    victims: Vec<Victim>,
    told: impl Fn(ObjectReference),
) -> Result<(), String> {
    let mut result = Ok(());
    let mut victims = victims.into_iter();
    let mut tasks = JoinSet::new();
    loop {
        while tasks.len() < PARALLEL
            && let Some(victim) = victims.next()
        {
            let (client, patch) = (client.clone(), disrupted(&victim, scheduler, now));
            tasks.spawn(async move { (go(&client, &victim, &patch).await, victim) });
        }
        match tasks.join_next().await {
            None => return result,
            Some(Err(error)) => result = Err(error.to_string()),
            Some(Ok((Ok(true), victim))) => told(victim.about),
            Some(Ok((Ok(false), _))) => {}
            Some(Ok((Err(error), victim))) => result = Err(format!("{}: {error}", victim.key)),
        }
    }
}

/// Whether it was there to go.
async fn go(client: &ApiClient, victim: &Victim, patch: &Value) -> Result<bool, kube::Error> {
    let kind = Kind::of::<Pod>();
    let patched = client.patch::<Value>(&kind, &victim.key, Some("status"), PatchType::Strategic, patch).await;
    let options = json!({"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": {"uid": victim.uid}});
    let deleted = match patched {
        Ok(_) => client.delete::<Value>(&kind, &victim.key, &options).await,
        Err(error) => Err(error),
    };
    match deleted {
        Ok(_) => Ok(true),
        // Another pod of that name is none of ours.
        Err(error) if matches!(status_code(&error), 404 | 409) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Takes back nominations; where that fails, the pod's next decision says what is true.
pub async fn clear(client: &ApiClient, cleared: Vec<Cleared>) {
    for Cleared { key, uid } in cleared {
        let patch = json!({"metadata": {"uid": uid}, "status": {"nominatedNodeName": null}});
        let kind = Kind::of::<Pod>();
        if let Err(error) = client.patch::<Value>(&kind, &key, Some("status"), PatchType::Strategic, &patch).await {
            tracing::debug!(pod = %key, %error, "a nomination was not taken back");
        }
    }
}
