//! Resources that require a covering quota: `limitedResources` of the plugin's configuration.

use std::collections::BTreeSet;

use serde_json::Value;

use super::amounts::Amounts;
use super::{Evaluator, Scope, scopes};

/// One entry of `limitedResources`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LimitedResource {
    /// The API group of the limited resource.
    pub group: String,
    /// Its plural.
    pub resource: String,
    /// Resource names of quotas that contain one of these require a quota that names them.
    pub match_contains: Vec<String>,
    /// Requirements (`scopeName`, `operator`, `values`) that require a quota with the scope.
    pub match_scopes: Vec<Value>,
}

/// The required and the actual coverage of an object.
pub(super) struct Coverage<'a> {
    all: &'a [LimitedResource],
    resource: (&'a str, &'a str),
    names: BTreeSet<String>,
    scopes: BTreeSet<String>,
}

impl<'a> Coverage<'a> {
    pub(super) fn new(all: &'a [LimitedResource], resource: (&'a str, &'a str)) -> Self {
        Self { all, resource, names: BTreeSet::new(), scopes: BTreeSet::new() }
    }

    pub(super) fn is_needed(&self) -> bool {
        !self.all.is_empty()
    }

    /// Records each matching scope of a quota.
    pub(super) fn add_scopes(&mut self, evaluator: &Evaluator, quota: &Value, object: &Value) {
        if self.is_needed() {
            let within = scopes(quota).filter(|scope| evaluator.in_scope(*scope, object));
            self.scopes.extend(within.map(|scope| scope.name.to_owned()));
        }
    }

    /// Records the resources limited by a matching quota.
    pub(super) fn add_names(&mut self, limited: &[&str]) {
        if self.is_needed() {
            self.names.extend(limited.iter().map(|name| (*name).to_owned()));
        }
    }

    /// Upstream's message about uncovered resources.
    pub(super) fn uncovered(&self, evaluator: &Evaluator, object: &Value, usage: &Amounts) -> Option<String> {
        let own = self.all.iter().filter(|limited| (&*limited.group, &*limited.resource) == self.resource);
        let patterns: Vec<&String> = own.flat_map(|limited| &limited.match_contains).collect();
        let used = usage.iter().filter(|(_, amount)| amount.sign() > 0).map(|(name, _)| name);
        let needed = used.filter(|name| patterns.iter().any(|pattern| name.contains(&**pattern)));
        let lacking: Vec<&str> = needed.filter(|name| !self.names.contains(*name)).map(String::as_str).collect();
        if !lacking.is_empty() {
            return Some(format!("insufficient quota to consume: {}", lacking.join(",")));
        }
        let needed = self.all.iter().flat_map(|limited| &limited.match_scopes).map(Scope::of);
        let needed = needed.filter(|scope| evaluator.in_scope(*scope, object));
        let lacking: Vec<String> =
            needed.filter(|scope| !self.scopes.contains(scope.name)).map(|scope| scope.to_string()).collect();
        (!lacking.is_empty()).then(|| format!("insufficient quota to match these scopes: [{}]", lacking.join(" ")))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::{QuotaCheck, Write, charge};
    use super::*;

    /// The result of a case of upstream's table: `{limited, quotas, kind, new, old, why}`.
    fn rejection(case: &Value) -> Option<String> {
        let texts = |list: &Value| -> Vec<String> { serde_json::from_value(list.clone()).unwrap_or_default() };
        let limited = |value: &Value| LimitedResource {
            group: String::new(),
            resource: value["resource"].as_str().unwrap().to_owned(),
            match_contains: texts(&value["contains"]),
            match_scopes: value["scopes"].as_array().cloned().unwrap_or_default(),
        };
        let all: Vec<LimitedResource> = case["limited"].as_array().unwrap().iter().map(limited).collect();
        let resource = case["kind"].as_str().unwrap_or("pods");
        let old = case["old"].is_object().then_some(&case["old"]);
        let write = if old.is_some() { Write::Update } else { Write::Create };
        let now = "2026-01-01T00:00:00Z".parse().unwrap();
        let check =
            QuotaCheck { write, resource: ("", resource), subresource: "", new: &case["new"], old, now, limited: &all };
        charge(&Evaluator::of("", resource).unwrap(), case["quotas"].as_array().unwrap(), check).err()
    }

    #[test]
    fn limited_resources_need_a_covering_quota() {
        for line in include_str!("testdata/limited.jsonl").lines() {
            let case: Value = serde_json::from_str(line).unwrap();
            assert_eq!(rejection(&case).as_deref(), case["why"].as_str(), "{line}");
        }
    }

    #[test]
    fn scopes_are_printed_as_go_prints_them() {
        let scope = json!({"scopeName": "PriorityClass", "operator": "In", "values": ["a", "b"]});
        assert_eq!(Scope::of(&scope).to_string(), "{PriorityClass In [a b]}");
    }
}
