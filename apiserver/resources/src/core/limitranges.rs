//! LimitRanges: bounds and defaults for the resources of pods, containers and claims.

use std::collections::BTreeSet;

use jiff::Timestamp;
use machinery_api::quantity::Quantity;
use serde_json::{Value, json};

use crate::cells;
use crate::core::pods::resources::{container_resource_name, may_overcommit, resource_name};
use crate::field::{ErrorList, Path};
use crate::metadata::quantity;
use crate::read::{entries, get, has, items, items_mut, object_mut, spec_of, text};
use crate::rules;
use crate::{Column, Context, MetadataChecks, Row, Storage, Strategy};

pub(crate) static ROW: Row = Row {
    kind: "LimitRange",
    plural: "limitranges",
    singular: "limitrange",
    short_names: &["limits"],
    schema: "io.k8s.api.core.v1.LimitRange",
    storage: Storage::Stored("limitranges"),
    strategy: &LimitRange,
    example: r#"apiVersion: v1
kind: LimitRange
metadata: {name: example}
spec:
  limits:
  - type: Container
    max: {cpu: "1", memory: 256Mi}
    defaultRequest: {cpu: 100m}
"#,
    ..Row::NAMESPACED
};

struct LimitRange;

const TYPES: &[&str] = &["Container", "PersistentVolumeClaim", "Pod"];
/// From this value on Go compares integers instead of thousandths.
const MILLI_MAX: i64 = i64::MAX / 1000;

fn resource(errors: &mut ErrorList, kind: &str, name: &str, path: &Path<'_>) {
    if matches!(kind, "Pod" | "Container") {
        container_resource_name(errors, name, path);
    } else {
        resource_name(errors, name, path);
    }
}

fn type_name(errors: &mut ErrorList, kind: &str, path: &Path<'_>) {
    let wrong = rules::label_key(kind);
    if !wrong.is_empty() {
        errors.invalid_each(path, kind, wrong);
    } else if !kind.contains('/') && !TYPES.contains(&kind) {
        errors.invalid(path, kind, "must be a standard limit type or fully qualified");
    }
}

fn validate(errors: &mut ErrorList, object: &Value) {
    let at = Path::root("spec.limits");
    let mut seen = BTreeSet::new();
    for (i, limit) in items(get(object, "spec"), "limits").iter().enumerate() {
        let at = at.index(i);
        let kind = text(limit, "type");
        type_name(errors, kind, &at.child("type"));
        if !seen.insert(kind) {
            errors.duplicate(&at.child("type"), kind);
        }
        names(errors, limit, kind, &at);
        let mut keys: BTreeSet<&String> = BTreeSet::new();
        for list in ["max", "min", "default", "defaultRequest", "maxLimitRequestRatio"] {
            // A Pod's defaults are rejected as a whole.
            if kind != "Pod" || !list.starts_with("default") {
                keys.extend(entries(limit, list).map(|(key, _)| key));
            }
        }
        for key in keys {
            amounts(errors, limit, kind, key, &at);
        }
    }
}

fn names(errors: &mut ErrorList, limit: &Value, kind: &str, at: &Path<'_>) {
    for list in ["max", "min", "default", "defaultRequest", "maxLimitRequestRatio"] {
        let list_at = at.child(list);
        if list == "maxLimitRequestRatio" && kind == "PersistentVolumeClaim" {
            let bound = |list| has(get(limit, list), "storage");
            if !bound("min") && !bound("max") {
                let why = "either minimum or maximum storage value is required, but neither was provided";
                errors.required(&at.child("limits"), why);
            }
        }
        if kind == "Pod" && list.starts_with("default") {
            if entries(limit, list).next().is_some() {
                errors.forbidden(&list_at, "may not be specified when `type` is 'Pod'");
            }
            continue;
        }
        for (key, _) in entries(limit, list) {
            resource(errors, kind, key, &list_at.key(key));
        }
    }
}

/// Checks the amounts of one resource against each other.
fn amounts(errors: &mut ErrorList, limit: &Value, kind: &str, key: &str, at: &Path<'_>) {
    let of =
        |list: &str| quantity(get(get(limit, list), key)).filter(|_| kind != "Pod" || !list.starts_with("default"));
    let (min, max, most, least) = (of("min"), of("max"), of("default"), of("defaultRequest"));
    let ratio = of("maxLimitRequestRatio");
    let (min_at, default_at, request_at) = (at.child("min"), at.child("default"), at.child("defaultRequest"));
    let ratio_at = at.child("maxLimitRequestRatio");
    let mut more = |a: &Option<Quantity>,
                    b: &Option<Quantity>,
                    at: &Path<'_>,
                    shown: &Option<Quantity>,
                    a_is: &str,
                    b_is: &str| {
        if let (Some(a), Some(b), Some(shown)) = (a, b, shown)
            && a > b
        {
            let why = format!("{a_is} value {a} is greater than {b_is} value {b}");
            errors.invalid(&at.key(key), shown.to_string(), &why);
        }
    };
    more(&min, &max, &min_at, &min, "min", "max");
    more(&min, &least, &request_at, &least, "min", "default request");
    more(&least, &max, &request_at, &least, "default request", "max");
    more(&least, &most, &request_at, &least, "default request", "default limit");
    more(&min, &most, &default_at, &min, "min", "default");
    more(&most, &max, &default_at, &max, "default", "max");
    if let Some(ratio) = &ratio {
        if ratio.cmp_int(1).is_lt() {
            errors.invalid(&ratio_at.key(key), ratio.to_string(), &format!("ratio {ratio} is less than 1"));
        }
        if let (Some(min), Some(max)) = (&min, &max) {
            let (wanted, most) = ratios(ratio, min, max);
            if wanted > most {
                let why = format!("ratio {ratio} is greater than max/min = {most:.6}");
                errors.invalid(&ratio_at.key(key), ratio.to_string(), &why);
            }
        }
    }
    if let (Some(most), Some(least)) = (&most, &least)
        && !may_overcommit(key)
        && most != least
    {
        let why = format!("default value {most} must equal to defaultRequest value {least} in {key}");
        errors.invalid(&request_at.key(key), least.to_string(), &why);
    }
}

/// The required ratio, and the ratio of the bounds.
#[expect(clippy::cast_precision_loss, reason = "as upstream compares them")]
fn ratios(ratio: &Quantity, min: &Quantity, max: &Quantity) -> (f64, f64) {
    if [ratio, min, max].iter().all(|amount| amount.value() < MILLI_MAX) {
        return (ratio.milli() as f64 / 1000.0, max.milli() as f64 / min.milli() as f64);
    }
    (ratio.value() as f64, max.value() as f64 / min.value() as f64)
}

/// Copies the amounts of `from` that `to` lacks.
fn fill(limit: &mut Value, to: &str, from: &str) {
    let given: Vec<(String, Value)> = entries(limit, from).map(|(key, value)| (key.clone(), value.clone())).collect();
    let to = object_mut(limit, to);
    for (key, value) in given {
        crate::read::default_to(to, &key, value);
    }
}

impl Strategy for LimitRange {
    fn default(&self, object: &mut Value) {
        for limit in items_mut(spec_of(object), "limits") {
            if text(limit, "type") == "Container" {
                fill(limit, "default", "max");
                fill(limit, "defaultRequest", "default");
                fill(limit, "defaultRequest", "min");
            }
        }
    }

    fn prepare_create(&self, _: &Context<'_>, object: &mut Value) {
        let metadata = object_mut(object, "metadata");
        if text(metadata, "name").is_empty() {
            let uid = json!(text(metadata, "uid"));
            crate::read::put(metadata, "name", uid);
        }
    }

    fn metadata_checks(&self) -> MetadataChecks {
        MetadataChecks::Whole
    }

    fn validate(&self, _: &Context<'_>, object: &Value, _: Option<&Value>, errors: &mut ErrorList) {
        validate(errors, object);
    }

    fn create_on_update(&self) -> bool {
        true
    }

    fn columns(&self) -> &'static [Column] {
        cells::NAME_AND_CREATED
    }

    fn cells(&self, object: &Value, _: Timestamp) -> Vec<Value> {
        cells::name_and_created(object)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_follow_from_bounds_and_bounds_bind_defaults() {
        let mut object = json!({"spec": {"limits": [{"type": "Container", "max": {"cpu": "2", "memory": "1Gi"},
            "min": {"cpu": "100m", "ephemeral-storage": "1Mi"}, "default": {"cpu": "1"}}]}});
        LimitRange.default(&mut object);
        let limit = &object["spec"]["limits"][0];
        assert_eq!(limit["default"], json!({"cpu": "1", "memory": "1Gi"}));
        assert_eq!(limit["defaultRequest"], json!({"cpu": "1", "memory": "1Gi", "ephemeral-storage": "1Mi"}));
        let errors_of = |limit: Value| -> Vec<String> {
            let mut errors = ErrorList::new();
            validate(&mut errors, &json!({"spec": {"limits": [limit]}}));
            errors.shown().iter().map(|error| format!("{}: {}", error.field, error.message)).collect()
        };
        assert_eq!(errors_of(limit.clone()), Vec::<String>::new());
        assert_eq!(
            errors_of(json!({"type": "Pod", "min": {"cpu": "2"}, "max": {"cpu": "1"}, "default": {"cpu": "1"}})),
            [
                "spec.limits[0].default: Forbidden: may not be specified when `type` is 'Pod'",
                "spec.limits[0].min[cpu]: Invalid value: \"2\": min value 2 is greater than max value 1",
            ]
        );
        let ratio = json!({"type": "Container", "min": {"cpu": "1"}, "max": {"cpu": "2"}, "maxLimitRequestRatio": {"cpu": "3"}});
        assert_eq!(
            errors_of(ratio),
            [
                "spec.limits[0].maxLimitRequestRatio[cpu]: Invalid value: \"3\": ratio 3 is greater than max/min = 2.000000"
            ]
        );
        assert_eq!(
            errors_of(json!({"type": "PersistentVolumeClaim"})),
            [
                "spec.limits[0].limits: Required value: either minimum or maximum storage value is required, but neither was provided"
            ]
        );
        assert_eq!(errors_of(json!({"type": "Tape", "max": {"x": "1"}})).len(), 2);
    }
}
