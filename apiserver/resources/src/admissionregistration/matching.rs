//! Request matching of webhooks and policies: rules with operations, and match conditions.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::choices::optional_choice;
use crate::field::{ErrorList, Path};
use crate::read::{default_to, get, items, items_mut, text, texts};
use crate::rules;

const OPERATIONS: &[&str] = &["*", "CONNECT", "CREATE", "DELETE", "UPDATE"];
const SCOPES: &[&str] = &["*", "Cluster", "Namespaced"];
const CONDITIONS_MAX: usize = 64;

/// Defaults of rules.
pub(crate) fn default_rules(of: &mut Value, key: &str) {
    for rule in items_mut(of, key) {
        default_to(rule, "scope", "*");
    }
}

/// Validates rules with operations; `subresources` allows subresources in `resources`.
pub(crate) fn validate_rules(errors: &mut ErrorList, of: &Value, key: &str, subresources: bool, path: &Path<'_>) {
    let list = path.child(key);
    for (index, rule) in items(of, key).iter().enumerate() {
        validate_rule(errors, rule, subresources, &list.index(index));
    }
}

fn validate_rule(errors: &mut ErrorList, rule: &Value, subresources: bool, path: &Path<'_>) {
    let operations = path.child("operations");
    one_or_all(errors, rule, "operations", "if '*' is present, must not specify other operations", path);
    for (index, operation) in texts(rule, "operations").enumerate() {
        if !OPERATIONS.contains(&operation) {
            errors.not_supported(&operations.index(index), operation, OPERATIONS);
        }
    }
    one_or_all(errors, rule, "apiGroups", "if '*' is present, must not specify other API groups", path);
    one_or_all(errors, rule, "apiVersions", "if '*' is present, must not specify other API versions", path);
    let versions = path.child("apiVersions");
    for (index, version) in texts(rule, "apiVersions").enumerate() {
        if version.is_empty() {
            errors.required(&versions.index(index), "");
        }
    }
    match subresources {
        true => resources(errors, rule, &path.child("resources")),
        false => resources_alone(errors, rule, path),
    }
    optional_choice(errors, rule, "scope", SCOPES, path);
}

/// A list that is not empty, and whose only item is `*` if it has one.
fn one_or_all(errors: &mut ErrorList, rule: &Value, key: &str, why: &str, path: &Path<'_>) {
    let list = items(rule, key);
    if list.is_empty() {
        errors.required(&path.child(key), "");
    }
    if list.len() > 1 && list.iter().any(|item| item == "*") {
        errors.invalid(&path.child(key), get(rule, key).clone(), why);
    }
}

fn resources_alone(errors: &mut ErrorList, rule: &Value, path: &Path<'_>) {
    let list = path.child("resources");
    if items(rule, "resources").is_empty() {
        errors.required(&list, "");
    }
    for (index, resource) in texts(rule, "resources").enumerate() {
        if resource.is_empty() {
            errors.required(&list.index(index), "");
        }
        if resource.contains('/') {
            errors.invalid(&list.index(index), resource, "must not specify subresources");
        }
    }
    let all = items(rule, "resources");
    if all.len() > 1 && all.iter().any(|resource| resource == "*") {
        errors.invalid(&list, get(rule, "resources").clone(), "if '*' is present, must not specify other resources");
    }
}

fn resources(errors: &mut ErrorList, rule: &Value, path: &Path<'_>) {
    let all = items(rule, "resources");
    if all.is_empty() {
        errors.required(path, "");
    }
    let (mut whole, mut every) = (BTreeSet::new(), BTreeSet::new());
    let mut plain = false;
    for (index, resource) in texts(rule, "resources").enumerate() {
        let at = path.index(index);
        if resource.is_empty() {
            errors.required(&at, "");
            continue;
        }
        let Some((of, sub)) = resource.split_once('/') else {
            plain = resource != "*";
            continue;
        };
        if whole.contains(of) {
            errors.invalid(&at, resource, &format!("if '{of}/*' is present, must not specify {resource}"));
        }
        if every.contains(sub) {
            errors.invalid(&at, resource, &format!("if '*/{sub}' is present, must not specify {resource}"));
        }
        if sub == "*" {
            whole.insert(of);
        }
        if of == "*" {
            every.insert(sub);
        }
    }
    let holds = |resource: &str| all.iter().any(|one| one == resource);
    if all.len() > 1 && holds("*/*") {
        let why = "if '*/*' is present, must not specify other resources";
        errors.invalid(path, get(rule, "resources").clone(), why);
    }
    if holds("*") && plain {
        let why = "if '*' is present, must not specify other resources without subresources";
        errors.invalid(path, get(rule, "resources").clone(), why);
    }
}

/// Validates match conditions; `check` validates each expression.
pub(crate) fn validate_conditions(
    errors: &mut ErrorList,
    of: &Value,
    path: &Path<'_>,
    check: impl Fn(&mut ErrorList, &str, &Path<'_>),
) {
    let (list, conditions) = (path.child("matchConditions"), items(of, "matchConditions"));
    if conditions.len() > CONDITIONS_MAX {
        errors.add(|| crate::field::FieldError::too_many(&list, conditions.len(), CONDITIONS_MAX));
    }
    let mut names = BTreeSet::new();
    for (index, condition) in conditions.iter().enumerate() {
        let at = list.index(index);
        match text(condition, "expression").trim() {
            "" => errors.required(&at.child("expression"), ""),
            expression => check(errors, expression, &at.child("expression")),
        }
        let name = text(condition, "name");
        if name.is_empty() {
            errors.required(&at.child("name"), "");
            continue;
        }
        errors.invalid_each(&at.child("name"), name, rules::label_key(name));
        if !names.insert(name) {
            errors.duplicate(&at.child("name"), name);
        }
    }
}
