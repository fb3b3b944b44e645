//! Converts kubelets' `/stats/summary` into objects of `metrics.k8s.io`. Pure.

use std::collections::HashMap;

use machinery_api::quantity::{Format, Quantity};
use serde_json::{Map, Value, json};

/// The served group and version.
pub(super) const API_VERSION: &str = "metrics.k8s.io/v1beta1";
/// The assumed window of a rate without `windowSeconds`: the kubelet's own period, in seconds.
const WINDOW_SECONDS_DEFAULT: f64 = 15.0;

/// Resource usage: CPU as a rate, memory as a momentary value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Usage {
    nano_cores: u64,
    memory_bytes: u64,
    window_seconds: f64,
}

impl Usage {
    /// From a part of a summary; `None` while the rate is unknown.
    fn of(part: &Value) -> Option<Self> {
        let cpu = &part["cpu"];
        Some(Self {
            nano_cores: cpu["usageNanoCores"].as_u64()?,
            memory_bytes: part["memory"]["workingSetBytes"].as_u64()?,
            window_seconds: cpu["windowSeconds"].as_f64().unwrap_or(WINDOW_SECONDS_DEFAULT),
        })
    }

    fn object(&self) -> Value {
        let memory = i64::try_from(self.memory_bytes).unwrap_or(i64::MAX);
        json!({
            "cpu": if self.nano_cores == 0 { "0".to_owned() } else { format!("{}n", self.nano_cores) },
            "memory": Quantity::from_int(memory, Format::BinarySi).to_string(),
        })
    }

    /// The window as a Go duration.
    fn window(&self) -> String {
        let seconds = (self.window_seconds * 1000.0).round() / 1000.0;
        if seconds < 60.0 {
            return format!("{seconds}s");
        }
        let minutes = (seconds / 60.0).floor();
        format!("{minutes}m{}s", ((seconds - minutes * 60.0) * 1000.0).round() / 1000.0)
    }
}

/// A kubelet's summary.
#[derive(Debug, Default)]
pub(super) struct Summary {
    node: Option<(Usage, Value)>,
    /// By pod uid: the time of the measurement, and the usage of each container.
    pods: HashMap<String, (Value, Vec<(String, Usage)>)>,
}

/// A custom metric of a pod, summed over its containers.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct CustomMetric {
    /// The value in thousandths.
    pub(super) milli: i64,
    pub(super) time: Value,
    pub(super) window_seconds: i64,
}

/// The maximum number of custom metrics of one pod; Coracle's kubelets send three.
const CUSTOM_METRICS_MAX: usize = 16;

/// The custom metrics of a pod by name, from its containers.
pub(super) fn custom_metrics(containers: &[Value]) -> HashMap<String, CustomMetric> {
    let mut all: HashMap<String, CustomMetric> = HashMap::new();
    let metrics = containers.iter().flat_map(|one| one["userDefinedMetrics"].as_array().into_iter().flatten());
    for one in metrics {
        let (Some(name), Some(value)) = (one["name"].as_str(), one["value"].as_f64()) else { continue };
        if !all.contains_key(name) && all.len() >= CUSTOM_METRICS_MAX {
            continue;
        }
        let window = one["windowSeconds"].as_f64().unwrap_or(WINDOW_SECONDS_DEFAULT);
        let sum = all.entry(name.to_owned()).or_insert(CustomMetric {
            milli: 0,
            time: one["time"].clone(),
            window_seconds: 0,
        });
        // The cast saturates.
        sum.milli = sum.milli.saturating_add((value * 1000.0).round() as i64);
        sum.window_seconds = sum.window_seconds.max(window.round() as i64);
    }
    all
}

impl Summary {
    /// Reads a summary; invalid parts are skipped.
    pub(super) fn read(summary: &Value) -> Self {
        let node = &summary["node"];
        let pods = summary["pods"].as_array().into_iter().flatten().filter_map(|pod| {
            let containers = pod["containers"].as_array()?;
            let named = |one: &Value| Some((one["name"].as_str()?.to_owned(), Usage::of(one)?));
            // As metrics-server: a pod is included only if all of its containers have values.
            let all: Option<Vec<(String, Usage)>> = containers.iter().map(named).collect();
            let time = containers.first()?["cpu"]["time"].clone();
            Some((pod["podRef"]["uid"].as_str()?.to_owned(), (time, all?)))
        });
        Self { node: Usage::of(node).map(|usage| (usage, node["cpu"]["time"].clone())), pods: pods.collect() }
    }

    /// A NodeMetrics object.
    pub(super) fn node(&self, node: &Value) -> Option<Value> {
        let (usage, time) = self.node.as_ref()?;
        Some(json!({
            "kind": "NodeMetrics", "apiVersion": API_VERSION, "metadata": metadata(node, time),
            "timestamp": time, "window": usage.window(), "usage": usage.object(),
        }))
    }

    /// A PodMetrics object.
    pub(super) fn pod(&self, pod: &Value) -> Option<Value> {
        let (time, containers) = self.pods.get(pod["metadata"]["uid"].as_str()?)?;
        let window =
            containers.iter().map(|(_, usage)| usage).max_by(|a, b| a.window_seconds.total_cmp(&b.window_seconds));
        let containers: Vec<Value> =
            containers.iter().map(|(name, usage)| json!({"name": name, "usage": usage.object()})).collect();
        Some(json!({
            "kind": "PodMetrics", "apiVersion": API_VERSION, "metadata": metadata(pod, time),
            "timestamp": time, "window": window?.window(), "containers": containers,
        }))
    }
}

/// Name, namespace and labels of the measured object, for selectors.
fn metadata(of: &Value, time: &Value) -> Value {
    let from = &of["metadata"];
    let mut metadata = Map::new();
    metadata.insert("name".into(), from["name"].clone());
    for field in ["namespace", "labels"] {
        if !from[field].is_null() {
            metadata.insert(field.into(), from[field].clone());
        }
    }
    metadata.insert("creationTimestamp".into(), time.clone());
    Value::Object(metadata)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary() -> Value {
        let part = |nano: u64, bytes: u64| {
            json!({"cpu": {"time": "2026-01-01T00:00:00Z", "usageNanoCores": nano, "windowSeconds": 15.0},
                "memory": {"workingSetBytes": bytes}})
        };
        let mut node = part(1_500_000_000, 3 << 20);
        node["nodeName"] = json!("n");
        let (mut a, mut b) = (part(0, 1536), part(7, 1000));
        (a["name"], b["name"]) = (json!("a"), json!("b"));
        json!({"node": node, "pods": [
            {"podRef": {"uid": "u"}, "containers": [a, b]},
            {"podRef": {"uid": "young"}, "containers": [{"name": "a", "cpu": {"usageCoreNanoSeconds": 5}, "memory": {"workingSetBytes": 1}}]},
            {"podRef": {}, "containers": []},
        ]})
    }

    #[test]
    fn objects_are_as_metrics_server_writes_them() {
        let read = Summary::read(&summary());
        let node = read.node(&json!({"metadata": {"name": "n", "uid": "x", "labels": {"l": "1"}}})).unwrap();
        assert_eq!(
            node,
            json!({"kind": "NodeMetrics", "apiVersion": "metrics.k8s.io/v1beta1",
                "metadata": {"name": "n", "labels": {"l": "1"}, "creationTimestamp": "2026-01-01T00:00:00Z"},
                "timestamp": "2026-01-01T00:00:00Z", "window": "15s", "usage": {"cpu": "1500000000n", "memory": "3Mi"}})
        );
        let pod = read.pod(&json!({"metadata": {"name": "p", "namespace": "d", "uid": "u"}})).unwrap();
        assert_eq!(
            pod["containers"],
            json!([{"name": "a", "usage": {"cpu": "0", "memory": "1536"}}, {"name": "b", "usage": {"cpu": "7n", "memory": "1k"}}])
        );
        assert_eq!(pod["window"], "15s");
    }

    #[test]
    fn metrics_of_containers_are_added_up() {
        let rps = |value: f64| json!({"userDefinedMetrics": [{"name": "rps", "value": value, "time": "t", "windowSeconds": 15.2}]});
        let one = custom_metrics(&[rps(0.25)]);
        assert_eq!(one["rps"], CustomMetric { milli: 250, time: json!("t"), window_seconds: 15 });
        let sum = custom_metrics(&[rps(1.5), rps(2.0), rps(1e300), json!({"name": "x"})]);
        assert_eq!((sum["rps"].milli, sum.len()), (i64::MAX, 1));
        let many = (0..100).map(|at| json!({"name": format!("m{at}"), "value": 1.0}));
        let many = json!({"userDefinedMetrics": many.collect::<Vec<_>>()});
        assert_eq!(custom_metrics(&[many]).len(), CUSTOM_METRICS_MAX);
    }

    #[test]
    fn unknown_metrics_are_absent() {
        let read = Summary::read(&summary());
        for uid in ["young", "other"] {
            assert_eq!(read.pod(&json!({"metadata": {"name": "p", "uid": uid}})), None);
        }
        assert!(Summary::read(&json!({"node": {"cpu": {}}, "pods": 5})).node(&json!({})).is_none());
    }

    #[test]
    fn windows_are_written_as_go_writes_durations() {
        let of = |window_seconds| Usage { nano_cores: 0, memory_bytes: 0, window_seconds }.window();
        assert_eq!((of(15.0), of(2.5), of(61.25)), ("15s".into(), "2.5s".into(), "1m1.25s".into()));
    }
}
