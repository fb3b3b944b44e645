//! Rows of the test tables of upstream's binder (v1.36, `pkg/controller/volume/persistentvolume`), by value: the
//! initial objects, the objects after the pass over one claim or volume, and the events.

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use machinery_api::ObjectKey;
use machinery_client::Action;
use machinery_client::simulate::Simulation;
use serde_json::{Value, json};

use crate::table_tests::{decide, start};

const BINDER: &str = "persistentvolume-binder-controller";
/// A pass here writes one field, while upstream's pass writes all of them.
const PASSES_MAX: usize = 8;

fn items(row: &Value, name: &str, api_version: &str, kind: &str) -> Vec<Value> {
    let all = row[name].as_array().cloned().unwrap_or_default();
    let typed = |mut object: Value| {
        object["apiVersion"] = json!(api_version);
        object["kind"] = json!(kind);
        object
    };
    all.into_iter().map(typed).collect()
}

fn key(object: &Value) -> ObjectKey {
    let of = |name: &str| object["metadata"][name].as_str().unwrap_or_default().to_owned();
    ObjectKey::new(of("namespace"), of("name"))
}

/// The events, as `Normal Reason`, once each.
fn work(simulation: &mut Simulation, key: &ObjectKey) -> Vec<String> {
    let mut reported: Vec<String> = Vec::new();
    for _ in 0..PASSES_MAX {
        let plan = decide(BINDER, simulation, key);
        for action in &plan.actions {
            if let Action::Event(event) = action {
                let text = format!("{} {}", if event.warning { "Warning" } else { "Normal" }, event.reason);
                if !reported.contains(&text) {
                    reported.push(text);
                }
            }
        }
        if plan.actions.iter().all(|action| matches!(action, Action::Event(_))) {
            return reported;
        }
        if !simulation.apply(plan).is_empty() {
            return reported;
        }
    }
    panic!("{key}: never done");
}

/// An object without the fields that the server writes, in its type's form.
fn plain<K: machinery_client::Typed>(object: Value) -> Value {
    let mut object = machinery_client::value_of(&machinery_client::read::<K>(object).unwrap());
    for name in ["resourceVersion", "generation", "creationTimestamp"] {
        object["metadata"].as_object_mut().unwrap().remove(name);
    }
    // A volume without a uid gets one.
    if object["kind"] == "PersistentVolume" {
        object["metadata"].as_object_mut().unwrap().remove("uid");
    }
    if let Some(reference) = object.pointer_mut("/spec/claimRef").and_then(Value::as_object_mut) {
        reference.remove("resourceVersion");
    }
    object
}

fn check(row: &Value) -> Result<(), String> {
    let volumes = items(row, "volumes", "v1", "PersistentVolume");
    let claims = items(row, "claims", "v1", "PersistentVolumeClaim");
    let classes = items(row, "classes", "storage.k8s.io/v1", "StorageClass");
    let pods = items(row, "pods", "v1", "Pod");
    let all = [volumes.clone(), claims.clone(), classes, pods].concat();
    let mut simulation = crate::simulation(start(), all);
    let of = if row["of"] == "claim" { &claims } else { &volumes };
    let mut reported = work(&mut simulation, &key(&of[0]));
    if row["multi"] == true {
        for _ in 0..PASSES_MAX {
            for object in claims.iter().chain(&volumes) {
                reported.extend(work(&mut simulation, &key(object)));
            }
        }
    }
    let events: Vec<&str> = row["events"].as_array().unwrap().iter().map(|event| event.as_str().unwrap()).collect();
    // Upstream's tables ignore events if they expect none.
    if !events.is_empty() && reported != events {
        return Err(format!("emitted {reported:?}, upstream {events:?}"));
    }
    let wanted = |name: &str, of: &str| if row[name].is_null() { of.to_owned() } else { name.to_owned() };
    let mut differs = Vec::new();
    for want in items(row, &wanted("wantVolumes", "volumes"), "v1", "PersistentVolume") {
        let got = simulation.view.get::<PersistentVolume>(&key(&want)).map(machinery_client::value_of);
        let (got, want) = (got.map(plain::<PersistentVolume>), plain::<PersistentVolume>(want));
        if got.as_ref() != Some(&want) {
            differs.push(format!("got {}\n   want {want}", got.unwrap_or_default()));
        }
    }
    for want in items(row, &wanted("wantClaims", "claims"), "v1", "PersistentVolumeClaim") {
        let got = simulation.view.get::<PersistentVolumeClaim>(&key(&want)).map(machinery_client::value_of);
        let (got, want) = (got.map(plain::<PersistentVolumeClaim>), plain::<PersistentVolumeClaim>(want));
        if got.as_ref() != Some(&want) {
            differs.push(format!("got {}\n   want {want}", got.unwrap_or_default()));
        }
    }
    if differs.is_empty() { Ok(()) } else { Err(differs.join("\n   ")) }
}

#[test]
fn claims_and_volumes_are_bound_as_upstreams_tables_have_it() {
    let rows: Vec<Value> =
        include_str!("testdata/binder.jsonl").lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let wrong = rows.iter().filter_map(|row| check(row).err().map(|why| format!("{}: {why}", row["name"])));
    let wrong: Vec<String> = wrong.collect();
    assert!(wrong.is_empty(), "{} of {} rows differ:\n{}", wrong.len(), rows.len(), wrong.join("\n"));
}
