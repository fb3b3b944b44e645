//! A path to a volume for libraries that open folders by path only. An open folder pins it, whatever happens to its
//! parents.

use std::fs::File;
use std::io;
use std::path::PathBuf;

use runtime_api::Preopen;

/// A volume's path, pinned by an open folder.
pub(crate) struct Anchored {
    /// Leads to the folder as long as this lives, whatever happens to its parents.
    pub(crate) path: PathBuf,
    _dir: Option<File>,
}

impl Anchored {
    /// See [`Preopen::open`].
    pub(crate) fn of(folder: &Preopen) -> io::Result<Self> {
        if folder.sub_paths.is_empty() {
            return Ok(Self { path: folder.host.clone(), _dir: None });
        }
        let dir = folder.open()?;
        #[cfg(target_os = "linux")]
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&dir)).into();
        // Other systems have no path to an open folder: uses the current path.
        #[cfg(not(target_os = "linux"))]
        let path = {
            let below = folder.sub_paths.iter().fold(folder.host.clone(), |path, sub| path.join(sub));
            let (root, path) = (folder.host.canonicalize()?, below.canonicalize()?);
            if !path.starts_with(root) {
                return Err(io::ErrorKind::PermissionDenied.into());
            }
            path
        };
        Ok(Self { path, _dir: Some(dir) })
    }
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn nothing_below_a_volume_leads_out_of_it() {
        let root = tempfile::tempdir().unwrap();
        let host = root.path().join("volume");
        std::fs::create_dir_all(host.join("real/inner")).unwrap();
        std::fs::create_dir_all(root.path().join("secret")).unwrap();
        std::fs::write(host.join("real/inner/here"), b"").unwrap();
        std::fs::write(host.join("file"), b"").unwrap();
        symlink("real", host.join("link")).unwrap();
        symlink("../secret", host.join("out")).unwrap();
        symlink(root.path().join("secret"), host.join("absolute")).unwrap();
        let of =
            |sub: &str| Preopen { host: host.clone(), sub_paths: vec![sub.into()], guest: "/v".into(), writable: true };
        for sub in ["real/inner", "link/inner", "link/../real/inner"] {
            assert!(of(sub).open().is_ok(), "{sub}");
            let anchored = Anchored::of(&of(sub)).unwrap();
            assert!(anchored.path.join("here").exists(), "{sub}");
        }
        for sub in ["out", "absolute", "..", "link/../../secret", "/", "file", "none"] {
            assert!(of(sub).open().is_err() && Anchored::of(&of(sub)).is_err(), "{sub}");
        }
    }
}
