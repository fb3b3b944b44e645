//! Writes a project's files: all of them or none.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

use super::render::ProjectFile;

/// Writes the files to a temporary folder beside `folder`, and renames that.
///
/// # Errors
/// If `folder` has files, or the files can't be written. Then nothing is left behind.
pub(super) fn write(folder: &Path, files: &[ProjectFile]) -> anyhow::Result<()> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        entries => Some(entries?),
    };
    if entries.is_some_and(|mut entries| entries.next().is_some()) {
        bail!("the folder is not empty: name another one with --dir")
    }
    let parent = parent(folder)?;
    fs::create_dir_all(&parent).with_context(|| format!("cannot make {}", parent.display()))?;
    let beside = tempfile::Builder::new().prefix(".coracle-new-").tempdir_in(&parent)?;
    let project = beside.path().join("project");
    for file in files {
        let path = project.join(&file.path);
        fs::create_dir_all(path.parent().unwrap_or(&project))?;
        fs::write(&path, &file.content).with_context(|| format!("cannot write {}", file.path))?;
    }
    // An empty folder is replaced; on Windows, rename doesn't do this.
    match fs::remove_dir(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
        _ => fs::rename(&project, folder)?,
    }
    Ok(())
}

/// The folder of a folder.
fn parent(folder: &Path) -> anyhow::Result<PathBuf> {
    let absolute = std::path::absolute(folder)?;
    // `.` and `..` name a folder whose own name is not known here.
    let named = folder.file_name().and(absolute.parent());
    Ok(named.context("the folder needs a name of its own: name another one with --dir")?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files() -> Vec<ProjectFile> {
        ["a", "b/c"].map(|path| ProjectFile { path: path.to_owned(), content: format!("{path}\n") }).into()
    }

    #[test]
    fn folders_with_files_are_left_alone() {
        let work = tempfile::tempdir().unwrap();
        let folder = work.path().join("deep/project");
        write(&folder, &files()).unwrap();
        assert_eq!(fs::read_to_string(folder.join("b/c")).unwrap(), "b/c\n");
        let why = write(&folder, &files()).unwrap_err();
        assert!(format!("{why:#}").contains("not empty"), "{why:#}");
        let empty = work.path().join("empty");
        fs::create_dir(&empty).unwrap();
        write(&empty, &files()).unwrap();
        assert_eq!(fs::read_to_string(empty.join("a")).unwrap(), "a\n");
        let file = work.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(write(&file, &files()).is_err() && write(&file.join("below"), &files()).is_err());
        assert!(write(Path::new("/"), &files()).is_err() && write(&work.path().join(".."), &files()).is_err());
    }

    #[test]
    fn a_failure_leaves_nothing_behind() {
        let work = tempfile::tempdir().unwrap();
        let mut files = files();
        files.push(ProjectFile { path: "a/below-a-file".to_owned(), content: String::new() });
        assert!(write(&work.path().join("project"), &files).is_err());
        assert_eq!(fs::read_dir(work.path()).unwrap().count(), 0);
    }
}
