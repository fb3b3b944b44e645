//! Files of whoever runs the node, read as far as such a file can be large.

use std::io;
use std::path::{Path, PathBuf};

/// A configuration, or a key, that is larger is none.
const BYTES_MAX: u64 = 1 << 20;

/// Why a file of whoever runs the node can't be used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It, or one that it names, can't be read.
    #[error("{}: {why}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        why: io::Error,
    },
    /// It says what can't be.
    #[error("{}: {why}", path.display())]
    Form {
        /// Which.
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

/// Reads a file whole, as [`open`] does.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, FileError> {
    open(path).map_err(|why| FileError::Read { path: path.to_owned(), why })
}

/// Reads a file of text.
pub(super) fn read_text(path: &Path) -> Result<String, FileError> {
    String::from_utf8(read(path)?).map_err(|error| FileError::form(path, error))
}

/// Reads a file whole. A pipe or a folder is none: a node that reads it anew would wait for it.
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
    fn what_is_no_file_of_that_kind_is_not_read() {
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
