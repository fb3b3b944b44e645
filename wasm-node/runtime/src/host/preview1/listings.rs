//! Preview 1's `fd_readdir`: a folder's names, read a page at a time.

use wasmtime_wasi::filesystem::{Descriptor, Dir, WasiFilesystemView as _};
use wasmtime_wasi::p1::types;
use wasmtime_wasi::p2::bindings::filesystem::types as p2;
use wasmtime_wasi::p2::bindings::filesystem::types::HostDescriptor as _;
use wasmtime_wasi::{FsPerms, OpenMode};

use super::super::listing::{Listing, NextEntry};
use super::super::preview1_names::{DOTS, Walk, dirent, errno, filetype};
use super::super::volumes::Anchored;
use super::{Preview1, Result};

impl Preview1 {
    /// The folder of a descriptor; `None` if it is no folder.
    pub(super) fn dir(&mut self, fd: u32) -> Result<Option<Dir>> {
        let Some(open) = self.open.get_mut(&fd) else { return Ok(None) };
        if let (None, Some(Anchored { path, .. })) = (&open.dir, &open.volume) {
            let held = self.disk.descriptor().map_err(|_| types::Errno::Mfile)?;
            let file = std::fs::File::open(path).map_err(|_| types::Errno::Noent)?;
            open.dir = Some(Dir::new(file, FsPerms::ReadOnly, OpenMode::READ, true));
            open._held.push(held);
        }
        Ok(open.dir.clone())
    }

    /// The listing of `fd` from `cookie` on.
    pub(super) fn walk(&mut self, fd: u32, dir: &Dir, cookie: u64) -> Result<Walk> {
        let known = self.walks.iter().position(|walk| walk.fd == fd).map(|at| self.walks.remove(at));
        if let Some(walk) = known
            && walk.next == cookie.max(DOTS.len() as u64)
            && cookie != 0
        {
            return Ok(walk);
        }
        let held = self.disk.descriptor().map_err(|_| types::Errno::Mfile)?;
        let listing = Listing::open(&dir.dir, held).map_err(|error| errno(error.into()))?;
        Ok(Walk { fd, next: DOTS.len() as u64, listing })
    }

    /// The inode number of a file of `dir`, the same in every call.
    pub(super) async fn inode(&mut self, dir: &Dir, name: Option<&str>) -> Result<u64> {
        let mut view = self.wasi.filesystem();
        let fd = view.table.push(Descriptor::Dir(dir.clone())).map_err(|error| types::Error::trap(error.into()))?;
        let of = || wasmtime::component::Resource::<Descriptor>::new_borrow(fd.rep());
        let hash = match name {
            Some(name) => view.metadata_hash_at(of(), p2::PathFlags::empty(), name.to_owned()).await,
            None => view.metadata_hash(of()).await,
        };
        view.table.delete(fd).map_err(|error| types::Error::trap(error.into()))?;
        Ok(hash.map_err(types::Error::from)?.lower)
    }

    /// Encodes names from `walk`'s position on, up to a page and to `free`. The second value: whether the folder has
    /// ended.
    pub(super) async fn page(&mut self, dir: &Dir, walk: &mut Walk, free: usize) -> Result<(Vec<u8>, bool)> {
        walk.listing.read_more().map_err(errno)?;
        let mut bytes = Vec::new();
        loop {
            let entry = match walk.listing.next() {
                NextEntry::Entry(entry) => entry.map_err(errno)?,
                NextEntry::ReadMore => return Ok((bytes, false)),
            };
            let Some(entry) = entry else { return Ok((bytes, true)) };
            match self.inode(dir, Some(&entry.name)).await {
                Ok(inode) => dirent(&mut bytes, walk.next, inode, filetype(entry.type_), &entry.name),
                // Removed since it was read.
                Err(error) if matches!(error.downcast_ref(), Some(types::Errno::Noent)) => {}
                Err(error) => return Err(error),
            }
            if bytes.len() > free {
                // The guest detects the truncation and reads it again.
                walk.listing.put_back(entry);
                bytes.truncate(free);
                return Ok((bytes, false));
            }
            walk.next += 1;
            if bytes.len() == free {
                return Ok((bytes, false));
            }
        }
    }
}
