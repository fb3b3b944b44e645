//! What guests' file work may take of the node: descriptors, threads that wait for a disk, and the disk's own time.
//!
//! File operations run where the guest is polled, so their CPU time is the container's as any other
//! ([`Metered`](crate::engine) measures the thread). As they may wait for a disk, the runtime hands the thread's other
//! tasks to another thread meanwhile; [`Threads`] bounds how many threads a container, a namespace and all guests may hold
//! up so. Flushing to the disk competes with the store's commit log, so it is paced by the time that it takes.

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

use super::disk_threads::{LATE_AFTER, Late, OwnThreads, Threads};
use super::flushes::Flushes;
use crate::bounds::epoch::Polled;
use runtime_api::ledger::{Held, Ledger, Level, Resource};
use runtime_api::{FileAccount, MemoryFiles, Preopen, TokenBucket, VolumeQuota};

/// Of each second, the milliseconds that one container may spend in flushing to the disk.
const CONTAINER_SYNC_MILLIS: u64 = 250;
/// The same for all guests together, who flush one after the other, namespaces in turns: the store's commit log finds the disk
/// free for half of the time, and behind one other flush at most.
const SYNC_MILLIS: u64 = 500;
/// A flush that takes longer doesn't keep the others' waiting any more.
const FLUSH_STALLED_AFTER: Duration = Duration::from_secs(5);
/// Of all guests' descriptors, the part that one container may hold.
const CONTAINER_FILES_PART: u64 = 4;
/// And what it may hold in any case and at most: each of its instances is bounded by `OPEN_FILES_MAX` besides.
const CONTAINER_FILES: std::ops::RangeInclusive<u64> = 8..=4096;
/// Of all guests' descriptors, the part that keeps folders of idle containers open, so that their next request need not
/// open them.
const WARM_FOLDERS_PART: u64 = 8;
/// No more containers than that have folders kept open: they are looked for one by one.
const WARM_CONTAINERS_MAX: usize = 64;

static NEXT_CONTAINER: AtomicU64 = AtomicU64::new(1);

/// Waits until a bucket has something left.
async fn wait(bucket: &Mutex<TokenBucket>, env: &Env) {
    loop {
        let delay = bucket.lock().unwrap_or_else(PoisonError::into_inner).delay(env.elapsed());
        match delay {
            None => return,
            Some(delay) => tokio::time::sleep(delay).await,
        }
    }
}

fn charge(bucket: &Mutex<TokenBucket>, used: Duration, env: &Env) {
    bucket.lock().unwrap_or_else(PoisonError::into_inner).charge(used, env.elapsed());
}

/// All guests' share.
pub(crate) struct NodeDisk {
    env: Env,
    /// Guests that are being polled; none in tests of this file.
    polled: Option<Polled>,
    threads: Arc<Threads>,
    flushes: Arc<Flushes>,
    ledger: Arc<Ledger>,
    warm: Mutex<VecDeque<(u64, Arc<Folders>)>>,
}

impl NodeDisk {
    /// `ledger`: the node's, with a limit of descriptors.
    pub(crate) fn new(env: &Env, ledger: &Arc<Ledger>, polled: Option<Polled>) -> Arc<Self> {
        Arc::new(Self {
            env: env.clone(),
            polled,
            threads: Threads::new(),
            flushes: Flushes::new(SYNC_MILLIS, FLUSH_STALLED_AFTER, env),
            ledger: ledger.clone(),
            warm: Mutex::default(),
        })
    }

    #[cfg(test)]
    pub(crate) fn threads_held(&self) -> u32 {
        self.threads.held()
    }

    /// Does what may wait for a disk on this thread, while the thread's other tasks go on elsewhere.
    fn in_place<T>(&self, work: impl FnOnce() -> T) -> T {
        tokio::task::block_in_place(|| {
            let _aside = self.polled.as_ref().map(Polled::stand_aside);
            work()
        })
    }

    fn keep_warm(&self, container: u64, folders: &Arc<Folders>) {
        let (open, most) = (self.ledger.used(Resource::Descriptors), self.ledger.limit(Resource::Descriptors));
        // What is kept must not make the node look short of them.
        let descriptors_max = if open > most / 2 { 0 } else { most / WARM_FOLDERS_PART };
        let mut warm = self.warm.lock().unwrap_or_else(PoisonError::into_inner);
        warm.retain(|(known, _)| *known != container);
        warm.push_front((container, folders.clone()));
        let mut descriptors = 0;
        let fits = warm.iter().take(WARM_CONTAINERS_MAX).take_while(|(_, folders)| {
            descriptors += folders.open.len() as u64;
            descriptors <= descriptors_max
        });
        let fits = fits.count();
        warm.truncate(fits);
    }

    fn warm(&self, container: u64) -> Option<Arc<Folders>> {
        let warm = self.warm.lock().unwrap_or_else(PoisonError::into_inner);
        warm.iter().find(|(known, _)| *known == container).map(|(_, folders)| folders.clone())
    }

    /// Closes folders that no instance uses; answers whether there were any.
    fn cool(&self) -> bool {
        let mut warm = self.warm.lock().unwrap_or_else(PoisonError::into_inner);
        let before = warm.len();
        warm.retain(|(_, folders)| Arc::strong_count(folders) > 1);
        warm.len() < before
    }
}

/// A container's folders, open.
pub(crate) struct Folders {
    open: Vec<(Dir, String, Held)>,
}

impl Folders {
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Dir, &str)> {
        self.open.iter().map(|(dir, guest, _)| (dir, guest.as_str()))
    }
}

/// One container's share.
pub(crate) struct Disk {
    /// The key of its warm folders; none for a session, which ends with its command.
    id: Option<u64>,
    node: Arc<NodeDisk>,
    namespace: Arc<str>,
    threads: Arc<OwnThreads>,
    sync: Arc<Semaphore>,
    sync_time: Arc<Mutex<TokenBucket>>,
    ledger: Arc<Ledger>,
    folders: Vec<Preopen>,
    changes: Arc<AtomicU64>,
    memory: Option<Arc<MemoryFiles>>,
    quotas: Vec<Arc<VolumeQuota>>,
}

impl Disk {
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
            changes: Arc::default(),
            memory: None,
            quotas: Vec::new(),
            node: node.clone(),
        }
    }

    /// Some of its volumes lie in memory, some are claims'.
    pub(crate) fn beside(self, memory: Option<Arc<MemoryFiles>>, quotas: Vec<Arc<VolumeQuota>>) -> Self {
        Self { memory, quotas, ..self }
    }

    /// The container's share for a session, with more folders.
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
            changes: self.changes.clone(),
            memory: self.memory.clone(),
            quotas: self.quotas.clone(),
        }
    }

    /// The account of the volumes in memory, where a file on `device` lies in one of them.
    fn memory_on(&self, device: u64) -> Option<FileAccount> {
        self.memory.as_ref().filter(|memory| memory.is_on(device)).cloned().map(FileAccount::Memory)
    }

    /// Who counts what is written below a folder.
    pub(crate) fn account_of(&self, folder: &Path) -> Option<FileAccount> {
        if self.memory.is_none() && self.quotas.is_empty() {
            return None;
        }
        device(folder).and_then(|device| self.memory_on(device)).or_else(|| self.quota_of(&folder.canonicalize().ok()?))
    }

    fn quota_of(&self, path: &Path) -> Option<FileAccount> {
        self.quotas.iter().find(|quota| quota.holds(path)).cloned().map(FileAccount::Volume)
    }

    /// Who counts what is written to a file.
    fn account(&self, file: &File, device: u64) -> Option<FileAccount> {
        self.memory_on(device).or_else(|| self.claim_of(file))
    }

    /// What is to be held while so many bytes are written to a file, at its end or at a place of it: where what lies there has an
    /// account, what the file grows by is counted.
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

    /// The account of the claim's volume that a file or a folder lies in.
    pub(crate) fn claim_of(&self, file: &File) -> Option<FileAccount> {
        if self.quotas.is_empty() { None } else { self.quota_of(&place(file)?) }
    }

    /// Before a file is made in a folder: who counts it.
    ///
    /// # Errors
    /// There is no room for one more.
    pub(crate) fn makes(&self, folder: &File, takes_block: bool) -> io::Result<Option<FileAccount>> {
        let account = self.claim_of(folder);
        match account.as_ref().is_none_or(|account| account.takes_file(takes_block)) {
            true => Ok(account),
            false => Err(no_room()),
        }
    }

    /// Whether files may go from one folder to the other: not into a claim's volume or out of it, which are file systems of their own.
    pub(crate) fn is_one_volume(&self, from: &File, to: &File) -> bool {
        let of = |folder| place(folder).and_then(|place| self.quotas.iter().position(|quota| quota.holds(&place)));
        self.quotas.is_empty() || of(from) == of(to)
    }

    /// Takes a descriptor.
    ///
    /// # Errors
    /// The container, or all guests together, have no more.
    pub(crate) fn descriptor(&self) -> io::Result<Held> {
        loop {
            match self.ledger.hold(Resource::Descriptors, 1) {
                Ok(held) => return Ok(held),
                // What only spares an idle container some work goes before anybody is refused.
                Err(exceeded) if exceeded.level == Level::Node && self.node.cool() => {}
                Err(_) => return Err(exhausted()),
            }
        }
    }

    /// Something on a writable volume has changed, or may have.
    pub(crate) fn changed(&self) {
        self.changes.fetch_add(1, Ordering::Relaxed);
    }

    /// Grows with every change: while it stands still there is nothing to measure.
    pub(crate) fn changes(&self) -> u64 {
        self.changes.load(Ordering::Relaxed)
    }

    /// The volumes, as the guest knows them.
    pub(crate) fn preopens(&self) -> &[Preopen] {
        &self.folders
    }

    /// The volumes' folders: shared by the live instances, and open for a while after the last one.
    ///
    /// # Errors
    /// A folder is gone, or the container has no descriptors for them.
    pub(crate) fn folders(&self) -> io::Result<Arc<Folders>> {
        if let Some(folders) = self.id.and_then(|id| self.node.warm(id)) {
            return Ok(folders);
        }
        let mut open = Vec::with_capacity(self.folders.len());
        for folder in &self.folders {
            let held = self.descriptor()?;
            let dir = folder.open()?;
            let (perms, mode) = match folder.writable {
                true => (FsPerms::ReadWrite, OpenMode::READ | OpenMode::WRITE),
                false => (FsPerms::ReadOnly, OpenMode::READ),
            };
            open.push((Dir::new(dir, perms, mode, true), folder.guest.clone(), held));
        }
        let folders = Arc::new(Folders { open });
        if let Some(id) = self.id {
            self.node.keep_warm(id, &folders);
        }
        Ok(folders)
    }

    /// Does what may wait for a disk.
    ///
    /// # Errors
    /// Others held all that this container may use for too long.
    pub(crate) async fn work<T>(&self, work: impl Future<Output = T>) -> Result<T, Late> {
        let _thread = self.threads.acquire().await?;
        let mut work = std::pin::pin!(work);
        Ok(std::future::poll_fn(|context| self.node.in_place(|| work.as_mut().poll(context))).await)
    }

    /// Does it where that needs no waiting for others.
    pub(crate) fn try_work<T>(&self, work: impl FnOnce() -> T) -> Option<T> {
        let _thread = self.threads.try_acquire()?;
        Some(self.node.in_place(work))
    }

    /// Resolves when [`Disk::try_work`] may go on, or to an error when it could not for too long.
    pub(crate) async fn ready(&self) -> Result<(), Late> {
        self.threads.acquire().await.map(drop)
    }

    /// Flushes to the disk, when it is this container's turn.
    ///
    /// # Errors
    /// As for [`Disk::work`].
    pub(crate) async fn sync<T>(&self, work: impl Future<Output = T>) -> Result<T, Late> {
        let env = &self.node.env;
        let own = async {
            let own = self.sync.acquire().await.expect("never closed");
            wait(&self.sync_time, env).await;
            own
        };
        let _own = tokio::time::timeout(LATE_AFTER, own).await.map_err(|_| Late)?;
        let _turn = self.node.flushes.turn(&self.namespace).await?;
        let before = env.elapsed();
        let done = self.work(work).await;
        charge(&self.sync_time, env.elapsed().saturating_sub(before), env);
        done
    }
}

/// A file that is being written to, whose growth is counted.
pub(crate) struct Growth {
    account: FileAccount,
    file: Arc<File>,
    before: u64,
    /// Room that is kept for it.
    reserved: u64,
}

impl Growth {
    fn begin(
        account: FileAccount,
        file: &Arc<File>,
        extent: Extent,
        (bytes, at): (usize, Option<u64>),
    ) -> io::Result<Self> {
        let reserved = account.reserve(extent.grows_by(bytes as u64, at)).ok_or_else(no_room)?;
        Ok(Self { account, file: file.clone(), before: extent.taken, reserved })
    }

    /// As [`Disk::growth`], where it is known who counts.
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

/// Something was removed, or may have been.
pub(crate) fn removed(account: Option<FileAccount>) {
    if let Some(account) = account {
        account.removed();
    }
}

/// What a file takes, and where.
#[derive(Debug, Clone, Copy)]
struct Extent {
    /// The file system that it lies on.
    device: u64,
    /// Bytes that it takes there.
    taken: u64,
    /// Bytes that it is long.
    size: u64,
}

impl Extent {
    /// What it grows by at most where so many bytes are written to a place, or to its end.
    fn grows_by(&self, bytes: u64, at: Option<u64>) -> u64 {
        // One with holes may grow anywhere.
        if self.taken < self.size {
            return bytes;
        }
        let end = at.unwrap_or(self.size).saturating_add(bytes);
        // What is written behind a hole takes room for itself.
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

/// Where a file lies.
#[cfg(target_os = "linux")]
fn place(file: &File) -> Option<PathBuf> {
    use std::os::fd::AsRawFd as _;
    std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).ok()
}

/// Only this system says it of a file that is open.
#[cfg(not(target_os = "linux"))]
fn place(_: &File) -> Option<PathBuf> {
    None
}

/// No volume lies in memory there.
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

/// As the system says it.
pub(crate) fn no_room() -> io::Error {
    io::ErrorKind::StorageFull.into()
}

/// As the system says it.
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
    fn what_lies_there_already_takes_no_room() {
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
        let held: Vec<Held> = (0..).map_while(|_| greedy.descriptor().ok()).collect();
        assert_eq!(held.len(), 16, "a quarter of all");
        let others: Vec<(Disk, Vec<Held>)> = (0..4)
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
        // 200 ms of flushing at 250 ms a second, less the first burst of 25 ms and the last flush.
        let took = env.elapsed() - before;
        assert!(took >= Duration::from_millis(580), "{took:?}");
    }
}
