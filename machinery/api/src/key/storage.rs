//! Storage keys: `/registry/PREFIX/[NAMESPACE/]NAME`, as upstream's layout of etcd. Stores and the layers above hold
//! keys as text; only this module knows their structure.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

use super::ObjectName;

/// An object's key.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StorageKey(String);

impl StorageKey {
    /// Where all keys begin.
    pub(super) const ROOT: &'static str = "/registry/";

    /// The key of an object with the resource's storage prefix (`pods`, `services/specs`).
    #[must_use]
    pub fn object(prefix: &str, object: ObjectName<'_>) -> Self {
        StoragePrefix::new(prefix).object(object)
    }

    /// The key's text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The key without `/registry`, as upstream's generic registry logs it.
    #[must_use]
    pub fn within_registry(&self) -> &str {
        self.0.get(Self::ROOT.len() - 1..).unwrap_or(&self.0)
    }

    /// The prefixes of a key or scope up to each slash, longest first: for `/registry/pods/default/web` those ending in
    /// `default/`, `pods/` and so on.
    pub fn prefixes(key: &str) -> impl Iterator<Item = &str> {
        key.rmatch_indices('/').map(|(at, _)| &key[..=at])
    }

    /// The object of a key whose namespace has this many bytes; 0 for none.
    #[must_use]
    pub fn name_at_end(key: &str, namespace_len: usize) -> ObjectName<'_> {
        let Some((before, name)) = key.rsplit_once('/') else { return ObjectName::new("", key) };
        let namespace = before.rsplit('/').next().filter(|segment| namespace_len > 0 && segment.len() == namespace_len);
        ObjectName::new(namespace.unwrap_or(""), name)
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

/// The prefix of a resource's keys: `/registry/pods/`. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StoragePrefix(Arc<str>);

impl StoragePrefix {
    /// The prefix of a storage prefix as upstream names it: `pods`, `services/specs`.
    #[must_use]
    pub fn new(prefix: &str) -> Self {
        Self(format!("{}{prefix}/", StorageKey::ROOT).into())
    }

    /// The text, with its last slash.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
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

    /// The object of a key of this resource; `None` for another resource's key.
    #[must_use]
    pub fn name_of<'a>(&self, key: &'a str) -> Option<ObjectName<'a>> {
        let rest = key.strip_prefix(&*self.0)?;
        let (namespace, name) = rest.split_once('/').unwrap_or(("", rest));
        Some(ObjectName::new(namespace, name))
    }

    /// The scope of all objects.
    #[must_use]
    pub fn all(&self) -> StorageScope {
        StorageScope(self.0.clone())
    }

    /// The scope of one namespace.
    #[must_use]
    pub fn namespace(&self, namespace: &str) -> StorageScope {
        StorageScope(format!("{}{namespace}/", self.0).into())
    }

    /// The namespace of a scope's text, empty for all objects; `None` if the scope isn't of this resource.
    #[must_use]
    pub fn namespace_of<'a>(&self, scope: &'a str) -> Option<&'a str> {
        match scope.strip_prefix(&*self.0)? {
            "" => Some(""),
            rest => rest.strip_suffix('/').filter(|namespace| !namespace.is_empty() && !namespace.contains('/')),
        }
    }
}

impl Borrow<str> for StoragePrefix {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// The prefix of a list's keys: of a resource, or of one of its namespaces. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct StorageScope(Arc<str>);

impl StorageScope {
    /// The text, with its last slash; empty if nothing is stored.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The key of `rest` within the scope.
    #[must_use]
    pub fn key(&self, rest: &str) -> String {
        Self::key_below(&self.0, rest)
    }

    /// As [`key`](Self::key), for a scope's text.
    #[must_use]
    pub fn key_below(scope: &str, rest: &str) -> String {
        [scope, rest].concat()
    }

    /// The rest of a key within the scope; `None` for a key outside.
    #[must_use]
    pub fn rest<'a>(&self, key: &'a str) -> Option<&'a str> {
        key.strip_prefix(&*self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn storage_keys_are_upstreams() {
        let web = ObjectName::new("default", "web");
        let key = StorageKey::object("services/specs", web);
        assert_eq!(key.as_str(), "/registry/services/specs/default/web");
        assert_eq!(key.within_registry(), "/services/specs/default/web");
        assert_eq!(StorageKey::object("minions", ObjectName::new("", "n")).as_str(), "/registry/minions/n");
        let prefix = StoragePrefix::new("services/specs");
        assert_eq!(prefix.object(web), key);
        assert_eq!(prefix.object(ObjectName::new("", "n")).as_str(), "/registry/services/specs/n");
        assert_eq!(prefix.namespace("default").as_str(), "/registry/services/specs/default/");
    }

    #[test]
    fn keys_name_their_objects() {
        let prefix = StoragePrefix::new("services/specs");
        let key = "/registry/services/specs/default/web";
        assert_eq!(prefix.name_of(key), Some(ObjectName::new("default", "web")));
        assert_eq!(prefix.name_of("/registry/services/specs/n"), Some(ObjectName::new("", "n")));
        assert_eq!(prefix.name_of("/registry/services/endpoints/default/web"), None);
        assert_eq!(StorageKey::name_at_end(key, 7), ObjectName::new("default", "web"));
        assert_eq!(StorageKey::name_at_end(key, 0), ObjectName::new("", "web"));
        assert_eq!(StorageKey::name_at_end("web", 3), ObjectName::new("", "web"));
        let prefixes: Vec<&str> = StorageKey::prefixes("/registry/pods/a/b").collect();
        assert_eq!(prefixes, ["/registry/pods/a/", "/registry/pods/", "/registry/", "/"]);
        assert_eq!(prefix.namespace_of(prefix.all().as_str()), Some(""));
        assert_eq!(prefix.namespace_of(prefix.namespace("a").as_str()), Some("a"));
        for none in [
            "/registry/services/specs/a",
            "/registry/services/specs/a/b/",
            "/registry/pods/",
            "",
            "/registry/services/specs//",
        ] {
            assert_eq!(prefix.namespace_of(none), None, "{none}");
        }
    }

    #[test]
    fn keys_of_scopes() {
        let scope = StoragePrefix::new("pods").namespace("a");
        assert_eq!(scope.key("x"), "/registry/pods/a/x");
        assert_eq!((scope.rest("/registry/pods/a/x"), scope.rest("/registry/pods/b/x")), (Some("x"), None));
    }
}
