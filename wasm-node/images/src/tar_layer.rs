//! Shared parts of all layer readers: decompression, name parsing, and the bounds of both. A layer is untrusted.

use std::io::{self, BufReader, Read};
use std::path::{Component, Path};

use super::manifest::{Compression, Refusal};

/// Maximum entries of all layers together.
pub(super) const ENTRIES_MAX: u64 = 100_000;
/// Maximum bytes of a name.
const NAME_BYTES_MAX: usize = 4096;
/// Maximum bytes of all names and link targets together: they are held in memory.
const NAMES_BYTES_MAX: usize = 16 << 20;
/// Maximum bytes of an extended header (a long name, pax attributes): the tar reader reads it into memory as a whole.
const EXTENDED_BYTES_MAX: u64 = 1 << 20;
/// Maximum window of a zstd frame, which is held in memory: 8 MiB, the minimum that RFC 8878 requires of every decoder.
/// Image builders stay below it; `zstd --ultra` and `--long` do not.
const ZSTD_WINDOW_LOG_MAX: u32 = 23;

/// A path in the image, split into its parts.
pub(super) type Parts = Vec<String>;

/// A reader that fails after a maximum number of bytes.
pub(super) struct BoundedReader<R> {
    reader: R,
    pub(super) left: u64,
    max: u64,
}

impl<R: Read> Read for BoundedReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.reader.read(buffer)?;
        match self.left.checked_sub(read as u64) {
            Some(left) => {
                self.left = left;
                Ok(read)
            }
            None => Err(size_error(self.max)),
        }
    }
}

/// The error for layers that unpack to more than `max_bytes`.
pub(super) fn size_error(max_bytes: u64) -> io::Error {
    io::Error::new(io::ErrorKind::FileTooLarge, format!("its layers unpack to more than {max_bytes} bytes"))
}

pub(super) fn unreadable(error: &io::Error) -> Refusal {
    if error.kind() == io::ErrorKind::FileTooLarge {
        return Refusal::TooLarge(error.to_string());
    }
    Refusal::Layers(error.to_string())
}

/// Decompresses a layer, at most `left` bytes of it.
pub(super) fn decompress(
    reader: impl Read + 'static,
    compression: Compression,
    left: u64,
) -> Result<BoundedReader<Box<dyn Read>>, Refusal> {
    let reader: Box<dyn Read> = match compression {
        Compression::None => Box::new(reader),
        Compression::Gzip => Box::new(flate2::read::MultiGzDecoder::new(reader)),
        Compression::Zstd => {
            let mut decoder =
                zstd::stream::read::Decoder::with_buffer(BufReader::new(reader)).map_err(|error| unreadable(&error))?;
            decoder.window_log_max(ZSTD_WINDOW_LOG_MAX).map_err(|error| unreadable(&error))?;
            Box::new(decoder)
        }
    };
    Ok(BoundedReader { reader, left, max: left })
}

/// Splits a name inside the image; `None` if it leads out or is not UTF-8.
pub(super) fn parts(path: &Path) -> Option<Parts> {
    let mut parts = Parts::new();
    for component in path.components() {
        match component {
            Component::RootDir | Component::CurDir => {}
            Component::Normal(part) => parts.push(part.to_str()?.to_owned()),
            Component::ParentDir | Component::Prefix(_) => return None,
        }
    }
    Some(parts)
}

/// The accumulated size of the layers.
#[derive(Default)]
pub(super) struct LayerSize {
    entries: u64,
    names_bytes: usize,
}

impl LayerSize {
    fn add(&mut self, name_bytes: usize) -> Result<(), Refusal> {
        self.entries += 1;
        self.names_bytes += name_bytes;
        if self.entries > ENTRIES_MAX {
            return Err(Refusal::TooLarge(format!("its layers have more than {ENTRIES_MAX} entries")));
        }
        if self.names_bytes > NAMES_BYTES_MAX {
            return Err(Refusal::TooLarge(format!("the names in its layers have more than {NAMES_BYTES_MAX} bytes")));
        }
        Ok(())
    }
}

/// Counts an entry with its names.
pub(super) fn check_names<R: Read>(entry: &tar::Entry<'_, R>, size: &mut LayerSize) -> Result<(), Refusal> {
    let name_bytes = entry.path_bytes().len();
    let link_bytes = entry.link_name_bytes().map_or(0, |link| link.len());
    if name_bytes.max(link_bytes) > NAME_BYTES_MAX {
        return Err(Refusal::Layers("a name is too long".into()));
    }
    size.add(name_bytes + link_bytes)
}

/// Rejects a layer whose extended headers would fill memory, before anything reads them.
pub(super) fn check_extended<R: Read>(archive: &mut tar::Archive<R>) -> Result<(), Refusal> {
    for (number, entry) in archive.entries().map_err(|error| unreadable(&error))?.raw(true).enumerate() {
        let entry = entry.map_err(|error| unreadable(&error))?;
        let kind = entry.header().entry_type();
        let plain = kind.is_file() || kind.is_dir() || kind.is_symlink() || kind.is_hard_link();
        if !plain && entry.size() > EXTENDED_BYTES_MAX {
            return Err(Refusal::TooLarge("an extended header of a layer is too long".into()));
        }
        // Each entry may have an extended header or two of its own.
        if number as u64 > 3 * ENTRIES_MAX {
            return Err(Refusal::TooLarge(format!("its layers have more than {ENTRIES_MAX} entries")));
        }
    }
    Ok(())
}
