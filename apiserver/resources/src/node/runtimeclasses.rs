//! RuntimeClasses: `handler` is immutable; admission copies `overhead` and `scheduling` into pods.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::cells::{AGE, NAME, age, column, name};
use crate::core::pods::{placement, spec, warnings};
use crate::field::{ErrorList, FieldError, Path, go_struct};
use crate::metadata::labels;
use crate::read::{entries, get, items, text};
use crate::{Column, Context, MetadataChecks, Row, Storage, Strategy, rules};

pub(crate) static ROW: Row = Row {
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

const COLUMNS: &[Column] = &[NAME, column("Handler", "string"), AGE];

fn validate(errors: &mut ErrorList, object: &Value) {
    let handler = text(object, "handler");
    let at = Path::root("handler");
    if handler.is_empty() {
        errors.required(&at, "");
    } else {
        errors.invalid_each(&at, handler, rules::dns_label(handler));
    }
    spec::overhead(errors, get(get(object, "overhead"), "podFixed"), &Path::root("overhead"));
    let scheduling = get(object, "scheduling");
    let at = Path::root("scheduling");
    labels(errors, get(scheduling, "nodeSelector"), &at.child("nodeSelector"));
    let tolerations_at = at.child("tolerations");
    let tolerations = items(scheduling, "tolerations");
    placement::tolerations(errors, tolerations, &tolerations_at);
    let mut seen = BTreeSet::new();
    for (i, toleration) in tolerations.iter().enumerate() {
        let part = |key| text(toleration, key);
        if !seen.insert((part("key"), part("operator"), part("value"), part("effect"))) {
            let inner = json!({"Key": part("key"), "Operator": part("operator"), "Value": part("value"),
                "Effect": part("effect"), "TolerationSeconds": get(toleration, "tolerationSeconds")});
            let shown = go_struct(&inner, &["Key", "Operator", "Value", "Effect", "TolerationSeconds"]);
            errors.add(|| {
                FieldError::new("FieldValueDuplicate", &tolerations_at.index(i), format!("Duplicate value: {shown}"))
            });
        }
    }
}

impl Strategy for RuntimeClass {
    fn checks_finalizers(&self) -> bool {
        false
    }

    fn metadata_checks(&self) -> MetadataChecks {
        MetadataChecks::WholeThenChange
    }

    fn validate(&self, _: &Context<'_>, object: &Value, old: Option<&Value>, errors: &mut ErrorList) {
        validate(errors, object);
        if let Some(old) = old {
            errors.immutable(&Path::root("handler"), get(object, "handler"), get(old, "handler"));
        }
    }

    fn warnings(&self, object: &Value, _: Option<&Value>) -> Vec<String> {
        entries(get(object, "scheduling"), "nodeSelector")
            .filter_map(|(key, _)| warnings::old_node_label(key))
            .map(|message| format!("scheduling.nodeSelector: {message}"))
            .collect()
    }

    fn create_on_update(&self) -> bool {
        true
    }

    fn unconditional_update(&self) -> bool {
        false
    }

    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        vec![name(object), json!(text(object, "handler")), age(object, now)]
    }
}
