//! A pod's conditions for caches: most pods have equal conditions that differ only in their times, so the rest is
//! interned.

use std::ops::Deref;
use std::sync::Arc;

use crate::interner::Interner;
use k8s_openapi::api::core::v1::PodCondition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::Pod;

static CONTENTS: Interner<ConditionContent> = Interner::new();

/// A condition; its fields other than times are those of [`ConditionContent`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    content: Arc<ConditionContent>,
    /// The time of the last transition.
    pub last_transition_time: Option<Time>,
}

/// A condition's interned fields.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ConditionContent {
    /// The condition's type.
    pub type_: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
    /// A CamelCase reason.
    pub reason: Option<String>,
    /// A message for humans.
    pub message: Option<String>,
    /// The observed generation of the pod.
    pub observed_generation: Option<i64>,
    /// Obsolete: written as null only.
    pub last_probe_time: Option<jiff::Timestamp>,
}

impl Deref for Condition {
    type Target = ConditionContent;

    fn deref(&self) -> &ConditionContent {
        &self.content
    }
}

impl<'de> Deserialize<'de> for Condition {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        PodCondition::deserialize(deserializer).map(Self::from)
    }
}

impl Serialize for Condition {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        PodCondition::from(self).serialize(serializer)
    }
}

impl From<PodCondition> for Condition {
    fn from(condition: PodCondition) -> Self {
        let PodCondition { last_probe_time, last_transition_time, message, observed_generation, reason, status, type_ } =
            condition;
        let last_probe_time = last_probe_time.map(|time| time.0);
        let content = ConditionContent { type_, status, reason, message, observed_generation, last_probe_time };
        Self { content: CONTENTS.intern(content), last_transition_time }
    }
}

impl From<&Condition> for PodCondition {
    fn from(condition: &Condition) -> Self {
        let ConditionContent { type_, status, reason, message, observed_generation, last_probe_time } =
            ConditionContent::clone(condition);
        let last_transition_time = condition.last_transition_time.clone();
        let last_probe_time = last_probe_time.map(Time);
        Self { last_probe_time, last_transition_time, message, observed_generation, reason, status, type_ }
    }
}

impl Pod {
    /// All conditions, for a patch, which replaces the whole list.
    #[must_use]
    pub fn conditions(&self) -> Vec<PodCondition> {
        let held = self.status.iter().flat_map(|status| status.conditions.iter().flatten());
        held.map(PodCondition::from).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn whole(at: &str) -> Value {
        json!({"type": "Ready", "status": "False", "reason": "R", "message": "why", "observedGeneration": 2,
            "lastProbeTime": "2026-01-01T00:00:00Z", "lastTransitionTime": at})
    }

    #[test]
    fn conditions_are_complete_and_common_texts_are_shared() {
        let read = |at| serde_json::from_value::<Condition>(whole(at)).unwrap();
        let (one, other) = (read("2026-01-02T00:00:00Z"), read("2026-01-03T00:00:00Z"));
        assert_eq!(serde_json::to_value(&one).unwrap(), whole("2026-01-02T00:00:00Z"));
        assert!(Arc::ptr_eq(&one.content, &other.content));
        assert_ne!(one, other);
        assert_eq!((one.type_.as_str(), one.reason.as_deref()), ("Ready", Some("R")));
    }
}
