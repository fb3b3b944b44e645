//! Containers' logs: files of timestamped lines, written by one thread per node, so that no guest waits for a disk.
//!
//! A line in a file is `TIME STREAM TAG BYTES`, as container runtimes write it (CRI): tag `F` ends a line, `P` leaves it
//! open. The bytes stay as the guest wrote them.

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
use budget::Kept;
use jiff::Timestamp;
use machinery_env::Env;
use tokio::sync::watch;

use runtime_api::disk::advice;
use runtime_api::{LogSink, StdStream};

/// Size at which a file is set aside, and how many there are with the current one (upstream's defaults).
pub const FILE_BYTES_MAX: u64 = 10 << 20;
/// See above.
pub const FILES_MAX: usize = 5;
/// Bytes per second that a container may log over time, and at once. More than a person or a collector reads, and less
/// than what would keep a disk busy: a flood of one container costs its node at most this.
pub const RATE_BYTES_PER_SECOND: u64 = 1 << 20;
/// See above.
pub const BURST_BYTES: u64 = 4 << 20;
/// What has to be earned again before lines are taken after some were dropped: a second's worth, so that a flood gives
/// whole stretches and one notice a second, not a line and a notice by turns.
const RESUME_BYTES: u64 = RATE_BYTES_PER_SECOND;
/// A longer line is written in pieces (containerd's size).
const PIECE_BYTES_MAX: usize = 16 << 10;
/// What may wait for the thread, per container: the burst and its framing.
const WAITING_BYTES_MAX: usize = 8 << 20;
/// How long lines gather before they are written: unseen by a reader, and well within what may wait. Waking the thread
/// for each line cost a sixth of a small request.
const GATHER: std::time::Duration = std::time::Duration::from_millis(5);
/// Containers that may wait for the thread.
const DIRTY_MAX: usize = 16 << 10;

/// Which lines were dropped since the last notice.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Dropped {
    lines: u64,
    bytes: u64,
}

/// Cuts what a guest writes into timestamped lines within the rate. Pure.
#[derive(Debug)]
struct Framer {
    /// Bytes that may be logged, at that time.
    budget: u64,
    budget_at: Duration,
    /// The beginning of a line of each stream.
    open: [Vec<u8>; 2],
    /// Everything is dropped until enough is earned again.
    shut: bool,
    /// The rest of the line is dropped, as its beginning was.
    dropping: [bool; 2],
    dropped: Dropped,
    /// All that was ever dropped.
    dropped_total: Dropped,
}

impl Framer {
    fn new(now: Duration) -> Self {
        Self {
            budget: BURST_BYTES,
            budget_at: now,
            open: [Vec::new(), Vec::new()],
            shut: false,
            dropping: [false; 2],
            dropped: Dropped::default(),
            dropped_total: Dropped::default(),
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

    fn take(&mut self, stream: StdStream, bytes: &[u8], at: Timestamp, now: Duration, room: usize, out: &mut Vec<u8>) {
        self.refill(now);
        let index = stream as usize;
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let ends = piece.last() == Some(&b'\n');
            let text = if ends { &piece[..piece.len() - 1] } else { piece };
            let size = piece.len() as u64;
            self.shut = if self.shut { self.budget < RESUME_BYTES } else { size > self.budget };
            if self.dropping[index] || self.shut || size > self.budget || out.len() + piece.len() > room {
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
            self.tell_dropped(at, out);
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

    fn tell_dropped(&mut self, at: Timestamp, out: &mut Vec<u8>) {
        let dropped = std::mem::take(&mut self.dropped);
        if dropped.bytes > 0 {
            let text = format!(
                "[coracle] {} lines ({} bytes) were dropped: a container may log {RATE_BYTES_PER_SECOND} bytes a second",
                dropped.lines, dropped.bytes
            );
            line(out, at, StdStream::Stderr, "F", text.as_bytes());
        }
    }

    /// The end: what is still open is a line without an end.
    fn finish(&mut self, at: Timestamp, out: &mut Vec<u8>) {
        for stream in [StdStream::Stdout, StdStream::Stderr] {
            let open = std::mem::take(&mut self.open[stream as usize]);
            if !open.is_empty() {
                line(out, at, stream, "P", &open);
            }
        }
        self.tell_dropped(at, out);
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

/// How far a log has come: readers wait for a change.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Files that were set aside so far.
    pub rotations: u64,
    /// Grows with every write.
    pub writes: u64,
    /// Nothing comes any more.
    pub closed: bool,
}

/// A log's progress, and who reads it: most logs are read by nobody, and a channel is large.
#[derive(Debug, Default)]
struct Told {
    now: Progress,
    readers: Option<watch::Sender<Progress>>,
}

#[derive(Debug)]
struct Pending {
    framer: Framer,
    lines: Vec<u8>,
    queued: bool,
}

/// The file that is being written.
#[derive(Debug, Default)]
struct Current {
    bytes: u64,
    /// What the disk didn't take since it last took something, and why.
    lost: Option<Lost>,
}

#[derive(Debug)]
struct Lost {
    lines: u64,
    why: String,
}

/// One run of one container.
#[derive(Debug)]
pub struct ContainerLog {
    path: PathBuf,
    env: Env,
    pending: Mutex<Pending>,
    /// Held while writing.
    current: Mutex<Current>,
    progress: Mutex<Told>,
    /// All bytes that were written.
    written: AtomicU64,
    kept: Arc<Kept>,
    writer: SyncSender<Arc<ContainerLog>>,
    this: std::sync::Weak<ContainerLog>,
}

impl ContainerLog {
    /// How far it has come.
    #[must_use]
    pub fn progress(&self) -> watch::Receiver<Progress> {
        let mut told = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        let now = told.now;
        told.readers.get_or_insert_with(|| watch::Sender::new(now)).subscribe()
    }

    fn tell(&self, change: impl FnOnce(&mut Progress)) {
        let mut told = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut told.now);
        if let Some(readers) = &told.readers {
            readers.send_replace(told.now);
        }
    }

    /// Where it lies.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Grows with everything that is written.
    #[must_use]
    pub fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Removes a file of this log while nothing is written to it; `current`: the one that is being written.
    fn cut(&self, current: bool, remove: impl FnOnce()) {
        let mut writing = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        remove();
        if current {
            writing.bytes = 0;
            drop(writing);
            self.tell(|progress| progress.rotations += 1);
        }
    }

    /// Lines and bytes that were dropped, for the rate or as the disk took no more.
    #[must_use]
    pub fn dropped(&self) -> (u64, u64) {
        let dropped = self.pending.lock().unwrap_or_else(PoisonError::into_inner).framer.dropped_total;
        (dropped.lines, dropped.bytes)
    }

    /// Ends the log: everything is in the file afterwards. Writes, so it may take as long as the disk does.
    pub fn close(&self) {
        {
            let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
            let at = self.env.now();
            let Pending { framer, lines, .. } = &mut *pending;
            let before = lines.len();
            framer.finish(at, lines);
            self.kept.waits(lines.len() - before);
        }
        self.flush();
        self.tell(|progress| progress.closed = true);
    }

    /// Writes what waits.
    pub fn flush(&self) {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let mut lines = {
            let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
            pending.queued = false;
            std::mem::take(&mut pending.lines)
        };
        self.kept.waits_no_more(lines.len());
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
            self.kept.rotated(&self.path);
            rotated = 1;
            current.bytes = 0;
        }
        match append(&self.path, &lines) {
            Ok(()) => {
                current.lost = None;
                current.bytes += lines.len() as u64;
                self.kept.wrote(&self.path, lines.len() as u64);
                self.written.fetch_add(lines.len() as u64, Ordering::Relaxed);
            }
            Err(error) => self.lose(&mut current, &lines[lines.len() - own..], &error),
        }
        drop(current);
        self.kept.trim();
        self.tell(|progress| {
            progress.rotations += rotated;
            progress.writes += 1;
        });
    }

    /// These lines are gone: the next ones that the disk takes come behind a notice of it.
    fn lose(&self, current: &mut Current, own: &[u8], error: &io::Error) {
        let lines = own.iter().filter(|byte| **byte == b'\n').count() as u64;
        if current.lost.is_none() {
            tracing::warn!(path = %self.path.display(), %error, "a container's log cannot be written{}", advice(error));
        }
        let lost = current.lost.get_or_insert_with(|| Lost { lines: 0, why: error.to_string() });
        lost.lines += lines;
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        pending.framer.dropped_total.lines += lines;
        pending.framer.dropped_total.bytes += own.len() as u64;
    }
}

impl Lost {
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
            let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
            let Pending { framer, lines, queued } = &mut *pending;
            let (before, room) = (lines.len(), self.kept.room(WAITING_BYTES_MAX));
            framer.take(stream, bytes, self.env.now(), self.env.elapsed(), room, lines);
            self.kept.waits(lines.len() - before);
            !lines.is_empty() && !std::mem::replace(queued, true)
        };
        if wake
            && let Some(this) = self.this.upgrade()
            && self.writer.try_send(this).is_err()
        {
            // The thread has its hands full; the next write tries again.
            self.pending.lock().unwrap_or_else(PoisonError::into_inner).queued = false;
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
        // Where the disk took a part, the next line would begin within this one.
        if let Err(error) = file.set_len(before) {
            tracing::warn!(path = %path.display(), %error, "a line of a container's log stays half written");
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

/// The `index`-th file before the current one (0 is the current one).
#[must_use]
pub fn older(path: &Path, index: usize) -> PathBuf {
    if index == 0 {
        return path.to_owned();
    }
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{index}"));
    name.into()
}

fn rotate(path: &Path) {
    let _ = std::fs::remove_file(older(path, FILES_MAX - 1));
    for index in (0..FILES_MAX - 1).rev() {
        let _ = std::fs::rename(older(path, index), older(path, index + 1));
    }
}

/// The thread that writes a node's logs.
#[derive(Debug, Clone)]
pub struct Writer {
    dirty: SyncSender<Arc<ContainerLog>>,
    kept: Arc<Kept>,
    env: Env,
}

impl Writer {
    /// Starts the thread; it ends when the last log and writer is gone. `dir`: where the node's logs lie.
    pub fn start(env: Env, budget: Budget, dir: &Path) -> io::Result<Self> {
        let (dirty, waiting): (_, Receiver<Arc<ContainerLog>>) = sync_channel(DIRTY_MAX);
        std::thread::Builder::new().name("coracle-logs".into()).spawn(move || {
            while let Ok(log) = waiting.recv() {
                // Lines gather meanwhile: under load one wake-up, one open and one write serve many requests.
                std::thread::sleep(GATHER);
                log.flush();
                while let Ok(log) = waiting.try_recv() {
                    log.flush();
                }
            }
        })?;
        Ok(Self { dirty, kept: Arc::new(Kept::new(budget, dir)), env })
    }

    /// Begins a log at `path` (its folder is made), after what is there already.
    pub fn open(&self, path: PathBuf) -> io::Result<Arc<ContainerLog>> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let size = std::fs::metadata(&path).map_or(0, |metadata| metadata.len());
        let log = Arc::new_cyclic(|this| ContainerLog {
            path,
            written: AtomicU64::new(0),
            kept: self.kept.clone(),
            pending: Mutex::new(Pending { framer: Framer::new(self.env.elapsed()), lines: Vec::new(), queued: false }),
            env: self.env.clone(),
            current: Mutex::new(Current { bytes: size, lost: None }),
            progress: Mutex::default(),
            writer: self.dirty.clone(),
            this: this.clone(),
        });
        self.kept.opened(log.path(), Arc::downgrade(&log));
        Ok(log)
    }

    /// Removes a log's files. Blocks on the disk.
    pub fn remove(&self, path: &Path) {
        for index in 0..FILES_MAX {
            let _ = std::fs::remove_file(older(path, index));
        }
        self.kept.forget(path);
    }

    /// The logs below that folder were removed.
    pub fn forget(&self, dir: &Path) {
        self.kept.forget(dir);
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
        let kept = texts(&out).len() as u64;
        assert_eq!(kept, BURST_BYTES / 1025);
        out.clear();
        framer.take(StdStream::Stdout, b"later\n", Timestamp::UNIX_EPOCH, Duration::from_secs(2), usize::MAX, &mut out);
        let after = texts(&out);
        assert!(after[0].1.starts_with(format!("[coracle] {} lines", 10_000 - kept).as_bytes()), "{after:?}");
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
        let sizes: Vec<u64> = (0..6).map(|i| std::fs::metadata(older(log.path(), i)).map_or(0, |m| m.len())).collect();
        assert!(sizes[..5].iter().all(|size| *size > 0 && *size <= FILE_BYTES_MAX), "{sizes:?}");
        assert_eq!(sizes[5], 0);
        assert!(log.progress().borrow().closed);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn what_the_disk_does_not_take_is_told_as_soon_as_it_takes_something() {
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
        assert!(writer.kept.held().0 <= budget.disk_bytes_max, "{:?}", writer.kept.held());
        let there = std::fs::read_to_string(quiet.path()).unwrap();
        assert!(there.ends_with("once\n"), "the flood costs nobody else: {there}");
        quiet.close();
        loud.close();
        assert_eq!(writer.kept.held().1, 0, "nothing waits any more");
    }
}
