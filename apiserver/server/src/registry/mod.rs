//! The verbs (create, get, list, watch, update, patch, delete), generic over a row of the resource table.
//!
//! Every write takes one path ([`write`]) and is one transaction that compares the versions that were read. A conflict
//! causes an optimistic retry; every response reports durable state. Inputs and outputs are typed: HTTP is in
//! [`crate::http`].

pub mod binding;
pub mod body;
mod change;
mod claims;
mod commit;
mod conversions;
#[cfg(test)]
mod cost;
mod create;
mod delete;
mod draft;
pub mod eviction;
pub mod fields;
#[cfg(test)]
mod fuzz;
mod inert;
mod install;
mod intent;
mod namespace;
pub mod object;
mod outcome;
pub mod page;
mod read;
pub mod scale;
mod update;
pub(crate) mod versions;
mod write;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use apiserver_schema::apply::Managers;
use jiff::Timestamp;
use machinery_api::ApiError;
use machinery_api::error::{GroupResource, Status};
use machinery_api::{GroupVersionKind, ObjectName, StorageKey, StorageScope};
use machinery_env::Env;
use serde_json::Value;

use crate::fair_queue::budget;
use apiserver_admission::{Chain, Effects, Operation, Options, Request, ValidateInput};
use apiserver_auth::{Attributes, Authorizer, UserInfo};
use apiserver_catalog::{Catalog, SharedCatalog};
use apiserver_resources::allocate::Allocator;
use apiserver_resources::field::ErrorList;
use apiserver_resources::options::WriteOptions;
use apiserver_resources::{Allocation, Context, Requester, ResourceInfo, Subresource, SubresourceKind};
use apiserver_storage::cache::{Cached, Lookup, WatchCache};
use apiserver_storage::store::record::{Facts, fingerprint};
use apiserver_storage::store::{Record, Revision, StoreError};

pub use apiserver_schema::patch::PatchKind as PatchType;
pub use conversions::ObjectConversions;
pub use intent::RequestObject;
pub use read::{List, WatchStart};

/// The maximum number of attempts of a write (optimistic retry, as upstream's `GuaranteedUpdate`); each conflict means
/// that another write succeeded.
const TRIES_MAX: usize = 64;
/// The maximum size of a stored object (etcd's).
const OBJECT_BYTES_MAX: usize = 1536 * 1024;

/// The verbs and their dependencies.
pub struct Registry {
    /// The catalog of served resources.
    pub served: Arc<SharedCatalog>,
    /// Clock and ids.
    pub env: Env,
    /// The watch cache: all objects in memory.
    pub cache: Arc<WatchCache>,
    /// Object lookups over the cache.
    pub objects: Arc<Lookup>,
    /// The admission chain.
    pub admission: Chain,
    /// Authorizes the `create` that a PUT implies.
    pub authorizer: Arc<Authorizer>,
    /// Allocates the addresses and ports of Services.
    pub allocator: Allocator,
    /// Converts custom resources into the requested version.
    pub versions: Arc<versions::CustomVersions>,
}

/// One request for a resource.
pub struct RequestScope<'a> {
    /// The catalog when the request arrived.
    pub catalog: &'a Catalog,
    /// The row.
    pub row: &'a Arc<ResourceInfo>,
    /// The subresource.
    pub subresource: Option<Subresource>,
    /// The namespace of the path, or empty.
    pub namespace: &'a str,
    /// The name of the path, or empty.
    pub name: &'a str,
    /// The authenticated user.
    pub user: &'a UserInfo,
    /// The time of the request.
    pub now: Timestamp,
    /// The texts of `Warning` headers, in order. A write adds those of its last attempt.
    pub warnings: Vec<String>,
    /// Webhook conversions of the object into other versions.
    pub conversions: ObjectConversions,
}

/// An object in a response.
#[derive(Debug)]
pub enum ResponseObject {
    /// The cached object, in its stored version.
    Cached(Arc<Cached>),
    /// The record that was just written at a revision, in its stored version.
    Stored(Record, Revision),
    /// A value.
    Value(Value),
}

/// The result of a verb.
#[derive(Debug)]
pub enum VerbResult {
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
    /// The same request without warnings and conversions, to be changed to another object.
    #[must_use]
    pub fn fork(&self) -> RequestScope<'a> {
        RequestScope { warnings: Vec::new(), conversions: ObjectConversions::default(), ..*self }
    }
}

impl RequestScope<'_> {
    /// The subresource's name, or empty.
    #[must_use]
    pub fn subresource_name(&self) -> &'static str {
        self.subresource.map_or("", |s| s.name)
    }

    /// Whether the request is for an object's Scale.
    #[must_use]
    pub(crate) fn is_scale(&self) -> bool {
        self.subresource.is_some_and(|subresource| subresource.what == SubresourceKind::Scale)
    }

    /// Group and plural, as in most errors.
    #[must_use]
    pub fn resource(&self) -> GroupResource {
        GroupResource::new(&*self.row.group, &*self.row.plural)
    }

    /// Group and kind for validation errors: of the stored version, whichever was requested.
    #[must_use]
    pub fn kind(&self) -> GroupResource {
        GroupResource::new(&*self.row.stored().group, &*self.row.kind)
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

    /// The namespace of the object: empty for cluster-wide kinds (the path of a Namespace contains one).
    #[must_use]
    pub fn object_namespace(&self) -> &str {
        if self.row.namespaced { self.namespace } else { "" }
    }

    /// The key of the object of the path.
    #[must_use]
    pub fn key(&self) -> StorageKey {
        key(self.row, self.object_namespace(), self.name)
    }

    /// The key range of the path's collection; empty for virtual resources.
    #[must_use]
    pub(crate) fn scope(&self) -> StorageScope {
        let Some(prefix) = &self.row.prefix else { return StorageScope::default() };
        match self.object_namespace() {
            "" => prefix.all(),
            namespace => prefix.namespace(namespace),
        }
    }

    /// The admission request.
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

/// The values for field selectors of an object in its stored version, for its record's head.
#[must_use]
pub fn facts_of_fields(row: &ResourceInfo, object: &Value) -> (u64, Vec<String>) {
    (fingerprint(row.strategy.selectable_labels().iter().map(|label| &**label)), row.strategy.selectable(object))
}

/// The storage key of an object: `/registry/pods/default/a`. A virtual resource has none; its name is used.
#[must_use]
pub fn key(row: &ResourceInfo, namespace: &str, name: &str) -> StorageKey {
    let object = ObjectName::new(namespace, name);
    row.key(object).unwrap_or_else(|| StorageKey::object("", object))
}

/// 409 if the body's uid isn't the object's.
fn check_uid(call: &RequestScope<'_>, body: &Value, object: &Value, dry_run: bool) -> Result<(), ApiError> {
    let Err(failed) = object::uid(object).meets(object::uid_precondition(body)) else { return Ok(()) };
    let key = call.key();
    // A dry run never reaches the store, which adds its own prefix.
    let key = if dry_run { key.within_registry() } else { key.as_str() };
    let why =
        format!("StorageError: invalid object, Code: 4, Key: {key}, ResourceVersion: 0, AdditionalErrorMsg: {failed}");
    Err(ApiError::Conflict(call.resource(), call.name.to_owned(), why))
}

/// 422 with the errors, which it takes, if there are any.
fn invalid(kind: GroupResource, name: &str, errors: &mut ErrorList) -> Result<(), ApiError> {
    if errors.is_empty() {
        return Ok(());
    }
    Err(ApiError::Invalid(kind, name.to_owned(), std::mem::take(errors).into_causes()))
}

/// Converts a store error into an API error.
pub(crate) fn store_error(error: &StoreError) -> ApiError {
    match error {
        StoreError::TooLarge { .. } | StoreError::TooMany { .. } => {
            ApiError::TooLarge("etcdserver: request is too large".into())
        }
        StoreError::Compacted(_) => ApiError::Expired("The resourceVersion for the provided list is too old.".into()),
        StoreError::Future(revision) => read::too_large(*revision, *revision),
        // As upstream when etcd has no space: 500 without a reason, with the store's own text.
        StoreError::Full { .. } | StoreError::OverQuota => ApiError::StoreFull(error.to_string()),
        StoreError::Unavailable(_) | StoreError::InUse(_) | StoreError::Damaged(_) => {
            tracing::error!(%error, "the store failed");
            ApiError::ServiceUnavailable("the store is not available".into())
        }
    }
}

impl Registry {
    /// Admission of virtual objects: reviews, token requests.
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

    /// Runs admission within the evaluation budget, or on the blocking pool if that is exceeded, as a write does.
    async fn admit(
        &self,
        call: &mut RequestScope<'_>,
        operation: Operation,
        object: &mut Value,
        options: &WriteOptions,
    ) -> Result<(), ApiError> {
        let given = object.clone();
        let (done, exceeds_budget) = budget::run_inline(self.admit_once(call, operation, object, options)).await;
        let (admitted, mut warnings) = match exceeds_budget {
            false => done,
            true => {
                *object = given;
                let again = Box::pin(self.admit_once(call, operation, object, options));
                budget::run_blocking(again).await.unwrap_or_else(|| (Err(ApiError::request_timed_out()), Vec::new()))
            }
        };
        call.warnings.append(&mut warnings);
        admitted
    }

    /// Runs admission once; also returns its warnings, which a rejected request has, too.
    async fn admit_once(
        &self,
        call: &RequestScope<'_>,
        operation: Operation,
        object: &mut Value,
        options: &WriteOptions,
    ) -> (Result<(), ApiError>, Vec<String>) {
        let request = call.request(operation, call.name, Options::Write(options));
        let mut effects = Effects::default();
        let admitted = async {
            // No transaction verifies what is read here.
            self.sync_cache().await?;
            self.admission.mutate(&request, &*self.objects, object, None, &mut effects).await?;
            let input = ValidateInput { object, given: object, old: None };
            self.admission.validate(&request, &*self.objects, input, &mut effects).await
        };
        (admitted.await, effects.warnings)
    }

    /// Authorizes the `create` that a PUT implies.
    async fn authorize_create(&self, call: &RequestScope<'_>) -> Result<(), ApiError> {
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
            labels: "",
        };
        self.authorizer.check(&*self.objects, call.user, &attributes).await
    }

    /// The stored size of the request's object; 0 if it doesn't exist.
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
            interrupt: budget::is_exhausted,
        }
    }

    fn allocation<'a>(&'a self, subresource: &'a str, dry_run: bool) -> Allocation<'a> {
        Allocation { services: &self.allocator, objects: &*self.objects, dry_run, subresource }
    }

    /// The object in the version of the row.
    fn in_row_version(row: &ResourceInfo, cached: &Cached) -> Arc<Value> {
        let shared = cached.shared();
        if row.serves_cached_form() { shared } else { Arc::new(row.strategy.read_storage_version((*shared).clone())) }
    }

    /// Encodes the stored form of an object of this row.
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

    /// Encodes the stored form, with webhook conversion into the stored version; if that was needed, also returns the
    /// converted object.
    pub(crate) async fn encode_converted(
        &self,
        row: &ResourceInfo,
        object: &Value,
        managers: &Managers,
    ) -> Result<(Record, Option<Value>), ApiError> {
        match &row.custom {
            Some(custom) if row.stored_as.is_some() => {
                let converted = Box::pin(self.versions.to_stored_version(custom, object.clone())).await?;
                Ok((Self::encode(row.stored(), &converted, managers)?, Some(converted)))
            }
            _ => Ok((Self::encode(row, object, managers)?, None)),
        }
    }

    /// A record of the bytes of [`object::encode`].
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
            // As upstream: an oversized object is stored without managers instead of being rejected.
            managers: match body.len() + managers.written_len() > OBJECT_BYTES_MAX {
                true => Managers::default(),
                false => managers.clone(),
            },
            schema_generation: generation,
            ..Facts::of(object)
        };
        Record::new(body, &facts)
    }

    /// The response for an object that was just stored.
    fn stored_as(row: &ResourceInfo, object: Value, stored: &Record, revision: Revision) -> ResponseObject {
        if row.stored_as.is_none() {
            return ResponseObject::Stored(stored.clone(), revision);
        }
        ResponseObject::Value(fields::with_managed_fields(object::versioned(object, revision), stored.managers()))
    }
}
