//! PodDisruptionBudgets: the minimum of available pods. A controller writes the status, and evictions decrement it.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::cells::{AGE, NAME, age, column, name};
use crate::choices::optional_choice;
use crate::conditions;
use crate::core::workloads::{SPEC, STATUS as STATUS_AT, not_negative, number_or_percent, percentage_is_bounded};
use crate::field::{ErrorList, FieldError, go_struct};
use crate::metadata::label_selector;
use crate::read::{get, has, int, object_mut, put};
use crate::rules::NameRule;
use crate::{Column, Context, MetadataChecks, Row, STATUS, Storage, Strategy};

pub(crate) static ROW: Row = Row {
    group: "policy",
    kind: "PodDisruptionBudget",
    plural: "poddisruptionbudgets",
    singular: "poddisruptionbudget",
    short_names: &["pdb"],
    schema: "io.k8s.api.policy.v1.PodDisruptionBudget",
    subresources: &[STATUS],
    storage: Storage::Stored("poddisruptionbudgets"),
    shows_empty: true,
    strategy: &PodDisruptionBudget,
    example: r#"apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: example}
spec:
  minAvailable: 1
  selector: {matchLabels: {app: example}}
"#,
    ..Row::NAMESPACED
};

struct PodDisruptionBudget;

const COLUMNS: &[Column] = &[
    NAME,
    column("Min Available", "string"),
    column("Max Unavailable", "string"),
    column("Allowed Disruptions", "integer"),
    AGE,
];
const POLICIES: &[&str] = &["AlwaysAllow", "IfHealthyBudget"];

/// Upstream's internal struct as JSON.
fn go_spec(spec: &Value) -> String {
    let inner = json!({
        "MinAvailable": get(spec, "minAvailable"),
        "Selector": get(spec, "selector"),
        "MaxUnavailable": get(spec, "maxUnavailable"),
        "UnhealthyPodEvictionPolicy": get(spec, "unhealthyPodEvictionPolicy"),
    });
    go_struct(&inner, &["MinAvailable", "Selector", "MaxUnavailable", "UnhealthyPodEvictionPolicy"])
}

fn validate(errors: &mut ErrorList, spec: &Value) {
    if has(spec, "minAvailable") && has(spec, "maxUnavailable") {
        let why = "minAvailable and maxUnavailable cannot be both set";
        errors.add(|| FieldError::invalid_shown(&SPEC, &go_spec(spec), why));
    }
    for key in ["minAvailable", "maxUnavailable"] {
        number_or_percent(errors, get(spec, key), &SPEC.child(key));
        percentage_is_bounded(errors, get(spec, key), &SPEC.child(key));
    }
    label_selector(errors, get(spec, "selector"), &SPEC.child("selector"));
    optional_choice(errors, spec, "unhealthyPodEvictionPolicy", POLICIES, &SPEC);
}

impl Strategy for PodDisruptionBudget {
    fn default(&self, object: &mut Value) {
        object_mut(object, "spec");
        object_mut(object, "status");
    }

    fn prepare_create(&self, _: &Context<'_>, object: &mut Value) {
        put(object, "status", json!({}));
    }

    fn counts_generation(&self) -> bool {
        true
    }

    fn name_rule(&self) -> NameRule {
        NameRule::PathSegment
    }

    fn metadata_checks_of(&self, _: &str) -> MetadataChecks {
        MetadataChecks::None
    }

    fn checks_finalizers(&self) -> bool {
        false
    }

    fn unconditional_update(&self) -> bool {
        false
    }

    fn validate(&self, context: &Context<'_>, object: &Value, _: Option<&Value>, errors: &mut ErrorList) {
        if context.subresource == "status" {
            let status = get(object, "status");
            conditions::validate(errors, status, &STATUS_AT.child("conditions"));
            let counts = ["disruptionsAllowed", "currentHealthy", "desiredHealthy", "expectedPods"];
            not_negative(errors, status, &counts, &STATUS_AT);
        } else {
            validate(errors, get(object, "spec"));
        }
    }

    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let spec = get(object, "spec");
        let amount = |key: &str| match get(spec, key) {
            Value::Null => "N/A".to_owned(),
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        let allowed = int(get(object, "status"), "disruptionsAllowed").unwrap_or(0);
        vec![
            name(object),
            json!(amount("minAvailable")),
            json!(amount("maxUnavailable")),
            json!(allowed),
            age(object, now),
        ]
    }
}
