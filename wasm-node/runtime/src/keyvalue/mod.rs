//! Stores of `wasi:keyvalue`: one file per namespace, shared by all of its pods on this node
//! (`docs/decisions/0057-keyvalue.md`), or a server that several nodes share ([`shared`]).
//!
//! A namespace is identified by its uid, so that a recreated one finds no data of its predecessor. Functions of
//! [`Stores`] and [`Namespace`] block on the disk: `host::keyvalue` calls them on threads for guests' file work.

mod backend;
#[cfg(test)]
mod fuzz;
mod namespace;
pub(crate) mod shared;
#[cfg(test)]
mod tests;
mod write;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use runtime_api::KeyvalueOwner;
use runtime_api::ledger::Ledger;

use crate::bounds::disk_space::DiskSpace;

pub(crate) use backend::Backend;
pub(crate) use namespace::{Namespace, Page, Value};
pub(crate) use write::{Write, Written};

/// Maximum bytes of a key: many times what etcd's and Redis' users need.
pub(crate) const KEY_BYTES_MAX: usize = 512;
/// Maximum bytes of a value. One host call copies at most 2 MiB out of a guest, so two of these fit one batch.
pub(crate) const VALUE_BYTES_MAX: usize = 1 << 20;
/// Maximum bytes of a bucket's name.
pub(crate) const BUCKET_BYTES_MAX: usize = 64;
/// Maximum keys of one batch.
pub(crate) const BATCH_KEYS_MAX: usize = 1000;
/// Maximum bytes of values that one batch returns.
pub(crate) const BATCH_BYTES_MAX: usize = 2 << 20;
/// Maximum keys of one page of a list.
pub(crate) const PAGE_KEYS_MAX: usize = 1000;

/// Maximum open files: each has a descriptor and a cache of [`CACHE_BYTES`].
const OPEN_MAX: usize = 64;
/// Pause between two attempts to open a file that is in use, and their maximum number: 5 s. Another process has it for one
/// operation at a time.
const IN_USE_PAUSE: Duration = Duration::from_millis(2);
const IN_USE_ATTEMPTS_MAX: usize = 2_500;
/// Cache bytes of a file: the system caches the rest.
const CACHE_BYTES: usize = 512 << 10;

/// Limits of one namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Quota {
    /// Bytes of names, keys and values, and [`KEY_COST_BYTES`] for each key.
    pub(crate) bytes: u64,
    /// Keys of all buckets.
    pub(crate) keys: u64,
}

/// Accounted bytes of a key beside its characters.
pub(crate) const KEY_COST_BYTES: u64 = 64;
/// The default [`Quota`].
pub(crate) const QUOTA: Quota = Quota { bytes: 64 << 20, keys: 100_000 };

/// Error of a key-value operation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum StoreError {
    #[error("a key has {0} bytes: at most {KEY_BYTES_MAX}")]
    KeyTooLong(usize),
    #[error("a value has {0} bytes: at most {VALUE_BYTES_MAX}")]
    ValueTooLarge(usize),
    #[error("a batch has {0} keys: at most {BATCH_KEYS_MAX}")]
    BatchTooLong(usize),
    #[error("the values of a batch have more than {BATCH_BYTES_MAX} bytes: ask for fewer keys")]
    BatchTooLarge,
    #[error("the namespace's quota of {0} bytes is used up")]
    BytesUsedUp(u64),
    #[error("the namespace's quota of {0} keys is used up")]
    KeysUsedUp(u64),
    #[error("the value is no number (decimal digits of 64 bits)")]
    NoNumber,
    #[error("the number would be beyond 64 bits")]
    Overflow,
    #[error("the node's disk is nearly full")]
    DiskFull,
    #[error("the namespace was deleted")]
    Removed,
    #[error("others of the namespace or the node held the disk for too long")]
    DiskBusy,
    #[error("no memory is left of the container's limit")]
    Memory,
    #[error("the node has no descriptor left")]
    Descriptors,
    #[error(
        "the shared key-value store does not answer; a write may have been done. Check that the Redis of the node's \
         --keyvalue runs and that the node reaches it"
    )]
    NotAnswering,
    #[error("too many calls of the container or the node wait for the shared key-value store")]
    SharedBusy,
    #[error("the shared key-value store has no memory left (Redis' maxmemory)")]
    SharedFull,
    #[error("the shared key-value store refused the call ({0}): the node's log has its reason")]
    SharedRefused(String),
    #[error("the shared key-value store has data in this place that no node wrote")]
    Foreign,
    #[error("the cluster's identity is unknown: the uid of the namespace kube-system")]
    NoCluster,
    #[error("{0}")]
    Io(String),
}

impl StoreError {
    fn io(error: impl std::fmt::Display) -> Self {
        Self::Io(format!("the namespace's store cannot be used: {error}"))
    }
}

/// The stores of all namespaces.
pub(crate) struct Stores {
    dir: PathBuf,
    quota: Quota,
    ledger: Arc<Ledger>,
    /// By file name.
    known: Mutex<HashMap<String, Arc<Namespace>>>,
    /// Namespaces with an open file, the last opened one at the end.
    open: Mutex<VecDeque<Arc<Namespace>>>,
    /// Another process uses the files as well: each is open for one operation only.
    is_shared: AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Stores {
    /// `ledger`: the node's, which accounts descriptors of open files.
    pub(crate) fn new(dir: PathBuf, quota: Quota, ledger: &Arc<Ledger>) -> Arc<Self> {
        Arc::new(Self {
            dir,
            quota,
            ledger: ledger.clone(),
            known: Mutex::default(),
            open: Mutex::default(),
            is_shared: AtomicBool::new(false),
        })
    }

    /// A namespace's store. Opens no file before its use, creates none before a write.
    ///
    /// # Errors
    /// The owner yields no valid file name.
    pub(crate) fn of(self: &Arc<Self>, owner: &KeyvalueOwner) -> io::Result<Arc<Namespace>> {
        let name = file_name(owner).ok_or_else(|| io::Error::other(format!("{owner:?} names no namespace")))?;
        let mut known = lock(&self.known);
        let path = self.dir.join(&name);
        let namespace = known.entry(name).or_insert_with(|| Namespace::new(self, path));
        Ok(namespace.clone())
    }

    /// The owners of the stores on the disk.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub(crate) fn owners(&self) -> io::Result<Vec<KeyvalueOwner>> {
        let entries = match std::fs::read_dir(&self.dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut owners = Vec::new();
        for entry in entries {
            owners.extend(entry?.file_name().to_str().and_then(owner));
        }
        Ok(owners)
    }

    /// Removes a namespace's store; further operations on it return `Removed`.
    ///
    /// # Errors
    /// The file cannot be removed.
    pub(crate) fn remove(&self, owner: &KeyvalueOwner) -> io::Result<()> {
        let Some(name) = file_name(owner) else { return Ok(()) };
        if let Some(namespace) = lock(&self.known).remove(&name) {
            namespace.mark_removed();
            lock(&self.open).retain(|open| !Arc::ptr_eq(open, &namespace));
        }
        match std::fs::remove_file(self.dir.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Shares the files with another process until `false`: two processes serve during a takeover, and a file that is open
    /// belongs to one.
    pub(crate) fn share(&self, with_another_process: bool) {
        self.is_shared.store(with_another_process, Ordering::Release);
        if with_another_process {
            lock(&self.open).clear();
            let known: Vec<_> = lock(&self.known).values().cloned().collect();
            // A file in use is closed at the end of its operation.
            known.iter().for_each(|namespace| namespace.forget());
        }
    }

    fn is_shared(&self) -> bool {
        self.is_shared.load(Ordering::Acquire)
    }

    /// Records an open file, and closes an unused one where there are too many.
    fn record_open(&self, namespace: &Arc<Namespace>) {
        let mut open = lock(&self.open);
        open.retain(|known| !Arc::ptr_eq(known, namespace));
        let over = (open.len() + 1).saturating_sub(OPEN_MAX);
        let mut busy = VecDeque::new();
        for _ in 0..over {
            let Some(oldest) = open.pop_front() else { break };
            if !oldest.close() {
                busy.push_back(oldest);
            }
        }
        open.extend(busy);
        open.push_back(namespace.clone());
    }

    /// Whether the disk has room for a store to grow.
    fn has_room(&self) -> bool {
        DiskSpace::of(&self.dir).is_none_or(|disk| disk.free >= free_bytes_min(disk.all))
    }
}

/// Minimum free bytes of a disk for a store to grow: a fifth above the default threshold of eviction, which is 1 GiB, or a
/// tenth of a small disk.
fn free_bytes_min(disk_bytes: u64) -> u64 {
    (disk_bytes / 10).min(1 << 30) / 5 * 6
}

/// `NAMESPACE.UID.redb`: neither name contains a dot.
fn file_name(owner: &KeyvalueOwner) -> Option<String> {
    let plain = |name: &str| {
        let letters = name.bytes().all(|letter| matches!(letter, b'a'..=b'z' | b'0'..=b'9' | b'-'));
        letters && !name.is_empty() && name.len() <= 63
    };
    (plain(&owner.namespace) && plain(&owner.uid)).then(|| format!("{}.{}.redb", owner.namespace, owner.uid))
}

fn owner(file_name: &str) -> Option<KeyvalueOwner> {
    let (namespace, uid) = file_name.strip_suffix(".redb")?.split_once('.')?;
    let owner = KeyvalueOwner { namespace: namespace.into(), uid: uid.into(), cluster: None };
    self::file_name(&owner).map(|_| owner)
}

/// The bucket of an identifier: empty is the default one; `None` for an invalid name.
pub(crate) fn bucket(identifier: &str) -> Option<&str> {
    let name = if identifier.is_empty() { "default" } else { identifier };
    let plain = name.bytes().all(|letter| letter.is_ascii_alphanumeric() || matches!(letter, b'-' | b'_' | b'.'));
    (plain && name.len() <= BUCKET_BYTES_MAX).then_some(name)
}

fn check_key(key: &str) -> Result<(), StoreError> {
    if key.len() > KEY_BYTES_MAX { Err(StoreError::KeyTooLong(key.len())) } else { Ok(()) }
}

/// Creates the folder, readable by this user alone.
fn make_dir(dir: &Path) -> io::Result<()> {
    std::fs::create_dir_all(dir)?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o700))?;
    }
    Ok(())
}
