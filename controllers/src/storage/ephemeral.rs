//! `ephemeral-volume-controller`: creates the claims of generic ephemeral volumes (`volumes[].ephemeral`), owned by
//! their pods (<https://kubernetes.io/docs/concepts/storage/ephemeral-volumes/#generic-ephemeral-volumes>).

use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use machinery_api::ObjectKey;
use machinery_client::claims::{claim_name, claim_names, ephemeral_claim, is_not_of_pod};
use machinery_client::{
    Action, BackOff, Change, Context, Controller, EventRecord, Input, ObjectCache, Plan, Pod, controller_of, key_of,
};

use crate::Settings;

pub(crate) const CONTROLLER: Controller<Settings> = Controller {
    name: "ephemeral-volume-controller",
    account: "ephemeral-volume-controller",
    workers: 10,
    back_off: BackOff::DEFAULT,
    inputs: &[Input::of::<Pod>(of_pod), Input::of::<PersistentVolumeClaim>(of_claim)],
    reconcile,
};

fn has_own(pod: &Pod) -> bool {
    pod.spec.iter().flat_map(|spec| spec.shape.volumes.iter().flatten()).any(|volume| volume.ephemeral.is_some())
}

/// The pod, if it has a generic ephemeral volume.
fn of_pod(_: &ObjectCache, change: &Change) -> Vec<ObjectKey> {
    let of = change.after::<Pod>().filter(|pod| has_own(pod));
    of.map(|_| (*change.key).clone()).into_iter().collect()
}

/// The pods that need a deleted claim.
fn of_claim(view: &ObjectCache, change: &Change) -> Vec<ObjectKey> {
    let Some(gone) = change.before::<PersistentVolumeClaim>().filter(|_| change.new.is_none()) else {
        return Vec::new();
    };
    let owner = controller_of(&gone.metadata).filter(|owner| owner.kind == "Pod");
    if let Some(owner) = owner
        && view.get::<Pod>(&ObjectKey::new(&*change.key.namespace, &*owner.name)).is_none()
    {
        return Vec::new();
    }
    let of = view.list::<Pod>(&change.key.namespace).filter(|pod| has_own(pod));
    of.filter(|pod| claim_names(pod).any(|name| name == change.key.name)).map(|pod| key_of(&pod.metadata)).collect()
}

fn reconcile(view: &ObjectCache, key: &ObjectKey, _: &Context<'_, Settings>) -> Plan {
    let pod = view.get::<Pod>(key).filter(|pod| pod.metadata.deletion_timestamp.is_none());
    let Some(pod) = pod else { return Plan::nothing() };
    let mut plan = Plan::nothing();
    for volume in pod.spec.iter().flat_map(|spec| spec.shape.volumes.iter().flatten()) {
        let template = volume.ephemeral.as_ref().and_then(|ephemeral| ephemeral.volume_claim_template.as_ref());
        let (Some(template), Some(name)) = (template, claim_name(&key.name, volume)) else { continue };
        let of_volume = volume.name.as_deref().unwrap_or_default();
        match view.get::<PersistentVolumeClaim>(&ObjectKey::new(&*key.namespace, &*name)) {
            Some(claim) => {
                if let Some(why) = is_not_of_pod(&pod.metadata, claim) {
                    plan.push(failed(pod, format!("ephemeral volume {of_volume}: {why}")));
                    return plan;
                }
            }
            None => {
                let why = format!("ephemeral volume {of_volume}: create PVC {name}: {{error}}");
                let event = EventRecord::warning(pod, "FailedBinding", why).from("ephemeral_volume");
                plan.push(Action::create(&ephemeral_claim(pod, name, template)).noted(None, Some(event)));
            }
        }
    }
    plan
}

fn failed(pod: &Pod, message: String) -> Action {
    Action::Event(EventRecord::warning(pod, "FailedBinding", message).from("ephemeral_volume"))
}
