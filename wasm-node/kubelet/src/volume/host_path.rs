//! `hostPath` volumes: folders of the machine, where the node's operator allows them (`--allow-host-path`). A pod that names
//! another one is told so, and stays as it is until it is allowed or gone
//! (<https://kubernetes.io/docs/concepts/storage/volumes/#hostpath>).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::HostPathVolumeSource;

/// Types that are acted on; files, sockets and devices are none that a guest could be given.
pub(crate) const TYPES: [&str; 3] = ["", "Directory", "DirectoryOrCreate"];

/// Puts the volume at `folder`: a link to what it names, once that is known to lie where this node allows. Reads and writes
/// files. The error is the event's message.
pub(crate) fn link(folder: &Path, source: &HostPathVolumeSource, allowed: &[PathBuf]) -> Result<(), String> {
    let found = resolve(Path::new(&source.path), source.type_.as_deref().unwrap_or_default(), allowed)?;
    let linked = || -> io::Result<()> {
        if fs::read_link(folder).is_ok_and(|there| there == found) {
            return Ok(());
        }
        if folder.symlink_metadata().is_ok() {
            fs::remove_file(folder)?;
        }
        if let Some(parent) = folder.parent() {
            fs::create_dir_all(parent)?;
        }
        symlink(&found, folder)
    };
    linked().map_err(|error| error.to_string())
}

#[cfg(unix)]
fn symlink(to: &Path, at: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(to, at)
}

#[cfg(windows)]
fn symlink(to: &Path, at: &Path) -> io::Result<()> {
    std::os::windows::fs::symlink_dir(to, at)
}

/// The folder that is meant, without links on the way to it.
fn resolve(path: &Path, kind: &str, allowed: &[PathBuf]) -> Result<PathBuf, String> {
    let inside = |real: &Path| allowed.iter().any(|dir| dir.canonicalize().is_ok_and(|dir| real.starts_with(dir)));
    let refused = || {
        let path = path.display();
        format!("hostPath {path} is not below a folder that this node allows: start it with --allow-host-path DIR")
    };
    // What is there of it must be inside before anything is looked at or made.
    let there = path.ancestors().find_map(|part| part.canonicalize().ok()).ok_or_else(refused)?;
    if !inside(&there) || path.components().any(|part| matches!(part, std::path::Component::ParentDir)) {
        return Err(refused());
    }
    if kind == "DirectoryOrCreate" && !path.exists() {
        fs::create_dir_all(path).map_err(|error| error.to_string())?;
    }
    let real = path.canonicalize().map_err(|_| not_a_folder(path))?;
    if !inside(&real) {
        return Err(refused());
    }
    if real.is_dir() { Ok(real) } else { Err(not_a_folder(path)) }
}

/// Upstream's words.
fn not_a_folder(path: &Path) -> String {
    format!("hostPath type check failed: {} is not a directory", path.display())
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_node_allows_is_linked() {
        let root = tempfile::tempdir().unwrap();
        let root_path = root.path().canonicalize().unwrap();
        let (allowed, other) = (root_path.join("allowed"), root_path.join("other"));
        fs::create_dir_all(allowed.join("data")).unwrap();
        fs::create_dir_all(&other).unwrap();
        fs::write(allowed.join("file"), b"").unwrap();
        symlink(&other, &allowed.join("out")).unwrap();
        symlink(&allowed.join("data"), &allowed.join("alias")).unwrap();
        let volume = root_path.join("pod/volumes/v");
        let link = |path: &Path, kind: &str| {
            let source = HostPathVolumeSource { path: path.display().to_string(), type_: Some(kind.into()) };
            super::link(&volume, &source, std::slice::from_ref(&allowed)).map(|()| fs::read_link(&volume).unwrap())
        };
        assert_eq!(link(&allowed.join("data"), "Directory"), Ok(allowed.join("data")));
        assert_eq!(link(&allowed.join("alias"), ""), Ok(allowed.join("data")));
        assert_eq!(link(&allowed.join("new/deep"), "DirectoryOrCreate"), Ok(allowed.join("new/deep")));
        assert_eq!(link(&allowed, ""), Ok(allowed.clone()));
        for bad in ["../other", "out", "out/new", "../allowed2", "data/../../other"] {
            for kind in TYPES {
                let error = link(&allowed.join(bad), kind).unwrap_err();
                assert!(error.contains("--allow-host-path"), "{bad} {kind}: {error}");
            }
        }
        assert!(!other.join("new").exists());
        for missing in ["none", "file"] {
            let error = link(&allowed.join(missing), "Directory").unwrap_err();
            assert!(
                error.starts_with("hostPath type check failed: ") && error.ends_with(" is not a directory"),
                "{error}"
            );
        }
        assert!(link(Path::new("/"), "").is_err() && link(Path::new("/etc"), "").is_err());
    }
}
