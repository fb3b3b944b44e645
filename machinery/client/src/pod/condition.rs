//! A pod's conditions as views hold them: most pods say the same of themselves, and differ only in when.

use std::ops::Deref;
use std::sync::Arc;

use k8s_openapi::api::core::v1::PodCondition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use machinery_api::shared::Pool;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::Pod;

static SAID: Pool<Said> = Pool::new();

/// A condition; its fields but its times are those of [`Said`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    said: Arc<Said>,
    /// When it became so.
    pub last_transition_time: Option<Time>,
}

/// What a condition says, shared by all that say the same.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Said {
    /// What it is about.
    pub type_: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
    /// Why, in a word.
    pub reason: Option<String>,
    /// Why, in a sentence.
    pub message: Option<String>,
    /// Of which generation of the pod.
    pub observed_generation: Option<i64>,
    /// Nobody writes it any more but as null.
    pub last_probe_time: Option<jiff::Timestamp>,
}

impl Deref for Condition {
    type Target = Said;

    fn deref(&self) -> &Said {
        &self.said
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
        let said = Said { type_, status, reason, message, observed_generation, last_probe_time };
        Self { said: SAID.share(said), last_transition_time }
    }
}

impl From<&Condition> for PodCondition {
    fn from(condition: &Condition) -> Self {
        let Said { type_, status, reason, message, observed_generation, last_probe_time } = Said::clone(condition);
        let last_transition_time = condition.last_transition_time.clone();
        let last_probe_time = last_probe_time.map(Time);
        Self { last_probe_time, last_transition_time, message, observed_generation, reason, status, type_ }
    }
}

impl Pod {
    /// All conditions, for who changes one: a patch takes the list as a whole.
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
    fn all_of_a_condition_stays_and_what_many_say_is_held_once() {
        let read = |at| serde_json::from_value::<Condition>(whole(at)).unwrap();
        let (one, other) = (read("2026-01-02T00:00:00Z"), read("2026-01-03T00:00:00Z"));
        assert_eq!(serde_json::to_value(&one).unwrap(), whole("2026-01-02T00:00:00Z"));
        assert!(Arc::ptr_eq(&one.said, &other.said));
        assert_ne!(one, other);
        assert_eq!((one.type_.as_str(), one.reason.as_deref()), ("Ready", Some("R")));
    }
}
