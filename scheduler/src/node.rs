//! A node with the pods on it.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;
use machinery_api::ObjectKey;
use machinery_api::placement::requirement_holds;
use machinery_api::quantity::Quantity;

use crate::pod::{Labels, NodeRequirement, NodeTerm, PodInfo, Taint};
use crate::resources::{ResourceSum, Resources};

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

/// See the module.
#[derive(Debug, Clone, Default)]
pub struct NodeInfo {
    /// Its number.
    pub id: NodeId,
    /// What of the node matters.
    pub facts: NodeFacts,
    /// The pods on it, assumed ones included.
    pub pods: BTreeMap<Arc<ObjectKey>, Arc<PodInfo>>,
    /// What they ask for.
    pub requested: ResourceSum,
    /// What they count as in scores.
    pub scored: ResourceSum,
}

impl NodeFacts {
    /// Extracts what scheduling needs.
    #[must_use]
    pub fn of(node: &core::Node) -> Self {
        let spec = node.spec.as_ref();
        let allocatable = node.status.as_ref().and_then(|status| status.allocatable.as_ref());
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
        self.taints.iter().any(|taint| taint.effect != "PreferNoSchedule" && !pod.tolerates(taint))
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

    /// Puts a pod on the node, in place of one with the same key.
    pub fn put(&mut self, pod: Arc<PodInfo>) {
        self.take(&pod.key);
        self.requested.add(&pod.wants.requests);
        self.scored.add(&pod.wants.scored);
        self.pods.insert(pod.key.clone(), pod);
    }

    /// Takes a pod off the node.
    pub fn take(&mut self, key: &ObjectKey) -> Option<Arc<PodInfo>> {
        let pod = self.pods.remove(key)?;
        self.requested.remove(&pod.wants.requests);
        self.scored.remove(&pod.wants.scored);
        Some(pod)
    }
}
