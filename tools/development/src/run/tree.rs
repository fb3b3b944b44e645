//! Detects changes of a project's sources by polling the metadata of its files, with a bounded number of files and a
//! bounded share of time. Folders of builds and dependencies, hidden folders and files that builds write are ignored.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use machinery_env::Env;

use super::watch::FileStamp;

/// Maximum files and folders of a scan: some 50 ms of system calls.
const ENTRIES_MAX: usize = 20_000;
/// Maximum depth of folders.
const DEPTH_MAX: usize = 32;
/// Minimum interval between two scans.
const SCAN_INTERVAL: Duration = Duration::from_millis(200);
/// Time between scans per time of a scan.
const REST_PER_SCAN: u32 = 10;
/// Folders of builds and dependencies, beside hidden ones.
const IGNORED_FOLDERS: [&str; 3] = ["target", "node_modules", "__pycache__"];

/// States of all files at one time.
pub(super) type Snapshot = BTreeMap<PathBuf, FileStamp>;

/// A project's sources.
#[derive(Debug)]
pub(super) struct SourceTree {
    roots: Vec<PathBuf>,
    /// Files that the build makes: the modules, and what it was seen to write.
    outputs: BTreeSet<PathBuf>,
    /// Files that changed during the last build.
    suspects: BTreeSet<PathBuf>,
    seen: Snapshot,
}

impl SourceTree {
    /// The sources below `roots`, without `modules`.
    pub(super) fn new(roots: Vec<PathBuf>, modules: &[PathBuf]) -> Self {
        Self { roots, outputs: modules.iter().cloned().collect(), suspects: BTreeSet::new(), seen: Snapshot::new() }
    }

    /// Scans the files before a build. Returns whether there are too many.
    pub(super) async fn before_build(&mut self) -> bool {
        let (seen, complete) = self.scan().await;
        self.seen = seen;
        !complete
    }

    /// Scans the files after a build. Returns whether another build is due: a source has changed meanwhile. A file that
    /// changes during two builds in a row is an output.
    pub(super) async fn after_build(&mut self) -> bool {
        let now = self.scan().await.0;
        self.note_build(now)
    }

    fn note_build(&mut self, now: Snapshot) -> bool {
        let changed: BTreeSet<PathBuf> = differences(&self.seen, &now).cloned().collect();
        self.outputs.extend(changed.intersection(&self.suspects).cloned());
        let sources = changed.iter().any(|file| !self.outputs.contains(file));
        self.suspects = changed;
        self.seen = now.into_iter().filter(|(file, _)| !self.outputs.contains(file)).collect();
        sources
    }

    /// Waits for the next change.
    pub(super) async fn changed(&mut self, env: &Env) {
        let mut rest = SCAN_INTERVAL;
        loop {
            env.sleep(rest).await;
            let began = env.elapsed();
            let now = self.scan().await.0;
            rest = SCAN_INTERVAL.max(env.elapsed().saturating_sub(began) * REST_PER_SCAN);
            if differences(&self.seen, &now).next().is_some() {
                self.seen = now;
                self.suspects.clear();
                return;
            }
        }
    }

    async fn scan(&self) -> (Snapshot, bool) {
        let (roots, outputs) = (self.roots.clone(), self.outputs.clone());
        tokio::task::spawn_blocking(move || scan(&roots, &outputs)).await.unwrap_or_default()
    }
}

/// The files of which one snapshot has another state than the other.
fn differences<'a>(before: &'a Snapshot, after: &'a Snapshot) -> impl Iterator<Item = &'a PathBuf> {
    let changed = after.iter().filter(|(file, stamp)| before.get(*file) != Some(*stamp)).map(|(file, _)| file);
    changed.chain(before.keys().filter(|file| !after.contains_key(*file)))
}

/// The states of all files below `roots` that are no modules, and whether that are all. Links to folders are not followed.
fn scan(roots: &[PathBuf], outputs: &BTreeSet<PathBuf>) -> (Snapshot, bool) {
    let mut found = Snapshot::new();
    let mut folders: Vec<(PathBuf, usize)> = Vec::new();
    let mut entries = 0;
    for root in roots {
        match std::fs::metadata(root) {
            Ok(metadata) if metadata.is_dir() => folders.push((root.clone(), 0)),
            Ok(metadata) if !outputs.contains(root) => {
                found.insert(root.clone(), FileStamp::of(&metadata));
            }
            Ok(_) | Err(_) => {}
        }
    }
    while let Some((folder, depth)) = folders.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            entries += 1;
            if entries > ENTRIES_MAX {
                return (found, false);
            }
            let path = entry.path();
            let Ok(kind) = entry.file_type() else { continue };
            if kind.is_dir() {
                if depth < DEPTH_MAX && !is_ignored(&path) {
                    folders.push((path, depth + 1));
                }
            } else if !outputs.contains(&path)
                && path.extension().is_none_or(|extension| extension != "wasm")
                && let Ok(metadata) = std::fs::metadata(&path)
                && metadata.is_file()
            {
                found.insert(path, FileStamp::of(&metadata));
            }
        }
    }
    (found, true)
}

fn is_ignored(folder: &Path) -> bool {
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    name.starts_with('.') || IGNORED_FOLDERS.contains(&&*name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(folder: &Path, name: &str, text: &str) -> PathBuf {
        let path = folder.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        path
    }

    #[test]
    fn sources_are_found_and_outputs_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let source = write(root, "src/a/main.rs", "one");
        let module = write(root, "app", "module");
        for ignored in
            ["target/x/a.rs", "out/app.wasm", "node_modules/p/index.js", ".git/HEAD", "src/__pycache__/a.pyc"]
        {
            write(root, ignored, "x");
        }
        #[cfg(unix)]
        std::os::unix::fs::symlink(root, root.join("src/loop")).unwrap();
        let outputs = BTreeSet::from([module]);
        let (before, complete) = scan(&[root.to_owned()], &outputs);
        assert!(complete && before.keys().eq([&source]), "{before:?}");
        assert_eq!(scan(&[source.clone(), root.join("none")], &outputs).0.len(), 1);
        let new = write(root, "src/b.rs", "");
        write(root, "src/a/main.rs", "three");
        let after = scan(&[root.to_owned()], &outputs).0;
        assert_eq!(differences(&before, &after).collect::<Vec<_>>(), [&source, &new]);
        assert_eq!(differences(&after, &before).count(), 2);
        (0..=ENTRIES_MAX).for_each(|n| drop(std::fs::File::create(root.join(format!("src/{n}"))).unwrap()));
        let (many, complete) = scan(&[root.to_owned()], &outputs);
        assert!(!complete && many.len() <= ENTRIES_MAX);
    }

    #[test]
    fn files_that_two_builds_write_are_outputs() {
        let folder = tempfile::tempdir().unwrap();
        let stamp = |text: &str| {
            let file = folder.path().join(text);
            let file = if file.exists() { file } else { write(folder.path(), text, text) };
            FileStamp::of(&file.metadata().unwrap())
        };
        let snapshot = |generated: &str, source: &str| -> Snapshot {
            [("generated.js", stamp(generated)), ("main.js", stamp(source))].map(|(f, s)| (f.into(), s)).into()
        };
        let mut tree = SourceTree::new(Vec::new(), &[]);
        tree.seen = snapshot("0", "1");
        assert!(tree.note_build(snapshot("1", "1")), "it may have been a source");
        assert!(!tree.note_build(snapshot("22", "1")), "it is an output");
        assert!(!tree.note_build(snapshot("333", "1")));
        assert!(tree.note_build(snapshot("4444", "22")), "a source has changed during the build");
        assert!(!tree.note_build(snapshot("5", "22")));
    }
}
