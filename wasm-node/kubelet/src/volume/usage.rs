//! Measures the data that a guest has written. A quota can't reject a guest's calls, so a pod above its limit is
//! evicted.

use std::collections::BTreeSet;
use std::path::Path;

use k8s_openapi::api::core::v1::{Container, Pod};
use machinery_api::quantity::Quantity;

use super::is_empty_dir;
use super::memory::is_in_memory;
use super::paths::{file_folder, folder, message_folder, plain, session_folder};
use crate::spec::{containers, requests};

/// Limit of an emptyDir without `sizeLimit`. Enough for scratch files; 110 such pods fit on a common disk.
pub const EMPTY_DIR_BYTES_DEFAULT: u64 = 1 << 30;
/// Maximum files and folders of one emptyDir: a walk through them takes well under a second.
pub const EMPTY_DIR_ENTRIES_MAX: u64 = 100_000;
/// Maximum bytes beside files that are mounted alone: copies of a ConfigMap's are at most 1 MiB, and a guest that
/// replaces a file writes the new one beside it.
const BESIDE_FILES_BYTES_MAX: u64 = 64 << 20;
/// Limits of the folder of a termination message, of which 4 KiB are read.
const MESSAGE_BYTES_MAX: u64 = 1 << 20;
const MESSAGE_ENTRIES_MAX: u64 = 1000;
/// Bytes by which one write may exceed the limit of a volume in memory, if the account of all of them allows it.
const MEMORY_OVER_BYTES_MAX: u64 = 1 << 20;
/// Maximum depth of folders that are walked, which bounds the cost of a hostile tree.
const DEPTH_MAX: usize = 64;

/// The usage of a folder.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes on the disk.
    pub bytes: u64,
    /// Files and folders.
    pub entries: u64,
}

/// Walks a folder without following links, and stops at the maximum number of entries.
#[must_use]
pub fn measure(dir: &Path) -> Usage {
    walk(dir, on_disk)
}

fn walk(dir: &Path, bytes: fn(&std::fs::Metadata) -> u64) -> Usage {
    let (mut usage, mut linked) = (Usage::default(), BTreeSet::new());
    let mut folders = vec![(dir.to_owned(), 0)];
    while let Some((folder, depth)) = folders.pop() {
        let Ok(entries) = std::fs::read_dir(folder) else { continue };
        for entry in entries.flatten() {
            usage.entries += 1;
            if usage.entries > EMPTY_DIR_ENTRIES_MAX || depth > DEPTH_MAX {
                return Usage { entries: EMPTY_DIR_ENTRIES_MAX + 1, ..usage };
            }
            let Ok(metadata) = entry.path().symlink_metadata() else { continue };
            // A file with several names is counted once.
            if hard_link_id(&metadata).is_none_or(|file| linked.insert(file)) {
                usage.bytes = usage.bytes.saturating_add(bytes(&metadata));
            }
            if metadata.is_dir() {
                folders.push((entry.path(), depth + 1));
            }
        }
    }
    usage
}

/// Returns the file's identity if it has several names.
#[cfg(unix)]
fn hard_link_id(metadata: &std::fs::Metadata) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt as _;
    (metadata.is_file() && metadata.nlink() > 1).then(|| (metadata.dev(), metadata.ino()))
}

#[cfg(windows)]
fn hard_link_id(_: &std::fs::Metadata) -> Option<(u64, u64)> {
    None
}

#[cfg(unix)]
fn on_disk(metadata: &std::fs::Metadata) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    // Blocks of 512 bytes, independent of the file system's block size (POSIX stat).
    metadata.blocks().saturating_mul(512)
}

/// Returns the bytes of a file with a single name: files with several names are counted in their volume.
#[cfg(unix)]
fn unshared_bytes(metadata: &std::fs::Metadata) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    if metadata.is_file() && metadata.nlink() > 1 { 0 } else { on_disk(metadata) }
}

#[cfg(windows)]
fn unshared_bytes(metadata: &std::fs::Metadata) -> u64 {
    on_disk(metadata)
}

#[cfg(windows)]
fn on_disk(metadata: &std::fs::Metadata) -> u64 {
    metadata.len()
}

/// The limits of a pod's volumes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VolumeLimits {
    /// Volume, bytes, and the limit as written in the pod's spec (none = the default).
    volumes: Vec<(String, u64, Option<String>)>,
    /// The volumes in memory: they count as memory, not towards `total`.
    in_memory: BTreeSet<String>,
    /// `limits.ephemeral-storage` for all volumes and logs together.
    total: Option<(u64, String)>,
    /// The limit of each container for its own logs, if the pod has several containers.
    containers: Vec<(String, u64, String)>,
    /// Whether there are folders of termination messages, to which guests can write, too.
    pub(crate) messages: bool,
}

/// Returns the limits of a pod. `messages`: a container has a folder for its termination message.
#[must_use]
pub fn limits(pod: &Pod, messages: bool) -> VolumeLimits {
    let bytes = |text: &str| Quantity::parse(text).ok().and_then(|quantity| u64::try_from(quantity.value()).ok());
    let spec = containers::spec(pod);
    let volumes = spec.volumes.iter().flatten();
    let volumes = volumes
        .filter(|volume| is_empty_dir(volume))
        .map(|volume| {
            let limit = volume.empty_dir.as_ref().and_then(|empty| empty.size_limit.as_ref());
            let own = limit.and_then(|limit| Some((bytes(&limit.0).filter(|bytes| *bytes > 0)?, limit.0.clone())));
            match own {
                Some((bytes, text)) => (volume.name.clone(), bytes, Some(text)),
                // The account of volumes in memory limits it.
                None if is_in_memory(volume) => (volume.name.clone(), u64::MAX, None),
                None => (volume.name.clone(), EMPTY_DIR_BYTES_DEFAULT, None),
            }
        })
        .collect();
    let own = |container: &Container| {
        let limit = container.resources.as_ref()?.limits.as_ref()?.get("ephemeral-storage")?;
        Some((container.name.clone(), bytes(&limit.0)?, limit.0.clone()))
    };
    let containers: Vec<_> = containers::each(&spec).filter_map(|(_, container)| own(&container)).collect();
    let sum = requests::limit(pod, "ephemeral-storage").and_then(|sum| u64::try_from(sum).ok());
    // A single limit is reported as written.
    let total = sum.map(|sum| match containers.iter().find(|(_, bytes, _)| *bytes == sum) {
        Some((_, _, text)) => (sum, text.clone()),
        None => (sum, quantity(sum)),
    });
    let in_memory = spec.volumes.iter().flatten().filter(|volume| is_in_memory(volume));
    let in_memory = in_memory.map(|volume| volume.name.clone()).collect();
    VolumeLimits { volumes, in_memory, total, containers, messages }
}

/// Formats bytes like upstream: in the largest binary unit that divides them.
#[must_use]
pub fn quantity(bytes: u64) -> String {
    let mut units = ["Ei", "Pi", "Ti", "Gi", "Mi", "Ki"].into_iter().zip((1..=6).rev());
    let unit = units.find(|(_, power)| bytes != 0 && bytes.is_multiple_of(1 << (10 * power)));
    unit.map_or_else(|| bytes.to_string(), |(unit, power)| format!("{}{unit}", bytes >> (10 * power)))
}

impl VolumeLimits {
    /// Returns whether there is nothing to measure.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.volumes.is_empty() && !self.messages && self.total.is_none()
    }

    /// Measures the volumes of the pod with that folder, and its logs in `log_dir`, which count towards
    /// `limits.ephemeral-storage` as upstream's do. Returns the exceeded limit in upstream's words.
    #[must_use]
    pub fn exceeded(&self, pod_dir: &Path, log_dir: &Path) -> Option<String> {
        let mut total: u64 = 0;
        for (name, bytes_max, text) in &self.volumes {
            let usage = measure(&folder(pod_dir, name));
            if !self.in_memory.contains(name) {
                total = total.saturating_add(usage.bytes);
            }
            // A write to memory that began below the limit may end above it.
            let over = if self.in_memory.contains(name) { MEMORY_OVER_BYTES_MAX } else { 0 };
            if usage.bytes > bytes_max.saturating_add(over) {
                let limit = text.clone().unwrap_or_else(|| bytes_max.to_string());
                return Some(format!("Usage of EmptyDir volume {name:?} exceeds the limit {limit:?}. "));
            }
            if usage.entries > EMPTY_DIR_ENTRIES_MAX {
                return Some(format!("EmptyDir volume {name:?} holds more than {EMPTY_DIR_ENTRIES_MAX} files. "));
            }
        }
        // Guests can write to these folders, too, beside the mounted file.
        let files = walk(&file_folder(pod_dir), unshared_bytes);
        total = total.saturating_add(files.bytes);
        if files.bytes > BESIDE_FILES_BYTES_MAX || files.entries > EMPTY_DIR_ENTRIES_MAX {
            return Some(format!("The folders of single files hold more than {BESIDE_FILES_BYTES_MAX} bytes. "));
        }
        let mut messages = Usage::default();
        let folders = std::fs::read_dir(message_folder(pod_dir)).into_iter().flatten().flatten();
        for folder in folders.filter(|_| self.messages) {
            let of = measure(&folder.path());
            if of.bytes > MESSAGE_BYTES_MAX || of.entries > MESSAGE_ENTRIES_MAX {
                return Some(format!(
                    "The folder of the termination message holds more than {MESSAGE_BYTES_MAX} bytes. "
                ));
            }
            messages.bytes = messages.bytes.saturating_add(of.bytes);
        }
        let sessions = match session_bytes(pod_dir) {
            Ok(bytes) => bytes,
            Err(exceeded) => return Some(exceeded),
        };
        let (bytes_max, text) = self.total.as_ref()?;
        let total = [messages.bytes, sessions, measure(log_dir).bytes].into_iter().fold(total, u64::saturating_add);
        if total > *bytes_max {
            return Some(format!("Pod ephemeral local storage usage exceeds the total limit of containers {text}. "));
        }
        let over = |(name, bytes_max, _): &&(String, u64, String)| {
            let own = [log_dir.to_owned(), session_folder(pod_dir)].map(|dir| measure(&dir.join(plain(name))).bytes);
            own.into_iter().fold(0, u64::saturating_add) > *bytes_max
        };
        let over = self.containers.iter().filter(|_| self.containers.len() > 1).find(over);
        over.map(|(name, _, text)| format!("Container {name} exceeded its local ephemeral storage limit {text:?}. "))
    }
}

/// Returns the bytes of `/tmp` of all containers' sessions; the error names a container above the limit of an emptyDir.
fn session_bytes(pod_dir: &Path) -> Result<u64, String> {
    let folders = std::fs::read_dir(session_folder(pod_dir)).into_iter().flatten().flatten();
    folders.map(|folder| (folder.file_name(), measure(&folder.path()))).try_fold(0u64, |sum, (name, of)| {
        if of.bytes > EMPTY_DIR_BYTES_DEFAULT || of.entries > EMPTY_DIR_ENTRIES_MAX {
            return Err(format!(
                "Usage of /tmp in sessions of container {name:?} exceeds the limit {EMPTY_DIR_BYTES_DEFAULT:?}. "
            ));
        }
        Ok(sum.saturating_add(of.bytes))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_sessions_count_for_their_container() {
        let pod: Pod = serde_json::from_value(serde_json::json!({"spec": {"containers": [
            {"name": "a", "resources": {"limits": {"ephemeral-storage": "50k"}}},
            {"name": "b", "resources": {"limits": {"ephemeral-storage": "100k"}}}]}}))
        .unwrap();
        let bounds = limits(&pod, false);
        let root = tempfile::tempdir().unwrap();
        let (pod_dir, log_dir) = (root.path().join("pod"), root.path().join("logs"));
        let write = |container: &str, bytes: usize| {
            let folder = session_folder(&pod_dir).join(container).join("0");
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(folder.join("f"), vec![1u8; bytes]).unwrap();
            bounds.exceeded(&pod_dir, &log_dir)
        };
        assert_eq!(write("a", 20_000), None);
        let over = write("a", 70_000).unwrap();
        assert_eq!(over, "Container a exceeded its local ephemeral storage limit \"50k\". ");
        write("a", 0);
        assert!(write("b", 200_000).unwrap().starts_with("Pod ephemeral local storage usage exceeds the total"));
    }

    #[test]
    fn neighbours_of_a_single_file_are_bounded() {
        let root = tempfile::tempdir().unwrap();
        let bounds = VolumeLimits { volumes: vec![("v".into(), 1 << 20, None)], ..VolumeLimits::default() };
        let beside = file_folder(root.path()).join("c/0.0");
        std::fs::create_dir_all(&beside).unwrap();
        assert_eq!(bounds.exceeded(root.path(), root.path()), None);
        let huge = vec![1u8; usize::try_from(BESIDE_FILES_BYTES_MAX).unwrap() + 1];
        std::fs::write(root.path().join("linked"), &huge).unwrap();
        std::fs::hard_link(root.path().join("linked"), beside.join("linked")).unwrap();
        assert_eq!(bounds.exceeded(root.path(), root.path()), None, "it is its volume's");
        std::fs::write(beside.join("huge"), huge).unwrap();
        assert!(bounds.exceeded(root.path(), root.path()).is_some_and(|message| message.contains("single files")));
    }

    #[test]
    fn usage_is_that_of_the_disk() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("d")).unwrap();
        std::fs::write(root.path().join("d/f"), vec![1u8; 100_000]).unwrap();
        let usage = measure(root.path());
        assert_eq!(usage.entries, 2);
        assert!(usage.bytes >= 100_000, "{usage:?}");
        std::fs::hard_link(root.path().join("d/f"), root.path().join("g")).unwrap();
        assert_eq!(measure(root.path()), Usage { entries: 3, ..usage }, "a file of two names is there once");
    }

    #[test]
    fn logs_count_into_the_pods_limit() {
        let pod: Pod = serde_json::from_value(serde_json::json!({"spec": {"containers": [{"name": "c",
            "resources": {"limits": {"ephemeral-storage": "50k"}}}]}}))
        .unwrap();
        let bounds = limits(&pod, false);
        let root = tempfile::tempdir().unwrap();
        let (pod_dir, log_dir) = (root.path().join("pod"), root.path().join("logs"));
        std::fs::create_dir_all(log_dir.join("c")).unwrap();
        std::fs::write(log_dir.join("c/0.log"), vec![1u8; 20_000]).unwrap();
        assert!(!bounds.is_empty() && bounds.exceeded(&pod_dir, &log_dir).is_none());
        std::fs::write(log_dir.join("c/1.log"), vec![1u8; 40_000]).unwrap();
        assert_eq!(
            bounds.exceeded(&pod_dir, &log_dir).unwrap(),
            "Pod ephemeral local storage usage exceeds the total limit of containers 50k. "
        );
    }
}
