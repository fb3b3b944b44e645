//! Indexes that save decisions a count over all pods or a lookup on every node, by node number.
//!
//! [`Topology`]: the domain of each node for a label. [`PodCounts`]: the number of pods of a group on each node, for
//! the groups that recent decisions read. [`TermIndex`]: the affinity terms of existing pods, deduplicated.
//! [`DomainSums`]: either, summed by the domains of a label. All derive from nodes and pods alone. A property test
//! compares them with a full count.

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

/// In no domain.
const NONE: u32 = u32::MAX;

/// The domains of the nodes for one label.
#[derive(Debug, Default)]
pub struct Topology {
    key: String,
    domain_of: Vec<u32>,
    /// The label's value in each domain.
    values: Vec<Box<str>>,
    nodes: usize,
}

impl Topology {
    /// The domain of a node; none if the node lacks the label.
    #[must_use]
    pub fn domain(&self, node: NodeId) -> Option<usize> {
        self.domain_of.get(node.index()).filter(|domain| **domain != NONE).map(|domain| *domain as usize)
    }

    /// The number of domains.
    #[must_use]
    pub fn domains(&self) -> usize {
        self.values.len()
    }

    /// The label's value in each domain.
    #[must_use]
    pub fn values(&self) -> &[Box<str>] {
        &self.values
    }

    /// The number of nodes in a domain.
    #[must_use]
    pub fn nodes(&self) -> usize {
        self.nodes
    }
}

/// The topologies that were requested since the last change of nodes.
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
        let mut values = Vec::new();
        let domain_of = nodes.iter().map(|node| match node.facts.labels.get(key) {
            Some(value) => *numbers.entry(value).or_insert_with(|| {
                values.push(value.as_str().into());
                u32::try_from(values.len() - 1).unwrap_or(NONE)
            }),
            None => NONE,
        });
        let domain_of: Vec<u32> = domain_of.collect();
        let with_label = domain_of.iter().filter(|domain| **domain != NONE).count();
        let topology = Topology { key: key.to_owned(), domain_of, values, nodes: with_label };
        let topology = Arc::new(topology);
        known.insert(key.to_owned(), topology.clone());
        topology
    }
}

/// Amounts per node, summed by the domains of a label.
#[derive(Debug, Clone)]
pub struct DomainSums {
    topology: Arc<Topology>,
    sums: Vec<i64>,
    /// The number of sums that aren't zero.
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

    /// Adds an amount to the domain of a node, if it has one.
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

    /// The sum of the node's domain; zero if it has none.
    #[must_use]
    pub fn on(&self, node: NodeId) -> i64 {
        self.topology.domain(node).map_or(0, |domain| self.sums[domain])
    }

    /// The sum of each domain.
    #[must_use]
    pub fn by_domain(&self) -> &[i64] {
        &self.sums
    }

    /// Whether every sum is zero.
    #[must_use]
    pub fn is_zero(&self) -> bool {
        self.nonzero == 0
    }

    /// Whether the sums are of this topology: those of an outdated one are invalid.
    #[must_use]
    pub fn is_of(&self, topology: &Arc<Topology>) -> bool {
        Arc::ptr_eq(&self.topology, topology)
    }
}
