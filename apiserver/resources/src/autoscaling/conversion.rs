//! Conversion of HorizontalPodAutoscalers between `autoscaling/v1` and `v2`. Fields that v1 lacks are kept in
//! annotations with upstream's names and formats, so that no version loses data.

use apiserver_schema as schema;
use serde_json::{Map, Value, json};

use crate::field::{go_struct, quoted};
use crate::read::{entries, get, has, int, items, object_mut, put, remove, text};

const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
const CURRENT_METRICS: &str = "autoscaling.alpha.kubernetes.io/current-metrics";
const CONDITIONS: &str = "autoscaling.alpha.kubernetes.io/conditions";
const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";
/// The annotations above, and two of earlier releases.
const ALL: [&str; 6] = [
    METRICS,
    CURRENT_METRICS,
    CONDITIONS,
    BEHAVIOR,
    "autoscaling.alpha.kubernetes.io/scale-down-tolerance",
    "autoscaling.alpha.kubernetes.io/scale-up-tolerance",
];
const TYPE: &str = "io.k8s.api.autoscaling.v2.HorizontalPodAutoscaler";
/// The default CPU target, in percent.
pub(super) const CPU_PERCENT: i64 = 80;

/// A CPU utilization metric.
pub(super) fn cpu(percent: i64) -> Value {
    let target = json!({"type": "Utilization", "averageUtilization": percent});
    json!({"type": "Resource", "resource": {"name": "cpu", "target": target}})
}

fn is_cpu(metric: &Value, measured: &str) -> bool {
    let resource = get(metric, "resource");
    text(metric, "type") == "Resource"
        && text(resource, "name") == "cpu"
        && has(get(resource, measured), "averageUtilization")
}

fn drop_annotations(object: &mut Value) {
    let metadata = object_mut(object, "metadata");
    if let Some(annotations) = metadata.get_mut("annotations") {
        for key in ALL {
            remove(annotations, key);
        }
        if annotations.as_object().is_some_and(Map::is_empty) {
            remove(metadata, "annotations");
        }
    }
}

/// Converts an object of `autoscaling/v2` to `autoscaling/v1`.
pub(super) fn to_v1(mut object: Value) -> Value {
    drop_annotations(&mut object);
    put(&mut object, "apiVersion", json!("autoscaling/v1"));
    let (spec, status) = (get(&object, "spec").clone(), get(&object, "status").clone());
    let mut notes: Vec<(&str, String)> = Vec::new();
    let others: Vec<String> = items(&spec, "metrics")
        .iter()
        .filter(|metric| !is_cpu(metric, "target"))
        .map(|metric| old_metric(metric, &TARGET))
        .collect();
    if !others.is_empty() {
        notes.push((METRICS, format!("[{}]", others.join(","))));
    }
    let current: Vec<String> =
        items(&status, "currentMetrics").iter().map(|metric| old_metric(metric, &CURRENT)).collect();
    if !current.is_empty() {
        notes.push((CURRENT_METRICS, format!("[{}]", current.join(","))));
    }
    if has(&spec, "behavior") {
        notes.push((BEHAVIOR, old_behavior(get(&spec, "behavior"))));
    }
    let conditions: Vec<String> = items(&status, "conditions").iter().map(old_condition).collect();
    if !conditions.is_empty() {
        notes.push((CONDITIONS, format!("[{}]", conditions.join(","))));
    }
    for (key, value) in notes {
        put(object_mut(object_mut(&mut object, "metadata"), "annotations"), key, json!(value));
    }
    let own = object_mut(&mut object, "spec");
    remove(own, "metrics");
    remove(own, "behavior");
    if let Some(metric) = items(&spec, "metrics").iter().find(|metric| is_cpu(metric, "target")) {
        let percent = get(get(get(metric, "resource"), "target"), "averageUtilization").clone();
        put(own, "targetCPUUtilizationPercentage", percent);
    }
    let own = object_mut(&mut object, "status");
    remove(own, "currentMetrics");
    remove(own, "conditions");
    if let Some(metric) = items(&status, "currentMetrics").iter().rev().find(|metric| is_cpu(metric, "current")) {
        let percent = get(get(get(metric, "resource"), "current"), "averageUtilization").clone();
        put(own, "currentCPUUtilizationPercentage", percent);
    }
    for key in ["currentReplicas", "desiredReplicas"] {
        crate::read::default_to(own, key, 0);
    }
    object
}

/// Converts an object of `autoscaling/v1` to `autoscaling/v2`.
pub(super) fn to_v2(mut object: Value) -> Value {
    let noted = |key: &str| {
        let text = text(get(get(&object, "metadata"), "annotations"), key);
        serde_json::from_str::<Value>(text).ok()
    };
    let metrics = noted(METRICS).and_then(|list| typed_annotation("spec", "metrics", each(&list, new_metric)?));
    let behavior = noted(BEHAVIOR).and_then(|one| typed_annotation("spec", "behavior", new_behavior(&one)?));
    let current =
        noted(CURRENT_METRICS).and_then(|list| typed_annotation("status", "currentMetrics", each(&list, new_status)?));
    let conditions = noted(CONDITIONS)
        .and_then(|list| typed_annotation("status", "conditions", each(&list, |one| Some(one.clone()))?));
    drop_annotations(&mut object);
    put(&mut object, "apiVersion", json!("autoscaling/v2"));
    let spec = object_mut(&mut object, "spec");
    let percent = remove(spec, "targetCPUUtilizationPercentage").and_then(|percent| percent.as_i64());
    let mut all = metrics.as_ref().and_then(Value::as_array).cloned().unwrap_or_default();
    all.extend(percent.map(cpu));
    if all.is_empty() {
        all.push(cpu(CPU_PERCENT));
    }
    put(spec, "metrics", Value::Array(all));
    put(spec, "behavior", behavior.unwrap_or(Value::Null));
    let status = object_mut(&mut object, "status");
    let percent = remove(status, "currentCPUUtilizationPercentage").filter(|percent| !percent.is_null());
    let measured = percent.map(|percent| {
        let resource = json!({"name": "cpu", "current": {"averageUtilization": percent}});
        json!([{"type": "Resource", "resource": resource}])
    });
    put(status, "currentMetrics", current.or(measured).unwrap_or(Value::Null));
    put(status, "conditions", conditions.unwrap_or(Value::Null));
    object
}

/// An annotation's value, if it has the type of the field that it replaces.
fn typed_annotation(part: &str, field: &str, value: Value) -> Option<Value> {
    let found = schema::built_in().by_name(TYPE)?;
    let mut object = json!({"metadata": {}, part: {field: value}});
    schema::normalise(found, &mut object).ok()?;
    remove(object_mut(&mut object, part), field)
}

fn each(list: &Value, one: impl Fn(&Value) -> Option<Value>) -> Option<Value> {
    list.as_array()?.iter().map(one).collect::<Option<Vec<Value>>>().map(Value::Array)
}

/// JSON with fields in the order of Go's declaration; `None` is omitted.
fn ordered_json(fields: &[(&str, Option<String>)]) -> String {
    let parts: Vec<String> =
        fields.iter().filter_map(|(key, value)| Some(format!("{}:{}", quoted(key), value.as_ref()?))).collect();
    format!("{{{}}}", parts.join(","))
}

fn non_null(value: &Value) -> Option<String> {
    // Includes Go's escapes for HTML, which `go_struct` applies to nested values.
    let inside = go_struct(&json!({"": value}), &[""]);
    (!value.is_null()).then(|| inside[4..inside.len() - 1].to_owned())
}

fn or_zero(value: &Value) -> Option<String> {
    non_null(value).or_else(|| Some("\"0\"".into()))
}

fn or_empty(value: &Value) -> Option<String> {
    non_null(value).or_else(|| Some("\"\"".into()))
}

fn selector(of: &Value) -> Option<String> {
    let selector = get(of, "selector");
    (!selector.is_null()).then(|| go_struct(selector, &["matchLabels", "matchExpressions"]))
}

fn reference(of: &Value) -> String {
    let version = Some(get(of, "apiVersion")).filter(|version| version.as_str() != Some(""));
    ordered_json(&[
        ("kind", or_empty(get(of, "kind"))),
        ("name", or_empty(get(of, "name"))),
        ("apiVersion", version.and_then(non_null)),
    ])
}

/// A metric's target or current value, and the names of its fields in version 1.
struct MetricSide {
    part: &'static str,
    utilization: &'static str,
    average: &'static str,
    value: &'static str,
    /// The text of a value that is optional as a target and required as a current value.
    measured: fn(&Value) -> Option<String>,
}

const TARGET: MetricSide = MetricSide {
    part: "target",
    utilization: "targetAverageUtilization",
    average: "targetAverageValue",
    value: "targetValue",
    measured: non_null,
};

const CURRENT: MetricSide = MetricSide {
    part: "current",
    utilization: "currentAverageUtilization",
    average: "currentAverageValue",
    value: "currentValue",
    measured: or_zero,
};

fn old_metric(metric: &Value, side: &MetricSide) -> String {
    let part = |key: &str, write: &dyn Fn(&Value) -> String| {
        let source = get(metric, key);
        (!source.is_null()).then(|| write(source))
    };
    let figure = |of: &Value, key: &str| get(get(of, side.part), key).clone();
    let metric_name = |of: &Value| or_empty(get(get(of, "metric"), "name"));
    let resource = |of: &Value, container: bool| {
        ordered_json(&[
            ("name", or_empty(get(of, "name"))),
            (side.utilization, non_null(&figure(of, "averageUtilization"))),
            (side.average, (side.measured)(&figure(of, "averageValue"))),
            ("container", if container { or_empty(get(of, "container")) } else { None }),
        ])
    };
    let object = |of: &Value| {
        ordered_json(&[
            ("target", Some(reference(get(of, "describedObject")))),
            ("metricName", metric_name(of)),
            (side.value, or_zero(&figure(of, "value"))),
            ("selector", selector(get(of, "metric"))),
            ("averageValue", non_null(&figure(of, "averageValue"))),
        ])
    };
    let pods = |of: &Value| {
        ordered_json(&[
            ("metricName", metric_name(of)),
            (side.average, or_zero(&figure(of, "averageValue"))),
            ("selector", selector(get(of, "metric"))),
        ])
    };
    let external = |of: &Value| {
        ordered_json(&[
            ("metricName", metric_name(of)),
            ("metricSelector", selector(get(of, "metric"))),
            (side.value, (side.measured)(&figure(of, "value"))),
            (side.average, non_null(&figure(of, "averageValue"))),
        ])
    };
    ordered_json(&[
        ("type", or_empty(get(metric, "type"))),
        ("object", part("object", &object)),
        ("pods", part("pods", &pods)),
        ("resource", part("resource", &|of| resource(of, false))),
        ("containerResource", part("containerResource", &|of| resource(of, true))),
        ("external", part("external", &external)),
    ])
}

fn old_condition(condition: &Value) -> String {
    let filled = |key: &str| non_null(get(condition, key)).filter(|text| text != "\"\"");
    ordered_json(&[
        ("type", or_empty(get(condition, "type"))),
        ("status", or_empty(get(condition, "status"))),
        ("lastTransitionTime", non_null(get(condition, "lastTransitionTime")).or_else(|| Some("null".into()))),
        ("reason", filled("reason")),
        ("message", filled("message")),
    ])
}

/// Upstream writes its internal type here: Go's names, and null for absent fields.
fn old_behavior(behavior: &Value) -> String {
    let or_null = |value: &Value| non_null(value).or_else(|| Some("null".into()));
    let rules = |key: &str| {
        let rules = get(behavior, key);
        if rules.is_null() {
            return Some("null".to_owned());
        }
        let policies: Vec<String> = items(rules, "policies")
            .iter()
            .map(|policy| {
                ordered_json(&[
                    ("Type", or_empty(get(policy, "type"))),
                    ("Value", non_null(&json!(int(policy, "value").unwrap_or(0)))),
                    ("PeriodSeconds", non_null(&json!(int(policy, "periodSeconds").unwrap_or(0)))),
                ])
            })
            .collect();
        let policies = if has(rules, "policies") { format!("[{}]", policies.join(",")) } else { "null".into() };
        Some(ordered_json(&[
            ("StabilizationWindowSeconds", or_null(get(rules, "stabilizationWindowSeconds"))),
            ("SelectPolicy", or_null(get(rules, "selectPolicy"))),
            ("Policies", Some(policies)),
            ("Tolerance", or_null(get(rules, "tolerance"))),
        ]))
    };
    ordered_json(&[("ScaleUp", rules("scaleUp")), ("ScaleDown", rules("scaleDown"))])
}

/// A field by its case-insensitive name, as in Go's decoder.
fn field_ignoring_case<'a>(of: &'a Value, key: &str) -> &'a Value {
    let found = of.as_object().and_then(|map| map.iter().find(|(name, _)| name.eq_ignore_ascii_case(key)));
    found.map_or(&crate::read::NULL, |(_, value)| value)
}

fn picked(of: &Value, keys: &[&str]) -> Value {
    let kept: Map<String, Value> = keys
        .iter()
        .map(|key| ((*key).to_owned(), field_ignoring_case(of, key).clone()))
        .filter(|(_, value)| !value.is_null())
        .collect();
    Value::Object(kept)
}

fn new_behavior(behavior: &Value) -> Option<Value> {
    let mut new = json!({});
    for key in ["scaleUp", "scaleDown"] {
        let rules = field_ignoring_case(behavior, key);
        if rules.is_null() {
            continue;
        }
        let mut made = picked(rules, &["stabilizationWindowSeconds", "selectPolicy", "tolerance"]);
        let policies = field_ignoring_case(rules, "policies");
        if !policies.is_null() {
            let policy = |policy: &Value| Some(picked(policy, &["type", "value", "periodSeconds"]));
            put(&mut made, "policies", each(policies, policy)?);
        }
        put(&mut new, key, made);
    }
    (entries(&json!({"": new}), "").next().is_some()).then_some(new)
}

/// A metric's name and selector.
fn identifier(of: &Value, selector: &str) -> Value {
    let mut metric = json!({"name": text(of, "metricName")});
    put(&mut metric, "selector", get(of, selector).clone());
    metric
}

fn target(kind: &str, of: &Value, fields: &[(&str, &str)]) -> Value {
    let mut target = if kind.is_empty() { json!({}) } else { json!({"type": kind}) };
    for (to, from) in fields {
        put(&mut target, to, get(of, from).clone());
    }
    target
}

fn is_zero_amount(value: &Value) -> bool {
    crate::metadata::quantity(value).is_none_or(|amount| amount.is_zero())
}

fn new_metric(metric: &Value) -> Option<Value> {
    let mut new = json!({"type": get(metric, "type")});
    for (key, source) in metric.as_object()?.iter().filter(|(key, value)| *key != "type" && !value.is_null()) {
        let averaged = |key| if has(source, key) { "AverageValue" } else { "Value" };
        let made = match key.as_str() {
            "object" => {
                let kind = averaged("averageValue");
                let mut target = target(kind, source, &[("value", "targetValue"), ("averageValue", "averageValue")]);
                if kind == "AverageValue" && is_zero_amount(get(source, "targetValue")) {
                    remove(&mut target, "value");
                }
                json!({"target": target, "describedObject": get(source, "target"), "metric": identifier(source, "selector")})
            }
            "pods" => {
                let target = target("AverageValue", source, &[("averageValue", "targetAverageValue")]);
                json!({"target": target, "metric": identifier(source, "selector")})
            }
            "resource" | "containerResource" => {
                let kind = if has(source, "targetAverageUtilization") { "Utilization" } else { "AverageValue" };
                let fields =
                    [("averageValue", "targetAverageValue"), ("averageUtilization", "targetAverageUtilization")];
                let mut made = json!({"name": get(source, "name"), "target": target(kind, source, &fields)});
                put(&mut made, "container", get(source, "container").clone());
                made
            }
            "external" => {
                let kind = if has(source, "targetValue") { "Value" } else { "AverageValue" };
                let fields = [("value", "targetValue"), ("averageValue", "targetAverageValue")];
                json!({"target": target(kind, source, &fields), "metric": identifier(source, "metricSelector")})
            }
            _ => continue,
        };
        put(&mut new, key, made);
    }
    Some(new)
}

fn new_status(metric: &Value) -> Option<Value> {
    let mut new = json!({"type": get(metric, "type")});
    for (key, source) in metric.as_object()?.iter().filter(|(key, value)| *key != "type" && !value.is_null()) {
        let made = match key.as_str() {
            "object" => {
                let current = target("", source, &[("value", "currentValue"), ("averageValue", "averageValue")]);
                json!({"current": current, "describedObject": get(source, "target"), "metric": identifier(source, "selector")})
            }
            "pods" => {
                let current = target("", source, &[("averageValue", "currentAverageValue")]);
                json!({"current": current, "metric": identifier(source, "selector")})
            }
            "resource" | "containerResource" => {
                let fields =
                    [("averageValue", "currentAverageValue"), ("averageUtilization", "currentAverageUtilization")];
                let mut made = json!({"name": get(source, "name"), "current": target("", source, &fields)});
                put(&mut made, "container", get(source, "container").clone());
                made
            }
            "external" => {
                let fields = [("value", "currentValue"), ("averageValue", "currentAverageValue")];
                json!({"current": target("", source, &fields), "metric": identifier(source, "metricSelector")})
            }
            _ => continue,
        };
        put(&mut new, key, made);
    }
    Some(new)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole() -> Value {
        let selector = json!({"matchLabels": {"a": "<b>"}});
        json!({"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "x"},
            "spec": {"maxReplicas": 5, "minReplicas": 2, "scaleTargetRef": {"kind": "Deployment", "name": "d", "apiVersion": "apps/v1"},
                "behavior": {"scaleDown": {"stabilizationWindowSeconds": 60, "selectPolicy": "Max", "tolerance": "100m",
                    "policies": [{"type": "Percent", "value": 100, "periodSeconds": 15}]}},
                "metrics": [
                    {"type": "Resource", "resource": {"name": "memory", "target": {"type": "AverageValue", "averageValue": "100Mi"}}},
                    {"type": "Pods", "pods": {"metric": {"name": "rps", "selector": selector}, "target": {"type": "AverageValue", "averageValue": "10"}}},
                    {"type": "Object", "object": {"metric": {"name": "hits"}, "describedObject": {"apiVersion": "v1", "kind": "Service", "name": "s"},
                        "target": {"type": "Value", "value": "2k"}}},
                    {"type": "External", "external": {"metric": {"name": "queue"}, "target": {"type": "AverageValue", "averageValue": "30"}}},
                    {"type": "ContainerResource", "containerResource": {"name": "cpu", "container": "c", "target": {"type": "Utilization", "averageUtilization": 5}}},
                    {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 70}}}]},
            "status": {"currentReplicas": 1, "desiredReplicas": 2,
                "currentMetrics": [{"type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": 7, "averageValue": "7m"}}},
                    {"type": "External", "external": {"metric": {"name": "queue"}, "current": {"value": "1", "averageValue": "2"}}}],
                "conditions": [{"type": "AbleToScale", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z", "reason": "R", "message": "m"}]}})
    }

    #[test]
    fn nothing_is_lost_on_the_way_to_the_older_version_and_back() {
        let old = to_v1(whole());
        assert_eq!(old["spec"]["targetCPUUtilizationPercentage"], 70);
        assert_eq!(
            old["status"],
            json!({"currentReplicas": 1, "desiredReplicas": 2, "currentCPUUtilizationPercentage": 7})
        );
        assert_eq!(to_v2(old.clone()), whole());
        assert_eq!(to_v1(to_v2(old.clone())), old);
    }

    /// The form that upstream v1.36.3 writes.
    #[test]
    fn annotations_are_written_in_gos_order() {
        let old = to_v1(whole());
        let metrics = r#"[{"type":"Resource","resource":{"name":"memory","targetAverageValue":"100Mi"}},{"type":"Pods","pods":{"metricName":"rps","targetAverageValue":"10","selector":{"matchLabels":{"a":"\u003cb\u003e"}}}},{"type":"Object","object":{"target":{"kind":"Service","name":"s","apiVersion":"v1"},"metricName":"hits","targetValue":"2k"}},{"type":"External","external":{"metricName":"queue","targetAverageValue":"30"}},{"type":"ContainerResource","containerResource":{"name":"cpu","targetAverageUtilization":5,"container":"c"}}]"#;
        assert_eq!(old["metadata"]["annotations"][METRICS], metrics);
        let behavior = r#"{"ScaleUp":null,"ScaleDown":{"StabilizationWindowSeconds":60,"SelectPolicy":"Max","Policies":[{"Type":"Percent","Value":100,"PeriodSeconds":15}],"Tolerance":"100m"}}"#;
        assert_eq!(old["metadata"]["annotations"][BEHAVIOR], behavior);
    }

    #[test]
    fn annotations_of_another_type_are_ignored() {
        for bad in
            ["[{\"type\":1}]", "{}", "[1]", "[{\"type\":\"Pods\",\"pods\":{\"targetAverageValue\":[]}}]", "nonsense"]
        {
            let old = json!({"metadata": {"annotations": {METRICS: bad, BEHAVIOR: bad}}, "spec": {"maxReplicas": 1}});
            let new = to_v2(old);
            assert_eq!(new["spec"]["metrics"], json!([cpu(CPU_PERCENT)]), "{bad}");
            assert_eq!(new["metadata"].get("annotations"), None);
        }
    }

    #[test]
    fn any_annotation_is_taken_or_ignored() {
        bolero::check!().with_type::<String>().for_each(|text| {
            let old = json!({"metadata": {"annotations": {METRICS: text, BEHAVIOR: text, CURRENT_METRICS: text, CONDITIONS: text}}});
            to_v1(to_v2(old));
        });
    }
}
