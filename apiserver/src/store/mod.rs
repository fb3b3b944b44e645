//! The store: etcd's semantics and nothing else. Implementations: `memory` (tests, simulation) and the embedded one
//! (commit log + sled); one contract suite runs on all.

use std::time::Duration;

use bytes::Bytes;

/// A point in the store's history; every committed transaction that changes something takes the next one.
pub type Revision = u64;

/// One stored key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The key, such as `/registry/pods/default/web-1`.
    pub key: String,
    /// The value.
    pub value: Bytes,
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
        /// The value.
        value: Bytes,
        /// Time to live.
        ttl: Option<Duration>,
    },
    /// Removes a key.
    Delete {
        /// The key.
        key: String,
    },
}

/// Compares, and writes all or nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Txn {
    /// All must hold.
    pub compares: Vec<Compare>,
    /// Done in order at one revision.
    pub ops: Vec<Op>,
}

/// What a transaction came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Durable and visible at this revision.
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

/// Why the store refused or failed.
#[derive(Debug, thiserror::Error)]
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
    /// The store is closed or its disk failed.
    #[error("the store is not available: {0}")]
    Unavailable(String),
    /// The files are damaged; names the file and the way back.
    #[error("{0}")]
    Damaged(String),
}
