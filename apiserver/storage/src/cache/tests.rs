//! Tests the watch cache over the memory store: order, gaps, slow watchers, pages at a fixed revision, selection,
//! stamping.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use machinery_api::selector::{FieldRequirement, LabelSelector};
use machinery_api::{ObjectName, StoragePrefix};
use machinery_env::Env;
use serde_json::{Value, json};

use super::*;
use crate::store::memory::MemoryStore;
use crate::store::{Compare, Op, Record, Sink as _};
use apiserver_resources::objects::ObjectReader;

pub(super) const PODS: &str = "/registry/pods/";
fn whole() -> WatchEncoding {
    WatchEncoding {
        kind: EventType::Added,
        before: false,
        managed: true,
        api_version: "v1".into(),
        shape: Shape::Object,
        media: Media::Json,
    }
}

/// The record of an older program: read from the object, with labels, without fields.
fn record(stored: &str) -> Record {
    Record::read(stored.as_bytes(), |_| None)
}

pub(super) fn pods() -> Resource {
    Resource {
        prefix: StoragePrefix::new("pods"),
        fields: Some(Arc::new(Fields::new(vec![Cow::Borrowed("spec.nodeName")], |pod: &Value| {
            vec![pod.pointer("/spec/nodeName").and_then(Value::as_str).unwrap_or("").to_owned()]
        }))),
        indexed_fields: [Arc::from("spec.nodeName")].into(),
        indexes_labels: true,
    }
}

pub(super) async fn open() -> Arc<WatchCache> {
    let (env, _) = Env::seeded(1, Timestamp::UNIX_EPOCH);
    let store = Arc::new(MemoryStore::new(env.clone()));
    WatchCache::open(&env, store, vec![pods(), Resource::plain(StoragePrefix::new("configmaps"))]).await.unwrap()
}

pub(super) fn pod(namespace: &str, name: &str, node: &str, app: &str) -> (String, Value) {
    let object = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": {"app": app}},
        "spec": {"nodeName": node},
    });
    (StoragePrefix::new("pods").object(ObjectName::new(namespace, name)).into(), object)
}

pub(super) async fn put(cache: &WatchCache, (key, value): (String, Value)) -> Revision {
    let op = Op::Put { key, record: record(&value.to_string()), ttl: None };
    done(cache.commit(Txn { compares: vec![], ops: vec![op] }).await)
}

pub(super) async fn delete(cache: &WatchCache, key: &str) -> Revision {
    done(cache.commit(Txn { compares: vec![], ops: vec![Op::Delete { key: key.into() }] }).await)
}

fn done(outcome: Result<Outcome, StoreError>) -> Revision {
    match outcome.unwrap() {
        Outcome::Committed(revision) => revision,
        Outcome::Conflict(_) => panic!("conflict"),
    }
}

pub(super) fn on_node(node: &str) -> Selectors {
    let fields = FieldRequirement::equals("spec.nodeName", node).into();
    Selectors { fields, ..Selectors::default() }
}

fn labelled(app: &str) -> Selectors {
    let labels = LabelSelector::from_labels([("app", app)]);
    Selectors { labels, ..Selectors::default() }
}

fn names(page: &Page) -> Vec<&str> {
    page.items.iter().map(|object| object.name()).collect()
}

fn shown(seen: &WatchEvent) -> (EventType, &str, Revision) {
    (seen.kind, seen.object.name(), seen.object.modified)
}

#[tokio::test]
async fn stamps_the_resource_version_without_parsing() {
    let cache = open().await;
    let key = format!("{PODS}a/x");
    for stored in [
        r#"{"kind":"Pod","metadata":{"name":"x","namespace":"a"}}"#,
        r#"{"kind":"Pod","metadata":{ }}"#,
        r#"{"kind":"Pod", "metadata" : {"name":"x","resourceVersion":"7","namespace":"a"}}"#,
        r#"{"kind":"Pod","spec":{"metadata":{}},"metadata":{"labels":{"a\n":"\u00e9"},"namespace":"a"}}"#,
    ] {
        let op = Op::Put { key: key.clone(), record: record(stored), ttl: None };
        let revision = done(cache.commit(Txn { compares: vec![], ops: vec![op] }).await);
        let object = cache.get(&key).unwrap();
        let mut expected: Value = serde_json::from_str(stored).unwrap();
        expected["metadata"]["resourceVersion"] = json!(revision.to_string());
        assert_eq!(serde_json::from_slice::<Value>(&object.bytes(true)).unwrap(), expected);
        assert_eq!(object.value(), expected);
        assert_eq!(*object.shared(), expected);
        assert_eq!(object.name(), "x");
        assert_eq!(object.namespace(), expected["metadata"]["namespace"].as_str().unwrap_or(""));
    }
    assert_eq!(cache.get(&key).unwrap().label("a\n"), Some("é"));
    // Invalid bytes are kept unchanged.
    let op = Op::Put { key: key.clone(), record: record("\u{1}{["), ttl: None };
    done(cache.commit(Txn { compares: vec![], ops: vec![op] }).await);
    assert_eq!(&cache.get(&key).unwrap().bytes(true)[..], b"\x01{[");
}

#[tokio::test]
async fn lists_use_indexes_and_namespaces() {
    let cache = open().await;
    put(&cache, pod("a", "one", "n1", "web")).await;
    put(&cache, pod("a", "two", "n2", "web")).await;
    put(&cache, pod("ab", "three", "n1", "db")).await;
    let at = cache.revision();
    put(&cache, pod("a", "two", "n1", "db")).await;
    let list = |prefix: &str, at, filter: &Selectors| cache.list(prefix, at, None, 0, filter).unwrap();
    let all = Selectors::default();
    assert_eq!(names(&list("/registry/pods/a/", None, &all)), ["one", "two"]);
    assert_eq!(names(&list(PODS, None, &on_node("n1"))), ["one", "two", "three"]);
    assert_eq!(names(&list("/registry/pods/a/", None, &on_node("n1"))), ["one", "two"]);
    assert_eq!(names(&list(PODS, Some(at), &on_node("n1"))), ["one", "three"]);
    assert_eq!(names(&list(PODS, None, &labelled("web"))), ["one"]);
    let named = |name: &str| Selectors {
        fields: FieldRequirement::equals("metadata.name", name).into(),
        ..Selectors::default()
    };
    assert_eq!(names(&list("/registry/pods/a/", None, &named("two"))), ["two"]);
    assert_eq!(names(&list(PODS, None, &named("three"))), ["three"]);
    assert!(list("/registry/pods/a/", None, &named("three")).items.is_empty());
    assert_eq!(names(&list(PODS, None, &labelled("none"))), Vec::<&str>::new());
    let page = cache.list(PODS, None, None, 2, &on_node("n1")).unwrap();
    assert_eq!(names(&page), ["one", "two"]);
    let rest = cache.list(PODS, Some(page.revision), page.next.as_deref(), 2, &on_node("n1")).unwrap();
    assert_eq!((names(&rest), rest.next.as_deref()), (vec!["three"], None));
    delete(&cache, "/registry/pods/ab/three").await;
    assert_eq!(names(&list(PODS, None, &on_node("n1"))), ["one", "two"]);
}

#[tokio::test]
async fn pages_at_a_fixed_revision_while_writes_go_on() {
    let cache = open().await;
    for n in 0..100 {
        put(&cache, pod("a", &format!("p{n:03}"), "", "v1")).await;
    }
    let (mut seen, mut next, mut at): (Vec<String>, Option<Arc<str>>, _) = (Vec::new(), None, None);
    loop {
        let page = cache.list(PODS, at, next.as_deref(), 7, &labelled("v1")).unwrap();
        seen.extend(page.items.iter().map(|object| object.name().to_owned()));
        at = Some(page.revision);
        let n = seen.len();
        put(&cache, pod("a", &format!("p{:03}", (n * 37) % 100), "", "v2")).await;
        delete(&cache, &format!("{PODS}a/p{:03}", (n * 53) % 100)).await;
        put(&cache, pod("a", &format!("p{n:03}x"), "", "v1")).await;
        next = page.next;
        if next.is_none() {
            break;
        }
    }
    assert_eq!(seen, (0..100).map(|n| format!("p{n:03}")).collect::<Vec<_>>());
    let at = at.unwrap();
    // The page ends at its limit: the remaining objects are only counted without a filter, and may match nothing.
    let all = cache.list(PODS, Some(at), None, 7, &Selectors::default()).unwrap();
    assert_eq!((all.remaining, cache.count_after(PODS, all.next.as_deref().unwrap(), at)), (None, Ok(93)));
    let none_left = cache.list(PODS, Some(at), Some("/registry/pods/a/p098"), 1, &labelled("v1")).unwrap();
    assert_eq!((none_left.items.len(), none_left.next), (1, None));
    cache.store().compact(at + 1).await.unwrap();
    assert_eq!(
        cache.list(PODS, Some(at), None, 1, &Selectors::default()).unwrap_err(),
        VersionError::Compacted(at + 1)
    );
    let now = cache.revision();
    assert_eq!(cache.list(PODS, Some(now + 1), None, 1, &Selectors::default()).unwrap_err(), VersionError::Future(now));
}

/// Pages of a large list cost only their own items, independent of what follows, and report how many follow.
#[tokio::test]
async fn a_page_visits_only_its_own_records() {
    let cache = open().await;
    let ops = |range: std::ops::Range<usize>| {
        let op = |n: usize| Op::Put {
            key: format!("{PODS}{}/p{n:05}", if n.is_multiple_of(3) { "a" } else { "b" }),
            record: Record::plain(b"{}"),
            ttl: None,
        };
        range.map(op).collect()
    };
    for n in (0..6000).step_by(100) {
        done(cache.commit(Txn { compares: vec![], ops: ops(n..n + 100) }).await);
    }
    assert_eq!(
        (cache.count(PODS), cache.count("/registry/pods/a/"), cache.count("/registry/pods/none/")),
        (6000, 2000, 0)
    );
    let (mut at, mut next, mut seen) = (None, None::<Arc<str>>, 0);
    loop {
        let all = Selectors::default();
        let page = cache.list("/registry/pods/a/", at, next.as_deref(), 7, &all).unwrap();
        let first = next.is_none();
        seen += page.items.len();
        if first {
            assert_eq!(page.remaining, Some(2000 - 7));
        } else if page.next.is_some() {
            assert_eq!(page.remaining, None, "nobody has counted");
        }
        at = Some(page.revision);
        next = page.next;
        let Some(last) = &next else { break };
        if first {
            assert_eq!(cache.count_after("/registry/pods/a/", last, page.revision), Ok(2000 - 7));
        }
    }
    assert_eq!(seen, 2000);
    // A list longer than a slice, with writes in between.
    assert_eq!(cache.list(PODS, None, None, 0, &Selectors::default()).unwrap().items.len(), 6000);
    delete(&cache, "/registry/pods/a/p00000").await;
    delete(&cache, "/registry/pods/a/p00000").await;
    assert_eq!((cache.count(PODS), cache.count("/registry/pods/a/")), (5999, 1999));
    cache.register(pods()).await;
    assert_eq!((cache.count(PODS), cache.count("/registry/pods/b/")), (5999, 4000));
}

#[tokio::test]
async fn a_filtered_watch_sees_objects_come_and_go() {
    let cache = open().await;
    let start = put(&cache, pod("a", "x", "", "web")).await;
    let mut node = cache.watch(PODS, Some(start), on_node("n1")).unwrap();
    let mut namespace = cache.watch("/registry/pods/b/", None, Selectors::default()).unwrap();
    let bound = put(&cache, pod("a", "x", "n1", "web")).await;
    let changed = put(&cache, pod("a", "x", "n1", "db")).await;
    put(&cache, pod("a", "y", "n2", "web")).await;
    let moved = put(&cache, pod("a", "x", "n2", "db")).await;
    put(&cache, pod("b", "z", "n1", "web")).await;
    let gone = delete(&cache, "/registry/pods/b/z").await;
    let mut late = cache.watch(PODS, Some(start), on_node("n1")).unwrap();
    for watch in [&mut node, &mut late] {
        assert_eq!(shown(&watch.recv().await.unwrap()), (EventType::Added, "x", bound));
        assert_eq!(shown(&watch.recv().await.unwrap()), (EventType::Modified, "x", changed));
        let left = watch.recv().await.unwrap();
        assert_eq!(shown(&left), (EventType::Deleted, "x", moved));
        assert_eq!(left.object.field("spec.nodeName"), Some("n1"), "the last state that was selected");
        assert_eq!(shown(&watch.recv().await.unwrap()), (EventType::Added, "z", gone - 1));
        let deleted = watch.recv().await.unwrap();
        assert_eq!(shown(&deleted), (EventType::Deleted, "z", gone));
        assert_eq!(deleted.object.value()["metadata"]["resourceVersion"], json!(gone.to_string()));
        assert!(watch.try_recv().unwrap().is_none());
        assert_eq!(watch.progress(), Some(gone));
    }
    assert_eq!(namespace.progress(), Some(gone - 2), "up to the event that it has not taken up yet");
    assert_eq!(shown(&namespace.recv().await.unwrap()), (EventType::Added, "z", gone - 1));
    // Other writes advance the progress of a quiet watch.
    namespace.recv().await.unwrap();
    let last = put(&cache, pod("a", "y", "n3", "web")).await;
    assert_eq!(namespace.progress(), Some(last));
}

#[tokio::test]
async fn a_bookmark_is_never_behind_delivered_events() {
    let cache = open().await;
    let start = put(&cache, pod("a", "x", "", "web")).await;
    let mut watch = cache.watch(PODS, Some(start), Selectors::default()).unwrap();
    assert_eq!(watch.progress(), Some(start));
    let first = put(&cache, pod("a", "y", "", "web")).await;
    assert_eq!(shown(&watch.recv().await.unwrap()), (EventType::Added, "y", first));
    // An event between the last check of the ring and the bookmark.
    let second = put(&cache, pod("a", "z", "", "web")).await;
    assert_eq!(watch.progress(), Some(first));
    // Two changes at one revision, one of them still pending: no bookmark can express that.
    let both = ["v", "w"].map(|name| {
        let (key, value) = pod("a", name, "", "web");
        Op::Put { key, record: record(&value.to_string()), ttl: None }
    });
    let third = done(cache.commit(Txn { compares: vec![], ops: both.into() }).await);
    assert_eq!(shown(&watch.recv().await.unwrap()), (EventType::Added, "z", second));
    assert_eq!(watch.progress(), Some(second));
    assert_eq!(shown(&watch.recv().await.unwrap()), (EventType::Added, "v", third));
    assert_eq!((watch.progress(), watch.last_revision()), (None, third));
    assert_eq!(shown(&watch.recv().await.unwrap()), (EventType::Added, "w", third));
    assert_eq!(watch.progress(), Some(third));
    // A lost event is not behind the watch.
    put(&cache, pod("a", "u", "", "web")).await;
    cache.store().compact(cache.revision()).await.unwrap();
    put(&cache, pod("a", "u", "", "db")).await;
    assert_eq!(watch.progress(), None);
}

#[tokio::test]
async fn only_the_newest_events_keep_their_frames() {
    let cache = open().await;
    let start = put(&cache, pod("a", "x", "", "web")).await;
    let mut watch = cache.watch(PODS, Some(start), Selectors::default()).unwrap();
    let first = put(&cache, pod("a", "first", "", "web")).await;
    let seen = watch.recv().await.unwrap();
    let made = |event: &Event, encoding: &WatchEncoding| {
        let mut made = false;
        event.frame(encoding, || {
            made = true;
            "frame".into()
        });
        made
    };
    assert!(made(&seen.event, &whole()) && !made(&seen.event, &whole()), "made once");
    for other in [
        WatchEncoding { kind: EventType::Deleted, ..whole() },
        WatchEncoding { before: true, ..whole() },
        WatchEncoding { api_version: "v2".into(), ..whole() },
        WatchEncoding { api_version: "other/v1".into(), ..whole() },
        WatchEncoding { shape: Shape::Metadata("meta.k8s.io/v1"), ..whole() },
    ] {
        assert!(made(&seen.event, &other) && !made(&seen.event, &other), "{other:?} has a frame of its own");
    }
    for n in 0..300 {
        put(&cache, pod("a", &format!("p{n}"), "", "web")).await;
    }
    assert!(made(&seen.event, &whole()) && made(&seen.event, &whole()), "an old event keeps nothing again");
    // A late watcher reads the same event.
    let mut late = cache.watch(PODS, Some(start), Selectors::default()).unwrap();
    let again = late.recv().await.unwrap();
    assert_eq!(again.event.revision, first);
    assert!(made(&again.event, &whole()) && made(&again.event, &whole()));
}

#[tokio::test]
async fn no_name_hides_from_lists() {
    let cache = open().await;
    let names = ["0", "a", "\u{10fffe}", "\u{10ffff}", "\u{10ffff}x"];
    for name in names {
        put(&cache, pod("team", name, "", "web")).await;
    }
    put(&cache, pod("team0", "z", "", "web")).await;
    let list = |prefix: &str, limit| cache.list(prefix, None, None, limit, &Selectors::default()).unwrap();
    assert_eq!(self::names(&list("/registry/pods/team/", 0)), names);
    assert_eq!(cache.count("/registry/pods/team/"), names.len() as u64);
    assert_eq!(list(PODS, 0).items.len(), names.len() + 1);
    let page = list("/registry/pods/team/", 3);
    assert_eq!(page.remaining, Some(2));
    let rest = cache.list("/registry/pods/team/", None, page.next.as_deref(), 0, &Selectors::default()).unwrap();
    assert_eq!(self::names(&rest), names[3..]);
    // And not from an index that is filled on registration.
    cache.register(pods()).await;
    assert_eq!(cache.list("/registry/pods/team/", None, None, 0, &labelled("web")).unwrap().items.len(), names.len());
}

#[tokio::test]
async fn concurrent_watches_see_one_order_with_no_gap() {
    let cache = open().await;
    let watchers: Vec<_> = (0..8)
        .map(|_| {
            let mut watch = cache.watch(PODS, Some(0), Selectors::default()).unwrap();
            tokio::spawn(async move {
                let mut seen = Vec::new();
                while seen.len() < 400 {
                    let next = watch.recv().await.unwrap();
                    let frame = next.event.frame(&whole(), || next.object.bytes(true));
                    seen.push((next.event.revision, next.object.name().to_owned(), frame.as_ptr() as usize));
                }
                seen
            })
        })
        .collect();
    let writers: Vec<_> = (0..8)
        .map(|w| {
            let cache = cache.clone();
            tokio::spawn(async move {
                for n in 0..50 {
                    let (key, value) = pod("a", &format!("w{w}-{n}"), "n", "x");
                    let revision = put(&cache, (key.clone(), value)).await;
                    // A writer reads its own write.
                    assert_eq!(cache.get(&key).unwrap().modified, revision);
                    tokio::task::yield_now().await;
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    let mut first: Option<Vec<(u64, String, usize)>> = None;
    for watcher in watchers {
        let seen = watcher.await.unwrap();
        assert!(seen.iter().map(|(revision, ..)| *revision).eq(1..=400));
        let order = |seen: &[(u64, String, usize)]| seen.iter().map(|(r, n, _)| (*r, n.clone())).collect::<Vec<_>>();
        if let Some(first) = &first {
            assert_eq!(order(first), order(&seen));
        }
        first.get_or_insert(seen);
    }
}

#[tokio::test]
async fn a_slow_watcher_is_cut_off_and_a_quiet_one_is_not() {
    let cache = open().await;
    put(&cache, pod("a", "x", "n1", "web")).await;
    let mut slow = cache.watch(PODS, None, Selectors::default()).unwrap();
    let mut quiet = cache.watch(PODS, None, on_node("n9")).unwrap();
    for n in 0..40 {
        put(&cache, pod("a", &format!("p{n}"), "n1", "web")).await;
    }
    let now = cache.revision();
    cache.store().compact(now).await.unwrap();
    assert_eq!(slow.recv().await.unwrap_err(), VersionError::Compacted(now));
    let last = put(&cache, pod("a", "q", "n9", "web")).await;
    assert_eq!(shown(&quiet.recv().await.unwrap()), (EventType::Added, "q", last));
    assert_eq!(cache.watch(PODS, Some(now - 1), Selectors::default()).err(), Some(VersionError::Compacted(now)));
    // A watch from a future revision waits for it.
    let mut future = cache.watch(PODS, Some(last + 1), Selectors::default()).unwrap();
    put(&cache, pod("a", "r", "n1", "web")).await;
    put(&cache, pod("a", "s", "n1", "web")).await;
    assert_eq!(future.recv().await.unwrap().object.name(), "s");
}

#[tokio::test]
async fn a_resource_can_be_registered_late() {
    let cache = open().await;
    let widget = |color: &str| {
        let value = json!({"metadata": {"name": "w", "namespace": "a"}, "spec": {"color": color}});
        ("/registry/x.dev/widgets/a/w".to_owned(), value)
    };
    let first = put(&cache, widget("red")).await;
    cache
        .register(Resource {
            prefix: StoragePrefix::new("x.dev/widgets"),
            fields: Some(Arc::new(Fields::new(vec![Cow::Borrowed(".spec.color")], |value| {
                vec![value["spec"]["color"].as_str().unwrap_or("").to_owned()]
            }))),
            indexed_fields: Arc::default(),
            indexes_labels: false,
        })
        .await;
    assert_eq!(cache.resource_revision("/registry/x.dev/widgets/"), first);
    assert_eq!(cache.resource_revision(PODS), 0);
    let red = FieldRequirement::equals(".spec.color", "red").into();
    let red = Selectors { fields: red, ..Selectors::default() };
    let list = |filter: &Selectors| cache.list("/registry/x.dev/widgets/", None, None, 0, filter).unwrap().items.len();
    assert_eq!(list(&red), 1);
    put(&cache, widget("blue")).await;
    assert_eq!(list(&red), 0);
    let watch = |from| cache.watch("/registry/x.dev/widgets/", Some(from), Selectors::default());
    assert_eq!(watch(0).err(), Some(VersionError::Compacted(first)), "events reach back to the registration");
    let mut watch = watch(first).unwrap();
    assert_eq!(watch.recv().await.unwrap().kind, EventType::Modified);
    let lookup = Lookup::new(cache.clone(), |group, _| (group == "x.dev").then(|| StoragePrefix::new("x.dev/widgets")));
    assert_eq!(lookup.get("x.dev", "widgets", "a", "w").unwrap()["spec"]["color"], "blue");
    assert_eq!(lookup.list("x.dev", "widgets", Some("a")).len(), 1);
    assert!(lookup.list("x.dev", "widgets", Some("b")).is_empty());
}

#[tokio::test]
async fn a_resource_that_goes_ends_its_watches_and_no_others() {
    let cache = open().await;
    let mut all = cache.watch(PODS, None, Selectors::default()).unwrap();
    let mut node = cache.watch(PODS, None, on_node("n1")).unwrap();
    let mut other = cache.watch("/registry/configmaps/", None, Selectors::default()).unwrap();
    let waiting = tokio::spawn(async move { node.recv().await.map(|seen| seen.kind) });
    tokio::task::yield_now().await;
    put(&cache, pod("a", "x", "", "web")).await;
    cache.unregister(PODS).await;
    assert_eq!(all.recv().await.unwrap().object.name(), "x", "what happened before is shown");
    assert_eq!(all.recv().await.unwrap_err(), VersionError::Unregistered);
    assert_eq!(waiting.await.unwrap(), Err(VersionError::Unregistered));
    assert_eq!(cache.watch(PODS, None, Selectors::default()).err(), Some(VersionError::Unregistered));
    put(&cache, ("/registry/configmaps/a/c".into(), json!({"metadata": {"name": "c"}}))).await;
    assert_eq!(other.recv().await.unwrap().object.name(), "c");
    // Stored objects are kept, and are available again with their resource.
    put(&cache, pod("a", "y", "n1", "web")).await;
    cache.register(pods()).await;
    assert_eq!(names(&cache.list(PODS, None, None, 0, &on_node("n1")).unwrap()), ["y"]);
    assert_eq!(cache.count(PODS), 2);
}

#[tokio::test]
async fn a_cache_that_starts_again_ends_all_watches() {
    let cache = open().await;
    let before = put(&cache, pod("a", "x", "n1", "web")).await;
    let mut all = cache.watch(PODS, None, Selectors::default()).unwrap();
    let mut behind = cache.watch(PODS, Some(0), Selectors::default()).unwrap();
    let mut node = cache.watch(PODS, None, on_node("n1")).unwrap();
    let waiting = tokio::spawn(async move { node.recv().await.map(|seen| seen.kind) });
    tokio::task::yield_now().await;
    let feed = Feed::of(&cache);
    feed.start(Vec::new(), before + 9);
    let lost = VersionError::Compacted(before + 9);
    assert_eq!(all.recv().await.unwrap_err(), lost);
    assert_eq!(behind.recv().await.unwrap_err(), lost);
    assert_eq!(waiting.await.unwrap(), Err(lost));
    assert_eq!(cache.watch(PODS, Some(before), Selectors::default()).err(), Some(lost));
    assert!(cache.list(PODS, None, None, 0, &Selectors::default()).unwrap().items.is_empty());
    // Revisions of others move the cache without an event.
    feed.progress(before + 20);
    assert_eq!(cache.list(PODS, None, None, 0, &Selectors::default()).unwrap().revision, before + 20);
    assert!(cache.wait_for_revision(before + 20, Duration::ZERO).await);
}

#[tokio::test]
async fn a_large_resource_loads_during_changes() {
    const MANY: usize = 5 * SLICE_OBJECTS / 2;
    let (env, _) = Env::seeded(1, Timestamp::UNIX_EPOCH);
    let cache = WatchCache::open(&env, Arc::new(MemoryStore::new(env.clone())), Vec::new()).await.unwrap();
    let name = |n: usize| format!("p{n:05}");
    for n in 0..MANY {
        put(&cache, pod("a", &name(n), if n % 2 == 0 { "n0" } else { "n1" }, "web")).await;
    }
    let changing = {
        let cache = cache.clone();
        async move {
            // Before, within and after the slice being filled.
            for n in (0..MANY).step_by(7) {
                match n % 3 {
                    0 => delete(&cache, &format!("{PODS}a/{}", name(n))).await,
                    1 => put(&cache, pod("a", &name(n), "n2", "web")).await,
                    _ => put(&cache, pod("a", &format!("{}-new", name(n)), "n2", "web")).await,
                };
            }
        }
    };
    tokio::join!(cache.register(pods()), changing);
    let everything = cache.list(PODS, None, None, 0, &Selectors::default()).unwrap();
    assert_eq!(cache.count("/registry/pods/a/"), everything.items.len() as u64);
    for node in ["n0", "n1", "n2"] {
        let by_index = names(&cache.list(PODS, None, None, 0, &on_node(node)).unwrap()).len();
        let walked = everything.items.iter().filter(|pod| pod.value()["spec"]["nodeName"] == node).count();
        assert!(by_index == walked && walked > 0, "{node}: {by_index} of {walked}");
    }
}

#[tokio::test]
async fn waits_until_a_revision_is_visible() {
    let cache = open().await;
    assert!(!cache.wait_for_revision(1, Duration::from_millis(1)).await);
    let waiting = tokio::spawn({
        let cache = cache.clone();
        async move { cache.wait_for_revision(1, Duration::from_secs(60)).await }
    });
    put(&cache, pod("a", "x", "", "")).await;
    assert!(waiting.await.unwrap());
    let stale = Compare { key: "/registry/pods/a/x".into(), modified: 0 };
    let txn = Txn { compares: vec![stale], ops: vec![] };
    assert!(matches!(cache.commit(txn).await, Ok(Outcome::Conflict(_))));
}

#[tokio::test]
async fn objects_are_read_under_no_lock() {
    let (env, _) = Env::seeded(1, Timestamp::UNIX_EPOCH);
    let cache = WatchCache::open(&env, Arc::new(MemoryStore::new(env.clone())), Vec::new()).await.unwrap();
    // Objects of another program: their records lack the values of this one's selectors.
    put(&cache, pod("a", "before", "n1", "web")).await;
    let (reads, slot) = (Arc::new(AtomicU64::new(0)), Arc::downgrade(&cache));
    let counted = reads.clone();
    let fields = Fields::new(vec![Cow::Borrowed("spec.nodeName")], move |pod: &Value| {
        assert!(slot.upgrade().unwrap().state.try_write().is_ok(), "no lock is held meanwhile");
        counted.fetch_add(1, Ordering::Relaxed);
        vec![pod["spec"]["nodeName"].as_str().unwrap_or("").to_owned()]
    });
    cache.register(Resource { fields: Some(Arc::new(fields)), ..pods() }).await;
    put(&cache, pod("a", "after", "n1", "web")).await;
    let items = cache.list(PODS, None, None, 0, &Selectors::default()).unwrap().items;
    assert!(items.len() == 2 && items.iter().all(|pod| pod.field("spec.nodeName") == Some("n1")), "{items:?}");
    assert_eq!(reads.load(Ordering::Relaxed), 2, "each once");
}
