//! Placement of a DaemonSet's pods on nodes, and the pods for them.

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{
    self as core, Node, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, PodSpec, Taint, Toleration,
};
use machinery_client::{Pod, controlled_by};
use machinery_rules::placement::{self, requirement_matches};

use crate::pods;
use crate::revisions::POD_HASH;

/// The label with the generation of a pod's template, from before hashes.
const POD_GENERATION: &str = "pod-template-generation";
/// The annotation of a DaemonSet with that generation.
const GENERATION: &str = "deprecated.daemonset.template.generation";
const NODE_NAME: &str = "metadata.name";

/// The node taints that every DaemonSet pod tolerates.
const TOLERATED: &[(&str, &str)] = &[
    ("node.kubernetes.io/not-ready", "NoExecute"),
    ("node.kubernetes.io/unreachable", "NoExecute"),
    ("node.kubernetes.io/disk-pressure", "NoSchedule"),
    ("node.kubernetes.io/memory-pressure", "NoSchedule"),
    ("node.kubernetes.io/pid-pressure", "NoSchedule"),
    ("node.kubernetes.io/unschedulable", "NoSchedule"),
];
const NO_NETWORK: (&str, &str) = ("node.kubernetes.io/network-unavailable", "NoSchedule");

/// The eligibility of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Eligibility {
    /// A pod should run on it.
    ShouldRun,
    /// An existing pod may stay.
    MayContinue,
    /// No pod may run on it.
    Ineligible,
}

fn generation(set: &DaemonSet) -> Option<i64> {
    set.metadata.annotations.as_ref()?.get(GENERATION)?.parse().ok()
}

/// Whether a pod has the current template.
pub(super) fn is_updated(set: &DaemonSet, hash: &str, pod: &Pod) -> bool {
    let label = |name: &str| pod.metadata.labels.as_ref().and_then(|l| l.get(name));
    label(POD_HASH).is_some_and(|given| given == hash)
        || generation(set).is_some_and(|n| label(POD_GENERATION).is_some_and(|given| *given == n.to_string()))
}

/// The template's spec with the default tolerations.
fn tolerating(spec: &PodSpec) -> PodSpec {
    let mut spec = spec.clone();
    let hosts = spec.host_network == Some(true);
    let tolerations = spec.tolerations.get_or_insert_default();
    for (key, effect) in TOLERATED.iter().copied().chain(hosts.then_some(NO_NETWORK)) {
        let added = Toleration {
            key: Some(key.into()),
            operator: Some("Exists".into()),
            effect: Some(effect.into()),
            ..Toleration::default()
        };
        let same = |t: &Toleration| {
            let value = t.value.as_deref().unwrap_or_default();
            (&t.key, &t.operator, &t.effect, value) == (&added.key, &added.operator, &added.effect, "")
        };
        match tolerations.iter().position(same) {
            Some(at) => tolerations[at] = added,
            None => tolerations.push(added),
        }
    }
    spec
}

/// The placement rules of a set's template.
#[derive(Debug)]
pub(super) struct Placement {
    spec: PodSpec,
}

impl Placement {
    pub(super) fn of(set: &DaemonSet) -> Self {
        let spec = set.spec.as_ref().and_then(|s| s.template.spec.as_ref());
        Self { spec: spec.map(tolerating).unwrap_or_default() }
    }

    pub(super) fn fit(&self, node: &Node) -> Eligibility {
        let name = node.metadata.name.as_deref().unwrap_or_default();
        let named = self.spec.node_name.as_deref().filter(|name| !name.is_empty());
        if named.is_some_and(|named| named != name) || !self.admits(node, name) {
            return Eligibility::Ineligible;
        }
        let untolerated = |effects: &[&str]| {
            let taints = node.spec.as_ref().and_then(|s| s.taints.as_ref()).into_iter().flatten();
            taints.filter(|t| effects.contains(&t.effect.as_str())).any(|taint| !self.tolerates(taint))
        };
        match (untolerated(&["NoSchedule"]), untolerated(&["NoExecute"])) {
            (false, false) => Eligibility::ShouldRun,
            (true, false) => Eligibility::MayContinue,
            (_, true) => Eligibility::Ineligible,
        }
    }

    fn tolerates(&self, taint: &Taint) -> bool {
        let taint = placement::Taint {
            key: &taint.key,
            value: taint.value.as_deref().unwrap_or_default(),
            effect: &taint.effect,
        };
        self.spec.tolerations.iter().flatten().any(|toleration| {
            let toleration = placement::Toleration {
                key: toleration.key.as_deref().unwrap_or_default(),
                operator: toleration.operator.as_deref().unwrap_or_default(),
                value: toleration.value.as_deref().unwrap_or_default(),
                effect: toleration.effect.as_deref().unwrap_or_default(),
            };
            placement::tolerates(toleration, taint)
        })
    }

    /// Whether node selector and required affinity match the node.
    fn admits(&self, node: &Node, name: &str) -> bool {
        let label = |key: &str| node.metadata.labels.as_ref().and_then(|l| l.get(key)).map(String::as_str);
        let selected = self.spec.node_selector.iter().flatten().all(|(key, value)| label(key) == Some(value));
        let holds = |r: &NodeSelectorRequirement, value| {
            requirement_matches(&r.operator, r.values.as_deref().unwrap_or_default(), value)
        };
        let meets = |term: &NodeSelectorTerm| {
            let labels = term.match_expressions.as_deref().unwrap_or_default();
            let fields = term.match_fields.as_deref().unwrap_or_default();
            !(labels.is_empty() && fields.is_empty())
                && labels.iter().all(|r| holds(r, label(&r.key)))
                && fields.iter().all(|r| holds(r, (r.key == NODE_NAME).then_some(name)))
        };
        let required = self.spec.affinity.as_ref().and_then(|a| a.node_affinity.as_ref());
        let required = required.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
        selected && required.is_none_or(|required| required.node_selector_terms.iter().any(meets))
    }

    /// The pod for a node, with an affinity to that node alone.
    pub(super) fn pod(&self, set: &DaemonSet, hash: &str, node: &str) -> core::Pod {
        let mut template = set.spec.as_ref().map(|s| s.template.clone()).unwrap_or_default();
        let mut spec = self.spec.clone();
        let only = NodeSelectorRequirement {
            key: NODE_NAME.into(),
            operator: "In".into(),
            values: Some(vec![node.to_owned()]),
        };
        let term = NodeSelectorTerm { match_fields: Some(vec![only]), match_expressions: None };
        let affinity = spec.affinity.get_or_insert_default().node_affinity.get_or_insert_default();
        affinity.required_during_scheduling_ignored_during_execution =
            Some(NodeSelector { node_selector_terms: vec![term] });
        template.spec = Some(spec);
        let labels = template.metadata.get_or_insert_default().labels.get_or_insert_default();
        labels.insert(POD_HASH.into(), hash.to_owned());
        if let Some(generation) = generation(set) {
            labels.insert(POD_GENERATION.into(), generation.to_string());
        }
        let namespace = set.metadata.namespace.as_deref().unwrap_or_default();
        pods::from_template(&template, namespace, set.metadata.name.as_deref().unwrap_or_default(), controlled_by(set))
    }
}

/// The assigned or intended node of a pod.
pub(super) fn of_pod(pod: &Pod) -> Option<&str> {
    let spec = pod.spec.as_ref()?;
    if let Some(name) = spec.node_name.as_deref().filter(|name| !name.is_empty()) {
        return Some(name);
    }
    let affinity = spec.shape.affinity.as_ref()?.node_affinity.as_ref()?;
    let terms = &affinity.required_during_scheduling_ignored_during_execution.as_ref()?.node_selector_terms;
    let mut fields = terms.iter().flat_map(|term| term.match_fields.iter().flatten());
    let only = fields.find(|r| r.key == NODE_NAME && r.operator == "In")?;
    match only.values.as_deref()? {
        [name] => Some(name.as_str()),
        _ => None,
    }
}
