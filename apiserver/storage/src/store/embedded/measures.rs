//! Measurements of the embedded store: how long commits take on the disk, and the bytes of its files.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::super::{CommitTimes, StoreMeasurements};
use super::log::Segments;

/// The upper bound of the first bucket in microseconds; each further bound is twice the one before. A fast disk syncs in
/// some 100 µs, and a commit of more than 4 s makes requests fail.
const FIRST_BOUND_MICROS: u64 = 125;
/// The number of bounds.
const BOUNDS: usize = 16;
/// The maximum depth of the store's folders.
const DEPTH_MAX: usize = 4;

/// Counted by the committer, read by metrics.
#[derive(Debug, Default)]
pub(super) struct Measures {
    within: [AtomicU64; BOUNDS + 1],
    nanos: AtomicU64,
    /// The bytes of frames in the segment that is written.
    open_bytes: AtomicU64,
}

fn bound_micros(at: usize) -> u64 {
    FIRST_BOUND_MICROS << at
}

impl Measures {
    /// Records the append and sync of a group of transactions.
    pub(super) fn committed(&self, took: Duration, open_bytes: u64) {
        let micros = took.as_micros();
        let bucket = (0..BOUNDS).find(|at| micros <= u128::from(bound_micros(*at))).unwrap_or(BOUNDS);
        self.within[bucket].fetch_add(1, Ordering::Relaxed);
        self.nanos.fetch_add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
        self.set_open_bytes(open_bytes);
    }

    pub(super) fn set_open_bytes(&self, bytes: u64) {
        self.open_bytes.store(bytes, Ordering::Relaxed);
    }

    /// The measurements of the store in `folder`. Reads the sizes of its files.
    pub(super) fn read(&self, folder: &Path, closed: &Segments) -> StoreMeasurements {
        let closed: u64 = {
            let closed = closed.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            closed.iter().map(|segment| segment.bytes).sum()
        };
        let bound = |at| if at == BOUNDS { f64::INFINITY } else { bound_micros(at) as f64 / 1e6 };
        let counts = self.within.iter().map(|count| count.load(Ordering::Relaxed));
        StoreMeasurements {
            log_bytes: closed + self.open_bytes.load(Ordering::Relaxed),
            size_bytes: folder_bytes(folder, DEPTH_MAX),
            commits: CommitTimes {
                buckets: counts.enumerate().map(|(at, count)| (bound(at), count)).collect(),
                seconds: Duration::from_nanos(self.nanos.load(Ordering::Relaxed)).as_secs_f64(),
            },
        }
    }
}

/// The bytes on the disk of the files below a folder. A file that vanishes meanwhile has none.
fn folder_bytes(folder: &Path, depth: usize) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    let of = |entry: std::fs::DirEntry| match entry.file_type() {
        Ok(kind) if kind.is_dir() && depth > 0 => folder_bytes(&entry.path(), depth - 1),
        Ok(kind) if kind.is_file() => entry.metadata().map_or(0, |metadata| allocated_bytes(&metadata)),
        _ => 0,
    };
    entries.flatten().map(of).sum()
}

#[cfg(unix)]
fn allocated_bytes(of: &std::fs::Metadata) -> u64 {
    std::os::unix::fs::MetadataExt::blocks(of) * 512
}

#[cfg(not(unix))]
fn allocated_bytes(of: &std::fs::Metadata) -> u64 {
    of.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commits_are_counted_by_their_time() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("log")).unwrap();
        std::fs::write(folder.path().join("log/1"), vec![1; 100_000]).unwrap();
        let measures = Measures::default();
        for micros in [1, 125, 126, 4_096_000, 4_096_001] {
            measures.committed(Duration::from_micros(micros), micros);
        }
        let read = measures.read(folder.path(), &Segments::default());
        let filled: Vec<_> = read.commits.buckets.iter().copied().filter(|(_, count)| *count > 0).collect();
        assert_eq!(filled, [(0.000_125, 2), (0.000_25, 1), (4.096, 1), (f64::INFINITY, 1)]);
        assert_eq!((read.commits.count(), read.log_bytes), (5, 4_096_001));
        assert!((read.commits.seconds - 8.192_253).abs() < 1e-9);
        assert!(read.size_bytes >= 100_000 && read.size_bytes < 1 << 20, "{}", read.size_bytes);
    }
}
