//! The cluster as decisions see it, kept up to date change by change: nodes, the pods on them (bound or assumed), and
//! what else selectors need.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, OnceLock};

use machinery::api::ObjectKey;

use crate::node::{NodeFacts, NodeInfo};
use crate::pod::{Labels, PodInfo};

/// See the module.
#[derive(Debug, Default)]
pub struct Snapshot {
    nodes: HashMap<Arc<str>, NodeInfo>,
    /// Names of the nodes that exist, taking turns between zones; made when it is asked for after a change.
    order: OnceLock<Vec<String>>,
    /// Where each pod is, and whether that is only assumed.
    placed: HashMap<Arc<ObjectKey>, Place>,
    /// Namespaces' labels.
    pub namespaces: BTreeMap<String, Labels>,
    /// Services' selectors, by namespace and name; none without a selector.
    pub services: BTreeMap<ObjectKey, Labels>,
}

#[derive(Debug)]
struct Place {
    node: Arc<str>,
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

    /// The nodes, beginning with number `start`.
    pub fn nodes_from(&self, start: usize) -> impl Iterator<Item = &NodeInfo> {
        let order = self.order();
        let (before, after) = order.split_at(start.checked_rem(order.len()).unwrap_or(0));
        after.iter().chain(before).filter_map(|name| self.nodes.get(name.as_str()))
    }

    /// All nodes.
    pub fn nodes(&self) -> impl Iterator<Item = &NodeInfo> {
        self.nodes_from(0)
    }

    /// One node that exists.
    #[must_use]
    pub fn node(&self, name: &str) -> Option<&NodeInfo> {
        // A node that pods are bound to but that isn't there has no name in its facts.
        self.nodes.get(name).filter(|node| !node.facts.name.is_empty())
    }

    /// A node appeared or changed; none where nothing changed that matters.
    pub fn set_node(&mut self, facts: NodeFacts) -> Option<NodeChange> {
        let name = facts.name.clone();
        let node = self.node_entry(&name).1;
        let old = std::mem::replace(&mut node.facts, Arc::new(facts));
        let new = &node.facts;
        if *old == **new {
            return None;
        }
        let added = old.name.is_empty();
        let moved = added || old.zone() != new.zone();
        let change = NodeChange {
            added,
            labels: old.labels != new.labels,
            taints: old.taints != new.taints,
            unschedulable: old.unschedulable != new.unschedulable,
            allocatable: old.allocatable != new.allocatable || old.pods_max != new.pods_max,
        };
        if moved {
            self.order.take();
        }
        Some(change)
    }

    /// A node is gone; its pods stay known until they go too.
    pub fn remove_node(&mut self, name: &str) -> bool {
        let Some(node) = self.nodes.get_mut(name).filter(|node| !node.facts.name.is_empty()) else { return false };
        node.facts = Arc::default();
        if node.pods.is_empty() {
            self.nodes.remove(name);
        }
        self.order.take();
        true
    }

    /// What is known of a node, and its name as the map holds it.
    fn node_entry(&mut self, name: &str) -> (Arc<str>, &mut NodeInfo) {
        let name = self.nodes.get_key_value(name).map_or_else(|| name.into(), |(name, _)| name.clone());
        (name.clone(), self.nodes.entry(name).or_default())
    }

    fn order(&self) -> &[String] {
        self.order.get_or_init(|| {
            let mut zones: BTreeMap<(String, String), Vec<&str>> = BTreeMap::new();
            for node in self.nodes.values().filter(|node| !node.facts.name.is_empty()) {
                zones.entry(node.facts.zone()).or_default().push(node.name());
            }
            zones.values_mut().for_each(|names| names.sort_unstable());
            let longest = zones.values().map(Vec::len).max().unwrap_or(0);
            let turns = (0..longest).flat_map(|turn| zones.values().filter_map(move |names| names.get(turn)));
            turns.map(|name| (*name).to_owned()).collect()
        })
    }

    /// A pod is on a node, by the API (`assumed` false) or by a decision that is not written yet.
    pub fn put_pod(&mut self, pod: Arc<PodInfo>, node: &str, assumed: bool) {
        self.take_pod(&pod.key);
        let (node, info) = self.node_entry(node);
        info.put(pod.clone());
        self.placed.insert(pod.key.clone(), Place { node, assumed });
    }

    /// A pod takes no room any more. Returns it with its node's name.
    pub fn take_pod(&mut self, key: &ObjectKey) -> Option<(Arc<PodInfo>, Arc<str>)> {
        let place = self.placed.remove(key)?;
        let node = self.nodes.get_mut(&place.node)?;
        let pod = node.take(key)?;
        if node.pods.is_empty() && node.facts.name.is_empty() {
            self.nodes.remove(&place.node);
        }
        Some((pod, place.node))
    }

    /// The pod that is placed under a key, and whether that is only assumed.
    #[must_use]
    pub fn placed(&self, key: &ObjectKey) -> Option<(&Arc<PodInfo>, bool)> {
        let place = self.placed.get(key)?;
        Some((self.nodes.get(&place.node)?.pods.get(key)?, place.assumed))
    }
}
