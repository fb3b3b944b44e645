//! All hooks, compiled when their configurations change, and found by the resource that a request is about.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use super::review;
use crate::admission::matching::{Matcher, equivalents};
use crate::admission::policies::Conditions;
use crate::catalog::Catalog;
use crate::webhook::{Accounts, Client};

/// One hook.
pub(super) struct Hook {
    /// Its configuration and its own name.
    pub(super) id: (String, String),
    /// `Err`: why nothing can match.
    pub(super) matcher: Result<Matcher, String>,
    /// Whether the request goes on where it can't be asked.
    pub(super) is_optional: bool,
    /// Whether it may be asked about a dry run.
    pub(super) has_no_side_effects: bool,
    /// Whether it wants to see what others change after it.
    pub(super) is_reinvoked: bool,
    pub(super) timeout: Duration,
    /// Of the reviews that it understands.
    pub(super) version: Option<&'static str>,
    pub(super) client: Result<Arc<Client>, String>,
    pub(super) conditions: Conditions,
}

/// See the module.
#[derive(Default)]
pub(super) struct Index {
    /// What it was made of.
    pub(super) revision: u64,
    hooks: Vec<Arc<Hook>>,
    /// By group and resource.
    named: HashMap<String, HashMap<String, Vec<usize>>>,
    /// Those that are about any resource or group.
    any: Vec<usize>,
    /// How hooks are reached, by their `clientConfig`: connections outlive changes elsewhere.
    clients: HashMap<String, Arc<Client>>,
}

impl Index {
    /// Of configurations in the order of their names.
    pub(super) fn new(
        revision: u64,
        configurations: &[Arc<Value>],
        (catalog, accounts): (&Catalog, &Accounts),
        before: &Self,
    ) -> Self {
        let mut index = Self { revision, ..Self::default() };
        for configuration in configurations {
            let name = configuration["metadata"]["name"].as_str().unwrap_or_default();
            for hook in configuration["webhooks"].as_array().into_iter().flatten() {
                index.add(name, hook, (catalog, accounts), before);
            }
        }
        index
    }

    fn client(&mut self, config: &Value, accounts: &Accounts, before: &Self) -> Result<Arc<Client>, String> {
        let key = config.to_string();
        if let Some(client) = self.clients.get(&key).or_else(|| before.clients.get(&key)).cloned() {
            self.clients.insert(key, client.clone());
            return Ok(client);
        }
        let client = Arc::new(Client::new(config, accounts)?);
        self.clients.insert(key, client.clone());
        Ok(client)
    }

    fn add(&mut self, configuration: &str, hook: &Value, (catalog, accounts): (&Catalog, &Accounts), before: &Self) {
        let at = self.hooks.len();
        let matcher = Matcher::of(hook, &hook["rules"]).map_err(|error| error.to_string());
        let seconds = hook["timeoutSeconds"].as_u64().unwrap_or(10).clamp(1, 30);
        if let Ok(matcher) = &matcher {
            self.find_by(at, matcher, catalog);
        }
        let client = self.client(&hook["clientConfig"], accounts, before);
        self.hooks.push(Arc::new(Hook {
            id: (configuration.to_owned(), hook["name"].as_str().unwrap_or_default().to_owned()),
            matcher,
            is_optional: hook["failurePolicy"] == "Ignore",
            has_no_side_effects: hook["sideEffects"] == "None" || hook["sideEffects"] == "NoneOnDryRun",
            is_reinvoked: hook["reinvocationPolicy"] == "IfNeeded",
            timeout: Duration::from_secs(seconds),
            version: review::version(hook),
            client,
            conditions: Conditions::new(hook),
        }));
    }

    fn find_by(&mut self, at: usize, matcher: &Matcher, catalog: &Catalog) {
        for (group, resource) in matcher.rules().iter().flat_map(|rule| rule.names()) {
            if group == "*" || resource == "*" {
                self.any.push(at);
                continue;
            }
            self.name(at, group, resource);
            if matcher.is_exact() {
                continue;
            }
            let of = |row: &&Arc<apiserver_resources::ResourceInfo>| &*row.group == group && &*row.plural == resource;
            let versions: Vec<_> = catalog.resources().iter().filter(of).cloned().collect();
            for row in versions {
                for other in equivalents(catalog, (&row.group, &row.version, &row.plural)) {
                    self.name(at, &other.group, &other.plural);
                }
            }
        }
    }

    fn name(&mut self, at: usize, group: &str, resource: &str) {
        let of_group = self.named.entry(group.to_owned()).or_default();
        of_group.entry(resource.to_owned()).or_default().push(at);
    }

    /// Those that may be about a resource, in order.
    pub(super) fn candidates(&self, group: &str, resource: &str) -> Vec<Arc<Hook>> {
        let named = self.named.get(group).and_then(|of_group| of_group.get(resource));
        if named.is_none() && self.any.is_empty() {
            return Vec::new();
        }
        let mut found: Vec<usize> = named.into_iter().flatten().chain(&self.any).copied().collect();
        found.sort_unstable();
        found.dedup();
        found.into_iter().filter_map(|at| self.hooks.get(at).cloned()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn configuration(name: &str, hooks: &[(&str, &str, &str)]) -> Arc<Value> {
        let hook = |(name, group, resource): &(&str, &str, &str)| {
            json!({"name": name, "clientConfig": {"url": "https://h.example"}, "admissionReviewVersions": ["v9", "v1"],
                "rules": [{"operations": ["*"], "apiGroups": [group], "apiVersions": ["*"], "resources": [resource]}]})
        };
        Arc::new(json!({"metadata": {"name": name}, "webhooks": hooks.iter().map(hook).collect::<Vec<_>>()}))
    }

    #[test]
    fn hooks_are_found_by_resource_in_order() {
        let catalog = Catalog::built_in("");
        let all = [
            configuration("a", &[("second", "apps", "deployments"), ("all", "*", "*")]),
            configuration("b", &[("scale", "apps", "deployments/scale"), ("events", "", "events")]),
        ];
        let index = Index::new(1, &all, (&catalog, &Accounts::default()), &Index::default());
        let names = |group: &str, resource: &str| -> Vec<String> {
            index.candidates(group, resource).iter().map(|hook| hook.id.1.clone()).collect()
        };
        assert_eq!(names("apps", "deployments"), ["second", "all", "scale"]);
        assert_eq!(names("", "pods"), ["all"]);
        assert_eq!(names("events.k8s.io", "events"), ["all", "events"], "the same under another name");
        let one = configuration("c", &[("pods", "", "pods")]);
        let index = Index::new(2, &[one], (&catalog, &Accounts::default()), &index);
        assert!(index.candidates("apps", "deployments").is_empty());
        assert_eq!(index.clients.len(), 1, "what nobody names any more is gone");
    }
}
