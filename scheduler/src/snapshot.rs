//! Snapshot of the cluster for decisions, updated by change: nodes, their pods (bound or assumed), and the objects that
//! selectors need.
//!
//! Nodes are in a slab by number ([`NodeId`]). Indexes beside it save decisions a count over all pods or a lookup by
//! name on every node ([`crate::index`]).

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, OnceLock};

use machinery_api::ObjectKey;

use crate::budget::Budgets;
use crate::index::{DomainSums, ImageIndex, Peers, PodCounts, PodIndex, TermIndex, Topologies, Topology};
use crate::node::{NodeFacts, NodeId, NodeInfo};
use crate::nominated::Nominated;
use crate::pod::{Labels, PodInfo, Taint};
use crate::volumes::Volumes;

/// The state of the cluster that decisions read.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// By number; a free slot has neither name nor pods.
    nodes: Vec<NodeInfo>,
    ids: HashMap<Arc<str>, NodeId>,
    free: Vec<NodeId>,
    /// The existing nodes, round-robin over zones; computed on first use after a change.
    order: OnceLock<Vec<NodeId>>,
    /// The node of each pod, and whether it is only assumed.
    placed: HashMap<Arc<ObjectKey>, Placement>,
    special: SpecialNodes,
    topologies: Topologies,
    counts: PodIndex,
    terms: TermIndex,
    namespaces: BTreeMap<String, Labels>,
    images: ImageIndex,
    pub nominated: Nominated,
    pub budgets: Budgets,
    /// The selectors of Services, by namespace and name; Services without a selector are absent.
    pub services: BTreeMap<ObjectKey, Labels>,
    /// Claims, volumes and classes.
    pub volumes: Volumes,
}

/// The number of nodes with special properties; where it is zero, plugins skip the check per node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SpecialNodes {
    pub cordoned: usize,
    /// With a `NoSchedule` or `NoExecute` taint.
    pub hard_tainted: usize,
    /// With any taint.
    pub tainted: usize,
}

impl SpecialNodes {
    pub(crate) fn count(&mut self, node: &NodeFacts, is_there: bool) {
        let counts = [
            (&mut self.cordoned, node.unschedulable),
            (&mut self.hard_tainted, node.taints.iter().any(Taint::prevents_scheduling)),
            (&mut self.tainted, !node.taints.is_empty()),
        ];
        for (count, _) in counts.into_iter().filter(|(_, is_special)| *is_special) {
            *count = if is_there { *count + 1 } else { count.saturating_sub(1) };
        }
    }
}

#[derive(Debug)]
struct Placement {
    node: NodeId,
    name: Arc<str>,
    assumed: bool,
}

/// The changes of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NodeChange {
    pub added: bool,
    pub labels: bool,
    pub taints: bool,
    /// It was cordoned or uncordoned.
    pub unschedulable: bool,
    pub allocatable: bool,
}

impl Snapshot {
    #[must_use]
    pub fn node_count(&self) -> usize {
        self.order().len()
    }

    /// The upper bound of node numbers: the length of arrays by number.
    #[must_use]
    pub fn node_ids(&self) -> usize {
        self.nodes.len()
    }

    /// The nodes in order, starting with number `start`.
    pub fn nodes_from(&self, start: usize) -> impl Iterator<Item = &NodeInfo> {
        let order = self.order();
        let (before, after) = order.split_at(start.checked_rem(order.len()).unwrap_or(0));
        after.iter().chain(before).map(|id| &self.nodes[id.index()])
    }

    pub fn nodes(&self) -> impl Iterator<Item = &NodeInfo> {
        self.nodes_from(0)
    }

    /// The node of a number; a free number has no name, labels or anything else.
    #[must_use]
    pub fn node_by_id(&self, id: NodeId) -> &NodeInfo {
        &self.nodes[id.index()]
    }

    /// An existing node.
    #[must_use]
    pub fn node(&self, name: &str) -> Option<&NodeInfo> {
        // A deleted node with bound pods has no name in its facts.
        self.ids.get(name).map(|id| &self.nodes[id.index()]).filter(|node| !node.facts.name.is_empty())
    }

    /// The labels of namespaces.
    #[must_use]
    pub fn namespaces(&self) -> &BTreeMap<String, Labels> {
        &self.namespaces
    }

    /// Sets the labels of a namespace; none: it was deleted. Returns whether anything changed.
    pub fn set_namespace(&mut self, name: &str, labels: Option<Labels>) -> bool {
        let before = match labels.clone() {
            Some(labels) => self.namespaces.insert(name.to_owned(), labels),
            None => self.namespaces.remove(name),
        };
        let changed = before != labels;
        if changed {
            self.counts.forget_namespaces();
        }
        changed
    }

    /// Adds or updates a node; none if nothing relevant changed.
    pub fn set_node(&mut self, facts: NodeFacts) -> Option<NodeChange> {
        let (_, id) = self.node_id(&facts.name);
        let node = &mut self.nodes[id.index()];
        if *node.facts == facts {
            return None;
        }
        let old = node.set_facts(facts);
        let new = &node.facts;
        self.special.count(&old, false);
        self.special.count(new, true);
        if old.images != new.images {
            self.images.change(id, &old.images, &new.images);
        }
        let added = old.name.is_empty();
        let change = NodeChange {
            added,
            labels: old.labels != new.labels,
            taints: old.taints != new.taints,
            unschedulable: old.unschedulable != new.unschedulable,
            allocatable: old.allocatable != new.allocatable || old.pods_max != new.pods_max,
        };
        if added || old.zone() != new.zone() {
            self.order.take();
        }
        if added || change.labels {
            self.topologies.clear();
        }
        Some(change)
    }

    /// Removes a node; its pods stay until they are removed too.
    pub fn remove_node(&mut self, name: &str) -> bool {
        let Some(id) = self.node(name).map(|node| node.id) else { return false };
        let old = self.nodes[id.index()].set_facts(NodeFacts::default());
        self.special.count(&old, false);
        self.images.change(id, &old.images, &BTreeMap::new());
        self.free_if_unused(id, name);
        self.order.take();
        self.topologies.clear();
        true
    }

    /// The number of a node. A deleted node that still has bound pods has one too.
    fn node_id(&mut self, name: &str) -> (Arc<str>, NodeId) {
        if let Some((name, id)) = self.ids.get_key_value(name) {
            return (name.clone(), *id);
        }
        let id = self.free.pop().unwrap_or_else(|| {
            let id = NodeId::new(self.nodes.len());
            self.nodes.push(NodeInfo::new(id));
            self.topologies.clear();
            id
        });
        let name: Arc<str> = name.into();
        self.ids.insert(name.clone(), id);
        (name, id)
    }

    fn free_if_unused(&mut self, id: NodeId, name: &str) {
        let node = &self.nodes[id.index()];
        if node.pods.is_empty() && node.facts.name.is_empty() {
            self.ids.remove(name);
            self.free.push(id);
        }
    }

    fn order(&self) -> &[NodeId] {
        self.order.get_or_init(|| {
            let mut zones: BTreeMap<(String, String), Vec<&NodeInfo>> = BTreeMap::new();
            for node in self.nodes.iter().filter(|node| !node.facts.name.is_empty()) {
                zones.entry(node.facts.zone()).or_default().push(node);
            }
            zones.values_mut().for_each(|nodes| nodes.sort_unstable_by_key(|node| node.name()));
            let longest = zones.values().map(Vec::len).max().unwrap_or(0);
            let turns = (0..longest).flat_map(|turn| zones.values().filter_map(move |nodes| nodes.get(turn)));
            turns.map(|node| node.id).collect()
        })
    }

    /// Adds a pod to a node, bound or, with `assumed`, by a decision that is not written yet.
    pub fn put_pod(&mut self, pod: Arc<PodInfo>, node: &str, assumed: bool) {
        self.take_pod(&pod.key);
        let (name, id) = self.node_id(node);
        self.counts.add(&pod, id, &self.namespaces);
        self.terms.add(&pod, id);
        self.volumes.count(&pod, true);
        self.placed.insert(pod.key.clone(), Placement { node: id, name, assumed });
        self.nodes[id.index()].put(pod);
    }

    /// Updates a placed pod in a way that doesn't affect other pods.
    pub fn refresh_pod(&mut self, pod: Arc<PodInfo>) {
        let Some(place) = self.placed.get(&pod.key) else { return };
        if let Some(known) = self.nodes[place.node.index()].pods.get_mut(&pod.key) {
            *known = pod;
        }
    }

    /// Removes a pod, and returns it with its node's name.
    pub fn take_pod(&mut self, key: &ObjectKey) -> Option<(Arc<PodInfo>, Arc<str>)> {
        let Placement { node: id, name, .. } = self.placed.remove(key)?;
        let pod = self.nodes[id.index()].take(key)?;
        self.counts.remove(&pod, id, &self.namespaces);
        self.terms.remove(&pod, id);
        self.volumes.count(&pod, false);
        self.free_if_unused(id, &name);
        Some((pod, name))
    }

    /// The placed pod with a key, and whether it is only assumed.
    #[must_use]
    pub fn placed(&self, key: &ObjectKey) -> Option<(&Arc<PodInfo>, bool)> {
        let place = self.placed.get(key)?;
        Some((self.nodes[place.node.index()].pods.get(key)?, place.assumed))
    }

    // --- indexes ---------------------------------------------------------------------------------------------------

    /// The number of nodes with special properties.
    #[must_use]
    pub fn special_nodes(&self) -> &SpecialNodes {
        &self.special
    }

    /// The domains of the nodes for a label.
    #[must_use]
    pub fn topology(&self, key: &str) -> Arc<Topology> {
        self.topologies.of(key, &self.nodes)
    }

    /// The number of pods of a group on each node.
    #[must_use]
    pub fn counts(&self, peers: Peers) -> Arc<PodCounts> {
        self.counts.of(peers, &self.nodes, &self.namespaces)
    }

    /// The number of pods of a group in each domain of a label.
    #[must_use]
    pub fn sums(&self, peers: Peers, key: &str) -> Arc<DomainSums> {
        self.counts.sums(peers, &self.topology(key), &self.nodes, &self.namespaces)
    }

    /// The nodes that have an image, with its size; none: no node has it.
    #[must_use]
    pub fn image(&self, name: &str) -> Option<&HashMap<NodeId, i64>> {
        self.images.of(name)
    }

    /// The affinity terms of existing pods.
    #[must_use]
    pub fn terms(&self) -> &TermIndex {
        &self.terms
    }
}
