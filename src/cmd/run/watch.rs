//! A file that is read again at each change. By its metadata, ten times a second: no system's own way to watch files knows
//! all disks, and editors and linkers replace files in ways of their own.

use std::path::Path;
use std::time::{Duration, SystemTime};

use crate::module_file;

/// How often the file is looked at: a change shall serve within a second.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// What was read last.
#[derive(Debug, Default)]
pub(super) struct Watched {
    seen: Option<Stamp>,
}

/// What tells one state of a file from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    modified: Option<SystemTime>,
    bytes: u64,
    #[cfg(unix)]
    inode: u64,
}

impl Stamp {
    fn of(file: &Path) -> Option<Self> {
        let metadata = std::fs::metadata(file).ok()?;
        Some(Self {
            modified: metadata.modified().ok(),
            bytes: metadata.len(),
            #[cfg(unix)]
            inode: std::os::unix::fs::MetadataExt::ino(&metadata),
        })
    }
}

impl Watched {
    /// The file as it is.
    pub(super) async fn read(&mut self, file: &Path) -> std::io::Result<Vec<u8>> {
        // Before it is read: what changes meanwhile is a change.
        self.seen = Stamp::of(file);
        let file = file.to_owned();
        tokio::task::spawn_blocking(move || module_file::read(&file)).await?
    }

    /// Its next state. Waits for as long as there is none, or no file at all.
    pub(super) async fn changed(&mut self, file: &Path) -> Vec<u8> {
        loop {
            tokio::time::sleep(LOOK_INTERVAL).await;
            let now = Stamp::of(file);
            if now.is_some()
                && now != self.seen
                && let Ok(bytes) = self.read(file).await
            {
                return bytes;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn each_change_is_read_once() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.wasm");
        std::fs::write(&file, "one").unwrap();
        let mut watched = Watched::default();
        assert_eq!(watched.read(&file).await.unwrap(), b"one");
        std::fs::write(&file, "three").unwrap();
        assert_eq!(watched.changed(&file).await, b"three");
        // Replaced, as linkers do: gone for a moment, another file, as long as before.
        std::fs::remove_file(&file).unwrap();
        let waits = tokio::time::timeout(LOOK_INTERVAL * 3, watched.changed(&file)).await;
        assert!(waits.is_err(), "no file is no change");
        std::fs::write(dir.path().join("new"), "other").unwrap();
        std::fs::rename(dir.path().join("new"), &file).unwrap();
        assert_eq!(watched.changed(&file).await, b"other");
    }
}
