//! Plugin arguments (`pluginConfig`): upstream's fields, defaults and checks.

use k8s_openapi::api::core::v1 as core;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::errors::{Errors, Path};
use super::fields;
use crate::plugins::args::{DefaultConstraint, HardAffinityWeight, Resource};
use crate::plugins::{Args, ScoringStrategy};
use crate::pod::node_term;

const STRATEGIES: [&str; 3] = ["LeastAllocated", "MostAllocated", "RequestedToCapacityRatio"];
const ACTIONS: [&str; 2] = ["DoNotSchedule", "ScheduleAnyway"];

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Fit {
    ignored_resources: Vec<String>,
    ignored_resource_groups: Vec<String>,
    scoring_strategy: Option<Strategy>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Strategy {
    r#type: String,
    resources: Vec<Weighted>,
    requested_to_capacity_ratio: Option<Ratio>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Ratio {
    shape: Vec<ShapePoint>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ShapePoint {
    utilization: i32,
    score: i32,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Weighted {
    name: String,
    weight: i64,
}

impl Weighted {
    fn weight(&self) -> i64 {
        if self.weight == 0 { 1 } else { self.weight }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Balanced {
    resources: Vec<Weighted>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct InterPod {
    hard_pod_affinity_weight: Option<i32>,
    ignore_preferred_terms_of_existing_pods: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Spreading {
    default_constraints: Vec<core::TopologySpreadConstraint>,
    defaulting_type: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Affinity {
    added_affinity: Option<core::NodeAffinity>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Preemption {
    min_candidate_nodes_percentage: Option<i32>,
    min_candidate_nodes_absolute: Option<i32>,
}

/// The location of arguments, by the numbers of profile and entry.
pub(super) fn place(at: (usize, usize)) -> String {
    format!("decoding .profiles[{}].pluginConfig[{}]", at.0, at.1)
}

/// Reads the arguments of one plugin.
pub(super) fn read(plugin: &str, value: &Value, at: (usize, usize), path: &Path, args: &mut Args, errors: &mut Errors) {
    let place = place(at);
    let Some(known) = fields::args(plugin) else {
        errors.invalid_text(path, plugin, "this plugin takes no arguments");
        return;
    };
    let kind = format!("{plugin}Args");
    let given = value.get("kind").and_then(Value::as_str).unwrap_or(&kind);
    if given != kind {
        let group = "kubescheduler.config.k8s.io";
        errors.plain(format!("{place}: args for plugin {plugin} were not of type {kind}.{group}, got {given}.{group}"));
        return;
    }
    let unknown = fields::unknown(value, known);
    if !unknown.is_empty() {
        errors.plain(format!(
            "strict decoding error: {place}: strict decoding error: decoding args for plugin {plugin}: strict decoding error: {}",
            unknown.join(", ")
        ));
        return;
    }
    let read = match plugin {
        "NodeResourcesFit" => decode(value).map(|given| fit(given, path, args, errors)),
        "NodeResourcesBalancedAllocation" => decode(value).map(|given| balanced(&given, path, args, errors)),
        "InterPodAffinity" => decode(value).map(|given| inter_pod(&given, path, args, errors)),
        "PodTopologySpread" => decode(value).map(|given| spreading(&given, path, args, errors)),
        "NodeAffinity" => decode(value).map(|given| affinity(given, path, args, errors)),
        "DefaultPreemption" => decode(value).map(|given| preemption(&given, path, args, errors)),
        _ => {
            check_defaults(plugin, value, path, errors);
            Ok(())
        }
    };
    if let Err(error) = read {
        errors.plain(format!("{place}: decoding args for plugin {plugin}: {error}"));
    }
}

fn decode<T: DeserializeOwned + Default>(value: &Value) -> Result<T, serde_json::Error> {
    if value.is_null() { Ok(T::default()) } else { serde_json::from_value(value.clone()) }
}

/// Checks plugins whose arguments have no effect here: the arguments must have the default values.
fn check_defaults(plugin: &str, value: &Value, path: &Path, errors: &mut Errors) {
    let usual: &[(&str, Value)] = match plugin {
        "VolumeBinding" => &[("bindTimeoutSeconds", json!(600))],
        _ => &[("filterTimeout", json!("10s")), ("bindingTimeout", json!("10m0s"))],
    };
    let fields =
        value.as_object().into_iter().flatten().filter(|(key, _)| !["apiVersion", "kind"].contains(&key.as_str()));
    for (key, value) in fields {
        if !usual.iter().any(|(known, usual)| known == key && usual == value) {
            errors.invalid(&path.child(key), value, "nothing acts on it but its default");
        }
    }
}

fn fit(given: Fit, path: &Path, args: &mut Args, errors: &mut Errors) {
    for (at, group) in given.ignored_resource_groups.iter().enumerate().filter(|(_, group)| group.contains('/')) {
        let path = path.child("ignoredResourceGroups").index(at);
        errors.invalid_text(&path, group, "resource group name can't contain '/'");
    }
    args.ignored_resources = given.ignored_resources.into_iter().collect();
    args.ignored_groups = given.ignored_resource_groups.into_iter().collect();
    let Some(strategy) = given.scoring_strategy else { return };
    let path = path.child("scoringStrategy");
    for (at, resource) in strategy.resources.iter().enumerate().filter(|(_, r)| !(1..=100).contains(&r.weight())) {
        let why = format!("resource weight of {} not in valid range (0, 100]", resource.name);
        errors.invalid(&path.child("resources").index(at).child("weight"), resource.weight(), &why);
    }
    args.scored_resources = strategy.resources.iter().map(|r| (Resource::named(&r.name), r.weight())).collect();
    if args.scored_resources == [(Resource::Cpu, 1), (Resource::Memory, 1)] {
        args.scored_resources.clear();
    }
    args.scoring_strategy = match strategy.r#type.as_str() {
        "LeastAllocated" => ScoringStrategy::LeastAllocated,
        "MostAllocated" => ScoringStrategy::MostAllocated,
        "RequestedToCapacityRatio" => ScoringStrategy::RequestedToCapacityRatio,
        other => return errors.unsupported(&path.child("type"), other, &STRATEGIES),
    };
    let shaped = args.scoring_strategy == ScoringStrategy::RequestedToCapacityRatio;
    let path = path.child("requestedToCapacityRatio");
    match strategy.requested_to_capacity_ratio {
        Some(ratio) if shaped => args.shape = shape(&ratio.shape, &path.child("shape"), errors),
        Some(_) => errors.forbidden(&path, "must be nil when type is not RequestedToCapacityRatio"),
        None if shaped => errors.required(&path, "must be specified when type is RequestedToCapacityRatio"),
        None => {}
    }
}

fn shape(points: &[ShapePoint], path: &Path, errors: &mut Errors) -> Vec<(i64, i64)> {
    if points.is_empty() {
        errors.required(path, "at least one point must be specified");
    }
    if let Some(at) = (1..points.len()).find(|at| points[at - 1].utilization >= points[*at].utilization) {
        let why = "values must be sorted in increasing order";
        errors.invalid(&path.index(at).child("utilization"), points[at].utilization, why);
    }
    for (at, point) in points.iter().enumerate() {
        for (field, value, max) in [("utilization", point.utilization, 100), ("score", point.score, 10)] {
            if !(0..=max).contains(&value) {
                errors.invalid(&path.index(at).child(field), value, &format!("not in valid range [0, {max}]"));
            }
        }
    }
    // Upstream's scores are from 0 to 10 in the file, and from 0 to 100 inside.
    points.iter().map(|point| (point.utilization.into(), i64::from(point.score) * 10)).collect()
}

fn balanced(given: &Balanced, path: &Path, args: &mut Args, errors: &mut Errors) {
    for (at, resource) in given.resources.iter().enumerate() {
        let path = path.child("resources").index(at);
        if given.resources[..at].iter().any(|other| other.name == resource.name) {
            errors.duplicate(&path.child("name"), &resource.name);
        }
        if resource.weight() != 1 {
            errors.invalid(&path.child("weight"), resource.weight, "must be 1");
        }
    }
    args.balanced_resources = given.resources.iter().map(|resource| Resource::named(&resource.name)).collect();
    if args.balanced_resources == [Resource::Cpu, Resource::Memory] {
        args.balanced_resources.clear();
    }
}

fn inter_pod(given: &InterPod, path: &Path, args: &mut Args, errors: &mut Errors) {
    let weight = given.hard_pod_affinity_weight.unwrap_or(1);
    if !(0..=100).contains(&weight) {
        errors.invalid(&path.child("hardPodAffinityWeight"), weight, "not in valid range [0, 100]");
    }
    args.hard_affinity_weight = HardAffinityWeight(weight.into());
    args.ignore_preferences_of_existing = given.ignore_preferred_terms_of_existing_pods;
}

fn spreading(given: &Spreading, path: &Path, args: &mut Args, errors: &mut Errors) {
    let kind = match given.defaulting_type.as_str() {
        "" => "System",
        kind => kind,
    };
    match kind {
        "List" => {}
        "System" if given.default_constraints.is_empty() => return,
        "System" => {
            errors.invalid_text(&path.child("defaultingType"), kind, "when .defaultConstraints are not empty");
        }
        other => errors.unsupported(&path.child("defaultingType"), other, &["System", "List"]),
    }
    let all = &given.default_constraints;
    for (at, constraint) in all.iter().enumerate() {
        let path = path.child("defaultConstraints").index(at);
        if constraint.max_skew <= 0 {
            errors.invalid(&path.child("maxSkew"), constraint.max_skew, "not in valid range (0, inf)");
        }
        if constraint.topology_key.is_empty() {
            errors.required(&path.child("topologyKey"), "can not be empty");
        }
        match constraint.when_unsatisfiable.as_str() {
            "" => errors.required(&path.child("whenUnsatisfiable"), "can not be empty"),
            action if !ACTIONS.contains(&action) => {
                errors.unsupported(&path.child("whenUnsatisfiable"), action, &ACTIONS);
            }
            _ => {}
        }
        if constraint.label_selector.is_some() {
            let why = "constraint must not define a selector, as they deduced for each pod";
            errors.forbidden(&path.child("labelSelector"), why);
        }
        let others = [
            ("minDomains", constraint.min_domains.is_some()),
            ("nodeAffinityPolicy", constraint.node_affinity_policy.is_some()),
            ("nodeTaintsPolicy", constraint.node_taints_policy.is_some()),
            ("matchLabelKeys", constraint.match_label_keys.is_some()),
        ];
        for (field, _) in others.into_iter().filter(|(_, is_there)| *is_there) {
            errors.forbidden(&path.child(field), "not acted on in default constraints");
        }
        let same = |other: &core::TopologySpreadConstraint| {
            (&other.topology_key, &other.when_unsatisfiable)
                == (&constraint.topology_key, &constraint.when_unsatisfiable)
        };
        if all[..at].iter().any(same) {
            errors.duplicate(&path, &format!("{{{}, {}}}", constraint.topology_key, constraint.when_unsatisfiable));
        }
    }
    let made = all.iter().map(|constraint| DefaultConstraint {
        max_skew: constraint.max_skew.into(),
        key: constraint.topology_key.clone(),
        required: constraint.when_unsatisfiable == "DoNotSchedule",
    });
    args.default_constraints = Some(made.collect());
}

fn affinity(given: Affinity, path: &Path, args: &mut Args, errors: &mut Errors) {
    let Some(added) = given.added_affinity else { return };
    let path = path.child("addedAffinity");
    if let Some(required) = &added.required_during_scheduling_ignored_during_execution {
        let path = path.child("requiredDuringSchedulingIgnoredDuringExecution").child("nodeSelectorTerms");
        for (at, term) in required.node_selector_terms.iter().enumerate() {
            check_term(term, &path.index(at), errors);
        }
        args.added_affinity.required = Some(required.node_selector_terms.iter().map(node_term).collect());
    }
    let preferred = added.preferred_during_scheduling_ignored_during_execution.unwrap_or_default();
    let path = path.child("preferredDuringSchedulingIgnoredDuringExecution");
    for (at, term) in preferred.iter().enumerate() {
        check_term(&term.preference, &path.index(at), errors);
    }
    args.added_affinity.preferred =
        preferred.iter().map(|term| (term.weight.into(), node_term(&term.preference))).collect();
}

fn check_term(term: &core::NodeSelectorTerm, path: &Path, errors: &mut Errors) {
    const OPERATORS: [&str; 6] = ["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"];
    for (at, requirement) in term.match_expressions.iter().flatten().enumerate() {
        let path = path.child("matchExpressions").index(at);
        let values = requirement.values.as_deref().unwrap_or_default();
        let listed = || format!("[{}]", values.join(" "));
        match requirement.operator.as_str() {
            "In" | "NotIn" if values.is_empty() => {
                errors.invalid(&path.child("values"), "[]", "for 'in', 'notin' operators, values set can't be empty");
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                let why = "values set must be empty for exists and does not exist";
                errors.invalid(&path.child("values"), listed(), why);
            }
            "Gt" | "Lt" if values.len() != 1 => {
                let why = "for 'Gt', 'Lt' operators, exactly one value is required";
                errors.invalid(&path.child("values"), listed(), why);
            }
            operator if !OPERATORS.contains(&operator) => {
                errors.unsupported(&path.child("operator"), operator, &OPERATORS);
            }
            _ => {}
        }
    }
}

fn preemption(given: &Preemption, path: &Path, args: &mut Args, errors: &mut Errors) {
    let percentage = given.min_candidate_nodes_percentage.unwrap_or(10);
    let absolute = given.min_candidate_nodes_absolute.unwrap_or(100);
    let (percentage_path, absolute_path) =
        (path.child("minCandidateNodesPercentage"), path.child("minCandidateNodesAbsolute"));
    if !(0..=100).contains(&percentage) {
        errors.invalid(&percentage_path, percentage, "not in valid range [0, 100]");
    }
    if absolute < 0 {
        errors.invalid(&absolute_path, absolute, "not in valid range [0, inf)");
    }
    if percentage == 0 && absolute == 0 {
        errors.invalid(&percentage_path, 0, "cannot be zero at the same time as minCandidateNodesAbsolute");
        errors.invalid(&absolute_path, 0, "cannot be zero at the same time as minCandidateNodesPercentage");
    }
    args.preemption.min_candidate_nodes_percentage = percentage.into();
    args.preemption.min_candidate_nodes_absolute = absolute.into();
}
