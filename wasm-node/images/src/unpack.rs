//! Unpacks an image into a folder, layer over layer, for volumes. Names and links are untrusted: every step goes
//! through the folder's own descriptor and can't leave it (`cap-primitives`), whatever links earlier entries have
//! created.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Write};
use std::ops::Bound;
use std::path::{Path, PathBuf};

use cap_primitives::fs::{
    DirOptions, FollowSymlinks, OpenOptions, create_dir, hard_link, open, read_dir, remove_dir_all, remove_file, stat,
};

use super::manifest::Refusal;
use super::tar_layer::{LayerSize, Parts, check_extended, check_names, decompress, parts, size_error, unreadable};
use super::volume_manifest::Content;

/// Maximum bytes of all files together.
const UNPACKED_BYTES_MAX: u64 = 2 << 30;
/// Maximum nesting of folders, equal to the depth at which a pod's volumes are walked.
const DEPTH_MAX: usize = 64;
/// Maximum lookups of path parts, all entries together: each name may lead through forty links.
const STEPS_MAX: u64 = 64 << 20;
const LINKS_FOLLOWED: u64 = 40;
/// Bytes written between two checks of the disk's free space.
const SPACE_CHECK_BYTES: u64 = 16 << 20;

/// Why an image isn't unpacked.
#[derive(Debug, thiserror::Error)]
pub(super) enum UnpackError {
    /// The layers are invalid.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The disk failed.
    #[error(transparent)]
    Disk(io::Error),
}

/// A check for sufficient free disk space.
pub(super) type SpaceCheck<'a> = &'a dyn Fn() -> io::Result<()>;

/// Unpacks the layers (`layer` reopens each of them) into an empty folder, and returns the bytes of its files.
pub(super) fn unpack<R: Read + 'static>(
    contents: &[Content],
    layer: &mut dyn FnMut(usize) -> io::Result<R>,
    into: &Path,
    space: SpaceCheck<'_>,
) -> Result<u64, UnpackError> {
    let root = File::open(into).map_err(UnpackError::Disk)?;
    let mut tree = Tree { root, space, bytes: 0, checked: 0, links: 0, steps: 0, added: BTreeSet::new() };
    let (mut size, mut left) = (LayerSize::default(), UNPACKED_BYTES_MAX);
    for (index, content) in contents.iter().enumerate() {
        let mut open = || layer(index).map_err(UnpackError::Disk);
        match content {
            Content::File(name) => {
                let name = parts(Path::new(name)).filter(|name| !name.is_empty());
                let name = name.ok_or_else(|| Refusal::Layers("a title leads out of the volume".into()))?;
                tree.count_lookups(&name)?;
                tree.file(&name, &mut open()?)?;
            }
            Content::Tar(compression) => {
                check_extended(&mut tar::Archive::new(decompress(open()?, *compression, left)?))?;
                let mut archive = tar::Archive::new(decompress(open()?, *compression, left)?);
                tree.added.clear();
                for entry in archive.entries().map_err(|error| unreadable(&error))? {
                    let mut entry = entry.map_err(|error| unreadable(&error))?;
                    check_names(&entry, &mut size)?;
                    tree.entry(&mut entry)?;
                }
                left = archive.into_inner().left;
            }
        }
    }
    Ok(tree.bytes)
}

struct Tree<'a> {
    root: File,
    space: SpaceCheck<'a>,
    bytes: u64,
    checked: u64,
    links: u64,
    steps: u64,
    /// The names that this layer has added: whiteouts apply to the layers below.
    added: BTreeSet<Parts>,
}

/// Classifies an error as the disk's or the image's: the path resolution rejects a link that leads out.
fn classify_error(name: &[String], error: io::Error) -> UnpackError {
    use io::ErrorKind as Kind;
    match error.kind() {
        Kind::StorageFull | Kind::QuotaExceeded | Kind::ReadOnlyFilesystem | Kind::Interrupted => {
            UnpackError::Disk(error)
        }
        _ => {
            let name: String = name.join("/").chars().take(120).collect();
            UnpackError::Refused(Refusal::Layers(format!("{name:?} can't be unpacked: {error}")))
        }
    }
}

fn path(parts: &[String]) -> PathBuf {
    parts.iter().collect()
}

impl Tree<'_> {
    /// Counts the lookups of a name.
    fn count_lookups(&mut self, name: &[String]) -> Result<(), Refusal> {
        if name.len() > DEPTH_MAX {
            return Err(Refusal::TooLarge(format!("a name in its layers has more than {DEPTH_MAX} parts")));
        }
        self.steps += name.len() as u64 * (1 + self.links.min(LINKS_FOLLOWED));
        if self.steps > STEPS_MAX {
            return Err(Refusal::TooLarge(
                "the names in its layers are too many, too deep and lead through links".into(),
            ));
        }
        Ok(())
    }

    fn entry<R: Read>(&mut self, entry: &mut tar::Entry<'_, R>) -> Result<(), UnpackError> {
        let full = entry.path().map_err(|error| unreadable(&error))?.into_owned();
        let Some(name) = parts(&full) else {
            let text = format!("the name {:?} leads out of the image", full.display().to_string());
            return Err(Refusal::Layers(text).into());
        };
        self.count_lookups(&name)?;
        let Some((last, parent)) = name.split_last() else { return Ok(()) };
        if last == ".wh..wh..opq" {
            return self.apply_opaque(parent).map_err(|error| classify_error(&name, error));
        }
        if let Some(hidden) = last.strip_prefix(".wh.") {
            let hidden_path = [parent, &[hidden.to_owned()]].concat();
            return self.remove(&hidden_path).map_err(|error| classify_error(&name, error));
        }
        let kind = entry.header().entry_type();
        if kind.is_dir() {
            self.folder(&name).map_err(|error| classify_error(&name, error))?;
        } else if kind.is_symlink() {
            let target = entry.link_name().map_err(|error| unreadable(&error))?.unwrap_or_default().into_owned();
            self.links += 1;
            let linked = self.clear_path(&name).and_then(|()| symlink(&target, &self.root, &path(&name)));
            linked.map_err(|error| classify_error(&name, error))?;
        } else if kind.is_hard_link() {
            let target = entry.link_name().map_err(|error| unreadable(&error))?;
            let target = target.as_deref().and_then(parts).filter(|target| !target.is_empty());
            let target = target.ok_or_else(|| Refusal::Layers("a hard link to a file that isn't there".into()))?;
            self.count_lookups(&target)?;
            if target != name {
                let made = self.clear_path(&name).and_then(|()| self.link(&target, &name));
                made.map_err(|error| classify_error(&name, error))?;
            }
        } else if kind.is_file() || kind.is_gnu_sparse() {
            self.file(&name, entry)?;
        } else {
            // Devices and pipes are ignored.
            return Ok(());
        }
        self.added.insert(name);
        Ok(())
    }

    fn kind(&self, name: &[String]) -> io::Result<Option<bool>> {
        match stat(&self.root, &path(name), FollowSymlinks::No) {
            Ok(found) => Ok(Some(found.is_dir())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn remove(&mut self, name: &[String]) -> io::Result<()> {
        match self.kind(name)? {
            Some(true) => remove_dir_all(&self.root, &path(name)),
            Some(false) => remove_file(&self.root, &path(name)),
            None => Ok(()),
        }
    }

    /// Removes anything of that name, and creates its parent folder.
    fn clear_path(&mut self, name: &[String]) -> io::Result<()> {
        self.remove(name)?;
        let parent = &name[..name.len().saturating_sub(1)];
        if parent.is_empty() || stat(&self.root, &path(parent), FollowSymlinks::Yes).is_ok_and(|found| found.is_dir()) {
            return Ok(());
        }
        for depth in 1..=parent.len() {
            match create_dir(&self.root, &path(&parent[..depth]), &DirOptions::new()) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    fn folder(&mut self, name: &[String]) -> io::Result<()> {
        if self.kind(name)? == Some(true) {
            return Ok(());
        }
        self.clear_path(name)?;
        create_dir(&self.root, &path(name), &DirOptions::new())
    }

    fn link(&self, target: &[String], name: &[String]) -> io::Result<()> {
        hard_link(&self.root, &path(target), &self.root, &path(name))
    }

    fn file(&mut self, name: &[String], from: &mut dyn Read) -> Result<(), UnpackError> {
        let made = self.clear_path(name).and_then(|()| {
            let mut options = OpenOptions::new();
            open(&self.root, &path(name), options.write(true).create_new(true))
        });
        let mut to = made.map_err(|error| classify_error(name, error))?;
        let mut buffer = vec![0; 64 << 10];
        loop {
            let read = from.read(&mut buffer).map_err(|error| unreadable(&error))?;
            if read == 0 {
                return Ok(());
            }
            self.bytes += read as u64;
            // A sparse file is short in its layer.
            if self.bytes > UNPACKED_BYTES_MAX {
                return Err(unreadable(&size_error(UNPACKED_BYTES_MAX)).into());
            }
            if self.bytes - self.checked > SPACE_CHECK_BYTES {
                self.checked = self.bytes;
                (self.space)().map_err(UnpackError::Disk)?;
            }
            to.write_all(&buffer[..read]).map_err(UnpackError::Disk)?;
        }
    }

    /// Applies an opaque whiteout: removes what the layers below have put into the folder.
    fn apply_opaque(&mut self, folder: &[String]) -> io::Result<()> {
        if self.kind(folder)? != Some(true) && !folder.is_empty() {
            return Ok(());
        }
        let at = if folder.is_empty() { PathBuf::from(".") } else { path(folder) };
        let mut names = Vec::new();
        for entry in read_dir(&self.root, &at)? {
            names.extend(entry?.file_name().into_string().ok());
        }
        for name in names {
            let child = [folder, &[name]].concat();
            let from = (Bound::Included(child.as_slice()), Bound::Unbounded);
            let own = self.added.range::<[String], _>(from).next().is_some_and(|added| added.starts_with(&child));
            if !own {
                self.remove(&child)?;
            } else if self.kind(&child)? == Some(true) {
                self.apply_opaque(&child)?;
            }
        }
        Ok(())
    }
}

#[cfg(unix)]
fn symlink(target: &Path, root: &File, at: &Path) -> io::Result<()> {
    // Absolute targets are allowed, too: the reader of the volume resolves them, and a guest can't leave it.
    cap_primitives::fs::symlink_contents(target, root, at)
}

#[cfg(windows)]
fn symlink(target: &Path, root: &File, at: &Path) -> io::Result<()> {
    cap_primitives::fs::symlink_file(target, root, at)
}

#[cfg(test)]
mod tests;
