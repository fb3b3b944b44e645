//! `replicaset-controller`: keeps the number of pods of a template. ReplicationControllers share the decision through
//! [`Replicated`].

use std::borrow::Cow;
use std::cmp::{Ordering, Reverse};
use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus};
use machinery_api::ObjectKey;
use machinery_client::driver::own_key;
use machinery_client::selector::{Labels, contains, selects};
use machinery_client::{
    Action, BackOff, Change, Context, Controller, EventRecord, Input, Object, ObjectCache, Plan, Pod, ReconcilerState,
    Typed, controlled_by, controller_of, key_of,
};

use crate::Settings;
use crate::pods;
use crate::replacement::Replacement;

/// The condition for failed creations or deletions of pods.
const REPLICA_FAILURE: &str = "ReplicaFailure";
/// The maximum number of pods created or deleted in one pass (upstream's burst).
const BURST_PODS: usize = 500;
const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

pub(crate) const CONTROLLER: Controller<Settings> = Controller {
    name: "replicaset-controller",
    account: "replicaset-controller",
    workers: 5,
    back_off: BackOff::DEFAULT,
    inputs: &[Input::of::<ReplicaSet>(own_key), Input::of::<Pod>(of_pod::<ReplicaSet>)],
    reconcile: reconcile::<ReplicaSet>,
};

/// A kind with a number of replicas of a template.
pub(crate) trait Replicated: Typed {
    /// The component of events, if it isn't the controller's name.
    const SOURCE: Option<&'static str>;
    /// Whether its status counts terminating pods.
    const COUNTS_TERMINATING: bool;

    /// The ReplicaSet form; none without a spec.
    fn as_set(&self) -> Option<Cow<'_, ReplicaSet>>;

    /// Whether its selector matches the labels.
    fn chooses(&self, labels: Option<&Labels>) -> bool;

    /// A copy with this status.
    fn with_status(&self, status: ReplicaSetStatus) -> Self;
}

impl Replicated for ReplicaSet {
    const SOURCE: Option<&'static str> = None;
    const COUNTS_TERMINATING: bool = true;

    fn as_set(&self) -> Option<Cow<'_, ReplicaSet>> {
        self.spec.is_some().then_some(Cow::Borrowed(self))
    }

    fn chooses(&self, labels: Option<&Labels>) -> bool {
        self.spec.as_ref().is_some_and(|spec| selects(&spec.selector, labels))
    }

    fn with_status(&self, status: ReplicaSetStatus) -> Self {
        Self { status: Some(status), ..self.clone() }
    }
}

/// The objects that own or owned the pod; for an orphan, the objects that may adopt it.
pub(crate) fn of_pod<K: Replicated>(view: &ObjectCache, change: &Change) -> Vec<ObjectKey> {
    let namespace = &change.key.namespace;
    let mut keys: Vec<ObjectKey> = change
        .states()
        .filter_map(controller_of)
        .filter(|owner| owner.kind == K::KIND)
        .map(|owner| ObjectKey::new(&**namespace, &*owner.name))
        .collect();
    if let Some(pod) = change.after::<Pod>()
        && controller_of(&pod.metadata).is_none()
    {
        let willing = view.list::<K>(namespace).filter(|set| set.chooses(pod.metadata.labels.as_ref()));
        keys.extend(willing.map(|set| key_of(Object::metadata(set))));
    }
    keys.dedup();
    keys
}

pub(crate) fn reconcile<K: Replicated>(view: &ObjectCache, key: &ObjectKey, context: &Context<'_, Settings>) -> Plan {
    let Some(owner) = view.get::<K>(key) else { return Plan::nothing() };
    let Some(set) = owner.as_set() else { return Plan::nothing() };
    let set = &*set;
    let Some(spec) = &set.spec else { return Plan::nothing() };
    let uid = set.metadata.uid.as_deref().unwrap_or_default();
    let going = set.metadata.deletion_timestamp.is_some();
    let mut plan = Plan::nothing();

    let chooses = |pod: &Pod| owner.chooses(pod.metadata.labels.as_ref());
    let (mine, strange): (Vec<&Pod>, Vec<&Pod>) = view.controlled::<Pod>(uid).partition(|pod| chooses(pod));
    let mut active: Vec<&Pod> = mine.iter().copied().filter(|pod| pods::is_active(pod)).collect();
    let terminating = K::COUNTS_TERMINATING.then(|| mine.iter().filter(|pod| pods::is_terminating(pod)).count());
    if !going {
        plan.actions.extend(strange.iter().filter(|pod| pods::is_active(pod)).map(|pod| pods::release(*pod)));
        let orphans = view.uncontrolled::<Pod>(&key.namespace);
        let orphans: Vec<&Pod> = orphans.filter(|pod| pods::is_active(pod) && chooses(pod)).collect();
        plan.actions.extend(pods::adopt(owner, orphans.iter().copied()));
        active.extend(orphans);
    }

    let wanted = usize::try_from(spec.replicas.unwrap_or(1)).unwrap_or(0);
    let missing = if going { 0 } else { wanted.saturating_sub(active.len()) };
    let known = context.reconciler_cache.of::<Replacement>(key);
    let (allowed, replacement) = Replacement::next(known, view, uid, (missing, wanted), context.elapsed);
    allowed.next_in.into_iter().for_each(|wait| plan.requeue_after(context.now, wait));
    let scaling = if going { None } else { scale(view, owner, set, &active, (wanted, allowed.pods), context.now) };
    let update = |status: &ReplicaSetStatus| {
        let differs = normal(set.status.clone().unwrap_or_default()) != normal(status.clone());
        differs.then(|| Action::update_status(&owner.with_status(status.clone())))
    };
    // If pods are about to change, the next pass writes the status. If that fails, the status can't wait for them.
    let scaling = match scaling {
        None => {
            let status = status(set, &active, terminating, context, None);
            plan.may_wait = plan.actions.is_empty() && is_progress(set.status.as_ref(), &status);
            plan.actions.extend(update(&status));
            None
        }
        Some(scaling) => {
            let reason = if active.len() < wanted { "FailedCreate" } else { "FailedDelete" };
            let failing = status(set, &active, terminating, context, Some(reason));
            let at = failing.conditions.iter().flatten().position(|c| c.type_ == REPLICA_FAILURE).unwrap_or_default();
            let message_at = format!("/status/conditions/{at}/message");
            Some(match update(&failing) {
                Some(update) => scaling.reporting(update, message_at),
                None => scaling,
            })
        }
    };
    let first = set.status.as_ref().and_then(|s| s.observed_generation).unwrap_or(0) == 0;
    if first && active.len() < wanted && !going {
        // An orphan to adopt may have been created just before.
        plan.push(pods::require_fresh_cache::<Pod>(view, &key.namespace, &spec.selector));
    }
    plan.actions.extend(scaling);
    let min_ready = spec.min_ready_seconds.unwrap_or(0);
    let upcoming = active.iter().filter_map(|pod| pods::available_at(pod, min_ready)).filter(|at| *at > context.now);
    upcoming.for_each(|at| plan.revisit(at));
    plan.state = Replacement::noted(replacement, uid, &plan, view, context.elapsed).map(ReconcilerState::of);
    plan
}

/// Creates missing or deletes surplus pods; creations are limited to `allowed`.
fn scale<K: Replicated>(
    view: &ObjectCache,
    owner: &K,
    set: &ReplicaSet,
    active: &[&Pod],
    (wanted, allowed): (usize, usize),
    now: Timestamp,
) -> Option<Action> {
    let from_source = |event: EventRecord| Some(EventRecord { source: K::SOURCE, ..event });
    match active.len().cmp(&wanted) {
        Ordering::Equal => None,
        Ordering::Less if allowed == 0 => None,
        Ordering::Less => {
            let metadata = &set.metadata;
            let template = set.spec.as_ref()?.template.clone().unwrap_or_default();
            let name = metadata.name.as_deref().unwrap_or_default();
            let namespace = metadata.namespace.as_deref().unwrap_or_default();
            let pod = pods::from_template(&template, namespace, name, controlled_by(owner));
            let create = Action::create(&pod).noted(
                from_source(EventRecord::normal(owner, "SuccessfulCreate", "Created pod: {name}")),
                from_source(EventRecord::warning(owner, "FailedCreate", "Error creating: {error}")),
            );
            Some(Action::SlowStart(vec![create; allowed.min(BURST_PODS)]))
        }
        Ordering::Greater => {
            let surplus = (active.len() - wanted).min(BURST_PODS);
            let delete = |pod: &&Pod| {
                Action::delete(*pod).noted(
                    from_source(EventRecord::normal(owner, "SuccessfulDelete", "Deleted pod: {name}")),
                    from_source(EventRecord::warning(owner, "FailedDelete", "Error deleting: {error}")),
                )
            };
            let order = if surplus < active.len() {
                first_to_go(view, owner, active, now)
            } else {
                // All pods are deleted: no ranking, but an order independent of the cache's.
                let mut all = active.to_vec();
                all.sort_by_key(|pod| pod.metadata.name.as_deref());
                all
            };
            Some(Action::Concurrent(order.iter().take(surplus).map(delete).collect()))
        }
    }
}

/// The pods in the order of deletion.
fn first_to_go<'a, K: Replicated>(view: &ObjectCache, set: &K, active: &[&'a Pod], now: Timestamp) -> Vec<&'a Pod> {
    // Neighbours: active pods of all sets of the same controller, on one node.
    let siblings: Vec<&K> = match controller_of(Object::metadata(set)) {
        Some(owner) => view.controlled::<K>(&owner.uid).collect(),
        None => vec![set],
    };
    let mut on_node: BTreeMap<&str, usize> = BTreeMap::new();
    for sibling in siblings {
        let uid = Object::metadata(sibling).uid.as_deref().unwrap_or_default();
        for pod in view.controlled::<Pod>(uid).filter(|pod| pods::is_active(pod)) {
            *on_node.entry(node(pod)).or_default() += 1;
        }
    }
    let mut order = active.to_vec();
    order.sort_by_cached_key(|pod| deletion_rank(pod, on_node.get(node(pod)).copied().unwrap_or(0), now));
    order
}

/// The sort key of deletion, smallest first. One key per pod makes the order total.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct DeletionRank<'a> {
    is_assigned: bool,
    phase: u8,
    is_ready: bool,
    cost: i32,
    neighbours: Reverse<usize>,
    ready_age: Option<i64>,
    restarts: Reverse<i32>,
    age: Option<i64>,
    uid: &'a str,
    name: &'a str,
}

fn deletion_rank(pod: &Pod, neighbours: usize, now: Timestamp) -> DeletionRank<'_> {
    // A ready pod whose condition has no time counts as ready since the epoch.
    let ready_since = pods::ready_since(pod).filter(|since| *since != Timestamp::UNIX_EPOCH);
    DeletionRank {
        is_assigned: !node(pod).is_empty(),
        phase: phase_rank(pod),
        is_ready: pods::is_ready(pod),
        cost: deletion_cost(pod),
        neighbours: Reverse(neighbours),
        ready_age: age_magnitude(ready_since, now),
        restarts: Reverse(restarts(pod)),
        age: age_magnitude(created(pod), now),
        uid: pod.metadata.uid.as_deref().unwrap_or_default(),
        name: pod.metadata.name.as_deref().unwrap_or_default(),
    }
}

fn node(pod: &Pod) -> &str {
    pod.spec.as_ref().and_then(|s| s.node_name.as_deref()).unwrap_or_default()
}

fn phase_rank(pod: &Pod) -> u8 {
    match pods::phase(pod) {
        "Pending" | "" => 0,
        "Unknown" => 1,
        _ => 2,
    }
}

fn deletion_cost(pod: &Pod) -> i32 {
    let cost = pod.metadata.annotations.as_ref().and_then(|a| a.get(DELETION_COST));
    cost.and_then(|c| c.parse().ok()).unwrap_or(0)
}

fn restarts(pod: &Pod) -> i32 {
    let statuses = pod.status.iter().flat_map(|s| s.container_statuses.iter().flatten());
    statuses.map(|c| c.restart_count).max().unwrap_or(0)
}

fn created(pod: &Pod) -> Option<Timestamp> {
    pod.metadata.creation_timestamp.as_ref().map(|t| t.0)
}

/// The order of magnitude of an age (KEP-2185): pods of similar age are equal. A missing time comes first.
fn age_magnitude(since: Option<Timestamp>, now: Timestamp) -> Option<i64> {
    let age = now.duration_since(since?).as_nanos();
    Some(u128::try_from(age).ok().and_then(u128::checked_ilog2).map_or(-1, i64::from))
}

fn status(
    set: &ReplicaSet,
    active: &[&Pod],
    terminating: Option<usize>,
    context: &Context<'_, Settings>,
    failing: Option<&str>,
) -> ReplicaSetStatus {
    let spec = set.spec.as_ref();
    let template = spec.and_then(|s| s.template.as_ref()?.metadata.as_ref()?.labels.clone()).unwrap_or_default();
    let min_ready = spec.and_then(|s| s.min_ready_seconds).unwrap_or(0);
    let many = |wanted: &dyn Fn(&Pod) -> bool| {
        i32::try_from(active.iter().filter(|pod| wanted(pod)).count()).unwrap_or(i32::MAX)
    };
    let old = set.status.clone().unwrap_or_default();
    ReplicaSetStatus {
        replicas: many(&|_| true),
        fully_labeled_replicas: pods::count(many(&|pod| contains(pod.metadata.labels.as_ref(), &template))),
        ready_replicas: pods::count(many(&pods::is_ready)),
        available_replicas: pods::count(many(&|pod| pods::is_available(pod, min_ready, context.now))),
        terminating_replicas: terminating.map(|n| i32::try_from(n).unwrap_or(i32::MAX)),
        observed_generation: set.metadata.generation.filter(|g| *g != 0),
        conditions: conditions(old.conditions, failing, context.now),
    }
}

/// Whether only the counts of ready or available pods changed, and more are coming.
fn is_progress(known: Option<&ReplicaSetStatus>, status: &ReplicaSetStatus) -> bool {
    let without = |status: &ReplicaSetStatus| {
        normal(ReplicaSetStatus { ready_replicas: None, available_replicas: None, ..status.clone() })
    };
    known.map(without) == Some(without(status)) && status.available_replicas.unwrap_or(0) < status.replicas
}

fn conditions(
    old: Option<Vec<ReplicaSetCondition>>,
    failing: Option<&str>,
    now: Timestamp,
) -> Option<Vec<ReplicaSetCondition>> {
    let mut conditions = old.unwrap_or_default();
    match failing {
        None => conditions.retain(|c| c.type_ != REPLICA_FAILURE),
        // The first failure stays until there is none.
        Some(_) if conditions.iter().any(|c| c.type_ == REPLICA_FAILURE) => {}
        Some(reason) => conditions.push(ReplicaSetCondition {
            type_: REPLICA_FAILURE.into(),
            status: "True".into(),
            reason: Some(reason.to_owned()),
            message: Some("{error}".into()),
            last_transition_time: Some(pods::stamp(now)),
        }),
    }
    (!conditions.is_empty()).then_some(conditions)
}

/// For comparison: absent and zero or empty are equal.
fn normal(mut status: ReplicaSetStatus) -> ReplicaSetStatus {
    let zero = |n: Option<i32>| n.filter(|n| *n != 0);
    status.fully_labeled_replicas = zero(status.fully_labeled_replicas);
    status.ready_replicas = zero(status.ready_replicas);
    status.available_replicas = zero(status.available_replicas);
    status.observed_generation = status.observed_generation.filter(|g| *g != 0);
    status.conditions = status.conditions.filter(|c| !c.is_empty());
    status
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn now() -> Timestamp {
        "2026-01-01T00:00:00Z".parse().unwrap()
    }

    /// A running pod; its ages are in seconds, and may be missing.
    fn pod(at: usize, ready_age: Option<i64>, age: Option<i64>, restarts: i32) -> Pod {
        let before = |seconds: i64| now() - jiff::SignedDuration::from_secs(seconds);
        // Names and uids are in opposite order, so that a tie-breaker of either kind shows.
        serde_json::from_value(json!({
            "metadata": {"name": format!("p{:03}", 999 - at), "uid": format!("u{at:03}"), "creationTimestamp": age.map(before)},
            "spec": {"nodeName": "n"},
            "status": {
                "phase": "Running",
                "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": ready_age.map(before)}],
                "containerStatuses": [{"name": "c", "restartCount": restarts}],
            },
        }))
        .unwrap()
    }

    fn order<'a>(pods: &[&'a Pod]) -> Vec<&'a str> {
        let order = first_to_go(&ObjectCache::default(), &ReplicaSet::default(), pods, now());
        order.into_iter().filter_map(|pod| pod.metadata.name.as_deref()).collect()
    }

    fn ages() -> impl Strategy<Value = Option<i64>> {
        // Around a border of magnitudes (2^35 ns is 34.4 s), in the future, and missing.
        prop_oneof![4 => (28i64..40).prop_map(Some), 1 => (-2i64..3).prop_map(Some), 1 => Just(None)]
    }

    fn any_pods(most: usize) -> impl Strategy<Value = Vec<Pod>> {
        let one = (ages(), ages(), 0i32..2);
        proptest::collection::vec(one, 3..most).prop_map(|all| {
            let pods = all.into_iter().enumerate();
            pods.map(|(at, (ready_age, age, restarts))| pod(at, ready_age, age, restarts)).collect()
        })
    }

    proptest! {
        #[test]
        fn the_order_of_deletion_is_total(pods in any_pods(4)) {
            let before = |a: &Pod, b: &Pod| {
                let order = order(&[a, b]);
                prop_assert_eq!(&order, &self::order(&[b, a]));
                Ok(Some(order[0]) == a.metadata.name.as_deref())
            };
            let [a, b, c] = &pods[..] else { unreachable!() };
            // The order of three pods has no cycle.
            prop_assert!(!(before(a, b)? && before(b, c)? && before(c, a)?));
            prop_assert!(!(before(b, a)? && before(a, c)? && before(c, b)?));
        }

        #[test]
        fn many_pods_are_ranked_in_one_order_from_any_other(pods in any_pods(80)) {
            let forwards: Vec<&Pod> = pods.iter().collect();
            let backwards: Vec<&Pod> = pods.iter().rev().collect();
            prop_assert_eq!(order(&forwards), order(&backwards));
        }
    }

    #[test]
    fn among_pods_of_one_age_restarts_count_and_then_the_uid() {
        let pods = [pod(0, Some(30), Some(40), 0), pod(1, Some(31), Some(41), 0), pod(2, Some(30), Some(40), 1)];
        assert_eq!(order(&pods.iter().collect::<Vec<_>>()), ["p997", "p999", "p998"]);
        let pods = [pod(0, Some(300), Some(300), 0), pod(1, Some(3), Some(300), 0), pod(2, None, Some(300), 0)];
        assert_eq!(order(&pods.iter().collect::<Vec<_>>()), ["p997", "p998", "p999"]);
    }
}
