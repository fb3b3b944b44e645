//! Accounts guests' writes to a pod's volumes in memory (`emptyDir.medium: Memory`): they count as the pod's memory, and are
//! limited by the volumes' size, as in a tmpfs.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::ledger::{Ledger, Resource};

/// The allocation unit of a file in memory.
const PAGE_BYTES: u64 = 4096;

/// Measures the volumes; `None` if that was done a moment ago.
type Measure = Box<dyn Fn() -> Option<u64> + Send + Sync>;

/// The account of one pod. Writes are counted at once, removals at the next measurement.
pub struct MemoryFiles {
    device: u64,
    limit: u64,
    pod: Arc<Ledger>,
    measure: Measure,
    account: Mutex<MemoryAccount>,
}

/// Bytes of the volumes. The pod's ledger is charged for both.
#[derive(Debug, Default)]
struct MemoryAccount {
    used: u64,
    /// Bytes reserved by writes in progress.
    reserved: u64,
}

impl std::fmt::Debug for MemoryFiles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MemoryFiles").field("limit", &self.limit).field("used", &self.used()).finish_non_exhaustive()
    }
}

impl MemoryFiles {
    /// `device`: the volumes' file system (`st_dev`); `limit`: bytes of all of them together; `pod`: the ledger that is
    /// charged.
    #[must_use]
    pub fn new(device: u64, limit: u64, pod: Arc<Ledger>, measure: Measure) -> Self {
        Self { device, limit, pod, measure, account: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, MemoryAccount> {
        self.account.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether files of this file system are accounted here.
    #[must_use]
    pub fn is_on(&self, device: u64) -> bool {
        self.device == device
    }

    /// The counted bytes.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.lock().used
    }

    /// Reserves bytes until [`MemoryFiles::wrote`], separately for each concurrent write. Returns the reservation, or `None`
    /// without room. Measures the volumes before it fails, so that removals free room.
    #[must_use]
    pub fn reserve(&self, bytes: u64) -> Option<u64> {
        let bytes = bytes.div_ceil(PAGE_BYTES).saturating_mul(PAGE_BYTES);
        if self.try_reserve(bytes) {
            return Some(bytes);
        }
        self.settle((self.measure)()?);
        self.try_reserve(bytes).then_some(bytes)
    }

    fn try_reserve(&self, bytes: u64) -> bool {
        let mut account = self.lock();
        let taken = account.used.saturating_add(account.reserved).saturating_add(bytes);
        // A write without growth always succeeds.
        let fits = bytes == 0 || taken <= self.limit && self.pod.take(Resource::Memory, bytes).is_ok();
        account.reserved = account.reserved.saturating_add(if fits { bytes } else { 0 });
        fits
    }

    /// Replaces the reservation of a write by the bytes that it took.
    pub fn wrote(&self, reserved: u64, bytes: u64) {
        let mut account = self.lock();
        account.reserved = account.reserved.saturating_sub(reserved);
        account.used = account.used.saturating_add(bytes);
        self.charge(reserved, bytes);
    }

    /// Adjusts the pod's charge from `before` to `now`.
    fn charge(&self, before: u64, now: u64) {
        match now.checked_sub(before) {
            Some(0) => {}
            Some(more) => self.pod.overdraw(Resource::Memory, more),
            None => self.pod.give(Resource::Memory, before - now),
        }
    }

    /// Sets the measured bytes of the volumes.
    pub fn settle(&self, bytes: u64) {
        let mut account = self.lock();
        self.charge(account.used, bytes);
        account.used = bytes;
    }
}

impl Drop for MemoryFiles {
    fn drop(&mut self) {
        let reserved = std::mem::take(&mut self.lock().reserved);
        self.charge(reserved, 0);
        self.settle(0);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    fn can_write(files: &MemoryFiles, bytes: u64) -> bool {
        files.reserve(bytes).inspect(|kept| files.wrote(*kept, 0)).is_some()
    }

    #[test]
    fn written_bytes_are_the_pods_memory_up_to_the_limit() {
        let node = Ledger::node();
        let pod = Ledger::pod(&node);
        let there = Arc::new(AtomicU64::new(0));
        let measured = there.clone();
        let measure = Box::new(move || Some(measured.load(Ordering::Relaxed)));
        let files = MemoryFiles::new(7, 10 * PAGE_BYTES, pod.clone(), measure);
        assert!(files.is_on(7) && !files.is_on(8));
        assert!(can_write(&files, 10 * PAGE_BYTES) && !can_write(&files, 10 * PAGE_BYTES + 1));
        assert_eq!(node.used(Resource::Memory), 0);
        files.wrote(0, 10 * PAGE_BYTES);
        there.store(10 * PAGE_BYTES, Ordering::Relaxed);
        assert_eq!(node.used(Resource::Memory), 10 * PAGE_BYTES);
        assert!(!can_write(&files, 1));
        there.store(PAGE_BYTES, Ordering::Relaxed);
        assert!(can_write(&files, 1), "what was removed makes room");
        assert_eq!((files.used(), node.used(Resource::Memory)), (PAGE_BYTES, PAGE_BYTES));
        pod.set_limit(Resource::Memory, PAGE_BYTES);
        assert!(!can_write(&files, 1), "the pod has no memory left");
        drop(files);
        assert_eq!(node.used(Resource::Memory), 0);
    }

    #[test]
    fn concurrent_writes_reserve_separately() {
        const PAGES: u64 = 100;
        let node = Ledger::node();
        let pod = Ledger::pod(&node);
        let files = MemoryFiles::new(7, PAGES * PAGE_BYTES, pod.clone(), Box::new(|| None));
        let kept: Vec<u64> = (0..PAGES + 5).filter_map(|_| files.reserve(1)).collect();
        assert_eq!(kept.len() as u64, PAGES, "whatever there is by then");
        assert_eq!((node.used(Resource::Memory), files.reserve(0)), (PAGES * PAGE_BYTES, Some(0)));
        kept.into_iter().for_each(|kept| files.wrote(kept, 0));
        assert_eq!(node.used(Resource::Memory), 0);
        // All writers see room before any of them has written.
        let written = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..PAGES {
                        if let Some(kept) = files.reserve(PAGE_BYTES) {
                            std::thread::yield_now();
                            written.fetch_add(PAGE_BYTES, Ordering::Relaxed);
                            files.wrote(kept, PAGE_BYTES);
                        }
                    }
                });
            }
        });
        assert_eq!((written.into_inner(), files.used()), (PAGES * PAGE_BYTES, PAGES * PAGE_BYTES));
        assert_eq!(node.used(Resource::Memory), PAGES * PAGE_BYTES);
        // The pod's own limit is enforced for each, too.
        files.settle(0);
        pod.set_limit(Resource::Memory, 2 * PAGE_BYTES);
        assert_eq!((0..5).filter(|_| files.reserve(1).is_some()).count(), 2);
        drop(files);
        assert_eq!(node.used(Resource::Memory), 0, "what was kept is given back");
    }
}
