//! The store's folder: its lock, its format version, and syncing what it names.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::path::Path;

use super::StoreError;

/// The version of everything in the folder; raised when an older program could not read it.
const FORMAT: u32 = 3;
/// The first one, of JSON without heads: read, and written no more.
const FORMAT_PLAIN: u32 = 1;
/// Of records that name no managers.
const FORMAT_UNMANAGED: u32 = 2;

/// A locked folder, until it is dropped.
pub(super) struct Lock(#[expect(dead_code, reason = "holds the lock while it is open")] File);

pub(super) fn unusable(path: &Path, error: &io::Error) -> StoreError {
    StoreError::Unavailable(format!("{}: {error}", path.display()))
}

/// What every damage says: the file, what is wrong, the way back.
pub(super) fn damaged(path: &Path, what: &str) -> StoreError {
    StoreError::Damaged(format!(
        "{} is damaged: {what}; nothing was changed: put a copy of the data folder back to restore the cluster",
        path.display()
    ))
}

/// What is left on a folder's disk for this user.
#[cfg(unix)]
pub(super) fn free_bytes(path: &Path) -> Option<u64> {
    let disk = rustix::fs::statvfs(path).ok()?;
    Some(disk.f_bavail.saturating_mul(disk.f_frsize))
}

/// Not asked elsewhere.
#[cfg(not(unix))]
pub(super) fn free_bytes(_: &Path) -> Option<u64> {
    None
}

/// Makes the names in a folder durable.
pub(super) fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Writes a whole file so that it exists completely or not at all.
pub(super) fn write_whole(path: &Path, write: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
    let temporary = path.with_extension("tmp");
    let mut file = File::create(&temporary)?;
    write(&mut file)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    path.parent().map_or(Ok(()), sync_folder)
}

/// Raises the format of a folder that was read, before the first record is written: an older program says then that it
/// can't read it, and doesn't take records for damage.
pub(super) fn raise(path: &Path) -> Result<(), StoreError> {
    let format = path.join("format");
    let text = fs::read_to_string(&format).map_err(|error| unusable(&format, &error))?;
    if text.trim() == FORMAT.to_string() { Ok(()) } else { write_format(&format) }
}

fn write_format(path: &Path) -> Result<(), StoreError> {
    write_whole(path, |file| writeln!(file, "{FORMAT}")).map_err(|error| unusable(path, &error))
}

/// Makes the folder where it isn't, locks it, and checks that this program can read it.
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
        Ok(text) => match text.trim().parse::<u32>() {
            Ok(FORMAT) => {}
            // Raised when it was read: `raise`.
            Ok(FORMAT_PLAIN | FORMAT_UNMANAGED) => {}
            Ok(newer) => {
                return Err(StoreError::Damaged(format!(
                    "{} says format {newer}, this program reads up to {FORMAT}: use the newer coracle that wrote it",
                    format.display()
                )));
            }
            Err(_) => return Err(damaged(&format, "it holds no version")),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let empty = fs::read_dir(&log).map_err(|error| unusable(&log, &error))?.next().is_none();
            if !empty {
                return Err(damaged(&format, "it is missing beside a log"));
            }
            write_format(&format)?;
            path.parent().map_or(Ok(()), sync_folder).map_err(|error| unusable(path, &error))?;
        }
        Err(error) => return Err(unusable(&format, &error)),
    }
    Ok(Lock(file))
}
