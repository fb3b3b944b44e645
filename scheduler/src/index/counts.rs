//! How many pods of a kind each node has, for the kinds that decisions lately asked for.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use machinery_api::selector::LabelSelector;

use super::{DomainSums, Topology};
use crate::node::{NodeId, NodeInfo};
use crate::pod::{Labels, PodInfo, PodTerm};

/// Kinds of pods that are counted at once, those asked for last: each costs a step at every pod that comes or goes, and
/// four bytes a node.
const COUNTED_MAX: usize = 64;

/// A kind of pods.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Peers {
    /// Of a namespace, by labels, but for those that are being deleted.
    Selected(String, LabelSelector),
    /// Of a namespace, by their workload (any where none) and labels, but for those that are being deleted.
    Workload(String, Option<Box<str>>, Labels),
    /// Those that every one of these terms means; those that are being deleted, too, where `true`.
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
                (*terminating || !pod.terminating) && terms.iter().all(|term| term.means(pod, namespaces))
            }
        }
    }
}

/// How many pods of a kind each node has.
#[derive(Debug, Clone)]
pub struct PodCounts {
    peers: Peers,
    by_node: Vec<u32>,
}

impl PodCounts {
    /// On one node.
    #[must_use]
    pub fn on(&self, node: NodeId) -> i64 {
        self.by_node.get(node.index()).copied().unwrap_or(0).into()
    }

    /// The nodes that have any, with their number.
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

/// A kind of pods that decisions lately asked for.
#[derive(Debug)]
struct Counted {
    counts: Arc<PodCounts>,
    /// Of the topologies that were asked for.
    sums: Vec<Arc<DomainSums>>,
}

/// The kinds of pods that decisions lately asked for, the last one first.
#[derive(Debug, Default)]
pub(crate) struct PodIndex(Mutex<Vec<Counted>>);

impl PodIndex {
    fn all(&mut self) -> &mut Vec<Counted> {
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
            // Those of an older topology, too: they are never looked at again.
            counted.sums.iter_mut().for_each(|sums| Arc::make_mut(sums).add(node, by.into()));
        }
    }

    /// Namespaces' labels changed: what depends on them is counted anew.
    pub(crate) fn forget_namespaces(&mut self) {
        self.all().retain(|counted| !matches!(counted.counts.peers, Peers::Terms(..)));
    }

    pub(crate) fn of(&self, peers: Peers, nodes: &[NodeInfo], namespaces: &BTreeMap<String, Labels>) -> Arc<PodCounts> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        first(&mut all, peers, nodes, namespaces).counts.clone()
    }

    /// Added up by the domains of a label.
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

/// Puts a kind of pods first, counted anew if it wasn't known.
fn first<'a>(
    all: &'a mut Vec<Counted>,
    peers: Peers,
    nodes: &[NodeInfo],
    namespaces: &BTreeMap<String, Labels>,
) -> &'a mut Counted {
    match all.iter().position(|counted| counted.counts.peers == peers) {
        Some(at) => all[..=at].rotate_right(1),
        None => {
            let count = |node: &NodeInfo| {
                let pods = node.pods.values().filter(|pod| peers.has(pod, namespaces)).count();
                u32::try_from(pods).unwrap_or(u32::MAX)
            };
            let by_node = nodes.iter().map(count).collect();
            all.insert(0, Counted { counts: Arc::new(PodCounts { peers, by_node }), sums: Vec::new() });
            all.truncate(COUNTED_MAX);
        }
    }
    &mut all[0]
}
