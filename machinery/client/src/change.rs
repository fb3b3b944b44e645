//! A change of one cached object, with its state before and after: the input of listeners and key mappings.

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use machinery_api::ObjectKey;

use crate::object::{Kind, Object, Typed, typed};

/// One object's change.
#[derive(Debug, Clone)]
pub struct Change {
    /// The kind.
    pub kind: Kind,
    /// The object.
    pub key: Arc<ObjectKey>,
    /// The old state; `None` for a new object.
    pub old: Option<Arc<dyn Object>>,
    /// The new state; `None` for a deleted object.
    pub new: Option<Arc<dyn Object>>,
}

impl Change {
    /// The old state, typed.
    #[must_use]
    pub fn before<K: Typed>(&self) -> Option<&K> {
        self.old.as_deref().and_then(typed)
    }

    /// The new state, typed.
    #[must_use]
    pub fn after<K: Typed>(&self) -> Option<&K> {
        self.new.as_deref().and_then(typed)
    }

    /// The metadata of the old and the new state, as far as they exist.
    pub fn states(&self) -> impl Iterator<Item = &ObjectMeta> {
        self.old.iter().chain(self.new.iter()).map(|o| o.metadata())
    }

    /// The new state, else the old one.
    #[must_use]
    pub fn latest<K: Typed>(&self) -> Option<&K> {
        self.after().or_else(|| self.before())
    }
}
