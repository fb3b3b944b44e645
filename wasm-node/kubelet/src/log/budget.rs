//! What all logs of a node may hold together: on its disk, and in memory until they are written.
//!
//! Over the disk's bound the log that holds most loses its oldest file, again and again until the rest fits: a flood costs
//! its own past, not its neighbours'.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, Weak};

use super::{ContainerLog, FILES_MAX, older};

/// Of a node's disk, the part that logs may hold, within the bounds below.
const DISK_PART: u64 = 10;
/// Enough for a few full logs, however small the disk.
const DISK_BYTES_LEAST: u64 = 256 << 20;
/// More than anybody reads.
const DISK_BYTES_MOST: u64 = 10 << 30;
/// Lines of all containers that wait for the writing thread: past the first half each container has room for one piece of a
/// line ([`SCARCE_BYTES`]), so that who floods while the disk stalls leaves something to all others.
const WAITING_BYTES_MAX: usize = 64 << 20;
/// See above: with the 2,000 pods of a node some 32 MiB.
const SCARCE_BYTES: usize = 16 << 10;

/// Logs that are kept in mind though they may have ended.
const LIVE_SWEPT_MIN: usize = 64;

/// The bounds of one node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// Bytes on the disk.
    pub disk_bytes_max: u64,
    /// Bytes that wait in memory.
    pub waiting_bytes_max: usize,
}

impl Budget {
    /// For a node that has so much disk for volumes and logs.
    #[must_use]
    pub fn of_disk(bytes: u64) -> Self {
        let disk_bytes_max = (bytes / DISK_PART).clamp(DISK_BYTES_LEAST, DISK_BYTES_MOST);
        Self { disk_bytes_max, waiting_bytes_max: WAITING_BYTES_MAX }
    }
}

/// Sizes of a log's files, the current one first.
type Sizes = [u64; FILES_MAX];

/// What lies on the disk. Pure.
#[derive(Debug, Default)]
struct Files {
    sizes: BTreeMap<PathBuf, Sizes>,
    total: u64,
}

impl Files {
    fn wrote(&mut self, path: &Path, bytes: u64) {
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

    fn rotated(&mut self, path: &Path) {
        if let Some(sizes) = self.sizes.get_mut(path) {
            self.total -= sizes[FILES_MAX - 1];
            sizes.rotate_right(1);
            sizes[0] = 0;
        }
    }

    fn removed(&mut self, path: &Path, index: usize) {
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

    /// The file that goes first: the oldest of the log that holds most, current files last.
    fn first_to_go(&self) -> Option<(PathBuf, usize)> {
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

/// Logs that are being written, by their paths.
#[derive(Debug, Default)]
struct Live {
    logs: BTreeMap<PathBuf, Weak<ContainerLog>>,
    /// At so many, those that have ended are taken out: twice as many as there were after the last time, so that opening a log
    /// doesn't look at all others.
    swept_at: usize,
}

impl Live {
    fn opened(&mut self, path: &Path, log: Weak<ContainerLog>) {
        if self.logs.len() >= self.swept_at {
            self.logs.retain(|_, log| log.strong_count() > 0);
            self.swept_at = self.logs.len() * 2 + LIVE_SWEPT_MIN;
        }
        self.logs.insert(path.to_owned(), log);
    }
}

/// What all logs of a node hold now.
#[derive(Debug)]
pub(super) struct Kept {
    budget: Budget,
    files: Mutex<Files>,
    live: Mutex<Live>,
    waiting: AtomicUsize,
}

impl Kept {
    /// Counts what earlier runs have left in `dir`.
    pub(super) fn new(budget: Budget, dir: &Path) -> Self {
        let mut files = Files::default();
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
        Self { budget, files: Mutex::new(files), live: Mutex::default(), waiting: AtomicUsize::new(0) }
    }

    fn files(&self) -> MutexGuard<'_, Files> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn live(&self) -> MutexGuard<'_, Live> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn opened(&self, path: &Path, log: Weak<ContainerLog>) {
        self.live().opened(path, log);
    }

    pub(super) fn wrote(&self, path: &Path, bytes: u64) {
        self.files().wrote(path, bytes);
    }

    pub(super) fn rotated(&self, path: &Path) {
        self.files().rotated(path);
    }

    /// Everything below a path was removed.
    pub(super) fn forget(&self, below: &Path) {
        self.files().forget(below);
    }

    /// Bytes that one container may have waiting.
    pub(super) fn room(&self, own_max: usize) -> usize {
        let scarce = self.waiting.load(Ordering::Relaxed) >= self.budget.waiting_bytes_max / 2;
        if scarce { own_max.min(SCARCE_BYTES) } else { own_max }
    }

    pub(super) fn waits(&self, bytes: usize) {
        self.waiting.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn waits_no_more(&self, bytes: usize) {
        self.waiting.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Removes what is too much. Who calls holds no log's lock.
    pub(super) fn trim(&self) {
        loop {
            let (path, index) = {
                let files = self.files();
                if files.total <= self.budget.disk_bytes_max {
                    return;
                }
                match files.first_to_go() {
                    Some(first) => first,
                    None => return,
                }
            };
            let writer = self.live().logs.get(&path).and_then(Weak::upgrade);
            let remove = || {
                if let Err(error) = std::fs::remove_file(older(&path, index))
                    && error.kind() != std::io::ErrorKind::NotFound
                {
                    tracing::warn!(path = %path.display(), %error, "a log's old file cannot be removed");
                }
                self.files().removed(&path, index);
            };
            match writer {
                Some(writer) => writer.cut(index == 0, remove),
                None => remove(),
            }
        }
    }

    #[cfg(test)]
    pub(super) fn held(&self) -> (u64, usize) {
        (self.files().total, self.waiting.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_logs_oldest_file_goes_first() {
        let mut files = Files::default();
        let (a, b) = (Path::new("/logs/a/c/0.log"), Path::new("/logs/b/c/0.log"));
        for round in 0..3 {
            files.wrote(a, 100);
            if round < 2 {
                files.rotated(a);
            }
        }
        files.wrote(b, 150);
        files.rotated(b);
        files.wrote(b, 10);
        assert_eq!(files.total, 460);
        let mut gone = Vec::new();
        while let Some((path, index)) = files.first_to_go() {
            files.removed(&path, index);
            gone.push((path.to_str().unwrap().split('/').nth(2).unwrap().to_owned(), index));
        }
        let want = [("a", 2), ("b", 1), ("a", 1), ("a", 0), ("b", 0)];
        assert_eq!(gone, want.map(|(log, index)| (log.to_owned(), index)));
        assert_eq!(files.total, 0);
    }

    #[test]
    fn logs_that_have_ended_are_forgotten_in_time() {
        let mut live = Live::default();
        for attempt in 0..100 * LIVE_SWEPT_MIN {
            live.opened(Path::new(&format!("/logs/a/c/{attempt}.log")), Weak::new());
            assert!(live.logs.len() <= LIVE_SWEPT_MIN + 1, "{}", live.logs.len());
        }
    }

    #[test]
    fn rotation_loses_the_last_file_and_forgetting_a_pod_all_of_its() {
        let mut files = Files::default();
        let path = Path::new("/logs/a/c/0.log");
        for _ in 0..FILES_MAX + 3 {
            files.wrote(path, 10);
            files.rotated(path);
        }
        assert_eq!(files.total, 10 * (FILES_MAX as u64 - 1));
        files.wrote(Path::new("/logs/b/c/0.log"), 7);
        files.forget(Path::new("/logs/a"));
        assert_eq!((files.total, files.sizes.len()), (7, 1));
    }

    #[test]
    fn what_was_left_is_counted() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("uid/c")).unwrap();
        for (name, bytes) in [("0.log", 10), ("0.log.1", 20), ("1.log", 5), ("0.log.99", 1000)] {
            std::fs::write(root.path().join("uid/c").join(name), vec![1; bytes]).unwrap();
        }
        let kept = Kept::new(Budget { disk_bytes_max: 16, waiting_bytes_max: 100 }, root.path());
        assert_eq!(kept.held(), (35, 0));
        kept.trim();
        let left = |name: &str| root.path().join("uid/c").join(name).exists();
        assert_eq!((kept.held().0, left("0.log"), left("0.log.1"), left("1.log")), (15, true, false, true));
    }
}
