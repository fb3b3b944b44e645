//! `taint-eviction-controller`: evicts pods that don't tolerate the NoExecute taints of their node, or whose toleration
//! has expired (Kubernetes documentation, "Taint based Evictions").
//!
//! A toleration's time starts when the taint was added, and at the latest when this controller first saw taint and pod
//! together. The memory of a pod never delays its deadline. A new pod on a node with an old taint has its whole time.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, PodCondition, Taint, Toleration};
use machinery_api::ObjectKey;
use machinery_client::driver::own_key;
use machinery_client::{
    Action, BackOff, Change, Context, Controller, EventRecord, Input, ObjectCache, Plan, Pod, ReconcilerState, key_of,
    value_of,
};
use machinery_rules::placement;
use serde_json::json;

use crate::Settings;
use crate::{conditions, pods};

/// The key is a pod's.
pub(crate) const CONTROLLER: Controller<Settings> = Controller {
    name: "taint-eviction-controller",
    account: "node-controller",
    workers: 4,
    back_off: BackOff::DEFAULT,
    inputs: &[Input::of::<Pod>(own_key), Input::of::<Node>(of_node)],
    reconcile,
};

fn node_of(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref()
}

fn evicting(node: &Node) -> Vec<&Taint> {
    node.spec.iter().flat_map(|spec| spec.taints.iter().flatten()).filter(|taint| taint.effect == "NoExecute").collect()
}

/// The pods of a node whose NoExecute taints have changed.
fn of_node(view: &ObjectCache, change: &Change) -> Vec<ObjectKey> {
    let taints = |node: Option<&Node>| {
        node.map(|node| evicting(node).into_iter().cloned().collect::<Vec<_>>()).unwrap_or_default()
    };
    if taints(change.before()) == taints(change.after()) {
        return Vec::new();
    }
    view.on_node(&change.key.name).map(|pod| key_of(&pod.metadata)).collect()
}

/// The NoExecute taints of a pod's node, each with the monotonic time at which this controller first saw it together
/// with the pod.
#[derive(Debug, Clone, Default, PartialEq)]
struct SeenTaints {
    pod_uid: String,
    node: String,
    taints: Vec<(Taint, Duration)>,
}

impl SeenTaints {
    /// The taints now; for the same pod on the same node, known taints keep their time.
    fn update(before: Option<&Self>, pod: &Pod, node: &str, taints: &[&Taint], elapsed: Duration) -> Self {
        let pod_uid = pod.metadata.uid.clone().unwrap_or_default();
        let before = before.filter(|before| before.pod_uid == pod_uid && before.node == node);
        let since = |taint: &Taint| {
            let same = |known: &&(Taint, Duration)| known.0 == *taint;
            before.and_then(|before| before.taints.iter().find(same)).map_or(elapsed, |(_, at)| *at)
        };
        let taints = taints.iter().map(|taint| ((*taint).clone(), since(taint))).collect();
        Self { pod_uid, node: node.to_owned(), taints }
    }
}

fn reconcile(view: &ObjectCache, key: &ObjectKey, context: &Context<'_, Settings>) -> Plan {
    let Some(pod) = view.get::<Pod>(key).filter(|pod| pods::is_active(pod)) else { return Plan::nothing() };
    let Some(name) = node_of(pod) else { return Plan::nothing() };
    let Some(node) = view.get::<Node>(&ObjectKey::cluster(name)) else { return Plan::nothing() };
    let taints = evicting(node);
    if taints.is_empty() {
        return Plan::nothing();
    }
    let tolerations: Vec<&Toleration> =
        pod.spec.iter().flat_map(|spec| spec.shape.tolerations.iter().flatten()).collect();
    let seen = SeenTaints::update(context.reconciler_cache.of::<SeenTaints>(key), pod, name, &taints, context.elapsed);
    let clock = TolerationClock { now: context.now, elapsed: context.elapsed, placed: placed_at(pod) };
    let mut plan = Plan::nothing();
    match evict_in(&seen.taints, &tolerations, &clock) {
        None => {}
        Some(wait) if !wait.is_zero() => plan.requeue_after(context.now, wait),
        Some(_) => {
            let note = EventRecord::normal(pod, "TaintManagerEviction", format!("Marking for deletion Pod {key}"));
            plan.push(Action::Event(note));
            plan.push(disrupted(pod, context.now));
            plan.push(Action::delete(pod));
        }
    }
    plan.state = Some(ReconcilerState::of(seen));
    plan
}

/// When a pod was bound, by its status: a toleration's time can't start before.
fn placed_at(pod: &Pod) -> Timestamp {
    let mut conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let placed = conditions.find(|c| c.type_ == "PodScheduled" && c.status == "True");
    let placed = placed.and_then(|condition| condition.last_transition_time.as_ref());
    placed.or(pod.metadata.creation_timestamp.as_ref()).map_or(Timestamp::MIN, |at| at.0)
}

/// The time references of tolerations.
struct TolerationClock {
    now: Timestamp,
    elapsed: Duration,
    /// When the pod was bound.
    placed: Timestamp,
}

impl TolerationClock {
    /// How long ago a toleration's time started.
    fn age(&self, taint: &Taint, seen_at: Duration) -> Duration {
        let seen = self.elapsed.saturating_sub(seen_at);
        let Some(added) = &taint.time_added else { return seen };
        let reported = Duration::try_from(self.now.duration_since(added.0.max(self.placed))).unwrap_or_default();
        reported.max(seen)
    }
}

/// How long a pod may stay: zero with an untolerated taint, else the shortest toleration; none if no toleration
/// expires.
fn evict_in(taints: &[(Taint, Duration)], tolerations: &[&Toleration], clock: &TolerationClock) -> Option<Duration> {
    let mut leaves: Option<Duration> = None;
    for (taint, seen_at) in taints {
        let matching: Vec<_> = tolerations.iter().filter(|toleration| tolerates(toleration, taint)).collect();
        if matching.is_empty() {
            return Some(Duration::ZERO);
        }
        let shortest = matching.iter().filter_map(|toleration| toleration.toleration_seconds).min();
        if let Some(seconds) = shortest {
            let tolerated = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
            let left = tolerated.saturating_sub(clock.age(taint, *seen_at));
            leaves = Some(leaves.map_or(left, |known| known.min(left)));
        }
    }
    leaves
}

fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    placement::tolerates(
        placement::Toleration {
            key: toleration.key.as_deref().unwrap_or_default(),
            operator: toleration.operator.as_deref().unwrap_or_default(),
            value: toleration.value.as_deref().unwrap_or_default(),
            effect: toleration.effect.as_deref().unwrap_or_default(),
        },
        placement::Taint { key: &taint.key, value: taint.value.as_deref().unwrap_or_default(), effect: &taint.effect },
    )
}

/// Sets the `DisruptionTarget` condition of an evicted pod (KEP-3329).
fn disrupted(pod: &Pod, now: Timestamp) -> Action {
    let mut conditions = pod.conditions();
    let condition = PodCondition {
        type_: "DisruptionTarget".into(),
        status: "True".into(),
        reason: Some("DeletionByTaintManager".into()),
        message: Some("Taint manager: deleting due to NoExecute taint".into()),
        last_transition_time: Some(pods::stamp(now)),
        ..PodCondition::default()
    };
    conditions::set(&mut conditions, condition);
    let mut patch = Action::patch(
        pod,
        json!({"status": {"conditions": value_of(&conditions)}, "metadata": {"uid": pod.metadata.uid}}),
    );
    if let Action::Patch { subresource, .. } = &mut patch {
        *subresource = Some("status");
    }
    patch
}

#[cfg(test)]
mod tests {
    use machinery_client::simulate::Simulation;
    use serde_json::Value;

    use super::*;
    use crate::table_tests::{decide, start};

    #[test]
    fn the_shortest_toleration_of_all_taints_decides() {
        let taint = |key: &str, added: &str| -> (Taint, Duration) {
            let taint = json!({"key": key, "effect": "NoExecute", "timeAdded": added});
            (serde_json::from_value(taint).unwrap(), Duration::ZERO)
        };
        let toleration = |value| -> Toleration { serde_json::from_value(value).unwrap() };
        let now: Timestamp = "2026-01-01T00:10:00Z".parse().unwrap();
        let clock = TolerationClock { now, elapsed: Duration::ZERO, placed: Timestamp::MIN };
        let leaves = |taints: &[(Taint, Duration)], tolerations: &[&Toleration]| {
            evict_in(taints, tolerations, &clock).map(|wait| wait.as_secs())
        };
        let (a, b) = (taint("a", "2026-01-01T00:09:00Z"), taint("b", "2026-01-01T00:09:30Z"));
        let long = toleration(json!({"key": "a", "operator": "Exists", "tolerationSeconds": 300}));
        let short = toleration(json!({"operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 60}));
        let ever = toleration(json!({"operator": "Exists"}));
        assert_eq!(leaves(&[], &[]), None);
        assert_eq!(leaves(std::slice::from_ref(&a), &[]), Some(0));
        assert_eq!(leaves(std::slice::from_ref(&a), &[&long]), Some(240));
        assert_eq!(leaves(&[a.clone(), b.clone()], &[&long]), Some(0), "b is not tolerated");
        assert_eq!(leaves(std::slice::from_ref(&b), &[&long, &short]), Some(30));
        assert_eq!(leaves(&[a.clone(), b.clone()], &[&long, &short]), Some(0));
        assert_eq!(leaves(&[a, b], &[&ever]), None);
        // As in the scheduler: a pod that was bound with this toleration is not evicted at once.
        let numbered: Taint = serde_json::from_value(json!({"key": "n", "value": "5", "effect": "NoExecute"})).unwrap();
        let above = toleration(json!({"key": "n", "operator": "Gt", "value": "4"}));
        assert_eq!(leaves(&[(numbered, Duration::ZERO)], &[&above]), None);
    }

    /// Runs passes over a pod that tolerates everything for a minute.
    struct Play {
        simulation: Simulation,
    }

    impl Play {
        fn new(taint: &Value) -> Self {
            let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"},
                "spec": {"taints": [taint]}});
            Self { simulation: crate::simulation(start(), [node, pod("2026-01-01T00:00:00Z")]) }
        }

        /// The second of the pod's next pass; none if it is evicted.
        fn at(&mut self, second: u64) -> Option<i64> {
            let key = ObjectKey::new("a", "p");
            self.simulation.now = start().saturating_add(Duration::from_secs(second)).unwrap();
            let plan = decide(CONTROLLER.name, &self.simulation, &key);
            self.simulation.reconciler_cache.set(&key, plan.state.clone());
            let goes = plan.actions.iter().any(|action| matches!(action, Action::Delete { .. }));
            let next = plan.requeue_at.map(|at| at.as_second() - start().as_second());
            assert_eq!(goes, next.is_none(), "{plan:?}");
            next
        }

        fn write(&mut self, object: Value) {
            let kind = self.simulation.kind_of(&object);
            self.simulation.write(&kind, object);
        }
    }

    fn pod(created: &str) -> Value {
        json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "p", "namespace": "a", "uid": "u", "creationTimestamp": created},
            "spec": {"nodeName": "n", "containers": [{"name": "c", "image": "i"}],
                "tolerations": [{"operator": "Exists", "tolerationSeconds": 60}]},
            "status": {"phase": "Running"}})
    }

    /// A taint by `kubectl taint` or a patch has no time: its time starts when the taint is seen, whatever comes later.
    #[test]
    fn the_time_of_a_taint_without_a_time_ends() {
        let mut play = Play::new(&json!({"key": "k", "effect": "NoExecute"}));
        assert_eq!(play.at(100), Some(160));
        for second in [101, 130, 159] {
            let mut reported = pod("2026-01-01T00:00:00Z");
            reported["metadata"]["annotations"] = json!({"second": second.to_string()});
            play.write(reported);
            assert_eq!(play.at(second), Some(160), "what others write of the pod moves nothing");
        }
        assert_eq!(play.at(160), None);
    }

    #[test]
    fn another_pod_of_the_name_and_another_taint_have_their_own_time() {
        let taint = |key: &str| json!({"key": key, "effect": "NoExecute"});
        let mut play = Play::new(&taint("k"));
        assert_eq!(play.at(100), Some(160));
        let mut next = pod("2026-01-01T00:01:50Z");
        next["metadata"]["uid"] = json!("v");
        play.write(next);
        assert_eq!(play.at(130), Some(190));
        let node = |taints: Value| {
            json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"},
            "spec": {"taints": taints}})
        };
        play.write(node(json!([taint("k"), taint("l")])));
        assert_eq!(play.at(140), Some(190), "the first one's is over first");
        play.write(node(json!([taint("l")])));
        assert_eq!(play.at(150), Some(200));
        assert_eq!(play.at(200), None);
    }

    /// The time in a taint counts across restarts, but not from before the pod's binding, and never beyond what was
    /// seen.
    #[test]
    fn a_written_time_counts_from_when_the_pod_was_there() {
        let mut play = Play::new(&json!({"key": "k", "effect": "NoExecute", "timeAdded": "2026-01-01T00:00:10Z"}));
        assert_eq!(play.at(30), Some(70), "it was added 20 s ago, by a controller that is gone");
        let old = json!({"key": "k", "effect": "NoExecute", "timeAdded": "2025-12-31T00:00:00Z"});
        let mut play = Play::new(&old);
        assert_eq!(play.at(5), Some(60), "the pod came at 0");
        let mut play = Play::new(&json!({"key": "k", "effect": "NoExecute", "timeAdded": "2099-01-01T00:00:00Z"}));
        assert_eq!(play.at(30), Some(90), "a time to come is no reprieve");
        assert_eq!(play.at(90), None);
    }
}
