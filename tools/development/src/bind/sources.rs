//! Reads a WIT package and the packages that it depends on: those of the folder `deps` beside it, as all tools for WIT do.

use std::fs;
use std::io::{ErrorKind, Read as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

/// Maximum bytes of all texts together.
pub(super) const WIT_BYTES_MAX: usize = 512 << 10;
/// Maximum files and folders of one folder.
const ENTRIES_MAX: usize = 256;
/// The folder of dependencies.
const DEPS: &str = "deps";

/// A file: its name for messages, and its text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct WitFile {
    pub(super) name: String,
    pub(super) text: String,
}

/// The files of a package.
pub(super) type Package = Vec<WitFile>;

/// A package with its dependencies, in no order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Sources {
    pub(super) main: Package,
    pub(super) dependencies: Vec<Package>,
}

impl Sources {
    /// A text that has all that it needs.
    pub(super) fn text(name: &str, text: &str) -> Self {
        Self { main: vec![WitFile { name: name.to_owned(), text: text.to_owned() }], dependencies: Vec::new() }
    }

    /// Reads a file, or all files of a folder, with the packages of `deps` beside them.
    ///
    /// # Errors
    /// A file can't be read, is no text, or there is too much.
    pub(super) fn read(path: &Path) -> anyhow::Result<Self> {
        let mut reader = Reader { left: WIT_BYTES_MAX };
        let (folder, files) = if path.is_dir() {
            let files = wit_files(path)?;
            if files.is_empty() {
                bail!("{} has no .wit file", path.display());
            }
            (path, files)
        } else {
            let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
            (folder.unwrap_or(Path::new(".")), vec![path.to_owned()])
        };
        let main = reader.package(files)?;
        let mut dependencies = Vec::new();
        for entry in entries(&folder.join(DEPS))? {
            let files = if entry.is_dir() { wit_files(&entry)? } else { vec![entry] };
            let files: Vec<PathBuf> = files.into_iter().filter(|file| is_wit(file)).collect();
            if !files.is_empty() {
                dependencies.push(reader.package(files)?);
            }
        }
        Ok(Self { main, dependencies })
    }

    /// All files.
    pub(super) fn files(&self) -> impl Iterator<Item = &WitFile> {
        std::iter::once(&self.main).chain(&self.dependencies).flatten()
    }
}

struct Reader {
    /// Bytes that may still be read.
    left: usize,
}

impl Reader {
    fn package(&mut self, files: Vec<PathBuf>) -> anyhow::Result<Package> {
        files.iter().map(|file| self.file(file)).collect()
    }

    fn file(&mut self, path: &Path) -> anyhow::Result<WitFile> {
        let cannot =
            || format!("cannot read {}; give a .wit file, or deployment/NAME of a plugin that runs", path.display());
        let file = fs::File::open(path).with_context(cannot)?;
        let mut bytes = Vec::new();
        file.take(self.left as u64 + 1).read_to_end(&mut bytes).with_context(cannot)?;
        self.left = self.left.checked_sub(bytes.len()).with_context(|| {
            let kib = WIT_BYTES_MAX >> 10;
            format!("{}: the WIT with its dependencies is larger than {kib} KiB", path.display())
        })?;
        let text = String::from_utf8(bytes).with_context(|| format!("{} is no text", path.display()))?;
        Ok(WitFile { name: path.display().to_string(), text })
    }
}

fn is_wit(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "wit")
}

fn wit_files(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    Ok(entries(folder)?.into_iter().filter(|path| is_wit(path) && path.is_file()).collect())
}

/// What a folder has, sorted; nothing if it doesn't exist.
fn entries(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let listed = match fs::read_dir(folder) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        listed => listed.with_context(|| format!("cannot read {}", folder.display()))?,
    };
    let mut paths = Vec::new();
    for entry in listed {
        if paths.len() == ENTRIES_MAX {
            bail!("{} has more than {ENTRIES_MAX} files", folder.display());
        }
        paths.push(entry?.path());
    }
    paths.sort();
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_comes_with_its_dependencies() {
        let folder = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("wit/a.wit", "a");
        write("wit/b.wit", "b");
        write("wit/README", "no");
        write("wit/deps/kv/kv.wit", "kv");
        write("wit/deps/one.wit", "one");
        write("wit/deps/empty/README", "no");
        let texts = |package: &Package| package.iter().map(|file| file.text.clone()).collect::<Vec<_>>();
        let file = Sources::read(&folder.path().join("wit/b.wit")).unwrap();
        assert_eq!(texts(&file.main), ["b"]);
        assert_eq!(file.dependencies.iter().map(texts).collect::<Vec<_>>(), [["kv"], ["one"]]);
        let whole = Sources::read(&folder.path().join("wit")).unwrap();
        assert_eq!(texts(&whole.main), ["a", "b"]);
        assert_eq!(whole.files().count(), 4);

        let error = |path: &str| format!("{:#}", Sources::read(&folder.path().join(path)).unwrap_err());
        assert!(error("wit/deps/empty").contains("has no .wit file"));
        assert!(error("wit/none.wit").contains("give a .wit file"));
        write("wit/deps/one.wit", &" ".repeat(WIT_BYTES_MAX));
        assert!(error("wit/b.wit").contains("larger than 512 KiB"));
        fs::write(folder.path().join("wit/b.wit"), [0xff]).unwrap();
        assert!(error("wit/b.wit").contains("is no text"));
        for n in 0..=ENTRIES_MAX {
            write(&format!("many/deps/{n}"), "");
        }
        write("many/a.wit", "");
        assert!(error("many/a.wit").contains("more than 256 files"));
    }
}
