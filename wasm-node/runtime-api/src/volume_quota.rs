//! What a volume of a claim may hold: a bound for all guests of a node that write to it. What is written beyond it is refused, as a full
//! disk refuses it; whoever writes elsewhere hears nothing of it.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::MemoryFiles;

/// The smallest piece that a file grows by.
const BLOCK_BYTES: u64 = 4096;

/// Walks through the volume; none where that was done a moment ago.
type Measure = Box<dyn Fn() -> Option<u64> + Send + Sync>;

/// The account of one volume. What is written is counted at once, what is removed when the volume is measured next.
pub struct VolumeQuota {
    folder: PathBuf,
    limit: AtomicU64,
    measure: Measure,
    used: Mutex<u64>,
}

impl std::fmt::Debug for VolumeQuota {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VolumeQuota").field("folder", &self.folder).field("used", &self.used()).finish_non_exhaustive()
    }
}

impl VolumeQuota {
    /// `folder`: where the volume lies, without links on the way to it; `used`: what it holds.
    #[must_use]
    pub fn new(folder: PathBuf, limit: u64, used: u64, measure: Measure) -> Self {
        Self { folder, limit: AtomicU64::new(limit), measure, used: Mutex::new(used) }
    }

    fn used_now(&self) -> MutexGuard<'_, u64> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes that it holds, as far as is known.
    #[must_use]
    pub fn used(&self) -> u64 {
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
        let bytes = bytes.div_ceil(BLOCK_BYTES).max(1).saturating_mul(BLOCK_BYTES);
        if self.used().saturating_add(bytes) <= self.limit() {
            return true;
        }
        // What was removed makes room.
        if let Some(there) = (self.measure)() {
            *self.used_now() = there;
        }
        self.used().saturating_add(bytes) <= self.limit()
    }

    /// A file has grown by so much.
    pub fn grew(&self, bytes: u64) {
        let mut used = self.used_now();
        *used = used.saturating_add(bytes);
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
        let there = Arc::new(AtomicU64::new(0));
        let measured = there.clone();
        let measure = Box::new(move || Some(measured.load(Ordering::Relaxed)));
        let quota = VolumeQuota::new("/data/volumes/u/data".into(), 2 * BLOCK_BYTES, BLOCK_BYTES, measure);
        assert!(
            quota.holds(Path::new("/data/volumes/u/data/a")) && !quota.holds(Path::new("/data/volumes/u/database"))
        );
        there.store(BLOCK_BYTES, Ordering::Relaxed);
        assert!(quota.has_room(1) && !quota.has_room(BLOCK_BYTES + 1));
        quota.grew(BLOCK_BYTES);
        there.store(2 * BLOCK_BYTES, Ordering::Relaxed);
        assert!(!quota.has_room(1));
        there.store(BLOCK_BYTES, Ordering::Relaxed);
        assert!(quota.has_room(1), "what was removed makes room");
        quota.set_limit(8 * BLOCK_BYTES);
        assert!(quota.has_room(7 * BLOCK_BYTES));
    }
}
