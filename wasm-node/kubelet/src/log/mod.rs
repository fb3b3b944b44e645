//! Containers' logs: files of timestamped lines, written by one thread per node, so that no guest blocks on a disk.
//!
//! A line of a file is `TIME STREAM TAG BYTES`, the format of container runtimes (CRI): tag `F` ends a line, `P`
//! continues it. The bytes are the guest's, unchanged.

mod budget;
#[cfg(test)]
mod fuzz;
pub mod read;
mod stamp;

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

pub use budget::Budget;
use budget::LogUsage;
use jiff::Timestamp;
use machinery_env::Env;
use tokio::sync::watch;

use runtime_api::disk::advice;
use runtime_api::{LogSink, StdStream};

/// The size at which a file is rotated, and the number of files including the current one (upstream's defaults).
pub const FILE_BYTES_MAX: u64 = 10 << 20;
/// See above.
pub const FILES_MAX: usize = 5;
/// Bytes per second that a container may log on average, and its burst. This is more than a person or a collector
/// reads, and less than the throughput of a disk: it is the maximum cost of one container's flood.
pub const RATE_BYTES_PER_SECOND: u64 = 1 << 20;
/// See above.
pub const BURST_BYTES: u64 = 4 << 20;
/// Bytes of the rate to accumulate before a container that was cut off may log again: one second's worth. A flood is
/// logged as contiguous parts with one notice a second, not as alternating lines and notices.
const RESUME_BYTES: u64 = RATE_BYTES_PER_SECOND;
/// Longer lines are written in pieces of this size (containerd's).
const PIECE_BYTES_MAX: usize = 16 << 10;
/// Maximum bytes of a container that wait for the writer: the burst and its framing.
const WAITING_BYTES_MAX: usize = 8 << 20;
/// How long lines are collected before they are written: unnoticeable to readers, and well within the queue's size.
/// Waking the thread for each line cost a sixth of a small request.
const COLLECT_TIME: std::time::Duration = std::time::Duration::from_millis(5);
/// Maximum containers that wait for the writer.
const DIRTY_MAX: usize = 16 << 10;

/// The lines dropped since the last notice.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct DropCount {
    lines: u64,
    bytes: u64,
}

/// Splits a guest's output into timestamped lines, and enforces the rate. Pure.
#[derive(Debug)]
struct Framer {
    /// The bytes that may be logged now.
    budget: u64,
    budget_at: Duration,
    /// The unfinished line of each stream.
    open: [Vec<u8>; 2],
    /// Whether all lines are dropped until the rate allows [`RESUME_BYTES`].
    cut_off: bool,
    /// Whether the rest of the line is dropped, because its beginning was.
    dropping: [bool; 2],
    dropped: DropCount,
    /// All lines dropped since the start.
    dropped_total: DropCount,
}

impl Framer {
    fn new(now: Duration) -> Self {
        Self {
            budget: BURST_BYTES,
            budget_at: now,
            open: [Vec::new(), Vec::new()],
            cut_off: false,
            dropping: [false; 2],
            dropped: DropCount::default(),
            dropped_total: DropCount::default(),
        }
    }

    fn refill(&mut self, now: Duration) {
        let passed = now.saturating_sub(self.budget_at).as_micros();
        let earned = passed.saturating_mul(u128::from(RATE_BYTES_PER_SECOND)) / 1_000_000;
        if earned > 0 {
            self.budget = self.budget.saturating_add(u64::try_from(earned).unwrap_or(u64::MAX)).min(BURST_BYTES);
            self.budget_at = now;
        }
    }

    fn take(&mut self, stream: StdStream, bytes: &[u8], at: Timestamp, now: Duration, max: usize, out: &mut Vec<u8>) {
        self.refill(now);
        let index = stream as usize;
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let ends = piece.last() == Some(&b'\n');
            let text = if ends { &piece[..piece.len() - 1] } else { piece };
            let size = piece.len() as u64;
            self.cut_off = if self.cut_off { self.budget < RESUME_BYTES } else { size > self.budget };
            if self.dropping[index] || self.cut_off || size > self.budget || out.len() + piece.len() > max {
                if !self.open[index].is_empty() {
                    let open = std::mem::take(&mut self.open[index]);
                    line(out, at, stream, "F", &open);
                }
                self.dropping[index] = !ends;
                for dropped in [&mut self.dropped, &mut self.dropped_total] {
                    dropped.bytes += size;
                    dropped.lines += u64::from(ends);
                }
                continue;
            }
            self.budget -= size;
            self.write_drop_notice(at, out);
            if ends && self.open[index].is_empty() && text.len() <= PIECE_BYTES_MAX {
                line(out, at, stream, "F", text);
                continue;
            }
            let mut open = std::mem::take(&mut self.open[index]);
            open.extend_from_slice(text);
            while open.len() > PIECE_BYTES_MAX {
                let rest = open.split_off(PIECE_BYTES_MAX);
                line(out, at, stream, "P", &open);
                open = rest;
            }
            if ends {
                line(out, at, stream, "F", &open);
            } else {
                self.open[index] = open;
            }
        }
    }

    fn write_drop_notice(&mut self, at: Timestamp, out: &mut Vec<u8>) {
        let dropped = std::mem::take(&mut self.dropped);
        if dropped.bytes > 0 {
            let text = format!(
                "[coracle] {} lines ({} bytes) were dropped: a container may log {RATE_BYTES_PER_SECOND} bytes a second",
                dropped.lines, dropped.bytes
            );
            line(out, at, StdStream::Stderr, "F", text.as_bytes());
        }
    }

    /// Ends the log: an unfinished line is written without an end.
    fn finish(&mut self, at: Timestamp, out: &mut Vec<u8>) {
        for stream in [StdStream::Stdout, StdStream::Stderr] {
            let open = std::mem::take(&mut self.open[stream as usize]);
            if !open.is_empty() {
                line(out, at, stream, "P", &open);
            }
        }
        self.write_drop_notice(at, out);
    }
}

fn line(out: &mut Vec<u8>, at: Timestamp, stream: StdStream, tag: &str, bytes: &[u8]) {
    let name = match stream {
        StdStream::Stdout => "stdout",
        StdStream::Stderr => "stderr",
    };
    out.extend_from_slice(&stamp::stamp(at));
    for part in [name, " ", tag, " "] {
        out.extend_from_slice(part.as_bytes());
    }
    out.extend_from_slice(bytes);
    out.push(b'\n');
}

/// The progress of a log, for waiting readers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// The number of rotations.
    pub rotations: u64,
    /// Incremented by every write.
    pub writes: u64,
    /// Whether the log is complete.
    pub closed: bool,
}

/// A log's progress channel, created for the first reader: most logs have none, and a channel is large.
#[derive(Debug, Default)]
struct LazyProgress {
    now: Progress,
    readers: Option<watch::Sender<Progress>>,
}

#[derive(Debug)]
struct LogBuffer {
    framer: Framer,
    lines: Vec<u8>,
    queued: bool,
}

/// The current file.
#[derive(Debug, Default)]
struct CurrentFile {
    bytes: u64,
    /// The lines that could not be written since the last successful write, and the error.
    lost: Option<LostLines>,
}

#[derive(Debug)]
struct LostLines {
    lines: u64,
    why: String,
}

/// The log of one run of a container.
#[derive(Debug)]
pub struct ContainerLog {
    path: PathBuf,
    env: Env,
    buffer: Mutex<LogBuffer>,
    /// Locked while writing.
    current: Mutex<CurrentFile>,
    progress: Mutex<LazyProgress>,
    /// All bytes written.
    written: AtomicU64,
    usage: Arc<LogUsage>,
    writer: SyncSender<Arc<ContainerLog>>,
    this: std::sync::Weak<ContainerLog>,
}

impl ContainerLog {
    /// Returns a receiver of the log's progress.
    #[must_use]
    pub fn progress(&self) -> watch::Receiver<Progress> {
        let mut progress_channel = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        let now = progress_channel.now;
        progress_channel.readers.get_or_insert_with(|| watch::Sender::new(now)).subscribe()
    }

    fn update_progress(&self, change: impl FnOnce(&mut Progress)) {
        let mut progress_channel = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut progress_channel.now);
        if let Some(readers) = &progress_channel.readers {
            readers.send_replace(progress_channel.now);
        }
    }

    /// Returns the path of the current file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the bytes written so far.
    #[must_use]
    pub fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Removes a file of this log while no write is in progress; `current` = it is the current file.
    fn remove_file_between_writes(&self, current: bool, remove: impl FnOnce()) {
        let mut writing = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        remove();
        if current {
            writing.bytes = 0;
            drop(writing);
            self.update_progress(|progress| progress.rotations += 1);
        }
    }

    /// Returns lines and bytes dropped because of the rate or a disk error.
    #[must_use]
    pub fn dropped(&self) -> (u64, u64) {
        let dropped = self.buffer.lock().unwrap_or_else(PoisonError::into_inner).framer.dropped_total;
        (dropped.lines, dropped.bytes)
    }

    /// Ends the log: everything is in the file afterwards. Blocks on the disk.
    pub fn close(&self) {
        {
            let mut buffer = self.buffer.lock().unwrap_or_else(PoisonError::into_inner);
            let at = self.env.now();
            let LogBuffer { framer, lines, .. } = &mut *buffer;
            let before = lines.len();
            framer.finish(at, lines);
            self.usage.add_queued(lines.len() - before);
        }
        self.flush();
        self.update_progress(|progress| progress.closed = true);
    }

    /// Writes the queued lines.
    pub fn flush(&self) {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let mut lines = {
            let mut buffer = self.buffer.lock().unwrap_or_else(PoisonError::into_inner);
            buffer.queued = false;
            std::mem::take(&mut buffer.lines)
        };
        self.usage.remove_queued(lines.len());
        if lines.is_empty() && current.lost.is_none() {
            return;
        }
        let own = lines.len();
        if let Some(lost) = &current.lost {
            lines = [lost.notice(self.env.now()), lines].concat();
        }
        let mut rotated = 0;
        if current.bytes > 0 && current.bytes + lines.len() as u64 > FILE_BYTES_MAX {
            rotate(&self.path);
            self.usage.record_rotation(&self.path);
            rotated = 1;
            current.bytes = 0;
        }
        match append(&self.path, &lines) {
            Ok(()) => {
                current.lost = None;
                current.bytes += lines.len() as u64;
                self.usage.record_write(&self.path, lines.len() as u64);
                self.written.fetch_add(lines.len() as u64, Ordering::Relaxed);
            }
            Err(error) => self.record_lost(&mut current, &lines[lines.len() - own..], &error),
        }
        drop(current);
        self.usage.trim();
        self.update_progress(|progress| {
            progress.rotations += rotated;
            progress.writes += 1;
        });
    }

    /// Counts lines as lost. A notice precedes the next lines that can be written.
    fn record_lost(&self, current: &mut CurrentFile, own: &[u8], error: &io::Error) {
        let lines = own.iter().filter(|byte| **byte == b'\n').count() as u64;
        if current.lost.is_none() {
            tracing::warn!(path = %self.path.display(), %error, "a container's log cannot be written{}", advice(error));
        }
        let lost = current.lost.get_or_insert_with(|| LostLines { lines: 0, why: error.to_string() });
        lost.lines += lines;
        let mut buffer = self.buffer.lock().unwrap_or_else(PoisonError::into_inner);
        buffer.framer.dropped_total.lines += lines;
        buffer.framer.dropped_total.bytes += own.len() as u64;
    }
}

impl LostLines {
    fn notice(&self, at: Timestamp) -> Vec<u8> {
        let mut out = Vec::new();
        let text = format!("[coracle] {} lines were lost, as they could not be written: {}", self.lines, self.why);
        line(&mut out, at, StdStream::Stderr, "F", text.as_bytes());
        out
    }
}

impl LogSink for ContainerLog {
    fn write(&self, stream: StdStream, bytes: &[u8]) {
        let wake = {
            let mut buffer = self.buffer.lock().unwrap_or_else(PoisonError::into_inner);
            let LogBuffer { framer, lines, queued } = &mut *buffer;
            let (before, max) = (lines.len(), self.usage.queue_limit(WAITING_BYTES_MAX));
            framer.take(stream, bytes, self.env.now(), self.env.elapsed(), max, lines);
            self.usage.add_queued(lines.len() - before);
            !lines.is_empty() && !std::mem::replace(queued, true)
        };
        if wake
            && let Some(this) = self.this.upgrade()
            && self.writer.try_send(this).is_err()
        {
            // The writer's queue is full; the next write tries again.
            self.buffer.lock().unwrap_or_else(PoisonError::into_inner).queued = false;
        }
    }
}

fn append(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.create(true).append(true);
    private(&mut options);
    let mut file: File = options.open(path)?;
    let before = file.metadata()?.len();
    file.write_all(bytes).inspect_err(|_| {
        // After a partial write, the next line would begin within this one.
        if let Err(error) = file.set_len(before) {
            tracing::warn!(path = %path.display(), %error, "a partially written line of a container's log cannot be removed");
        }
    })
}

#[cfg(unix)]
fn private(options: &mut OpenOptions) {
    use std::os::unix::fs::OpenOptionsExt as _;
    options.mode(0o600);
}

#[cfg(windows)]
fn private(_options: &mut OpenOptions) {}

/// Returns the path of the `index`-th file before the current one (0 is the current one).
#[must_use]
pub fn rotated_path(path: &Path, index: usize) -> PathBuf {
    if index == 0 {
        return path.to_owned();
    }
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{index}"));
    name.into()
}

fn rotate(path: &Path) {
    let _ = std::fs::remove_file(rotated_path(path, FILES_MAX - 1));
    for index in (0..FILES_MAX - 1).rev() {
        let _ = std::fs::rename(rotated_path(path, index), rotated_path(path, index + 1));
    }
}

/// The thread that writes a node's logs.
#[derive(Debug, Clone)]
pub struct Writer {
    dirty: SyncSender<Arc<ContainerLog>>,
    usage: Arc<LogUsage>,
    env: Env,
}

impl Writer {
    /// Starts the thread; it ends when the last log and writer is dropped. `dir` is the folder of the node's logs.
    pub fn start(env: Env, budget: Budget, dir: &Path) -> io::Result<Self> {
        let (dirty, waiting): (_, Receiver<Arc<ContainerLog>>) = sync_channel(DIRTY_MAX);
        std::thread::Builder::new().name("coracle-logs".into()).spawn(move || {
            while let Ok(log) = waiting.recv() {
                // Lines are collected meanwhile: under load one wake-up, one open and one write serve many requests.
                std::thread::sleep(COLLECT_TIME);
                log.flush();
                while let Ok(log) = waiting.try_recv() {
                    log.flush();
                }
            }
        })?;
        Ok(Self { dirty, usage: Arc::new(LogUsage::new(budget, dir)), env })
    }

    /// Opens a log at `path`, creates its folder, and appends to an existing file.
    pub fn open(&self, path: PathBuf) -> io::Result<Arc<ContainerLog>> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let size = std::fs::metadata(&path).map_or(0, |metadata| metadata.len());
        let log = Arc::new_cyclic(|this| ContainerLog {
            path,
            written: AtomicU64::new(0),
            usage: self.usage.clone(),
            buffer: Mutex::new(LogBuffer { framer: Framer::new(self.env.elapsed()), lines: Vec::new(), queued: false }),
            env: self.env.clone(),
            current: Mutex::new(CurrentFile { bytes: size, lost: None }),
            progress: Mutex::default(),
            writer: self.dirty.clone(),
            this: this.clone(),
        });
        self.usage.add_open(log.path(), Arc::downgrade(&log));
        Ok(log)
    }

    /// Removes a log's files. Blocks on the disk.
    pub fn remove(&self, path: &Path) {
        for index in 0..FILES_MAX {
            let _ = std::fs::remove_file(rotated_path(path, index));
        }
        self.usage.forget(path);
    }

    /// Forgets the logs below a removed folder.
    pub fn forget(&self, dir: &Path) {
        self.usage.forget(dir);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn texts(out: &[u8]) -> Vec<(String, Vec<u8>)> {
        let lines = out.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        lines
            .map(|line| {
                let parts: Vec<&[u8]> = line.splitn(4, |byte| *byte == b' ').collect();
                let tag = String::from_utf8([parts[1], b" ", parts[2]].concat()).unwrap();
                (tag, parts[3].to_vec())
            })
            .collect()
    }

    proptest! {
        #[test]
        fn bytes_within_the_rate_are_kept(chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40_000), 0..20)) {
            let mut framer = Framer::new(Duration::ZERO);
            let mut out = Vec::new();
            for chunk in &chunks {
                framer.take(StdStream::Stdout, chunk, Timestamp::UNIX_EPOCH, Duration::ZERO, usize::MAX, &mut out);
            }
            framer.finish(Timestamp::UNIX_EPOCH, &mut out);
            let mut back = Vec::new();
            let mut rest = &out[..];
            while !rest.is_empty() {
                let end = rest.iter().position(|b| *b == b'\n').unwrap();
                let parts: Vec<&[u8]> = rest[..end].splitn(4, |b| *b == b' ').collect();
                back.extend_from_slice(parts[3]);
                if parts[2] == b"F" { back.push(b'\n'); }
                rest = &rest[end + 1..];
            }
            prop_assert_eq!(back, chunks.concat());
        }
    }

    #[test]
    fn a_flood_is_cut_at_lines_and_counted() {
        let mut framer = Framer::new(Duration::ZERO);
        let mut out = Vec::new();
        let line = [b'x'; 1024];
        let mut flood = line.to_vec();
        flood.push(b'\n');
        for _ in 0..10_000 {
            framer.take(StdStream::Stdout, &flood, Timestamp::UNIX_EPOCH, Duration::ZERO, usize::MAX, &mut out);
        }
        let logged = texts(&out).len() as u64;
        assert_eq!(logged, BURST_BYTES / 1025);
        out.clear();
        framer.take(StdStream::Stdout, b"later\n", Timestamp::UNIX_EPOCH, Duration::from_secs(2), usize::MAX, &mut out);
        let after = texts(&out);
        assert!(after[0].1.starts_with(format!("[coracle] {} lines", 10_000 - logged).as_bytes()), "{after:?}");
        assert_eq!(after[1], ("stdout F".to_owned(), b"later".to_vec()));
    }

    #[test]
    fn files_are_set_aside_and_the_oldest_goes() {
        let root = tempfile::tempdir().unwrap();
        let (env, clock) = Env::seeded(1, Timestamp::UNIX_EPOCH);
        let writer = Writer::start(env, Budget::of_disk(0), root.path()).unwrap();
        let log = writer.open(root.path().join("c/0.log")).unwrap();
        let line = [&[b'y'; 65_535][..], b"\n"].concat();
        for _ in 0..(60 << 20) / line.len() {
            clock.advance(Duration::from_secs(1));
            log.write(StdStream::Stdout, &line);
            log.flush();
        }
        log.close();
        let sizes: Vec<u64> =
            (0..6).map(|i| std::fs::metadata(rotated_path(log.path(), i)).map_or(0, |m| m.len())).collect();
        assert!(sizes[..5].iter().all(|size| *size > 0 && *size <= FILE_BYTES_MAX), "{sizes:?}");
        assert_eq!(sizes[5], 0);
        assert!(log.progress().borrow().closed);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn lost_log_lines_are_reported_after_the_disk_recovers() {
        let root = tempfile::tempdir().unwrap();
        let writer = Writer::start(Env::real(), Budget::of_disk(0), root.path()).unwrap();
        let log = writer.open(root.path().join("p/c/0.log")).unwrap();
        std::os::unix::fs::symlink("/dev/full", log.path()).unwrap();
        for text in [b"one\ntwo\n", b"thr\nfou\n"] {
            log.write(StdStream::Stdout, text);
            log.flush();
        }
        std::fs::remove_file(log.path()).unwrap();
        log.flush();
        log.write(StdStream::Stdout, b"five\n");
        log.close();
        let notice = "[coracle] 4 lines were lost, as they could not be written: No space left on device (os error 28)";
        let wanted = [("stderr F".to_owned(), notice.into()), ("stdout F".to_owned(), b"five".to_vec())];
        assert_eq!(texts(&std::fs::read(log.path()).unwrap()), wanted);
        assert_eq!(log.dropped().0, 4);
    }

    #[test]
    fn all_logs_of_a_node_have_one_budget() {
        let root = tempfile::tempdir().unwrap();
        let (env, clock) = Env::seeded(1, Timestamp::UNIX_EPOCH);
        let budget = Budget { disk_bytes_max: 12 << 20, waiting_bytes_max: 2 << 20 };
        let writer = Writer::start(env, budget, root.path()).unwrap();
        let (loud, quiet) =
            (writer.open(root.path().join("a/c/0.log")).unwrap(), writer.open(root.path().join("b/c/0.log")).unwrap());
        quiet.write(StdStream::Stdout, b"once\n");
        quiet.flush();
        let line = [&[b'y'; 65_535][..], b"\n"].concat();
        for _ in 0..(40 << 20) / line.len() {
            clock.advance(Duration::from_secs(1));
            loud.write(StdStream::Stdout, &line);
            loud.flush();
        }
        assert!(writer.usage.totals().0 <= budget.disk_bytes_max, "{:?}", writer.usage.totals());
        let there = std::fs::read_to_string(quiet.path()).unwrap();
        assert!(there.ends_with("once\n"), "the flood costs nobody else: {there}");
        quiet.close();
        loud.close();
        assert_eq!(writer.usage.totals().1, 0, "nothing waits any more");
    }
}
