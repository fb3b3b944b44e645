//! The store: etcd's semantics and nothing else. Implementations: `memory` (tests, simulation) and the embedded one
//! (commit log + sled); one contract suite runs on all.
//!
//! A revision is taken by every transaction that changes something. What is visible is durable: a transaction is synced,
//! then visible to readers and the [`Sink`], then acknowledged.

pub mod embedded;
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

/// A point in the store's history; every committed transaction that changes something takes the next one.
pub type Revision = u64;

/// Upstream's limit of a request to etcd (1.5 MiB): what clients are built for.
pub const VALUE_BYTES_MAX: usize = 3 * 512 * 1024;
/// Writes in one transaction, as etcd's default `max-txn-ops`.
pub const TXN_OPS_MAX: usize = 128;
/// History is compacted in this rhythm, as upstream's apiserver does, to where it stood one such time before.
pub const COMPACT_EVERY: Duration = Duration::from_secs(5 * 60);
/// What history may weigh before it is compacted early: bounds memory under a storm of updates.
pub const HISTORY_BYTES_MAX: usize = 64 * 1024 * 1024;
/// What a change weighs in history beside its superseded value, in the store and in the cache (measured roughly).
const HISTORY_RECORD_BYTES: usize = 768;

/// One stored key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The key, such as `/registry/pods/default/web-1`.
    pub key: Arc<str>,
    /// What is stored.
    pub record: Record,
    /// When the key was created.
    pub created: Revision,
    /// When the key was last written.
    pub modified: Revision,
}

/// A condition on one key: its `modified` revision, 0 for "absent".
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
    /// Sets a key, for a time where `ttl` is given (Events).
    Put {
        /// The key.
        key: String,
        /// What is stored.
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
    /// The key that is written.
    #[must_use]
    pub fn key(&self) -> &str {
        match self {
            Self::Put { key, .. } | Self::Delete { key } => key,
        }
    }
}

/// Compares, and writes all or nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Txn {
    /// All must hold.
    pub compares: Vec<Compare>,
    /// Done at one revision; of several writes to one key the last one counts.
    pub ops: Vec<Op>,
}

/// What a transaction came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Durable and visible at this revision (the current one where nothing changed).
    Committed(Revision),
    /// A compare failed; the current entries of the compared keys, in order.
    Conflict(Vec<Option<Entry>>),
}

/// A page of keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Range {
    /// In key order.
    pub entries: Vec<Entry>,
    /// The revision that was read.
    pub revision: Revision,
    /// How many keys of the range are not in this page.
    pub remaining: u64,
}

/// One key's change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// When.
    pub revision: Revision,
    /// The key.
    pub key: Arc<str>,
    /// What it is now; `None`: deleted.
    pub entry: Option<Entry>,
    /// What it was.
    pub previous: Option<Entry>,
}

/// Why the store refused or failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The revision is below the compacted one.
    #[error("revision {0} has been compacted")]
    Compacted(Revision),
    /// The revision is in the future.
    #[error("revision {0} has not been reached")]
    Future(Revision),
    /// The value is over the store's limit.
    #[error("value of {bytes} bytes is over the limit of {limit}")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// More writes than one transaction may have.
    #[error("{ops} writes in one transaction are over the limit of {limit}")]
    TooMany {
        /// How many.
        ops: usize,
        /// The limit.
        limit: usize,
    },
    /// The disk is full: nothing was written, and reads go on.
    #[error("{}", full(path, *wanted, *free))]
    Full {
        /// The store's folder.
        path: String,
        /// What was to be written, in bytes.
        wanted: u64,
        /// What is left on the disk, in bytes, where the system says so.
        free: Option<u64>,
    },
    /// The store is closed or its disk failed.
    #[error("the store is not available: {0}")]
    Unavailable(String),
    /// Another process uses the folder.
    #[error("{0}")]
    InUse(String),
    /// The files are damaged or of a newer version; names the file and the way back.
    #[error("{0}")]
    Damaged(String),
}

/// What is full, how much is left, how much is wanted, and what to do.
fn full(path: &str, wanted: u64, free: Option<u64>) -> String {
    let free = free.map_or_else(|| "an unknown number of".to_owned(), |free| free.to_string());
    format!(
        "no space left on device: {path} has {free} bytes free, and this write needs {wanted}; nothing was written: free \
         space on that disk (deleting objects needs some, too) and try again"
    )
}

/// What is fed by the committer itself: all changes in revision order, after they are durable and before they are
/// acknowledged. Called from the writer: must not block or call the store.
pub trait Sink: Send + Sync {
    /// The state at `revision`, once, before anything else.
    fn start(&self, state: Vec<Entry>, revision: Revision);
    /// The changes of one or more whole transactions, which become visible together.
    fn commit(&self, changes: &[Change]);
    /// History up to `revision` is gone.
    fn compact(&self, revision: Revision);
}

/// What a reader of a fed copy of the store ([`Sink`]) does to be up to date with every write that was acknowledged.
pub enum Current<'a> {
    /// Nothing: what is acknowledged was fed before.
    Fed,
    /// It waits until this revision has been fed, which only the store knows: others may have written.
    Ask(BoxFuture<'a, Result<Revision, StoreError>>),
}

/// A key-value store with etcd's semantics.
#[async_trait]
pub trait Store: Send + Sync {
    /// The newest visible revision.
    fn revision(&self) -> Revision;

    /// The newest revision that anybody was acknowledged, for readers of a fed copy.
    fn current(&self) -> Current<'_>;

    /// The oldest revision that can still be read.
    fn compacted(&self) -> Revision;

    /// One key, now or at a revision.
    async fn get(&self, key: &str, at: Option<Revision>) -> Result<Option<Entry>, StoreError>;

    /// Keys in `from..to`, now or at a revision, at most `limit` (0: all).
    async fn range(&self, from: &str, to: &str, at: Option<Revision>, limit: usize) -> Result<Range, StoreError>;

    /// Compares and writes; returns when the writes are durable and visible.
    async fn txn(&self, txn: Txn) -> Result<Outcome, StoreError>;

    /// Changes below `prefix` after `from`, in order.
    async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, StoreError>;

    /// Feeds `sink` from now on: the state as of the compacted revision, the history since, and all that follows.
    async fn feed(&self, sink: Arc<dyn Sink>) -> Result<(), StoreError>;

    /// Forgets history up to and with `revision`.
    async fn compact(&self, revision: Revision) -> Result<(), StoreError>;

    /// Removes what has outlived its time and compacts when it is time; to be called about every second.
    async fn tick(&self) -> Result<(), StoreError>;
}

/// The end of all keys: they begin with a slash, and this is the next text after everything that does.
const KEYS_END: &str = "0";

/// The first text after all texts that begin with `prefix`, as etcd's clients form a range's end: the last character is
/// raised by one. Appending a highest character instead would leave out names that begin with it.
#[must_use]
pub fn prefix_end(prefix: &str) -> String {
    let mut end = prefix.to_owned();
    while let Some(last) = end.pop() {
        // Over the gap of the surrogates, which are no characters.
        if let Some(next) = (u32::from(last) + 1..=u32::from(char::MAX)).find_map(char::from_u32) {
            end.push(next);
            return end;
        }
    }
    KEYS_END.to_owned()
}

/// Where a [`Watch`] takes its changes from.
pub(crate) trait History: Send + Sync {
    /// Up to `most` changes after `after` below `prefix`, and up to which revision that covers everything.
    fn since(&self, prefix: &str, after: Revision, most: usize) -> Result<(Vec<Change>, Revision), StoreError>;
}

/// Changes handed out at a watch's own pace out of the store's history: a slow one costs nothing and holds up nobody,
/// and ends with [`StoreError::Compacted`] when history no longer reaches back to it.
pub struct Watch {
    history: Arc<dyn History>,
    moved: tokio::sync::watch::Receiver<Revision>,
    prefix: String,
    after: Revision,
    ready: std::collections::VecDeque<Change>,
}

impl Watch {
    /// Changes taken out of history at once.
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
