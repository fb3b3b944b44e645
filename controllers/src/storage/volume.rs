//! The binder's decision about one volume: complete its binding, or set its phase. Pure.

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, PersistentVolumeStatus};
use machinery_client::claims::{self, BOUND_BY_CONTROLLER, PROVISIONED_BY, annotation};
use machinery_client::{Action, EventRecord, Kind, ObjectCache, Plan};

use super::{key_of_claim, phase, reclaim};

pub(super) fn sync(view: &ObjectCache, volume: &PersistentVolume) -> Plan {
    let (Some(r), Some(key)) = (claims::claim_ref(volume), key_of_claim(volume)) else {
        return Vec::from_iter(in_phase(volume, "Available")).into();
    };
    let uid = r.uid.as_deref().unwrap_or_default();
    if uid.is_empty() {
        // The volume is reserved for a future claim.
        return Vec::from_iter(in_phase(volume, "Available")).into();
    }
    let claim = view.get::<PersistentVolumeClaim>(&key).filter(|claim| claim.metadata.uid.as_deref() == Some(uid));
    let Some(claim) = claim else {
        if !is_given_up(volume) {
            // The view of claims may lag behind that of volumes, and a released volume may be erased.
            let gone = Action::ExpectGone { kind: Kind::of::<PersistentVolumeClaim>(), key, uid: Some(uid.to_owned()) };
            return Vec::from_iter([gone].into_iter().chain(in_phase(volume, "Released"))).into();
        }
        return reclaim::plan(view, volume);
    };
    let own = volume.metadata.name.as_deref().unwrap_or_default();
    match claims::volume_name(claim) {
        "" => mismatch(volume, claim),
        name if name == own => Vec::from_iter(in_phase(volume, "Bound")).into(),
        // The claim has another volume. This one was provisioned for the claim and has no other use.
        _ if annotation(&volume.metadata, PROVISIONED_BY).is_some() && reclaim::policy(volume) == "Delete" => {
            if is_given_up(volume) {
                return reclaim::plan(view, volume);
            }
            Vec::from_iter(in_phase(volume, "Released")).into()
        }
        _ => vec![Action::update(&without_binding(volume))].into(),
    }
}

fn is_given_up(volume: &PersistentVolume) -> bool {
    matches!(phase(volume), "Released" | "Failed")
}

/// The volume has the claim, and the claim doesn't have the volume yet: the claim's own pass continues, unless it never
/// can.
fn mismatch(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> Plan {
    let (Some(of_claim), Some(of_volume)) = (&claim.spec, &volume.spec) else { return Plan::nothing() };
    if !claims::modes_differ(of_claim, of_volume) {
        return Plan::nothing();
    }
    let name = |of: &Option<String>| of.clone().unwrap_or_default();
    let (volume_name, claim_name) = (name(&volume.metadata.name), name(&claim.metadata.name));
    let message = format!(
        "Cannot bind PersistentVolume to requested PersistentVolumeClaim {claim_name:?} due to incompatible volumeMode."
    );
    let of_claim = format!(
        "Cannot bind PersistentVolume {volume_name:?} to requested PersistentVolumeClaim due to incompatible volumeMode."
    );
    vec![
        Action::Event(EventRecord::warning(volume, "VolumeMismatch", message)),
        Action::Event(EventRecord::warning(claim, "VolumeMismatch", of_claim)),
    ]
    .into()
}

/// The volume without the binder's fields.
fn without_binding(volume: &PersistentVolume) -> PersistentVolume {
    let mut free = volume.clone();
    let spec = free.spec.get_or_insert_default();
    if annotation(&volume.metadata, BOUND_BY_CONTROLLER).is_some() {
        spec.claim_ref = None;
        let left = free.metadata.annotations.take().map(|mut all| {
            all.remove(BOUND_BY_CONTROLLER);
            all
        });
        free.metadata.annotations = left.filter(|all| !all.is_empty());
    } else if let Some(r) = &mut spec.claim_ref {
        r.uid = None;
    }
    free
}

/// The volume's new phase, if it differs.
pub(super) fn in_phase(volume: &PersistentVolume, name: &str) -> Option<Action> {
    (phase(volume) != name).then(|| with_status(volume, name, None))
}

/// Marks a volume as failed, with the reason.
pub(super) fn failed(volume: &PersistentVolume, reason: &'static str, message: &str) -> Plan {
    if phase(volume) == "Failed" {
        return Plan::nothing();
    }
    let event = EventRecord::warning(volume, reason, message);
    vec![with_status(volume, "Failed", Some(message.to_owned())), Action::Event(event)].into()
}

fn with_status(volume: &PersistentVolume, phase: &str, message: Option<String>) -> Action {
    let old = volume.status.clone().unwrap_or_default();
    let status = PersistentVolumeStatus { phase: Some(phase.to_owned()), message, ..old };
    Action::update_status(&PersistentVolume { status: Some(status), ..volume.clone() })
}
