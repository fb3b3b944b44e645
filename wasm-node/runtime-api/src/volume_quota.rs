//! What a volume of a claim may hold: a bound for all guests of a node that write to it. What is written beyond it is refused, as a full
//! disk refuses it; whoever writes elsewhere hears nothing of it.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::MemoryFiles;

/// The smallest piece that a file grows by.
const BLOCK_BYTES: u64 = 4096;

/// Files and folders that a volume may hold: what a walk gets through in well under a second.
pub const VOLUME_FILES_MAX: u64 = 100_000;

/// What a volume holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct VolumeUse {
    /// Bytes on the disk.
    pub bytes: u64,
    /// Files, folders and links.
    pub files: u64,
}

/// Walks through the volume; none where that was done a moment ago.
type Measure = Box<dyn Fn() -> Option<VolumeUse> + Send + Sync>;

/// The account of one volume. What is written is counted at once, what is removed when the volume is measured next.
pub struct VolumeQuota {
    folder: PathBuf,
    limit: AtomicU64,
    measure: Measure,
    used: Mutex<VolumeUse>,
}

impl std::fmt::Debug for VolumeQuota {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VolumeQuota").field("folder", &self.folder).field("used", &self.used()).finish_non_exhaustive()
    }
}

impl VolumeQuota {
    /// `folder`: where the volume lies, without links on the way to it; `used`: what it holds.
    #[must_use]
    pub fn new(folder: PathBuf, limit: u64, used: VolumeUse, measure: Measure) -> Self {
        Self { folder, limit: AtomicU64::new(limit), measure, used: Mutex::new(used) }
    }

    fn used_now(&self) -> MutexGuard<'_, VolumeUse> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What it holds, as far as is known.
    #[must_use]
    pub fn used(&self) -> VolumeUse {
        *self.used_now()
    }

    /// Bytes that it may hold.
    #[must_use]
    pub fn limit(&self) -> u64 {
        self.limit.load(Ordering::Relaxed)
    }

    /// It may hold so much from now on.
    pub fn set_limit(&self, bytes: u64) {
        self.limit.store(bytes, Ordering::Relaxed);
    }

    /// Whether what lies there is the volume's.
    #[must_use]
    pub fn holds(&self, path: &Path) -> bool {
        path.starts_with(&self.folder)
    }

    /// Whether so many bytes more may be written.
    #[must_use]
    pub fn has_room(&self, bytes: u64) -> bool {
        let bytes = bytes.div_ceil(BLOCK_BYTES).saturating_mul(BLOCK_BYTES);
        self.holds_if(|used| bytes == 0 || used.bytes.saturating_add(bytes) <= self.limit())
    }

    /// Whether it holds by what is known, or by what lies there: what was removed makes room.
    fn holds_if(&self, fits: impl Fn(VolumeUse) -> bool) -> bool {
        if fits(self.used()) {
            return true;
        }
        if let Some(there) = (self.measure)() {
            *self.used_now() = there;
        }
        fits(self.used())
    }

    /// Whether one file more may be made.
    #[must_use]
    pub fn takes_file(&self) -> bool {
        self.holds_if(|used| used.files < VOLUME_FILES_MAX)
    }

    /// A file was made, or may have been: a folder with the block that it takes.
    pub fn made_file(&self, is_folder: bool) {
        let mut used = self.used_now();
        used.files = used.files.saturating_add(1);
        used.bytes = used.bytes.saturating_add(if is_folder { BLOCK_BYTES } else { 0 });
    }

    /// A file has grown by so much.
    pub fn grew(&self, bytes: u64) {
        let mut used = self.used_now();
        used.bytes = used.bytes.saturating_add(bytes);
    }
}

/// Who counts what is written to a file.
#[derive(Debug, Clone)]
pub enum FileAccount {
    /// The pod's memory.
    Memory(Arc<MemoryFiles>),
    /// A claim's volume.
    Volume(Arc<VolumeQuota>),
}

impl FileAccount {
    /// Whether so many bytes more may be written.
    #[must_use]
    pub fn has_room(&self, bytes: u64) -> bool {
        match self {
            Self::Memory(files) => files.has_room(bytes),
            Self::Volume(quota) => quota.has_room(bytes),
        }
    }

    /// Whether one file more may be made, a folder or not.
    #[must_use]
    pub fn takes_file(&self, is_folder: bool) -> bool {
        match self {
            // Its files are counted where they are measured.
            Self::Memory(_) => true,
            Self::Volume(quota) => quota.takes_file() && (!is_folder || quota.has_room(1)),
        }
    }

    /// See [`VolumeQuota::made_file`].
    pub fn made_file(&self, is_folder: bool) {
        if let Self::Volume(quota) = self {
            quota.made_file(is_folder);
        }
    }

    /// A file has grown by so much.
    pub fn grew(&self, bytes: u64) {
        match self {
            Self::Memory(files) => files.grew(bytes),
            Self::Volume(quota) => quota.grew(bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_takes_no_more_than_it_may_hold() {
        let there = Arc::new(Mutex::new(VolumeUse::default()));
        let is = |blocks: u64, files: u64| *there.lock().unwrap() = VolumeUse { bytes: blocks * BLOCK_BYTES, files };
        let measured = there.clone();
        let measure = Box::new(move || Some(*measured.lock().unwrap()));
        is(1, 1);
        let known = *there.lock().unwrap();
        let quota = VolumeQuota::new("/data/volumes/u/data".into(), 2 * BLOCK_BYTES, known, measure);
        assert!(
            quota.holds(Path::new("/data/volumes/u/data/a")) && !quota.holds(Path::new("/data/volumes/u/database"))
        );
        assert!(quota.has_room(1) && !quota.has_room(BLOCK_BYTES + 1));
        quota.grew(BLOCK_BYTES);
        is(2, 1);
        assert!(!quota.has_room(1) && quota.has_room(0), "what grows by nothing is always taken");
        is(1, 1);
        assert!(quota.has_room(1), "what was removed makes room");
        quota.set_limit(8 * BLOCK_BYTES);
        assert!(quota.has_room(7 * BLOCK_BYTES));
        is(1, VOLUME_FILES_MAX);
        for _ in 1..VOLUME_FILES_MAX {
            assert!(quota.takes_file());
            quota.made_file(false);
        }
        assert!(!quota.takes_file(), "small files, many of them");
        is(1, VOLUME_FILES_MAX - 1);
        assert!(quota.takes_file());
        quota.made_file(true);
        assert_eq!(quota.used(), VolumeUse { bytes: 2 * BLOCK_BYTES, files: VOLUME_FILES_MAX });
    }
}
