//! The contract of a namespace's store, for each implementation: files of this node, and a real Redis.

use std::collections::BTreeSet;
use std::sync::Arc;

use async_trait::async_trait;
use machinery_env::TokioClock;
use runtime_api::KeyvalueOwner;
use runtime_api::disk::{DiskBusy, FileWork};
use runtime_api::keyvalue::{KEY_BYTES_MAX, KeyvalueStore, Page, StoreError, VALUE_BYTES_MAX, Value, Write, Written};
use runtime_api::ledger::{Ledger, Resource};

use super::files::{FileStore, FileStores};
#[cfg(feature = "redis")]
use super::shared::{
    SharedStores,
    server::{Server, stores},
};
use super::{QUOTA, Quota};

/// A namespace of the tests' cluster.
pub(crate) fn owned(namespace: &str, uid: &str) -> KeyvalueOwner {
    KeyvalueOwner { namespace: namespace.into(), uid: uid.into(), cluster: Some("cluster-1".into()) }
}

/// File work on the thread of the caller, at once.
struct AtOnce;

#[async_trait]
impl FileWork for AtOnce {
    async fn run(&self, work: &mut (dyn FnMut() + Send)) -> Result<(), DiskBusy> {
        tokio::task::block_in_place(work);
        Ok(())
    }

    async fn flush(&self, work: &mut (dyn FnMut() + Send)) -> Result<(), DiskBusy> {
        self.run(work).await
    }
}

/// The rest of an implementation.
enum Subject {
    Local {
        _dir: tempfile::TempDir,
        stores: Arc<FileStores>,
    },
    #[cfg(feature = "redis")]
    Shared {
        _server: Server,
        stores: Arc<SharedStores>,
    },
}

impl Subject {
    fn local(quota: Quota) -> Self {
        let (dir, ledger) = (tempfile::tempdir().unwrap(), Ledger::node());
        ledger.set_limit(Resource::Descriptors, 1000);
        Self::Local { stores: FileStores::new(dir.path().join("keyvalue"), quota, &ledger), _dir: dir }
    }

    #[cfg(feature = "redis")]
    fn shared(quota: Quota) -> Self {
        let server = Server::start(&[]);
        Self::Shared { stores: stores(&server.url(), quota), _server: server }
    }

    fn both(quota: Quota) -> Vec<Self> {
        vec![
            Self::local(quota),
            #[cfg(feature = "redis")]
            Self::shared(quota),
        ]
    }

    fn name(&self) -> &str {
        match self {
            Self::Local { .. } => "local",
            #[cfg(feature = "redis")]
            Self::Shared { .. } => "shared",
        }
    }

    fn open(&self, owner: &KeyvalueOwner) -> Store {
        match self {
            Self::Local { stores, .. } => {
                Arc::new(FileStore { namespace: stores.of(owner).unwrap(), files: Arc::new(AtOnce) })
            }
            #[cfg(feature = "redis")]
            Self::Shared { stores, .. } => Arc::new(stores.of(owner).unwrap()),
        }
    }

    async fn remove(&self, owner: &KeyvalueOwner) {
        match self {
            Self::Local { stores, .. } => stores.remove(owner).unwrap(),
            #[cfg(feature = "redis")]
            Self::Shared { stores, .. } => stores.remove(owner).await.unwrap(),
        }
    }
}

type Store = Arc<dyn KeyvalueStore>;

async fn set(store: &Store, bucket: &str, key: &str, value: &[u8]) -> Result<Written, StoreError> {
    store.write(Write::Set { bucket: bucket.into(), pairs: vec![(key.into(), value.into())] }).await
}

async fn delete(store: &Store, bucket: &str, keys: &[&str]) -> Result<Written, StoreError> {
    let keys = keys.iter().map(|key| (*key).to_owned()).collect();
    store.write(Write::Delete { bucket: bucket.into(), keys }).await
}

async fn increment(store: &Store, key: &str, delta: i64) -> Result<Written, StoreError> {
    store.write(Write::Increment { bucket: "default".into(), key: key.into(), delta }).await
}

async fn swap(store: &Store, key: &str, seen: Option<u64>, value: &str) -> Result<Written, StoreError> {
    let (bucket, key) = ("default".into(), key.into());
    store.write(Write::Swap { bucket, key, seen, value: value.into() }).await
}

async fn text(store: &Store, bucket: &str, key: &str) -> Option<String> {
    store.get(bucket, key).await.unwrap().map(|value| String::from_utf8(value.bytes).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn buckets_and_namespaces_are_apart_and_a_removed_one_is_gone() {
    for subject in Subject::both(QUOTA) {
        let (ours, theirs) = (subject.open(&owned("a", "1")), subject.open(&owned("a", "2")));
        assert_eq!(text(&ours, "default", "k").await, None, "{}", subject.name());
        set(&ours, "default", "k", b"1").await.unwrap();
        set(&ours, "other", "k", b"\0\xff\r\n").await.unwrap();
        set(&theirs, "default", "k", b"").await.unwrap();
        assert_eq!(text(&ours, "default", "k").await, Some("1".into()));
        assert_eq!(ours.get("other", "k").await.unwrap().unwrap().bytes, b"\0\xff\r\n");
        assert_eq!(text(&ours, "defaul", "tk").await, None);
        assert_eq!(text(&theirs, "default", "k").await, Some(String::new()), "of the same name with another uid");
        assert_eq!((ours.exists("other", "k").await, ours.exists("other", "j").await), (Ok(true), Ok(false)));
        // Another container of the namespace has the same data.
        assert_eq!(text(&subject.open(&owned("a", "1")), "default", "k").await, Some("1".into()));
        subject.remove(&owned("a", "1")).await;
        subject.remove(&owned("a", "3")).await;
        assert_eq!(ours.get("default", "k").await, Err(StoreError::Removed));
        assert_eq!(ours.exists("default", "k").await, Err(StoreError::Removed));
        assert_eq!(ours.list("default", None).await, Err(StoreError::Removed));
        assert_eq!(ours.get_many("default", &["k".into()]).await, Err(StoreError::Removed));
        assert_eq!(set(&ours, "default", "k", b"9").await, Err(StoreError::Removed));
        assert_eq!(text(&theirs, "default", "k").await, Some(String::new()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn numbers_are_text_and_never_wrap() {
    for subject in Subject::both(QUOTA) {
        let ours = subject.open(&owned("a", "1"));
        assert_eq!(increment(&ours, "n", -3).await, Ok(Written::Number(-3)));
        assert_eq!(increment(&ours, "n", i64::MAX).await, Ok(Written::Number(i64::MAX - 3)));
        assert_eq!(increment(&ours, "n", 4).await, Err(StoreError::Overflow));
        assert_eq!(text(&ours, "default", "n").await, Some((i64::MAX - 3).to_string()), "{}", subject.name());
        assert_eq!(increment(&ours, "least", i64::MIN).await, Ok(Written::Number(i64::MIN)));
        assert_eq!(increment(&ours, "least", 0).await, Ok(Written::Number(i64::MIN)));
        assert_eq!(increment(&ours, "least", -1).await, Err(StoreError::Overflow));
        for (kept, wanted) in [
            ("many", None),
            ("", None),
            (" 1", None),
            ("1\n", None),
            ("1.0", None),
            ("+", None),
            ("--1", None),
            ("0x1", None),
            ("9223372036854775808", None),
            ("-9223372036854775809", None),
            ("18446744073709551617", None),
            ("9223372036854775806", Some(i64::MAX)),
            ("+41", Some(42)),
            ("-0", Some(1)),
            ("00000000000000000000000000041", Some(42)),
            ("-00000000000000000000000000041", Some(-40)),
        ] {
            set(&ours, "default", "n", kept.as_bytes()).await.unwrap();
            let wanted = wanted.map(Written::Number).ok_or(StoreError::NoNumber);
            assert_eq!(increment(&ours, "n", 1).await, wanted, "{kept:?}, {}", subject.name());
            if wanted.is_err() {
                assert_eq!(text(&ours, "default", "n").await.as_deref(), Some(kept), "it stays");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_swap_sees_every_write_between() {
    for subject in Subject::both(QUOTA) {
        let ours = subject.open(&owned("a", "1"));
        assert_eq!(swap(&ours, "k", Some(1), "0").await, Ok(Written::Stale(None)), "{}", subject.name());
        assert_eq!(swap(&ours, "k", None, "1").await, Ok(Written::Done));
        let first = ours.get("default", "k").await.unwrap().map(|value| value.revision);
        set(&ours, "default", "k", b"2").await.unwrap();
        set(&ours, "default", "k", b"1").await.unwrap();
        let Ok(Written::Stale(Some(now))) = swap(&ours, "k", first, "3").await else {
            panic!("the same value, another write")
        };
        assert_eq!(now.bytes, b"1");
        assert_eq!(swap(&ours, "k", Some(now.revision), "3").await, Ok(Written::Done));
        assert_eq!(text(&ours, "default", "k").await, Some("3".into()));
        delete(&ours, "default", &["k"]).await.unwrap();
        assert_eq!(swap(&ours, "k", first, "4").await, Ok(Written::Stale(None)));
        assert_eq!(swap(&ours, "k", Some(u64::MAX), "4").await, Ok(Written::Stale(None)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quota_ends_growth_and_nothing_else() {
    for subject in Subject::both(Quota { bytes: 10_000, keys: 20 }) {
        let ours = subject.open(&owned("a", "1"));
        let many = |count: usize, bucket: &str| Write::Set {
            bucket: bucket.into(),
            pairs: (0..count).map(|n| (format!("k{n}"), b"v".to_vec())).collect(),
        };
        assert_eq!(ours.write(many(21, "default")).await, Err(StoreError::KeysUsedUp(20)), "{}", subject.name());
        assert_eq!(ours.exists("default", "k0").await, Ok(false), "a batch is done as a whole or not at all");
        let repeated = (0..100).map(|n| ("k".to_owned(), n.to_string().into_bytes())).collect();
        ours.write(Write::Set { bucket: "b0".into(), pairs: repeated }).await.unwrap();
        assert_eq!(text(&ours, "b0", "k").await, Some("99".into()), "the last value of a key");
        for n in 0..20 {
            set(&ours, &format!("b{n}"), "k", b"v").await.unwrap();
        }
        assert_eq!(set(&ours, "b20", "k", b"v").await, Err(StoreError::KeysUsedUp(20)));
        assert_eq!(set(&ours, "b0", "k", &[0; 10_000]).await, Err(StoreError::BytesUsedUp(10_000)));
        set(&ours, "b0", "k", &[0; 5_000]).await.unwrap();
        // 20 keys of 64 bytes, their names, 19 values: exactly the rest.
        let rest = 10_000 - (20 * (64 + 1) + 10 * 2 + 10 * 3 + 19);
        assert_eq!(set(&ours, "b0", "k", &vec![0; rest + 1]).await, Err(StoreError::BytesUsedUp(10_000)));
        assert_eq!(set(&ours, "b0", "k", &vec![0; rest]).await, Ok(Written::Done), "{}", subject.name());
        assert_eq!(increment(&ours, "n", 1).await, Err(StoreError::BytesUsedUp(10_000)));
        assert_eq!(swap(&ours, "n", None, "").await, Err(StoreError::BytesUsedUp(10_000)));
        delete(&ours, "b0", &["k", "none", "k"]).await.unwrap();
        assert_eq!(increment(&ours, "n", 1).await, Ok(Written::Number(1)));
        set(&subject.open(&owned("b", "2")), "default", "k", &[0; 9_000]).await.unwrap();
        // Size limits are checked before the quota.
        let (long, large) = ("k".repeat(KEY_BYTES_MAX + 1), vec![0; VALUE_BYTES_MAX + 1]);
        assert_eq!(set(&ours, "default", &long, b"v").await, Err(StoreError::KeyTooLong(513)));
        assert_eq!(ours.get("default", &long).await, Err(StoreError::KeyTooLong(513)));
        assert_eq!(set(&ours, "b", "k", &large).await, Err(StoreError::ValueTooLarge(VALUE_BYTES_MAX + 1)));
        assert_eq!(ours.write(many(1001, "default")).await, Err(StoreError::BatchTooLong(1001)));
        assert_eq!(ours.get_many("default", &vec![String::new(); 1001]).await, Err(StoreError::BatchTooLong(1001)));
        assert_eq!(ours.get_many("default", &[]).await, Ok(vec![]));
        assert_eq!(ours.write(many(0, "default")).await, Ok(Written::Done));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_have_every_key_once_while_others_change() {
    for subject in Subject::both(QUOTA) {
        let ours = subject.open(&owned("a", "1"));
        assert_eq!(ours.list("default", None).await, Ok(Page { keys: vec![], cursor: None }));
        let names: Vec<String> = (0..2500).map(|n| format!("{n:05}")).collect();
        for part in names.chunks(900) {
            let pairs = part.iter().map(|name| (name.clone(), Vec::new())).collect();
            ours.write(Write::Set { bucket: "default".into(), pairs }).await.unwrap();
        }
        set(&ours, "default", "", b"the empty key is one").await.unwrap();
        set(&ours, "default", "00001\0\u{1}\u{7f}\u{fffd}", b"any characters").await.unwrap();
        set(&ours, "defaulu", "0", b"another bucket").await.unwrap();
        set(&ours, "defaul", "t", b"another bucket").await.unwrap();
        let (mut all, mut cursor, mut pages) = (Vec::new(), None::<String>, 0);
        loop {
            let page = ours.list("default", cursor.as_deref()).await.unwrap();
            all.extend(page.keys);
            pages += 1;
            cursor = page.cursor;
            // The cursor's own key goes, and one comes before it.
            match &cursor {
                Some(cursor) => delete(&ours, "default", &[cursor]).await.unwrap(),
                None => break,
            };
            set(&ours, "default", "00000-late", b"").await.unwrap();
        }
        let mut wanted: Vec<String> = std::iter::once(String::new()).chain(names).collect();
        wanted.push("00001\0\u{1}\u{7f}\u{fffd}".into());
        wanted.sort();
        assert_eq!((all == wanted, pages), (true, 3), "{}", subject.name());
        assert_eq!(ours.list("default", Some("zzz")).await.unwrap().keys, Vec::<String>::new(), "a cursor of nowhere");
        let found = ours.get_many("default", &["00001".into(), "none".into(), "00001".into()]).await.unwrap();
        assert_eq!(found, [Some(vec![]), None, Some(vec![])]);
        for n in 0..3 {
            set(&ours, "large", &format!("{n}"), &vec![n; VALUE_BYTES_MAX]).await.unwrap();
        }
        let keys: Vec<String> = (0..3).map(|n| n.to_string()).collect();
        assert_eq!(ours.get_many("large", &keys).await, Err(StoreError::BatchTooLarge));
        let two = ours.get_many("large", &keys[..2]).await.unwrap();
        assert!(two == [Some(vec![0; VALUE_BYTES_MAX]), Some(vec![1; VALUE_BYTES_MAX])], "{}", subject.name());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_concurrent_write_is_lost() {
    for subject in Subject::both(QUOTA) {
        let stores: Vec<Store> = (0..4).map(|_| subject.open(&owned("a", "1"))).collect();
        let adders = (0..100).map(|n| increment(&stores[n % 4], "n", 1));
        let numbers: BTreeSet<_> =
            futures::future::join_all(adders).await.into_iter().map(|sum| format!("{:03?}", sum.unwrap())).collect();
        assert_eq!(numbers.len(), 100, "each sum once, {}", subject.name());
        let swappers = (0..20).map(|n| {
            let store = stores[n % 4].clone();
            async move {
                let mut seen = store.get("default", "s").await.unwrap();
                loop {
                    let sum = seen.as_ref().map_or(0, |value| String::from_utf8_lossy(&value.bytes).parse().unwrap());
                    match swap(&store, "s", seen.map(|value| value.revision), &(sum + 1).to_string()).await.unwrap() {
                        Written::Stale(now) => seen = now,
                        _ => break,
                    }
                }
            }
        });
        futures::future::join_all(swappers).await;
        assert_eq!(text(&stores[0], "default", "s").await, Some("20".into()), "{}", subject.name());
        assert_eq!(text(&stores[0], "default", "n").await, Some("100".into()));
    }
}

/// The same operations have the same results in both.
#[tokio::test(flavor = "multi_thread")]
async fn both_are_the_same_map() {
    let both = Subject::both(Quota { bytes: 600, keys: 5 });
    for seed in 0..20 {
        let (env, _) = TokioClock::env(seed);
        let owner = owned("a", &seed.to_string());
        let stores: Vec<_> = both.iter().map(|subject| subject.open(&owner)).collect();
        for step in 0..40 {
            let (bucket, key) = (["b", "b0"][env.below(2) as usize], ["", "k", "0k", "kk", "l"][env.below(5) as usize]);
            let (operation, size, delta) = (env.below(7), env.below(200) as usize, env.below(u64::MAX) as i64);
            let mut results = Vec::new();
            for store in &stores {
                let now = store.get(bucket, key).await.unwrap();
                let write = match operation {
                    0 => Write::Set { bucket: bucket.into(), pairs: vec![(key.into(), vec![b'7'; size % 21])] },
                    1 => Write::Set {
                        bucket: bucket.into(),
                        pairs: vec![
                            (key.into(), vec![b'1'; size]),
                            ("x".into(), vec![1]),
                            (key.into(), vec![b'2'; size]),
                        ],
                    },
                    2 => Write::Delete { bucket: bucket.into(), keys: vec![key.into(), "x".into()] },
                    3 | 4 => Write::Increment { bucket: bucket.into(), key: key.into(), delta },
                    5 => {
                        let seen = now.as_ref().map(|value| value.revision);
                        Write::Swap { bucket: bucket.into(), key: key.into(), seen, value: vec![b'3'; size] }
                    }
                    _ => Write::Swap { bucket: bucket.into(), key: key.into(), seen: Some(u64::MAX), value: vec![] },
                };
                let written = match store.write(write).await {
                    Ok(Written::Stale(now)) => Ok(Written::Stale(now.map(|now| Value { revision: 0, ..now }))),
                    other => other,
                };
                let names: Vec<String> = ["", "k", "0k", "kk", "l", "x"].map(str::to_owned).into();
                let content = store.get_many(bucket, &names).await;
                results.push((written, now.map(|value| value.bytes), content, store.list(bucket, None).await));
            }
            for other in &results[1..] {
                assert_eq!(&results[0], other, "seed {seed}, step {step}, operation {operation} of {bucket}/{key}");
            }
        }
    }
}
