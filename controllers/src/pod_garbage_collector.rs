//! `pod-garbage-collector-controller`: deletes pods that no kubelet will end: on missing nodes, terminating without a
//! node, on nodes out of service; and the oldest of too many terminal pods.
//!
//! Pods of a missing node have a quarantine, so a workload that keeps creating pods for the node loses them once per
//! quarantine.

use std::time::Duration;

use clap::Args;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, PodCondition};
use machinery_api::ObjectKey;
use machinery_client::request::PatchType;
use machinery_client::{
    Action, BackOff, Change, Context, Controller, Input, Kind, ObjectCache, Plan, Pod, key_of, value_of,
};
use serde_json::json;

use crate::Settings;
use crate::{conditions, pods};

/// The time between the loss of a node and the deletion of its pods: the node may be created again.
const QUARANTINE: Duration = Duration::from_secs(40);
/// The time within which a terminating pod without a node should disappear by itself (upstream checks every 20 s).
const UNSCHEDULED_GRACE: Duration = Duration::from_secs(20);
/// The minimum age of a pod that is deleted on a node out of service: upstream's interval.
const OUT_OF_SERVICE_AGE: Duration = Duration::from_secs(20);
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

/// The option of the garbage collector of pods.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct PodLimit {
    /// Number of terminated pods that are kept; 0 keeps all
    #[arg(long = "terminated-pod-gc-threshold", env = "CORACLE_TERMINATED_POD_GC_THRESHOLD", default_value_t = 12_500, value_name = "N", value_parser = clap::value_parser!(u32))]
    pub terminated_max: u32,
}

/// The key is a pod's, or empty for all terminal pods.
pub(crate) const CONTROLLER: Controller<Settings> = Controller {
    name: "pod-garbage-collector-controller",
    account: "pod-garbage-collector",
    workers: 2,
    back_off: BackOff::DEFAULT,
    inputs: &[Input::of::<Pod>(of_pod), Input::of::<Node>(of_node)],
    reconcile,
};

fn of_pod(view: &ObjectCache, change: &Change) -> Vec<ObjectKey> {
    let Some(pod) = change.after::<Pod>() else { return Vec::new() };
    let mut keys = Vec::new();
    if pods::is_terminal(pod) && change.before::<Pod>().is_none_or(|before| !pods::is_terminal(before)) {
        keys.push(ObjectKey::cluster(""));
    }
    let lost = node_of(pod).is_some_and(|name| view.get::<Node>(&ObjectKey::cluster(name)).is_none());
    if lost || pod.metadata.deletion_timestamp.is_some() {
        keys.push((*change.key).clone());
    }
    keys
}

/// The pods of a node that is gone or out of service.
fn of_node(view: &ObjectCache, change: &Change) -> Vec<ObjectKey> {
    let matters = change.after::<Node>().is_none_or(is_out_of_service);
    if !matters {
        return Vec::new();
    }
    view.on_node(&change.key.name).map(|pod| key_of(&pod.metadata)).collect()
}

fn node_of(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref().and_then(|s| s.node_name.as_deref()).filter(|n| !n.is_empty())
}

fn is_out_of_service(node: &Node) -> bool {
    let conditions = node.status.iter().flat_map(|s| s.conditions.iter().flatten());
    let ready = conditions.into_iter().any(|c| c.type_ == "Ready" && c.status == "True");
    let mut taints = node.spec.iter().flat_map(|s| s.taints.iter().flatten());
    !ready && taints.any(|t| t.key == OUT_OF_SERVICE)
}

fn reconcile(view: &ObjectCache, key: &ObjectKey, context: &Context<'_, Settings>) -> Plan {
    if key.name.is_empty() {
        return too_many(view, context);
    }
    let Some(pod) = view.get::<Pod>(key) else { return Plan::nothing() };
    let held = pod.metadata.finalizers.as_ref().is_some_and(|finalizers| !finalizers.is_empty());
    if held && pods::is_terminal(pod) && pod.metadata.deletion_grace_period_seconds == Some(0) {
        // Only finalizers are left. Without finalizers the deletion stopped between mark and removal, and is repeated.
        return Plan::nothing();
    }
    let after = |at: Option<Timestamp>, wait: Duration| {
        at.unwrap_or(Timestamp::UNIX_EPOCH).saturating_add(wait).unwrap_or(Timestamp::MAX)
    };
    let deleted_at = pod.metadata.deletion_timestamp.as_ref().map(|t| t.0);
    let Some(node_name) = node_of(pod) else {
        let Some(deleted_at) = deleted_at else { return Plan::nothing() };
        let due = after(Some(deleted_at), UNSCHEDULED_GRACE);
        if due > context.now {
            return Plan { requeue_at: Some(due), ..Plan::nothing() };
        }
        return delete_pod(pod, None).into();
    };
    let node_key = ObjectKey::cluster(node_name);
    let appeared_at = view.appeared_at(&Kind::of::<Pod>(), key).unwrap_or_default();
    let wait = |since: Duration, time: Duration| {
        let left = (since + time).saturating_sub(context.elapsed);
        (!left.is_zero()).then(|| {
            let mut plan = Plan::nothing();
            plan.requeue_after(context.now, left);
            plan
        })
    };
    match view.get::<Node>(&node_key) {
        Some(node) if deleted_at.is_some() && is_out_of_service(node) => {
            wait(appeared_at, OUT_OF_SERVICE_AGE).unwrap_or_else(|| delete_pod(pod, None).into())
        }
        Some(_) => Plan::nothing(),
        None => {
            // The later of the node's deletion and the pod's creation: a pod that is created for a missing node has its
            // own quarantine. A node from before the view counts as gone since the view started, as upstream.
            let lost_at = view.node_gone_at(node_name).unwrap_or_default().max(appeared_at);
            if let Some(plan) = wait(lost_at, QUARANTINE) {
                return plan;
            }
            let mut actions = vec![Action::ExpectGone { kind: Kind::of::<Node>(), key: node_key, uid: None }];
            let condition = PodCondition {
                type_: "DisruptionTarget".into(),
                status: "True".into(),
                reason: Some("DeletionByPodGC".into()),
                message: Some("PodGC: node no longer exists".into()),
                last_transition_time: Some(pods::stamp(context.now)),
                last_probe_time: None,
                observed_generation: pod.metadata.generation,
            };
            actions.extend(delete_pod(pod, Some(condition)));
            actions.into()
        }
    }
}

/// Marks a pod as failed, unless it is terminal, and deletes it.
fn delete_pod(pod: &Pod, condition: Option<PodCondition>) -> Vec<Action> {
    let key = key_of(&pod.metadata);
    let mut actions = Vec::new();
    if !pods::is_terminal(pod) {
        let mut conditions = pod.conditions();
        if let Some(condition) = condition {
            conditions::set(&mut conditions, condition);
        }
        let status = json!({
            "phase": "Failed", "observedGeneration": pod.metadata.generation, "conditions": value_of(&conditions)});
        actions.push(Action::Patch {
            kind: Kind::of::<Pod>(),
            key: key.clone(),
            patch: json!({"metadata": {"uid": pod.metadata.uid}, "status": status}),
            patch_type: PatchType::Merge,
            subresource: Some("status"),
        });
    }
    let mut delete = Action::delete(pod);
    if let Action::Delete { grace_seconds, .. } = &mut delete {
        *grace_seconds = Some(0);
    }
    actions.push(delete);
    actions
}

/// Deletes the oldest terminal pods beyond the limit.
fn too_many(view: &ObjectCache, context: &Context<'_, Settings>) -> Plan {
    let limit = context.settings.options.pods.terminated_max as usize;
    if limit == 0 {
        return Plan::nothing();
    }
    let mut ended: Vec<&Pod> =
        view.all::<Pod>().filter(|pod| pods::is_terminal(pod) && pod.metadata.deletion_timestamp.is_none()).collect();
    let surplus = ended.len().saturating_sub(limit);
    if surplus == 0 {
        return Plan::nothing();
    }
    let evicted = |pod: &Pod| pod.status.as_ref().and_then(|s| s.reason.as_deref()) == Some("Evicted");
    let created = |pod: &Pod| pod.metadata.creation_timestamp.as_ref().map(|t| t.0);
    ended.sort_by_key(|pod| (!evicted(pod), created(pod), pod.metadata.name.clone()));
    vec![Action::Concurrent(ended.iter().take(surplus).flat_map(|pod| delete_pod(pod, None)).collect())].into()
}

#[cfg(test)]
mod tests {
    use machinery_client::simulate::Simulation;
    use serde_json::Value;

    use super::*;
    use crate::table_tests::{decide, start};

    const NAME: &str = "pod-garbage-collector-controller";

    fn node() -> Value {
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"}})
    }

    /// A pod that is one day old.
    fn pod() -> Value {
        json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "p", "namespace": "a", "creationTimestamp": "2025-12-31T00:00:00Z"},
            "spec": {"nodeName": "n", "containers": [{"name": "c", "image": "i"}]}, "status": {"phase": "Running"}})
    }

    fn node_gone(simulation: &mut Simulation) {
        let node = simulation.view.get::<Node>(&ObjectKey::cluster("n")).map(Action::delete);
        assert_eq!(simulation.apply(node.into_iter().collect::<Vec<_>>().into()), Vec::<String>::new());
    }

    fn after(simulation: &mut Simulation, seconds: u64) -> Plan {
        simulation.now = start().saturating_add(Duration::from_secs(seconds)).unwrap();
        decide(NAME, simulation, &ObjectKey::new("a", "p"))
    }

    /// Upstream's quarantine: a node that is created again in time keeps its pods, however old they are.
    #[test]
    fn pods_of_a_node_that_is_gone_are_removed_forty_seconds_later() {
        let mut simulation = crate::simulation(start(), [node(), pod()]);
        assert_eq!(after(&mut simulation, 100), Plan::nothing());
        node_gone(&mut simulation);
        let plan = after(&mut simulation, 101);
        assert!(plan.actions.is_empty(), "{plan:?}");
        assert_eq!(plan.requeue_at, Some(start().saturating_add(Duration::from_secs(140)).unwrap()));
        assert!(after(&mut simulation, 139).actions.is_empty());
        let plan = after(&mut simulation, 140);
        let [Action::ExpectGone { .. }, Action::Patch { patch, .. }, Action::Delete { grace_seconds, .. }] =
            plan.actions.as_slice()
        else {
            panic!("{plan:?}")
        };
        assert_eq!(patch["status"]["conditions"][0]["reason"], "DeletionByPodGC");
        assert_eq!(*grace_seconds, Some(0));
        // The node exists again: the next loss starts a new quarantine.
        simulation.create(&Kind::of::<Node>(), node());
        assert_eq!(after(&mut simulation, 141), Plan::nothing());
        node_gone(&mut simulation);
        assert!(after(&mut simulation, 180).actions.is_empty());
        assert_eq!(after(&mut simulation, 181).actions.len(), 3);
    }

    /// A workload whose template names a missing node recreates its pods: each is new.
    #[test]
    fn a_pod_that_is_made_for_a_node_that_is_gone_has_a_quarantine_of_its_own() {
        let mut simulation = crate::simulation(start(), [node()]);
        node_gone(&mut simulation);
        simulation.now = start().saturating_add(Duration::from_secs(50)).unwrap();
        simulation.create(&Kind::of::<Pod>(), pod());
        for second in [50, 70, 89] {
            assert!(after(&mut simulation, second).actions.is_empty(), "{second}");
            // Status writes of other clients don't extend the quarantine.
            let mut reported =
                simulation.view.object(&Kind::of::<Pod>(), &ObjectKey::new("a", "p")).unwrap().to_value();
            reported["metadata"]["annotations"] = json!({"second": second.to_string()});
            simulation.write(&Kind::of::<Pod>(), reported);
        }
        assert_eq!(after(&mut simulation, 90).actions.len(), 3);
    }

    #[test]
    fn a_node_out_of_service_takes_a_new_pod_along_only_after_a_while() {
        let mut out = node();
        out["spec"] = json!({"taints": [{"key": OUT_OF_SERVICE, "effect": "NoExecute"}]});
        let mut simulation = crate::simulation(start(), [out]);
        simulation.now = start().saturating_add(Duration::from_secs(50)).unwrap();
        let mut going = pod();
        going["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:01:20Z");
        going["metadata"]["deletionGracePeriodSeconds"] = json!(30);
        going["metadata"]["finalizers"] = json!(["example.com/held"]);
        simulation.create(&Kind::of::<Pod>(), going);
        let plan = after(&mut simulation, 50);
        assert!(plan.actions.is_empty(), "{plan:?}");
        assert_eq!(plan.requeue_at, Some(start().saturating_add(Duration::from_secs(70)).unwrap()));
        assert_eq!(after(&mut simulation, 70).actions.len(), 2);
    }

    /// A node that was lost before the view started (a restart) counts as gone since then.
    #[test]
    fn a_node_that_was_never_seen_is_waited_for_since_its_pod_was_seen() {
        let mut simulation = crate::simulation(start(), [pod()]);
        assert!(after(&mut simulation, 39).actions.is_empty());
        assert_eq!(after(&mut simulation, 40).actions.len(), 3);
    }
}
