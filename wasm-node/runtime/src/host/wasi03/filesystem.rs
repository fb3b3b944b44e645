//! `wasi:filesystem`: the volumes, limits and accounts of 0.2 ([`super::super::filesystem`]). wasmtime-wasi performs the
//! operations but those of streams and listings, which are this node's ([`super::file_streams`]).
//!
//! Operations of one instance run concurrently. Each holds an entry of its concurrent state, and its file work one of the
//! container's threads.

use std::sync::Arc;

use wasmtime::component::{Access, Accessor, FutureReader, HasData, Linker, Resource, StreamReader};
use wasmtime_wasi::filesystem::{Descriptor, WasiFilesystem, WasiFilesystemView as _};
use wasmtime_wasi::p2::FsError;
use wasmtime_wasi::p2::bindings::filesystem::types as sync;
use wasmtime_wasi::p3::bindings::filesystem::preopens;
use wasmtime_wasi::p3::bindings::filesystem::types::{self, ErrorCode, HostDescriptorWithStore};
use wasmtime_wasi::p3::filesystem::{FilesystemError, FilesystemResult};

use super::super::disk::{Disk, made_file, removed};
use super::super::filesystem::{FilesView, Opening};
use super::super::null_device;
use super::super::state::ComponentState;
use super::file_streams::{EntryStream, FileReader, FileWriter, StreamEnd};
use runtime_api::FileAccount;
use runtime_api::disk::DiskBusy;

struct Files;

impl HasData for Files {
    type Data<'a> = FilesView<'a>;
}

type Store<'a> = Access<'a, ComponentState, Files>;
type Concurrent = Accessor<ComponentState, Files>;
type StreamResultFuture = FutureReader<Result<(), ErrorCode>>;

/// The error of 0.3 for one of this node's checks.
fn converted(error: FsError) -> FilesystemError {
    match error.downcast() {
        Ok(code) => code_of(code).into(),
        Err(trap) => FilesystemError::trap(trap),
    }
}

/// The code of 0.3 for one of 0.2. `would-block` is none of a file's.
pub(super) fn code_of(code: sync::ErrorCode) -> ErrorCode {
    use sync::ErrorCode as Old;
    match code {
        Old::Access => ErrorCode::Access,
        Old::WouldBlock => ErrorCode::Other(None),
        Old::Already => ErrorCode::Already,
        Old::BadDescriptor => ErrorCode::BadDescriptor,
        Old::Busy => ErrorCode::Busy,
        Old::Deadlock => ErrorCode::Deadlock,
        Old::Quota => ErrorCode::Quota,
        Old::Exist => ErrorCode::Exist,
        Old::FileTooLarge => ErrorCode::FileTooLarge,
        Old::IllegalByteSequence => ErrorCode::IllegalByteSequence,
        Old::InProgress => ErrorCode::InProgress,
        Old::Interrupted => ErrorCode::Interrupted,
        Old::Invalid => ErrorCode::Invalid,
        Old::Io => ErrorCode::Io,
        Old::IsDirectory => ErrorCode::IsDirectory,
        Old::Loop => ErrorCode::Loop,
        Old::TooManyLinks => ErrorCode::TooManyLinks,
        Old::MessageSize => ErrorCode::MessageSize,
        Old::NameTooLong => ErrorCode::NameTooLong,
        Old::NoDevice => ErrorCode::NoDevice,
        Old::NoEntry => ErrorCode::NoEntry,
        Old::NoLock => ErrorCode::NoLock,
        Old::InsufficientMemory => ErrorCode::InsufficientMemory,
        Old::InsufficientSpace => ErrorCode::InsufficientSpace,
        Old::NotDirectory => ErrorCode::NotDirectory,
        Old::NotEmpty => ErrorCode::NotEmpty,
        Old::NotRecoverable => ErrorCode::NotRecoverable,
        Old::Unsupported => ErrorCode::Unsupported,
        Old::NoTty => ErrorCode::NoTty,
        Old::NoSuchDevice => ErrorCode::NoSuchDevice,
        Old::Overflow => ErrorCode::Overflow,
        Old::NotPermitted => ErrorCode::NotPermitted,
        Old::Pipe => ErrorCode::Pipe,
        Old::ReadOnly => ErrorCode::ReadOnly,
        Old::InvalidSeek => ErrorCode::InvalidSeek,
        Old::TextFileBusy => ErrorCode::TextFileBusy,
        Old::CrossDevice => ErrorCode::CrossDevice,
    }
}

/// Makes one of this node's checks with the store.
fn with<T>(store: &Concurrent, check: impl FnOnce(FilesView<'_>) -> T) -> T {
    store.with(|mut access| check(access.get()))
}

/// wasmtime-wasi's view of the same store.
fn wasi(store: &Concurrent) -> Accessor<ComponentState, WasiFilesystem> {
    store.with_getter::<WasiFilesystem>(ComponentState::filesystem)
}

fn disk(store: &Concurrent) -> Arc<Disk> {
    with(store, |files| files.0.guest.disk.clone())
}

/// The same for an operation that changes files.
fn disk_for_change(store: &Concurrent) -> Arc<Disk> {
    let disk = disk(store);
    disk.changed();
    disk
}

/// Runs an operation within the container's share of threads.
async fn on<T>(disk: &Disk, operation: impl Future<Output = FilesystemResult<T>>) -> FilesystemResult<T> {
    disk.work(operation).await.unwrap_or_else(late)
}

/// The guest's error when its container's file work has stalled: the same as for a disk failure.
fn late<T>(_: DiskBusy) -> FilesystemResult<T> {
    Err(ErrorCode::Io.into())
}

/// Operations that differ from wasmtime-wasi's only in their scheduling and accounts.
macro_rules! delegate {
    ($($changes:ident $name:ident($($argument:ident: $type:ty),*) -> $answer:ty;)*) => {
        $(async fn $name(
            store: &Concurrent,
            fd: Resource<Descriptor>,
            $($argument: $type),*
        ) -> FilesystemResult<$answer> {
            let disk = delegate!(@$changes store);
            let account = delegate!(@account $changes store fd);
            let done = on(&disk, WasiFilesystem::$name(&wasi(store), fd, $($argument),*)).await;
            removed(account);
            done
        })*
    };
    (@reads $store:ident) => { disk($store) };
    (@changes $store:ident) => { disk_for_change($store) };
    (@removes $store:ident) => { disk_for_change($store) };
    (@account removes $store:ident $fd:ident) => { with($store, |files| files.claim(&$fd)) };
    (@account $other:ident $store:ident $fd:ident) => { None::<FileAccount> };
}

impl HostDescriptorWithStore<ComponentState> for Files {
    delegate! {
        reads advise(offset: u64, length: u64, advice: types::Advice) -> ();
        reads get_flags() -> types::DescriptorFlags;
        reads get_type() -> types::DescriptorType;
        removes set_size(size: u64) -> ();
        reads stat() -> types::DescriptorStat;
        reads stat_at(flags: types::PathFlags, path: String) -> types::DescriptorStat;
        changes set_times_at(
            flags: types::PathFlags, path: String, accessed: types::NewTimestamp, modified: types::NewTimestamp
        ) -> ();
        reads readlink_at(path: String) -> String;
        removes remove_directory_at(path: String) -> ();
        removes unlink_file_at(path: String) -> ();
        reads metadata_hash() -> types::MetadataHashValue;
        reads metadata_hash_at(flags: types::PathFlags, path: String) -> types::MetadataHashValue;
    }

    async fn set_times(
        store: &Concurrent,
        fd: Resource<Descriptor>,
        accessed: types::NewTimestamp,
        modified: types::NewTimestamp,
    ) -> FilesystemResult<()> {
        if with(store, |files| files.0.table.get(&fd).is_ok_and(null_device::is_open)) {
            // Its times are the host's.
            return Ok(());
        }
        on(&disk_for_change(store), WasiFilesystem::set_times(&wasi(store), fd, accessed, modified)).await
    }

    async fn create_directory_at(store: &Concurrent, fd: Resource<Descriptor>, path: String) -> FilesystemResult<()> {
        let made = with(store, |files| files.check_new_file(&fd, true)).map_err(converted)?;
        on(&disk_for_change(store), WasiFilesystem::create_directory_at(&wasi(store), fd, path)).await?;
        made_file(made, true);
        Ok(())
    }

    async fn symlink_at(
        store: &Concurrent,
        fd: Resource<Descriptor>,
        from: String,
        to: String,
    ) -> FilesystemResult<()> {
        // A link's target may take a block.
        let made = with(store, |files| files.check_new_file(&fd, true)).map_err(converted)?;
        on(&disk_for_change(store), WasiFilesystem::symlink_at(&wasi(store), fd, from, to)).await?;
        made_file(made, true);
        Ok(())
    }

    async fn link_at(
        store: &Concurrent,
        fd: Resource<Descriptor>,
        flags: types::PathFlags,
        from: String,
        to_fd: Resource<Descriptor>,
        to: String,
    ) -> FilesystemResult<()> {
        let check = |files: FilesView<'_>| {
            files.check_same_volume(&fd, &to_fd)?;
            files.check_new_file(&to_fd, false)
        };
        let made = with(store, check).map_err(converted)?;
        let _moving = made.as_ref().and_then(FileAccount::moving);
        on(&disk_for_change(store), WasiFilesystem::link_at(&wasi(store), fd, flags, from, to_fd, to)).await?;
        made_file(made, false);
        Ok(())
    }

    async fn rename_at(
        store: &Concurrent,
        fd: Resource<Descriptor>,
        from: String,
        to_fd: Resource<Descriptor>,
        to: String,
    ) -> FilesystemResult<()> {
        let check = |files: FilesView<'_>| files.check_same_volume(&fd, &to_fd).map(|()| files.claim(&to_fd));
        let claim = with(store, check).map_err(converted)?;
        let _moving = claim.as_ref().and_then(FileAccount::moving);
        on(&disk_for_change(store), WasiFilesystem::rename_at(&wasi(store), fd, from, to_fd, to)).await
    }

    async fn is_same_object(
        store: &Concurrent,
        fd: Resource<Descriptor>,
        other: Resource<Descriptor>,
    ) -> wasmtime::Result<bool> {
        let same = disk(store).work(WasiFilesystem::is_same_object(&wasi(store), fd, other)).await;
        same.unwrap_or_else(|DiskBusy| Err(wasmtime::Error::msg("the container's file operations have stalled")))
    }

    async fn sync_data(store: &Concurrent, fd: Resource<Descriptor>) -> FilesystemResult<()> {
        disk(store).sync(WasiFilesystem::sync_data(&wasi(store), fd)).await.unwrap_or_else(late)
    }

    async fn sync(store: &Concurrent, fd: Resource<Descriptor>) -> FilesystemResult<()> {
        disk(store).sync(WasiFilesystem::sync(&wasi(store), fd)).await.unwrap_or_else(late)
    }

    async fn open_at(
        store: &Concurrent,
        fd: Resource<Descriptor>,
        path_flags: types::PathFlags,
        path: String,
        open_flags: types::OpenFlags,
        flags: types::DescriptorFlags,
    ) -> FilesystemResult<Resource<Descriptor>> {
        let creates = open_flags.contains(types::OpenFlags::CREATE);
        let begin = |mut files: FilesView<'_>| {
            let opening = files.begin_opening()?;
            let null = files.null_device(&fd, &path)?;
            let made = if creates { files.check_new_file(&fd, false)? } else { None };
            Ok::<(Opening, _, _), FsError>((opening, null, made))
        };
        let (opening, null, made) = with(store, begin).map_err(converted)?;
        let disk = if open_flags == types::OpenFlags::empty() { disk(store) } else { disk_for_change(store) };
        let truncates = open_flags.contains(types::OpenFlags::TRUNCATE);
        let wasi = wasi(store);
        let opened = on(&disk, WasiFilesystem::open_at(&wasi, fd, path_flags, path, open_flags, flags)).await?;
        made_file(made, false);
        with(store, |mut files| files.opened(&opened, opening, null.as_ref(), truncates));
        Ok(opened)
    }

    fn read_via_stream(
        mut store: Store<'_>,
        fd: Resource<Descriptor>,
        offset: u64,
    ) -> wasmtime::Result<(StreamReader<u8>, StreamResultFuture)> {
        let (end, done) = StreamEnd::new();
        let file = store.get().file(&fd);
        let stream = match file {
            Ok(file) => StreamReader::new(&mut store, FileReader::new(file, offset, end))?,
            Err(error) => {
                end.fail(error)?;
                StreamReader::new(&mut store, std::iter::empty())?
            }
        };
        Ok((stream, FutureReader::new(&mut store, done)?))
    }

    fn write_via_stream(
        store: Store<'_>,
        fd: Resource<Descriptor>,
        data: StreamReader<u8>,
        offset: u64,
    ) -> wasmtime::Result<StreamResultFuture> {
        write_stream(store, &fd, data, Some(offset))
    }

    fn append_via_stream(
        store: Store<'_>,
        fd: Resource<Descriptor>,
        data: StreamReader<u8>,
    ) -> wasmtime::Result<StreamResultFuture> {
        write_stream(store, &fd, data, None)
    }

    fn read_directory(
        mut store: Store<'_>,
        fd: Resource<Descriptor>,
    ) -> wasmtime::Result<(StreamReader<types::DirectoryEntry>, StreamResultFuture)> {
        let (end, done) = StreamEnd::new();
        let folder = store.get().listed_folder(&fd);
        let stream = match folder {
            Ok(folder) => {
                let disk = store.get().0.guest.disk.clone();
                StreamReader::new(&mut store, EntryStream::new(folder, disk, end))?
            }
            Err(error) => {
                end.fail(error)?;
                StreamReader::new(&mut store, std::iter::empty())?
            }
        };
        Ok((stream, FutureReader::new(&mut store, done)?))
    }
}

/// Writes a stream to a file from an offset, or at its end.
fn write_stream(
    mut store: Store<'_>,
    fd: &Resource<Descriptor>,
    mut data: StreamReader<u8>,
    offset: Option<u64>,
) -> wasmtime::Result<StreamResultFuture> {
    let (end, done) = StreamEnd::new();
    let file = store.get().writable(fd);
    match file {
        Ok(file) => data.pipe(&mut store, FileWriter::new(file, offset, end))?,
        Err(error) => {
            data.close(&mut store)?;
            end.fail(error)?;
        }
    }
    FutureReader::new(&mut store, done)
}

impl types::Host for FilesView<'_> {
    fn convert_error_code(&mut self, error: FilesystemError) -> wasmtime::Result<ErrorCode> {
        error.downcast()
    }
}

impl types::HostDescriptor for FilesView<'_> {
    fn drop(&mut self, fd: Resource<Descriptor>) -> wasmtime::Result<()> {
        let handle = fd.rep();
        self.0.filesystem().drop(fd)?;
        self.closed(handle);
        Ok(())
    }
}

impl preopens::Host for FilesView<'_> {
    fn get_directories(&mut self) -> wasmtime::Result<Vec<(Resource<Descriptor>, String)>> {
        self.directories()
    }
}

pub(crate) fn link(linker: &mut Linker<ComponentState>) -> wasmtime::Result<()> {
    types::add_to_linker::<_, Files>(linker, |state| FilesView(state))?;
    preopens::add_to_linker::<_, Files>(linker, |state| FilesView(state))
}
