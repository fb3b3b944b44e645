//! Pod counts per node, for the pod groups that recent decisions read.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use machinery_api::selector::LabelSelector;

use super::{DomainSums, Topology};
use crate::node::{NodeId, NodeInfo};
use crate::pod::{Labels, PodInfo, PodTerm};

/// The maximum number of counted groups; the least recently used is dropped. Each costs a step for every added or
/// removed pod, and four bytes per node.
const COUNTED_MAX: usize = 64;

/// A group of pods to count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Peers {
    /// Pods of a namespace that match a selector, without terminating ones.
    Selected(String, LabelSelector),
    /// Pods of a namespace with these labels, of one workload (of any if none), without terminating ones.
    Workload(String, Option<Box<str>>, Labels),
    /// Pods that all of these terms match; terminating ones count if `true`.
    Terms(Vec<PodTerm>, bool),
}

impl Peers {
    pub(crate) fn has(&self, pod: &PodInfo, namespaces: &BTreeMap<String, Labels>) -> bool {
        match self {
            Self::Selected(namespace, selector) => {
                !pod.terminating && pod.key.namespace == *namespace && selector.matches(&*pod.labels)
            }
            Self::Workload(namespace, workload, labels) => {
                !pod.terminating
                    && pod.key.namespace == *namespace
                    && workload.as_ref().is_none_or(|uid| pod.workload.as_ref() == Some(uid))
                    && labels.iter().all(|(key, value)| pod.labels.get(key) == Some(value))
            }
            Self::Terms(terms, terminating) => {
                (*terminating || !pod.terminating) && terms.iter().all(|term| term.matches(pod, namespaces))
            }
        }
    }
}

/// The number of pods of a group on each node.
#[derive(Debug, Clone)]
pub struct PodCounts {
    peers: Peers,
    by_node: Vec<u32>,
}

impl PodCounts {
    /// The count of one node.
    #[must_use]
    pub fn on(&self, node: NodeId) -> i64 {
        self.by_node.get(node.index()).copied().unwrap_or(0).into()
    }

    /// The nodes with a count above zero, with the count.
    pub fn nodes(&self) -> impl Iterator<Item = (NodeId, i64)> {
        let counts = self.by_node.iter().enumerate().filter(|(_, count)| **count > 0);
        counts.map(|(id, count)| (NodeId::new(id), i64::from(*count)))
    }

    fn change(&mut self, node: NodeId, by: impl Fn(u32) -> u32) {
        if self.by_node.len() <= node.index() {
            self.by_node.resize(node.index() + 1, 0);
        }
        let count = &mut self.by_node[node.index()];
        *count = by(*count);
    }
}

/// A group that recent decisions read.
#[derive(Debug)]
struct CountedGroup {
    counts: Arc<PodCounts>,
    /// For the topologies that were requested.
    sums: Vec<Arc<DomainSums>>,
}

/// The counted groups, most recently used first.
#[derive(Debug, Default)]
pub(crate) struct PodIndex(Mutex<Vec<CountedGroup>>);

impl PodIndex {
    fn all(&mut self) -> &mut Vec<CountedGroup> {
        self.0.get_mut().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn add(&mut self, pod: &PodInfo, node: NodeId, namespaces: &BTreeMap<String, Labels>) {
        self.change(pod, node, namespaces, 1);
    }

    pub(crate) fn remove(&mut self, pod: &PodInfo, node: NodeId, namespaces: &BTreeMap<String, Labels>) {
        self.change(pod, node, namespaces, -1);
    }

    fn change(&mut self, pod: &PodInfo, node: NodeId, namespaces: &BTreeMap<String, Labels>, by: i32) {
        for counted in self.all().iter_mut().filter(|counted| counted.counts.peers.has(pod, namespaces)) {
            Arc::make_mut(&mut counted.counts).change(node, |count| count.saturating_add_signed(by));
            // Sums of an outdated topology are updated too; they are never read again.
            counted.sums.iter_mut().for_each(|sums| Arc::make_mut(sums).add(node, by.into()));
        }
    }

    /// Namespace labels changed: groups that depend on them are dropped.
    pub(crate) fn forget_namespaces(&mut self) {
        self.all().retain(|counted| !matches!(counted.counts.peers, Peers::Terms(..)));
    }

    pub(crate) fn of(&self, peers: Peers, nodes: &[NodeInfo], namespaces: &BTreeMap<String, Labels>) -> Arc<PodCounts> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        first(&mut all, peers, nodes, namespaces).counts.clone()
    }

    /// The counts summed by the domains of a label.
    pub(crate) fn sums(
        &self,
        peers: Peers,
        topology: &Arc<Topology>,
        nodes: &[NodeInfo],
        namespaces: &BTreeMap<String, Labels>,
    ) -> Arc<DomainSums> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let counted = first(&mut all, peers, nodes, namespaces);
        if let Some(known) = counted.sums.iter().find(|sums| sums.is_of(topology)) {
            return known.clone();
        }
        let sums = Arc::new(DomainSums::of(topology, counted.counts.nodes()));
        counted.sums.retain(|old| old.topology.key != topology.key);
        counted.sums.push(sums.clone());
        sums
    }
}

/// Moves a group to the front, and counts it if it is new.
fn first<'a>(
    all: &'a mut Vec<CountedGroup>,
    peers: Peers,
    nodes: &[NodeInfo],
    namespaces: &BTreeMap<String, Labels>,
) -> &'a mut CountedGroup {
    match all.iter().position(|counted| counted.counts.peers == peers) {
        Some(at) => all[..=at].rotate_right(1),
        None => {
            let count = |node: &NodeInfo| {
                let pods = node.pods.values().filter(|pod| peers.has(pod, namespaces)).count();
                u32::try_from(pods).unwrap_or(u32::MAX)
            };
            let by_node = nodes.iter().map(count).collect();
            all.insert(0, CountedGroup { counts: Arc::new(PodCounts { peers, by_node }), sums: Vec::new() });
            all.truncate(COUNTED_MAX);
        }
    }
    &mut all[0]
}
