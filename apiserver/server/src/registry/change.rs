//! The change of a write: what it makes of the existing object, and the transaction that stores it.

use std::sync::Arc;

use apiserver_schema::apply::Managers;
use machinery_api::{ApiError, StorageKey};
use serde_json::Value;
use tokio::sync::OwnedMutexGuard;

use super::{Registry, RequestScope, object};
use apiserver_resources::ResourceInfo;
use apiserver_storage::cache::Cached;
use apiserver_storage::store::{Record, Revision, Txn};

/// The existing object, in the version of the request.
pub(super) struct Existing {
    pub(super) cached: Arc<Cached>,
    /// The cached object in the version of the request.
    pub(super) shown: Arc<Cached>,
    pub(super) value: Arc<Value>,
}

impl Existing {
    pub(super) async fn new(
        registry: &Registry,
        row: &Arc<ResourceInfo>,
        cached: Arc<Cached>,
    ) -> Result<Self, ApiError> {
        let shown = match &row.custom {
            Some(_) => Box::pin(registry.versions.show_one(row, cached.clone())).await?,
            None => cached.clone(),
        };
        Ok(Self { value: Registry::in_row_version(row, &shown), shown, cached })
    }

    pub(super) fn modified(&self) -> Revision {
        self.cached.modified
    }

    pub(super) fn managers(&self) -> Managers {
        self.cached.managers().clone()
    }
}

/// What a write does to an object.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum ObjectChange {
    /// Creates it.
    Create {
        /// The object.
        object: Value,
        /// The client's resourceVersion, which a new object cannot have.
        version: Option<Value>,
        /// Whether its name was generated.
        generated: bool,
    },
    /// Replaces it.
    Update(Value),
    /// Removes it; an update that completes a deletion also returns the updated object.
    Remove(Option<Value>),
    /// Marks it as deleted and removes it at once: watchers see both events, as upstream.
    MarkAndRemove(Value),
    /// Changes nothing.
    Keep,
}

impl ObjectChange {
    /// The new object, or its last state.
    pub(super) fn object(&self) -> Option<&Value> {
        match self {
            Self::Create { object, .. } | Self::Update(object) | Self::MarkAndRemove(object) => Some(object),
            Self::Remove(object) => object.as_ref(),
            Self::Keep => None,
        }
    }

    pub(super) fn object_mut(&mut self) -> Option<&mut Value> {
        match self {
            Self::Create { object, .. } | Self::Update(object) | Self::MarkAndRemove(object) => Some(object),
            Self::Remove(object) => object.as_mut(),
            Self::Keep => None,
        }
    }

    /// The object that exists after the change.
    pub(super) fn remaining(&self) -> Option<&Value> {
        self.object().filter(|_| !matches!(self, Self::Remove(_) | Self::MarkAndRemove(_)))
    }

    /// The key of the changed object.
    pub(super) fn key(&self, call: &RequestScope<'_>) -> StorageKey {
        match self {
            Self::Create { object, .. } => super::key(call.row, call.object_namespace(), object::text(object, "name")),
            _ => call.key(),
        }
    }
}

/// A decided change with its transaction. The transaction succeeds if all that the decision read is unchanged.
pub(super) struct Change {
    pub(super) key: StorageKey,
    /// The revision of the existing object; 0 if it must not exist.
    pub(super) was: Revision,
    pub(super) object: ObjectChange,
    /// The record of a new or changed object.
    pub(super) record: Option<Record>,
    /// The conditions and side writes of admission and of the kind.
    pub(super) extras: Txn,
    /// Locks that serialize concurrent writers until the commit.
    pub(super) locks: Vec<OwnedMutexGuard<()>>,
}
