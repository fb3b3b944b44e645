//! Stores: content, limits, and state after a crash.

use runtime_api::keyvalue::*;

use super::*;
use crate::QUOTA;

struct Bench {
    dir: tempfile::TempDir,
    ledger: Arc<Ledger>,
}

impl Bench {
    fn new() -> Self {
        let ledger = Ledger::node();
        ledger.set_limit(runtime_api::ledger::Resource::Descriptors, 1000);
        Self { dir: tempfile::tempdir().unwrap(), ledger }
    }

    fn stores(&self, quota: Quota) -> Arc<FileStores> {
        FileStores::new(self.dir.path().join("keyvalue"), quota, &self.ledger)
    }
}

fn owned(namespace: &str, uid: &str) -> KeyvalueOwner {
    KeyvalueOwner { namespace: namespace.into(), uid: uid.into(), cluster: None }
}

fn write(namespace: &Arc<Namespace>, write: Write) -> Result<Written, StoreError> {
    let mut answer = namespace.submit(write)?;
    namespace.commit();
    answer.try_recv().expect("committed")
}

fn set(namespace: &Arc<Namespace>, bucket: &str, key: &str, value: &[u8]) -> Result<Written, StoreError> {
    write(namespace, Write::Set { bucket: bucket.into(), pairs: vec![(key.into(), value.into())] })
}

fn increment(namespace: &Arc<Namespace>, key: &str, delta: i64) -> Result<Written, StoreError> {
    write(namespace, Write::Increment { bucket: "default".into(), key: key.into(), delta })
}

fn text(namespace: &Arc<Namespace>, bucket: &str, key: &str) -> Option<String> {
    namespace.get(bucket, key).unwrap().map(|value| String::from_utf8(value.bytes).unwrap())
}

#[test]
fn buckets_and_namespaces_are_apart_and_all_of_it_is_there_after_a_crash() {
    let bench = Bench::new();
    let stores = bench.stores(QUOTA);
    let (ours, theirs) = (stores.of(&owned("a", "1")).unwrap(), stores.of(&owned("a", "2")).unwrap());
    assert_eq!((text(&ours, "default", "k"), stores.owners().unwrap()), (None, vec![]), "a read makes no file");
    set(&ours, "default", "k", b"1").unwrap();
    set(&ours, "other", "k", b"2").unwrap();
    set(&theirs, "default", "k", b"3").unwrap();
    let seen = |of: &Arc<Namespace>| [text(of, "default", "k"), text(of, "other", "k"), text(of, "defaul", "tk")];
    assert_eq!(seen(&ours), [Some("1".into()), Some("2".into()), None]);
    assert_eq!(seen(&theirs), [Some("3".into()), None, None], "a namespace of the same name with another uid");
    assert!(ours.exists("other", "k").unwrap() && !ours.exists("other", "j").unwrap());
    // State after a crash: copies of the files while this process still has them open.
    let crashed = Bench::new();
    let (from, to) = (bench.dir.path().join("keyvalue"), crashed.dir.path().join("keyvalue"));
    std::fs::create_dir(&to).unwrap();
    for file in std::fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), to.join(file.file_name())).unwrap();
    }
    let again = crashed.stores(QUOTA);
    let mut owners = again.owners().unwrap();
    owners.sort();
    assert_eq!(owners, [owned("a", "1"), owned("a", "2")]);
    assert_eq!(seen(&again.of(&owners[0]).unwrap()), seen(&ours));
    assert_eq!(seen(&again.of(&owners[1]).unwrap()), seen(&theirs));
    assert_eq!(increment(&again.of(&owners[0]).unwrap(), "k", 1), Ok(Written::Number(2)), "and it goes on");
    // A removed namespace's data is gone, also for its open handles.
    stores.remove(&owned("a", "1")).unwrap();
    assert_eq!(stores.owners().unwrap(), [owned("a", "2")]);
    assert_eq!(ours.get("default", "k"), Err(StoreError::Removed));
    assert_eq!(set(&ours, "default", "k", b"9"), Err(StoreError::Removed));
    assert_eq!(text(&stores.of(&owned("a", "1")).unwrap(), "default", "k"), None);
}

#[test]
fn numbers_are_text_and_never_wrap() {
    let bench = Bench::new();
    let ours = bench.stores(QUOTA).of(&owned("a", "1")).unwrap();
    assert_eq!(ours.get("default", "n"), Err(StoreError::Removed), "its stores are gone");
    let stores = bench.stores(QUOTA);
    let ours = stores.of(&owned("a", "1")).unwrap();
    assert_eq!(increment(&ours, "n", -3), Ok(Written::Number(-3)));
    assert_eq!(increment(&ours, "n", i64::MAX), Ok(Written::Number(i64::MAX - 3)));
    assert_eq!(increment(&ours, "n", 4), Err(StoreError::Overflow));
    assert_eq!(text(&ours, "default", "n"), Some((i64::MAX - 3).to_string()));
    set(&ours, "default", "n", b"many").unwrap();
    assert_eq!(increment(&ours, "n", 1), Err(StoreError::NoNumber));
}

#[test]
fn a_swap_sees_every_write_between() {
    let bench = Bench::new();
    let stores = bench.stores(QUOTA);
    let ours = stores.of(&owned("a", "1")).unwrap();
    let seen = |of: &Arc<Namespace>| of.get("default", "k").unwrap().map(|value| value.revision);
    let swap = |seen: Option<u64>, value: &str| {
        let swap = Write::Swap { bucket: "default".into(), key: "k".into(), seen, value: value.into() };
        write(&ours, swap).unwrap()
    };
    assert_eq!(swap(None, "1"), Written::Done);
    let first = seen(&ours);
    set(&ours, "default", "k", b"2").unwrap();
    set(&ours, "default", "k", b"1").unwrap();
    let Written::Stale(Some(now)) = swap(first, "3") else { panic!("the same value, another write") };
    assert_eq!(now.bytes, b"1");
    assert_eq!(swap(Some(now.revision), "3"), Written::Done);
    write(&ours, Write::Delete { bucket: "default".into(), keys: vec!["k".into()] }).unwrap();
    assert_eq!(swap(first, "4"), Written::Stale(None));
}

#[test]
fn a_quota_ends_growth_and_nothing_else() {
    let bench = Bench::new();
    let stores = bench.stores(Quota { bytes: 10_000, keys: 20 });
    let ours = stores.of(&owned("a", "1")).unwrap();
    let many = |count: usize, bucket: &str| Write::Set {
        bucket: bucket.into(),
        pairs: (0..count).map(|n| (format!("k{n}"), b"v".to_vec())).collect(),
    };
    assert_eq!(write(&ours, many(21, "default")), Err(StoreError::KeysUsedUp(20)));
    assert!(!ours.exists("default", "k0").unwrap(), "a batch is done as a whole or not at all");
    // Buckets are prefixes of keys: any number of them shares one count of keys.
    for n in 0..20 {
        set(&ours, &format!("b{n}"), "k", b"v").unwrap();
    }
    assert_eq!(set(&ours, "b20", "k", b"v"), Err(StoreError::KeysUsedUp(20)));
    assert_eq!(set(&ours, "b0", "k", &[0; 10_000]), Err(StoreError::BytesUsedUp(10_000)));
    set(&ours, "b0", "k", &[0; 5_000]).unwrap();
    set(&ours, "b0", "k", &[0; 6_000]).unwrap();
    assert_eq!(increment(&ours, "n", 1), Err(StoreError::KeysUsedUp(20)));
    write(&ours, Write::Delete { bucket: "b0".into(), keys: vec!["k".into(), "none".into()] }).unwrap();
    assert_eq!(increment(&ours, "n", 1), Ok(Written::Number(1)));
    // Another namespace has its own quota.
    set(&stores.of(&owned("b", "1")).unwrap(), "default", "k", &[0; 9_000]).unwrap();
    // Size limits are checked before the quota.
    let long = "k".repeat(KEY_BYTES_MAX + 1);
    assert_eq!(set(&ours, "default", &long, b"v"), Err(StoreError::KeyTooLong(513)));
    assert_eq!(ours.get("default", &long), Err(StoreError::KeyTooLong(513)));
    assert_eq!(
        set(&ours, "b", "k", &vec![0; VALUE_BYTES_MAX + 1]),
        Err(StoreError::ValueTooLarge(VALUE_BYTES_MAX + 1))
    );
    assert_eq!(write(&ours, many(1001, "default")), Err(StoreError::BatchTooLong(1001)));
    assert_eq!(ours.get_many("default", &vec![String::new(); 1001]), Err(StoreError::BatchTooLong(1001)));
    for wrong in ["a/b", "a b", "\u{e9}", &"b".repeat(65)] {
        assert_eq!(bucket(wrong), None, "{wrong}");
    }
    assert_eq!((bucket(""), bucket("a.b_C-9")), (Some("default"), Some("a.b_C-9")));
    for wrong in [owned("a/..", "1"), owned("", "1"), owned("a", "1.redb"), owned("a", "../1")] {
        assert!(stores.of(&wrong).is_err(), "{wrong:?}");
    }
}

#[test]
fn a_full_quota_of_large_values_fits_its_file_three_times() {
    let bench = Bench::new();
    let stores = bench.stores(Quota { bytes: 8 << 20, keys: 100 });
    let ours = stores.of(&owned("a", "1")).unwrap();
    // Each key is rewritten with sizes that leave holes.
    for n in 0..60_usize {
        let value = vec![0; 300_000 + n * 7919 % 500_000];
        let _ = set(&ours, "default", &format!("k{}", n % 12), &value);
    }
    let file = bench.dir.path().join("keyvalue/a.1.redb");
    let bytes = std::fs::metadata(file).unwrap().len();
    assert!(bytes < 3 * (8 << 20), "{bytes} bytes for 8 MiB");
}

#[test]
fn pages_have_every_key_once() {
    let bench = Bench::new();
    let stores = bench.stores(QUOTA);
    let ours = stores.of(&owned("a", "1")).unwrap();
    assert_eq!(ours.list("default", None).unwrap(), Page { keys: vec![], cursor: None });
    let names: Vec<String> = (0..2500).map(|n| format!("{n:05}")).collect();
    for part in names.chunks(900) {
        let pairs = part.iter().map(|name| (name.clone(), Vec::new())).collect();
        write(&ours, Write::Set { bucket: "default".into(), pairs }).unwrap();
    }
    set(&ours, "default", "", b"the empty key is one").unwrap();
    set(&ours, "defaulu", "0", b"another bucket").unwrap();
    let (mut all, mut cursor, mut pages) = (Vec::new(), None::<String>, 0);
    loop {
        let page = ours.list("default", cursor.as_deref()).unwrap();
        all.extend(page.keys);
        pages += 1;
        cursor = page.cursor;
        if cursor.is_none() {
            break;
        }
    }
    let wanted: Vec<String> = std::iter::once(String::new()).chain(names).collect();
    assert_eq!((all == wanted, pages), (true, 3));
    assert_eq!(ours.list("default", Some("zzz")).unwrap().keys, Vec::<String>::new(), "a cursor of nowhere");
    let found = ours.get_many("default", &["00001".into(), "none".into()]).unwrap();
    assert_eq!(found, [Some(vec![]), None]);
    for n in 0..3 {
        set(&ours, "large", &format!("{n}"), &vec![0; VALUE_BYTES_MAX - 100]).unwrap();
    }
    let keys: Vec<String> = (0..3).map(|n| n.to_string()).collect();
    assert_eq!(ours.get_many("large", &keys), Err(StoreError::BatchTooLarge));
    assert_eq!(ours.get_many("large", &keys[..2]).unwrap().len(), 2);
}

#[test]
fn waiting_writes_share_a_commit_without_abandoned_ones() {
    let bench = Bench::new();
    let stores = bench.stores(QUOTA);
    let ours = stores.of(&owned("a", "1")).unwrap();
    let add = |key: &str| Write::Increment { bucket: "default".into(), key: key.into(), delta: 1 };
    let mut waiting: Vec<_> = (0..300).map(|_| ours.submit(add("n")).unwrap()).collect();
    drop(ours.submit(add("gave-up")).unwrap());
    ours.commit();
    ours.commit();
    let numbers: Vec<_> = waiting.iter_mut().map(|answer| answer.try_recv().unwrap().unwrap()).collect();
    assert_eq!(numbers, (1..=300).map(Written::Number).collect::<Vec<_>>());
    assert!(!ours.exists("default", "gave-up").unwrap());
}

#[test]
fn few_files_are_open_however_many_namespaces_there_are() {
    let bench = Bench::new();
    let stores = bench.stores(QUOTA);
    let all: Vec<_> = (0..OPEN_MAX + 10).map(|n| stores.of(&owned("a", &n.to_string())).unwrap()).collect();
    for namespace in &all {
        set(namespace, "default", "k", b"1").unwrap();
    }
    let open = || bench.ledger.used(runtime_api::ledger::Resource::Descriptors);
    assert_eq!(open(), OPEN_MAX as u64);
    for namespace in &all {
        assert_eq!(increment(namespace, "k", 1), Ok(Written::Number(2)), "closed ones open again");
    }
    assert_eq!(open(), OPEN_MAX as u64);
}

#[test]
fn a_damaged_file_is_an_error_and_stays_as_it_is() {
    let bench = Bench::new();
    std::fs::create_dir(bench.dir.path().join("keyvalue")).unwrap();
    let file = bench.dir.path().join("keyvalue/a.1.redb");
    std::fs::write(&file, b"no store").unwrap();
    let stores = bench.stores(QUOTA);
    let ours = stores.of(&owned("a", "1")).unwrap();
    assert!(matches!(ours.get("default", "k"), Err(StoreError::Io(_))));
    assert!(matches!(set(&ours, "default", "k", b"1"), Err(StoreError::Io(_))));
    assert_eq!(std::fs::read(&file).unwrap(), b"no store");
    assert_eq!(bench.ledger.used(runtime_api::ledger::Resource::Descriptors), 0);
}

#[test]
fn a_store_leaves_disk_space_above_the_threshold_of_eviction() {
    const GIB: u64 = 1 << 30;
    assert_eq!(super::free_bytes_min(250 * GIB), GIB / 5 * 6, "1.2 GiB of a large disk");
    assert_eq!(super::free_bytes_min(5 * GIB), GIB / 10 * 6, "12% of a small one");
}

#[test]
fn two_processes_share_the_files_during_a_takeover() {
    const EACH: i64 = 40;
    let bench = Bench::new();
    let (old, new) = (bench.stores(QUOTA), bench.stores(QUOTA));
    let of = |stores: &Arc<FileStores>| stores.of(&owned("a", "1")).unwrap();
    increment(&of(&old), "n", 1).unwrap();
    // The old process had the file open, and goes on to use it.
    old.share(true);
    new.share(true);
    std::thread::scope(|scope| {
        for stores in [&old, &new] {
            scope.spawn(move || (0..EACH).for_each(|_| drop(increment(&of(stores), "n", 1).unwrap())));
        }
    });
    assert_eq!(text(&of(&old), "default", "n"), text(&of(&new), "default", "n"));
    new.share(false);
    increment(&of(&new), "n", 1).unwrap();
    assert_eq!(text(&of(&new), "default", "n"), Some((2 * EACH + 2).to_string()));
}
