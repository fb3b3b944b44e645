//! Streams of files and folders. Reads and writes run where the guest is polled, within its container's share of threads. They
//! buffer nothing but one read, or one page of a folder.

use std::fs::File;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use tokio::sync::oneshot;
use wasmtime::StoreContextMut;
use wasmtime::component::{Destination, Source, StreamConsumer, StreamProducer, StreamResult, VecBuffer};
use wasmtime_wasi::p2::FsError;
use wasmtime_wasi::p2::bindings::filesystem::types as sync;
use wasmtime_wasi::p3::bindings::filesystem::types::{DescriptorType, DirectoryEntry, ErrorCode};

use super::super::disk::Disk;
use super::super::file_stream::{FILE_CHUNK_BYTES, FileAccess, read};
use super::super::listing::{Listing, NextEntry, PAGE_ENTRIES};
use super::filesystem::code_of;
use runtime_api::disk::DiskBusy;
use runtime_api::ledger::ResourceGuard;

type Polled = Poll<wasmtime::Result<StreamResult>>;

/// The future of a stream's result: `ok` unless an error was sent before the stream ended.
pub(super) struct StreamEnd(Option<oneshot::Sender<Result<(), ErrorCode>>>);

impl StreamEnd {
    pub(super) fn new() -> (Self, oneshot::Receiver<Result<(), ErrorCode>>) {
        let (sender, receiver) = oneshot::channel();
        (Self(Some(sender)), receiver)
    }

    /// Ends a stream that can't begin.
    ///
    /// # Errors
    /// The guest's call is a trap.
    pub(super) fn fail(mut self, error: FsError) -> wasmtime::Result<()> {
        let code = error.downcast()?;
        self.close(Err(code_of(code)));
        Ok(())
    }

    fn close(&mut self, result: Result<(), ErrorCode>) {
        if let Some(sender) = self.0.take() {
            // Without a receiver, the guest doesn't ask.
            let _ = sender.send(result);
        }
    }

    /// The end of the stream, after its result.
    fn ended(&mut self, result: Result<(), ErrorCode>) -> Polled {
        self.close(result);
        Poll::Ready(Ok(StreamResult::Dropped))
    }
}

impl Drop for StreamEnd {
    fn drop(&mut self) {
        self.close(Ok(()));
    }
}

/// A wait for one of the container's threads.
#[derive(Default)]
struct ThreadWait(Option<BoxFuture<'static, Result<(), DiskBusy>>>);

impl ThreadWait {
    /// Polls the wait. `Ok`: try again. `Err`: the result of the stream's poll.
    fn poll(
        &mut self,
        disk: Option<&Arc<Disk>>,
        cx: &mut Context<'_>,
        finish: bool,
        end: &mut StreamEnd,
    ) -> Result<(), Polled> {
        let begin = || match disk.cloned() {
            Some(disk) => async move { disk.ready().await }.boxed(),
            None => futures::future::ready(Ok(())).boxed(),
        };
        match self.0.get_or_insert_with(begin).as_mut().poll(cx) {
            Poll::Ready(ready) => {
                self.0 = None;
                ready.map_err(|DiskBusy| end.ended(Err(ErrorCode::Io)))
            }
            Poll::Pending if finish => Err(Poll::Ready(Ok(StreamResult::Cancelled))),
            Poll::Pending => Err(Poll::Pending),
        }
    }
}

/// Reads a file from an offset.
pub(super) struct FileReader {
    file: FileAccess,
    position: u64,
    end: StreamEnd,
    wait: ThreadWait,
}

impl FileReader {
    pub(super) fn new(file: FileAccess, position: u64, end: StreamEnd) -> Self {
        Self { file, position, end, wait: ThreadWait::default() }
    }
}

impl<D> StreamProducer<D> for FileReader {
    type Item = u8;
    type Buffer = Bytes;

    fn poll_produce<'a>(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut store: StoreContextMut<'a, D>,
        mut to: Destination<'a, u8, Bytes>,
        finish: bool,
    ) -> Polled {
        let this = &mut *self;
        let wanted = to.remaining(&mut store).unwrap_or(FILE_CHUNK_BYTES);
        if wanted == 0 {
            // A file is always readable.
            return Poll::Ready(Ok(StreamResult::Completed));
        }
        loop {
            let position = this.position;
            match this.file.now(|file| read(file, position, wanted)) {
                Some(Ok(bytes)) if bytes.is_empty() => return this.end.ended(Ok(())),
                Some(Ok(bytes)) => {
                    this.position += bytes.len() as u64;
                    to.set_buffer(bytes.into());
                    return Poll::Ready(Ok(StreamResult::Completed));
                }
                Some(Err(error)) => return this.end.ended(Err(error.into())),
                None => {
                    if let Err(polled) = this.wait.poll(this.file.disk.as_ref(), cx, finish, &mut this.end) {
                        return polled;
                    }
                }
            }
        }
    }
}

/// Writes a file from an offset, or at its end.
pub(super) struct FileWriter {
    file: FileAccess,
    /// `None`: at the end.
    position: Option<u64>,
    end: StreamEnd,
    wait: ThreadWait,
}

impl FileWriter {
    pub(super) fn new(file: FileAccess, position: Option<u64>, end: StreamEnd) -> Self {
        Self { file, position, end, wait: ThreadWait::default() }
    }
}

impl<D> StreamConsumer<D> for FileWriter {
    type Item = u8;

    fn poll_consume(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        store: StoreContextMut<'_, D>,
        from: Source<'_, u8>,
        finish: bool,
    ) -> Polled {
        let this = &mut *self;
        let mut from = from.as_direct(store);
        let bytes = from.remaining();
        let bytes = &bytes[..bytes.len().min(FILE_CHUNK_BYTES)];
        if bytes.is_empty() {
            // It takes no thread, and is no change of the volume.
            return Poll::Ready(Ok(StreamResult::Completed));
        }
        loop {
            let (file, position) = (&this.file, this.position);
            match file.now(|open| file.write(open, position, bytes)) {
                Some(wrote) => {
                    if let Some(disk) = &this.file.disk {
                        disk.changed();
                    }
                    if let Err(error) = wrote {
                        return this.end.ended(Err(error.into()));
                    }
                    let length = bytes.len();
                    this.position = this.position.map(|position| position.saturating_add(length as u64));
                    from.mark_read(length);
                    return Poll::Ready(Ok(StreamResult::Completed));
                }
                None => {
                    if let Err(polled) = this.wait.poll(this.file.disk.as_ref(), cx, finish, &mut this.end) {
                        return polled;
                    }
                }
            }
        }
    }
}

enum FolderState {
    /// With its descriptor.
    Unopened(Arc<File>, ResourceGuard),
    Open(Listing),
    Ended,
}

/// Lists a folder a page at a time.
pub(super) struct EntryStream {
    folder: FolderState,
    disk: Arc<Disk>,
    end: StreamEnd,
    wait: ThreadWait,
    /// The page's memory.
    _memory: ResourceGuard,
}

impl EntryStream {
    /// `held`: its descriptor; `memory`: that of a page.
    pub(super) fn new(
        (folder, held, memory): (Arc<File>, ResourceGuard, ResourceGuard),
        disk: Arc<Disk>,
        end: StreamEnd,
    ) -> Self {
        let folder = FolderState::Unopened(folder, held);
        Self { folder, disk, end, wait: ThreadWait::default(), _memory: memory }
    }

    /// The next entries, at most `most`; empty at the end. `None` if no thread is free.
    fn next(&mut self, most: usize) -> Option<Result<Vec<DirectoryEntry>, ErrorCode>> {
        if let FolderState::Unopened(..) = &self.folder {
            let thread = self.disk.try_work(|| {
                let FolderState::Unopened(folder, held) = std::mem::replace(&mut self.folder, FolderState::Ended)
                else {
                    return Ok(());
                };
                self.folder = FolderState::Open(Listing::open(&folder, held)?);
                Ok::<(), io::Error>(())
            });
            if let Err(error) = thread? {
                return Some(Err(error.into()));
            }
        }
        let FolderState::Open(listing) = &mut self.folder else { return Some(Ok(Vec::new())) };
        let mut entries = Vec::new();
        while entries.len() < most {
            match listing.next() {
                NextEntry::Entry(Ok(Some(entry))) => entries.push(converted(entry)),
                NextEntry::Entry(Ok(None)) => break,
                NextEntry::Entry(Err(code)) => return Some(Err(code_of(code))),
                NextEntry::ReadMore if !entries.is_empty() => break,
                NextEntry::ReadMore => {
                    if let Err(code) = self.disk.try_work(|| listing.read_more())? {
                        return Some(Err(code_of(code)));
                    }
                }
            }
        }
        Some(Ok(entries))
    }
}

fn converted(entry: sync::DirectoryEntry) -> DirectoryEntry {
    let type_ = match entry.type_ {
        sync::DescriptorType::Unknown => DescriptorType::Other(None),
        sync::DescriptorType::BlockDevice => DescriptorType::BlockDevice,
        sync::DescriptorType::CharacterDevice => DescriptorType::CharacterDevice,
        sync::DescriptorType::Directory => DescriptorType::Directory,
        sync::DescriptorType::Fifo => DescriptorType::Fifo,
        sync::DescriptorType::SymbolicLink => DescriptorType::SymbolicLink,
        sync::DescriptorType::RegularFile => DescriptorType::RegularFile,
        sync::DescriptorType::Socket => DescriptorType::Socket,
    };
    DirectoryEntry { type_, name: entry.name }
}

impl<D> StreamProducer<D> for EntryStream {
    type Item = DirectoryEntry;
    type Buffer = VecBuffer<DirectoryEntry>;

    fn poll_produce<'a>(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut store: StoreContextMut<'a, D>,
        mut to: Destination<'a, DirectoryEntry, VecBuffer<DirectoryEntry>>,
        finish: bool,
    ) -> Polled {
        let this = &mut *self;
        let most = to.remaining(&mut store).unwrap_or(PAGE_ENTRIES).min(PAGE_ENTRIES);
        if most == 0 {
            return Poll::Ready(Ok(StreamResult::Completed));
        }
        loop {
            match this.next(most) {
                Some(Ok(entries)) if entries.is_empty() => return this.end.ended(Ok(())),
                Some(Ok(entries)) => {
                    to.set_buffer(entries.into());
                    return Poll::Ready(Ok(StreamResult::Completed));
                }
                Some(Err(code)) => return this.end.ended(Err(code)),
                None => {
                    if let Err(polled) = this.wait.poll(Some(&this.disk), cx, finish, &mut this.end) {
                        return polled;
                    }
                }
            }
        }
    }
}
