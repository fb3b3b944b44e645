//! `persistentvolumeclaim-protection-controller`, `persistentvolume-protection-controller` and
//! `volumeattributesclass-protection-controller`: remove the finalizers that admission adds, when an object is no
//! longer used.

use std::time::Duration;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::VolumeAttributesClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use machinery_api::ObjectKey;
use machinery_client::claims::claim_names;
use machinery_client::driver::own_key;
use machinery_client::request::query_string;
use machinery_client::{
    Action, BackOff, Change, Context, Controller, Effect, Input, Kind, ObjectCache, Plan, Pod, key_of, value_of,
};
use serde::Deserialize as _;
use serde_json::{Value, json};

use crate::{Settings, pods};

const CLAIM: &str = "kubernetes.io/pvc-protection";
const VOLUME: &str = "kubernetes.io/pv-protection";
const CLASS: &str = "kubernetes.io/vac-protection";
/// Selects pods with a node.
const PLACED: &str = "spec.nodeName!=";
/// The retry delay after the server didn't answer.
const ASK_AGAIN: Duration = Duration::from_secs(1);

pub(crate) const CLAIMS: Controller<Settings> = Controller {
    name: "persistentvolumeclaim-protection-controller",
    account: "pvc-protection-controller",
    workers: 1,
    back_off: BackOff::DEFAULT,
    inputs: &[Input::of::<PersistentVolumeClaim>(own_key), Input::of::<Pod>(claims_of)],
    reconcile: claim,
};

pub(crate) const VOLUMES: Controller<Settings> = Controller {
    name: "persistentvolume-protection-controller",
    account: "pv-protection-controller",
    workers: 1,
    back_off: BackOff::DEFAULT,
    inputs: &[Input::of::<PersistentVolume>(own_key)],
    reconcile: volume,
};

pub(crate) const CLASSES: Controller<Settings> = Controller {
    name: "volumeattributesclass-protection-controller",
    account: "volumeattributesclass-protection-controller",
    workers: 1,
    back_off: BackOff::DEFAULT,
    inputs: &[
        Input::of::<VolumeAttributesClass>(own_key),
        Input::of::<PersistentVolumeClaim>(classes),
        Input::of::<PersistentVolume>(classes),
    ],
    reconcile: class,
};

/// The claims that a pod no longer uses: it is terminal, deleted, or replaced by another of its name.
fn claims_of(_: &ObjectCache, change: &Change) -> Vec<ObjectKey> {
    let (before, after) = (change.before::<Pod>(), change.after::<Pod>());
    let replaced = before.filter(|old| after.is_none_or(|new| new.metadata.uid != old.metadata.uid));
    let ended = after.filter(|pod| pods::is_terminal(pod)).into_iter().chain(replaced);
    ended.flat_map(claim_names).map(|name| ObjectKey::new(&*change.key.namespace, name)).collect()
}

/// Whether a pod uses the claims that it names. A pod without a node doesn't: no scheduler binds it while its claim is
/// terminating, so both would wait for each other.
fn uses(pod: &Pod) -> bool {
    let placed = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).is_some_and(|node| !node.is_empty());
    placed && !pods::is_terminal(pod)
}

/// All terminating classes: there are few.
fn classes(view: &ObjectCache, _: &Change) -> Vec<ObjectKey> {
    let going = view.all::<VolumeAttributesClass>().filter(|class| class.metadata.deletion_timestamp.is_some());
    going.map(|class| key_of(&class.metadata)).collect()
}

/// Whether an object is terminating and has this finalizer.
fn waits(metadata: &ObjectMeta, finalizer: &str) -> bool {
    metadata.deletion_timestamp.is_some() && metadata.finalizers.iter().flatten().any(|one| one == finalizer)
}

/// Removes this finalizer from an object.
fn release<K: machinery_client::Typed>(object: &K, finalizer: &str) -> Plan
where
    K::Scope: machinery_client::Scope,
{
    let left: Vec<&String> = object.metadata().finalizers.iter().flatten().filter(|one| *one != finalizer).collect();
    let mut value = value_of(object);
    value["metadata"]["finalizers"] = json!(left);
    vec![Action::Update { kind: Kind::of::<K>(), object: value, subresource: None }].into()
}

/// A pod that was just bound may be missing in the view, as pods and claims have different watches. So if the view has
/// no user, the server confirms.
fn claim(view: &ObjectCache, key: &ObjectKey, context: &Context<'_, Settings>) -> Plan {
    let claim = view.get::<PersistentVolumeClaim>(key).filter(|claim| waits(&claim.metadata, CLAIM));
    let Some(claim) = claim else { return Plan::nothing() };
    if view.users_of_claim(key).any(uses) {
        return Plan::nothing();
    }
    let pods = Kind::of::<Pod>().collection_path(&key.namespace);
    let effect = Effect::Get(format!("{pods}?{}", query_string(&[("fieldSelector", PLACED)])));
    match context.pass.result(&effect) {
        None => Plan { effects: vec![effect], ..Plan::nothing() },
        Some(Ok(list)) if is_used_in(list, &key.name) => Plan::nothing(),
        Some(Ok(_)) => release(claim, CLAIM),
        Some(Err(_)) => {
            let mut plan = Plan::nothing();
            plan.requeue_after(context.now, ASK_AGAIN);
            plan
        }
    }
}

/// Whether a list of pods has one that uses a claim. A malformed pod counts as a user.
fn is_used_in(list: &Value, claim: &str) -> bool {
    let Some(items) = list["items"].as_array() else { return true };
    items.iter().any(|item| match Pod::deserialize(item) {
        Ok(pod) => uses(&pod) && claim_names(&pod).any(|name| name == claim),
        Err(_) => true,
    })
}

fn volume(view: &ObjectCache, key: &ObjectKey, _: &Context<'_, Settings>) -> Plan {
    let volume = view.get::<PersistentVolume>(key).filter(|volume| waits(&volume.metadata, VOLUME));
    let Some(volume) = volume else { return Plan::nothing() };
    let phase = volume.status.as_ref().and_then(|status| status.phase.as_deref());
    if phase == Some("Bound") { Plan::nothing() } else { release(volume, VOLUME) }
}

fn class(view: &ObjectCache, key: &ObjectKey, _: &Context<'_, Settings>) -> Plan {
    let class = view.get::<VolumeAttributesClass>(key).filter(|class| waits(&class.metadata, CLASS));
    let Some(class) = class else { return Plan::nothing() };
    let is = |name: Option<&String>| name == Some(&key.name);
    let claims = view.all::<PersistentVolumeClaim>().any(|claim| {
        let status = claim.status.as_ref();
        let target = status.and_then(|status| status.modify_volume_status.as_ref());
        is(claim.spec.as_ref().and_then(|spec| spec.volume_attributes_class_name.as_ref()))
            || is(status.and_then(|status| status.current_volume_attributes_class_name.as_ref()))
            || is(target.and_then(|target| target.target_volume_attributes_class_name.as_ref()))
    });
    let of_volume = |volume: &PersistentVolume| {
        is(volume.spec.as_ref().and_then(|spec| spec.volume_attributes_class_name.as_ref()))
    };
    let used = claims || view.all::<PersistentVolume>().any(of_volume);
    if used { Plan::nothing() } else { release(class, CLASS) }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use machinery_api::ObjectKey;
    use machinery_client::Failure;
    use serde_json::{Value, json};

    use crate::table_tests::{decide, objects, start};

    const GOING: &str = r#"
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: used, namespace: a, deletionTimestamp: "2025-12-31T23:00:00Z", finalizers: [kubernetes.io/pvc-protection]}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: free, namespace: a, deletionTimestamp: "2025-12-31T23:00:00Z", finalizers: [x/y, kubernetes.io/pvc-protection]}
spec: {volumeAttributesClassName: gold}
---
{apiVersion: v1, kind: PersistentVolumeClaim, metadata: {name: stays, namespace: a, finalizers: [kubernetes.io/pvc-protection]}}
---
apiVersion: v1
kind: Pod
metadata: {name: p, namespace: a}
spec: {nodeName: node-1, containers: [], volumes: [{name: v, persistentVolumeClaim: {claimName: used}}]}
---
apiVersion: v1
kind: Pod
metadata: {name: unplaced, namespace: a}
spec: {containers: [], volumes: [{name: v, persistentVolumeClaim: {claimName: free}}]}
---
apiVersion: v1
kind: Pod
metadata: {name: over, namespace: a}
spec: {nodeName: node-1, containers: [], volumes: [{name: v, persistentVolumeClaim: {claimName: free}}]}
status: {phase: Succeeded}
---
apiVersion: v1
kind: PersistentVolume
metadata: {name: bound, deletionTimestamp: "2025-12-31T23:00:00Z", finalizers: [kubernetes.io/pv-protection]}
status: {phase: Bound}
---
apiVersion: v1
kind: PersistentVolume
metadata: {name: released, deletionTimestamp: "2025-12-31T23:00:00Z", finalizers: [kubernetes.io/pv-protection]}
status: {phase: Released}
---
apiVersion: storage.k8s.io/v1
kind: VolumeAttributesClass
driverName: d
metadata: {name: gold, deletionTimestamp: "2025-12-31T23:00:00Z", finalizers: [kubernetes.io/vac-protection]}
---
apiVersion: storage.k8s.io/v1
kind: VolumeAttributesClass
driverName: d
metadata: {name: tin, deletionTimestamp: "2025-12-31T23:00:00Z", finalizers: [kubernetes.io/vac-protection]}
"#;

    #[test]
    fn unused_objects_are_released() {
        let mut simulation = crate::simulation(start(), objects(GOING.trim()));
        answer(&mut simulation, Ok(json!({"items": []})));
        let lets_go = |controller: &str, key: ObjectKey| {
            let plan = decide(&format!("{controller}-protection-controller"), &simulation, &key);
            !plan.actions.is_empty()
        };
        for (name, goes) in [("used", false), ("free", true), ("stays", false)] {
            assert_eq!(lets_go("persistentvolumeclaim", ObjectKey::new("a", name)), goes, "{name}");
        }
        for (name, goes) in [("bound", false), ("released", true)] {
            assert_eq!(lets_go("persistentvolume", ObjectKey::cluster(name)), goes, "{name}");
        }
        for (name, goes) in [("gold", false), ("tin", true)] {
            assert_eq!(lets_go("volumeattributesclass", ObjectKey::cluster(name)), goes, "{name}");
        }
    }

    /// The server's answer to the list of pods with a node.
    fn answer(simulation: &mut machinery_client::simulate::Simulation, pods: Result<Value, u16>) {
        let plan = decide("persistentvolumeclaim-protection-controller", simulation, &ObjectKey::new("a", "free"));
        let effect = plan.effects.into_iter().next().expect("it asks");
        let (verb, resource, reason, message) = ("get", String::new(), String::new(), String::new());
        let failure = |code| Failure { verb, resource, code, reason, message };
        simulation.pass.record(effect, pods.map(Arc::new).map_err(failure));
    }

    /// As in seed 289 of the simulation: the binding comes later than the deletion that was requested after it.
    #[test]
    fn a_claim_stays_that_a_pod_uses_which_the_view_doesnt_show_yet() {
        let pod = |node: &str, phase: &str| {
            json!({"metadata": {"name": "late", "namespace": "a"}, "status": {"phase": phase},
                "spec": {"nodeName": node, "containers": [], "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "free"}}]}})
        };
        for (pods, goes) in [
            (Ok(json!({"items": [pod("node-1", "Pending")]})), false),
            (Ok(json!({"items": [pod("node-1", "Failed"), pod("", "Pending")]})), true),
            (Ok(json!({"kind": "Status"})), false),
            (Err(500), false),
        ] {
            let mut simulation = crate::simulation(start(), objects(GOING.trim()));
            answer(&mut simulation, pods.clone());
            let plan = decide("persistentvolumeclaim-protection-controller", &simulation, &ObjectKey::new("a", "free"));
            assert_eq!((plan.actions.len(), plan.effects.len()), (usize::from(goes), 0), "{pods:?}");
            assert_eq!(plan.requeue_at.is_some(), pods.is_err(), "who gets no answer asks again");
        }
    }
}
