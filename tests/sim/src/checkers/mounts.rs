//! The nodes' actual volumes: the pods that use one, and the claim whose data it holds.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::Value;

use super::claims::{bound_to, claims_of, owner};
use crate::history::History;

/// A pod's volume and its claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mount {
    volume: String,
    claim: String,
    /// The node that stores it; `None`: any.
    node: Option<String>,
}

#[derive(Default)]
struct MountsState {
    /// Volumes with data, by uid: the claim of the data.
    data: BTreeMap<String, String>,
    /// Running pods by uid: node and volumes.
    running: BTreeMap<String, (String, Vec<Mount>)>,
}

/// Checks mounts.
#[derive(Default)]
pub(crate) struct Mounts(Mutex<MountsState>);

/// The node of a node-local volume.
pub(crate) fn node_of(volume: &Value) -> Option<&str> {
    let terms = &volume["spec"]["nodeAffinity"]["required"]["nodeSelectorTerms"];
    terms.pointer("/0/matchExpressions/0/values/0")?.as_str()
}

/// The volumes of a pod; `None` until all are bound.
pub(crate) fn of(history: &History, pod: &Value) -> Option<Vec<Mount>> {
    let namespace = pod["metadata"]["namespace"].as_str().unwrap_or_default();
    let one = |name: String| {
        let claim = history.at(&format!("/registry/persistentvolumeclaims/{namespace}/{name}"), u64::MAX)?;
        let volume = history.at(&format!("/registry/persistentvolumes/{}", bound_to(claim.value())?), u64::MAX)?;
        let (claim, volume) = (claim.value()["metadata"]["uid"].as_str()?, volume.value());
        let uid = volume["metadata"]["uid"].as_str()?.to_owned();
        let mount = Mount { volume: uid, claim: claim.to_owned(), node: node_of(volume).map(str::to_owned) };
        Some(mount).filter(|_| owner(volume) == claim)
    };
    claims_of(pod).map(one).collect()
}

impl Mounts {
    fn state(&self) -> MutexGuard<'_, MountsState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records a pod's start. Returns the violations.
    pub(crate) fn started(&self, pod: &str, node: &str, mounts: Vec<Mount>) -> Vec<String> {
        let (mut state, mut problems) = (self.state(), Vec::new());
        for Mount { volume, claim, node: place } in &mounts {
            if let Some(place) = place.as_deref().filter(|place| *place != node) {
                problems.push(format!("the volume {volume} is on {place}, and {pod} runs on {node}"));
            }
            let before = state.data.entry(volume.clone()).or_insert_with(|| claim.clone());
            if before != claim {
                problems.push(format!("the volume {volume} has data of the claim {before}, and is given to {claim}"));
            }
            let uses = |(_, (there, theirs)): &(&String, &(String, Vec<Mount>))| {
                there != node && theirs.iter().any(|other| other.volume == *volume)
            };
            if let Some((other, (there, _))) = state.running.iter().find(uses) {
                problems.push(format!("the volume {volume} is used by {pod} on {node} and by {other} on {there}"));
            }
        }
        state.running.insert(pod.to_owned(), (node.to_owned(), mounts));
        problems
    }

    pub(crate) fn ended(&self, pod: &str) {
        self.state().running.remove(pod);
    }

    /// Records a machine's end with all of its pods.
    pub(crate) fn node_ended(&self, node: &str) {
        self.state().running.retain(|_, (there, _)| there != node);
    }

    /// Records the removal of a volume's data. Returns the violation.
    pub(crate) fn emptied(&self, volume: &str) -> Option<String> {
        let mut state = self.state();
        state.data.remove(volume);
        let uses = |(_, (_, mounts)): &(&String, &(String, Vec<Mount>))| mounts.iter().any(|one| one.volume == volume);
        let (pod, _) = state.running.iter().find(uses)?;
        Some(format!("the volume {volume} is emptied while {pod} uses it"))
    }
}

#[test]
fn a_volume_that_two_use_or_that_has_anothers_data_is_found() {
    let mount = |claim: &str| Mount { volume: "v".into(), claim: claim.into(), node: Some("m1".into()) };
    let (all, none) = (Mounts::default(), Vec::<String>::new());
    assert_eq!(all.started("one", "m1", vec![mount("a")]), none);
    assert_eq!(all.started("two", "m1", vec![mount("a")]), none, "beside it, on its node");
    assert_eq!(all.started("three", "m2", vec![mount("a")]).len(), 2, "its node is another, where it is used");
    all.ended("three");
    assert!(all.emptied("v").is_some_and(|what| what.contains("is emptied while one uses it")));
    assert_eq!(all.started("four", "m1", vec![mount("a")]), none);
    assert!(all.started("five", "m1", vec![mount("b")])[0].contains("has data of the claim a"));
    all.node_ended("m1");
    assert_eq!(all.emptied("v"), None);
    assert_eq!(all.started("six", "m1", vec![mount("b")]), none);
}
