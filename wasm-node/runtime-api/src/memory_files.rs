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
    account: Mutex<Account>,
}

/// Bytes of the volumes. The pod's ledger has both.
#[derive(Debug, Default)]
struct Account {
    used: u64,
    /// What writes that are under way may take beside it.
    reserved: u64,
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
        Self { device, limit, pod, measure, account: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Account> {
        self.account.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a file of that file system is one of these.
    #[must_use]
    pub fn is_on(&self, device: u64) -> bool {
        self.device == device
    }

    /// Bytes that count now.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.lock().used
    }

    /// Keeps room for so many bytes more, until [`MemoryFiles::wrote`]: of writes at once, each has its own. Answers what is kept; none:
    /// there is no room. Where there is none by what is known, the volumes are measured, so that what was removed makes room.
    #[must_use]
    pub fn reserve(&self, bytes: u64) -> Option<u64> {
        let bytes = bytes.div_ceil(PAGE_BYTES).saturating_mul(PAGE_BYTES);
        if self.keep(bytes) {
            return Some(bytes);
        }
        self.settle((self.measure)()?);
        self.keep(bytes).then_some(bytes)
    }

    fn keep(&self, bytes: u64) -> bool {
        let mut account = self.lock();
        let taken = account.used.saturating_add(account.reserved).saturating_add(bytes);
        // What grows by nothing is always taken.
        let fits = bytes == 0 || taken <= self.limit && self.pod.take(Resource::Memory, bytes).is_ok();
        account.reserved = account.reserved.saturating_add(if fits { bytes } else { 0 });
        fits
    }

    /// A write is done for which so much was kept: so much it took.
    pub fn wrote(&self, reserved: u64, bytes: u64) {
        let mut account = self.lock();
        account.reserved = account.reserved.saturating_sub(reserved);
        account.used = account.used.saturating_add(bytes);
        self.charge(reserved, bytes);
    }

    /// What was counted as `before` counts as `now`.
    fn charge(&self, before: u64, now: u64) {
        match now.checked_sub(before) {
            Some(0) => {}
            Some(more) => self.pod.overdraw(Resource::Memory, more),
            None => self.pod.give(Resource::Memory, before - now),
        }
    }

    /// The volumes hold so much.
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

    fn has_room(files: &MemoryFiles, bytes: u64) -> bool {
        files.reserve(bytes).inspect(|kept| files.wrote(*kept, 0)).is_some()
    }

    #[test]
    fn what_is_written_is_the_pods_memory_and_ends_at_the_limit() {
        let node = Ledger::node();
        let pod = Ledger::pod(&node);
        let there = Arc::new(AtomicU64::new(0));
        let measured = there.clone();
        let measure = Box::new(move || Some(measured.load(Ordering::Relaxed)));
        let files = MemoryFiles::new(7, 10 * PAGE_BYTES, pod.clone(), measure);
        assert!(files.is_on(7) && !files.is_on(8));
        assert!(has_room(&files, 10 * PAGE_BYTES) && !has_room(&files, 10 * PAGE_BYTES + 1));
        assert_eq!(node.used(Resource::Memory), 0);
        files.wrote(0, 10 * PAGE_BYTES);
        there.store(10 * PAGE_BYTES, Ordering::Relaxed);
        assert_eq!(node.used(Resource::Memory), 10 * PAGE_BYTES);
        assert!(!has_room(&files, 1));
        there.store(PAGE_BYTES, Ordering::Relaxed);
        assert!(has_room(&files, 1), "what was removed makes room");
        assert_eq!((files.used(), node.used(Resource::Memory)), (PAGE_BYTES, PAGE_BYTES));
        pod.set_limit(Resource::Memory, PAGE_BYTES);
        assert!(!has_room(&files, 1), "the pod has no memory left");
        drop(files);
        assert_eq!(node.used(Resource::Memory), 0);
    }

    #[test]
    fn writes_at_once_have_each_its_own_room() {
        const PAGES: u64 = 100;
        let node = Ledger::node();
        let pod = Ledger::pod(&node);
        let files = MemoryFiles::new(7, PAGES * PAGE_BYTES, pod.clone(), Box::new(|| None));
        let kept: Vec<u64> = (0..PAGES + 5).filter_map(|_| files.reserve(1)).collect();
        assert_eq!(kept.len() as u64, PAGES, "whatever there is by then");
        assert_eq!((node.used(Resource::Memory), files.reserve(0)), (PAGES * PAGE_BYTES, Some(0)));
        kept.into_iter().for_each(|kept| files.wrote(kept, 0));
        assert_eq!(node.used(Resource::Memory), 0);
        // Writers that all find room before any of them has written.
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
        // The pod's own bound is kept for each, too.
        files.settle(0);
        pod.set_limit(Resource::Memory, 2 * PAGE_BYTES);
        assert_eq!((0..5).filter(|_| files.reserve(1).is_some()).count(), 2);
        drop(files);
        assert_eq!(node.used(Resource::Memory), 0, "what was kept is given back");
    }
}
