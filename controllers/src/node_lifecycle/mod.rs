//! `node-lifecycle-controller`: marks nodes without heartbeats as NotReady, and derives taints from node conditions
//! (Kubernetes documentation, "Nodes" and "Taints and Tolerations").

mod heartbeat;
mod taints;
#[cfg(test)]
mod tests;
mod zones;

use std::time::Duration;

use clap::Args;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, NodeCondition};
use machinery_api::ObjectKey;
use machinery_client::{
    Action, BackOff, Change, Context, Controller, EventRecord, Input, ObjectCache, Plan, Pod, value_of,
};
use machinery_options::duration::some_time;
use serde_json::{Value, json};

use crate::Settings;
use crate::pods;

/// The minimum interval between two passes over a node, with fast failover.
const FAST_PERIOD: Duration = Duration::from_millis(50);

/// Labels and their beta names, in that order.
const OLD_LABELS: [(&str, &str); 2] =
    [("kubernetes.io/os", "beta.kubernetes.io/os"), ("kubernetes.io/arch", "beta.kubernetes.io/arch")];

/// The options of node lifecycle, with upstream's names and defaults.
#[derive(Debug, Clone, PartialEq, Args)]
pub struct NodeLifecycle {
    /// Interval of the node lifecycle controller; a plain number is seconds
    #[arg(long = "node-monitor-period", env = "CORACLE_NODE_MONITOR_PERIOD", default_value = "5s", value_name = "DURATION", value_parser = some_time)]
    pub monitor_period: Duration,
    /// Time without a heartbeat after which a node is NotReady
    #[arg(long = "node-monitor-grace-period", env = "CORACLE_NODE_MONITOR_GRACE_PERIOD", default_value = "50s", value_name = "DURATION", value_parser = some_time)]
    pub monitor_grace: Duration,
    /// Time that a new node may take for its first heartbeat
    #[arg(long = "node-startup-grace-period", env = "CORACLE_NODE_STARTUP_GRACE_PERIOD", default_value = "1m0s", value_name = "DURATION", value_parser = some_time)]
    pub startup_grace: Duration,
    /// Failed nodes per second whose pods are evicted, in a healthy zone
    #[arg(long = "node-eviction-rate", env = "CORACLE_NODE_EVICTION_RATE", default_value_t = 0.1, value_name = "RATE", value_parser = rate)]
    pub eviction_rate: f32,
    /// Failed nodes per second whose pods are evicted, in a large, partially disrupted zone
    #[arg(long = "secondary-node-eviction-rate", env = "CORACLE_SECONDARY_NODE_EVICTION_RATE", default_value_t = 0.01, value_name = "RATE", value_parser = rate)]
    pub secondary_eviction_rate: f32,
    /// Share of failed nodes (three at least) from which on a zone is partially disrupted
    #[arg(long, env = "CORACLE_UNHEALTHY_ZONE_THRESHOLD", default_value_t = 0.55, value_name = "SHARE", value_parser = rate)]
    pub unhealthy_zone_threshold: f32,
    /// Maximum nodes of a small zone: while one is partially disrupted, nothing is evicted there
    #[arg(long, env = "CORACLE_LARGE_CLUSTER_SIZE_THRESHOLD", default_value_t = 50, value_name = "N", value_parser = clap::value_parser!(u32))]
    pub large_cluster_size_threshold: u32,
    /// Nodes with short Leases count as dead when their Leases expire, in about 1.5 s (docs/flags.md, "Nodes that
    /// die")
    #[arg(long, env = "CORACLE_FAST_FAILOVER")]
    pub fast_failover: bool,
}

impl Default for NodeLifecycle {
    fn default() -> Self {
        machinery_options::defaults()
    }
}

fn rate(text: &str) -> Result<f32, String> {
    let rate = text.parse::<f32>().ok().filter(|rate| rate.is_finite() && *rate >= 0.0);
    rate.ok_or_else(|| "not a number of nothing or more".to_owned())
}

/// The key is a node's, or empty for the decision over all nodes.
pub(crate) const CONTROLLER: Controller<Settings> = Controller {
    name: "node-lifecycle-controller",
    account: "node-controller",
    workers: 4,
    back_off: BackOff::DEFAULT,
    inputs: &[Input::of::<Node>(of_node), Input::of::<Lease>(of_lease), Input::of::<Pod>(of_pod)],
    reconcile,
};

/// The node; and all nodes if it is down or removed, as the evictions of others depend on it. A node that recovers is
/// noticed by the next periodic pass, which runs while another node waits for its eviction.
fn of_node(_: &ObjectCache, change: &Change) -> Vec<ObjectKey> {
    let mut keys = vec![(*change.key).clone()];
    let (before, after) = (change.before::<Node>(), change.after::<Node>());
    let down = after.is_none_or(|node| condition(node, "Ready").is_none_or(|ready| ready.status != "True"));
    let counts =
        |node: &Node| (zones::is_excluded(node), zones::zone(node).0.to_owned(), zones::zone(node).1.to_owned());
    let moved = before.zip(after).is_some_and(|(before, after)| counts(before) != counts(after));
    if down || moved {
        keys.push(ObjectKey::cluster(""));
    }
    keys
}

/// The duration of a Lease in seconds.
fn lease_duration(lease: Option<&Lease>) -> Option<i32> {
    lease?.spec.as_ref()?.lease_duration_seconds
}

/// A ready node is checked when its grace period ends, after further renewals of its Lease. So a renewal alone requeues
/// nothing (upstream has no handler for Leases at all).
fn of_lease(view: &ObjectCache, change: &Change) -> Vec<ObjectKey> {
    if change.key.namespace != heartbeat::LEASES {
        return Vec::new();
    }
    let node = ObjectKey::cluster(&*change.key.name);
    // The end of the grace period may depend on the duration.
    if lease_duration(change.before()) != lease_duration(change.after()) && view.get::<Node>(&node).is_some() {
        return vec![node];
    }
    unless_ready(view, node)
}

/// The node of a new pod: on an unready node no pod is ready.
fn of_pod(view: &ObjectCache, change: &Change) -> Vec<ObjectKey> {
    let Some(name) = change.after::<Pod>().and_then(|pod| pod.spec.as_ref()?.node_name.as_deref()) else {
        return Vec::new();
    };
    unless_ready(view, ObjectKey::cluster(name))
}

/// The key of an existing, unready node.
fn unless_ready(view: &ObjectCache, key: ObjectKey) -> Vec<ObjectKey> {
    let ready =
        view.get::<Node>(&key).is_none_or(|node| condition(node, "Ready").is_some_and(|ready| ready.status == "True"));
    if ready { Vec::new() } else { vec![key] }
}

fn condition<'a>(node: &'a Node, kind: &str) -> Option<&'a NodeCondition> {
    node.status.as_ref()?.conditions.iter().flatten().find(|condition| condition.type_ == kind)
}

fn reconcile(view: &ObjectCache, key: &ObjectKey, context: &Context<'_, Settings>) -> Plan {
    if key.name.is_empty() {
        return zones::reconcile(view, context);
    }
    let Some(node) = view.get::<Node>(key).filter(|node| node.metadata.deletion_timestamp.is_none()) else {
        return Plan::nothing();
    };
    let settings = &context.settings.options.node_lifecycle;
    let mut plan = Plan::nothing();
    if let Some(wait) = heartbeat::time_until_silent(view, node, context) {
        // At most one check per monitor period.
        let least = if settings.fast_failover { FAST_PERIOD } else { settings.monitor_period };
        plan.requeue_after(context.now, wait.max(least));
    } else if let Some(conditions) = unknown_conditions(node, context.now) {
        let status = json!({"status": {"conditions": value_of(&conditions)}, "metadata": {"uid": node.metadata.uid, "resourceVersion": node.metadata.resource_version}});
        let mut patch = Action::patch(node, status);
        if let Action::Patch { subresource, .. } = &mut patch {
            *subresource = Some("status");
        }
        plan.push(patch);
        let note = format!("Node {} status is now: NodeNotReady", key.name);
        plan.push(Action::Event(EventRecord::normal(node, "NodeNotReady", note)));
        // The taints follow after the status: both writes have the same resource version as precondition.
        return plan;
    }
    if let Some(taints) = taints::of_conditions(node, context.now) {
        let taints = if taints.is_empty() { json!(null) } else { value_of(&taints) };
        let patch = json!({"spec": {"taints": taints}, "metadata": {"uid": node.metadata.uid, "resourceVersion": node.metadata.resource_version}});
        plan.push(Action::patch(node, patch));
    }
    if let Some(labels) = old_labels(node) {
        plan.push(Action::patch(node, json!({"metadata": {"uid": node.metadata.uid, "labels": labels}})));
    }
    let marked = mark_pods(view, node, context.now);
    if !marked.is_empty() {
        plan.push(Action::Concurrent(marked));
    }
    plan
}

/// The beta labels that a node lacks, or whose value differs from the stable label's.
fn old_labels(node: &Node) -> Option<Value> {
    let labels = node.metadata.labels.as_ref()?;
    let wrong = OLD_LABELS.iter().filter_map(|(counts, old)| {
        let value = labels.get(*counts)?;
        (labels.get(*old) != Some(value)).then(|| ((*old).to_owned(), json!(value)))
    });
    let wrong: serde_json::Map<String, Value> = wrong.collect();
    (!wrong.is_empty()).then_some(Value::Object(wrong))
}

/// The conditions of a node without heartbeats; `None` if it has them already.
fn unknown_conditions(node: &Node, now: Timestamp) -> Option<Vec<NodeCondition>> {
    let mut conditions: Vec<NodeCondition> =
        node.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default();
    let before = conditions.clone();
    for kind in ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"] {
        match conditions.iter_mut().find(|condition| condition.type_ == kind) {
            None => conditions.push(NodeCondition {
                type_: kind.into(),
                status: "Unknown".into(),
                reason: Some("NodeStatusNeverUpdated".into()),
                message: Some("Kubelet never posted node status.".into()),
                last_heartbeat_time: node.metadata.creation_timestamp.clone(),
                last_transition_time: Some(pods::stamp(now)),
            }),
            Some(condition) if condition.status != "Unknown" => {
                condition.status = "Unknown".into();
                condition.reason = Some("NodeStatusUnknown".into());
                condition.message = Some("Kubelet stopped posting node status.".into());
                condition.last_transition_time = Some(pods::stamp(now));
            }
            Some(_) => {}
        }
    }
    (conditions != before).then_some(conditions)
}

/// The Ready conditions of pods on an unready node become false, unless the node reported later on a pod than on
/// itself. The resource version is a precondition, so that newer reports of the node win.
fn mark_pods(view: &ObjectCache, node: &Node, now: Timestamp) -> Vec<Action> {
    let Some(down) = condition(node, "Ready").filter(|ready| ready.status != "True") else { return Vec::new() };
    let since = down.last_transition_time.as_ref().filter(|_| down.status == "False");
    let reported_since = |pod: &Pod| {
        let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
        let ready = conditions.iter().find(|condition| condition.type_ == "Ready");
        ready
            .and_then(|ready| ready.last_transition_time.as_ref())
            .zip(since)
            .is_some_and(|(reported, since)| reported.0 > since.0)
    };
    let on_node = view.on_node(node.metadata.name.as_deref().unwrap_or_default());
    let marked = on_node.filter(|pod| pods::is_ready(pod) && !reported_since(pod)).map(|pod| {
        let mut conditions = pod.conditions();
        for condition in conditions.iter_mut().filter(|condition| condition.type_ == "Ready") {
            condition.status = "False".into();
            condition.last_transition_time = Some(pods::stamp(now));
        }
        let patch = json!({"status": {"conditions": value_of(&conditions)}, "metadata": {"uid": pod.metadata.uid, "resourceVersion": pod.metadata.resource_version}});
        let mut patch = Action::patch(pod, patch);
        if let Action::Patch { subresource, .. } = &mut patch {
            *subresource = Some("status");
        }
        [patch, Action::Event(EventRecord::warning(pod, "NodeNotReady", "Node is not ready"))]
    });
    marked.flatten().collect()
}
