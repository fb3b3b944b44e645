//! Examples of StatefulSets, with a simulated node.

use std::time::Duration;

use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet, StatefulSetStatus};
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use machinery_api::ObjectKey;
use machinery_api::features::{Feature, Features};
use machinery_client::simulate::Simulation;
use machinery_client::{Action, Kind, Plan, Pod};
use serde_json::{Value, json};

use crate::Settings;
use crate::table_tests::{decide_under, settings, start};

fn key(name: &str) -> ObjectKey {
    ObjectKey::new("a", name)
}

fn set(replicas: i32, more: &Value) -> Value {
    let mut set = json!({"apiVersion": "apps/v1", "kind": "StatefulSet",
        "metadata": {"name": "db", "namespace": "a", "uid": "set"},
        "spec": {"replicas": replicas, "serviceName": "dbs", "podManagementPolicy": "OrderedReady",
            "revisionHistoryLimit": 10, "selector": {"matchLabels": {"app": "db"}},
            "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 0}},
            "template": template("1")}});
    for (field, value) in more.as_object().unwrap() {
        set["spec"][field] = value.clone();
    }
    set
}

fn template(image: &str) -> Value {
    json!({"metadata": {"labels": {"app": "db"}}, "spec": {"containers": [{"name": "c", "image": image}]}})
}

fn cluster(objects: impl IntoIterator<Item = Value>) -> Simulation {
    crate::simulation(start(), objects)
}

/// One pass, which must succeed.
fn pass(simulation: &mut Simulation) -> Plan {
    pass_under(&settings(), simulation)
}

fn pass_under(settings: &Settings, simulation: &mut Simulation) -> Plan {
    let plan = decide_under(settings, "statefulset-controller", simulation, &key("db"));
    assert_eq!(simulation.apply(plan.clone()), Vec::<String>::new());
    plan
}

/// Runs passes until nothing is left to do. Returns the pods' names, with their revisions' numbers and a dash if
/// terminating.
fn settle(simulation: &mut Simulation) -> Vec<String> {
    settle_under(&settings(), simulation)
}

fn settle_under(settings: &Settings, simulation: &mut Simulation) -> Vec<String> {
    for _ in 0..20 {
        if pass_under(settings, simulation).actions.is_empty() {
            return pods(simulation);
        }
    }
    panic!("never at rest");
}

fn pods(simulation: &Simulation) -> Vec<String> {
    let revision = |pod: &Pod| {
        let name = super::identity::revision_of(pod);
        simulation.view.get::<ControllerRevision>(&key(name)).map_or(0, |r| r.revision)
    };
    let shown = |pod: &Pod| {
        let going = if pod.metadata.deletion_timestamp.is_some() { " goes" } else { "" };
        format!("{}@{}{going}", pod.metadata.name.as_deref().unwrap(), revision(pod))
    };
    let mut pods: Vec<String> = simulation.view.all::<Pod>().map(shown).collect();
    pods.sort();
    pods
}

/// Runs the pod and makes it ready, as a node.
fn run(simulation: &mut Simulation, name: &str) {
    let status = json!({"phase": "Running", "conditions": [
        {"type": "Ready", "status": "True", "lastTransitionTime": simulation.now.to_string()}]});
    set_status(simulation, name, status);
}

fn set_status(simulation: &mut Simulation, name: &str, status: Value) {
    change::<Pod>(simulation, name, |pod| pod["status"] = status);
}

fn change<K: machinery_client::Typed>(simulation: &mut Simulation, name: &str, how: impl FnOnce(&mut Value)) {
    let kind = Kind::of::<K>();
    let mut object = simulation.view.object(&kind, &key(name)).unwrap().to_value();
    how(&mut object);
    simulation.write(&kind, object);
}

/// Settles and runs every pod, until nothing changes. Returns the state after each step.
fn roll(simulation: &mut Simulation) -> Vec<Vec<String>> {
    roll_under(&settings(), simulation)
}

fn roll_under(settings: &Settings, simulation: &mut Simulation) -> Vec<Vec<String>> {
    let mut steps = vec![settle_under(settings, simulation)];
    for _ in 0..20 {
        let names: Vec<String> = simulation.view.all::<Pod>().filter_map(|pod| pod.metadata.name.clone()).collect();
        for name in names {
            let pod = simulation.view.get::<Pod>(&key(&name)).unwrap();
            if !crate::pods::is_ready(pod) {
                run(simulation, &name);
            }
        }
        let pods = settle_under(settings, simulation);
        if steps.last() == Some(&pods) {
            return steps;
        }
        steps.push(pods);
    }
    panic!("it never ends: {steps:?}");
}

fn status(simulation: &Simulation) -> StatefulSetStatus {
    simulation.view.get::<StatefulSet>(&key("db")).unwrap().status.clone().unwrap()
}

fn counts(simulation: &Simulation) -> [i32; 5] {
    let s = status(simulation);
    let n = |n: Option<i32>| n.unwrap_or(0);
    [s.replicas, n(s.ready_replicas), n(s.available_replicas), n(s.current_replicas), n(s.updated_replicas)]
}

/// The object that an action creates, and the event.
fn created(action: &Action) -> Option<(&Value, &str)> {
    let Action::Create { object, notes, .. } = action else { return None };
    Some((object, notes.done.as_ref()?.message.as_str()))
}

fn images(simulation: &mut Simulation, image: &str) {
    change::<StatefulSet>(simulation, "db", |set| set["spec"]["template"] = template(image));
}

#[test]
fn pods_come_in_order_and_go_in_reverse() {
    let mut cluster = cluster([set(3, &json!({"ordinals": {"start": 3}}))]);
    assert_eq!(roll(&mut cluster), [vec!["db-3@1"], vec!["db-3@1", "db-4@1"], vec!["db-3@1", "db-4@1", "db-5@1"]]);
    assert_eq!(counts(&cluster), [3; 5]);
    let before = status(&cluster);
    assert_eq!((before.observed_generation, before.collision_count), (Some(1), Some(0)));
    assert!(before.current_revision.as_ref().unwrap().starts_with("db-"));
    assert_eq!(before.current_revision, before.update_revision);

    change::<StatefulSet>(&mut cluster, "db", |set| set["spec"]["replicas"] = json!(1));
    change::<Pod>(&mut cluster, "db-5", |pod| pod["metadata"]["finalizers"] = json!(["example.com/hold"]));
    assert_eq!(settle(&mut cluster), ["db-3@1", "db-4@1", "db-5@1 goes"], "one goes at a time");
    change::<Pod>(&mut cluster, "db-5", |pod| pod["metadata"]["finalizers"] = json!([]));
    assert_eq!(settle(&mut cluster), ["db-3@1"]);
    assert_eq!(counts(&cluster), [1; 5]);
}

#[test]
fn a_pod_has_its_identity() {
    let claims = json!([{"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"]}}]);
    let mut cluster = cluster([set(1, &json!({"volumeClaimTemplates": claims}))]);
    pass(&mut cluster);
    let plan = pass(&mut cluster);
    let created: Vec<(&Value, &str)> = plan.actions.iter().filter_map(created).collect();
    let [(claim, made_claim), (pod, made_pod)] = created.as_slice() else { panic!("{plan:?}") };
    assert_eq!(*made_claim, "Create Claim data-db-0 Pod db-0 in StatefulSet db success");
    assert_eq!(*made_pod, "Create Pod db-0 in StatefulSet db successful");
    assert_eq!(
        (&claim["metadata"]["name"], &claim["metadata"]["labels"]),
        (&json!("data-db-0"), &json!({"app": "db"}))
    );
    let revision = status(&cluster).update_revision.unwrap();
    let labels = json!({"app": "db", "apps.kubernetes.io/pod-index": "0", "controller-revision-hash": revision,
        "statefulset.kubernetes.io/pod-name": "db-0"});
    assert_eq!(pod["metadata"]["labels"], labels);
    assert_eq!((&pod["metadata"]["name"], &pod["metadata"]["generateName"]), (&json!("db-0"), &json!("db-")));
    assert_eq!((&pod["spec"]["hostname"], &pod["spec"]["subdomain"]), (&json!("db-0"), &json!("dbs")));
    let volume = json!([{"name": "data", "persistentVolumeClaim": {"claimName": "data-db-0"}}]);
    assert_eq!(pod["spec"]["volumes"], volume);

    change::<Pod>(&mut cluster, "db-0", |pod| {
        pod["metadata"]["labels"].as_object_mut().unwrap().remove("statefulset.kubernetes.io/pod-name");
    });
    settle(&mut cluster);
    let pod = cluster.view.get::<Pod>(&key("db-0")).unwrap();
    assert_eq!(pod.metadata.labels.as_ref().unwrap()["statefulset.kubernetes.io/pod-name"], "db-0");
}

#[test]
fn a_parallel_set_does_not_wait_for_pods() {
    let mut cluster = cluster([set(3, &json!({"podManagementPolicy": "Parallel"}))]);
    assert_eq!(settle(&mut cluster), ["db-0@1", "db-1@1", "db-2@1"]);
    set_status(&mut cluster, "db-0", json!({"phase": "Failed"}));
    assert_eq!(settle(&mut cluster).len(), 3);
    assert_eq!(cluster.view.get::<Pod>(&key("db-0")).unwrap().status, None, "it is another one");
    change::<StatefulSet>(&mut cluster, "db", |set| set["spec"]["replicas"] = json!(0));
    assert_eq!(settle(&mut cluster), [""; 0]);
    change::<StatefulSet>(&mut cluster, "db", |set| set["spec"]["replicas"] = json!(i32::MAX));
    let plan = pass(&mut cluster);
    let made = plan.actions.iter().find_map(|action| match action {
        Action::SlowStart(creates) => Some(creates.len()),
        _ => None,
    });
    assert_eq!(made, Some(500));
}

#[test]
fn a_name_is_free_only_when_its_pod_is_gone() {
    let stranger = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "db-0", "namespace": "a"}});
    let mut cluster = cluster([set(1, &json!({})), stranger]);
    assert_eq!(settle(&mut cluster), ["db-0@0"], "it is somebody else's");
    cluster.view.remove(&Kind::of::<Pod>(), &key("db-0"), 1_000_000);
    assert_eq!(settle(&mut cluster), ["db-0@1"]);
    change::<Pod>(&mut cluster, "db-0", |pod| pod["metadata"]["finalizers"] = json!(["example.com/hold"]));
    set_status(&mut cluster, "db-0", json!({"phase": "Failed"}));
    assert_eq!(settle(&mut cluster), ["db-0@1 goes"]);
    change::<Pod>(&mut cluster, "db-0", |pod| pod["metadata"]["finalizers"] = json!([]));
    assert_eq!(settle(&mut cluster), ["db-0@1"]);
}

#[test]
fn pods_are_adopted_and_released() {
    let orphan = |name: &str| {
        json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "a", "labels": {"app": "db"}}})
    };
    let mut cluster = cluster([set(2, &json!({})), orphan("db-0"), orphan("db-x"), orphan("other-0")]);
    settle(&mut cluster);
    let owned = |cluster: &Simulation, name: &str| {
        let pod = cluster.view.get::<Pod>(&key(name)).unwrap();
        pod.metadata.owner_references.as_ref().is_some_and(|o| !o.is_empty())
    };
    assert_eq!(["db-0", "db-x", "other-0"].map(|name| owned(&cluster, name)), [true, false, false]);
    change::<Pod>(&mut cluster, "db-0", |pod| pod["metadata"]["labels"]["app"] = json!("else"));
    settle(&mut cluster);
    assert!(!owned(&cluster, "db-0"));
}

#[test]
fn an_update_goes_from_the_highest_ordinal_down_and_back() {
    let mut cluster = cluster([set(2, &json!({}))]);
    roll(&mut cluster);
    let first = status(&cluster).current_revision;
    images(&mut cluster, "2");
    assert_eq!(
        roll(&mut cluster),
        [["db-0@1", "db-1@2"], ["db-0@2", "db-1@2"]],
        "one at a time, and the next when it is ready"
    );
    assert_eq!(counts(&cluster), [2; 5]);
    assert_ne!(status(&cluster).current_revision, first);
    images(&mut cluster, "1");
    roll(&mut cluster);
    assert_eq!(
        (status(&cluster).current_revision, counts(&cluster)),
        (first, [2; 5]),
        "the old revision is the latest again"
    );
    let mut numbers: Vec<i64> = cluster.view.all::<ControllerRevision>().map(|r| r.revision).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, [2, 3]);
}

#[test]
fn a_partition_stays_behind() {
    let strategy = json!({"type": "RollingUpdate", "rollingUpdate": {"partition": 2}});
    let mut cluster = cluster([set(3, &json!({"updateStrategy": strategy}))]);
    roll(&mut cluster);
    images(&mut cluster, "2");
    roll(&mut cluster);
    assert_eq!(pods(&cluster), ["db-0@1", "db-1@1", "db-2@2"]);
    let s = status(&cluster);
    assert_eq!((s.current_replicas, s.updated_replicas), (Some(2), Some(1)));
    assert_ne!(s.current_revision, s.update_revision);
    change::<Pod>(&mut cluster, "db-0", |pod| pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z"));
    roll(&mut cluster);
    assert_eq!(pods(&cluster), ["db-0@1", "db-1@1", "db-2@2"], "a new pod below the partition is of the old revision");
}

/// The settings with the feature gate `MaxUnavailableStatefulSet`.
fn gated() -> Settings {
    Settings { features: Features::default().with(Feature::MaxUnavailableStatefulSet, true), ..settings() }
}

#[test]
fn several_may_be_missing_at_once() {
    for (most, first) in [
        (json!("50%"), ["db-0@1", "db-1@1", "db-2@2", "db-3@2"]),
        (json!(3), ["db-0@1", "db-1@2", "db-2@2", "db-3@2"]),
        (json!("1%"), ["db-0@1", "db-1@1", "db-2@1", "db-3@2"]),
        (Value::Null, ["db-0@1", "db-1@1", "db-2@1", "db-3@2"]),
    ] {
        let strategy = json!({"type": "RollingUpdate", "rollingUpdate": {"partition": 0, "maxUnavailable": most}});
        let more = json!({"updateStrategy": strategy, "podManagementPolicy": "Parallel"});
        let mut cluster = cluster([set(4, &more)]);
        roll_under(&gated(), &mut cluster);
        images(&mut cluster, "2");
        let steps = roll_under(&gated(), &mut cluster);
        assert_eq!(steps[0], first, "{most}");
        assert_eq!(steps.last().unwrap(), &["db-0@2", "db-1@2", "db-2@2", "db-3@2"], "{most}");
    }
}

#[test]
fn without_the_gate_one_is_missing_at_a_time() {
    let strategy = json!({"type": "RollingUpdate", "rollingUpdate": {"partition": 0, "maxUnavailable": "50%"}});
    let mut cluster = cluster([set(4, &json!({"updateStrategy": strategy, "podManagementPolicy": "Parallel"}))]);
    roll(&mut cluster);
    images(&mut cluster, "2");
    assert_eq!(roll(&mut cluster)[0], ["db-0@1", "db-1@1", "db-2@1", "db-3@2"]);
}

#[test]
fn on_delete_waits_for_deletions() {
    let mut cluster = cluster([set(2, &json!({"updateStrategy": {"type": "OnDelete"}}))]);
    roll(&mut cluster);
    images(&mut cluster, "2");
    roll(&mut cluster);
    assert_eq!(pods(&cluster), ["db-0@1", "db-1@1"]);
    change::<Pod>(&mut cluster, "db-0", |pod| pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z"));
    roll(&mut cluster);
    assert_eq!(pods(&cluster), ["db-0@2", "db-1@1"]);
}

#[test]
fn a_pod_that_is_ready_for_too_short_a_time_is_waited_for() {
    let mut cluster = cluster([set(2, &json!({"minReadySeconds": 30}))]);
    settle(&mut cluster);
    run(&mut cluster, "db-0");
    settle(&mut cluster);
    assert_eq!((pods(&cluster), counts(&cluster)), (vec!["db-0@1".to_owned()], [1, 1, 0, 1, 1]));
    let due = cluster.now.saturating_add(Duration::from_secs(30)).unwrap();
    assert_eq!(pass(&mut cluster).requeue_at, Some(due));
    cluster.now = due;
    assert_eq!(settle(&mut cluster), ["db-0@1", "db-1@1"]);
}

#[test]
fn claims_are_owned_by_the_retention_policy() {
    let claims = json!([{"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"]}}]);
    for (scaled, deleted, in_range, beyond) in [
        ("Retain", "Retain", vec![], vec![]),
        ("Retain", "Delete", vec!["StatefulSet"], vec!["StatefulSet"]),
        ("Delete", "Retain", vec![], vec!["Pod"]),
        ("Delete", "Delete", vec!["StatefulSet"], vec!["Pod"]),
    ] {
        let policy = json!({"whenScaled": scaled, "whenDeleted": deleted});
        let mut cluster =
            cluster([set(2, &json!({"volumeClaimTemplates": claims, "persistentVolumeClaimRetentionPolicy": policy}))]);
        roll(&mut cluster);
        let owners = |cluster: &Simulation| {
            let claim = cluster.view.get::<PersistentVolumeClaim>(&key("data-db-1")).unwrap();
            claim.metadata.owner_references.iter().flatten().map(|o| o.kind.clone()).collect::<Vec<_>>()
        };
        assert_eq!(owners(&cluster), in_range, "{scaled} {deleted}");
        change::<StatefulSet>(&mut cluster, "db", |set| set["spec"]["replicas"] = json!(1));
        assert_eq!(settle(&mut cluster), ["db-0@1"]);
        assert_eq!(owners(&cluster), beyond, "{scaled} {deleted}");
        change::<StatefulSet>(&mut cluster, "db", |set| set["spec"]["replicas"] = json!(2));
        let back = settle(&mut cluster).len();
        assert_eq!(back, if scaled == "Delete" { 1 } else { 2 }, "a claim that goes with its pod is waited for");
    }
}

#[test]
fn a_claim_on_its_way_out_is_waited_for() {
    let claims = json!([{"metadata": {"name": "data"}, "spec": {}}]);
    let claim = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "data-db-0",
        "namespace": "a", "deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["kubernetes.io/pvc-protection"]}});
    let mut cluster = cluster([set(1, &json!({"volumeClaimTemplates": claims})), claim]);
    pass(&mut cluster);
    let plan = pass(&mut cluster);
    let message = "Create Pod db-0 in StatefulSet db failed error: pvc data-db-0 is being deleted";
    assert!(plan.actions.iter().any(|a| matches!(a, Action::Event(event) if event.message == message)), "{plan:?}");
    assert_eq!(pods(&cluster), [""; 0]);
    change::<PersistentVolumeClaim>(&mut cluster, "data-db-0", |claim| claim["metadata"]["finalizers"] = json!([]));
    assert_eq!(settle(&mut cluster), ["db-0@1"]);
}

#[test]
fn old_revisions_go_beyond_the_limit_and_collisions_are_counted() {
    let mut cluster = cluster([set(1, &json!({"revisionHistoryLimit": 1}))]);
    roll(&mut cluster);
    for image in ["2", "3", "4"] {
        images(&mut cluster, image);
        roll(&mut cluster);
    }
    let mut numbers: Vec<i64> = cluster.view.all::<ControllerRevision>().map(|r| r.revision).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, [3, 4]);

    let name = status(&cluster).current_revision.unwrap();
    change::<ControllerRevision>(&mut cluster, &name, |revision| {
        revision["data"] = json!({"other": 1});
        revision["metadata"]["labels"] = json!({});
    });
    roll(&mut cluster);
    assert_eq!(status(&cluster).collision_count, Some(1));
    assert_ne!(status(&cluster).current_revision, Some(name));
}

#[test]
fn a_set_that_goes_makes_nothing() {
    let mut going = set(2, &json!({}));
    going["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    going["metadata"]["finalizers"] = json!(["foregroundDeletion"]);
    let mut cluster = cluster([going]);
    assert_eq!(pass(&mut cluster), Plan::nothing());
}
