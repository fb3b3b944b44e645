//! The binder's decision about a volume whose claim is gone, by its reclaim policy. The provisioner deletes data; the
//! binder never does. Pure.

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use machinery_client::claims::{PROVISIONED_BY, annotation};
use machinery_client::{Action, EventRecord, ObjectCache, Plan, key_of};

use super::{key_of_claim, volume::failed};
use crate::pods;

/// `Retain`, `Delete` or `Recycle`.
pub(super) fn policy(volume: &PersistentVolume) -> &str {
    let spec = volume.spec.as_ref();
    spec.and_then(|spec| spec.persistent_volume_reclaim_policy.as_deref()).unwrap_or("Retain")
}

/// The binder's part: a volume's provisioner deletes it, and a volume without provisioner is not deleted. The control
/// plane touches no data.
pub(super) fn plan(view: &ObjectCache, volume: &PersistentVolume) -> Plan {
    let name = volume.metadata.name.as_deref().unwrap_or_default();
    match policy(volume) {
        "Retain" => Plan::nothing(),
        "Delete" if has_deleter(volume) => Plan::nothing(),
        "Delete" => {
            let why = match annotation(&volume.metadata, PROVISIONED_BY).filter(|by| !by.is_empty()) {
                Some(by) => format!("no volume plugin matched name: {by}"),
                None => {
                    let why = if is_of_plugin(volume) { "no deletable volume plugin" } else { "no volume plugin" };
                    format!("error getting deleter volume plugin for volume {name:?}: {why} matched")
                }
            };
            failed(volume, "VolumeFailedDelete", &why)
        }
        "Recycle" => recycle(view, volume),
        _ => failed(volume, "VolumeUnknownReclaimPolicy", "Volume has unrecognized PersistentVolumeReclaimPolicy"),
    }
}

/// Recycling is not supported: an event reports that once no pod uses the deleted claim.
fn recycle(view: &ObjectCache, volume: &PersistentVolume) -> Plan {
    let key = key_of_claim(volume).unwrap_or_default();
    let users = view.users_of_claim(&key).filter(|pod| !pods::is_terminal(pod));
    let users: Vec<String> = users.map(|pod| key_of(&pod.metadata).to_string()).collect();
    // A new claim of the name is another claim, and so are its pods.
    if users.is_empty() || view.get::<PersistentVolumeClaim>(&key).is_some() {
        return failed(volume, "VolumeFailedRecycle", "No recycler plugin found for the volume!");
    }
    let message = format!("Volume is used by pods: {}", users.join(","));
    vec![Action::Event(EventRecord::normal(volume, "VolumeFailedRecycle", message))].into()
}

/// Whether upstream's binder has a plugin for such a volume, but none that deletes.
fn is_of_plugin(volume: &PersistentVolume) -> bool {
    volume.spec.as_ref().is_some_and(|spec| spec.nfs.is_some() || spec.host_path.is_some())
}

/// Whether an external provisioner deletes it.
fn has_deleter(volume: &PersistentVolume) -> bool {
    if annotation(&volume.metadata, "pv.kubernetes.io/migrated-to").is_some_and(|to| !to.is_empty()) {
        return true;
    }
    let by = annotation(&volume.metadata, PROVISIONED_BY).filter(|by| !by.is_empty());
    match by {
        Some(by) => !by.starts_with("kubernetes.io/"),
        None => volume.spec.as_ref().is_some_and(|spec| spec.csi.is_some()),
    }
}
