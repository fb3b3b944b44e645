//! Recovery at a start: loads the newest valid base (sled or a snapshot), then replays the log. A torn tail is
//! truncated; any other inconsistency fails the start with the file's name. What a start shows is durable: the last frame
//! is written again.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use super::super::plan::{StoreState, Write};
use super::checkpoint::{Sled, sled_path};
use super::folder::{damaged, sync_folder, unusable};
use super::log::{Log, Segment};
use super::snapshot::{self, Rows};
use super::{ReadFirstFormat, Revision, StoreError, frame};

pub(super) struct Recovered {
    pub(super) state: StoreState,
    pub(super) log: Log,
    pub(super) sled: Option<Sled>,
}

/// The valid frames of the log, as read and applied.
struct ReadLog {
    segments: Vec<Segment>,
    /// The number of the last frame; 0 for none.
    number: u64,
    /// The last frame's last revision.
    last: Revision,
    /// The last frame's position in the last segment.
    last_at: usize,
    /// The file and the position of the first invalid frame; files after it have no valid frames either.
    torn: Option<Torn>,
}

struct Torn {
    /// Index of the file.
    index: usize,
    at: usize,
    /// Whether the rest of the file is zeros: the reserve of a segment that was being written.
    blank: bool,
}

pub(super) fn recover(path: &Path, plain: &ReadFirstFormat) -> Result<Recovered, StoreError> {
    let (snapshot, bad_snapshot) = newest_snapshot(path, plain)?;
    let sled_at = sled_path(path);
    let loaded = if sled_at.exists() { Sled::load(&sled_at, plain) } else { Err("it is not there".into()) };
    let snapshot_revision = snapshot.as_ref().map_or(0, |(revision, _)| *revision);
    let (sled, base, rows, why) = match loaded {
        Ok((sled, revision, rows)) if revision >= snapshot_revision => (Some(sled), revision, rows, None),
        other => {
            let why = other.err().unwrap_or_else(|| "it is older than the snapshot".into());
            let (base, rows) = snapshot.unwrap_or_default();
            (None, base, rows, Some(why))
        }
    };
    let mut state = StoreState::filled(base, &rows);
    let log = replay(path, &mut state, base, bad_snapshot.as_deref(), plain)?;
    let sled = match (sled, why) {
        (None, Some(why)) => {
            // Nothing to report at a first start.
            if sled_at.exists() || base > 0 {
                tracing::warn!(why, "sled is set aside and rebuilt from the log");
            }
            Sled::rebuild(&sled_at, base, &rows)
                .inspect_err(|why| tracing::warn!(why, "sled could not be rebuilt"))
                .ok()
        }
        (sled, _) => sled,
    };
    Ok(Recovered { state, log, sled })
}

/// The state before the replay.
type Base = (Revision, Rows);

/// The newest valid snapshot, and the path of a newer damaged one.
fn newest_snapshot(path: &Path, plain: &ReadFirstFormat) -> Result<(Option<Base>, Option<PathBuf>), StoreError> {
    let mut bad = None;
    for (file, _) in snapshot::list(path).map_err(|error| unusable(path, &error))? {
        match snapshot::read(&file, plain).map_err(|error| unusable(&file, &error))? {
            Some(read) => return Ok((Some(read), bad)),
            None => bad = bad.or(Some(file)),
        }
    }
    Ok((None, bad))
}

fn segment_files(folder: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(|error| unusable(folder, &error))? {
        let path = entry.map_err(|error| unusable(folder, &error))?.path();
        if path.extension().is_some_and(|extension| extension == "log") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// Replays the frames after `base`, truncates a torn tail, and returns the log for appending.
fn replay(
    path: &Path,
    state: &mut StoreState,
    base: Revision,
    bad_snapshot: Option<&Path>,
    plain: &ReadFirstFormat,
) -> Result<Log, StoreError> {
    let folder = path.join("log");
    let files = segment_files(&folder)?;
    let mut read = read_log(&folder, &files, state, base, bad_snapshot, plain)?;
    if let Some(torn) = &read.torn {
        cut_torn_tail(&folder, &files[torn.index..], torn)?;
    }
    if let Some(segment) = read.segments.last() {
        write_again(&folder, &segment.path, read.last_at).map_err(|error| unusable(&segment.path, &error))?;
    }
    let open = read.segments.pop().map(|segment| (segment.path, segment.bytes));
    Log::new(&folder, read.segments, open, read.number + 1, read.last).map_err(|error| unusable(&folder, &error))
}

/// The newest state, without sled and without a change of any file: the process that writes them may be running. What it
/// deletes or writes during the read can look like damage, which a repetition doesn't show.
pub(super) fn read_only(path: &Path, plain: &ReadFirstFormat) -> Result<StoreState, StoreError> {
    let (snapshot, bad_snapshot) = newest_snapshot(path, plain)?;
    let (base, rows) = snapshot.unwrap_or_default();
    let mut state = StoreState::filled(base, &rows);
    let folder = path.join("log");
    let files = segment_files(&folder)?;
    read_log(&folder, &files, &mut state, base, bad_snapshot.as_deref(), plain)?;
    Ok(state)
}

/// Applies the frames after `base` to the state, up to the torn tail.
fn read_log(
    folder: &Path,
    files: &[PathBuf],
    state: &mut StoreState,
    base: Revision,
    bad_snapshot: Option<&Path>,
    plain: &ReadFirstFormat,
) -> Result<ReadLog, StoreError> {
    let mut log = ReadLog { segments: Vec::new(), number: 0, last: 0, last_at: 0, torn: None };
    // One buffer for all files: freed ones of this size would fragment the heap between the retained values.
    let mut bytes = Vec::new();
    let mut is_first = true;
    for (index, file) in files.iter().enumerate() {
        bytes.clear();
        File::open(file).and_then(|mut file| file.read_to_end(&mut bytes)).map_err(|error| unusable(file, &error))?;
        let mut at = 0;
        while at < bytes.len() {
            let Some((header, payload)) = frame::check(&bytes[at..]) else {
                let expected = if is_first { 0 } else { log.number + 1 };
                refuse_valid_frames(&files[index..], &bytes, at, expected)?;
                let blank = bytes[at..].iter().all(|byte| *byte == 0);
                log.torn = Some(Torn { index, at, blank });
                break;
            };
            if is_first && header.first > base + 1 {
                let reason = format!("the log begins at revision {} and the state at {base}", header.first);
                return Err(damaged(bad_snapshot.unwrap_or(file), &reason));
            }
            let follows = header.number == log.number + 1 && header.first == log.last + 1;
            if !(is_first || follows || at == 0 && is_gap_below(base, &log, &header)) {
                let reason = format!("frame {} follows frame {}", header.number, log.number);
                return Err(damaged(file, &reason));
            }
            let writes = frame::writes(&header, payload, plain)
                .ok_or_else(|| damaged(file, &format!("frame {} holds what no coracle writes", header.number)))?;
            for write in writes.into_iter().filter(|write: &Write| write.revision > base) {
                state.apply_one(write);
            }
            (log.number, log.last, log.last_at, is_first) = (header.number, header.last, at, false);
            at += header.frame_bytes();
        }
        if at > 0 {
            log.segments.push(Segment { path: file.clone(), last: log.last, bytes: at as u64 });
        }
        if log.torn.is_some() {
            break;
        }
    }
    if log.last < base {
        let reason = format!("it ends at revision {}, but the state is at {base}", log.last);
        return Err(damaged(files.last().map_or(folder, PathBuf::as_path), &reason));
    }
    Ok(log)
}

/// Whether only frames at or below `base` are missing between the last frame and a segment that begins with `header`. A
/// power loss can undo the deletion of one segment and not that of a newer one.
fn is_gap_below(base: Revision, log: &ReadLog, header: &frame::Header) -> bool {
    header.number > log.number && header.first > log.last && header.first <= base + 1
}

/// Writes the last frame, which begins at `at`, again and syncs it. Its sync may have failed or never have begun before
/// the process ended. Without a write, a sync after a failed one does nothing: the system holds the pages for clean.
fn write_again(folder: &Path, path: &Path, at: usize) -> io::Result<()> {
    let mut file = OpenOptions::new().read(true).write(true).open(path)?;
    let mut frame = Vec::new();
    file.seek(SeekFrom::Start(at as u64))?;
    file.read_to_end(&mut frame)?;
    file.seek(SeekFrom::Start(at as u64))?;
    file.write_all(&frame)?;
    file.sync_all()?;
    sync_folder(folder)
}

/// A bad frame at `at` of the first of `files` is the torn tail if no valid frame of its number or a higher one follows;
/// otherwise it is damage.
fn refuse_valid_frames(files: &[PathBuf], bytes: &[u8], at: usize, expected: u64) -> Result<(), StoreError> {
    let Some((file, later)) = files.split_first() else { return Ok(()) };
    let mut whole = frame::any_from(&bytes[at..], expected);
    for later in later {
        whole = whole || frame::any_from(&fs::read(later).map_err(|error| unusable(later, &error))?, expected);
    }
    if whole {
        return Err(damaged(file, &format!("the frame at byte {at} is bad and valid ones follow")));
    }
    Ok(())
}

/// Removes the torn tail, which begins in the first of `files`, and everything after it.
fn cut_torn_tail(folder: &Path, files: &[PathBuf], torn: &Torn) -> Result<(), StoreError> {
    let Some((file, later)) = files.split_first() else { return Ok(()) };
    let at = torn.at;
    if !torn.blank {
        tracing::warn!(file = %file.display(), at, "cutting off a write that was never acknowledged");
    }
    for later in later {
        fs::remove_file(later).map_err(|error| unusable(later, &error))?;
    }
    let cut = || {
        if at == 0 {
            fs::remove_file(file)?;
        } else {
            let file = OpenOptions::new().write(true).open(file)?;
            file.set_len(at as u64)?;
            file.sync_all()?;
        }
        sync_folder(folder)
    };
    cut().map_err(|error| unusable(file, &error))
}
