//! Ten thousand objects: the cost of a change depends on the change, and not on the number of objects.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::PersistentVolume;
use machinery_api::ObjectKey;
use machinery_client::simulate::Simulation;
use machinery_client::{Change, Kind, Pod};
use serde_json::{Value, json};

use crate::CONTROLLERS;
use crate::table_tests::{decide, start};

const SETS: usize = 400;
const PODS_OF_SET: usize = 20;
const NODES: usize = 100;
/// The keys that a pod's change requeues in all controllers together, and the time limit of their decisions (for a
/// debug build on a slow machine; a scan of all pods for each takes longer).
const KEYS_MAX: usize = 16;
const TIME_MAX: Duration = Duration::from_secs(5);

/// Deployments with their sets, pods and Services, all in one namespace and reconciled.
fn cluster() -> Vec<Value> {
    let mut objects = vec![json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "a"}})];
    for node in 0..NODES {
        objects.push(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": format!("n{node}")},
            "spec": {"podCIDR": format!("10.244.{node}.0/24"), "podCIDRs": [format!("10.244.{node}.0/24")]},
            "status": {"conditions": [{"type": "Ready", "status": "True", "lastHeartbeatTime": start(), "lastTransitionTime": start()}]}}));
    }
    for set in 0..SETS {
        let name = format!("s{set}");
        let owned = |kind: &str, uid: &str| json!([{"apiVersion": "apps/v1", "kind": kind, "name": name, "uid": format!("{uid}-{set}"), "controller": true}]);
        let template =
            json!({"metadata": {"labels": {"app": name}}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
        let spec = json!({"replicas": PODS_OF_SET, "selector": {"matchLabels": {"app": name}}, "template": template});
        let object = |kind: &str, uid: &str, owners: Value| {
            json!({"apiVersion": "apps/v1", "kind": kind, "spec": spec, "metadata": {"name": name, "namespace": "a",
                "uid": format!("{uid}-{set}"), "labels": {"app": name}, "ownerReferences": owners}})
        };
        objects.push(object("Deployment", "deployment", json!([])));
        objects.push(object("ReplicaSet", "set", owned("Deployment", "deployment")));
        objects.push(json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "a"},
            "spec": {"clusterIP": "10.96.0.9", "ipFamilies": ["IPv4"], "selector": {"app": name}, "ports": [{"port": 80}]}}));
        for pod in 0..PODS_OF_SET {
            let address = format!("10.{}.{}.{pod}", set / 200, set % 200);
            objects.push(
                json!({"apiVersion": "v1", "kind": "Pod", "spec": {"nodeName": format!("n{}", (set + pod) % NODES),
                "containers": [{"name": "c", "image": "i"}]},
                "metadata": {"name": format!("{name}-{pod}"), "namespace": "a", "labels": {"app": name},
                    "ownerReferences": owned("ReplicaSet", "set")},
                "status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}],
                    "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": start()}]}}),
            );
        }
    }
    objects
}

/// The keys that a pod's change requeues.
fn woken(simulation: &mut Simulation, name: &str) -> BTreeSet<(&'static str, ObjectKey)> {
    let (kind, key) = (Kind::of::<Pod>(), ObjectKey::new("a", name));
    let old = simulation.view.object(&kind, &key).expect("the pod").clone();
    let mut pod = old.to_value();
    pod["status"]["conditions"][0]["status"] = json!("False");
    simulation.write(&kind, pod);
    let new = simulation.view.object(&kind, &key).expect("the pod").clone();
    let change = Change { kind, key: Arc::new(key), old: Some(old), new: Some(new) };
    let mut woken = BTreeSet::new();
    for controller in CONTROLLERS {
        for input in controller.inputs {
            woken.extend(input.keys(&simulation.view, &change).into_iter().map(|key| (controller.name, key)));
        }
    }
    woken
}

#[test]
fn one_pods_change_costs_independently_of_ten_thousand_objects() {
    let mut simulation = crate::simulation(start(), cluster());
    let woken = woken(&mut simulation, "s7-3");
    assert!(woken.iter().any(|(name, _)| *name == "replicaset-controller"), "{woken:?}");
    assert!(woken.iter().any(|(name, _)| *name == "endpointslice-controller"), "{woken:?}");
    assert!(woken.len() <= KEYS_MAX, "{woken:?}");
    for (name, key) in &woken {
        // The first decision may fill caches.
        decide(name, &simulation, key);
        #[expect(clippy::disallowed_methods, reason = "a measurement of real time")]
        let begun = Instant::now();
        decide(name, &simulation, key);
        let took = begun.elapsed();
        eprintln!("{name} {key}: {took:?}");
        assert!(took < TIME_MAX, "{name} {key} takes {took:?}");
    }
}

const CLAIMS: usize = 2_000;

/// Unbound claims of a class with immediate binding, as many bound claims, and a quarter as many nodes.
fn claims() -> Vec<Value> {
    let mut objects =
        vec![json!({"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": "now"},
        "provisioner": "local.coracle.dev", "volumeBindingMode": "Immediate", "reclaimPolicy": "Delete"})];
    for node in 0..CLAIMS / 4 {
        let name = format!("n{node}");
        objects.push(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}}}));
    }
    for n in 0..CLAIMS {
        let spec = json!({"accessModes": ["ReadWriteOnce"], "storageClassName": "now", "resources": {"requests": {"storage": "1Gi"}}});
        objects.push(json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "spec": spec, "metadata": {"name": format!("c{n}"), "namespace": "a"}}));
        let reference = json!({"namespace": "b", "name": format!("c{n}"), "uid": format!("old-{n}")});
        objects.push(json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": format!("v{n}")}, "status": {"phase": "Bound"},
            "spec": {"storageClassName": "now", "claimRef": reference, "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"]}}));
    }
    objects
}

#[test]
fn the_cost_of_thousands_of_claims_is_linear() {
    let mut simulation = crate::simulation(start(), claims());
    let names = ["persistentvolume-binder-controller", "local-volume-provisioner"];
    #[expect(clippy::disallowed_methods, reason = "a measurement of real time")]
    let begun = Instant::now();
    for _ in 0..3 {
        for name in names {
            for n in 0..CLAIMS {
                let plan = decide(name, &simulation, &ObjectKey::new("a", format!("c{n}")));
                assert_eq!(simulation.apply(plan), Vec::<String>::new());
            }
        }
    }
    let took = begun.elapsed();
    let made: Vec<&PersistentVolume> = simulation.view.all::<PersistentVolume>().collect();
    assert_eq!(made.len(), CLAIMS * 2, "one for each claim");
    let most = (0..CLAIMS / 4).map(|node| simulation.view.local_volumes_on(&format!("n{node}"))).max();
    assert_eq!(most, Some(4), "spread over the nodes");
    eprintln!("{CLAIMS} claims among as many volumes: {took:?}");
    assert!(took < TIME_MAX * 6, "{took:?}");
}
