//! Bindings: assign a pod to a node. A POST to `bindings` is forwarded to the pod's subresource `binding`.

use serde_json::Value;

use crate::field::{ErrorList, Path};
use crate::read::{get, text};
use crate::{Context, Row, Strategy, SubresourceKind, Verb};

pub(crate) static ROW: Row = Row {
    kind: "Binding",
    plural: "bindings",
    singular: "binding",
    schema: "io.k8s.api.core.v1.Binding",
    verbs: &[Verb::Create],
    forwards_to: Some((&crate::core::pods::ROW, SubresourceKind::Binding)),
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
    fn validate(&self, _: &Context<'_>, object: &Value, _: Option<&Value>, errors: &mut ErrorList) {
        let target = get(object, "target");
        let kind = text(target, "kind");
        if !kind.is_empty() && kind != "Node" {
            errors.not_supported(&Path::root("target.kind"), kind, &["Node", "<empty>"]);
        }
        if text(target, "name").is_empty() {
            errors.required(&Path::root("target.name"), "");
        }
    }
}
