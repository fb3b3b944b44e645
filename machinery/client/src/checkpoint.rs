//! Checkpoint files: what a component needs for a start while the API server is unreachable.
//!
//! A file has one header line, `coracle-checkpoint FORMAT KIND CRC32 BYTES`, and a body of that length. [`encode`] and
//! [`decode`] are pure. [`write`] replaces a file atomically with mode 0600; [`read`] is bounded. Invariant: a process
//! that is killed at any point leaves the previous file or the new one.

use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

/// The format of this version. A newer one is rejected.
pub const FORMAT: u32 = 1;
/// The first word of a file.
const MAGIC: &str = "coracle-checkpoint";
/// The maximum length of a header line in bytes: the words of the longest valid one have less.
pub const HEADER_BYTES_MAX: usize = 128;
/// The suffix of a file that is being written.
const PARTIAL: &str = "partial";
/// The folder in which earlier versions kept rejected files.
const ASIDE: &str = "aside";

/// Why a file is no usable checkpoint.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The content is none that this program has written completely.
    #[error("it is damaged: {0}")]
    Damaged(String),
    /// A newer program has written it.
    #[error("it has format {0}; this program reads format {FORMAT}")]
    Newer(u32),
    /// It belongs to another node.
    #[error("it belongs to {0}")]
    Foreign(String),
    /// It can't be read.
    #[error("it cannot be read: {0}")]
    Io(#[from] io::Error),
}

impl CheckpointError {
    /// The error of damaged content.
    pub fn damaged(why: impl ToString) -> Self {
        Self::Damaged(why.to_string())
    }
}

/// The file of a body. `kind` is one word of lower-case letters.
#[must_use]
pub fn encode(kind: &str, body: &[u8]) -> Vec<u8> {
    let mut bytes = format!("{MAGIC} {FORMAT} {kind} {:08x} {}\n", crc32fast::hash(body), body.len()).into_bytes();
    bytes.extend_from_slice(body);
    bytes
}

/// The body of a file of that kind.
///
/// # Errors
/// [`CheckpointError::Newer`] for a newer format, else [`CheckpointError::Damaged`].
pub fn decode<'a>(kind: &str, bytes: &'a [u8]) -> Result<&'a [u8], CheckpointError> {
    let damaged = |why: &str| Err(CheckpointError::damaged(why));
    let head = &bytes[..bytes.len().min(HEADER_BYTES_MAX)];
    let Some(end) = head.iter().position(|byte| *byte == b'\n') else { return damaged("the header is incomplete") };
    let Ok(header) = std::str::from_utf8(&head[..end]) else { return damaged("the header is no text") };
    let words: Vec<&str> = header.split(' ').collect();
    let format = match words.as_slice() {
        [MAGIC, format, ..] => format.parse::<u32>().ok(),
        _ => return damaged("it is no checkpoint"),
    };
    match format {
        Some(format) if format > FORMAT => return Err(CheckpointError::Newer(format)),
        Some(FORMAT) => {}
        _ => return damaged("its format is unknown"),
    }
    let [_, _, of, sum, length] = words.as_slice() else { return damaged("the header is incomplete") };
    if *of != kind {
        return damaged("it is of another kind");
    }
    let body = &bytes[end + 1..];
    if length.parse() != Ok(body.len()) {
        return damaged("its length differs from the header's");
    }
    if u32::from_str_radix(sum, 16) != Ok(crc32fast::hash(body)) {
        return damaged("its checksum differs from the header's");
    }
    Ok(body)
}

/// A completed step of [`write`], for tests that stop after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WriteStep {
    Created,
    HalfWritten,
    Written,
    Synced,
    Renamed,
}

/// The name of the file that is renamed to `path`.
fn partial(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".");
    name.push(PARTIAL);
    path.with_file_name(name)
}

/// Whether a folder's entry is an unfinished file of an earlier run.
#[must_use]
pub fn is_partial(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == PARTIAL)
}

/// Replaces the file at `path`, in an existing folder. One writer at a time.
///
/// # Errors
/// The system's error, as on a full disk. The previous file stays.
pub fn write(path: &Path, kind: &str, body: &[u8]) -> io::Result<()> {
    let bytes = encode(kind, body);
    let written = write_steps(path, &bytes, |_| true);
    if written.is_err() {
        // It would occupy space that the next attempt needs.
        let _ = std::fs::remove_file(partial(path));
    }
    written
}

fn write_steps(path: &Path, bytes: &[u8], goes_on: impl Fn(WriteStep) -> bool) -> io::Result<()> {
    let partial = partial(path);
    // An earlier run may have left it, with any mode.
    std::fs::remove_file(&partial).or_else(absent)?;
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(&partial)?;
    if !goes_on(WriteStep::Created) {
        return Ok(());
    }
    let (first, second) = bytes.split_at(bytes.len() / 2);
    file.write_all(first)?;
    if !goes_on(WriteStep::HalfWritten) {
        return Ok(());
    }
    file.write_all(second)?;
    if !goes_on(WriteStep::Written) {
        return Ok(());
    }
    // Without this, a power loss after the rename could leave an empty file.
    file.sync_all()?;
    if !goes_on(WriteStep::Synced) {
        return Ok(());
    }
    std::fs::rename(&partial, path)?;
    goes_on(WriteStep::Renamed);
    Ok(())
}

fn absent(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

/// Removes the file; an absent one is no error.
///
/// # Errors
/// The system's error.
pub fn remove(path: &Path) -> io::Result<()> {
    std::fs::remove_file(path).or_else(absent)
}

/// Makes renames and removals in a folder durable.
///
/// # Errors
/// The system's error.
#[cfg(unix)]
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    std::fs::File::open(folder)?.sync_all()
}

/// Makes renames and removals in a folder durable: this system does it itself.
///
/// # Errors
/// Never.
#[cfg(not(unix))]
pub fn sync_folder(_: &Path) -> io::Result<()> {
    Ok(())
}

/// Reads the body of a file of that kind; `None` if there is no file. Reads at most `bytes_max` bytes. Blocks.
///
/// # Errors
/// See [`CheckpointError`].
pub fn read(path: &Path, kind: &str, bytes_max: usize) -> Result<Option<Vec<u8>>, CheckpointError> {
    let file = match std::fs::File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    if !file.metadata()?.is_file() {
        return Err(CheckpointError::damaged("it is no file"));
    }
    let mut bytes = Vec::new();
    file.take(bytes_max as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > bytes_max {
        return Err(CheckpointError::Damaged(format!("it has more than {bytes_max} bytes")));
    }
    decode(kind, &bytes).map(|body| Some(body.to_vec()))
}

/// Removes a rejected file, and logs a warning with the reason. It may hold Secrets, and no later start can use it.
pub fn discard(path: &Path, error: &CheckpointError) {
    tracing::warn!(file = %path.display(), %error, "a checkpoint cannot be used; it is removed");
    if let Err(error) = remove(path) {
        tracing::warn!(file = %path.display(), %error, "a rejected checkpoint cannot be removed");
    }
}

/// Removes the rejected files that an earlier version has kept in the folder `aside` of `folder`, with their Secrets.
///
/// # Errors
/// The system's error.
pub fn remove_kept(folder: &Path) -> io::Result<()> {
    std::fs::remove_dir_all(folder.join(ASIDE)).or_else(absent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_comes_back_and_any_change_is_found() {
        for body in [&b""[..], b"{}", b"\xff\0\n\n", &[7; 5000]] {
            let bytes = encode("pod", body);
            assert_eq!(decode("pod", &bytes).unwrap(), body);
            assert!(matches!(decode("node", &bytes), Err(CheckpointError::Damaged(_))), "of another kind");
            for cut in [0, 1, bytes.len() / 2, bytes.len() - 1] {
                assert!(decode("pod", &bytes[..cut]).is_err(), "{cut}");
            }
            let mut longer = bytes.clone();
            longer.push(b' ');
            assert!(decode("pod", &longer).is_err());
            let step = bytes.len().div_ceil(97);
            for at in (0..bytes.len()).step_by(step) {
                let mut changed = bytes.clone();
                changed[at] ^= 0x10;
                assert!(decode("pod", &changed).is_err(), "{at}");
            }
        }
    }

    #[test]
    fn a_newer_format_is_named() {
        let newer = |text: &str| decode("pod", text.as_bytes()).map(<[u8]>::len).map_err(|error| error.to_string());
        assert_eq!(
            newer("coracle-checkpoint 2 pod with more\n").unwrap_err(),
            "it has format 2; this program reads format 1"
        );
        for damaged in
            ["coracle-checkpoint 0 pod 0 0\n", "coracle-checkpoint x pod 00000000 0\n", "other 2\n", "\n", ""]
        {
            assert!(newer(damaged).unwrap_err().starts_with("it is damaged: "), "{damaged:?}");
        }
    }

    /// A process that is killed after any step, on its first write or a later one.
    #[test]
    fn a_kill_between_the_steps_leaves_the_old_file_or_the_new_one() {
        use WriteStep::{Created, HalfWritten, Renamed, Synced, Written};
        for last in [Created, HalfWritten, Written, Synced, Renamed] {
            for before in [None, Some(b"old")] {
                let dir = tempfile::tempdir().unwrap();
                let path = dir.path().join("a.json");
                let read = || read(&path, "pod", 1000).unwrap();
                if let Some(before) = before {
                    write(&path, "pod", before).unwrap();
                }
                write_steps(&path, &encode("pod", b"new"), |step| step != last).unwrap();
                let expected = if last == Renamed { Some(&b"new"[..]) } else { before.map(|old| &old[..]) };
                assert_eq!(read().as_deref(), expected, "{last:?}");
                let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
                assert_eq!(left.iter().filter(|path| is_partial(path)).count(), usize::from(last != Renamed));
                write(&path, "pod", b"newer").unwrap();
                assert_eq!(read().as_deref(), Some(&b"newer"[..]));
                assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing else is left");
            }
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_file_is_readable_by_its_own_user_only_even_over_another() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        std::fs::write(partial(&path), "x").unwrap();
        std::fs::set_permissions(partial(&path), std::fs::Permissions::from_mode(0o666)).unwrap();
        write(&path, "pod", b"secret").unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_failed_write_keeps_the_old_file_and_leaves_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        write(&path, "pod", b"old").unwrap();
        std::fs::create_dir(partial(&path)).unwrap();
        assert!(write(&path, "pod", b"new").is_err());
        assert_eq!(read(&path, "pod", 1000).unwrap().as_deref(), Some(&b"old"[..]));
        assert!(write(&dir.path().join("none/a.json"), "pod", b"new").is_err());
    }

    #[test]
    fn reads_are_bounded_and_rejected_files_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        assert!(read(&path, "pod", 1000).unwrap().is_none());
        write(&path, "pod", &[b'x'; 2000]).unwrap();
        let error = read(&path, "pod", 1000).unwrap_err();
        assert_eq!(error.to_string(), "it is damaged: it has more than 1000 bytes");
        std::fs::create_dir(dir.path().join("folder")).unwrap();
        assert!(read(&dir.path().join("folder"), "pod", 1000).is_err());
        discard(&path, &error);
        assert!(!path.exists());
        // The attacker reads the disk later, or a backup of it: an upgrade removes what an earlier version has kept.
        std::fs::create_dir(dir.path().join(ASIDE)).unwrap();
        std::fs::write(dir.path().join(ASIDE).join("a.json"), "secret").unwrap();
        remove_kept(dir.path()).unwrap();
        remove_kept(dir.path()).unwrap();
        assert!(!dir.path().join(ASIDE).exists());
    }
}
