//! Field errors with upstream's wording, name rules, and small pieces that many kinds share.

use jiff::Timestamp;
use machinery::api::Cause;
use serde_json::{Value, json};

use super::Column;

/// Name and Age.
pub const NAME_AND_AGE: &[Column] = &[
    Column { name: "Name", kind: "string", format: "name", description: "", priority: 0 },
    Column { name: "Age", kind: "string", format: "", description: "", priority: 0 },
];

/// The cells of [`NAME_AND_AGE`].
#[must_use]
pub fn name_and_age(object: &Value, now: Timestamp) -> Vec<Value> {
    let _ = now;
    vec![object["metadata"]["name"].clone(), json!("<unknown>")]
}

/// What `metadata.name` may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NameRule {
    /// RFC 1123 subdomain: most kinds.
    Subdomain,
    /// RFC 1123 label: namespaces.
    Label,
    /// RFC 1035 label: services.
    Label1035,
    /// Any path segment: RBAC kinds.
    PathSegment,
}

/// One finding of validation (k8s.io/apimachinery `validation/field.Error`).
#[derive(Debug, Clone, PartialEq)]
pub struct FieldError {
    /// `FieldValueRequired`, …
    pub reason: &'static str,
    /// `spec.containers[0].name`
    pub field: String,
    /// Upstream's whole sentence, such as `Required value` or `Invalid value: "x": must be …`.
    pub message: String,
}

impl From<FieldError> for Cause {
    fn from(error: FieldError) -> Self {
        Self { reason: error.reason.into(), message: error.message, field: error.field }
    }
}
