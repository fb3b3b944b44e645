//! `taint-eviction-controller`: pods leave a node whose NoExecute taints they don't tolerate, or no longer
//! (Kubernetes documentation, "Taint based Evictions").

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, PodCondition, Taint, Toleration};
use machinery_api::{ObjectKey, placement};
use machinery_client::driver::own_key;
use machinery_client::{
    Action, BackOff, Change, Context, Controller, EventRecord, Input, ObjectCache, Plan, Pod, key_of, value_of,
};
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

fn reconcile(view: &ObjectCache, key: &ObjectKey, context: &Context<'_, Settings>) -> Plan {
    let Some(pod) = view.get::<Pod>(key).filter(|pod| pods::is_active(pod)) else { return Plan::nothing() };
    let Some(node) = node_of(pod).and_then(|name| view.get::<Node>(&ObjectKey::cluster(name))) else {
        return Plan::nothing();
    };
    let tolerations: Vec<&Toleration> =
        pod.spec.iter().flat_map(|spec| spec.shape.tolerations.iter().flatten()).collect();
    let mut plan = Plan::nothing();
    match leaves_at(&evicting(node), &tolerations, context.now) {
        None => {}
        Some(at) if at > context.now => plan.revisit(at),
        Some(_) => {
            let note = EventRecord::normal(pod, "TaintManagerEviction", format!("Marking for deletion Pod {key}"));
            plan.push(Action::Event(note));
            plan.push(disrupted(pod, context.now));
            plan.push(Action::delete(pod));
        }
    }
    plan
}

/// When a pod has to leave: at once for a taint that it doesn't tolerate, else after the shortest toleration of all.
fn leaves_at(taints: &[&Taint], tolerations: &[&Toleration], now: Timestamp) -> Option<Timestamp> {
    let mut leaves: Option<Timestamp> = None;
    for taint in taints {
        let matching: Vec<_> = tolerations.iter().filter(|toleration| tolerates(toleration, taint)).collect();
        if matching.is_empty() {
            return Some(now);
        }
        let since = taint.time_added.as_ref().map_or(now, |at| at.0);
        let shortest = matching.iter().filter_map(|toleration| toleration.toleration_seconds).min();
        if let Some(seconds) = shortest {
            let at = since
                .saturating_add(Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
                .unwrap_or(Timestamp::MAX);
            leaves = Some(leaves.map_or(at, |known| known.min(at)));
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

/// Says on the pod why it goes (KEP-3329).
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
    use super::*;

    #[test]
    fn the_shortest_toleration_of_all_taints_decides() {
        let taint = |key: &str, added: &str| -> Taint {
            serde_json::from_value(json!({"key": key, "effect": "NoExecute", "timeAdded": added})).unwrap()
        };
        let toleration = |value| -> Toleration { serde_json::from_value(value).unwrap() };
        let now: Timestamp = "2026-01-01T00:10:00Z".parse().unwrap();
        let (a, b) = (taint("a", "2026-01-01T00:09:00Z"), taint("b", "2026-01-01T00:09:30Z"));
        let long = toleration(json!({"key": "a", "operator": "Exists", "tolerationSeconds": 300}));
        let short = toleration(json!({"operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 60}));
        let ever = toleration(json!({"operator": "Exists"}));
        let at = |text: &str| Some(text.parse().unwrap());
        assert_eq!(leaves_at(&[], &[], now), None);
        assert_eq!(leaves_at(&[&a], &[], now), Some(now));
        assert_eq!(leaves_at(&[&a], &[&long], now), at("2026-01-01T00:14:00Z"));
        assert_eq!(leaves_at(&[&a, &b], &[&long], now), Some(now), "b is not tolerated");
        assert_eq!(leaves_at(&[&a, &b], &[&long, &short], now), at("2026-01-01T00:10:00Z"));
        assert_eq!(leaves_at(&[&a, &b], &[&ever], now), None);
        // As the scheduler sees it: a pod that was placed for this is not evicted at once.
        let numbered: Taint = serde_json::from_value(json!({"key": "n", "value": "5", "effect": "NoExecute"})).unwrap();
        let above = toleration(json!({"key": "n", "operator": "Gt", "value": "4"}));
        assert_eq!(leaves_at(&[&numbered], &[&above], now), None);
    }
}
