//! Typed keys: parse at the edge, never split strings inside.

use std::fmt;
use std::sync::Arc;

/// A resource version: the store's revision at which an object was last written (KEP-5504: a decimal integer).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ResourceVersion(pub u64);

impl fmt::Display for ResourceVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl ResourceVersion {
    /// Parses as Go's `strconv.ParseUint` does, with its words for what isn't one.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
            return Err(format!("strconv.ParseUint: parsing {text:?}: invalid syntax"));
        }
        text.parse().map(Self).map_err(|_| format!("strconv.ParseUint: parsing {text:?}: value out of range"))
    }
}

/// An object's uid: the same for as long as it exists, and never again.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Uid(pub String);

impl fmt::Display for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A resource in one version of its group; the group is empty for core.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct GroupVersionResource<'a> {
    /// The API group.
    pub group: &'a str,
    /// The version.
    pub version: &'a str,
    /// The plural.
    pub resource: &'a str,
}

/// A kind in one version of its group; the group is empty for core.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct GroupVersionKind<'a> {
    /// The API group.
    pub group: &'a str,
    /// The version.
    pub version: &'a str,
    /// The kind.
    pub kind: &'a str,
}

/// Names an object of a known resource, borrowed; `namespace` is empty for cluster-wide resources.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ObjectName<'a> {
    /// The namespace, or empty.
    pub namespace: &'a str,
    /// The name.
    pub name: &'a str,
}

impl<'a> ObjectName<'a> {
    /// A namespaced object's name, or with an empty namespace a cluster-wide one's.
    #[must_use]
    pub fn new(namespace: &'a str, name: &'a str) -> Self {
        Self { namespace, name }
    }
}

impl fmt::Display for ObjectName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() { f.write_str(self.name) } else { write!(f, "{}/{}", self.namespace, self.name) }
    }
}

/// Where an object is stored: `/registry/PREFIX/[NAMESPACE/]NAME`, as upstream lays out etcd.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StorageKey(String);

impl StorageKey {
    const ROOT: &'static str = "/registry/";

    /// The object of a resource whose storage prefix (`pods`, `services/specs`) this is.
    #[must_use]
    pub fn object(prefix: &str, object: ObjectName<'_>) -> Self {
        StoragePrefix::new(prefix).object(object)
    }

    /// What all objects of a storage prefix begin with: `/registry/pods/`.
    #[must_use]
    pub fn root(prefix: &str) -> String {
        format!("{}{prefix}/", Self::ROOT)
    }

    /// The key's text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// As upstream's generic registry writes it, before its storage puts `/registry` in front.
    #[must_use]
    pub fn within_registry(&self) -> &str {
        self.0.get(Self::ROOT.len() - 1..).unwrap_or(&self.0)
    }
}

impl fmt::Display for StorageKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<StorageKey> for String {
    fn from(key: StorageKey) -> Self {
        key.0
    }
}

/// What the keys of a resource's objects begin with: `/registry/pods/`. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StoragePrefix(Arc<str>);

impl StoragePrefix {
    /// Of a storage prefix as upstream names it: `pods`, `services/specs`.
    #[must_use]
    pub fn new(prefix: &str) -> Self {
        Self(StorageKey::root(prefix).into())
    }

    /// The text, with its last slash.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The text, shared.
    #[must_use]
    pub fn shared(&self) -> Arc<str> {
        self.0.clone()
    }

    /// An object's key.
    #[must_use]
    pub fn object(&self, object: ObjectName<'_>) -> StorageKey {
        let ObjectName { namespace, name } = object;
        let mut key = String::with_capacity(self.0.len() + namespace.len() + name.len() + 1);
        key.push_str(&self.0);
        if !namespace.is_empty() {
            key.push_str(namespace);
            key.push('/');
        }
        key.push_str(name);
        StorageKey(key)
    }

    /// What the keys of one namespace's objects begin with.
    #[must_use]
    pub fn namespace(&self, namespace: &str) -> String {
        format!("{}{namespace}/", self.0)
    }
}

/// Names an object of a known kind; `namespace` is empty for cluster-wide kinds.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ObjectKey {
    /// The namespace, or empty.
    pub namespace: String,
    /// The name.
    pub name: String,
}

impl ObjectKey {
    /// A namespaced object's key.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }

    /// A cluster-wide object's key.
    pub fn cluster(name: impl Into<String>) -> Self {
        Self::new("", name)
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() { f.write_str(&self.name) } else { write!(f, "{}/{}", self.namespace, self.name) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn storage_keys_are_upstreams() {
        let key = StorageKey::object("services/specs", ObjectName::new("default", "web"));
        assert_eq!(key.as_str(), "/registry/services/specs/default/web");
        assert_eq!(key.within_registry(), "/services/specs/default/web");
        assert_eq!(StorageKey::object("minions", ObjectName::new("", "n")).as_str(), "/registry/minions/n");
        assert_eq!(StorageKey::root("pods"), "/registry/pods/");
        let prefix = StoragePrefix::new("services/specs");
        assert_eq!(prefix.object(ObjectName::new("default", "web")), key);
        assert_eq!(prefix.object(ObjectName::new("", "n")).as_str(), "/registry/services/specs/n");
        assert_eq!(prefix.namespace("default"), "/registry/services/specs/default/");
    }

    #[test]
    fn versions_are_numbers() {
        assert_eq!(ResourceVersion::parse("7"), Ok(ResourceVersion(7)));
        for bad in ["", "-1", "1.5", "abc", "+1"] {
            assert!(ResourceVersion::parse(bad).unwrap_err().ends_with("invalid syntax"));
        }
        assert!(ResourceVersion::parse("99999999999999999999999").unwrap_err().ends_with("value out of range"));
    }
}
