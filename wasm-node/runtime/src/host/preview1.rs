//! Preview 1 (`wasi_snapshot_preview1`) for core modules: wasmtime-wasi's, with counted descriptors, volume work within
//! the container's share, and folders listed a page at a time.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use wasmtime::Linker;
use wasmtime_wasi::filesystem::{Descriptor, Dir};
use wasmtime_wasi::p1::wasi_snapshot_preview1::{self, WasiSnapshotPreview1};
use wasmtime_wasi::p1::{WasiP1Ctx, types};
use wasmtime_wasi::{I32Exit, ResourceTable, WasiView as _};
use wiggle::{GuestMemory, GuestPtr};

use super::disk::{Disk, Growth, made_file, removed};
use super::listing::LISTING_BYTES;
use super::null_device;
use super::preview1_names::{DOTS, Out, Walk, address, dirent};
use super::state::CoreState;
use super::volumes::Anchored;
use crate::bounds::limits::OPEN_FILES_MAX;
use runtime_api::FileAccount;
use runtime_api::disk::DiskBusy;
use runtime_api::ledger::ResourceGuard;

mod listings;

/// The module name of preview 1 imports.
pub(crate) const MODULE: &str = "wasi_snapshot_preview1";
/// Maximum listings in progress per instance without a restart: as deep as most tree walks.
const LISTINGS_MAX: usize = 8;
/// The first descriptor of a volume: 0 to 2 are the standard streams.
const FIRST_VOLUME: u32 = 3;
type Result<T, E = types::Error> = std::result::Result<T, E>;

/// State of one of the guest's descriptors.
struct OpenFd {
    /// `None` for a volume that has not been listed yet.
    dir: Option<Dir>,
    /// Path of a volume.
    volume: Option<Anchored>,
    /// Name of a volume in the guest.
    name: Option<String>,
    /// The account of writes below it.
    account: Option<FileAccount>,
    /// A file with an account.
    file: Option<Arc<std::fs::File>>,
    /// Whether it is opened for appending.
    appends: bool,
    /// Whether it is the null device.
    is_null: bool,
    _held: Vec<ResourceGuard>,
}

/// A write with its disk state and growth.
struct Write {
    disk: Option<Arc<Disk>>,
    _growth: Option<Growth>,
}

/// Preview 1 of one instance.
pub(crate) struct Preview1 {
    wasi: WasiP1Ctx,
    disk: Arc<Disk>,
    open: HashMap<u32, OpenFd>,
    walks: Vec<Walk>,
    /// Whether the volumes are in the table.
    volumes_inserted: bool,
}

impl Preview1 {
    /// `volumes`: path and name of each, in the order of the context.
    pub(crate) fn new(wasi: WasiP1Ctx, disk: Arc<Disk>, volumes: Vec<(Anchored, String, ResourceGuard)>) -> Self {
        let open = (FIRST_VOLUME..).zip(volumes).map(|(fd, (volume, name, held))| {
            let (account, name) = (disk.account_of(&volume.path), Some(name));
            let volume = Some(volume);
            let (appends, is_null) = (false, false);
            (fd, OpenFd { dir: None, volume, name, account, file: None, appends, is_null, _held: vec![held] })
        });
        let open = open.collect();
        Self { wasi, disk, open, walks: Vec::new(), volumes_inserted: false }
    }

    pub(crate) fn table(&mut self) -> &mut ResourceTable {
        self.wasi.ctx().table
    }

    /// Host memory of listings in progress.
    pub(crate) fn listing_bytes(&self) -> u64 {
        self.walks.len() as u64 * LISTING_BYTES
    }

    /// The disk state for an operation on `fd`.
    fn disk(&self, fd: types::Fd) -> Option<Arc<Disk>> {
        self.open.contains_key(&u32::from(fd)).then(|| self.disk.clone())
    }

    /// The same for an operation that changes files.
    fn disk_for_change(&self, fd: types::Fd) -> Option<Arc<Disk>> {
        let disk = self.disk(fd);
        if let Some(disk) = &disk {
            disk.changed();
        }
        disk
    }

    /// The account of the volume that contains `fd`, if any.
    fn account(&self, fd: types::Fd) -> Option<FileAccount> {
        self.open.get(&u32::from(fd)).and_then(|open| open.account.clone())
    }

    /// Starts a write at an offset or at the current position: its disk state and growth.
    fn start_write(
        &mut self,
        memory: &mut GuestMemory<'_>,
        fd: types::Fd,
        ciovs: types::CiovecArray,
        at: Option<types::Filesize>,
    ) -> Result<Write> {
        let open = self.open.get(&u32::from(fd));
        let counted = open.and_then(|open| Some((open.account.clone()?, open.file.clone()?, open.appends)));
        let disk = self.disk(fd);
        let mut growth = None;
        if let Some((account, file, appends)) = counted {
            let mut bytes = 0usize;
            for piece in ciovs.iter() {
                bytes = bytes.saturating_add(memory.read(piece?)?.buf_len as usize);
            }
            let at = match at {
                _ if appends => None,
                None => Some(self.wasi.fd_tell(memory, fd)?),
                at => at,
            };
            growth = Some(Growth::of(account, &file, bytes, at).map_err(|_| types::Errno::Nospc)?);
        }
        // The bytes move between guest memory and file without a copy, so no call is too long.
        self.unbounded(fd);
        if let Some(disk) = &disk {
            disk.changed();
        }
        Ok(Write { disk, _growth: growth })
    }

    /// Removes the per-call maximum for a file operation.
    fn unbounded(&mut self, fd: types::Fd) {
        if self.open.contains_key(&u32::from(fd)) {
            self.wasi.set_hostcall_fuel(usize::MAX);
        }
    }

    fn close(&mut self, fd: u32) {
        self.open.remove(&fd);
        self.walks.retain(|walk| walk.fd != fd);
    }

    fn descriptors(&mut self) -> Vec<Descriptor> {
        let known = |entry: &mut (dyn std::any::Any + Send)| match entry.downcast_ref::<Descriptor>() {
            Some(Descriptor::Dir(dir)) => Some(Descriptor::Dir(dir.clone())),
            Some(Descriptor::File(file)) => Some(Descriptor::File(file.clone())),
            None => None,
        };
        self.table().iter_mut().filter_map(known).collect()
    }

    /// The account of a new file in a folder; checked before the file is created.
    fn check_new_file(&self, fd: types::Fd, takes_block: bool) -> Result<Option<FileAccount>> {
        match self.account(fd) {
            Some(account) if !account.takes_file(takes_block) => Err(types::Errno::Nospc.into()),
            account => Ok(account),
        }
    }

    /// The null device, if `path` below `fd` is the guest's.
    fn null_device(
        &self,
        memory: &GuestMemory<'_>,
        fd: types::Fd,
        path: GuestPtr<str>,
    ) -> Result<Option<Arc<std::fs::File>>> {
        let Some(folder) = self.open.get(&u32::from(fd)).and_then(|open| open.name.as_deref()) else { return Ok(None) };
        if path.len() > null_device::PATH_BYTES_MAX || !null_device::is(folder, &memory.as_cow_str(path)?) {
            return Ok(None);
        }
        Ok(Some(null_device::open().map_err(|_| types::Errno::Io)?))
    }

    /// Files don't move into or out of a claim's volume: it is its own file system.
    fn check_same_volume(&self, from: types::Fd, to: types::Fd) -> Result<()> {
        let of = |fd| match self.account(fd) {
            Some(FileAccount::Volume(quota)) => Some(Arc::as_ptr(&quota)),
            _ => None,
        };
        if of(from) == of(to) { Ok(()) } else { Err(types::Errno::Xdev.into()) }
    }
}

/// Runs an operation: within the share of `disk` if it may block.
async fn on<T>(disk: Option<Arc<Disk>>, operation: impl Future<Output = Result<T>>) -> Result<T> {
    match disk {
        Some(disk) => disk.work(operation).await.unwrap_or_else(late),
        None => operation.await,
    }
}

/// The guest's error when its container's file work has stalled: the same as for a disk failure.
fn late<T>(_: DiskBusy) -> Result<T> {
    Err(types::Errno::Io.into())
}

pub(crate) fn link(linker: &mut Linker<CoreState>) -> wasmtime::Result<()> {
    wasi_snapshot_preview1::add_to_linker(linker, CoreState::preview1)
}

macro_rules! plain {
    ($($name:ident($($argument:ident: $type:ty),*) -> $answer:ty;)*) => {
        $(fn $name(&mut self, memory: &mut GuestMemory<'_>, $($argument: $type),*) -> $answer {
            self.wasi.$name(memory, $($argument),*)
        })*
    };
}

/// Operations that may block on a disk: the first descriptor determines the disk state.
macro_rules! on_disk {
    ($($changes:ident $name:ident($($argument:ident: $type:ty),*) of $fd:ident -> $answer:ty;)*) => {
        $(async fn $name(&mut self, memory: &mut GuestMemory<'_>, $($argument: $type),*) -> $answer {
            let disk = self.disk($fd);
            on_disk!(@$changes self disk $fd);
            let done = on(disk, self.wasi.$name(memory, $($argument),*)).await;
            on_disk!(@after $changes self $fd);
            done
        })*
    };
    (@reads $self:ident $disk:ident $fd:ident) => {};
    // The bytes move between guest memory and file without a copy, so no call is too long.
    (@moves $self:ident $disk:ident $fd:ident) => {
        $self.unbounded($fd);
    };
    (@removes $self:ident $disk:ident $fd:ident) => {
        on_disk!(@changes $self $disk $fd);
    };
    (@after removes $self:ident $fd:ident) => {
        removed($self.account($fd));
    };
    (@after $other:ident $self:ident $fd:ident) => {};
    (@changes $self:ident $disk:ident $fd:ident) => {
        if let Some(disk) = &$disk {
            disk.changed();
        }
    };
}

impl WasiSnapshotPreview1 for Preview1 {
    fn set_hostcall_fuel(&mut self, fuel: usize) {
        self.wasi.set_hostcall_fuel(fuel);
    }

    plain! {
        args_get(argv: GuestPtr<GuestPtr<u8>>, argv_buf: GuestPtr<u8>) -> Result<()>;
        args_sizes_get() -> Result<(types::Size, types::Size)>;
        environ_get(environ: GuestPtr<GuestPtr<u8>>, environ_buf: GuestPtr<u8>) -> Result<()>;
        environ_sizes_get() -> Result<(types::Size, types::Size)>;
        clock_res_get(id: types::Clockid) -> Result<types::Timestamp>;
        clock_time_get(id: types::Clockid, precision: types::Timestamp) -> Result<types::Timestamp>;
        fd_allocate(fd: types::Fd, offset: types::Filesize, len: types::Filesize) -> Result<()>;
        fd_fdstat_set_rights(fd: types::Fd, base: types::Rights, inheriting: types::Rights) -> Result<()>;
        fd_prestat_get(fd: types::Fd) -> Result<types::Prestat>;
        fd_prestat_dir_name(fd: types::Fd, path: GuestPtr<u8>, path_max_len: types::Size) -> Result<()>;
        fd_tell(fd: types::Fd) -> Result<types::Filesize>;
        proc_raise(signal: types::Signal) -> Result<()>;
        sched_yield() -> Result<()>;
        random_get(buf: GuestPtr<u8>, buf_len: types::Size) -> Result<()>;
        sock_accept(fd: types::Fd, flags: types::Fdflags) -> Result<types::Fd>;
        sock_recv(fd: types::Fd, data: types::IovecArray, flags: types::Riflags) -> Result<(types::Size, types::Roflags)>;
        sock_send(fd: types::Fd, data: types::CiovecArray, flags: types::Siflags) -> Result<types::Size>;
    }

    on_disk! {
        reads fd_advise(fd: types::Fd, offset: types::Filesize, len: types::Filesize, advice: types::Advice) of fd -> Result<()>;
        reads fd_fdstat_get(fd: types::Fd) of fd -> Result<types::Fdstat>;
        reads fd_filestat_get(fd: types::Fd) of fd -> Result<types::Filestat>;
        removes fd_filestat_set_size(fd: types::Fd, size: types::Filesize) of fd -> Result<()>;
        moves fd_read(fd: types::Fd, iovs: types::IovecArray) of fd -> Result<types::Size>;
        moves fd_pread(fd: types::Fd, iovs: types::IovecArray, offset: types::Filesize) of fd -> Result<types::Size>;
        reads fd_seek(fd: types::Fd, offset: types::Filedelta, whence: types::Whence) of fd -> Result<types::Filesize>;
        reads path_filestat_get(fd: types::Fd, flags: types::Lookupflags, path: GuestPtr<str>) of fd -> Result<types::Filestat>;
        changes path_filestat_set_times(
            fd: types::Fd, flags: types::Lookupflags, path: GuestPtr<str>, atim: types::Timestamp,
            mtim: types::Timestamp, fst_flags: types::Fstflags
        ) of fd -> Result<()>;
        reads path_readlink(
            fd: types::Fd, path: GuestPtr<str>, buf: GuestPtr<u8>, buf_len: types::Size
        ) of fd -> Result<types::Size>;
        removes path_remove_directory(fd: types::Fd, path: GuestPtr<str>) of fd -> Result<()>;
        removes path_unlink_file(fd: types::Fd, path: GuestPtr<str>) of fd -> Result<()>;
    }

    /// Unlike wasmtime-wasi's, takes every code: a container's status has 8 bits of it, as on any Unix.
    fn proc_exit(&mut self, _: &mut GuestMemory<'_>, status: types::Exitcode) -> wasmtime::Error {
        I32Exit(status.cast_signed()).into()
    }

    async fn fd_filestat_set_times(
        &mut self,
        memory: &mut GuestMemory<'_>,
        fd: types::Fd,
        atim: types::Timestamp,
        mtim: types::Timestamp,
        flags: types::Fstflags,
    ) -> Result<()> {
        if self.open.get(&u32::from(fd)).is_some_and(|open| open.is_null) {
            // Its times are the host's.
            return Ok(());
        }
        let disk = self.disk_for_change(fd);
        on(disk, self.wasi.fd_filestat_set_times(memory, fd, atim, mtim, flags)).await
    }

    async fn fd_write(
        &mut self,
        memory: &mut GuestMemory<'_>,
        fd: types::Fd,
        ciovs: types::CiovecArray,
    ) -> Result<types::Size> {
        let Write { disk, _growth } = self.start_write(memory, fd, ciovs, None)?;
        on(disk, self.wasi.fd_write(memory, fd, ciovs)).await
    }

    async fn fd_pwrite(
        &mut self,
        memory: &mut GuestMemory<'_>,
        fd: types::Fd,
        ciovs: types::CiovecArray,
        offset: types::Filesize,
    ) -> Result<types::Size> {
        let Write { disk, _growth } = self.start_write(memory, fd, ciovs, Some(offset))?;
        on(disk, self.wasi.fd_pwrite(memory, fd, ciovs, offset)).await
    }

    fn fd_fdstat_set_flags(
        &mut self,
        memory: &mut GuestMemory<'_>,
        fd: types::Fd,
        flags: types::Fdflags,
    ) -> Result<()> {
        self.wasi.fd_fdstat_set_flags(memory, fd, flags)?;
        if let Some(open) = self.open.get_mut(&u32::from(fd)) {
            open.appends = flags.contains(types::Fdflags::APPEND);
        }
        Ok(())
    }

    async fn path_create_directory(
        &mut self,
        memory: &mut GuestMemory<'_>,
        fd: types::Fd,
        path: GuestPtr<str>,
    ) -> Result<()> {
        let (made, disk) = (self.check_new_file(fd, true)?, self.disk_for_change(fd));
        on(disk, self.wasi.path_create_directory(memory, fd, path)).await?;
        made_file(made, true);
        Ok(())
    }

    async fn path_symlink(
        &mut self,
        memory: &mut GuestMemory<'_>,
        from: GuestPtr<str>,
        fd: types::Fd,
        to: GuestPtr<str>,
    ) -> Result<()> {
        // A link's target may take a block.
        let (made, disk) = (self.check_new_file(fd, true)?, self.disk_for_change(fd));
        on(disk, self.wasi.path_symlink(memory, from, fd, to)).await?;
        made_file(made, true);
        Ok(())
    }

    async fn path_link(
        &mut self,
        memory: &mut GuestMemory<'_>,
        fd: types::Fd,
        flags: types::Lookupflags,
        from: GuestPtr<str>,
        to_fd: types::Fd,
        to: GuestPtr<str>,
    ) -> Result<()> {
        self.check_same_volume(fd, to_fd)?;
        let (made, disk) = (self.check_new_file(to_fd, false)?, self.disk_for_change(fd));
        let _moving = made.as_ref().and_then(FileAccount::moving);
        on(disk, self.wasi.path_link(memory, fd, flags, from, to_fd, to)).await?;
        made_file(made, false);
        Ok(())
    }

    async fn path_rename(
        &mut self,
        memory: &mut GuestMemory<'_>,
        fd: types::Fd,
        from: GuestPtr<str>,
        to_fd: types::Fd,
        to: GuestPtr<str>,
    ) -> Result<()> {
        self.check_same_volume(fd, to_fd)?;
        let _moving = self.account(to_fd).as_ref().and_then(FileAccount::moving);
        let disk = self.disk_for_change(fd);
        on(disk, self.wasi.path_rename(memory, fd, from, to_fd, to)).await
    }

    fn sock_shutdown(&mut self, memory: &mut GuestMemory<'_>, fd: types::Fd, how: types::Sdflags) -> Result<()> {
        // The node opens a folder for a command's termination message, and mounts. A guest that requested no folder
        // expects no descriptor there (WASI's own tests do), so socket calls find none.
        if self.open.get(&u32::from(fd)).is_some_and(|open| open.volume.is_some()) {
            return Err(types::Errno::Badf.into());
        }
        self.wasi.sock_shutdown(memory, fd, how)
    }

    async fn poll_oneoff(
        &mut self,
        memory: &mut GuestMemory<'_>,
        subscriptions: GuestPtr<types::Subscription>,
        events: GuestPtr<types::Event>,
        count: types::Size,
    ) -> Result<types::Size> {
        if count == 1 {
            let only = memory.read(subscriptions)?;
            if let types::SubscriptionU::Clock(clock) = only.u
                && !clock.flags.contains(types::Subclockflags::SUBSCRIPTION_CLOCK_ABSTIME)
            {
                // wasmtime-wasi would sleep on the thread here, as file work may block it: two sleeping guests would
                // then block all others.
                self.disk.env().sleep(std::time::Duration::from_nanos(clock.timeout)).await;
                let fd_readwrite = types::EventFdReadwrite { nbytes: 1, flags: types::Eventrwflags::empty() };
                let event = types::Event {
                    userdata: only.userdata,
                    error: types::Errno::Success,
                    type_: types::Eventtype::Clock,
                    fd_readwrite,
                };
                memory.write(events, event)?;
                return Ok(1);
            }
        }
        self.wasi.poll_oneoff(memory, subscriptions, events, count).await
    }

    async fn fd_datasync(&mut self, memory: &mut GuestMemory<'_>, fd: types::Fd) -> Result<()> {
        match self.disk(fd) {
            Some(disk) => disk.sync(self.wasi.fd_datasync(memory, fd)).await.unwrap_or_else(late),
            None => self.wasi.fd_datasync(memory, fd).await,
        }
    }

    async fn fd_sync(&mut self, memory: &mut GuestMemory<'_>, fd: types::Fd) -> Result<()> {
        match self.disk(fd) {
            Some(disk) => disk.sync(self.wasi.fd_sync(memory, fd)).await.unwrap_or_else(late),
            None => self.wasi.fd_sync(memory, fd).await,
        }
    }

    async fn fd_close(&mut self, memory: &mut GuestMemory<'_>, fd: types::Fd) -> Result<()> {
        self.wasi.fd_close(memory, fd).await?;
        self.close(fd.into());
        Ok(())
    }

    async fn fd_renumber(&mut self, memory: &mut GuestMemory<'_>, from: types::Fd, to: types::Fd) -> Result<()> {
        self.wasi.fd_renumber(memory, from, to).await?;
        let (from, to) = (u32::from(from), u32::from(to));
        if from != to {
            let moved = self.open.remove(&from);
            self.close(from);
            self.close(to);
            self.open.extend(moved.map(|open| (to, open)));
        }
        Ok(())
    }

    async fn path_open(
        &mut self,
        memory: &mut GuestMemory<'_>,
        fd: types::Fd,
        lookup: types::Lookupflags,
        path: GuestPtr<str>,
        open: types::Oflags,
        rights: types::Rights,
        inheriting: types::Rights,
        flags: types::Fdflags,
    ) -> Result<types::Fd> {
        if self.open.len() >= OPEN_FILES_MAX {
            return Err(types::Errno::Mfile.into());
        }
        let held = self.disk.descriptor().map_err(|_| types::Errno::Mfile)?;
        let null = self.null_device(memory, fd, path)?;
        if !std::mem::replace(&mut self.volumes_inserted, true) {
            // Inserts the volumes into the table, so that a new entry afterwards is the opened file. Works with and
            // without a volume.
            let _ = self.wasi.fd_prestat_get(memory, types::Fd::from(FIRST_VOLUME));
        }
        let known: HashSet<usize> = self.descriptors().iter().map(address).collect();
        let disk = self.disk(fd);
        if let Some(disk) = disk.as_ref().filter(|_| !open.is_empty()) {
            disk.changed();
        }
        let made = if open.contains(types::Oflags::CREAT) { self.check_new_file(fd, false)? } else { None };
        let opened = on(disk, self.wasi.path_open(memory, fd, lookup, path, open, rights, inheriting, flags)).await?;
        made_file(made, false);
        if let Some(device) = &null {
            let descriptors = self.table().iter_mut().filter_map(|entry| entry.downcast_mut::<Descriptor>());
            descriptors.filter(|new| !known.contains(&address(new))).for_each(|new| null_device::replace(new, device));
        }
        let account = self.account(fd).filter(|_| null.is_none());
        let (dir, file) = match self.descriptors().into_iter().find(|new| !known.contains(&address(new))) {
            Some(Descriptor::Dir(dir)) => (Some(dir), None),
            Some(Descriptor::File(file)) if account.is_some() => (None, Some(file.file)),
            _ => (None, None),
        };
        if let (Some(account), Some(file)) = (&account, &file) {
            account.opened(file);
            if open.contains(types::Oflags::TRUNC) {
                account.removed();
            }
        }
        let appends = flags.contains(types::Fdflags::APPEND);
        let (volume, name, is_null) = (None, None, null.is_some());
        self.open
            .insert(opened.into(), OpenFd { dir, volume, name, account, file, appends, is_null, _held: vec![held] });
        Ok(opened)
    }

    async fn fd_readdir(
        &mut self,
        memory: &mut GuestMemory<'_>,
        fd: types::Fd,
        buf: GuestPtr<u8>,
        buf_len: types::Size,
        cookie: types::Dircookie,
    ) -> Result<types::Size> {
        let number = u32::from(fd);
        let Some(dir) = self.dir(number)? else {
            // Not a folder: wasmtime-wasi's result.
            return self.wasi.fd_readdir(memory, fd, buf, buf_len, cookie).await;
        };
        let disk = self.disk(fd);
        let mut walk = self.walk(number, &dir, cookie)?;
        let mut out = Out { buf, free: buf_len, filled: 0 };
        for (at, name) in (0..).zip(DOTS).skip(usize::try_from(cookie).unwrap_or(usize::MAX)) {
            let mut bytes = Vec::new();
            dirent(&mut bytes, at, self.inode(&dir, None).await?, types::Filetype::Directory, name);
            out.put(memory, &bytes)?;
        }
        let mut ended = false;
        while out.free > 0 && !ended {
            if walk.next < cookie {
                // Not the position where the last call ended.
                ended = on(disk.clone(), async { walk.skip(cookie) }).await?;
            } else {
                let page = on(disk.clone(), self.page(&dir, &mut walk, out.free as usize)).await?;
                out.put(memory, &page.0)?;
                ended = page.1;
            }
            // Yields between pages, which also settles the CPU account.
            tokio::task::yield_now().await;
        }
        let filled = out.filled;
        self.walks.insert(0, walk);
        self.walks.truncate(LISTINGS_MAX);
        Ok(filled)
    }
}
