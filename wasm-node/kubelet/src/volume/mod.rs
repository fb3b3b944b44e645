//! A pod's volumes: folders of the host that are preopened for its guest.
//!
//! [`files`] computes their content, [`atomic`] writes it, [`manager`] follows changes of the API while the pod lives,
//! [`claims`] resolves claims, [`local`] stores volumes that outlive pods, [`local_provisioner`] removes and expands
//! those, [`usage`] measures the guests' data, [`measure`] schedules the measurements.

pub mod atomic;
pub mod claims;
pub mod files;
pub(crate) mod host_path;
pub mod local;
pub mod local_provisioner;
pub mod manager;
pub(crate) mod measure;
pub(crate) mod memory;
pub(crate) mod mounts;
pub mod paths;
pub mod usage;

use k8s_openapi::api::core::v1::Volume;

/// Returns whether a volume is an emptyDir; a volume without a source is one (upstream's default).
#[must_use]
pub fn is_empty_dir(volume: &Volume) -> bool {
    !is_read_only(volume) && volume.host_path.is_none() && !is_of_claim(volume)
}

/// Returns whether a volume is a claim's.
#[must_use]
pub fn is_of_claim(volume: &Volume) -> bool {
    volume.persistent_volume_claim.is_some() || volume.ephemeral.is_some()
}

/// Returns whether a guest may never write to a volume.
#[must_use]
pub fn is_read_only(volume: &Volume) -> bool {
    let of_claim = volume.persistent_volume_claim.as_ref();
    is_from_api(volume) || volume.image.is_some() || of_claim.is_some_and(|claim| claim.read_only == Some(true))
}

/// Returns whether a volume's content is from the API.
#[must_use]
pub fn is_from_api(volume: &Volume) -> bool {
    volume.config_map.is_some()
        || volume.secret.is_some()
        || volume.downward_api.is_some()
        || volume.projected.is_some()
}
