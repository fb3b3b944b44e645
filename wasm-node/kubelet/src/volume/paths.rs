//! The layout of a pod's folder on the disk. Names are reduced to plain characters, so no path leaves the folder.

use std::path::{Path, PathBuf};

pub(crate) use crate::spec::referred::plain;

/// Returns the folder of a pod's volume.
#[must_use]
pub fn folder(pod_dir: &Path, volume: &str) -> PathBuf {
    pod_dir.join("volumes").join(volume)
}

/// Returns the folder of the termination messages of a pod's containers.
#[must_use]
pub fn message_folder(pod_dir: &Path) -> PathBuf {
    pod_dir.join("termination")
}

/// Returns the folder of `/tmp` of exec sessions in a pod's containers.
#[must_use]
pub fn session_folder(pod_dir: &Path) -> PathBuf {
    pod_dir.join("tmp")
}

/// Returns the folder of files that containers mount alone.
#[must_use]
pub fn file_folder(pod_dir: &Path) -> PathBuf {
    pod_dir.join("files")
}
