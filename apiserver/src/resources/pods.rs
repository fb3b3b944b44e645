//! Pod.

use serde_json::Value;

use super::field::FieldError;
use super::{Context, Row, STATUS, Storage, Strategy, SubKind, Subresource, Verb};

/// Pods.
pub(super) static ROW: Row = Row {
    kind: "Pod",
    plural: "pods",
    singular: "pod",
    short_names: &["po"],
    categories: &["all"],
    schema: "io.k8s.api.core.v1.Pod",
    subresources: &[
        Subresource {
            name: "binding",
            what: SubKind::Binding,
            body: Some(("", "v1", "Binding")),
            verbs: &[Verb::Create],
        },
        Subresource { name: "log", what: SubKind::Log, body: None, verbs: &[Verb::Get] },
        STATUS,
    ],
    storage: Storage::Stored("pods"),
    strategy: &Pod,
    example: r#"apiVersion: v1
kind: Pod
metadata: {name: example}
spec:
  containers:
  - name: web
    image: registry.local/hello:v1
    ports: [{containerPort: 80}]
    resources: {limits: {cpu: 100m, memory: 64Mi}}
"#,
    ..Row::NAMESPACED
};

struct Pod;

impl Strategy for Pod {
    fn validate(&self, _: &Context<'_>, _: &Value) -> Vec<FieldError> {
        Vec::new()
    }
}
