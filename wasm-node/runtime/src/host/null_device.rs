//! `/dev/null` of guests. The name is that of an ordinary file in the folder that a guest has as `/dev`; the opened file is replaced
//! by the system's null device, which discards what is written and is empty. Without it, a program that silences its output
//! fills the node's disk.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use wasmtime_wasi::filesystem::Descriptor;

/// Its path in a guest.
const GUEST_PATH: &str = "/dev/null";
/// The same on the host.
const HOST_PATH: &str = if cfg!(windows) { "NUL" } else { GUEST_PATH };
/// A longer spelling of the path is an ordinary file's.
pub(crate) const PATH_BYTES_MAX: u32 = 64;

/// Whether `path` below a guest's folder is the null device.
pub(crate) fn is(folder: &str, path: &str) -> bool {
    Path::new(folder).join(path) == Path::new(GUEST_PATH)
}

/// The host's device: one open file for all guests.
pub(crate) fn open() -> io::Result<Arc<File>> {
    static DEVICE: OnceLock<Arc<File>> = OnceLock::new();
    if let Some(device) = DEVICE.get() {
        return Ok(device.clone());
    }
    let device = Arc::new(OpenOptions::new().read(true).write(true).open(HOST_PATH)?);
    Ok(DEVICE.get_or_init(|| device).clone())
}

/// Makes an opened file the null device.
pub(crate) fn replace(descriptor: &mut Descriptor, device: &Arc<File>) {
    if let Descriptor::File(file) = descriptor {
        file.file = device.clone();
    }
}

/// Whether it is the null device, whose times are the host's.
pub(crate) fn is_open(descriptor: &Descriptor) -> bool {
    match descriptor {
        Descriptor::File(file) => open().is_ok_and(|device| Arc::ptr_eq(&device, &file.file)),
        Descriptor::Dir(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_path_is_the_null_device() {
        for (folder, path) in [("/dev", "null"), ("/dev/", "./null"), ("/", "dev/null"), ("/", "./dev//null")] {
            assert!(is(folder, path), "{folder} {path}");
        }
        for (folder, path) in [
            ("/dev", "nul"),
            ("/dev", "null/x"),
            ("/dev", "x/null"),
            ("/dev", "x/../null"),
            ("/data", "null"),
            ("/data", "dev/null"),
            (".", "null"),
            ("", "null"),
        ] {
            assert!(!is(folder, path), "{folder} {path}");
        }
    }
}
