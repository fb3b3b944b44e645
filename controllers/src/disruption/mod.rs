//! `disruption-controller`: writes the number of allowed disruptions of each PodDisruptionBudget into its status
//! (<https://kubernetes.io/docs/concepts/workloads/pods/disruptions/>). The eviction API reads that status.

mod size;

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::ReplicationController;
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use machinery_api::ObjectKey;
use machinery_client::driver::own_key;
use machinery_client::selector::selects;
use machinery_client::{
    Action, BackOff, Change, Context, Controller, EventRecord, Input, ObjectCache, Pass, Plan, Pod, key_of,
};

use crate::Settings;
use crate::int_or_percent::{Round, scaled_value};
use crate::pods;
use crate::scale::Stop;

/// How long an eviction counts while its pod still exists (upstream's).
const DELETION_TIMEOUT: SignedDuration = SignedDuration::from_mins(2);
/// The component of its events (upstream's).
const COMPONENT: &str = "controllermanager";
const ALLOWED: &str = "DisruptionAllowed";

pub(crate) const CONTROLLER: Controller<Settings> = Controller {
    name: "disruption-controller",
    account: "disruption-controller",
    workers: 5,
    back_off: BackOff::DEFAULT,
    inputs: &[
        Input::of::<PodDisruptionBudget>(own_key),
        Input::of::<Pod>(of_pod),
        Input::of::<ReplicaSet>(of_controller),
        Input::of::<Deployment>(of_controller),
        Input::of::<StatefulSet>(of_controller),
        Input::of::<ReplicationController>(of_controller),
    ],
    reconcile,
};

/// The budgets that select or selected the pod.
fn of_pod(view: &ObjectCache, change: &Change) -> Vec<ObjectKey> {
    let budgets = view.list::<PodDisruptionBudget>(&change.key.namespace);
    let chosen = budgets.filter(|budget| change.states().any(|pod| chooses(budget, pod.labels.as_ref())));
    chosen.map(|budget| key_of(&budget.metadata)).collect()
}

/// The budgets in the namespace of a resized workload whose desired count depends on its size.
fn of_controller(view: &ObjectCache, change: &Change) -> Vec<ObjectKey> {
    let budgets = view.list::<PodDisruptionBudget>(&change.key.namespace);
    let scaled = budgets.filter(|budget| {
        let spec = budget.spec.as_ref();
        spec.is_some_and(|s| s.max_unavailable.is_some() || matches!(s.min_available, Some(IntOrString::String(_))))
    });
    scaled.map(|budget| key_of(&budget.metadata)).collect()
}

fn chooses(budget: &PodDisruptionBudget, labels: Option<&BTreeMap<String, String>>) -> bool {
    let selector = budget.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    selector.is_some_and(|selector| selects(selector, labels))
}

fn reconcile(view: &ObjectCache, key: &ObjectKey, context: &Context<'_, Settings>) -> Plan {
    let Some(budget) = view.get::<PodDisruptionBudget>(key) else { return Plan::nothing() };
    let selector = budget.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    let chosen: Vec<&Pod> = selector.map(|selector| view.chosen(&key.namespace, selector)).unwrap_or_default();
    let old = budget.status.clone().unwrap_or_default();
    let mut plan = Plan::nothing();
    let counted = match expected(view, context.pass, budget, &chosen) {
        Ok(counted) => counted,
        Err(Stop::Ask(effects)) => return Plan { effects, ..plan },
        Err(Stop::Failed(why)) => {
            // Uncertain counts allow no evictions.
            let status = PodDisruptionBudgetStatus {
                disruptions_allowed: Some(0),
                conditions: condition(&old, "SyncFailed", &why, old.observed_generation, context.now),
                ..old.clone()
            };
            if status != old {
                let message = format!("Failed to calculate the number of expected pods: {why}");
                let event = EventRecord::warning(budget, "CalculateExpectedPodCountFailed", message).from(COMPONENT);
                plan.push(Action::Event(event));
                plan.push(Action::update_status(&PodDisruptionBudget { status: Some(status), ..budget.clone() }));
            }
            return plan;
        }
    };
    let (disrupted, late) = disrupted(&old, &chosen, context.now);
    let healthy = chosen.iter().filter(|pod| {
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        pod.metadata.deletion_timestamp.is_none() && !disrupted.contains_key(name) && pods::is_ready(pod)
    });
    let status = status(budget, &old, &counted, count(healthy.count()), disrupted, context.now);
    next_expiry(&status).into_iter().for_each(|at| plan.revisit(at));
    if normal(status.clone()) == normal(old) {
        return plan;
    }
    for pod in late {
        let message = format!("Pod was expected by PDB {key} to be deleted but it wasn't");
        plan.push(Action::Event(EventRecord::warning(pod, "NotDeleted", message).from(COMPONENT)));
    }
    if chosen.is_empty() {
        plan.push(Action::Event(EventRecord::normal(budget, "NoPods", "No matching pods found").from(COMPONENT)));
    }
    if counted.unmanaged {
        let message = "Pods selected by this PodDisruptionBudget were found to be unmanaged. As a result, the status of the PDB \
                       cannot be calculated correctly, which may result in undefined behavior. To account for these pods please \
                       set \".spec.minAvailable\" field of the PDB to an integer value.";
        plan.push(Action::Event(EventRecord::warning(budget, "UnmanagedPods", message).from(COMPONENT)));
    }
    plan.push(Action::update_status(&PodDisruptionBudget { status: Some(status), ..budget.clone() }));
    plan
}

/// The expected number of pods, and the desired number of healthy ones.
struct ExpectedPods {
    expected: i32,
    desired: i32,
    /// Whether some pods have no controller, and so no expected size.
    unmanaged: bool,
}

fn count(n: usize) -> i32 {
    i32::try_from(n).unwrap_or(i32::MAX)
}

fn expected(
    view: &ObjectCache,
    pass: &Pass,
    budget: &PodDisruptionBudget,
    chosen: &[&Pod],
) -> Result<ExpectedPods, Stop> {
    let spec = budget.spec.as_ref();
    if let Some(most) = spec.and_then(|spec| spec.max_unavailable.as_ref()) {
        let (expected, unmanaged) = size::sum(view, pass, chosen)?;
        let desired = expected.saturating_sub(scaled_value(most, expected, Round::Up)).max(0);
        return Ok(ExpectedPods { expected, desired, unmanaged });
    }
    match spec.and_then(|spec| spec.min_available.as_ref()) {
        Some(IntOrString::Int(desired)) => {
            Ok(ExpectedPods { expected: count(chosen.len()), desired: *desired, unmanaged: false })
        }
        Some(least) => {
            let (expected, unmanaged) = size::sum(view, pass, chosen)?;
            Ok(ExpectedPods { expected, desired: scaled_value(least, expected, Round::Up), unmanaged })
        }
        None => Ok(ExpectedPods { expected: 0, desired: 0, unmanaged: false }),
    }
}

/// Evictions that still count, and the pods whose eviction expired.
fn disrupted<'a>(
    old: &PodDisruptionBudgetStatus,
    chosen: &[&'a Pod],
    now: Timestamp,
) -> (BTreeMap<String, Time>, Vec<&'a Pod>) {
    let (mut kept, mut late) = (BTreeMap::new(), Vec::new());
    for pod in chosen.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()) {
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        let Some(since) = old.disrupted_pods.as_ref().and_then(|pods| pods.get(name)) else { continue };
        if ends(since) < now {
            late.push(*pod);
        } else {
            kept.insert(name.to_owned(), since.clone());
        }
    }
    (kept, late)
}

fn ends(since: &Time) -> Timestamp {
    since.0.saturating_add(DELETION_TIMEOUT).unwrap_or(Timestamp::MAX)
}

/// When the first eviction expires.
fn next_expiry(status: &PodDisruptionBudgetStatus) -> Option<Timestamp> {
    let first = status.disrupted_pods.iter().flatten().map(|(_, since)| ends(since)).min();
    first.map(|at| at.saturating_add(SignedDuration::from_millis(1)).unwrap_or(at))
}

fn status(
    budget: &PodDisruptionBudget,
    old: &PodDisruptionBudgetStatus,
    counted: &ExpectedPods,
    healthy: i32,
    disrupted: BTreeMap<String, Time>,
    now: Timestamp,
) -> PodDisruptionBudgetStatus {
    // A budget that selects nothing allows nothing: its first pods may not be in the view yet.
    let free = healthy.saturating_sub(counted.desired).max(0);
    let allowed = if counted.expected > 0 { free } else { 0 };
    let generation = budget.metadata.generation;
    let reason = if allowed > 0 { "SufficientPods" } else { "InsufficientPods" };
    PodDisruptionBudgetStatus {
        current_healthy: Some(healthy),
        desired_healthy: Some(counted.desired),
        expected_pods: Some(counted.expected),
        disruptions_allowed: Some(allowed),
        disrupted_pods: (!disrupted.is_empty()).then_some(disrupted),
        observed_generation: generation,
        conditions: condition(old, reason, "", generation, now),
    }
}

fn condition(
    old: &PodDisruptionBudgetStatus,
    reason: &str,
    message: &str,
    generation: Option<i64>,
    now: Timestamp,
) -> Option<Vec<Condition>> {
    let mut conditions = old.conditions.clone().unwrap_or_default();
    let status = if reason == "SufficientPods" { "True" } else { "False" };
    let known = conditions.iter().find(|known| known.type_ == ALLOWED && known.status == status);
    let last_transition_time = known.map_or_else(|| pods::stamp(now), |known| known.last_transition_time.clone());
    let new = Condition {
        type_: ALLOWED.into(),
        status: status.into(),
        reason: reason.into(),
        message: message.into(),
        observed_generation: generation,
        last_transition_time,
    };
    match conditions.iter_mut().find(|known| known.type_ == ALLOWED) {
        Some(known) => *known = new,
        None => conditions.push(new),
    }
    Some(conditions)
}

/// For comparison: absent and empty are equal.
fn normal(mut status: PodDisruptionBudgetStatus) -> PodDisruptionBudgetStatus {
    status.disrupted_pods = status.disrupted_pods.filter(|pods| !pods.is_empty());
    status
}

#[cfg(test)]
mod tests {
    use machinery_client::simulate::Simulation;
    use serde_json::{Value, json};

    use super::*;
    use crate::table_tests::{decide, start};

    fn budget(spec: Value) -> Value {
        let mut spec = spec;
        spec["selector"] = json!({"matchLabels": {"app": "web"}});
        json!({"apiVersion": "policy/v1", "kind": "PodDisruptionBudget",
            "metadata": {"name": "b", "namespace": "a", "uid": "b", "generation": 2}, "spec": spec})
    }

    fn pod(name: &str, ready: &str, owner: &str) -> Value {
        json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": "a", "uid": name, "labels": {"app": "web"},
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": owner, "uid": owner, "controller": true}]},
            "spec": {"containers": [{"name": "c", "image": "i"}]},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": ready}]}})
    }

    fn workload(kind: &str, name: &str, replicas: i32, above: Option<&str>) -> Value {
        let owners: Vec<Value> = above
            .map(|above| json!({"apiVersion": "apps/v1", "kind": "Deployment", "name": above, "uid": above, "controller": true}))
            .into_iter()
            .collect();
        json!({"apiVersion": "apps/v1", "kind": kind,
            "metadata": {"name": name, "namespace": "a", "uid": name, "ownerReferences": owners},
            "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "web"}},
                "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": []}}}})
    }

    /// Expected, desired, healthy, allowed, and the condition's reason.
    fn judged(objects: Vec<Value>) -> (i64, i64, i64, i64, String) {
        let simulation = crate::simulation(start(), objects);
        let plan = decide("disruption-controller", &simulation, &ObjectKey::new("a", "b"));
        let Some(Action::Update { object, subresource: Some("status"), .. }) = plan.actions.last() else {
            panic!("{:?}", plan.actions)
        };
        let number = |field: &str| object["status"][field].as_i64().unwrap_or(0);
        let reason = object["status"]["conditions"][0]["reason"].as_str().unwrap().to_owned();
        let figures = ["expectedPods", "desiredHealthy", "currentHealthy", "disruptionsAllowed"].map(number);
        (figures[0], figures[1], figures[2], figures[3], reason)
    }

    #[test]
    fn allowed_disruptions_are_healthy_pods_beyond_the_minimum() {
        let two = || {
            vec![
                workload("Deployment", "web", 4, None),
                workload("ReplicaSet", "old", 1, Some("web")),
                workload("ReplicaSet", "new", 3, Some("web")),
                pod("p1", "True", "old"),
                pod("p2", "True", "new"),
                pod("p3", "True", "new"),
                pod("p4", "False", "new"),
            ]
        };
        let with = |spec: Value| judged(two().into_iter().chain([budget(spec)]).collect());
        let many = "SufficientPods".to_owned();
        assert_eq!(with(json!({"minAvailable": 2})), (4, 2, 3, 1, many.clone()));
        assert_eq!(with(json!({"maxUnavailable": 1})), (4, 3, 3, 0, "InsufficientPods".into()));
        assert_eq!(with(json!({"maxUnavailable": "50%"})), (4, 2, 3, 1, many.clone()));
        assert_eq!(with(json!({"minAvailable": "30%"})), (4, 2, 3, 1, many), "rounded up");
        assert_eq!(judged(vec![budget(json!({"minAvailable": 0}))]), (0, 0, 0, 0, "InsufficientPods".into()));
    }

    #[test]
    fn an_eviction_counts_until_its_pod_is_gone_or_two_minutes_have_passed() {
        let of = |since: &str| {
            let mut budget = budget(json!({"minAvailable": 1}));
            budget["status"] = json!({"currentHealthy": 0, "desiredHealthy": 0, "expectedPods": 0, "disruptionsAllowed": 0,
                "disruptedPods": {"p1": since}});
            vec![budget, pod("p1", "True", "s"), pod("p2", "True", "s")]
        };
        assert_eq!(judged(of("2025-12-31T23:59:00Z")).2, 1);
        assert_eq!(judged(of("2025-12-31T23:57:00Z")).2, 2);
        let simulation: Simulation = crate::simulation(start(), of("2025-12-31T23:57:00Z"));
        let plan = decide("disruption-controller", &simulation, &ObjectKey::new("a", "b"));
        let Some(Action::Event(event)) = plan.actions.first() else { panic!("{:?}", plan.actions) };
        assert_eq!(event.reason, "NotDeleted");
    }

    #[test]
    fn a_pod_whose_controller_is_not_known_lets_nothing_go() {
        let objects = vec![budget(json!({"maxUnavailable": 1})), pod("p1", "True", "gone")];
        assert_eq!(judged(objects).4, "SyncFailed");
    }
}
