//! Lists a folder a page at a time: a guest may list any folder that it can fill, and the host holds one page of it.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::sync::Arc;

use wasmtime_wasi::p2::bindings::filesystem::types::{DirectoryEntry, ErrorCode};

use super::disk::Disk;
use super::folder::{Folder, ListedEntry};
use runtime_api::ledger::ResourceGuard;

/// Names read at once.
pub(super) const PAGE_ENTRIES: usize = 64;
/// Maximum bytes of a listing: a page of the longest names (255 bytes each) with their records, and the system's buffer
/// (some 32 KiB).
pub(crate) const LISTING_BYTES: u64 = 64 << 10;

/// A folder that is being listed.
pub(crate) struct Listing {
    /// Closed at the end.
    folder: Option<(Folder, ResourceGuard)>,
    page: VecDeque<ListedEntry>,
    disk: Option<Arc<Disk>>,
}

/// Result of [`Listing::next`].
pub(crate) enum NextEntry {
    /// A name, or the end.
    Entry(Result<Option<DirectoryEntry>, ErrorCode>),
    /// The page is empty: call [`Listing::read_more`].
    ReadMore,
}

impl Listing {
    /// Reopens the folder, so that each listing has its own position.
    pub(crate) fn open(dir: &File, held: ResourceGuard) -> io::Result<Self> {
        let folder = Folder::open(dir)?;
        Ok(Self { folder: Some((folder, held)), page: VecDeque::new(), disk: None })
    }

    /// Sets the disk state for further reads.
    pub(crate) fn of(mut self, disk: Option<Arc<Disk>>) -> Self {
        self.disk = disk;
        self
    }

    pub(crate) fn disk(&self) -> Option<Arc<Disk>> {
        self.disk.clone()
    }

    pub(crate) fn next(&mut self) -> NextEntry {
        match (self.page.pop_front(), &self.folder) {
            (Some(entry), _) => NextEntry::Entry(entry.map(Some)),
            (None, Some(_)) => NextEntry::ReadMore,
            (None, None) => NextEntry::Entry(Ok(None)),
        }
    }

    /// Makes an entry the next one again.
    pub(crate) fn put_back(&mut self, entry: DirectoryEntry) {
        self.page.push_front(Ok(entry));
    }

    /// Reads a page, or to the end if that is sooner.
    pub(crate) fn read_more(&mut self) -> Result<(), ErrorCode> {
        while let Some((folder, _)) = &mut self.folder
            && self.page.len() < PAGE_ENTRIES
        {
            match folder.next()? {
                Some(entry) => self.page.push_back(entry),
                None => self.folder = None,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use runtime_api::ledger::{Ledger, Resource};
    use std::collections::BTreeSet;
    use wasmtime_wasi::p2::bindings::filesystem::types::DescriptorType;

    #[test]
    fn each_name_comes_once_and_a_page_is_all_that_is_held() {
        let root = tempfile::tempdir().unwrap();
        let names: BTreeSet<String> = (0..1000).map(|n| format!("{n}-{}", "x".repeat(200))).collect();
        for name in &names {
            std::fs::write(root.path().join(name), "").unwrap();
        }
        std::fs::create_dir(root.path().join("folder")).unwrap();
        let ledger = Ledger::node();
        let held = ledger.hold(Resource::Descriptors, 1).unwrap();
        let mut listing = Listing::open(&File::open(root.path()).unwrap(), held).unwrap();
        let (mut found, mut folders) = (BTreeSet::new(), Vec::new());
        loop {
            assert!(listing.page.len() <= PAGE_ENTRIES);
            match listing.next() {
                NextEntry::Entry(Ok(Some(entry))) if entry.type_ == DescriptorType::Directory => {
                    folders.push(entry.name)
                }
                NextEntry::Entry(Ok(Some(entry))) => assert!(found.insert(entry.name)),
                NextEntry::Entry(Ok(None)) => break,
                NextEntry::Entry(Err(error)) => panic!("{error}"),
                NextEntry::ReadMore => listing.read_more().unwrap(),
            }
        }
        assert_eq!((found, folders), (names, vec!["folder".to_owned()]));
        assert_eq!(ledger.used(Resource::Descriptors), 0, "closed at the end");
    }
}
