//! Secret.

use serde_json::Value;

use super::field::FieldError;
use super::{Context, Row, Storage, Strategy};

/// Secrets.
pub(super) static ROW: Row = Row {
    kind: "Secret",
    plural: "secrets",
    singular: "secret",
    schema: "io.k8s.api.core.v1.Secret",
    storage: Storage::Stored("secrets"),
    strategy: &Secret,
    example: r#"apiVersion: v1
kind: Secret
metadata: {name: example}
data: {key: dmFsdWU=}
"#,
    ..Row::NAMESPACED
};

struct Secret;

impl Strategy for Secret {
    fn validate(&self, _: &Context<'_>, _: &Value) -> Vec<FieldError> {
        Vec::new()
    }
}
