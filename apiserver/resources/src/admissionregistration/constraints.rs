//! Rules that policies and their bindings share: match constraints, match conditions and parameters.

use std::collections::BTreeSet;

use jiff::Timestamp;
use machinery_api::GroupVersion;
use serde_json::{Value, json};

use super::expressions::{BOOL, Compiler};
use super::matching;
use crate::cells::{AGE, NAME, age, column, name};
use crate::choices::{present_choice, required_choice};
use crate::field::{ErrorList, Path};
use crate::metadata::label_selector;
use crate::read::{default_to, get, has, items, object_mut, text, texts};
use crate::{Column, rules};

/// Defaults of `matchConstraints` and `matchResources`.
pub(super) fn default_match(of: &mut Value, key: &str) {
    if !has(of, key) {
        return;
    }
    let matching = object_mut(of, key);
    default_to(matching, "matchPolicy", "Equivalent");
    for selector in ["namespaceSelector", "objectSelector"] {
        default_to(matching, selector, json!({}));
    }
    matching::default_rules(matching, "resourceRules");
    matching::default_rules(matching, "excludeResourceRules");
}

pub(super) fn validate_match(errors: &mut ErrorList, matching: &Value, path: &Path<'_>) {
    if matching.is_null() {
        return;
    }
    present_choice(errors, matching, "matchPolicy", &["Equivalent", "Exact"], path);
    for selector in ["namespaceSelector", "objectSelector"] {
        label_selector(errors, get(matching, selector), &path.child(selector));
    }
    for key in ["resourceRules", "excludeResourceRules"] {
        let list = path.child(key);
        for (index, rule) in items(matching, key).iter().enumerate() {
            resource_names(errors, rule, &list.index(index));
        }
        matching::validate_rules(errors, matching, key, true, path);
    }
}

fn resource_names(errors: &mut ErrorList, rule: &Value, path: &Path<'_>) {
    let list = path.child("resourceNames");
    let mut seen = BTreeSet::new();
    for (index, name) in texts(rule, "resourceNames").enumerate() {
        errors.invalid_each(&list.index(index), name, rules::path_segment(name, false));
        if !seen.insert(name) {
            errors.duplicate(&list.index(index), name);
        }
    }
}

/// Operations whose object a mutation can change: a delete has no object to change.
const MUTABLE: &[&str] = &["*", "CONNECT", "CREATE", "UPDATE"];

pub(super) fn validate_mutable(errors: &mut ErrorList, matching: &Value, path: &Path<'_>) {
    let rules = path.child("resourceRules");
    let at = rules.child("operations");
    for rule in items(matching, "resourceRules") {
        for operation in texts(rule, "operations").filter(|operation| !MUTABLE.contains(operation)) {
            errors.not_supported(&at, operation, MUTABLE);
        }
    }
}

/// `matchConstraints`, which must have at least one rule.
pub(super) fn validate_constraints(errors: &mut ErrorList, spec: &Value, path: &Path<'_>) {
    let at = path.child("matchConstraints");
    if !has(spec, "matchConstraints") {
        return errors.required(&at, "");
    }
    let matching = get(spec, "matchConstraints");
    validate_match(errors, matching, &at);
    if items(matching, "resourceRules").is_empty() {
        errors.required(&at.child("resourceRules"), "");
    }
}

pub(super) fn validate_param_kind(errors: &mut ErrorList, spec: &Value, path: &Path<'_>) {
    if !has(spec, "paramKind") {
        return;
    }
    let (kind, at) = (get(spec, "paramKind"), path.child("paramKind"));
    let (version, at_version) = (text(kind, "apiVersion"), at.child("apiVersion"));
    match GroupVersion::parse_checked(version) {
        Ok(_) if version.is_empty() => errors.required(&at_version, ""),
        Ok(GroupVersion { group, version: of_group }) => {
            if !group.is_empty() {
                errors.invalid_each(&at_version, group, joined(rules::dns_subdomain(group)));
            }
            match of_group.is_empty() {
                true => errors.invalid(&at_version, version, "version must be specified"),
                false => errors.invalid_each(&at_version, of_group, joined(rules::dns_1035_label(of_group))),
            }
        }
        Err(why) => errors.invalid(&at_version, version, &why),
    }
    let (name, at_kind) = (text(kind, "kind"), at.child("kind"));
    let wrong = rules::dns_1035_label(&name.to_lowercase());
    if name.is_empty() {
        errors.required(&at_kind, "");
    } else if !wrong.is_empty() {
        let why = format!("may have mixed case, but should otherwise match: {}", wrong.join(","));
        errors.invalid(&at_kind, name, &why);
    }
}

fn joined(wrong: Vec<String>) -> Vec<String> {
    if wrong.is_empty() { wrong } else { vec![wrong.join(",")] }
}

/// Match conditions; those of policies with `paramKind` may use `params`.
pub(super) fn validate_conditions(errors: &mut ErrorList, spec: &Value, path: &Path<'_>) {
    let compiler = Compiler::new(has(spec, "paramKind"), false);
    matching::validate_conditions(errors, spec, path, |errors, expression, at| {
        if let Err(why) = compiler.compile(expression, true, BOOL) {
            errors.invalid(at, expression, &why);
        }
    });
}

pub(super) fn validate_variables(errors: &mut ErrorList, spec: &Value, compiler: &mut Compiler, path: &Path<'_>) {
    let list = path.child("variables");
    for (index, variable) in items(spec, "variables").iter().enumerate() {
        let at = list.index(index);
        let (name, expression) = (text(variable, "name"), text(variable, "expression"));
        if name.trim().is_empty() {
            errors.required(&at.child("name"), "name is not specified");
        } else if !is_identifier(name) {
            errors.invalid(&at.child("name"), name, "must be a valid CEL identifier");
        }
        if expression.trim().is_empty() {
            errors.required(&at.child("expression"), "expression is not specified");
            compiler.declare_variables();
        } else if let Err(why) = compiler.variable(name, expression) {
            errors.invalid(&at.child("expression"), expression, &why);
        }
    }
}

fn is_identifier(name: &str) -> bool {
    let first = name.chars().next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_');
    let escaped = apiserver_cel::types::escape(name);
    // A reserved word is escaped.
    let reserved = escaped.is_some_and(|escaped| escaped == format!("__{name}__"));
    first && !reserved && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// A binding's spec: its policy and its parameters.
pub(super) fn validate_binding(errors: &mut ErrorList, spec: &Value, path: &Path<'_>) {
    let (name, at) = (text(spec, "policyName"), path.child("policyName"));
    match name.is_empty() {
        true => errors.required(&at, ""),
        false => errors.invalid_each(&at, name, rules::dns_subdomain(name)),
    }
    if has(spec, "paramRef") {
        validate_param_ref(errors, get(spec, "paramRef"), &path.child("paramRef"));
    }
    validate_match(errors, get(spec, "matchResources"), &path.child("matchResources"));
}

fn validate_param_ref(errors: &mut ErrorList, reference: &Value, path: &Path<'_>) {
    const BOTH: &str = "name and selector are mutually exclusive";
    let (name, selects) = (text(reference, "name"), has(reference, "selector"));
    if !name.is_empty() {
        errors.invalid_each(&path.child("name"), name, rules::path_segment(name, false));
        if selects {
            errors.forbidden(&path.child("name"), BOTH);
        }
    }
    if selects {
        label_selector(errors, get(reference, "selector"), &path.child("selector"));
        if !name.is_empty() {
            errors.forbidden(&path.child("selector"), BOTH);
        }
    }
    if name.is_empty() && !selects {
        errors.required(path, "one of name or selector must be specified");
    }
    required_choice(errors, reference, "parameterNotFoundAction", &["Deny", "Allow"], path);
}

/// Columns of a policy binding.
pub(super) const BINDING_COLUMNS: &[Column] =
    &[NAME, column("PolicyName", "string"), column("ParamRef", "string"), AGE];

/// The cells of [`BINDING_COLUMNS`].
pub(super) fn binding_cells(object: &Value, now: Timestamp) -> Vec<Value> {
    let spec = get(object, "spec");
    vec![name(object), json!(text(spec, "policyName")), json!(param_ref_cell(spec)), age(object, now)]
}

/// A policy's cells; the column of counts shows the length of `list`.
pub(super) fn policy_cells(object: &Value, list: &str, now: Timestamp) -> Vec<Value> {
    let spec = get(object, "spec");
    let count = items(spec, list).len();
    vec![name(object), json!(count), json!(param_kind_cell(spec)), age(object, now)]
}

/// `paramRef` as a cell.
fn param_ref_cell(spec: &Value) -> String {
    let reference = get(spec, "paramRef");
    if reference.is_null() {
        return "<unset>".to_owned();
    }
    let (namespace, name) = (text(reference, "namespace"), text(reference, "name"));
    match (namespace, name) {
        (_, "") => metadata_selector(get(reference, "selector")),
        ("", name) => format!("*/{name}"),
        (namespace, name) => format!("{namespace}/{name}"),
    }
}

/// A label selector as Go prints the struct.
fn metadata_selector(selector: &Value) -> String {
    let labels: Vec<String> = crate::read::entries(selector, "matchLabels")
        .map(|(key, value)| format!("{key}: {},", value.as_str().unwrap_or_default()))
        .collect();
    let expression = |expression: &Value| {
        let values: Vec<&str> = texts(expression, "values").collect();
        let (key, operator) = (text(expression, "key"), text(expression, "operator"));
        format!("LabelSelectorRequirement{{Key:{key},Operator:{operator},Values:[{}],}},", values.join(" "))
    };
    let expressions: String = items(selector, "matchExpressions").iter().map(expression).collect();
    format!(
        "&LabelSelector{{MatchLabels:map[string]string{{{}}},MatchExpressions:[]LabelSelectorRequirement{{{expressions}}},}}",
        labels.join("")
    )
}

/// `paramKind` as a cell.
fn param_kind_cell(spec: &Value) -> String {
    let kind = get(spec, "paramKind");
    match kind.is_null() {
        true => "<unset>".to_owned(),
        false => format!("{}/{}", text(kind, "apiVersion"), text(kind, "kind")),
    }
}
