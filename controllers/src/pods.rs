//! Predicates of pods (active, ready, available), and actions that create, adopt and release pods.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{self as core, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference, Time};
use machinery_client::selector;
use machinery_client::{Action, Kind, Object, ObjectCache, Pod, Typed, controlled_by, controller_of, value_of};
use serde_json::json;

/// The maximum length of a pod's name (RFC 1123 subdomain).
const NAME_LENGTH_MAX: usize = 253;

/// The pod's phase; empty before the first status.
pub(crate) fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or_default()
}

/// Whether it is in a final phase.
pub(crate) fn is_terminal(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

/// Whether it is neither terminal nor terminating.
pub(crate) fn is_active(pod: &Pod) -> bool {
    !is_terminal(pod) && pod.metadata.deletion_timestamp.is_none()
}

/// Whether it is terminating and not terminal. A pod with a grace period of zero and no finalizer counts as gone.
pub(crate) fn is_terminating(pod: &Pod) -> bool {
    let metadata = &pod.metadata;
    let held = metadata.deletion_grace_period_seconds.unwrap_or(0) > 0
        || metadata.finalizers.as_ref().is_some_and(|f| !f.is_empty());
    !is_terminal(pod) && metadata.deletion_timestamp.is_some() && held
}

/// Since when it is ready; none if it isn't.
pub(crate) fn ready_since(pod: &Pod) -> Option<Timestamp> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    let ready = conditions.iter().find(|c| c.type_ == "Ready")?;
    (ready.status == "True").then(|| ready.last_transition_time.as_ref().map_or(Timestamp::UNIX_EPOCH, |t| t.0))
}

pub(crate) fn is_ready(pod: &Pod) -> bool {
    ready_since(pod).is_some()
}

/// When it becomes available; none if it isn't ready.
pub(crate) fn available_at(pod: &Pod, min_ready_seconds: i32) -> Option<Timestamp> {
    let wait = jiff::SignedDuration::from_secs(min_ready_seconds.max(0).into());
    Some(ready_since(pod)?.saturating_add(wait).unwrap_or(Timestamp::MAX))
}

/// Whether it has been ready for `min_ready_seconds`.
pub(crate) fn is_available(pod: &Pod, min_ready_seconds: i32, now: Timestamp) -> bool {
    available_at(pod, min_ready_seconds).is_some_and(|at| at <= now)
}

/// A pod of a template, controlled by `owner`.
pub(crate) fn from_template(
    template: &PodTemplateSpec,
    namespace: &str,
    owner_name: &str,
    owner: OwnerReference,
) -> core::Pod {
    let given = template.metadata.clone().unwrap_or_default();
    let dashed = format!("{owner_name}-");
    let generate_name = if dashed.len() <= NAME_LENGTH_MAX { dashed } else { owner_name.to_owned() };
    core::Pod {
        metadata: ObjectMeta {
            generate_name: Some(generate_name),
            namespace: Some(namespace.to_owned()),
            labels: given.labels,
            annotations: given.annotations,
            finalizers: given.finalizers,
            owner_references: Some(vec![owner]),
            ..ObjectMeta::default()
        },
        spec: template.spec.clone(),
        status: None,
    }
}

/// Makes `owner` the controller of orphans, if there are any. The server first confirms that the owner exists and isn't
/// terminating: the view of the owners may be older than that of the orphans, and what a deleted owner adopts is
/// collected with it.
pub(crate) fn adopt<'a, O: Typed, K: Typed>(owner: &O, orphans: impl IntoIterator<Item = &'a K>) -> Vec<Action> {
    let mut actions: Vec<Action> = orphans.into_iter().map(|orphan| adopt_one(orphan, controlled_by(owner))).collect();
    if !actions.is_empty() {
        actions.insert(0, Action::expect_live(owner));
    }
    actions
}

fn adopt_one<K: Typed>(object: &K, owner: OwnerReference) -> Action {
    let metadata = Object::metadata(object);
    let mut owners = metadata.owner_references.clone().unwrap_or_default();
    owners.retain(|o| o.uid != owner.uid);
    owners.push(owner);
    let patch = json!({"metadata": {
        "uid": metadata.uid, "resourceVersion": metadata.resource_version, "ownerReferences": value_of(&owners)}});
    Action::patch(object, patch)
}

/// Removes the controller of an object.
pub(crate) fn release<K: Typed>(object: &K) -> Action {
    let metadata = Object::metadata(object);
    let controller = controller_of(metadata).map(|c| c.uid.clone()).unwrap_or_default();
    let owners = metadata.owner_references.iter().flatten().filter(|o| o.uid != controller);
    let owners: Vec<_> = owners.map(value_of).collect();
    let owners = if owners.is_empty() { json!(null) } else { json!(owners) };
    let patch = json!({"metadata": {
        "uid": metadata.uid, "resourceVersion": metadata.resource_version, "ownerReferences": owners}});
    Action::patch(object, patch)
}

/// Verifies with the server that the view has all objects of a selector.
pub(crate) fn require_fresh_cache<K: Typed>(view: &ObjectCache, namespace: &str, selector: &LabelSelector) -> Action {
    let chosen = view.chosen::<K>(namespace, selector).into_iter().map(Object::metadata);
    Action::RequireFreshCache {
        kind: Kind::of::<K>(),
        namespace: namespace.to_owned(),
        selector: selector::text(selector),
        known: chosen.filter_map(|m| m.uid.clone()).collect(),
    }
}

/// A timestamp in the API's form: whole seconds.
pub(crate) fn stamp(now: Timestamp) -> Time {
    Time(Timestamp::from_second(now.as_second()).unwrap_or(now))
}

/// A count in the API's form: zero is absent.
pub(crate) fn count(n: i32) -> Option<i32> {
    (n != 0).then_some(n)
}
