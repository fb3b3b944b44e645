//! Reads the names of an open folder, one after the other, on each system.

use std::fs::File;
use std::io;

use wasmtime_wasi::p2::bindings::filesystem::types::{DescriptorType, DirectoryEntry, ErrorCode};

/// A name, or the error of a name that is no text.
pub(super) type ListedEntry = Result<DirectoryEntry, ErrorCode>;

/// An open folder with a position of its own.
pub(super) struct Folder(system::Entries);

impl Folder {
    /// Reopens the folder.
    pub(super) fn open(dir: &File) -> io::Result<Self> {
        system::open(dir).map(Self)
    }

    /// The next name but `.` and `..`; `None` at the end.
    pub(super) fn next(&mut self) -> io::Result<Option<ListedEntry>> {
        system::next(&mut self.0)
    }
}

#[cfg(unix)]
mod system {
    use std::ffi::CStr;

    use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};

    use super::*;

    pub(super) type Entries = Dir;

    /// For reading: `dir` may be open as a path only (`O_PATH`), as volumes below another folder are, and `Dir::read_from` takes
    /// its flags.
    pub(super) fn open(dir: &File) -> io::Result<Dir> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Dir::new(rustix::fs::openat(dir, c".", flags, Mode::empty())?)?)
    }

    pub(super) fn next(dir: &mut Dir) -> io::Result<Option<ListedEntry>> {
        while let Some(entry) = dir.read().transpose()? {
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let kind = match entry.file_type() {
                // Some file systems don't report the type; a name removed meanwhile is skipped.
                FileType::Unknown => match statat(dir, name) {
                    Ok(stat) => FileType::from_raw_mode(stat.st_mode),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    Err(error) => return Err(error),
                },
                known => known,
            };
            let name = name.to_str().map(str::to_owned).map_err(|_| ErrorCode::IllegalByteSequence);
            return Ok(Some(name.map(|name| DirectoryEntry { type_: descriptor_type(kind), name })));
        }
        Ok(None)
    }

    fn statat(dir: &Dir, name: &CStr) -> io::Result<Stat> {
        Ok(rustix::fs::statat(dir.fd()?, name, AtFlags::SYMLINK_NOFOLLOW)?)
    }

    fn descriptor_type(kind: FileType) -> DescriptorType {
        match kind {
            FileType::RegularFile => DescriptorType::RegularFile,
            FileType::Directory => DescriptorType::Directory,
            FileType::Symlink => DescriptorType::SymbolicLink,
            FileType::Fifo => DescriptorType::Fifo,
            FileType::Socket => DescriptorType::Socket,
            FileType::CharacterDevice => DescriptorType::CharacterDevice,
            FileType::BlockDevice => DescriptorType::BlockDevice,
            FileType::Unknown => DescriptorType::Unknown,
        }
    }
}

#[cfg(not(unix))]
mod system {
    use cap_primitives::fs::{FileType, ReadDir, read_base_dir};

    use super::*;

    pub(super) type Entries = ReadDir;

    pub(super) fn open(dir: &File) -> io::Result<ReadDir> {
        read_base_dir(dir)
    }

    pub(super) fn next(entries: &mut ReadDir) -> io::Result<Option<ListedEntry>> {
        let Some(entry) = entries.next().transpose()? else { return Ok(None) };
        let name = entry.file_name().into_string().map_err(|_| ErrorCode::IllegalByteSequence);
        let type_ = descriptor_type(entry.file_type()?);
        Ok(Some(name.map(|name| DirectoryEntry { type_, name })))
    }

    fn descriptor_type(kind: FileType) -> DescriptorType {
        match kind {
            kind if kind.is_file() => DescriptorType::RegularFile,
            kind if kind.is_dir() => DescriptorType::Directory,
            kind if kind.is_symlink() => DescriptorType::SymbolicLink,
            _ => DescriptorType::Unknown,
        }
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::os::unix::fs::OpenOptionsExt as _;

    use super::*;

    #[test]
    fn a_folder_that_is_open_as_a_path_is_listed() {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join("a"), "").unwrap();
        let path_only = i32::try_from(rustix::fs::OFlags::PATH.bits()).unwrap();
        for flags in [0, path_only] {
            let dir = File::options().read(true).custom_flags(flags).open(root.path()).unwrap();
            let mut folder = Folder::open(&dir).unwrap();
            assert_eq!(folder.next().unwrap().unwrap().unwrap().name, "a", "{flags:#x}");
            assert!(folder.next().unwrap().is_none());
        }
    }
}
