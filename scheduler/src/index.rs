//! What decisions would otherwise count over all pods or look up on every node, kept by node number.
//!
//! [`Topology`]: which domain of a label each node is in. [`PodCounts`]: how many pods of a kind each node has, for the
//! kinds that decisions lately asked for. [`TermIndex`]: the affinity terms of the pods that are there, equal ones once.
//! All follow from nodes and pods alone: that they equal what counting anew gives is a property test.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use machinery_api::selector::LabelSelector;

use crate::node::{NodeId, NodeInfo};
use crate::pod::{Labels, PodInfo, PodTerm};

/// Kinds of pods that are counted at once, those asked for last: each costs a step at every pod that comes or goes, and
/// four bytes a node.
const COUNTED_MAX: usize = 64;
/// How much the required affinity of a pod that is there draws others that it means (upstream's default).
const HARD_AFFINITY_WEIGHT: i64 = 1;

/// Not in any domain.
const NONE: u32 = u32::MAX;

/// The domains that a label makes of the nodes.
#[derive(Debug, Default)]
pub struct Topology {
    domain_of: Vec<u32>,
    domains: usize,
}

impl Topology {
    /// The number of the domain that a node is in; none where it lacks the label.
    #[must_use]
    pub fn domain(&self, node: NodeId) -> Option<usize> {
        self.domain_of.get(node.index()).filter(|domain| **domain != NONE).map(|domain| *domain as usize)
    }

    /// How many domains there are.
    #[must_use]
    pub fn domains(&self) -> usize {
        self.domains
    }
}

/// The topologies that were asked for since nodes last changed.
#[derive(Debug, Default)]
pub(crate) struct Topologies(Mutex<HashMap<String, Arc<Topology>>>);

impl Topologies {
    pub(crate) fn clear(&mut self) {
        self.0.get_mut().unwrap_or_else(PoisonError::into_inner).clear();
    }

    pub(crate) fn of(&self, key: &str, nodes: &[NodeInfo]) -> Arc<Topology> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(topology) = known.get(key) {
            return topology.clone();
        }
        let mut numbers: HashMap<&str, u32> = HashMap::new();
        let domain_of = nodes.iter().map(|node| match node.facts.labels.get(key) {
            Some(value) => {
                let next = u32::try_from(numbers.len()).unwrap_or(NONE);
                *numbers.entry(value).or_insert(next)
            }
            None => NONE,
        });
        let domain_of = domain_of.collect();
        let topology = Arc::new(Topology { domain_of, domains: numbers.len() });
        known.insert(key.to_owned(), topology.clone());
        topology
    }
}

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
    fn has(&self, pod: &PodInfo, namespaces: &BTreeMap<String, Labels>) -> bool {
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

/// The kinds of pods that decisions lately asked for, the last one first.
#[derive(Debug, Default)]
pub(crate) struct PodIndex(Mutex<Vec<Arc<PodCounts>>>);

impl PodIndex {
    fn all(&mut self) -> &mut Vec<Arc<PodCounts>> {
        self.0.get_mut().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn add(&mut self, pod: &PodInfo, node: NodeId, namespaces: &BTreeMap<String, Labels>) {
        for counts in self.all().iter_mut().filter(|counts| counts.peers.has(pod, namespaces)) {
            Arc::make_mut(counts).change(node, |count| count + 1);
        }
    }

    pub(crate) fn remove(&mut self, pod: &PodInfo, node: NodeId, namespaces: &BTreeMap<String, Labels>) {
        for counts in self.all().iter_mut().filter(|counts| counts.peers.has(pod, namespaces)) {
            Arc::make_mut(counts).change(node, |count| count.saturating_sub(1));
        }
    }

    /// Namespaces' labels changed: what depends on them is counted anew.
    pub(crate) fn forget_namespaces(&mut self) {
        self.all().retain(|counts| !matches!(counts.peers, Peers::Terms(..)));
    }

    pub(crate) fn of(&self, peers: Peers, nodes: &[NodeInfo], namespaces: &BTreeMap<String, Labels>) -> Arc<PodCounts> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = all.iter().position(|counts| counts.peers == peers) {
            all[..=at].rotate_right(1);
            return all[0].clone();
        }
        let count = |node: &NodeInfo| {
            let pods = node.pods.values().filter(|pod| peers.has(pod, namespaces)).count();
            u32::try_from(pods).unwrap_or(u32::MAX)
        };
        let by_node = nodes.iter().map(count).collect();
        let counts = Arc::new(PodCounts { peers, by_node });
        all.insert(0, counts.clone());
        all.truncate(COUNTED_MAX);
        counts
    }
}

/// The nodes that pods with a term are on.
#[derive(Debug, Default)]
pub struct TermUse {
    /// How many of them require to be away from what the term means.
    pub keeps_off: BTreeMap<NodeId, usize>,
    /// How much they prefer it near (or away: negative).
    pub pulls: BTreeMap<NodeId, Pull>,
}

/// The preferences of one node's pods for one term.
#[derive(Debug, Default, Clone, Copy)]
pub struct Pull {
    /// Their weights' sum.
    pub weight: i64,
    pods: usize,
}

/// The affinity terms of the pods that are there: those of one workload are equal, so there are few.
#[derive(Debug, Default)]
pub struct TermIndex(HashMap<PodTerm, TermUse>);

impl TermIndex {
    /// Each term with its use.
    pub fn iter(&self) -> impl Iterator<Item = (&PodTerm, &TermUse)> {
        self.0.iter()
    }

    pub(crate) fn add(&mut self, pod: &PodInfo, node: NodeId) {
        for term in &pod.wants.anti_affinity.required {
            *self.used(term).keeps_off.entry(node).or_default() += 1;
        }
        for (weight, term) in preferences(pod) {
            let pull = self.used(term).pulls.entry(node).or_default();
            pull.weight += weight;
            pull.pods += 1;
        }
    }

    pub(crate) fn remove(&mut self, pod: &PodInfo, node: NodeId) {
        for term in &pod.wants.anti_affinity.required {
            let used = self.used(term);
            if let Some(pods) = used.keeps_off.get_mut(&node) {
                *pods -= 1;
                if *pods == 0 {
                    used.keeps_off.remove(&node);
                }
            }
            self.drop_unused(term);
        }
        for (weight, term) in preferences(pod) {
            let used = self.used(term);
            if let Some(pull) = used.pulls.get_mut(&node) {
                pull.weight -= weight;
                pull.pods -= 1;
                if pull.pods == 0 {
                    used.pulls.remove(&node);
                }
            }
            self.drop_unused(term);
        }
    }

    fn used(&mut self, term: &PodTerm) -> &mut TermUse {
        if !self.0.contains_key(term) {
            self.0.insert(term.clone(), TermUse::default());
        }
        self.0.get_mut(term).expect("the entry was there or has just been made")
    }

    fn drop_unused(&mut self, term: &PodTerm) {
        if self.0.get(term).is_some_and(|used| used.keeps_off.is_empty() && used.pulls.is_empty()) {
            self.0.remove(term);
        }
    }
}

/// What a pod that is there prefers near, or away: negative weights.
fn preferences(pod: &PodInfo) -> impl Iterator<Item = (i64, &PodTerm)> {
    let (near, away) = (&pod.wants.affinity, &pod.wants.anti_affinity);
    let preferred = near.preferred.iter().map(|(weight, term)| (*weight, term));
    let preferred = preferred.chain(away.preferred.iter().map(|(weight, term)| (-weight, term)));
    preferred.chain(near.required.iter().map(|term| (HARD_AFFINITY_WEIGHT, term)))
}
