//! What a pod's guests have written to volumes that lie in memory (`emptyDir.medium: Memory`): it counts as the pod's memory,
//! and ends where the volumes' size does, as in a tmpfs.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::ledger::{Ledger, Resource};

/// The smallest piece that a file in memory grows by.
const PAGE_BYTES: u64 = 4096;

/// Walks through the volumes; none where that was done a moment ago.
type Measure = Box<dyn Fn() -> Option<u64> + Send + Sync>;

/// The account of one pod. What is written is counted at once, what is removed when the volumes are measured next.
pub struct MemoryFiles {
    device: u64,
    limit: u64,
    pod: Arc<Ledger>,
    measure: Measure,
    used: Mutex<u64>,
}

impl std::fmt::Debug for MemoryFiles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MemoryFiles").field("limit", &self.limit).field("used", &self.used()).finish_non_exhaustive()
    }
}

impl MemoryFiles {
    /// `device`: the file system that the volumes lie on (`st_dev`); `limit`: the bytes of all of them together; `pod`: whose
    /// memory they are.
    #[must_use]
    pub fn new(device: u64, limit: u64, pod: Arc<Ledger>, measure: Measure) -> Self {
        Self { device, limit, pod, measure, used: Mutex::new(0) }
    }

    fn lock(&self) -> MutexGuard<'_, u64> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a file of that file system is one of these.
    #[must_use]
    pub fn is_on(&self, device: u64) -> bool {
        self.device == device
    }

    /// Bytes that count now.
    #[must_use]
    pub fn used(&self) -> u64 {
        *self.lock()
    }

    /// Whether so many bytes more may be written. Where they may not by what is known, the volumes are measured, so that what was
    /// removed makes room.
    #[must_use]
    pub fn has_room(&self, bytes: u64) -> bool {
        let bytes = bytes.div_ceil(PAGE_BYTES).max(1).saturating_mul(PAGE_BYTES);
        if self.fits(bytes) {
            return true;
        }
        let Some(there) = (self.measure)() else { return false };
        self.settle(there);
        self.fits(bytes)
    }

    fn fits(&self, bytes: u64) -> bool {
        if self.used().saturating_add(bytes) > self.limit {
            return false;
        }
        let fits = self.pod.take(Resource::Memory, bytes).is_ok();
        if fits {
            self.pod.give(Resource::Memory, bytes);
        }
        fits
    }

    /// A file has grown by so much.
    pub fn grew(&self, bytes: u64) {
        if bytes > 0 {
            let mut used = self.lock();
            *used = used.saturating_add(bytes);
            self.pod.overdraw(Resource::Memory, bytes);
        }
    }

    /// The volumes hold so much.
    pub fn settle(&self, bytes: u64) {
        let mut used = self.lock();
        match bytes.checked_sub(*used) {
            Some(0) => {}
            Some(more) => self.pod.overdraw(Resource::Memory, more),
            None => self.pod.give(Resource::Memory, *used - bytes),
        }
        *used = bytes;
    }
}

impl Drop for MemoryFiles {
    fn drop(&mut self) {
        self.settle(0);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    #[test]
    fn what_is_written_is_the_pods_memory_and_ends_at_the_limit() {
        let node = Ledger::node();
        let pod = Ledger::pod(&node);
        let there = Arc::new(AtomicU64::new(0));
        let measured = there.clone();
        let measure = Box::new(move || Some(measured.load(Ordering::Relaxed)));
        let files = MemoryFiles::new(7, 10 * PAGE_BYTES, pod.clone(), measure);
        assert!(
            files.is_on(7)
                && !files.is_on(8)
                && files.has_room(10 * PAGE_BYTES)
                && !files.has_room(10 * PAGE_BYTES + 1)
        );
        files.grew(10 * PAGE_BYTES);
        there.store(10 * PAGE_BYTES, Ordering::Relaxed);
        assert_eq!(node.used(Resource::Memory), 10 * PAGE_BYTES);
        assert!(!files.has_room(1));
        there.store(PAGE_BYTES, Ordering::Relaxed);
        assert!(files.has_room(1), "what was removed makes room");
        assert_eq!((files.used(), node.used(Resource::Memory)), (PAGE_BYTES, PAGE_BYTES));
        pod.set_limit(Resource::Memory, PAGE_BYTES);
        assert!(!files.has_room(1), "the pod has no memory left");
        drop(files);
        assert_eq!(node.used(Resource::Memory), 0);
    }
}
