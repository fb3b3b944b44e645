//! A pod's volumes: folders of the host that its guest finds open.
//!
//! [`files`] decides what they hold, [`atomic`] writes it, [`manager`] keeps it in step with the API for as long as the
//! pod lives, [`usage`] says what guests have written, [`measure`] when to look.

pub mod atomic;
pub mod files;
pub(crate) mod host_path;
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
    !is_read_only(volume) && volume.host_path.is_none()
}

/// Whether a guest may never write to a volume.
#[must_use]
pub fn is_read_only(volume: &Volume) -> bool {
    is_from_api(volume) || volume.image.is_some()
}

/// Whether a volume's content is the API's.
#[must_use]
pub fn is_from_api(volume: &Volume) -> bool {
    volume.config_map.is_some()
        || volume.secret.is_some()
        || volume.downward_api.is_some()
        || volume.projected.is_some()
}
