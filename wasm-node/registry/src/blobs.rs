//! Content-addressed blobs on disk, shared by the pull cache and the built-in registry. A blob is either complete,
//! durable and named by its digest, or absent.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use sha2::{Digest, Sha256};

use super::reference::is_sha256;

/// Bytes that stay free on the disk for pushes and pulls: the store's log needs space to continue.
pub const FREE_BYTES_MIN: u64 = 256 << 20;
/// Maximum size of a blob: the largest module that compiles, and other files of its layer.
pub const BLOB_BYTES_MAX: u64 = 512 << 20;

/// Why a blob was not stored.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// The content doesn't match the digest.
    #[error("digest is {actual}, not {expected}")]
    Digest {
        /// The requested digest.
        expected: String,
        /// The digest of the content.
        actual: String,
    },
    /// Larger than the maximum or the announced size.
    #[error("more than {max_bytes} bytes")]
    TooLarge {
        /// The maximum.
        max_bytes: u64,
    },
    /// The disk is nearly full.
    #[error(
        "no space left on device: {free_bytes} bytes are free, and {} must stay free for the cluster's store. Free some \
         space on the disk of the data folder",
        FREE_BYTES_MIN
    )]
    DiskFull {
        /// The free bytes.
        free_bytes: u64,
    },
    /// A digest of another form than `sha256:…`.
    #[error("{0} is not a sha256 digest")]
    BadDigest(String),
    /// The system's error.
    #[error("blob store: {}{}", .0, advice(.0))]
    Io(#[from] std::io::Error),
}

/// Returns advice for a disk error.
fn advice(error: &std::io::Error) -> &'static str {
    match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
            "; free some space on the disk of the data folder"
        }
        _ => "",
    }
}

/// The store. All methods block on the disk.
#[derive(Debug)]
pub struct BlobStore {
    dir: PathBuf,
    pinned: Mutex<PinState>,
    /// Read-locked while a reference to a repository's blobs is added, write-locked while a collection removes
    /// references.
    links: RwLock<()>,
}

/// Blobs that must be kept although nothing on the disk refers to them yet.
#[derive(Debug, Default)]
struct PinState {
    /// The number of holders of each blob.
    holders: BTreeMap<String, usize>,
    /// All blobs pinned since the current sweep began: a reference may exist by now that the sweep hasn't seen.
    touched: Option<BTreeSet<String>>,
}

/// Keeps blobs from being swept until it is dropped: pin first, then check whether the blob exists.
#[derive(Debug)]
pub struct Pins {
    store: Arc<BlobStore>,
    digests: Mutex<Vec<String>>,
}

impl Pins {
    pub fn add(&self, digest: &str) {
        let mut pinned = self.store.pinned();
        *pinned.holders.entry(digest.to_owned()).or_default() += 1;
        if let Some(touched) = &mut pinned.touched {
            touched.insert(digest.to_owned());
        }
        self.digests.lock().unwrap_or_else(PoisonError::into_inner).push(digest.to_owned());
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        let mut pinned = self.store.pinned();
        for digest in self.digests.get_mut().unwrap_or_else(PoisonError::into_inner).drain(..) {
            if let Some(count) = pinned.holders.get_mut(&digest) {
                *count -= 1;
                if *count == 0 {
                    pinned.holders.remove(&digest);
                }
            }
        }
    }
}

impl BlobStore {
    /// Opens or creates a store in `dir`, and removes unfinished blobs of an earlier process.
    pub fn open(dir: impl Into<PathBuf>) -> std::io::Result<Self> {
        let dir = dir.into();
        std::fs::create_dir_all(dir.join("blobs/sha256"))?;
        std::fs::create_dir_all(dir.join("repositories"))?;
        let partial = dir.join("partial");
        if partial.exists() {
            std::fs::remove_dir_all(&partial)?;
        }
        std::fs::create_dir_all(&partial)?;
        Ok(Self { dir, pinned: Mutex::default(), links: RwLock::default() })
    }

    fn pinned(&self) -> std::sync::MutexGuard<'_, PinState> {
        self.pinned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Creates an empty set of pins.
    pub fn pins(self: &Arc<Self>) -> Pins {
        Pins { store: self.clone(), digests: Mutex::default() }
    }

    pub fn is_pinned(&self, digest: &str) -> bool {
        self.pinned().holders.contains_key(digest)
    }

    pub fn linking(&self) -> std::sync::RwLockReadGuard<'_, ()> {
        self.links.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn unlinking(&self) -> std::sync::RwLockWriteGuard<'_, ()> {
        self.links.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the folder of the registry's names.
    pub fn repositories(&self) -> PathBuf {
        self.dir.join("repositories")
    }

    pub fn partial(&self) -> PathBuf {
        self.dir.join("partial")
    }

    /// Creates and returns a folder for records of other parts of the image cache.
    pub fn folder(&self, name: &str) -> std::io::Result<PathBuf> {
        let path = self.dir.join(name);
        std::fs::create_dir_all(&path)?;
        Ok(path)
    }

    /// Returns the path of a blob, whether it exists or not.
    pub fn path(&self, digest: &str) -> Result<PathBuf, BlobError> {
        if !is_sha256(digest) {
            return Err(BlobError::BadDigest(digest.chars().take(100).collect()));
        }
        Ok(self.dir.join("blobs/sha256").join(&digest["sha256:".len()..]))
    }

    /// Returns the blob's size; `None` if it is absent.
    #[must_use]
    pub fn size(&self, digest: &str) -> Option<u64> {
        std::fs::metadata(self.path(digest).ok()?).ok().map(|metadata| metadata.len())
    }

    /// Reads a blob of at most `max_bytes`.
    pub fn read(&self, digest: &str, max_bytes: u64) -> Result<Vec<u8>, BlobError> {
        let path = self.path(digest)?;
        if std::fs::metadata(&path)?.len() > max_bytes {
            return Err(BlobError::TooLarge { max_bytes });
        }
        Ok(std::fs::read(path)?)
    }

    /// Stores `bytes`; returns their digest.
    pub fn put(&self, bytes: &[u8]) -> Result<String, BlobError> {
        let digest = digest(bytes);
        if self.size(&digest).is_none() {
            let mut writer = self.writer(BLOB_BYTES_MAX)?;
            writer.write(bytes)?;
            writer.commit(self, &digest)?;
        }
        Ok(digest)
    }

    /// Begins a blob of at most `max_bytes`.
    pub fn writer(&self, max_bytes: u64) -> Result<BlobWriter, BlobError> {
        self.check_space()?;
        let file = tempfile::Builder::new().prefix("blob-").tempfile_in(self.partial())?;
        Ok(BlobWriter { file, hasher: Sha256::new(), bytes: 0, max_bytes: max_bytes.min(BLOB_BYTES_MAX), checked: 0 })
    }

    /// Removes the blobs that are neither pinned nor returned by `referenced`; returns their bytes. Sweeps run one at a
    /// time.
    pub fn sweep<E: From<std::io::Error>>(
        &self,
        referenced: impl FnOnce() -> Result<BTreeSet<String>, E>,
    ) -> Result<u64, E> {
        {
            let mut pinned = self.pinned();
            // A blob pinned now may be referred to after the walk has passed, and unpinned before it is checked.
            let holders = pinned.holders.keys().cloned().collect();
            pinned.touched = Some(holders);
        }
        let swept = (|| {
            let referenced = referenced()?;
            let mut freed = 0;
            for (digest, size) in self.list()? {
                let Ok(path) = self.path(&digest) else { continue };
                let pinned = self.pinned();
                let touched = pinned.touched.as_ref().is_none_or(|touched| touched.contains(&digest));
                if referenced.contains(&digest) || touched || pinned.holders.contains_key(&digest) {
                    continue;
                }
                // Removed under the lock: a later pin finds it absent and fetches it again.
                std::fs::remove_file(path)?;
                freed += size;
            }
            Ok(freed)
        })();
        self.pinned().touched = None;
        swept
    }

    /// Returns every blob's digest and size.
    pub fn list(&self) -> std::io::Result<Vec<(String, u64)>> {
        let mut all = Vec::new();
        for entry in std::fs::read_dir(self.dir.join("blobs/sha256"))? {
            let entry = entry?;
            let digest = format!("sha256:{}", entry.file_name().to_string_lossy());
            if is_sha256(&digest) {
                all.push((digest, entry.metadata()?.len()));
            }
        }
        Ok(all)
    }

    pub fn check_space(&self) -> Result<(), BlobError> {
        match free_bytes(&self.dir) {
            Some(free_bytes) if free_bytes < FREE_BYTES_MIN => Err(BlobError::DiskFull { free_bytes }),
            _ => Ok(()),
        }
    }
}

/// A blob being written: hashed as it is written, visible only after [`BlobWriter::commit`].
#[derive(Debug)]
pub struct BlobWriter {
    file: tempfile::NamedTempFile,
    hasher: Sha256,
    bytes: u64,
    max_bytes: u64,
    checked: u64,
}

/// Bytes written between two checks of the disk's free space.
const SPACE_CHECK_BYTES: u64 = 16 << 20;

impl BlobWriter {
    /// Returns the bytes written so far.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.bytes
    }

    /// Returns whether no bytes were written yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Appends.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), BlobError> {
        let after = self.bytes.saturating_add(bytes.len() as u64);
        if after > self.max_bytes {
            return Err(BlobError::TooLarge { max_bytes: self.max_bytes });
        }
        if after - self.checked > SPACE_CHECK_BYTES {
            self.checked = after;
            if let Some(free_bytes) = free_bytes(self.file.path()).filter(|free| *free < FREE_BYTES_MIN) {
                return Err(BlobError::DiskFull { free_bytes });
            }
        }
        self.file.as_file_mut().write_all(bytes)?;
        self.hasher.update(bytes);
        self.bytes = after;
        Ok(())
    }

    /// Makes the blob durable under `expected`, if that is its digest.
    pub fn commit(self, store: &BlobStore, expected: &str) -> Result<(), BlobError> {
        let path = store.path(expected)?;
        let actual = format!("sha256:{}", hex::encode(self.hasher.finalize()));
        if actual != expected {
            return Err(BlobError::Digest { expected: expected.to_owned(), actual });
        }
        self.file.as_file().sync_all()?;
        self.file.persist(&path).map_err(|error| BlobError::Io(error.error))?;
        sync_parent(&path)?;
        Ok(())
    }

    /// Makes the blob durable under its actual digest, which is pinned and returned.
    pub fn commit_any(self, store: &BlobStore, pins: &Pins) -> Result<String, BlobError> {
        let digest = format!("sha256:{}", hex::encode(self.hasher.clone().finalize()));
        pins.add(&digest);
        self.commit(store, &digest)?;
        Ok(digest)
    }
}

/// Returns the digest of some bytes.
#[must_use]
pub fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

/// Writes a small file atomically: after a crash it is either complete or absent.
pub fn write_durably(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let dir = path.parent().ok_or(std::io::ErrorKind::InvalidInput)?;
    make_dirs(dir)?;
    let mut file = tempfile::Builder::new().prefix(".new-").tempfile_in(dir)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    sync_parent(path)
}

/// Removes a file durably; returns whether it existed.
pub fn remove_durably(path: &Path) -> std::io::Result<bool> {
    match std::fs::remove_file(path) {
        Ok(()) => sync_parent(path).map(|()| true),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Creates folders, each durable in its parent.
fn make_dirs(dir: &Path) -> std::io::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    if let Some(parent) = dir.parent() {
        make_dirs(parent)?;
    }
    match std::fs::create_dir(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    sync_parent(dir)
}

#[cfg(unix)]
fn sync_parent(path: &Path) -> std::io::Result<()> {
    match path.parent() {
        Some(parent) => std::fs::File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

/// Other platforms can't sync folders.
#[cfg(not(unix))]
fn sync_parent(_path: &Path) -> std::io::Result<()> {
    Ok(())
}

#[cfg(unix)]
fn free_bytes(path: &Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(path).ok()?;
    Some(stat.f_bavail.saturating_mul(stat.f_frsize))
}

#[cfg(not(unix))]
fn free_bytes(_path: &Path) -> Option<u64> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blob_exists_completely_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let store = BlobStore::open(dir.path()).unwrap();
        let wanted = digest(b"hello");
        let mut writer = store.writer(BLOB_BYTES_MAX).unwrap();
        writer.write(b"hel").unwrap();
        assert_eq!(store.size(&wanted), None);
        writer.write(b"lo").unwrap();
        writer.commit(&store, &wanted).unwrap();
        assert_eq!(store.read(&wanted, 5).unwrap(), b"hello");
        assert!(matches!(store.read(&wanted, 4), Err(BlobError::TooLarge { .. })));

        let mut other = store.writer(3).unwrap();
        assert!(matches!(other.write(b"four"), Err(BlobError::TooLarge { .. })));
        let empty = store.writer(3).unwrap();
        assert!(matches!(empty.commit(&store, &wanted), Err(BlobError::Digest { .. })));
        for bad in ["sha256:../../etc/passwd", "sha512:00", "", "sha256:"] {
            assert!(matches!(store.path(bad), Err(BlobError::BadDigest(_))), "{bad}");
        }
        // A second open is a restart: complete blobs stay, unfinished ones are removed.
        let left = store.writer(9).unwrap();
        std::mem::forget(left);
        let store = BlobStore::open(dir.path()).unwrap();
        assert_eq!(store.list().unwrap(), vec![(wanted, 5)]);
        assert_eq!(std::fs::read_dir(store.partial()).unwrap().count(), 0);
    }

    #[test]
    fn a_blob_in_use_at_the_start_of_a_sweep_survives() {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(BlobStore::open(dir.path()).unwrap());
        let pushed = store.put(b"pushed").unwrap();
        let pins = store.pins();
        pins.add(&pushed);
        // The walk has passed the blob's name before the push adds it and ends.
        let freed = store.sweep(|| {
            drop(pins);
            Ok::<_, BlobError>(BTreeSet::new())
        });
        assert_eq!((freed.unwrap(), store.size(&pushed)), (0, Some(6)));
        assert_eq!(store.sweep(|| Ok::<_, BlobError>(BTreeSet::new())).unwrap(), 6);
    }
}
