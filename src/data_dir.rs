//! The files of a data folder, and who may hold it.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use crate::config::Common;

/// A cluster's folder: where each of its files lies.
#[derive(Debug, Clone)]
pub(crate) struct DataDir(PathBuf);

impl DataDir {
    /// `--data-dir`, or the platform's data folder for `coracle`; absolute.
    ///
    /// # Errors
    /// The platform names no such folder.
    pub(crate) fn of(common: &Common) -> anyhow::Result<Self> {
        let path = match &common.data_dir {
            Some(path) => path.clone(),
            None => directories::ProjectDirs::from("dev", "", "coracle")
                .context("this platform names no data folder: give one with --data-dir DIR")?
                .data_dir()
                .to_path_buf(),
        };
        let path = std::path::absolute(&path).with_context(|| format!("--data-dir {}", path.display()))?;
        Ok(Self(path))
    }

    /// A folder at a known place.
    pub(crate) fn at(path: PathBuf) -> Self {
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.0.join("kubeconfig")
    }

    pub(crate) fn pki(&self) -> PathBuf {
        self.0.join("pki")
    }

    pub(crate) fn store(&self) -> PathBuf {
        self.0.join("store")
    }

    pub(crate) fn images(&self) -> PathBuf {
        self.0.join("images")
    }

    pub(crate) fn node(&self, name: &str) -> PathBuf {
        self.0.join("nodes").join(name)
    }

    pub(crate) fn registry_address(&self) -> PathBuf {
        self.0.join("registry-address")
    }

    pub(crate) fn registry_password(&self) -> PathBuf {
        self.0.join("registry-password")
    }

    pub(crate) fn network(&self) -> PathBuf {
        self.0.join("network")
    }

    /// Makes the folder, and takes it for this process until the lock is dropped.
    ///
    /// # Errors
    /// The folder can't be made, or another process has it.
    pub(crate) fn lock(&self) -> anyhow::Result<Lock> {
        create_private_dir(&self.0)?;
        let path = self.0.join("lock");
        let file = std::fs::OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .with_context(|| format!("cannot open {}", path.display()))?;
        match file.try_lock() {
            Ok(()) => Ok(Lock { _file: file }),
            Err(std::fs::TryLockError::WouldBlock) => anyhow::bail!(
                "the data folder {} is in use by another coracle process: stop it, or give another folder with --data-dir",
                self.0.display()
            ),
            Err(std::fs::TryLockError::Error(error)) => {
                Err(error).with_context(|| format!("cannot lock {}", path.display()))
            }
        }
    }
}

/// Held while a process runs on a data folder; the operating system releases it when the process ends.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: std::fs::File,
}

/// Makes a folder that only its owner can read.
///
/// # Errors
/// As the file system says.
pub(crate) fn create_private_dir(path: &Path) -> anyhow::Result<()> {
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path).with_context(|| format!("cannot make the folder {}", path.display()))
}

/// Replaces a file whole: a reader sees the old one or the new one.
///
/// # Errors
/// As the file system says.
pub(crate) fn write_atomically(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let fail = || format!("cannot write {}", path.display());
    let folder = path.parent().with_context(fail)?;
    // NamedTempFile is made with mode 0600.
    let mut file = tempfile::NamedTempFile::new_in(folder).with_context(fail)?;
    file.write_all(bytes).with_context(fail)?;
    file.as_file().sync_all().with_context(fail)?;
    file.persist(path).with_context(fail)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_has_one_owner() {
        let temp = tempfile::tempdir().unwrap();
        let data = DataDir::at(temp.path().join("data"));
        let held = data.lock().unwrap();
        let error = data.lock().unwrap_err().to_string();
        assert!(error.contains("in use by another"), "{error}");
        drop(held);
        data.lock().unwrap();
    }

    #[test]
    fn files_are_private_and_replaced_whole() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("f");
        write_atomically(&path, b"one").unwrap();
        write_atomically(&path, b"two").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        #[cfg(unix)]
        assert_eq!(
            std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&path).unwrap().permissions()) & 0o777,
            0o600
        );
    }
}
