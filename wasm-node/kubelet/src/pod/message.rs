//! Termination messages, read from a container's file or from the end of its log.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use runtime_api::Preopen;

/// Upstream's bounds of the file and of the log's tail.
const MESSAGE_BYTES_MAX: usize = 4096;
const LOG_BYTES_MAX: usize = 2048;
const LOG_LINES_MAX: usize = 80;

/// The file of a termination message. Guests create it, in a folder that guests can write.
#[derive(Debug, Clone)]
pub(crate) struct MessageFile {
    pub(crate) folder: Preopen,
    /// The path below the folder.
    pub(crate) name: PathBuf,
}

impl MessageFile {
    /// Opens the file. Symlinks of guests can't escape the folder, neither as the file nor on the path to it.
    fn open(&self) -> io::Result<File> {
        use cap_primitives::fs::{FollowSymlinks, OpenOptions, open, stat};
        let folder = self.folder.open()?;
        if !stat(&folder, &self.name, FollowSymlinks::No)?.is_file() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        open(&folder, &self.name, OpenOptions::new().read(true))
    }
}

/// The message of an ended container. `failed`: its exit code isn't 0.
pub(crate) fn read(file: Option<&MessageFile>, log: &Path, from_log: bool, failed: bool) -> Option<String> {
    let message = file.and_then(read_file).filter(|message| !message.is_empty());
    if message.is_none() && from_log && failed {
        return log_end(log);
    }
    message
}

fn read_file(file: &MessageFile) -> Option<String> {
    let mut file = file.open().ok()?;
    let size = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(size.saturating_sub(MESSAGE_BYTES_MAX as u64))).ok()?;
    let mut bytes = Vec::new();
    file.take(MESSAGE_BYTES_MAX as u64).read_to_end(&mut bytes).ok()?;
    Some(text(&bytes))
}

fn log_end(path: &Path) -> Option<String> {
    let mut file = File::open(path).ok()?;
    let size = file.metadata().ok()?.len();
    // The framing takes about 50 bytes per line.
    let window = (LOG_BYTES_MAX + LOG_LINES_MAX * 64) as u64;
    file.seek(SeekFrom::Start(size.saturating_sub(window))).ok()?;
    let mut bytes = Vec::new();
    file.take(window).read_to_end(&mut bytes).ok()?;
    let lines: Vec<&[u8]> = bytes.split_inclusive(|byte| *byte == b'\n').collect();
    let mut whole = Vec::new();
    for line in &lines[lines.len().saturating_sub(LOG_LINES_MAX)..] {
        let mut parts = line.strip_suffix(b"\n").unwrap_or(line).splitn(4, |byte| *byte == b' ');
        let (tag, text) = (parts.nth(2), parts.next());
        whole.extend_from_slice(text.unwrap_or_default());
        if tag == Some(b"F") {
            whole.push(b'\n');
        }
    }
    let end = &whole[whole.len().saturating_sub(LOG_BYTES_MAX)..];
    (!end.is_empty()).then(|| text(end))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(all(test, unix))]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn no_link_that_a_guest_made_leads_to_the_nodes_files() {
        let root = tempfile::tempdir().unwrap();
        let host = root.path().join("volume");
        fs::create_dir_all(host.join("real")).unwrap();
        fs::create_dir_all(root.path().join("secret")).unwrap();
        fs::write(root.path().join("secret/file"), "secret").unwrap();
        fs::write(host.join("real/file"), "words").unwrap();
        symlink("../secret", host.join("out")).unwrap();
        symlink("../../secret/file", host.join("real/leak")).unwrap();
        symlink("real", host.join("within")).unwrap();
        let of = |name: &str| {
            let folder = Preopen { host: host.clone(), sub_paths: Vec::new(), guest: "/v".into(), writable: true };
            read(Some(&MessageFile { folder, name: name.into() }), Path::new("/none"), false, true)
        };
        assert_eq!(of("real/file").as_deref(), Some("words"));
        assert_eq!(of("within/file").as_deref(), Some("words"));
        for leak in ["out/file", "real/leak", "out", "real", "none"] {
            assert_eq!(of(leak), None, "{leak}");
        }
    }
}
