//! A pod's volumes: folders of the host that its guest finds open.
//!
//! [`files`] decides what they hold, [`atomic`] writes it, [`manager`] keeps it in step with the API for as long as the
//! pod lives, [`claims`] finds what a claim stands for, [`local`] keeps what outlives pods, [`usage`] says what guests have written, [`measure`] when to look.

pub mod atomic;
pub mod claims;
pub mod files;
pub(crate) mod host_path;
pub mod keeper;
pub mod local;
pub mod manager;
pub(crate) mod measure;
pub(crate) mod memory;
pub(crate) mod mounts;
pub mod paths;
pub mod usage;

use k8s_openapi::api::core::v1::Volume;

/// Whether a volume is an emptyDir: one with no source is, too (upstream's default).
#[must_use]
pub fn is_empty_dir(volume: &Volume) -> bool {
    !is_read_only(volume) && volume.host_path.is_none() && !is_of_claim(volume)
}

/// Whether a volume is a claim's.
#[must_use]
pub fn is_of_claim(volume: &Volume) -> bool {
    volume.persistent_volume_claim.is_some() || volume.ephemeral.is_some()
}

/// Whether a guest may never write to a volume.
#[must_use]
pub fn is_read_only(volume: &Volume) -> bool {
    let of_claim = volume.persistent_volume_claim.as_ref();
    is_from_api(volume) || volume.image.is_some() || of_claim.is_some_and(|claim| claim.read_only == Some(true))
}

/// Whether a volume's content is the API's.
#[must_use]
pub fn is_from_api(volume: &Volume) -> bool {
    volume.config_map.is_some()
        || volume.secret.is_some()
        || volume.downward_api.is_some()
        || volume.projected.is_some()
}
