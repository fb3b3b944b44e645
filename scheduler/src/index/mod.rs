//! What decisions would otherwise count over all pods or look up on every node, kept by node number.
//!
//! [`Topology`]: which domain of a label each node is in. [`PodCounts`]: how many pods of a kind each node has, for the
//! kinds that decisions lately asked for. [`TermIndex`]: the affinity terms of the pods that are there, equal ones once.
//! [`DomainSums`]: either, added up by the domains of a label. All follow from nodes and pods alone: that they equal what
//! counting anew gives is a property test.

mod counts;
mod images;
mod terms;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

pub(crate) use self::counts::PodIndex;
pub use self::counts::{Peers, PodCounts};
pub use self::images::ImageIndex;
pub use self::terms::{NodeAmounts, TermIndex, TermUse};
use crate::node::{NodeId, NodeInfo};

/// Not in any domain.
const NONE: u32 = u32::MAX;

/// The domains that a label makes of the nodes.
#[derive(Debug, Default)]
pub struct Topology {
    key: String,
    domain_of: Vec<u32>,
    domains: usize,
    nodes: usize,
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

    /// How many nodes are in a domain.
    #[must_use]
    pub fn nodes(&self) -> usize {
        self.nodes
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
        let domain_of: Vec<u32> = domain_of.collect();
        let with_label = domain_of.iter().filter(|domain| **domain != NONE).count();
        let topology = Topology { key: key.to_owned(), domain_of, domains: numbers.len(), nodes: with_label };
        let topology = Arc::new(topology);
        known.insert(key.to_owned(), topology.clone());
        topology
    }
}

/// Amounts of nodes, added up by the domains of a label.
#[derive(Debug, Clone)]
pub struct DomainSums {
    topology: Arc<Topology>,
    sums: Vec<i64>,
    /// How many of them aren't zero.
    nonzero: usize,
}

impl DomainSums {
    /// Zero in each domain.
    #[must_use]
    pub fn new(topology: Arc<Topology>) -> Self {
        Self { sums: vec![0; topology.domains()], topology, nonzero: 0 }
    }

    fn of(topology: &Arc<Topology>, amounts: impl Iterator<Item = (NodeId, i64)>) -> Self {
        let mut this = Self::new(topology.clone());
        amounts.for_each(|(node, amount)| this.add(node, amount));
        this
    }

    /// Adds to the domain that a node is in, if it is in any.
    pub fn add(&mut self, node: NodeId, amount: i64) {
        let Some(domain) = self.topology.domain(node) else { return };
        let sum = &mut self.sums[domain];
        let before = *sum != 0;
        *sum += amount;
        match (before, *sum != 0) {
            (false, true) => self.nonzero += 1,
            (true, false) => self.nonzero -= 1,
            _ => {}
        }
    }

    /// The sum of the domain that a node is in; zero where it is in none.
    #[must_use]
    pub fn on(&self, node: NodeId) -> i64 {
        self.topology.domain(node).map_or(0, |domain| self.sums[domain])
    }

    /// The sum of each domain.
    #[must_use]
    pub fn by_domain(&self) -> &[i64] {
        &self.sums
    }

    /// Whether every domain has zero.
    #[must_use]
    pub fn is_zero(&self) -> bool {
        self.nonzero == 0
    }

    /// Whether they are of a topology as it is now: those of an older one count for nothing.
    #[must_use]
    pub fn is_of(&self, topology: &Arc<Topology>) -> bool {
        Arc::ptr_eq(&self.topology, topology)
    }
}
