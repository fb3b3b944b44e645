//! The commit log's files: segments named by their first frame's number, appended to and synced.
//!
//! A segment is filled with zeros ahead of its frames: a sync that doesn't change the file's size writes no metadata,
//! and so doesn't wait for the file system's journal. The reserve is removed when the segment is closed; recovery
//! removes what a crash leaves of it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::super::plan::Write;
use super::folder::sync_folder;
use super::{Revision, frame};

/// A closed segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) path: PathBuf,
    pub(super) last: Revision,
    pub(super) bytes: u64,
}

/// Closed segments, oldest first: the writer adds them, the checkpoint thread deletes them.
pub(super) type Segments = Arc<Mutex<Vec<Segment>>>;

/// The segment that is written. Its file's position is the end of the frames.
struct Open {
    path: PathBuf,
    file: File,
    /// The end of the frames.
    bytes: u64,
    /// The size of the file: zeros follow the frames.
    reserved: u64,
}

impl Open {
    fn new(path: PathBuf, mut file: File, bytes: u64) -> io::Result<Self> {
        file.seek(SeekFrom::Start(bytes))?;
        Ok(Self { path, file, bytes, reserved: bytes })
    }

    /// Writes zeros where the next frame doesn't fit into the reserve. They are synced with that frame.
    fn reserve(&mut self, frame_bytes: usize, reserve_bytes: usize) -> io::Result<()> {
        let end = self.bytes + frame_bytes as u64;
        if end <= self.reserved {
            return Ok(());
        }
        self.file.seek(SeekFrom::Start(self.reserved))?;
        let zeros = vec![0; reserve_bytes.max(1)];
        while self.reserved < end {
            self.file.write_all(&zeros)?;
            self.reserved += zeros.len() as u64;
        }
        self.file.seek(SeekFrom::Start(self.bytes)).map(|_| ())
    }

    /// Removes everything after the frames.
    fn cut(&mut self) -> io::Result<()> {
        self.file.set_len(self.bytes)?;
        self.reserved = self.bytes;
        self.file.seek(SeekFrom::Start(self.bytes)).map(|_| ())
    }
}

pub(super) struct Log {
    folder: PathBuf,
    open: Option<Open>,
    closed: Segments,
    next_number: u64,
    last: Revision,
    segment_bytes_max: u64,
    reserve_bytes: usize,
}

/// The failure of an append.
#[derive(Debug)]
pub(super) enum AppendError {
    /// Nothing of the frame is in the log (the disk is full); it can be retried. Contains the frame's size in bytes.
    NotWritten(io::Error, usize),
    /// The content of the disk is unknown.
    Sync(io::Error),
}

impl AppendError {
    pub(super) fn into_error(self) -> io::Error {
        match self {
            Self::NotWritten(error, _) | Self::Sync(error) => error,
        }
    }
}

pub(super) fn segment_path(folder: &Path, first_number: u64) -> PathBuf {
    folder.join(format!("{first_number:020}.log"))
}

impl Log {
    /// Continues a log after recovery.
    pub(super) fn new(
        folder: &Path,
        closed: Vec<Segment>,
        open: Option<(PathBuf, u64)>,
        next_number: u64,
        last: Revision,
    ) -> io::Result<Self> {
        let open = match open {
            None => None,
            Some((path, bytes)) => {
                let file = OpenOptions::new().write(true).open(&path)?;
                Some(Open::new(path, file, bytes)?)
            }
        };
        let closed = Arc::new(Mutex::new(closed));
        Ok(Self {
            folder: folder.to_owned(),
            open,
            closed,
            next_number,
            last,
            segment_bytes_max: u64::MAX,
            reserve_bytes: 1,
        })
    }

    pub(super) fn with_sizes(mut self, segment_bytes_max: u64, reserve_bytes: usize) -> Self {
        (self.segment_bytes_max, self.reserve_bytes) = (segment_bytes_max, reserve_bytes);
        self
    }

    pub(super) fn segments(&self) -> Segments {
        self.closed.clone()
    }

    /// The bytes of frames in the segment that is written.
    pub(super) fn open_bytes(&self) -> u64 {
        self.open.as_ref().map_or(0, |open| open.bytes)
    }

    /// Appends one frame and syncs it.
    pub(super) fn append(&mut self, writes: &[Write]) -> Result<(), AppendError> {
        let bytes = frame::encode(self.next_number, writes);
        let not_written = |error| AppendError::NotWritten(error, bytes.len());
        if self.open.as_ref().is_some_and(|open| open.bytes >= self.segment_bytes_max)
            && let Some(mut full) = self.open.take()
        {
            // A closed segment ends with its last frame.
            full.cut().and_then(|()| full.file.sync_all()).map_err(AppendError::Sync)?;
            let segment = Segment { path: full.path, last: self.last, bytes: full.bytes };
            self.closed.lock().unwrap_or_else(PoisonError::into_inner).push(segment);
        }
        let open = match &mut self.open {
            Some(open) => open,
            None => {
                let path = segment_path(&self.folder, self.next_number);
                let file = File::create(&path).map_err(not_written)?;
                sync_folder(&self.folder).map_err(AppendError::Sync)?;
                self.open.insert(Open::new(path, file, 0).map_err(AppendError::Sync)?)
            }
        };
        // A disk without room for the reserve may have room for the frame.
        if open.reserve(bytes.len(), self.reserve_bytes).is_err() {
            open.cut().map_err(AppendError::Sync)?;
        }
        if let Err(error) = open.file.write_all(&bytes) {
            // The file may contain a part of the frame: it must be removed, or the next frame would follow a bad one.
            return match open.cut().and_then(|()| open.file.sync_all()) {
                Ok(()) => Err(not_written(error)),
                Err(error) => Err(AppendError::Sync(error)),
            };
        }
        open.file.sync_data().map_err(AppendError::Sync)?;
        open.bytes += bytes.len() as u64;
        open.reserved = open.reserved.max(open.bytes);
        self.next_number += 1;
        self.last = writes.last().map_or(self.last, |write| write.revision);
        Ok(())
    }
}

impl Drop for Log {
    /// A folder at rest has no reserve.
    fn drop(&mut self) {
        if let Some(open) = self.open.as_mut().filter(|open| open.reserved > open.bytes)
            && let Err(error) = open.cut()
        {
            tracing::debug!(%error, path = %open.path.display(), "the log's reserve remains; the next start removes it");
        }
    }
}

/// Deletes closed segments that are entirely below `revision`, except the newest closed one: so a log that was written
/// once is never empty, and a missing one is detected.
pub(super) fn delete_below(segments: &Segments, revision: Revision) -> io::Result<()> {
    loop {
        let oldest = {
            let segments = segments.lock().unwrap_or_else(PoisonError::into_inner);
            match segments.as_slice() {
                [oldest, _, ..] if oldest.last <= revision => oldest.path.clone(),
                _ => return Ok(()),
            }
        };
        fs::remove_file(&oldest)?;
        segments.lock().unwrap_or_else(PoisonError::into_inner).remove(0);
    }
}
