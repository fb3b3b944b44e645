//! Files of whoever runs the node, read as far as such a file can be large.

use std::io;
use std::path::Path;

/// A configuration, or a key, that is larger is none.
const BYTES_MAX: u64 = 1 << 20;

/// Reads a file whole. A pipe or a folder is none: a node that reads it anew would wait for it.
pub(super) fn read(path: &Path) -> io::Result<Vec<u8>> {
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
        assert_eq!(read(&path).unwrap().len() as u64, BYTES_MAX);
        std::fs::write(&path, vec![b' '; BYTES_MAX as usize + 1]).unwrap();
        assert_eq!(read(&path).unwrap_err().to_string(), "more than 1048576 bytes");
        assert_eq!(read(dir.path()).unwrap_err().to_string(), "not a regular file");
        #[cfg(unix)]
        {
            let pipe = dir.path().join("pipe");
            let made = std::process::Command::new("mkfifo").arg(&pipe).status().unwrap();
            assert!(made.success());
            assert_eq!(read(&pipe).unwrap_err().to_string(), "not a regular file");
        }
        assert_eq!(read(&dir.path().join("none")).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
