//! A folder of keys and certificates, and its files, which only their owner can read.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use super::pki::PkiError;

/// Creates a folder, or closes it to other users.
///
/// # Errors
/// If it can't be created or closed.
pub fn create_folder(path: &Path) -> Result<(), PkiError> {
    PkiFolder::open(path).map(drop)
}

/// Writes a file atomically, readable only by its owner.
pub fn write_private(path: &Path, text: &str) -> Result<(), PkiError> {
    let failed = |source| PkiError::File { path: path.display().to_string(), source };
    let mut partial = path.as_os_str().to_owned();
    partial.push(".new");
    let partial = PathBuf::from(partial);
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt as _;
        options.mode(0o600);
    }
    let mut file = options.open(&partial).map_err(failed)?;
    #[cfg(unix)]
    {
        // The mode above applies only to new files, not to one left by an interrupted write.
        use std::os::unix::fs::PermissionsExt as _;
        file.set_permissions(fs::Permissions::from_mode(0o600)).map_err(failed)?;
    }
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)?;
    fs::rename(&partial, path).map_err(failed)?;
    if let Some(folder) = path.parent()
        && let Ok(folder) = fs::File::open(folder)
    {
        folder.sync_all().map_err(failed)?;
    }
    Ok(())
}

/// The folder of keys and certificates.
pub(super) struct PkiFolder {
    dir: PathBuf,
}

impl PkiFolder {
    /// A folder that is only read.
    pub(super) fn existing(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    pub(super) fn open(dir: &Path) -> Result<Self, PkiError> {
        let failed = |source| PkiError::File { path: dir.display().to_string(), source };
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true);
        #[cfg(unix)]
        {
            use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
            builder.mode(0o700);
            builder.create(dir).map_err(failed)?;
            fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).map_err(failed)?;
        }
        #[cfg(not(unix))]
        builder.create(dir).map_err(failed)?;
        Ok(Self { dir: dir.to_owned() })
    }

    pub(super) fn read(&self, name: &str) -> Result<Option<String>, PkiError> {
        let path = self.dir.join(name);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(PkiError::File { path: path.display().to_string(), source }),
        }
    }

    /// Reads a file that must be there.
    pub(super) fn read_required(&self, name: &str) -> Result<String, PkiError> {
        let missing = || PkiError::File {
            path: self.dir.join(name).display().to_string(),
            source: std::io::ErrorKind::NotFound.into(),
        };
        self.read(name)?.ok_or_else(missing)
    }

    pub(super) fn write(&self, name: &str, text: &str) -> Result<(), PkiError> {
        write_private(&self.dir.join(name), text)
    }

    pub(super) fn write_changed(&self, name: &str, text: &str) -> Result<(), PkiError> {
        if self.read(name)?.as_deref() == Some(text) { Ok(()) } else { self.write(name, text) }
    }

    pub(super) fn damaged(&self, name: &str, why: &dyn std::fmt::Display) -> PkiError {
        PkiError::Damaged { path: self.dir.join(name).display().to_string(), why: why.to_string() }
    }
}
