//! Space of the disk that a folder is on.

use std::path::Path;

/// Bytes of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DiskSpace {
    /// Those that this process may still write.
    pub(crate) free: u64,
    pub(crate) all: u64,
}

impl DiskSpace {
    /// The space of a folder's disk. `None` where the system doesn't report it: the write fails on a full disk.
    #[cfg(unix)]
    pub(crate) fn of(folder: &Path) -> Option<Self> {
        let disk = rustix::fs::statvfs(folder).ok()?;
        let bytes = |blocks: u64| blocks.saturating_mul(disk.f_frsize);
        Some(Self { free: bytes(disk.f_bavail), all: bytes(disk.f_blocks) })
    }

    /// The space of a folder's disk, which isn't read here.
    #[cfg(not(unix))]
    pub(crate) fn of(_folder: &Path) -> Option<Self> {
        None
    }
}
