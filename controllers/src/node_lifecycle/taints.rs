//! Taints that derive from node conditions (Kubernetes documentation, "Taints and Tolerations").

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Taint};

use super::condition;
use crate::pods;

pub(super) const NOT_READY: &str = "node.kubernetes.io/not-ready";
pub(super) const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";
const NO_SCHEDULE: &str = "NoSchedule";
const NO_EXECUTE: &str = "NoExecute";

/// NoSchedule taints by condition: the condition, its status, the taint.
const BY_CONDITION: &[(&str, &str, &str)] = &[
    ("Ready", "False", NOT_READY),
    ("Ready", "Unknown", UNREACHABLE),
    ("MemoryPressure", "True", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "True", "node.kubernetes.io/disk-pressure"),
    ("PIDPressure", "True", "node.kubernetes.io/pid-pressure"),
    ("NetworkUnavailable", "True", "node.kubernetes.io/network-unavailable"),
];

fn all(node: &Node) -> &[Taint] {
    node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default()
}

/// The eviction taint for a node's state; none if the node is ready, or has no condition Ready.
pub(super) fn eviction_taint(node: &Node) -> Option<&'static str> {
    match condition(node, "Ready")?.status.as_str() {
        "False" => Some(NOT_READY),
        "Unknown" => Some(UNREACHABLE),
        _ => None,
    }
}

/// The node's taints of this controller that evict pods.
pub(super) fn evicting(node: &Node) -> impl Iterator<Item = &Taint> {
    all(node).iter().filter(|taint| evicts(taint))
}

fn evicts(taint: &Taint) -> bool {
    taint.effect == NO_EXECUTE && [NOT_READY, UNREACHABLE].contains(&taint.key.as_str())
}

/// Whether the node has the corresponding NoSchedule taint.
pub(super) fn has_no_schedule(node: &Node, key: &str) -> bool {
    all(node).iter().any(|taint| taint.key == key && taint.effect == NO_SCHEDULE)
}

fn taint(key: &str, effect: &str, now: Timestamp) -> Taint {
    Taint { key: key.into(), effect: effect.into(), value: None, time_added: Some(pods::stamp(now)) }
}

/// The node's taints with an eviction taint added.
pub(super) fn with_eviction(node: &Node, key: &str, now: Timestamp) -> Vec<Taint> {
    let mut after: Vec<Taint> = all(node).iter().filter(|taint| !evicts(taint)).cloned().collect();
    after.push(taint(key, NO_EXECUTE, now));
    after
}

/// The node's taints without eviction taints.
pub(super) fn without_eviction(node: &Node) -> Vec<Taint> {
    all(node).iter().filter(|taint| !evicts(taint)).cloned().collect()
}

/// The desired taints of a node by its conditions; `None` if it has them. Evictions are decided for all nodes together:
/// here an eviction taint is only removed or replaced, and never added.
pub(super) fn of_conditions(node: &Node, now: Timestamp) -> Option<Vec<Taint>> {
    let is = |kind: &str, status: &str| condition(node, kind).is_some_and(|condition| condition.status == status);
    let mut wanted: Vec<(&str, &str)> = BY_CONDITION
        .iter()
        .filter(|(kind, status, _)| is(kind, status))
        .map(|(_, _, taint)| (*taint, NO_SCHEDULE))
        .collect();
    if node.spec.as_ref().is_some_and(|spec| spec.unschedulable == Some(true)) {
        wanted.push((UNSCHEDULABLE, NO_SCHEDULE));
    }
    let meant = eviction_taint(node).filter(|_| evicting(node).next().is_some());
    wanted.extend(meant.map(|key| (key, NO_EXECUTE)));
    let ours = |taint: &Taint| {
        let by_condition = BY_CONDITION.iter().any(|(_, _, key)| *key == taint.key) || taint.key == UNSCHEDULABLE;
        (by_condition && taint.effect == NO_SCHEDULE) || evicts(taint)
    };
    let before = all(node);
    let mut after: Vec<Taint> = before
        .iter()
        .filter(|taint| !ours(taint) || wanted.contains(&(taint.key.as_str(), taint.effect.as_str())))
        .cloned()
        .collect();
    for (key, effect) in wanted {
        if !after.iter().any(|taint| taint.key == key && taint.effect == effect) {
            after.push(taint(key, effect, now));
        }
    }
    (after != before).then_some(after)
}
