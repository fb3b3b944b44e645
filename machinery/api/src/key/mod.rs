//! Typed keys: text is parsed once at the edge and never split inside.

mod space;
mod storage;

use std::fmt;

pub use space::KeySpace;
pub use storage::{StorageKey, StoragePrefix, StorageScope};

/// A resource version: the store's revision at which an object was last written (KEP-5504: a decimal integer).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ResourceVersion(pub u64);

impl fmt::Display for ResourceVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl ResourceVersion {
    /// Parses as Go's `strconv.ParseUint`, with its error messages.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
            return Err(format!("strconv.ParseUint: parsing {text:?}: invalid syntax"));
        }
        text.parse().map(Self).map_err(|_| format!("strconv.ParseUint: parsing {text:?}: value out of range"))
    }
}

/// An object's uid, unique for all time. Empty if none is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Uid<'a>(pub &'a str);

impl fmt::Display for Uid<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl<'a> Uid<'a> {
    /// Checks an object's uid against a precondition, if there is one; the error is the store's message.
    pub fn meets(self, wanted: Option<Self>) -> Result<(), String> {
        match wanted.filter(|wanted| *wanted != self) {
            None => Ok(()),
            Some(wanted) => {
                Err(format!("Precondition failed: UID in precondition: {wanted}, UID in object meta: {self}"))
            }
        }
    }
}

/// A group version as in `apiVersion`: `apps/v1`, or `v1` of the core group, whose name is empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct GroupVersion<'a> {
    /// The API group.
    pub group: &'a str,
    /// The version.
    pub version: &'a str,
}

impl<'a> GroupVersion<'a> {
    /// Parses an `apiVersion` without validating it.
    #[must_use]
    pub fn parse(text: &'a str) -> Self {
        let (group, version) = text.split_once('/').unwrap_or(("", text));
        Self { group, version }
    }

    /// Parses an `apiVersion`.
    ///
    /// # Errors
    /// More than one slash: upstream's message of `ParseGroupVersion`.
    pub fn parse_checked(text: &'a str) -> Result<Self, String> {
        match text.matches('/').count() {
            0 | 1 => Ok(Self::parse(text)),
            _ => Err(format!("unexpected GroupVersion string: {text}")),
        }
    }

    /// A kind of this group version.
    #[must_use]
    pub fn kind(self, kind: &'a str) -> GroupVersionKind<'a> {
        GroupVersionKind { group: self.group, version: self.version, kind }
    }
}

impl fmt::Display for GroupVersionKind<'_> {
    /// In upstream's format.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}, Kind={}", self.group, self.version, self.kind)
    }
}

impl fmt::Display for GroupVersion<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.group.is_empty() { f.write_str(self.version) } else { write!(f, "{}/{}", self.group, self.version) }
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
        ObjectName::new(&self.namespace, &self.name).fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_groups_are_written_as_upstream_writes_them() {
        for (text, group, version) in [("v1", "", "v1"), ("apps/v1", "apps", "v1"), ("", "", ""), ("/v1", "", "v1")] {
            assert_eq!(GroupVersion::parse(text), GroupVersion { group, version }, "{text}");
        }
        assert_eq!(GroupVersion { group: "apps", version: "v1" }.to_string(), "apps/v1");
        assert_eq!(GroupVersion { group: "", version: "v1" }.to_string(), "v1");
    }

    #[test]
    fn uids_meet_preconditions() {
        assert_eq!((Uid("a").meets(Some(Uid("a"))), Uid("a").meets(None)), (Ok(()), Ok(())));
        let sentence = "Precondition failed: UID in precondition: b, UID in object meta: a";
        assert_eq!(Uid("a").meets(Some(Uid("b"))), Err(sentence.into()));
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
