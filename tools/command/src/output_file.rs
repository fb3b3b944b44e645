//! A file that a verb writes: whole, or not at all.

use std::fs::File;
use std::path::Path;

use anyhow::Context as _;

/// Writes a file at once through `fill`, with mode 0644. Pipes and devices are written in place: a replacement would remove them for
/// all.
///
/// # Errors
/// On I/O errors, or if `fill` fails.
pub fn write<T>(file: &Path, fill: impl FnOnce(File) -> anyhow::Result<T>) -> anyhow::Result<T> {
    let cannot = || format!("cannot write {}", file.display());
    if std::fs::metadata(file).is_ok_and(|there| !there.is_file() && !there.is_dir()) {
        let there = std::fs::OpenOptions::new().write(true).open(file).with_context(cannot)?;
        return fill(there).with_context(cannot);
    }
    // A link's target is replaced, not the link.
    let file = &std::fs::canonicalize(file).unwrap_or_else(|_| file.to_owned());
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let beside = tempfile::Builder::new().prefix(".coracle-").tempfile_in(folder).with_context(cannot)?;
    let filled = fill(beside.as_file().try_clone().with_context(cannot)?).with_context(cannot)?;
    #[cfg(unix)]
    {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
        beside.as_file().set_permissions(mode).with_context(cannot)?;
    }
    beside.persist(file).map_err(|left| left.error).with_context(cannot)?;
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[cfg(unix)]
    #[test]
    fn a_file_is_written_whole_and_through_its_link() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("file"), dir.path().join("link"));
        let text = |text: &'static [u8]| move |mut file: File| Ok(file.write_all(text)?);
        write(&file, text(b"one")).unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        write(&link, text(b"two")).unwrap();
        assert!(link.is_symlink());
        assert_eq!(std::fs::read(&file).unwrap(), b"two");
        let failed = write(&file, |_| Err::<(), _>(anyhow::anyhow!("half")));
        assert!(failed.is_err() && std::fs::read(&file).unwrap() == b"two", "whole or not at all");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2, "nothing is left beside it");
    }
}
