//! Reads a container's log for `kubectl logs`: the requested lines, and the lines that follow.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use machinery_serve::descriptors::{Class, DescriptorPermit, Descriptors};
use tokio::sync::mpsc;

use super::{ContainerLog, FILES_MAX, Progress, rotated_path};

/// Bytes read at once.
const CHUNK_BYTES: usize = 64 << 10;
/// Maximum bytes of a line in a file: pieces are 16 KiB and the framing is short. Longer lines are damaged and
/// truncated.
const LINE_BYTES_MAX: usize = 128 << 10;

/// The options of a read (PodLogOptions).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// Whether later lines are sent, too.
    pub follow: bool,
    /// Whether each line begins with its time.
    pub timestamps: bool,
    /// Only lines from this time on.
    pub since: Option<Timestamp>,
    /// Only this number of last lines.
    pub tail: Option<u64>,
    /// Maximum bytes to send.
    pub limit_bytes: Option<u64>,
    /// `Stdout` or `Stderr` only.
    pub stream: Option<&'static str>,
}

/// An open log file, counted against a limit: readers must not exhaust the descriptors of writers.
struct LogFile {
    file: File,
    _held: DescriptorPermit,
}

impl LogFile {
    fn open(path: impl AsRef<Path>) -> io::Result<Self> {
        let held = Descriptors::process().take(Class::Logs)?;
        Ok(Self { file: File::open(path)?, _held: held })
    }
}

/// Returns whether another log can be opened now.
pub fn can_open() -> bool {
    Descriptors::process().take(Class::Logs).is_ok()
}

/// Sends the log's text to `out` until its end, the limit, or the reader's end. `log` is set while this agent manages
/// the container's run: only then the log can be followed.
pub async fn send(path: &Path, log: Option<Arc<ContainerLog>>, options: Options, out: mpsc::Sender<Bytes>) {
    let mut progress = log.as_ref().map(|log| log.progress());
    let mut seen = progress.as_mut().map(|progress| *progress.borrow_and_update()).unwrap_or_default();
    if let Some(log) = &log {
        let log = log.clone();
        let _ = tokio::task::spawn_blocking(move || log.flush()).await;
        if let Some(progress) = &mut progress {
            seen = *progress.borrow_and_update();
        }
    }
    let mut left = options.limit_bytes.unwrap_or(u64::MAX);
    let (path, begin) = (path.to_owned(), options.clone());
    let opened = tokio::task::spawn_blocking(move || open(&path, begin.tail)).await;
    let Ok(Ok(mut files)) = opened else { return };
    let mut unfinished = Vec::new();
    // Oldest first; the last one is the current file, which may grow.
    let mut current = files.pop();
    for file in files {
        if !drain(file, &mut unfinished, &options, &mut left, &out).await.is_some_and(|(_, more)| more) {
            return;
        }
    }
    loop {
        if let Some(file) = current.take() {
            let Some((file, more)) = drain(file, &mut unfinished, &options, &mut left, &out).await else { return };
            if !more {
                return;
            }
            current = Some(file);
        }
        let (Some(log), Some(progress)) = (&log, &mut progress) else { return };
        if !options.follow {
            return;
        }
        let now: Progress = *progress.borrow_and_update();
        if now == seen {
            if now.closed {
                return;
            }
            tokio::select! {
                () = out.closed() => return,
                changed = progress.changed() => if changed.is_err() { return },
            }
            continue;
        }
        let turned = now.rotations.saturating_sub(seen.rotations);
        seen = now;
        // The rest of the previously current file, then each newer one.
        if turned > 0 {
            if let Some(file) = current.take()
                && !drain(file, &mut unfinished, &options, &mut left, &out).await.is_some_and(|(_, more)| more)
            {
                return;
            }
            let newest_first = usize::try_from(turned).unwrap_or(usize::MAX).min(FILES_MAX);
            for index in (0..newest_first).rev() {
                let Ok(file) = LogFile::open(rotated_path(log.path(), index)) else { continue };
                if index == 0 {
                    current = Some(file);
                } else if !drain(file, &mut unfinished, &options, &mut left, &out).await.is_some_and(|(_, more)| more) {
                    return;
                }
            }
        } else if current.is_none() {
            current = LogFile::open(log.path()).ok();
        }
    }
}

/// Opens the files with the requested lines, oldest first, each positioned at its first line.
fn open(path: &Path, tail: Option<u64>) -> io::Result<Vec<LogFile>> {
    let mut files = Vec::new();
    let mut wanted = tail;
    for index in 0..FILES_MAX {
        let mut file = match LogFile::open(rotated_path(path, index)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound && index == 0 => continue,
            Err(error) if error.kind() == io::ErrorKind::NotFound => break,
            Err(error) => return Err(error),
        };
        if let Some(lines) = &mut wanted {
            let found = seek_back(&mut file.file, *lines)?;
            *lines -= found.min(*lines);
        }
        files.push(file);
        if wanted == Some(0) {
            break;
        }
    }
    files.reverse();
    Ok(files)
}

/// Positions the file at its last `lines` lines; returns their number, which is smaller if the file has fewer.
pub(super) fn seek_back(file: &mut (impl Read + Seek), lines: u64) -> io::Result<u64> {
    let size = file.seek(SeekFrom::End(0))?;
    if lines == 0 || size == 0 {
        return Ok(0);
    }
    let mut found = 0;
    let mut end = size;
    let mut chunk = vec![0; CHUNK_BYTES];
    while end > 0 {
        let start = end.saturating_sub(CHUNK_BYTES as u64);
        let length = usize::try_from(end - start).unwrap_or(CHUNK_BYTES);
        file.seek(SeekFrom::Start(start))?;
        file.read_exact(&mut chunk[..length])?;
        for index in (0..length).rev() {
            // The newline at the end of the last line begins no other line.
            if chunk[index] == b'\n' && start + index as u64 + 1 < size {
                found += 1;
                if found == lines {
                    file.seek(SeekFrom::Start(start + index as u64 + 1))?;
                    return Ok(found);
                }
            }
        }
        end = start;
    }
    file.seek(SeekFrom::Start(0))?;
    Ok(found + 1)
}

/// Sends the rest of a file. `None` = it can't be read; `false` = no more lines are needed.
async fn drain(
    mut file: LogFile,
    unfinished: &mut Vec<u8>,
    options: &Options,
    left: &mut u64,
    out: &mpsc::Sender<Bytes>,
) -> Option<(LogFile, bool)> {
    loop {
        let read = tokio::task::spawn_blocking(move || {
            let mut chunk = vec![0; CHUNK_BYTES];
            let length = file.file.read(&mut chunk)?;
            chunk.truncate(length);
            Ok::<_, io::Error>((file, chunk))
        });
        let (back, chunk) = read.await.ok()?.ok()?;
        file = back;
        if chunk.is_empty() {
            return Some((file, *left > 0));
        }
        let text = show(&chunk, unfinished, options, left);
        if !text.is_empty() && out.send(text.into()).await.is_err() || *left == 0 {
            return Some((file, false));
        }
    }
}

/// Formats the next bytes of a file, which continue an `unfinished` line: at most `left` bytes.
pub(super) fn show(chunk: &[u8], unfinished: &mut Vec<u8>, options: &Options, left: &mut u64) -> Vec<u8> {
    unfinished.extend_from_slice(chunk);
    let mut text = Vec::new();
    let whole = unfinished.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    for line in unfinished[..whole].split_inclusive(|byte| *byte == b'\n') {
        format(line, options, &mut text);
    }
    unfinished.drain(..whole);
    if unfinished.len() > LINE_BYTES_MAX {
        unfinished.clear();
    }
    text.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
    *left -= text.len() as u64;
    text
}

/// Formats one line of a file.
fn format(line: &[u8], options: &Options, text: &mut Vec<u8>) {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let mut parts = line.splitn(4, |byte| *byte == b' ');
    let (Some(time), Some(stream), Some(tag), Some(bytes)) = (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return;
    };
    if options.stream.is_some_and(|wanted| !stream.eq_ignore_ascii_case(wanted.as_bytes())) {
        return;
    }
    if let Some(since) = options.since {
        let at = std::str::from_utf8(time).ok().and_then(|time| time.parse::<Timestamp>().ok());
        if at.is_none_or(|at| at < since) {
            return;
        }
    }
    if options.timestamps {
        text.extend_from_slice(time);
        text.push(b' ');
    }
    text.extend_from_slice(bytes);
    if tag == b"F" {
        text.push(b'\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::Writer;
    use machinery_env::Env;
    use runtime_api::{LogSink as _, StdStream};
    use std::time::Duration;

    async fn read(path: &Path, options: Options) -> String {
        let (out, mut parts) = mpsc::channel::<Bytes>(16);
        let mut text = Vec::new();
        let collect = async {
            while let Some(part) = parts.recv().await {
                text.extend_from_slice(&part);
            }
        };
        tokio::join!(send(path, None, options, out), collect);
        String::from_utf8(text).unwrap()
    }

    #[tokio::test]
    async fn the_requested_lines_are_returned() {
        let root = tempfile::tempdir().unwrap();
        let (env, clock) = Env::seeded(1, Timestamp::from_second(100).unwrap());
        let log = Writer::start(env, crate::log::Budget::of_disk(0), root.path())
            .unwrap()
            .open(root.path().join("0.log"))
            .unwrap();
        for (stream, text) in [(StdStream::Stdout, "a\n"), (StdStream::Stderr, "b\n"), (StdStream::Stdout, "c\nd")] {
            log.write(stream, text.as_bytes());
            clock.advance(Duration::from_secs(1));
        }
        log.close();
        let path = log.path();
        let none = Options::default;
        assert_eq!(read(path, none()).await, "a\nb\nc\nd");
        assert_eq!(read(path, Options { tail: Some(2), ..none() }).await, "c\nd");
        assert_eq!(read(path, Options { tail: Some(0), ..none() }).await, "");
        assert_eq!(read(path, Options { tail: Some(99), ..none() }).await, "a\nb\nc\nd");
        assert_eq!(read(path, Options { limit_bytes: Some(3), ..none() }).await, "a\nb");
        assert_eq!(read(path, Options { stream: Some("Stderr"), ..none() }).await, "b\n");
        let since = Some(Timestamp::from_second(101).unwrap());
        assert_eq!(read(path, Options { since, ..none() }).await, "b\nc\nd");
        let stamped = read(path, Options { timestamps: true, tail: Some(3), limit_bytes: Some(32), ..none() }).await;
        assert_eq!(stamped, "1970-01-01T00:01:41.000000000Z b");
    }

    #[tokio::test]
    async fn followed_logs_continue_over_rotations_to_the_end() {
        let root = tempfile::tempdir().unwrap();
        let (env, clock) = Env::seeded(1, Timestamp::UNIX_EPOCH);
        let log = Writer::start(env, crate::log::Budget::of_disk(0), root.path())
            .unwrap()
            .open(root.path().join("0.log"))
            .unwrap();
        let (out, mut parts) = mpsc::channel(1);
        let path = log.path().to_owned();
        let follow = Options { follow: true, ..Options::default() };
        let reader = tokio::spawn({
            let log = log.clone();
            async move { send(&path, Some(log), follow, out).await }
        });
        let line = [&[b'z'; 15_999][..], b"\n"].concat();
        let lines = (25 << 20) / line.len();
        let writer = tokio::task::spawn_blocking(move || {
            for _ in 0..lines {
                clock.advance(Duration::from_secs(1));
                log.write(StdStream::Stdout, &line);
                log.flush();
            }
            log.close();
        });
        let mut bytes = 0;
        while let Some(part) = parts.recv().await {
            bytes += part.len();
        }
        writer.await.unwrap();
        reader.await.unwrap();
        assert_eq!(bytes, lines * 16_000);
    }
}
