//! Reads and writes of a file at an offset, on each system.

use std::fs::File;
use std::io;
#[cfg(unix)]
use std::os::unix::fs::FileExt;
#[cfg(windows)]
use std::os::windows::fs::FileExt;

/// Reads once at an offset. On Windows this moves the handle's own offset, which nothing uses.
pub(super) fn read_at(file: &File, bytes: &mut [u8], position: u64) -> io::Result<usize> {
    #[cfg(unix)]
    return FileExt::read_at(file, bytes, position);
    #[cfg(windows)]
    return FileExt::seek_read(file, bytes, position);
}

/// Writes all bytes at an offset.
#[cfg(unix)]
pub(super) fn write_all_at(file: &File, bytes: &[u8], position: u64) -> io::Result<()> {
    FileExt::write_all_at(file, bytes, position)
}

/// Writes all bytes at an offset.
#[cfg(windows)]
pub(super) fn write_all_at(file: &File, mut bytes: &[u8], mut position: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        match FileExt::seek_write(file, bytes, position) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => {
                bytes = &bytes[written..];
                position += written as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
