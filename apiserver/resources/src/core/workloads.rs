//! Shared rules of workloads: selector, matching pod template, and rollout bounds.

use jiff::Timestamp;
use machinery_api::selector::LabelSelector;
use serde_json::{Value, json};

use crate::cells::{AGE, NAME, age, column, containers_and_images, name, wide};
use crate::core::pods::{defaults, spec, warnings};
use crate::field::{ErrorList, FieldError, NOT_NEGATIVE, Path, go_struct};
use crate::metadata::label_selector;
use crate::read::{get, has, int, is_zero, items, items_mut, object_mut, put, remove, text};
use crate::{Column, Context, prepare_update_by_default, rules};

pub(crate) const SPEC: Path<'static> = Path::root("spec");
pub(crate) const STATUS: Path<'static> = Path::root("status");
const MATCHES_NOT: &str = "`selector` does not match template `labels`";

/// Defaults of a template, including fields that Go's encoder writes even if they are empty.
pub(crate) fn default_template(spec: &mut Value) {
    let template = object_mut(spec, "template");
    object_mut(template, "metadata");
    defaults::old_annotations(template);
    defaults::pod_spec(object_mut(template, "spec"));
}

/// Drops a template's fields of features that upstream disables.
pub(crate) fn drop_disabled(new: &mut Value, old: Option<&Value>) {
    if let Some(spec) = new.get_mut("spec") {
        drop_disabled_template(spec, old.map(|old| get(old, "spec")));
    }
}

/// Drops such fields from the `template` of any object.
pub(crate) fn drop_disabled_template(new: &mut Value, old: Option<&Value>) {
    let old = old.map(|old| get(get(old, "template"), "spec"));
    if let Some(spec) = new.get_mut("template").and_then(|t| t.get_mut("spec")) {
        defaults::drop_disabled(spec, old);
    }
}

/// A label selector in Go's format.
pub(crate) fn go_selector(selector: &Value) -> String {
    // Empty fields are omitted.
    let filled: Vec<&str> =
        ["matchLabels", "matchExpressions"].into_iter().filter(|key| !is_zero(get(selector, key))).collect();
    let mut shown = selector.clone();
    for expression in items_mut(&mut shown, "matchExpressions") {
        if items(expression, "values").is_empty() {
            remove(expression, "values");
        }
    }
    go_struct(&shown, &filled)
}

/// Validates a selector and returns it parsed (`None` if invalid). `not_empty` is the kind whose selector must not be
/// empty.
pub(crate) fn selector(
    errors: &mut ErrorList,
    spec: &Value,
    not_empty: Option<&str>,
    path: &Path<'_>,
) -> Option<LabelSelector> {
    let selector = get(spec, "selector");
    let at = path.child("selector");
    if selector.is_null() {
        errors.required(&at, "");
        return Some(LabelSelector::nothing());
    }
    label_selector(errors, selector, &at);
    if let Some(kind) = not_empty {
        selector_is_not_empty(errors, selector, kind, &at);
    }
    LabelSelector::from_value(Some(selector)).ok()
}

/// A given selector must not be empty.
pub(crate) fn selector_is_not_empty(errors: &mut ErrorList, selector: &Value, kind: &str, path: &Path<'_>) {
    let empty = get(selector, "matchLabels").as_object().is_none_or(serde_json::Map::is_empty)
        && items(selector, "matchExpressions").is_empty();
    if empty && !selector.is_null() {
        let why = format!("empty selector is invalid for {kind}");
        errors.add(|| FieldError::invalid_shown(path, &go_selector(selector), &why));
    }
}

/// The template's labels must match the selector.
pub(crate) fn template_matches(errors: &mut ErrorList, selector: &LabelSelector, template: &Value, path: &Path<'_>) {
    let labels = get(get(template, "metadata"), "labels");
    if !selector.is_everything() && !matches(selector, labels) {
        errors.invalid(&path.child("metadata.labels"), labels.clone(), MATCHES_NOT);
    }
}

/// Whether a selector matches a map of labels.
pub(crate) fn matches(selector: &LabelSelector, labels: &Value) -> bool {
    selector.matches_object(&json!({"metadata": {"labels": labels}}))
}

/// Selector and template of a Deployment or a ReplicaSet.
pub(crate) fn selector_and_template(errors: &mut ErrorList, spec: &Value, kind: &str) {
    match selector(errors, spec, Some(kind), &SPEC) {
        None => errors.add(|| {
            FieldError::invalid_shown(
                &SPEC.child("selector"),
                &go_selector(get(spec, "selector")),
                "invalid label selector",
            )
        }),
        Some(selector) => {
            let template = get(spec, "template");
            let at = SPEC.child("template");
            template_matches(errors, &selector, template, &at);
            spec::template(errors, template, &at);
            restart_policy_always(errors, template, "ReplicaSet", &at);
        }
    }
}

/// The restart policy of the template must be `Always`.
pub(crate) fn restart_policy_always(errors: &mut ErrorList, template: &Value, kind: &str, path: &Path<'_>) {
    let pod = get(template, "spec");
    let policy = text(pod, "restartPolicy");
    if policy != "Always" {
        errors.not_supported(&path.child("spec.restartPolicy"), policy, &["Always"]);
    }
    if has(pod, "activeDeadlineSeconds") {
        let why = format!("activeDeadlineSeconds in {kind} is not Supported");
        errors.forbidden(&path.child("spec.activeDeadlineSeconds"), &why);
    }
}

/// A number, or the number before a percent sign.
pub(crate) fn amount(value: &Value) -> i64 {
    match value {
        Value::String(text) if rules::percent(text).is_empty() => {
            text.trim_end_matches('%').parse().unwrap_or(i64::MAX)
        }
        Value::String(text) => text.parse().unwrap_or(0),
        other => other.as_i64().unwrap_or(0),
    }
}

/// Validates a number or percentage of pods.
pub(crate) fn number_or_percent(errors: &mut ErrorList, value: &Value, path: &Path<'_>) {
    match value {
        Value::String(text) => errors.invalid_each(path, text, rules::percent(text)),
        other => {
            if let Some(number) = other.as_i64().filter(|n| *n < 0) {
                errors.invalid(path, number, NOT_NEGATIVE);
            }
        }
    }
}

/// A percentage is at most 100%.
pub(crate) fn percentage_is_bounded(errors: &mut ErrorList, value: &Value, path: &Path<'_>) {
    if value.as_str().is_some_and(|text| rules::percent(text).is_empty()) && amount(value) > 100 {
        errors.invalid(path, value.clone(), "must not be greater than 100%");
    }
}

/// The collision count never decreases.
pub(crate) fn collision_count_is_monotonic(errors: &mut ErrorList, status: &Value, old: &Value) {
    if let Some(was) = int(old, "collisionCount") {
        let now = int(status, "collisionCount");
        if now.is_none_or(|now| now < was) {
            errors.invalid(&STATUS.child("collisionCount"), now.unwrap_or(0), "cannot be decremented");
        }
    }
}

/// Selectors are immutable.
pub(crate) fn selector_is_immutable(errors: &mut ErrorList, new: &Value, old: &Value) {
    let (new, old) = (get(get(new, "spec"), "selector"), get(get(old, "spec"), "selector"));
    if !crate::core::pods::update::semantically_equal(new, old) {
        let shown = if new.is_null() { "null".into() } else { go_selector(new) };
        errors.add(|| FieldError::invalid_shown(&SPEC.child("selector"), &shown, crate::field::IMMUTABLE));
    }
}

/// Numbers of the spec or status that must not be negative (absent: 0).
pub(crate) fn not_negative(errors: &mut ErrorList, of: &Value, keys: &[&str], path: &Path<'_>) {
    for key in keys {
        if let Some(value) = int(of, key).filter(|v| *v < 0) {
            errors.invalid(&path.child(key), value, NOT_NEGATIVE);
        }
    }
}

/// Counts of a status that are bounded by another count.
pub(crate) fn counts_are_bounded(errors: &mut ErrorList, status: &Value, pairs: &[(&str, &str, &str)]) {
    for (key, than, why) in pairs {
        let (value, most) = (int(status, key).unwrap_or(0), int(status, than).unwrap_or(0));
        if value > most {
            errors.invalid(&STATUS.child(key), value, why);
        }
    }
}

/// Warnings for a new or changed workload.
pub(crate) fn warnings(object: &Value, old: Option<&Value>) -> Vec<String> {
    let mut found = Vec::new();
    if old.is_none() {
        name_warning(&mut found, object);
    }
    warnings::template(&mut found, get(get(object, "spec"), "template"), &SPEC.child("template"));
    found
}

/// Warns about a name that is no DNS label, since it becomes a part of pods' names.
pub(crate) fn name_warning(found: &mut Vec<String>, object: &Value) {
    let wrong = rules::dns_label(crate::read::name(object));
    if !wrong.is_empty() {
        found.push(format!("metadata.name: this is used in Pod names and hostnames, which can result in surprising behavior; a DNS label is recommended: [{}]", wrong.join(" ")));
    }
}

/// An empty status, as Go's encoder writes it.
pub(crate) fn clear_status(object: &mut Value) {
    put(object, "status", json!({}));
}

/// Restores fields that an update of the main resource or of `status` can't change.
pub(crate) fn prepare_update(context: &Context<'_>, new: &mut Value, old: &Value) {
    prepare_update_by_default(context, new, old);
    if context.subresource != "status" {
        drop_disabled(new, Some(old));
    }
}

/// Columns of workloads with a replica count.
pub(crate) const REPLICA_COLUMNS: &[Column] = &[
    NAME,
    column("Desired", "integer"),
    column("Current", "integer"),
    column("Ready", "integer"),
    AGE,
    wide("Containers", "string"),
    wide("Images", "string"),
    wide("Selector", "string"),
];

/// The cells of [`REPLICA_COLUMNS`], with the formatted selector.
pub(crate) fn replica_cells(object: &Value, now: Timestamp, selector: &str) -> Vec<Value> {
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
        json!(selector),
    ]
}

/// Validates a replica status: counts are not negative and bounded by `replicas`. `more`: further counts.
pub(crate) fn replica_status(errors: &mut ErrorList, status: &Value, more: &[&str]) {
    let counts = ["replicas", "fullyLabeledReplicas", "readyReplicas", "availableReplicas", "observedGeneration"];
    not_negative(errors, status, &counts, &STATUS);
    not_negative(errors, status, more, &STATUS);
    let why = "cannot be greater than status.replicas";
    counts_are_bounded(
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

/// Restores the old labels, which a status write can't change.
pub(crate) fn keep_labels(new: &mut Value, old: &Value) {
    let labels = get(get(old, "metadata"), "labels").clone();
    put(object_mut(new, "metadata"), "labels", labels);
}
