//! Where what a pod has on the disk lies below its folder.

use std::path::{Path, PathBuf};

/// Where a volume of a pod lies.
#[must_use]
pub fn folder(pod_dir: &Path, volume: &str) -> PathBuf {
    pod_dir.join("volumes").join(volume)
}

/// Where the termination messages of a pod's containers lie.
#[must_use]
pub fn message_folder(pod_dir: &Path) -> PathBuf {
    pod_dir.join("termination")
}

/// Where `/tmp` of the sessions of a pod's containers lies.
#[must_use]
pub fn session_folder(pod_dir: &Path) -> PathBuf {
    pod_dir.join("tmp")
}

/// The API has checked these names; a path is made of nothing else all the same.
pub(crate) fn plain(name: &str) -> String {
    let plain: String = name.chars().filter(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_')).collect();
    if plain.is_empty() { "none".to_owned() } else { plain }
}

/// Where the folders of files lie that containers mount alone.
#[must_use]
pub fn file_folder(pod_dir: &Path) -> PathBuf {
    pod_dir.join("files")
}
