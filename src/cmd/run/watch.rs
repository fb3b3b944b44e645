//! A file that is read again at each change. By its metadata, ten times a second: no system's own way to watch files knows
//! all disks, and editors and linkers replace files in ways of their own.

use std::path::Path;
use std::time::{Duration, SystemTime};

use crate::module_file;

/// How often the file is looked at: a change shall serve within a second.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// Looks after which it is told that there is no file: builds replace it.
const LOOKS_WITHOUT: u32 = 20;

/// What was read last.
#[derive(Debug, Default)]
pub(super) struct Watched {
    seen: Option<Stamp>,
}

/// What tells one state of a file from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    is_file: bool,
    modified: Option<SystemTime>,
    bytes: u64,
    #[cfg(unix)]
    inode: u64,
}

impl Stamp {
    fn of(file: &Path) -> std::io::Result<Self> {
        let metadata = std::fs::metadata(file)?;
        Ok(Self {
            is_file: metadata.is_file(),
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
        let now = Stamp::of(file)?;
        self.seen = Some(now);
        if !now.is_file {
            return Err(std::io::Error::other("it is no file, and what is watched has to be one"));
        }
        let file = file.to_owned();
        tokio::task::spawn_blocking(move || module_file::read(&file)).await?
    }

    /// Its next state. Waits for as long as there is none, or no file at all, which `tell` hears once.
    pub(super) async fn changed(&mut self, file: &Path, tell: &(dyn Fn(&std::io::Error) + Sync)) -> Vec<u8> {
        let mut looks = 0;
        loop {
            tokio::time::sleep(LOOK_INTERVAL).await;
            match Stamp::of(file) {
                Ok(now) if Some(now) != self.seen => match self.read(file).await {
                    Ok(bytes) => return bytes,
                    Err(why) => tell(&why),
                },
                Ok(_) => looks = 0,
                Err(why) => {
                    looks += 1;
                    if looks == LOOKS_WITHOUT {
                        tell(&why);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn each_change_is_read_once() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.wasm");
        std::fs::write(&file, "one").unwrap();
        let mut watched = Watched::default();
        assert_eq!(watched.read(&file).await.unwrap(), b"one");
        std::fs::write(&file, "three").unwrap();
        let told = std::sync::Mutex::new(0);
        let tell = |_: &std::io::Error| *told.lock().unwrap() += 1;
        assert_eq!(watched.changed(&file, &tell).await, b"three");
        // Replaced, as linkers do: gone for a moment, another file, as long as before.
        std::fs::remove_file(&file).unwrap();
        let waits = tokio::time::timeout(LOOK_INTERVAL * (LOOKS_WITHOUT + 10), watched.changed(&file, &tell)).await;
        assert!(waits.is_err(), "no file is no change");
        std::fs::create_dir(&file).unwrap();
        let waits = tokio::time::timeout(LOOK_INTERVAL * 5, watched.changed(&file, &tell)).await;
        assert!(waits.is_err(), "nor is a folder");
        assert_eq!(*told.lock().unwrap(), 2, "each is told once");
        std::fs::remove_dir(&file).unwrap();
        std::fs::write(dir.path().join("new"), "other").unwrap();
        std::fs::rename(dir.path().join("new"), &file).unwrap();
        assert_eq!(watched.changed(&file, &tell).await, b"other");
    }
}
