//! ResourceQuotas: a namespace's limits. A controller writes the usage.

use std::collections::BTreeSet;

use jiff::Timestamp;
use machinery_api::quantity::Quantity;
use serde_json::{Value, json};

use crate::cells::{AGE, NAME, age, column, name};
use crate::core::pods::resources::{STANDARD, amount, resource_name};
use crate::field::{ERRORS_MAX, ErrorList, FieldError, IMMUTABLE, Path, go_struct};
use crate::metadata::quantity;
use crate::read::{entries, get, items, object_mut, put, text, texts};
use crate::{Column, Context, Row, STATUS, Storage, Strategy};

pub(crate) static ROW: Row = Row {
    kind: "ResourceQuota",
    plural: "resourcequotas",
    singular: "resourcequota",
    short_names: &["quota"],
    schema: "io.k8s.api.core.v1.ResourceQuota",
    subresources: &[STATUS],
    storage: Storage::Stored("resourcequotas"),
    strategy: &ResourceQuota,
    example: r#"apiVersion: v1
kind: ResourceQuota
metadata: {name: example}
spec:
  hard: {pods: "10", requests.cpu: "4", limits.memory: 8Gi}
  scopes: [NotTerminating]
"#,
    ..Row::NAMESPACED
};

struct ResourceQuota;

const COLUMNS: &[Column] = &[NAME, column("Request", "string"), column("Limit", "string"), AGE];

const SPEC: Path<'static> = Path::root("spec");
const STATUS_AT: Path<'static> = Path::root("status");
const SCOPES: &[&str] = &[
    "BestEffort",
    "CrossNamespacePodAffinity",
    "NotBestEffort",
    "NotTerminating",
    "PriorityClass",
    "Terminating",
    "VolumeAttributesClass",
];
const POD_COMPUTE: &[&str] = &["cpu", "limits.cpu", "limits.memory", "memory", "requests.cpu", "requests.memory"];
const PAIRS: [[&str; 2]; 2] = [["BestEffort", "NotBestEffort"], ["Terminating", "NotTerminating"]];

fn is_standard(name: &str) -> bool {
    name != "storage" && STANDARD.contains(&name)
        || name.starts_with("hugepages-")
        || name.starts_with("requests.hugepages-")
}

/// The number of limited resources that a scope doesn't apply to, up to the number of errors shown.
fn count_mismatches(scope: &str, limited: &[&str]) -> usize {
    if !SCOPES.contains(&scope) {
        return 0;
    }
    limited.iter().filter(|name| !scope_applies(scope, name)).take(ERRORS_MAX + 1).count()
}

/// Whether a scope applies to a resource.
fn scope_applies(scope: &str, name: &str) -> bool {
    match scope {
        "Terminating" | "NotTerminating" | "NotBestEffort" | "PriorityClass" | "CrossNamespacePodAffinity" => {
            name == "pods" || POD_COMPUTE.contains(&name)
        }
        "BestEffort" => name == "pods",
        "VolumeAttributesClass" => name == "persistentvolumeclaims" || name == "requests.storage",
        _ => true,
    }
}

fn hard(errors: &mut ErrorList, of: &Value, key: &str, path: &Path<'_>) {
    let path = path.child(key);
    for (name, value) in entries(of, key) {
        let at = path.key(name);
        resource_name(errors, name, &at);
        if !name.contains('/') && !is_standard(name) {
            errors.invalid(&at, name.as_str(), "must be a standard resource for quota");
        }
        amount(errors, name, value, &at);
    }
}

fn validate(errors: &mut ErrorList, spec: &Value) {
    hard(errors, spec, "hard", &SPEC);
    let limited: Vec<&str> =
        entries(spec, "hard").map(|(name, _)| name.as_str()).filter(|name| is_standard(name)).collect();
    let scopes_at = SPEC.child("scopes");
    let scopes = get(spec, "scopes");
    let mut named = BTreeSet::new();
    for scope in texts(spec, "scopes") {
        if !SCOPES.contains(&scope) {
            errors.add(|| FieldError::invalid(&scopes_at, scopes.clone(), "unsupported scope"));
        }
        for _ in 0..count_mismatches(scope, &limited) {
            errors.add(|| FieldError::invalid(&scopes_at, scopes.clone(), "unsupported scope applied to resource"));
        }
        named.insert(scope);
    }
    conflicts(errors, &named, &scopes_at, scopes);
    let selector = get(spec, "scopeSelector");
    if !selector.is_null() {
        scope_selector(errors, selector, &limited, scopes);
    }
}

fn conflicts(errors: &mut ErrorList, named: &BTreeSet<&str>, at: &Path<'_>, scopes: &Value) {
    for pair in PAIRS {
        if pair.iter().all(|scope| named.contains(scope)) {
            errors.invalid(at, scopes.clone(), "conflicting scopes");
        }
    }
}

/// Upstream's internal struct as JSON.
fn go_selector(selector: &Value) -> String {
    let list: Vec<String> = items(selector, "matchExpressions")
        .iter()
        .map(|one| {
            let values = get(one, "values");
            let inner =
                json!({"ScopeName": text(one, "scopeName"), "Operator": text(one, "operator"), "Values": values});
            go_struct(&inner, &["ScopeName", "Operator", "Values"])
        })
        .collect();
    format!("{{\"MatchExpressions\":[{}]}}", list.join(","))
}

fn scope_selector(errors: &mut ErrorList, selector: &Value, limited: &[&str], scopes: &Value) {
    let at = SPEC.child("scopeSelector");
    let at = at.child("matchExpressions");
    let mut named = BTreeSet::new();
    for requirement in items(selector, "matchExpressions") {
        let (scope, operator) = (text(requirement, "scopeName"), text(requirement, "operator"));
        if !SCOPES.contains(&scope) {
            errors.invalid(&at.child("scopeName"), scope, "unsupported scope");
        }
        for _ in 0..count_mismatches(scope, limited) {
            let why = "unsupported scope applied to resource";
            errors.add(|| FieldError::invalid_shown(&at, &go_selector(selector), why));
        }
        let operator_at = at.child("operator");
        let by_name = !matches!(scope, "PriorityClass" | "VolumeAttributesClass") && SCOPES.contains(&scope);
        if by_name && operator != "Exists" {
            let why = "must be 'Exists' when scope is any of ResourceQuotaScopeTerminating, ResourceQuotaScopeNotTerminating, ResourceQuotaScopeBestEffort, ResourceQuotaScopeNotBestEffort or ResourceQuotaScopeCrossNamespacePodAffinity";
            errors.invalid(&operator_at, operator, why);
        }
        let none = items(requirement, "values").is_empty();
        let values_at = at.child("values");
        match operator {
            "In" | "NotIn" if none => {
                let why = "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector";
                errors.required(&values_at, why);
            }
            "Exists" | "DoesNotExist" if !none => {
                let why = "must be no value when `operator` is 'Exist' or 'DoesNotExist' for scope selector";
                errors.add(|| FieldError::invalid(&values_at, get(requirement, "values").clone(), why));
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => errors.invalid(&operator_at, other, "not a valid selector operator"),
        }
        named.insert(scope);
    }
    conflicts(errors, &named, &at, scopes);
}

fn status(errors: &mut ErrorList, status: &Value) {
    hard(errors, status, "hard", &STATUS_AT);
    hard(errors, status, "used", &STATUS_AT);
}

impl Strategy for ResourceQuota {
    fn delete_answers_object(&self) -> bool {
        true
    }

    fn default(&self, object: &mut Value) {
        object_mut(object, "spec");
        object_mut(object, "status");
    }

    fn prepare_create(&self, _: &Context<'_>, object: &mut Value) {
        put(object, "status", json!({}));
    }

    fn validate(&self, context: &Context<'_>, object: &Value, old: Option<&Value>, errors: &mut ErrorList) {
        let spec = get(object, "spec");
        match old {
            _ if context.subresource == "status" => status(errors, get(object, "status")),
            None => {
                validate(errors, spec);
                status(errors, get(object, "status"));
            }
            Some(old) => {
                validate(errors, spec);
                let scopes = |of| texts(of, "scopes").collect::<BTreeSet<_>>();
                if scopes(spec) != scopes(get(old, "spec")) {
                    errors.invalid(&SPEC.child("scopes"), get(spec, "scopes").clone(), IMMUTABLE);
                }
            }
        }
    }

    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        if old.is_some() {
            return Vec::new();
        }
        let hard = get(get(object, "spec"), "hard");
        let of = |name: &str| quantity(get(hard, name));
        let mut found = Vec::new();
        for resource in ["cpu", "memory", "storage", "ephemeral-storage"] {
            let (mut named, limit_named) = (format!("requests.{resource}"), format!("limits.{resource}"));
            let mut request = of(&named);
            if request.is_none() && matches!(resource, "cpu" | "memory") {
                request = of(resource);
                if request.is_some() {
                    named = resource.into();
                }
            }
            if let (Some(request), Some(limit)) = (request, of(&limit_named))
                && request > limit
            {
                found.push(format!("ResourceQuota {named} ({request}) should be less than {limit_named} ({limit})"));
            }
        }
        found
    }

    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let status = get(object, "status");
        let used = get(status, "used");
        let (mut requests, mut limits) = (Vec::new(), Vec::new());
        for (resource, hard) in entries(status, "hard") {
            let shown = |value: &Value| quantity(value).unwrap_or_else(Quantity::zero).to_string();
            let cell = format!("{resource}: {}/{}", shown(get(used, resource)), shown(hard));
            if resource.starts_with("limits.") { limits.push(cell) } else { requests.push(cell) }
        }
        vec![name(object), json!(requests.join(", ")), json!(limits.join(", ")), age(object, now)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_fit_their_resources_and_each_other() {
        let errors_of = |spec: Value| -> Vec<String> {
            let mut errors = ErrorList::new();
            validate(&mut errors, &spec);
            errors.shown().iter().map(|error| format!("{}: {}", error.field, error.message)).collect()
        };
        assert_eq!(
            errors_of(json!({"hard": {"pods": "1", "count/jobs.batch": "2"}, "scopes": ["BestEffort"]})),
            Vec::<String>::new()
        );
        assert_eq!(
            errors_of(json!({"hard": {"cpu": "1"}, "scopes": ["BestEffort"]})),
            ["spec.scopes: Invalid value: [\"BestEffort\"]: unsupported scope applied to resource"]
        );
        assert_eq!(
            errors_of(json!({"scopes": ["Terminating", "NotTerminating", "Other"]})),
            [
                "spec.scopes: Invalid value: [\"Terminating\",\"NotTerminating\",\"Other\"]: unsupported scope",
                "spec.scopes: Invalid value: [\"Terminating\",\"NotTerminating\",\"Other\"]: conflicting scopes",
            ]
        );
        let selector = json!({"matchExpressions": [{"scopeName": "PriorityClass", "operator": "In"},
            {"scopeName": "BestEffort", "operator": "DoesNotExist"}]});
        let found = errors_of(json!({"scopeSelector": selector}));
        assert_eq!(found.len(), 2, "{found:?}");
        assert_eq!(
            errors_of(json!({"hard": {"gold": "1", "pods": "1.5"}})),
            [
                "spec.hard[gold]: Invalid value: \"gold\": must be a standard resource type or fully qualified",
                "spec.hard[gold]: Invalid value: \"gold\": must be a standard resource for quota",
                "spec.hard[pods]: Invalid value: \"1500m\": must be an integer",
            ]
        );
        let quota = json!({"spec": {"hard": {"requests.cpu": "2", "limits.cpu": "1"}}});
        assert_eq!(
            ResourceQuota.warnings(&quota, None),
            ["ResourceQuota requests.cpu (2) should be less than limits.cpu (1)"]
        );
        let status = json!({"metadata": {"name": "q"}, "status": {"hard": {"limits.cpu": "2", "pods": "3"}, "used": {"pods": "1"}}});
        let cells = ResourceQuota.cells(&status, Timestamp::UNIX_EPOCH);
        assert_eq!((&cells[1], &cells[2]), (&json!("pods: 1/3"), &json!("limits.cpu: 0/2")));
    }
}
