//! The store's folder: its lock, its format version, and making its directory entries durable.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::StoreError;

/// The format version of the folder's files; raised when an older program could not read them.
const FORMAT: u32 = 3;
/// The first version, of JSON without heads: read, never written.
const FORMAT_PLAIN: u32 = 1;
/// The version of records without managers.
const FORMAT_UNMANAGED: u32 = 2;

/// A locked folder; dropping it releases the lock.
pub(super) struct Lock(#[expect(dead_code, reason = "holds the lock while it is open")] File);

pub(super) fn unusable(path: &Path, error: &io::Error) -> StoreError {
    StoreError::Unavailable(format!("{}: {error}", path.display()))
}

/// The error for damaged files: the file, the damage, and the remedy.
pub(super) fn damaged(path: &Path, what: &str) -> StoreError {
    StoreError::Damaged(format!(
        "{} is damaged: {what}; nothing was changed: restore a backup in a new folder (coracle restore FILE --data-dir \
         DIR), or put a copy of the data folder back",
        path.display()
    ))
}

/// The free bytes on the folder's disk for this user.
#[cfg(unix)]
pub(super) fn free_bytes(path: &Path) -> Option<u64> {
    let disk = rustix::fs::statvfs(path).ok()?;
    Some(disk.f_bavail.saturating_mul(disk.f_frsize))
}

/// Not available on other systems.
#[cfg(not(unix))]
pub(super) fn free_bytes(_: &Path) -> Option<u64> {
    None
}

/// Makes the entries of a folder durable.
pub(super) fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Makes the entries of all folders above `path` durable: an earlier start may have created any of them and ended before
/// the sync. A folder that can't be opened or synced is one that the process can't have created an entry in.
fn sync_ancestors(path: &Path) -> io::Result<()> {
    use io::ErrorKind::{InvalidInput, PermissionDenied, Unsupported};
    for folder in path.ancestors().skip(1) {
        match sync_folder(folder) {
            Err(error) if !matches!(error.kind(), InvalidInput | PermissionDenied | Unsupported) => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// The path with a longer name.
pub(super) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut longer = path.as_os_str().to_owned();
    longer.push(suffix);
    longer.into()
}

/// Writes a file atomically, completely or not at all, and for this user only.
pub(super) fn write_whole(path: &Path, write: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
    let temporary = beside(path, ".tmp");
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(&temporary)?;
    write(&mut file)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    path.parent().map_or(Ok(()), sync_folder)
}

/// Raises the format version after reading and before the first write: an older program then reports the version,
/// instead of damage.
pub(super) fn raise(path: &Path) -> Result<(), StoreError> {
    let format = path.join("format");
    let text = fs::read_to_string(&format).map_err(|error| unusable(&format, &error))?;
    if text.trim() == FORMAT.to_string() { Ok(()) } else { write_format(&format) }
}

pub(super) fn write_format(path: &Path) -> Result<(), StoreError> {
    write_whole(path, |file| writeln!(file, "{FORMAT}")).map_err(|error| unusable(path, &error))
}

/// Whether this program can read the format in `text`. An older one is raised after reading: [`raise`].
pub(super) fn check_format(format: &Path, text: &str) -> Result<(), StoreError> {
    match text.trim().parse::<u32>() {
        Ok(FORMAT_PLAIN | FORMAT_UNMANAGED | FORMAT) => Ok(()),
        Ok(newer) => Err(StoreError::Damaged(format!(
            "{} says format {newer}, this program reads up to {FORMAT}: use the newer coracle that wrote it",
            format.display()
        ))),
        Err(_) => Err(damaged(format, "it holds no version")),
    }
}

/// Creates the folder if needed, locks it, and checks that this program can read it.
pub(super) fn enter(path: &Path) -> Result<Lock, StoreError> {
    let log = path.join("log");
    fs::create_dir_all(&log).map_err(|error| unusable(&log, &error))?;
    let lock = path.join("lock");
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(&lock);
    let file = file.map_err(|error| unusable(&lock, &error))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            return Err(StoreError::InUse(format!(
                "{} is in use by another process: stop that one, or use another folder",
                path.display()
            )));
        }
        Err(TryLockError::Error(error)) => return Err(unusable(&lock, &error)),
    }
    let format = path.join("format");
    match fs::read_to_string(&format) {
        Ok(text) => check_format(&format, &text)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let empty = fs::read_dir(&log).map_err(|error| unusable(&log, &error))?.next().is_none();
            if !empty {
                return Err(damaged(&format, "it is missing beside a log"));
            }
            // The file is written last: later starts with it sync no folders above the store.
            sync_ancestors(path).map_err(|error| unusable(path, &error))?;
            write_format(&format)?;
        }
        Err(error) => return Err(unusable(&format, &error)),
    }
    Ok(Lock(file))
}
