//! ValidatingAdmissionPolicy and MutatingAdmissionPolicy: CEL expressions that validate and mutate written objects.

mod compile;
mod evaluate;
mod lazy;
mod merge;
mod mutating;
mod params;
mod rights;
mod validating;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use machinery_env::Env;
use serde_json::Value;

use self::compile::{Binding, Policy};
use super::Context;
use super::matching::{Matched, is_exempt_from_policies};
use apiserver_catalog::{Catalog, SharedCatalog};
use machinery_api::error::ApiResult;

pub(super) use compile::Conditions;
pub(super) use lazy::Lazy;
pub(super) use mutating::Mutating;
pub(super) use rights::ParamRights;
pub(super) use validating::Validating;

const GROUP: &str = "admissionregistration.k8s.io";

/// The phase of a policy plugin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Validating,
    Mutating,
}

impl Kind {
    fn policies(self) -> &'static str {
        match self {
            Self::Validating => "validatingadmissionpolicies",
            Self::Mutating => "mutatingadmissionpolicies",
        }
    }

    fn bindings(self) -> &'static str {
        match self {
            Self::Validating => "validatingadmissionpolicybindings",
            Self::Mutating => "mutatingadmissionpolicybindings",
        }
    }
}

/// A policy with its bindings.
type BoundPolicy = (Arc<Policy>, Vec<Arc<Binding>>);

/// All bound policies, rebuilt when a policy or binding changes.
#[derive(Default)]
struct Index {
    /// The revisions of policies and bindings that the index was built from.
    revisions: (u64, u64),
    bound_policies: Vec<BoundPolicy>,
    /// Policies by name and resourceVersion, reused if unchanged.
    cached: HashMap<String, (String, Arc<Policy>)>,
}

/// The state of each plugin.
struct Policies {
    served: Arc<SharedCatalog>,
    kind: Kind,
    index: ArcSwap<Index>,
}

/// The maximum time of expressions between two yields.
const YIELD_INTERVAL: Duration = Duration::from_millis(2);

/// Yields to the runtime at intervals while many policies, bindings or parameters are evaluated in sequence.
struct YieldTimer<'a> {
    env: &'a Env,
    since: Duration,
}

impl<'a> YieldTimer<'a> {
    fn new(context: &Context<'a>) -> Self {
        Self { env: context.env, since: context.env.elapsed() }
    }

    async fn yield_if_due(&mut self) {
        if self.env.elapsed().saturating_sub(self.since) >= YIELD_INTERVAL {
            tokio::task::yield_now().await;
            self.since = self.env.elapsed();
        }
    }
}

fn name_of(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}

impl Policies {
    fn new(served: Arc<SharedCatalog>, kind: Kind) -> Self {
        Self { served, kind, index: ArcSwap::default() }
    }

    /// Returns the bound policies. Empty for requests that are exempt.
    fn bound_policies(&self, context: &Context<'_>) -> Arc<Index> {
        let objects = context.objects;
        if is_exempt_from_policies(context.request) {
            return Arc::default();
        }
        let revisions = (objects.revision(GROUP, self.kind.policies()), objects.revision(GROUP, self.kind.bindings()));
        let index = self.index.load_full();
        if index.revisions == revisions {
            return index;
        }
        let index = Arc::new(self.rebuild(context, revisions, &index));
        self.index.store(index.clone());
        index
    }

    fn rebuild(&self, context: &Context<'_>, revisions: (u64, u64), before: &Index) -> Index {
        let mut bindings: HashMap<String, Vec<Arc<Binding>>> = HashMap::new();
        for binding in context.objects.list(GROUP, self.kind.bindings(), None) {
            let policy = binding["spec"]["policyName"].as_str().unwrap_or_default().to_owned();
            bindings.entry(policy).or_default().push(Arc::new(Binding::new(&binding)));
        }
        let mut index = Index { revisions, ..Index::default() };
        for object in context.objects.list(GROUP, self.kind.policies(), None) {
            let name = name_of(&object);
            let Some(bindings) = bindings.remove(name) else { continue };
            let version = object["metadata"]["resourceVersion"].as_str().unwrap_or_default().to_owned();
            let cached = before.cached.get(name).filter(|(cached, _)| *cached == version);
            let policy = cached.map_or_else(
                || Arc::new(Policy::new(&object, self.kind == Kind::Mutating)),
                |(_, policy)| policy.clone(),
            );
            index.cached.insert(name.to_owned(), (version, policy.clone()));
            index.bound_policies.push((policy, bindings));
        }
        index
    }
}

/// Returns the version in which a policy matches the request, if it matches.
fn matches(policy: &Policy, context: &Context<'_>, object: &Value, catalog: &Catalog) -> ApiResult<Option<Matched>> {
    policy.constraints.matches(context, object, catalog)
}
