//! `expand-controller`: expands claims whose request exceeds their capacity. Local volumes are expanded here and by
//! nodes; for other volumes an event points to an external controller
//! (<https://kubernetes.io/docs/concepts/storage/persistent-volumes/#expanding-persistent-volumes-claims>).

use k8s_openapi::api::core::v1::{
    PersistentVolume, PersistentVolumeClaim, PersistentVolumeClaimCondition, PersistentVolumeClaimStatus,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Wire;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use machinery_api::ObjectKey;
use machinery_api::quantity::Quantity;
use machinery_client::claims::{LOCAL_DRIVER, capacity, requested};
use machinery_client::driver::own_key;
use machinery_client::{Action, BackOff, Context, Controller, EventRecord, Input, ObjectCache, Plan};

use super::{bound_volume, claim_of_volume, is_local};
use crate::Settings;

pub(crate) const CONTROLLER: Controller<Settings> = Controller {
    name: "persistentvolume-expander-controller",
    account: "expand-controller",
    workers: 2,
    back_off: BackOff::DEFAULT,
    inputs: &[Input::of::<PersistentVolumeClaim>(own_key), Input::of::<PersistentVolume>(claim_of_volume)],
    reconcile,
};

fn reconcile(view: &ObjectCache, key: &ObjectKey, context: &Context<'_, Settings>) -> Plan {
    let Some(claim) = view.get::<PersistentVolumeClaim>(key) else { return Plan::nothing() };
    let Some(volume) = bound_volume(view, claim) else { return Plan::nothing() };
    let status = claim.status.clone().unwrap_or_default();
    let has = status.capacity.as_ref().and_then(|all| Quantity::parse(&all.get("storage")?.0).ok());
    let has = has.unwrap_or_else(Quantity::zero);
    if !is_local(volume) {
        return report_external(claim, volume, &has);
    }
    let wanted = requested(claim);
    if wanted > capacity(volume) {
        let begun = expansion_status(&status, claim, ("ControllerResizeInProgress", "Resizing", ""), context);
        if begun != status {
            let name = volume.metadata.name.as_deref().unwrap_or_default();
            let message = format!("External resizer is resizing volume {name}");
            let event = EventRecord::normal(claim, "Resizing", message).from(LOCAL_DRIVER);
            return vec![write(claim, begun), Action::Event(event)].into();
        }
        let mut larger = volume.clone();
        let capacity = larger.spec.get_or_insert_default().capacity.get_or_insert_default();
        capacity.insert("storage".to_owned(), Wire(wanted.to_string()));
        return vec![Action::update(&larger)].into();
    }
    if capacity(volume) > has {
        let message = "Waiting for user to (re-)start a pod to finish file system resize of volume on node.";
        let waits =
            expansion_status(&status, claim, ("NodeResizePending", "FileSystemResizePending", message), context);
        if waits != status {
            let message = "Require file system resize of volume on node";
            let event = EventRecord::normal(claim, "FileSystemResizeRequired", message).from(LOCAL_DRIVER);
            return vec![write(claim, waits), Action::Event(event)].into();
        }
    }
    Plan::nothing()
}

fn write(claim: &PersistentVolumeClaim, status: PersistentVolumeClaimStatus) -> Action {
    Action::update_status(&PersistentVolumeClaim { status: Some(status), ..claim.clone() })
}

/// The status of a claim at a step of its expansion.
fn expansion_status(
    old: &PersistentVolumeClaimStatus,
    claim: &PersistentVolumeClaim,
    (step, condition, message): (&str, &str, &str),
    context: &Context<'_, Settings>,
) -> PersistentVolumeClaimStatus {
    let mut status = old.clone();
    let wanted = Wire(requested(claim).to_string());
    status.allocated_resources.get_or_insert_default().insert("storage".to_owned(), wanted);
    status.allocated_resource_statuses.get_or_insert_default().insert("storage".to_owned(), step.to_owned());
    let conditions = status.conditions.get_or_insert_default();
    conditions.retain(|of| of.type_ == condition || !["Resizing", "FileSystemResizePending"].contains(&&*of.type_));
    if !conditions.iter().any(|of| of.type_ == condition) {
        conditions.push(PersistentVolumeClaimCondition {
            type_: condition.to_owned(),
            status: "True".to_owned(),
            message: (!message.is_empty()).then(|| message.to_owned()),
            last_transition_time: Some(Time(context.now)),
            ..PersistentVolumeClaimCondition::default()
        });
    }
    status
}

/// The event for a volume that an external controller expands.
fn report_external(claim: &PersistentVolumeClaim, volume: &PersistentVolume, has: &Quantity) -> Plan {
    if requested(claim) <= *has {
        return Plan::nothing();
    }
    let message = "waiting for an external controller to expand this PVC";
    let event = EventRecord::normal(claim, "ExternalExpanding", message);
    let warning = volume.spec.as_ref().is_none_or(|spec| spec.csi.is_none());
    vec![Action::Event(EventRecord { warning, ..event })].into()
}
