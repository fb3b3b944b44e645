//! ReplicaSet.

use serde_json::Value;

use super::field::FieldError;
use super::{Context, Row, SCALE, STATUS, Storage, Strategy};

/// ReplicaSets.
pub(super) static ROW: Row = Row {
    group: "apps",
    kind: "ReplicaSet",
    plural: "replicasets",
    singular: "replicaset",
    short_names: &["rs"],
    categories: &["all"],
    schema: "io.k8s.api.apps.v1.ReplicaSet",
    subresources: &[SCALE, STATUS],
    storage: Storage::Stored("replicasets"),
    strategy: &ReplicaSet,
    example: r#"apiVersion: apps/v1
kind: ReplicaSet
metadata: {name: example}
spec:
  replicas: 2
  selector: {matchLabels: {app: example}}
  template:
    metadata: {labels: {app: example}}
    spec:
      containers: [{name: web, image: registry.local/hello:v1}]
"#,
    ..Row::NAMESPACED
};

struct ReplicaSet;

impl Strategy for ReplicaSet {
    fn validate(&self, _: &Context<'_>, _: &Value) -> Vec<FieldError> {
        Vec::new()
    }
}
