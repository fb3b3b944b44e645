//! `hostPath` volumes: folders and files of the machine that the node's operator allows (`--allow-host-path`). A pod
//! with another path gets an event and waits until the path is allowed or the pod is deleted
//! (<https://kubernetes.io/docs/concepts/storage/volumes/#hostpath>).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::HostPathVolumeSource;

/// The name of a volume's only file.
pub(super) const FILE: &str = "file";

/// Creates the volume at `folder`: a link to its path after a check that the path is allowed on this node. Reads and
/// writes files. The error is the event's message.
pub(crate) fn link(folder: &Path, source: &HostPathVolumeSource, allowed: &[PathBuf]) -> Result<(), String> {
    match resolve(Path::new(&source.path), source.type_.as_deref().unwrap_or_default(), allowed)? {
        ResolvedPath::Folder(real) => link_to(folder, &real).map_err(|error| error.to_string()),
        ResolvedPath::File { below, rest } => share(folder, &below, &rest).map_err(|error| match error.kind() {
            io::ErrorKind::CrossesDevices => {
                format!(
                    "hostPath {} lies on another file system than the node's data folder: mount its folder",
                    source.path
                )
            }
            _ => error.to_string(),
        }),
    }
}

/// Returns where the volume at `folder` is: an allowed folder and the remaining path below it, on which guests may have
/// created links since. The caller resolves that path without leaving the allowed folder.
pub(super) fn split_allowed(
    folder: &Path,
    source: &Path,
    allowed: &[PathBuf],
) -> Result<(PathBuf, Vec<PathBuf>), String> {
    let real = fs::read_link(folder).map_err(|error| error.to_string())?;
    let root = allowed_folder(&real, allowed).ok_or_else(|| refused(source))?;
    let rest = real.strip_prefix(&root).map_err(|error| error.to_string())?;
    let rest = (!rest.as_os_str().is_empty()).then(|| rest.to_owned());
    Ok((root, rest.into_iter().collect()))
}

/// Returns the allowed folder that contains the path.
fn allowed_folder(real: &Path, allowed: &[PathBuf]) -> Option<PathBuf> {
    allowed.iter().filter_map(|dir| dir.canonicalize().ok()).find(|dir| real.starts_with(dir))
}

fn refused(path: &Path) -> String {
    let path = path.display();
    format!("hostPath {path} is not below a folder that this node allows: start it with --allow-host-path DIR")
}

/// Returns whether the volume of that folder is a single file, [`FILE`].
pub(super) fn is_file(folder: &Path) -> bool {
    folder.symlink_metadata().is_ok_and(|metadata| metadata.is_dir())
}

/// Creates a hard link to a file in `folder`: both names have the same content. Like a file mounted upstream, it does
/// not follow a later replacement of the original.
fn share(folder: &Path, below: &Path, rest: &Path) -> io::Result<()> {
    use cap_primitives::fs::{FollowSymlinks, hard_link, stat};
    if folder.symlink_metadata().is_ok_and(|metadata| !metadata.is_dir()) {
        fs::remove_file(folder)?;
    }
    fs::create_dir_all(folder)?;
    // Guests may write below the allowed folder and replace parts of the path: resolution must not leave the folder.
    let (root, own) = (fs::File::open(below)?, fs::File::open(folder)?);
    if folder.join(FILE).symlink_metadata().is_ok() {
        return Ok(());
    }
    hard_link(&root, rest, &own, Path::new(FILE))?;
    if !stat(&own, Path::new(FILE), FollowSymlinks::No)?.is_file() {
        fs::remove_file(folder.join(FILE))?;
        return Err(io::Error::other("it is no longer a file"));
    }
    Ok(())
}

/// Makes `folder` a link to `to`, unless it already is.
pub(super) fn link_to(folder: &Path, to: &Path) -> io::Result<()> {
    if fs::read_link(folder).is_ok_and(|there| there == to) {
        return Ok(());
    }
    if folder.symlink_metadata().is_ok() {
        fs::remove_file(folder)?;
    }
    if let Some(parent) = folder.parent() {
        fs::create_dir_all(parent)?;
    }
    symlink(to, folder)
}

#[cfg(unix)]
fn symlink(to: &Path, at: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(to, at)
}

#[cfg(windows)]
fn symlink(to: &Path, at: &Path) -> io::Result<()> {
    std::os::windows::fs::symlink_dir(to, at)
}

/// The target of a path.
enum ResolvedPath {
    Folder(PathBuf),
    /// A file, by its path below an allowed folder.
    File {
        below: PathBuf,
        rest: PathBuf,
    },
}

/// Resolves a path without links.
fn resolve(path: &Path, kind: &str, allowed: &[PathBuf]) -> Result<ResolvedPath, String> {
    let refused = || refused(path);
    // The existing part must be inside before anything is inspected or created.
    let there = path.ancestors().find_map(|part| Some((part.canonicalize().ok()?, path.strip_prefix(part).ok()?)));
    let (there, missing) = there.ok_or_else(refused)?;
    let root = allowed_folder(&there, allowed).ok_or_else(refused)?;
    if path.components().any(|part| matches!(part, std::path::Component::ParentDir)) {
        return Err(refused());
    }
    if kind == "DirectoryOrCreate" && !path.exists() {
        let rest = there.strip_prefix(&root).map_err(|_| refused())?;
        make_folders(&root, rest, missing).map_err(|error| error.to_string())?;
    }
    if kind == "FileOrCreate" && !path.exists() {
        make_file(path, &root).map_err(|error| error.to_string())?;
    }
    let wants_file = matches!(kind, "File" | "FileOrCreate");
    let real = path.canonicalize().map_err(|_| wrong_type(if wants_file { "file" } else { "directory" }, path))?;
    let below = allowed_folder(&real, allowed).ok_or_else(refused)?;
    match real.is_file() {
        true if wants_file || kind.is_empty() => {
            let rest = real.strip_prefix(&below).map_err(|_| refused())?.to_owned();
            Ok(ResolvedPath::File { below, rest })
        }
        false if wants_file => Err(wrong_type("file", path)),
        false if real.is_dir() => Ok(ResolvedPath::Folder(real)),
        _ => Err(wrong_type("directory", path)),
    }
}

/// Creates the `missing` folders below `there`, which is inside the allowed folder.
fn make_folders(root: &Path, there: &Path, missing: &Path) -> io::Result<()> {
    use cap_primitives::fs::{DirOptions, create_dir};
    let (root, mut made) = (fs::File::open(root)?, there.to_owned());
    for part in missing.components() {
        made.push(part);
        match create_dir(&root, &made, &DirOptions::new()) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Like upstream: creates an empty file in an existing folder.
fn make_file(path: &Path, below: &Path) -> io::Result<()> {
    use cap_primitives::fs::{OpenOptions, open};
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::NotFound.into());
    };
    let parent = parent.canonicalize()?;
    let rest = parent.strip_prefix(below).map_err(io::Error::other)?.join(name);
    open(&fs::File::open(below)?, &rest, OpenOptions::new().write(true).create(true)).map(drop)
}

/// The error text is upstream's.
fn wrong_type(kind: &str, path: &Path) -> String {
    format!("hostPath type check failed: {} is not a {kind}", path.display())
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn only_paths_that_the_node_allows_are_linked() {
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
            super::link(&volume, &source, std::slice::from_ref(&allowed))
                .map(|()| fs::read_link(&volume).unwrap_or_default())
        };
        assert_eq!(link(&allowed.join("data"), "Directory"), Ok(allowed.join("data")));
        assert_eq!(link(&allowed.join("alias"), ""), Ok(allowed.join("data")));
        assert_eq!(link(&allowed.join("new/deep"), "DirectoryOrCreate"), Ok(allowed.join("new/deep")));
        assert_eq!(link(&allowed, ""), Ok(allowed.clone()));
        for bad in ["../other", "out", "out/new", "../allowed2", "data/../../other"] {
            for kind in machinery_rules::unsupported::HOST_PATH_TYPES {
                let error = link(&allowed.join(bad), kind).unwrap_err();
                assert!(error.contains("--allow-host-path"), "{bad} {kind}: {error}");
            }
        }
        assert!(!other.join("new").exists());
        let of_file = |path: &str, kind: &str| {
            let _ = fs::remove_dir_all(&volume);
            let linked = link(&allowed.join(path), kind);
            linked.map(|_| (is_file(&volume), fs::read(volume.join(FILE)).unwrap()))
        };
        for kind in ["", "File", "FileOrCreate"] {
            assert_eq!(of_file("file", kind), Ok((true, Vec::new())), "{kind}");
        }
        assert_eq!(of_file("data/made", "FileOrCreate"), Ok((true, Vec::new())));
        fs::write(allowed.join("data/made"), b"new").unwrap();
        assert_eq!(fs::read(volume.join(FILE)).unwrap(), b"new", "the same file");
        let no_file =
            |path: &str| format!("hostPath type check failed: {} is not a file", allowed.join(path).display());
        assert_eq!(of_file("none", "File"), Err(no_file("none")));
        assert_eq!(of_file("data", "FileOrCreate"), Err(no_file("data")));
        fs::write(other.join("secret"), b"secret").unwrap();
        symlink(&other.join("secret"), &allowed.join("data/leak")).unwrap();
        assert!(of_file("data/leak", "File").unwrap_err().contains("--allow-host-path"));
        // Replaced after the check.
        let _ = fs::remove_dir_all(&volume);
        assert!(share(&volume, &allowed, Path::new("data/leak")).is_err());
        assert!(share(&volume, &allowed, Path::new("out/secret")).is_err());
        let _ = fs::remove_dir_all(&volume);
        for missing in ["none", "file"] {
            let error = link(&allowed.join(missing), "Directory").unwrap_err();
            assert!(
                error.starts_with("hostPath type check failed: ") && error.ends_with(" is not a directory"),
                "{error}"
            );
        }
        assert!(link(Path::new("/"), "").is_err() && link(Path::new("/etc"), "").is_err());
    }

    #[test]
    fn a_folder_that_a_guest_swaps_for_a_link_leads_nowhere() {
        let root = tempfile::tempdir().unwrap();
        let root_path = root.path().canonicalize().unwrap();
        let (allowed, other) = (root_path.join("allowed"), root_path.join("other"));
        fs::create_dir_all(allowed.join("a/data")).unwrap();
        fs::create_dir_all(other.join("data")).unwrap();
        let volume = root_path.join("pod/volumes/v");
        let path = allowed.join("a/data");
        let source = HostPathVolumeSource { path: path.display().to_string(), type_: Some("Directory".into()) };
        link(&volume, &source, std::slice::from_ref(&allowed)).unwrap();
        let (host, sub_paths) = split_allowed(&volume, &path, std::slice::from_ref(&allowed)).unwrap();
        assert_eq!((&host, &sub_paths[..]), (&allowed, &[PathBuf::from("a/data")][..]));
        let of = runtime_api::Preopen { host, sub_paths, guest: "/v".into(), writable: true };
        assert!(of.open().is_ok());
        fs::rename(allowed.join("a"), allowed.join("b")).unwrap();
        symlink(Path::new("../other"), &allowed.join("a")).unwrap();
        assert!(of.open().is_err(), "a link out of what is allowed");
        // Nothing is created there, either.
        assert!(make_folders(&allowed, Path::new("a"), Path::new("new/deep")).is_err());
        assert!(!other.join("new").exists());
        // A path that is no longer allowed is rejected.
        assert!(split_allowed(&volume, &path, &[other]).unwrap_err().contains("--allow-host-path"));
    }
}
