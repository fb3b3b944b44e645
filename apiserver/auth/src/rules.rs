//! A single RBAC rule: the requests it allows, and the rules that a set of rules covers. Pure functions.

use std::collections::BTreeMap;

use machinery_api::selector::go_quoted;
use serde_json::{Value, json};

use super::Attributes;

/// `rbac.authorization.k8s.io/v1 PolicyRule`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Rule {
    /// The verbs.
    pub verbs: Vec<String>,
    /// The API groups.
    pub groups: Vec<String>,
    /// The resources (`pods`, `pods/log`, `*/scale`).
    pub resources: Vec<String>,
    /// The object names; empty: all objects.
    pub names: Vec<String>,
    /// The non-resource paths.
    pub urls: Vec<String>,
}

impl Rule {
    /// Parses a rule; values of the wrong type are ignored.
    #[must_use]
    pub fn parse(rule: &Value) -> Self {
        let list = |field: &str| {
            let items = rule.get(field).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
            items.iter().filter_map(Value::as_str).map(str::to_owned).collect()
        };
        Self {
            verbs: list("verbs"),
            groups: list("apiGroups"),
            resources: list("resources"),
            names: list("resourceNames"),
            urls: list("nonResourceURLs"),
        }
    }

    /// Parses the rules of a Role or ClusterRole.
    #[must_use]
    pub fn parse_all(role: &Value) -> Vec<Self> {
        role.get("rules").and_then(Value::as_array).into_iter().flatten().map(Self::parse).collect()
    }

    /// The serialized form in a role.
    #[must_use]
    pub fn to_value(&self) -> Value {
        let mut rule = serde_json::Map::new();
        for (field, list) in [
            ("apiGroups", &self.groups),
            ("nonResourceURLs", &self.urls),
            ("resourceNames", &self.names),
            ("resources", &self.resources),
        ] {
            if !list.is_empty() {
                rule.insert(field.into(), json!(list));
            }
        }
        rule.insert("verbs".into(), json!(self.verbs));
        Value::Object(rule)
    }

    /// All rights, which the author of an aggregation rule must hold.
    #[must_use]
    pub(crate) fn full_authority() -> Vec<Self> {
        let all = || vec!["*".to_owned()];
        vec![
            Self { verbs: all(), groups: all(), resources: all(), ..Self::default() },
            Self { verbs: all(), urls: all(), ..Self::default() },
        ]
    }

    /// Whether the rule allows the request.
    #[must_use]
    pub(crate) fn allows(&self, request: &Attributes<'_>) -> bool {
        if !has_or_star(&self.verbs, request.verb) {
            return false;
        }
        if !request.is_resource {
            return self.urls.iter().any(|url| url_covers(url, request.path));
        }
        has_or_star(&self.groups, request.group)
            && self.resources.iter().any(|r| resource_matches(r, request.resource, request.subresource))
            && (self.names.is_empty() || has(&self.names, request.name))
    }

    /// Splits the rule into single combinations of group, resource, verb and name, and of path and verb.
    fn broken_down(&self) -> Vec<Self> {
        let one = |s: &String| vec![s.clone()];
        let mut single = Vec::new();
        for group in &self.groups {
            for resource in &self.resources {
                for verb in &self.verbs {
                    let rule =
                        Self { verbs: one(verb), groups: one(group), resources: one(resource), ..Self::default() };
                    if self.names.is_empty() {
                        single.push(rule);
                    } else {
                        single.extend(self.names.iter().map(|name| Self { names: one(name), ..rule.clone() }));
                    }
                }
            }
        }
        for url in &self.urls {
            single.extend(self.verbs.iter().map(|verb| Self { verbs: one(verb), urls: one(url), ..Self::default() }));
        }
        single
    }

    /// Whether this rule covers a single combination.
    fn covers(&self, single: &Self) -> bool {
        (has(&self.verbs, "*") || has_all(&self.verbs, &single.verbs))
            && (has(&self.groups, "*") || has_all(&self.groups, &single.groups))
            && single.resources.iter().all(|r| {
                has_or_star(&self.resources, r)
                    || r.split_once('/').is_some_and(|(_, sub)| has(&self.resources, &format!("*/{sub}")))
            })
            && single.urls.iter().all(|url| self.urls.iter().any(|own| url_covers(own, url)))
            && (self.names.is_empty() || (!single.names.is_empty() && has_all(&self.names, &single.names)))
    }

    /// The format in error messages.
    fn describe(&self) -> String {
        let parts: Vec<String> = [
            ("APIGroups", &self.groups),
            ("Resources", &self.resources),
            ("NonResourceURLs", &self.urls),
            ("ResourceNames", &self.names),
            ("Verbs", &self.verbs),
        ]
        .into_iter()
        .filter(|(_, list)| !list.is_empty())
        .map(|(name, list)| format!("{name}:{}", quoted_list(list)))
        .collect();
        format!("{{{}}}", parts.join(", "))
    }
}

/// `["a" "b"]`.
#[must_use]
pub(crate) fn quoted_list(list: &[String]) -> String {
    let quoted: Vec<String> = list.iter().map(|s| go_quoted(s)).collect();
    format!("[{}]", quoted.join(" "))
}

/// The single combinations of `wanted` that `owned` does not cover, in order.
#[must_use]
pub fn missing_rules(owned: &[Rule], wanted: &[Rule]) -> Vec<Rule> {
    let mut missing: Vec<Rule> = wanted.iter().flat_map(Rule::broken_down).collect();
    missing.retain(|single| !owned.iter().any(|own| own.covers(single)));
    missing
}

/// The result of [`missing_rules`] as text, compacted per resource and sorted.
#[must_use]
pub(crate) fn missing(owned: &[Rule], wanted: &[Rule]) -> Vec<String> {
    let mut simple: BTreeMap<(String, String, Option<String>), Rule> = BTreeMap::new();
    let mut missing = Vec::new();
    for single in missing_rules(owned, wanted) {
        match (single.groups.first(), single.resources.first()) {
            (Some(group), Some(resource)) => {
                let key = (group.clone(), resource.clone(), single.names.first().cloned());
                match simple.get_mut(&key) {
                    Some(rule) => rule.verbs.extend(single.verbs),
                    None => {
                        simple.insert(key, single);
                    }
                }
            }
            _ => missing.push(single.describe()),
        }
    }
    missing.extend(simple.values().map(Rule::describe));
    missing.sort();
    missing.dedup();
    missing
}

fn has(list: &[String], item: &str) -> bool {
    list.iter().any(|i| i == item)
}

fn has_or_star(list: &[String], item: &str) -> bool {
    list.iter().any(|i| i == item || i == "*")
}

fn has_all(list: &[String], items: &[String]) -> bool {
    items.iter().all(|item| has(list, item))
}

fn resource_matches(rule: &str, resource: &str, subresource: &str) -> bool {
    if rule == "*" {
        return true;
    }
    match rule.split_once('/') {
        None => subresource.is_empty() && rule == resource,
        Some((of, sub)) => !subresource.is_empty() && sub == subresource && (of == "*" || of == resource),
    }
}

fn url_covers(owner: &str, path: &str) -> bool {
    owner == path || (owner.ends_with('*') && path.starts_with(owner.trim_end_matches('*')))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(rules: &Value) -> Vec<Rule> {
        Rule::parse_all(&json!({ "rules": rules }))
    }

    #[test]
    fn rules_allow_by_group_resource_and_verb() {
        let rule = &rules(&json!([{"apiGroups": ["", "apps"], "resources": ["pods", "*/scale"], "verbs": ["get"]}]))[0];
        let ask = |group, resource, subresource, verb| {
            let request = Attributes { verb, group, resource, subresource, is_resource: true, ..Attributes::default() };
            rule.allows(&request)
        };
        assert!(ask("", "pods", "", "get"));
        assert!(!ask("", "pods", "", "list"));
        assert!(!ask("", "pods", "log", "get"));
        assert!(ask("apps", "deployments", "scale", "get"));
        assert!(!ask("apps", "deployments", "", "get"));
        assert!(!ask("batch", "pods", "", "get"));
        let urls = &rules(&json!([{"nonResourceURLs": ["/a/*", "/b"], "verbs": ["get"]}]))[0];
        let path = |path| urls.allows(&Attributes { verb: "get", path, ..Attributes::default() });
        assert!(path("/a/x") && path("/b") && path("/a/"));
        assert!(!path("/a") && !path("/b/x"));
    }

    #[test]
    fn missing_rules_are_compacted_and_sorted() {
        let owned = rules(&json!([
            {"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]},
            {"apiGroups": [""], "resources": ["pods", "services"], "verbs": ["list"]},
        ]));
        let held = rules(&json!([
            {"apiGroups": [""], "resources": ["pods"], "resourceNames": ["one"], "verbs": ["get"]},
            {"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "get"]},
        ]));
        assert!(missing(&owned, &held).is_empty());
        let wanted = rules(&json!([
            {"apiGroups": [""], "resources": ["pods", "services", "pods/log"], "verbs": ["list", "get", "watch"]},
            {"apiGroups": ["*"], "resources": ["pods"], "verbs": ["*"]},
        ]));
        assert_eq!(
            missing(&owned, &wanted),
            [
                r#"{APIGroups:[""], Resources:["pods"], Verbs:["watch"]}"#,
                r#"{APIGroups:[""], Resources:["pods/log"], Verbs:["list" "get" "watch"]}"#,
                r#"{APIGroups:[""], Resources:["services"], Verbs:["get" "watch"]}"#,
                r#"{APIGroups:["*"], Resources:["pods"], Verbs:["*"]}"#,
            ]
        );
        assert_eq!(missing(&[], &Rule::full_authority()).len(), 2);
        assert!(missing(&Rule::full_authority(), &wanted).is_empty());
    }
}
