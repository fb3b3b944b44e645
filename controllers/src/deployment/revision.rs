//! Which ReplicaSet is which revision: the template's hash, the set of the present template, its annotations, and the
//! history that is kept.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, ReplicaSetSpec};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use machinery_api::ObjectKey;
use machinery_client::{Action, Failure, Note, controlled_by, value_of};

use super::{Rollout, actual, name, rollout, size, status, wanted};
use crate::pods;

type Annotations = BTreeMap<String, String>;

const REVISION: &str = "deployment.kubernetes.io/revision";
const HISTORY: &str = "deployment.kubernetes.io/revision-history";
const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
const MAX: &str = "deployment.kubernetes.io/max-replicas";
const HASH: &str = "pod-template-hash";
/// Annotations of a Deployment that its sets don't get.
const NOT_COPIED: [&str; 6] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    HISTORY,
    DESIRED,
    MAX,
    "deprecated.deployment.rollback.to",
];
/// The revision history's length (upstream's: about 100 revisions).
const HISTORY_CHARS_MAX: usize = 2000;
/// The longest name of a ReplicaSet.
const NAME_LENGTH_MAX: usize = 253;
/// The letters of a hash: those of generated names, so that it can't spell anything.
const LETTERS: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";

/// The oldest set with the Deployment's template; `sets` are sorted by age.
pub(super) fn find_new(deployment: &Deployment, sets: &[ReplicaSet]) -> Option<usize> {
    let template = comparable(deployment.spec.as_ref().map(|s| &s.template));
    sets.iter().position(|set| comparable(set.spec.as_ref().and_then(|s| s.template.as_ref())) == template)
}

/// A template without its hash, in a form in which absent and empty are one.
fn comparable(template: Option<&PodTemplateSpec>) -> serde_json::Value {
    let mut template = template.cloned().unwrap_or_default();
    if let Some(labels) = template.metadata.as_mut().and_then(|m| m.labels.as_mut()) {
        labels.remove(HASH);
    }
    let mut value = value_of(&template);
    prune(&mut value);
    value
}

/// Takes out what is empty. An empty volume source (`emptyDir: {}`) says something by being there: objects stay.
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

/// The template's hash, which a collision count changes (FNV-1a, 32 bits).
pub(super) fn hash(template: &PodTemplateSpec, collisions: Option<i32>) -> String {
    let mut text = value_of(template).to_string().into_bytes();
    if let Some(count) = collisions {
        text.extend_from_slice(&count.to_le_bytes());
    }
    let hash = text.iter().fold(0x811c_9dc5_u32, |h, byte| (h ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
    hash.to_string().bytes().map(|digit| LETTERS[usize::from(digit) % LETTERS.len()] as char).collect()
}

/// Sets the revision; false where it was set already.
pub(super) fn set(annotations: &mut Annotations, revision: &str) -> bool {
    annotations.insert(REVISION.to_owned(), revision.to_owned()).as_deref() != Some(revision)
}

fn revision_of(set: &ReplicaSet) -> i64 {
    let text = set.metadata.annotations.as_ref().and_then(|a| a.get(REVISION));
    text.and_then(|r| r.parse().ok()).unwrap_or(0)
}

/// The revision that the present template gets.
fn next_revision(rollout: &Rollout<'_>) -> i64 {
    rollout.old.iter().map(revision_of).max().unwrap_or(0).max(0).saturating_add(1)
}

/// How many replicas the Deployment asked for when it last wrote the set.
pub(super) fn desired(set: &ReplicaSet) -> Option<i32> {
    count_in(set, DESIRED)
}

/// How many replicas were allowed when the Deployment last wrote the set.
pub(super) fn max(set: &ReplicaSet) -> Option<i32> {
    count_in(set, MAX)
}

fn count_in(set: &ReplicaSet, annotation: &str) -> Option<i32> {
    set.metadata.annotations.as_ref()?.get(annotation)?.parse().ok().filter(|n| *n >= 0)
}

/// Notes in the set what the Deployment asks for and allows now.
pub(super) fn note_size(set: &mut ReplicaSet, deployment: &Deployment) {
    let annotations = set.metadata.annotations.get_or_insert_default();
    let most = wanted(deployment).saturating_add(rollout::max_surge(deployment));
    annotations.insert(DESIRED.to_owned(), wanted(deployment).to_string());
    annotations.insert(MAX.to_owned(), most.to_string());
}

/// Brings the annotations of the present set up to date, and notes its revision for the Deployment.
pub(super) fn sync(rollout: &mut Rollout<'_>) {
    let next = next_revision(rollout);
    let Some(mut set) = rollout.new.take() else { return };
    annotate(&mut set, rollout.deployment, next);
    if let Some(spec) = &mut set.spec {
        let wanted = rollout.deployment.spec.as_ref().and_then(|s| s.min_ready_seconds);
        if spec.min_ready_seconds.unwrap_or(0) != wanted.unwrap_or(0) {
            spec.min_ready_seconds = wanted;
        }
    }
    rollout.revision = set.metadata.annotations.as_ref().and_then(|a| a.get(REVISION)).cloned();
    if rollout.has_deadline() && status::progressing(&rollout.status).is_none() {
        let message = format!("Found new replica set {:?}", name(&set));
        status::set_condition(&mut rollout.status, "Progressing", "True", "FoundNewReplicaSet", &message, rollout.now);
    }
    rollout.new = Some(set);
}

/// Copies the Deployment's annotations and writes the revision, with the former one in the history.
fn annotate(set: &mut ReplicaSet, deployment: &Deployment, revision: i64) {
    let empty = Annotations::new();
    let given = deployment.metadata.annotations.as_ref().unwrap_or(&empty);
    let copied = given.iter().filter(|(name, _)| !NOT_COPIED.contains(&name.as_str()));
    let annotations = set.metadata.annotations.get_or_insert_default();
    annotations.extend(copied.map(|(name, value)| (name.clone(), value.clone())));
    let former = annotations.get(REVISION).cloned();
    let number = match former.as_deref() {
        None | Some("") => 0,
        // Somebody else's text: it isn't ours to replace.
        Some(text) => match text.parse::<i64>() {
            Ok(number) => number,
            Err(_) => return,
        },
    };
    if number >= revision {
        return;
    }
    annotations.insert(REVISION.to_owned(), revision.to_string());
    if let Some(former) = former {
        let history = annotations.get(HISTORY).filter(|h| !h.is_empty()).cloned();
        let mut entries: Vec<&str> = history.iter().flat_map(|h| h.split(',')).collect();
        entries.push(&former);
        while entries.len() > 1 && entries.iter().map(|e| e.len() + 1).sum::<usize>() - 1 > HISTORY_CHARS_MAX {
            entries.remove(0);
        }
        let joined = entries.join(",");
        annotations.insert(HISTORY.to_owned(), joined);
    }
}

/// Makes the set of the present template. Answers false where it can't go on in this pass.
pub(super) fn create(rollout: &mut Rollout<'_>, failure: Option<&Failure>) -> bool {
    let deployment = rollout.deployment;
    let Some(spec) = &deployment.spec else { return false };
    let collisions = deployment.status.as_ref().and_then(|s| s.collision_count);
    let hash = hash(&spec.template, collisions);
    let set_name = named(deployment.metadata.name.as_deref().unwrap_or_default(), &hash);
    let namespace = deployment.metadata.namespace.clone().unwrap_or_default();
    if rollout.view.get::<ReplicaSet>(&ObjectKey::new(&*namespace, &*set_name)).is_some() {
        // It isn't ours, or has another template: two templates with one hash.
        rollout.status.collision_count = Some(collisions.unwrap_or(0).saturating_add(1));
        rollout.write_status();
        return false;
    }
    let mut template = spec.template.clone();
    let labels = template.metadata.get_or_insert_default().labels.get_or_insert_default();
    labels.insert(HASH.to_owned(), hash.clone());
    let labels = labels.clone();
    let mut selector = spec.selector.clone();
    selector.match_labels.get_or_insert_default().insert(HASH.to_owned(), hash);
    let mut set = ReplicaSet {
        metadata: ObjectMeta {
            name: Some(set_name.clone()),
            namespace: Some(namespace),
            owner_references: Some(vec![controlled_by(deployment)]),
            labels: Some(labels),
            ..ObjectMeta::default()
        },
        spec: Some(ReplicaSetSpec {
            replicas: Some(0),
            min_ready_seconds: spec.min_ready_seconds,
            selector,
            template: Some(template),
        }),
        status: None,
    };
    annotate(&mut set, deployment, next_revision(rollout));
    note_size(&mut set, deployment);
    let replicas = rollout::replicas_of_new(rollout, 0);
    if let Some(spec) = &mut set.spec {
        spec.replicas = Some(replicas);
    }
    let failed = failure.filter(|f| f.verb == "create" && f.resource == "replicasets.apps");
    if let Some(failure) = failed
        && rollout.has_deadline()
    {
        let message = format!("Failed to create new replica set {set_name:?}: {}", failure.message);
        status::set_condition(
            &mut rollout.status,
            "Progressing",
            "False",
            "ReplicaSetCreateError",
            &message,
            rollout.now,
        );
        status::count(rollout);
        rollout.write_status();
    }
    if deployment.status.as_ref().and_then(|s| s.observed_generation).unwrap_or(0) == 0 {
        // There may be one to adopt that was made just before.
        let namespace = deployment.metadata.namespace.as_deref().unwrap_or_default();
        rollout.plan.push(pods::expect_known::<ReplicaSet>(rollout.view, namespace, &spec.selector));
    }
    let message = format!("Failed to create new replica set {set_name:?}: {{error}}");
    let scaled =
        Note::normal(deployment, "ScalingReplicaSet", format!("Scaled up replica set {set_name} from 0 to {replicas}"));
    let failed_note = Note::warning(deployment, "ReplicaSetCreateError", message);
    rollout.plan.push(Action::create(&set).noted((replicas > 0).then_some(scaled), Some(failed_note)));
    if failed.is_some() {
        return false;
    }
    rollout.revision = set.metadata.annotations.as_ref().and_then(|a| a.get(REVISION)).cloned();
    if rollout.has_deadline() {
        let message = format!("Created new replica set {set_name:?}");
        status::set_condition(
            &mut rollout.status,
            "Progressing",
            "True",
            "NewReplicaSetCreated",
            &message,
            rollout.now,
        );
    }
    rollout.new = Some(set);
    true
}

fn named(deployment: &str, hash: &str) -> String {
    let room = NAME_LENGTH_MAX - 1 - hash.len();
    let mut end = deployment.len().min(room);
    while !deployment.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}-{hash}", &deployment[..end])
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
