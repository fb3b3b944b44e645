//! The admission chain: one ordered table of plugins, one file per plugin.
//!
//! [`Chain::mutate`] runs on the decoded and defaulted (or patched) object, before names are generated and before the
//! strategy. [`Chain::validate`] runs on the object as it would be stored. Deletes pass through both without an object.
//! A plugin returns its result immediately, or a future if it has to wait ([`Step`]); plugins that do not wait cost no
//! allocation. A plugin may add conditions and writes to the transaction that stores the object.
//!
//! Absent on purpose: HTTP, sockets and the server: a plugin reads other objects through
//! [`ObjectReader`](apiserver_resources::objects::ObjectReader), and calls webhooks through [`apiserver_webhook`].
#![warn(missing_docs)]

mod certificates;
mod configuration;
mod default_classes;
mod default_tolerations;
mod device_admin_access;
mod escalation;
mod imports;
mod limit_ranger;
mod matching;
mod namespace_lifecycle;
mod node_restriction;
mod node_writes;
mod pod_ranges;
mod pod_resize;
mod pod_security;
mod pod_topology_labels;
mod policies;
mod priority;
mod resource_quota;
mod review_input;
mod runtime_class;
mod service_account;
mod storage;
mod taint_nodes;
mod template;
mod webhooks;

use std::collections::BTreeMap;
use std::sync::Arc;

use apiserver_schema::apply::Managers;
use machinery_api::GroupVersionKind;
use machinery_api::error::{ApiError, ApiResult, GroupResource};
use machinery_env::Env;
use serde_json::Value;

use apiserver_auth::{Authorizer, UserInfo};
use apiserver_catalog::SharedCatalog;
use apiserver_resources::objects::ObjectReader;
use apiserver_resources::options::{DeleteOptions, WriteOptions};
use apiserver_storage::store::Txn;
use apiserver_webhook::conversion::Converter;
use apiserver_webhook::{Accounts, Caller};

pub use configuration::AdmissionConfiguration;
pub use imports::{ImageImports, ImageMetadata};
pub use webhooks::Reinvocation;

/// The operation of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Creates, and updates that create the object.
    Create,
    /// Updates and patches, also of subresources.
    Update,
    /// Deletes, and each object of a collection delete.
    Delete,
    /// Connections: exec, attach, port-forward, proxy.
    Connect,
}

impl Operation {
    /// The spelling of admission reviews and error messages.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Create => "CREATE",
            Self::Update => "UPDATE",
            Self::Delete => "DELETE",
            Self::Connect => "CONNECT",
        }
    }
}

/// The options of the request's verb.
#[derive(Debug, Clone, Copy)]
pub enum Options<'a> {
    /// Options of a create, update or patch.
    Write(&'a WriteOptions),
    /// Options of a delete.
    Delete(&'a DeleteOptions),
}

impl Options<'_> {
    /// Whether the request is a dry run.
    #[must_use]
    pub fn dry_run(&self) -> bool {
        match self {
            Self::Write(options) => options.dry_run,
            Self::Delete(options) => options.dry_run,
        }
    }

    /// Whether the client requested warnings by parameter.
    #[must_use]
    pub fn shows_warnings(&self) -> bool {
        matches!(self, Self::Write(options) if options.shows_warnings)
    }
}

/// The attributes of a request under admission.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// The user after impersonation, with groups and extras.
    pub user: &'a UserInfo,
    /// The API group; empty for the core group.
    pub group: &'a str,
    /// The version in the path.
    pub version: &'a str,
    /// The plural name.
    pub resource: &'a str,
    /// The subresource, or empty.
    pub subresource: &'a str,
    /// The kind of the body: a Scale, a Binding or a TokenRequest for subresources that take one.
    pub kind: GroupVersionKind<'a>,
    /// The operation, as webhooks and policies match it.
    pub operation: Operation,
    /// The request's namespace, or empty.
    pub namespace: &'a str,
    /// The object's name, if known. For a create in a collection this is the object's own name.
    pub name: &'a str,
    /// The name in the path, used for authorization. Empty for a create in a collection.
    pub path_name: &'a str,
    /// The options of the verb.
    pub options: Options<'a>,
}

impl Request<'_> {
    /// The namespace that webhooks and policies see: for the creation of a Namespace, as for its other requests, its
    /// name.
    fn shown_namespace<'b>(&'b self, name: &'b str) -> &'b str {
        match self.namespace {
            "" if self.operation == Operation::Create && self.is("namespaces") => name,
            namespace => namespace,
        }
    }

    /// Whether the request is for core pods and no subresource.
    fn is_pod(&self) -> bool {
        self.is("pods")
    }

    /// Whether the request is for the ephemeral containers of a core pod.
    fn is_ephemeral_containers(&self) -> bool {
        self.group.is_empty() && self.resource == "pods" && self.subresource == "ephemeralcontainers"
    }

    /// Whether the request is for this core resource and no subresource.
    fn is(&self, plural: &str) -> bool {
        self.group.is_empty() && self.resource == plural && self.subresource.is_empty()
    }

    /// Builds a plugin's Forbidden error in upstream's form, with the object's future name if that is known.
    fn forbidden(&self, object: &Value, why: impl Into<String>) -> ApiError {
        let metadata = |field: &str| object["metadata"][field].as_str().filter(|name| !name.is_empty());
        let name = match self.name {
            "" if object.is_null() => "Unknown",
            "" => metadata("name").or_else(|| metadata("generateName")).unwrap_or("Unknown"),
            name => name,
        };
        ApiError::Forbidden(GroupResource::new(self.group, self.resource), name.to_owned(), why.into())
    }
}

/// The inputs of a plugin.
pub struct Context<'a> {
    /// The attributes of the request.
    pub request: &'a Request<'a>,
    /// Reads all other objects.
    pub objects: &'a dyn ObjectReader,
    /// The stored object, for updates and deletes.
    pub old: Option<&'a Value>,
    env: &'a Env,
    authorizer: &'a Authorizer,
    converter: Option<&'a Converter>,
    configuration: &'a AdmissionConfiguration,
    toleration_seconds: i64,
    interrupt: Interrupt,
}

/// Whether the evaluation of an expression must end: the request has used up its share of the thread, and is run again
/// elsewhere. Called by loops, about every hundred iterations.
pub type Interrupt = fn() -> bool;

/// The input of [`Chain::validate`].
#[derive(Debug, Clone, Copy)]
pub struct ValidateInput<'a> {
    /// The object as it would be stored.
    pub object: &'a Value,
    /// The same object for the built-in plugins, with the empty fields that the client sent.
    pub given: &'a Value,
    /// The stored object.
    pub old: Option<&'a Value>,
}

/// The results of the plugins other than the object.
#[derive(Debug, Default)]
pub struct Effects {
    /// Conditions and writes of the transaction that stores the object.
    pub txn: Txn,
    /// Changes of other objects in the same transaction.
    pub writes: Vec<SideWrite>,
    /// Locks held until the transaction is committed.
    pub quota_locks: Vec<tokio::sync::OwnedMutexGuard<()>>,
    /// Texts of `Warning` headers, in order.
    pub warnings: Vec<String>,
    /// Annotations of the request's audit event.
    pub audit: BTreeMap<String, String>,
    /// The managers of the object's fields, before and after, for webhooks and policies that receive both objects.
    pub managed: Managed,
    /// State carried from the first round of plugins to the second.
    pub reinvocation: Reinvocation,
    /// The declared imports of the images in the request.
    images: imports::KnownImages,
}

/// Field managers. Empty for subresources with a body of their own kind, except Scale.
#[derive(Debug, Default)]
pub struct Managed {
    /// Managers of the written object.
    pub new: Managers,
    /// Managers of the stored object.
    pub old: Managers,
}

impl Effects {
    /// Adds an annotation to the request's audit event. The first value of a key wins, as upstream.
    fn audit(&mut self, key: String, value: String) {
        self.audit.entry(key).or_insert(value);
    }
}

/// A change of another object in the transaction, conditional on its resourceVersion.
#[derive(Debug)]
pub struct SideWrite {
    /// The object's API group.
    pub group: &'static str,
    /// The object's plural name.
    pub plural: &'static str,
    /// The new object in its stored version, with the resourceVersion at which it was read.
    pub object: Value,
}

/// The result of a plugin: immediate, or a future.
pub type MaybeReady<'a> = apiserver_auth::MaybeReady<'a, ApiResult<()>>;

/// An admission plugin. It may be called again for one request: after a write conflict with the client's object, or
/// after a change by another plugin. Its changes must be idempotent.
pub trait Plugin: Send + Sync {
    /// Upstream's name of the plugin.
    fn name(&self) -> &'static str;

    /// Changes or rejects the object.
    fn mutate<'a>(
        &'a self,
        context: &'a Context<'_>,
        object: &'a mut Value,
        effects: &'a mut Effects,
    ) -> MaybeReady<'a> {
        let _ = (context, object, effects);
        MaybeReady::Ready(Ok(()))
    }

    /// Rejects the object as it would be stored.
    fn validate<'a>(&'a self, context: &'a Context<'_>, object: &'a Value, effects: &'a mut Effects) -> MaybeReady<'a> {
        let _ = (context, object, effects);
        MaybeReady::Ready(Ok(()))
    }
}

/// A plugin that returns immediately and has no side effects. An unused phase is `None`.
struct Immediate {
    name: &'static str,
    mutate: Option<fn(&Context<'_>, &mut Value) -> ApiResult<()>>,
    validate: Option<fn(&Context<'_>, &Value) -> ApiResult<()>>,
}

impl Plugin for Immediate {
    fn name(&self) -> &'static str {
        self.name
    }

    fn mutate<'a>(&'a self, context: &'a Context<'_>, object: &'a mut Value, _: &'a mut Effects) -> MaybeReady<'a> {
        MaybeReady::Ready(self.mutate.map_or(Ok(()), |mutate| mutate(context, object)))
    }

    fn validate<'a>(&'a self, context: &'a Context<'_>, object: &'a Value, _: &'a mut Effects) -> MaybeReady<'a> {
        MaybeReady::Ready(self.validate.map_or(Ok(()), |validate| validate(context, object)))
    }
}

/// All built-in plugins, in upstream's order.
pub const PLUGINS: &[&dyn Plugin] = &[
    &namespace_lifecycle::NamespaceLifecycle,
    &limit_ranger::PLUGIN,
    &service_account::ServiceAccount,
    &node_restriction::NodeRestriction,
    &taint_nodes::PLUGIN,
    &pod_security::PodSecurity,
    &priority::PLUGIN,
    &default_tolerations::PLUGIN,
    &default_classes::STORAGE,
    &storage::PROTECTION,
    &storage::RESIZE,
    &runtime_class::PLUGIN,
    &certificates::CertificateApproval,
    &certificates::CertificateSigning,
    &certificates::CertificateSubjectRestriction,
    &default_classes::INGRESS,
    &pod_topology_labels::PLUGIN,
    &pod_resize::PLUGIN,
    &device_admin_access::PLUGIN,
    &escalation::Escalation,
];

/// The admission chain: the plugins with their dependencies.
#[derive(Clone)]
pub struct Chain {
    env: Env,
    authorizer: Arc<Authorizer>,
    /// Converts custom resources to other versions.
    converter: Option<Arc<Converter>>,
    configuration: Arc<AdmissionConfiguration>,
    toleration_seconds: i64,
    interrupt: Interrupt,
    /// Runs after the built-in plugins.
    imports: Arc<imports::Imports>,
    /// Run after `imports`.
    more: Vec<Arc<dyn Plugin>>,
    /// Run after `more`.
    policies: Vec<Arc<dyn Plugin>>,
    webhooks: Vec<Arc<dyn Plugin>>,
    /// Runs last.
    quota: Arc<resource_quota::ResourceQuota>,
}

impl Chain {
    /// Builds a chain with all of [`PLUGINS`].
    #[must_use]
    pub fn new(env: &Env, authorizer: Arc<Authorizer>) -> Self {
        Self {
            env: env.clone(),
            authorizer,
            converter: None,
            configuration: Arc::default(),
            toleration_seconds: default_tolerations::SECONDS,
            interrupt: || false,
            imports: Arc::new(imports::Imports::new(None)),
            more: Vec::new(),
            policies: Vec::new(),
            webhooks: Vec::new(),
            quota: Arc::default(),
        }
    }

    /// Sets the delay of DefaultTolerationSeconds.
    #[must_use]
    pub fn with_toleration_seconds(self, toleration_seconds: i64) -> Self {
        Self { toleration_seconds, ..self }
    }

    /// Sets the check that interrupts expressions; without it none is interrupted.
    #[must_use]
    pub fn with_interrupt(self, interrupt: Interrupt) -> Self {
        Self { interrupt, ..self }
    }

    /// Sets the configuration of the plugins.
    #[must_use]
    pub fn with_configuration(self, configuration: Arc<AdmissionConfiguration>) -> Self {
        Self { configuration, ..self }
    }

    /// Sets the converter of custom resources.
    #[must_use]
    pub fn with_converter(self, converter: &Arc<Converter>) -> Self {
        Self { converter: Some(converter.clone()), ..self }
    }

    /// Adds the policy plugins for the served resources.
    #[must_use]
    pub fn with_policies(self, served: &Arc<SharedCatalog>) -> Self {
        let (mutating, validating) =
            (policies::Mutating::new(served.clone()), policies::Validating::new(served.clone()));
        let rights = policies::ParamRights::new(served.clone());
        Self { policies: vec![Arc::new(rights), Arc::new(mutating), Arc::new(validating)], ..self }
    }

    /// Adds the webhook plugins for the served resources. They call URLs and cluster Services, with the credentials of
    /// the configuration set before.
    #[must_use]
    pub fn with_webhooks(self, served: &Arc<SharedCatalog>, caller: &Caller) -> Self {
        let of = |accounts: &Accounts| (caller.clone(), accounts.clone());
        let mutating = webhooks::Mutating::new(served.clone(), of(&self.configuration.mutating));
        let validating = webhooks::Validating::new(served.clone(), of(&self.configuration.validating));
        Self { webhooks: vec![Arc::new(mutating), Arc::new(validating)], ..self }
    }

    /// Sets the reader of image metadata.
    #[must_use]
    pub fn with_images(self, images: Option<Arc<dyn ImageMetadata>>) -> Self {
        Self { imports: Arc::new(imports::Imports::new(images)), ..self }
    }

    /// Appends a plugin.
    #[must_use]
    pub fn with_plugin(mut self, plugin: Arc<dyn Plugin>) -> Self {
        self.more.push(plugin);
        self
    }

    fn plugins(&self) -> impl Iterator<Item = &dyn Plugin> {
        let (imports, last): (&dyn Plugin, &dyn Plugin) = (&*self.imports, &*self.quota);
        let added = self.more.iter().chain(&self.policies).chain(&self.webhooks).map(|plugin| &**plugin);
        PLUGINS.iter().copied().chain([imports]).chain(added).chain([last])
    }

    /// Runs the mutating phase of every plugin. For a delete, `object` is null and `old` is the deleted object.
    pub async fn mutate(
        &self,
        request: &Request<'_>,
        objects: &dyn ObjectReader,
        object: &mut Value,
        old: Option<&Value>,
        effects: &mut Effects,
    ) -> ApiResult<()> {
        let context = self.context(request, objects, old);
        // After a change by a webhook all plugins run once more, because they may have to default what the webhook
        // added.
        for second in [false, true] {
            if second && !effects.reinvocation.is_due {
                break;
            }
            effects.reinvocation.is_second = second;
            for plugin in self.plugins() {
                match plugin.mutate(&context, object, effects) {
                    MaybeReady::Ready(result) => result?,
                    MaybeReady::Pending(wait) => wait.await?,
                }
            }
        }
        Ok(())
    }

    /// Runs the validating phase of every plugin on the object as it would be stored.
    pub async fn validate(
        &self,
        request: &Request<'_>,
        objects: &dyn ObjectReader,
        ValidateInput { object, given, old }: ValidateInput<'_>,
        effects: &mut Effects,
    ) -> ApiResult<()> {
        let context = self.context(request, objects, old);
        for (at, plugin) in self.plugins().enumerate() {
            let object = if at < PLUGINS.len() { given } else { object };
            match plugin.validate(&context, object, effects) {
                MaybeReady::Ready(result) => result?,
                MaybeReady::Pending(wait) => wait.await?,
            }
        }
        Ok(())
    }

    fn context<'a>(
        &'a self,
        request: &'a Request<'a>,
        objects: &'a dyn ObjectReader,
        old: Option<&'a Value>,
    ) -> Context<'a> {
        Context {
            request,
            objects,
            old,
            env: &self.env,
            authorizer: &self.authorizer,
            converter: self.converter.as_deref(),
            configuration: &self.configuration,
            toleration_seconds: self.toleration_seconds,
            interrupt: self.interrupt,
        }
    }
}

/// Returns the list at `object[outer][inner]`, created if missing or null. Returns `None` if the value has another
/// type.
fn list_mut<'a>(object: &'a mut Value, outer: &str, inner: &str) -> Option<&'a mut Vec<Value>> {
    let list = object.get_mut(outer)?.as_object_mut()?.entry(inner).or_insert_with(|| Value::Array(Vec::new()));
    if list.is_null() {
        *list = Value::Array(Vec::new());
    }
    list.as_array_mut()
}

/// Whether the pod is a mirror pod, which represents a static pod of a kubelet.
fn is_mirror(pod: &Value) -> bool {
    pod["metadata"]["annotations"].get("kubernetes.io/config.mirror").is_some()
}

#[cfg(test)]
mod tests;
