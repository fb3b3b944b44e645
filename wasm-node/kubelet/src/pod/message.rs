//! Termination messages: what a container left in its file, or at the end of its log.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::Path;

/// Upstream's bounds: of the file, and of the log's end.
const MESSAGE_BYTES_MAX: usize = 4096;
const LOG_BYTES_MAX: usize = 2048;
const LOG_LINES_MAX: usize = 80;

/// The message of a container that has ended. `failed`: its exit code isn't 0.
pub(crate) fn read(file: Option<&Path>, log: &Path, from_log: bool, failed: bool) -> Option<String> {
    let message = file.and_then(last_words).filter(|message| !message.is_empty());
    if message.is_none() && from_log && failed {
        return log_end(log);
    }
    message
}

fn last_words(path: &Path) -> Option<String> {
    // A link that the guest made must not be followed out of its folder.
    if !std::fs::symlink_metadata(path).ok()?.is_file() {
        return None;
    }
    let mut file = File::open(path).ok()?;
    let size = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(size.saturating_sub(MESSAGE_BYTES_MAX as u64))).ok()?;
    let mut bytes = Vec::new();
    file.take(MESSAGE_BYTES_MAX as u64).read_to_end(&mut bytes).ok()?;
    Some(text(&bytes))
}

fn log_end(path: &Path) -> Option<String> {
    let mut file = File::open(path).ok()?;
    let size = file.metadata().ok()?.len();
    // Framing is about fifty bytes a line.
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
