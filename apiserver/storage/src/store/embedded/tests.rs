//! Tests crashes and damage of the embedded store: no acknowledged write is lost, and invalid files are rejected.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::super::contract::{all, just, put, ready, write};
use super::super::{Op, prefix_end};
use super::*;

fn open(path: &Path) -> Result<Arc<EmbeddedStore>, StoreError> {
    let options = Options { segment_bytes_max: 4096, snapshot_after_bytes: 16 * 1024, ..Options::default() };
    open_with(path, Env::real(), options)
}

fn open_with(path: &Path, env: Env, options: Options) -> Result<Arc<EmbeddedStore>, StoreError> {
    let store = EmbeddedStore::open(path, env, options)?;
    store.start()?;
    Ok(store)
}

async fn everything(store: &dyn Store) -> BTreeMap<String, (Vec<u8>, Revision, Revision)> {
    let range = store.range("/", &prefix_end("/"), None, 0).await.unwrap();
    range.entries.into_iter().map(|e| (e.key.to_string(), (e.record.body().to_vec(), e.created, e.modified))).collect()
}

fn log_files(path: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> = fs::read_dir(path.join("log")).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

/// Writes, rewrites and deletes, to exercise segments, compaction, sled and snapshots.
async fn churn(store: &dyn Store, round: usize) {
    for n in 0..120 {
        write(store, just(put(&format!("/churn/{}", n % 37), &format!("{round}-{n}-{}", "x".repeat(300))))).await;
        if n % 9 == 0 {
            write(store, just(Op::Delete { key: format!("/churn/{}", n % 31) })).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keeps_the_contract() {
    let folders: Mutex<Vec<tempfile::TempDir>> = Mutex::default();
    all(&|env| {
        let folder = tempfile::tempdir().unwrap();
        let store = open_with(&folder.path().join("store"), env, Options::default()).unwrap();
        folders.lock().unwrap().push(folder);
        ready(store)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_keeps_state_and_history_with_any_damage_to_sled() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let mut expected = BTreeMap::new();
    for round in 0..12 {
        let store = open(path).unwrap();
        assert_eq!(everything(&*store).await, expected, "round {round}");
        let compacted = store.compacted();
        let mut watch = store.watch("/", compacted).await.unwrap();
        for revision in compacted + 1..=store.revision() {
            assert_eq!(watch.next().await.unwrap().revision, revision, "history survives a restart");
        }
        churn(&*store, round).await;
        if round % 3 != 2 {
            store.compact(store.revision() - 40).await.unwrap();
        }
        expected = everything(&*store).await;
        store.close();
        assert!(matches!(store.txn(just(put("/a", "b"))).await, Err(StoreError::Unavailable(_))));
        let sled = path.join("sled");
        match round % 4 {
            0 => fs::remove_dir_all(&sled).unwrap(),
            1 => {
                let db = sled.join("db");
                let mut bytes = fs::read(&db).unwrap();
                for at in (round..bytes.len()).step_by(97) {
                    bytes[at] ^= 0x55;
                }
                fs::write(&db, bytes).unwrap();
            }
            2 => fs::write(sled.join("db"), b"").unwrap(),
            _ => {}
        }
    }
    let snapshots = snapshot::list(path).unwrap();
    assert_eq!(snapshots.len(), 1, "one snapshot is kept");
    let first = log_files(path)[0].file_name().unwrap().to_str().unwrap().to_owned();
    assert_ne!(first, format!("{:020}.log", 1), "the log is cut below the snapshot");
    // Neither sled nor the snapshot exists: the log's beginning is missing, which is an error.
    fs::remove_dir_all(path.join("sled")).unwrap();
    let mut bytes = fs::read(&snapshots[0].0).unwrap();
    bytes[40] ^= 1;
    fs::write(&snapshots[0].0, bytes).unwrap();
    let Err(StoreError::Damaged(message)) = open(path).map(|_| ()) else { panic!("must be refused") };
    assert!(message.contains("snapshot-") && message.contains("put a copy of the data folder back"), "{message}");
}

/// A start closes sled after reading it, and each checkpoint opens it again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sled_is_opened_again_by_each_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    for round in 0..4 {
        let store = open(path).unwrap();
        churn(&*store, round).await;
        let compacted = store.revision() - 7;
        store.compact(compacted).await.unwrap();
        store.close();
        assert!(!path.join("sled.damaged").exists(), "it is the same one");
        let (_, revision, _) = checkpoint::Sled::load(&path.join("sled"), &|_, body| Record::plain(body)).unwrap();
        assert_eq!(revision, compacted, "it has all that was compacted");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_torn_tail_is_cut_off_and_a_damaged_middle_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let mut expected = BTreeMap::new();
    for round in 0..6 {
        let store = open(path).unwrap();
        assert_eq!(everything(&*store).await, expected);
        write(&*store, just(put(&format!("/k/{round}"), &"v".repeat(3000)))).await;
        expected = everything(&*store).await;
        store.close();
        let last = log_files(path).pop().unwrap();
        let len = fs::metadata(&last).unwrap().len();
        // An interrupted write: a part of a frame, zeros, or a part in a new segment.
        let torn =
            frame::encode(round + 2, &[super::super::plan::Write { revision: 99, key: "/t".into(), stored: None }]);
        let torn = if round % 2 == 0 { &torn[..torn.len() - 3] } else { &[0; 17] };
        let file = if round == 4 { log::segment_path(&path.join("log"), 99) } else { last.clone() };
        fs::OpenOptions::new().append(true).create(true).open(&file).unwrap().write_all(torn).unwrap();
        if round == 5 {
            // An acknowledged frame can't be distinguished from a torn tail if it is the last one and bad: cut it here
            // by hand.
            fs::OpenOptions::new().write(true).open(&last).unwrap().set_len(len).unwrap();
        }
    }
    let files = log_files(path);
    assert!(files.len() > 1);
    let whole = fs::read(&files[0]).unwrap();
    for at in [3, 45, whole.len() - 1] {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x10;
        fs::write(&files[0], bytes).unwrap();
        let Err(StoreError::Damaged(message)) = open(path).map(|_| ()) else { panic!("must be refused") };
        assert!(message.contains(files[0].to_str().unwrap()), "{message}");
    }
    fs::remove_file(&files[0]).unwrap();
    assert!(matches!(open(path), Err(StoreError::Damaged(_))), "a missing segment");
    fs::write(&files[0], whole).unwrap();
    assert_eq!(everything(&*open(path).unwrap()).await, expected);
}

/// A power loss can undo the deletion of any segments below the snapshot.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn segments_below_the_state_may_have_gaps() {
    for (missing, is_accepted) in [(vec![2, 3], true), (vec![2, 5], true), (vec![1, 3], true), (vec![6], false)] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        let each_alone = || Options { segment_bytes_max: 1, ..Options::default() };
        let store = open_with(path, Env::real(), each_alone()).unwrap();
        for n in 1..=7 {
            write(&*store, just(put(&format!("/k/{n}"), "v"))).await;
        }
        store.compact(5).await.unwrap();
        let expected = everything(&*store).await;
        store.close();
        for number in &missing {
            fs::remove_file(log::segment_path(&path.join("log"), *number)).unwrap();
        }
        match open_with(path, Env::real(), each_alone()) {
            Ok(store) => {
                assert!(is_accepted, "{missing:?}");
                assert_eq!(everything(&*store).await, expected, "{missing:?}");
                write(&*store, just(put("/k/8", "v"))).await;
            }
            Err(StoreError::Damaged(message)) => assert!(!is_accepted && message.contains("0007.log"), "{message}"),
            Err(error) => panic!("{missing:?}: {error}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_reserve_of_zeros_ends_with_its_segment_and_with_a_crash() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let options = Options { segment_bytes_max: 4000, ..Options::default() };
    let store = open_with(path, Env::real(), options).unwrap();
    let mut sizes = Vec::new();
    for n in 0..5 {
        write(&*store, just(put(&format!("/k/{n}"), &"v".repeat(3000)))).await;
        sizes = log_files(path).iter().map(|file| fs::metadata(file).unwrap().len()).collect();
        assert!(sizes.pop().unwrap() > 1_000_000, "room for the next frames");
    }
    assert!(!sizes.is_empty() && sizes.iter().all(|size| (3000..10_000).contains(size)), "{sizes:?}");
    let expected = everything(&*store).await;
    // A crash: the files as they are now.
    let crashed = tempfile::tempdir().unwrap();
    fs::create_dir(crashed.path().join("log")).unwrap();
    for file in log_files(path) {
        fs::copy(&file, crashed.path().join("log").join(file.file_name().unwrap())).unwrap();
    }
    fs::copy(path.join("format"), crashed.path().join("format")).unwrap();
    store.close();
    let at_rest: u64 = log_files(path).iter().map(|file| fs::metadata(file).unwrap().len()).sum();
    assert!(at_rest < 50_000, "{at_rest}");
    for round in 0..2 {
        let store = open(crashed.path()).unwrap();
        let mut found = everything(&*store).await;
        found.remove("/new");
        assert_eq!(found, expected, "round {round}");
        write(&*store, just(put("/new", "1"))).await;
        store.close();
    }
    let left: u64 = log_files(crashed.path()).iter().map(|file| fs::metadata(file).unwrap().len()).sum();
    assert!(left < 50_000, "{left}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_in_use_or_of_a_newer_format_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).unwrap();
    assert!(matches!(open(folder.path()), Err(StoreError::InUse(_))));
    drop(store);
    fs::write(folder.path().join("format"), "4\n").unwrap();
    assert!(matches!(open(folder.path()), Err(StoreError::Damaged(_))));
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_write_is_not_acknowledged_and_a_failed_disk_ends_the_process() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let ended = Arc::new(AtomicBool::new(false));
    let seen = ended.clone();
    let fatal: Fatal = Box::new(move |_| seen.store(true, Ordering::SeqCst));
    let options = Options { fatal, segment_bytes_max: 1, ..Options::default() };
    let store = open_with(folder.path(), Env::real(), options).unwrap();
    let before = write(&*store, just(put("/a", "1"))).await;
    // The next segment can't be created: nothing is written, and the write can be retried.
    let next = log::segment_path(&log, 2);
    fs::create_dir(&next).unwrap();
    assert!(matches!(store.txn(just(put("/a", "2"))).await, Err(StoreError::Unavailable(_))));
    assert!(!ended.load(Ordering::SeqCst));
    // A full device from which a partial frame can't be removed.
    fs::remove_dir(&next).unwrap();
    std::os::unix::fs::symlink("/dev/full", &next).unwrap();
    assert!(matches!(store.txn(just(put("/a", "2"))).await, Err(StoreError::Unavailable(_))));
    assert!(ended.load(Ordering::SeqCst));
    assert!(matches!(store.txn(just(put("/a", "3"))).await, Err(StoreError::Unavailable(_))));
    assert_eq!(store.revision(), before);
}

/// The writers and rounds of [`kill_nine_loses_nothing_acknowledged`].
const WRITERS: usize = 8;
const ROUNDS: u64 = 6;
/// The file that makes the child process write until it is killed.
const MARK: &str = "write-until-killed";

/// The test binary runs this test again as a child, in a folder with [`MARK`]; without it the test does nothing.
#[test]
fn child_of_kill_nine() {
    if !Path::new(MARK).exists() {
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let store = open(Path::new("store")).unwrap();
        let round = fs::read_to_string(MARK).unwrap();
        let writers: Vec<_> = (0..WRITERS)
            .map(|w| {
                let (store, round) = (store.clone(), round.clone());
                tokio::spawn(async move {
                    let mut acked =
                        fs::OpenOptions::new().append(true).create(true).open(format!("acked.{w}")).unwrap();
                    for n in 0.. {
                        let key = format!("/r{round}/w{w}/n{n}");
                        write(&*store, just(put(&key, &format!("{key}{}", "y".repeat(200))))).await;
                        // One write call: a kill between the key and its newline would join it with the next round's.
                        acked.write_all(format!("{key}\n").as_bytes()).unwrap();
                        if w == 0 && n % 50 == 49 {
                            let _ = store.compact(store.revision() - 10).await;
                        }
                    }
                })
            })
            .collect();
        for writer in writers {
            writer.await.unwrap();
        }
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_nine_loses_nothing_acknowledged() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let acked = || -> Vec<String> {
        let files = (0..WRITERS).filter_map(|w| fs::read_to_string(path.join(format!("acked.{w}"))).ok());
        files.flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>()).collect()
    };
    for round in 0..ROUNDS {
        fs::write(path.join(MARK), round.to_string()).unwrap();
        let before = acked().len();
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "store::embedded::tests::child_of_kill_nine", "--test-threads=1"])
            .current_dir(path)
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        // Killed in the middle of a round: as soon as it has acknowledged this many more writes.
        while acked().len() < before + 150 + 100 * round as usize {
            assert!(child.try_wait().unwrap().is_none(), "the child must not end by itself");
            Env::real().sleep(Duration::from_millis(2)).await;
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let store = open(&path.join("store")).unwrap();
        let stored = everything(&*store).await;
        for key in acked() {
            let (value, ..) = stored.get(&key).unwrap_or_else(|| panic!("{key} was acknowledged and is lost"));
            assert!(value.starts_with(key.as_bytes()));
        }
    }
}
