//! ReplicaSets: the selector must match the template and is immutable; the rest is shared with other workloads
//! ([`crate::core::workloads`]).

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::cells::selector;
use crate::core::workloads::{self, SPEC, not_negative};
use crate::field::ErrorList;
use crate::read::{default_to, get, has, is_zero, object_mut, put, spec_of};
use crate::{Column, Context, Row, SCALE, STATUS, Storage, Strategy};

pub(crate) static ROW: Row = Row {
    group: "apps",
    kind: "ReplicaSet",
    plural: "replicasets",
    singular: "replicaset",
    short_names: &["rs"],
    categories: &["all"],
    schema: "io.k8s.api.apps.v1.ReplicaSet",
    subresources: &[SCALE, STATUS],
    storage: Storage::Stored("replicasets"),
    indexes_labels: true,
    shows_empty: true,
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

fn validate(errors: &mut ErrorList, spec: &Value) {
    not_negative(errors, spec, &["replicas", "minReadySeconds"], &SPEC);
    workloads::selector_and_template(errors, spec, "deployment");
}

impl Strategy for ReplicaSet {
    fn fill_empty_object(&self, object: &mut Value) {
        object["spec"]["replicas"] = 0.into();
    }

    fn default(&self, object: &mut Value) {
        let spec = spec_of(object);
        default_to(spec, "replicas", 1);
        // An absent template is defaulted to an empty one, which validation rejects.
        workloads::default_template(spec);
        if !has(object, "status") || is_zero(get(object, "status")) {
            put(object, "status", json!({"replicas": 0}));
        }
        default_to(object_mut(object, "status"), "replicas", 0);
    }

    fn prepare_create(&self, _: &Context<'_>, object: &mut Value) {
        put(object, "status", json!({"replicas": 0}));
        workloads::drop_disabled(object, None);
    }

    fn prepare_update(&self, context: &Context<'_>, new: &mut Value, old: &Value) {
        workloads::prepare_update(context, new, old);
    }

    fn counts_generation(&self) -> bool {
        true
    }

    fn validate(&self, context: &Context<'_>, object: &Value, old: Option<&Value>, errors: &mut ErrorList) {
        if context.subresource == "status" {
            workloads::replica_status(errors, get(object, "status"), &["terminatingReplicas"]);
        } else {
            validate(errors, get(object, "spec"));
            if let Some(old) = old {
                workloads::selector_is_immutable(errors, object, old);
            }
        }
    }

    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        match old {
            Some(old) if !self.generation_changes(object, old) => Vec::new(),
            _ => workloads::warnings(object, old),
        }
    }

    fn columns(&self) -> &'static [Column] {
        workloads::REPLICA_COLUMNS
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        workloads::replica_cells(object, now, &selector(get(get(object, "spec"), "selector")))
    }
}
