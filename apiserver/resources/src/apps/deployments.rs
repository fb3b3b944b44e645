//! Deployments: rollout bounds (`maxUnavailable` and `maxSurge`, absolute or a percentage), and a generation that
//! also counts changes of annotations.

use crate::ResetFields;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::cells::{AGE, NAME, age, column, containers_and_images, labels, name, wide};
use crate::core::workloads::{
    self, SPEC, STATUS as STATUS_AT, amount, counts_are_bounded, not_negative, number_or_percent, percentage_is_bounded,
};
use crate::field::{ErrorList, FieldError, go_struct};
use crate::read::{default_to, default_zero_to, get, has, int, object_mut, spec_of, text};
use crate::{Column, Context, Row, SCALE, STATUS, Storage, Strategy, prepare_update_by_default};

pub(crate) static ROW: Row = Row {
    group: "apps",
    kind: "Deployment",
    plural: "deployments",
    singular: "deployment",
    short_names: &["deploy"],
    categories: &["all"],
    schema: "io.k8s.api.apps.v1.Deployment",
    subresources: &[SCALE, STATUS],
    storage: Storage::Stored("deployments"),
    shows_empty: true,
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

const COLUMNS: &[Column] = &[
    NAME,
    column("Ready", "string"),
    column("Up-to-date", "string"),
    column("Available", "string"),
    AGE,
    wide("Containers", "string"),
    wide("Images", "string"),
    wide("Selector", "string"),
];

fn rollout(errors: &mut ErrorList, strategy: &Value) {
    let at = SPEC.child("strategy");
    let rolling = get(strategy, "rollingUpdate");
    let rolling_at = at.child("rollingUpdate");
    match text(strategy, "type") {
        "Recreate" => {
            if !rolling.is_null() {
                errors.forbidden(&rolling_at, "may not be specified when strategy `type` is 'Recreate'");
            }
        }
        "RollingUpdate" => {
            let (unavailable, surge) = (get(rolling, "maxUnavailable"), get(rolling, "maxSurge"));
            let unavailable_at = rolling_at.child("maxUnavailable");
            number_or_percent(errors, unavailable, &unavailable_at);
            number_or_percent(errors, surge, &rolling_at.child("maxSurge"));
            if amount(unavailable) == 0 && amount(surge) == 0 {
                errors.invalid(&unavailable_at, unavailable.clone(), "may not be 0 when `maxSurge` is 0");
            }
            percentage_is_bounded(errors, unavailable, &unavailable_at);
        }
        other => {
            // Upstream shows its internal struct, in which an absent amount is 0.
            let amount = |key| if has(rolling, key) { get(rolling, key).clone() } else { json!(0) };
            let inner = json!({"MaxUnavailable": amount("maxUnavailable"), "MaxSurge": amount("maxSurge")});
            let rolling = match rolling {
                Value::Null => "null".into(),
                _ => go_struct(&inner, &["MaxUnavailable", "MaxSurge"]),
            };
            let shown = format!("{{\"Type\":{},\"RollingUpdate\":{rolling}}}", crate::field::quoted(other));
            errors.add(|| {
                FieldError::new(
                    "FieldValueNotSupported",
                    &at,
                    format!("Unsupported value: {shown}: supported values: \"Recreate\", \"RollingUpdate\""),
                )
            });
        }
    }
}

fn validate(errors: &mut ErrorList, spec: &Value) {
    not_negative(errors, spec, &["replicas"], &SPEC);
    workloads::selector_and_template(errors, spec, "deployment");
    rollout(errors, get(spec, "strategy"));
    not_negative(errors, spec, &["minReadySeconds", "revisionHistoryLimit", "progressDeadlineSeconds"], &SPEC);
    if let Some(deadline) = int(spec, "progressDeadlineSeconds")
        && deadline <= int(spec, "minReadySeconds").unwrap_or(0)
    {
        errors.invalid(&SPEC.child("progressDeadlineSeconds"), deadline, "must be greater than minReadySeconds");
    }
}

fn validate_status(errors: &mut ErrorList, new: &Value, old: &Value) {
    let (status, old) = (get(new, "status"), get(old, "status"));
    let counts = [
        "observedGeneration",
        "replicas",
        "updatedReplicas",
        "readyReplicas",
        "availableReplicas",
        "unavailableReplicas",
        "terminatingReplicas",
        "collisionCount",
    ];
    not_negative(errors, status, &counts, &STATUS_AT);
    let why = "cannot be greater than status.replicas";
    counts_are_bounded(
        errors,
        status,
        &[
            ("updatedReplicas", "replicas", why),
            ("readyReplicas", "replicas", why),
            ("availableReplicas", "replicas", why),
            ("availableReplicas", "readyReplicas", "cannot be greater than readyReplicas"),
        ],
    );
    workloads::collision_count_is_monotonic(errors, status, old);
}

impl Strategy for Deployment {
    fn reset_fields(&self, subresource: &str) -> ResetFields {
        match subresource {
            "status" => ResetFields::Below(&[&["metadata", "labels"], &["spec"]]),
            _ => ResetFields::Below(&[&["status"]]),
        }
    }

    fn fill_empty_object(&self, object: &mut Value) {
        object["spec"]["replicas"] = 0.into();
    }

    fn default(&self, object: &mut Value) {
        let spec = spec_of(object);
        default_to(spec, "replicas", 1);
        let strategy = object_mut(spec, "strategy");
        default_zero_to(strategy, "type", "RollingUpdate");
        if text(strategy, "type") == "RollingUpdate" {
            let rolling = object_mut(strategy, "rollingUpdate");
            default_to(rolling, "maxUnavailable", "25%");
            default_to(rolling, "maxSurge", "25%");
        }
        default_to(spec, "revisionHistoryLimit", 10);
        default_to(spec, "progressDeadlineSeconds", 600);
        workloads::default_template(spec);
        object_mut(object, "status");
    }

    fn prepare_create(&self, _: &Context<'_>, object: &mut Value) {
        workloads::clear_status(object);
        workloads::drop_disabled(object, None);
    }

    fn prepare_update(&self, context: &Context<'_>, new: &mut Value, old: &Value) {
        prepare_update_by_default(context, new, old);
        if context.subresource == "status" {
            workloads::keep_labels(new, old);
        } else {
            workloads::drop_disabled(new, Some(old));
        }
    }

    fn counts_generation(&self) -> bool {
        true
    }

    fn generation_changes(&self, new: &Value, old: &Value) -> bool {
        let notes = |of: &Value| get(get(of, "metadata"), "annotations").as_object().filter(|n| !n.is_empty()).cloned();
        !crate::core::pods::update::semantically_equal(get(new, "spec"), get(old, "spec")) || notes(new) != notes(old)
    }

    fn validate(&self, context: &Context<'_>, object: &Value, old: Option<&Value>, errors: &mut ErrorList) {
        match old {
            Some(old) if context.subresource == "status" => {
                validate_status(errors, object, old);
            }
            _ => {
                validate(errors, get(object, "spec"));
                if let Some(old) = old {
                    workloads::selector_is_immutable(errors, object, old);
                }
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
        COLUMNS
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let (spec, status) = (get(object, "spec"), get(object, "status"));
        let count = |of: &Value, key: &str| int(of, key).unwrap_or(0);
        let (containers, images) = containers_and_images(get(spec, "template"));
        let selector = get(spec, "selector");
        let shown = if has(selector, "matchExpressions") || !has(selector, "matchLabels") {
            crate::cells::selector(selector)
        } else {
            labels(get(selector, "matchLabels"), "")
        };
        vec![
            name(object),
            json!(format!("{}/{}", count(status, "readyReplicas"), count(spec, "replicas"))),
            json!(count(status, "updatedReplicas")),
            json!(count(status, "availableReplicas")),
            age(object, now),
            containers,
            images,
            json!(if shown == "<none>" { String::new() } else { shown }),
        ]
    }
}
