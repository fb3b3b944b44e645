//! Tests that data folders of older versions can be opened, with a small fixture.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use apiserver_schema::apply::Managers;
use apiserver_storage::cache::{Resource, Selectors, WatchCache};
use apiserver_storage::store::embedded::{EmbeddedStore, Options};
use apiserver_storage::store::{Op, Record, Revision, Store, Txn, prefix_end};
use machinery_api::selector::{FieldSelector, LabelSelector};
use machinery_env::Env;

use crate::server;
use crate::test_catalog::built_in;

/// The resources of the watch cache.
fn resources() -> Vec<Resource> {
    built_in().all_stored().filter_map(Resource::of).collect()
}

async fn everything(store: &dyn Store) -> BTreeMap<String, (Vec<u8>, Revision, Revision)> {
    let range = store.range("/", &prefix_end("/"), None, 0).await.unwrap();
    range.entries.into_iter().map(|e| (e.key.to_string(), (e.record.body().to_vec(), e.created, e.modified))).collect()
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &to)
        } else {
            drop(fs::copy(entry.path(), to))
        }
    }
}

/// Like [`everything`], without objects that have a time to live: the folder's events expired an hour after it was
/// written, and are removed some time after a start.
async fn everything_that_stays(store: &dyn Store) -> BTreeMap<String, (Vec<u8>, Revision, Revision)> {
    let mut all = everything(store).await;
    all.retain(|key, _| !key.starts_with("/registry/events/"));
    all
}

/// A folder of the first version (commit 7a29936): objects as JSON only, in sled and in the log.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_of_the_first_format_starts_and_is_of_the_newest_one_then() {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/store-format-1");
    for keeps_sled in [true, false] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store");
        copy_folder(&fixture, &path);
        if !keeps_sled {
            fs::remove_dir_all(path.join("sled")).unwrap();
        }
        let mut before = BTreeMap::new();
        for _ in 0..3 {
            let options = || Options { read_first_format: Box::new(server::read_first_format), ..Options::default() };
            let store = EmbeddedStore::open(&path, Env::real(), options()).unwrap();
            store.start().unwrap();
            assert_eq!(fs::read_to_string(path.join("format")).unwrap().trim(), "3");
            let now = everything_that_stays(&*store).await;
            assert!(before.is_empty() || now == before, "the same after a restart");
            let cache = WatchCache::open(&Env::real(), store.clone(), resources()).await.unwrap();
            let names = |prefix: &str, filter| {
                let page = cache.list(prefix, None, None, 0, &filter).unwrap();
                page.items.iter().map(|object| object.name().to_owned()).collect::<Vec<_>>()
            };
            let opaque = Selectors { fields: FieldSelector::parse("type=Opaque").unwrap(), ..Selectors::default() };
            assert_eq!(names("/registry/secrets/", opaque), ["s"]);
            let gold = Selectors { labels: LabelSelector::parse("tier=gold").unwrap(), ..Selectors::default() };
            assert_eq!(names("/registry/namespaces/", gold), ["team"]);
            assert_eq!(names("/registry/rolebindings/team/", Selectors::default()), ["\u{10ffff}hidden"]);
            let held = cache.get("/registry/configmaps/team/held").unwrap();
            assert!(held.is_deleting() && held.value()["data"]["k"] == "é");
            assert_eq!(held.namespace(), "team");
            assert!(!cache.get("/registry/configmaps/team/after").unwrap().is_deleting());
            assert!(cache.get("/registry/configmaps/team/gone").is_none());
            // Parsed once at the start, with everything that today's records have.
            for (group, plural, key) in [
                ("", "secrets", "/registry/secrets/team/s"),
                ("", "namespaces", "/registry/namespaces/team"),
                ("", "configmaps", "/registry/configmaps/team/held"),
            ] {
                let row = crate::test_catalog::resource(group, plural);
                let entry = store.get(key, None).await.unwrap().unwrap();
                let value: serde_json::Value = serde_json::from_slice(&entry.record.body()).unwrap();
                assert_eq!(
                    crate::registry::Registry::encode(row, &value, &Managers::default()).unwrap(),
                    entry.record,
                    "{key}"
                );
            }
            if before.is_empty() {
                let key = || "/registry/configmaps/team/new".to_owned();
                let record = Record::read(b"{}", |_| None);
                for op in [Op::Put { key: key(), record, ttl: None }, Op::Delete { key: key() }] {
                    store.txn(Txn { compares: Vec::new(), ops: vec![op] }).await.unwrap();
                }
                store.compact(store.revision()).await.unwrap();
            }
            before = everything_that_stays(&*store).await;
            drop(cache);
            store.close();
        }
    }
}
