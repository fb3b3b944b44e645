//! The limits of all logs of a node together: bytes on its disk, and bytes in memory that wait for the writer.
//!
//! Above the disk limit, the largest log loses its oldest file, repeatedly until the rest fits. A flood removes its own
//! history, not that of other logs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, Weak};

use super::{ContainerLog, FILES_MAX, rotated_path};

/// The divisor of a node's disk size for logs, within the bounds below.
const DISK_PART: u64 = 10;
/// The minimum disk limit: enough for a few full logs on a small disk.
const DISK_BYTES_LEAST: u64 = 256 << 20;
/// The maximum disk limit.
const DISK_BYTES_MOST: u64 = 10 << 30;
/// Maximum bytes of lines of all containers that wait for the writer thread. Above half of it, each container may queue
/// one piece of a line only ([`SCARCE_BYTES`]), so that a flood on a stalled disk leaves space for the other
/// containers.
const WAITING_BYTES_MAX: usize = 64 << 20;
/// See above: some 32 MiB with the 2,000 pods of a node.
const SCARCE_BYTES: usize = 16 << 10;

/// The minimum number of open logs at which ended ones are removed from the map.
const OPEN_LOGS_SWEPT_MIN: usize = 64;

/// The limits of one node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// Maximum bytes on the disk.
    pub disk_bytes_max: u64,
    /// Maximum bytes in memory.
    pub waiting_bytes_max: usize,
}

impl Budget {
    /// Returns the limits for a node with a disk of this size for volumes and logs.
    #[must_use]
    pub fn of_disk(bytes: u64) -> Self {
        let disk_bytes_max = (bytes / DISK_PART).clamp(DISK_BYTES_LEAST, DISK_BYTES_MOST);
        Self { disk_bytes_max, waiting_bytes_max: WAITING_BYTES_MAX }
    }
}

/// Sizes of a log's files, the current one first.
type Sizes = [u64; FILES_MAX];

/// The log files on the disk. Pure.
#[derive(Debug, Default)]
struct LogFiles {
    sizes: BTreeMap<PathBuf, Sizes>,
    total: u64,
}

impl LogFiles {
    fn record_write(&mut self, path: &Path, bytes: u64) {
        self.total += bytes;
        match self.sizes.get_mut(path) {
            Some(sizes) => sizes[0] += bytes,
            None => {
                let mut sizes = Sizes::default();
                sizes[0] = bytes;
                self.sizes.insert(path.to_owned(), sizes);
            }
        }
    }

    fn record_rotation(&mut self, path: &Path) {
        if let Some(sizes) = self.sizes.get_mut(path) {
            self.total -= sizes[FILES_MAX - 1];
            sizes.rotate_right(1);
            sizes[0] = 0;
        }
    }

    fn record_removal(&mut self, path: &Path, index: usize) {
        if let Some(sizes) = self.sizes.get_mut(path) {
            self.total -= std::mem::take(&mut sizes[index]);
        }
    }

    fn forget(&mut self, below: &Path) {
        let total = &mut self.total;
        self.sizes.retain(|path, sizes| {
            let goes = path.starts_with(below);
            if goes {
                *total -= sizes.iter().sum::<u64>();
            }
            !goes
        });
    }

    /// Returns the file to remove first: the oldest of the largest log, current files last.
    fn next_to_remove(&self) -> Option<(PathBuf, usize)> {
        let older = |sizes: &Sizes| sizes[1..].iter().sum::<u64>();
        let most = |size: &dyn Fn(&Sizes) -> u64| {
            let all = self.sizes.iter().filter(|(_, sizes)| size(sizes) > 0);
            all.max_by_key(|(_, sizes)| size(sizes)).map(|(path, sizes)| (path.clone(), *sizes))
        };
        let (path, sizes) = most(&older).or_else(|| most(&|sizes| sizes[0]))?;
        let index = sizes.iter().rposition(|size| *size > 0)?;
        Some((path, index))
    }
}

/// Open logs by path.
#[derive(Debug, Default)]
struct OpenLogs {
    logs: BTreeMap<PathBuf, Weak<ContainerLog>>,
    /// The number of logs at which ended ones are removed: twice the number left by the last removal, so that opening a
    /// log has amortized constant cost.
    swept_at: usize,
}

impl OpenLogs {
    fn add_open(&mut self, path: &Path, log: Weak<ContainerLog>) {
        if self.logs.len() >= self.swept_at {
            self.logs.retain(|_, log| log.strong_count() > 0);
            self.swept_at = self.logs.len() * 2 + OPEN_LOGS_SWEPT_MIN;
        }
        self.logs.insert(path.to_owned(), log);
    }
}

/// The usage of all logs of a node.
#[derive(Debug)]
pub(super) struct LogUsage {
    budget: Budget,
    files: Mutex<LogFiles>,
    open_logs: Mutex<OpenLogs>,
    waiting: AtomicUsize,
}

impl LogUsage {
    /// Counts the files of earlier runs in `dir`.
    pub(super) fn new(budget: Budget, dir: &Path) -> Self {
        let mut files = LogFiles::default();
        let inside = |dir: &Path| std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
        for file in
            inside(dir).flat_map(|pod| inside(&pod).collect::<Vec<_>>()).flat_map(|of| inside(&of).collect::<Vec<_>>())
        {
            let Some(name) = file.file_name().and_then(|name| name.to_str()) else { continue };
            let (log, index) = match name.split_once(".log.") {
                Some((attempt, index)) => (format!("{attempt}.log"), index.parse().unwrap_or(FILES_MAX)),
                None => (name.to_owned(), 0),
            };
            let size = file.metadata().map_or(0, |metadata| metadata.len());
            if index < FILES_MAX {
                files.sizes.entry(file.with_file_name(log)).or_default()[index] = size;
                files.total += size;
            }
        }
        Self { budget, files: Mutex::new(files), open_logs: Mutex::default(), waiting: AtomicUsize::new(0) }
    }

    fn files(&self) -> MutexGuard<'_, LogFiles> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open_logs(&self) -> MutexGuard<'_, OpenLogs> {
        self.open_logs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn add_open(&self, path: &Path, log: Weak<ContainerLog>) {
        self.open_logs().add_open(path, log);
    }

    pub(super) fn record_write(&self, path: &Path, bytes: u64) {
        self.files().record_write(path, bytes);
    }

    pub(super) fn record_rotation(&self, path: &Path) {
        self.files().record_rotation(path);
    }

    /// Forgets the files below a removed path.
    pub(super) fn forget(&self, below: &Path) {
        self.files().forget(below);
    }

    /// Returns the bytes that one container may queue.
    pub(super) fn queue_limit(&self, own_max: usize) -> usize {
        let scarce = self.waiting.load(Ordering::Relaxed) >= self.budget.waiting_bytes_max / 2;
        if scarce { own_max.min(SCARCE_BYTES) } else { own_max }
    }

    pub(super) fn add_queued(&self, bytes: usize) {
        self.waiting.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn remove_queued(&self, bytes: usize) {
        self.waiting.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Removes files until the disk limit is met. The caller holds no log's lock.
    pub(super) fn trim(&self) {
        loop {
            let (path, index) = {
                let files = self.files();
                if files.total <= self.budget.disk_bytes_max {
                    return;
                }
                match files.next_to_remove() {
                    Some(first) => first,
                    None => return,
                }
            };
            let writer = self.open_logs().logs.get(&path).and_then(Weak::upgrade);
            let remove = || {
                if let Err(error) = std::fs::remove_file(rotated_path(&path, index))
                    && error.kind() != std::io::ErrorKind::NotFound
                {
                    tracing::warn!(path = %path.display(), %error, "a log's old file cannot be removed");
                }
                self.files().record_removal(&path, index);
            };
            match writer {
                Some(writer) => writer.remove_file_between_writes(index == 0, remove),
                None => remove(),
            }
        }
    }

    #[cfg(test)]
    pub(super) fn totals(&self) -> (u64, usize) {
        (self.files().total, self.waiting.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_logs_oldest_file_goes_first() {
        let mut files = LogFiles::default();
        let (a, b) = (Path::new("/logs/a/c/0.log"), Path::new("/logs/b/c/0.log"));
        for round in 0..3 {
            files.record_write(a, 100);
            if round < 2 {
                files.record_rotation(a);
            }
        }
        files.record_write(b, 150);
        files.record_rotation(b);
        files.record_write(b, 10);
        assert_eq!(files.total, 460);
        let mut removed = Vec::new();
        while let Some((path, index)) = files.next_to_remove() {
            files.record_removal(&path, index);
            removed.push((path.to_str().unwrap().split('/').nth(2).unwrap().to_owned(), index));
        }
        let want = [("a", 2), ("b", 1), ("a", 1), ("a", 0), ("b", 0)];
        assert_eq!(removed, want.map(|(log, index)| (log.to_owned(), index)));
        assert_eq!(files.total, 0);
    }

    #[test]
    fn logs_that_have_ended_are_forgotten_in_time() {
        let mut open_logs = OpenLogs::default();
        for attempt in 0..100 * OPEN_LOGS_SWEPT_MIN {
            open_logs.add_open(Path::new(&format!("/logs/a/c/{attempt}.log")), Weak::new());
            assert!(open_logs.logs.len() <= OPEN_LOGS_SWEPT_MIN + 1, "{}", open_logs.logs.len());
        }
    }

    #[test]
    fn rotation_loses_the_last_file_and_forgetting_a_pod_all_of_its() {
        let mut files = LogFiles::default();
        let path = Path::new("/logs/a/c/0.log");
        for _ in 0..FILES_MAX + 3 {
            files.record_write(path, 10);
            files.record_rotation(path);
        }
        assert_eq!(files.total, 10 * (FILES_MAX as u64 - 1));
        files.record_write(Path::new("/logs/b/c/0.log"), 7);
        files.forget(Path::new("/logs/a"));
        assert_eq!((files.total, files.sizes.len()), (7, 1));
    }

    #[test]
    fn existing_log_files_are_counted() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("uid/c")).unwrap();
        for (name, bytes) in [("0.log", 10), ("0.log.1", 20), ("1.log", 5), ("0.log.99", 1000)] {
            std::fs::write(root.path().join("uid/c").join(name), vec![1; bytes]).unwrap();
        }
        let usage = LogUsage::new(Budget { disk_bytes_max: 16, waiting_bytes_max: 100 }, root.path());
        assert_eq!(usage.totals(), (35, 0));
        usage.trim();
        let left = |name: &str| root.path().join("uid/c").join(name).exists();
        assert_eq!((usage.totals().0, left("0.log"), left("0.log.1"), left("1.log")), (15, true, false, true));
    }
}
