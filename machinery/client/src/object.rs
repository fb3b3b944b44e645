//! Kinds and objects: typed if a controller reads their fields, else metadata only.

use std::any::Any;
use std::borrow::Cow;
use std::fmt::Debug;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use k8s_openapi::{ClusterResourceScope, Metadata, NamespaceResourceScope, Resource};
use serde_json::Value;

use machinery_api::{GroupVersion, ObjectKey};

use crate::wire::{ReadWire, Wire};

/// A resource kind of the API server, with all parts of its request paths.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Kind {
    /// The API group; empty for the core group.
    pub group: Cow<'static, str>,
    /// The plural, as in paths.
    pub plural: Cow<'static, str>,
    /// The version.
    pub version: Cow<'static, str>,
    /// The kind.
    pub kind: Cow<'static, str>,
    /// Whether the kind is namespaced.
    pub namespaced: bool,
}

impl Kind {
    /// The kind of a typed object.
    #[must_use]
    pub const fn of<K: Typed>() -> Self
    where
        K::Scope: Scope,
    {
        Self {
            group: Cow::Borrowed(K::GROUP),
            plural: Cow::Borrowed(K::URL_PATH_SEGMENT),
            version: Cow::Borrowed(K::VERSION),
            kind: Cow::Borrowed(K::KIND),
            namespaced: <K::Scope as Scope>::NAMESPACED,
        }
    }

    /// `v1`, `apps/v1`.
    #[must_use]
    pub fn api_version(&self) -> String {
        GroupVersion { group: &self.group, version: &self.version }.to_string()
    }

    /// `pods`, `deployments.apps`: the resource's name in messages.
    #[must_use]
    pub fn resource(&self) -> String {
        if self.group.is_empty() { self.plural.to_string() } else { format!("{}.{}", self.plural, self.group) }
    }

    /// The path of a collection: of one namespace, or of all if `namespace` is empty.
    #[must_use]
    pub fn collection_path(&self, namespace: &str) -> String {
        let root = if self.group.is_empty() {
            format!("/api/{}", self.version)
        } else {
            format!("/apis/{}/{}", self.group, self.version)
        };
        if self.namespaced && !namespace.is_empty() {
            format!("{root}/namespaces/{namespace}/{}", self.plural)
        } else {
            format!("{root}/{}", self.plural)
        }
    }

    /// The path of one object.
    #[must_use]
    pub fn path(&self, key: &ObjectKey) -> String {
        format!("{}/{}", self.collection_path(&key.namespace), key.name)
    }
}

/// A scope of k8s-openapi as a constant.
pub trait Scope {
    /// True for namespaced kinds.
    const NAMESPACED: bool;
}

impl Scope for ClusterResourceScope {
    const NAMESPACED: bool = false;
}

impl Scope for NamespaceResourceScope {
    const NAMESPACED: bool = true;
}

/// Types that can be watched and written: those of k8s-openapi, and reduced ones such as [`crate::Pod`], which omits
/// fields that no component reads. One process watches a kind as one type.
pub trait Typed:
    Resource<Scope: Scope> + Metadata<Ty = ObjectMeta> + ReadWire + Wire + Clone + PartialEq + Debug + Send + Sync + 'static
{
}

impl<K> Typed for K where
    K: Resource<Scope: Scope>
        + Metadata<Ty = ObjectMeta>
        + ReadWire
        + Wire
        + Clone
        + PartialEq
        + Debug
        + Send
        + Sync
        + 'static
{
}

/// Decodes an object from JSON.
pub type Decode = fn(&Kind, &str) -> Result<Arc<dyn Object>, serde_json::Error>;

/// A cached object.
pub trait Object: Any + Debug + Send + Sync {
    /// Its metadata.
    fn metadata(&self) -> &ObjectMeta;
    /// Its wire form.
    fn to_value(&self) -> Value;
}

impl<K: Typed> Object for K {
    fn metadata(&self) -> &ObjectMeta {
        Metadata::metadata(self)
    }

    fn to_value(&self) -> Value {
        self.wire_value()
    }
}

/// An object of which only the metadata is cached.
#[derive(Debug, Clone, PartialEq)]
pub struct MetadataOnly {
    /// Its kind.
    pub kind: Kind,
    /// Its metadata.
    pub metadata: ObjectMeta,
}

impl Object for MetadataOnly {
    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn to_value(&self) -> Value {
        serde_json::json!({
            "apiVersion": self.kind.api_version(), "kind": self.kind.kind, "metadata": value_of(&self.metadata),
        })
    }
}

/// The wire form of a value.
pub fn value_of<T: Wire + ?Sized>(of: &T) -> Value {
    of.wire_value()
}

/// Downcasts an object; `None` if it is of another type.
#[must_use]
pub fn typed<K: Typed>(object: &dyn Object) -> Option<&K> {
    (object as &dyn Any).downcast_ref()
}

/// Downcasts a shared object; `None` if it is of another type.
#[must_use]
pub fn shared<K: Typed>(object: Arc<dyn Object>) -> Option<Arc<K>> {
    let object: Arc<dyn Any + Send + Sync> = object;
    object.downcast().ok()
}

/// The key in an object's metadata.
#[must_use]
pub fn key_of(metadata: &ObjectMeta) -> ObjectKey {
    ObjectKey::new(metadata.namespace.clone().unwrap_or_default(), metadata.name.clone().unwrap_or_default())
}

/// The resourceVersion as a number (0 if it isn't numeric).
#[must_use]
pub fn version_of(metadata: &ObjectMeta) -> u64 {
    metadata.resource_version.as_deref().and_then(|v| v.parse().ok()).unwrap_or(0)
}

/// The owner reference with `controller: true`.
#[must_use]
pub fn controller_of(metadata: &ObjectMeta) -> Option<&OwnerReference> {
    metadata.owner_references.as_deref().unwrap_or_default().iter().find(|o| o.controller == Some(true))
}

/// Decodes a typed object without its managed fields, which no component uses.
///
/// # Errors
/// When the text isn't an object of that type.
pub fn decode<K: Typed>(text: &str) -> Result<Arc<dyn Object>, serde_json::Error> {
    let mut object: K = match K::from_json(text) {
        Ok(object) => object,
        Err(_) => read(serde_json::from_str(text)?)?,
    };
    object.metadata_mut().managed_fields = None;
    Ok(Arc::new(object))
}

/// Decodes a typed object from its wire form. A condition's `lastTransitionTime` may be null: clients can store that in
/// a status, but the types have no null there, and readers must not lose such an object.
///
/// The value is printed and parsed, so that each type is compiled for one deserializer.
///
/// # Errors
/// When the value isn't an object of that type.
pub fn read<K: ReadWire>(mut value: Value) -> Result<K, serde_json::Error> {
    let conditions = value.pointer_mut("/status/conditions").and_then(Value::as_array_mut);
    for condition in conditions.into_iter().flatten() {
        if let Some(time) = condition.get_mut("lastTransitionTime").filter(|time| time.is_null()) {
            *time = Value::from("1970-01-01T00:00:00Z");
        }
    }
    K::from_json(&value.to_string())
}

/// Decodes an object's metadata.
///
/// # Errors
/// When the text isn't an object with metadata.
pub fn decode_metadata(kind: &Kind, text: &str) -> Result<Arc<dyn Object>, serde_json::Error> {
    #[derive(serde::Deserialize)]
    struct Bare {
        metadata: ObjectMeta,
    }
    let mut bare: Bare = serde_json::from_str(text)?;
    bare.metadata.managed_fields = None;
    Ok(Arc::new(MetadataOnly { kind: kind.clone(), metadata: bare.metadata }))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Service;
    use serde_json::json;

    use super::decode;

    #[test]
    fn a_condition_without_a_time_does_not_hide_its_object() {
        let service = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "a", "namespace": "default"},
            "status": {"conditions": [{"type": "T", "status": "True", "reason": "", "message": "", "lastTransitionTime": null}]},
        });
        assert_eq!(decode::<Service>(&service.to_string()).unwrap().metadata().name.as_deref(), Some("a"));
        let other = json!({"metadata": {"name": 1}, "status": {"conditions": [null, {"lastTransitionTime": null}]}});
        decode::<Service>(&other.to_string()).unwrap_err();
    }
}
