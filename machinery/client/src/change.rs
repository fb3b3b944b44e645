//! One object's change.

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use machinery_api::ObjectKey;

use crate::object::{Kind, Object, Typed, typed};

/// One object's change, as the listeners of a view see it.
#[derive(Debug, Clone)]
pub struct Change {
    /// The kind.
    pub kind: Kind,
    /// The object.
    pub key: Arc<ObjectKey>,
    /// What it was; none where it is new.
    pub old: Option<Arc<dyn Object>>,
    /// What it is; none where it is gone.
    pub new: Option<Arc<dyn Object>>,
}

impl Change {
    /// What the object was, typed.
    #[must_use]
    pub fn before<K: Typed>(&self) -> Option<&K> {
        self.old.as_deref().and_then(typed)
    }

    /// What the object is, typed.
    #[must_use]
    pub fn after<K: Typed>(&self) -> Option<&K> {
        self.new.as_deref().and_then(typed)
    }

    /// The metadata of every state that the change knows: what the object was, and what it is.
    pub fn states(&self) -> impl Iterator<Item = &ObjectMeta> {
        self.old.iter().chain(self.new.iter()).map(|o| o.metadata())
    }

    /// The newest state that is known.
    #[must_use]
    pub fn latest<K: Typed>(&self) -> Option<&K> {
        self.after().or_else(|| self.before())
    }
}
