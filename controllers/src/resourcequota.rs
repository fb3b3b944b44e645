//! `resourcequota-controller`: writes the usage of a namespace's objects into the status of its quotas. Admission
//! charges new objects within their writes. This controller counts at first, after deletions, and periodically.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, ResourceQuota, Service};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;
use machinery_api::ObjectKey;
use machinery_api::quantity::Quantity;
use machinery_client::{
    Action, BackOff, Change, Context, Controller, Input, Kind, ObjectCache, Plan, Pod, key_of, value_of,
};
use machinery_rules::quota::{Amounts, Evaluator, add};
use serde_json::{Map, Value, json};

use crate::{Settings, pods};

/// The interval of recounts without changes, as upstream's.
const RESYNC: Duration = Duration::from_secs(5 * 60);
/// After this time the view has everything that was written with a quota: the views of different kinds are not
/// synchronous.
const SETTLED: Duration = Duration::from_secs(2);

pub(crate) const CONTROLLER: Controller<Settings> = Controller {
    name: "resourcequota-controller",
    account: "resourcequota-controller",
    workers: 5,
    back_off: BackOff::DEFAULT,
    inputs: &[
        Input::of::<ResourceQuota>(of_quota),
        Input::of::<Pod>(of_pod),
        Input::of::<Service>(of_service),
        Input::of::<PersistentVolumeClaim>(of_claim),
        Input::everything(of_any),
    ],
    reconcile,
};

/// A quota that is new, or whose spec changed. A charge by admission needs no recount.
fn of_quota(_: &ObjectCache, change: &Change) -> Vec<ObjectKey> {
    let same = match (change.before::<ResourceQuota>(), change.after::<ResourceQuota>()) {
        (Some(before), Some(after)) => before.metadata.uid == after.metadata.uid && before.spec == after.spec,
        (_, None) => true,
        (None, Some(_)) => false,
    };
    if same { Vec::new() } else { vec![(*change.key).clone()] }
}

/// The quotas of a namespace.
fn quotas(view: &ObjectCache, namespace: &str) -> Vec<ObjectKey> {
    view.list::<ResourceQuota>(namespace).map(|quota| key_of(&quota.metadata)).collect()
}

fn deadline(pod: &Pod) -> Option<i64> {
    pod.spec.as_ref()?.shape.active_deadline_seconds
}

/// A pod that uses less than before, or is in other scopes.
fn of_pod(view: &ObjectCache, change: &Change) -> Vec<ObjectKey> {
    let (Some(before), Some(after)) = (change.before::<Pod>(), change.after::<Pod>()) else { return Vec::new() };
    let shape = |pod: &Pod| pod.spec.as_ref().map(|spec| spec.shape.clone());
    let ended = pods::is_terminal(after) && !pods::is_terminal(before);
    if ended || deadline(before) != deadline(after) || shape(before) != shape(after) {
        return quotas(view, &change.key.namespace);
    }
    Vec::new()
}

fn of_service(view: &ObjectCache, change: &Change) -> Vec<ObjectKey> {
    let (Some(before), Some(after)) = (change.before::<Service>(), change.after::<Service>()) else {
        return Vec::new();
    };
    if before.spec == after.spec { Vec::new() } else { quotas(view, &change.key.namespace) }
}

fn of_claim(view: &ObjectCache, change: &Change) -> Vec<ObjectKey> {
    let parts = |claim: &PersistentVolumeClaim| (claim.spec.clone(), claim.status.clone());
    match (change.before::<PersistentVolumeClaim>(), change.after::<PersistentVolumeClaim>()) {
        (Some(before), Some(after)) if parts(before) != parts(after) => quotas(view, &change.key.namespace),
        _ => Vec::new(),
    }
}

/// A deleted object.
fn of_any(view: &ObjectCache, change: &Change) -> Vec<ObjectKey> {
    if change.new.is_some() { Vec::new() } else { quotas(view, &change.key.namespace) }
}

fn amounts(list: Option<&BTreeMap<String, Text>>) -> Amounts {
    let read = |(name, text): (&String, &Text)| Some((name.clone(), Quantity::parse(&text.0).ok()?));
    list.into_iter().flatten().filter_map(read).collect()
}

/// The usage of the objects of one kind.
fn used_by(
    view: &ObjectCache,
    kind: &Kind,
    evaluator: &Evaluator,
    quota: &Value,
    context: &Context<'_, Settings>,
) -> Amounts {
    let namespace = quota["metadata"]["namespace"].as_str().unwrap_or_default();
    let mut sum = Amounts::new();
    let mut count = |object: &Value| {
        if evaluator.in_scopes(quota, object) {
            add(&mut sum, &evaluator.usage(object, context.now));
        }
    };
    for metadata in view.metadata_of(kind, namespace) {
        match (evaluator, view.object(kind, &key_of(metadata))) {
            (Evaluator::Count(_), _) | (_, None) => count(&Value::Null),
            (_, Some(object)) => count(&object.to_value()),
        }
    }
    sum
}

/// The usage of a quota now, and whether the view may miss objects.
struct QuotaUsage {
    used: Amounts,
    unsettled: bool,
}

fn count(view: &ObjectCache, quota: &ResourceQuota, context: &Context<'_, Settings>) -> QuotaUsage {
    let key = key_of(&quota.metadata);
    let status = quota.status.as_ref();
    let hard = amounts(quota.spec.as_ref().and_then(|spec| spec.hard.as_ref()));
    let known = amounts(status.and_then(|status| status.used.as_ref()));
    let version = quota.metadata.resource_version.as_ref().and_then(|version| version.parse::<u64>().ok()).unwrap_or(0);
    let seen_at = view.seen_at(&Kind::of::<ResourceQuota>(), &key).unwrap_or_default();
    let is_settled = context.elapsed.saturating_sub(seen_at) >= SETTLED;
    let value = value_of(quota);
    let mut counted = QuotaUsage { used: Amounts::new(), unsettled: false };
    let mut seen = BTreeSet::new();
    for kind in view.kinds().filter(|kind| kind.namespaced) {
        let Some(evaluator) = Evaluator::of(&kind.group, &kind.plural) else { continue };
        let names: Vec<&String> = hard.keys().filter(|name| evaluator.counts(name)).collect();
        if names.is_empty() || !seen.insert((kind.group.clone(), kind.plural.clone())) {
            continue;
        }
        // The charge in the quota's newest version may be for an object that this view doesn't have yet. Before `SETTLED`,
        // and for a kind without a working watch, only the versions show that.
        let behind = !(is_settled && view.is_followed(kind)) && view.seen(kind).is_none_or(|seen| seen < version);
        counted.unsettled |= behind;
        let used = used_by(view, kind, &evaluator, &value, context);
        for name in names {
            let now = used.get(name).cloned().unwrap_or_else(Quantity::zero);
            let was = known.get(name).filter(|was| behind && **was > now);
            counted.used.insert(name.clone(), was.cloned().unwrap_or(now));
        }
    }
    counted
}

fn reconcile(view: &ObjectCache, key: &ObjectKey, context: &Context<'_, Settings>) -> Plan {
    let Some(quota) = view.get::<ResourceQuota>(key) else { return Plan::nothing() };
    let counted = count(view, quota, context);
    let status = quota.status.as_ref();
    let hard = amounts(quota.spec.as_ref().and_then(|spec| spec.hard.as_ref()));
    let reported = (amounts(status.and_then(|s| s.hard.as_ref())), amounts(status.and_then(|s| s.used.as_ref())));
    let mut plan = Plan::nothing();
    let missing = status.is_none_or(|status| status.hard.is_none() || status.used.is_none());
    if missing && !hard.is_empty() || reported != (hard, counted.used.clone()) {
        let mut object = value_of(quota);
        let used: Map<String, Value> =
            counted.used.iter().map(|(name, v)| (name.clone(), v.to_string().into())).collect();
        object["status"] = json!({ "hard": object["spec"]["hard"], "used": used });
        plan.push(Action::Update { kind: Kind::of::<ResourceQuota>(), object, subresource: Some("status") });
    }
    plan.requeue_after(context.now, if counted.unsettled { SETTLED } else { RESYNC });
    plan
}

#[cfg(test)]
mod tests {
    use machinery_client::simulate::Simulation;

    use super::*;
    use crate::table_tests::{decide, objects, start};

    const NAMESPACE: &str = r#"
apiVersion: v1
kind: ResourceQuota
metadata: {name: q, namespace: a}
spec: {hard: {pods: "5", requests.cpu: "2", services: "1", count/configmaps: "3", count/nothing.known: "1"}}
---
apiVersion: v1
kind: ResourceQuota
metadata: {name: ending, namespace: a}
spec: {hard: {pods: "5"}, scopes: [Terminating]}
---
{apiVersion: v1, kind: Pod, metadata: {name: p, namespace: a}, spec: {containers: [{name: c, resources: {requests: {cpu: 100m}}}]}}
---
apiVersion: v1
kind: Pod
metadata: {name: d, namespace: a}
spec: {activeDeadlineSeconds: 9, containers: [{name: c, resources: {requests: {cpu: 300m}}}]}
---
{apiVersion: v1, kind: Pod, metadata: {name: over, namespace: a}, spec: {containers: [{name: c}]}, status: {phase: Failed}}
---
{apiVersion: v1, kind: Pod, metadata: {name: elsewhere, namespace: b}, spec: {containers: [{name: c}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: s, namespace: a}, spec: {ports: [{port: 80}]}}
---
{apiVersion: v1, kind: ConfigMap, metadata: {name: c, namespace: a}}
"#;

    fn used(simulation: &Simulation, name: &str) -> String {
        let quota = simulation.view.get::<ResourceQuota>(&ObjectKey::new("a", name)).unwrap();
        let used = quota.status.as_ref().and_then(|status| status.used.as_ref());
        machinery_rules::quota::pretty(&amounts(used))
    }

    fn count_all(simulation: &mut Simulation) {
        for name in ["q", "ending"] {
            let plan = decide("resourcequota-controller", simulation, &ObjectKey::new("a", name));
            assert!(plan.requeue_at.is_some(), "it is counted again");
            assert_eq!(simulation.apply(plan), Vec::<String>::new());
        }
    }

    #[test]
    fn existing_objects_are_counted() {
        let mut simulation = crate::simulation(start(), objects(NAMESPACE.trim()));
        count_all(&mut simulation);
        assert_eq!(used(&simulation, "q"), "count/configmaps=1,pods=2,requests.cpu=400m,services=1");
        assert_eq!(used(&simulation, "ending"), "pods=1");
    }

    #[test]
    fn charges_stay_until_the_cache_is_current() {
        let mut simulation = crate::simulation(start(), objects(NAMESPACE.trim()));
        count_all(&mut simulation);
        let kind = Kind::of::<ResourceQuota>();
        let mut quota = value_of(simulation.view.get::<ResourceQuota>(&ObjectKey::new("a", "q")).unwrap());
        quota["status"]["used"]["count/configmaps"] = json!("2");
        simulation.apply(vec![Action::Update { kind, object: quota, subresource: Some("status") }].into());
        count_all(&mut simulation);
        assert!(used(&simulation, "q").starts_with("count/configmaps=2"), "its object may be on its way");
        simulation.now += SETTLED;
        let maps = Kind::of::<k8s_openapi::api::core::v1::ConfigMap>();
        simulation.view.interrupt(&maps);
        count_all(&mut simulation);
        assert!(used(&simulation, "q").starts_with("count/configmaps=2"), "nothing is heard of them");
        simulation.view.progress(&maps, 0);
        count_all(&mut simulation);
        assert!(used(&simulation, "q").starts_with("count/configmaps=1"));
    }

    #[test]
    fn only_releases_trigger_a_recount() {
        let simulation = crate::simulation(start(), objects(NAMESPACE.trim()));
        let concerned = |old: Option<Value>, new: Option<Value>| {
            let read = |value: Value| -> std::sync::Arc<dyn machinery_client::Object> {
                std::sync::Arc::new(serde_json::from_value::<Pod>(value).unwrap())
            };
            let key = std::sync::Arc::new(ObjectKey::new("a", "p"));
            let change = Change { kind: Kind::of::<Pod>(), key, old: old.map(read), new: new.map(read) };
            let keys = CONTROLLER.inputs.iter().flat_map(|input| input.keys(&simulation.view, &change));
            !keys.collect::<Vec<_>>().is_empty()
        };
        let pod = |phase: &str| json!({"metadata": {"name": "p", "namespace": "a"}, "spec": {"containers": []}, "status": {"phase": phase}});
        assert!(!concerned(None, Some(pod("Pending"))), "it was charged");
        assert!(!concerned(Some(pod("Pending")), Some(pod("Running"))));
        assert!(concerned(Some(pod("Running")), Some(pod("Failed"))));
        assert!(concerned(Some(pod("Failed")), None));
    }
}
