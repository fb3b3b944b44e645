//! Service.

use serde_json::Value;

use super::field::FieldError;
use super::{Context, Row, STATUS, Storage, Strategy};

/// Services.
pub(super) static ROW: Row = Row {
    kind: "Service",
    plural: "services",
    singular: "service",
    short_names: &["svc"],
    categories: &["all"],
    schema: "io.k8s.api.core.v1.Service",
    subresources: &[STATUS],
    storage: Storage::Stored("services/specs"),
    strategy: &Service,
    example: r#"apiVersion: v1
kind: Service
metadata: {name: example}
spec:
  selector: {app: example}
  ports: [{port: 80}]
"#,
    ..Row::NAMESPACED
};

struct Service;

impl Strategy for Service {
    fn validate(&self, _: &Context<'_>, _: &Value) -> Vec<FieldError> {
        Vec::new()
    }
}
