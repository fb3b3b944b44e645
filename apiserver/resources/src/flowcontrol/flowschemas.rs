//! FlowSchemas: match requests to flows and priority levels.

use crate::ResetFields;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::conditions;
use crate::cells::{AGE, NAME, age, column, name};
use crate::core::pods::update::semantically_equal;
use crate::field::{ErrorList, FieldError, Path, go_struct};
use crate::metadata::reset_for_status;
use crate::read::{at, default_zero_to, fields, flag, get, has, int, items, spec_of, text, texts};
use crate::{Column, Context, MetadataChecks, Row, STATUS, Storage, Strategy, prepare_update_by_default, rules};

pub(crate) static ROW: Row = Row {
    group: "flowcontrol.apiserver.k8s.io",
    kind: "FlowSchema",
    plural: "flowschemas",
    singular: "flowschema",
    schema: "io.k8s.api.flowcontrol.v1.FlowSchema",
    subresources: &[STATUS],
    storage: Storage::Stored("flowschemas"),
    inert: Some("nothing acts on FlowSchemas here yet: all requests have the same limits"),
    strategy: &FlowSchema,
    example: r#"apiVersion: flowcontrol.apiserver.k8s.io/v1
kind: FlowSchema
metadata: {name: example}
spec:
  matchingPrecedence: 1000
  priorityLevelConfiguration: {name: workload-low}
  rules:
  - subjects: [{kind: Group, group: {name: example}}]
    nonResourceRules: [{verbs: [get], nonResourceURLs: [/healthz]}]
"#,
    ..Row::CLUSTER
};

struct FlowSchema;

const COLUMNS: &[Column] = &[
    NAME,
    column("PriorityLevel", "string"),
    column("MatchingPrecedence", "string"),
    column("DistinguisherMethod", "string"),
    AGE,
    column("MissingPL", "string"),
];
const SPEC: Path<'static> = Path::root("spec");
const PRECEDENCE: i64 = 1000;
const PRECEDENCE_MAX: i64 = 10_000;
const EXEMPT: &str = "exempt";
const CATCH_ALL: &str = "catch-all";
const METHODS: &[&str] = &["ByNamespace", "ByUser"];
const SUBJECTS: &[&str] = &["Group", "ServiceAccount", "User"];
const VERBS: &[&str] = &["create", "delete", "deletecollection", "get", "list", "patch", "proxy", "update", "watch"];

/// The specs of the two mandatory schemas, which are fixed.
fn mandatory_spec(name: &str) -> Option<Value> {
    let everything = |groups: &[&str]| {
        let subjects: Vec<Value> = groups.iter().map(|g| json!({"kind": "Group", "group": {"name": g}})).collect();
        let resources = json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "clusterScope": true,
            "namespaces": ["*"]});
        json!([{"subjects": subjects, "resourceRules": [resources],
            "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}]}])
    };
    match name {
        EXEMPT => Some(json!({"matchingPrecedence": 1, "priorityLevelConfiguration": {"name": EXEMPT},
            "rules": everything(&["system:masters"])})),
        CATCH_ALL => Some(json!({"matchingPrecedence": PRECEDENCE_MAX, "distinguisherMethod": {"type": "ByUser"},
            "priorityLevelConfiguration": {"name": CATCH_ALL},
            "rules": everything(&["system:unauthenticated", "system:authenticated"])})),
        _ => None,
    }
}

fn service_account(errors: &mut ErrorList, account: &Value, path: &Path<'_>) {
    let (name, namespace) = (text(account, "name"), text(account, "namespace"));
    if name.is_empty() {
        errors.required(&path.child("name"), "");
    } else if name != "*" {
        errors.invalid_each(&path.child("name"), name, rules::dns_subdomain(name));
    }
    if namespace.is_empty() {
        errors.required(&path.child("namespace"), "must specify namespace for service account");
    } else {
        errors.invalid_each(&path.child("namespace"), namespace, rules::dns_label(namespace));
    }
}

fn subject(errors: &mut ErrorList, subject: &Value, path: &Path<'_>) {
    let kinds = [("ServiceAccount", "serviceAccount"), ("User", "user"), ("Group", "group")];
    let kind = text(subject, "kind");
    let Some((_, own)) = kinds.iter().find(|(known, _)| *known == kind) else {
        return errors.not_supported(&path.child("kind"), kind, SUBJECTS);
    };
    let (given, own_at) = (get(subject, own), path.child(own));
    if given.is_null() {
        errors.required(&own_at, &format!("{own} is required when subject kind is '{kind}'"));
    } else if kind == "ServiceAccount" {
        service_account(errors, given, &own_at);
    } else if text(given, "name").is_empty() {
        errors.required(&own_at.child("name"), "");
    }
    // The fields of the other kinds, in upstream's order.
    let order: &[usize] = if kind == "ServiceAccount" { &[1, 2] } else { &[0, 1, 2] };
    for (other, key) in order.iter().map(|at| kinds[*at]).filter(|(other, _)| *other != kind) {
        if has(subject, key) {
            errors.forbidden(&path.child(key), &format!("{key} is forbidden when subject kind is not '{other}'"));
        }
    }
}

/// A list with at least one entry, in which `*` excludes other entries.
fn one_or_all(errors: &mut ErrorList, rule: &Value, key: &str, missing: &str, others: &str, path: &Path<'_>) -> bool {
    let (list, at) = (items(rule, key), path.child(key));
    if list.is_empty() {
        errors.required(&at, missing);
        return false;
    }
    let any = texts(rule, key).any(|entry| entry == "*");
    if any && list.len() > 1 {
        errors.invalid(&at, get(rule, key).clone(), &format!("if '*' is present, must not specify other {others}"));
    }
    !any
}

fn verbs(errors: &mut ErrorList, rule: &Value, path: &Path<'_>) {
    let named = one_or_all(errors, rule, "verbs", "verbs must contain at least one value", "verbs", path);
    if named && texts(rule, "verbs").any(|verb| !VERBS.contains(&verb)) {
        errors.not_supported(&path.child("verbs"), get(rule, "verbs").clone(), VERBS);
    }
}

fn resource_rule(errors: &mut ErrorList, rule: &Value, path: &Path<'_>) {
    verbs(errors, rule, path);
    let missing = "resource rules must supply at least one api group";
    one_or_all(errors, rule, "apiGroups", missing, "api groups", path);
    let missing = "resource rules must supply at least one resource";
    one_or_all(errors, rule, "resources", missing, "resources", path);
    if items(rule, "namespaces").is_empty() && flag(rule, "clusterScope") {
        return;
    }
    let missing = "resource rules that are not cluster scoped must supply at least one namespace";
    if one_or_all(errors, rule, "namespaces", missing, "namespaces", path) {
        let list_at = path.child("namespaces");
        for (i, namespace) in texts(rule, "namespaces").enumerate() {
            for why in rules::dns_label(namespace) {
                let why = format!("each member of this list must be '*' or a DNS-1123 label; {why}");
                errors.invalid(&list_at.index(i), namespace, &why);
            }
        }
    }
}

fn wrong_url(url: &str) -> Option<&'static str> {
    match url {
        "" => Some("must not be empty"),
        "/" => None,
        _ if !url.starts_with('/') => Some("must start with slash"),
        _ if url.contains(' ') => Some("must not contain white-space"),
        _ if url.contains("//") => Some("must not contain double slash"),
        _ => match url.matches('*').count() {
            0 => None,
            1 if url.ends_with("/*") => None,
            _ => Some("wildcard can only do suffix matching"),
        },
    }
}

fn non_resource_rule(errors: &mut ErrorList, rule: &Value, path: &Path<'_>) {
    verbs(errors, rule, path);
    let missing = "nonResourceURLs must contain at least one value";
    if one_or_all(errors, rule, "nonResourceURLs", missing, "non-resource URLs", path) {
        let list_at = path.child("nonResourceURLs");
        for (i, url) in texts(rule, "nonResourceURLs").enumerate() {
            if let Some(why) = wrong_url(url) {
                errors.invalid(&list_at.index(i), url, why);
            }
        }
    }
}

fn rule(errors: &mut ErrorList, rule: &Value, path: &Path<'_>) {
    let subjects_at = path.child("subjects");
    if items(rule, "subjects").is_empty() {
        errors.required(&subjects_at, "subjects must contain at least one value");
    }
    for (i, given) in items(rule, "subjects").iter().enumerate() {
        subject(errors, given, &subjects_at.index(i));
    }
    if items(rule, "resourceRules").is_empty() && items(rule, "nonResourceRules").is_empty() {
        errors.required(path, "at least one of resourceRules and nonResourceRules has to be non-empty");
    }
    let list_at = path.child("resourceRules");
    for (i, given) in items(rule, "resourceRules").iter().enumerate() {
        resource_rule(errors, given, &list_at.index(i));
    }
    let list_at = path.child("nonResourceRules");
    for (i, given) in items(rule, "nonResourceRules").iter().enumerate() {
        non_resource_rule(errors, given, &list_at.index(i));
    }
}

fn validate(errors: &mut ErrorList, object: &Value) {
    let (spec, named) = (get(object, "spec"), crate::read::name(object));
    let precedence = int(spec, "matchingPrecedence").unwrap_or(0);
    let precedence_at = SPEC.child("matchingPrecedence");
    if precedence <= 0 {
        errors.invalid(&precedence_at, precedence, "must be a positive value");
    }
    if precedence > PRECEDENCE_MAX {
        errors.invalid(&precedence_at, precedence, &format!("must not be greater than {PRECEDENCE_MAX}"));
    }
    if precedence == 1 && named != EXEMPT {
        let why = "only the schema named 'exempt' may have matchingPrecedence 1";
        errors.invalid(&precedence_at, precedence, why);
    }
    let method = get(spec, "distinguisherMethod");
    if !method.is_null() && !METHODS.contains(&text(method, "type")) {
        let method_at = SPEC.child("distinguisherMethod");
        let list: Vec<String> = METHODS.iter().map(|method| crate::field::quoted(method)).collect();
        let shown = go_struct(&json!({"Type": text(method, "type")}), &["Type"]);
        let message = format!("Unsupported value: {shown}: supported values: {}", list.join(", "));
        errors.add(|| FieldError::new("FieldValueNotSupported", &method_at.child("type"), message));
    }
    let level = text(get(spec, "priorityLevelConfiguration"), "name");
    let level_at = SPEC.child("priorityLevelConfiguration");
    if level.is_empty() {
        errors.required(&level_at.child("name"), "must reference a priority level");
    } else {
        errors.invalid_each(&level_at.child("name"), level, rules::dns_subdomain(level));
    }
    let list_at = SPEC.child("rules");
    for (i, given) in items(spec, "rules").iter().enumerate() {
        rule(errors, given, &list_at.index(i));
    }
    if mandatory_spec(named).is_some_and(|fixed| !semantically_equal(&fixed, spec)) {
        errors.invalid(&SPEC, spec.clone(), &format!("spec of '{named}' must equal the fixed value"));
    }
    conditions(errors, object);
}

impl Strategy for FlowSchema {
    fn reset_fields(&self, subresource: &str) -> ResetFields {
        match subresource {
            "status" => ResetFields::METADATA_TOO,
            _ => ResetFields::Below(&[&["status"]]),
        }
    }

    fn default(&self, object: &mut Value) {
        let spec = spec_of(object);
        default_zero_to(spec, "matchingPrecedence", PRECEDENCE);
        // Go's encoder always writes these.
        fields(spec).entry("priorityLevelConfiguration").or_insert_with(|| json!({"name": ""}));
        fields(object).entry("status").or_insert_with(|| json!({}));
    }

    fn prepare_create(&self, _: &Context<'_>, object: &mut Value) {
        fields(object).insert("status".into(), json!({}));
    }

    fn prepare_update(&self, context: &Context<'_>, new: &mut Value, old: &Value) {
        prepare_update_by_default(context, new, old);
        if !context.subresource.is_empty() {
            reset_for_status(new, old);
        }
    }

    fn counts_generation(&self) -> bool {
        true
    }

    fn metadata_checks_of(&self, subresource: &str) -> MetadataChecks {
        if subresource.is_empty() { MetadataChecks::Whole } else { MetadataChecks::None }
    }

    fn validate(&self, context: &Context<'_>, object: &Value, _: Option<&Value>, errors: &mut ErrorList) {
        if context.subresource.is_empty() {
            validate(errors, object);
        } else {
            conditions(errors, object);
        }
    }

    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let spec = get(object, "spec");
        let method = get(spec, "distinguisherMethod");
        let dangling = items(get(object, "status"), "conditions").iter().find(|c| text(c, "type") == "Dangling");
        vec![
            name(object),
            json!(text(at(spec, &["priorityLevelConfiguration"]), "name")),
            json!(int(spec, "matchingPrecedence").unwrap_or(0)),
            json!(if method.is_null() { "<none>" } else { text(method, "type") }),
            age(object, now),
            json!(dangling.map_or("?", |condition| text(condition, "status"))),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_urls() {
        for good in ["/", "/healthz", "/apis/*"] {
            assert_eq!(wrong_url(good), None, "{good}");
        }
        for (bad, why) in [
            ("", "empty"),
            ("x", "slash"),
            ("/a b", "white-space"),
            ("/a//b", "double"),
            ("/a*", "suffix"),
            ("/*/*", "suffix"),
            ("*", "start with"),
        ] {
            assert!(wrong_url(bad).is_some_and(|message| message.contains(why)), "{bad}");
        }
    }
}
