//! HorizontalPodAutoscalers: two versions over one storage, whose version is the newer one.

use std::borrow::Cow;

use jiff::Timestamp;
use machinery_api::features::{Feature, Features};
use serde_json::{Value, json};

use super::conversion::{CPU_PERCENT, cpu, to_v1, to_v2};
use super::validate;
use crate::cells::{AGE, NAME, age, column, name};
use crate::core::workloads::{STATUS as STATUS_AT, not_negative};
use crate::field::ErrorList;
use crate::metadata::quantity;
use crate::read::{default_to, get, has, int, items, object_mut, put, spec_of, text};
use crate::{Column, Context, Row, STATUS, Storage, Strategy, prepare_update_by_default};

pub(crate) static V2: Row = Row {
    group: "autoscaling",
    version: "v2",
    kind: "HorizontalPodAutoscaler",
    plural: "horizontalpodautoscalers",
    singular: "horizontalpodautoscaler",
    short_names: &["hpa"],
    categories: &["all"],
    schema: "io.k8s.api.autoscaling.v2.HorizontalPodAutoscaler",
    subresources: &[STATUS],
    storage: Storage::Stored("horizontalpodautoscalers"),
    shows_empty: true,
    strategy: &Autoscaler { old: false, scales_to_zero: true },
    example: r#"apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: example}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: example}
  maxReplicas: 5
"#,
    ..Row::NAMESPACED
};

pub(crate) static V1: Row = Row {
    group: "autoscaling",
    version: "v1",
    kind: "HorizontalPodAutoscaler",
    plural: "horizontalpodautoscalers",
    singular: "horizontalpodautoscaler",
    short_names: &["hpa"],
    categories: &["all"],
    schema: "io.k8s.api.autoscaling.v1.HorizontalPodAutoscaler",
    subresources: &[STATUS],
    storage: Storage::Stored("horizontalpodautoscalers"),
    storage_version: false,
    shows_empty: true,
    strategy: &Autoscaler { old: true, scales_to_zero: true },
    example: r#"apiVersion: autoscaling/v1
kind: HorizontalPodAutoscaler
metadata: {name: example}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: example}
  maxReplicas: 5
  targetCPUUtilizationPercentage: 70
"#,
    ..Row::NAMESPACED
};

/// The strategy of one version. The older version's objects are converted to the newer one and validated there.
struct Autoscaler {
    old: bool,
    scales_to_zero: bool,
}

const COLUMNS: &[Column] = &[
    NAME,
    column("Reference", "string"),
    column("Targets", "string"),
    column("MinPods", "string"),
    column("MaxPods", "string"),
    column("Replicas", "string"),
    AGE,
];
/// Maximum number of metrics in a cell.
const SHOWN_MAX: usize = 2;

fn default_rules(behavior: &mut Value, key: &str, policies: &Value, window: Option<i64>) {
    let rules = object_mut(behavior, key);
    default_to(rules, "selectPolicy", "Max");
    if let Some(window) = window {
        default_to(rules, "stabilizationWindowSeconds", window);
    }
    default_to(rules, "policies", policies.clone());
}

fn default_v2(object: &mut Value) {
    let spec = spec_of(object);
    default_to(spec, "minReplicas", 1);
    if items(spec, "metrics").is_empty() {
        put(spec, "metrics", json!([cpu(CPU_PERCENT)]));
    }
    if let Some(behavior) = spec.get_mut("behavior").filter(|behavior| behavior.is_object()) {
        let percent = json!({"type": "Percent", "value": 100, "periodSeconds": 15});
        let pods = json!({"type": "Pods", "value": 4, "periodSeconds": 15});
        default_rules(behavior, "scaleUp", &json!([pods, percent]), Some(0));
        default_rules(behavior, "scaleDown", &json!([percent]), None);
    }
    object_mut(object, "status");
}

fn amount(value: &Value) -> String {
    quantity(value).map_or_else(|| "0".into(), |amount| amount.to_string())
}

fn target(metric: &Value, status: &Value) -> String {
    const UNKNOWN: &str = "<unknown>";
    let (key, prefixed) = match text(metric, "type") {
        "External" => ("external", false),
        "Pods" => ("pods", false),
        "Object" => ("object", false),
        "Resource" => ("resource", true),
        "ContainerResource" => ("containerResource", true),
        _ => return "<unknown type>".into(),
    };
    let (source, measured) = (get(metric, key), get(status, key));
    let (target, current) = (get(source, "target"), get(measured, "current"));
    let averaged = has(target, "averageValue");
    if prefixed {
        let name = text(source, "name");
        if averaged {
            let now = if measured.is_null() { UNKNOWN.into() } else { amount(get(current, "averageValue")) };
            return format!("{name}: {now}/{}", amount(get(target, "averageValue")));
        }
        let now = int(current, "averageUtilization").map_or_else(|| UNKNOWN.into(), |percent| format!("{percent}%"));
        let aim = int(target, "averageUtilization").map_or_else(|| "<auto>".into(), |percent| format!("{percent}%"));
        return format!("{name}: {now}/{aim}");
    }
    if key == "pods" {
        let now = if measured.is_null() { UNKNOWN.into() } else { amount(get(current, "averageValue")) };
        return format!("{now}/{}", amount(get(target, "averageValue")));
    }
    if averaged {
        let now = if has(current, "averageValue") { amount(get(current, "averageValue")) } else { UNKNOWN.to_owned() };
        return format!("{now}/{} (avg)", amount(get(target, "averageValue")));
    }
    let now = if measured.is_null() { UNKNOWN.into() } else { amount(get(current, "value")) };
    format!("{now}/{}", amount(get(target, "value")))
}

fn targets(spec: &Value, status: &Value) -> String {
    let (metrics, measured) = (items(spec, "metrics"), items(status, "currentMetrics"));
    if metrics.is_empty() {
        return "<none>".into();
    }
    let shown = metrics.iter().take(SHOWN_MAX).enumerate();
    let shown: Vec<String> =
        shown.map(|(i, metric)| target(metric, measured.get(i).unwrap_or(&crate::read::NULL))).collect();
    let all = shown.join(", ");
    match metrics.len() {
        n if n > SHOWN_MAX => format!("{all} + {} more...", n - SHOWN_MAX),
        _ => all,
    }
}

impl Autoscaler {
    /// Applies a change to the object in its newer version.
    fn newer(&self, object: &mut Value, change: impl FnOnce(&mut Value)) {
        if !self.old {
            return change(object);
        }
        let mut new = to_v2(object.take());
        default_v2(&mut new);
        change(&mut new);
        *object = to_v1(new);
    }

    fn read(&self, object: &Value) -> Value {
        let mut new = if self.old { to_v2(object.clone()) } else { return object.clone() };
        default_v2(&mut new);
        new
    }
}

impl Strategy for Autoscaler {
    fn under(&self, features: &Features) -> Option<&'static dyn Strategy> {
        Some(match (self.old, features.has(Feature::HpaScaleToZero)) {
            (false, false) => &Self { old: false, scales_to_zero: false },
            (false, true) => &Self { old: false, scales_to_zero: true },
            (true, false) => &Self { old: true, scales_to_zero: false },
            (true, true) => &Self { old: true, scales_to_zero: true },
        })
    }

    fn default(&self, object: &mut Value) {
        if self.old {
            default_to(spec_of(object), "minReplicas", 1);
            object_mut(object, "status");
        } else {
            default_v2(object);
        }
    }

    fn prepare_create(&self, _: &Context<'_>, object: &mut Value) {
        self.newer(object, |new| put(new, "status", json!({})));
    }

    fn prepare_update(&self, context: &Context<'_>, new: &mut Value, old: &Value) {
        let old = self.read(old);
        self.newer(new, |new| prepare_update_by_default(context, new, &old));
    }

    fn validate(&self, context: &Context<'_>, object: &Value, old: Option<&Value>, errors: &mut ErrorList) {
        let object = self.read(object);
        if context.subresource == "status" {
            return not_negative(errors, get(&object, "status"), &["currentReplicas", "desiredReplicas"], &STATUS_AT);
        }
        let old = old.map(|old| self.read(old));
        let old_spec = old.as_ref().map(|old| get(old, "spec"));
        validate::spec(errors, get(&object, "spec"), old_spec, self.scales_to_zero);
    }

    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let object = self.read(object);
        let (spec, status) = (get(&object, "spec"), get(&object, "status"));
        let goal = get(spec, "scaleTargetRef");
        let least = int(spec, "minReplicas").map_or_else(|| "<unset>".into(), |least| least.to_string());
        vec![
            name(&object),
            json!(format!("{}/{}", text(goal, "kind"), text(goal, "name"))),
            json!(targets(spec, status)),
            json!(least),
            json!(int(spec, "maxReplicas").unwrap_or(0)),
            json!(int(status, "currentReplicas").unwrap_or(0)),
            age(&object, now),
        ]
    }

    fn tracked_form<'a>(&self, object: &'a Value) -> Cow<'a, Value> {
        if !self.old {
            return Cow::Borrowed(object);
        }
        let mut tracked = object.clone();
        self.newer(&mut tracked, |_| {});
        Cow::Owned(tracked)
    }

    fn read_storage_version(&self, object: Value) -> Value {
        if self.old { to_v1(object) } else { object }
    }

    fn write_storage_version(&self, object: Value) -> Value {
        if !self.old {
            return object;
        }
        let mut new = to_v2(object);
        default_v2(&mut new);
        new
    }
}
