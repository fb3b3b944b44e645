//! `wasi:filesystem`: a container's volumes, opened on a guest's first use and shared by its instances.
//!
//! wasmtime-wasi performs the operations; this module adds limits: each descriptor is counted ([`Disk::descriptor`]),
//! work runs within the container's share of threads and time, and folders are listed a page at a time.

use std::any::Any;
use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use wasmtime::StoreContextMut;
use wasmtime::component::{HasData, Linker, Resource};
use wasmtime_wasi::filesystem::{Descriptor, Dir, WasiFilesystemCtxView, WasiFilesystemView as _};
use wasmtime_wasi::p2::bindings::filesystem::{preopens, types};
use wasmtime_wasi::p2::{DynInputStream, DynOutputStream, FsError, FsResult, ReaddirIterator};

use super::disk::{Disk, Folders, made_file, removed};
use super::file_stream::{FileAccess, FileInput, FileOutput};
use super::first_bytes::FirstBytes;
use super::guest::Guest;
use super::listing::{LISTING_BYTES, Listing, NextEntry};
use super::null_device;
use super::state::{ComponentState, InterfaceState};
use crate::bounds::limits::OPEN_FILES_MAX;
use runtime_api::FileAccount;
use runtime_api::disk::DiskBusy;
use runtime_api::ledger::{self, ResourceGuard};

/// The version that wasmtime's bindings register; the overrides below must use exactly it.
const TYPES: &str = "wasi:filesystem/types@0.2.12";

/// Open files of one instance.
#[derive(Default)]
pub(crate) struct OpenFiles {
    /// The volumes' folders, while this instance lives.
    folders: Option<Arc<Folders>>,
    /// Descriptors by handle. Streams hold them too: they outlive the handle.
    held: HashMap<u32, Arc<ResourceGuard>>,
    /// Shared with the calls of WASI 0.3 that open a file at the moment.
    opening: Arc<()>,
}

/// A call that opens a file, with its descriptor.
pub(crate) struct Opening {
    held: ResourceGuard,
    _counted: Arc<()>,
}

impl InterfaceState for OpenFiles {
    fn of(_: &Arc<Guest>) -> Self {
        Self::default()
    }
}

/// Host memory of an entry of the guest's table.
pub(crate) fn held_bytes(entry: &(dyn Any + Send)) -> Option<u64> {
    entry.is::<Listing>().then_some(LISTING_BYTES)
}

struct Files;

impl HasData for Files {
    type Data<'a> = FilesView<'a>;
}

pub(crate) struct FilesView<'a>(pub(super) &'a mut ComponentState);

/// The guest's error without free descriptors: `wasi:filesystem` has nothing closer to `EMFILE`.
fn used_up() -> FsError {
    types::ErrorCode::Quota.into()
}

/// Runs an operation: within the share of `disk` if it may block.
async fn on<T>(disk: Option<Arc<Disk>>, operation: impl Future<Output = FsResult<T>>) -> FsResult<T> {
    match disk {
        Some(disk) => disk.work(operation).await.unwrap_or_else(late),
        None => operation.await,
    }
}

/// The guest's error when its container's file work has stalled: the same as for a disk failure.
fn late<T>(_: DiskBusy) -> FsResult<T> {
    Err(types::ErrorCode::Io.into())
}

impl FilesView<'_> {
    fn wasi(&mut self) -> WasiFilesystemCtxView<'_> {
        self.0.filesystem()
    }

    /// The disk state for an operation on `fd`: the container's own, also on read-only volumes, as their disk may stall as
    /// well.
    fn disk(&mut self, fd: &Resource<Descriptor>) -> Option<Arc<Disk>> {
        // The operation itself reports an invalid handle.
        self.0.table.get(fd).ok().map(|_| self.0.guest.disk.clone())
    }

    /// The same for an operation that changes files.
    fn disk_for_change(&mut self, fd: &Resource<Descriptor>) -> Option<Arc<Disk>> {
        let disk = self.disk(fd);
        if let Some(disk) = &disk {
            disk.changed();
        }
        disk
    }

    fn folder(&self, fd: &Resource<Descriptor>) -> Option<Arc<std::fs::File>> {
        match self.0.table.get(fd) {
            Ok(Descriptor::Dir(dir)) => Some(dir.dir.clone()),
            _ => None,
        }
    }

    /// The null device, if `path` below `fd` is the guest's.
    pub(super) fn null_device(
        &mut self,
        fd: &Resource<Descriptor>,
        path: &str,
    ) -> FsResult<Option<Arc<std::fs::File>>> {
        let Some(folder) = self.folder(fd) else { return Ok(None) };
        let Some(folders) = &self.0.of::<OpenFiles>().folders else { return Ok(None) };
        let named = |(dir, name): (&Dir, &str)| Arc::ptr_eq(&dir.dir, &folder) && null_device::is(name, path);
        if path.len() > null_device::PATH_BYTES_MAX as usize || !folders.iter().any(named) {
            return Ok(None);
        }
        Ok(Some(null_device::open()?))
    }

    /// The account of the claim's volume that contains a file or folder.
    pub(super) fn claim(&self, fd: &Resource<Descriptor>) -> Option<FileAccount> {
        match self.0.table.get(fd) {
            Ok(Descriptor::Dir(dir)) => self.0.guest.disk.claim_of(&dir.dir),
            Ok(Descriptor::File(file)) => self.0.guest.disk.claim_of(&file.file),
            Err(_) => None,
        }
    }

    /// The account of a new file in a folder.
    pub(super) fn check_new_file(&self, fd: &Resource<Descriptor>, takes_block: bool) -> FsResult<Option<FileAccount>> {
        let Some(folder) = self.folder(fd) else { return Ok(None) };
        self.0.guest.disk.check_new_file(&folder, takes_block).map_err(|_| types::ErrorCode::InsufficientSpace.into())
    }

    pub(super) fn check_same_volume(&self, from: &Resource<Descriptor>, to: &Resource<Descriptor>) -> FsResult<()> {
        match (self.folder(from), self.folder(to)) {
            (Some(from), Some(to)) if !self.0.guest.disk.is_one_volume(&from, &to) => {
                Err(types::ErrorCode::CrossDevice.into())
            }
            _ => Ok(()),
        }
    }

    fn count(&mut self) -> FsResult<ResourceGuard> {
        let files = self.0.of::<OpenFiles>();
        let opening = Arc::strong_count(&files.opening) - 1;
        if files.held.len() + opening >= OPEN_FILES_MAX {
            return Err(used_up());
        }
        self.0.guest.disk.descriptor().map_err(|_| used_up())
    }

    /// Takes a descriptor for a file that is opened while other calls of the instance run.
    pub(super) fn begin_opening(&mut self) -> FsResult<Opening> {
        let held = self.count()?;
        Ok(Opening { held, _counted: self.0.of::<OpenFiles>().opening.clone() })
    }

    /// Records an opened file. `null`: the null device, if it is that.
    pub(super) fn opened(
        &mut self,
        opened: &Resource<Descriptor>,
        Opening { held, .. }: Opening,
        null: Option<&Arc<std::fs::File>>,
        truncates: bool,
    ) {
        if let Some(device) = null
            && let Ok(opened) = self.0.table.get_mut(opened)
        {
            null_device::replace(opened, device);
        }
        if let Ok(Descriptor::File(file)) = self.0.table.get(opened)
            && let Some(account) = self.0.guest.disk.claim_of(&file.file)
        {
            account.opened(&file.file);
            if truncates {
                account.removed();
            }
        }
        self.0.of::<OpenFiles>().held.insert(opened.rep(), Arc::new(held));
    }

    /// Gives back the descriptor of a closed file.
    pub(super) fn closed(&mut self, handle: u32) {
        self.0.of::<OpenFiles>().held.remove(&handle);
    }

    /// A folder that is to be listed, with its descriptor and the memory of a page.
    pub(super) fn listed_folder(
        &mut self,
        fd: &Resource<Descriptor>,
    ) -> FsResult<(Arc<std::fs::File>, ResourceGuard, ResourceGuard)> {
        let dir = match self.0.table.get(fd)? {
            Descriptor::Dir(dir) => dir.dir.clone(),
            Descriptor::File(_) => return Err(types::ErrorCode::NotDirectory.into()),
        };
        let held = self.count()?;
        let memory = self.0.guest.ledger.hold(ledger::Resource::Memory, LISTING_BYTES);
        Ok((dir, held, memory.map_err(|_| types::ErrorCode::InsufficientMemory)?))
    }

    /// The volumes' folders, opened at the first call.
    pub(super) fn directories(&mut self) -> wasmtime::Result<Vec<(Resource<Descriptor>, String)>> {
        let folders = match &self.0.of::<OpenFiles>().folders {
            Some(folders) => folders.clone(),
            None => self.0.guest.disk.folders().map_err(|error| cannot_open(&error))?,
        };
        let mut directories = Vec::with_capacity(folders.iter().count());
        for (dir, guest) in folders.iter() {
            directories.push((self.0.table.push(Descriptor::Dir(dir.clone()))?, guest.to_owned()));
        }
        self.0.of::<OpenFiles>().folders = Some(folders);
        Ok(directories)
    }

    pub(super) fn file(&mut self, fd: &Resource<Descriptor>) -> FsResult<FileAccess> {
        let file = match self.0.table.get(fd)? {
            Descriptor::File(file) => file.clone(),
            Descriptor::Dir(_) => return Err(types::ErrorCode::IsDirectory.into()),
        };
        let held = self.0.of::<OpenFiles>().held.get(&fd.rep()).cloned();
        Ok(FileAccess { file: file.file, disk: Some(self.0.guest.disk.clone()), _held: held })
    }

    pub(super) fn writable(&mut self, fd: &Resource<Descriptor>) -> FsResult<FileAccess> {
        match self.0.table.get(fd)? {
            Descriptor::Dir(_) => Err(types::ErrorCode::BadDescriptor.into()),
            Descriptor::File(file) if file.perms.write_not_permitted() => Err(types::ErrorCode::NotPermitted.into()),
            Descriptor::File(_) => self.file(fd),
        }
    }

    fn listing(&mut self, stream: &Resource<types::DirectoryEntryStream>) -> FsResult<&mut Listing> {
        Ok(self.0.table.get_mut(&Resource::<Listing>::new_borrow(stream.rep()))?)
    }
}

impl preopens::Host for FilesView<'_> {
    fn get_directories(&mut self) -> wasmtime::Result<Vec<(Resource<Descriptor>, String)>> {
        self.directories()
    }
}

fn cannot_open(error: &io::Error) -> wasmtime::Error {
    wasmtime::Error::msg(format!("the container's volumes cannot be opened: {error}"))
}

impl types::Host for FilesView<'_> {
    fn convert_error_code(&mut self, error: FsError) -> wasmtime::Result<types::ErrorCode> {
        self.wasi().convert_error_code(error)
    }

    fn filesystem_error_code(
        &mut self,
        error: Resource<wasmtime::Error>,
    ) -> wasmtime::Result<Option<types::ErrorCode>> {
        self.wasi().filesystem_error_code(error)
    }
}

/// Operations that differ from wasmtime-wasi's only in their scheduling.
macro_rules! delegate {
    ($($changes:ident $name:ident($($argument:ident: $type:ty),*) -> $answer:ty;)*) => {
        $(async fn $name(&mut self, fd: Resource<Descriptor>, $($argument: $type),*) -> $answer {
            let disk = self.disk(&fd);
            delegate!(@$changes disk);
            let account = delegate!(@account $changes self fd);
            let done = on(disk, self.wasi().$name(fd, $($argument),*)).await;
            removed(account);
            done
        })*
    };
    (@reads $disk:ident) => {};
    (@changes $disk:ident) => {
        if let Some(disk) = &$disk {
            disk.changed();
        }
    };
    (@removes $disk:ident) => {
        delegate!(@changes $disk);
    };
    (@account removes $self:ident $fd:ident) => { $self.claim(&$fd) };
    (@account $other:ident $self:ident $fd:ident) => { None::<FileAccount> };
}

impl types::HostDescriptor for FilesView<'_> {
    delegate! {
        reads advise(offset: u64, length: u64, advice: types::Advice) -> FsResult<()>;
        reads get_flags() -> FsResult<types::DescriptorFlags>;
        reads get_type() -> FsResult<types::DescriptorType>;
        removes set_size(size: u64) -> FsResult<()>;
        reads read(length: u64, offset: u64) -> FsResult<(Vec<u8>, bool)>;
        reads stat() -> FsResult<types::DescriptorStat>;
        reads stat_at(flags: types::PathFlags, path: String) -> FsResult<types::DescriptorStat>;
        changes set_times_at(
            flags: types::PathFlags, path: String, accessed: types::NewTimestamp, modified: types::NewTimestamp
        ) -> FsResult<()>;
        reads readlink_at(path: String) -> FsResult<String>;
        removes remove_directory_at(path: String) -> FsResult<()>;
        removes unlink_file_at(path: String) -> FsResult<()>;
        reads metadata_hash() -> FsResult<types::MetadataHashValue>;
        reads metadata_hash_at(flags: types::PathFlags, path: String) -> FsResult<types::MetadataHashValue>;
    }

    async fn set_times(
        &mut self,
        fd: Resource<Descriptor>,
        accessed: types::NewTimestamp,
        modified: types::NewTimestamp,
    ) -> FsResult<()> {
        if self.0.table.get(&fd).is_ok_and(null_device::is_open) {
            // Its times are the host's.
            return Ok(());
        }
        let disk = self.disk_for_change(&fd);
        on(disk, self.wasi().set_times(fd, accessed, modified)).await
    }

    async fn create_directory_at(&mut self, fd: Resource<Descriptor>, path: String) -> FsResult<()> {
        let made = self.check_new_file(&fd, true)?;
        let disk = self.disk_for_change(&fd);
        on(disk, self.wasi().create_directory_at(fd, path)).await?;
        made_file(made, true);
        Ok(())
    }

    async fn symlink_at(&mut self, fd: Resource<Descriptor>, from: String, to: String) -> FsResult<()> {
        // A link's target may take a block.
        let made = self.check_new_file(&fd, true)?;
        let disk = self.disk_for_change(&fd);
        on(disk, self.wasi().symlink_at(fd, from, to)).await?;
        made_file(made, true);
        Ok(())
    }

    async fn link_at(
        &mut self,
        fd: Resource<Descriptor>,
        flags: types::PathFlags,
        from: String,
        to_fd: Resource<Descriptor>,
        to: String,
    ) -> FsResult<()> {
        self.check_same_volume(&fd, &to_fd)?;
        let made = self.check_new_file(&to_fd, false)?;
        let _moving = made.as_ref().and_then(FileAccount::moving);
        let disk = self.disk_for_change(&fd);
        on(disk, self.wasi().link_at(fd, flags, from, to_fd, to)).await?;
        made_file(made, false);
        Ok(())
    }

    async fn rename_at(
        &mut self,
        fd: Resource<Descriptor>,
        from: String,
        to_fd: Resource<Descriptor>,
        to: String,
    ) -> FsResult<()> {
        self.check_same_volume(&fd, &to_fd)?;
        let _moving = self.claim(&to_fd).as_ref().and_then(FileAccount::moving);
        let disk = self.disk_for_change(&fd);
        on(disk, self.wasi().rename_at(fd, from, to_fd, to)).await
    }

    async fn write(&mut self, fd: Resource<Descriptor>, bytes: Vec<u8>, offset: u64) -> FsResult<u64> {
        let disk = self.disk(&fd);
        // The operation itself reports an invalid handle.
        let file = self.writable(&fd).ok().map(|place| place.file);
        if let Some(disk) = &disk {
            disk.changed();
        }
        let of = disk.clone().zip(file);
        let write = async {
            let _growth = match &of {
                Some((disk, file)) => {
                    disk.growth(file, bytes.len(), Some(offset)).map_err(|_| types::ErrorCode::InsufficientSpace)?
                }
                None => None,
            };
            self.wasi().write(fd, bytes, offset).await
        };
        on(disk, write).await
    }

    async fn is_same_object(
        &mut self,
        fd: Resource<Descriptor>,
        other: Resource<Descriptor>,
    ) -> wasmtime::Result<bool> {
        match self.disk(&fd) {
            Some(disk) => {
                let same = disk.work(self.wasi().is_same_object(fd, other)).await;
                same.unwrap_or_else(|_| Err(wasmtime::Error::msg("the container's file operations have stalled")))
            }
            None => self.wasi().is_same_object(fd, other).await,
        }
    }

    async fn sync_data(&mut self, fd: Resource<Descriptor>) -> FsResult<()> {
        match self.disk(&fd) {
            Some(disk) => disk.sync(self.wasi().sync_data(fd)).await.unwrap_or_else(late),
            None => self.wasi().sync_data(fd).await,
        }
    }

    async fn sync(&mut self, fd: Resource<Descriptor>) -> FsResult<()> {
        match self.disk(&fd) {
            Some(disk) => disk.sync(self.wasi().sync(fd)).await.unwrap_or_else(late),
            None => self.wasi().sync(fd).await,
        }
    }

    async fn open_at(
        &mut self,
        fd: Resource<Descriptor>,
        path_flags: types::PathFlags,
        path: String,
        open_flags: types::OpenFlags,
        flags: types::DescriptorFlags,
    ) -> FsResult<Resource<Descriptor>> {
        let opening = self.begin_opening()?;
        let null = self.null_device(&fd, &path)?;
        let disk = self.disk(&fd);
        if let Some(disk) = disk.as_ref().filter(|_| open_flags != types::OpenFlags::empty()) {
            disk.changed();
        }
        let creates = open_flags.contains(types::OpenFlags::CREATE);
        let made = if creates { self.check_new_file(&fd, false)? } else { None };
        let opened = on(disk, self.wasi().open_at(fd, path_flags, path, open_flags, flags)).await?;
        made_file(made, false);
        self.opened(&opened, opening, null.as_ref(), open_flags.contains(types::OpenFlags::TRUNCATE));
        Ok(opened)
    }

    fn drop(&mut self, fd: Resource<Descriptor>) -> wasmtime::Result<()> {
        let handle = fd.rep();
        self.wasi().drop(fd)?;
        self.closed(handle);
        Ok(())
    }

    async fn read_directory(&mut self, fd: Resource<Descriptor>) -> FsResult<Resource<ReaddirIterator>> {
        let dir = match self.0.table.get(&fd)? {
            Descriptor::Dir(dir) => dir.clone(),
            Descriptor::File(_) => return Err(types::ErrorCode::NotDirectory.into()),
        };
        let held = self.count()?;
        let disk = self.disk(&fd);
        let listing = on(disk.clone(), async { Ok(Listing::open(&dir.dir, held)?) }).await?;
        let listing = self.0.table.push(listing.of(disk))?;
        // Accounted at once: a thousand of them hold far more than what may pass between two accountings.
        self.0.account_now();
        if self.0.limiter.has_debt() {
            self.0.table.delete(listing)?;
            return Err(types::ErrorCode::InsufficientMemory.into());
        }
        Ok(Resource::new_own(listing.rep()))
    }

    fn read_via_stream(&mut self, fd: Resource<Descriptor>, offset: u64) -> FsResult<Resource<DynInputStream>> {
        let stream: DynInputStream = Box::new(FileInput::new(self.file(&fd)?, offset));
        Ok(self.wasi().table.push(stream)?)
    }

    fn write_via_stream(&mut self, fd: Resource<Descriptor>, offset: u64) -> FsResult<Resource<DynOutputStream>> {
        let stream: DynOutputStream = Box::new(FileOutput::new(self.writable(&fd)?, Some(offset)));
        Ok(self.wasi().table.push(stream)?)
    }

    fn append_via_stream(&mut self, fd: Resource<Descriptor>) -> FsResult<Resource<DynOutputStream>> {
        let stream: DynOutputStream = Box::new(FileOutput::new(self.writable(&fd)?, None));
        Ok(self.wasi().table.push(stream)?)
    }
}

impl types::HostDirectoryEntryStream for FilesView<'_> {
    async fn read_directory_entry(
        &mut self,
        stream: Resource<types::DirectoryEntryStream>,
    ) -> FsResult<Option<types::DirectoryEntry>> {
        self.wasi();
        let listing = self.listing(&stream)?;
        match listing.next() {
            NextEntry::Entry(entry) => Ok(entry?),
            NextEntry::ReadMore => {
                let disk = listing.disk();
                on(disk, async { Ok(listing.read_more()?) }).await?;
                match listing.next() {
                    NextEntry::Entry(entry) => Ok(entry?),
                    NextEntry::ReadMore => Ok(None),
                }
            }
        }
    }

    fn drop(&mut self, stream: Resource<types::DirectoryEntryStream>) -> wasmtime::Result<()> {
        self.0.table.delete(Resource::<Listing>::new_own(stream.rep()))?;
        Ok(())
    }
}

/// The metadata of an open file; `None` if the call fails. An invalid handle is an error.
pub(super) async fn metadata(
    state: &mut ComponentState,
    fd: &Resource<Descriptor>,
) -> wasmtime::Result<Option<std::fs::Metadata>> {
    let file = match state.table.get(fd)? {
        Descriptor::File(file) => file.file.clone(),
        Descriptor::Dir(dir) => dir.dir.clone(),
    };
    let disk = state.guest.disk.clone();
    Ok(on(Some(disk), async { Ok(file.metadata()?) }).await.ok())
}

pub(crate) fn link(linker: &mut Linker<ComponentState>) -> wasmtime::Result<()> {
    types::add_to_linker::<_, Files>(linker, |state| FilesView(state))?;
    preopens::add_to_linker::<_, Files>(linker, |state| FilesView(state))?;
    // As generated, except that a list over the per-call maximum is a short write and not a trap.
    let mut instance = linker.instance(TYPES)?;
    instance.func_wrap_async(
        "[method]descriptor.write",
        |mut store: StoreContextMut<'_, ComponentState>,
         (fd, bytes, offset): (Resource<Descriptor>, FirstBytes, u64)| {
            Box::new(async move {
                let mut view = FilesView(store.data_mut());
                let wrote = match types::HostDescriptor::write(&mut view, fd, bytes.0, offset).await {
                    Ok(length) => Ok(length),
                    Err(error) => Err(types::Host::convert_error_code(&mut view, error)?),
                };
                Ok((wrote,))
            })
        },
    )
}
