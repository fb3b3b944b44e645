//! The interface between the host interface `wasi:keyvalue` and what keeps the data: [`KeyvalueStores`] opens a namespace's
//! [`KeyvalueStore`] for one container. The crate `keyvalue` implements both, in files and over Redis.
//!
//! Sizes are part of the interface: the host interface rejects what is too large before it copies it.

use std::io;
use std::sync::Arc;

use async_trait::async_trait;

use crate::KeyvalueOwner;
use crate::disk::FileWork;

/// Maximum bytes of a key: many times what etcd's and Redis' users need.
pub const KEY_BYTES_MAX: usize = 512;
/// Maximum bytes of a value. One host call copies at most 2 MiB out of a guest, so two of these fit one batch.
pub const VALUE_BYTES_MAX: usize = 1 << 20;
/// Maximum bytes of a bucket's name.
pub const BUCKET_BYTES_MAX: usize = 64;
/// Maximum keys of one batch.
pub const BATCH_KEYS_MAX: usize = 1000;
/// Maximum bytes of values that one batch returns.
pub const BATCH_BYTES_MAX: usize = 2 << 20;

/// Error of a key-value operation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// A key of this many bytes, of at most [`KEY_BYTES_MAX`].
    #[error("a key has {0} bytes: at most {KEY_BYTES_MAX}")]
    KeyTooLong(usize),
    /// A value of this many bytes, of at most [`VALUE_BYTES_MAX`].
    #[error("a value has {0} bytes: at most {VALUE_BYTES_MAX}")]
    ValueTooLarge(usize),
    /// A batch of this many keys, of at most [`BATCH_KEYS_MAX`].
    #[error("a batch has {0} keys: at most {BATCH_KEYS_MAX}")]
    BatchTooLong(usize),
    /// A batch whose values have more than [`BATCH_BYTES_MAX`] bytes.
    #[error("the values of a batch have more than {BATCH_BYTES_MAX} bytes: ask for fewer keys")]
    BatchTooLarge,
    /// The namespace's quota of this many bytes is used up.
    #[error("the namespace's quota of {0} bytes is used up")]
    BytesUsedUp(u64),
    /// The namespace's quota of this many keys is used up.
    #[error("the namespace's quota of {0} keys is used up")]
    KeysUsedUp(u64),
    /// An increment of a value that is no number.
    #[error("the value is no number (decimal digits of 64 bits)")]
    NoNumber,
    /// An increment beyond 64 bits.
    #[error("the number would be beyond 64 bits")]
    Overflow,
    /// The node's disk has no room for growth.
    #[error("the node's disk is nearly full")]
    DiskFull,
    /// The namespace was deleted.
    #[error("the namespace was deleted")]
    Removed,
    /// File work of others took too long.
    #[error("others of the namespace or the node held the disk for too long")]
    DiskBusy,
    /// The container's limit of memory is reached.
    #[error("no memory is left of the container's limit")]
    Memory,
    /// The node's limit of descriptors is reached.
    #[error("the node has no descriptor left")]
    Descriptors,
    /// The shared store is unreachable, or an answer is late.
    #[error(
        "the shared key-value store does not answer; a write may have been done. Check that the Redis of the node's \
         --keyvalue runs and that the node reaches it"
    )]
    NotAnswering,
    /// Too many calls to the shared store are under way.
    #[error("too many calls of the container or the node wait for the shared key-value store")]
    SharedBusy,
    /// The shared store has no memory left.
    #[error("the shared key-value store has no memory left (Redis' maxmemory)")]
    SharedFull,
    /// The shared store refused the call, with this code.
    #[error("the shared key-value store refused the call ({0}): the node's log has its reason")]
    SharedRefused(String),
    /// The shared store has a value that no node wrote.
    #[error("the shared key-value store has data in this place that no node wrote")]
    Foreign,
    /// The cluster's identity is unknown.
    #[error("the cluster's identity is unknown: the uid of the namespace kube-system")]
    NoCluster,
    /// The store of the namespace failed.
    #[error("{0}")]
    Io(String),
}

impl StoreError {
    /// The error of a store's file.
    pub fn io(error: impl std::fmt::Display) -> Self {
        Self::Io(format!("the namespace's store cannot be used: {error}"))
    }
}

/// A stored value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Value {
    /// Revision of its last write, unique within the namespace.
    pub revision: u64,
    /// The content.
    pub bytes: Vec<u8>,
}

/// A page of keys, and the cursor of the next page, if any.
#[derive(Debug, PartialEq, Eq)]
pub struct Page {
    /// Keys in the order of their bytes.
    pub keys: Vec<String>,
    /// The last key, if more follow.
    pub cursor: Option<String>,
}

/// A write to one bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    /// Sets the values of keys; of several values of one key, the last one.
    Set {
        /// The bucket's name.
        bucket: String,
        /// Keys and values.
        pairs: Vec<(String, Vec<u8>)>,
    },
    /// Deletes keys.
    Delete {
        /// The bucket's name.
        bucket: String,
        /// The keys.
        keys: Vec<String>,
    },
    /// Adds to the number of a key; without one, to 0.
    Increment {
        /// The bucket's name.
        bucket: String,
        /// The key.
        key: String,
        /// The summand.
        delta: i64,
    },
    /// Sets a value if the current one is of the revision that was `seen`; `None`: if there is none.
    Swap {
        /// The bucket's name.
        bucket: String,
        /// The key.
        key: String,
        /// The revision of the value that was read.
        seen: Option<u64>,
        /// The new value.
        value: Vec<u8>,
    },
}

/// Result of a write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Written {
    /// It is done.
    Done,
    /// An increment's result.
    Number(i64),
    /// A compare-and-swap that came too late, with the current value.
    Stale(Option<Value>),
}

impl Write {
    /// Checks its sizes.
    ///
    /// # Errors
    /// A key, a value or the batch is too large.
    pub fn check(&self) -> Result<(), StoreError> {
        let value = |value: &Vec<u8>| match value.len() {
            length if length > VALUE_BYTES_MAX => Err(StoreError::ValueTooLarge(length)),
            _ => Ok(()),
        };
        match self {
            Self::Set { pairs, .. } => {
                check_batch(pairs.len())?;
                pairs.iter().try_for_each(|(key, bytes)| check_key(key).and_then(|()| value(bytes)))
            }
            Self::Delete { keys, .. } => {
                check_batch(keys.len())?;
                keys.iter().try_for_each(|key| check_key(key))
            }
            Self::Increment { key, .. } => check_key(key),
            Self::Swap { key, value: bytes, .. } => check_key(key).and_then(|()| value(bytes)),
        }
    }

    /// Bytes that it holds while queued.
    #[must_use]
    pub fn bytes(&self) -> usize {
        match self {
            Self::Set { pairs, .. } => pairs.iter().map(|(key, value)| key.len() + value.len()).sum(),
            Self::Delete { keys, .. } => keys.iter().map(String::len).sum(),
            Self::Increment { key, .. } => key.len(),
            Self::Swap { key, value, .. } => key.len() + value.len(),
        }
    }
}

/// The bucket of an identifier: empty is the default one; `None` for an invalid name.
#[must_use]
pub fn bucket(identifier: &str) -> Option<&str> {
    let name = if identifier.is_empty() { "default" } else { identifier };
    let plain = name.bytes().all(|letter| letter.is_ascii_alphanumeric() || matches!(letter, b'-' | b'_' | b'.'));
    (plain && name.len() <= BUCKET_BYTES_MAX).then_some(name)
}

/// Checks the size of a key.
///
/// # Errors
/// It has more than [`KEY_BYTES_MAX`] bytes.
pub fn check_key(key: &str) -> Result<(), StoreError> {
    if key.len() > KEY_BYTES_MAX { Err(StoreError::KeyTooLong(key.len())) } else { Ok(()) }
}

/// Checks the number of a batch's keys.
///
/// # Errors
/// There are more than [`BATCH_KEYS_MAX`].
pub fn check_batch(keys: usize) -> Result<(), StoreError> {
    if keys > BATCH_KEYS_MAX { Err(StoreError::BatchTooLong(keys)) } else { Ok(()) }
}

/// A namespace's store for one container. A bucket's name comes from [`bucket`].
#[async_trait]
pub trait KeyvalueStore: Send + Sync {
    /// The value of a key, with its revision.
    async fn get(&self, bucket: &str, key: &str) -> Result<Option<Value>, StoreError>;

    /// Whether the key has a value.
    async fn exists(&self, bucket: &str, key: &str) -> Result<bool, StoreError>;

    /// The values of these keys, in their order, from one snapshot.
    async fn get_many(&self, bucket: &str, keys: &[String]) -> Result<Vec<Option<Vec<u8>>>, StoreError>;

    /// A page of a bucket's keys in the order of their bytes, starting after `cursor`.
    async fn list(&self, bucket: &str, cursor: Option<&str>) -> Result<Page, StoreError>;

    /// Does a write as a whole or not at all, and waits for its result.
    async fn write(&self, write: Write) -> Result<Written, StoreError>;
}

/// The stores of all namespaces of a process's nodes.
#[async_trait]
pub trait KeyvalueStores: Send + Sync {
    /// Whether several nodes share them.
    fn is_shared(&self) -> bool;

    /// An owner's store for one container, whose work on files runs by `files`. Opens no file and no connection.
    ///
    /// # Errors
    /// The owner has no valid names, or no cluster where the stores are shared.
    fn open(&self, owner: &KeyvalueOwner, files: Arc<dyn FileWork>) -> io::Result<Arc<dyn KeyvalueStore>>;

    /// As [`Runtime::keyvalue_owners`](crate::Runtime::keyvalue_owners).
    ///
    /// # Errors
    /// The folder can't be read, or the shared store fails.
    async fn owners(&self, cluster: Option<&str>) -> io::Result<Vec<KeyvalueOwner>>;

    /// Removes an owner's data, if there is any. Further operations on its store return [`StoreError::Removed`].
    ///
    /// # Errors
    /// The file can't be removed, or the shared store fails.
    async fn remove(&self, owner: &KeyvalueOwner) -> io::Result<()>;

    /// Shares the files with another process until `false`: two processes serve during a takeover, and an open file
    /// belongs to one. Blocks.
    fn share_files(&self, with_another_process: bool);
}
