//! The contract suite for stores: etcd's semantics, one promise per function.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use machinery_env::{Env, ManualClock};

use super::*;

/// Creates an empty store.
pub(crate) type Make<'a> = &'a dyn Fn(Env) -> BoxFuture<'static, Arc<dyn Store>>;

/// A store that needs no asynchronous setup.
pub(crate) fn ready(store: Arc<dyn Store>) -> BoxFuture<'static, Arc<dyn Store>> {
    Box::pin(std::future::ready(store))
}

fn env() -> (Env, Arc<ManualClock>) {
    Env::seeded(1, Timestamp::from_second(1_700_000_000).unwrap())
}

pub(crate) fn put(key: &str, value: &str) -> Op {
    Op::Put { key: key.into(), record: Record::plain(value.as_bytes()), ttl: None }
}

pub(crate) fn when(key: &str, modified: Revision, op: Op) -> Txn {
    Txn { compares: vec![Compare { key: key.into(), modified }], ops: vec![op] }
}

pub(crate) fn just(op: Op) -> Txn {
    Txn { compares: vec![], ops: vec![op] }
}

pub(crate) async fn write(store: &dyn Store, txn: Txn) -> Revision {
    match store.txn(txn).await.unwrap() {
        Outcome::Committed(revision) => revision,
        Outcome::Conflict(entries) => panic!("conflict: {entries:?}"),
    }
}

pub(crate) async fn all(make: Make<'_>) {
    read_and_written(make).await;
    feeds(make).await;
}

/// The part that also holds for a fed copy of a store.
pub(crate) async fn read_and_written(make: Make<'_>) {
    distributed(make).await;
    slow_watches_end(make).await;
    expires(make).await;
}

/// The part that also holds for a store that several processes use, whose time is real, and whose revisions others take
/// before and after.
pub(crate) async fn distributed(make: Make<'_>) {
    compares(make).await;
    reads_at_revisions(make).await;
    reaches_every_name(make).await;
    watches(make).await;
    many_writers(make).await;
    compacts(make).await;
}

/// The first path segments of watched keys.
pub(crate) const WATCHED: [&str; 6] = ["k", "p", "w", "x", "n", "e"];

async fn compares(make: Make<'_>) {
    let store = make(env().0).await;
    let created = write(&*store, when("/registry/k/a", 0, put("/registry/k/a", "1"))).await;
    assert_eq!(created, store.revision());
    let Outcome::Conflict(seen) = store.txn(when("/registry/k/a", 0, put("/registry/k/a", "x"))).await.unwrap() else {
        panic!()
    };
    let entry = seen[0].clone().unwrap();
    assert_eq!(
        (&*entry.key, &*entry.record.body(), entry.created, entry.modified),
        ("/registry/k/a", &b"1"[..], created, created)
    );
    let second = write(&*store, when("/registry/k/a", created, put("/registry/k/a", "2"))).await;
    assert_eq!(second, created + 1);
    // All or nothing, at one revision; the last write to a key wins.
    let txn = Txn {
        compares: vec![
            Compare { key: "/registry/k/a".into(), modified: second },
            Compare { key: "/registry/k/b".into(), modified: 0 },
        ],
        ops: vec![put("/registry/k/b", "0"), Op::Delete { key: "/registry/k/a".into() }, put("/registry/k/b", "1")],
    };
    let third = write(&*store, txn).await;
    assert_eq!(store.get("/registry/k/a", None).await.unwrap(), None);
    let b = store.get("/registry/k/b", None).await.unwrap().unwrap();
    assert_eq!((&*b.record.body(), b.created, b.modified), (&b"1"[..], third, third));
    // A transaction without a change takes no revision.
    assert_eq!(write(&*store, just(Op::Delete { key: "/registry/k/a".into() })).await, third);
    assert_eq!(store.revision(), third);
    let Outcome::Conflict(seen) = store.txn(when("/registry/k/a", second, put("/registry/k/a", "x"))).await.unwrap()
    else {
        panic!()
    };
    assert_eq!(seen, vec![None]);
    let huge = Op::Put { key: "/registry/k/h".into(), record: Record::plain(&vec![0; VALUE_BYTES_MAX + 1]), ttl: None };
    assert!(matches!(store.txn(just(huge)).await, Err(StoreError::TooLarge { .. })));
    // Created again: with a new creation revision.
    let again = write(&*store, just(put("/registry/k/a", "3"))).await;
    assert_eq!(store.get("/registry/k/a", None).await.unwrap().unwrap().created, again);
}

async fn reads_at_revisions(make: Make<'_>) {
    let store = make(env().0).await;
    let first = store.revision();
    for n in 0..5 {
        write(&*store, just(put(&format!("/registry/p/{n}"), "1"))).await;
    }
    write(&*store, just(put("/registry/q/0", "1"))).await;
    let old = store.revision();
    write(&*store, just(put("/registry/p/2", "2"))).await;
    write(&*store, just(Op::Delete { key: "/registry/p/3".into() })).await;
    let page = store.range("/registry/p/1", &prefix_end("/registry/p/"), Some(old), 2).await.unwrap();
    assert_eq!(page.entries.iter().map(|e| &*e.key).collect::<Vec<_>>(), ["/registry/p/1", "/registry/p/2"]);
    assert_eq!((page.revision, page.remaining), (old, 2));
    assert_eq!(*page.entries[1].record.body(), *b"1");
    let now = store.range("/registry/p/", &prefix_end("/registry/p/"), None, 0).await.unwrap();
    assert_eq!(now.entries.len(), 4);
    assert_eq!(now.revision, store.revision());
    assert_eq!(store.get("/registry/p/3", Some(old)).await.unwrap().unwrap().modified, first + 4);
    let future = store.revision() + 1;
    assert!(matches!(store.get("/registry/p/3", Some(future)).await, Err(StoreError::Future(_))));
    store.compact(old + 1).await.unwrap();
    assert_eq!(store.compacted(), old + 1);
    assert!(matches!(store.range("/", "0", Some(old), 0).await, Err(StoreError::Compacted(_))));
    assert_eq!(
        store.range("/registry/p/", &prefix_end("/registry/p/"), Some(old + 1), 0).await.unwrap().entries.len(),
        5
    );
    assert!(matches!(store.compact(old).await, Err(StoreError::Compacted(_))));
    assert!(matches!(store.watch("/registry/p/", old).await, Err(StoreError::Compacted(_))));
}

/// Ranges end neither before the last name of their prefix nor after it.
async fn reaches_every_name(make: Make<'_>) {
    let store = make(env().0).await;
    let names =
        ["\u{1}", "0", "a", "\u{d7ff}", "\u{e000}", "\u{fffd}", "\u{10fffe}", "\u{10ffff}", "\u{10ffff}\u{10ffff}x"];
    for prefix in ["/registry/n/", "/registry/n/a/", "/registry/n/\u{10ffff}/"] {
        for name in names {
            write(&*store, just(put(&format!("{prefix}{name}"), "1"))).await;
        }
    }
    for prefix in ["/registry/n/a/", "/registry/n/\u{10ffff}/"] {
        let found = store.range(prefix, &prefix_end(prefix), None, 0).await.unwrap();
        let found: Vec<&str> = found.entries.iter().map(|entry| &entry.key[prefix.len()..]).collect();
        assert_eq!(found, names, "below {prefix}");
    }
    for prefix in ["/registry/n/", "/", ""] {
        let found = store.range(prefix, &prefix_end(prefix), None, 0).await.unwrap();
        assert_eq!(found.entries.len(), 3 * names.len(), "below {prefix:?}");
    }
}

async fn watches(make: Make<'_>) {
    let store = make(env().0).await;
    let base = store.revision();
    let first = write(&*store, just(put("/registry/w/a", "1"))).await;
    write(&*store, just(put("/registry/x/a", "1"))).await;
    let mut live = store.watch("/registry/w/", store.revision()).await.unwrap();
    let mut past = store.watch("/registry/w/", base).await.unwrap();
    write(&*store, just(put("/registry/w/a", "2"))).await;
    let txn =
        Txn { compares: vec![], ops: vec![Op::Delete { key: "/registry/w/a".into() }, put("/registry/w/b", "1")] };
    let last = write(&*store, txn).await;
    let born = past.next().await.unwrap();
    assert_eq!((born.revision, born.previous), (first, None));
    for watch in [&mut live, &mut past] {
        let update = watch.next().await.unwrap();
        assert_eq!(*update.previous.unwrap().record.body(), *b"1");
        assert_eq!(*update.entry.unwrap().record.body(), *b"2");
        let gone = watch.next().await.unwrap();
        assert_eq!((gone.revision, &*gone.key, gone.entry), (last, "/registry/w/a", None));
        assert_eq!(*gone.previous.unwrap().record.body(), *b"2");
        assert_eq!(&*watch.next().await.unwrap().key, "/registry/w/b");
    }
}

/// A slow watch ends with an error once its history is compacted.
async fn slow_watches_end(make: Make<'_>) {
    let store = make(env().0).await;
    write(&*store, just(put("/registry/w/a", "1"))).await;
    let mut live = store.watch("/registry/w/", store.revision()).await.unwrap();
    write(&*store, just(put("/registry/w/b", "1"))).await;
    store.compact(store.revision()).await.unwrap();
    assert!(matches!(live.next().await, Err(StoreError::Compacted(_))));
}

async fn many_writers(make: Make<'_>) {
    let store = make(env().0).await;
    let base = store.revision();
    let mut watch = store.watch("/registry/n/", base).await.unwrap();
    let writers = (0..16).map(|w| {
        let store = store.clone();
        tokio::spawn(async move {
            let mut won = 0u64;
            for n in 0..25 {
                write(&*store, just(put(&format!("/registry/n/{w}/{n}"), "x"))).await;
                let seen = store.get("/registry/n/counter", None).await.unwrap().map_or(0, |e| e.modified);
                if let Outcome::Committed(_) =
                    store.txn(when("/registry/n/counter", seen, put("/registry/n/counter", "x"))).await.unwrap()
                {
                    won += 1;
                }
            }
            won
        })
    });
    let writers: Vec<_> = writers.collect();
    let mut won = 0;
    for writer in writers {
        won += writer.await.unwrap();
    }
    assert_eq!(store.revision(), base + 16 * 25 + won);
    let mut next = base;
    while next < store.revision() {
        next += 1;
        assert_eq!(watch.next().await.unwrap().revision, next, "every revision once and in order");
    }
}

async fn expires(make: Make<'_>) {
    let (env, clock) = env();
    let store = make(env).await;
    let mortal =
        |ttl| Op::Put { key: "/registry/e/1".into(), record: Record::plain(b"x"), ttl: Some(Duration::from_secs(ttl)) };
    write(&*store, just(mortal(10))).await;
    store.tick().await.unwrap();
    clock.advance(Duration::from_secs(8));
    write(&*store, just(mortal(10))).await;
    clock.advance(Duration::from_secs(8));
    store.tick().await.unwrap();
    assert!(store.get("/registry/e/1", None).await.unwrap().is_some(), "written again: a new time to live");
    let mut watch = store.watch("/registry/e/", store.revision()).await.unwrap();
    clock.advance(Duration::from_secs(3));
    store.tick().await.unwrap();
    assert_eq!(store.get("/registry/e/1", None).await.unwrap(), None);
    assert_eq!(watch.next().await.unwrap().entry, None);
    for name in ["\u{1}", "\u{10ffff}"] {
        let key = format!("/registry/e/{name}");
        let op = Op::Put { key, record: Record::plain(b"1"), ttl: Some(Duration::from_secs(9)) };
        write(&*store, just(op)).await;
    }
    clock.advance(Duration::from_secs(9));
    store.tick().await.unwrap();
    let left = store.range("/", &prefix_end("/"), None, 0).await.unwrap().entries;
    assert!(left.is_empty(), "all have outlived their time: {left:?}");
}

/// Compacts to the revision of five minutes ago.
async fn compacts(make: Make<'_>) {
    let (env, clock) = env();
    let store = make(env).await;
    store.tick().await.unwrap();
    let base = store.compacted();
    write(&*store, just(put("/registry/k/a", "1"))).await;
    store.tick().await.unwrap();
    assert_eq!(store.compacted(), base);
    clock.advance(COMPACT_EVERY);
    store.tick().await.unwrap();
    let then = store.revision();
    write(&*store, just(put("/registry/k/a", "2"))).await;
    clock.advance(COMPACT_EVERY);
    store.tick().await.unwrap();
    assert_eq!(store.compacted(), then);
}

async fn feeds(make: Make<'_>) {
    #[derive(Default)]
    struct RecordingSink(std::sync::Mutex<Vec<String>>);
    impl Sink for RecordingSink {
        fn start(&self, state: Vec<Entry>, revision: Revision) {
            self.0.lock().unwrap().push(format!("start {} at {revision}", state.len()));
        }
        fn commit(&self, changes: &[Change]) {
            for change in changes {
                self.0.lock().unwrap().push(format!("{} {}", change.key, change.revision));
            }
        }
        fn progress(&self, revision: Revision) {
            self.0.lock().unwrap().push(format!("progress {revision}"));
        }
        fn compact(&self, revision: Revision) {
            self.0.lock().unwrap().push(format!("compact {revision}"));
        }
    }
    let store = make(env().0).await;
    write(&*store, just(put("/registry/k/a", "1"))).await;
    store.compact(1).await.unwrap();
    write(&*store, just(put("/registry/k/b", "1"))).await;
    let seen = Arc::new(RecordingSink::default());
    store.feed(seen.clone()).await.unwrap();
    assert_eq!(*seen.0.lock().unwrap(), ["start 1 at 1", "/registry/k/b 2"]);
    write(&*store, just(put("/registry/k/c", "1"))).await;
    // Fed before the acknowledgement.
    assert_eq!(seen.0.lock().unwrap().last().unwrap(), "/registry/k/c 3");
    store.compact(3).await.unwrap();
    assert_eq!(seen.0.lock().unwrap().last().unwrap(), "compact 3");
}
