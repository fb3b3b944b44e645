//! The group `flowcontrol.apiserver.k8s.io`: flows of requests, and their concurrency limits.

pub(crate) mod flowschemas;
pub(crate) mod prioritylevelconfigurations;

use std::collections::BTreeSet;

use serde_json::Value;

use crate::field::{ErrorList, Path};
use crate::read::{get, items, text};

/// Validates a status' conditions: each has a unique type.
fn conditions(errors: &mut ErrorList, object: &Value) {
    let list_at = Path::root("status.conditions");
    let mut seen = BTreeSet::new();
    for (i, condition) in items(get(object, "status"), "conditions").iter().enumerate() {
        let (at, kind) = (list_at.index(i), text(condition, "type"));
        if !seen.insert(kind) {
            errors.duplicate(&at.child("type"), kind);
        }
        if kind.is_empty() {
            errors.required(&at.child("type"), "");
        }
    }
}
