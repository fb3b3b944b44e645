//! Validation of a HorizontalPodAutoscaler in its newer version.

use machinery_api::GroupVersion;
use serde_json::Value;

use crate::choices::{choice, optional_choice};
use crate::core::pods::resources::container_resource_name;
use crate::core::workloads::SPEC;
use crate::field::{ErrorList, NOT_NEGATIVE, Path};
use crate::metadata::quantity;
use crate::read::{get, has, int, items, text};
use crate::rules;

const PERIOD_SECONDS_MAX: i64 = 1800;
const WINDOW_SECONDS_MAX: i64 = 3600;
const KINDS: &[&str] = &["ContainerResource", "External", "Object", "Pods", "Resource"];
/// In upstream's order of validation.
const SOURCES: [(&str, &str); 5] = [
    ("object", "Object"),
    ("external", "External"),
    ("pods", "Pods"),
    ("resource", "Resource"),
    ("containerResource", "ContainerResource"),
];

/// Strictness of the check of a reference's `apiVersion`.
#[derive(Clone, Copy, PartialEq, Eq)]
enum VersionCheck {
    /// It must have a group.
    Grouped,
    /// It may be of the core group.
    Any,
    /// It is unchanged and not checked.
    Unchanged,
}

fn version(of: &Value, strictness: VersionCheck) -> Result<(), String> {
    if strictness == VersionCheck::Unchanged {
        return Ok(());
    }
    let parsed = GroupVersion::parse_checked(text(of, "apiVersion"))?;
    if strictness == VersionCheck::Grouped && parsed.group.is_empty() {
        return Err("apiVersion must specify API group".into());
    }
    Ok(())
}

fn reference(errors: &mut ErrorList, of: &Value, strictness: VersionCheck, path: &Path<'_>) {
    for key in ["kind", "name"] {
        match text(of, key) {
            "" => errors.required(&path.child(key), ""),
            name => errors.invalid_each(&path.child(key), name, rules::path_segment(name, false)),
        }
    }
    if let Err(why) = version(of, strictness) {
        errors.invalid(&path.child("apiVersion"), text(of, "apiVersion"), &why);
    }
}

/// Validates the spec; `old` is the stored one, `scales_to_zero` the gate `HPAScaleToZero`.
pub(super) fn spec(errors: &mut ErrorList, spec: &Value, old: Option<&Value>, scales_to_zero: bool) {
    let (least, most) = (int(spec, "minReplicas"), int(spec, "maxReplicas").unwrap_or(0));
    // Only these metrics have a value without a pod. Without one, the result is that of a server with the gate off.
    let measured = items(spec, "metrics").iter().any(|one| matches!(text(one, "type"), "Object" | "External"));
    let bound =
        if (scales_to_zero && measured) || old.is_some_and(|old| int(old, "minReplicas") == Some(0)) { 0 } else { 1 };
    if let Some(least) = least.filter(|least| *least < bound) {
        let why = format!("must be greater than or equal to {bound}");
        errors.invalid(&SPEC.child("minReplicas"), least, &why);
    }
    let most_at = SPEC.child("maxReplicas");
    if most == 0 {
        errors.required(&most_at, "must be set and greater than 0");
    } else if most < 0 {
        errors.invalid(&most_at, most, "must be greater than or equal to 1");
    }
    if least.is_some_and(|least| most < least) {
        errors.invalid(&most_at, most, "must be greater than or equal to `minReplicas`");
    }
    let (goal, was) = (get(spec, "scaleTargetRef"), old.map(|old| get(old, "scaleTargetRef")));
    let same = |was: &Value| ["apiVersion", "kind"].iter().all(|key| text(was, key) == text(goal, key));
    let strictness = match was {
        Some(was) if same(was) => VersionCheck::Unchanged,
        _ if text(goal, "kind") == "ReplicationController" => VersionCheck::Any,
        _ => VersionCheck::Grouped,
    };
    reference(errors, goal, strictness, &SPEC.child("scaleTargetRef"));
    let was_wrong = old.is_some_and(|old| {
        let mut objects = items(old, "metrics").iter().filter(|metric| text(metric, "type") == "Object");
        objects.any(|one| {
            has(one, "object") && version(get(get(one, "object"), "describedObject"), VersionCheck::Any).is_err()
        })
    });
    metrics(errors, spec, least, if was_wrong { VersionCheck::Unchanged } else { VersionCheck::Any });
    let behavior_at = SPEC.child("behavior");
    for key in ["scaleUp", "scaleDown"] {
        let rules = get(get(spec, "behavior"), key);
        if !rules.is_null() {
            scaling(errors, rules, &behavior_at.child(key));
        }
    }
}

fn metrics(errors: &mut ErrorList, spec: &Value, least: Option<i64>, strictness: VersionCheck) {
    let at = SPEC.child("metrics");
    let list = items(spec, "metrics");
    for (i, one) in list.iter().enumerate() {
        metric(errors, one, strictness, &at.index(i));
    }
    if least == Some(0) && !list.iter().any(|one| matches!(text(one, "type"), "Object" | "External")) {
        let why = "must specify at least one Object or External metric to support scaling to zero replicas";
        errors.forbidden(&at, why);
    }
}

fn metric(errors: &mut ErrorList, metric: &Value, strictness: VersionCheck, at: &Path<'_>) {
    let kind = text(metric, "type");
    let kind_at = at.child("type");
    if kind.is_empty() {
        errors.required(&kind_at, "must specify a metric source type");
    }
    if !KINDS.contains(&kind) {
        errors.not_supported(&kind_at, kind, KINDS);
    }
    let present: Vec<&str> = SOURCES.iter().map(|(key, _)| *key).filter(|key| has(metric, key)).collect();
    if let Some(first) = present.first() {
        source(errors, first, get(metric, first), strictness, &at.child(first));
    }
    let expected = SOURCES.iter().find(|(_, named)| *named == kind).map(|(key, _)| *key);
    match expected {
        Some(expected) if !has(metric, expected) => {
            errors.required(&at.child(expected), "must populate information for the given metric source");
        }
        Some(_) => {}
        None => errors.not_supported(&kind_at, kind, KINDS),
    }
    if present.len() != 1 {
        let mut others: Vec<&str> = present.into_iter().filter(|key| Some(*key) != expected).collect();
        others.sort_unstable();
        for key in others {
            errors.forbidden(&at.child(key), "must populate the given metric source only");
        }
    }
}

fn source(errors: &mut ErrorList, key: &str, source: &Value, strictness: VersionCheck, at: &Path<'_>) {
    let target_at = at.child("target");
    let goal = get(source, "target");
    let (value_at, average_at) = (target_at.child("value"), target_at.child("averageValue"));
    let (value, average, percent) = (has(goal, "value"), has(goal, "averageValue"), has(goal, "averageUtilization"));
    match key {
        "object" => {
            reference(errors, get(source, "describedObject"), strictness, &at.child("describedObject"));
            identifier(errors, get(source, "metric"), &at.child("metric"));
            target(errors, goal, &target_at);
            if !value && !average {
                errors.required(&average_at, "must set either a target value or averageValue");
            }
        }
        "external" => {
            identifier(errors, get(source, "metric"), &at.child("metric"));
            target(errors, goal, &target_at);
            if !value && !average {
                errors.required(&average_at, "must set either a target value for metric or a per-pod target");
            }
            if value && average {
                errors.forbidden(&value_at, "may not set both a target value for metric and a per-pod target");
            }
        }
        "pods" => {
            identifier(errors, get(source, "metric"), &at.child("metric"));
            target(errors, goal, &target_at);
            if !average {
                errors.required(&average_at, "must specify a positive target averageValue");
            }
        }
        _ => {
            let container = key == "containerResource";
            match text(source, "name") {
                "" => errors.required(&at.child("name"), "must specify a resource name"),
                name if container => container_resource_name(errors, name, &at.child("name")),
                _ => {}
            }
            match text(source, "container") {
                _ if !container => {}
                "" => errors.required(&at.child("container"), "must specify a container"),
                name => errors.invalid_each(&at.child("container"), name, rules::dns_label(name)),
            }
            target(errors, goal, &target_at);
            if !percent && !average {
                let why = "must set either a target raw value or a target utilization";
                errors.required(&target_at.child("averageUtilization"), why);
            }
            if percent && average {
                errors.forbidden(&average_at, "may not set both a target raw value and a target utilization");
            }
        }
    }
}

fn identifier(errors: &mut ErrorList, metric: &Value, at: &Path<'_>) {
    match text(metric, "name") {
        "" => errors.required(&at.child("name"), "must specify a metric name"),
        name => errors.invalid_each(&at.child("name"), name, rules::path_segment(name, false)),
    }
}

fn target(errors: &mut ErrorList, target: &Value, at: &Path<'_>) {
    let (kind, kind_at) = (text(target, "type"), at.child("type"));
    if kind.is_empty() {
        errors.required(&kind_at, "must specify a metric target type");
    }
    if !["Utilization", "Value", "AverageValue"].contains(&kind) {
        errors.invalid(&kind_at, kind, "must be either Utilization, Value, or AverageValue");
    }
    for key in ["value", "averageValue"] {
        if let Some(amount) = quantity(get(target, key)).filter(|amount| amount.sign() != 1) {
            errors.invalid(&at.child(key), amount.to_string(), "must be positive");
        }
    }
    if let Some(percent) = int(target, "averageUtilization").filter(|percent| *percent < 1) {
        errors.invalid(&at.child("averageUtilization"), percent, "must be greater than 0");
    }
}

fn scaling(errors: &mut ErrorList, rules: &Value, at: &Path<'_>) {
    let window_at = at.child("stabilizationWindowSeconds");
    match int(rules, "stabilizationWindowSeconds") {
        Some(window) if window < 0 => errors.invalid(&window_at, window, "must be greater than or equal to zero"),
        Some(window) if window > WINDOW_SECONDS_MAX => {
            errors.invalid(&window_at, window, &format!("must be less than or equal to {WINDOW_SECONDS_MAX}"));
        }
        _ => {}
    }
    const SELECT: &[&str] = &["Disabled", "Max", "Min"];
    optional_choice(errors, rules, "selectPolicy", SELECT, at);
    let policies_at = at.child("policies");
    if items(rules, "policies").is_empty() {
        errors.required(&policies_at, "must specify at least one Policy");
    }
    for (i, one) in items(rules, "policies").iter().enumerate() {
        policy(errors, one, &policies_at.index(i));
    }
    if let Some(tolerance) = quantity(get(rules, "tolerance")).filter(|amount| amount.sign() < 0) {
        errors.invalid(&at.child("tolerance"), tolerance.to_string(), NOT_NEGATIVE);
    }
}

fn policy(errors: &mut ErrorList, policy: &Value, at: &Path<'_>) {
    choice(errors, policy, "type", &["Percent", "Pods"], at);
    let (value, period) = (int(policy, "value").unwrap_or(0), int(policy, "periodSeconds").unwrap_or(0));
    if value <= 0 {
        errors.invalid(&at.child("value"), value, "must be greater than zero");
    }
    let period_at = at.child("periodSeconds");
    if period <= 0 {
        errors.invalid(&period_at, period, "must be greater than zero");
    }
    if period > PERIOD_SECONDS_MAX {
        errors.invalid(&period_at, period, &format!("must be less than or equal to {PERIOD_SECONDS_MAX}"));
    }
}
