//! Reads a module from a file of the command line, up to the maximum size of a module: a device has no end.

use std::io::Read as _;
use std::path::Path;

use runtime_api::MODULE_BYTES_MAX;

/// The file's bytes, up to the maximum size of a module: a device has no end.
///
/// # Errors
/// If the file can't be read or is larger.
pub(crate) fn read(file: &Path) -> std::io::Result<Vec<u8>> {
    let file = std::fs::File::open(file)?;
    let size = file.metadata()?.len();
    let mut bytes = Vec::with_capacity(usize::try_from(size.min(MODULE_BYTES_MAX)).unwrap_or(0));
    file.take(MODULE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    match bytes.len() as u64 {
        0..=MODULE_BYTES_MAX => Ok(bytes),
        _ => {
            let most = MODULE_BYTES_MAX >> 20;
            Err(std::io::Error::other(format!(
                "it is larger than {most} MiB, which is the most that a module may have"
            )))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_whole_or_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.wasm");
        let sparse = std::fs::File::create(&path).unwrap();
        sparse.set_len(MODULE_BYTES_MAX).unwrap();
        assert_eq!(read(&path).unwrap().len() as u64, MODULE_BYTES_MAX);
        sparse.set_len(MODULE_BYTES_MAX + 1).unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("larger than 128 MiB"));
    }
}
