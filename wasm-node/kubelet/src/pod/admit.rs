//! Admission of a pod by its node. Pure. The scheduler has checked the same, but a pod may set `nodeName` itself.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Wire;

use super::host_ports::{self, HostPort};
use super::node_facts::NodeFacts;
use crate::spec::requests::{amount_of, requested};

/// The counted resources, and the failure reason of a pod that doesn't fit (upstream's reasons, in upstream's order).
const COUNTED: [(&str, &str); 4] = [
    ("pods", "OutOfpods"),
    ("cpu", "OutOfcpu"),
    ("memory", "OutOfmemory"),
    ("ephemeral-storage", "OutOfephemeral-storage"),
];

/// The node's resources and ports that a pod occupies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Claim {
    /// The amounts of the counted resources, in their order.
    amounts: [i64; COUNTED.len()],
    ports: Box<[HostPort]>,
    /// The pod has ended and occupies nothing.
    pub(crate) ended: bool,
}

impl Claim {
    pub(crate) fn of(pod: &Pod) -> Self {
        let amounts = COUNTED.map(|(name, _)| requested(pod, name));
        Self { amounts, ports: host_ports::of(pod).collect(), ended: has_ended(pod) }
    }
}

/// The reason why a node rejects a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    /// `status.reason`.
    pub reason: &'static str,
    /// `status.message`.
    pub message: String,
    /// Only the node's labels cause the rejection.
    pub by_labels: bool,
}

impl Rejection {
    /// A rejection with that reason; upstream's prefix precedes the message.
    #[must_use]
    pub fn new(reason: &'static str, why: &str) -> Self {
        Self { reason, message: format!("Pod was rejected: {why}"), by_labels: false }
    }

    fn predicate(name: &'static str, why: &str) -> Self {
        Self::new(name, &format!("Predicate {name} failed: {why}"))
    }
}

/// The first rejection in upstream's order, if the pod doesn't fit this node or its free resources.
pub(crate) fn reject(
    allocatable: &BTreeMap<String, Wire>,
    node: &NodeFacts,
    others: &[Claim],
    pod: &Pod,
) -> Option<Rejection> {
    if let Some((reason, why)) = os_mismatch(pod) {
        return Some(Rejection::new(reason, why));
    }
    let claim = Claim::of(pod);
    if let Some((reason, message)) = insufficient_resource(allocatable, others, &claim) {
        return Some(Rejection { reason, message, by_labels: false });
    }
    let clash = || {
        let clash = others.iter().any(|other| !other.ended && host_ports::clash(&other.ports, &claim.ports));
        let why = "node(s) didn't have free ports for the requested pod ports";
        clash.then(|| Rejection::predicate("NodePorts", why))
    };
    let tainted = || {
        let why = "node(s) had taints that the pod didn't tolerate";
        node.repels(pod).then(|| Rejection::predicate("TaintToleration", why))
    };
    let more = clash().or_else(tainted);
    if node.selected_by(pod) {
        return more;
    }
    let labels = Rejection::predicate("NodeAffinity", "node(s) didn't match Pod's node affinity/selector");
    Some(Rejection { by_labels: more.is_none(), ..labels })
}

/// Checks the pod's OS against `linux`, the OS label of every node; charts select that value.
fn os_mismatch(pod: &Pod) -> Option<(&'static str, &'static str)> {
    let label = pod.metadata.labels.as_ref().and_then(|labels| labels.get("kubernetes.io/os"));
    if label.is_some_and(|os| os != "linux") {
        let why = "Failed to admit pod as the `kubernetes.io/os` label doesn't match node label";
        return Some(("PodOSSelectorNodeLabelDoesNotMatch", why));
    }
    let other = pod.spec.as_ref().is_some_and(|spec| spec.os.as_ref().is_some_and(|os| os.name != "linux"));
    other.then_some(("PodOSNotSupported", "Failed to admit pod as the OS field doesn't match node OS"))
}

/// The first resource that is insufficient for the pod beside the others.
pub(crate) fn insufficient_resource(
    allocatable: &BTreeMap<String, Wire>,
    others: &[Claim],
    claim: &Claim,
) -> Option<(&'static str, String)> {
    COUNTED.into_iter().enumerate().find_map(|(index, (name, reason))| {
        let requested = claim.amounts[index];
        if requested == 0 {
            return None;
        }
        let holding = others.iter().filter(|other| !other.ended);
        let used = holding.fold(0_i64, |used, other| used.saturating_add(other.amounts[index]));
        let capacity = allocatable.get(name).map_or(0, |amount| amount_of(amount, name));
        (used.saturating_add(requested) > capacity).then(|| {
            let message = format!(
                "Pod was rejected: Node didn't have enough resource: {name}, requested: {requested}, used: {used}, \
                 capacity: {capacity}"
            );
            (reason, message)
        })
    })
}

/// Whether a pod has ended, and so occupies nothing.
#[must_use]
pub fn has_ended(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn unfit_pods_are_rejected_in_upstreams_order() {
        let pod = |spec| -> Pod { serde_json::from_value(json!({"metadata": {}, "spec": spec})).unwrap() };
        let allocatable = BTreeMap::from([("pods".to_owned(), Wire("9".into()))]);
        let gone = json!({"metadata": {"name": "n"}, "spec": {"taints": [{"key": "gone", "effect": "NoExecute"}]}});
        let gone = NodeFacts::of(&serde_json::from_value(gone).unwrap());
        let refused = |node: &NodeFacts, others: &[Pod], pod: &Pod| {
            reject(&allocatable, node, &others.iter().map(Claim::of).collect::<Vec<_>>(), pod)
        };
        let reason = |pod: &Pod| refused(&NodeFacts::default(), &[], pod).map(|refusal| refusal.reason);
        assert_eq!(reason(&pod(json!({"containers": [], "os": {"name": "windows"}}))), Some("PodOSNotSupported"));
        let mut labelled = pod(json!({"containers": []}));
        labelled.metadata.labels = Some([("kubernetes.io/os".to_owned(), "windows".to_owned())].into());
        assert_eq!(reason(&labelled), Some("PodOSSelectorNodeLabelDoesNotMatch"));

        let ports = json!([{"name": "c", "ports": [{"containerPort": 80, "hostPort": 80}]}]);
        let port = pod(json!({"containers": ports}));
        let refusal = refused(&NodeFacts::default(), std::slice::from_ref(&port), &port).unwrap();
        assert_eq!(refusal.reason, "NodePorts");
        assert!(refusal.message.ends_with("node(s) didn't have free ports for the requested pod ports"));
        assert_eq!(reason(&port), None);

        let elsewhere = pod(json!({"containers": ports, "nodeSelector": {"disk": "ssd"}}));
        let refusal = refused(&NodeFacts::default(), &[], &elsewhere).unwrap();
        assert_eq!((refusal.reason, refusal.by_labels), ("NodeAffinity", true));
        let want = "Pod was rejected: Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector";
        assert_eq!(refusal.message, want);
        let refusal = refused(&NodeFacts::default(), std::slice::from_ref(&port), &elsewhere).unwrap();
        assert_eq!((refusal.reason, refusal.by_labels), ("NodeAffinity", false), "its port is taken, too");
        let refusal = refused(&gone, &[], &port).unwrap();
        assert_eq!((refusal.reason, refusal.by_labels), ("TaintToleration", false));
        let want =
            "Pod was rejected: Predicate TaintToleration failed: node(s) had taints that the pod didn't tolerate";
        assert_eq!(refusal.message, want);
        assert!(!refused(&gone, &[], &elsewhere).unwrap().by_labels);
        let full = BTreeMap::from([("pods".to_owned(), Wire("0".into()))]);
        assert_eq!(reject(&full, &gone, &[], &elsewhere).unwrap().reason, "OutOfpods", "room comes first");
    }

    #[test]
    fn pods_that_do_not_fit_have_upstreams_message() {
        let pod = |cpu: &str, phase: &str| -> Pod {
            serde_json::from_value(json!({
                "metadata": {}, "status": {"phase": phase},
                "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]},
            }))
            .unwrap()
        };
        let allocatable =
            [("cpu", "1"), ("pods", "3"), ("memory", "1Gi")].map(|(n, q)| (n.to_owned(), Wire(q.to_owned()))).into();
        let others = [pod("600m", "Running"), pod("600m", "Succeeded")].map(|pod| Claim::of(&pod));
        assert_eq!(insufficient_resource(&allocatable, &others, &Claim::of(&pod("400m", "Pending"))), None);
        let (reason, message) =
            insufficient_resource(&allocatable, &others, &Claim::of(&pod("500m", "Pending"))).unwrap();
        assert_eq!(reason, "OutOfcpu");
        let want = "Pod was rejected: Node didn't have enough resource: cpu, requested: 500, used: 600, capacity: 1000";
        assert_eq!(message, want);
        let full = ["Running", "Running", "Pending"].map(|phase| Claim::of(&pod("0", phase)));
        assert_eq!(
            insufficient_resource(&allocatable, &full, &Claim::of(&pod("0", "Pending"))).map(|(reason, _)| reason),
            Some("OutOfpods")
        );
    }
}
