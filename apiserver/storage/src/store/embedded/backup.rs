//! Backups: the whole state at one revision in one file, read from the folder while its process writes, and restored
//! into a folder of its own. The file has the form of a snapshot, in clear or encrypted with a key.
//!
//! A restored store begins at a revision far above the backup's. So every client's list is too old, and it lists again;
//! and no version of an object that was written after the backup names another content later.

use std::fs;
use std::io::{self, Write as _};
use std::ops::Bound;
use std::path::{Path, PathBuf};

use super::super::plan::Write;
use super::folder::{beside, check_format, sync_folder, unusable, write_format, write_whole};
use super::log::{AppendError, Log};
use super::sealed::{SealingKey, is_sealed};
use super::snapshot::{self, Rows};
use super::{ReadFirstFormat, Record, Revision, StoreError, recover};

/// Reads of a folder whose process writes, until one is undisturbed.
const READS_MAX: usize = 8;

/// The distance of revisions between a backup and its restored store: more than a cluster writes after a backup (etcd
/// documentation, "Disaster recovery": `--bump-revision`).
pub const RESTORED_REVISIONS: Revision = 1_000_000_000;

/// What a backup has, or a restored store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Contents {
    /// The revision of the state.
    pub revision: Revision,
    /// The number of keys.
    pub keys: usize,
}

/// Why a backup can't be written or restored.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The store can't be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// There is no store in the folder.
    #[error("there is no store in {0}: name the cluster's data folder with --data-dir")]
    NoStore(PathBuf),
    /// The file to write exists.
    #[error("{0} exists: remove it, or name another file")]
    Exists(PathBuf),
    /// The file can't be read or written.
    #[error("{path}: {error}")]
    File {
        /// The backup.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The file's content or its checksum is wrong.
    #[error("{0} is not a whole backup: its checksum or its form is wrong; take another copy of the file")]
    Damaged(PathBuf),
    /// The file is encrypted, and there is no key.
    #[error("{0} is encrypted: name the file of its key with --key-file")]
    Encrypted(PathBuf),
    /// The file is not encrypted, and there is a key.
    #[error("{0} is not encrypted: if it is from where you expect, restore it without --key-file")]
    Plain(PathBuf),
    /// The file was encrypted with another key, or changed since.
    #[error(
        "{0} can't be decrypted: it has another key than that of --key-file, or was changed; take another copy of the file"
    )]
    WrongKey(PathBuf),
    /// The store that would be replaced has content.
    #[error("{0} is not empty: a backup is restored into a new store only; name another folder with --data-dir")]
    NotEmpty(PathBuf),
    /// There is nothing to back up in etcd.
    #[error("etcd has no keys below {0}: name the cluster's prefix with --etcd-prefix")]
    NoKeys(String),
    /// The prefix in etcd has keys.
    #[error(
        "etcd has keys below {0}: a backup is restored into a new store only; name another prefix with --etcd-prefix"
    )]
    Keys(String),
}

fn read_first_format(_: &str, body: &[u8]) -> Record {
    Record::read(body, |_| None)
}

/// Writes the newest state of the store in `store` to `file`, readable by this user only, encrypted if there is a key. The
/// store's process may run: its files are read and not changed. Blocking; holds the whole state in memory.
///
/// # Errors
/// If there is no store, the file exists or can't be written, or the store is damaged.
pub fn backup(store: &Path, file: &Path, key: Option<&SealingKey>) -> Result<Contents, BackupError> {
    check_absent(file)?;
    let format = store.join("format");
    match fs::read_to_string(&format) {
        Ok(text) => check_format(&format, &text)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(BackupError::NoStore(store.to_owned())),
        Err(error) => return Err(unusable(&format, &error).into()),
    }
    let (revision, rows) = read(store, &read_first_format)?;
    write_backup(file, key, revision, rows)
}

/// Refuses a file that exists.
pub(in super::super) fn check_absent(file: &Path) -> Result<(), BackupError> {
    if file.exists() { Err(BackupError::Exists(file.to_owned())) } else { Ok(()) }
}

/// Writes the state at a revision to `file`.
pub(in super::super) fn write_backup(
    file: &Path,
    key: Option<&SealingKey>,
    revision: Revision,
    mut rows: Rows,
) -> Result<Contents, BackupError> {
    let file_error = |error| BackupError::File { path: file.to_owned(), error };
    let file = &std::path::absolute(file).map_err(file_error)?;
    let contents = Contents { revision, keys: rows.len() };
    let next = || Ok(std::mem::take(&mut rows));
    let written = match key {
        None => snapshot::write_file(file, revision, next),
        Some(key) => write_sealed(file, key, revision, next),
    };
    written.map_err(file_error)?;
    Ok(contents)
}

fn write_sealed(
    file: &Path,
    key: &SealingKey,
    revision: Revision,
    next: impl FnMut() -> io::Result<Rows>,
) -> io::Result<()> {
    let mut bytes = Vec::new();
    snapshot::write_to(&mut bytes, revision, next)?;
    let sealed = key.seal(bytes).ok_or_else(|| io::Error::other("the system has no randomness for the encryption"))?;
    write_whole(file, |file| file.write_all(&sealed))
}

/// The newest state of a folder.
fn read(store: &Path, plain: &ReadFirstFormat) -> Result<(Revision, Rows), StoreError> {
    let mut state = recover::read_only(store, plain);
    for _ in 1..READS_MAX {
        if state.is_ok() {
            break;
        }
        state = recover::read_only(store, plain);
    }
    let state = state?;
    let revision = state.versions.revision();
    let rows = state.versions.range(Bound::Unbounded, Bound::Unbounded, revision);
    Ok((revision, rows.map(|(key, modified, stored)| snapshot::row(key, modified, stored)).collect()))
}

/// Makes a store of a backup in `store`, which must not exist or be empty. `key` is that of the backup, if it is encrypted.
/// Completely or not at all; blocking.
///
/// # Errors
/// If the file is no whole backup, or the folder is not empty or can't be written.
pub fn restore(file: &Path, store: &Path, key: Option<&SealingKey>) -> Result<Contents, BackupError> {
    let (revision, mut rows) = read_backup(file, key)?;
    let store = &std::path::absolute(store).map_err(|error| unusable(store, &error))?;
    let unusable_store = |error: io::Error| BackupError::Store(unusable(store, &error));
    match fs::read_dir(store).map(|mut entries| entries.next().is_none()) {
        Ok(true) => {}
        Ok(false) => return Err(BackupError::NotEmpty(store.clone())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(unusable_store(error)),
    }
    let contents = Contents { revision, keys: rows.len() };
    let building = beside(store, ".restoring");
    build(&building, revision, &mut rows)?;
    // An empty folder is replaced.
    fs::rename(&building, store).and_then(|()| store.parent().map_or(Ok(()), sync_folder)).map_err(unusable_store)?;
    Ok(contents)
}

/// The revision of the restored store, and the rows of a backup.
pub(in super::super) fn read_backup(file: &Path, key: Option<&SealingKey>) -> Result<(Revision, Rows), BackupError> {
    let file_error = |error| BackupError::File { path: file.to_owned(), error };
    // A device or a pipe may have no end.
    let is_file = fs::metadata(file).map_err(file_error)?.is_file();
    let mut bytes = if is_file { fs::read(file).map_err(file_error)? } else { Vec::new() };
    match (key, is_sealed(&bytes)) {
        (None, false) => {}
        (Some(key), true) => bytes = key.open(&bytes).ok_or_else(|| BackupError::WrongKey(file.to_owned()))?,
        (None, true) => return Err(BackupError::Encrypted(file.to_owned())),
        (Some(_), false) => return Err(BackupError::Plain(file.to_owned())),
    }
    let parsed = snapshot::parse(&bytes, &read_first_format).filter(|(revision, rows)| is_sound(*revision, rows));
    parsed
        .and_then(|(revision, rows)| Some((revision.checked_add(RESTORED_REVISIONS)?, rows)))
        .filter(|(revision, _)| i64::try_from(*revision).is_ok())
        .ok_or_else(|| BackupError::Damaged(file.to_owned()))
}

/// Whether rows can be the state at a revision: a correct checksum doesn't prove who wrote them.
fn is_sound(revision: Revision, rows: &[Write]) -> bool {
    let in_time = |row: &Write| {
        row.revision <= revision && row.stored.as_ref().is_some_and(|stored| stored.created <= row.revision)
    };
    rows.is_sorted_by(|one, next| one.key < next.key) && rows.iter().all(in_time)
}

/// Writes the files of a store at `revision`: a snapshot below it, and a log whose only frame writes the first key
/// again, as a log that was lost and one that never was must differ. A store without keys has no files but its format.
fn build(folder: &Path, revision: Revision, rows: &mut Rows) -> Result<(), StoreError> {
    let log = folder.join("log");
    let mut fill = || {
        match fs::remove_dir_all(folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        fs::create_dir_all(&log)?;
        let Some(first) = rows.first().cloned() else { return Ok(()) };
        snapshot::write(folder, revision - 1, || Ok(std::mem::take(rows)))?;
        let again = Write { revision, ..first };
        Log::new(&log, Vec::new(), None, 1, 0)?.append(&[again]).map_err(AppendError::into_error)
    };
    fill().map_err(|error| unusable(folder, &error))?;
    write_format(&folder.join("format"))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use machinery_env::Env;

    use super::super::super::contract::{just, put, write};
    use super::super::super::plan::StoredValue;
    use super::super::super::{Entry, Op, Store, prefix_end};
    use super::super::{EmbeddedStore, Options};
    use super::*;

    fn open(path: &Path) -> Arc<EmbeddedStore> {
        let options = Options { segment_bytes_max: 4096, snapshot_after_bytes: 16 * 1024, ..Options::default() };
        let store = EmbeddedStore::open(path, Env::real(), options).unwrap();
        store.start().unwrap();
        store
    }

    async fn everything(store: &dyn Store) -> Vec<Entry> {
        store.range("/", &prefix_end("/"), None, 0).await.unwrap().entries
    }

    fn bodies(entries: &[Entry]) -> Vec<(String, Vec<u8>, Revision)> {
        entries.iter().map(|entry| (entry.key.to_string(), entry.record.body().to_vec(), entry.created)).collect()
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_restored_store_has_the_state_at_a_higher_revision() {
        let folder = tempfile::tempdir().unwrap();
        let (from, file, to) = (folder.path().join("a"), folder.path().join("b"), folder.path().join("c"));
        let store = open(&from);
        for n in 0..40 {
            write(&*store, just(put(&format!("/k/{}", n % 7), &format!("{n}")))).await;
        }
        write(&*store, just(Op::Delete { key: "/k/3".into() })).await;
        let before = everything(&*store).await;
        let saved = backup(&from, &file, None).unwrap();
        assert_eq!(saved, Contents { revision: store.revision(), keys: 6 });
        assert!(matches!(backup(&from, &file, None), Err(BackupError::Exists(_))));
        let at = store.revision() + RESTORED_REVISIONS;
        assert_eq!(restore(&file, &to, None).unwrap(), Contents { revision: at, keys: 6 });
        for _ in 0..2 {
            let restored = open(&to);
            assert_eq!(restored.revision(), at);
            let after = everything(&*restored).await;
            assert_eq!(bodies(&after), bodies(&before));
            assert!(matches!(restored.watch("/k/", at - 2).await, Err(StoreError::Compacted(_))), "watches list again");
            restored.close();
        }
        let restored = open(&to);
        assert_eq!(write(&*restored, just(put("/k/new", "1"))).await, at + 1);
        assert!(matches!(restore(&file, &to, None), Err(BackupError::NotEmpty(_))));
        assert_eq!(everything(&*store).await, before, "a backup changes nothing");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_backup_beside_writes_has_one_moment() {
        let folder = tempfile::tempdir().unwrap();
        let from = folder.path().join("a");
        let store = open(&from);
        write(&*store, just(put("/pair/a", "0"))).await;
        let stop = Arc::new(AtomicBool::new(false));
        let (writing, stopped) = (store.clone(), stop.clone());
        let writer = tokio::spawn(async move {
            let mut n = 0;
            while !stopped.load(Ordering::Relaxed) {
                n += 1;
                // Both keys in one transaction: a torn state would have two numbers.
                let ops = ["/pair/a", "/pair/b"].map(|key| put(key, &format!("{n}{}", " ".repeat(200)))).into();
                write(&*writing, super::super::super::Txn { compares: vec![], ops }).await;
                if n % 50 == 0 {
                    writing.compact(writing.revision() - 5).await.unwrap();
                }
            }
            n
        });
        let mut last = 0;
        for round in 0..20 {
            let acknowledged = store.revision();
            let (file, to) = (folder.path().join(format!("b{round}")), folder.path().join(format!("c{round}")));
            let at = file.clone();
            let from = from.clone();
            let saved = tokio::task::spawn_blocking(move || backup(&from, &at, None)).await.unwrap().unwrap();
            assert!(saved.revision >= acknowledged.max(last), "{saved:?} is older than what was acknowledged before");
            last = saved.revision;
            restore(&file, &to, None).unwrap();
            let restored = open(&to);
            let pair = everything(&*restored).await;
            let values: Vec<Vec<u8>> = pair.iter().map(|entry| entry.record.body().to_vec()).collect();
            assert!(values.windows(2).all(|two| two[0] == two[1]), "{values:?}");
        }
        stop.store(true, Ordering::Relaxed);
        assert!(writer.await.unwrap() > 0);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn invalid_backups_and_stores_are_rejected() {
        let folder = tempfile::tempdir().unwrap();
        let (from, file, to) = (folder.path().join("a"), folder.path().join("b"), folder.path().join("c"));
        assert!(matches!(backup(&from, &file, None), Err(BackupError::NoStore(_))));
        let store = open(&from);
        write(&*store, just(put("/a", "1"))).await;
        backup(&from, &file, None).unwrap();
        let whole = fs::read(&file).unwrap();
        for at in 0..whole.len() {
            let mut bad = whole.clone();
            bad[at] ^= 1;
            fs::write(&file, bad).unwrap();
            assert!(matches!(restore(&file, &to, None), Err(BackupError::Damaged(_))), "a wrong byte {at}");
            fs::write(&file, &whole[..at]).unwrap();
            assert!(matches!(restore(&file, &to, None), Err(BackupError::Damaged(_))), "cut at {at}");
        }
        assert!(!to.exists());
        assert!(matches!(restore(&folder.path().join("none"), &to, None), Err(BackupError::File { .. })));
        fs::write(from.join("format"), "99").unwrap();
        assert!(matches!(
            backup(&from, &folder.path().join("d"), None),
            Err(BackupError::Store(StoreError::Damaged(_)))
        ));
    }

    #[test]
    fn rows_that_no_store_has_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let (file, to) = (folder.path().join("b"), folder.path().join("c"));
        let stored = |created| Some(Arc::new(StoredValue { record: Record::plain(b"{}"), created, expires_ms: 0 }));
        let row = |key: &str, revision, created| Write { revision, key: key.into(), stored: stored(created) };
        let cases = [
            (5, vec![row("/a", 6, 1)]),
            (5, vec![row("/a", 4, 5)]),
            (5, vec![row("/b", 4, 1), row("/a", 4, 1)]),
            (5, vec![row("/a", 4, 1), row("/a", 4, 1)]),
            (5, vec![Write { revision: 1, key: "/a".into(), stored: None }]),
            (u64::MAX, vec![row("/a", 4, 1)]),
            (i64::MAX as u64, vec![row("/a", 4, 1)]),
        ];
        for (revision, mut rows) in cases {
            let case = format!("{revision} {rows:?}");
            snapshot::write_file(&file, revision, || Ok(std::mem::take(&mut rows))).unwrap();
            assert!(matches!(restore(&file, &to, None), Err(BackupError::Damaged(_))), "{case}");
        }
        assert!(matches!(restore(Path::new("/dev/zero"), &to, None), Err(BackupError::Damaged(_))));
        assert!(matches!(restore(folder.path(), &to, None), Err(BackupError::Damaged(_))));
        assert!(!to.exists());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn an_empty_store_is_restored_too_and_an_interrupted_restore_is_repeated() {
        let folder = tempfile::tempdir().unwrap();
        let (from, file, to) = (folder.path().join("a"), folder.path().join("b"), folder.path().join("c"));
        open(&from).close();
        assert_eq!(backup(&from, &file, None).unwrap(), Contents { revision: 0, keys: 0 });
        fs::create_dir_all(beside(&to, ".restoring").join("log")).unwrap();
        fs::write(beside(&to, ".restoring").join("log/1.log"), "half of one").unwrap();
        fs::create_dir(&to).unwrap();
        restore(&file, &to, None).unwrap();
        assert!(everything(&*open(&to)).await.is_empty());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn an_encrypted_backup_needs_its_key() {
        let folder = tempfile::tempdir().unwrap();
        let (from, file, to) = (folder.path().join("a"), folder.path().join("b"), folder.path().join("c"));
        let store = open(&from);
        write(&*store, just(put("/a", "in-the-secret"))).await;
        let key = |letter: char| SealingKey::parse(format!("{}=", letter.to_string().repeat(43)).as_bytes());
        let (key, other) = (key('A').unwrap(), key('E').unwrap());
        backup(&from, &file, Some(&key)).unwrap();
        let sealed = fs::read(&file).unwrap();
        assert!(!sealed.windows(13).any(|part| part == b"in-the-secret"));
        assert!(matches!(restore(&file, &to, None), Err(BackupError::Encrypted(_))));
        assert!(matches!(restore(&file, &to, Some(&other)), Err(BackupError::WrongKey(_))));
        fs::write(&file, &sealed[..sealed.len() - 1]).unwrap();
        assert!(matches!(restore(&file, &to, Some(&key)), Err(BackupError::WrongKey(_))));
        assert!(!to.exists());
        fs::write(&file, &sealed).unwrap();
        restore(&file, &to, Some(&key)).unwrap();
        assert_eq!(bodies(&everything(&*open(&to)).await), bodies(&everything(&*store).await));
        let plain = folder.path().join("d");
        backup(&from, &plain, None).unwrap();
        assert!(matches!(restore(&plain, &folder.path().join("e"), Some(&key)), Err(BackupError::Plain(_))));
    }
}
