//! Whether a node has room for one more pod. Pure: the scheduler has checked it too, but a pod may name its node itself.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Wire;

use super::host_ports;
use crate::spec::requests::{amount_of, requested};

/// The resources that are counted, and the reason for which a pod fails that doesn't fit (upstream's, in its order).
const COUNTED: [(&str, &str); 4] = [
    ("pods", "OutOfpods"),
    ("cpu", "OutOfcpu"),
    ("memory", "OutOfmemory"),
    ("ephemeral-storage", "OutOfephemeral-storage"),
];

/// Why the pod is not for this node, or has no room beside the others, if so: reason and message.
#[must_use]
pub fn refuse<'a>(
    allocatable: &BTreeMap<String, Wire>,
    others: impl Iterator<Item = &'a Pod> + Clone,
    pod: &Pod,
) -> Option<(&'static str, String)> {
    let predicate = |(reason, why): (&'static str, &str)| (reason, format!("Pod was rejected: {why}"));
    let ports = || {
        let clash = host_ports::clash(others.clone().filter(|other| !ended(other)), pod);
        clash.then_some((
            "NodePorts",
            "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports",
        ))
    };
    os(pod).map(predicate).or_else(|| lacking(allocatable, others.clone(), pod)).or_else(|| ports().map(predicate))
}

/// What a pod says of its system; nodes say that they are `linux`, so that charts fit.
fn os(pod: &Pod) -> Option<(&'static str, &'static str)> {
    let spec = pod.spec.as_ref()?;
    let selected = spec.node_selector.as_ref().and_then(|selector| selector.get("kubernetes.io/os"));
    if selected.is_some_and(|os| os != "linux") {
        let why = "Failed to admit pod as the `kubernetes.io/os` label doesn't match node label";
        return Some(("PodOSSelectorNodeLabelDoesNotMatch", why));
    }
    let other = spec.os.as_ref().is_some_and(|os| os.name != "linux");
    other.then_some(("PodOSNotSupported", "Failed to admit pod as the OS field doesn't match node OS"))
}

/// Which resource the pod has no room of beside the others, if so.
#[must_use]
pub fn lacking<'a>(
    allocatable: &BTreeMap<String, Wire>,
    others: impl Iterator<Item = &'a Pod> + Clone,
    pod: &Pod,
) -> Option<(&'static str, String)> {
    COUNTED.into_iter().find_map(|(name, reason)| {
        let asked = requested(pod, name);
        if asked == 0 {
            return None;
        }
        let used: i64 = others.clone().filter(|other| !ended(other)).map(|other| requested(other, name)).sum();
        let capacity = allocatable.get(name).map_or(0, |amount| amount_of(amount, name));
        (used.saturating_add(asked) > capacity).then(|| {
            let message = format!(
                "Pod was rejected: Node didn't have enough resource: {name}, requested: {asked}, used: {used}, \
                 capacity: {capacity}"
            );
            (reason, message)
        })
    })
}

/// Whether a pod holds nothing any more.
#[must_use]
pub fn ended(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn another_systems_pods_and_taken_ports_are_refused() {
        let pod = |spec| -> Pod { serde_json::from_value(json!({"metadata": {}, "spec": spec})).unwrap() };
        let refused = |others: &[Pod], spec| refuse(&BTreeMap::new(), others.iter(), &pod(spec));
        let allocatable = |spec| refused(&[], spec).map(|(reason, _)| reason);
        assert_eq!(allocatable(json!({"containers": [], "os": {"name": "windows"}})), Some("PodOSNotSupported"));
        let selector = json!({"containers": [], "nodeSelector": {"kubernetes.io/os": "windows"}});
        assert_eq!(allocatable(selector), Some("PodOSSelectorNodeLabelDoesNotMatch"));
        let port = json!({"containers": [{"name": "c", "ports": [{"containerPort": 80, "hostPort": 80}]}]});
        let room = BTreeMap::from([("pods".to_owned(), Wire("9".into()))]);
        let (reason, message) = refuse(&room, [pod(port.clone())].iter(), &pod(port.clone())).unwrap();
        assert_eq!(reason, "NodePorts");
        assert!(message.ends_with("node(s) didn't have free ports for the requested pod ports"));
        assert_eq!(refuse(&room, [].iter(), &pod(port)), None);
    }

    #[test]
    fn what_has_no_room_is_told_in_upstreams_words() {
        let pod = |cpu: &str, phase: &str| -> Pod {
            serde_json::from_value(json!({
                "metadata": {}, "status": {"phase": phase},
                "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]},
            }))
            .unwrap()
        };
        let allocatable =
            [("cpu", "1"), ("pods", "3"), ("memory", "1Gi")].map(|(n, q)| (n.to_owned(), Wire(q.to_owned()))).into();
        let others = [pod("600m", "Running"), pod("600m", "Succeeded")];
        assert_eq!(refuse(&allocatable, others.iter(), &pod("400m", "Pending")), None);
        let (reason, message) = refuse(&allocatable, others.iter(), &pod("500m", "Pending")).unwrap();
        assert_eq!(reason, "OutOfcpu");
        let want = "Pod was rejected: Node didn't have enough resource: cpu, requested: 500, used: 600, capacity: 1000";
        assert_eq!(message, want);
        let full = [pod("0", "Running"), pod("0", "Running"), pod("0", "Pending")];
        assert_eq!(
            refuse(&allocatable, full.iter(), &pod("0", "Pending")).map(|(reason, _)| reason),
            Some("OutOfpods")
        );
    }
}
