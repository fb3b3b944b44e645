//! Streams of files. They hold no bytes but those of one write that waits for its turn: reading and writing happen where
//! the guest asks, within its container's share of threads.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use bytes::Bytes;
use wasmtime_wasi::p2::{InputStream, OutputStream, Pollable, StreamError, StreamResult};

use super::disk::Disk;
use super::disk_threads::Late;
use runtime_api::ledger::Held;

/// Bytes that one call reads or writes at most.
pub(crate) const FILE_CHUNK_BYTES: usize = 64 << 10;

/// A file, and whose share work on it is done in; none for the node's own small files.
pub(crate) struct Place {
    pub(crate) file: Arc<File>,
    pub(crate) disk: Option<Arc<Disk>>,
    pub(crate) _held: Option<Arc<Held>>,
}

impl Place {
    /// Does it now; none where others of the container have to end first.
    fn now<T>(&self, work: impl FnOnce(&File) -> T) -> Option<T> {
        match &self.disk {
            Some(disk) => disk.try_work(|| work(&self.file)),
            None => Some(work(&self.file)),
        }
    }

    fn write(&self, file: &File, position: Option<u64>, bytes: &[u8]) -> io::Result<()> {
        let _growth = match &self.disk {
            Some(disk) => disk.growth(&self.file, bytes.len(), position)?,
            None => None,
        };
        write(file, position, bytes)
    }

    async fn when_free<T>(&self, work: impl FnOnce(&File) -> io::Result<T>) -> io::Result<T> {
        match &self.disk {
            Some(disk) => disk.work(async { work(&self.file) }).await.unwrap_or_else(|Late| Err(late())),
            None => work(&self.file),
        }
    }
}

/// What the guest learns where its container's file work has stalled.
fn late() -> io::Error {
    io::ErrorKind::TimedOut.into()
}

/// Reads a file from a place on.
pub(crate) struct FileInput {
    place: Place,
    position: u64,
    /// It could not be read for too long, which the next read says.
    late: bool,
}

impl FileInput {
    pub(crate) fn new(place: Place, position: u64) -> Self {
        Self { place, position, late: false }
    }

    fn take(&mut self, read: io::Result<Vec<u8>>) -> StreamResult<Bytes> {
        match read {
            Ok(bytes) if bytes.is_empty() => Err(StreamError::Closed),
            Ok(bytes) => {
                self.position += bytes.len() as u64;
                Ok(bytes.into())
            }
            Err(error) => Err(StreamError::LastOperationFailed(error.into())),
        }
    }
}

fn read(file: &File, position: u64, length: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; length.min(FILE_CHUNK_BYTES)];
    loop {
        match file.read_at(&mut bytes, position) {
            Ok(length) => {
                bytes.truncate(length);
                return Ok(bytes);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[async_trait::async_trait]
impl InputStream for FileInput {
    fn read(&mut self, size: usize) -> StreamResult<Bytes> {
        if size == 0 {
            return Ok(Bytes::new());
        }
        let position = self.position;
        let late = std::mem::take(&mut self.late);
        match self.place.now(|file| read(file, position, size)) {
            Some(done) => self.take(done),
            None if late => self.take(Err(self::late())),
            None => Ok(Bytes::new()),
        }
    }

    async fn blocking_read(&mut self, size: usize) -> StreamResult<Bytes> {
        if size == 0 {
            return Ok(Bytes::new());
        }
        let position = self.position;
        let done = self.place.when_free(|file| read(file, position, size)).await;
        self.take(done)
    }
}

#[async_trait::async_trait]
impl Pollable for FileInput {
    async fn ready(&mut self) {
        if let Some(disk) = &self.place.disk {
            self.late = disk.ready().await.is_err();
        }
    }
}

enum State {
    Ready,
    /// Written when the container's share allows it.
    Waiting(Bytes),
    Failed(io::Error),
    Closed,
}

/// Writes a file from a place on, or at its end.
pub(crate) struct FileOutput {
    place: Place,
    /// None: at the end.
    position: Option<u64>,
    state: State,
}

impl FileOutput {
    pub(crate) fn new(place: Place, position: Option<u64>) -> Self {
        Self { place, position, state: State::Ready }
    }

    fn done(&mut self, bytes: usize, wrote: io::Result<()>) {
        if let Some(disk) = &self.place.disk {
            disk.changed();
        }
        self.state = match wrote {
            Ok(()) => {
                self.position = self.position.map(|position| position + bytes as u64);
                State::Ready
            }
            Err(error) => State::Failed(error),
        };
    }

    /// What the last write came to: an error is told once, and nothing is written after it.
    fn settled(&mut self) -> StreamResult<()> {
        match std::mem::replace(&mut self.state, State::Closed) {
            State::Failed(error) => Err(StreamError::LastOperationFailed(error.into())),
            State::Closed => Err(StreamError::Closed),
            state => {
                self.state = state;
                Ok(())
            }
        }
    }

    /// Writes what waits, where it can be done at once.
    fn try_waiting(&mut self) {
        if let State::Waiting(bytes) = &self.state {
            let (bytes, position) = (bytes.clone(), self.position);
            if let Some(wrote) = self.place.now(|file| self.place.write(file, position, &bytes)) {
                self.done(bytes.len(), wrote);
            }
        }
    }

    async fn finish_waiting(&mut self) {
        if let State::Waiting(bytes) = &self.state {
            let (bytes, position) = (bytes.clone(), self.position);
            let wrote = self.place.when_free(|file| self.place.write(file, position, &bytes)).await;
            self.done(bytes.len(), wrote);
        }
    }
}

fn write(file: &File, position: Option<u64>, bytes: &[u8]) -> io::Result<()> {
    match position {
        Some(position) => file.write_all_at(bytes, position),
        None => append(file, bytes),
    }
}

/// At the end, wherever others have put that meanwhile. The handle's own offset means nothing to anybody.
#[cfg(target_os = "linux")]
fn append(file: &File, mut bytes: &[u8]) -> io::Result<()> {
    use rustix::io::{ReadWriteFlags, pwritev2};
    while !bytes.is_empty() {
        // An offset of all ones is ignored with APPEND.
        let written = match pwritev2(file, &[io::IoSlice::new(bytes)], u64::MAX, ReadWriteFlags::APPEND) {
            Err(rustix::io::Errno::INTR) => continue,
            written => written?,
        };
        bytes = &bytes[written..];
    }
    Ok(())
}

/// At what is the end now: where the system cannot append at once, another writer may come between.
#[cfg(not(target_os = "linux"))]
fn append(file: &File, bytes: &[u8]) -> io::Result<()> {
    file.write_all_at(bytes, file.metadata()?.len())
}

#[async_trait::async_trait]
impl OutputStream for FileOutput {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        match self.state {
            State::Ready => {}
            State::Closed => return Err(StreamError::Closed),
            State::Waiting(_) | State::Failed(_) => {
                let message = "write not permitted: check_write not called first";
                return Err(StreamError::Trap(wasmtime::Error::msg(message)));
            }
        }
        if bytes.len() > FILE_CHUNK_BYTES {
            let message = "write not permitted: more than check_write allows";
            return Err(StreamError::Trap(wasmtime::Error::msg(message)));
        }
        self.state = State::Waiting(bytes);
        self.try_waiting();
        Ok(())
    }

    async fn blocking_write_and_flush(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.finish_waiting().await;
        self.settled()?;
        self.state = State::Waiting(bytes);
        self.finish_waiting().await;
        self.settled()
    }

    fn flush(&mut self) -> StreamResult<()> {
        self.try_waiting();
        self.settled()
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        self.try_waiting();
        self.settled()?;
        Ok(if matches!(self.state, State::Ready) { FILE_CHUNK_BYTES } else { 0 })
    }

    async fn cancel(&mut self) {
        // What was taken is written, as a file's bytes are after a close.
        self.finish_waiting().await;
        self.state = State::Closed;
    }
}

#[async_trait::async_trait]
impl Pollable for FileOutput {
    async fn ready(&mut self) {
        self.finish_waiting().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(file: File) -> Place {
        Place { file: Arc::new(file), disk: None, _held: None }
    }

    #[tokio::test]
    async fn bytes_go_where_they_belong() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("f");
        let open = || File::options().read(true).write(true).create(true).truncate(false).open(&path).unwrap();
        let mut at = FileOutput::new(place(open()), Some(2));
        at.blocking_write_and_flush(Bytes::from_static(b"cd")).await.unwrap();
        assert_eq!(at.check_write().unwrap(), FILE_CHUNK_BYTES);
        at.write(Bytes::from_static(b"ef")).unwrap();
        at.flush().unwrap();
        let mut end = FileOutput::new(place(open()), None);
        for piece in [b"gh", b"ij"] {
            end.blocking_write_and_flush(Bytes::from_static(piece)).await.unwrap();
        }
        assert_eq!(std::fs::read(&path).unwrap(), b"\0\0cdefghij");

        let mut input = FileInput::new(place(open()), 4);
        assert_eq!(input.read(0).unwrap(), Bytes::new());
        assert_eq!(input.read(2).unwrap(), Bytes::from_static(b"ef"));
        assert_eq!(input.blocking_read(100).await.unwrap(), Bytes::from_static(b"ghij"));
        assert!(matches!(input.read(1), Err(StreamError::Closed)));
    }

    #[tokio::test]
    async fn a_failure_is_told_once_and_closes() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("f");
        std::fs::write(&path, "").unwrap();
        let mut output = FileOutput::new(place(File::open(&path).unwrap()), Some(0));
        output.write(Bytes::from_static(b"x")).unwrap();
        assert!(matches!(output.check_write(), Err(StreamError::LastOperationFailed(_))));
        assert!(matches!(output.check_write(), Err(StreamError::Closed)));
        assert!(matches!(output.write(Bytes::new()), Err(StreamError::Closed)));
    }
}
