//! The cluster as decisions see it, kept up to date change by change: nodes, the pods on them (bound or assumed), and what
//! else selectors need.
//!
//! Nodes live in a slab and are reached by number ([`NodeId`]); what a decision would have to count over all pods or look
//! up by name on every node is kept beside them ([`crate::index`]).

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, OnceLock};

use machinery_api::ObjectKey;

use crate::budget::Budgets;
use crate::index::{DomainSums, ImageIndex, Peers, PodCounts, PodIndex, TermIndex, Topologies, Topology};
use crate::node::{NodeFacts, NodeId, NodeInfo};
use crate::nominated::Nominated;
use crate::pod::{Labels, PodInfo, Taint};
use crate::volumes::Volumes;

/// See the module.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// By number; a slot that is free has neither a name nor pods.
    nodes: Vec<NodeInfo>,
    ids: HashMap<Arc<str>, NodeId>,
    free: Vec<NodeId>,
    /// The nodes that exist, taking turns between zones; made when it is asked for after a change.
    order: OnceLock<Vec<NodeId>>,
    /// Where each pod is, and whether that is only assumed.
    placed: HashMap<Arc<ObjectKey>, Place>,
    special: SpecialNodes,
    topologies: Topologies,
    counts: PodIndex,
    terms: TermIndex,
    namespaces: BTreeMap<String, Labels>,
    images: ImageIndex,
    /// Pods for which room is being made.
    pub nominated: Nominated,
    /// What may be disrupted.
    pub budgets: Budgets,
    /// Services' selectors, by namespace and name; none without a selector.
    pub services: BTreeMap<ObjectKey, Labels>,
    /// Claims and their volumes.
    pub volumes: Volumes,
}

/// How many nodes are other than most: where there are none, nothing has to be asked of each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SpecialNodes {
    /// Cordoned.
    pub cordoned: usize,
    /// With a taint that keeps pods away.
    pub repelling: usize,
    /// With any taint.
    pub tainted: usize,
}

impl SpecialNodes {
    pub(crate) fn count(&mut self, node: &NodeFacts, is_there: bool) {
        let counts = [
            (&mut self.cordoned, node.unschedulable),
            (&mut self.repelling, node.taints.iter().any(Taint::keeps_off)),
            (&mut self.tainted, !node.taints.is_empty()),
        ];
        for (count, _) in counts.into_iter().filter(|(_, is_special)| *is_special) {
            *count = if is_there { *count + 1 } else { count.saturating_sub(1) };
        }
    }
}

#[derive(Debug)]
struct Place {
    node: NodeId,
    name: Arc<str>,
    assumed: bool,
}

/// What changed about a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NodeChange {
    /// It is new.
    pub added: bool,
    /// Its labels changed.
    pub labels: bool,
    /// Its taints changed.
    pub taints: bool,
    /// It was cordoned or uncordoned.
    pub unschedulable: bool,
    /// What it offers changed.
    pub allocatable: bool,
}

impl Snapshot {
    /// How many nodes there are.
    #[must_use]
    pub fn node_count(&self) -> usize {
        self.order().len()
    }

    /// How many numbers nodes may have: the length of what is kept by number.
    #[must_use]
    pub fn node_ids(&self) -> usize {
        self.nodes.len()
    }

    /// The nodes, beginning with number `start` of their order.
    pub fn nodes_from(&self, start: usize) -> impl Iterator<Item = &NodeInfo> {
        let order = self.order();
        let (before, after) = order.split_at(start.checked_rem(order.len()).unwrap_or(0));
        after.iter().chain(before).map(|id| &self.nodes[id.index()])
    }

    /// All nodes.
    pub fn nodes(&self) -> impl Iterator<Item = &NodeInfo> {
        self.nodes_from(0)
    }

    /// The node of a number; one that doesn't exist has no name, labels or anything else.
    #[must_use]
    pub fn node_by_id(&self, id: NodeId) -> &NodeInfo {
        &self.nodes[id.index()]
    }

    /// One node that exists.
    #[must_use]
    pub fn node(&self, name: &str) -> Option<&NodeInfo> {
        // A node that pods are bound to but that isn't there has no name in its facts.
        self.ids.get(name).map(|id| &self.nodes[id.index()]).filter(|node| !node.facts.name.is_empty())
    }

    /// Namespaces' labels.
    #[must_use]
    pub fn namespaces(&self) -> &BTreeMap<String, Labels> {
        &self.namespaces
    }

    /// A namespace's labels changed; none: it is gone. Says whether that changed anything.
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

    /// A node appeared or changed; none where nothing changed that matters.
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

    /// A node is gone; its pods stay known until they go too.
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

    /// The number of a node: of one that pods are bound to, too, though it isn't there.
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

    /// A pod is on a node, by the API (`assumed` false) or by a decision that is not written yet.
    pub fn put_pod(&mut self, pod: Arc<PodInfo>, node: &str, assumed: bool) {
        self.take_pod(&pod.key);
        let (name, id) = self.node_id(node);
        self.counts.add(&pod, id, &self.namespaces);
        self.terms.add(&pod, id);
        self.volumes.count(&pod, true);
        self.placed.insert(pod.key.clone(), Place { node: id, name, assumed });
        self.nodes[id.index()].put(pod);
    }

    /// What is known of a placed pod changed, and nothing that counts for others.
    pub fn refresh_pod(&mut self, pod: Arc<PodInfo>) {
        let Some(place) = self.placed.get(&pod.key) else { return };
        if let Some(known) = self.nodes[place.node.index()].pods.get_mut(&pod.key) {
            *known = pod;
        }
    }

    /// A pod takes no room any more. Returns it with its node's name.
    pub fn take_pod(&mut self, key: &ObjectKey) -> Option<(Arc<PodInfo>, Arc<str>)> {
        let Place { node: id, name, .. } = self.placed.remove(key)?;
        let pod = self.nodes[id.index()].take(key)?;
        self.counts.remove(&pod, id, &self.namespaces);
        self.terms.remove(&pod, id);
        self.volumes.count(&pod, false);
        self.free_if_unused(id, &name);
        Some((pod, name))
    }

    /// The pod that is placed under a key, and whether that is only assumed.
    #[must_use]
    pub fn placed(&self, key: &ObjectKey) -> Option<(&Arc<PodInfo>, bool)> {
        let place = self.placed.get(key)?;
        Some((self.nodes[place.node.index()].pods.get(key)?, place.assumed))
    }

    // --- indexes ---------------------------------------------------------------------------------------------------

    /// How many nodes are other than most.
    #[must_use]
    pub fn special_nodes(&self) -> &SpecialNodes {
        &self.special
    }

    /// The domains that a label makes of the nodes.
    #[must_use]
    pub fn topology(&self, key: &str) -> Arc<Topology> {
        self.topologies.of(key, &self.nodes)
    }

    /// How many pods of a kind are on each node.
    #[must_use]
    pub fn counts(&self, peers: Peers) -> Arc<PodCounts> {
        self.counts.of(peers, &self.nodes, &self.namespaces)
    }

    /// How many pods of a kind are in each domain of a label.
    #[must_use]
    pub fn sums(&self, peers: Peers, key: &str) -> Arc<DomainSums> {
        self.counts.sums(peers, &self.topology(key), &self.nodes, &self.namespaces)
    }

    /// Which nodes have an image, with its size there; none: no node has it.
    #[must_use]
    pub fn image(&self, name: &str) -> Option<&HashMap<NodeId, i64>> {
        self.images.of(name)
    }

    /// The affinity terms of the pods that are there.
    #[must_use]
    pub fn terms(&self) -> &TermIndex {
        &self.terms
    }
}
