//! A node with the pods on it.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;
use machinery_api::ObjectKey;
use machinery_api::placement::requirement_holds;
use machinery_api::quantity::Quantity;

use crate::pod::{Labels, NodeRequirement, NodeTerm, PodInfo, Taint};
use crate::resources::{ResourceSum, Resources};
use crate::wasm;

/// The labels that a zone is made of.
const ZONE: &str = "topology.kubernetes.io/zone";
const REGION: &str = "topology.kubernetes.io/region";

/// What of a node matters to scheduling.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NodeFacts {
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: Labels,
    /// Its taints.
    pub taints: Vec<Taint>,
    /// Cordoned.
    pub unschedulable: bool,
    /// What it offers.
    pub allocatable: Resources,
    /// How many pods it takes.
    pub pods_max: i64,
    /// The images that it has, by each of their names, with their sizes in bytes.
    pub images: BTreeMap<String, i64>,
}

/// A node's number: dense, so that what is kept by node is an array. It may be another node's once this one is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct NodeId(u32);

impl NodeId {
    /// The node at an index.
    ///
    /// # Panics
    /// Beyond 2^32 nodes.
    #[must_use]
    pub fn new(index: usize) -> Self {
        Self(u32::try_from(index).expect("fewer than 2^32 nodes"))
    }

    /// As an index.
    #[must_use]
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// What is left of what a node offers; less than nothing where it has shrunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Room {
    /// Thousandths of a core.
    pub cpu_milli: i64,
    /// Bytes.
    pub memory_bytes: i64,
    /// Bytes.
    pub ephemeral_bytes: i64,
    /// How many pods more.
    pub pods: i64,
}

/// What the pods of a node make up, as scores see it: sums beyond `i64` are as good as its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Load {
    /// Thousandths of a core that are asked for.
    pub cpu_milli: i64,
    /// Bytes that are asked for.
    pub memory_bytes: i64,
    /// The same, where containers that ask for nothing count as if they did.
    pub scored_cpu_milli: i64,
    /// The same.
    pub scored_memory_bytes: i64,
}

/// See the module. What is asked of each of thousands of nodes for every pod stands in front, in one cache line.
#[derive(Debug, Clone, Default)]
#[repr(C)]
pub struct NodeInfo {
    /// Its number.
    pub id: NodeId,
    /// Cordoned.
    cordoned: bool,
    /// It has a taint that keeps pods away which don't tolerate it.
    repels: bool,
    room: Room,
    load: Load,
    /// What of the node matters.
    pub facts: Box<NodeFacts>,
    /// The pods on it, assumed ones included.
    pub pods: BTreeMap<Arc<ObjectKey>, Arc<PodInfo>>,
    /// What they ask for.
    pub requested: Box<ResourceSum>,
    /// What they count as in scores.
    pub scored: Box<ResourceSum>,
    /// The lowest priority of a pod, and how many have it.
    lowest: Option<(i32, u32)>,
}

impl NodeFacts {
    /// Extracts what scheduling needs.
    #[must_use]
    pub fn of(node: &core::Node) -> Self {
        let spec = node.spec.as_ref();
        let allocatable = node.status.as_ref().and_then(|status| status.allocatable.as_ref());
        let images = node.status.iter().flat_map(|status| status.images.iter().flatten()).flat_map(|image| {
            let size = image.size_bytes.unwrap_or(0);
            image.names.iter().flatten().map(move |name| (name.clone(), size))
        });
        let pods = allocatable.and_then(|map| map.get("pods"));
        let taint = |taint: &core::Taint| Taint {
            key: taint.key.clone(),
            value: taint.value.clone().unwrap_or_default(),
            effect: taint.effect.clone(),
        };
        Self {
            name: node.metadata.name.clone().unwrap_or_default(),
            labels: node.metadata.labels.clone().unwrap_or_default(),
            taints: spec.and_then(|spec| spec.taints.as_ref()).into_iter().flatten().map(taint).collect(),
            unschedulable: spec.and_then(|spec| spec.unschedulable).unwrap_or(false),
            allocatable: Resources::of(allocatable),
            images: images.collect(),
            pods_max: pods.and_then(|text| Quantity::parse(&text.0).ok()).map_or(0, |quantity| quantity.value()),
        }
    }

    /// Region and zone, for taking turns between them.
    #[must_use]
    pub fn zone(&self) -> (String, String) {
        let label = |key: &str| self.labels.get(key).cloned().unwrap_or_default();
        (label(REGION), label(ZONE))
    }

    /// Whether a term of a node selector holds here.
    #[must_use]
    pub fn meets(&self, term: &NodeTerm) -> bool {
        let fields = |r: &NodeRequirement| holds(r, (r.key == "metadata.name").then_some(self.name.as_str()));
        let empty = term.labels.is_empty() && term.fields.is_empty();
        !empty
            && term.labels.iter().all(|r| holds(r, self.labels.get(&r.key).map(String::as_str)))
            && term.fields.iter().all(fields)
    }

    /// Whether the pod's node selector and required node affinity admit this node.
    #[must_use]
    pub fn admits(&self, pod: &PodInfo) -> bool {
        pod.wants.node_selector.iter().all(|(key, value)| self.labels.get(key) == Some(value))
            && pod.wants.node_required.as_ref().is_none_or(|terms| terms.iter().any(|term| self.meets(term)))
    }

    /// The first taint that keeps the pod away.
    #[must_use]
    pub fn repels(&self, pod: &PodInfo) -> bool {
        self.taints.iter().any(|taint| taint.keeps_off() && !pod.tolerates(taint))
    }
}

fn holds(requirement: &NodeRequirement, value: Option<&str>) -> bool {
    requirement_holds(&requirement.operator, &requirement.values, value)
}

impl NodeInfo {
    /// The node's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.facts.name
    }

    /// A node of a number, which nothing is known of yet.
    #[must_use]
    pub fn new(id: NodeId) -> Self {
        Self { id, ..Self::default() }
    }

    /// What of the node matters is other than before. Returns what it was.
    pub fn set_facts(&mut self, facts: NodeFacts) -> NodeFacts {
        self.cordoned = facts.unschedulable;
        self.repels = facts.taints.iter().any(Taint::keeps_off);
        let before = std::mem::replace(&mut *self.facts, facts);
        self.measure();
        before
    }

    /// What is left of what it offers.
    #[must_use]
    pub fn room(&self) -> &Room {
        &self.room
    }

    /// What its pods make up.
    #[must_use]
    pub fn load(&self) -> &Load {
        &self.load
    }

    /// What is on it, as plugins are told that run elsewhere.
    #[must_use]
    pub fn told(&self) -> wasm::Load {
        let pods = u32::try_from(self.pods.len()).unwrap_or(u32::MAX);
        wasm::Load { pods, cpu_millis: self.load.cpu_milli, memory_bytes: self.load.memory_bytes }
    }

    /// Whether it is cordoned.
    #[must_use]
    pub fn is_cordoned(&self) -> bool {
        self.cordoned
    }

    /// Whether a taint keeps the pod away.
    #[must_use]
    pub fn keeps_off(&self, pod: &PodInfo) -> bool {
        self.repels && self.facts.repels(pod)
    }

    fn measure(&mut self) {
        let (offered, used) = (&self.facts.allocatable, &self.requested);
        let cut = |amount: i128| i64::try_from(amount).unwrap_or(if amount < 0 { i64::MIN } else { i64::MAX });
        let left = |offered: i64, used: i128| cut(i128::from(offered).saturating_sub(used));
        self.load = Load {
            cpu_milli: cut(self.requested.cpu_milli),
            memory_bytes: cut(self.requested.memory_bytes),
            scored_cpu_milli: cut(self.scored.cpu_milli),
            scored_memory_bytes: cut(self.scored.memory_bytes),
        };
        self.room = Room {
            cpu_milli: left(offered.cpu_milli, used.cpu_milli),
            memory_bytes: left(offered.memory_bytes, used.memory_bytes),
            ephemeral_bytes: left(offered.ephemeral_bytes, used.ephemeral_bytes),
            pods: self.facts.pods_max.saturating_sub(i64::try_from(self.pods.len()).unwrap_or(i64::MAX)),
        };
    }

    /// Puts a pod on the node, in place of one with the same key.
    pub fn put(&mut self, pod: Arc<PodInfo>) {
        self.take(&pod.key);
        self.requested.add(&pod.wants.requests);
        self.scored.add(&pod.wants.scored);
        self.lowest = match self.lowest {
            Some((lowest, count)) if lowest == pod.priority => Some((lowest, count.saturating_add(1))),
            Some((lowest, count)) if lowest < pod.priority => Some((lowest, count)),
            _ => Some((pod.priority, 1)),
        };
        self.pods.insert(pod.key.clone(), pod);
        self.measure();
    }

    fn find_lowest(&self) -> Option<(i32, u32)> {
        let lowest = self.pods.values().map(|pod| pod.priority).min()?;
        let count = self.pods.values().filter(|pod| pod.priority == lowest).count();
        Some((lowest, u32::try_from(count).unwrap_or(u32::MAX)))
    }

    /// The lowest priority of a pod; none: there is no pod.
    #[must_use]
    pub fn lowest_priority(&self) -> Option<i32> {
        self.lowest.map(|(lowest, _)| lowest)
    }

    /// Takes a pod off the node.
    pub fn take(&mut self, key: &ObjectKey) -> Option<Arc<PodInfo>> {
        let pod = self.pods.remove(key)?;
        self.requested.remove(&pod.wants.requests);
        self.scored.remove(&pod.wants.scored);
        if let Some((lowest, count)) = self.lowest.filter(|(lowest, _)| *lowest == pod.priority) {
            self.lowest = if count > 1 { Some((lowest, count - 1)) } else { self.find_lowest() };
        }
        self.measure();
        Some(pod)
    }
}
