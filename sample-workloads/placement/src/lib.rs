//! A scheduler plugin. A pod's annotation `placement.example.com/avoid: KEY=VALUE` keeps it off nodes with that label, a node's
//! annotation `placement.example.com/preference` is its score, and the profile may bound the pods of a node.
#![no_std]
extern crate alloc;

use alloc::collections::BTreeMap;
use alloc::{format, string::String, string::ToString as _, vec::Vec};
use core::cell::RefCell;

use exports::coracle::scheduler::plugin::{Candidate, Guest, GuestInstance, Instance, Node, Refusal};
// The heap and the panic handler.
use guest as _;
use serde_json::Value;

wit_bindgen::generate!({ path: "../../scheduler/wit", world: "scheduler-plugin" });

const AVOID: &str = "placement.example.com/avoid";
const PREFERENCE: &str = "placement.example.com/preference";
/// The score of nodes without the annotation.
const SCORE: u32 = 50;

struct Placement;

impl Guest for Placement {
    type Instance = Policy;
}

/// The configuration, and the used fields of nodes.
struct Policy {
    pods_max: Option<u64>,
    nodes: RefCell<BTreeMap<String, Known>>,
}

struct Known {
    labels: Value,
    score: u32,
}

impl GuestInstance for Policy {
    fn open(config: String) -> Result<Instance, String> {
        let told: Value = match config.as_str() {
            "" => Value::Null,
            text => serde_json::from_str(text).map_err(|error| format!("config: {error}"))?,
        };
        let pods_max = match &told["podsMax"] {
            Value::Null => None,
            number => Some(number.as_u64().ok_or_else(|| format!("config.podsMax: wanted a number, found {number}"))?),
        };
        Ok(Instance::new(Self { pods_max, nodes: RefCell::default() }))
    }

    fn set_nodes(&self, nodes: Vec<Node>) {
        let read = |node: Node| {
            let object: Value = serde_json::from_str(&node.object).unwrap_or_default();
            let metadata = &object["metadata"];
            let score = metadata["annotations"][PREFERENCE].as_str().and_then(|text| text.parse().ok());
            (node.name, Known { labels: metadata["labels"].clone(), score: score.unwrap_or(SCORE).min(100) })
        };
        self.nodes.borrow_mut().extend(nodes.into_iter().map(read));
    }

    fn remove_nodes(&self, names: Vec<String>) {
        let mut nodes = self.nodes.borrow_mut();
        for name in names {
            nodes.remove(&name);
        }
    }

    fn filter(&self, pod: String, candidates: Vec<Candidate>) -> Result<Vec<Refusal>, String> {
        let pod: Value = serde_json::from_str(&pod).map_err(|error| error.to_string())?;
        let avoided = pod["metadata"]["annotations"][AVOID].as_str().map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        let nodes = self.nodes.borrow();
        let mut refusals = Vec::new();
        for (at, candidate) in candidates.iter().enumerate() {
            let mut refuse = |reason: String, unresolvable| {
                refusals.push(Refusal { candidate: at as u32, reason, unresolvable });
            };
            let labels = nodes.get(&candidate.node).map_or(&Value::Null, |known| &known.labels);
            match (avoided, self.pods_max) {
                (Some((key, value)), _) if labels[key] == *value => {
                    refuse(format!("node(s) had the label {key}={value}, which the pod avoids"), true);
                }
                // Victims may be removed, and then the node fits.
                (_, Some(max)) if u64::from(candidate.pods) >= max => refuse(format!("node(s) had {max} pods"), false),
                _ => {}
            }
        }
        Ok(refusals)
    }

    fn score(&self, _pod: String, candidates: Vec<Candidate>) -> Result<Vec<u32>, String> {
        let nodes = self.nodes.borrow();
        Ok(candidates.iter().map(|candidate| nodes.get(&candidate.node).map_or(SCORE, |known| known.score)).collect())
    }
}

export!(Placement);
