//! Kinds and objects as the runtime handles them: typed where a controller reads fields, metadata only elsewhere.

use std::any::Any;
use std::borrow::Cow;
use std::fmt::Debug;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use k8s_openapi::{ClusterResourceScope, Metadata, NamespaceResourceScope, Resource};
use serde_json::Value;

use machinery_api::{GroupVersion, ObjectKey};

use crate::wire::{ReadWire, Wire};

/// A kind of objects that the apiserver serves: enough to build any request about them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Kind {
    /// The API group; empty for the core group.
    pub group: Cow<'static, str>,
    /// The plural, as it stands in paths.
    pub plural: Cow<'static, str>,
    /// The version.
    pub version: Cow<'static, str>,
    /// The kind.
    pub kind: Cow<'static, str>,
    /// Whether its objects live in namespaces.
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

    /// `pods`, `deployments.apps`: the name of the resource in messages.
    #[must_use]
    pub fn resource(&self) -> String {
        if self.group.is_empty() { self.plural.to_string() } else { format!("{}.{}", self.plural, self.group) }
    }

    /// The path of a collection: of one namespace, or of all where `namespace` is empty.
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

/// Whether a scope of k8s-openapi is that of a namespace.
pub trait Scope {
    /// True for kinds whose objects live in namespaces.
    const NAMESPACED: bool;
}

impl Scope for ClusterResourceScope {
    const NAMESPACED: bool = false;
}

impl Scope for NamespaceResourceScope {
    const NAMESPACED: bool = true;
}

/// The types that can be watched and written: those of k8s-openapi, and others of their make, such as [`crate::Pod`], which
/// leaves out what no component reads. One process watches a kind as one type.
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

/// How an object is read from its text.
pub type Decode = fn(&Kind, &str) -> Result<Arc<dyn Object>, serde_json::Error>;

/// An object in the view.
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

/// An object of which only the metadata is kept.
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

/// An object in its type; none where it is of another.
#[must_use]
pub fn typed<K: Typed>(object: &dyn Object) -> Option<&K> {
    (object as &dyn Any).downcast_ref()
}

/// A shared object in its type; none where it is of another.
#[must_use]
pub fn shared<K: Typed>(object: Arc<dyn Object>) -> Option<Arc<K>> {
    let object: Arc<dyn Any + Send + Sync> = object;
    object.downcast().ok()
}

/// What an object is called.
#[must_use]
pub fn key_of(metadata: &ObjectMeta) -> ObjectKey {
    ObjectKey::new(metadata.namespace.clone().unwrap_or_default(), metadata.name.clone().unwrap_or_default())
}

/// The version an object was last written at (0 where the server's isn't a number).
#[must_use]
pub fn version_of(metadata: &ObjectMeta) -> u64 {
    metadata.resource_version.as_deref().and_then(|v| v.parse().ok()).unwrap_or(0)
}

/// The owner that controls an object.
#[must_use]
pub fn controller_of(metadata: &ObjectMeta) -> Option<&OwnerReference> {
    metadata.owner_references.as_deref().unwrap_or_default().iter().find(|o| o.controller == Some(true))
}

/// Reads a typed object without its managed fields, which no component uses.
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

/// Reads a typed object from its wire form. A condition's `lastTransitionTime` may be null: clients can store it in a
/// status, the types have no null there, and such an object must not be lost to its readers.
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

/// Reads an object's metadata.
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
