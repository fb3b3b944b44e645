//! Volumes that this program's nodes keep (`local.coracle.dev`): a folder for each below the node's data folder, named by the volume's uid. That is
//! the API server's, so that nobody who may write a PersistentVolume can have it lead to another one's data.

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

/// A volume that is full is measured again after that long at least, and no more than one part of so many of the time.
const MEASURE_AFTER: Duration = Duration::from_millis(20);
const MEASURE_PART: u32 = 10;
/// But for one whose walk took no longer, where something was removed since: who replaces files is not refused for what they were.
/// It is the time of whoever asks.
const MEASURE_AT_ONCE: Duration = Duration::from_millis(2);
/// What guests find open: nothing of the node's own lies in it.
const DATA: &str = "data";
/// Begins the names of folders that are being removed.
const ASIDE: &str = ".old-";

/// A volume that pods use now.
#[derive(Debug)]
struct Open {
    /// Its folder for guests.
    data: PathBuf,
    quota: Arc<VolumeQuota>,
}

#[derive(Debug, Default)]
struct State {
    /// By the volume's uid.
    open: BTreeMap<String, Weak<Open>>,
    /// By the pod's uid: what it uses.
    held: BTreeMap<String, BTreeMap<String, Arc<Open>>>,
}

/// A node's volumes.
pub struct LocalVolumes {
    dir: PathBuf,
    env: Env,
    state: Mutex<State>,
}

impl std::fmt::Debug for LocalVolumes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LocalVolumes").field("dir", &self.dir).finish_non_exhaustive()
    }
}

impl LocalVolumes {
    /// `data_dir`: the node's.
    #[must_use]
    pub fn new(data_dir: &Path, env: Env) -> Self {
        Self { dir: data_dir.join("volumes"), env, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where a volume lies.
    fn folder(&self, uid: &str) -> PathBuf {
        self.dir.join(plain(uid))
    }

    /// Whether a path is of these volumes.
    #[must_use]
    pub fn has(&self, path: &Path) -> bool {
        path.starts_with(&self.dir)
    }

    /// Makes a volume's folder where it isn't there, and has the pod hold it until [`LocalVolumes::release`]. `alone`: no other pod may
    /// use it now. Reads and writes files.
    ///
    /// # Errors
    /// As the system says, or that another pod uses it.
    pub fn hold(&self, pod: &str, volume: &str, capacity: u64, alone: bool) -> Result<PathBuf, String> {
        let data = self.folder(volume).join(DATA);
        private_folders(&self.dir, &data).map_err(|error| error.to_string())?;
        let known = self.state().open.get(volume).and_then(Weak::upgrade);
        let open = match known {
            Some(open) => open,
            // Walked before anybody waits for the list.
            None => Arc::new(self.opened(data, capacity)?),
        };
        let mut state = self.state();
        // Another pod may have been quicker.
        let open = state.open.get(volume).and_then(Weak::upgrade).unwrap_or(open);
        let others = state.held.iter().filter(|(of, volumes)| *of != pod && volumes.contains_key(volume)).count();
        if alone && others > 0 {
            return Err("volume uses the ReadWriteOncePod access mode and is already in use by another pod".into());
        }
        open.quota.set_limit(capacity);
        state.open.insert(volume.to_owned(), Arc::downgrade(&open));
        let data = open.data.clone();
        state.held.entry(pod.to_owned()).or_default().insert(volume.to_owned(), open);
        Ok(data)
    }

    fn opened(&self, data: PathBuf, capacity: u64) -> Result<Open, String> {
        let real = data.canonicalize().map_err(|error| error.to_string())?;
        let (last, env, folder) = (Mutex::new((Duration::ZERO, Duration::ZERO)), self.env.clone(), data.clone());
        let walk = move |removed| {
            let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
            let ((next, cost), began) = (*last, env.elapsed());
            if began < next && !(removed && cost <= MEASURE_AT_ONCE) {
                return None;
            }
            let there = use_of(&folder);
            let ended = env.elapsed();
            let cost = ended - began;
            *last = (ended + MEASURE_AFTER.max(cost * MEASURE_PART), cost);
            Some(there)
        };
        let used = use_of(&data);
        Ok(Open { quota: Arc::new(VolumeQuota::new(real, capacity, used, Box::new(walk))), data })
    }

    /// The bounds of what a pod holds.
    #[must_use]
    pub fn quotas(&self, pod: &str) -> Vec<Arc<VolumeQuota>> {
        self.state().held.get(pod).into_iter().flat_map(|of| of.values().map(|open| open.quota.clone())).collect()
    }

    /// A pod uses nothing any more.
    pub fn release(&self, pod: &str) {
        let mut state = self.state();
        state.held.remove(pod);
        state.open.retain(|_, open| open.strong_count() > 0);
    }

    /// Whether a pod holds it.
    #[must_use]
    pub fn is_used(&self, volume: &str) -> bool {
        self.state().open.get(volume).is_some_and(|open| open.strong_count() > 0)
    }

    /// A volume may hold so much from now on.
    pub fn grow(&self, volume: &str, capacity: u64) {
        if let Some(open) = self.state().open.get(volume).and_then(Weak::upgrade) {
            open.quota.set_limit(capacity);
        }
    }

    /// Removes what a volume holds. Reads and writes files, for as long as that takes.
    ///
    /// # Errors
    /// It is used, or as the system says.
    pub fn remove(&self, volume: &str) -> io::Result<()> {
        let (from, aside) = (self.folder(volume), self.dir.join(format!("{ASIDE}{}", plain(volume))));
        {
            let state = self.state();
            if state.open.get(volume).is_some_and(|open| open.strong_count() > 0) {
                return Err(io::ErrorKind::ResourceBusy.into());
            }
            // At once, so that what is left half removed is never anybody's volume.
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

/// What a volume holds; one with too many files to count is full.
fn use_of(folder: &Path) -> VolumeUse {
    let usage = measure(folder);
    let bytes = if usage.entries > VOLUME_FILES_MAX { u64::MAX } else { usage.bytes };
    VolumeUse { bytes, files: usage.entries }
}

/// The folder, and those above it that aren't there: nobody else of the machine looks into them.
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
    fn pods_share_a_volume_and_what_it_may_hold() {
        let root = tempfile::tempdir().unwrap();
        let volumes = volumes(root.path());
        let data = volumes.hold("p", "u-1", 1 << 20, false).unwrap();
        fs::write(data.join("f"), vec![1u8; 8192]).unwrap();
        assert_eq!(volumes.hold("q", "u-1", 2 << 20, false).unwrap(), data);
        let (first, second) = (volumes.quotas("p"), volumes.quotas("q"));
        assert!(Arc::ptr_eq(&first[0], &second[0]) && first[0].limit() == 2 << 20);
        volumes.grow("u-1", 4 << 20);
        assert_eq!(first[0].limit(), 4 << 20);
        assert!(volumes.remove("u-1").is_err(), "it is used");
        volumes.release("p");
        assert!(volumes.is_used("u-1"));
        volumes.release("q");
        assert!(!volumes.is_used("u-1") && volumes.quotas("q").is_empty());
        // It outlives its pods, also as the next process finds it.
        let next = self::volumes(root.path());
        assert_eq!(next.hold("r", "u-1", 1 << 20, false).unwrap(), data);
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
        volumes.hold("p", "u", 1 << 20, true).unwrap();
        volumes.hold("p", "u", 1 << 20, true).unwrap();
        assert!(volumes.hold("q", "u", 1 << 20, true).unwrap_err().contains("ReadWriteOncePod"));
        volumes.release("p");
        volumes.hold("q", "u", 1 << 20, true).unwrap();
    }

    #[test]
    fn no_name_leads_out_of_the_folder() {
        let root = tempfile::tempdir().unwrap();
        let volumes = volumes(&root.path().join("node"));
        fs::create_dir_all(root.path().join("node/pods/other")).unwrap();
        for name in ["../pods/other", "/etc", "..", ".", "", "a/../../b", "\0"] {
            let data = volumes.hold("p", name, 1, false).unwrap();
            assert!(data.starts_with(root.path().join("node/volumes")) && volumes.has(&data), "{name:?}");
            assert_eq!(data.components().filter(|part| part.as_os_str() == "..").count(), 0);
        }
        volumes.release("p");
        volumes.remove("../pods/other").unwrap();
        assert!(root.path().join("node/pods/other").exists());
    }
}
