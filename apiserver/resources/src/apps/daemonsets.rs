//! DaemonSets: a pod on every matching node. An annotation that clients can't set counts the template's changes.

use std::borrow::Cow;

use jiff::Timestamp;
use machinery_api::selector::LabelSelector;
use serde_json::{Value, json};

use crate::cells::{AGE, NAME, age, column, containers_and_images, labels, name, selector, wide};
use crate::core::pods::{spec as pod_spec, update::semantically_equal, warnings};
use crate::core::workloads::{
    self, SPEC, STATUS as STATUS_AT, amount, not_negative, number_or_percent, percentage_is_bounded, template_matches,
};
use crate::field::{ErrorList, FieldError, Path, go_struct, quoted};
use crate::metadata::label_selector;
use crate::read::{default_to, default_zero_to, get, has, int, object_mut, put, spec_of, text};
use crate::{Column, Context, Row, STATUS, Storage, Strategy, prepare_update_by_default};

pub(crate) static ROW: Row = Row {
    group: "apps",
    kind: "DaemonSet",
    plural: "daemonsets",
    singular: "daemonset",
    short_names: &["ds"],
    categories: &["all"],
    schema: "io.k8s.api.apps.v1.DaemonSet",
    subresources: &[STATUS],
    storage: Storage::Stored("daemonsets"),
    shows_empty: true,
    strategy: &DaemonSet,
    example: r#"apiVersion: apps/v1
kind: DaemonSet
metadata: {name: example}
spec:
  selector: {matchLabels: {app: example}}
  template:
    metadata: {labels: {app: example}}
    spec:
      containers: [{name: agent, image: registry.local/hello:v1}]
"#,
    ..Row::NAMESPACED
};

struct DaemonSet;

const COLUMNS: &[Column] = &[
    NAME,
    column("Desired", "integer"),
    column("Current", "integer"),
    column("Ready", "integer"),
    column("Up-to-date", "integer"),
    column("Available", "integer"),
    column("Node Selector", "string"),
    AGE,
    wide("Containers", "string"),
    wide("Images", "string"),
    wide("Selector", "string"),
];

/// Counts the template's changes.
const GENERATION: &str = "deprecated.daemonset.template.generation";

fn template_generation(object: &Value) -> i64 {
    text(get(get(object, "metadata"), "annotations"), GENERATION).parse().unwrap_or(0)
}

fn set_template_generation(object: &mut Value, generation: i64) {
    put(object_mut(object_mut(object, "metadata"), "annotations"), GENERATION, json!(generation.to_string()));
}

fn template(of: &Value) -> &Value {
    get(get(of, "spec"), "template")
}

fn validate(errors: &mut ErrorList, spec: &Value) {
    let given = get(spec, "selector");
    let selector_at = SPEC.child("selector");
    label_selector(errors, given, &selector_at);
    let template = get(spec, "template");
    let template_at = SPEC.child("template");
    let parsed = if given.is_null() { Ok(LabelSelector::nothing()) } else { LabelSelector::from_value(Some(given)) };
    if let Ok(parsed) = parsed {
        template_matches(errors, &parsed, template, &template_at);
    }
    workloads::selector_is_not_empty(errors, given, "daemonset", &selector_at);
    pod_spec::template(errors, template, &template_at);
    workloads::restart_policy_always(errors, template, "DaemonSet", &template_at);
    not_negative(errors, spec, &["minReadySeconds"], &SPEC);
    strategy(errors, get(spec, "updateStrategy"), &SPEC.child("updateStrategy"));
    not_negative(errors, spec, &["revisionHistoryLimit"], &SPEC);
}

fn strategy(errors: &mut ErrorList, strategy: &Value, path: &Path<'_>) {
    let rolling = get(strategy, "rollingUpdate");
    match text(strategy, "type") {
        "OnDelete" => {}
        "RollingUpdate" if rolling.is_null() => errors.required(&path.child("rollingUpdate"), ""),
        "RollingUpdate" => {
            let path = path.child("rollingUpdate");
            let (unavailable, surge) = (get(rolling, "maxUnavailable"), get(rolling, "maxSurge"));
            let (unavailable_at, surge_at) = (path.child("maxUnavailable"), path.child("maxSurge"));
            number_or_percent(errors, unavailable, &unavailable_at);
            number_or_percent(errors, surge, &surge_at);
            percentage_is_bounded(errors, unavailable, &unavailable_at);
            percentage_is_bounded(errors, surge, &surge_at);
            match (amount(unavailable) != 0, amount(surge) != 0) {
                (true, true) => {
                    errors.invalid(&surge_at, surge.clone(), "may not be set when maxUnavailable is non-zero");
                }
                (false, false) => errors.required(&unavailable_at, "cannot be 0 when maxSurge is 0"),
                _ => {}
            }
        }
        other => {
            // Upstream shows its internal struct.
            let rolling = match rolling {
                Value::Null => "null".into(),
                _ => {
                    let of = |key| if has(rolling, key) { get(rolling, key).clone() } else { json!(0) };
                    let inner = json!({"MaxUnavailable": of("maxUnavailable"), "MaxSurge": of("maxSurge")});
                    go_struct(&inner, &["MaxUnavailable", "MaxSurge"])
                }
            };
            let shown = format!("{{\"Type\":{},\"RollingUpdate\":{rolling}}}", quoted(other));
            let message = format!("Unsupported value: {shown}: supported values: \"RollingUpdate\", \"OnDelete\"");
            errors.add(|| FieldError::new("FieldValueNotSupported", path, message));
        }
    }
}

fn validate_status(errors: &mut ErrorList, status: &Value, old: &Value) {
    let counts = [
        "currentNumberScheduled",
        "numberMisscheduled",
        "desiredNumberScheduled",
        "numberReady",
        "observedGeneration",
        "updatedNumberScheduled",
        "numberAvailable",
        "numberUnavailable",
        "collisionCount",
    ];
    not_negative(errors, status, &counts, &STATUS_AT);
    workloads::collision_count_is_monotonic(errors, status, old);
}

impl Strategy for DaemonSet {
    fn fill_empty_object(&self, object: &mut Value) {
        set_template_generation(object, 0);
    }

    fn conversion_error(&self, object: &Value) -> Option<String> {
        let given = get(get(get(object, "metadata"), "annotations"), GENERATION).as_str()?;
        let out_of_range = |error: &std::num::ParseIntError| {
            matches!(error.kind(), std::num::IntErrorKind::PosOverflow | std::num::IntErrorKind::NegOverflow)
        };
        let error = given.parse::<i64>().err()?;
        let why = if out_of_range(&error) { "value out of range" } else { "invalid syntax" };
        Some(format!("strconv.ParseInt: parsing {}: {why}", quoted(given)))
    }

    fn tracked_form<'a>(&self, object: &'a Value) -> Cow<'a, Value> {
        let mut tracked = object.clone();
        set_template_generation(&mut tracked, template_generation(object));
        Cow::Owned(tracked)
    }

    fn default(&self, object: &mut Value) {
        let spec = spec_of(object);
        let strategy = object_mut(spec, "updateStrategy");
        default_zero_to(strategy, "type", "RollingUpdate");
        if text(strategy, "type") == "RollingUpdate" {
            let rolling = object_mut(strategy, "rollingUpdate");
            default_to(rolling, "maxUnavailable", 1);
            default_to(rolling, "maxSurge", 0);
        } else if let Some(rolling) = strategy.get_mut("rollingUpdate").filter(|rolling| rolling.is_object()) {
            // Upstream's internal version has no absent amounts.
            default_to(rolling, "maxUnavailable", 0);
            default_to(rolling, "maxSurge", 0);
        }
        default_to(spec, "revisionHistoryLimit", 10);
        workloads::default_template(spec);
        object_mut(object, "status");
    }

    fn prepare_create(&self, _: &Context<'_>, object: &mut Value) {
        workloads::clear_status(object);
        let generation = template_generation(object).max(1);
        set_template_generation(object, generation);
        workloads::drop_disabled(object, None);
    }

    fn prepare_update(&self, context: &Context<'_>, new: &mut Value, old: &Value) {
        prepare_update_by_default(context, new, old);
        let mut generation = template_generation(old);
        if context.subresource != "status" {
            workloads::drop_disabled(new, Some(old));
            if !semantically_equal(template(new), template(old)) {
                generation += 1;
            }
        }
        set_template_generation(new, generation);
    }

    fn counts_generation(&self) -> bool {
        true
    }

    fn validate(&self, context: &Context<'_>, object: &Value, old: Option<&Value>, errors: &mut ErrorList) {
        match old {
            Some(old) if context.subresource == "status" => {
                validate_status(errors, get(object, "status"), get(old, "status"));
            }
            _ => {
                if let Some(old) = old {
                    workloads::selector_is_immutable(errors, object, old);
                }
                validate(errors, get(object, "spec"));
            }
        }
    }

    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        let mut found = Vec::new();
        if old.is_none_or(|old| !semantically_equal(template(object), template(old))) {
            warnings::template(&mut found, template(object), &SPEC.child("template"));
        }
        found
    }

    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let (spec, status) = (get(object, "spec"), get(object, "status"));
        let count = |key: &str| json!(int(status, key).unwrap_or(0));
        let (containers, images) = containers_and_images(get(spec, "template"));
        vec![
            name(object),
            count("desiredNumberScheduled"),
            count("currentNumberScheduled"),
            count("numberReady"),
            count("updatedNumberScheduled"),
            count("numberAvailable"),
            json!(labels(get(get(template(object), "spec"), "nodeSelector"), "<none>")),
            age(object, now),
            containers,
            images,
            json!(selector(get(spec, "selector"))),
        ]
    }
}
