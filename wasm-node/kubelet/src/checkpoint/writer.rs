//! Writes the checkpoint's changes: newest state per file, in batches, with back-off after a failure. [`Queue`]'s
//! pending changes are bounded by the number of files, as a later change of a file replaces an earlier one.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use machinery_client::checkpoint;
use machinery_env::Env;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// The minimum interval of batches: a pod changes several times while it starts, and is written once.
const INTERVAL: Duration = Duration::from_secs(1);
/// The maximum number of files in a batch, so that no batch takes long: a synced write takes some milliseconds.
const BATCH_MAX: usize = 256;
/// The delay before a failed batch is retried, doubled up to the maximum. A full disk is no reason to write more.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(60);

type Encode = dyn Fn() -> Result<Vec<u8>, serde_json::Error> + Send + Sync;

/// The future content of a file. It is encoded when it is written.
#[derive(Clone)]
pub(crate) struct Body {
    kind: &'static str,
    encode: Arc<Encode>,
}

impl Body {
    pub(crate) fn of(
        kind: &'static str,
        encode: impl Fn() -> Result<Vec<u8>, serde_json::Error> + Send + Sync + 'static,
    ) -> Self {
        Self { kind, encode: Arc::new(encode) }
    }
}

#[derive(Clone)]
enum Change {
    Write(Body),
    Remove,
    /// Removes all files of pods and sources but these.
    Retain(Arc<BTreeSet<PathBuf>>),
}

/// The pending changes, by file. Pure.
#[derive(Default)]
struct PendingChanges {
    changes: BTreeMap<PathBuf, Change>,
}

impl PendingChanges {
    fn put(&mut self, file: PathBuf, change: Change) {
        self.changes.insert(file, change);
    }

    /// The next changes, removals first: a pod that is gone must not run again after a restart.
    fn take(&mut self, most: usize) -> Vec<(PathBuf, Change)> {
        let mut files: Vec<(bool, PathBuf)> =
            self.changes.iter().map(|(file, change)| (matches!(change, Change::Write(_)), file.clone())).collect();
        files.sort();
        files.truncate(most);
        files.into_iter().filter_map(|(_, file)| self.changes.remove_entry(&file)).collect()
    }

    /// Queues failed changes again, except for files with a newer one.
    fn put_back(&mut self, failed: Vec<(PathBuf, Change)>) {
        for (file, change) in failed {
            self.changes.entry(file).or_insert(change);
        }
    }
}

/// The queue of changes of one folder.
pub(super) struct Queue {
    folder: PathBuf,
    pending: Mutex<PendingChanges>,
    changed: Notify,
    /// A removal is pending: it isn't delayed.
    removal: Notify,
}

/// The file name under which [`Change::Retain`] is queued: no file has it.
const RETAIN: &str = "";

impl Queue {
    pub(super) fn new(folder: PathBuf) -> Self {
        Self { folder, pending: Mutex::default(), changed: Notify::new(), removal: Notify::new() }
    }

    fn pending(&self) -> MutexGuard<'_, PendingChanges> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn put(&self, file: PathBuf, body: Body) {
        self.pending().put(file, Change::Write(body));
        self.changed.notify_one();
    }

    pub(super) fn remove(&self, file: PathBuf) {
        self.pending().put(file, Change::Remove);
        self.changed.notify_one();
        self.removal.notify_one();
    }

    pub(super) fn retain(&self, files: BTreeSet<PathBuf>) {
        self.pending().put(RETAIN.into(), Change::Retain(Arc::new(files)));
        self.changed.notify_one();
    }

    /// Writes changes until `stop`, and the last ones after it.
    pub(super) async fn run(&self, env: &Env, stop: &CancellationToken) {
        let mut retry = RETRY_FIRST;
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                () = self.changed.notified() => {}
            }
            // Later changes of the same files join the batch.
            tokio::select! {
                () = stop.cancelled() => break,
                () = self.removal.notified() => {}
                () = env.sleep(INTERVAL) => {}
            }
            match self.write_batch(BATCH_MAX).await {
                Ok(()) => retry = RETRY_FIRST,
                Err(error) => {
                    tracing::warn!(
                        folder = %self.folder.display(), %error, retry_s = retry.as_secs(),
                        "the node's checkpoint cannot be written: a start without an API server would use older states",
                    );
                    tokio::select! {
                        () = stop.cancelled() => break,
                        () = env.sleep(retry) => {}
                    }
                    retry = (retry * 2).min(RETRY_MAX);
                }
            }
        }
        if let Err(error) = self.write_batch(usize::MAX).await {
            tracing::warn!(folder = %self.folder.display(), %error, "the node's last changes are not in its checkpoint");
        }
    }

    /// Writes a batch, and queues what failed again. Returns the first error.
    async fn write_batch(&self, most: usize) -> Result<(), String> {
        let batch = self.pending().take(most);
        let folder = self.folder.clone();
        let written = tokio::task::spawn_blocking(move || write_all(&folder, batch));
        let (failed, error) = written.await.map_err(|error| error.to_string())?;
        let mut pending = self.pending();
        pending.put_back(failed);
        if !pending.changes.is_empty() {
            self.changed.notify_one();
        }
        error.map_or(Ok(()), |error| Err(format!("{error}{}", runtime_api::disk::advice(&error))))
    }
}

/// Performs the changes. Returns those that failed, with the first error: after a failed write, further ones are not
/// tried, as the disk is their common cause; removals are.
fn write_all(folder: &Path, batch: Vec<(PathBuf, Change)>) -> (Vec<(PathBuf, Change)>, Option<io::Error>) {
    let (mut failed, mut first) = (Vec::new(), None);
    for (file, change) in batch {
        let done = match &change {
            Change::Write(_) if first.is_some() => {
                failed.push((file, change));
                continue;
            }
            Change::Write(body) => write(&folder.join(&file), body),
            Change::Remove => checkpoint::remove(&folder.join(&file)),
            Change::Retain(kept) => retain(folder, kept),
        };
        if let Err(error) = done {
            failed.push((file, change));
            first.get_or_insert(error);
        }
    }
    for folder in [folder.to_owned(), folder.join("pods"), folder.join("sources")] {
        if let Err(error) = checkpoint::sync_folder(&folder) {
            first.get_or_insert(error);
        }
    }
    (failed, first)
}

fn write(path: &Path, body: &Body) -> io::Result<()> {
    match (body.encode)() {
        Ok(bytes) => checkpoint::write(path, body.kind, &bytes),
        Err(error) => {
            // No retry would succeed.
            tracing::error!(file = %path.display(), %error, "a checkpoint cannot be encoded");
            Ok(())
        }
    }
}

fn retain(folder: &Path, kept: &BTreeSet<PathBuf>) -> io::Result<()> {
    for below in ["pods", "sources"] {
        for entry in std::fs::read_dir(folder.join(below))? {
            let entry = entry?;
            let own = Path::new(below).join(entry.file_name());
            if entry.file_type()?.is_file() && !kept.contains(&own) {
                checkpoint::remove(&entry.path())?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(text: &'static str) -> Body {
        Body::of("pod", move || Ok(text.as_bytes().to_vec()))
    }

    #[test]
    fn a_later_change_of_a_file_replaces_an_earlier_one_and_removals_come_first() {
        let mut pending = PendingChanges::default();
        for (file, change) in [
            ("a", Change::Write(body("1"))),
            ("b", Change::Write(body("1"))),
            ("c", Change::Write(body("1"))),
            ("c", Change::Remove),
            ("a", Change::Write(body("2"))),
        ] {
            pending.put(file.into(), change);
        }
        let taken = pending.take(2);
        let names: Vec<_> = taken.iter().map(|(file, _)| file.to_str().unwrap()).collect();
        assert_eq!(names, ["c", "a"]);
        let Change::Write(body_of_a) = &taken[1].1 else { panic!("a write") };
        assert_eq!((body_of_a.encode)().unwrap(), b"2");
        pending.put("a".into(), Change::Remove);
        pending.put_back(taken);
        assert!(matches!(pending.changes[Path::new("a")], Change::Remove), "a newer change stays");
        assert!(matches!(pending.changes[Path::new("c")], Change::Remove));
        assert_eq!(pending.changes.len(), 3);
    }

    fn folder() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for below in ["pods", "sources"] {
            std::fs::create_dir(dir.path().join(below)).unwrap();
        }
        dir
    }

    fn read(dir: &tempfile::TempDir, file: &str) -> Option<String> {
        let body = checkpoint::read(&dir.path().join(file), "pod", 1000).unwrap()?;
        Some(String::from_utf8(body).unwrap())
    }

    #[test]
    fn a_disk_that_takes_nothing_stops_no_removal_and_is_tried_again() {
        let dir = folder();
        checkpoint::write(&dir.path().join("pods/gone.json"), "pod", b"x").unwrap();
        // A folder in the place of the unfinished file fails the write, as a full disk does.
        std::fs::create_dir(dir.path().join("pods/a.json.partial")).unwrap();
        let write = |file: &str, text| (PathBuf::from(file), Change::Write(body(text)));
        let remove = (PathBuf::from("pods/gone.json"), Change::Remove);
        let (failed, error) = write_all(dir.path(), vec![write("pods/a.json", "1"), write("pods/b.json", "1"), remove]);
        assert!(error.is_some());
        assert_eq!(failed.len(), 2, "the writes are pending again");
        assert!(read(&dir, "pods/gone.json").is_none());
        std::fs::remove_dir(dir.path().join("pods/a.json.partial")).unwrap();
        let (failed, error) = write_all(dir.path(), failed);
        assert!(failed.is_empty() && error.is_none());
        assert_eq!(read(&dir, "pods/b.json").as_deref(), Some("1"));
    }

    #[tokio::test(start_paused = true)]
    async fn many_changes_are_few_writes() {
        let dir = folder();
        let queue = Arc::new(Queue::new(dir.path().to_owned()));
        let (env, stop) = (machinery_env::TokioClock::env(7).0, CancellationToken::new());
        let encoded = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let task = tokio::spawn({
            let (queue, env, stop) = (queue.clone(), env.clone(), stop.clone());
            async move { queue.run(&env, &stop).await }
        });
        for nth in 0..2000 {
            let count = encoded.clone();
            let counted = Body::of("pod", move || {
                count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                Ok(nth.to_string().into_bytes())
            });
            queue.put("pods/a.json".into(), counted);
            env.sleep(Duration::from_millis(10)).await;
        }
        stop.cancel();
        task.await.unwrap();
        assert_eq!(read(&dir, "pods/a.json").as_deref(), Some("1999"), "the last state is written at the stop");
        let writes = encoded.load(std::sync::atomic::Ordering::Relaxed);
        assert!((2..=22).contains(&writes), "{writes} writes in 20 s");
    }

    #[test]
    fn only_the_retained_files_stay() {
        let dir = folder();
        for file in ["pods/a.json", "pods/b.json", "sources/c.json", "node.json", "pods/b.json.partial"] {
            checkpoint::write(&dir.path().join(file), "pod", b"x").unwrap();
        }
        retain(dir.path(), &[PathBuf::from("pods/a.json")].into()).unwrap();
        let exists = |file: &str| dir.path().join(file).exists();
        assert!(exists("pods/a.json") && exists("node.json"));
        assert!(!exists("pods/b.json") && !exists("sources/c.json") && !exists("pods/b.json.partial"));
    }
}
