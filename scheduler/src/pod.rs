//! A pod as the scheduler sees it: what it needs, extracted once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;
use machinery_api::selector::LabelSelector;
use machinery_api::shared::Pool;
use machinery_api::{ObjectKey, placement};
use machinery_client::claims::claim_name;
use machinery_client::key_of;
use machinery_client::pod::{Pod, PodShape, PodSpec, PodStatus};

use crate::resources::{Resources, requests};

/// Labels.
pub type Labels = BTreeMap<String, String>;

/// One condition of a node selector term.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct NodeRequirement {
    /// The label, or `metadata.name` among fields.
    pub key: String,
    /// `In`, `NotIn`, `Exists`, `DoesNotExist`, `Gt`, `Lt`.
    pub operator: String,
    /// What it is compared with.
    pub values: Vec<String>,
}

/// One term: all its requirements must hold; an empty one holds nowhere.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct NodeTerm {
    /// On labels.
    pub labels: Vec<NodeRequirement>,
    /// On fields.
    pub fields: Vec<NodeRequirement>,
}

/// A taint that is tolerated.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Toleration {
    key: String,
    operator: String,
    value: String,
    effect: String,
}

/// A taint.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Taint {
    /// Its key.
    pub key: String,
    /// Its value.
    pub value: String,
    /// `NoSchedule`, `PreferNoSchedule`, `NoExecute`.
    pub effect: String,
}

/// A topology spread constraint.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Spread {
    /// How uneven it may be.
    pub max_skew: i64,
    /// The label that makes domains.
    pub key: String,
    /// `DoNotSchedule`, else only preferred.
    pub required: bool,
    /// Which pods count.
    pub selector: LabelSelector,
    /// With fewer domains the emptiest counts as empty.
    pub min_domains: usize,
    /// Only nodes that the pod's node affinity and selector admit count.
    pub honor_affinity: bool,
    /// Only nodes whose taints the pod tolerates count.
    pub honor_taints: bool,
}

/// A pod (anti-)affinity term.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PodTerm {
    /// Which pods.
    pub selector: LabelSelector,
    /// In which namespaces, by name.
    pub namespaces: BTreeSet<String>,
    /// And by label.
    pub namespace_selector: LabelSelector,
    /// The label that makes domains.
    pub key: String,
}

/// Pod affinity or anti-affinity.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct PodAffinity {
    /// All must hold.
    pub required: Vec<PodTerm>,
    /// With weights.
    pub preferred: Vec<(i64, PodTerm)>,
}

/// A port of the host that a pod takes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostPort {
    /// `0.0.0.0` for all addresses.
    pub ip: String,
    /// `TCP`, `UDP`, `SCTP`.
    pub protocol: String,
    /// The port.
    pub port: i32,
}

/// Whether a pod's status says that it goes for one of higher priority.
fn preempted(status: &PodStatus) -> bool {
    let mut conditions = status.conditions.iter().flat_map(|conditions| conditions.iter());
    let disrupted = conditions.find(|condition| condition.type_ == "DisruptionTarget");
    disrupted.is_some_and(|c| c.status == "True" && c.reason.as_deref() == Some("PreemptionByScheduler"))
}

/// What a pod's spec asks of a node: pods of one template share it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct PodRequirements {
    /// `spec.schedulerName`.
    pub scheduler: String,
    /// Whether it would preempt.
    pub never_preempts: bool,
    /// What it asks for.
    pub requests: Resources,
    /// What it counts as in scores.
    pub scored: Resources,
    /// Host ports.
    pub ports: BTreeSet<HostPort>,
    /// `spec.nodeSelector`.
    pub node_selector: Labels,
    /// Required node affinity: one of the terms must hold.
    pub node_required: Option<Vec<NodeTerm>>,
    /// Preferred node affinity.
    pub node_preferred: Vec<(i64, NodeTerm)>,
    /// Tolerations.
    pub tolerations: Vec<Toleration>,
    /// Topology spread constraints.
    pub spread: Vec<Spread>,
    /// Pod affinity.
    pub affinity: PodAffinity,
    /// Pod anti-affinity.
    pub anti_affinity: PodAffinity,
    /// Its images, as nodes name them, each as often as it is there; and how many containers it has.
    pub images: (Vec<String>, usize),
    /// Fields that ask the scheduler for something that it doesn't do.
    pub unsupported: Vec<String>,
}

/// A claim that a pod's volume is of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodClaim {
    /// Its name.
    pub name: String,
    /// It is made for the pod.
    pub ephemeral: bool,
}

/// See the module. What many pods have in common is held once.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PodInfo {
    /// Namespace and name.
    pub key: Arc<ObjectKey>,
    /// The uid: another one is another pod.
    pub uid: Box<str>,
    /// Labels.
    pub labels: Arc<Labels>,
    /// What it asks of a node.
    pub wants: Arc<PodRequirements>,
    /// The node it is bound to.
    pub node: Option<Arc<str>>,
    /// The uid of the ReplicaSet, ReplicationController or StatefulSet that controls it.
    pub workload: Option<Box<str>>,
    /// Higher goes first.
    pub priority: i32,
    /// Being deleted.
    pub terminating: bool,
    /// Succeeded or failed: takes no room any more.
    pub ended: bool,
    /// Has scheduling gates.
    pub gated: bool,
    /// It is going because the scheduler wanted its room for another.
    pub preempted: bool,
    /// When it started on its node, in nanoseconds; 0: not yet.
    pub start_nanos: i64,
    /// The node on which room is made for it, as its status says.
    pub nominated: Option<Arc<str>>,
    /// The claims of its volumes; none where it has none.
    pub claims: Option<Box<[PodClaim]>>,
}

static LABELS: Pool<Labels> = Pool::new();
static REQUIREMENTS: Pool<PodRequirements> = Pool::new();

fn selector(selector: Option<&meta::LabelSelector>) -> LabelSelector {
    narrowed(selector, &Labels::new(), &[], &[])
}

/// A selector narrowed to the pod's own values of some labels (newer apiservers have done that already).
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
    // The API refuses selectors that can't be read; one that got in selects nothing, as upstream.
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

/// Images as nodes name them: with a tag.
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
    /// Extracts what scheduling needs.
    #[must_use]
    pub fn of(pod: &Pod) -> Self {
        let fallback = PodSpec::default();
        let spec = pod.spec.as_ref().unwrap_or(&fallback);
        let metadata = &pod.metadata;
        let key = key_of(metadata);
        let labels = LABELS.share(metadata.labels.clone().unwrap_or_default());
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default();
        let owner = metadata.owner_references.iter().flatten().find(|owner| owner.controller == Some(true));
        let start = pod.status.as_ref().and_then(|status| status.start_time.as_ref());
        let nominated = pod.status.as_ref().and_then(|status| status.nominated_node_name.as_deref());
        let spreads = |kind: &str| matches!(kind, "ReplicaSet" | "ReplicationController" | "StatefulSet");
        Self {
            uid: metadata.uid.as_deref().unwrap_or_default().into(),
            wants: REQUIREMENTS.share(PodRequirements::of(&spec.shape, &key.namespace, &labels)),
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

    /// When it started; one that hasn't yet is younger than all others.
    #[must_use]
    pub fn started(&self) -> i64 {
        if self.start_nanos == 0 { i64::MAX } else { self.start_nanos }
    }

    /// Whether it is going for another pod.
    #[must_use]
    pub fn is_preempted(&self) -> bool {
        self.terminating && self.preempted
    }

    /// Whether it is the same to one who looks for a node for it.
    #[must_use]
    pub fn waits_as(&self, other: &Self) -> bool {
        let Self { key, uid, labels, wants, node, workload, priority, terminating, ended, gated, .. } = self;
        *labels == other.labels
            && *wants == other.wants
            && (key, uid, node, workload) == (&other.key, &other.uid, &other.node, &other.workload)
            && (*priority, *terminating, *ended, *gated)
                == (other.priority, other.terminating, other.ended, other.gated)
    }

    /// Whether every taint of these effects is tolerated.
    #[must_use]
    pub fn tolerates(&self, taint: &Taint) -> bool {
        self.wants.tolerations.iter().any(|toleration| toleration.covers(taint))
    }
}

impl Taint {
    /// Whether pods that don't tolerate it are kept away; others only prefer to be elsewhere.
    #[must_use]
    pub fn keeps_off(&self) -> bool {
        self.effect != "PreferNoSchedule"
    }
}

impl PodTerm {
    /// Whether a pod is meant.
    #[must_use]
    pub fn means(&self, pod: &PodInfo, namespaces: &BTreeMap<String, Labels>) -> bool {
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
