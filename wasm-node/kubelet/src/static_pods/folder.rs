//! Reads a folder of manifests, or one file. Reparses changed files, and reports each problem once.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use k8s_openapi::api::core::v1::Pod;
use machinery_env::Env;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::manifest::parse;

/// The interval between two reads of the folder.
const INTERVAL: Duration = Duration::from_secs(1);
/// The interval after a slow read is this multiple of the read's duration, so that reads take 1/20 of the time.
const READ_COST: u32 = 20;
/// The maximum interval after a slow read, as `fileCheckFrequency` of upstream's kubelet: one expensive manifest delays
/// a change of another one by no more.
const INTERVAL_MAX: Duration = Duration::from_secs(20);
/// The maximum number of files, as a node's maximum number of pods; further files are ignored.
const FILES_MAX: usize = 2000;
/// The maximum size of a manifest (the API's bound of an object).
const FILE_BYTES_MAX: u64 = 3 << 20;

/// The modification time and size of a file, to detect changes.
type Stamp = (Option<SystemTime>, u64);

struct ManifestEntry {
    stamp: Stamp,
    pod: Option<Arc<Pod>>,
}

/// A folder of manifests.
pub(crate) struct Folder {
    path: PathBuf,
    node: String,
    entries: BTreeMap<PathBuf, ManifestEntry>,
    too_many: bool,
}

impl Folder {
    pub(crate) fn new(path: PathBuf, node: String) -> Self {
        Self { path, node, entries: BTreeMap::new(), too_many: false }
    }

    /// The pods of the current manifests, by uid. An unreadable file ends its pod.
    pub(crate) fn read(&mut self, env: &Env) -> BTreeMap<String, Arc<Pod>> {
        let files = self.files();
        let there: BTreeSet<&PathBuf> = files.iter().map(|(path, _)| path).collect();
        self.entries.retain(|path, _| there.contains(path));
        for (path, stamp) in &files {
            if self.entries.get(path).is_some_and(|entry| entry.stamp == *stamp) {
                continue;
            }
            let now = env.now().to_string();
            let pod = read(path).and_then(|text| parse(&text, &self.node, &path.display().to_string(), &now));
            if let Err(why) = &pod {
                tracing::warn!(file = %path.display(), why, "a manifest of a static pod cannot be used");
            }
            // The time in the annotation is no change.
            let before = self.entries.get(path).and_then(|entry| entry.pod.clone());
            let pod = pod.ok().map(Arc::new);
            let same = |a: &Arc<Pod>, b: &Arc<Pod>| a.metadata.uid == b.metadata.uid;
            let pod = match (pod, before) {
                (Some(pod), Some(before)) if same(&pod, &before) => Some(before),
                (pod, _) => pod,
            };
            self.entries.insert(path.clone(), ManifestEntry { stamp: *stamp, pod });
        }
        let (mut pods, mut names) = (BTreeMap::new(), BTreeSet::new());
        for (path, ManifestEntry { pod, .. }) in &self.entries {
            let Some(pod) = pod else { continue };
            let name = (pod.metadata.namespace.clone(), pod.metadata.name.clone());
            if names.insert(name.clone()) {
                pods.insert(pod.metadata.uid.clone().unwrap_or_default(), pod.clone());
            } else {
                tracing::debug!(file = %path.display(), ?name, "another manifest has this pod's name");
            }
        }
        pods
    }

    /// The visible files in the order of their names.
    fn files(&mut self) -> Vec<(PathBuf, Stamp)> {
        let stamp = |path: &Path| {
            let metadata = fs::metadata(path).ok().filter(fs::Metadata::is_file)?;
            Some((metadata.modified().ok(), metadata.len()))
        };
        if let Some(stamp) = stamp(&self.path) {
            return vec![(self.path.clone(), stamp)];
        }
        let visible = |entry: &fs::DirEntry| !entry.file_name().as_encoded_bytes().starts_with(b".");
        let entries = fs::read_dir(&self.path).into_iter().flatten().flatten().filter(visible);
        let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
        let too_many = paths.len() > FILES_MAX;
        if too_many && !self.too_many {
            tracing::warn!(folder = %self.path.display(), files = paths.len(), "only the first {FILES_MAX} manifests are read");
        }
        self.too_many = too_many;
        paths.sort_unstable();
        paths.truncate(FILES_MAX);
        paths.into_iter().filter_map(|path| stamp(&path).map(|stamp| (path, stamp))).collect()
    }
}

/// Opens without blocking: the file may have become a pipe, whose open would wait for a writer.
fn open(path: &Path) -> std::io::Result<fs::File> {
    let mut options = fs::OpenOptions::new();
    options.read(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt as _;
        options.custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed());
    }
    options.open(path)
}

fn read(path: &Path) -> Result<String, String> {
    let mut text = String::new();
    let file = open(path).map_err(|error| error.to_string())?;
    if !file.metadata().is_ok_and(|metadata| metadata.is_file()) {
        return Err("it is no file any more".into());
    }
    file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(|error| error.to_string())?;
    if text.len() as u64 > FILE_BYTES_MAX { Err("it is larger than 3 MiB".into()) } else { Ok(text) }
}

/// Publishes the folder's pods until `stop`.
pub(crate) async fn watch(
    mut folder: Folder,
    env: Env,
    pods: watch::Sender<BTreeMap<String, Arc<Pod>>>,
    stop: CancellationToken,
) {
    loop {
        let (clock, began) = (env.clone(), env.elapsed());
        let read = tokio::task::spawn_blocking(move || {
            let now = folder.read(&clock);
            (folder, now)
        });
        let Ok((back, now)) = read.await else { return };
        folder = back;
        pods.send_if_modified(|pods| {
            let changed = pods.keys().ne(now.keys());
            *pods = now;
            changed
        });
        tokio::select! {
            () = stop.cancelled() => return,
            () = env.sleep(interval_after(env.elapsed() - began)) => {}
        }
    }
}

/// The interval after a read of this duration.
fn interval_after(read: Duration) -> Duration {
    read.saturating_mul(READ_COST).clamp(INTERVAL, INTERVAL_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(name: &str, image: &str) -> String {
        format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, spec: {{containers: [{{name: c, image: {image}}}]}}}}"
        )
    }

    fn names(pods: &BTreeMap<String, Arc<Pod>>) -> Vec<String> {
        let mut names: Vec<_> = pods.values().filter_map(|pod| pod.metadata.name.clone()).collect();
        names.sort();
        names
    }

    #[test]
    fn manifests_run_and_garbage_harms_no_other() {
        let (root, env) = (tempfile::tempdir().unwrap(), Env::real());
        let at = |name: &str| root.path().join(name);
        let mut folder = Folder::new(root.path().to_owned(), "n".into());
        assert!(folder.read(&env).is_empty());
        fs::write(at("a.yaml"), manifest("a", "i")).unwrap();
        fs::write(at("b.json"), manifest("b", "i")).unwrap();
        fs::write(at(".hidden.yaml"), manifest("hidden", "i")).unwrap();
        fs::write(at("again.yaml"), manifest("a", "other")).unwrap();
        fs::write(at("bytes"), [0xff, 0xfe, 0]).unwrap();
        fs::write(at("large.yaml"), vec![b'#'; 4 << 20]).unwrap();
        fs::create_dir(at("folder")).unwrap();
        #[cfg(unix)]
        {
            std::os::unix::fs::symlink("/dev/zero", at("endless")).unwrap();
            std::os::unix::fs::symlink(at("loop"), at("loop")).unwrap();
        }
        let first = folder.read(&env);
        assert_eq!(names(&first), ["a-n", "b-n"]);
        fs::write(at("b.json"), "nonsense").unwrap();
        fs::write(at("a.yaml"), manifest("a", "changed")).unwrap();
        let second = folder.read(&env);
        assert_eq!(names(&second), ["a-n"]);
        assert!(second.keys().all(|uid| !first.contains_key(uid)), "what has changed is another pod");
        fs::remove_file(at("a.yaml")).unwrap();
        assert_eq!(names(&folder.read(&env)), ["a-n"], "the other manifest of that name has its turn");
        fs::remove_dir_all(root.path()).unwrap();
        assert!(folder.read(&env).is_empty());
    }

    #[cfg(unix)]
    #[test]
    fn a_manifest_that_became_a_pipe_does_not_block() {
        let root = tempfile::tempdir().unwrap();
        let pipe = root.path().join("pipe.yaml");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        assert_eq!(read(&pipe), Err("it is no file any more".into()));
        assert_eq!(Folder::new(root.path().to_owned(), "n".into()).read(&Env::real()).len(), 0);
    }

    #[test]
    fn a_slow_read_delays_the_next_one_by_a_bounded_time() {
        let after = |millis| interval_after(Duration::from_millis(millis)).as_millis();
        assert_eq!([after(0), after(50), after(500), after(4000)], [1000, 1000, 10_000, 20_000]);
        assert_eq!(interval_after(Duration::MAX), INTERVAL_MAX);
    }

    #[test]
    fn of_ten_thousand_files_the_first_are_read() {
        let (root, env) = (tempfile::tempdir().unwrap(), Env::real());
        for n in 0..10_000 {
            fs::write(root.path().join(format!("{n:05}.yaml")), "x").unwrap();
        }
        fs::write(root.path().join("00000.yaml"), manifest("first", "i")).unwrap();
        let mut folder = Folder::new(root.path().to_owned(), "n".into());
        assert_eq!(names(&folder.read(&env)), ["first-n"]);
        assert_eq!(folder.entries.len(), FILES_MAX);
    }
}
