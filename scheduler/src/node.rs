//! A node and its pods as the scheduler reads them: facts, requested resources, and used ports. Kept up to date as pods
//! are added and removed.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;
use machinery_api::ObjectKey;
use machinery_api::quantity::Quantity;
use machinery_rules::placement::requirement_matches;

use crate::pod::{Labels, NodeRequirement, NodeTerm, PodInfo, Taint};
use crate::resources::{ResourceSum, Resources};
use crate::wasm;

/// The zone label.
const ZONE: &str = "topology.kubernetes.io/zone";
const REGION: &str = "topology.kubernetes.io/region";

/// The fields of a node that scheduling reads.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NodeFacts {
    pub name: String,
    pub labels: Labels,
    pub taints: Vec<Taint>,
    /// Cordoned.
    pub unschedulable: bool,
    /// Allocatable resources.
    pub allocatable: Resources,
    /// The maximum number of pods.
    pub pods_max: i64,
    /// Image sizes in bytes, by each name of an image.
    pub images: BTreeMap<String, i64>,
}

/// A dense node number, so that data per node is an array. A number is reused after its node is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct NodeId(u32);

impl NodeId {
    /// The node with an index.
    ///
    /// # Panics
    /// With 2^32 nodes or more.
    #[must_use]
    pub fn new(index: usize) -> Self {
        Self(u32::try_from(index).expect("fewer than 2^32 nodes"))
    }

    /// The index.
    #[must_use]
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// The free part of the allocatable resources; negative if they were reduced below the requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FreeResources {
    /// Thousandths of a core.
    pub cpu_milli: i64,
    /// Bytes.
    pub memory_bytes: i64,
    /// Bytes.
    pub ephemeral_bytes: i64,
    /// Number of pods.
    pub pods: i64,
}

/// What scores read of a node: the requests of its pods, and what it offers. Sums saturate at the end of `i64`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Load {
    /// Requested thousandths of a core.
    pub cpu_milli: i64,
    /// Requested bytes.
    pub memory_bytes: i64,
    /// Thousandths of a core, with a default for containers without a request.
    pub scored_cpu_milli: i64,
    /// Bytes, with a default for containers without a request.
    pub scored_memory_bytes: i64,
    /// Allocatable thousandths of a core.
    pub offered_cpu_milli: i64,
    /// Allocatable bytes.
    pub offered_memory_bytes: i64,
}

/// A node and its pods. The fields that each decision reads of thousands of nodes come first, in two cache lines.
#[derive(Debug, Clone, Default)]
#[repr(C)]
pub struct NodeInfo {
    pub id: NodeId,
    /// Cordoned.
    cordoned: bool,
    /// Whether it has a taint with effect `NoSchedule` or `NoExecute`.
    has_hard_taint: bool,
    free: FreeResources,
    load: Load,
    pub facts: Box<NodeFacts>,
    /// The pods of the node, assumed ones included.
    pub pods: BTreeMap<Arc<ObjectKey>, Arc<PodInfo>>,
    /// The sum of the pods' requests.
    pub requested: Box<ResourceSum>,
    /// The sum of the pods' requests, with defaults, for scores.
    pub scored: Box<ResourceSum>,
    /// The lowest priority of its pods, and the number of pods with it.
    lowest: Option<(i32, u32)>,
}

impl NodeFacts {
    /// Extracts the fields that scheduling reads.
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

    /// Region and zone, for round-robin between zones.
    #[must_use]
    pub fn zone(&self) -> (String, String) {
        let label = |key: &str| self.labels.get(key).cloned().unwrap_or_default();
        (label(REGION), label(ZONE))
    }

    /// Whether a node selector term matches.
    #[must_use]
    pub fn matches_term(&self, term: &NodeTerm) -> bool {
        !term.is_empty()
            && term.labels.iter().all(|r| holds(r, self.labels.get(&r.key).map(String::as_str)))
            && self.matches_fields(term)
    }

    /// Whether the fields of a node selector term match.
    #[must_use]
    pub fn matches_fields(&self, term: &NodeTerm) -> bool {
        term.fields.iter().all(|r| holds(r, (r.key == "metadata.name").then_some(self.name.as_str())))
    }

    /// Whether the pod's node selector and required node affinity match.
    #[must_use]
    pub fn admits(&self, pod: &PodInfo) -> bool {
        pod.requirements.node_selector.iter().all(|(key, value)| self.labels.get(key) == Some(value))
            && pod
                .requirements
                .node_required
                .as_ref()
                .is_none_or(|terms| terms.iter().any(|term| self.matches_term(term)))
    }

    /// Whether the pod doesn't tolerate one of the taints with effect `NoSchedule` or `NoExecute`.
    #[must_use]
    pub fn has_untolerated_taint(&self, pod: &PodInfo) -> bool {
        self.taints.iter().any(|taint| taint.prevents_scheduling() && !pod.tolerates(taint))
    }
}

/// Whether a label's value, or its absence, fulfils a requirement.
pub(crate) fn holds(requirement: &NodeRequirement, value: Option<&str>) -> bool {
    requirement_matches(&requirement.operator, &requirement.values, value)
}

impl NodeInfo {
    #[must_use]
    pub fn name(&self) -> &str {
        &self.facts.name
    }

    /// A node without facts and pods.
    #[must_use]
    pub fn new(id: NodeId) -> Self {
        Self { id, ..Self::default() }
    }

    /// Replaces the facts, and returns the previous ones.
    pub fn set_facts(&mut self, facts: NodeFacts) -> NodeFacts {
        self.cordoned = facts.unschedulable;
        self.has_hard_taint = facts.taints.iter().any(Taint::prevents_scheduling);
        let before = std::mem::replace(&mut *self.facts, facts);
        self.measure();
        before
    }

    /// The free resources.
    #[must_use]
    pub fn free(&self) -> &FreeResources {
        &self.free
    }

    /// The requests of the pods.
    #[must_use]
    pub fn load(&self) -> &Load {
        &self.load
    }

    /// The load in the form of WebAssembly plugins.
    #[must_use]
    pub fn plugin_load(&self) -> wasm::Load {
        let pods = u32::try_from(self.pods.len()).unwrap_or(u32::MAX);
        wasm::Load { pods, cpu_millis: self.load.cpu_milli, memory_bytes: self.load.memory_bytes }
    }

    #[must_use]
    pub fn is_cordoned(&self) -> bool {
        self.cordoned
    }

    /// Whether the pod doesn't tolerate a taint.
    #[must_use]
    pub fn has_untolerated_taint(&self, pod: &PodInfo) -> bool {
        self.has_hard_taint && self.facts.has_untolerated_taint(pod)
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
            offered_cpu_milli: offered.cpu_milli,
            offered_memory_bytes: offered.memory_bytes,
        };
        self.free = FreeResources {
            cpu_milli: left(offered.cpu_milli, used.cpu_milli),
            memory_bytes: left(offered.memory_bytes, used.memory_bytes),
            ephemeral_bytes: left(offered.ephemeral_bytes, used.ephemeral_bytes),
            pods: self.facts.pods_max.saturating_sub(i64::try_from(self.pods.len()).unwrap_or(i64::MAX)),
        };
    }

    /// Adds a pod, in place of one with the same key.
    pub fn put(&mut self, pod: Arc<PodInfo>) {
        self.take(&pod.key);
        self.requested.add(&pod.requirements.requests);
        self.scored.add(&pod.requirements.scored);
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

    /// The lowest priority of the pods; none without pods.
    #[must_use]
    pub fn lowest_priority(&self) -> Option<i32> {
        self.lowest.map(|(lowest, _)| lowest)
    }

    /// Removes a pod.
    pub fn take(&mut self, key: &ObjectKey) -> Option<Arc<PodInfo>> {
        let pod = self.pods.remove(key)?;
        self.requested.remove(&pod.requirements.requests);
        self.scored.remove(&pod.requirements.scored);
        if let Some((lowest, count)) = self.lowest.filter(|(lowest, _)| *lowest == pod.priority) {
            self.lowest = if count > 1 { Some((lowest, count - 1)) } else { self.find_lowest() };
        }
        self.measure();
        Some(pod)
    }
}
