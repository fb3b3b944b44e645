//! ValidatingAdmissionPolicy and MutatingAdmissionPolicy: expressions decide about what is written, and change it.

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
use crate::catalog::{Catalog, Served};
use machinery_api::error::ApiResult;

pub(super) use compile::Conditions;
pub(super) use lazy::Lazy;
pub(super) use mutating::Mutating;
pub(super) use rights::ParamRights;
pub(super) use validating::Validating;

const GROUP: &str = "admissionregistration.k8s.io";

/// Which of the two a plugin is.
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

/// A policy with where it is in force.
type InForce = (Arc<Policy>, Vec<Arc<Binding>>);

/// All policies that are bound, read anew when one of them changes.
#[derive(Default)]
struct Index {
    /// At which revisions policies and bindings were seen.
    revisions: (u64, u64),
    in_force: Vec<InForce>,
    /// By name and resourceVersion: what did not change is not read again.
    known: HashMap<String, (String, Arc<Policy>)>,
}

/// What both plugins need.
struct Policies {
    served: Arc<Served>,
    kind: Kind,
    index: ArcSwap<Index>,
}

/// How long expressions may take until others have their turn.
const TURN: Duration = Duration::from_millis(2);

/// Lets others have their turn where many policies, bindings or parameters are asked, one after the other.
struct Turns<'a> {
    env: &'a Env,
    since: Duration,
}

impl<'a> Turns<'a> {
    fn new(context: &Context<'a>) -> Self {
        Self { env: context.env, since: context.env.elapsed() }
    }

    async fn take(&mut self) {
        if self.env.elapsed().saturating_sub(self.since) >= TURN {
            tokio::task::yield_now().await;
            self.since = self.env.elapsed();
        }
    }
}

fn name_of(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}

impl Policies {
    fn new(served: Arc<Served>, kind: Kind) -> Self {
        Self { served, kind, index: ArcSwap::default() }
    }

    /// The policies that are bound; none for what decides about others.
    fn in_force(&self, context: &Context<'_>) -> Arc<Index> {
        let objects = context.objects;
        if is_exempt_from_policies(context.request) {
            return Arc::default();
        }
        let seen = (objects.revision(GROUP, self.kind.policies()), objects.revision(GROUP, self.kind.bindings()));
        let index = self.index.load_full();
        if index.revisions == seen {
            return index;
        }
        let index = Arc::new(self.read(context, seen, &index));
        self.index.store(index.clone());
        index
    }

    fn read(&self, context: &Context<'_>, revisions: (u64, u64), before: &Index) -> Index {
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
            let known = before.known.get(name).filter(|(known, _)| *known == version);
            let policy = known.map_or_else(
                || Arc::new(Policy::new(&object, self.kind == Kind::Mutating)),
                |(_, policy)| policy.clone(),
            );
            index.known.insert(name.to_owned(), (version, policy.clone()));
            index.in_force.push((policy, bindings));
        }
        index
    }
}

/// What a policy is about: in which version, or why that can't be known.
fn matches(policy: &Policy, context: &Context<'_>, object: &Value, catalog: &Catalog) -> ApiResult<Option<Matched>> {
    policy.constraints.matches(context, object, catalog)
}
