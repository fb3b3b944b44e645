//! create, get, list, watch, update, patch, delete: generic over a row.
//!
//! Every write goes one way ([`write`]) and is one transaction that compares what was read, tried again when somebody else
//! was first; nothing is answered that isn't durable. Typed inputs and outputs: HTTP is in [`crate::http`].

pub mod binding;
pub mod body;
mod claims;
mod commit;
#[cfg(test)]
mod cost;
mod create;
mod delete;
mod elsewhere;
pub mod eviction;
pub mod fields;
#[cfg(test)]
mod fuzz;
mod inert;
mod install;
mod intent;
mod namespace;
pub mod object;
pub mod page;
mod read;
pub mod scale;
mod update;
pub(crate) mod versions;
mod write;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use jiff::Timestamp;
use machinery_api::ApiError;
use machinery_api::apply::Managers;
use machinery_api::error::{Named, Status};
use machinery_api::{GroupVersionKind, ObjectName, StorageKey, StorageScope};
use machinery_env::Env;
use serde_json::Value;

use crate::admission::{Chain, Effects, Operation, Options, Request, Seen};
use crate::auth::{Attributes, Authorizer, UserInfo};
use crate::catalog::{Catalog, Served};
use crate::request::deadline::timed_out;
use crate::request::options::WriteOptions;
use crate::turns::patience;
use apiserver_resources::allocate::Allocator;
use apiserver_resources::field::{FieldError, causes};
use apiserver_resources::{Allocation, Context, Requester, ResourceInfo, Subresource};
use apiserver_storage::cache::{Cached, Fields, Lookup, Resource, WatchCache};
use apiserver_storage::store::record::{Facts, fingerprint};
use apiserver_storage::store::{Record, Revision, StoreError};

pub use elsewhere::Elsewhere;
pub use intent::Wanted;
pub use machinery_api::patch::PatchKind as PatchType;
pub use read::{List, WatchStart};

/// How often a write is tried again when others are faster; each failure means that another write succeeded.
const TRIES_MAX: usize = 64;
/// Upstream's (etcd's) largest object.
const OBJECT_BYTES_MAX: usize = 1536 * 1024;

/// All that verbs need.
pub struct Registry {
    /// What is served.
    pub served: Arc<Served>,
    /// Clock and ids.
    pub env: Env,
    /// Every object.
    pub cache: Arc<WatchCache>,
    /// The same for look-ups.
    pub objects: Arc<Lookup>,
    /// Admission.
    pub admission: Chain,
    /// For what a write implies: creating by PUT.
    pub authorizer: Arc<Authorizer>,
    /// Chooses Services' addresses and ports.
    pub allocator: Allocator,
    /// Custom resources in the version that is asked for.
    pub versions: Arc<versions::Versions>,
}

/// One request about a row.
pub struct RequestScope<'a> {
    /// What is served.
    pub catalog: &'a Catalog,
    /// The row.
    pub row: &'a Arc<ResourceInfo>,
    /// The subresource.
    pub subresource: Option<Subresource>,
    /// The namespace of the path, or empty.
    pub namespace: &'a str,
    /// The name of the path, or empty.
    pub name: &'a str,
    /// Who asks.
    pub user: &'a UserInfo,
    /// The request's time.
    pub now: Timestamp,
    /// For `Warning` headers, in order.
    pub warnings: Vec<String>,
    /// Its object in other versions, as far as somebody had to be asked.
    pub elsewhere: Elsewhere,
}

/// An object to show.
#[derive(Debug)]
pub enum ResponseObject {
    /// As it is in the cache, in its stored version.
    Cached(Arc<Cached>),
    /// As it was just stored, in its stored version, as of a revision.
    Stored(Record, Revision),
    /// A value.
    Value(Value),
}

/// What a verb answers.
#[derive(Debug)]
pub enum Answer {
    /// An object, with 200, 201 or 202.
    Object(u16, ResponseObject),
    /// A list.
    List(List),
    /// Success without an object.
    Status(u16, Box<Status>),
    /// Nothing (204).
    Nothing,
}

impl<'a> RequestScope<'a> {
    /// The same request, of which nothing is said yet: to be about something else.
    #[must_use]
    pub fn again(&self) -> RequestScope<'a> {
        RequestScope { warnings: Vec::new(), elsewhere: Elsewhere::default(), ..*self }
    }
}

impl RequestScope<'_> {
    /// The subresource's name, or empty.
    #[must_use]
    pub fn subresource_name(&self) -> &'static str {
        self.subresource.map_or("", |s| s.name)
    }

    /// Group and plural, as most errors name the resource.
    #[must_use]
    pub fn resource(&self) -> Named {
        Named::new(&*self.row.group, &*self.row.plural)
    }

    /// Group and kind, as validation names it: the stored version's, whichever was asked for.
    #[must_use]
    pub fn kind(&self) -> Named {
        Named::new(&*self.row.stored().group, &*self.row.kind)
    }

    /// 404 for the object of the path.
    #[must_use]
    pub fn not_found(&self) -> ApiError {
        ApiError::NotFound(self.resource(), self.name.to_owned())
    }

    /// 409 for a changed object.
    #[must_use]
    pub fn modified(&self) -> ApiError {
        let why = "the object has been modified; please apply your changes to the latest version and try again";
        ApiError::Conflict(self.resource(), self.name.to_owned(), why.into())
    }

    /// The namespace that an object of this call is in: none for cluster-wide kinds (a Namespace's path holds one).
    #[must_use]
    pub fn object_namespace(&self) -> &str {
        if self.row.namespaced { self.namespace } else { "" }
    }

    /// The key of the object of the path.
    #[must_use]
    pub fn key(&self) -> StorageKey {
        key(self.row, self.object_namespace(), self.name)
    }

    /// What the keys of the collection of the path begin with; nothing where none is stored.
    #[must_use]
    pub(crate) fn scope(&self) -> StorageScope {
        let Some(prefix) = &self.row.prefix else { return StorageScope::default() };
        match self.object_namespace() {
            "" => prefix.all(),
            namespace => prefix.namespace(namespace),
        }
    }

    /// What admission knows of this call.
    pub(crate) fn request<'b>(&'b self, operation: Operation, name: &'b str, options: Options<'b>) -> Request<'b> {
        let row = self.row;
        let body = self.subresource.and_then(|subresource| subresource.body);
        let (group, version, kind) = body.unwrap_or((&row.group, &row.version, &row.kind));
        Request {
            operation,
            group: &row.group,
            version: &row.version,
            resource: &row.plural,
            subresource: self.subresource_name(),
            kind: GroupVersionKind { group, version, kind },
            namespace: self.namespace,
            name,
            path_name: self.name,
            user: self.user,
            options,
        }
    }

    /// Adds a warning.
    pub fn warn(&mut self, text: impl Into<String>) {
        self.warnings.push(text.into());
    }
}

/// What selectors may ask for of an object in its stored version, for its record's head.
#[must_use]
pub fn facts_of_fields(row: &ResourceInfo, object: &Value) -> (u64, Vec<String>) {
    (fingerprint(row.strategy.selectable_labels().iter().map(|label| &**label)), row.strategy.selectable(object))
}

/// What the cache must know of a resource.
pub(crate) fn cached(resource: &Arc<ResourceInfo>) -> Option<Resource> {
    let strategy = resource.strategy.clone();
    let fields = (!strategy.selectable_labels().is_empty()).then(|| {
        let names = strategy.selectable_labels().to_vec();
        let read = move |object: &Value| strategy.selectable(object);
        Arc::new(Fields::new(names, read))
    });
    Some(Resource {
        prefix: resource.prefix.clone()?,
        fields,
        indexed_fields: resource.indexed_fields.clone(),
        indexes_labels: resource.indexes_labels,
    })
}

/// Where an object is stored: `/registry/pods/default/a`. What is never stored has no key; its name stands for one.
#[must_use]
pub fn key(row: &ResourceInfo, namespace: &str, name: &str) -> StorageKey {
    let object = ObjectName::new(namespace, name);
    row.key(object).unwrap_or_else(|| StorageKey::object("", object))
}

/// 409 for an object that isn't the one that a body says it means.
fn check_uid(call: &RequestScope<'_>, body: &Value, object: &Value, dry_run: bool) -> Result<(), ApiError> {
    let Err(failed) = object::uid(object).meets(object::wanted_uid(body)) else { return Ok(()) };
    let key = call.key();
    // A dry run never comes as far as the store, which puts its own prefix before.
    let key = if dry_run { key.within_registry() } else { key.as_str() };
    let why =
        format!("StorageError: invalid object, Code: 4, Key: {key}, ResourceVersion: 0, AdditionalErrorMsg: {failed}");
    Err(ApiError::Conflict(call.resource(), call.name.to_owned(), why))
}

/// 422 over findings, or nothing.
fn invalid(kind: Named, name: &str, errors: Vec<FieldError>) -> Result<(), ApiError> {
    if errors.is_empty() {
        return Ok(());
    }
    Err(ApiError::Invalid(kind, name.to_owned(), causes(errors)))
}

/// A store's refusal as an API error.
fn store_error(error: &StoreError) -> ApiError {
    match error {
        StoreError::TooLarge { .. } | StoreError::TooMany { .. } => {
            ApiError::TooLarge("etcdserver: request is too large".into())
        }
        StoreError::Compacted(_) => ApiError::Expired("The resourceVersion for the provided list is too old.".into()),
        StoreError::Future(revision) => read::too_large(*revision, *revision),
        // As upstream answers when etcd has no space: 500 without a reason, the store's own words.
        StoreError::Full { .. } => ApiError::StoreFull(error.to_string()),
        StoreError::Unavailable(_) | StoreError::InUse(_) | StoreError::Damaged(_) => {
            tracing::error!(%error, "the store failed");
            ApiError::ServiceUnavailable("the store is not available".into())
        }
    }
}

impl Registry {
    /// Admission of what is never stored: reviews, token requests.
    pub async fn admit_virtual(
        &self,
        call: &mut RequestScope<'_>,
        object: &mut Value,
        options: &WriteOptions,
    ) -> Result<(), ApiError> {
        self.admit(call, Operation::Create, object, options).await
    }

    /// Admission of a connection to an object: exec, attach, port-forward, proxy.
    pub async fn admit_connect(&self, call: &mut RequestScope<'_>, mut options: Value) -> Result<(), ApiError> {
        self.admit(call, Operation::Connect, &mut options, &WriteOptions::default()).await
    }

    /// Here as far as others have patience, else in its user's turn, as a write is.
    async fn admit(
        &self,
        call: &mut RequestScope<'_>,
        operation: Operation,
        object: &mut Value,
        options: &WriteOptions,
    ) -> Result<(), ApiError> {
        let (warnings_before, given) = (call.warnings.len(), object.clone());
        let (admitted, is_given_up) = patience::here(self.admit_once(call, operation, object, options)).await;
        if !is_given_up {
            return admitted;
        }
        call.warnings.truncate(warnings_before);
        *object = given;
        let again = Box::pin(self.admit_once(call, operation, object, options));
        patience::elsewhere(again).await.unwrap_or_else(|| Err(timed_out()))
    }

    async fn admit_once(
        &self,
        call: &mut RequestScope<'_>,
        operation: Operation,
        object: &mut Value,
        options: &WriteOptions,
    ) -> Result<(), ApiError> {
        let request = call.request(operation, call.name, Options::Write(options));
        let mut effects = Effects::default();
        // No transaction checks what is decided from.
        self.newest().await?;
        let mut admitted = self.admission.mutate(&request, &*self.objects, object, None, &mut effects).await;
        if admitted.is_ok() {
            let seen = Seen { object, given: object, old: None };
            admitted = self.admission.validate(&request, &*self.objects, seen, &mut effects).await;
        }
        call.warnings.append(&mut effects.warnings);
        admitted
    }

    /// Whether the user may create the object of the path too (a PUT that creates).
    async fn may_create(&self, call: &RequestScope<'_>) -> Result<(), ApiError> {
        let attributes = Attributes {
            verb: "create",
            group: &call.row.group,
            version: &call.row.version,
            resource: &call.row.plural,
            subresource: call.subresource_name(),
            namespace: call.object_namespace(),
            name: call.name,
            path: "",
            is_resource: true,
            fields: &[],
        };
        self.authorizer.check(&*self.objects, call.user, &attributes).await
    }

    /// The size of the object that a request is about; none is 0.
    pub(crate) fn stored_bytes(&self, call: &RequestScope<'_>) -> usize {
        self.cache.get(call.key().as_str()).map_or(0, |cached| cached.stored_len())
    }

    fn context<'a>(&'a self, call: &RequestScope<'a>, subresource: &'a str) -> Context<'a> {
        let UserInfo { name, uid, groups, extra } = call.user;
        let requester = Some(Requester { name, uid, groups, extra });
        Context {
            now: call.now,
            subresource,
            loopback: self.allocator.loopback(),
            requester,
            interrupt: patience::is_over,
        }
    }

    fn allocation<'a>(&'a self, subresource: &'a str, dry_run: bool) -> Allocation<'a> {
        Allocation { services: &self.allocator, objects: &*self.objects, dry_run, subresource }
    }

    /// An object as the call's version shows it.
    fn current(row: &ResourceInfo, cached: &Cached) -> Arc<Value> {
        let shared = cached.shared();
        if row.shows_stored() { shared } else { Arc::new(row.strategy.read_storage_version((*shared).clone())) }
    }

    /// The stored form of an object of this row.
    pub(crate) fn encode(row: &ResourceInfo, object: &Value, managers: &Managers) -> Result<Record, ApiError> {
        if row.stored_as.is_some() {
            return Self::encode(row.stored(), &row.strategy.write_storage_version(object.clone()), managers);
        }
        let body = object::encode(row, object);
        if body.len() > OBJECT_BYTES_MAX {
            return Err(ApiError::TooLarge("etcdserver: request is too large".into()));
        }
        let generation = row.custom.as_ref().map_or(0, |custom| custom.definition.generation);
        Ok(Self::record(row, &body, object, (generation, managers)))
    }

    /// The stored form of an object, converted into the version that is stored where that takes asking somebody; then also
    /// the object in that version.
    pub(crate) async fn encode_converted(
        &self,
        row: &ResourceInfo,
        object: &Value,
        managers: &Managers,
    ) -> Result<(Record, Option<Value>), ApiError> {
        match &row.custom {
            Some(custom) if row.stored_as.is_some() => {
                let converted = Box::pin(self.versions.to_be_stored(custom, object.clone())).await?;
                Ok((Self::encode(row.stored(), &converted, managers)?, Some(converted)))
            }
            _ => Ok((Self::encode(row, object, managers)?, None)),
        }
    }

    /// A record of what [`object::encode`] made of an object.
    pub(crate) fn record(
        row: &ResourceInfo,
        body: &[u8],
        object: &Value,
        (generation, managers): (u32, &Managers),
    ) -> Record {
        let stamp_at = object::stamp_at(row);
        let facts = Facts {
            stamp_at,
            comma: body.get(stamp_at) != Some(&b'}'),
            fields: Some(facts_of_fields(row, object)),
            // As upstream: an object is rather without them than not at all.
            managers: match body.len() + managers.written_len() > OBJECT_BYTES_MAX {
                true => Managers::default(),
                false => managers.clone(),
            },
            schema_generation: generation,
            ..Facts::of(object)
        };
        Record::new(body, &facts)
    }

    /// What is shown of an object that was just stored.
    fn stored_as(row: &ResourceInfo, object: Value, stored: &Record, revision: Revision) -> ResponseObject {
        if row.stored_as.is_none() {
            return ResponseObject::Stored(stored.clone(), revision);
        }
        ResponseObject::Value(fields::shown(object::versioned(object, revision), stored.managers()))
    }
}
