//! Writes a volume's files atomically: a reader sees all of the old ones or all of the new ones.
//!
//! Guests may rely on upstream's layout: the files are in a folder of their own, `..data` links to it, and each
//! top-level name is a link through `..data`. Replacing that one link changes all of them at once.

use std::collections::BTreeSet;
use std::io::{self, Write as _};
use std::path::{Component, Path, PathBuf};

use super::files::{File, Files};

const DATA: &str = "..data";
const DATA_NEXT: &str = "..data_tmp";

/// Makes `dir` contain exactly `files`. `stamp` names the new folder and must differ at each change. Returns whether
/// anything changed.
pub fn write(dir: &Path, files: &Files, stamp: &str) -> io::Result<bool> {
    for path in files.keys() {
        check(path)?;
    }
    let is_new = make(dir)?;
    let before = if is_new { None } else { std::fs::read_link(dir.join(DATA)).ok() };
    if let Some(before) = before.filter(|before| same(&dir.join(before), files)) {
        // An earlier write may have been interrupted before its end.
        complete(dir, &before, files)?;
        return Ok(false);
    }
    let name = PathBuf::from(format!("..{stamp}"));
    let fresh = dir.join(&name);
    std::fs::create_dir(&fresh)?;
    let shown = || if is_new { link(&name, &dir.join(DATA)) } else { swap(dir, &name) };
    if let Err(error) = fill(&fresh, files).and_then(|()| shown()) {
        // A partial version would occupy the space that the next try needs.
        for left in [std::fs::remove_dir_all(&fresh), std::fs::remove_file(dir.join(DATA_NEXT))] {
            if let Err(left) = left.or_else(absent) {
                tracing::warn!(folder = %fresh.display(), error = %left, "a partial version of a volume cannot be removed");
            }
        }
        return Err(error);
    }
    if is_new {
        // The folder is new: no other names exist.
        tops(files).iter().try_for_each(|top| link(&Path::new(DATA).join(top), &dir.join(top)))?;
    } else {
        complete(dir, &name, files)?;
    }
    Ok(true)
}

/// Creates the folder, and returns whether it was missing. Its parent usually exists, as a pod's volumes are in one
/// folder.
fn make(dir: &Path) -> io::Result<bool> {
    let made = match (std::fs::create_dir(dir), dir.parent()) {
        (Err(error), Some(parent)) if error.kind() == io::ErrorKind::NotFound => {
            std::fs::create_dir_all(parent)?;
            std::fs::create_dir(dir)
        }
        (made, _) => made,
    };
    match made {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => Ok(false),
        Err(error) => Err(error),
    }
}

fn tops(files: &Files) -> BTreeSet<&str> {
    files.keys().filter_map(|path| path.split('/').next()).collect()
}

fn absent(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

fn fill(fresh: &Path, files: &Files) -> io::Result<()> {
    for (path, file) in files {
        let at = fresh.join(path);
        if path.contains('/')
            && let Some(parent) = at.parent()
        {
            std::fs::create_dir_all(parent)?;
        }
        let mut options = std::fs::OpenOptions::new();
        options.write(true).create(true).truncate(true);
        let mut written = with_mode(&mut options, file.mode).open(at)?;
        written.write_all(&file.bytes)?;
        set_mode(&written, file.mode)?;
    }
    Ok(())
}

/// Switches readers to that folder.
fn swap(dir: &Path, name: &Path) -> io::Result<()> {
    let next = dir.join(DATA_NEXT);
    std::fs::remove_file(&next).or_else(absent)?;
    link(name, &next)?;
    std::fs::rename(&next, dir.join(DATA))
}

/// Links the names of the files in the current folder, to which `..data` leads, and removes all other names and
/// folders.
fn complete(dir: &Path, name: &Path, files: &Files) -> io::Result<()> {
    let tops = tops(files);
    for top in &tops {
        let visible = dir.join(top);
        if std::fs::symlink_metadata(&visible).is_err() {
            link(&Path::new(DATA).join(top), &visible)?;
        }
    }
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let own = entry.file_name();
        if own == DATA || own == name || own.to_str().is_some_and(|own| tops.contains(own)) {
            continue;
        }
        if entry.file_type()?.is_dir() {
            std::fs::remove_dir_all(entry.path())?;
        } else {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Checks that a path stays inside the volume, and differs from the writer's own names. The API server has checked
/// this, too.
fn check(path: &str) -> io::Result<()> {
    let plain = Path::new(path).components().all(|part| matches!(part, Component::Normal(_)));
    if plain && !path.is_empty() && !path.starts_with("..") {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{path:?} is no path of a file in a volume")))
}

fn same(dir: &Path, files: &Files) -> bool {
    let mut found = BTreeSet::new();
    walk(dir, &mut PathBuf::new(), &mut found).is_ok()
        && found.len() == files.len()
        && files.iter().all(|(path, file)| found.contains(Path::new(path)) && is(&dir.join(path), file))
}

fn is(path: &Path, file: &File) -> bool {
    std::fs::read(path).is_ok_and(|bytes| bytes == file.bytes) && mode_of(path).is_none_or(|mode| mode == file.mode)
}

fn walk(dir: &Path, at: &mut PathBuf, found: &mut BTreeSet<PathBuf>) -> io::Result<()> {
    for entry in std::fs::read_dir(dir.join(&*at))? {
        let entry = entry?;
        at.push(entry.file_name());
        if entry.file_type()?.is_dir() {
            walk(dir, at, found)?;
        } else {
            found.insert(at.clone());
        }
        at.pop();
    }
    Ok(())
}

#[cfg(unix)]
fn link(to: &Path, at: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(to, at)
}

#[cfg(windows)]
fn link(to: &Path, at: &Path) -> io::Result<()> {
    std::os::windows::fs::symlink_dir(to, at)
}

/// Restricts a file to its mode from its creation on, also while it is written.
#[cfg(unix)]
fn with_mode(options: &mut std::fs::OpenOptions, mode: u32) -> &std::fs::OpenOptions {
    use std::os::unix::fs::OpenOptionsExt as _;
    options.mode(mode)
}

#[cfg(windows)]
fn with_mode(options: &mut std::fs::OpenOptions, _mode: u32) -> &std::fs::OpenOptions {
    options
}

/// The process's umask may have removed bits.
#[cfg(unix)]
fn set_mode(file: &std::fs::File, mode: u32) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    file.set_permissions(std::fs::Permissions::from_mode(mode))
}

#[cfg(windows)]
fn set_mode(_file: &std::fs::File, _mode: u32) -> io::Result<()> {
    Ok(())
}

#[cfg(unix)]
fn mode_of(path: &Path) -> Option<u32> {
    use std::os::unix::fs::PermissionsExt as _;
    Some(std::fs::metadata(path).ok()?.permissions().mode() & 0o777)
}

#[cfg(windows)]
fn mode_of(_path: &Path) -> Option<u32> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(of: &[(&str, &str)]) -> Files {
        of.iter().map(|(p, text)| ((*p).to_owned(), File { bytes: text.as_bytes().to_vec(), mode: 0o600 })).collect()
    }

    #[test]
    fn a_change_swaps_one_link() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("v");
        assert!(write(&dir, &files(&[("a", "1"), ("d/b", "2")]), "one").unwrap());
        assert!(!write(&dir, &files(&[("a", "1"), ("d/b", "2")]), "two").unwrap(), "nothing changed");
        assert_eq!(std::fs::read_link(dir.join("..data")).unwrap(), Path::new("..one"));
        assert_eq!(std::fs::read_to_string(dir.join("d/b")).unwrap(), "2");
        assert!(write(&dir, &files(&[("a", "3"), ("c", "4")]), "three").unwrap());
        assert_eq!(std::fs::read_to_string(dir.join("a")).unwrap(), "3");
        let mut names: Vec<String> =
            std::fs::read_dir(&dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        assert_eq!(names, ["..data", "..three", "a", "c"]);
    }

    #[cfg(unix)]
    #[test]
    fn a_file_has_its_mode_under_any_umask() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("pods/p/volumes/v");
        let modes = [("a", 0o600), ("d/b", 0o666), ("c", 0o444)];
        let of = |(path, mode): &(&str, u32)| ((*path).to_owned(), File { bytes: b"x".to_vec(), mode: *mode });
        assert!(write(&dir, &modes.iter().map(of).collect(), "one").unwrap());
        assert_eq!(modes.map(|(path, _)| mode_of(&dir.join(path)).unwrap()), modes.map(|(_, mode)| mode));
    }

    /// A first version that was interrupted before it became visible.
    #[test]
    fn a_folder_that_is_there_without_a_version_is_filled() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("v");
        std::fs::create_dir_all(dir.join("..half")).unwrap();
        assert!(write(&dir, &files(&[("a", "1")]), "one").unwrap());
        let names = std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        assert_eq!(names.collect::<BTreeSet<_>>(), BTreeSet::from(["..data", "..one", "a"].map(str::to_owned)));
        std::fs::write(root.path().join("file"), "").unwrap();
        assert!(write(&root.path().join("file"), &files(&[("a", "1")]), "one").is_err(), "no folder");
    }

    /// The state left by a node that was killed during a write.
    #[test]
    fn interrupted_writes_are_completed() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("v");
        let new = files(&[("a", "3"), ("c", "4")]);
        let names = || {
            let entries = std::fs::read_dir(&dir).unwrap();
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect::<BTreeSet<_>>()
        };
        let whole = |data: &str| BTreeSet::from(["..data", data, "a", "c"].map(str::to_owned));
        write(&dir, &files(&[("a", "1"), ("b", "2")]), "one").unwrap();
        std::fs::create_dir(dir.join("..half")).unwrap();
        std::fs::write(dir.join("..half/a"), "3").unwrap();
        assert!(write(&dir, &new, "two").unwrap(), "killed before the link was swapped");
        assert_eq!(names(), whole("..two"));
        std::fs::remove_file(dir.join("c")).unwrap();
        link(Path::new("..data/b"), &dir.join("b")).unwrap();
        std::fs::create_dir(dir.join("..one")).unwrap();
        assert!(!write(&dir, &new, "three").unwrap(), "killed after it was");
        assert_eq!(names(), whole("..two"));
        assert_eq!(std::fs::read_to_string(dir.join("c")).unwrap(), "4");
    }

    /// A name too long for the file system simulates a disk that becomes full during a write.
    #[test]
    fn a_version_that_cannot_be_written_leaves_nothing_and_the_old_one_stays() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("v");
        write(&dir, &files(&[("a", "1")]), "one").unwrap();
        let long = "z".repeat(300);
        assert!(write(&dir, &files(&[("a", "2"), (&long, "3")]), "two").is_err());
        let names = std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        assert_eq!(names.collect::<BTreeSet<_>>(), BTreeSet::from(["..data", "..one", "a"].map(str::to_owned)));
        assert_eq!(std::fs::read_to_string(dir.join("a")).unwrap(), "1");
        assert!(write(&dir, &files(&[("a", "2")]), "three").unwrap());
        assert_eq!(std::fs::read_to_string(dir.join("a")).unwrap(), "2");
    }

    #[test]
    fn no_path_leads_out() {
        let root = tempfile::tempdir().unwrap();
        for path in ["../x", "/etc/x", "a/../../x", "..data", ""] {
            assert!(write(&root.path().join("v"), &files(&[(path, "1")]), "one").is_err(), "{path:?}");
        }
    }
}
