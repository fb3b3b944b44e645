//! Reads a file on each change. It polls the metadata ten times a second: no system's file notification covers all
//! disks, and editors and linkers replace files in different ways.

use std::path::Path;
use std::time::{Duration, SystemTime};

use machinery_env::Env;

use crate::module_file;

/// Poll interval of the file: a change must be deployed within a second.
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// Polls without a file before a report: builds replace the file.
const POLLS_WITHOUT_FILE: u32 = 20;

/// The last read state of the file.
#[derive(Debug, Default)]
pub(super) struct WatchedFile {
    seen: Option<FileStamp>,
}

/// Identifies a state of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct FileStamp {
    is_file: bool,
    modified: Option<SystemTime>,
    bytes: u64,
    #[cfg(unix)]
    inode: u64,
}

impl FileStamp {
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

impl WatchedFile {
    /// Reads the file now.
    pub(super) async fn read(&mut self, file: &Path) -> std::io::Result<Vec<u8>> {
        // Taken before the read: a change during it is detected next time.
        let now = FileStamp::of(file)?;
        self.seen = Some(now);
        if !now.is_file {
            return Err(std::io::Error::other("it is no file, and what is watched has to be one"));
        }
        let file = file.to_owned();
        tokio::task::spawn_blocking(move || module_file::read(&file)).await?
    }

    /// Waits for the next state and reads it. A missing file is waited for and reported to `report` once.
    pub(super) async fn changed(
        &mut self,
        env: &Env,
        file: &Path,
        report: &(dyn Fn(&std::io::Error) + Sync),
    ) -> Vec<u8> {
        let mut looks = 0;
        loop {
            env.sleep(POLL_INTERVAL).await;
            match FileStamp::of(file) {
                Ok(now) if Some(now) != self.seen => match self.read(file).await {
                    Ok(bytes) => return bytes,
                    Err(why) => report(&why),
                },
                Ok(_) => looks = 0,
                Err(why) => {
                    looks += 1;
                    if looks == POLLS_WITHOUT_FILE {
                        report(&why);
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
        let (env, mut watched) = (Env::real(), WatchedFile::default());
        assert_eq!(watched.read(&file).await.unwrap(), b"one");
        std::fs::write(&file, "three").unwrap();
        let told = std::sync::Mutex::new(0);
        let report = |_: &std::io::Error| *told.lock().unwrap() += 1;
        assert_eq!(watched.changed(&env, &file, &report).await, b"three");
        // Replaced as by linkers: briefly missing, another inode, the same length.
        std::fs::remove_file(&file).unwrap();
        let waits = env.timeout(POLL_INTERVAL * (POLLS_WITHOUT_FILE + 10), watched.changed(&env, &file, &report)).await;
        assert!(waits.is_err(), "no file is no change");
        std::fs::create_dir(&file).unwrap();
        let waits = env.timeout(POLL_INTERVAL * 5, watched.changed(&env, &file, &report)).await;
        assert!(waits.is_err(), "nor is a folder");
        assert_eq!(*told.lock().unwrap(), 2, "each is told once");
        std::fs::remove_dir(&file).unwrap();
        std::fs::write(dir.path().join("new"), "other").unwrap();
        std::fs::rename(dir.path().join("new"), &file).unwrap();
        assert_eq!(watched.changed(&env, &file, &report).await, b"other");
    }
}
