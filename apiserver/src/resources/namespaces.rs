//! Namespace.

use serde_json::Value;

use super::field::FieldError;
use super::{Context, Row, STATUS, Storage, Strategy, SubKind, Subresource, Verb};

/// Namespaces.
pub(super) static ROW: Row = Row {
    kind: "Namespace",
    plural: "namespaces",
    singular: "namespace",
    short_names: &["ns"],
    schema: "io.k8s.api.core.v1.Namespace",
    verbs: &[Verb::Create, Verb::Delete, Verb::Get, Verb::List, Verb::Patch, Verb::Update, Verb::Watch],
    subresources: &[
        Subresource { name: "finalize", what: SubKind::Finalize, body: None, verbs: &[Verb::Update] },
        STATUS,
    ],
    storage: Storage::Stored("namespaces"),
    strategy: &Namespace,
    example: r#"apiVersion: v1
kind: Namespace
metadata: {name: example}
"#,
    ..Row::CLUSTER
};

struct Namespace;

impl Strategy for Namespace {
    fn validate(&self, _: &Context<'_>, _: &Value) -> Vec<FieldError> {
        Vec::new()
    }
}
