//! The table of plugins: names, extension points and weights as upstream's default profile; one file each.

mod interpod_affinity;
mod node_affinity;
mod node_name;
mod node_ports;
mod node_resources;
mod node_unschedulable;
pub mod priority_sort;
pub mod scheduling_gates;
mod taint_toleration;
mod topology_spread;

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::Arc;

use crate::node::NodeInfo;
use crate::pod::PodInfo;
use crate::snapshot::{NodeChange, Snapshot};

/// The best score of a node in one plugin.
pub const SCORE_MAX: i64 = 100;

/// Where a plugin takes part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Point {
    /// Keeps a pod out of the queue.
    PreEnqueue,
    /// Orders the queue.
    QueueSort,
    /// Looks at the pod and the whole snapshot before nodes are tried.
    PreFilter,
    /// Refuses nodes.
    Filter,
    /// Prefers nodes.
    Score,
}

/// How resources are scored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Packing {
    /// Prefer empty nodes (upstream's default).
    #[default]
    LeastAllocated,
    /// Prefer full nodes.
    MostAllocated,
}

/// Which plugins decide for the pods of one scheduler name, and how.
#[derive(Clone)]
pub struct Profile {
    /// The plugins, in order, with the weights of their scores.
    pub plugins: Vec<(&'static Row, i64)>,
    /// How resources are scored.
    pub packing: Packing,
}

impl Default for Profile {
    /// Upstream's default plugins and weights.
    fn default() -> Self {
        Self { plugins: PLUGINS.iter().map(|row| (row, row.weight)).collect(), packing: Packing::default() }
    }
}

impl std::fmt::Debug for Profile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let plugins = self.plugins.iter().map(|(row, weight)| (row.name, weight));
        f.debug_list().entries(plugins).finish()
    }
}

/// What plugins may look at.
#[derive(Clone, Copy)]
pub struct Cycle<'a> {
    /// The pod.
    pub pod: &'a PodInfo,
    /// The cluster.
    pub snapshot: &'a Snapshot,
    /// How resources are scored.
    pub packing: Packing,
}

/// In upstream's words. Most refusals have one reason that is known beforehand: it costs nothing to say so on each of
/// thousands of nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reasons {
    /// One.
    One(&'static str),
    /// Several, or made up.
    Many(Vec<Cow<'static, str>>),
}

/// Why a node is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Each is counted in the message.
    pub reasons: Reasons,
    /// No other pod's going would help.
    pub unresolvable: bool,
}

impl Refusal {
    pub(crate) fn new(reason: &'static str, unresolvable: bool) -> Self {
        Self { reasons: Reasons::One(reason), unresolvable }
    }

    pub(crate) fn unresolvable(reason: &'static str) -> Self {
        Self::new(reason, true)
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
}

/// Makes a score for a pod and the feasible nodes.
type MakeScore = for<'a> fn(Cycle<'a>, &[&'a NodeInfo]) -> Option<Box<dyn Score + 'a>>;

/// One plugin.
pub struct Row {
    /// Upstream's name.
    pub name: &'static str,
    /// Where it takes part.
    pub points: &'static [Point],
    /// Its score's weight.
    pub weight: i64,
    /// Makes its filter for a pod.
    pub filter: for<'a> fn(Cycle<'a>) -> PreFilterResult<'a>,
    /// Makes its score for a pod and the feasible nodes; none: it has no opinion.
    pub score: MakeScore,
    /// Whether a pod that it refused might fit after the event.
    pub queueing_hint: fn(&Event<'_>, &PodInfo) -> bool,
}

fn no_filter(_: Cycle<'_>) -> PreFilterResult<'_> {
    PreFilterResult::Skip
}

fn no_score<'a>(_: Cycle<'a>, _: &[&'a NodeInfo]) -> Option<Box<dyn Score + 'a>> {
    None
}

fn no_hint(_: &Event<'_>, _: &PodInfo) -> bool {
    false
}

pub(crate) const fn row(name: &'static str, points: &'static [Point]) -> Row {
    Row { name, points, weight: 0, filter: no_filter, score: no_score, queueing_hint: no_hint }
}

/// Every plugin, in upstream's order: the first that refuses a node gives the reason.
pub static PLUGINS: &[Row] = &[
    row(scheduling_gates::NAME, &[Point::PreEnqueue]),
    row(priority_sort::NAME, &[Point::QueueSort]),
    node_unschedulable::ROW,
    node_name::ROW,
    taint_toleration::ROW,
    node_affinity::ROW,
    node_ports::ROW,
    node_resources::FIT,
    topology_spread::ROW,
    interpod_affinity::ROW,
    node_resources::BALANCED,
];

/// Whether an event may help a pod that these plugins refused.
#[must_use]
pub fn may_fit_after(event: &Event<'_>, pod: &PodInfo, refused_by: &BTreeSet<&'static str>) -> bool {
    if refused_by.is_empty() {
        // There was no node at all.
        return matches!(event, Event::Node(_, change) if change.added);
    }
    PLUGINS.iter().any(|plugin| refused_by.contains(plugin.name) && (plugin.queueing_hint)(event, pod))
}

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
        let scored = PLUGINS.iter().filter(|row| row.points.contains(&Point::Score));
        let weights: Vec<(&str, i64)> = scored.map(|row| (row.name, row.weight)).collect();
        let expected = [
            ("TaintToleration", 3),
            ("NodeAffinity", 2),
            ("NodeResourcesFit", 1),
            ("PodTopologySpread", 2),
            ("InterPodAffinity", 2),
            ("NodeResourcesBalancedAllocation", 1),
        ];
        assert_eq!(weights, expected);
    }
}
