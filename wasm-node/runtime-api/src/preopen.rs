//! Folders of volumes. A guest may replace a path below a writable volume by a link to anywhere: paths below a volume are
//! opened without leaving it.

use std::fs::File;
use std::io;
use std::path::{Component, Path, PathBuf};

/// A folder that is preopened for the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Preopen {
    /// A folder on the host that no guest can replace.
    pub host: PathBuf,
    /// Paths below it that may contain guests' links; each is opened below the previous one without leaving it.
    pub sub_paths: Vec<PathBuf>,
    /// Its name in the guest: the mount path.
    pub guest: String,
    /// Whether the guest may write.
    pub writable: bool,
}

impl Preopen {
    /// Opens the folder.
    ///
    /// # Errors
    /// It is missing, or leads out of its base.
    pub fn open(&self) -> io::Result<File> {
        let mut dir = File::open(&self.host)?;
        for below in &self.sub_paths {
            dir = cap_primitives::fs::open_dir(&dir, below)?;
        }
        if !dir.metadata()?.is_dir() {
            return Err(io::Error::new(io::ErrorKind::NotADirectory, self.host.display().to_string()));
        }
        Ok(dir)
    }

    /// The remainder of the guest's `path` below this folder; `None` if it is elsewhere or not plain.
    #[must_use]
    pub fn rest<'a>(&self, path: &'a Path) -> Option<&'a Path> {
        let rest = path.strip_prefix(&self.guest).ok()?;
        rest.components().all(|part| matches!(part, Component::Normal(_))).then_some(rest)
    }

    /// The folder below it at the guest's `path`.
    #[must_use]
    pub fn below(&self, path: &Path) -> Option<Self> {
        let rest = self.rest(path)?;
        let mut folder = self.clone();
        if !rest.as_os_str().is_empty() {
            folder.sub_paths.push(rest.to_owned());
        }
        Some(folder)
    }
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn nothing_below_a_folder_leads_out_of_it() {
        let root = tempfile::tempdir().unwrap();
        let host = root.path().join("allowed");
        std::fs::create_dir_all(host.join("volume/inner")).unwrap();
        std::fs::create_dir_all(host.join("other")).unwrap();
        std::fs::create_dir_all(root.path().join("secret")).unwrap();
        symlink("../other", host.join("volume/beside")).unwrap();
        symlink("../../secret", host.join("volume/out")).unwrap();
        let of = |sub_paths: &[&str]| {
            let sub_paths = sub_paths.iter().map(PathBuf::from).collect();
            Preopen { host: host.clone(), sub_paths, guest: "/v".into(), writable: true }
        };
        assert!(of(&["volume", "inner"]).open().is_ok());
        assert!(of(&["volume/beside"]).open().is_ok(), "within what is allowed");
        assert!(of(&["volume", "beside"]).open().is_err(), "out of the volume");
        assert!(of(&["volume", "out"]).open().is_err() && of(&["volume/out"]).open().is_err());
        assert!(of(&["volume"]).below(Path::new("/v/inner")).unwrap().open().is_ok());
        assert!(of(&["volume"]).below(Path::new("/v/out")).unwrap().open().is_err());
        assert_eq!(of(&[]).below(Path::new("/v")), Some(of(&[])));
        for elsewhere in ["/w", "/v/../w", "/vv"] {
            assert_eq!(of(&[]).below(Path::new(elsewhere)), None, "{elsewhere}");
        }
    }

    /// A writer that swaps a folder for a link in a loop: an opened folder is within the base, or the open fails.
    #[test]
    fn a_link_that_comes_and_goes_leads_nowhere() {
        use std::os::unix::fs::MetadataExt as _;
        use std::sync::atomic::{AtomicBool, Ordering};

        let root = tempfile::tempdir().unwrap();
        let (host, secret) = (root.path().join("allowed"), root.path().join("secret"));
        let (folder, aside) = (host.join("a/folder"), host.join("a/aside"));
        std::fs::create_dir_all(folder.join("deep")).unwrap();
        std::fs::create_dir_all(secret.join("deep")).unwrap();
        let forbidden = [&secret, &secret.join("deep")].map(|path| path.metadata().unwrap().ino());
        let of = Preopen { host, sub_paths: vec!["a/folder/deep".into()], guest: "/v".into(), writable: true };
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    std::fs::rename(&folder, &aside).unwrap();
                    symlink("../../secret", &folder).unwrap();
                    std::fs::remove_file(&folder).unwrap();
                    std::fs::rename(&aside, &folder).unwrap();
                }
            });
            let (mut opened, mut refused) = (0, 0);
            while (opened < 200 || refused < 200) && opened + refused < 200_000 {
                match of.open() {
                    Ok(dir) => {
                        opened += 1;
                        assert!(!forbidden.contains(&dir.metadata().unwrap().ino()));
                    }
                    Err(_) => refused += 1,
                }
            }
            over.store(true, Ordering::Relaxed);
        });
    }
}
