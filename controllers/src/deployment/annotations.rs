//! Annotations of a Deployment's ReplicaSets: revision, revision history, and the Deployment's size at the last write.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};

use super::{strategy, wanted};

type Annotations = BTreeMap<String, String>;

pub(super) const REVISION: &str = "deployment.kubernetes.io/revision";
const HISTORY: &str = "deployment.kubernetes.io/revision-history";
const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
const MAX: &str = "deployment.kubernetes.io/max-replicas";
/// Annotations of a Deployment that are not copied to its sets.
const NOT_COPIED: [&str; 6] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    HISTORY,
    DESIRED,
    MAX,
    "deprecated.deployment.rollback.to",
];
/// The maximum length of the revision history (upstream's: about 100 revisions).
const HISTORY_CHARS_MAX: usize = 2000;
/// Sets the revision; false if it is unchanged.
pub(super) fn set(annotations: &mut Annotations, revision: &str) -> bool {
    annotations.insert(REVISION.to_owned(), revision.to_owned()).as_deref() != Some(revision)
}

/// The Deployment's replicas at its last write of the set.
pub(super) fn desired(set: &ReplicaSet) -> Option<i32> {
    count_in(set, DESIRED)
}

/// The Deployment's maximum of replicas at its last write of the set.
pub(super) fn max(set: &ReplicaSet) -> Option<i32> {
    count_in(set, MAX)
}

fn count_in(set: &ReplicaSet, annotation: &str) -> Option<i32> {
    set.metadata.annotations.as_ref()?.get(annotation)?.parse().ok().filter(|n| *n >= 0)
}

/// Writes the Deployment's replicas and maximum into the set.
pub(super) fn note_size(set: &mut ReplicaSet, deployment: &Deployment) {
    let annotations = set.metadata.annotations.get_or_insert_default();
    let most = wanted(deployment).saturating_add(strategy::max_surge(deployment));
    annotations.insert(DESIRED.to_owned(), wanted(deployment).to_string());
    annotations.insert(MAX.to_owned(), most.to_string());
}

/// Copies the Deployment's annotations and writes the revision, with the previous one in the history.
pub(super) fn annotate(set: &mut ReplicaSet, deployment: &Deployment, revision: i64) {
    let empty = Annotations::new();
    let given = deployment.metadata.annotations.as_ref().unwrap_or(&empty);
    let copied = given.iter().filter(|(name, _)| !NOT_COPIED.contains(&name.as_str()));
    let annotations = set.metadata.annotations.get_or_insert_default();
    annotations.extend(copied.map(|(name, value)| (name.clone(), value.clone())));
    let former = annotations.get(REVISION).cloned();
    let number = match former.as_deref() {
        None | Some("") => 0,
        // Another client's text: it is not replaced.
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
