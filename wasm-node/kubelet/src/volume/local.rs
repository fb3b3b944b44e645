//! Local volumes of this program's nodes (`local.coracle.dev`): a folder for each below the node's data folder, named
//! by the volume's uid. The API server sets the uid, so the author of a PersistentVolume can't refer to another one's
//! data.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use machinery_env::Env;
use runtime_api::{VOLUME_FILES_MAX, VolumeQuota, VolumeUse};

use super::paths::plain;
use super::usage::measure;

/// A full volume is measured again no earlier than this, and measuring takes at most 1/[`MEASURE_PART`] of the time.
const MEASURE_AFTER: Duration = Duration::from_millis(20);
const MEASURE_PART: u32 = 10;
/// A volume whose last walk was no longer than this is measured at once after a removal, so that a guest that replaces
/// files is not rejected for removed ones. The caller pays for the walk.
const MEASURE_AT_ONCE: Duration = Duration::from_millis(2);
/// The guests' folder: it contains none of the node's own files.
const DATA: &str = "data";
/// Prefix of folders that are being removed.
const ASIDE: &str = ".old-";

/// A volume in use by pods.
#[derive(Debug)]
struct OpenVolume {
    /// The guests' folder.
    data: PathBuf,
    quota: Arc<VolumeQuota>,
}

#[derive(Debug, Default)]
struct VolumeTable {
    /// Volumes in use, by uid.
    open: BTreeMap<String, Weak<OpenVolume>>,
    /// The volumes that each pod uses, by the pod's uid.
    by_pod: BTreeMap<String, BTreeMap<String, Arc<OpenVolume>>>,
}

/// A node's volumes.
pub struct LocalVolumes {
    dir: PathBuf,
    env: Env,
    state: Mutex<VolumeTable>,
}

impl std::fmt::Debug for LocalVolumes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LocalVolumes").field("dir", &self.dir).finish_non_exhaustive()
    }
}

impl LocalVolumes {
    /// Creates the volumes of a node in its `data_dir`.
    #[must_use]
    pub fn new(data_dir: &Path, env: Env) -> Self {
        Self { dir: data_dir.join("volumes"), env, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, VolumeTable> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns a volume's folder.
    fn folder(&self, uid: &str) -> PathBuf {
        self.dir.join(plain(uid))
    }

    /// Returns whether a path is inside these volumes.
    #[must_use]
    pub fn has(&self, path: &Path) -> bool {
        path.starts_with(&self.dir)
    }

    /// Creates a volume's folder if it is missing, and marks it as used by the pod until [`LocalVolumes::release`].
    /// `alone`: fails if another pod uses it. Reads and writes files.
    ///
    /// # Errors
    /// A system error, or another pod uses the volume.
    pub fn acquire(&self, pod: &str, volume: &str, capacity: u64, alone: bool) -> Result<PathBuf, String> {
        let data = self.folder(volume).join(DATA);
        private_folders(&self.dir, &data).map_err(|error| error.to_string())?;
        let known = self.state().open.get(volume).and_then(Weak::upgrade);
        let open = match known {
            Some(open) => open,
            // Measured before the lock is taken.
            None => Arc::new(self.open_volume(data, capacity)?),
        };
        let mut state = self.state();
        // Another pod may have opened it meanwhile.
        let open = state.open.get(volume).and_then(Weak::upgrade).unwrap_or(open);
        let others = state.by_pod.iter().filter(|(of, volumes)| *of != pod && volumes.contains_key(volume)).count();
        if alone && others > 0 {
            return Err("volume uses the ReadWriteOncePod access mode and is already in use by another pod".into());
        }
        open.quota.set_limit(capacity);
        state.open.insert(volume.to_owned(), Arc::downgrade(&open));
        let data = open.data.clone();
        state.by_pod.entry(pod.to_owned()).or_default().insert(volume.to_owned(), open);
        Ok(data)
    }

    fn open_volume(&self, data: PathBuf, capacity: u64) -> Result<OpenVolume, String> {
        let real = data.canonicalize().map_err(|error| error.to_string())?;
        let (last, env, folder) = (Mutex::new((Duration::ZERO, Duration::ZERO)), self.env.clone(), data.clone());
        let walk = move |removed| {
            let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
            let ((next, cost), began) = (*last, env.elapsed());
            if began < next && !(removed && cost <= MEASURE_AT_ONCE) {
                return None;
            }
            let there = measure_use(&folder);
            let ended = env.elapsed();
            let cost = ended - began;
            *last = (ended + MEASURE_AFTER.max(cost * MEASURE_PART), cost);
            Some(there)
        };
        let used = measure_use(&data);
        Ok(OpenVolume { quota: Arc::new(VolumeQuota::new(real, capacity, used, Box::new(walk))), data })
    }

    /// Returns the quotas of a pod's volumes.
    #[must_use]
    pub fn quotas(&self, pod: &str) -> Vec<Arc<VolumeQuota>> {
        self.state().by_pod.get(pod).into_iter().flat_map(|of| of.values().map(|open| open.quota.clone())).collect()
    }

    /// Releases all volumes of a pod.
    pub fn release(&self, pod: &str) {
        let mut state = self.state();
        state.by_pod.remove(pod);
        state.open.retain(|_, open| open.strong_count() > 0);
    }

    /// Returns whether a pod uses the volume.
    #[must_use]
    pub fn is_used(&self, volume: &str) -> bool {
        self.state().open.get(volume).is_some_and(|open| open.strong_count() > 0)
    }

    /// Sets the capacity of a volume in use.
    pub fn grow(&self, volume: &str, capacity: u64) {
        if let Some(open) = self.state().open.get(volume).and_then(Weak::upgrade) {
            open.quota.set_limit(capacity);
        }
    }

    /// Removes a volume's content. Reads and writes files; may take long.
    ///
    /// # Errors
    /// The volume is in use, or a system error.
    pub fn remove(&self, volume: &str) -> io::Result<()> {
        let (from, aside) = (self.folder(volume), self.dir.join(format!("{ASIDE}{}", plain(volume))));
        {
            let state = self.state();
            if state.open.get(volume).is_some_and(|open| open.strong_count() > 0) {
                return Err(io::ErrorKind::ResourceBusy.into());
            }
            // Renames first, so that a partially removed folder is never used as a volume.
            match fs::rename(&from, &aside) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        match fs::remove_dir_all(&aside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

/// Measures a volume; one with too many files to count is full.
fn measure_use(folder: &Path) -> VolumeUse {
    let usage = measure(folder);
    let bytes = if usage.entries > VOLUME_FILES_MAX { u64::MAX } else { usage.bytes };
    VolumeUse { bytes, files: usage.entries }
}

/// Creates the folder and its missing parents, without access for other users of the machine.
fn private_folders(root: &Path, folder: &Path) -> io::Result<()> {
    let mut made = fs::DirBuilder::new();
    made.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut made, 0o700);
    made.create(root)?;
    made.create(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volumes(root: &Path) -> LocalVolumes {
        LocalVolumes::new(root, Env::real())
    }

    #[test]
    fn pods_share_a_volume_and_its_capacity() {
        let root = tempfile::tempdir().unwrap();
        let volumes = volumes(root.path());
        let data = volumes.acquire("p", "u-1", 1 << 20, false).unwrap();
        fs::write(data.join("f"), vec![1u8; 8192]).unwrap();
        assert_eq!(volumes.acquire("q", "u-1", 2 << 20, false).unwrap(), data);
        let (first, second) = (volumes.quotas("p"), volumes.quotas("q"));
        assert!(Arc::ptr_eq(&first[0], &second[0]) && first[0].limit() == 2 << 20);
        volumes.grow("u-1", 4 << 20);
        assert_eq!(first[0].limit(), 4 << 20);
        assert!(volumes.remove("u-1").is_err(), "it is used");
        volumes.release("p");
        assert!(volumes.is_used("u-1"));
        volumes.release("q");
        assert!(!volumes.is_used("u-1") && volumes.quotas("q").is_empty());
        // The volume outlives its pods and this process.
        let next = self::volumes(root.path());
        assert_eq!(next.acquire("r", "u-1", 1 << 20, false).unwrap(), data);
        let used = next.quotas("r")[0].used();
        assert!(used.bytes >= 8192 && used.files == 1, "{used:?}");
        next.release("r");
        next.remove("u-1").unwrap();
        next.remove("u-1").unwrap();
        assert!(!data.exists());
        assert_eq!(fs::read_dir(root.path().join("volumes")).unwrap().count(), 0);
    }

    #[test]
    fn one_pod_alone() {
        let root = tempfile::tempdir().unwrap();
        let volumes = volumes(root.path());
        volumes.acquire("p", "u", 1 << 20, true).unwrap();
        volumes.acquire("p", "u", 1 << 20, true).unwrap();
        assert!(volumes.acquire("q", "u", 1 << 20, true).unwrap_err().contains("ReadWriteOncePod"));
        volumes.release("p");
        volumes.acquire("q", "u", 1 << 20, true).unwrap();
    }

    #[test]
    fn no_name_leads_out_of_the_folder() {
        let root = tempfile::tempdir().unwrap();
        let volumes = volumes(&root.path().join("node"));
        fs::create_dir_all(root.path().join("node/pods/other")).unwrap();
        for name in ["../pods/other", "/etc", "..", ".", "", "a/../../b", "\0"] {
            let data = volumes.acquire("p", name, 1, false).unwrap();
            assert!(data.starts_with(root.path().join("node/volumes")) && volumes.has(&data), "{name:?}");
            assert_eq!(data.components().filter(|part| part.as_os_str() == "..").count(), 0);
        }
        volumes.release("p");
        volumes.remove("../pods/other").unwrap();
        assert!(root.path().join("node/pods/other").exists());
    }
}
