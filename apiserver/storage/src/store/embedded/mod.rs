//! The embedded store: an append-only commit log is the source of truth, sled its checkpoint.
//!
//! sled alone is not enough: its `flush` does not fsync on Linux, `flush_async` deadlocks, and its files are reported
//! damaged after abrupt stops. So one writer thread drains the queue, appends one checksummed frame, syncs once, makes
//! it visible, feeds the cache, acknowledges. A second thread updates sled to the compacted revision; the log after it
//! is the watch history. Segments are deleted only below a checksummed snapshot, so sled can be damaged or deleted at
//! any time and is rebuilt.

pub mod backup;
mod checkpoint;
mod folder;
mod frame;
#[cfg(test)]
mod fuzz;
mod log;
mod measures;
mod recover;
pub mod sealed;
mod snapshot;
mod writer;

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::thread::JoinHandle;

use async_trait::async_trait;
use machinery_env::Env;
use tokio::sync::{mpsc, oneshot, watch};

use super::plan::{StoreState, check};
use super::{
    Change, Current, Entry, History, Outcome, Range, Record, Revision, Sink, Store, StoreError, StoreMeasurements, Txn,
    Watch,
};
use writer::{Command, Reply, SharedCommitter};

/// The maximum number of queued commands: more would only wait longer. Callers wait for a place in the queue.
const QUEUE_COMMANDS_MAX: usize = 4096;

/// Called when a sync fails: the content of the disk is unknown, and the process must not continue.
pub type Fatal = Box<dyn Fn(&str) + Send + Sync>;

/// Makes a record of an object that the first format stored without a head.
pub type ReadFirstFormat = dyn Fn(&str, &[u8]) -> Record + Send + Sync;

/// The options of an embedded store; the defaults are for production, other values for tests.
pub struct Options {
    /// Called when a sync fails; ends the process.
    pub fatal: Fatal,
    /// The size above which a segment is closed.
    pub segment_bytes_max: u64,
    /// The zeros that are written at once ahead of the frames.
    pub reserve_bytes: usize,
    /// The total size of deletable segments (or twice the live data, if that is more) at which a snapshot is written.
    pub snapshot_after_bytes: u64,
    /// Converts objects of the first format.
    pub read_first_format: Box<ReadFirstFormat>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            fatal: Box::new(|why| {
                tracing::error!("{why}");
                std::process::abort()
            }),
            // Small enough to be deleted soon, large enough that syncs of the folder are rare.
            segment_bytes_max: 16 * 1024 * 1024,
            // Some hundred frames of one object.
            reserve_bytes: 1024 * 1024,
            // Bounds a start without sled to about a second of reading.
            snapshot_after_bytes: 64 * 1024 * 1024,
            read_first_format: Box::new(|_, body| Record::read(body, |_| None)),
        }
    }
}

struct StoreShared {
    state: RwLock<StoreState>,
    moved: watch::Sender<Revision>,
}

impl StoreShared {
    fn read(&self) -> RwLockReadGuard<'_, StoreState> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, StoreState> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl History for StoreShared {
    fn since(&self, prefix: &str, after: Revision, most: usize) -> Result<(Vec<Change>, Revision), StoreError> {
        self.read().since(prefix, after, most)
    }
}

/// The work of the two threads.
struct Workers {
    checkpoint: checkpoint::Checkpoint,
    writer: writer::Writer,
}

fn lock_of<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The embedded store.
pub struct EmbeddedStore {
    shared: Arc<StoreShared>,
    committer: SharedCommitter,
    commands: Mutex<Option<mpsc::Sender<Command>>>,
    /// The threads' work until [`EmbeddedStore::start`].
    idle: Mutex<Option<Workers>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    path: PathBuf,
    measures: Arc<measures::Measures>,
    segments: log::Segments,
}

impl EmbeddedStore {
    /// Checks that this program can read the format of the store in a folder, which another process may have open.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] if it can't.
    pub fn check_format(path: &Path) -> Result<(), StoreError> {
        let format = path.join("format");
        match std::fs::read_to_string(&format) {
            Ok(text) => folder::check_format(&format, &text),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(folder::unusable(&format, &error)),
        }
    }

    /// Opens or creates the store in a folder of its own. Blocking: reads everything into memory. Writes begin with
    /// [`EmbeddedStore::start`].
    pub fn open(path: &Path, env: Env, options: Options) -> Result<Arc<Self>, StoreError> {
        // Absolute: the last component of a relative path has no parent to sync.
        let path = &std::path::absolute(path).map_err(|error| folder::unusable(path, &error))?;
        let lock = folder::enter(path)?;
        let recovered = recover::recover(path, &*options.read_first_format)?;
        folder::raise(path)?;
        let revision = recovered.state.versions.revision();
        let shared = Arc::new(StoreShared { state: RwLock::new(recovered.state), moved: watch::Sender::new(revision) });
        let log = recovered.log.with_sizes(options.segment_bytes_max, options.reserve_bytes);
        let (segments, measures) = (log.segments(), Arc::<measures::Measures>::default());
        measures.set_open_bytes(log.open_bytes());
        let slot = Arc::new(checkpoint::Slot::default());
        let checkpoint = checkpoint::Checkpoint {
            path: path.clone(),
            sled: recovered.sled,
            slot: slot.clone(),
            shared: shared.clone(),
            segments: segments.clone(),
            snapshot_after_bytes: options.snapshot_after_bytes,
        };
        let (commands, queue) = mpsc::channel(QUEUE_COMMANDS_MAX);
        let committer = SharedCommitter::new(writer::Committer {
            shared: shared.clone(),
            env,
            log,
            slot: slot.clone(),
            sink: None,
            path: path.clone(),
            fatal: options.fatal,
            rejections: writer::RejectionLog::default(),
            load: writer::Load::default(),
            measures: measures.clone(),
            _lock: lock,
        });
        let writer = writer::Writer { committer: committer.clone(), queue, slot };
        Ok(Arc::new(Self {
            shared,
            committer,
            commands: Mutex::new(Some(commands)),
            idle: Mutex::new(Some(Workers { checkpoint, writer })),
            threads: Mutex::default(),
            path: path.clone(),
            measures,
            segments,
        }))
    }

    /// Starts the two writing threads; transactions wait until then. A second call does nothing.
    ///
    /// # Errors
    ///
    /// The system refuses a thread: the store is unusable.
    pub fn start(&self) -> Result<(), StoreError> {
        let Some(Workers { checkpoint, writer }) = lock_of(&self.idle).take() else { return Ok(()) };
        let threads = [
            ("store-writer", Box::new(move || writer.run()) as Box<dyn FnOnce() + Send>),
            ("store-checkpoint", Box::new(move || checkpoint.run())),
        ];
        for (name, body) in threads {
            let thread = std::thread::Builder::new().name(name.into()).spawn(body).map_err(|error| {
                self.close();
                StoreError::Unavailable(format!("cannot start thread {name}: {error}"))
            })?;
            lock_of(&self.threads).push(thread);
        }
        Ok(())
    }

    /// The folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Ends both threads after the queued writes; blocking. Later calls return `Unavailable`.
    pub fn close(&self) {
        lock_of(&self.commands).take();
        lock_of(&self.idle).take();
        let threads = std::mem::take(&mut *lock_of(&self.threads));
        // The writer is first; it ends the checkpoint thread.
        for thread in threads {
            let _ = thread.join();
        }
        self.committer.close();
    }

    /// Commits on the calling thread, if nothing is queued and the committer allows it.
    fn commit_alone(&self, txn: Txn) -> Result<Result<Outcome, StoreError>, Txn> {
        let is_idle = lock_of(&self.commands).as_ref().is_some_and(|queue| queue.capacity() == QUEUE_COMMANDS_MAX);
        if is_idle && lock_of(&self.idle).is_none() { self.committer.commit_alone(txn) } else { Err(txn) }
    }

    async fn ask<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T, StoreError> {
        let closed = || StoreError::Unavailable("the store is closed".into());
        let sender = lock_of(&self.commands).clone().ok_or_else(closed)?;
        let (reply, answer) = oneshot::channel();
        sender.send(command(reply)).await.map_err(|_| closed())?;
        drop(sender);
        answer.await.map_err(|_| closed())?
    }
}

impl Drop for EmbeddedStore {
    fn drop(&mut self) {
        self.close();
    }
}

#[async_trait]
impl Store for EmbeddedStore {
    fn revision(&self) -> Revision {
        self.shared.read().versions.revision()
    }

    fn current(&self) -> Current<'_> {
        Current::Fed
    }

    fn compacted(&self) -> Revision {
        self.shared.read().versions.compacted()
    }

    async fn get(&self, key: &str, at: Option<Revision>) -> Result<Option<Entry>, StoreError> {
        self.shared.read().get(key, at)
    }

    async fn range(&self, from: &str, to: &str, at: Option<Revision>, limit: usize) -> Result<Range, StoreError> {
        self.shared.read().range(from, to, at, limit)
    }

    async fn txn(&self, txn: Txn) -> Result<Outcome, StoreError> {
        check(&txn)?;
        match self.commit_alone(txn) {
            Ok(outcome) => outcome,
            Err(txn) => self.ask(|reply| Command::Txn(txn, reply)).await,
        }
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, StoreError> {
        self.shared.since(prefix, from, 0)?;
        Ok(Watch::new(self.shared.clone(), self.shared.moved.subscribe(), prefix, from))
    }

    async fn feed(&self, sink: Arc<dyn Sink>) -> Result<(), StoreError> {
        self.ask(|reply| Command::Feed(sink, reply)).await
    }

    async fn compact(&self, revision: Revision) -> Result<(), StoreError> {
        self.ask(|reply| Command::Compact(revision, reply)).await
    }

    async fn tick(&self) -> Result<(), StoreError> {
        self.ask(Command::Tick).await
    }

    fn measurements(&self) -> Option<StoreMeasurements> {
        Some(self.measures.read(&self.path, &self.segments))
    }
}
