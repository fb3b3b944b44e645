//! Folders of volumes. Guests write to some of them, so that a path below one may be a link by now that leads anywhere: what
//! is asked for below a volume is opened without leaving it.

use std::fs::File;
use std::io;
use std::path::{Component, Path, PathBuf};

/// A folder that the guest finds open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Preopen {
    /// A folder on the host that no guest can put another one in the place of.
    pub host: PathBuf,
    /// What of it: paths in which guests may have put links, each below the one before and opened without ever leaving it.
    pub sub_paths: Vec<PathBuf>,
    /// Its name in the guest: the mount path.
    pub guest: String,
    /// Whether the guest may write.
    pub writable: bool,
}

impl Preopen {
    /// Opens it.
    ///
    /// # Errors
    /// It is not there, or leads out of what it has to be within.
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

    /// What the guest knows as `path`: this folder's, with the rest of the path. None where that is elsewhere or not plain.
    #[must_use]
    pub fn rest<'a>(&self, path: &'a Path) -> Option<&'a Path> {
        let rest = path.strip_prefix(&self.guest).ok()?;
        rest.components().all(|part| matches!(part, Component::Normal(_))).then_some(rest)
    }

    /// The folder below it that the guest knows as `path`.
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

    /// A writer that swaps a folder for a link as fast as it can: what is opened lies within, or nothing is.
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
