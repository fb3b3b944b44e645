//! ReplicaSets: the selector has to select the template and never changes; the rest they share with other workloads
//! ([`crate::core::workloads`]).

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::cells::{AGE, NAME, age, column, containers_and_images, name, selector, wide};
use crate::core::workloads::{self, SPEC, STATUS as STATUS_AT, not_more, not_negative};
use crate::field::{ErrorList, FieldError};
use crate::read::{default_to, get, has, int, is_zero, object_mut, put, spec_of};
use crate::{Column, Context, Row, SCALE, STATUS, Storage, Strategy, prepare_update_by_default};

/// ReplicaSets.
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

const COLUMNS: &[Column] = &[
    NAME,
    column("Desired", "integer"),
    column("Current", "integer"),
    column("Ready", "integer"),
    AGE,
    wide("Containers", "string"),
    wide("Images", "string"),
    wide("Selector", "string"),
];

fn validate(errors: &mut ErrorList, spec: &Value) {
    not_negative(errors, spec, &["replicas", "minReadySeconds"], &SPEC);
    workloads::selector_and_template(errors, spec, "deployment");
}

fn validate_status(errors: &mut ErrorList, status: &Value) {
    let counts = [
        "replicas",
        "fullyLabeledReplicas",
        "readyReplicas",
        "availableReplicas",
        "observedGeneration",
        "terminatingReplicas",
    ];
    not_negative(errors, status, &counts, &STATUS_AT);
    let why = "cannot be greater than status.replicas";
    not_more(
        errors,
        status,
        &[
            ("fullyLabeledReplicas", "replicas", why),
            ("readyReplicas", "replicas", why),
            ("availableReplicas", "replicas", why),
            ("availableReplicas", "readyReplicas", "cannot be greater than readyReplicas"),
        ],
    );
}

impl Strategy for ReplicaSet {
    fn of_nothing(&self, object: &mut Value) {
        object["spec"]["replicas"] = 0.into();
    }

    fn default(&self, object: &mut Value) {
        let spec = spec_of(object);
        default_to(spec, "replicas", 1);
        // An absent template stays absent on the wire only in form: it is empty, and validation says so.
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
        prepare_update_by_default(context, new, old);
        if context.subresource != "status" {
            workloads::drop_disabled(new, Some(old));
        }
    }

    fn counts_generation(&self) -> bool {
        true
    }

    fn validate(&self, _: &Context<'_>, object: &Value) -> Vec<FieldError> {
        let mut errors = ErrorList::new();
        validate(&mut errors, get(object, "spec"));
        errors.list()
    }

    fn validate_update(&self, context: &Context<'_>, new: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = ErrorList::new();
        if context.subresource == "status" {
            validate_status(&mut errors, get(new, "status"));
        } else {
            validate(&mut errors, get(new, "spec"));
            workloads::selector_stays(&mut errors, new, old);
        }
        errors.list()
    }

    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        match old {
            Some(old) if !self.generation_changes(object, old) => Vec::new(),
            _ => workloads::warnings(object, old),
        }
    }

    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let (spec, status) = (get(object, "spec"), get(object, "status"));
        let count = |of: &Value, key: &str| json!(int(of, key).unwrap_or(0));
        let (containers, images) = containers_and_images(get(spec, "template"));
        vec![
            name(object),
            count(spec, "replicas"),
            count(status, "replicas"),
            count(status, "readyReplicas"),
            age(object, now),
            containers,
            images,
            json!(selector(get(spec, "selector"))),
        ]
    }
}
