//! The bytes of a data folder by part, and the free bytes of its file system.

use std::collections::HashSet;
use std::fs::Metadata;
use std::path::{Path, PathBuf};

use kubelet::node::{EvictionThresholds, FileSystem};
use serde::Serialize;

use tools_command::data_dir::DataDir;

/// Maximum number of visited files: a second of a fast disk. More are left out, and the result says so.
const ENTRIES_MAX: usize = 500_000;

/// The space of a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DiskSpace {
    /// The bytes that this user may still write.
    pub(crate) free_bytes: u64,
    pub(crate) total_bytes: u64,
    /// The free bytes below which nodes evict pods, by default.
    pub(crate) eviction_bytes: Option<u64>,
}

impl DiskSpace {
    /// The file system of an existing folder; `None` if the system doesn't report it.
    pub(crate) fn of(folder: &Path) -> Option<Self> {
        let FileSystem { free_bytes, total_bytes } = FileSystem::of(folder)?;
        Some(Self { free_bytes, total_bytes, eviction_bytes: EvictionThresholds::default().disk_bytes(total_bytes) })
    }
}

/// A data folder's use of its disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct DiskUse {
    pub(crate) folder: PathBuf,
    /// The bytes of each part.
    pub(crate) parts: PartBytes,
    /// Whether there are more files than were counted.
    pub(crate) truncated: bool,
    /// Of the file system; absent if the system doesn't report it.
    pub(crate) free_bytes: Option<u64>,
    pub(crate) total_bytes: Option<u64>,
    /// The free bytes below which nodes evict pods, by default.
    pub(crate) eviction_bytes: Option<u64>,
}

/// Bytes on the disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PartBytes {
    pub(crate) store: u64,
    pub(crate) images: u64,
    pub(crate) compiled_modules: u64,
    pub(crate) logs: u64,
    pub(crate) volumes: u64,
    pub(crate) key_value: u64,
    pub(crate) other: u64,
}

impl PartBytes {
    /// The sum.
    pub(crate) fn total(&self) -> u64 {
        let Self { store, images, compiled_modules, logs, volumes, key_value, other } = *self;
        [store, images, compiled_modules, logs, volumes, key_value, other].into_iter().fold(0, u64::saturating_add)
    }

    /// The part of a path relative to the data folder.
    fn of(&mut self, path: &Path) -> &mut u64 {
        let names: Vec<&str> = path.iter().take(3).filter_map(|name| name.to_str()).collect();
        match names.as_slice() {
            ["store", ..] => &mut self.store,
            ["images", ..] => &mut self.images,
            ["compiled", ..] => &mut self.compiled_modules,
            ["nodes", _, "logs"] => &mut self.logs,
            ["nodes", _, "pods"] => &mut self.volumes,
            ["keyvalue", ..] => &mut self.key_value,
            _ => &mut self.other,
        }
    }
}

impl DiskUse {
    /// Walks an existing data folder; `None` if there is none. Follows no links; blocks.
    pub(crate) fn of(data: &DataDir) -> Option<Self> {
        if !data.path().is_dir() {
            return None;
        }
        let (parts, truncated) = walk(data.path(), ENTRIES_MAX);
        let space = DiskSpace::of(data.path());
        Some(Self {
            folder: data.path().to_owned(),
            parts,
            truncated,
            free_bytes: space.map(|space| space.free_bytes),
            total_bytes: space.map(|space| space.total_bytes),
            eviction_bytes: space.and_then(|space| space.eviction_bytes),
        })
    }

    /// Whether the free space is below the default threshold of eviction.
    pub(crate) fn is_short(&self) -> bool {
        self.free_bytes.zip(self.eviction_bytes).is_some_and(|(free, threshold)| free < threshold)
    }
}

/// The bytes of the files below a folder, and whether there are more than `entries_max`.
fn walk(root: &Path, entries_max: usize) -> (PartBytes, bool) {
    let (mut parts, mut visited, mut linked) = (PartBytes::default(), 0, HashSet::new());
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        // Files come and go while a cluster runs.
        let Ok(entries) = std::fs::read_dir(&folder) else { continue };
        for entry in entries.flatten() {
            if visited == entries_max {
                return (parts, true);
            }
            visited += 1;
            let path = entry.path();
            let Ok(metadata) = std::fs::symlink_metadata(&path) else { continue };
            if metadata.is_dir() {
                folders.push(path.clone());
            }
            if let Ok(relative) = path.strip_prefix(root) {
                let part = parts.of(relative);
                *part = part.saturating_add(disk_bytes(&metadata, &mut linked));
            }
        }
    }
    (parts, false)
}

/// The bytes that a file takes on the disk: 0 for further names of a counted file.
#[cfg(unix)]
fn disk_bytes(metadata: &Metadata, linked: &mut HashSet<(u64, u64)>) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    /// The unit of `st_blocks` (stat(3type)).
    const BLOCK_BYTES: u64 = 512;
    if metadata.is_file() && metadata.nlink() > 1 && !linked.insert((metadata.dev(), metadata.ino())) {
        return 0;
    }
    metadata.blocks().saturating_mul(BLOCK_BYTES)
}

#[cfg(not(unix))]
fn disk_bytes(metadata: &Metadata, _: &mut HashSet<(u64, u64)>) -> u64 {
    if metadata.is_file() { metadata.len() } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_belong_to_their_part() {
        let temp = tempfile::tempdir().unwrap();
        let data = DataDir::at(temp.path().join("data"));
        assert_eq!(DiskUse::of(&data), None);
        let large = vec![1_u8; 1 << 20];
        for (path, copies) in [
            ("store/log/1.log", 1),
            ("images/blobs/a", 2),
            ("compiled/b", 3),
            ("nodes/n1/logs/u/c/0.log", 4),
            ("nodes/n1/pods/u/volumes/v", 5),
            ("keyvalue/k", 6),
            ("pki/ca.crt", 7),
        ] {
            let path = data.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, large.repeat(copies)).unwrap();
        }
        #[cfg(unix)]
        std::fs::hard_link(data.path().join("images/blobs/a"), data.path().join("images/linked")).unwrap();
        let used = DiskUse::of(&data).unwrap();
        let parts = used.parts;
        let found = [
            parts.store,
            parts.images,
            parts.compiled_modules,
            parts.logs,
            parts.volumes,
            parts.key_value,
            parts.other,
        ];
        assert_eq!(found.map(|bytes| bytes >> 20), [1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(parts.total() >> 20, 28);
        assert!(!used.truncated && used.free_bytes <= used.total_bytes && used.total_bytes > Some(0), "{used:?}");
        assert!(walk(data.path(), 3).1, "more files than the maximum");
    }

    #[test]
    fn little_free_space_is_short() {
        let of = |free_bytes, eviction_bytes| DiskUse {
            folder: PathBuf::new(),
            parts: PartBytes::default(),
            truncated: false,
            free_bytes,
            total_bytes: None,
            eviction_bytes,
        };
        assert!(of(Some(1), Some(2)).is_short());
        assert!(!of(Some(2), Some(2)).is_short() && !of(None, Some(2)).is_short() && !of(Some(1), None).is_short());
    }
}
