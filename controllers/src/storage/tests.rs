//! Examples of binding, provisioning, expansion and deletion of claims and volumes.

use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim};
use machinery_api::ObjectKey;
use machinery_client::simulate::Simulation;
use machinery_client::{Action, Kind, Plan, Pod};
use serde_json::{Value, json};

use crate::table_tests::{decide, is_done, settle, start};

const BINDER: &str = "persistentvolume-binder-controller";
const PROVISIONER: &str = "local-volume-provisioner";

fn claim(name: &str, spec: Value) -> Value {
    let mut all = json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}});
    all.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name, "namespace": "a"},
        "spec": all, "status": {"phase": "Pending"}})
}

fn volume(name: &str, spec: Value) -> Value {
    let mut all = json!({"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"],
        "persistentVolumeReclaimPolicy": "Retain", "hostPath": {"path": "/x"}});
    all.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name}, "spec": all})
}

fn class(name: &str, provisioner: &str, mode: &str) -> Value {
    json!({"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": name},
        "provisioner": provisioner, "volumeBindingMode": mode, "reclaimPolicy": "Delete", "allowVolumeExpansion": true})
}

fn node(name: &str) -> Value {
    let labels = json!({"kubernetes.io/hostname": name});
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}})
}

fn settled(objects: impl IntoIterator<Item = Value>) -> Simulation {
    let mut simulation = crate::simulation(start(), objects);
    settle(&mut simulation);
    simulation
}

fn of_claim(simulation: &Simulation, name: &str) -> (String, String) {
    let claim = simulation.view.get::<PersistentVolumeClaim>(&ObjectKey::new("a", name)).unwrap();
    let volume = claim.spec.as_ref().and_then(|spec| spec.volume_name.clone()).unwrap_or_default();
    (volume, claim.status.as_ref().and_then(|status| status.phase.clone()).unwrap_or_default())
}

fn of_volume(simulation: &Simulation, name: &str) -> (String, String) {
    let volume = simulation.view.get::<PersistentVolume>(&ObjectKey::cluster(name)).unwrap();
    let r = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref()?.name.clone()).unwrap_or_default();
    (r, volume.status.as_ref().and_then(|status| status.phase.clone()).unwrap_or_default())
}

fn reported(simulation: &Simulation, controller: &str, key: &ObjectKey) -> Vec<(String, String)> {
    let event = |action: &Action| match action {
        Action::Event(event) => Some((event.reason.to_owned(), event.message.clone())),
        _ => None,
    };
    decide(controller, simulation, key).actions.iter().filter_map(event).collect()
}

fn delete<K: machinery_client::Typed>(simulation: &mut Simulation, key: ObjectKey) {
    let (kind, uid) = (Kind::of::<K>(), None);
    let (resource_version, propagation, grace_seconds) = (None, None, None);
    let notes = machinery_client::OutcomeEvents::default();
    let action = Action::Delete { kind, key, uid, resource_version, propagation, grace_seconds, notes };
    simulation.apply(Plan::from(vec![action]));
}

#[test]
fn each_claim_gets_one_volume_and_each_volume_one_claim() {
    let mut all: Vec<Value> = (0..4).map(|n| claim(&format!("c{n}"), json!({"storageClassName": ""}))).collect();
    all.extend((0..3).map(|n| volume(&format!("v{n}"), json!({}))));
    all.push(volume("for-c3", json!({"claimRef": {"name": "c3", "namespace": "a"}, "capacity": {"storage": "8Gi"}})));
    let simulation = settled(all);
    let mut taken: Vec<(String, String)> = (0..4).map(|n| of_claim(&simulation, &format!("c{n}"))).collect();
    assert_eq!(taken[3], ("for-c3".into(), "Bound".into()));
    taken.sort();
    taken.dedup();
    assert_eq!(taken.len(), 4, "{taken:?}");
    for (volume, phase) in &taken {
        assert_eq!((of_volume(&simulation, volume).1.as_str(), phase.as_str()), ("Bound", "Bound"));
    }
    let c3 = simulation.view.get::<PersistentVolumeClaim>(&ObjectKey::new("a", "c3")).unwrap();
    assert_eq!(c3.status.as_ref().unwrap().capacity.as_ref().unwrap()["storage"].0, "8Gi");
    let annotations = c3.metadata.annotations.as_ref().unwrap();
    assert_eq!(annotations["pv.kubernetes.io/bind-completed"], "yes");
    assert_eq!(annotations["pv.kubernetes.io/bound-by-controller"], "yes");
    let kept = simulation.view.get::<PersistentVolume>(&ObjectKey::cluster("for-c3")).unwrap();
    assert_eq!(kept.metadata.annotations, None, "a person kept it for the claim");
}

#[test]
fn unbound_claims_have_a_reason() {
    let asks = |name: &str| claim(name, json!({"storageClassName": "", "volumeName": format!("v-{name}")}));
    let taken = json!({"claimRef": {"name": "x", "namespace": "a", "uid": "x"}});
    let simulation = settled([
        asks("small"),
        volume("v-small", json!({"capacity": {"storage": "1Mi"}})),
        asks("classed"),
        volume("v-classed", json!({"storageClassName": "fast"})),
        asks("block"),
        volume("v-block", json!({"volumeMode": "Block"})),
        asks("modes"),
        volume("v-modes", json!({"accessModes": ["ReadOnlyMany"]})),
        asks("taken"),
        volume("v-taken", taken),
        asks("absent"),
        claim("none", json!({"storageClassName": ""})),
        claim("unknown", json!({"storageClassName": "x"})),
        class("static", "kubernetes.io/no-provisioner", "Immediate"),
        claim("static", json!({"storageClassName": "static"})),
        class("later", "example.com/p", "WaitForFirstConsumer"),
        claim("later", json!({"storageClassName": "later"})),
        class("ebs", "kubernetes.io/aws-ebs", "Immediate"),
        claim("ebs", json!({"storageClassName": "ebs"})),
    ]);
    let mismatch = |name: &str, why: &str| format!("Cannot bind to requested volume \"v-{name}\": {why}");
    for (name, reason, message) in [
        ("small", "VolumeMismatch", mismatch("small", "requested PV is too small")),
        ("classed", "VolumeMismatch", mismatch("classed", "storageClassName does not match")),
        ("block", "VolumeMismatch", mismatch("block", "incompatible volumeMode")),
        ("modes", "VolumeMismatch", mismatch("modes", "incompatible accessMode")),
        ("taken", "FailedBinding", "volume \"v-taken\" already bound to a different claim.".into()),
        ("none", "FailedBinding", "no persistent volumes available for this claim and no storage class is set".into()),
        ("unknown", "ProvisioningFailed", "storageclass.storage.k8s.io \"x\" not found".into()),
        ("static", "ProvisioningFailed", "no volume plugin matched name: kubernetes.io/no-provisioner".into()),
        ("later", "WaitForFirstConsumer", "waiting for first consumer to be created before binding".into()),
    ] {
        assert_eq!(reported(&simulation, BINDER, &ObjectKey::new("a", name)), [(reason.to_owned(), message)], "{name}");
        assert_eq!(of_claim(&simulation, name).1, "Pending", "{name}");
    }
    assert_eq!(reported(&simulation, BINDER, &ObjectKey::new("a", "absent")), []);
    // Under upstream's component, by which users filter.
    let actions = decide(BINDER, &simulation, &ObjectKey::new("a", "small")).actions;
    let by = actions.iter().filter_map(|action| if let Action::Event(event) = action { event.source } else { None });
    assert_eq!(by.collect::<Vec<_>>(), ["persistentvolume-controller"]);
    let ebs = simulation.view.get::<PersistentVolumeClaim>(&ObjectKey::new("a", "ebs")).unwrap();
    let annotations = ebs.metadata.annotations.as_ref().unwrap();
    assert_eq!(annotations["volume.kubernetes.io/storage-provisioner"], "ebs.csi.aws.com");
}

#[test]
fn a_claim_that_is_gone_releases_its_volume_and_a_volume_its_claim() {
    let mut simulation = settled([
        claim("c", json!({"storageClassName": ""})),
        volume("v", json!({})),
        claim("lost", json!({"storageClassName": "", "resources": {"requests": {"storage": "2Gi"}}})),
        volume("w", json!({"capacity": {"storage": "2Gi"}})),
        claim("cut", json!({"storageClassName": "", "resources": {"requests": {"storage": "3Gi"}}})),
        volume("x", json!({"capacity": {"storage": "3Gi"}, "persistentVolumeReclaimPolicy": "Delete"})),
    ]);
    assert_eq!(of_claim(&simulation, "lost"), ("w".into(), "Bound".into()));
    delete::<PersistentVolumeClaim>(&mut simulation, ObjectKey::new("a", "c"));
    delete::<PersistentVolume>(&mut simulation, ObjectKey::cluster("w"));
    delete::<PersistentVolumeClaim>(&mut simulation, ObjectKey::new("a", "cut"));
    settle(&mut simulation);
    assert_eq!(of_volume(&simulation, "v"), ("c".into(), "Released".into()), "kept as it is");
    assert_eq!(of_claim(&simulation, "lost"), ("w".into(), "Lost".into()));
    assert_eq!(of_volume(&simulation, "x"), ("cut".into(), "Failed".into()), "nobody deletes what a person made");
    // A new claim of the name is not the bound claim.
    let kind = Kind::of::<PersistentVolumeClaim>();
    simulation.create(&kind, claim("c", json!({"storageClassName": ""})));
    settle(&mut simulation);
    assert_eq!(of_claim(&simulation, "c"), (String::new(), "Pending".into()));
}

#[test]
fn a_late_default_class_is_given_to_claims_that_name_none() {
    let mut default = class("local", "example.com/p", "Immediate");
    default["metadata"]["annotations"] = json!({"storageclass.kubernetes.io/is-default-class": "true"});
    let simulation = settled([claim("none", json!({})), claim("empty", json!({"storageClassName": ""})), default]);
    let class_of = |name: &str| {
        let claim = simulation.view.get::<PersistentVolumeClaim>(&ObjectKey::new("a", name)).unwrap();
        claim.spec.as_ref().unwrap().storage_class_name.clone().unwrap()
    };
    assert_eq!((class_of("none").as_str(), class_of("empty").as_str()), ("local", ""));
}

#[test]
fn volumes_are_made_where_the_pod_shall_run() {
    let mut waits = claim("waits", json!({"storageClassName": "local"}));
    let mut chosen = claim("chosen", json!({"storageClassName": "local"}));
    chosen["metadata"]["annotations"] = json!({"volume.kubernetes.io/selected-node": "n2"});
    waits["metadata"]["uid"] = json!("w");
    chosen["metadata"]["uid"] = json!("c");
    let mut lost = claim("lost", json!({"storageClassName": "local"}));
    lost["metadata"]["annotations"] = json!({"volume.kubernetes.io/selected-node": "gone"});
    let shared = claim("shared", json!({"storageClassName": "now", "accessModes": ["ReadWriteMany"]}));
    let simulation = settled([
        node("n1"),
        node("n2"),
        class("local", "local.coracle.dev", "WaitForFirstConsumer"),
        class("now", "local.coracle.dev", "Immediate"),
        waits,
        chosen,
        lost,
        shared,
        claim("now", json!({"storageClassName": "now"})),
        claim("then", json!({"storageClassName": "now"})),
    ]);
    assert_eq!(of_claim(&simulation, "waits"), (String::new(), "Pending".into()));
    assert_eq!(of_claim(&simulation, "chosen"), ("pvc-c".into(), "Bound".into()));
    assert_eq!(of_claim(&simulation, "shared").1, "Pending");
    let node_of = |claim: &str| {
        let volume = simulation.view.get::<PersistentVolume>(&ObjectKey::cluster(of_claim(&simulation, claim).0));
        machinery_client::claims::local_node_of(volume.unwrap()).unwrap().to_owned()
    };
    assert_eq!((node_of("chosen"), node_of("now"), node_of("then")), ("n2".into(), "n1".into(), "n1".into()));
    let lost = simulation.view.get::<PersistentVolumeClaim>(&ObjectKey::new("a", "lost")).unwrap();
    assert!(!lost.metadata.annotations.as_ref().unwrap().contains_key("volume.kubernetes.io/selected-node"));
    let (reason, message) = &reported(&simulation, PROVISIONER, &ObjectKey::new("a", "shared"))[0];
    assert!(reason == "ProvisioningFailed" && message.contains("ReadWriteMany"), "{message}");
}

#[test]
fn a_volume_goes_with_its_claim_once_its_node_has_let_it_go() {
    let mut simulation = settled([
        node("n1"),
        class("now", "local.coracle.dev", "Immediate"),
        claim("c", json!({"storageClassName": "now"})),
        claim("kept", json!({"storageClassName": "now"})),
    ]);
    let (volume, kept) = (of_claim(&simulation, "c").0, of_claim(&simulation, "kept").0);
    let key = ObjectKey::cluster(&*kept);
    let mut retained = serde_json::to_value(simulation.view.get::<PersistentVolume>(&key).unwrap()).unwrap();
    retained["spec"]["persistentVolumeReclaimPolicy"] = json!("Retain");
    simulation.write(&Kind::of::<PersistentVolume>(), retained);
    for name in ["c", "kept"] {
        delete::<PersistentVolumeClaim>(&mut simulation, ObjectKey::new("a", name));
    }
    settle(&mut simulation);
    assert_eq!(of_volume(&simulation, &kept).1, "Released");
    let of_kept = simulation.view.get::<PersistentVolume>(&key).unwrap();
    assert!(of_kept.metadata.finalizers.iter().flatten().next().is_none(), "nothing is removed with it");
    let going = simulation.view.get::<PersistentVolume>(&ObjectKey::cluster(&*volume)).unwrap();
    assert!(going.metadata.deletion_timestamp.is_some(), "its node has to remove what it holds");
    delete::<Node>(&mut simulation, ObjectKey::cluster("n1"));
    settle(&mut simulation);
    assert!(simulation.view.get::<PersistentVolume>(&ObjectKey::cluster(&*volume)).is_none(), "gone with its node");
}

#[test]
fn a_claim_grows_step_by_step() {
    let mut simulation = settled([
        node("n1"),
        class("now", "local.coracle.dev", "Immediate"),
        claim("c", json!({"storageClassName": "now"})),
    ]);
    let key = ObjectKey::new("a", "c");
    let mut grown = serde_json::to_value(simulation.view.get::<PersistentVolumeClaim>(&key).unwrap()).unwrap();
    grown["spec"]["resources"]["requests"]["storage"] = json!("2Gi");
    simulation.write(&Kind::of::<PersistentVolumeClaim>(), grown);
    let plan = decide("persistentvolume-expander-controller", &simulation, &key);
    simulation.apply(plan);
    let conditions = |simulation: &Simulation| {
        let claim = simulation.view.get::<PersistentVolumeClaim>(&key).unwrap();
        let conditions = claim.status.as_ref().unwrap().conditions.iter().flatten();
        conditions.map(|of| of.type_.clone()).collect::<Vec<_>>()
    };
    assert_eq!(conditions(&simulation), ["Resizing"]);
    settle(&mut simulation);
    assert_eq!(conditions(&simulation), ["FileSystemResizePending"], "the node's part");
    let claim = simulation.view.get::<PersistentVolumeClaim>(&key).unwrap();
    assert_eq!(claim.status.as_ref().unwrap().capacity.as_ref().unwrap()["storage"].0, "1Gi", "until it is done");
    let volume = simulation.view.get::<PersistentVolume>(&ObjectKey::cluster(of_claim(&simulation, "c").0)).unwrap();
    assert_eq!(volume.spec.as_ref().unwrap().capacity.as_ref().unwrap()["storage"].0, "2Gi");
}

#[test]
fn a_pods_own_claims_are_made_and_others_left_alone() {
    let pod = |name: &str| {
        let template = json!({"metadata": {"labels": {"x": "y"}}, "spec": {"storageClassName": "s"}});
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "a", "uid": name},
            "spec": {"containers": [], "volumes": [{"name": "v", "ephemeral": {"volumeClaimTemplate": template}}]}})
    };
    let simulation = settled([pod("p"), pod("q"), claim("q-v", json!({"storageClassName": "s"}))]);
    let made = simulation.view.get::<PersistentVolumeClaim>(&ObjectKey::new("a", "p-v")).unwrap();
    let owner = &made.metadata.owner_references.as_ref().unwrap()[0];
    assert_eq!((owner.kind.as_str(), owner.uid.as_str(), owner.controller), ("Pod", "p", Some(true)));
    assert_eq!(made.metadata.labels.as_ref().unwrap()["x"], "y");
    let key = ObjectKey::new("a", "q");
    assert!(is_done(&decide("ephemeral-volume-controller", &simulation, &key)));
    let why = "ephemeral volume v: PVC a/q-v was not created for pod a/q (pod is not owner)".to_owned();
    assert_eq!(reported(&simulation, "ephemeral-volume-controller", &key), [("FailedBinding".to_owned(), why)]);
    assert!(simulation.view.get::<Pod>(&key).is_some());
}

#[test]
fn a_claim_that_names_its_volume_is_woken_when_that_comes_or_is_free() {
    let kind = Kind::of::<PersistentVolume>();
    let mut simulation = settled([claim("names", json!({"storageClassName": "", "volumeName": "v"}))]);
    let woken = |simulation: &Simulation, old: Option<std::sync::Arc<dyn machinery_client::Object>>| {
        let key = ObjectKey::cluster("v");
        let new = simulation.view.object(&kind, &key).cloned();
        let change = machinery_client::Change { kind: kind.clone(), key: std::sync::Arc::new(key), old, new };
        let inputs = super::binder::CONTROLLER.inputs.iter();
        inputs.flat_map(|input| input.keys(&simulation.view, &change)).any(|key| key == ObjectKey::new("a", "names"))
    };
    let taken = json!({"claimRef": {"name": "x", "namespace": "a", "uid": "x"}});
    simulation.create(&kind, volume("v", taken));
    assert!(woken(&simulation, None), "it is told that another one has it");
    settle(&mut simulation);
    let old = simulation.view.object(&kind, &ObjectKey::cluster("v")).cloned();
    let mut free = old.as_ref().unwrap().to_value();
    free["spec"].as_object_mut().unwrap().remove("claimRef");
    simulation.write(&kind, free);
    assert!(woken(&simulation, old), "it may have it now");
    settle(&mut simulation);
    assert_eq!(of_claim(&simulation, "names"), ("v".into(), "Bound".into()));
}
