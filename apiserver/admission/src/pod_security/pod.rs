//! Accessors for the pod fields that the checks read, and the wording of violations.

use std::collections::BTreeSet;

use serde_json::Value;

/// Metadata and spec of a pod or a template.
#[derive(Clone, Copy)]
pub(super) struct Pod<'a> {
    pub(super) metadata: &'a Value,
    pub(super) spec: &'a Value,
}

/// A violated check: short reason and exact detail.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Violation {
    pub(super) reason: &'static str,
    pub(super) detail: String,
}

impl Violation {
    pub(super) fn some(reason: &'static str, detail: String) -> Option<Self> {
        Some(Self { reason, detail })
    }
}

/// A sorted set of texts.
pub(super) type Texts = BTreeSet<String>;

impl<'a> Pod<'a> {
    /// Reads an object with metadata and spec.
    pub(super) fn of(object: &'a Value) -> Self {
        Self { metadata: &object["metadata"], spec: &object["spec"] }
    }

    /// All containers: init containers first, ephemeral containers last.
    pub(super) fn containers(self) -> impl Iterator<Item = &'a Value> {
        let list = |field: &str| self.spec[field].as_array().map(Vec::as_slice).unwrap_or_default();
        [list("initContainers"), list("containers"), list("ephemeralContainers")].into_iter().flatten()
    }

    /// Names of the containers that match a predicate.
    pub(super) fn containers_where(self, is_bad: impl FnMut(&'a Value) -> bool) -> Vec<&'a str> {
        let mut is_bad = is_bad;
        self.containers().filter(|container| is_bad(container)).map(|container| text(&container["name"])).collect()
    }

    /// The security context of the pod.
    pub(super) fn security(self) -> &'a Value {
        &self.spec["securityContext"]
    }

    pub(super) fn is_windows(self) -> bool {
        self.spec["os"]["name"] == "windows"
    }

    /// Whether the pod runs in its own user namespace.
    pub(super) fn has_own_users(self) -> bool {
        self.spec["hostUsers"] == false
    }
}

/// The security context of a container.
pub(super) fn security(container: &Value) -> &Value {
    &container["securityContext"]
}

pub(super) fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// `"a", "b"`
pub(super) fn quoted<T: AsRef<str>>(items: impl IntoIterator<Item = T>) -> String {
    let items: Vec<T> = items.into_iter().collect();
    if items.is_empty() {
        return String::new();
    }
    format!("\"{}\"", items.iter().map(AsRef::as_ref).collect::<Vec<_>>().join("\", \""))
}

pub(super) fn plural<'a>(one: &'a str, many: &'a str, count: usize) -> &'a str {
    if count == 1 { one } else { many }
}

/// `container "a"`, `containers "a", "b"`
pub(super) fn containers(names: &[&str]) -> String {
    format!("{} {}", plural("container", "containers", names.len()), quoted(names))
}

/// The pod or containers that set a forbidden value.
pub(super) fn setters(pod: bool, names: &[&str]) -> Option<String> {
    let mut setters = Vec::new();
    if pod {
        setters.push("pod".to_owned());
    }
    if !names.is_empty() {
        setters.push(containers(names));
    }
    (!setters.is_empty()).then(|| setters.join(" and "))
}
