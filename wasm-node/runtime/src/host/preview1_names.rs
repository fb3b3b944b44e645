//! Encodes folder entries for preview 1's `fd_readdir`, page by page.

use std::sync::Arc;

use wasmtime_wasi::filesystem::Descriptor;
use wasmtime_wasi::p1::types;
use wasmtime_wasi::p2::bindings::filesystem::types as p2;
use wiggle::{GuestMemory, GuestPtr, GuestType as _};

use super::listing::{Listing, NextEntry};

/// Entries of every folder, before its own.
pub(super) const DOTS: [&str; 2] = [".", ".."];

type Result<T, E = types::Error> = std::result::Result<T, E>;

/// A folder that is being listed by `fd_readdir`.
pub(super) struct Walk {
    pub(super) fd: u32,
    /// Position of the next name.
    pub(super) next: u64,
    pub(super) listing: Listing,
}

impl Walk {
    /// Skips names before `cookie`, a page at most; returns whether the folder has ended.
    pub(super) fn skip(&mut self, cookie: u64) -> Result<bool> {
        self.listing.read_more().map_err(errno)?;
        while self.next < cookie {
            match self.listing.next() {
                NextEntry::Entry(Ok(None)) => return Ok(true),
                NextEntry::Entry(_) => self.next += 1,
                NextEntry::ReadMore => break,
            }
        }
        Ok(false)
    }
}

/// The guest's buffer for names.
pub(super) struct Out {
    pub(super) buf: GuestPtr<u8>,
    pub(super) free: u32,
    pub(super) filled: u32,
}

impl Out {
    pub(super) fn put(&mut self, memory: &mut GuestMemory<'_>, bytes: &[u8]) -> Result<()> {
        let length = self.free.min(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
        memory.copy_from_slice(&bytes[..length as usize], self.buf.add(self.filled)?.as_array(length))?;
        self.filled += length;
        self.free -= length;
        Ok(())
    }
}

pub(super) fn errno(error: p2::ErrorCode) -> types::Error {
    wasmtime_wasi::p2::FsError::from(error).into()
}

pub(super) fn dirent(bytes: &mut Vec<u8>, at: u64, inode: u64, kind: types::Filetype, name: &str) {
    let begin = bytes.len();
    bytes.extend_from_slice(&(at + 1).to_le_bytes());
    bytes.extend_from_slice(&inode.to_le_bytes());
    bytes.extend_from_slice(&u32::try_from(name.len()).unwrap_or(u32::MAX).to_le_bytes());
    bytes.push(kind as u8);
    bytes.resize(begin + types::Dirent::guest_size() as usize, 0);
    bytes.extend_from_slice(name.as_bytes());
}

pub(super) fn filetype(kind: p2::DescriptorType) -> types::Filetype {
    match kind {
        p2::DescriptorType::RegularFile => types::Filetype::RegularFile,
        p2::DescriptorType::Directory => types::Filetype::Directory,
        p2::DescriptorType::SymbolicLink => types::Filetype::SymbolicLink,
        p2::DescriptorType::BlockDevice => types::Filetype::BlockDevice,
        p2::DescriptorType::CharacterDevice => types::Filetype::CharacterDevice,
        // Preview 1 has no pipes, and its sockets are streams or datagrams.
        p2::DescriptorType::Fifo | p2::DescriptorType::Socket | p2::DescriptorType::Unknown => types::Filetype::Unknown,
    }
}

/// Identity of a descriptor.
pub(crate) fn address(descriptor: &Descriptor) -> usize {
    match descriptor {
        Descriptor::Dir(dir) => Arc::as_ptr(&dir.dir).addr(),
        Descriptor::File(file) => Arc::as_ptr(&file.file).addr(),
    }
}
