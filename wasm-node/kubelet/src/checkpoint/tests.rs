//! Tests of the checkpoint's records, and of folders that were damaged, moved or written by others.

use std::collections::BTreeMap;
use std::path::Path;

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use machinery_client::checkpoint;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::load::{self, Loaded};
use super::record::{self, NodeRecord, Origin, PodRecord, SourceRecord, is_ahead, with_status};
use crate::spec::referred::{BoundVolume, Content, SourceKind};

fn node(name: &str, uid: &str) -> NodeRecord {
    let labels = BTreeMap::from([("disk".to_owned(), "ssd".to_owned())]);
    let (name, uid, pod_cidr) = (name.to_owned(), uid.to_owned(), "10.0.0.0/24".to_owned());
    NodeRecord { name, origin: uid.clone(), uid, pod_cidr, labels, taints: Vec::new() }
}

fn pod(uid: &str, origin: &str) -> PodRecord {
    let pod = json!({"metadata": {"name": "p", "namespace": "n", "uid": uid}, "spec": {"containers": []}});
    PodRecord {
        origin: Origin { node_name: "a".into(), node_uid: origin.into() },
        pod: serde_json::from_value(pod).unwrap(),
        claims: BTreeMap::new(),
        namespace_uid: None,
        cluster_uid: None,
    }
}

fn write(folder: &Path, file: &str, kind: &str, record: &impl serde::Serialize) {
    checkpoint::write(&folder.join(file), kind, &record::encode(record).unwrap()).unwrap();
}

/// A folder with a node and two pods, one of which a Node of another uid has written.
fn folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    load::open(dir.path(), "a").unwrap();
    write(dir.path(), "node.json", record::NODE, &node("a", "1"));
    write(dir.path(), "pods/own.json", record::POD, &pod("own", "1"));
    write(dir.path(), "pods/foreign.json", record::POD, &pod("foreign", "2"));
    dir
}

fn uids(loaded: &Loaded) -> Vec<&str> {
    loaded.pods.keys().map(String::as_str).collect()
}

/// The files of a folder. There is no other place for them: a rejected one may hold Secrets.
fn files(dir: &tempfile::TempDir, below: &str) -> Vec<String> {
    let entries = std::fs::read_dir(dir.path().join(below)).unwrap().map(|entry| entry.unwrap());
    let files = entries.filter(|entry| entry.file_type().unwrap().is_file());
    let mut names: Vec<_> = files.map(|entry| entry.file_name().into_string().unwrap()).collect();
    names.sort();
    assert!(!dir.path().join(below).join("aside").exists());
    names
}

#[test]
fn files_of_another_node_are_removed() {
    let dir = folder();
    let loaded = load::open(dir.path(), "a").unwrap();
    assert_eq!((uids(&loaded), files(&dir, "pods")), (vec!["own"], vec!["own.json".to_owned()]));
    assert_eq!(loaded.node.unwrap().labels["disk"], "ssd");
    // The folder of another node has nothing for this one.
    let loaded = load::open(dir.path(), "b").unwrap();
    assert!(loaded.node.is_none() && loaded.pods.is_empty());
    assert!(files(&dir, "").is_empty() && files(&dir, "pods").is_empty());
}

#[test]
fn nothing_in_a_folder_ends_the_start() {
    let dir = folder();
    std::fs::write(dir.path().join("services.json"), "x").unwrap();
    std::fs::write(dir.path().join("sources/x.json"), [0xff; 300]).unwrap();
    // What an earlier version has kept.
    std::fs::create_dir(dir.path().join("sources/aside")).unwrap();
    std::fs::write(dir.path().join("sources/aside/y.json"), "secret").unwrap();
    std::fs::create_dir(dir.path().join("pods/folder.json")).unwrap();
    std::fs::write(dir.path().join("pods/b.json.partial"), "half").unwrap();
    // A pod's file under the name of another one.
    std::fs::copy(dir.path().join("pods/own.json"), dir.path().join("pods/other.json")).unwrap();
    let loaded = load::open(dir.path(), "a").unwrap();
    assert_eq!(uids(&loaded), ["own"]);
    assert_eq!(files(&dir, "pods"), ["own.json"]);
    assert_eq!((files(&dir, "sources"), files(&dir, "")), (vec![], vec!["node.json".to_owned()]));
    assert!(!dir.path().join("pods/b.json.partial").exists());
    // Without the node's own file, its pods complete what the API says.
    std::fs::remove_file(dir.path().join("node.json")).unwrap();
    let loaded = load::open(dir.path(), "a").unwrap();
    assert_eq!((loaded.node.is_none(), uids(&loaded)), (true, vec!["own"]));
}

#[test]
fn a_file_in_the_place_of_the_folder_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("file"), "").unwrap();
    assert!(load::open(&dir.path().join("file"), "a").is_err());
    assert!(!super::Checkpoint::open(Some(dir.path().join("file")), "a").is_enabled());
}

fn status(value: Value) -> PodStatus {
    serde_json::from_value(value).unwrap()
}

#[test]
fn the_later_status_of_a_pods_life_counts() {
    let container = |restarts: i32, state: &str| {
        let state = if state == "terminated" { json!({"terminated": {"exitCode": 0}}) } else { json!({"running": {}}) };
        json!({"name": "c", "image": "i", "imageID": "", "ready": true, "restartCount": restarts, "state": state})
    };
    let of = |phase: &str, restarts, state: &str| {
        status(json!({"phase": phase, "containerStatuses": [container(restarts, state)]}))
    };
    let running = of("Running", 3, "running");
    assert!(is_ahead(&running, None));
    for (own, ahead) in [
        (of("Running", 3, "running"), false),
        (of("Running", 4, "running"), true),
        (of("Running", 2, "terminated"), false),
        (of("Running", 3, "terminated"), true),
        (of("Succeeded", 0, "terminated"), true),
    ] {
        assert_eq!(is_ahead(&own, Some(&running)), ahead, "{own:?}");
    }
    assert!(!is_ahead(&of("Running", 9, "running"), Some(&of("Failed", 3, "running"))), "others have ended it");
}

#[test]
fn conditions_of_others_stay_in_the_record() {
    let received: Pod = serde_json::from_value(json!({
        "metadata": {"uid": "1", "managedFields": [{"manager": "m"}]},
        "status": {"qosClass": "Burstable", "phase": "Pending", "conditions": [
            {"type": "example.com/gate", "status": "True"}, {"type": "Ready", "status": "True"}]},
    }))
    .unwrap();
    let own = status(json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "False"}]}));
    let pod = with_status(&received, &own);
    let status = pod.status.unwrap();
    let conditions: Vec<_> = status.conditions.unwrap().into_iter().map(|c| (c.type_, c.status)).collect();
    let text = |(kind, status): (&str, &str)| (kind.to_owned(), status.to_owned());
    assert_eq!(conditions, [("Ready", "False"), ("example.com/gate", "True")].map(text));
    assert_eq!((status.phase.as_deref(), status.qos_class.as_deref()), (Some("Running"), Some("Burstable")));
    assert!(pod.metadata.managed_fields.is_none());
}

proptest! {
    #[test]
    fn records_come_back(
        (name, uid, text) in ("[a-z]{1,20}", "[a-z0-9-]{1,36}", any::<String>()),
        data in proptest::collection::btree_map(any::<String>(), any::<Vec<u8>>(), 0..4),
        immutable in any::<bool>(), capacity in any::<u64>(), restarts in any::<i32>(),
    ) {
        let content = Content { data, immutable, uid: uid.clone(), secret_type: text.clone() };
        let source = SourceRecord::new(SourceKind::Secret, "n", &name, &content);
        let id = record::source_id(SourceKind::Secret, "n", &name);
        let body = record::encode(&source).unwrap();
        let file = checkpoint::encode(record::SOURCE, &body);
        let read = record::decode_source(checkpoint::decode(record::SOURCE, &file).unwrap(), &id).unwrap();
        prop_assert_eq!(read.content(), content);
        prop_assert!(record::decode_source(&body, "other").is_err());

        let mut pod = pod(&uid, "1");
        pod.pod.metadata.annotations = Some([(name.clone(), text.clone())].into());
        pod.pod.status = Some(status(json!({"podIP": "10.0.0.7", "message": text, "containerStatuses": [
            {"name": "c", "image": "i", "imageID": "", "ready": false, "restartCount": restarts}]})));
        pod.claims = [(name, BoundVolume::Local { uid: uid.clone(), capacity, alone: immutable })].into();
        pod.namespace_uid = Some(text);
        let body = record::encode(&pod).unwrap();
        prop_assert_eq!(record::decode_pod(&body, &uid, "a", Some(&pod.origin)).unwrap(), pod);
    }

    #[test]
    fn a_changed_byte_is_found(at in any::<prop::sample::Index>(), flip in 1..=255u8) {
        let mut file = checkpoint::encode(record::NODE, &record::encode(&node("a", "1")).unwrap());
        let at = at.index(file.len());
        file[at] ^= flip;
        // A digit of the checksum may change its case, which isn't significant.
        let same = checkpoint::decode(record::NODE, &file).ok();
        let original = record::encode(&node("a", "1")).unwrap();
        prop_assert!(same.is_none_or(|body| body == original));
    }
}
