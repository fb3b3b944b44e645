//! Revisions of a Deployment: the template's hash, the ReplicaSet of the current template, its annotations, and the
//! history limit.

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use machinery_client::{Action, value_of};

use super::{Rollout, actual, annotations, name, size, status};
use crate::revisions::letters;

/// The label with the template's hash.
pub(super) const HASH: &str = "pod-template-hash";

/// The oldest set with the Deployment's template; `sets` are sorted by age.
pub(super) fn find_new(deployment: &Deployment, sets: &[ReplicaSet]) -> Option<usize> {
    let template = comparable(deployment.spec.as_ref().map(|s| &s.template));
    sets.iter().position(|set| comparable(set.spec.as_ref().and_then(|s| s.template.as_ref())) == template)
}

/// A template without its hash, in a form in which absent and empty are equal.
fn comparable(template: Option<&PodTemplateSpec>) -> serde_json::Value {
    let mut template = template.cloned().unwrap_or_default();
    if let Some(labels) = template.metadata.as_mut().and_then(|m| m.labels.as_mut()) {
        labels.remove(HASH);
    }
    let mut value = value_of(&template);
    prune(&mut value);
    value
}

/// Removes empty values. Objects stay: an empty volume source (`emptyDir: {}`) has a meaning.
fn prune(value: &mut serde_json::Value) {
    match value {
        serde_json::Value::Object(map) => {
            map.values_mut().for_each(prune);
            let labels_or_so = |name: &str| matches!(name, "labels" | "annotations" | "metadata" | "nodeSelector");
            map.retain(|name, v| match v {
                serde_json::Value::Null => false,
                serde_json::Value::Array(list) => !list.is_empty(),
                serde_json::Value::Object(inner) => !(inner.is_empty() && labels_or_so(name)),
                _ => true,
            });
        }
        serde_json::Value::Array(list) => list.iter_mut().for_each(prune),
        _ => {}
    }
}

/// The template's hash with the collision count (FNV-1a, 32 bits).
pub(super) fn hash(template: &PodTemplateSpec, collisions: Option<i32>) -> String {
    let mut text = value_of(template).to_string().into_bytes();
    if let Some(count) = collisions {
        text.extend_from_slice(&count.to_le_bytes());
    }
    let hash = text.iter().fold(0x811c_9dc5_u32, |h, byte| (h ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
    letters(hash)
}

fn revision_of(set: &ReplicaSet) -> i64 {
    let text = set.metadata.annotations.as_ref().and_then(|a| a.get(annotations::REVISION));
    text.and_then(|r| r.parse().ok()).unwrap_or(0)
}

/// The next revision of the current template.
pub(super) fn next_revision(rollout: &Rollout<'_>) -> i64 {
    rollout.old.iter().map(revision_of).max().unwrap_or(0).max(0).saturating_add(1)
}

/// Updates the annotations of the new set, and the Deployment's revision.
pub(super) fn sync(rollout: &mut Rollout<'_>) {
    let next = next_revision(rollout);
    let Some(mut set) = rollout.new.take() else { return };
    annotations::annotate(&mut set, rollout.deployment, next);
    if let Some(spec) = &mut set.spec {
        let wanted = rollout.deployment.spec.as_ref().and_then(|s| s.min_ready_seconds);
        if spec.min_ready_seconds.unwrap_or(0) != wanted.unwrap_or(0) {
            spec.min_ready_seconds = wanted;
        }
    }
    rollout.revision = set.metadata.annotations.as_ref().and_then(|a| a.get(annotations::REVISION)).cloned();
    if rollout.has_deadline() && status::progressing(&rollout.status).is_none() {
        let message = format!("Found new replica set {:?}", name(&set));
        status::set_condition(&mut rollout.status, "Progressing", "True", "FoundNewReplicaSet", &message, rollout.now);
    }
    rollout.new = Some(set);
}

/// Deletes the oldest empty sets beyond the history limit.
pub(super) fn clean_up(rollout: &mut Rollout<'_>) {
    let limit = rollout.deployment.spec.as_ref().and_then(|s| s.revision_history_limit);
    let Some(limit) = limit.filter(|l| *l != i32::MAX).and_then(|l| usize::try_from(l).ok()) else { return };
    let mut alive: Vec<&ReplicaSet> = rollout.old.iter().filter(|s| s.metadata.deletion_timestamp.is_none()).collect();
    let surplus = alive.len().saturating_sub(limit);
    alive.sort_by_key(|set| revision_of(set));
    let empty = |set: &&&ReplicaSet| {
        let observed = set.status.as_ref().and_then(|s| s.observed_generation).unwrap_or(0);
        actual(set) == 0 && size(set) == 0 && set.metadata.generation.unwrap_or(0) <= observed
    };
    let deletions: Vec<Action> = alive.iter().take(surplus).filter(empty).map(|set| Action::delete(*set)).collect();
    rollout.plan.actions.extend(deletions);
}
