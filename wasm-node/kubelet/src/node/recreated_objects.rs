//! Immutable ConfigMaps that are deleted and created again with the same name, against a fake API server.

use std::sync::Arc;
use std::time::Duration;

use http::Method;
use machinery_env::{Env, TokioClock};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::fake_api::{FakeApi, FakeCluster, Watch, not_found, send_event};
use crate::config::sources::{ConfigSource, ConfigSourceManager, SourceKind, SourceState};

/// Has at most one ConfigMap.
#[derive(Default)]
struct Cluster {
    map: Option<Value>,
    version: u64,
    watches: Vec<Watch>,
}

impl Cluster {
    fn put(&mut self, uid: &str, text: &str) {
        self.version += 1;
        let metadata = json!({"name": "m", "namespace": "n", "uid": uid, "resourceVersion": self.version.to_string()});
        let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "immutable": true, "data": {"k": text}});
        send_event(&mut self.watches, "ADDED", &map);
        self.map = Some(map);
    }

    fn delete(&mut self) {
        self.version += 1;
        let mut map = self.map.take().unwrap();
        map["metadata"]["resourceVersion"] = json!(self.version.to_string());
        send_event(&mut self.watches, "DELETED", &map);
    }
}

impl FakeCluster for Cluster {
    fn initial_events(&self, _: &str) -> (&'static str, Vec<Value>, u64) {
        ("ConfigMap", self.map.iter().cloned().collect(), self.version)
    }

    fn add_watch(&mut self, _: &str, watch: Watch) {
        self.watches.push(watch);
    }

    fn respond(&mut self, _: &Method, _: &str, _: &Value) -> Option<(u16, Value)> {
        Some(not_found())
    }

    fn describe(&self) -> String {
        format!("{:?}", self.map)
    }
}

async fn text(source: &ConfigSource) -> String {
    let SourceState::Present(content) = source.read().await else { panic!("it is not there") };
    String::from_utf8(content.data["k"].clone()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn an_immutable_object_that_is_created_again_is_read_again() {
    let api = FakeApi::<Cluster>::default();
    api.with(|cluster| cluster.put("u1", "one"));
    let sources = ConfigSourceManager::new(api.client(), TokioClock::env(7).0, CancellationToken::new());
    let get = || sources.get(SourceKind::ConfigMap, "n", "m");
    // Waits for another source than `before`.
    let after = async |before: &Arc<ConfigSource>| {
        let other = async {
            loop {
                let source = get();
                if !Arc::ptr_eq(&source, before) {
                    return source;
                }
                Env::real().sleep(Duration::from_millis(1)).await;
            }
        };
        Env::real().timeout(Duration::from_secs(60), other).await.expect("later callers still get the old object")
    };
    let one = get();
    assert_eq!(text(&one).await, "one");
    Env::real().sleep(Duration::from_secs(1)).await;
    assert!(Arc::ptr_eq(&get(), &one), "one source for all pods while the object exists");
    api.with(|cluster| {
        cluster.delete();
        cluster.put("u2", "two");
    });
    let two = after(&one).await;
    assert_eq!((text(&two).await.as_str(), text(&one).await.as_str()), ("two", "one"), "holders keep the content");
    // The watch breaks, and misses the deletion.
    api.with(|cluster| {
        cluster.watches.clear();
        cluster.delete();
        cluster.put("u3", "three");
    });
    let three = after(&two).await;
    assert_eq!((text(&three).await.as_str(), text(&two).await.as_str()), ("three", "two"));
}
