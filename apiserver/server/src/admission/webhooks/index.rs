//! All hooks, compiled when their configurations change, and found by the resource that a request is about.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use super::review;
use crate::admission::matching::{Matcher, equivalents};
use crate::admission::policies::{Conditions, Lazy};
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
    /// Its `clientConfig`.
    reached_by: String,
    /// None: it has no conditions.
    pub(super) conditions: Option<Arc<Lazy<Conditions>>>,
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
    /// By configuration and resourceVersion: what did not change is not made again.
    made: HashMap<String, (String, Vec<Arc<Hook>>)>,
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
            let text = |field: &str| configuration["metadata"][field].as_str().unwrap_or_default();
            let (name, version) = (text("name"), text("resourceVersion"));
            let known = before.made.get(name).filter(|(known, _)| known == version && !version.is_empty());
            let hooks = match known {
                Some((_, hooks)) => hooks.clone(),
                None => {
                    let mut hooks = Vec::new();
                    for hook in configuration["webhooks"].as_array().into_iter().flatten() {
                        hooks.push(Arc::new(index.hook(name, hook, accounts, before)));
                        hooks.last().into_iter().for_each(|hook| index.keep(hook));
                    }
                    hooks
                }
            };
            for hook in &hooks {
                index.add(hook.clone(), catalog);
            }
            index.made.insert(name.to_owned(), (version.to_owned(), hooks));
        }
        index
    }

    fn client(
        &self,
        config: &Value,
        reached_by: &str,
        accounts: &Accounts,
        before: &Self,
    ) -> Result<Arc<Client>, String> {
        match self.clients.get(reached_by).or_else(|| before.clients.get(reached_by)) {
            Some(client) => Ok(client.clone()),
            None => Client::new(config, accounts).map(Arc::new),
        }
    }

    fn hook(&self, configuration: &str, hook: &Value, accounts: &Accounts, before: &Self) -> Hook {
        let seconds = hook["timeoutSeconds"].as_u64().unwrap_or(10).clamp(1, 30);
        let has_conditions = hook["matchConditions"].as_array().is_some_and(|all| !all.is_empty());
        let reached_by = hook["clientConfig"].to_string();
        Hook {
            id: (configuration.to_owned(), hook["name"].as_str().unwrap_or_default().to_owned()),
            matcher: Matcher::of(hook, &hook["rules"]).map_err(|error| error.to_string()),
            is_optional: hook["failurePolicy"] == "Ignore",
            has_no_side_effects: hook["sideEffects"] == "None" || hook["sideEffects"] == "NoneOnDryRun",
            is_reinvoked: hook["reinvocationPolicy"] == "IfNeeded",
            timeout: Duration::from_secs(seconds),
            version: review::version(hook),
            client: self.client(&hook["clientConfig"], &reached_by, accounts, before),
            reached_by,
            conditions: has_conditions.then(|| Arc::new(Lazy::new(Arc::new(hook.clone()), Conditions::new))),
        }
    }

    fn add(&mut self, hook: Arc<Hook>, catalog: &Catalog) {
        if let Ok(matcher) = &hook.matcher {
            self.find_by(self.hooks.len(), matcher, catalog);
        }
        self.keep(&hook);
        self.hooks.push(hook);
    }

    /// Keeps how a hook is reached.
    fn keep(&mut self, hook: &Hook) {
        if let Ok(client) = &hook.client {
            self.clients.entry(hook.reached_by.clone()).or_insert_with(|| client.clone());
        }
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
