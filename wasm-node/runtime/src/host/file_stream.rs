//! Streams of files. They buffer nothing but one write that waits for a thread: reads and writes run in the guest's
//! call, within its container's share of threads.

use std::fs::File;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use wasmtime_wasi::p2::{InputStream, OutputStream, Pollable, StreamError, StreamResult};

use super::disk::Disk;
use super::positioned;
use runtime_api::disk::DiskBusy;
use runtime_api::ledger::ResourceGuard;

/// Maximum bytes that one call reads or writes.
pub(crate) const FILE_CHUNK_BYTES: usize = 64 << 10;

/// A file with the disk state of its container; `None` for the node's own small files.
pub(crate) struct FileAccess {
    pub(crate) file: Arc<File>,
    pub(crate) disk: Option<Arc<Disk>>,
    pub(crate) _held: Option<Arc<ResourceGuard>>,
}

impl FileAccess {
    /// Runs the work; `None` if no thread of the container is free.
    pub(super) fn now<T>(&self, work: impl FnOnce(&File) -> T) -> Option<T> {
        match &self.disk {
            Some(disk) => disk.try_work(|| work(&self.file)),
            None => Some(work(&self.file)),
        }
    }

    pub(super) fn write(&self, file: &File, position: Option<u64>, bytes: &[u8]) -> io::Result<()> {
        let _growth = match &self.disk {
            Some(disk) => disk.growth(&self.file, bytes.len(), position)?,
            None => None,
        };
        write(file, position, bytes)
    }

    async fn when_free<T>(&self, work: impl FnOnce(&File) -> io::Result<T>) -> io::Result<T> {
        match &self.disk {
            Some(disk) => disk.work(async { work(&self.file) }).await.unwrap_or_else(|DiskBusy| Err(late())),
            None => work(&self.file),
        }
    }
}

/// The guest's error when its container's file work has stalled.
fn late() -> io::Error {
    io::ErrorKind::TimedOut.into()
}

/// Reads a file from an offset.
pub(crate) struct FileInput {
    place: FileAccess,
    position: u64,
    /// A read timed out; the next read returns the error.
    late: bool,
}

impl FileInput {
    pub(crate) fn new(place: FileAccess, position: u64) -> Self {
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

/// Reads at most [`FILE_CHUNK_BYTES`] at a position; empty at the end of the file.
pub(super) fn read(file: &File, position: u64, length: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; length.min(FILE_CHUNK_BYTES)];
    loop {
        match positioned::read_at(file, &mut bytes, position) {
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

enum WriteState {
    Ready,
    /// Written when the container's share allows it.
    Waiting(Bytes),
    Failed(io::Error),
    Closed,
}

/// Writes a file from an offset, or at its end.
pub(crate) struct FileOutput {
    place: FileAccess,
    /// `None`: at the end.
    position: Option<u64>,
    state: WriteState,
}

impl FileOutput {
    pub(crate) fn new(place: FileAccess, position: Option<u64>) -> Self {
        Self { place, position, state: WriteState::Ready }
    }

    fn done(&mut self, bytes: usize, wrote: io::Result<()>) {
        if let Some(disk) = &self.place.disk {
            disk.changed();
        }
        self.state = match wrote {
            Ok(()) => {
                self.position = self.position.map(|position| position + bytes as u64);
                WriteState::Ready
            }
            Err(error) => WriteState::Failed(error),
        };
    }

    /// The result of the last write: an error is returned once, and later writes fail as closed.
    fn settled(&mut self) -> StreamResult<()> {
        match std::mem::replace(&mut self.state, WriteState::Closed) {
            WriteState::Failed(error) => Err(StreamError::LastOperationFailed(error.into())),
            WriteState::Closed => Err(StreamError::Closed),
            state => {
                self.state = state;
                Ok(())
            }
        }
    }

    /// Performs the waiting write if a thread is free.
    fn try_waiting(&mut self) {
        if let WriteState::Waiting(bytes) = &self.state {
            let (bytes, position) = (bytes.clone(), self.position);
            if let Some(wrote) = self.place.now(|file| self.place.write(file, position, &bytes)) {
                self.done(bytes.len(), wrote);
            }
        }
    }

    async fn finish_waiting(&mut self) {
        if let WriteState::Waiting(bytes) = &self.state {
            let (bytes, position) = (bytes.clone(), self.position);
            let wrote = self.place.when_free(|file| self.place.write(file, position, &bytes)).await;
            self.done(bytes.len(), wrote);
        }
    }
}

fn write(file: &File, position: Option<u64>, bytes: &[u8]) -> io::Result<()> {
    match position {
        Some(position) => positioned::write_all_at(file, bytes, position),
        None => append(file, bytes),
    }
}

/// Appends at the current end, also after writes by others. The handle's own offset is unused.
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

/// Writes at the current end: without atomic append, another writer may interleave.
#[cfg(not(target_os = "linux"))]
fn append(file: &File, bytes: &[u8]) -> io::Result<()> {
    positioned::write_all_at(file, bytes, file.metadata()?.len())
}

#[async_trait::async_trait]
impl OutputStream for FileOutput {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        match self.state {
            WriteState::Ready => {}
            WriteState::Closed => return Err(StreamError::Closed),
            WriteState::Waiting(_) | WriteState::Failed(_) => {
                let message = "write not permitted: check_write not called first";
                return Err(StreamError::Trap(wasmtime::Error::msg(message)));
            }
        }
        if bytes.len() > FILE_CHUNK_BYTES {
            let message = "write not permitted: more than check_write allows";
            return Err(StreamError::Trap(wasmtime::Error::msg(message)));
        }
        // An empty write takes no thread, and is no change of the volume.
        if !bytes.is_empty() {
            self.state = WriteState::Waiting(bytes);
            self.try_waiting();
        }
        Ok(())
    }

    async fn blocking_write_and_flush(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.finish_waiting().await;
        self.settled()?;
        if bytes.is_empty() {
            return Ok(());
        }
        self.state = WriteState::Waiting(bytes);
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
        Ok(if matches!(self.state, WriteState::Ready) { FILE_CHUNK_BYTES } else { 0 })
    }

    async fn cancel(&mut self) {
        // An accepted write is completed, like a file's bytes after a close.
        self.finish_waiting().await;
        self.state = WriteState::Closed;
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
    use machinery_env::Env;
    use runtime_api::ledger::Ledger;

    use super::*;
    use crate::host::disk::NodeDisk;

    fn place(file: File) -> FileAccess {
        FileAccess { file: Arc::new(file), disk: None, _held: None }
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

    /// They are no change to measure, in either way of writing.
    #[tokio::test(flavor = "multi_thread")]
    async fn empty_writes_change_nothing() {
        let root = tempfile::tempdir().unwrap();
        let ledger = Ledger::node();
        let node = NodeDisk::new(&Env::real(), &ledger, None);
        let own = Ledger::container(&Ledger::pod(&ledger));
        let disk = Arc::new(Disk::new(&node, &own, &"default".into(), Vec::new()));
        let file = Arc::new(File::create(root.path().join("f")).unwrap());
        let mut output = FileOutput::new(FileAccess { file, disk: Some(disk.clone()), _held: None }, None);
        for _ in 0..10 {
            output.write(Bytes::new()).unwrap();
            output.blocking_write_and_flush(Bytes::new()).await.unwrap();
        }
        assert_eq!(disk.changes(), 0);
        output.blocking_write_and_flush("x".into()).await.unwrap();
        assert_eq!(disk.changes(), 1);
    }

    #[tokio::test]
    async fn a_failure_is_reported_once_and_closes() {
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
