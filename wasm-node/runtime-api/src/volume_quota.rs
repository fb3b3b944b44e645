//! Quota of a claim's volume for all guests of a node that write to it. A write beyond it fails like one on a full disk; other
//! volumes are unaffected.

#[cfg(unix)]
use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::MemoryFiles;

/// The allocation unit of a file.
const BLOCK_BYTES: u64 = 4096;

/// Maximum files and folders of a volume: a directory walk takes well under 1 s.
pub const VOLUME_FILES_MAX: u64 = 100_000;

/// Number of open files from which closed ones are removed, each time that it has doubled.
const OPEN_CLEANED_FROM: usize = 64;

/// Usage of a volume.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct VolumeUse {
    /// Bytes on the disk.
    pub bytes: u64,
    /// Files, folders and links.
    pub files: u64,
}

/// Walks through the volume; `None` if that was done a moment ago. Argument: removals since the last walk.
type Measure = Box<dyn Fn(bool) -> Option<VolumeUse> + Send + Sync>;

/// Accounting state of a volume.
#[derive(Debug, Default)]
struct VolumeAccount {
    used: VolumeUse,
    /// Bytes reserved by writes in progress.
    reserved: u64,
    /// Total ever counted: writes counted during a walk are not lost.
    counted: VolumeUse,
    /// Renames and links in progress, and the number ever started: a walk beside one may miss a file.
    moving: u32,
    moves: u64,
    /// Total removals, and those before the last walk.
    removals: u64,
    removals_seen: u64,
    /// Files that guests have open: they take space even without a name.
    open: Vec<Weak<File>>,
}

/// The account of one volume. Writes are counted at once, removals at the next measurement.
pub struct VolumeQuota {
    folder: PathBuf,
    limit: AtomicU64,
    measure: Measure,
    account: Mutex<VolumeAccount>,
}

impl std::fmt::Debug for VolumeQuota {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VolumeQuota").field("folder", &self.folder).field("used", &self.used()).finish_non_exhaustive()
    }
}

impl VolumeQuota {
    /// `folder`: the volume's path without links; `used`: its current usage.
    #[must_use]
    pub fn new(folder: PathBuf, limit: u64, used: VolumeUse, measure: Measure) -> Self {
        let account = VolumeAccount { used, ..VolumeAccount::default() };
        Self { folder, limit: AtomicU64::new(limit), measure, account: Mutex::new(account) }
    }

    fn account(&self) -> MutexGuard<'_, VolumeAccount> {
        self.account.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The counted usage.
    #[must_use]
    pub fn used(&self) -> VolumeUse {
        self.account().used
    }

    /// The limit in bytes.
    #[must_use]
    pub fn limit(&self) -> u64 {
        self.limit.load(Ordering::Relaxed)
    }

    /// Sets the limit.
    pub fn set_limit(&self, bytes: u64) {
        self.limit.store(bytes, Ordering::Relaxed);
    }

    /// Whether a path is in the volume.
    #[must_use]
    pub fn holds(&self, path: &Path) -> bool {
        path.starts_with(&self.folder)
    }

    /// Reserves bytes until [`VolumeQuota::settle`], separately for each concurrent write. Returns the reservation, or `None`
    /// without room.
    #[must_use]
    pub fn reserve(&self, bytes: u64) -> Option<u64> {
        let bytes = bytes.div_ceil(BLOCK_BYTES).saturating_mul(BLOCK_BYTES);
        let fits = |account: &mut VolumeAccount| {
            let taken = account.used.bytes.saturating_add(account.reserved).saturating_add(bytes);
            let fits = bytes == 0 || taken <= self.limit();
            account.reserved = account.reserved.saturating_add(if fits { bytes } else { 0 });
            fits
        };
        self.check_or_measure(fits).then_some(bytes)
    }

    /// Replaces the reservation of a write by the bytes that it took.
    pub fn settle(&self, reserved: u64, bytes: u64) {
        let mut account = self.account();
        account.reserved = account.reserved.saturating_sub(reserved);
        account.used.bytes = account.used.bytes.saturating_add(bytes);
        account.counted.bytes = account.counted.bytes.saturating_add(bytes);
    }

    /// Checks by the counted usage, then by a measurement: removals free room.
    fn check_or_measure(&self, fits: impl Fn(&mut VolumeAccount) -> bool) -> bool {
        if fits(&mut self.account()) {
            return true;
        }
        self.remeasure();
        fits(&mut self.account())
    }

    /// Measures the volume.
    fn remeasure(&self) {
        let (before, counted, removals, again) = {
            let account = self.account();
            if account.moving > 0 {
                return;
            }
            (account.moves, account.counted, account.removals, account.removals != account.removals_seen)
        };
        let Some(there) = (self.measure)(again) else { return };
        let mut account = self.account();
        if account.moves != before {
            // A file moved behind the walk's position is missing from its result.
            return;
        }
        let meanwhile = (account.counted.bytes - counted.bytes, account.counted.files - counted.files);
        account.used = VolumeUse {
            bytes: there.bytes.saturating_add(unlinked_bytes(&account.open)).saturating_add(meanwhile.0),
            files: there.files.saturating_add(meanwhile.1),
        };
        account.removals_seen = removals;
    }

    /// Whether one more file may be created.
    #[must_use]
    pub fn takes_file(&self) -> bool {
        self.check_or_measure(|account| account.used.files < VOLUME_FILES_MAX)
    }

    /// Counts a possibly created file; `takes_block` for a folder or a link.
    pub fn made_file(&self, takes_block: bool) {
        let mut account = self.account();
        let VolumeAccount { used, counted, .. } = &mut *account;
        for of in [used, counted] {
            of.files = of.files.saturating_add(1);
            of.bytes = of.bytes.saturating_add(if takes_block { BLOCK_BYTES } else { 0 });
        }
    }

    /// Records a removal or truncation: the next write without room measures at once.
    pub fn removed(&self) {
        self.account().removals += 1;
    }

    /// Registers an open file.
    pub fn opened(&self, file: &Arc<File>) {
        let mut account = self.account();
        // Rare enough to cost nothing, and often enough that the list is at most twice as long as the open files.
        if account.open.len() >= OPEN_CLEANED_FROM && account.open.len().is_power_of_two() {
            account.open.retain(|file| file.strong_count() > 0);
        }
        account.open.push(Arc::downgrade(file));
    }
}

/// A rename or link in progress, until it is dropped.
#[derive(Debug)]
pub struct Moving(Arc<VolumeQuota>);

impl Moving {
    /// Starts it.
    #[must_use]
    pub fn begin(quota: Arc<VolumeQuota>) -> Self {
        let mut account = quota.account();
        account.moving += 1;
        account.moves += 1;
        drop(account);
        Self(quota)
    }
}

impl Drop for Moving {
    fn drop(&mut self) {
        let mut account = self.0.account();
        account.moving -= 1;
        // The replaced file may be gone.
        account.removals += 1;
    }
}

/// Bytes of open files without a name, which no walk finds.
#[cfg(unix)]
fn unlinked_bytes(open: &[Weak<File>]) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    let mut seen = BTreeSet::new();
    let open = open.iter().filter_map(Weak::upgrade).filter_map(|file| file.metadata().ok());
    let unlinked = open.filter(|file| file.nlink() == 0).filter(|file| seen.insert((file.dev(), file.ino())));
    unlinked.fold(0u64, |sum, file| sum.saturating_add(file.blocks().saturating_mul(512)))
}

/// Other systems don't remove open files.
#[cfg(not(unix))]
fn unlinked_bytes(_: &[Weak<File>]) -> u64 {
    0
}

/// The account of writes to a file.
#[derive(Debug, Clone)]
pub enum FileAccount {
    /// The pod's memory.
    Memory(Arc<MemoryFiles>),
    /// A claim's volume.
    Volume(Arc<VolumeQuota>),
}

impl FileAccount {
    /// Reserves bytes until [`FileAccount::settle`]. Returns the reservation, or `None` without room.
    #[must_use]
    pub fn reserve(&self, bytes: u64) -> Option<u64> {
        match self {
            Self::Memory(files) => files.reserve(bytes),
            Self::Volume(quota) => quota.reserve(bytes),
        }
    }

    /// Replaces the reservation of a write by the bytes that it took.
    pub fn settle(&self, reserved: u64, bytes: u64) {
        match self {
            Self::Memory(files) => files.wrote(reserved, bytes),
            Self::Volume(quota) => quota.settle(reserved, bytes),
        }
    }

    /// Whether one more file may be created, with a block (a folder, a link) or without.
    #[must_use]
    pub fn takes_file(&self, takes_block: bool) -> bool {
        match self {
            // Its files are counted by the measurement.
            Self::Memory(_) => true,
            Self::Volume(quota) => {
                let has_free_block = || quota.reserve(1).inspect(|kept| quota.settle(*kept, 0)).is_some();
                quota.takes_file() && (!takes_block || has_free_block())
            }
        }
    }

    /// See [`VolumeQuota::made_file`].
    pub fn made_file(&self, takes_block: bool) {
        if let Self::Volume(quota) = self {
            quota.made_file(takes_block);
        }
    }

    /// See [`VolumeQuota::removed`].
    pub fn removed(&self) {
        if let Self::Volume(quota) = self {
            quota.removed();
        }
    }

    /// See [`VolumeQuota::opened`].
    pub fn opened(&self, file: &Arc<File>) {
        if let Self::Volume(quota) = self {
            quota.opened(file);
        }
    }

    /// Marks a rename or link as in progress until the guard is dropped.
    #[must_use]
    pub fn moving(&self) -> Option<Moving> {
        match self {
            Self::Memory(_) => None,
            Self::Volume(quota) => Some(Moving::begin(quota.clone())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type There = Arc<Mutex<VolumeUse>>;

    fn blocks(blocks: u64, files: u64) -> VolumeUse {
        VolumeUse { bytes: blocks * BLOCK_BYTES, files }
    }

    /// A volume with a limit of two blocks, and the result of a walk.
    fn quota(during: impl Fn() + Send + Sync + 'static) -> (Arc<VolumeQuota>, There) {
        let there = There::default();
        let measured = there.clone();
        let measure = move |_| {
            during();
            Some(*measured.lock().unwrap())
        };
        let folder = "/data/volumes/u/data".into();
        (Arc::new(VolumeQuota::new(folder, 2 * BLOCK_BYTES, VolumeUse::default(), Box::new(measure))), there)
    }

    fn wrote(quota: &VolumeQuota, bytes: u64) -> bool {
        quota.reserve(bytes).inspect(|kept| quota.settle(*kept, bytes.div_ceil(BLOCK_BYTES) * BLOCK_BYTES)).is_some()
    }

    #[test]
    fn a_volume_takes_no_more_than_it_may_hold() {
        let (quota, there) = quota(|| ());
        let is = |found| *there.lock().unwrap() = found;
        assert!(
            quota.holds(Path::new("/data/volumes/u/data/a")) && !quota.holds(Path::new("/data/volumes/u/database"))
        );
        assert!(wrote(&quota, 1) && wrote(&quota, BLOCK_BYTES));
        is(blocks(2, 1));
        assert!(!wrote(&quota, 1) && wrote(&quota, 0), "what grows by nothing is always taken");
        is(blocks(1, 1));
        assert!(!wrote(&quota, BLOCK_BYTES + 1) && wrote(&quota, 1), "what was removed makes room");
        quota.set_limit(8 * BLOCK_BYTES);
        assert!(wrote(&quota, 6 * BLOCK_BYTES));
        is(blocks(1, VOLUME_FILES_MAX));
        for _ in 1..VOLUME_FILES_MAX {
            assert!(quota.takes_file());
            quota.made_file(false);
        }
        assert!(!quota.takes_file(), "small files, many of them");
        is(blocks(1, VOLUME_FILES_MAX - 1));
        assert!(quota.takes_file());
        quota.made_file(true);
        assert_eq!(quota.used(), blocks(2, VOLUME_FILES_MAX));
    }

    #[test]
    fn concurrent_writes_reserve_separately() {
        let (quota, _) = quota(|| ());
        let kept: Vec<u64> = (0..5).filter_map(|_| quota.reserve(1)).collect();
        assert_eq!(kept, [BLOCK_BYTES, BLOCK_BYTES], "whatever there is by then");
        quota.settle(kept[0], 0);
        assert!(quota.reserve(1).is_some() && quota.reserve(1).is_none());
    }

    #[test]
    fn changes_during_a_walk_are_not_lost() {
        // Started on an empty volume; another writer adds a block meanwhile.
        let known = Arc::new(Mutex::new(None::<Arc<VolumeQuota>>));
        let other = known.clone();
        let (quota, _) = quota(move || {
            if let Some(quota) = &*other.lock().unwrap() {
                quota.settle(0, BLOCK_BYTES);
            }
        });
        assert!(wrote(&quota, 2 * BLOCK_BYTES));
        *known.lock().unwrap() = Some(quota.clone());
        assert!(wrote(&quota, BLOCK_BYTES));
        assert_eq!(quota.used(), blocks(2, 0));
        *known.lock().unwrap() = None;
    }

    #[test]
    fn a_walk_during_a_rename_frees_no_space() {
        let known = Arc::new(Mutex::new(None::<Arc<VolumeQuota>>));
        let other = known.clone();
        let (quota, _) = quota(move || drop(other.lock().unwrap().clone().map(Moving::begin)));
        assert!(wrote(&quota, 2 * BLOCK_BYTES));
        *known.lock().unwrap() = Some(quota.clone());
        assert!(!wrote(&quota, 1), "a file may have gone past it");
        *known.lock().unwrap() = None;
        let moving = Moving::begin(quota.clone());
        assert!(!wrote(&quota, 1), "one that began before");
        drop(moving);
        assert!(wrote(&quota, 1));
    }

    #[cfg(unix)]
    #[test]
    fn an_unlinked_file_counts_while_it_is_open() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("f");
        std::fs::write(&path, vec![1u8; 2 * usize::try_from(BLOCK_BYTES).unwrap()]).unwrap();
        let (first, second) = (Arc::new(File::open(&path).unwrap()), Arc::new(File::open(&path).unwrap()));
        let (quota, _) = quota(|| ());
        for _ in 0..200 {
            quota.opened(&Arc::new(File::open(&path).unwrap()));
        }
        quota.opened(&first);
        quota.opened(&second);
        assert!(quota.account().open.len() < 150, "those that were closed are forgotten");
        std::fs::remove_file(&path).unwrap();
        assert!(wrote(&quota, 2 * BLOCK_BYTES));
        assert!(!wrote(&quota, 1));
        assert_eq!(quota.used(), blocks(2, 0), "once, however often it is open");
        drop((first, second));
        assert!(wrote(&quota, 1));
    }
}
