//! Free space and error advice common to all writes of this node to its disk, and the turns of a container's file work.

use std::io;
use std::path::Path;

use async_trait::async_trait;

/// Minimum free bytes after a compilation: the store's log must be able to continue.
pub const FREE_BYTES_MIN: u64 = 256 << 20;

/// Advice to append to a disk error; empty if the error says all.
#[must_use]
pub fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "; free some space on the disk of the data folder",
        _ => "",
    }
}

/// Fails with less than [`FREE_BYTES_MIN`] free.
///
/// # Errors
/// Too little space, in the words of the registry's pushes and pulls.
pub fn check_space(free_bytes: u64) -> io::Result<()> {
    if free_bytes >= FREE_BYTES_MIN {
        return Ok(());
    }
    let text = format!(
        "no space left on device: {free_bytes} bytes are free, and {FREE_BYTES_MIN} must stay free for the cluster's store"
    );
    Err(io::Error::new(io::ErrorKind::StorageFull, text))
}

/// Bytes of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskSpace {
    /// Those that this process may still write.
    pub free: u64,
    /// All of the disk's.
    pub all: u64,
}

impl DiskSpace {
    /// The space of a folder's disk. `None` where the system doesn't report it: the write fails on a full disk.
    #[cfg(unix)]
    #[must_use]
    pub fn of(folder: &Path) -> Option<Self> {
        let disk = rustix::fs::statvfs(folder).ok()?;
        let bytes = |blocks: u64| blocks.saturating_mul(disk.f_frsize);
        Some(Self { free: bytes(disk.f_bavail), all: bytes(disk.f_blocks) })
    }

    /// The space of a folder's disk, which isn't read here.
    #[cfg(not(unix))]
    #[must_use]
    pub fn of(_folder: &Path) -> Option<Self> {
        None
    }
}

/// File work that could not start in time, because others of its container, its namespace or the node didn't end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskBusy;

/// Runs the file work of a host interface within the shares of its container.
#[async_trait]
pub trait FileWork: Send + Sync {
    /// Runs `work` once, which may block on the disk.
    ///
    /// # Errors
    /// It could not start in time; `work` didn't run.
    async fn run(&self, work: &mut (dyn FnMut() + Send)) -> Result<(), DiskBusy>;

    /// The same for work that flushes to the disk.
    ///
    /// # Errors
    /// As for [`run`](Self::run).
    async fn flush(&self, work: &mut (dyn FnMut() + Send)) -> Result<(), DiskBusy>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_error_has_advice() {
        assert!(check_space(FREE_BYTES_MIN).is_ok());
        let full = check_space(FREE_BYTES_MIN - 1).unwrap_err();
        assert_eq!(
            format!("{full}{}", advice(&full)),
            "no space left on device: 268435455 bytes are free, and 268435456 must stay free for the cluster's store; free some \
             space on the disk of the data folder"
        );
        assert_eq!(advice(&io::ErrorKind::NotFound.into()), "");
    }
}
