//! A scheduler plugin: it rejects nodes with the label `{{name}}/avoid` and full nodes, and prefers nodes with few pods.

use std::cell::RefCell;
use std::collections::BTreeSet;

use exports::coracle::scheduler::plugin::{
    Candidate, Guest, GuestInstance, Instance, Node, Refusal,
};
use serde_json::Value;

wit_bindgen::generate!({ path: "wit", world: "scheduler-plugin" });

const AVOID: &str = "{{name}}/avoid";
const SCORE_MAX: u32 = 100;

struct Plugin;

impl Guest for Plugin {
    type Instance = Policy;
}

/// The configuration of the profile, and the names of the avoided nodes.
struct Policy {
    pods_max: Option<u64>,
    avoided: RefCell<BTreeSet<String>>,
}

impl GuestInstance for Policy {
    fn open(config: String) -> Result<Instance, String> {
        Ok(Instance::new(Self { pods_max: pods_max(&config)?, avoided: RefCell::default() }))
    }

    fn set_nodes(&self, nodes: Vec<Node>) {
        let mut avoided = self.avoided.borrow_mut();
        for node in nodes {
            if is_avoided(&node.object) {
                avoided.insert(node.name);
            } else {
                avoided.remove(&node.name);
            }
        }
    }

    fn remove_nodes(&self, names: Vec<String>) {
        let mut avoided = self.avoided.borrow_mut();
        avoided.retain(|name| !names.contains(name));
    }

    fn filter(&self, _pod: String, candidates: Vec<Candidate>) -> Result<Vec<Refusal>, String> {
        let avoided = self.avoided.borrow();
        let mut refusals = Vec::new();
        for (candidate, at) in candidates.iter().zip(0..) {
            let mut refuse = |reason: String, unresolvable| {
                refusals.push(Refusal { candidate: at, reason, unresolvable });
            };
            if avoided.contains(&candidate.node) {
                refuse(format!("node(s) had the label {AVOID}"), true);
            } else if let Some(max) = self.pods_max.filter(|max| u64::from(candidate.pods) >= *max) {
                // Preemption may remove pods, so this is resolvable.
                refuse(format!("node(s) had {max} pods"), false);
            }
        }
        Ok(refusals)
    }

    fn score(&self, _pod: String, candidates: Vec<Candidate>) -> Result<Vec<u32>, String> {
        Ok(candidates.iter().map(|candidate| SCORE_MAX.saturating_sub(candidate.pods)).collect())
    }
}

export!(Plugin);

/// `podsMax` of the configuration, which is JSON or empty.
fn pods_max(config: &str) -> Result<Option<u64>, String> {
    if config.is_empty() {
        return Ok(None);
    }
    let config: Value = serde_json::from_str(config).map_err(|error| format!("config: {error}"))?;
    match &config["podsMax"] {
        Value::Null => Ok(None),
        number => number.as_u64().map(Some).ok_or_else(|| "config.podsMax is no number".to_owned()),
    }
}

/// Whether a Node, as JSON, has the label.
fn is_avoided(node: &str) -> bool {
    let node: Value = serde_json::from_str(node).unwrap_or_default();
    !node["metadata"]["labels"][AVOID].is_null()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_and_configurations_are_read() {
        assert!(is_avoided(r#"{"metadata": {"labels": {"{{name}}/avoid": "yes"}}}"#));
        assert!(!is_avoided(r#"{"metadata": {"labels": {}}}"#) && !is_avoided("no JSON"));
        assert_eq!((pods_max(""), pods_max(r#"{"podsMax": 3}"#)), (Ok(None), Ok(Some(3))));
        assert!(pods_max(r#"{"podsMax": "many"}"#).is_err() && pods_max("{").is_err());
    }
}
