//! Orphaned dependents stay: once the owner is gone, no object that existed at its deletion request refers to it.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::history::{History, KeyChange};

/// State derived from earlier changes.
#[derive(Default)]
pub(crate) struct Orphans {
    /// Owners in an orphaning deletion, by uid: the revision of the request.
    leaving: BTreeMap<String, u64>,
}

fn leaves_behind(object: &Value) -> bool {
    let finalizers = object["metadata"]["finalizers"].as_array().into_iter().flatten();
    !object["metadata"]["deletionTimestamp"].is_null() && finalizers.into_iter().any(|name| name == "orphan")
}

fn owned_by(object: &Value, uid: &str) -> bool {
    let owners = object["metadata"]["ownerReferences"].as_array().into_iter().flatten();
    owners.into_iter().any(|owner| owner["uid"] == uid)
}

impl Orphans {
    /// The violations of one change.
    pub(crate) fn step(&mut self, history: &History, step: &KeyChange) -> Vec<String> {
        let uid = |object: &Value| object["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
        if let Some(new) = step.new.as_deref().map(|new| new.value()).filter(|new| leaves_behind(new)) {
            self.leaving.entry(uid(new)).or_insert(step.revision);
        }
        let Some(old) = step.old.as_deref().map(|old| uid(old.value())).filter(|_| step.new.is_none()) else {
            return Vec::new();
        };
        let Some(requested_at) = self.leaving.remove(&old) else { return Vec::new() };
        let there = history.below("/registry/", requested_at);
        let left = there.iter().filter(|(_, object)| owned_by(object.value(), &old)).filter(|(key, before)| {
            let now = history.at(key, step.revision);
            now.is_some_and(|now| uid(now.value()) == uid(before.value()) && owned_by(now.value(), &old))
        });
        left.map(|(key, _)| format!("{} at {}: it goes, and {key} was to be left behind", step.key, step.revision))
            .collect()
    }
}
