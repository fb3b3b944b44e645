//! Binding.

use serde_json::Value;

use super::field::FieldError;
use super::{Context, Row, Strategy, Verb};

/// Bindings.
pub(super) static ROW: Row = Row {
    kind: "Binding",
    plural: "bindings",
    singular: "binding",
    schema: "io.k8s.api.core.v1.Binding",
    verbs: &[Verb::Create],
    strategy: &Binding,
    example: r#"apiVersion: v1
kind: Binding
metadata: {name: example}
target: {apiVersion: v1, kind: Node, name: node-1}
"#,
    ..Row::NAMESPACED
};

struct Binding;

impl Strategy for Binding {
    fn validate(&self, _: &Context<'_>, _: &Value) -> Vec<FieldError> {
        Vec::new()
    }
}
