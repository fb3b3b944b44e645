//! The table of plugins, with the names, extension points and weights of upstream's default profile; one file per
//! plugin.

pub mod args;
pub mod default_preemption;
mod dynamic_resources;
mod filters;
mod image_locality;
mod interpod_affinity;
mod node_affinity;
mod node_name;
mod node_ports;
mod node_resources;
mod node_unschedulable;
pub mod priority_sort;
mod profile;
mod scheduling_gates;
mod taint_toleration;
mod topology_spread;
pub mod volumes;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use machinery_api::ObjectKey;
use machinery_client::Kind;
use machinery_client::request::PatchType;
use serde_json::Value;

pub use self::args::Args;
pub use self::default_preemption::PreemptionArgs;
pub use self::filters::Filters;
pub use self::priority_sort::Rank;
pub use self::profile::{Point, Points, Profile, ProfileError};
use crate::diagnosis::Diagnosis;
use crate::node::NodeInfo;
use crate::pod::PodInfo;
pub use crate::refusal::{Reasons, Refusal};
use crate::snapshot::{NodeChange, Snapshot};

/// The maximum score of a node.
pub const SCORE_MAX: i64 = 100;

/// How resources are scored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ScoringStrategy {
    /// Prefer empty nodes (upstream's default).
    #[default]
    LeastAllocated,
    /// Prefer full nodes.
    MostAllocated,
    /// By the points of a shape.
    RequestedToCapacityRatio,
}

/// The inputs of one scheduling cycle.
#[derive(Clone, Copy)]
pub struct Cycle<'a> {
    pub pod: &'a PodInfo,
    pub snapshot: &'a Snapshot,
    /// The arguments of the profile's plugins.
    pub args: &'a Args,
    /// Chooses among equal results.
    pub seed: u64,
}

impl<'a> Cycle<'a> {
    /// The node that the pod is nominated for.
    #[must_use]
    pub fn nominated(&self) -> Option<&'a str> {
        let decided = self.snapshot.nominated.node_of(&self.pod.key);
        decided.or(self.pod.nominated.as_deref())
    }
}

/// Filters nodes for one pod, with the state that `PreFilter` computed from the whole cluster.
pub trait Filter {
    /// Whether the pod fits the node.
    fn check(&self, node: &NodeInfo) -> Result<(), Refusal>;

    /// Updates the state as if a pod were added to the node (`PreFilterExtensions`, for preemption and nominated pods).
    /// A filter that reads the node alone needs no update.
    fn add_pod(&mut self, pod: &PodInfo, node: &NodeInfo) {
        let _ = (pod, node);
    }

    /// Updates the state as if a pod were removed from the node.
    fn remove_pod(&mut self, pod: &PodInfo, node: &NodeInfo) {
        let _ = (pod, node);
    }
}

/// Scores nodes for one pod.
pub trait Score {
    /// More is better, on any scale that [`normalize`](Self::normalize) maps to 0 to [`SCORE_MAX`].
    fn score(&self, node: &NodeInfo) -> i64;

    /// Maps the scores of all feasible nodes to the common scale.
    fn normalize(&self, nodes: &[&NodeInfo], scores: &mut [i64]) {
        let _ = (nodes, scores);
    }
}

/// The result of a plugin's `PreFilter`.
pub enum PreFilterResult<'a> {
    /// The plugin accepts all nodes.
    Skip,
    /// The plugin accepts all nodes until a pod is added or removed; from then on the filter runs.
    Idle(Box<dyn Filter + 'a>),
    /// No node fits, with the whole message.
    Unschedulable(String),
    /// Only these nodes are filtered.
    Nodes(BTreeSet<&'a str>, Box<dyn Filter + 'a>),
    /// All nodes are filtered.
    Filter(Box<dyn Filter + 'a>),
}

/// A cluster event that may make an unschedulable pod schedulable.
#[derive(Debug, Clone)]
pub enum Event<'a> {
    /// A node was added or changed; its new state.
    Node(&'a NodeInfo, NodeChange),
    /// A node was removed.
    NodeGone,
    /// A pod left a node (its new state, if it exists).
    PodGone(Arc<PodInfo>, Option<&'a NodeInfo>),
    /// A pod was bound, or the labels of a bound pod changed.
    PodPlaced(Arc<PodInfo>),
    /// A namespace's labels changed.
    Namespace,
    /// A claim was added or changed.
    Claim(Arc<ObjectKey>),
    /// A volume that a claim may bind, a StorageClass or a CSINode was added or changed.
    Volume,
}

/// The result of a plugin's `PostFilter`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PostFilterResult {
    /// The plugin can't help; the end of the message.
    Unschedulable(String),
    /// The plugin can't help, and the pod's nomination is cleared; the end of the message.
    NotHelpful(String),
    /// Preemption on these nodes may help, if a WebAssembly plugin accepts them then.
    Candidates(Vec<default_preemption::Candidate>),
    /// Preemption on a node: the pod is nominated for it (`status.nominatedNodeName`).
    Nominated {
        node: String,
        victims: Vec<Arc<PodInfo>>,
        /// All candidates, this node included, for extenders and WebAssembly plugins.
        candidates: Vec<default_preemption::Candidate>,
    },
}

/// A patch to write before a pod is bound.
#[derive(Debug, Clone, PartialEq)]
pub struct PreBindPatch {
    pub kind: Kind,
    /// The key of the object.
    pub key: ObjectKey,
    /// For instance `status`; none for the object itself.
    pub subresource: Option<&'static str>,
    pub patch_type: PatchType,
    /// The patch, with its preconditions.
    pub patch: Value,
}

/// Reserves something in the snapshot for a scheduled pod, until it is bound.
#[derive(Debug, Clone, Copy)]
pub struct Reserve {
    /// Reserves, or returns the reason why it can't: the pod is then retried.
    pub reserve: fn(&mut Snapshot, &PodInfo, &str) -> Result<(), String>,
    /// Undoes the reservation of a pod that isn't bound. Also called if `reserve` failed or was not called.
    pub unreserve: fn(&mut Snapshot, &PodInfo, &str),
}

/// `PreFilter`: reads the pod and the whole snapshot before nodes are filtered, and creates the filter.
type PreFilter = for<'a> fn(Cycle<'a>) -> PreFilterResult<'a>;
/// Creates a score for a pod and the feasible nodes; none: the plugin doesn't score.
type PreScore = for<'a> fn(Cycle<'a>, &[&'a NodeInfo]) -> Option<Box<dyn Score + 'a>>;
/// `PostFilter`: may run the filters as if other pods were removed.
type PostFilter = for<'a> fn(Cycle<'a>, &mut Filters<'a>, &Diagnosis) -> PostFilterResult;

/// `PreBind`: the patches to write before a pod is bound to a node.
type PreBind = fn(&Snapshot, &PodInfo, &str) -> Vec<PreBindPatch>;

/// A plugin, with a function for each extension point that it implements. No plugin implements Permit, so that point is
/// absent.
pub struct Plugin {
    /// Upstream's name.
    pub name: &'static str,
    /// The default weight of its score.
    pub weight: i64,
    /// `PreEnqueue`: whether the pod may be queued.
    pub pre_enqueue: Option<fn(&PodInfo) -> bool>,
    /// `QueueSort`: the rank of a pod in the queue, from the time when it was queued.
    pub queue_sort: Option<fn(&PodInfo, Duration) -> Rank>,
    /// `PreFilter`, and `Filter` through its result.
    pub pre_filter: Option<PreFilter>,
    /// `PostFilter`.
    pub post_filter: Option<PostFilter>,
    /// `PreScore`, and `Score` through its result.
    pub pre_score: Option<PreScore>,
    /// `Reserve`, after the decision and before any write.
    pub reserve: Option<Reserve>,
    /// `PreBind`, before the binding.
    pub pre_bind: Option<PreBind>,
    /// Whether a pod that the plugin rejected might fit after the event.
    pub queueing_hint: fn(&Event<'_>, &PodInfo) -> bool,
}

/// A plugin without extension points.
pub(crate) const fn plugin(name: &'static str) -> Plugin {
    Plugin {
        name,
        weight: 0,
        pre_enqueue: None,
        queue_sort: None,
        pre_filter: None,
        post_filter: None,
        pre_score: None,
        reserve: None,
        pre_bind: None,
        queueing_hint: |_, _| false,
    }
}

/// All plugins, in upstream's order: the first that rejects a node gives the reason.
pub static PLUGINS: &[Plugin] = &[
    scheduling_gates::PLUGIN,
    priority_sort::PLUGIN,
    node_unschedulable::PLUGIN,
    node_name::PLUGIN,
    taint_toleration::PLUGIN,
    node_affinity::PLUGIN,
    node_ports::PLUGIN,
    node_resources::FIT,
    volumes::RESTRICTIONS,
    volumes::LIMITS,
    volumes::BINDING,
    volumes::ZONE,
    dynamic_resources::PLUGIN,
    topology_spread::PLUGIN,
    interpod_affinity::PLUGIN,
    default_preemption::PLUGIN,
    node_resources::BALANCED,
    image_locality::PLUGIN,
];

/// Upstream's default normalization: the best node gets [`SCORE_MAX`], or 0 if less is better.
fn normalize(scores: &mut [i64], less_is_better: bool) {
    let max = scores.iter().copied().max().unwrap_or(0);
    for score in scores {
        let scaled = if max == 0 { 0 } else { *score * SCORE_MAX / max };
        *score = if less_is_better { SCORE_MAX - scaled } else { scaled };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_weights_are_upstreams() {
        let scored = PLUGINS.iter().filter(|plugin| plugin.pre_score.is_some());
        let weights: Vec<(&str, i64)> = scored.map(|plugin| (plugin.name, plugin.weight)).collect();
        let expected = [
            ("TaintToleration", 3),
            ("NodeAffinity", 2),
            ("NodeResourcesFit", 1),
            ("PodTopologySpread", 2),
            ("InterPodAffinity", 2),
            ("NodeResourcesBalancedAllocation", 1),
            ("ImageLocality", 1),
        ];
        assert_eq!(weights, expected);
    }
}
