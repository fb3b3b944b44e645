//! The store: etcd's semantics and nothing else. Implementations: `memory` (tests, simulation), the embedded one (commit
//! log + sled), and a real etcd cluster; one contract suite runs on all.
//!
//! Every transaction that changes something takes a revision. Visible state is durable: a transaction is synced, then
//! visible to readers and the [`Sink`], then acknowledged.

pub mod embedded;
pub mod etcd;
pub mod late;
pub mod memory;
mod plan;
pub mod record;
pub mod versions;

#[cfg(test)]
pub(crate) mod contract;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::future::BoxFuture;

pub use record::Record;

/// A point in the store's history; every transaction that changes something takes the next one.
pub type Revision = u64;

/// The maximum size of a value: etcd's request limit (1.5 MiB), which clients expect.
pub const VALUE_BYTES_MAX: usize = 3 * 512 * 1024;
/// The maximum number of writes in a transaction: etcd's default `max-txn-ops`.
pub const TXN_OPS_MAX: usize = 128;
/// The compaction interval, as upstream's apiserver: history is compacted to the revision of one interval ago.
pub const COMPACT_EVERY: Duration = Duration::from_secs(5 * 60);
/// The size of history at which it is compacted early: bounds memory under a storm of updates.
pub const HISTORY_BYTES_MAX: usize = 64 * 1024 * 1024;
/// The size of a change in history besides its superseded value, in the store and in the cache (a rough measurement).
const HISTORY_RECORD_BYTES: usize = 768;

/// One stored key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The key, such as `/registry/pods/default/web-1`.
    pub key: Arc<str>,
    /// The stored record.
    pub record: Record,
    /// The revision of the key's creation.
    pub created: Revision,
    /// The revision of the key's last write.
    pub modified: Revision,
}

/// A condition on one key: its `modified` revision, 0 for an absent key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compare {
    /// The key.
    pub key: String,
    /// The expected `modified` revision.
    pub modified: Revision,
}

/// One write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Sets a key, with an optional time to live (Events).
    Put {
        /// The key.
        key: String,
        /// The record to store.
        record: Record,
        /// Time to live.
        ttl: Option<Duration>,
    },
    /// Removes a key.
    Delete {
        /// The key.
        key: String,
    },
}

impl Op {
    /// The key of the write.
    #[must_use]
    pub fn key(&self) -> &str {
        match self {
            Self::Put { key, .. } | Self::Delete { key } => key,
        }
    }
}

/// Compares and writes, all or nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Txn {
    /// The conditions; all must hold.
    pub compares: Vec<Compare>,
    /// The writes, all at one revision; of several writes to one key the last one wins.
    pub ops: Vec<Op>,
}

/// The result of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Durable and visible at this revision (the current one if nothing changed).
    Committed(Revision),
    /// A compare failed; contains the current entries of the compared keys, in order.
    Conflict(Vec<Option<Entry>>),
}

/// A page of keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Range {
    /// In key order.
    pub entries: Vec<Entry>,
    /// The revision of the read.
    pub revision: Revision,
    /// The number of keys in the range after this page.
    pub remaining: u64,
}

/// A change of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The revision of the change.
    pub revision: Revision,
    /// The key.
    pub key: Arc<str>,
    /// The new entry; `None` if deleted.
    pub entry: Option<Entry>,
    /// The entry before the change.
    pub previous: Option<Entry>,
}

/// Why the store rejected a request or failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The revision is below the compacted one.
    #[error("revision {0} has been compacted")]
    Compacted(Revision),
    /// The revision is in the future.
    #[error("revision {0} has not been reached")]
    Future(Revision),
    /// The value exceeds the store's limit.
    #[error("value of {bytes} bytes is over the limit of {limit}")]
    TooLarge {
        /// Its size in bytes.
        bytes: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// The transaction has too many writes.
    #[error("{ops} writes in one transaction are over the limit of {limit}")]
    TooMany {
        /// The number of writes.
        ops: usize,
        /// The limit.
        limit: usize,
    },
    /// The disk is full: nothing was written, and reads continue.
    #[error("{}", full(path, *wanted, *free))]
    Full {
        /// The store's folder.
        path: String,
        /// The size of the write in bytes.
        wanted: u64,
        /// The free bytes on the disk, if the system reports them.
        free: Option<u64>,
    },
    /// etcd's database has reached its quota: reads, and deletions by an administrator, continue.
    #[error(
        "etcd is over its space quota (alarm NOSPACE); nothing was written: compact and defragment it, or raise \
         --quota-backend-bytes, and run `etcdctl alarm disarm`"
    )]
    OverQuota,
    /// The store is closed or its disk failed.
    #[error("the store is not available: {0}")]
    Unavailable(String),
    /// Another process uses the folder.
    #[error("{0}")]
    InUse(String),
    /// The files are damaged or of a newer version; contains the file and the remedy.
    #[error("{0}")]
    Damaged(String),
}

/// The message for a full disk: the folder, the free and the wanted bytes, and the remedy.
fn full(path: &str, wanted: u64, free: Option<u64>) -> String {
    let free = free.map_or_else(|| "an unknown number of".to_owned(), |free| free.to_string());
    format!(
        "no space left on device: {path} has {free} bytes free, and this write needs {wanted}; nothing was written: free \
         space on that disk (deleting objects needs some, too) and try again"
    )
}

/// A consumer that the committer feeds: all changes in revision order, after they are durable and before they are
/// acknowledged. Called from the writer: must not block or call the store.
pub trait Sink: Send + Sync {
    /// The state at `revision`; called first. Again if changes were lost: then all watches end, and clients list again.
    fn start(&self, state: Vec<Entry>, revision: Revision);
    /// The changes of one or more whole transactions, which become visible together. Over etcd without the entries before
    /// the changes, which a sink has.
    fn commit(&self, changes: &[Change]);
    /// There are no further changes up to `revision`: others use the same revisions.
    fn progress(&self, revision: Revision);
    /// History up to `revision` was compacted.
    fn compact(&self, revision: Revision);
}

/// How a reader of a fed copy of the store ([`Sink`]) gets current with every acknowledged write.
pub enum Current<'a> {
    /// It always is: acknowledged writes were fed before.
    Fed,
    /// It must wait for this revision, which the store determines: there may be other writers.
    WaitFor(BoxFuture<'a, Result<Revision, StoreError>>),
}

/// How long commits took on the disk.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct CommitTimes {
    /// Upper bounds in seconds, each with the number of commits above the bound before; the last one is infinite.
    pub buckets: Vec<(f64, u64)>,
    /// The sum in seconds.
    pub seconds: f64,
}

impl CommitTimes {
    /// The number of commits.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets.iter().map(|(_, count)| count).sum()
    }
}

/// Measurements of a store on this machine.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct StoreMeasurements {
    /// The bytes of its log.
    pub log_bytes: u64,
    /// The bytes that its files occupy on the disk.
    pub size_bytes: u64,
    /// Commits since the start.
    pub commits: CommitTimes,
}

/// A key-value store with etcd's semantics.
#[async_trait]
pub trait Store: Send + Sync {
    /// The newest visible revision.
    fn revision(&self) -> Revision;

    /// The newest acknowledged revision, for readers of a fed copy.
    fn current(&self) -> Current<'_>;

    /// The oldest readable revision.
    fn compacted(&self) -> Revision;

    /// Reads one key, now or at a revision.
    async fn get(&self, key: &str, at: Option<Revision>) -> Result<Option<Entry>, StoreError>;

    /// Reads the keys in `from..to`, now or at a revision, at most `limit` (0: all).
    async fn range(&self, from: &str, to: &str, at: Option<Revision>, limit: usize) -> Result<Range, StoreError>;

    /// Compares and writes; returns when the writes are durable and visible.
    async fn txn(&self, txn: Txn) -> Result<Outcome, StoreError>;

    /// Watches the changes below `prefix` after `from`, in order.
    async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, StoreError>;

    /// Feeds `sink` from now on: the state at the compacted revision, the history since, and all further changes.
    async fn feed(&self, sink: Arc<dyn Sink>) -> Result<(), StoreError>;

    /// Drops history up to and including `revision`.
    async fn compact(&self, revision: Revision) -> Result<(), StoreError>;

    /// Expires keys, and compacts when due; call it about every second.
    async fn tick(&self) -> Result<(), StoreError>;

    /// Measurements for metrics; `None` for a store that has metrics of its own. Reads the sizes of files.
    fn measurements(&self) -> Option<StoreMeasurements> {
        None
    }

    /// How often the history of a store in another process was replaced by an earlier one; `None` for a store whose history
    /// only grows.
    fn replaced_histories(&self) -> Option<u64> {
        None
    }
}

/// The end of all keys: keys begin with a slash, and this is the next string after those.
const KEYS_END: &str = "0";

/// The first string after all strings that begin with `prefix`, as etcd's clients build a range end: the last character
/// is incremented. Appending a maximum character instead would exclude names that begin with it.
#[must_use]
pub fn prefix_end(prefix: &str) -> String {
    let mut end = prefix.to_owned();
    while let Some(last) = end.pop() {
        // Skips the surrogates, which are no characters.
        if let Some(next) = (u32::from(last) + 1..=u32::from(char::MAX)).find_map(char::from_u32) {
            end.push(next);
            return end;
        }
    }
    KEYS_END.to_owned()
}

/// The history that a [`Watch`] reads.
pub(crate) trait History: Send + Sync {
    /// Up to `most` changes after `after` below `prefix`, and the revision up to which they are complete.
    fn since(&self, prefix: &str, after: Revision, most: usize) -> Result<(Vec<Change>, Revision), StoreError>;
}

/// A watch that reads the store's history at its own pace: a slow one costs and blocks nothing, and ends with
/// [`StoreError::Compacted`] when its position is compacted.
pub struct Watch {
    history: Arc<dyn History>,
    moved: tokio::sync::watch::Receiver<Revision>,
    prefix: String,
    after: Revision,
    ready: std::collections::VecDeque<Change>,
}

impl Watch {
    /// The number of changes read from history at once.
    const BATCH: usize = 64;

    pub(crate) fn new(
        history: Arc<dyn History>,
        moved: tokio::sync::watch::Receiver<Revision>,
        prefix: &str,
        after: Revision,
    ) -> Self {
        Self { history, moved, prefix: prefix.into(), after, ready: std::collections::VecDeque::new() }
    }

    /// The next change.
    pub async fn next(&mut self) -> Result<Change, StoreError> {
        loop {
            if let Some(change) = self.ready.pop_front() {
                return Ok(change);
            }
            self.moved.borrow_and_update();
            let (changes, covered) = self.history.since(&self.prefix, self.after, Self::BATCH)?;
            self.after = self.after.max(covered);
            self.ready = changes.into();
            if self.ready.is_empty() && self.moved.changed().await.is_err() {
                return Err(StoreError::Unavailable("closed".into()));
            }
        }
    }
}
