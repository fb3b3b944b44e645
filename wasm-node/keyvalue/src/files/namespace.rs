//! One namespace's store: a file, and the queue of writes for group commit.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, Weak};

use redb::{Database, DatabaseError, ReadTransaction, ReadableDatabase as _, TableDefinition, TableError};
use runtime_api::keyvalue::{BATCH_BYTES_MAX, Page, StoreError, Value, Write, Written, check_batch, check_key};
use runtime_api::ledger::{Resource, ResourceGuard};
use tokio::sync::oneshot;

use super::write::Tables;
use super::{CACHE_BYTES, FileStores, IN_USE_ATTEMPTS_MAX, IN_USE_PAUSE, make_dir};
use crate::{PAGE_KEYS_MAX, lock};

/// By bucket and key: 8 bytes of revision, then the value.
pub(super) const PAIRS: TableDefinition<'static, (&str, &str), &[u8]> = TableDefinition::new("pairs");
/// Total usage, and the last revision.
pub(super) const USAGE: TableDefinition<'static, &str, u64> = TableDefinition::new("usage");

/// Maximum writes per commit: they share its two flushes.
const COMMIT_WRITES_MAX: usize = 256;
/// Maximum bytes per commit: keeps flushes short, as the next namespace waits for this one.
const COMMIT_BYTES_MAX: usize = 1 << 20;

/// The value in a table.
pub(super) fn read_value(kept: &[u8]) -> Option<Value> {
    let (revision, bytes) = kept.split_first_chunk()?;
    Some(Value { revision: u64::from_le_bytes(*revision), bytes: bytes.to_vec() })
}

type WriteResult = Result<Written, StoreError>;

/// A queued write. Its caller may have been cancelled, which cancels nothing here.
struct QueuedWrite {
    write: Write,
    answer: oneshot::Sender<WriteResult>,
}

enum StoreFile {
    Closed,
    Open(Arc<Database>, #[expect(dead_code, reason = "held while the file is open")] ResourceGuard),
    Removed,
}

/// One namespace's store.
pub(crate) struct Namespace {
    stores: Weak<FileStores>,
    path: PathBuf,
    file: Mutex<StoreFile>,
    queue: Mutex<VecDeque<QueuedWrite>>,
}

impl Namespace {
    pub(super) fn new(stores: &Arc<FileStores>, path: PathBuf) -> Arc<Self> {
        Arc::new(Self {
            stores: Arc::downgrade(stores),
            path,
            file: Mutex::new(StoreFile::Closed),
            queue: Mutex::default(),
        })
    }

    /// Closes the file if it is unused.
    pub(super) fn close(&self) -> bool {
        let mut file = lock(&self.file);
        if matches!(&*file, StoreFile::Open(database, _) if Arc::strong_count(database) > 1) {
            return false;
        }
        if matches!(*file, StoreFile::Open(..)) {
            *file = StoreFile::Closed;
        }
        true
    }

    /// Closes the file at the end of its operations.
    pub(super) fn forget(&self) {
        let mut file = lock(&self.file);
        if matches!(*file, StoreFile::Open(..)) {
            *file = StoreFile::Closed;
        }
    }

    pub(super) fn mark_removed(&self) {
        *lock(&self.file) = StoreFile::Removed;
    }

    /// The open file; `None` if there is none yet and `make` is false.
    fn database(self: &Arc<Self>, make: bool) -> Result<Option<Arc<Database>>, StoreError> {
        let stores = self.stores.upgrade().ok_or(StoreError::Removed)?;
        let mut file = lock(&self.file);
        match &*file {
            StoreFile::Open(database, _) => return Ok(Some(database.clone())),
            StoreFile::Removed => return Err(StoreError::Removed),
            StoreFile::Closed => {}
        }
        if !make && !self.path.exists() {
            return Ok(None);
        }
        make_dir(&stores.dir).map_err(StoreError::io)?;
        let held = stores.ledger.hold(Resource::Descriptors, 1).map_err(|_| StoreError::Descriptors)?;
        if stores.is_shared() {
            // Open for this operation only, so that the other process gets its turn. Unlocked: the file may be in use here.
            drop(file);
            return Ok(Some(self.open()?));
        }
        let database = self.open()?;
        *file = StoreFile::Open(database.clone(), held);
        drop(file);
        stores.record_open(self);
        Ok(Some(database))
    }

    /// Opens the file, in turns with another process.
    fn open(&self) -> Result<Arc<Database>, StoreError> {
        let mut attempts = 0;
        loop {
            match Database::builder().set_cache_size(CACHE_BYTES).create(&self.path) {
                Ok(database) => return Ok(Arc::new(database)),
                Err(DatabaseError::DatabaseAlreadyOpen) if attempts < IN_USE_ATTEMPTS_MAX => {
                    attempts += 1;
                    std::thread::sleep(IN_USE_PAUSE);
                }
                Err(error) => {
                    tracing::error!(file = %self.path.display(), %error, "cannot open a namespace's keyvalue store");
                    return Err(StoreError::io(error));
                }
            }
        }
    }

    /// Reopens the file after a disk error: it contains the committed writes and nothing else.
    fn failed(&self, error: impl std::fmt::Display) -> StoreError {
        tracing::warn!(file = %self.path.display(), %error, "a namespace's keyvalue store failed");
        let mut file = lock(&self.file);
        if matches!(*file, StoreFile::Open(..)) {
            *file = StoreFile::Closed;
        }
        StoreError::io(error)
    }

    fn read<T: Default>(
        self: &Arc<Self>,
        read: impl FnOnce(&Pairs) -> Result<T, redb::Error>,
    ) -> Result<T, StoreError> {
        let Some(database) = self.database(false)? else { return Ok(T::default()) };
        let reading = || {
            let transaction: ReadTransaction = database.begin_read()?;
            match transaction.open_table(PAIRS) {
                Ok(pairs) => read(&pairs),
                Err(TableError::TableDoesNotExist(_)) => Ok(T::default()),
                Err(error) => Err(error.into()),
            }
        };
        reading().map_err(|error: redb::Error| self.failed(error))
    }

    pub(crate) fn get(self: &Arc<Self>, bucket: &str, key: &str) -> Result<Option<Value>, StoreError> {
        check_key(key)?;
        self.read(|pairs| Ok(pairs.get((bucket, key))?.and_then(|kept| read_value(kept.value()))))
    }

    pub(crate) fn exists(self: &Arc<Self>, bucket: &str, key: &str) -> Result<bool, StoreError> {
        check_key(key)?;
        self.read(|pairs| Ok(pairs.get((bucket, key))?.is_some()))
    }

    /// The values of these keys, in their order, from one snapshot.
    pub(crate) fn get_many(
        self: &Arc<Self>,
        bucket: &str,
        keys: &[String],
    ) -> Result<Vec<Option<Vec<u8>>>, StoreError> {
        check_batch(keys.len())?;
        keys.iter().try_for_each(|key| check_key(key))?;
        let mut bytes = 0;
        let found = self.read(|pairs| {
            let mut found = Vec::with_capacity(keys.len());
            for key in keys {
                let kept = pairs.get((bucket, key.as_str()))?;
                bytes += kept.as_ref().map_or(0, |kept| kept.value().len().saturating_sub(size_of::<u64>()));
                if bytes > BATCH_BYTES_MAX {
                    return Ok(None);
                }
                found.push(kept.and_then(|kept| read_value(kept.value())).map(|value| value.bytes));
            }
            Ok(Some(found))
        });
        match found? {
            Some(found) => Ok(found),
            None if bytes > BATCH_BYTES_MAX => Err(StoreError::BatchTooLarge),
            None => Ok(vec![None; keys.len()]),
        }
    }

    /// A page of a bucket's keys in order, starting after `cursor`.
    pub(crate) fn list(self: &Arc<Self>, bucket: &str, cursor: Option<&str>) -> Result<Page, StoreError> {
        let mut keys = self.read(|pairs| {
            let mut keys = Vec::new();
            for pair in pairs.range((bucket, cursor.unwrap_or_default())..)? {
                let (name, _) = pair?;
                let (of, key) = name.value();
                if of != bucket || keys.len() > PAGE_KEYS_MAX {
                    break;
                }
                if cursor != Some(key) {
                    keys.push(key.to_owned());
                }
            }
            Ok(keys)
        })?;
        let more = keys.len() > PAGE_KEYS_MAX;
        keys.truncate(PAGE_KEYS_MAX);
        let cursor = if more { keys.last().cloned() } else { None };
        Ok(Page { keys, cursor })
    }

    /// Queues a write for the next [`commit`](Self::commit) by any caller.
    pub(crate) fn submit(&self, write: Write) -> Result<oneshot::Receiver<WriteResult>, StoreError> {
        write.check()?;
        let (answer, answered) = oneshot::channel();
        lock(&self.queue).push_back(QueuedWrite { write, answer });
        Ok(answered)
    }

    /// Commits the queued writes and sends their results once they are on disk.
    pub(crate) fn commit(self: &Arc<Self>) {
        let pending = self.take();
        if pending.is_empty() {
            return;
        }
        let (answers, writes): (Vec<_>, Vec<_>) = pending.into_iter().map(|p| (p.answer, p.write)).unzip();
        let results = match self.write(writes) {
            Ok(results) => results,
            Err(error) => answers.iter().map(|_| Err(error.clone())).collect(),
        };
        for (answer, result) in answers.into_iter().zip(results) {
            // The caller may have been cancelled: the write is done all the same.
            let _ = answer.send(result);
        }
    }

    fn take(&self) -> Vec<QueuedWrite> {
        let mut queue = lock(&self.queue);
        let (mut taken, mut bytes) = (Vec::new(), 0);
        while taken.len() < COMMIT_WRITES_MAX && bytes < COMMIT_BYTES_MAX {
            let Some(pending) = queue.pop_front() else { break };
            if !pending.answer.is_closed() {
                bytes += pending.write.bytes();
                taken.push(pending);
            }
        }
        taken
    }

    fn write(self: &Arc<Self>, writes: Vec<Write>) -> Result<Vec<WriteResult>, StoreError> {
        let Some(database) = self.database(true)? else { return Err(StoreError::Removed) };
        let stores = self.stores.upgrade().ok_or(StoreError::Removed)?;
        let may_grow = stores.has_disk_space();
        let writing = || {
            let mut transaction = database.begin_write()?;
            // Guests choose the content: a commit's validity must not depend on checksums that they could target, and
            // recovery after a crash must not read the whole file.
            transaction.set_two_phase_commit(true);
            transaction.set_quick_repair(true);
            let mut tables = Tables::open(&transaction, stores.quota, may_grow)?;
            let results = writes.into_iter().map(|write| tables.write(write)).collect::<Result<_, redb::Error>>()?;
            let changed = tables.close()?;
            if changed {
                transaction.commit()?
            } else {
                transaction.abort()?
            }
            Ok(results)
        };
        writing().map_err(|error: redb::Error| self.failed(error))
    }
}

type Pairs = redb::ReadOnlyTable<(&'static str, &'static str), &'static [u8]>;
