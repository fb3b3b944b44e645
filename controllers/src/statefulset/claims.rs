//! Claims of a set's pods: created before their pods, and owned according to the retention policy.

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use machinery_api::ObjectKey;
use machinery_client::{Action, EventRecord, ObjectCache, Pod, controlled_by};

use super::identity::{claim, claim_name, claim_templates, in_range, pod_name, set_name};

/// The missing claims of an ordinal's pod; an error if one is terminating, which blocks the pod.
pub(super) fn missing(view: &ObjectCache, set: &StatefulSet, ordinal: i64) -> Result<Vec<Action>, String> {
    let mut actions = Vec::new();
    for template in claim_templates(set) {
        let wanted = claim(set, template, ordinal);
        let name = wanted.metadata.name.clone().unwrap_or_default();
        match get(view, set, &name) {
            Some(there) if there.metadata.deletion_timestamp.is_some() => {
                return Err(format!("pvc {name} is being deleted"));
            }
            Some(_) => {}
            None => {
                let (pod, set_name) = (pod_name(set, ordinal), set_name(set));
                let done = format!("Create Claim {name} Pod {pod} in StatefulSet {set_name} success");
                let failed =
                    format!("Create Claim {name} for Pod {pod} in StatefulSet {set_name} failed error: {{error}}");
                actions.push(Action::create(&wanted).noted(
                    Some(EventRecord::normal(set, "SuccessfulCreate", done)),
                    Some(EventRecord::warning(set, "FailedCreate", failed)),
                ));
            }
        }
    }
    Ok(actions)
}

fn get<'a>(view: &'a ObjectCache, set: &StatefulSet, name: &str) -> Option<&'a PersistentVolumeClaim> {
    view.get(&ObjectKey::new(set.metadata.namespace.as_deref().unwrap_or_default(), name))
}

/// Whether scaling down deletes claims, and whether deletion of the set does.
fn policy(set: &StatefulSet) -> (bool, bool) {
    let policy = set.spec.as_ref().and_then(|s| s.persistent_volume_claim_retention_policy.as_ref());
    let deletes = |of: Option<&String>| of.is_some_and(|p| p == "Delete");
    (deletes(policy.and_then(|p| p.when_scaled.as_ref())), deletes(policy.and_then(|p| p.when_deleted.as_ref())))
}

/// Whether a claim of the ordinal is owned by a deleted pod, and so will be deleted: a new pod must not use it.
pub(super) fn are_stale(view: &ObjectCache, set: &StatefulSet, ordinal: i64) -> bool {
    policy(set).0
        && claim_templates(set).iter().any(|template| {
            let claim = get(view, set, &claim_name(set, template, ordinal));
            claim.is_some_and(|claim| refs(claim).any(|r| names(r, "v1", "Pod", &pod_name(set, ordinal))))
        })
}

/// Updates the owners of a pod's claims to the policy.
pub(super) fn retention(view: &ObjectCache, set: &StatefulSet, pod: &Pod, ordinal: i64) -> Vec<Action> {
    let claims = claim_templates(set).iter().filter_map(|t| get(view, set, &claim_name(set, t, ordinal)));
    claims.flat_map(|claim| repair(set, pod, ordinal, claim)).collect()
}

fn refs(claim: &PersistentVolumeClaim) -> impl Iterator<Item = &OwnerReference> {
    claim.metadata.owner_references.iter().flatten()
}

fn names(r: &OwnerReference, api_version: &str, kind: &str, name: &str) -> bool {
    r.api_version == api_version && r.kind == kind && r.name == name
}

fn repair(set: &StatefulSet, pod: &Pod, ordinal: i64, claim: &PersistentVolumeClaim) -> Vec<Action> {
    let uid = |of: &ObjectMeta| of.uid.clone().unwrap_or_default();
    let (set_uid, pod_uid) = (uid(&set.metadata), uid(&pod.metadata));
    let of_set = |r: &OwnerReference| names(r, "apps/v1", "StatefulSet", set_name(set));
    let of_pod = |r: &OwnerReference| names(r, "v1", "Pod", pod.metadata.name.as_deref().unwrap_or_default());
    if refs(claim).any(|r| (of_set(r) && r.uid != set_uid) || (of_pod(r) && r.uid != pod_uid)) {
        // Another set or pod of this name owned it: the garbage collector deletes it.
        return Vec::new();
    }
    let has = |uid: &str| refs(claim).any(|r| r.uid == uid);
    let controls = |r: &OwnerReference| r.controller == Some(true);
    let (scaled, deleted) = policy(set);
    let strange = |r: &OwnerReference| !of_set(r) && !of_pod(r) && controls(r);
    let unexpected = (scaled || deleted) && refs(claim).any(strange);
    let condemned = !in_range(set, ordinal);
    let wants_pod = !unexpected && scaled && condemned;
    let wants_set = !unexpected && deleted && !(scaled && condemned);
    let half = refs(claim).any(|r| (r.uid == set_uid || r.uid == pod_uid) && !controls(r));
    if has(&set_uid) == wants_set && has(&pod_uid) == wants_pod && !half {
        return Vec::new();
    }
    let mut actions = Vec::new();
    if unexpected {
        let name = claim.metadata.name.as_deref().unwrap_or_default();
        let message = format!(
            "PersistentVolumeClaim {name} has a conflicting OwnerReference that acts as a manging controller, \
             the retention policy is ignored for this claim"
        );
        actions.push(Action::Event(EventRecord::warning(set, "ConflictingController", message)));
    }
    let mut owners: Vec<OwnerReference> = refs(claim).filter(|r| !of_set(r) && !of_pod(r)).cloned().collect();
    owners.extend(wants_pod.then(|| controlled_by(pod)));
    owners.extend(wants_set.then(|| controlled_by(set)));
    let mut claim = claim.clone();
    claim.metadata.owner_references = (!owners.is_empty()).then_some(owners);
    actions.push(Action::update(&claim));
    actions
}
