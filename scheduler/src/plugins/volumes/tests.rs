//! Pods with claims as data: their nodes, and the patches for their claims.

use std::sync::Arc;

use machinery_api::ObjectKey;
use serde_json::{Value, json};

use super::super::{Event, PLUGINS, Plugin, Profile};
use crate::decide::{Decision, decide};
use crate::pod::PodInfo;
use crate::snapshot::Snapshot;
use crate::tests::{node, pod};

fn parsed<T: machinery_client::Typed>(value: Value) -> Option<Arc<T>> {
    Some(Arc::new(machinery_client::read(value).unwrap()))
}

fn claim(snapshot: &mut Snapshot, name: &str, change: impl FnOnce(&mut Value)) {
    let mut claim = json!({"metadata": {"name": name, "namespace": "default", "uid": name, "resourceVersion": "7"},
        "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "later",
            "resources": {"requests": {"storage": "1Gi"}}}, "status": {"phase": "Pending"}});
    change(&mut claim);
    snapshot.volumes.set_claim(&ObjectKey::new("default", name), parsed(claim));
}

fn bound(volume: &str) -> impl FnOnce(&mut Value) {
    move |claim| {
        claim["spec"]["volumeName"] = volume.into();
        claim["metadata"]["annotations"] = json!({"pv.kubernetes.io/bind-completed": "yes"});
    }
}

fn volume(snapshot: &mut Snapshot, name: &str, spec: Value, labels: Value) {
    let mut all = json!({"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"}});
    all.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    let metadata = json!({"name": name, "labels": labels, "resourceVersion": "9"});
    let volume = json!({"metadata": metadata, "spec": all, "status": {"phase": "Available"}});
    snapshot.volumes.set_volume(name, parsed(volume));
}

fn on(name: &str) -> Value {
    let of = json!([{"key": "kubernetes.io/hostname", "operator": "In", "values": [name]}]);
    json!({"required": {"nodeSelectorTerms": [{"matchExpressions": of}]}})
}

fn class(snapshot: &mut Snapshot, name: &str, provisioner: &str, mode: &str) {
    let class = json!({"metadata": {"name": name}, "provisioner": provisioner, "volumeBindingMode": mode});
    snapshot.volumes.set_class(name, parsed(class));
}

fn cluster() -> Snapshot {
    let mut snapshot = Snapshot::default();
    for (name, zone) in [("m1", "a"), ("m2", "b")] {
        snapshot.set_node(node(name, json!({"metadata": {"labels": {"topology.kubernetes.io/zone": zone}}})));
    }
    class(&mut snapshot, "later", "local.coracle.dev", "WaitForFirstConsumer");
    class(&mut snapshot, "static", "kubernetes.io/no-provisioner", "WaitForFirstConsumer");
    class(&mut snapshot, "now", "local.coracle.dev", "Immediate");
    snapshot
}

fn with_claims(name: &str, claims: &[&str]) -> PodInfo {
    let volumes: Vec<Value> = claims
        .iter()
        .map(|claim| json!({"name": format!("v-{claim}"), "persistentVolumeClaim": {"claimName": claim}}))
        .collect();
    pod(name, json!({"spec": {"volumes": volumes}}))
}

fn goes(snapshot: &Snapshot, pod: &PodInfo) -> String {
    match decide(snapshot, pod, &Profile::default(), 0, 0) {
        Decision::Node { name, .. } => name,
        Decision::Unschedulable { message, .. } => message,
    }
}

fn plugin(name: &str) -> &'static Plugin {
    PLUGINS.iter().find(|plugin| plugin.name == name).unwrap()
}

#[test]
fn a_pod_goes_where_its_volume_is() {
    let mut snapshot = cluster();
    claim(&mut snapshot, "c", bound("v"));
    assert!(
        goes(&snapshot, &with_claims("p", &["c"])).contains("2 node(s) unavailable due to one or more pvc(s) bound to")
    );
    volume(&mut snapshot, "v", json!({"nodeAffinity": on("m2")}), json!({}));
    assert_eq!(goes(&snapshot, &with_claims("p", &["c"])), "m2");
    volume(&mut snapshot, "v", json!({"nodeAffinity": on("m3")}), json!({}));
    let message = goes(&snapshot, &with_claims("p", &["c"]));
    assert!(message.contains("2 node(s) didn't match PersistentVolume's node affinity"), "{message}");
    volume(&mut snapshot, "v", json!({}), json!({"topology.kubernetes.io/zone": "b__c"}));
    assert_eq!(goes(&snapshot, &with_claims("p", &["c"])), "m2");
    volume(&mut snapshot, "v", json!({}), json!({"failure-domain.beta.kubernetes.io/zone": "c"}));
    let message = goes(&snapshot, &with_claims("p", &["c"]));
    assert!(message.contains("2 node(s) had no available volume zone"), "{message}");
}

#[test]
fn claims_that_are_not_there_or_not_bound_keep_a_pod() {
    let mut snapshot = cluster();
    for (name, change) in [("lost", "Lost"), ("going", "Pending")] {
        claim(&mut snapshot, name, |claim| {
            claim["status"]["phase"] = change.into();
            claim["spec"]["volumeName"] = "v".into();
            if name == "going" {
                claim["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
            }
        });
    }
    claim(&mut snapshot, "now", |claim| claim["spec"]["storageClassName"] = "now".into());
    claim(&mut snapshot, "p-own", |_| ());
    let own = json!({"name": "own", "ephemeral": {"volumeClaimTemplate": {"spec": {}}}});
    let none = json!({"name": "none", "ephemeral": {"volumeClaimTemplate": {"spec": {}}}});
    for (pod, why) in [
        (with_claims("p", &["none"]), "persistentvolumeclaim \"none\" not found."),
        (with_claims("p", &["lost"]), "persistentvolumeclaim \"lost\" bound to non-existent persistentvolume \"v\"."),
        (with_claims("p", &["going"]), "persistentvolumeclaim \"going\" is being deleted."),
        (with_claims("p", &["now"]), "pod has unbound immediate PersistentVolumeClaims."),
        (
            pod("p", json!({"spec": {"volumes": [none]}})),
            "waiting for ephemeral volume controller to create the persistentvolumeclaim \"p-none\".",
        ),
        (
            pod("p", json!({"spec": {"volumes": [own]}})),
            "PVC default/p-own was not created for pod default/p (pod is not owner).",
        ),
    ] {
        let message = goes(&snapshot, &pod);
        assert!(message.starts_with(&format!("0/2 nodes are available: {why}")), "{message}");
    }
}

#[test]
fn unbound_claims_are_bound_with_the_node() {
    let mut snapshot = cluster();
    claim(&mut snapshot, "made", |_| ());
    claim(&mut snapshot, "given", |claim| claim["spec"]["storageClassName"] = "static".into());
    let pod = with_claims("p", &["made", "given"]);
    let message = goes(&snapshot, &pod);
    assert!(message.contains("2 node(s) didn't find available persistent volumes to bind"), "{message}");
    volume(&mut snapshot, "disk", json!({"storageClassName": "static", "nodeAffinity": on("m2")}), json!({}));
    assert_eq!(goes(&snapshot, &pod), "m2");
    let binding = plugin("VolumeBinding");
    (binding.reserve.unwrap().reserve)(&mut snapshot, &pod, "m2").unwrap();
    let patches = binding.pre_bind.unwrap()(&snapshot, &pod, "m2");
    let [given, made] = &patches[..] else { panic!("{patches:?}") };
    assert_eq!((given.key.name.as_str(), &given.patch["spec"]["claimRef"]["uid"]), ("disk", &json!("given")));
    assert_eq!(given.patch["metadata"]["resourceVersion"], "9");
    let selected = &made.patch["metadata"]["annotations"]["volume.kubernetes.io/selected-node"];
    assert_eq!((made.key.name.as_str(), selected), ("made", &json!("m2")));
    // A reserved volume is not available to others until it is unreserved.
    claim(&mut snapshot, "other", |claim| claim["spec"]["storageClassName"] = "static".into());
    let other = with_claims("q", &["other"]);
    assert!(goes(&snapshot, &other).contains("available persistent volumes to bind"));
    (binding.reserve.unwrap().unreserve)(&mut snapshot, &pod, "m2");
    assert_eq!(goes(&snapshot, &other), "m2");
    // The selected node of an earlier decision stays.
    claim(&mut snapshot, "made", |claim| {
        claim["metadata"]["annotations"] = json!({"volume.kubernetes.io/selected-node": "m1"});
    });
    assert_eq!(goes(&snapshot, &with_claims("p", &["made"])), "m1");
}

#[test]
fn a_claim_for_one_pod_alone_is_one_pods() {
    let mut snapshot = cluster();
    claim(&mut snapshot, "c", |claim| {
        bound("v")(claim);
        claim["spec"]["accessModes"] = json!(["ReadWriteOncePod"]);
    });
    volume(&mut snapshot, "v", json!({}), json!({}));
    snapshot.put_pod(Arc::new(with_claims("p", &["c"])), "m1", false);
    let second = with_claims("q", &["c"]);
    let message = goes(&snapshot, &second);
    assert!(message.contains("2 node(s) unavailable due to PersistentVolumeClaim with ReadWriteOncePod"), "{message}");
    let (gone, _) = snapshot.take_pod(&ObjectKey::new("default", "p")).unwrap();
    assert!((plugin("VolumeRestrictions").queueing_hint)(&Event::PodGone(gone, None), &second));
    assert!(["m1", "m2"].contains(&&*goes(&snapshot, &second)));
}

#[test]
fn a_node_takes_as_many_volumes_as_its_driver_allows() {
    let mut snapshot = cluster();
    let limit = |node: &str, count: i32| {
        let driver = json!({"name": "d", "nodeID": node, "allocatable": {"count": count}});
        parsed(json!({"metadata": {"name": node}, "spec": {"drivers": [driver]}}))
    };
    snapshot.volumes.set_node("m1", limit("m1", 1));
    snapshot.volumes.set_node("m2", limit("m2", 0));
    for name in ["v", "w"] {
        volume(&mut snapshot, name, json!({"csi": {"driver": "d", "volumeHandle": name}}), json!({}));
        claim(&mut snapshot, name, bound(name));
    }
    assert_eq!(goes(&snapshot, &with_claims("p", &["v"])), "m1");
    snapshot.put_pod(Arc::new(with_claims("p", &["v"])), "m1", false);
    assert_eq!(goes(&snapshot, &with_claims("q", &["v"])), "m1", "it is there already");
    let message = goes(&snapshot, &with_claims("q", &["w"]));
    assert!(message.contains("2 node(s) exceed max volume count"), "{message}");
}

#[test]
fn changes_concern_pods_with_these_claims() {
    let pod = with_claims("p", &["c"]);
    let hint = plugin("VolumeBinding").queueing_hint;
    let key = |namespace: &str, name: &str| Arc::new(ObjectKey::new(namespace, name));
    for (event, helps) in [
        (Event::Claim(key("default", "c")), true),
        (Event::Claim(key("default", "d")), false),
        (Event::Claim(key("other", "c")), false),
        (Event::Volume, true),
        (Event::Namespace, false),
    ] {
        assert_eq!(hint(&event, &pod), helps, "{event:?}");
        assert!(!hint(&event, &with_claims("q", &[])));
    }
}
