//! Scheduling constraints: node selectors, affinities, tolerations, topology spread, gates.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::choices::{choice, optional_choice};
use crate::field::{ErrorList, Path};
use crate::metadata::{label_name, label_selector};
use crate::read::{entries, get, has, int, items, text, texts};
use crate::rules;

const EFFECTS: &[&str] = &["NoSchedule", "PreferNoSchedule", "NoExecute"];
const POSITIVE: &str = "must be greater than zero";

/// Node affinity, pod affinity and anti-affinity.
pub(super) fn affinity(errors: &mut ErrorList, affinity: &Value, path: &Path<'_>) {
    node_affinity(errors, get(affinity, "nodeAffinity"), &path.child("nodeAffinity"));
    for key in ["podAffinity", "podAntiAffinity"] {
        let at = path.child(key);
        let part = get(affinity, key);
        let required = at.child("requiredDuringSchedulingIgnoredDuringExecution");
        for (i, term) in items(part, "requiredDuringSchedulingIgnoredDuringExecution").iter().enumerate() {
            affinity_term(errors, term, &required.index(i));
        }
        let preferred = at.child("preferredDuringSchedulingIgnoredDuringExecution");
        for (i, term) in items(part, "preferredDuringSchedulingIgnoredDuringExecution").iter().enumerate() {
            let one = preferred.index(i);
            weight(errors, term, &one);
            affinity_term(errors, get(term, "podAffinityTerm"), &one.child("podAffinityTerm"));
        }
    }
}

fn weight(errors: &mut ErrorList, term: &Value, path: &Path<'_>) {
    let weight = int(term, "weight").unwrap_or(0);
    if !(1..=100).contains(&weight) {
        errors.invalid(&path.child("weight"), weight, "must be in the range 1-100");
    }
}

fn node_affinity(errors: &mut ErrorList, affinity: &Value, path: &Path<'_>) {
    let required = get(affinity, "requiredDuringSchedulingIgnoredDuringExecution");
    if !required.is_null() {
        node_selector(errors, required, &path.child("requiredDuringSchedulingIgnoredDuringExecution"));
    }
    let at = path.child("preferredDuringSchedulingIgnoredDuringExecution");
    for (i, term) in items(affinity, "preferredDuringSchedulingIgnoredDuringExecution").iter().enumerate() {
        let one = at.index(i);
        weight(errors, term, &one);
        selector_term(errors, get(term, "preference"), &one.child("preference"), false);
    }
}

/// A node selector: its terms are ORed.
pub(crate) fn node_selector(errors: &mut ErrorList, selector: &Value, path: &Path<'_>) {
    let at = path.child("nodeSelectorTerms");
    let terms = items(selector, "nodeSelectorTerms");
    if terms.is_empty() {
        errors.required(&at, "must have at least one node selector term");
    }
    for (i, term) in terms.iter().enumerate() {
        selector_term(errors, term, &at.index(i), true);
    }
}

fn selector_term(errors: &mut ErrorList, term: &Value, path: &Path<'_>, check_values: bool) {
    let at = path.child("matchExpressions");
    for (i, requirement) in items(term, "matchExpressions").iter().enumerate() {
        node_requirement(errors, requirement, &at.index(i), check_values);
    }
    let at = path.child("matchFields");
    for (i, requirement) in items(term, "matchFields").iter().enumerate() {
        let one = at.index(i);
        let values_at = one.child("values");
        match text(requirement, "operator") {
            "In" | "NotIn" => {
                if items(requirement, "values").len() != 1 {
                    let why = "must be only one value when `operator` is 'In' or 'NotIn' for node field selector";
                    errors.required(&values_at, why);
                }
            }
            other => errors.invalid(&one.child("operator"), other, "not a valid selector operator"),
        }
        let key = text(requirement, "key");
        if key == "metadata.name" {
            for (j, value) in texts(requirement, "values").enumerate() {
                errors.invalid_each(&values_at.index(j), value, rules::dns_subdomain(value));
            }
        } else {
            errors.invalid(&one.child("key"), key, "not a valid field selector key");
        }
    }
}

fn node_requirement(errors: &mut ErrorList, requirement: &Value, path: &Path<'_>, check_values: bool) {
    let values_at = path.child("values");
    let values = items(requirement, "values");
    match text(requirement, "operator") {
        "In" | "NotIn" => {
            if values.is_empty() {
                errors.required(&values_at, "must be specified when `operator` is 'In' or 'NotIn'");
            }
        }
        "Exists" | "DoesNotExist" => {
            if !values.is_empty() {
                errors.forbidden(&values_at, "may not be specified when `operator` is 'Exists' or 'DoesNotExist'");
            }
        }
        "Gt" | "Lt" => {
            if values.len() != 1 {
                errors.required(&values_at, "must be specified single value when `operator` is 'Lt' or 'Gt'");
            }
        }
        other => errors.invalid(&path.child("operator"), other, "not a valid selector operator"),
    }
    label_name(errors, text(requirement, "key"), &path.child("key"));
    if check_values {
        for (i, value) in texts(requirement, "values").enumerate() {
            errors.invalid_each(&values_at.index(i), value, rules::label_value(value));
        }
    }
}

fn affinity_term(errors: &mut ErrorList, term: &Value, path: &Path<'_>) {
    label_selector(errors, get(term, "labelSelector"), &path.child("labelSelector"));
    label_selector(errors, get(term, "namespaceSelector"), &path.child("namespaceSelector"));
    for namespace in texts(term, "namespaces") {
        errors.invalid_each(&path.child("namespace"), namespace, rules::dns_label(namespace));
    }
    match_label_keys(errors, term, path);
    let key = text(term, "topologyKey");
    let at = path.child("topologyKey");
    if key.is_empty() {
        errors.required(&at, "can not be empty");
    }
    label_name(errors, key, &at);
}

fn match_label_keys(errors: &mut ErrorList, term: &Value, path: &Path<'_>) {
    let selector = get(term, "labelSelector");
    for key in ["matchLabelKeys", "mismatchLabelKeys"] {
        let keys = items(term, key);
        let at = path.child(key);
        if keys.is_empty() {
            continue;
        }
        if selector.is_null() {
            errors.forbidden(&at, "must not be specified when labelSelector is not set");
            continue;
        }
        for (i, key) in texts(term, key).enumerate() {
            label_name(errors, key, &at.index(i));
        }
    }
    let keys: Vec<&str> = texts(term, "matchLabelKeys").collect();
    if !selector.is_null() {
        let places: BTreeMap<&str, usize> = keys.iter().enumerate().map(|(i, key)| (*key, i)).collect();
        let mut seen: BTreeSet<&str> = entries(selector, "matchLabels").map(|(key, _)| key.as_str()).collect();
        for expression in items(selector, "matchExpressions") {
            let key = text(expression, "key");
            if let Some(&i) = places.get(key)
                && seen.contains(key)
            {
                errors.invalid(&path.index(i), key, "exists in both matchLabelKeys and labelSelector");
            }
            seen.insert(key);
        }
    }
    let mismatched: BTreeSet<&str> = texts(term, "mismatchLabelKeys").collect();
    let at = path.child("matchLabelKeys");
    for (i, key) in keys.iter().enumerate() {
        if mismatched.contains(key) {
            errors.invalid(&at.index(i), *key, "exists in both matchLabelKeys and mismatchLabelKeys");
        }
    }
}

/// Adds the requirements of `matchLabelKeys` and `mismatchLabelKeys` to the label selectors of a new pod.
pub(super) fn apply_label_keys(pod: &mut Value) {
    let labels = get(get(pod, "metadata"), "labels").clone();
    let Some(spec) = pod.get_mut("spec") else { return };
    for kind in ["podAffinity", "podAntiAffinity"] {
        let Some(part) = spec.get_mut("affinity").and_then(|a| a.get_mut(kind)) else { continue };
        for term in crate::read::items_mut(part, "preferredDuringSchedulingIgnoredDuringExecution") {
            if let Some(term) = term.get_mut("podAffinityTerm") {
                extend_selector(term, &labels);
            }
        }
        for term in crate::read::items_mut(part, "requiredDuringSchedulingIgnoredDuringExecution") {
            extend_selector(term, &labels);
        }
    }
    for constraint in crate::read::items_mut(spec, "topologySpreadConstraints") {
        extend_selector(constraint, &labels);
    }
}

fn extend_selector(term: &mut Value, labels: &Value) {
    let mut added = Vec::new();
    for (keys, operator) in [("matchLabelKeys", "In"), ("mismatchLabelKeys", "NotIn")] {
        for key in texts(term, keys) {
            if let Some(value) = labels.get(key) {
                added.push(serde_json::json!({"key": key, "operator": operator, "values": [value]}));
            }
        }
    }
    let Some(selector) = term.get_mut("labelSelector").filter(|s| s.is_object() && !added.is_empty()) else { return };
    match selector.get_mut("matchExpressions").and_then(Value::as_array_mut) {
        Some(list) => list.extend(added),
        None => crate::read::put(selector, "matchExpressions", Value::Array(added)),
    }
}

pub(crate) fn taint_effect(errors: &mut ErrorList, effect: &str, path: &Path<'_>) {
    if effect.is_empty() {
        errors.required(path, "");
    } else if !EFFECTS.contains(&effect) {
        errors.not_supported(path, effect, EFFECTS);
    }
}

/// Tolerations of a pod or of a RuntimeClass.
pub(crate) fn tolerations(errors: &mut ErrorList, tolerations: &[Value], path: &Path<'_>) {
    for (i, toleration) in tolerations.iter().enumerate() {
        let at = path.index(i);
        let (key, operator) = (text(toleration, "key"), text(toleration, "operator"));
        let (value, effect) = (text(toleration, "value"), text(toleration, "effect"));
        let operator_at = at.child("operator");
        if !key.is_empty() {
            label_name(errors, key, &at.child("key"));
        } else if operator != "Exists" {
            let why = "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
            errors.invalid(&operator_at, operator, why);
        }
        if has(toleration, "tolerationSeconds") && effect != "NoExecute" {
            errors.invalid(&at.child("effect"), effect, "effect must be 'NoExecute' when `tolerationSeconds` is set");
        }
        match operator {
            "Equal" | "" => {
                let wrong = rules::label_value(value);
                if !wrong.is_empty() {
                    errors.invalid(&operator_at, value, &wrong.join(";"));
                }
            }
            "Exists" => {
                if !value.is_empty() {
                    errors.invalid(&operator_at, value, "value must be empty when `operator` is 'Exists'");
                }
            }
            "Lt" | "Gt" => errors.not_supported(&operator_at, operator, &["Equal", "Exists", "Lt", "Gt"]),
            other => errors.not_supported(&operator_at, other, &["Equal", "Exists"]),
        }
        if !effect.is_empty() {
            taint_effect(errors, effect, &at.child("effect"));
        }
    }
}

pub(super) fn spread(errors: &mut ErrorList, constraints: &[Value], path: &Path<'_>) {
    // The last occurrence of each pair reports all earlier ones.
    let pair = |constraint| (text(constraint, "topologyKey"), text(constraint, "whenUnsatisfiable"));
    let last: BTreeMap<_, _> = constraints.iter().enumerate().map(|(i, constraint)| (pair(constraint), i)).collect();
    for (i, constraint) in constraints.iter().enumerate() {
        let at = path.index(i);
        let skew = int(constraint, "maxSkew").unwrap_or(0);
        if skew <= 0 {
            errors.invalid(&at.child("maxSkew"), skew, POSITIVE);
        }
        let (key, action) = (text(constraint, "topologyKey"), text(constraint, "whenUnsatisfiable"));
        if key.is_empty() {
            errors.required(&at.child("topologyKey"), "can not be empty");
        }
        choice(errors, constraint, "whenUnsatisfiable", &["DoNotSchedule", "ScheduleAnyway"], &at);
        if last.get(&(key, action)).is_some_and(|last| *last > i) {
            errors.duplicate(&at.child("{topologyKey, whenUnsatisfiable}"), format!("{{{key}, {action}}}"));
        }
        if let Some(domains) = int(constraint, "minDomains") {
            let domains_at = at.child("minDomains");
            if domains <= 0 {
                errors.invalid(&domains_at, domains, POSITIVE);
            }
            if action != "DoNotSchedule" {
                let why = format!("can only use minDomains if whenUnsatisfiable=DoNotSchedule, not {action}");
                errors.invalid(&domains_at, domains, &why);
            }
        }
        for policy in ["nodeAffinityPolicy", "nodeTaintsPolicy"] {
            optional_choice(errors, constraint, policy, &["Honor", "Ignore"], &at);
        }
        match_label_keys(errors, constraint, &at);
        label_selector(errors, get(constraint, "labelSelector"), &at.child("labelSelector"));
    }
}

pub(super) fn gates(errors: &mut ErrorList, gates: &[Value], path: &Path<'_>) {
    let mut seen = BTreeSet::new();
    for (i, gate) in gates.iter().enumerate() {
        let at = path.index(i);
        let name = text(gate, "name");
        errors.invalid_each(&at, name, rules::label_key(name));
        if !seen.insert(name) {
            errors.duplicate(&at, name);
        }
    }
}
