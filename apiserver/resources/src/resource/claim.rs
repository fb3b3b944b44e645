//! The spec of a claim: of a ResourceClaim, or of a template.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::{CONFIG_MAX, REQUESTS_MAX, SEPARATOR, bounded, fully_qualified_name, label, raw_object, selectors, unique};
use crate::field::{ErrorList, Path};
use crate::metadata::label_name;
use crate::read::{default_zero_to, get, has, int, items, items_mut, text, texts};
use crate::rules;

const CONSTRAINTS_MAX: usize = 32;
const ALTERNATIVES_MAX: usize = 8;
const TOLERATIONS_MAX: usize = 16;
pub(super) const PARAMETERS_BYTES_MAX: usize = 10 << 10;
const EXACT: &str = "ExactCount";
const EFFECTS: &[&str] = &["NoExecute", "NoSchedule", "None"];

/// The requests of a claim, each with its alternatives.
pub(super) type RequestNames<'a> = BTreeMap<&'a str, BTreeSet<&'a str>>;

pub(super) fn request_names(spec: &Value) -> RequestNames<'_> {
    let requests = items(get(spec, "devices"), "requests").iter().take(REQUESTS_MAX);
    let alternatives = |request| items(request, "firstAvailable").iter().map(|sub| text(sub, "name")).collect();
    requests.map(|request| (text(request, "name"), alternatives(request))).collect()
}

/// Defaults of a request's allocation mode and device count.
pub(super) fn default(spec: &mut Value) {
    let count = |request: &mut Value| {
        default_zero_to(request, "allocationMode", EXACT);
        if text(request, "allocationMode") == EXACT {
            default_zero_to(request, "count", 1);
        }
    };
    let Some(devices) = spec.get_mut("devices") else { return };
    for request in items_mut(devices, "requests") {
        if let Some(exactly) = request.get_mut("exactly").filter(|exactly| exactly.is_object()) {
            count(exactly);
        }
        items_mut(request, "firstAvailable").iter_mut().filter(|sub| sub.is_object()).for_each(count);
    }
}

pub(super) fn validate(errors: &mut ErrorList, spec: &Value, path: &Path<'_>) {
    let (devices, path) = (get(spec, "devices"), path.child("devices"));
    let names = request_names(spec);
    let requests_at = path.child("requests");
    let requests = bounded(errors, devices, "requests", REQUESTS_MAX, &requests_at);
    for (i, given) in requests.iter().enumerate() {
        request(errors, given, &requests_at.index(i));
    }
    unique(errors, requests.iter().map(|request| text(request, "name").to_owned()), &requests_at);
    let constraints_at = path.child("constraints");
    let constraints = bounded(errors, devices, "constraints", CONSTRAINTS_MAX, &constraints_at);
    for (i, constraint) in constraints.iter().enumerate() {
        let at = constraints_at.index(i);
        references(errors, constraint, &names, &at);
        if has(constraint, "matchAttribute") {
            let name = text(constraint, "matchAttribute");
            fully_qualified_name(errors, name, &at.child("matchAttribute"));
        } else if has(constraint, "distinctAttribute") {
            let name = text(constraint, "distinctAttribute");
            fully_qualified_name(errors, name, &at.child("distinctAttribute"));
        } else {
            let why =
                "exactly one of \"matchAttribute\" or \"distinctAttribute\" is required, but multiple fields are set";
            errors.required(&at, why);
        }
    }
    let config_at = path.child("config");
    for (i, given) in bounded(errors, devices, "config", CONFIG_MAX, &config_at).iter().enumerate() {
        let at = config_at.index(i);
        references(errors, given, &names, &at);
        configuration(errors, given, &at);
    }
}

fn request(errors: &mut ErrorList, request: &Value, path: &Path<'_>) {
    label(errors, text(request, "name"), &path.child("name"));
    match (has(request, "exactly"), !items(request, "firstAvailable").is_empty()) {
        (false, false) => errors.required(path, "exactly one of `exactly` or `firstAvailable` is required"),
        (true, true) => {
            let why = "exactly one of `exactly` or `firstAvailable` is required, but multiple fields are set";
            errors.invalid(path, Value::Null, why);
        }
        (true, false) => exactly(errors, get(request, "exactly"), &path.child("exactly")),
        (false, true) => {
            let list_at = path.child("firstAvailable");
            let list = bounded(errors, request, "firstAvailable", ALTERNATIVES_MAX, &list_at);
            for (i, sub) in list.iter().enumerate() {
                let at = list_at.index(i);
                label(errors, text(sub, "name"), &at.child("name"));
                exactly(errors, sub, &at);
            }
            unique(errors, list.iter().map(|sub| text(sub, "name").to_owned()), &list_at);
        }
    }
}

fn exactly(errors: &mut ErrorList, request: &Value, path: &Path<'_>) {
    let (class, class_at) = (text(request, "deviceClassName"), path.child("deviceClassName"));
    if class.is_empty() {
        errors.required(&class_at, "");
    } else {
        errors.invalid_each(&class_at, class, rules::dns_subdomain(class));
    }
    selectors::validate(errors, request, path);
    let (count, count_at) = (int(request, "count").unwrap_or(0), path.child("count"));
    match text(request, "allocationMode") {
        "All" if count != 0 => {
            errors.invalid(&count_at, count, "must not be specified when allocationMode is 'All'");
        }
        "All" => {}
        EXACT if count <= 0 => errors.invalid(&count_at, count, "must be greater than zero"),
        EXACT => {}
        other => errors.not_supported(&path.child("allocationMode"), other, &["All", EXACT]),
    }
    let list_at = path.child("tolerations");
    for (i, given) in bounded(errors, request, "tolerations", TOLERATIONS_MAX, &list_at).iter().enumerate() {
        toleration(errors, given, &list_at.index(i));
    }
}

fn toleration(errors: &mut ErrorList, toleration: &Value, path: &Path<'_>) {
    let (key, value, value_at) = (text(toleration, "key"), text(toleration, "value"), path.child("value"));
    if !key.is_empty() {
        label_name(errors, key, &path.child("key"));
    }
    match text(toleration, "operator") {
        "Exists" if !value.is_empty() => errors.invalid(&value_at, value, "must be empty for operator `Exists`"),
        "Exists" => {}
        "Equal" => errors.invalid_each(&value_at, value, rules::label_value(value)),
        "" => errors.required(&path.child("operator"), ""),
        other => errors.not_supported(&path.child("operator"), other, &["Equal", "Exists"]),
    }
    effect(errors, text(toleration, "effect"), false, &path.child("effect"));
}

pub(super) fn effect(errors: &mut ErrorList, effect: &str, required: bool, path: &Path<'_>) {
    if effect.is_empty() {
        if required {
            errors.required(path, "");
        }
    } else if !EFFECTS.contains(&effect) {
        errors.not_supported(path, effect, EFFECTS);
    }
}

/// References of a constraint or configuration to requests.
pub(super) fn references(errors: &mut ErrorList, of: &Value, names: &RequestNames<'_>, path: &Path<'_>) {
    let list_at = path.child("requests");
    let list = bounded(errors, of, "requests", REQUESTS_MAX, &list_at);
    for (i, name) in list.iter().enumerate() {
        reference(errors, name.as_str().unwrap_or(""), names, &list_at.index(i));
    }
    if !list.is_empty() {
        unique(errors, texts(of, "requests").map(str::to_owned), &list_at);
    }
}

pub(super) fn reference(errors: &mut ErrorList, name: &str, names: &RequestNames<'_>, path: &Path<'_>) {
    const WHY: &str =
        "must be the name of a request in the claim or the name of a request and a subrequest separated by '/'";
    let parts: Vec<&str> = name.splitn(3, SEPARATOR).collect();
    if parts.len() > 2 {
        return errors.invalid(path, name, WHY);
    }
    for part in &parts {
        label(errors, part, path);
    }
    let alternatives = names.get(parts[0]);
    let known = alternatives.is_some_and(|alternatives| parts.get(1).is_none_or(|sub| alternatives.contains(sub)));
    if !known {
        errors.invalid(path, name, WHY);
    }
}

/// Parameters for a driver.
pub(super) fn configuration(errors: &mut ErrorList, of: &Value, path: &Path<'_>) {
    let (opaque, path) = (get(of, "opaque"), path.child("opaque"));
    if opaque.is_null() {
        return errors.required(&path, "");
    }
    crate::storage::driver_name(errors, text(opaque, "driver"), &path.child("driver"));
    raw_object(errors, get(opaque, "parameters"), PARAMETERS_BYTES_MAX, &path.child("parameters"));
}
