//! Limits of guests' file work: descriptors, threads blocked on a disk, and the disk's own time.
//!
//! File operations run where the guest is polled, so their CPU time is the container's like any other
//! ([`MeteredFuture`](crate::engine) measures the thread). They may block on a disk, so the runtime moves the thread's
//! other tasks to another thread meanwhile; [`DiskThreads`] limits the blocked threads of a container, a namespace and
//! all guests. Flushing competes with the store's commit log, so it is paced by the time that it takes.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use machinery_env::Env;
use tokio::sync::Semaphore;
use wasmtime_wasi::filesystem::Dir;
use wasmtime_wasi::{FsPerms, OpenMode};

use super::disk_threads::{ContainerThreads, DiskThreads, LATE_AFTER};
use super::flushes::Flushes;
use super::working_directory;
use crate::bounds::epoch::PolledCount;
use runtime_api::disk::DiskBusy;
use runtime_api::ledger::{Ledger, Level, Resource, ResourceGuard};
use runtime_api::{FileAccount, MemoryFiles, Preopen, TokenBucket, VolumeQuota};

/// Milliseconds per second that one container may spend flushing to the disk.
const CONTAINER_SYNC_MILLIS: u64 = 250;
/// The same for all guests together, which flush one at a time, by namespace: the store's commit log finds the disk free
/// for half of the time, and behind one other flush at most.
const SYNC_MILLIS: u64 = 500;
/// A longer flush no longer blocks the others.
const FLUSH_STALLED_AFTER: Duration = Duration::from_secs(5);
/// One part in this many of all guests' descriptors may be held by one container.
const CONTAINER_FILES_PART: u64 = 4;
/// Guaranteed and maximum descriptors of a container: each of its instances is also limited by `OPEN_FILES_MAX`.
const CONTAINER_FILES: std::ops::RangeInclusive<u64> = 8..=4096;
/// One part in this many of all guests' descriptors keeps folders of idle containers open, so that their next request
/// doesn't open them.
const WARM_FOLDERS_PART: u64 = 8;
/// Maximum containers with folders kept open: they are searched linearly.
const WARM_CONTAINERS_MAX: usize = 64;

static NEXT_CONTAINER: AtomicU64 = AtomicU64::new(1);

/// Waits until a bucket has tokens.
async fn wait(bucket: &Mutex<TokenBucket>, env: &Env) {
    loop {
        let delay = bucket.lock().unwrap_or_else(PoisonError::into_inner).delay(env.elapsed());
        match delay {
            None => return,
            Some(delay) => env.sleep(delay).await,
        }
    }
}

fn charge(bucket: &Mutex<TokenBucket>, used: Duration, env: &Env) {
    bucket.lock().unwrap_or_else(PoisonError::into_inner).charge(used, env.elapsed());
}

/// Disk state shared by all guests.
pub(crate) struct NodeDisk {
    env: Env,
    /// Guests being polled; `None` in tests of this file.
    polled: Option<PolledCount>,
    threads: Arc<DiskThreads>,
    flushes: Arc<Flushes>,
    ledger: Arc<Ledger>,
    warm: Mutex<VecDeque<(u64, Arc<Folders>)>>,
}

impl NodeDisk {
    /// `ledger`: the node's, with a limit of descriptors.
    pub(crate) fn new(env: &Env, ledger: &Arc<Ledger>, polled: Option<PolledCount>) -> Arc<Self> {
        Arc::new(Self {
            env: env.clone(),
            polled,
            threads: DiskThreads::new(env.clone()),
            flushes: Flushes::new(SYNC_MILLIS, FLUSH_STALLED_AFTER, env),
            ledger: ledger.clone(),
            warm: Mutex::default(),
        })
    }

    #[cfg(test)]
    pub(crate) fn threads_held(&self) -> u32 {
        self.threads.held()
    }

    /// Runs blocking work on this thread; the thread's other tasks move to another one.
    fn in_place<T>(&self, work: impl FnOnce() -> T) -> T {
        tokio::task::block_in_place(|| {
            let _excluded = self.polled.as_ref().map(PolledCount::exclude_current);
            work()
        })
    }

    fn keep_warm(&self, container: u64, folders: &Arc<Folders>) {
        let (open, most) = (self.ledger.used(Resource::Descriptors), self.ledger.limit(Resource::Descriptors));
        // Cached folders must not make the node look short of descriptors.
        let descriptors_max = if open > most / 2 { 0 } else { most / WARM_FOLDERS_PART };
        let mut warm = self.warm.lock().unwrap_or_else(PoisonError::into_inner);
        warm.retain(|(known, _)| *known != container);
        warm.push_front((container, folders.clone()));
        let mut descriptors = 0;
        let fits = warm.iter().take(WARM_CONTAINERS_MAX).take_while(|(_, folders)| {
            descriptors += folders.held.len() as u64;
            descriptors <= descriptors_max
        });
        let fits = fits.count();
        warm.truncate(fits);
    }

    fn warm(&self, container: u64) -> Option<Arc<Folders>> {
        let warm = self.warm.lock().unwrap_or_else(PoisonError::into_inner);
        warm.iter().find(|(known, _)| *known == container).map(|(_, folders)| folders.clone())
    }

    /// Closes folders that no instance uses; returns whether there were any.
    fn close_idle_folders(&self) -> bool {
        let mut warm = self.warm.lock().unwrap_or_else(PoisonError::into_inner);
        let before = warm.len();
        warm.retain(|(_, folders)| Arc::strong_count(folders) > 1);
        warm.len() < before
    }
}

/// A container's open folders.
pub(crate) struct Folders {
    /// Each folder with its name in the guest.
    open: Vec<(Dir, String)>,
    held: Vec<ResourceGuard>,
}

impl Folders {
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Dir, &str)> {
        self.open.iter().map(|(dir, guest)| (dir, guest.as_str()))
    }
}

/// Disk state of one container.
pub(crate) struct Disk {
    /// The key of its warm folders; `None` for a session, which ends with its command.
    id: Option<u64>,
    node: Arc<NodeDisk>,
    namespace: Arc<str>,
    threads: Arc<ContainerThreads>,
    sync: Arc<Semaphore>,
    sync_time: Arc<Mutex<TokenBucket>>,
    ledger: Arc<Ledger>,
    folders: Vec<Preopen>,
    /// The working directory, with its path in the guest.
    cwd: Option<(String, Preopen)>,
    changes: Arc<AtomicU64>,
    memory: Option<Arc<MemoryFiles>>,
    quotas: Vec<Arc<VolumeQuota>>,
}

impl Disk {
    /// The clock of its waits.
    pub(super) fn env(&self) -> &Env {
        &self.node.env
    }

    /// `ledger`: the container's own.
    pub(crate) fn new(node: &Arc<NodeDisk>, ledger: &Arc<Ledger>, namespace: &Arc<str>, folders: Vec<Preopen>) -> Self {
        let most = (node.ledger.limit(Resource::Descriptors) / CONTAINER_FILES_PART)
            .clamp(*CONTAINER_FILES.start(), *CONTAINER_FILES.end());
        ledger.set_limit(Resource::Descriptors, most);
        Self {
            id: Some(NEXT_CONTAINER.fetch_add(1, Ordering::Relaxed)),
            namespace: namespace.clone(),
            threads: Arc::new(node.threads.of_container(namespace)),
            sync: Arc::new(Semaphore::new(1)),
            sync_time: Arc::new(Mutex::new(TokenBucket::new(CONTAINER_SYNC_MILLIS, node.env.elapsed()))),
            ledger: ledger.clone(),
            folders,
            cwd: None,
            changes: Arc::default(),
            memory: None,
            quotas: Vec::new(),
            node: node.clone(),
        }
    }

    /// Sets the accounts of volumes in memory and of claims' volumes.
    pub(crate) fn with_accounts(self, memory: Option<Arc<MemoryFiles>>, quotas: Vec<Arc<VolumeQuota>>) -> Self {
        Self { memory, quotas, ..self }
    }

    /// Sets the working directory.
    pub(crate) fn with_cwd(self, cwd: Option<(String, Preopen)>) -> Self {
        Self { cwd, ..self }
    }

    /// Disk state of a session: the container's, with more folders.
    pub(crate) fn with_folders(&self, more: Vec<Preopen>) -> Self {
        Self {
            id: None,
            node: self.node.clone(),
            namespace: self.namespace.clone(),
            threads: self.threads.clone(),
            sync: self.sync.clone(),
            sync_time: self.sync_time.clone(),
            ledger: self.ledger.clone(),
            folders: self.folders.iter().cloned().chain(more).collect(),
            cwd: self.cwd.clone(),
            changes: self.changes.clone(),
            memory: self.memory.clone(),
            quotas: self.quotas.clone(),
        }
    }

    /// The account of the volumes in memory, if a file on `device` is in one of them.
    fn memory_on(&self, device: u64) -> Option<FileAccount> {
        self.memory.as_ref().filter(|memory| memory.is_on(device)).cloned().map(FileAccount::Memory)
    }

    /// The account of writes below a folder.
    pub(crate) fn account_of(&self, folder: &Path) -> Option<FileAccount> {
        if self.memory.is_none() && self.quotas.is_empty() {
            return None;
        }
        device(folder).and_then(|device| self.memory_on(device)).or_else(|| self.quota_of(&folder.canonicalize().ok()?))
    }

    fn quota_of(&self, path: &Path) -> Option<FileAccount> {
        self.quotas.iter().find(|quota| quota.holds(path)).cloned().map(FileAccount::Volume)
    }

    /// The account of writes to a file.
    fn account(&self, file: &File, device: u64) -> Option<FileAccount> {
        self.memory_on(device).or_else(|| self.claim_of(file))
    }

    /// Reserves room for a write of `bytes` at the file's end or at an offset, and counts the file's growth when dropped.
    /// `None` without an account.
    ///
    /// # Errors
    /// There is no room.
    pub(crate) fn growth(&self, file: &Arc<File>, bytes: usize, at: Option<u64>) -> io::Result<Option<Growth>> {
        if self.memory.is_none() && self.quotas.is_empty() {
            return Ok(None);
        }
        let extent = extent(file)?;
        let Some(account) = self.account(file, extent.device) else { return Ok(None) };
        Growth::begin(account, file, extent, (bytes, at)).map(Some)
    }

    /// The account of the claim's volume that contains a file or folder.
    pub(crate) fn claim_of(&self, file: &File) -> Option<FileAccount> {
        if self.quotas.is_empty() { None } else { self.quota_of(&place(file)?) }
    }

    /// The account of a new file in a folder; checked before the file is created.
    ///
    /// # Errors
    /// There is no room for one more.
    pub(crate) fn check_new_file(&self, folder: &File, takes_block: bool) -> io::Result<Option<FileAccount>> {
        let account = self.claim_of(folder);
        match account.as_ref().is_none_or(|account| account.takes_file(takes_block)) {
            true => Ok(account),
            false => Err(storage_full()),
        }
    }

    /// Whether files may move between two folders: not into or out of a claim's volume, which is its own file system.
    pub(crate) fn is_one_volume(&self, from: &File, to: &File) -> bool {
        let of = |folder| place(folder).and_then(|place| self.quotas.iter().position(|quota| quota.holds(&place)));
        self.quotas.is_empty() || of(from) == of(to)
    }

    /// Acquires a descriptor.
    ///
    /// # Errors
    /// The container, or all guests together, have none left.
    pub(crate) fn descriptor(&self) -> io::Result<ResourceGuard> {
        loop {
            match self.ledger.try_hold(Resource::Descriptors, 1) {
                Ok(held) => return Ok(held),
                // Cached folders are closed before a request for a descriptor fails.
                Err(exceeded) if exceeded.level == Level::Node && self.node.close_idle_folders() => {}
                Err(_) => return self.ledger.hold(Resource::Descriptors, 1).map_err(|_| exhausted()),
            }
        }
    }

    /// Records a possible change on a writable volume.
    pub(crate) fn changed(&self) {
        self.changes.fetch_add(1, Ordering::Relaxed);
    }

    /// Change counter: an unchanged value means that there is nothing to measure.
    pub(crate) fn changes(&self) -> u64 {
        self.changes.load(Ordering::Relaxed)
    }

    /// The volumes, as mounted in the guest.
    pub(crate) fn preopens(&self) -> &[Preopen] {
        &self.folders
    }

    /// The volumes' folders: shared by the live instances, and kept open for a while after the last one.
    ///
    /// # Errors
    /// A folder is missing, or the container has no descriptors for them.
    pub(crate) fn folders(&self) -> io::Result<Arc<Folders>> {
        if let Some(folders) = self.id.and_then(|id| self.node.warm(id)) {
            return Ok(folders);
        }
        let (mut open, mut held) = (Vec::with_capacity(self.folders.len()), Vec::new());
        for folder in &self.folders {
            held.push(self.descriptor()?);
            open.push((dir(folder)?, folder.guest.clone()));
        }
        if let Some((cwd, folder)) = &self.cwd {
            held.push(self.descriptor()?);
            let dir = dir(folder)?;
            open.extend(working_directory::names(cwd, &self.folders).map(|name| (dir.clone(), name.to_owned())));
        }
        let folders = Arc::new(Folders { open, held });
        if let Some(id) = self.id {
            self.node.keep_warm(id, &folders);
        }
        Ok(folders)
    }

    /// Runs work that may block on a disk.
    ///
    /// # Errors
    /// No thread of this container's share became free in time.
    pub(crate) async fn work<T>(&self, work: impl Future<Output = T>) -> Result<T, DiskBusy> {
        let _thread = self.threads.acquire().await?;
        let mut work = std::pin::pin!(work);
        Ok(std::future::poll_fn(|context| self.node.in_place(|| work.as_mut().poll(context))).await)
    }

    /// Runs the work if a thread is free.
    pub(crate) fn try_work<T>(&self, work: impl FnOnce() -> T) -> Option<T> {
        let _thread = self.threads.try_acquire()?;
        Some(self.node.in_place(work))
    }

    /// Resolves when [`Disk::try_work`] may be retried, or to an error after too long a wait.
    pub(crate) async fn ready(&self) -> Result<(), DiskBusy> {
        self.threads.acquire().await.map(drop)
    }

    /// Flushes to the disk, at this container's turn.
    ///
    /// # Errors
    /// As for [`Disk::work`].
    pub(crate) async fn sync<T>(&self, work: impl Future<Output = T>) -> Result<T, DiskBusy> {
        let env = &self.node.env;
        let own = async {
            let own = self.sync.acquire().await.expect("never closed");
            wait(&self.sync_time, env).await;
            own
        };
        let _own = env.timeout(LATE_AFTER, own).await.map_err(|_| DiskBusy)?;
        let _flush = self.node.flushes.acquire(&self.namespace).await?;
        let before = env.elapsed();
        let done = self.work(work).await;
        charge(&self.sync_time, env.elapsed().saturating_sub(before), env);
        done
    }
}

fn dir(folder: &Preopen) -> io::Result<Dir> {
    let (perms, mode) = match folder.writable {
        true => (FsPerms::ReadWrite, OpenMode::READ | OpenMode::WRITE),
        false => (FsPerms::ReadOnly, OpenMode::READ),
    };
    Ok(Dir::new(folder.open()?, perms, mode, true))
}

/// A file with a pending write, whose growth is counted.
pub(crate) struct Growth {
    account: FileAccount,
    file: Arc<File>,
    before: u64,
    /// Bytes reserved for it.
    reserved: u64,
}

impl Growth {
    fn begin(
        account: FileAccount,
        file: &Arc<File>,
        extent: Extent,
        (bytes, at): (usize, Option<u64>),
    ) -> io::Result<Self> {
        let reserved = account.reserve(extent.grows_by(bytes as u64, at)).ok_or_else(storage_full)?;
        Ok(Self { account, file: file.clone(), before: extent.taken, reserved })
    }

    /// As [`Disk::growth`], with a known account.
    ///
    /// # Errors
    /// There is no room.
    pub(crate) fn of(account: FileAccount, file: &Arc<File>, bytes: usize, at: Option<u64>) -> io::Result<Self> {
        Self::begin(account, file, extent(file)?, (bytes, at))
    }
}

impl Drop for Growth {
    fn drop(&mut self) {
        let now = extent(&self.file).map_or(self.before, |extent| extent.taken);
        self.account.settle(self.reserved, now.saturating_sub(self.before));
    }
}

/// See [`FileAccount::made_file`].
pub(crate) fn made_file(account: Option<FileAccount>, takes_block: bool) {
    if let Some(account) = account {
        account.made_file(takes_block);
    }
}

/// Records a possible removal.
pub(crate) fn removed(account: Option<FileAccount>) {
    if let Some(account) = account {
        account.removed();
    }
}

/// A file's size and location.
#[derive(Debug, Clone, Copy)]
struct Extent {
    /// Its file system.
    device: u64,
    /// Allocated bytes.
    taken: u64,
    /// Length in bytes.
    size: u64,
}

impl Extent {
    /// The maximum growth by a write of this many bytes at an offset, or at its end.
    fn grows_by(&self, bytes: u64, at: Option<u64>) -> u64 {
        // A sparse file may grow anywhere.
        if self.taken < self.size {
            return bytes;
        }
        let end = at.unwrap_or(self.size).saturating_add(bytes);
        // A write behind a hole allocates only its own bytes.
        end.saturating_sub(self.taken).min(bytes)
    }
}

#[cfg(unix)]
fn extent(file: &File) -> io::Result<Extent> {
    use std::os::unix::fs::MetadataExt as _;
    let metadata = file.metadata()?;
    let taken = metadata.blocks().saturating_mul(512);
    Ok(Extent { device: metadata.dev(), taken, size: metadata.len() })
}

/// The path of an open file.
#[cfg(target_os = "linux")]
fn place(file: &File) -> Option<PathBuf> {
    use std::os::fd::AsRawFd as _;
    std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).ok()
}

/// Only Linux reports it for an open file.
#[cfg(not(target_os = "linux"))]
fn place(_: &File) -> Option<PathBuf> {
    None
}

/// Volumes in memory exist on Unix only.
#[cfg(not(unix))]
fn extent(_: &File) -> io::Result<Extent> {
    Ok(Extent { device: 0, taken: 0, size: u64::MAX })
}

/// The file system of a folder.
#[cfg(unix)]
fn device(folder: &Path) -> Option<u64> {
    std::fs::metadata(folder).ok().map(|metadata| std::os::unix::fs::MetadataExt::dev(&metadata))
}

/// See above.
#[cfg(not(unix))]
fn device(_: &Path) -> Option<u64> {
    None
}

/// The system's error for a full disk.
pub(crate) fn storage_full() -> io::Error {
    io::ErrorKind::StorageFull.into()
}

/// The system's error without free descriptors.
pub(crate) fn exhausted() -> io::Error {
    #[cfg(unix)]
    return rustix::io::Errno::MFILE.into();
    #[cfg(not(unix))]
    io::Error::other("too many open files")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn used(node: &NodeDisk) -> u64 {
        node.ledger.used(Resource::Descriptors)
    }

    fn disk(files: u64) -> (tempfile::TempDir, Arc<NodeDisk>, impl Fn(usize) -> Disk) {
        let root = tempfile::tempdir().unwrap();
        let ledger = Ledger::node();
        ledger.set_limit(Resource::Descriptors, files);
        let node = NodeDisk::new(&Env::real(), &ledger, None);
        let (path, of) = (root.path().to_owned(), node.clone());
        let make = move |folders: usize| {
            let folder =
                |n| Preopen { host: path.clone(), sub_paths: Vec::new(), guest: format!("/{n}"), writable: true };
            let own = Ledger::container(&Ledger::pod(&ledger));
            Disk::new(&of, &own, &"default".into(), (0..folders).map(folder).collect())
        };
        (root, node, make)
    }

    #[test]
    fn overwrites_take_no_space() {
        let whole = Extent { device: 0, taken: 8192, size: 5000 };
        for (bytes, at, grows) in [
            (5000, Some(0), 0),
            (3192, Some(5000), 0),
            (3192, None, 0),
            (3193, None, 1),
            (100, Some(1 << 40), 100),
            (u64::MAX, Some(u64::MAX), u64::MAX - 8192),
        ] {
            assert_eq!(whole.grows_by(bytes, at), grows, "{bytes} at {at:?}");
        }
        let holes = Extent { taken: 4096, ..whole };
        assert_eq!(holes.grows_by(10, Some(0)), 10);
    }

    #[test]
    fn idle_containers_hold_few_folders_open() {
        let (_root, node, disk) = disk(400);
        let all: Vec<Disk> = (0..300).map(|_| disk(4)).collect();
        for disk in &all {
            assert_eq!(disk.folders().unwrap().iter().count(), 4);
        }
        assert!(used(&node) <= 50, "{} descriptors for nobody", used(&node));
        let live = all[0].folders().unwrap();
        let before = used(&node);
        let again = all[0].folders().unwrap();
        assert!(Arc::ptr_eq(&live, &again) && used(&node) == before, "live instances share them");
    }

    #[test]
    fn a_container_has_its_part_and_idle_folders_go_first() {
        let (_root, node, disk) = disk(64);
        let (idle, greedy) = (disk(8), disk(0));
        drop(idle.folders().unwrap());
        assert_eq!(used(&node), 8, "kept for the next request");
        let held: Vec<ResourceGuard> = (0..).map_while(|_| greedy.descriptor().ok()).collect();
        assert_eq!(held.len(), 16, "a quarter of all");
        let others: Vec<(Disk, Vec<ResourceGuard>)> = (0..4)
            .map(|_| {
                let other = disk(0);
                let held = (0..16).map_while(|_| other.descriptor().ok()).collect();
                (other, held)
            })
            .collect();
        let all: usize = others.iter().map(|(_, held)| held.len()).sum();
        assert_eq!((held.len() + all, used(&node)), (64, 64), "the idle container's folders made way");
        assert!(idle.folders().is_err());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn flushes_take_no_more_than_their_part_of_the_time() {
        let (_root, _node, disk) = disk(64);
        let disk = disk(0);
        let env = Env::real();
        let before = env.elapsed();
        for _ in 0..10 {
            disk.sync(async { std::thread::sleep(Duration::from_millis(20)) }).await.unwrap();
        }
        // 200 ms of flushing at 250 ms per second, less the first burst of 25 ms and the last flush.
        let took = env.elapsed() - before;
        assert!(took >= Duration::from_millis(580), "{took:?}");
    }
}
