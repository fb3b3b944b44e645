//! The table of plugins: names, extension points and weights as upstream's default profile; one file each.

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

/// The best score of a node in one plugin.
pub const SCORE_MAX: i64 = 100;

/// How resources are scored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ScoringStrategy {
    /// Prefer empty nodes (upstream's default).
    #[default]
    LeastAllocated,
    /// Prefer full nodes.
    MostAllocated,
    /// By points of utilization and score.
    RequestedToCapacityRatio,
}

/// What plugins may look at.
#[derive(Clone, Copy)]
pub struct Cycle<'a> {
    /// The pod.
    pub pod: &'a PodInfo,
    /// The cluster.
    pub snapshot: &'a Snapshot,
    /// What the profile tells its plugins.
    pub args: &'a Args,
    /// Chooses among equals.
    pub seed: u64,
}

impl<'a> Cycle<'a> {
    /// The node on which room is being made for the pod.
    #[must_use]
    pub fn nominated(&self) -> Option<&'a str> {
        let decided = self.snapshot.nominated.node_of(&self.pod.key);
        decided.or(self.pod.nominated.as_deref())
    }
}

/// Refuses nodes for one pod. It holds what was computed of the whole cluster before nodes are tried.
pub trait Filter {
    /// Whether the pod may go to the node.
    fn check(&self, node: &NodeInfo) -> Result<(), Refusal>;

    /// Brings what was computed up to date as if a pod were on the node (`PreFilterExtensions`: for trying what would be
    /// if others were there or not). What looks at the node alone has nothing to do.
    fn add_pod(&mut self, pod: &PodInfo, node: &NodeInfo) {
        let _ = (pod, node);
    }

    /// The same as if a pod weren't on the node any more.
    fn remove_pod(&mut self, pod: &PodInfo, node: &NodeInfo) {
        let _ = (pod, node);
    }
}

/// Prefers nodes for one pod.
pub trait Score {
    /// More is better; any scale where [`normalize`](Self::normalize) makes it 0 to [`SCORE_MAX`].
    fn score(&self, node: &NodeInfo) -> i64;

    /// Brings the scores of all feasible nodes to the common scale.
    fn normalize(&self, nodes: &[&NodeInfo], scores: &mut [i64]) {
        let _ = (nodes, scores);
    }
}

/// What a plugin says before nodes are tried.
pub enum PreFilterResult<'a> {
    /// It has nothing against any node.
    Skip,
    /// It has nothing against any node as long as pods are where they are: the filter is asked once it is told of a pod
    /// more or less.
    Idle(Box<dyn Filter + 'a>),
    /// The pod can go nowhere; the whole message.
    Unschedulable(String),
    /// Only these nodes are tried at all.
    Nodes(BTreeSet<&'a str>, Box<dyn Filter + 'a>),
    /// Nodes are tried.
    Filter(Box<dyn Filter + 'a>),
}

/// What may have made room for a pod that fitted nowhere.
#[derive(Debug, Clone)]
pub enum Event<'a> {
    /// A node is new or changed; as it is now.
    Node(&'a NodeInfo, NodeChange),
    /// A node is gone.
    NodeGone,
    /// A pod left a node (as it is now, where it exists).
    PodGone(Arc<PodInfo>, Option<&'a NodeInfo>),
    /// A pod was placed, or a placed one's labels changed.
    PodPlaced(Arc<PodInfo>),
    /// A namespace's labels changed.
    Namespace,
    /// A claim is new or changed.
    Claim(Arc<ObjectKey>),
    /// A volume that may be given to a claim, a class, or what drivers say of a node is new or changed.
    Volume,
}

/// What a plugin says of a pod that fits nowhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PostFilterResult {
    /// It can't help, and why: the end of the message.
    Unschedulable(String),
    /// The same, and the pod need not wait for a node on which room was being made for it.
    Hopeless(String),
    /// Others may go from these nodes, if a plugin that runs elsewhere lets the pod go there then.
    Asks(Vec<default_preemption::Candidate>),
    /// Room is being made on a node: the pod waits for it (`status.nominatedNodeName`).
    Nominated {
        /// Its name.
        node: String,
        /// Who has to go.
        victims: Vec<Arc<PodInfo>>,
        /// All nodes on which that would help, this one among them: for others who have a say in it.
        candidates: Vec<default_preemption::Candidate>,
    },
}

/// A patch that must be written before a pod is bound.
#[derive(Debug, Clone, PartialEq)]
pub struct PreBindPatch {
    /// The kind.
    pub kind: Kind,
    /// The object.
    pub key: ObjectKey,
    /// `status` or the like; none for the object itself.
    pub subresource: Option<&'static str>,
    /// How the patch is meant.
    pub patch_type: PatchType,
    /// The patch, with its preconditions.
    pub patch: Value,
}

/// Sets something aside in the snapshot for a pod that has been given a node, until it is bound.
#[derive(Debug, Clone, Copy)]
pub struct Reserve {
    /// Sets aside, or says why that can't be: the pod is then tried again later.
    pub reserve: fn(&mut Snapshot, &PodInfo, &str) -> Result<(), String>,
    /// Gives back: the pod doesn't come to the node. Also called where `reserve` failed or wasn't reached.
    pub unreserve: fn(&mut Snapshot, &PodInfo, &str),
}

/// `PreFilter`: looks at the pod and the whole snapshot before nodes are tried, and makes the filter.
type PreFilter = for<'a> fn(Cycle<'a>) -> PreFilterResult<'a>;
/// Makes a score for a pod and the feasible nodes; none: no opinion.
type PreScore = for<'a> fn(Cycle<'a>, &[&'a NodeInfo]) -> Option<Box<dyn Score + 'a>>;
/// `PostFilter`: may try on the filters what would be if other pods weren't there.
type PostFilter = for<'a> fn(Cycle<'a>, &mut Filters<'a>, &Diagnosis) -> PostFilterResult;

/// `PreBind`: what must be written before a pod is bound to a node.
type PreBind = fn(&Snapshot, &PodInfo, &str) -> Vec<PreBindPatch>;

/// One plugin: it takes part where it has a function. Permit has none: nothing makes a bound pod wait for others yet.
pub struct Plugin {
    /// Upstream's name.
    pub name: &'static str,
    /// Its score's weight, unless a profile has another one.
    pub weight: i64,
    /// `PreEnqueue`: whether the pod may be queued.
    pub pre_enqueue: Option<fn(&PodInfo) -> bool>,
    /// `QueueSort`: where a pod stands in the queue that it came to at an instant.
    pub queue_sort: Option<fn(&PodInfo, Duration) -> Rank>,
    /// `PreFilter` and, by what that makes, `Filter`.
    pub pre_filter: Option<PreFilter>,
    /// `PostFilter`.
    pub post_filter: Option<PostFilter>,
    /// `PreScore` and, by what that makes, `Score`.
    pub pre_score: Option<PreScore>,
    /// `Reserve`, after the decision and before anything is written.
    pub reserve: Option<Reserve>,
    /// `PreBind`: what is written before the binding.
    pub pre_bind: Option<PreBind>,
    /// Whether a pod that it refused might fit after the event.
    pub queueing_hint: fn(&Event<'_>, &PodInfo) -> bool,
}

/// A plugin that takes part nowhere yet.
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

/// Every plugin, in upstream's order: the first that refuses a node gives the reason.
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

/// Upstream's usual normalization: the best gets [`SCORE_MAX`], or 0 where less is better.
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
