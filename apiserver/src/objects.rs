//! Reading other objects while a request is handled: the seam between the cache and what needs look-ups
//! (authorizers, admission, allocators), so that those are tested over a map.

use std::sync::Arc;

use serde_json::Value;

/// The current objects, by resource. Stored rows only; values are in the stored version and carry their resourceVersion.
pub trait Objects: Send + Sync {
    /// One object; `namespace` is empty for cluster-wide resources.
    fn get(&self, group: &str, plural: &str, namespace: &str, name: &str) -> Option<Arc<Value>>;

    /// All objects of a resource, or those of one namespace, in key order.
    fn list(&self, group: &str, plural: &str, namespace: Option<&str>) -> Vec<Arc<Value>>;

    /// The revision at which the resource last changed: what is computed from a list may be kept until this moves.
    fn revision(&self, group: &str, plural: &str) -> u64;
}
