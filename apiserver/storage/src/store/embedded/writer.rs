//! The single writer: drains the queue, appends one frame, syncs once, makes it visible, feeds the cache, acknowledges.
//!
//! If no other transaction waits, the thread that asks commits it ([`SharedCommitter::commit_alone`]): two hand-overs
//! between threads take as long as the sync of a fast disk.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use machinery_env::Env;
use tokio::sync::{mpsc, oneshot};

use super::super::plan::{PendingWrites, Write};
use super::checkpoint::Slot;
use super::folder::Lock;
use super::log::{AppendError, Log};
use super::measures::Measures;
use super::{Fatal, Outcome, Revision, Sink, StoreError, StoreShared, Txn, folder};

/// The minimum interval between two log lines about rejected writes. Each client gets its error at once.
const REJECTIONS_LOG_INTERVAL: Duration = Duration::from_secs(10);
/// The maximum number of commands in a group: bounds how long the first one waits for the others.
const GROUP_COMMANDS_MAX: usize = 512;
/// The maximum bytes of values in a group.
const GROUP_BYTES_MAX: usize = 4 * 1024 * 1024;

pub(super) type Reply<T> = oneshot::Sender<Result<T, StoreError>>;

pub(super) enum Command {
    Txn(Txn, Reply<Outcome>),
    Feed(Arc<dyn Sink>, Reply<()>),
    Compact(Revision, Reply<()>),
    Tick(Reply<()>),
}

/// The maximum duration of the last sync with which a thread of the runtime may commit: about what a request costs.
const SYNC_ALONE_MAX: Duration = Duration::from_millis(1);

/// The thread that commits what is queued.
pub(super) struct Writer {
    pub(super) committer: SharedCommitter,
    pub(super) queue: mpsc::Receiver<Command>,
    pub(super) slot: Arc<Slot>,
}

/// The committer, until the writer's thread has ended.
#[derive(Clone)]
pub(super) struct SharedCommitter(Arc<Mutex<Option<Committer>>>);

/// What makes transactions durable and visible: one at a time.
pub(super) struct Committer {
    pub(super) shared: Arc<StoreShared>,
    pub(super) env: Env,
    pub(super) log: Log,
    pub(super) slot: Arc<Slot>,
    pub(super) sink: Option<Arc<dyn Sink>>,
    pub(super) path: PathBuf,
    pub(super) fatal: Fatal,
    pub(super) rejections: RejectionLog,
    pub(super) load: Load,
    pub(super) measures: Arc<Measures>,
    /// The folder's, released after the log is closed.
    pub(super) _lock: Lock,
}

/// What decides whether a transaction may be committed by its own thread.
#[derive(Debug, Default)]
pub(super) struct Load {
    /// The number of transactions that were committed together last.
    group: usize,
    /// The duration of the last append and sync.
    sync: Duration,
    /// Whether the disk failed.
    failed: bool,
}

impl Load {
    fn allows_alone(&self) -> bool {
        self.group <= 1 && self.sync <= SYNC_ALONE_MAX && !self.failed
    }
}

/// Rate-limits the log lines about a full disk: one per rejected write would fill the rest of it.
#[derive(Debug, Default)]
pub(super) struct RejectionLog {
    logged_at: Option<Duration>,
    suppressed: u64,
}

impl RejectionLog {
    /// Whether to log at `now`; contains the number of rejections since the last log line.
    fn due(&mut self, now: Duration) -> Option<u64> {
        if self.logged_at.is_some_and(|at| now.saturating_sub(at) < REJECTIONS_LOG_INTERVAL) {
            self.suppressed += 1;
            return None;
        }
        self.logged_at = Some(now);
        Some(std::mem::take(&mut self.suppressed))
    }
}

/// Transactions that are planned and not yet durable.
#[derive(Default)]
struct Group {
    pending: PendingWrites,
    replies: Vec<(Outcome, Reply<Outcome>)>,
    bytes: usize,
}

impl SharedCommitter {
    pub(super) fn new(committer: Committer) -> Self {
        Self(Arc::new(Mutex::new(Some(committer))))
    }

    /// Closes the log and releases the folder.
    pub(super) fn close(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// Commits a transaction on the calling thread, unless others are being committed or came at the same time, or the
    /// last sync took longer than [`SYNC_ALONE_MAX`]. Blocks for one sync.
    pub(super) fn commit_alone(&self, txn: Txn) -> Result<Result<Outcome, StoreError>, Txn> {
        let Ok(mut guard) = self.0.try_lock() else { return Err(txn) };
        match &mut *guard {
            Some(committer) if committer.load.allows_alone() => Ok(committer.commit_one(txn)),
            _ => Err(txn),
        }
    }
}

impl Writer {
    pub(super) fn run(mut self) {
        while let Some(command) = self.queue.blocking_recv() {
            // A commit that panicked may be durable and not visible: nothing may follow it.
            let Ok(mut committer) = self.committer.0.lock() else { break };
            let Some(committer) = committer.as_mut() else { break };
            committer.run_queued(command, &mut self.queue);
            if committer.load.failed {
                // The content of the disk is unknown: no further commands run, and the pending ones get an error.
                break;
            }
        }
        self.committer.close();
        self.slot.close();
    }
}

impl Committer {
    /// Commits a command together with those that are queued behind it.
    fn run_queued(&mut self, first: Command, queue: &mut mpsc::Receiver<Command>) {
        let mut group = Group::default();
        let mut next = Some(first).filter(|_| !self.load.failed);
        while let Some(command) = next.take() {
            let healthy = self.run_command(&mut group, command);
            if !healthy || group.replies.len() >= GROUP_COMMANDS_MAX || group.bytes >= GROUP_BYTES_MAX {
                break;
            }
            next = queue.try_recv().ok();
        }
        if !self.load.failed {
            self.commit(&mut group);
        }
    }

    fn commit_one(&mut self, txn: Txn) -> Result<Outcome, StoreError> {
        self.load.group = 1;
        let mut pending = PendingWrites::default();
        let outcome = self.shared.read().plan(&mut pending, txn, self.now_ms());
        self.persist(pending.writes).map_or(Ok(outcome), Err)
    }

    /// Plans a transaction, or commits the group and runs another command. Returns false if the disk failed.
    fn run_command(&mut self, group: &mut Group, command: Command) -> bool {
        match command {
            Command::Txn(txn, reply) => {
                group.bytes += txn.ops.iter().map(value_bytes).sum::<usize>();
                let outcome = self.shared.read().plan(&mut group.pending, txn, self.now_ms());
                group.replies.push((outcome, reply));
                true
            }
            Command::Feed(sink, reply) => {
                self.commit(group) && {
                    let _ = reply.send(self.feed(sink));
                    true
                }
            }
            Command::Compact(revision, reply) => {
                self.commit(group) && {
                    let _ = reply.send(self.compact(revision));
                    true
                }
            }
            Command::Tick(reply) => {
                self.commit(group) && {
                    self.tick();
                    let _ = reply.send(Ok(()));
                    !self.load.failed
                }
            }
        }
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.env.now().as_millisecond()).unwrap_or(0)
    }

    /// Makes the group durable, visible, and acknowledged, in this order. Returns false if the disk failed.
    fn commit(&mut self, group: &mut Group) -> bool {
        let Group { pending, replies, .. } = std::mem::take(group);
        if !replies.is_empty() {
            self.load.group = replies.len();
        }
        let failure = self.persist(pending.writes);
        for (outcome, reply) in replies {
            let result = match &failure {
                // The conflict may be with a write of this group, which failed.
                Some(error) => Err(error.clone()),
                None => Ok(outcome),
            };
            let _ = reply.send(result);
        }
        !self.load.failed
    }

    /// Makes writes durable and visible; returns why that failed. No writes need no disk.
    fn persist(&mut self, writes: Vec<Write>) -> Option<StoreError> {
        if writes.is_empty() {
            return None;
        }
        let began = self.env.elapsed();
        let appended = self.log.append(&writes);
        self.load.sync = self.env.elapsed().saturating_sub(began);
        match appended {
            Ok(()) => {
                self.measures.committed(self.load.sync, self.log.open_bytes());
                let mut state = self.shared.write();
                let changes = state.apply(writes);
                let revision = state.versions.revision();
                drop(state);
                if let Some(sink) = &self.sink {
                    sink.commit(&changes);
                }
                self.shared.moved.send_replace(revision);
                None
            }
            Err(AppendError::NotWritten(error, wanted)) => {
                let error = rejection(&self.path, &error, wanted);
                if let Some(suppressed) = self.rejections.due(self.env.elapsed()) {
                    tracing::error!(%error, suppressed, "the disk rejected a write");
                }
                Some(error)
            }
            Err(AppendError::Sync(error)) => {
                self.load.failed = true;
                (self.fatal)(&format!("the commit log could not be synced: {error}"));
                Some(StoreError::Unavailable(error.to_string()))
            }
        }
    }

    fn feed(&mut self, sink: Arc<dyn Sink>) -> Result<(), StoreError> {
        let state = self.shared.read();
        let base = state.versions.compacted();
        sink.start(state.base(), base);
        sink.commit(&state.changes_since(base)?);
        drop(state);
        self.sink = Some(sink);
        Ok(())
    }

    fn compact(&mut self, revision: Revision) -> Result<(), StoreError> {
        let records = self.shared.write().compact(revision)?;
        let writes = records.into_iter().map(|r| Write { revision: r.revision, key: r.key, stored: r.value });
        self.slot.compacted(revision, writes);
        if let Some(sink) = &self.sink {
            sink.compact(revision);
        }
        Ok(())
    }

    /// Expires keys, and compacts when due.
    fn tick(&mut self) {
        loop {
            let now_ms = self.now_ms();
            let state = self.shared.read();
            let mut pending = PendingWrites::default();
            let Some(txn) = state.expired(now_ms) else { break };
            state.plan(&mut pending, txn, now_ms);
            drop(state);
            if self.persist(pending.writes).is_some() {
                return;
            }
        }
        let due = self.shared.write().compaction_due(self.env.elapsed());
        if let Some(revision) = due
            && let Err(error) = self.compact(revision)
        {
            tracing::warn!(%error, "history could not be compacted");
        }
    }
}

/// The error for a write of `wanted` bytes that the disk rejected.
fn rejection(path: &Path, error: &io::Error, wanted: usize) -> StoreError {
    let path = path.display().to_string();
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            StoreError::Full { wanted: wanted as u64, free: folder::free_bytes(Path::new(&path)), path }
        }
        _ => StoreError::Unavailable(format!("{path}: {error}")),
    }
}

fn value_bytes(op: &super::super::Op) -> usize {
    match op {
        super::super::Op::Put { record, .. } => record.bytes_len(),
        super::super::Op::Delete { .. } => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transaction_is_committed_alone_on_a_fast_disk_without_others() {
        let ms = Duration::from_millis;
        assert!(Load::default().allows_alone());
        assert!(Load { group: 1, sync: ms(1), failed: false }.allows_alone());
        assert!(!Load { group: 2, sync: ms(1), failed: false }.allows_alone(), "others come at the same time");
        assert!(!Load { group: 1, sync: ms(2), failed: false }.allows_alone(), "a thread of the runtime would wait");
        assert!(!Load { group: 1, sync: ms(0), failed: true }.allows_alone());
    }

    #[test]
    fn a_full_disk_is_logged_now_and_then() {
        let mut rejections = RejectionLog::default();
        let at = Duration::from_millis;
        assert_eq!(rejections.due(at(5)), Some(0), "the first at once");
        assert!((6..10_005).step_by(100).all(|now| rejections.due(at(now)).is_none()));
        assert_eq!(rejections.due(at(10_005)), Some(100), "then with how many there were");
        assert_eq!(rejections.due(at(10_006)), None);
        assert_eq!(rejections.due(at(99_000)), Some(1));
    }

    #[test]
    fn a_full_disk_error_has_free_and_required_bytes() {
        let folder = tempfile::tempdir().unwrap();
        for kind in [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded] {
            let error = rejection(folder.path(), &kind.into(), 4711);
            let StoreError::Full { path, wanted: 4711, free } = &error else { panic!("{error}") };
            assert_eq!(Path::new(path), folder.path());
            assert_eq!(free.is_some(), cfg!(unix));
            let text = error.to_string();
            let free = free.map_or_else(|| "an unknown number of".into(), |free| free.to_string());
            assert!(text.starts_with(&format!("no space left on device: {path} has {free} bytes free")), "{text}");
            assert!(text.contains("this write needs 4711"), "{text}");
        }
        let other = rejection(folder.path(), &io::ErrorKind::PermissionDenied.into(), 1);
        assert!(matches!(other, StoreError::Unavailable(_)), "{other}");
    }
}
