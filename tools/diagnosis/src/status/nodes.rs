//! Rows of nodes. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Node, NodeStatus};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Wire;
use machinery_api::quantity::Quantity;
use serde::Deserialize;

use super::report::NodeRow;

/// The usage of a node in `metrics.k8s.io`.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct NodeMetrics {
    metadata: MetricsName,
    #[serde(default)]
    usage: BTreeMap<String, Wire>,
}

#[derive(Debug, Clone, Deserialize)]
struct MetricsName {
    name: String,
}

/// A list of `metrics.k8s.io`.
#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct NodeMetricsList {
    #[serde(default)]
    pub(super) items: Vec<NodeMetrics>,
}

/// The rows in the order of names. `pods`: the number of pods by node, if pods can be read.
pub(super) fn rows(nodes: &[Node], metrics: &NodeMetricsList, pods: Option<&BTreeMap<String, u64>>) -> Vec<NodeRow> {
    let mut rows: Vec<NodeRow> = nodes
        .iter()
        .map(|node| {
            let name = node.metadata.name.as_deref().unwrap_or_default();
            let usage = metrics.items.iter().find(|one| one.metadata.name == name).map(|one| &one.usage);
            row(node, usage, pods.map(|pods| pods.get(name).copied().unwrap_or(0)))
        })
        .collect();
    rows.sort_by(|a, b| a.name.cmp(&b.name));
    rows
}

fn row(node: &Node, usage: Option<&BTreeMap<String, Wire>>, pods: Option<u64>) -> NodeRow {
    let empty = NodeStatus::default();
    let status = node.status.as_ref().unwrap_or(&empty);
    let conditions = || status.conditions.iter().flatten();
    let ready = conditions().find(|condition| condition.type_ == "Ready");
    let is_ready = ready.is_some_and(|ready| ready.status == "True");
    let reason = ready.map_or("it has never reported".to_owned(), |ready| {
        let parts = [ready.reason.as_deref(), ready.message.as_deref()];
        parts.into_iter().flatten().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(": ")
    });
    let pressures = conditions().filter(|one| one.type_ != "Ready" && one.status == "True");
    let address = status.addresses.iter().flatten().find(|address| address.type_ == "InternalIP");
    let info = status.node_info.as_ref();
    let allocatable = status.allocatable.as_ref();
    let of = |all: Option<&BTreeMap<String, Wire>>, name: &str| all.and_then(|all| quantity(all.get(name)?));
    NodeRow {
        name: node.metadata.name.clone().unwrap_or_default(),
        ready: is_ready,
        reason: Some(reason).filter(|_| !is_ready),
        pressures: pressures.map(|one| one.type_.clone()).collect(),
        cordoned: node.spec.as_ref().and_then(|spec| spec.unschedulable).unwrap_or(false),
        version: info.map(|info| info.kubelet_version.clone()).unwrap_or_default(),
        address: address.map(|address| address.address.clone()),
        pods,
        pods_max: of(allocatable, "pods").map(|amount| whole(amount.value())),
        cpu_millis: of(usage, "cpu").map(|amount| whole(amount.milli())),
        cpu_millis_max: of(allocatable, "cpu").map(|amount| whole(amount.milli())),
        memory_bytes: of(usage, "memory").map(|amount| whole(amount.value())),
        memory_bytes_max: of(allocatable, "memory").map(|amount| whole(amount.value())),
    }
}

fn quantity(text: &Wire) -> Option<Quantity> {
    Quantity::parse(&text.0).ok()
}

fn whole(amount: i64) -> u64 {
    u64::try_from(amount).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_row_has_state_version_and_usage() {
        let node = json!({
            "metadata": {"name": "b"}, "spec": {"unschedulable": true},
            "status": {
                "conditions": [
                    {"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "it runs"},
                    {"type": "DiskPressure", "status": "True"},
                    {"type": "PIDPressure", "status": "False"},
                ],
                "addresses": [{"type": "Hostname", "address": "b"}, {"type": "InternalIP", "address": "10.0.0.1"}],
                "allocatable": {"cpu": "1500m", "memory": "1Gi", "pods": "2k"},
            },
        });
        let silent = json!({"metadata": {"name": "a"}});
        let lost = json!({"metadata": {"name": "c"}, "status": {"conditions": [
            {"type": "Ready", "status": "Unknown", "reason": "NodeStatusUnknown", "message": "Kubelet stopped posting node status."}]}});
        let nodes: Vec<Node> = [node, silent, lost].map(|node| serde_json::from_value(node).unwrap()).into();
        let metrics =
            json!({"items": [{"metadata": {"name": "b"}, "usage": {"cpu": "250000000n", "memory": "512Ki"}}]});
        let metrics: NodeMetricsList = serde_json::from_value(metrics).unwrap();
        let rows = rows(&nodes, &metrics, Some(&BTreeMap::from([("b".to_owned(), 7)])));
        assert_eq!(rows.iter().map(|row| row.name.as_str()).collect::<Vec<_>>(), ["a", "b", "c"]);
        let [a, b, c] = rows.as_slice() else { panic!("{rows:?}") };
        assert_eq!((a.ready, a.reason.as_deref(), a.pods), (false, Some("it has never reported"), Some(0)));
        assert!(b.ready && b.cordoned && b.reason.is_none() && b.pressures == ["DiskPressure"]);
        assert_eq!((b.pods, b.pods_max, b.address.as_deref()), (Some(7), Some(2000), Some("10.0.0.1")));
        assert_eq!((b.cpu_millis, b.cpu_millis_max), (Some(250), Some(1500)));
        assert_eq!((b.memory_bytes, b.memory_bytes_max), (Some(512 << 10), Some(1 << 30)));
        assert_eq!(c.reason.as_deref(), Some("NodeStatusUnknown: Kubelet stopped posting node status."));
    }
}
