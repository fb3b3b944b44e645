//! PriorityClass.

use serde_json::Value;

use super::field::FieldError;
use super::{Context, Row, Storage, Strategy};

/// PriorityClasss.
pub(super) static ROW: Row = Row {
    group: "scheduling.k8s.io",
    kind: "PriorityClass",
    plural: "priorityclasses",
    singular: "priorityclass",
    short_names: &["pc"],
    schema: "io.k8s.api.scheduling.v1.PriorityClass",
    storage: Storage::Stored("priorityclasses"),
    strategy: &PriorityClass,
    example: r#"apiVersion: scheduling.k8s.io/v1
kind: PriorityClass
metadata: {name: example}
value: 1000
"#,
    ..Row::CLUSTER
};

struct PriorityClass;

impl Strategy for PriorityClass {
    fn validate(&self, _: &Context<'_>, _: &Value) -> Vec<FieldError> {
        Vec::new()
    }
}
