//! The checkpoint thread: updates sled to the compacted revision, coalesced per key, and writes snapshots, below which
//! the log is deleted. A failure here affects no write: sled is set aside and rebuilt.

use std::collections::BTreeMap;
use std::fs;
use std::ops::Bound;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError, mpsc};
use std::time::Duration;

use super::super::plan::{StoredValue, Write};
use super::log::{Segments, delete_below};
use super::snapshot::{self, Rows};
use super::{ReadFirstFormat, Revision, StoreError, StoreShared, frame};

/// sled's page cache: sled is only written, and read once at a start.
const SLED_CACHE_BYTES: u64 = 16 * 1024 * 1024;
/// Bytes of values per sled batch: bounds the memory of a batch, which sled holds several times.
const BATCH_BYTES: usize = 256 * 1024;
/// Keys of a snapshot that are read under one lock, in some 0.1 ms.
const SLICE_KEYS: usize = 1024;
/// The time of a flush of sled until the first other one, which wakes it; the time until the next doubles.
const FLUSH_WAKE_AFTER: Duration = Duration::from_secs(1);
/// The key of the applied revision. It is no key of the store: those begin with a slash.
const APPLIED: &[u8] = b"applied";

/// The pending work for sled, coalesced per key while sled is busy.
#[derive(Default)]
pub(super) struct Slot {
    work: Mutex<CheckpointWork>,
    wake: Condvar,
}

#[derive(Default)]
struct CheckpointWork {
    rows: BTreeMap<Arc<str>, (Revision, Option<Arc<StoredValue>>)>,
    applied: Revision,
    closing: bool,
}

impl Slot {
    /// Queues compacted history up to `revision`; `rows` are its changes, oldest first.
    pub(super) fn compacted(&self, revision: Revision, rows: impl Iterator<Item = Write>) {
        let mut work = self.work.lock().unwrap_or_else(PoisonError::into_inner);
        for write in rows {
            work.rows.insert(write.key, (write.revision, write.stored));
        }
        work.applied = revision;
        drop(work);
        self.wake.notify_one();
    }

    pub(super) fn close(&self) {
        self.work.lock().unwrap_or_else(PoisonError::into_inner).closing = true;
        self.wake.notify_one();
    }

    /// Waits for work; `None` when closed and empty.
    fn next(&self) -> Option<(Vec<Write>, Revision)> {
        let mut work = self.work.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if work.applied > 0 {
                let rows = std::mem::take(&mut work.rows);
                let applied = std::mem::take(&mut work.applied);
                let write = |(key, (revision, stored))| Write { revision, key, stored };
                return Some((rows.into_iter().map(write).collect(), applied));
            }
            if work.closing {
                return None;
            }
            work = self.wake.wait(work).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// The folder of a sled database and the number of its keys.
///
/// The database is open only during a read or a batch: an open one keeps memory for each page that it touched, beside its cache.
pub(super) struct Sled {
    path: PathBuf,
    keys: u64,
}

/// A failure of sled, which may also panic.
type SledError = String;

fn guarded<T>(what: impl FnOnce() -> Result<T, sled::Error>) -> Result<T, SledError> {
    match catch_unwind(AssertUnwindSafe(what)) {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(_) => Err("it panicked".into()),
    }
}

fn sealed(mut bytes: Vec<u8>) -> Vec<u8> {
    let crc = crc32fast::hash(&bytes);
    bytes.extend_from_slice(&crc.to_le_bytes());
    bytes
}

fn unsealed(bytes: &[u8]) -> Option<&[u8]> {
    let (body, crc) = bytes.split_last_chunk::<4>()?;
    (crc32fast::hash(body) == u32::from_le_bytes(*crc)).then_some(body)
}

/// Writes what is buffered. After a failed write of its own threads, sled may not wake a waiting flush, which then waits
/// forever. Another flush returns the failure and wakes the first one: one is tried at growing intervals.
fn flush(db: &sled::Db) -> Result<(), SledError> {
    let flush = || guarded(|| db.flush().map(|_| ()));
    let named = |name: &str| std::thread::Builder::new().name(name.into());
    std::thread::scope(|scope| {
        let (done, ended) = mpsc::channel::<()>();
        // If the system refuses a thread, only the wake-up is missing.
        let _ = named("sled-wake").spawn_scoped(scope, move || {
            let mut pause = FLUSH_WAKE_AFTER;
            while ended.recv_timeout(pause) == Err(mpsc::RecvTimeoutError::Timeout) {
                let _ = named("sled-flush").spawn_scoped(scope, flush);
                // Few threads wait for a slow disk.
                pause *= 2;
            }
        });
        let flushed = flush();
        drop(done);
        flushed
    })
}

fn open(path: &Path) -> Result<sled::Db, SledError> {
    guarded(|| sled::Config::new().path(path).cache_capacity(SLED_CACHE_BYTES).flush_every_ms(None).open())
}

impl Sled {
    /// Reads and checks all of sled; on `Err` it is to be set aside.
    pub(super) fn load(path: &Path, plain: &ReadFirstFormat) -> Result<(Self, Revision, Rows), SledError> {
        let db = open(path)?;
        let mut writes = Vec::new();
        let mut applied = None;
        let mut sound = true;
        guarded(|| {
            for row in db.iter() {
                let (key, value) = row?;
                let Some(body) = unsealed(&value) else {
                    sound = false;
                    return Ok(());
                };
                if key == APPLIED {
                    applied = body.split_first_chunk::<8>().and_then(|(revision, count)| {
                        Some((u64::from_le_bytes(*revision), u64::from_le_bytes(count.try_into().ok()?)))
                    });
                    continue;
                }
                match frame::decode_write(body, plain) {
                    Some((write, [])) if write.key.as_bytes() == &*key && write.stored.is_some() => writes.push(write),
                    _ => sound = false,
                }
            }
            Ok(())
        })?;
        if !sound {
            return Err("a value is damaged".into());
        }
        let (revision, count) = applied.ok_or("it does not say what it holds")?;
        if writes.len() as u64 != count {
            return Err(format!("it holds {} keys instead of {count}", writes.len()));
        }
        guarded(|| {
            drop(db);
            Ok(())
        })?;
        Ok((Self { path: path.to_owned(), keys: count }, revision, writes))
    }

    /// Renames the folder (kept beside it for inspection) and fills a new one.
    pub(super) fn rebuild(path: &Path, revision: Revision, rows: &[Write]) -> Result<Self, SledError> {
        if path.exists() {
            let aside = path.with_extension("damaged");
            let _ = fs::remove_dir_all(&aside);
            fs::rename(path, &aside).map_err(|error| error.to_string())?;
        }
        let mut sled = Self { path: path.to_owned(), keys: 0 };
        sled.apply(rows, revision)?;
        Ok(sled)
    }

    /// Applies rows; the last batch also sets the applied revision. If the rows take several batches, the applied
    /// revision is removed until the last one, and a start in between rebuilds sled.
    fn apply(&mut self, rows: &[Write], applied: Revision) -> Result<(), SledError> {
        let db = open(&self.path)?;
        // Blocking, from one thread only: `flush_async` deadlocks.
        let write = |batch| guarded(|| db.apply_batch(batch)).and_then(|()| flush(&db));
        let mut batch = sled::Batch::default();
        let mut batch_bytes = 0;
        for row in rows {
            if batch_bytes >= BATCH_BYTES {
                batch.remove(APPLIED);
                write(std::mem::take(&mut batch))?;
                batch_bytes = 0;
            }
            batch_bytes += row.stored.as_ref().map_or(0, |stored| stored.bytes());
            let key = row.key.as_bytes();
            let there = guarded(|| db.contains_key(key))?;
            if row.stored.is_some() {
                let mut value = Vec::new();
                frame::encode_write(&mut value, row);
                batch.insert(key, sealed(value));
                self.keys += u64::from(!there);
            } else {
                batch.remove(key);
                self.keys -= u64::from(there);
            }
        }
        let mut record = applied.to_le_bytes().to_vec();
        record.extend_from_slice(&self.keys.to_le_bytes());
        batch.insert(APPLIED, sealed(record));
        write(batch)?;
        guarded(|| {
            drop(db);
            Ok(())
        })
    }
}

/// The whole state at a revision, in slices: the writer waits for one slice at most.
struct Slices<'a> {
    shared: &'a StoreShared,
    at: Revision,
    after: Option<Arc<str>>,
}

impl Slices<'_> {
    /// The next rows; empty at the end.
    fn next(&mut self) -> std::io::Result<Rows> {
        let state = self.shared.read();
        // History may be compacted during a long snapshot; the next compaction triggers another one.
        state.versions.check(self.at).map_err(|gone| std::io::Error::other(StoreError::from(gone)))?;
        let from = self.after.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
        let rows = state.versions.range(from, Bound::Unbounded, self.at).take(SLICE_KEYS);
        let rows: Rows = rows.map(|(key, modified, stored)| snapshot::row(key, modified, stored)).collect();
        drop(state);
        if let Some(last) = rows.last() {
            self.after = Some(last.key.clone());
        }
        Ok(rows)
    }
}

/// The state of the checkpoint thread.
pub(super) struct Checkpoint {
    pub(super) path: PathBuf,
    pub(super) sled: Option<Sled>,
    pub(super) slot: Arc<Slot>,
    pub(super) shared: Arc<StoreShared>,
    pub(super) segments: Segments,
    pub(super) snapshot_after_bytes: u64,
}

pub(super) fn sled_path(folder: &Path) -> PathBuf {
    folder.join("sled")
}

impl Checkpoint {
    pub(super) fn run(mut self) {
        while let Some((rows, revision)) = self.slot.next() {
            let applied = match &mut self.sled {
                Some(sled) => sled.apply(&rows, revision),
                None => Err("it could not be opened".into()),
            };
            if let Err(why) = applied {
                self.start_over(&why);
            }
            if let Err(error) = self.snapshot_when_due(revision) {
                tracing::warn!(%error, "no snapshot could be written; the log is kept");
            }
        }
    }

    fn state(&self) -> (Revision, Rows) {
        let state = self.shared.read();
        let at = state.versions.compacted();
        let rows = state.versions.range(Bound::Unbounded, Bound::Unbounded, at);
        (at, rows.map(|(key, modified, stored)| snapshot::row(key, modified, stored)).collect())
    }

    fn start_over(&mut self, why: &str) {
        tracing::warn!(why, "sled is set aside and rebuilt");
        self.sled = None;
        let (revision, rows) = self.state();
        match Sled::rebuild(&sled_path(&self.path), revision, &rows) {
            Ok(sled) => self.sled = Some(sled),
            Err(why) => tracing::warn!(why, "sled could not be rebuilt; starts read the log until it can be"),
        }
    }

    fn snapshot_when_due(&self, revision: Revision) -> std::io::Result<()> {
        let below: u64 = {
            let segments = self.segments.lock().unwrap_or_else(PoisonError::into_inner);
            let newest = segments.len().saturating_sub(1);
            segments[..newest].iter().filter(|segment| segment.last <= revision).map(|segment| segment.bytes).sum()
        };
        if below < self.snapshot_after_bytes {
            return Ok(());
        }
        let (at, live) = {
            let state = self.shared.read();
            (state.versions.compacted(), state.live_bytes() as u64)
        };
        if below < 2 * live {
            return Ok(());
        }
        let mut slices = Slices { shared: &self.shared, at, after: None };
        snapshot::write(&self.path, at, || slices.next())?;
        delete_below(&self.segments, at)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::RwLock;

    use tokio::sync::watch;

    use super::super::super::plan::StoreState;
    use super::super::super::record::Record;
    use super::*;

    fn write(revision: Revision, number: usize) -> Write {
        let stored = StoredValue { record: Record::plain(b"{}"), created: revision, expires_ms: 0 };
        Write { revision, key: format!("/k/{number:06}").into(), stored: Some(Arc::new(stored)) }
    }

    /// A snapshot blocks the writer for one slice at most, contains one revision despite concurrent writes, and is
    /// decided on before anything is copied.
    #[test]
    fn a_snapshot_is_taken_in_slices_between_which_the_writer_goes_on() {
        let keys = SLICE_KEYS * 5 / 2;
        let rows: Vec<Write> = (0..keys).map(|number| write(7, number)).collect();
        let state = RwLock::new(StoreState::filled(7, &rows));
        let shared = Arc::new(StoreShared { state, moved: watch::Sender::new(7) });
        let mut slices = Slices { shared: &shared, at: 7, after: None };
        let (mut seen, mut sizes) = (Vec::new(), Vec::new());
        for revision in 8.. {
            let slice = slices.next().unwrap();
            if slice.is_empty() {
                break;
            }
            sizes.push(slice.len());
            seen.extend(slice);
            let mut state = shared.state.try_write().expect("the state is not locked between slices");
            state.apply(vec![write(revision, keys - 1), write(revision, keys + 1)]);
        }
        assert_eq!(sizes, [SLICE_KEYS, SLICE_KEYS, keys - 2 * SLICE_KEYS]);
        assert!(seen == rows, "all of revision 7, and nothing of what came after");
        let mut behind = Slices { shared: &shared, at: 7, after: None };
        shared.write().compact(9).unwrap();
        assert!(behind.next().is_err(), "a compacted revision is an error");

        let folder = tempfile::tempdir().unwrap();
        let checkpoint = Checkpoint {
            path: folder.path().to_owned(),
            sled: None,
            slot: Arc::default(),
            shared: shared.clone(),
            segments: Segments::default(),
            snapshot_after_bytes: 1,
        };
        // The writer's lock is held: a decision that read the state first would deadlock.
        let _held = shared.state.write().unwrap();
        checkpoint.snapshot_when_due(9).unwrap();
    }
}
