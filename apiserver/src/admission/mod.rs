//! Admission: one ordered table of plugins, one file per plugin.
//!
//! [`Chain::mutate`] runs on the decoded and defaulted object (or the patched one), before names are generated and before
//! the strategy; [`Chain::validate`] on the object as it would be stored. Deletes pass through both with no object.
//! A plugin decides from what it is given and never waits; see [`Chain::awaits_account`] for the one thing worth waiting for.

mod default_tolerations;
mod escalation;
mod namespace_lifecycle;
mod node_restriction;
mod priority;
mod runtime_class;
mod service_account;
mod taint_nodes;

use std::sync::Arc;

use machinery::api::error::{ApiError, ApiResult, Named};
use machinery::env::Env;
use serde_json::Value;

use crate::auth::{Authorizer, UserInfo};
use crate::objects::Objects;

/// What is done to an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// It is new: also when an update creates it.
    Create,
    /// It changes: updates and patches, of subresources too.
    Update,
    /// It goes: deletes, and each object of a collection's delete.
    Delete,
}

/// What admission knows about a request.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// Who asks, after impersonation.
    pub user: &'a UserInfo,
    /// The API group.
    pub group: &'a str,
    /// The plural.
    pub resource: &'a str,
    /// The subresource, or empty.
    pub subresource: &'a str,
    /// What is done.
    pub operation: Operation,
    /// The request's namespace, or empty.
    pub namespace: &'a str,
    /// The name in the path (or of the object of a collection's delete); empty for a create in a collection.
    pub name: &'a str,
    /// Whether nothing is to be stored.
    pub dry_run: bool,
}

impl Request<'_> {
    /// Whether this is about pods (core) and not one of their subresources.
    fn is_pod(&self) -> bool {
        self.is("pods")
    }

    /// Whether this is about a core resource and not one of its subresources.
    fn is(&self, plural: &str) -> bool {
        self.group.is_empty() && self.resource == plural && self.subresource.is_empty()
    }

    /// A plugin's refusal, in upstream's form: named as the object will be, as far as is known yet.
    fn refused(&self, object: &Value, why: impl Into<String>) -> ApiError {
        let metadata = |field: &str| object["metadata"][field].as_str().filter(|name| !name.is_empty());
        let name = match self.name {
            "" if object.is_null() => "Unknown",
            "" => metadata("name").or_else(|| metadata("generateName")).unwrap_or("Unknown"),
            name => name,
        };
        ApiError::Forbidden(Named::new(self.group, self.resource), name.to_owned(), why.into())
    }
}

/// What a plugin decides from.
pub struct Context<'a> {
    /// The request.
    pub request: &'a Request<'a>,
    /// All other objects.
    pub objects: &'a dyn Objects,
    /// What is there: for updates and deletes.
    pub old: Option<&'a Value>,
    env: &'a Env,
    authorizer: &'a Authorizer,
    toleration_seconds: i64,
}

/// One plugin. A field that does nothing is `None`.
pub struct Plugin {
    /// Upstream's name.
    pub name: &'static str,
    /// May change the object, or refuse it.
    mutate: Option<fn(&Context<'_>, &mut Value) -> ApiResult<()>>,
    /// May refuse the object.
    validate: Option<fn(&Context<'_>, &Value) -> ApiResult<()>>,
}

/// All plugins, in upstream's order.
pub const PLUGINS: &[Plugin] = &[
    namespace_lifecycle::PLUGIN,
    service_account::PLUGIN,
    node_restriction::PLUGIN,
    taint_nodes::PLUGIN,
    priority::PLUGIN,
    default_tolerations::PLUGIN,
    runtime_class::PLUGIN,
    escalation::PLUGIN,
];

/// The plugins with what they need.
#[derive(Debug, Clone)]
pub struct Chain {
    env: Env,
    authorizer: Arc<Authorizer>,
    toleration_seconds: i64,
}

impl Chain {
    /// All of [`PLUGINS`].
    #[must_use]
    pub fn new(env: &Env, authorizer: Arc<Authorizer>) -> Self {
        Self { env: env.clone(), authorizer, toleration_seconds: default_tolerations::SECONDS }
    }

    /// The same with another wait of DefaultTolerationSeconds.
    #[must_use]
    pub fn with_toleration_seconds(self, toleration_seconds: i64) -> Self {
        Self { toleration_seconds, ..self }
    }

    /// Lets every plugin change or refuse the object. For a delete, `object` is null and `old` what is deleted.
    pub fn mutate(
        &self,
        request: &Request<'_>,
        objects: &dyn Objects,
        object: &mut Value,
        old: Option<&Value>,
    ) -> ApiResult<()> {
        let context = self.context(request, objects, old);
        PLUGINS.iter().filter_map(|plugin| plugin.mutate).try_for_each(|mutate| mutate(&context, object))
    }

    /// Lets every plugin refuse the object as it would be stored.
    pub fn validate(
        &self,
        request: &Request<'_>,
        objects: &dyn Objects,
        object: &Value,
        old: Option<&Value>,
    ) -> ApiResult<()> {
        let context = self.context(request, objects, old);
        PLUGINS.iter().filter_map(|plugin| plugin.validate).try_for_each(|validate| validate(&context, object))
    }

    /// Whether a pod is about to be refused because its namespace is so new that its controller hasn't made the service
    /// account `default` yet. Upstream waits for it for about a second; the caller should, too, before [`mutate`](Self::mutate).
    #[must_use]
    pub fn awaits_account(&self, request: &Request<'_>, objects: &dyn Objects, object: &Value) -> bool {
        service_account::awaits_default(request, objects, object)
    }

    fn context<'a>(
        &'a self,
        request: &'a Request<'a>,
        objects: &'a dyn Objects,
        old: Option<&'a Value>,
    ) -> Context<'a> {
        Context {
            request,
            objects,
            old,
            env: &self.env,
            authorizer: &self.authorizer,
            toleration_seconds: self.toleration_seconds,
        }
    }
}

/// The list at `object[outer][inner]`, made where it is missing or null; `None` where something else is in its place.
fn list_mut<'a>(object: &'a mut Value, outer: &str, inner: &str) -> Option<&'a mut Vec<Value>> {
    let list = object.get_mut(outer)?.as_object_mut()?.entry(inner).or_insert_with(|| Value::Array(Vec::new()));
    if list.is_null() {
        *list = Value::Array(Vec::new());
    }
    list.as_array_mut()
}

/// A mirror pod: a kubelet's own, which the API server only shows.
fn is_mirror(pod: &Value) -> bool {
    pod["metadata"]["annotations"].get("kubernetes.io/config.mirror").is_some()
}

#[cfg(test)]
mod tests;
