//! Node.

use serde_json::Value;

use super::field::FieldError;
use super::{Context, Row, STATUS, Storage, Strategy};

/// Nodes.
pub(super) static ROW: Row = Row {
    kind: "Node",
    plural: "nodes",
    singular: "node",
    short_names: &["no"],
    schema: "io.k8s.api.core.v1.Node",
    subresources: &[STATUS],
    storage: Storage::Stored("minions"),
    strategy: &Node,
    example: r#"apiVersion: v1
kind: Node
metadata: {name: example}
spec:
  taints: [{key: example.com/only, value: "yes", effect: NoSchedule}]
"#,
    ..Row::CLUSTER
};

struct Node;

impl Strategy for Node {
    fn validate(&self, _: &Context<'_>, _: &Value) -> Vec<FieldError> {
        Vec::new()
    }
}
