//! Files by absolute path, below the mounted volumes only.
use crate::{String, Vec};
use wasip2::filesystem::preopens::get_directories;
use wasip2::filesystem::types::{Descriptor, DescriptorFlags, ErrorCode, OpenFlags, PathFlags};

const READ_BYTES: u64 = 64 * 1024;

/// Opens the file or folder at the absolute path `path`, below one of the mounts. Links are followed: the files of a
/// ConfigMap's volume are links, so that all of them change at once.
pub fn open(path: &str, open: OpenFlags, flags: DescriptorFlags) -> Result<Descriptor, ErrorCode> {
    // A component has no root folder. It has mounts, each with its path in the guest; the longest match is used.
    let (mount, rest) = get_directories()
        .into_iter()
        .filter_map(|(mount, at)| Some((mount, below(path, &at)?)))
        .min_by_key(|(_, rest)| rest.len())
        .ok_or(ErrorCode::NoEntry)?;
    mount.open_at(PathFlags::SYMLINK_FOLLOW, if rest.is_empty() { "." } else { &rest }, open, flags)
}

/// The rest of `path` below the folder `at`.
fn below(path: &str, at: &str) -> Option<String> {
    let rest = path.strip_prefix(at.trim_end_matches('/'))?;
    (rest.is_empty() || rest.starts_with('/')).then(|| rest.trim_start_matches('/').into())
}

/// The whole content of a file.
pub fn read(path: &str) -> Result<Vec<u8>, ErrorCode> {
    read_open(&open(path, OpenFlags::empty(), DescriptorFlags::READ)?)
}

/// The whole content of an open file.
pub fn read_open(file: &Descriptor) -> Result<Vec<u8>, ErrorCode> {
    let mut content = Vec::new();
    loop {
        let (bytes, end) = file.read(READ_BYTES, content.len() as u64)?;
        content.extend_from_slice(&bytes);
        if end || bytes.is_empty() {
            return Ok(content);
        }
    }
}

/// Writes a new file; `ErrorCode::Exist` if it exists.
pub fn create(path: &str, content: &[u8]) -> Result<(), ErrorCode> {
    let file = open(path, OpenFlags::CREATE | OpenFlags::EXCLUSIVE, DescriptorFlags::WRITE)?;
    let mut written = 0;
    while written < content.len() {
        written += file.write(&content[written..], written as u64)? as usize;
    }
    Ok(())
}
