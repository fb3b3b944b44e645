//! Detects changes of a few files. It polls the metadata ten times a second: no system's file notification covers all
//! disks, and editors and linkers replace files in different ways.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use machinery_env::Env;

/// Poll interval of the files: a change must be deployed within a second.
pub(super) const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// Polls without a file before a report: builds replace the file.
const POLLS_WITHOUT_FILE: u32 = 20;

/// Identifies a state of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FileStamp {
    modified: Option<SystemTime>,
    bytes: u64,
    #[cfg(unix)]
    inode: u64,
}

impl FileStamp {
    pub(super) fn of(metadata: &std::fs::Metadata) -> Self {
        Self {
            modified: metadata.modified().ok(),
            bytes: metadata.len(),
            #[cfg(unix)]
            inode: std::os::unix::fs::MetadataExt::ino(metadata),
        }
    }
}

/// The last seen states of files.
#[derive(Debug, Default)]
pub(super) struct WatchedFiles {
    seen: BTreeMap<PathBuf, FileStamp>,
    /// Polls without each missing file.
    missing: BTreeMap<PathBuf, u32>,
}

impl WatchedFiles {
    /// Takes the current states as seen. Called before the files are read, so that a change during a read is detected.
    pub(super) fn mark(&mut self, files: &[PathBuf]) {
        self.seen.retain(|file, _| files.contains(file));
        for file in files {
            if let Ok(metadata) = std::fs::metadata(file) {
                self.seen.insert(file.clone(), FileStamp::of(&metadata));
            }
        }
    }

    /// Whether a file has another state than the last one seen. A missing file is no change; it is reported once, to
    /// `report`.
    pub(super) fn poll(&mut self, files: &[PathBuf], report: &dyn Fn(&Path, &std::io::Error)) -> bool {
        let mut changed = false;
        for file in files {
            match std::fs::metadata(file) {
                Ok(metadata) => {
                    self.missing.remove(file);
                    let now = FileStamp::of(&metadata);
                    changed |= self.seen.insert(file.clone(), now) != Some(now);
                }
                Err(why) => {
                    let polls = self.missing.entry(file.clone()).or_default();
                    *polls = polls.saturating_add(1);
                    if *polls == POLLS_WITHOUT_FILE {
                        report(file, &why);
                    }
                }
            }
        }
        changed
    }

    /// Waits for the next change.
    pub(super) async fn changed(&mut self, env: &Env, files: &[PathBuf], report: &dyn Fn(&Path, &std::io::Error)) {
        loop {
            env.sleep(POLL_INTERVAL).await;
            if self.poll(files, report) {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn each_change_is_detected_once() {
        let dir = tempfile::tempdir().unwrap();
        let files = [dir.path().join("a.wasm"), dir.path().join("app.yaml")];
        files.iter().for_each(|file| std::fs::write(file, "one").unwrap());
        let mut watched = WatchedFiles::default();
        watched.mark(&files);
        let reports = Cell::new(0);
        let mut poll = || watched.poll(&files, &|_, _| reports.set(reports.get() + 1));
        assert!(!poll());
        std::fs::write(&files[1], "three").unwrap();
        assert!(poll() && !poll());
        // Replaced as by linkers: briefly missing, another inode, the same length.
        std::fs::remove_file(&files[0]).unwrap();
        for _ in 0..2 * POLLS_WITHOUT_FILE {
            assert!(!poll(), "no file is no change");
        }
        assert_eq!(reports.get(), 1);
        std::fs::write(dir.path().join("new"), "two").unwrap();
        std::fs::rename(dir.path().join("new"), &files[0]).unwrap();
        assert!(poll() && !poll());
    }
}
