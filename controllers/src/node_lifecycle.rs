//! `node-lifecycle-controller`: a node that is no longer heard of becomes NotReady, and taints say what a node's
//! conditions mean for pods (Kubernetes documentation, "Nodes" and "Taints and Tolerations").

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, NodeCondition, Taint};
use machinery_api::ObjectKey;
use machinery_client::driver::own_key;
use machinery_client::{
    Action, Change, Context, Controller, EventRecord, Input, Kind, ObjectCache, Plan, Pod, value_of,
};
use serde_json::json;

use crate::Settings;
use crate::pods;

/// How long a new node may take to say anything at all (upstream's startup grace period).
const STARTUP_GRACE: Duration = Duration::from_secs(60);

const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

/// Taints of effect NoSchedule that follow from conditions: the condition, the status that means it, the taint.
const BY_CONDITION: &[(&str, &str, &str)] = &[
    ("Ready", "False", NOT_READY),
    ("Ready", "Unknown", UNREACHABLE),
    ("MemoryPressure", "True", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "True", "node.kubernetes.io/disk-pressure"),
    ("PIDPressure", "True", "node.kubernetes.io/pid-pressure"),
    ("NetworkUnavailable", "True", "node.kubernetes.io/network-unavailable"),
];

/// The key is a node's.
pub(crate) const CONTROLLER: Controller<Settings> = Controller {
    name: "node-lifecycle-controller",
    account: "node-controller",
    workers: 4,
    inputs: &[Input::of::<Node>(own_key), Input::of::<Lease>(of_lease), Input::of::<Pod>(of_pod)],
    reconcile,
};

/// A ready node is looked at when its grace period ends, and by then its Lease may have been renewed: each renewal of each
/// node is nothing that anybody has to do something about (upstream has no handler for Leases at all).
fn of_lease(view: &ObjectCache, change: &Change) -> Vec<ObjectKey> {
    if change.key.namespace != "kube-node-lease" {
        return Vec::new();
    }
    unless_ready(view, ObjectKey::cluster(&*change.key.name))
}

/// A pod's node where the pod is new there: on a node that isn't ready no pod is.
fn of_pod(view: &ObjectCache, change: &Change) -> Vec<ObjectKey> {
    let Some(name) = change.after::<Pod>().and_then(|pod| pod.spec.as_ref()?.node_name.as_deref()) else {
        return Vec::new();
    };
    unless_ready(view, ObjectKey::cluster(name))
}

/// A node that is there and not ready.
fn unless_ready(view: &ObjectCache, key: ObjectKey) -> Vec<ObjectKey> {
    let ready =
        view.get::<Node>(&key).is_none_or(|node| condition(node, "Ready").is_some_and(|ready| ready.status == "True"));
    if ready { Vec::new() } else { vec![key] }
}

fn condition<'a>(node: &'a Node, kind: &str) -> Option<&'a NodeCondition> {
    node.status.as_ref()?.conditions.iter().flatten().find(|condition| condition.type_ == kind)
}

/// When the node was last heard of, by this process's own monotonic clock (upstream's `probeTimestamp`): when its Lease
/// was received, or the heartbeat in its status, whichever was later. What is older than the process counts from its
/// start: whoever was not there to listen cannot say that a node was silent. Neither a node's clock nor a suspended
/// machine takes part.
fn heard_of(view: &ObjectCache, node: &Node, context: &Context<'_, Settings>) -> Option<Duration> {
    let name = node.metadata.name.as_deref().unwrap_or_default();
    let renewed = view.seen_at(&Kind::of::<Lease>(), &ObjectKey::new("kube-node-lease", name));
    let posted = condition(node, "Ready").and_then(|ready| ready.last_heartbeat_time.as_ref()).map(|at| {
        let age = Duration::try_from(context.now.duration_since(at.0)).unwrap_or_default();
        // The newest version of the Node may be another one's work: its heartbeat came no later than that.
        let seen = view.seen_at(&Kind::of::<Node>(), &ObjectKey::cluster(name)).unwrap_or_default();
        context.elapsed.saturating_sub(age).min(seen)
    });
    renewed.max(posted)
}

/// How long until the node counts as silent; none where it does already.
fn silent_in(view: &ObjectCache, node: &Node, context: &Context<'_, Settings>) -> Option<Duration> {
    let wait = match heard_of(view, node, context) {
        Some(heard) => (heard + context.settings.node_monitor_grace).saturating_sub(context.elapsed),
        None => {
            let created = node.metadata.creation_timestamp.as_ref().map_or(context.now, |at| at.0);
            let age = Duration::try_from(context.now.duration_since(created)).unwrap_or_default();
            STARTUP_GRACE.saturating_sub(age)
        }
    };
    (!wait.is_zero()).then_some(wait)
}

fn reconcile(view: &ObjectCache, key: &ObjectKey, context: &Context<'_, Settings>) -> Plan {
    let Some(node) = view.get::<Node>(key).filter(|node| node.metadata.deletion_timestamp.is_none()) else {
        return Plan::nothing();
    };
    let mut plan = Plan::nothing();
    if let Some(wait) = silent_in(view, node, context) {
        // Looked at no more often than the monitor's period.
        plan.requeue_after(context.now, wait.max(context.settings.node_monitor_period));
    } else if let Some(conditions) = unheard(node, context.now) {
        let status = json!({"status": {"conditions": value_of(&conditions)}, "metadata": {"uid": node.metadata.uid, "resourceVersion": node.metadata.resource_version}});
        let mut patch = Action::patch(node, status);
        if let Action::Patch { subresource, .. } = &mut patch {
            *subresource = Some("status");
        }
        plan.push(patch);
        let note = format!("Node {} status is now: NodeNotReady", key.name);
        plan.push(Action::Event(EventRecord::normal(node, "NodeNotReady", note)));
        // The taints follow once the new status is there: both are written at the version that was read.
        return plan;
    }
    if let Some(taints) = taints(view, node, context.now) {
        let taints = if taints.is_empty() { json!(null) } else { value_of(&taints) };
        let patch = json!({"spec": {"taints": taints}, "metadata": {"uid": node.metadata.uid, "resourceVersion": node.metadata.resource_version}});
        plan.push(Action::patch(node, patch));
    }
    if condition(node, "Ready").is_some_and(|ready| ready.status != "True") {
        plan.actions.extend(mark_pods(view, &key.name, context.now));
    }
    plan
}

/// The conditions of a node that is no longer heard of; `None` where they say so already.
fn unheard(node: &Node, now: Timestamp) -> Option<Vec<NodeCondition>> {
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

/// The taints that a node should have; `None` where it has them.
fn taints(view: &ObjectCache, node: &Node, now: Timestamp) -> Option<Vec<Taint>> {
    let before = node.spec.as_ref().and_then(|spec| spec.taints.clone()).unwrap_or_default();
    let is = |kind: &str, status: &str| condition(node, kind).is_some_and(|condition| condition.status == status);
    let mut wanted: Vec<(&str, &str)> = BY_CONDITION
        .iter()
        .filter(|(kind, status, _)| is(kind, status))
        .map(|(_, _, taint)| (*taint, "NoSchedule"))
        .collect();
    if node.spec.as_ref().is_some_and(|spec| spec.unschedulable == Some(true)) {
        wanted.push((UNSCHEDULABLE, "NoSchedule"));
    }
    // Where no node is ready the fault is likelier ours than theirs: nobody is evicted (upstream's full disruption).
    let any_ready = view.all::<Node>().any(|node| condition(node, "Ready").is_some_and(|ready| ready.status == "True"));
    if any_ready {
        let evicts = BY_CONDITION.iter().take(2).filter(|(kind, status, _)| is(kind, status));
        wanted.extend(evicts.map(|(_, _, taint)| (*taint, "NoExecute")));
    }
    let ours = |taint: &Taint| {
        let by_condition = BY_CONDITION.iter().any(|(_, _, key)| *key == taint.key) || taint.key == UNSCHEDULABLE;
        by_condition
            && (taint.effect == "NoSchedule"
                || (taint.effect == "NoExecute" && [NOT_READY, UNREACHABLE].contains(&taint.key.as_str())))
    };
    let mut after: Vec<Taint> = before
        .iter()
        .filter(|taint| !ours(taint) || wanted.contains(&(taint.key.as_str(), taint.effect.as_str())))
        .cloned()
        .collect();
    for (key, effect) in wanted {
        if !after.iter().any(|taint| taint.key == key && taint.effect == effect) {
            after.push(Taint {
                key: key.into(),
                effect: effect.into(),
                value: None,
                time_added: Some(pods::stamp(now)),
            });
        }
    }
    (after != before).then_some(after)
}

/// Pods of a node that isn't ready aren't ready either. Written at the version that was read: what the node itself has
/// said meanwhile is newer than what is known here.
fn mark_pods(view: &ObjectCache, node: &str, now: Timestamp) -> Vec<Action> {
    let on_node =
        view.all::<Pod>().filter(|pod| pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) == Some(node));
    let marked = on_node.filter(|pod| pods::is_ready(pod)).map(|pod| {
        let mut conditions =
            pod.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default().into_vec();
        for condition in conditions.iter_mut().filter(|condition| condition.type_ == "Ready") {
            condition.status = "False".into();
            condition.last_transition_time = Some(pods::stamp(now));
        }
        let patch = json!({"status": {"conditions": value_of(&conditions)}, "metadata": {"uid": pod.metadata.uid, "resourceVersion": pod.metadata.resource_version}});
        let mut patch = Action::patch(pod, patch);
        if let Action::Patch { subresource, .. } = &mut patch {
            *subresource = Some("status");
        }
        vec![patch, Action::Event(EventRecord::warning(pod, "NodeNotReady", "Node is not ready"))]
    });
    marked.flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use machinery_client::simulate::Simulation;
    use serde_json::Value;

    fn node(name: &str) -> Value {
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "creationTimestamp": "2026-01-01T00:00:00Z"}, "spec": {},
            "status": {"conditions": [{"type": "Ready", "status": "True", "lastHeartbeatTime": "2026-01-01T00:00:00Z"}]}})
    }

    fn lease(name: &str, renewed: &str) -> Value {
        json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": name, "namespace": "kube-node-lease"}, "spec": {"renewTime": renewed}})
    }

    fn settle(cluster: &mut Simulation) {
        let settings = Settings::default();
        for _ in 0..10 {
            let context = cluster.context(&settings);
            let plans: Vec<Plan> =
                ["one", "two"].map(|name| reconcile(&cluster.view, &ObjectKey::cluster(name), &context)).into();
            if plans.iter().all(|plan| plan.actions.is_empty()) {
                return;
            }
            for plan in plans {
                assert!(cluster.apply(plan).is_empty());
            }
        }
        panic!("the controller never comes to rest");
    }

    fn state(cluster: &Simulation, name: &str) -> (String, Vec<String>) {
        let node = cluster.view.get::<Node>(&ObjectKey::cluster(name)).unwrap();
        let taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
        let taints = taints
            .map(|taint| format!("{}:{}", taint.key.trim_start_matches("node.kubernetes.io/"), taint.effect))
            .collect();
        (condition(node, "Ready").unwrap().status.clone(), taints)
    }

    fn at(second: i64) -> Timestamp {
        let start: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        start.saturating_add(Duration::from_secs(second.unsigned_abs())).unwrap()
    }

    fn running_pod(node: &str) -> Value {
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "default"},
            "spec": {"nodeName": node, "containers": []},
            "status": {"phase": "Running", "conditions": [
                {"type": "Initialized", "status": "True"}, {"type": "Ready", "status": "True"}]}})
    }

    #[test]
    fn a_silent_node_is_tainted_and_an_audible_one_is_freed() {
        let objects = [
            node("one"),
            node("two"),
            running_pod("one"),
            lease("one", "2026-01-01T00:00:00.000000Z"),
            lease("two", "2026-01-01T00:00:00.000000Z"),
        ];
        let mut cluster = crate::simulation(at(0), objects);
        let leases = Kind::of::<Lease>();
        cluster.now = at(30);
        cluster.write(&leases, lease("two", "2026-01-01T00:00:30.000000Z"));
        cluster.now = at(39);
        settle(&mut cluster);
        assert_eq!(state(&cluster, "one"), ("True".into(), vec![]));
        cluster.now = at(41);
        settle(&mut cluster);
        assert_eq!(
            state(&cluster, "one"),
            ("Unknown".into(), vec!["unreachable:NoSchedule".into(), "unreachable:NoExecute".into()])
        );
        assert_eq!(state(&cluster, "two"), ("True".into(), vec![]));
        assert!(cluster.view.all::<Pod>().all(|pod| !pods::is_ready(pod)));
        let kind = Kind::of::<Node>();
        let mut heard = node("one");
        heard["spec"] = json!({"taints": value_of(&cluster.view.get::<Node>(&ObjectKey::cluster("one")).unwrap().spec.clone().unwrap().taints)});
        heard["status"]["conditions"][0]["lastHeartbeatTime"] = json!("2026-01-01T00:00:41Z");
        cluster.write(&kind, heard);
        settle(&mut cluster);
        assert_eq!(state(&cluster, "one"), ("True".into(), vec![]));
    }

    /// Heartbeats of thousands of nodes ask for nothing while they come: see `of_lease`.
    #[test]
    fn a_renewed_lease_is_work_only_where_the_node_is_not_ready() {
        let mut silent = node("two");
        silent["status"]["conditions"][0]["status"] = json!("Unknown");
        let leases = ["one", "two", "three"].map(|name| lease(name, "2026-01-01T00:00:00.000000Z"));
        let cluster = crate::simulation(at(0), [node("one"), silent].into_iter().chain(leases));
        let keys = |name: &str| {
            let (kind, key) = (Kind::of::<Lease>(), ObjectKey::new("kube-node-lease", name));
            let new = cluster.view.object(&kind, &key).cloned();
            assert!(new.is_some());
            of_lease(&cluster.view, &Change { kind, key: key.into(), old: None, new })
        };
        assert_eq!(keys("one"), []);
        assert_eq!(keys("two"), [ObjectKey::cluster("two")]);
        assert_eq!(keys("three"), [], "there is no such node");
    }

    /// After a downtime the leases are old, and nobody has listened: the nodes get the whole grace period to speak.
    #[test]
    fn a_heartbeat_older_than_this_process_counts_from_its_start() {
        let mut old = node("one");
        old["status"]["conditions"][0]["lastHeartbeatTime"] = json!("2025-12-31T00:00:00Z");
        let mut cluster = crate::simulation(
            at(0),
            [old, running_pod("one"), lease("one", "2025-12-31T00:00:00.000000Z"), node("two")],
        );
        settle(&mut cluster);
        assert_eq!(state(&cluster, "one"), ("True".into(), vec![]));
        assert!(cluster.view.all::<Pod>().all(pods::is_ready));
        cluster.now = at(39);
        settle(&mut cluster);
        assert_eq!(state(&cluster, "one").0, "True");
        cluster.now = at(40);
        settle(&mut cluster);
        assert_eq!(state(&cluster, "one").0, "Unknown");
    }

    #[test]
    fn a_nodes_clock_decides_nothing() {
        let ahead = lease("one", "2026-01-01T01:00:00.000000Z");
        let mut cluster = crate::simulation(at(0), [node("one"), ahead, node("two")]);
        cluster.now = at(40);
        settle(&mut cluster);
        assert_eq!(state(&cluster, "one").0, "Unknown", "its lease is of an hour later, and is not renewed");
        let behind = |second: i64| lease("two", &at(second).to_string().replace("2026", "2025"));
        let mut cluster = crate::simulation(at(0), [node("one"), behind(0), node("two")]);
        for second in (10..120).step_by(10) {
            cluster.now = at(second);
            cluster.write(&Kind::of::<Lease>(), behind(second));
            settle(&mut cluster);
        }
        assert_eq!(state(&cluster, "two").0, "True", "its clock is a year behind, and it renews");
    }

    #[test]
    fn pods_are_marked_at_the_version_that_was_read() {
        let mut cluster = crate::simulation(at(0), [node("one"), running_pod("one")]);
        cluster.now = at(41);
        let key = ObjectKey::cluster("one");
        let settings = Settings::default();
        assert!(cluster.apply(reconcile(&cluster.view, &key, &cluster.context(&settings))).is_empty());
        let plan = reconcile(&cluster.view, &key, &cluster.context(&settings));
        let mut said = running_pod("one");
        said["status"]["conditions"][0]["message"] = json!("newer");
        cluster.write(&Kind::of::<Pod>(), said);
        assert_eq!(cluster.apply(plan), ["pods default/p conflicts"], "the node has spoken meanwhile");
    }

    #[test]
    fn where_no_node_is_ready_nobody_is_evicted() {
        let mut cluster = crate::simulation(at(0), [node("one"), node("two")]);
        cluster.now = at(600);
        settle(&mut cluster);
        assert_eq!(state(&cluster, "one").1, ["unreachable:NoSchedule"]);
    }

    #[test]
    fn a_cordoned_node_is_tainted_and_other_taints_stay() {
        let mut cordoned = node("one");
        cordoned["spec"] = json!({"unschedulable": true, "taints": [{"key": "mine", "effect": "NoExecute"}]});
        let mut cluster = crate::simulation("2026-01-01T00:00:01Z".parse().unwrap(), [cordoned, node("two")]);
        settle(&mut cluster);
        assert_eq!(state(&cluster, "one").1, ["mine:NoExecute", "unschedulable:NoSchedule"]);
    }
}
