//! Deployment.

use serde_json::Value;

use super::field::FieldError;
use super::{Context, Row, SCALE, STATUS, Storage, Strategy};

/// Deployments.
pub(super) static ROW: Row = Row {
    group: "apps",
    kind: "Deployment",
    plural: "deployments",
    singular: "deployment",
    short_names: &["deploy"],
    categories: &["all"],
    schema: "io.k8s.api.apps.v1.Deployment",
    subresources: &[SCALE, STATUS],
    storage: Storage::Stored("deployments"),
    strategy: &Deployment,
    example: r#"apiVersion: apps/v1
kind: Deployment
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

struct Deployment;

impl Strategy for Deployment {
    fn validate(&self, _: &Context<'_>, _: &Value) -> Vec<FieldError> {
        Vec::new()
    }
}
