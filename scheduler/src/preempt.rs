//! API writes of a preemption: deletes the victims, and clears the nominations of pods that lose the node.

use std::sync::Arc;

use k8s_openapi::api::core::v1::ObjectReference;
use machinery_api::ObjectKey;
use machinery_api::time::seconds;
use machinery_client::request::{ApiClient, PatchType, status_code};
use machinery_client::{Kind, Pod};
use serde_json::{Value, json};
use tokio::task::JoinSet;

/// The number of victims that are deleted concurrently, as upstream.
const PARALLEL: usize = 16;

/// A victim of a preemption.
#[derive(Debug, Clone)]
pub struct Victim {
    pub key: Arc<ObjectKey>,
    /// The precondition of the deletion.
    pub uid: Box<str>,
    /// The generation of its spec.
    pub generation: Option<i64>,
    /// The reference for events.
    pub about: ObjectReference,
}

/// A pod that loses its nomination.
#[derive(Debug, Clone)]
pub struct Cleared {
    pub key: Arc<ObjectKey>,
    /// The precondition of the patch.
    pub uid: Box<str>,
}

/// The `DisruptionTarget` condition of a victim. Pure.
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

/// Deletes the victims, each after a patch of its condition. A victim that is already gone is no error. `deleted` is
/// called for each deleted victim.
///
/// # Errors
/// The first error of the server; the other victims are deleted all the same.
pub async fn delete_victims(
    client: &ApiClient,
    now: jiff::Timestamp,
    scheduler: &str,
    victims: Vec<Victim>,
    deleted: impl Fn(ObjectReference),
) -> Result<(), String> {
    let mut result = Ok(());
    let mut victims = victims.into_iter();
    let mut tasks = JoinSet::new();
    loop {
        while tasks.len() < PARALLEL
            && let Some(victim) = victims.next()
        {
            let (client, patch) = (client.clone(), disrupted(&victim, scheduler, now));
            tasks.spawn(async move { (delete_victim(&client, &victim, &patch).await, victim) });
        }
        match tasks.join_next().await {
            None => return result,
            Some(Err(error)) => result = Err(error.to_string()),
            Some(Ok((Ok(true), victim))) => deleted(victim.about),
            Some(Ok((Ok(false), _))) => {}
            Some(Ok((Err(error), victim))) => result = Err(format!("{}: {error}", victim.key)),
        }
    }
}

/// Whether the victim existed.
async fn delete_victim(client: &ApiClient, victim: &Victim, patch: &Value) -> Result<bool, kube::Error> {
    let kind = Kind::of::<Pod>();
    let patched = client.patch::<Value>(&kind, &victim.key, Some("status"), PatchType::Strategic, patch).await;
    let options = json!({"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": {"uid": victim.uid}});
    let deleted = match patched {
        Ok(_) => client.delete::<Value>(&kind, &victim.key, &options).await,
        Err(error) => Err(error),
    };
    match deleted {
        Ok(_) => Ok(true),
        // Another pod of that name is no victim.
        Err(error) if matches!(status_code(&error), 404 | 409) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Clears nominations. After a failure, the pod's next decision writes its status.
pub async fn clear(client: &ApiClient, cleared: Vec<Cleared>) {
    for Cleared { key, uid } in cleared {
        let patch = json!({"metadata": {"uid": uid}, "status": {"nominatedNodeName": null}});
        let kind = Kind::of::<Pod>();
        if let Err(error) = client.patch::<Value>(&kind, &key, Some("status"), PatchType::Strategic, &patch).await {
            tracing::debug!(pod = %key, %error, "a nomination was not taken back");
        }
    }
}
