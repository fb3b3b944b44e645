//! Reads files of the node's operator, up to a maximum size.

use std::io;
use std::path::{Path, PathBuf};

/// Maximum size: a larger file is neither a configuration nor a key.
const BYTES_MAX: u64 = 1 << 20;

/// Why a file of the node's operator can't be used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The file, or one that it names, can't be read.
    #[error("{}: {why}", path.display())]
    Read {
        /// The file's path.
        path: PathBuf,
        /// The cause.
        why: io::Error,
    },
    /// The file's content is invalid.
    #[error("{}: {why}", path.display())]
    Form {
        /// The file's path.
        path: PathBuf,
        /// Where and why.
        why: String,
    },
}

impl FileError {
    pub(super) fn form(path: &Path, why: impl ToString) -> Self {
        Self::Form { path: path.to_owned(), why: why.to_string() }
    }
}

/// Reads a whole file, like [`open`].
pub(super) fn read(path: &Path) -> Result<Vec<u8>, FileError> {
    open(path).map_err(|why| FileError::Read { path: path.to_owned(), why })
}

/// Reads a text file.
pub(super) fn read_text(path: &Path) -> Result<String, FileError> {
    String::from_utf8(read(path)?).map_err(|error| FileError::form(path, error))
}

/// Reads a whole file. A pipe or a folder is rejected: a node that rereads a pipe would block.
pub(super) fn open(path: &Path) -> io::Result<Vec<u8>> {
    if !std::fs::metadata(path)?.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    let mut bytes = Vec::new();
    io::Read::read_to_end(&mut io::Read::take(std::fs::File::open(path)?, BYTES_MAX + 1), &mut bytes)?;
    if bytes.len() as u64 > BYTES_MAX {
        return Err(io::Error::other(format!("more than {BYTES_MAX} bytes")));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_regular_files_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, vec![b' '; BYTES_MAX as usize]).unwrap();
        assert_eq!(open(&path).unwrap().len() as u64, BYTES_MAX);
        std::fs::write(&path, vec![b' '; BYTES_MAX as usize + 1]).unwrap();
        assert_eq!(open(&path).unwrap_err().to_string(), "more than 1048576 bytes");
        assert_eq!(open(dir.path()).unwrap_err().to_string(), "not a regular file");
        #[cfg(unix)]
        {
            let pipe = dir.path().join("pipe");
            let made = std::process::Command::new("mkfifo").arg(&pipe).status().unwrap();
            assert!(made.success());
            assert_eq!(open(&pipe).unwrap_err().to_string(), "not a regular file");
        }
        assert_eq!(open(&dir.path().join("none")).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
