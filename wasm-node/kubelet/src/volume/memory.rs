//! `emptyDir.medium: Memory`: folders on an in-memory file system of the machine, and the account of the guests' writes
//! there (`docs/decisions/0060-volumes-in-memory.md`).
//!
//! The folder belongs to this process and is removed at its end. The next process removes the folders of killed ones.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, Volume};
use machinery_env::Env;
use runtime_api::MemoryFiles;
use runtime_api::ledger::Ledger;

use super::paths::plain;
use super::usage::measure;
use crate::spec::{containers, requests};

/// Prefix of the names that nodes create there.
const PREFIX: &str = "coracle-";
/// Suffix of the file that a process locks while its folder is in use.
const LOCK: &str = ".lock";
/// Full volumes are measured again no earlier than this, and measuring takes at most 1/[`MEASURE_PART`] of the time.
const MEASURE_AFTER: Duration = Duration::from_millis(20);
const MEASURE_PART: u32 = 10;
/// The type of a tmpfs in `statfs` (Linux, `linux/magic.h`).
#[cfg(target_os = "linux")]
const TMPFS_MAGIC: u32 = 0x0102_1994;

/// Returns whether a volume is in memory.
#[must_use]
pub(crate) fn is_in_memory(volume: &Volume) -> bool {
    volume.empty_dir.as_ref().is_some_and(|empty| empty.medium.as_deref() == Some("Memory"))
}

/// The folder of a node's volumes in memory.
#[derive(Debug)]
pub(crate) struct MemoryFolder {
    path: PathBuf,
    lock_path: PathBuf,
    device: u64,
    _lock: File,
}

impl MemoryFolder {
    /// Creates the folder below `root`, and removes those of ended processes. The error is an event's message.
    pub(crate) fn open(root: &Path, env: &Env) -> Result<Self, String> {
        if !is_memory(root) {
            return Err(format!("this node has no file system in memory: {} is no tmpfs", root.display()));
        }
        Self::make(root, env).map_err(|error| format!("the node's folder in memory cannot be made: {error}"))
    }

    fn make(root: &Path, env: &Env) -> io::Result<Self> {
        sweep(root);
        loop {
            let mut id = [0u8; 8];
            env.fill(&mut id);
            let name = format!("{PREFIX}{}", hex::encode(id));
            let (path, lock_path) = (root.join(&name), root.join(format!("{name}{LOCK}")));
            let lock = File::options().write(true).create_new(true).open(&lock_path)?;
            // Another process may have found the file before it was locked, and removed it.
            if lock.try_lock().is_err() || !is_at(&lock, &lock_path) {
                continue;
            }
            private_folder(&path)?;
            let device = device_of(&path)?;
            return Ok(Self { path, lock_path, device, _lock: lock });
        }
    }

    fn pod(&self, uid: &str) -> PathBuf {
        self.path.join(plain(uid))
    }

    /// Creates a pod's volume at `folder`: a link to its folder in memory.
    pub(crate) fn link(&self, folder: &Path, uid: &str, volume: &str) -> io::Result<()> {
        let to = self.pod(uid).join(plain(volume));
        fs::create_dir_all(&to)?;
        super::host_path::link_to(folder, &to)
    }

    /// Removes a pod's volumes in memory.
    pub(crate) fn remove(&self, uid: &str) -> io::Result<()> {
        match fs::remove_dir_all(self.pod(uid)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Returns the account of a pod's volumes; `None` if none is in memory. `node_bytes`: the memory of the node for
    /// guests.
    pub(crate) fn account(
        &self,
        pod: &Pod,
        node_bytes: u64,
        ledger: &Arc<Ledger>,
        env: &Env,
    ) -> Option<Arc<MemoryFiles>> {
        let limit = limit_bytes(pod, node_bytes)?;
        let folder = self.pod(pod.metadata.uid.as_deref().unwrap_or_default());
        let (next, env) = (Mutex::new(Duration::ZERO), env.clone());
        let walk = move || {
            let mut next = next.lock().unwrap_or_else(PoisonError::into_inner);
            let began = env.elapsed();
            if began < *next {
                return None;
            }
            let bytes = measure(&folder).bytes;
            let ended = env.elapsed();
            *next = ended + MEASURE_AFTER.max((ended - began) * MEASURE_PART);
            Some(bytes)
        };
        Some(Arc::new(MemoryFiles::new(self.device, limit, ledger.clone(), Box::new(walk))))
    }

    /// Returns the bytes of a pod's volumes in memory.
    pub(crate) fn measured(&self, uid: &str) -> u64 {
        measure(&self.pod(uid)).bytes
    }
}

impl Drop for MemoryFolder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
        let _ = fs::remove_file(&self.lock_path);
    }
}

/// Returns the limit of a pod's volumes in memory together: the sum of each volume's `sizeLimit`, at most the pod's
/// memory limit and the node's memory (upstream's rule for the size of such a volume). Pure.
fn limit_bytes(pod: &Pod, node_bytes: u64) -> Option<u64> {
    let spec = containers::spec(pod);
    let most = requests::memory_bound(pod).filter(|bytes| *bytes > 0).map_or(node_bytes, |bytes| bytes.min(node_bytes));
    let of_volume = |volume: &Volume| {
        let own = volume.empty_dir.as_ref().and_then(|empty| empty.size_limit.as_ref());
        let own = own.and_then(|own| u64::try_from(requests::amount_of(own, "memory")).ok());
        own.filter(|bytes| *bytes > 0).map_or(most, |bytes| bytes.min(most))
    };
    let each: Vec<u64> = spec.volumes.iter().flatten().filter(|volume| is_in_memory(volume)).map(of_volume).collect();
    (!each.is_empty()).then(|| each.into_iter().fold(0, u64::saturating_add).min(most))
}

/// Removes the folders of ended processes.
fn sweep(root: &Path) {
    for entry in fs::read_dir(root).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(folder) =
            name.to_str().filter(|name| name.starts_with(PREFIX)).and_then(|name| name.strip_suffix(LOCK))
        else {
            continue;
        };
        // Any user may write there: opening something other than a file could block.
        if !entry.file_type().is_ok_and(|kind| kind.is_file()) {
            continue;
        }
        // Lock files of other users can't be opened for writing.
        let Ok(lock) = File::options().write(true).open(entry.path()) else { continue };
        if lock.try_lock().is_ok() && is_at(&lock, &entry.path()) {
            let _ = fs::remove_dir_all(root.join(folder));
            let _ = fs::remove_file(entry.path());
        }
    }
}

#[cfg(target_os = "linux")]
fn is_memory(root: &Path) -> bool {
    rustix::fs::statfs(root).is_ok_and(|stat| u32::try_from(stat.f_type) == Ok(TMPFS_MAGIC))
}

#[cfg(not(target_os = "linux"))]
fn is_memory(_: &Path) -> bool {
    false
}

#[cfg(unix)]
fn private_folder(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    // Other users may write there, too: an existing folder is not used.
    fs::DirBuilder::new().mode(0o700).create(path)
}

#[cfg(not(unix))]
fn private_folder(path: &Path) -> io::Result<()> {
    fs::create_dir(path)
}

#[cfg(unix)]
fn device_of(path: &Path) -> io::Result<u64> {
    fs::metadata(path).map(|metadata| std::os::unix::fs::MetadataExt::dev(&metadata))
}

#[cfg(not(unix))]
fn device_of(_: &Path) -> io::Result<u64> {
    Ok(0)
}

/// Returns whether the path still refers to that file.
#[cfg(unix)]
fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    let (Ok(own), Ok(there)) = (file.metadata(), fs::symlink_metadata(path)) else { return false };
    (own.dev(), own.ino()) == (there.dev(), there.ino())
}

#[cfg(not(unix))]
fn is_at(_: &File, path: &Path) -> bool {
    path.exists()
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(spec: serde_json::Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"uid": "u"}, "spec": spec})).expect("a pod")
    }

    #[test]
    fn sizes_are_the_least_of_three() {
        let memory = |name: &str, limit: Option<&str>| json!({"name": name, "emptyDir": {"medium": "Memory", "sizeLimit": limit}});
        let limited = json!([{"name": "c", "resources": {"limits": {"memory": "64Mi"}}}]);
        let free = json!([{"name": "c"}, {"name": "d", "resources": {"limits": {"memory": "1Mi"}}}]);
        let of = |containers: &serde_json::Value, volumes: Vec<serde_json::Value>| {
            limit_bytes(&pod(json!({"containers": containers, "volumes": volumes})), 1 << 30)
        };
        assert_eq!(of(&free, vec![json!({"name": "d", "emptyDir": {}})]), None);
        assert_eq!(of(&free, vec![memory("m", None)]), Some(1 << 30), "the node's, as one container has no limit");
        assert_eq!(of(&limited, vec![memory("m", None)]), Some(64 << 20));
        assert_eq!(of(&limited, vec![memory("m", Some("1Gi"))]), Some(64 << 20));
        assert_eq!(of(&limited, vec![memory("m", Some("1Mi")), memory("n", Some("2Mi"))]), Some(3 << 20));
        assert_eq!(of(&limited, vec![memory("m", Some("40Mi")), memory("n", Some("40Mi"))]), Some(64 << 20));
    }

    #[test]
    fn folders_of_processes_that_are_no_more_are_removed_and_no_others() {
        let root = tempfile::tempdir().unwrap();
        let env = Env::real();
        let own = MemoryFolder::make(root.path(), &env).unwrap();
        let link = root.path().join("pod/volumes/v");
        own.link(&link, "u", "v").unwrap();
        fs::write(link.join("f"), vec![1u8; 8192]).unwrap();
        assert!(own.measured("u") >= 8192);
        // A killed process: its lock is free.
        fs::create_dir(root.path().join("coracle-dead")).unwrap();
        fs::write(root.path().join("coracle-dead.lock"), "").unwrap();
        fs::create_dir(root.path().join("coracle-else")).unwrap();
        let other = MemoryFolder::make(root.path(), &env).unwrap();
        let names = |root: &Path| {
            let all = fs::read_dir(root).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
            all.filter(|name| name.contains("dead") || name.contains("else")).collect::<Vec<_>>()
        };
        assert_eq!(names(root.path()), ["coracle-else"]);
        assert!(link.join("f").exists(), "another's that runs is left alone");
        own.remove("u").unwrap();
        own.remove("u").unwrap();
        assert!(!link.join("f").exists());
        let (path, lock) = (other.path.clone(), other.lock_path.clone());
        drop(other);
        assert!(!path.exists() && !lock.exists());
    }

    #[test]
    fn full_volumes_are_not_measured_continuously() {
        let root = tempfile::tempdir().unwrap();
        let (env, clock) = Env::seeded(1, jiff::Timestamp::UNIX_EPOCH);
        let folder = MemoryFolder::make(root.path(), &env).unwrap();
        let volume = json!([{"name": "m", "emptyDir": {"medium": "Memory", "sizeLimit": "8Ki"}}]);
        let pod = pod(json!({"containers": [], "volumes": volume}));
        let files = folder.account(&pod, 1 << 30, &Ledger::pod(&Ledger::node()), &env).unwrap();
        clock.advance(Duration::from_secs(1));
        let can_write = || files.reserve(1).inspect(|kept| files.wrote(*kept, 0)).is_some();
        files.wrote(0, 8192);
        assert!(can_write(), "measured: there is nothing");
        files.wrote(0, 8192);
        assert!(!can_write(), "measured a moment ago");
        clock.advance(MEASURE_AFTER);
        assert!(can_write());
    }
}
