//! What becomes of a volume whose claim is gone.

use k8s_openapi::api::core::v1::PersistentVolume;
use machinery_client::Plan;
use machinery_client::claims::{PROVISIONED_BY, annotation};

use super::volume::failed;

/// `Retain`, `Delete` or `Recycle`.
pub(super) fn policy(volume: &PersistentVolume) -> &str {
    let spec = volume.spec.as_ref();
    spec.and_then(|spec| spec.persistent_volume_reclaim_policy.as_deref()).unwrap_or("Retain")
}

/// The binder's part: who made a volume removes it, and what nobody made nobody removes. The control plane touches no data.
pub(super) fn plan(volume: &PersistentVolume) -> Plan {
    let name = volume.metadata.name.as_deref().unwrap_or_default();
    match policy(volume) {
        "Retain" => Plan::nothing(),
        "Delete" if has_deleter(volume) => Plan::nothing(),
        "Delete" => {
            let why = match annotation(&volume.metadata, PROVISIONED_BY).filter(|by| !by.is_empty()) {
                Some(by) => format!("no volume plugin matched name: {by}"),
                None => format!(
                    "error getting deleter volume plugin for volume {name:?}: no deletable volume plugin matched"
                ),
            };
            failed(volume, "VolumeFailedDelete", &why)
        }
        "Recycle" => failed(volume, "VolumeFailedRecycle", "No recycler plugin found for the volume!"),
        _ => failed(volume, "VolumeUnknownReclaimPolicy", "Volume has unrecognized PersistentVolumeReclaimPolicy"),
    }
}

/// Whether somebody outside of the binder removes it.
fn has_deleter(volume: &PersistentVolume) -> bool {
    let by = annotation(&volume.metadata, PROVISIONED_BY).filter(|by| !by.is_empty());
    match by {
        Some(by) => !by.starts_with("kubernetes.io/"),
        None => {
            annotation(&volume.metadata, "pv.kubernetes.io/migrated-to").is_some()
                || volume.spec.as_ref().is_some_and(|spec| spec.csi.is_some())
        }
    }
}
