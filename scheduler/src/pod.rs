//! A pod as the scheduler reads it, extracted once per change.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;
use machinery_api::ObjectKey;
use machinery_api::selector::LabelSelector;
use machinery_client::claims::claim_name;
use machinery_client::interner::Interner;
use machinery_client::key_of;
use machinery_client::pod::{Pod, PodShape, PodSpec, PodStatus};
use machinery_rules::placement;

use crate::resources::{Resources, requests};

pub type Labels = BTreeMap<String, String>;

/// A requirement of a node selector term.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct NodeRequirement {
    /// The label, or the field `metadata.name`.
    pub key: String,
    /// `In`, `NotIn`, `Exists`, `DoesNotExist`, `Gt`, `Lt`.
    pub operator: String,
    pub values: Vec<String>,
}

/// A node selector term: all requirements must match; an empty term matches nothing.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct NodeTerm {
    /// `matchExpressions`.
    pub labels: Vec<NodeRequirement>,
    /// `matchFields`.
    pub fields: Vec<NodeRequirement>,
}

impl NodeTerm {
    /// Whether it has no requirement, and so matches no node.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Toleration {
    key: String,
    operator: String,
    value: String,
    effect: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Taint {
    pub key: String,
    pub value: String,
    /// `NoSchedule`, `PreferNoSchedule`, `NoExecute`.
    pub effect: String,
}

/// A topology spread constraint.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Spread {
    /// The maximum difference of pods between domains.
    pub max_skew: i64,
    /// The topology label.
    pub key: String,
    /// `DoNotSchedule`; otherwise `ScheduleAnyway`.
    pub required: bool,
    /// The pods to count.
    pub selector: LabelSelector,
    /// With fewer domains the minimum counts as zero.
    pub min_domains: usize,
    /// Whether only nodes that match the pod's node affinity and selector count.
    pub honor_affinity: bool,
    /// Whether only nodes whose taints the pod tolerates count.
    pub honor_taints: bool,
}

/// A pod affinity or anti-affinity term.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PodTerm {
    pub selector: LabelSelector,
    /// Namespaces by name.
    pub namespaces: BTreeSet<String>,
    /// Namespaces by label.
    pub namespace_selector: LabelSelector,
    /// The topology label.
    pub key: String,
}

/// Pod affinity or anti-affinity.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct PodAffinity {
    /// All terms must match.
    pub required: Vec<PodTerm>,
    /// With weights.
    pub preferred: Vec<(i64, PodTerm)>,
}

/// A host port of a pod.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostPort {
    /// `0.0.0.0` for all addresses.
    pub ip: String,
    /// `TCP`, `UDP`, `SCTP`.
    pub protocol: String,
    pub port: i32,
}

/// Whether a pod's status shows that it was preempted.
fn preempted(status: &PodStatus) -> bool {
    let mut conditions = status.conditions.iter().flat_map(|conditions| conditions.iter());
    let disrupted = conditions.find(|condition| condition.type_ == "DisruptionTarget");
    disrupted.is_some_and(|c| c.status == "True" && c.reason.as_deref() == Some("PreemptionByScheduler"))
}

/// The scheduling requirements of a pod's spec, shared by the pods of a template.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct PodRequirements {
    /// `spec.schedulerName`.
    pub scheduler: String,
    /// `preemptionPolicy: Never`.
    pub never_preempts: bool,
    pub requests: Resources,
    /// The requests with defaults, for scores.
    pub scored: Resources,
    pub ports: BTreeSet<HostPort>,
    /// `spec.nodeSelector`.
    pub node_selector: Labels,
    /// Required node affinity: one of the terms must match.
    pub node_required: Option<Vec<NodeTerm>>,
    /// Preferred node affinity, with weights.
    pub node_preferred: Vec<(i64, NodeTerm)>,
    pub tolerations: Vec<Toleration>,
    pub spread: Vec<Spread>,
    pub affinity: PodAffinity,
    pub anti_affinity: PodAffinity,
    /// The images, named as on nodes, with repetitions; and the number of containers.
    pub images: (Vec<String>, usize),
    /// Fields that this scheduler doesn't support.
    pub unsupported: Vec<String>,
}

/// A claim of one of the pod's volumes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodClaim {
    pub name: String,
    /// Whether it is a generic ephemeral volume.
    pub ephemeral: bool,
}

/// A pod. Pods of a template share what they have in common.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PodInfo {
    pub key: Arc<ObjectKey>,
    /// A pod of the same name with another uid is another pod.
    pub uid: Box<str>,
    pub labels: Arc<Labels>,
    /// The requirements on a node.
    pub requirements: Arc<PodRequirements>,
    /// The node that the pod is bound to.
    pub node: Option<Arc<str>>,
    /// The uid of the ReplicaSet, ReplicationController or StatefulSet that controls it.
    pub workload: Option<Box<str>>,
    /// Higher is scheduled first.
    pub priority: i32,
    /// Whether it has a deletion timestamp.
    pub terminating: bool,
    /// Whether it has succeeded or failed, and so uses no resources.
    pub ended: bool,
    /// Whether it has scheduling gates.
    pub gated: bool,
    /// Whether the scheduler preempted it.
    pub preempted: bool,
    /// When it started on its node, in nanoseconds; 0: not yet.
    pub start_nanos: i64,
    /// `status.nominatedNodeName`.
    pub nominated: Option<Arc<str>>,
    /// The claims of its volumes; none without claims.
    pub claims: Option<Box<[PodClaim]>>,
}

static LABELS: Interner<Labels> = Interner::new();
static REQUIREMENTS: Interner<PodRequirements> = Interner::new();

fn selector(selector: Option<&meta::LabelSelector>) -> LabelSelector {
    narrowed(selector, &Labels::new(), &[], &[])
}

/// A selector with the pod's own values of some labels added (newer API servers have merged them already).
fn narrowed(base: Option<&meta::LabelSelector>, labels: &Labels, same: &[String], other: &[String]) -> LabelSelector {
    let Some(mut base) = base.cloned() else { return LabelSelector::nothing() };
    for (keys, operator) in [(same, "In"), (other, "NotIn")] {
        for (key, value) in keys.iter().filter_map(|key| labels.get_key_value(key)) {
            base.match_expressions.get_or_insert_default().push(meta::LabelSelectorRequirement {
                key: key.clone(),
                operator: operator.into(),
                values: Some(vec![value.clone()]),
            });
        }
    }
    // The API rejects invalid selectors; one that was stored anyway selects nothing, as upstream.
    let value = serde_json::to_value(&base).ok();
    LabelSelector::from_value(value.as_ref()).unwrap_or_else(|_| LabelSelector::nothing())
}

fn node_requirements(of: Option<&Vec<core::NodeSelectorRequirement>>) -> Vec<NodeRequirement> {
    let requirement = |r: &core::NodeSelectorRequirement| NodeRequirement {
        key: r.key.clone(),
        operator: r.operator.clone(),
        values: r.values.clone().unwrap_or_default(),
    };
    of.into_iter().flatten().map(requirement).collect()
}

pub(crate) fn node_term(term: &core::NodeSelectorTerm) -> NodeTerm {
    NodeTerm {
        labels: node_requirements(term.match_expressions.as_ref()),
        fields: node_requirements(term.match_fields.as_ref()),
    }
}

fn pod_term(term: &core::PodAffinityTerm, namespace: &str, labels: &Labels) -> PodTerm {
    let mut namespaces: BTreeSet<String> = term.namespaces.iter().flatten().cloned().collect();
    if namespaces.is_empty() && term.namespace_selector.is_none() {
        namespaces.insert(namespace.to_owned());
    }
    let same = term.match_label_keys.as_deref().unwrap_or_default();
    let other = term.mismatch_label_keys.as_deref().unwrap_or_default();
    PodTerm {
        selector: narrowed(term.label_selector.as_ref(), labels, same, other),
        namespaces,
        namespace_selector: selector(term.namespace_selector.as_ref()),
        key: term.topology_key.clone(),
    }
}

fn pod_affinity(
    required: Option<&Vec<core::PodAffinityTerm>>,
    preferred: Option<&Vec<core::WeightedPodAffinityTerm>>,
    namespace: &str,
    labels: &Labels,
) -> PodAffinity {
    PodAffinity {
        required: required.into_iter().flatten().map(|term| pod_term(term, namespace, labels)).collect(),
        preferred: preferred
            .into_iter()
            .flatten()
            .map(|weighted| (weighted.weight.into(), pod_term(&weighted.pod_affinity_term, namespace, labels)))
            .collect(),
    }
}

fn spread(constraint: &core::TopologySpreadConstraint, labels: &Labels) -> Spread {
    let same = constraint.match_label_keys.as_deref().unwrap_or_default();
    Spread {
        max_skew: constraint.max_skew.into(),
        key: constraint.topology_key.clone(),
        required: constraint.when_unsatisfiable == "DoNotSchedule",
        selector: narrowed(constraint.label_selector.as_ref(), labels, same, &[]),
        min_domains: usize::try_from(constraint.min_domains.unwrap_or(1)).unwrap_or(1),
        honor_affinity: constraint.node_affinity_policy.as_deref() != Some("Ignore"),
        honor_taints: constraint.node_taints_policy.as_deref() == Some("Honor"),
    }
}

fn ports(shape: &PodShape) -> BTreeSet<HostPort> {
    let sidecars = shape.init_containers.iter().flatten().filter(|c| c.restart_policy.as_deref() == Some("Always"));
    let ports = shape.containers.iter().chain(sidecars).flat_map(|container| container.ports.iter().flatten());
    let taken = ports.filter_map(|port| {
        let number = port.host_port.filter(|number| *number > 0)?;
        let ip = port.host_ip.clone().filter(|ip| !ip.is_empty()).unwrap_or_else(|| "0.0.0.0".into());
        let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".into());
        Some(HostPort { ip, protocol, port: number })
    });
    taken.collect()
}

/// Images named as on nodes: with a tag.
fn images(shape: &PodShape) -> (Vec<String>, usize) {
    let containers = || shape.init_containers.iter().flatten().chain(&shape.containers);
    let volumes = shape.volumes.iter().flatten().filter_map(|volume| volume.image.as_ref()?.reference.as_deref());
    let named = containers().filter_map(|container| container.image.as_deref()).chain(volumes);
    let tagged = |name: &str| match name.rfind(':') > name.rfind('/') {
        true => name.to_owned(),
        false => format!("{name}:latest"),
    };
    (named.map(tagged).collect(), containers().count())
}

fn unsupported(shape: &PodShape) -> Vec<String> {
    let mut fields = Vec::new();
    if shape.resource_claims.as_ref().is_some_and(|claims| !claims.is_empty()) {
        fields.push("spec.resourceClaims".into());
    }
    if shape.scheduling_group.is_some() {
        fields.push("spec.schedulingGroup".into());
    }
    fields
}

/// The claims of a pod's volumes.
fn claims(pod: &str, shape: &PodShape) -> Option<Box<[PodClaim]>> {
    let all = shape.volumes.iter().flatten().filter_map(|volume| {
        let name = claim_name(pod, volume)?;
        Some(PodClaim { name, ephemeral: volume.ephemeral.is_some() })
    });
    let all: Box<[PodClaim]> = all.collect();
    (!all.is_empty()).then_some(all)
}

impl PodRequirements {
    fn of(shape: &PodShape, namespace: &str, labels: &Labels) -> Self {
        let affinity = shape.affinity.as_ref();
        let node_affinity = affinity.and_then(|a| a.node_affinity.as_ref());
        let toward = affinity.and_then(|a| a.pod_affinity.as_ref());
        let away = affinity.and_then(|a| a.pod_anti_affinity.as_ref());
        let (requests, scored) = requests(shape);
        Self {
            scheduler: shape.scheduler_name.clone().unwrap_or_default(),
            never_preempts: shape.preemption_policy.as_deref() == Some("Never"),
            requests,
            scored,
            ports: ports(shape),
            node_selector: shape.node_selector.clone().unwrap_or_default(),
            node_required: node_affinity
                .and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref())
                .map(|required| required.node_selector_terms.iter().map(node_term).collect()),
            node_preferred: node_affinity
                .and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_ref())
                .into_iter()
                .flatten()
                .map(|term| (term.weight.into(), node_term(&term.preference)))
                .collect(),
            tolerations: shape.tolerations.iter().flatten().map(Toleration::of).collect(),
            spread: shape.topology_spread_constraints.iter().flatten().map(|c| spread(c, labels)).collect(),
            affinity: pod_affinity(
                toward.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref()),
                toward.and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_ref()),
                namespace,
                labels,
            ),
            anti_affinity: pod_affinity(
                away.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref()),
                away.and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_ref()),
                namespace,
                labels,
            ),
            images: images(shape),
            unsupported: unsupported(shape),
        }
    }
}

impl PodInfo {
    /// Extracts the fields that scheduling reads.
    #[must_use]
    pub fn of(pod: &Pod) -> Self {
        let fallback = PodSpec::default();
        let spec = pod.spec.as_ref().unwrap_or(&fallback);
        let metadata = &pod.metadata;
        let key = key_of(metadata);
        let labels = LABELS.intern(metadata.labels.clone().unwrap_or_default());
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default();
        let owner = metadata.owner_references.iter().flatten().find(|owner| owner.controller == Some(true));
        let start = pod.status.as_ref().and_then(|status| status.start_time.as_ref());
        let nominated = pod.status.as_ref().and_then(|status| status.nominated_node_name.as_deref());
        let spreads = |kind: &str| matches!(kind, "ReplicaSet" | "ReplicationController" | "StatefulSet");
        Self {
            uid: metadata.uid.as_deref().unwrap_or_default().into(),
            requirements: REQUIREMENTS.intern(PodRequirements::of(&spec.shape, &key.namespace, &labels)),
            key: Arc::new(key),
            labels,
            node: spec.node_name.as_deref().filter(|name| !name.is_empty()).map(Arc::from),
            workload: owner.filter(|owner| spreads(&owner.kind)).map(|owner| owner.uid.as_str().into()),
            priority: spec.shape.priority.unwrap_or(0),
            terminating: metadata.deletion_timestamp.is_some(),
            ended: phase == "Succeeded" || phase == "Failed",
            gated: spec.shape.scheduling_gates.as_ref().is_some_and(|gates| !gates.is_empty()),
            preempted: pod.status.as_ref().is_some_and(preempted),
            start_nanos: start.map_or(0, |start| i64::try_from(start.0.as_nanosecond()).unwrap_or(0)),
            nominated: nominated.filter(|name| !name.is_empty()).map(Arc::from),
            claims: claims(metadata.name.as_deref().unwrap_or_default(), &spec.shape),
        }
    }

    /// When it started; a pod that hasn't started sorts last.
    #[must_use]
    pub fn started(&self) -> i64 {
        if self.start_nanos == 0 { i64::MAX } else { self.start_nanos }
    }

    /// Whether it is terminating because of a preemption.
    #[must_use]
    pub fn is_preempted(&self) -> bool {
        self.terminating && self.preempted
    }

    /// Whether two versions of an unscheduled pod are the same for scheduling.
    #[must_use]
    pub fn is_equivalent(&self, other: &Self) -> bool {
        let Self { key, uid, labels, requirements, node, workload, priority, terminating, ended, gated, .. } = self;
        *labels == other.labels
            && *requirements == other.requirements
            && (key, uid, node, workload) == (&other.key, &other.uid, &other.node, &other.workload)
            && (*priority, *terminating, *ended, *gated)
                == (other.priority, other.terminating, other.ended, other.gated)
    }

    /// Whether the pod tolerates a taint.
    #[must_use]
    pub fn tolerates(&self, taint: &Taint) -> bool {
        self.requirements.tolerations.iter().any(|toleration| toleration.covers(taint))
    }
}

impl Taint {
    /// Whether it rejects pods that don't tolerate it; `PreferNoSchedule` only lowers the score.
    #[must_use]
    pub fn prevents_scheduling(&self) -> bool {
        self.effect != "PreferNoSchedule"
    }
}

impl PodTerm {
    /// Whether the term matches a pod.
    #[must_use]
    pub fn matches(&self, pod: &PodInfo, namespaces: &BTreeMap<String, Labels>) -> bool {
        let namespace = &pod.key.namespace;
        let named = self.namespaces.contains(namespace)
            || self.namespace_selector.matches(namespaces.get(namespace).unwrap_or(&Labels::new()));
        named && self.selector.matches(&*pod.labels)
    }
}

impl Toleration {
    fn of(toleration: &core::Toleration) -> Self {
        Self {
            key: toleration.key.clone().unwrap_or_default(),
            operator: toleration.operator.clone().unwrap_or_default(),
            value: toleration.value.clone().unwrap_or_default(),
            effect: toleration.effect.clone().unwrap_or_default(),
        }
    }

    fn covers(&self, taint: &Taint) -> bool {
        let Self { key, operator, value, effect } = self;
        placement::tolerates(
            placement::Toleration { key, operator, value, effect },
            placement::Taint { key: &taint.key, value: &taint.value, effect: &taint.effect },
        )
    }
}
