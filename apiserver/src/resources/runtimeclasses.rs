//! RuntimeClass.

use serde_json::Value;

use super::field::FieldError;
use super::{Context, Row, Storage, Strategy};

/// RuntimeClasss.
pub(super) static ROW: Row = Row {
    group: "node.k8s.io",
    kind: "RuntimeClass",
    plural: "runtimeclasses",
    singular: "runtimeclass",
    schema: "io.k8s.api.node.v1.RuntimeClass",
    storage: Storage::Stored("runtimeclasses"),
    strategy: &RuntimeClass,
    example: r#"apiVersion: node.k8s.io/v1
kind: RuntimeClass
metadata: {name: example}
handler: wasm
"#,
    ..Row::CLUSTER
};

struct RuntimeClass;

impl Strategy for RuntimeClass {
    fn validate(&self, _: &Context<'_>, _: &Value) -> Vec<FieldError> {
        Vec::new()
    }
}
