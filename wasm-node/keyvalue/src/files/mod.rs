//! Stores in files: one per namespace, shared by all of its pods on this node (`docs/decisions/0057-keyvalue.md`).
//!
//! Functions of [`FileStores`] and [`Namespace`] block on the disk: [`FileStore`] calls them in the turns of its container.

#[cfg(test)]
mod fuzz;
mod namespace;
mod store;
#[cfg(test)]
mod tests;
mod write;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use runtime_api::KeyvalueOwner;
use runtime_api::disk::DiskSpace;
use runtime_api::ledger::Ledger;

use super::names::{file_name, owner};
use super::{Quota, lock};
use namespace::Namespace;
pub(crate) use store::FileStore;

/// Maximum open files: each has a descriptor and a cache of [`CACHE_BYTES`].
const OPEN_MAX: usize = 64;
/// Pause between two attempts to open a file that is in use, and their maximum number: 5 s. Another process has it for one
/// operation at a time.
const IN_USE_PAUSE: Duration = Duration::from_millis(2);
const IN_USE_ATTEMPTS_MAX: usize = 2_500;
/// Cache bytes of a file: the system caches the rest.
const CACHE_BYTES: usize = 512 << 10;

/// The stores of all namespaces.
pub(crate) struct FileStores {
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

impl FileStores {
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
    fn has_disk_space(&self) -> bool {
        DiskSpace::of(&self.dir).is_none_or(|disk| disk.free >= free_bytes_min(disk.all))
    }
}

/// Minimum free bytes of a disk for a store to grow: a fifth above the default threshold of eviction, which is 1 GiB, or a
/// tenth of a small disk.
fn free_bytes_min(disk_bytes: u64) -> u64 {
    (disk_bytes / 10).min(1 << 30) / 5 * 6
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
