//! An index of all webhooks by resource, rebuilt when configurations change.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use super::review;
use crate::matching::{Matcher, equivalents};
use crate::policies::{Conditions, Lazy};
use apiserver_catalog::Catalog;
use apiserver_webhook::{Accounts, Client};

/// One webhook of a configuration.
pub(super) struct Hook {
    /// The names of the configuration and the webhook.
    pub(super) id: (String, String),
    /// `Err` holds the reason why the criteria are invalid.
    pub(super) matcher: Result<Matcher, String>,
    /// Whether failures to call the webhook are ignored.
    pub(super) is_optional: bool,
    /// Whether the webhook may be called for dry runs.
    pub(super) has_no_side_effects: bool,
    /// Whether the webhook is called again after changes by others.
    pub(super) is_reinvoked: bool,
    pub(super) timeout: Duration,
    /// The newest review version that the webhook accepts.
    pub(super) version: Option<&'static str>,
    pub(super) client: Result<Arc<Client>, String>,
    /// The serialized `clientConfig`.
    client_config: String,
    /// `None` means no conditions.
    pub(super) conditions: Option<Arc<Lazy<Conditions>>>,
}

#[derive(Default)]
pub(super) struct Index {
    /// The revision of the configurations that the index was built from.
    pub(super) revision: u64,
    hooks: Vec<Arc<Hook>>,
    /// Indices of webhooks by group and resource.
    by_resource: HashMap<String, HashMap<String, Vec<usize>>>,
    /// Indices of webhooks with a wildcard group or resource.
    any: Vec<usize>,
    /// Webhooks by configuration and resourceVersion, reused if unchanged.
    by_configuration: HashMap<String, (String, Vec<Arc<Hook>>)>,
    /// Clients by `clientConfig`. Connections survive changes of other configurations.
    clients: HashMap<String, Arc<Client>>,
}

impl Index {
    /// Builds the index from configurations in the order of their names.
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
            let cached =
                before.by_configuration.get(name).filter(|(cached, _)| cached == version && !version.is_empty());
            let hooks = match cached {
                Some((_, hooks)) => hooks.clone(),
                None => {
                    let mut hooks = Vec::new();
                    for hook in configuration["webhooks"].as_array().into_iter().flatten() {
                        hooks.push(Arc::new(index.hook(name, hook, accounts, before)));
                        hooks.last().into_iter().for_each(|hook| index.cache_client(hook));
                    }
                    hooks
                }
            };
            for hook in &hooks {
                index.add(hook.clone(), catalog);
            }
            index.by_configuration.insert(name.to_owned(), (version.to_owned(), hooks));
        }
        index
    }

    fn client(
        &self,
        config: &Value,
        client_config: &str,
        accounts: &Accounts,
        before: &Self,
    ) -> Result<Arc<Client>, String> {
        match self.clients.get(client_config).or_else(|| before.clients.get(client_config)) {
            Some(client) => Ok(client.clone()),
            None => Client::new(config, accounts).map(Arc::new),
        }
    }

    fn hook(&self, configuration: &str, hook: &Value, accounts: &Accounts, before: &Self) -> Hook {
        let seconds = hook["timeoutSeconds"].as_u64().unwrap_or(10).clamp(1, 30);
        let has_conditions = hook["matchConditions"].as_array().is_some_and(|all| !all.is_empty());
        let client_config = hook["clientConfig"].to_string();
        Hook {
            id: (configuration.to_owned(), hook["name"].as_str().unwrap_or_default().to_owned()),
            matcher: Matcher::parse(hook, &hook["rules"]).map_err(|error| error.to_string()),
            is_optional: hook["failurePolicy"] == "Ignore",
            has_no_side_effects: hook["sideEffects"] == "None" || hook["sideEffects"] == "NoneOnDryRun",
            is_reinvoked: hook["reinvocationPolicy"] == "IfNeeded",
            timeout: Duration::from_secs(seconds),
            version: review::version(hook),
            client: self.client(&hook["clientConfig"], &client_config, accounts, before),
            client_config,
            conditions: has_conditions.then(|| Arc::new(Lazy::new(Arc::new(hook.clone()), Conditions::new))),
        }
    }

    fn add(&mut self, hook: Arc<Hook>, catalog: &Catalog) {
        if let Ok(matcher) = &hook.matcher {
            self.index_rules(self.hooks.len(), matcher, catalog);
        }
        self.cache_client(&hook);
        self.hooks.push(hook);
    }

    /// Registers the webhook's client for reuse.
    fn cache_client(&mut self, hook: &Hook) {
        if let Ok(client) = &hook.client {
            self.clients.entry(hook.client_config.clone()).or_insert_with(|| client.clone());
        }
    }

    fn index_rules(&mut self, at: usize, matcher: &Matcher, catalog: &Catalog) {
        for (group, resource) in matcher.rules().iter().flat_map(|rule| rule.resource_names()) {
            if group == "*" || resource == "*" {
                self.any.push(at);
                continue;
            }
            self.index_resource(at, group, resource);
            if matcher.is_exact() {
                continue;
            }
            let of = |row: &&Arc<apiserver_resources::ResourceInfo>| &*row.group == group && &*row.plural == resource;
            let versions: Vec<_> = catalog.resources().iter().filter(of).cloned().collect();
            for row in versions {
                for other in equivalents(catalog, (&row.group, &row.version, &row.plural)) {
                    self.index_resource(at, &other.group, &other.plural);
                }
            }
        }
    }

    fn index_resource(&mut self, at: usize, group: &str, resource: &str) {
        let of_group = self.by_resource.entry(group.to_owned()).or_default();
        of_group.entry(resource.to_owned()).or_default().push(at);
    }

    /// Returns the webhooks that may match a resource, in order.
    pub(super) fn candidates(&self, group: &str, resource: &str) -> Vec<Arc<Hook>> {
        let named = self.by_resource.get(group).and_then(|of_group| of_group.get(resource));
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
