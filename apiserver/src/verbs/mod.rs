//! create, get, list, watch, update, patch, delete: generic over a row.
//!
//! Every write is one transaction that compares what was read, tried again when somebody else was first; nothing is
//! answered that isn't durable. Typed inputs and outputs: HTTP is in [`crate::http`].

pub mod binding;
pub mod body;
mod create;
mod delete;
mod install;
mod namespace;
pub mod object;
pub mod options;
pub mod page;
mod patch;
mod read;
pub mod scale;
pub mod selector;
mod update;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use machinery::api::error::{Named, Status};
use machinery::api::{ApiError, Cause};
use machinery::env::Env;
use serde_json::Value;

use crate::admission::{Chain, Operation, Request};
use crate::auth::{Attributes, Authorizer, UserInfo};
use crate::cache::{Cache, Cached, Lookup};
use crate::resources::allocate::Allocator;
use crate::resources::field::FieldError;
use crate::resources::{Context, Row, Storage, Subresource, TABLE};
use crate::store::record::{Facts, fingerprint};
use crate::store::{Compare, Op, Outcome, Record, Revision, StoreError, Txn};

pub use crate::patch::PatchKind as PatchType;
pub use read::{List, WatchStart};

/// How often a write is tried again when others are faster; each failure means that another write succeeded.
const TRIES_MAX: usize = 64;
/// Upstream tries this often to find a free generated name.
const NAME_TRIES_MAX: usize = 8;
/// Random letters of a generated name.
const NAME_SUFFIX_LETTERS: usize = 5;
/// Events live an hour, as upstream's default.
const EVENT_TTL: Duration = Duration::from_secs(3600);
/// How long a pod waits for the service account of a namespace that is just being made (upstream: about a second).
const ACCOUNT_WAIT: Duration = Duration::from_secs(1);
/// How often it looks.
const ACCOUNT_POLL: Duration = Duration::from_millis(50);
/// Upstream's (etcd's) largest object.
const OBJECT_BYTES_MAX: usize = 1536 * 1024;

/// All that verbs need.
pub struct Verbs {
    /// Clock and ids.
    pub env: Env,
    /// Every object.
    pub cache: Arc<Cache>,
    /// The same for look-ups.
    pub objects: Arc<Lookup>,
    /// Admission.
    pub admission: Chain,
    /// For what a write implies: creating by PUT.
    pub authorizer: Arc<Authorizer>,
    /// Allocation.
    pub allocator: Allocator,
    /// Held while an allocation is chosen and committed, so that no two take the same.
    pub allocating: tokio::sync::Mutex<()>,
}

/// One request about a row.
pub struct Call<'a> {
    /// The row.
    pub row: &'static Row,
    /// The subresource.
    pub subresource: Option<&'static Subresource>,
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
}

/// An object to show.
#[derive(Debug)]
pub enum Shown {
    /// As it is in the cache, in its stored version.
    Cached(Arc<Cached>),
    /// Whole JSON with kind, apiVersion and resourceVersion.
    Bytes(Bytes),
    /// A value.
    Value(Value),
}

/// What a verb answers.
#[derive(Debug)]
pub enum Answer {
    /// An object, with 200, 201 or 202.
    Object(u16, Shown),
    /// A list.
    List(List),
    /// Success without an object.
    Status(u16, Box<Status>),
    /// Nothing (204).
    Nothing,
}

impl Call<'_> {
    /// The subresource's name, or empty.
    #[must_use]
    pub fn subresource_name(&self) -> &'static str {
        self.subresource.map_or("", |s| s.name)
    }

    /// Group and plural, as most errors name the resource.
    #[must_use]
    pub fn resource(&self) -> Named {
        Named::new(self.row.group, self.row.plural)
    }

    /// Group and kind, as validation names it: the stored version's, whichever was asked for.
    #[must_use]
    pub fn kind(&self) -> Named {
        Named::new(stored_row(self.row).group, self.row.kind)
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
    pub fn key(&self) -> String {
        key(self.row, self.object_namespace(), self.name)
    }

    pub(crate) fn review<'b>(&'b self, operation: Operation, name: &'b str, dry_run: bool) -> Request<'b> {
        Request {
            operation,
            group: self.row.group,
            resource: self.row.plural,
            subresource: self.subresource_name(),
            namespace: if self.row.namespaced || self.row.plural == "namespaces" { self.namespace } else { "" },
            name,
            user: self.user,
            dry_run,
        }
    }

    /// Adds a warning.
    pub fn warn(&mut self, text: impl Into<String>) {
        self.warnings.push(text.into());
    }
}

/// The row whose version is stored, for a row that shares a storage with others.
#[must_use]
pub fn stored_row(row: &'static Row) -> &'static Row {
    if row.storage_version {
        return row;
    }
    TABLE.iter().copied().find(|r| r.storage == row.storage && r.storage_version).unwrap_or(row)
}

/// What selectors may ask for of an object in its stored version, for its record's head.
#[must_use]
pub fn facts_of_fields(row: &Row, object: &Value) -> (u64, Vec<String>) {
    let values = row.strategy.selectable(object).into_iter().map(|(_, value)| value).collect();
    (fingerprint(row.strategy.selectable_labels().iter().copied()), values)
}

/// `/registry/pods/`
#[must_use]
pub fn prefix(row: &Row) -> String {
    match row.storage {
        Storage::Stored(prefix) => format!("/registry/{prefix}/"),
        Storage::Virtual => String::new(),
    }
}

/// `/registry/pods/default/a`
#[must_use]
pub fn key(row: &Row, namespace: &str, name: &str) -> String {
    let prefix = prefix(row);
    if namespace.is_empty() { format!("{prefix}{name}") } else { format!("{prefix}{namespace}/{name}") }
}

/// 422 over findings, or nothing.
fn invalid(kind: Named, name: &str, errors: Vec<FieldError>) -> Result<(), ApiError> {
    if errors.is_empty() {
        return Ok(());
    }
    Err(ApiError::Invalid(kind, name.to_owned(), errors.into_iter().map(Cause::from).collect()))
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
        StoreError::Full { .. } => ApiError::Other(Box::new(Status::failure(500, "", error.to_string()))),
        StoreError::Unavailable(_) | StoreError::InUse(_) | StoreError::Damaged(_) => {
            tracing::error!(%error, "the store failed");
            ApiError::ServiceUnavailable("the store is not available".into())
        }
    }
}

impl Verbs {
    /// Mutating admission.
    pub(crate) async fn admit(
        &self,
        review: &Request<'_>,
        object: &mut Value,
        old: Option<&Value>,
    ) -> Result<(), ApiError> {
        let mut waited = Duration::ZERO;
        while self.admission.awaits_account(review, &*self.objects, object) && waited < ACCOUNT_WAIT {
            tokio::time::sleep(ACCOUNT_POLL).await;
            waited += ACCOUNT_POLL;
        }
        self.admission.mutate(review, &*self.objects, object, old)
    }

    /// Whether the user may create the object of the path too (a PUT that creates).
    fn may_create(&self, call: &Call<'_>) -> Result<(), ApiError> {
        let attributes = Attributes {
            verb: "create",
            group: call.row.group,
            version: call.row.version,
            resource: call.row.plural,
            subresource: call.subresource_name(),
            namespace: call.object_namespace(),
            name: call.name,
            path: "",
            is_resource: true,
            fields: &[],
        };
        self.authorizer.check(&*self.objects, call.user, &attributes)
    }

    fn context<'a>(&'a self, call: &Call<'_>, subresource: &'a str) -> Context<'a> {
        Context { env: &self.env, now: call.now, subresource, loopback: self.allocator.loopback() }
    }

    /// An object as the call's version shows it.
    fn current(row: &'static Row, cached: &Cached) -> Arc<Value> {
        let shared = cached.shared();
        if row.storage_version { shared } else { Arc::new(row.strategy.of_stored((*shared).clone())) }
    }

    /// The stored form of an object of this row.
    pub(crate) fn encode(row: &'static Row, object: &Value) -> Result<Record, ApiError> {
        if !row.storage_version {
            return Self::encode(stored_row(row), &row.strategy.to_stored(object.clone()));
        }
        let body = object::encode(row, object);
        if body.len() > OBJECT_BYTES_MAX {
            return Err(ApiError::TooLarge("etcdserver: request is too large".into()));
        }
        let stamp_at = object::stamp_at(row);
        let facts = Facts {
            stamp_at,
            comma: body.get(stamp_at) != Some(&b'}'),
            fields: Some(facts_of_fields(row, object)),
            ..Facts::of(object)
        };
        Ok(Record::new(&body, &facts))
    }

    /// What is shown of an object that was just stored.
    fn stored_as(row: &'static Row, object: Value, stored: &Record, revision: Revision) -> Shown {
        if row.storage_version {
            return Shown::Bytes(object::stamp(row, stored.body(), revision));
        }
        let mut object = object;
        object::metadata_mut(&mut object).insert("resourceVersion".into(), revision.to_string().into());
        Shown::Value(object)
    }

    /// Writes one key if it is still as it was read; `None`: it isn't.
    async fn put(&self, row: &Row, key: &str, was: Revision, record: Record) -> Result<Option<Revision>, ApiError> {
        let ttl = (row.plural == "events").then_some(EVENT_TTL);
        let ops = vec![Op::Put { key: key.to_owned(), record, ttl }];
        self.commit(key, was, ops).await
    }

    /// Removes one key if it is still as it was read.
    async fn remove(&self, key: &str, was: Revision) -> Result<Option<Revision>, ApiError> {
        self.commit(key, was, vec![Op::Delete { key: key.to_owned() }]).await
    }

    async fn commit(&self, key: &str, was: Revision, ops: Vec<Op>) -> Result<Option<Revision>, ApiError> {
        let compares = vec![Compare { key: key.to_owned(), modified: was }];
        match self.cache.commit(Txn { compares, ops }).await {
            Ok(Outcome::Committed(revision)) => Ok(Some(revision)),
            Ok(Outcome::Conflict(_)) => Ok(None),
            Err(error) => Err(store_error(&error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_answered_as_upstream_answers_a_full_etcd() {
        let full = StoreError::Full { path: "/data/store".into(), wanted: 4711, free: Some(12) };
        let status = serde_json::to_value(store_error(&full).status()).unwrap();
        let message = "no space left on device: /data/store has 12 bytes free, and this write needs 4711; nothing was \
                       written: free space on that disk (deleting objects needs some, too) and try again";
        let expected = serde_json::json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message, "code": 500,
        });
        assert_eq!(status, expected);
    }
}
