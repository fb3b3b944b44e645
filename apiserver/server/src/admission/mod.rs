//! Admission: one ordered table of plugins, one file per plugin.
//!
//! [`Chain::mutate`] runs on the decoded and defaulted object (or the patched one), before names are generated and before
//! the strategy; [`Chain::validate`] on the object as it would be stored. Deletes pass through both with no object.
//! A plugin decides at once, or hands back a future where it has to wait ([`Step`]): the chain waits for it, and pays nothing
//! for those that don't. It may add conditions and writes to the transaction that stores the object.

mod certificates;
mod configuration;
mod default_classes;
mod default_tolerations;
mod device_admin_access;
mod escalation;
mod imports;
mod limit_ranger;
pub mod matching;
mod namespace_lifecycle;
mod node_restriction;
mod pod_resize;
mod pod_security;
mod pod_topology_labels;
mod policies;
mod priority;
mod resource_quota;
mod runtime_class;
mod service_account;
mod storage;
mod taint_nodes;
mod template;
mod webhooks;

use std::collections::BTreeMap;
use std::sync::Arc;

use machinery_api::GroupVersionKind;
use machinery_api::apply::Managers;
use machinery_api::error::{ApiError, ApiResult, Named};
use machinery_env::Env;
use serde_json::Value;

use crate::auth::{Authorizer, UserInfo};
use crate::catalog::Served;
use crate::conversion::Converter;
use crate::request::options::{DeleteOptions, WriteOptions};
use crate::webhook::{Accounts, Caller};
use apiserver_resources::objects::ObjectReader;
use apiserver_storage::store::Txn;

pub use configuration::AdmissionConfiguration;
pub use imports::{ImageImports, ImageMetadata};
pub use webhooks::Reinvocation;

/// What is done to an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// It is new: also when an update creates it.
    Create,
    /// It changes: updates and patches, of subresources too.
    Update,
    /// It goes: deletes, and each object of a collection's delete.
    Delete,
    /// Something is connected to it: exec, attach, port-forward, proxy.
    Connect,
}

impl Operation {
    /// As admission reviews and refusals spell it.
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
    /// Of a create, update or patch.
    Write(&'a WriteOptions),
    /// Of a delete.
    Delete(&'a DeleteOptions),
}

impl Options<'_> {
    /// Whether nothing is to be stored.
    #[must_use]
    pub fn dry_run(&self) -> bool {
        match self {
            Self::Write(options) => options.dry_run,
            Self::Delete(options) => options.dry_run,
        }
    }

    /// Whether the client asked for warnings by name.
    #[must_use]
    pub fn shows_warnings(&self) -> bool {
        matches!(self, Self::Write(options) if options.shows_warnings)
    }
}

/// What admission knows about a request.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// Who asks, after impersonation, with groups and extras.
    pub user: &'a UserInfo,
    /// The API group.
    pub group: &'a str,
    /// The API version.
    pub version: &'a str,
    /// The plural.
    pub resource: &'a str,
    /// The subresource, or empty.
    pub subresource: &'a str,
    /// What the objects are: a Scale, a Binding or a TokenRequest where the subresource's body is one.
    pub kind: GroupVersionKind<'a>,
    /// What is done.
    pub operation: Operation,
    /// The request's namespace, or empty.
    pub namespace: &'a str,
    /// The object's name, as far as it is known: of a create in a collection that which the object has.
    pub name: &'a str,
    /// The name in the path, which rights are asked about; empty for a create in a collection.
    pub path_name: &'a str,
    /// The verb's options.
    pub options: Options<'a>,
}

impl Request<'_> {
    /// Whether this is about pods (core) and not one of their subresources.
    fn is_pod(&self) -> bool {
        self.is("pods")
    }

    /// Whether this is about the ephemeral containers of a pod (core).
    fn is_ephemeral_containers(&self) -> bool {
        self.group.is_empty() && self.resource == "pods" && self.subresource == "ephemeralcontainers"
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
    pub objects: &'a dyn ObjectReader,
    /// What is there: for updates and deletes.
    pub old: Option<&'a Value>,
    env: &'a Env,
    authorizer: &'a Authorizer,
    converter: Option<&'a Converter>,
    configuration: &'a AdmissionConfiguration,
    toleration_seconds: i64,
}

/// What is to be validated.
#[derive(Debug, Clone, Copy)]
pub struct Seen<'a> {
    /// The object as it would be stored.
    pub object: &'a Value,
    /// The same for the built-in plugins: with what a client wrote empty.
    pub given: &'a Value,
    /// What is there.
    pub old: Option<&'a Value>,
}

/// What plugins make of a request beside its object.
#[derive(Debug, Default)]
pub struct Effects {
    /// Conditions and writes of the transaction that stores the object.
    pub txn: Txn,
    /// Changes of other objects, in the same transaction.
    pub writes: Vec<SideWrite>,
    /// Held until the transaction is done.
    pub turns: Vec<tokio::sync::OwnedMutexGuard<()>>,
    /// For `Warning` headers, in order.
    pub warnings: Vec<String>,
    /// For the request's audit event, by their keys.
    pub audit: BTreeMap<String, String>,
    /// Who manages the object's fields, and who managed those of what is there: for those who are asked about both.
    pub managed: Managed,
    /// What the second round of plugins must know of the first.
    pub reinvocation: Reinvocation,
    /// What the images of the request say of themselves.
    images: imports::KnownImages,
}

/// Who manages which fields. Of a subresource with a body of its own, but for a Scale, it isn't said.
#[derive(Debug, Default)]
pub struct Managed {
    /// Of the object as it is written.
    pub new: Managers,
    /// Of the object that is there.
    pub old: Managers,
}

impl Effects {
    /// Notes something for the request's audit event. The first value of a key stays, as upstream.
    fn audit(&mut self, key: String, value: String) {
        self.audit.entry(key).or_insert(value);
    }
}

/// Another object that a transaction changes, on the condition that it is still as it was seen.
#[derive(Debug)]
pub struct SideWrite {
    /// Its API group.
    pub group: &'static str,
    /// Its resource.
    pub plural: &'static str,
    /// As it shall be, in its stored version, with the resourceVersion that it was seen at.
    pub object: Value,
}

/// What a plugin comes to: at once, or after waiting.
pub type Step<'a> = crate::step::Step<'a, ApiResult<()>>;

/// One plugin. It may be called again for the same request, with the object as the client sent it or as a plugin left it
/// (another write came first, another plugin changed it): what it does twice must be as if done once.
pub trait Plugin: Send + Sync {
    /// Upstream's name.
    fn name(&self) -> &'static str;

    /// May change the object, or refuse it.
    fn mutate<'a>(&'a self, context: &'a Context<'_>, object: &'a mut Value, effects: &'a mut Effects) -> Step<'a> {
        let _ = (context, object, effects);
        Step::Done(Ok(()))
    }

    /// May refuse the object as it would be stored.
    fn validate<'a>(&'a self, context: &'a Context<'_>, object: &'a Value, effects: &'a mut Effects) -> Step<'a> {
        let _ = (context, object, effects);
        Step::Done(Ok(()))
    }
}

/// A plugin that decides at once and has no other effect. A field that does nothing is `None`.
struct Immediate {
    name: &'static str,
    mutate: Option<fn(&Context<'_>, &mut Value) -> ApiResult<()>>,
    validate: Option<fn(&Context<'_>, &Value) -> ApiResult<()>>,
}

impl Plugin for Immediate {
    fn name(&self) -> &'static str {
        self.name
    }

    fn mutate<'a>(&'a self, context: &'a Context<'_>, object: &'a mut Value, _: &'a mut Effects) -> Step<'a> {
        Step::Done(self.mutate.map_or(Ok(()), |mutate| mutate(context, object)))
    }

    fn validate<'a>(&'a self, context: &'a Context<'_>, object: &'a Value, _: &'a mut Effects) -> Step<'a> {
        Step::Done(self.validate.map_or(Ok(()), |validate| validate(context, object)))
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

/// The plugins with what they need.
#[derive(Clone)]
pub struct Chain {
    env: Env,
    authorizer: Arc<Authorizer>,
    /// Knows custom resources in other versions.
    converter: Option<Arc<Converter>>,
    configuration: Arc<AdmissionConfiguration>,
    toleration_seconds: i64,
    /// Called after the built-in ones.
    imports: Arc<imports::Imports>,
    /// Called after that.
    more: Vec<Arc<dyn Plugin>>,
    /// Called after those.
    policies: Vec<Arc<dyn Plugin>>,
    webhooks: Vec<Arc<dyn Plugin>>,
    /// Called last.
    quota: Arc<resource_quota::ResourceQuota>,
}

impl Chain {
    /// All of [`PLUGINS`].
    #[must_use]
    pub fn new(env: &Env, authorizer: Arc<Authorizer>) -> Self {
        Self {
            env: env.clone(),
            authorizer,
            converter: None,
            configuration: Arc::default(),
            toleration_seconds: default_tolerations::SECONDS,
            imports: Arc::new(imports::Imports::new(None)),
            more: Vec::new(),
            policies: Vec::new(),
            webhooks: Vec::new(),
            quota: Arc::default(),
        }
    }

    /// The same with another wait of DefaultTolerationSeconds.
    #[must_use]
    pub fn with_toleration_seconds(self, toleration_seconds: i64) -> Self {
        Self { toleration_seconds, ..self }
    }

    /// The same with plugins that are configured.
    #[must_use]
    pub fn with_configuration(self, configuration: Arc<AdmissionConfiguration>) -> Self {
        Self { configuration, ..self }
    }

    /// The same with somebody who knows custom resources in other versions.
    #[must_use]
    pub(crate) fn with_converter(self, converter: &Arc<Converter>) -> Self {
        Self { converter: Some(converter.clone()), ..self }
    }

    /// The same with policies about what is served.
    #[must_use]
    pub fn with_policies(self, served: &Arc<Served>) -> Self {
        let (mutating, validating) =
            (policies::Mutating::new(served.clone()), policies::Validating::new(served.clone()));
        let rights = policies::ParamRights::new(served.clone());
        Self { policies: vec![Arc::new(rights), Arc::new(mutating), Arc::new(validating)], ..self }
    }

    /// The same with webhooks about what is served, reached by URL and through the cluster's Services, as the users that
    /// the configuration of before names.
    #[must_use]
    pub(crate) fn with_webhooks(self, served: &Arc<Served>, caller: &Caller) -> Self {
        let of = |accounts: &Accounts| (caller.clone(), accounts.clone());
        let mutating = webhooks::Mutating::new(served.clone(), of(&self.configuration.mutating));
        let validating = webhooks::Validating::new(served.clone(), of(&self.configuration.validating));
        Self { webhooks: vec![Arc::new(mutating), Arc::new(validating)], ..self }
    }

    /// The same with somebody who knows what images say of themselves.
    #[must_use]
    pub fn with_images(self, images: Option<Arc<dyn ImageMetadata>>) -> Self {
        Self { imports: Arc::new(imports::Imports::new(images)), ..self }
    }

    /// The same with a plugin more, at the end.
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

    /// Lets every plugin change or refuse the object. For a delete, `object` is null and `old` what is deleted.
    pub async fn mutate(
        &self,
        request: &Request<'_>,
        objects: &dyn ObjectReader,
        object: &mut Value,
        old: Option<&Value>,
        effects: &mut Effects,
    ) -> ApiResult<()> {
        let context = self.context(request, objects, old);
        // Where a hook changes the object, all look at it once more: what it added may be for them to fill in.
        for second in [false, true] {
            if second && !effects.reinvocation.is_due {
                break;
            }
            effects.reinvocation.is_second = second;
            for plugin in self.plugins() {
                match plugin.mutate(&context, object, effects) {
                    Step::Done(result) => result?,
                    Step::Wait(wait) => wait.await?,
                }
            }
        }
        Ok(())
    }

    /// Lets every plugin refuse the object as it would be stored.
    pub async fn validate(
        &self,
        request: &Request<'_>,
        objects: &dyn ObjectReader,
        Seen { object, given, old }: Seen<'_>,
        effects: &mut Effects,
    ) -> ApiResult<()> {
        let context = self.context(request, objects, old);
        for (at, plugin) in self.plugins().enumerate() {
            let object = if at < PLUGINS.len() { given } else { object };
            match plugin.validate(&context, object, effects) {
                Step::Done(result) => result?,
                Step::Wait(wait) => wait.await?,
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
