//! Opens the folders of volumes. Guests write to some of them, so that a path below one may be a link by now that leads
//! anywhere: what is asked for below a volume is opened without leaving it.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use runtime_api::Preopen;

/// Opens a volume's folder, or the folder below it that is meant.
pub(crate) fn open(folder: &Preopen) -> io::Result<File> {
    let dir = File::open(&folder.host)?;
    let dir = match &folder.sub_path {
        None => dir,
        Some(sub) => cap_primitives::fs::open_dir(&dir, sub)?,
    };
    if !dir.metadata()?.is_dir() {
        return Err(io::Error::new(io::ErrorKind::NotADirectory, folder.host.display().to_string()));
    }
    Ok(dir)
}

/// A volume for those who open it by its path.
pub(crate) struct Anchored {
    /// Leads to the folder for as long as this lives, whatever becomes of what lies on the way.
    pub(crate) path: PathBuf,
    _dir: Option<File>,
}

impl Anchored {
    pub(crate) fn plain(path: &Path) -> Self {
        Self { path: path.to_owned(), _dir: None }
    }

    /// See [`open`].
    pub(crate) fn of(folder: &Preopen) -> io::Result<Self> {
        let Some(sub) = &folder.sub_path else { return Ok(Self::plain(&folder.host)) };
        let dir = open(folder)?;
        #[cfg(target_os = "linux")]
        let (path, _) = (format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&dir)).into(), sub);
        // There is no path to an open folder elsewhere: what it leads to now.
        #[cfg(not(target_os = "linux"))]
        let path = {
            let (root, path) = (folder.host.canonicalize()?, folder.host.join(sub).canonicalize()?);
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
            |sub: &str| Preopen { host: host.clone(), sub_path: Some(sub.into()), guest: "/v".into(), writable: true };
        for sub in ["real/inner", "link/inner", "link/../real/inner"] {
            assert!(open(&of(sub)).is_ok(), "{sub}");
            let anchored = Anchored::of(&of(sub)).unwrap();
            assert!(anchored.path.join("here").exists(), "{sub}");
        }
        for sub in ["out", "absolute", "..", "link/../../secret", "/", "file", "none"] {
            assert!(open(&of(sub)).is_err() && Anchored::of(&of(sub)).is_err(), "{sub}");
        }
    }
}
