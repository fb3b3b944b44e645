//! Examples of DaemonSets, with different nodes and simulated pods.

use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet};
use k8s_openapi::api::core::v1::Node;
use machinery_api::ObjectKey;
use machinery_client::simulate::Simulation;
use machinery_client::{Action, Kind, Plan, Pod};
use serde_json::{Value, json};

use super::node;
use crate::table_tests::{decide, start};

fn key(name: &str) -> ObjectKey {
    ObjectKey::new("a", name)
}

fn set(more: &Value) -> Value {
    let mut set = json!({"apiVersion": "apps/v1", "kind": "DaemonSet",
        "metadata": {"name": "d", "namespace": "a", "uid": "set"},
        "spec": {"revisionHistoryLimit": 10, "selector": {"matchLabels": {"app": "d"}},
            "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1, "maxSurge": 0}},
            "template": template("1")}});
    for (field, value) in more.as_object().unwrap() {
        set["spec"][field] = value.clone();
    }
    set
}

fn template(image: &str) -> Value {
    json!({"metadata": {"labels": {"app": "d"}}, "spec": {"containers": [{"name": "c", "image": image}]}})
}

fn node(name: &str, more: &Value) -> Value {
    let mut node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": {}}, "spec": {}});
    node["metadata"]["labels"] = more["labels"].clone();
    node["spec"]["taints"] = more["taints"].clone();
    node
}

fn cluster(more: &Value, nodes: &[&str]) -> Simulation {
    crate::simulation(start(), nodes.iter().map(|name| node(name, &json!({}))).chain([set(more)]))
}

fn pass(simulation: &mut Simulation) -> Plan {
    let plan = decide("daemonset-controller", simulation, &key("d"));
    simulation.reconciler_cache.set(&key("d"), plan.state.clone());
    assert_eq!(simulation.apply(plan.clone()), Vec::<String>::new());
    plan
}

fn settle(simulation: &mut Simulation) -> Vec<String> {
    for _ in 0..20 {
        if pass(simulation).actions.is_empty() {
            return pods(simulation);
        }
    }
    panic!("never at rest");
}

/// The pods as `NODE@REVISION`.
fn pods(simulation: &Simulation) -> Vec<String> {
    let revisions: Vec<&ControllerRevision> = simulation.view.all().collect();
    let shown = |pod: &Pod| {
        let hash = &pod.metadata.labels.as_ref().unwrap()["controller-revision-hash"];
        let of = |r: &&&ControllerRevision| r.metadata.name.as_deref() == Some(&format!("d-{hash}"));
        let revision = revisions.iter().find(of).map_or(0, |r| r.revision);
        format!("{}@{revision}", node::of_pod(pod).unwrap_or("nowhere"))
    };
    let mut pods: Vec<String> = simulation.view.all::<Pod>().map(shown).collect();
    pods.sort();
    pods
}

fn change<K: machinery_client::Typed>(simulation: &mut Simulation, key: &ObjectKey, how: impl FnOnce(&mut Value)) {
    let kind = Kind::of::<K>();
    let mut object = simulation.view.object(&kind, key).unwrap().to_value();
    how(&mut object);
    simulation.write(&kind, object);
}

/// Binds and runs all pods that aren't ready, as scheduler and node.
fn run(simulation: &mut Simulation) {
    let waiting: Vec<(ObjectKey, String)> = simulation
        .view
        .all::<Pod>()
        .filter(|pod| !crate::pods::is_ready(pod))
        .map(|pod| (machinery_client::key_of(&pod.metadata), node::of_pod(pod).unwrap().to_owned()))
        .collect();
    let now = simulation.now.to_string();
    for (key, node) in waiting {
        change::<Pod>(simulation, &key, |pod| {
            pod["spec"]["nodeName"] = json!(node);
            pod["status"] = json!({"phase": "Running", "conditions": [
                {"type": "Ready", "status": "True", "lastTransitionTime": now}]});
        });
    }
}

fn roll(simulation: &mut Simulation) -> Vec<Vec<String>> {
    let mut steps = vec![settle(simulation)];
    for _ in 0..20 {
        run(simulation);
        let pods = settle(simulation);
        if steps.last() == Some(&pods) {
            return steps;
        }
        steps.push(pods);
    }
    panic!("it never ends: {steps:?}");
}

fn images(simulation: &mut Simulation, image: &str) {
    change::<DaemonSet>(simulation, &key("d"), |set| set["spec"]["template"] = template(image));
}

/// Desired, current, ready, available, updated, unavailable, misscheduled.
fn counts(simulation: &Simulation) -> [i32; 7] {
    let s = simulation.view.get::<DaemonSet>(&key("d")).unwrap().status.clone().unwrap();
    let n = |n: Option<i32>| n.unwrap_or(0);
    [
        s.desired_number_scheduled,
        s.current_number_scheduled,
        s.number_ready,
        n(s.number_available),
        n(s.updated_number_scheduled),
        n(s.number_unavailable),
        s.number_misscheduled,
    ]
}

#[test]
fn every_node_that_takes_it_gets_a_pod() {
    let taint = |key: &str, effect: &str| json!({"taints": [{"key": key, "effect": effect}]});
    let nodes = [
        node("n1", &json!({"labels": {"disk": "ssd"}})),
        node("n2", &json!({"labels": {"disk": "hdd"}})),
        node("n3", &json!({"labels": {"disk": "ssd"}, "taints": [{"key": "mine", "effect": "NoSchedule"}]})),
    ];
    let more = json!({"template": {"metadata": {"labels": {"app": "d"}}, "spec": {"nodeSelector": {"disk": "ssd"},
        "containers": [{"name": "c", "image": "1"}]}}});
    let mut cluster = crate::simulation(start(), nodes.into_iter().chain([set(&more)]));
    assert_eq!(roll(&mut cluster), [["n1@1"]]);
    assert_eq!(counts(&cluster), [1, 1, 1, 1, 1, 0, 0]);
    for (more, fits) in [
        (json!({}), true),
        (taint("k", "NoSchedule"), false),
        (taint("k", "PreferNoSchedule"), true),
        (taint("node.kubernetes.io/unschedulable", "NoSchedule"), true),
        (taint("node.kubernetes.io/not-ready", "NoExecute"), true),
        (taint("node.kubernetes.io/network-unavailable", "NoSchedule"), false),
    ] {
        let mut cluster = crate::simulation(start(), [node("n", &more), set(&json!({}))]);
        assert_eq!(settle(&mut cluster).len(), usize::from(fits), "{more}");
    }
}

#[test]
fn a_pod_waits_for_its_node_alone() {
    let mut cluster = cluster(&json!({}), &["n1"]);
    pass(&mut cluster);
    let plan = pass(&mut cluster);
    let made = plan.actions.iter().find_map(|action| match action {
        Action::SlowStart(creates) => creates.first(),
        _ => None,
    });
    let Some(Action::Create { object, .. }) = made else { panic!("{plan:?}") };
    let terms =
        object.pointer("/spec/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution/nodeSelectorTerms");
    assert_eq!(terms, Some(&json!([{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n1"]}]}])));
    assert_eq!(object["spec"]["tolerations"].as_array().unwrap().len(), 6);
    assert_eq!(object["metadata"]["generateName"], "d-");
}

#[test]
fn pods_follow_their_nodes() {
    let mut cluster = cluster(&json!({}), &["n1", "n2"]);
    roll(&mut cluster);
    let n1 = ObjectKey::cluster("n1");
    let taint = |effect: &str| json!([{"key": "k", "effect": effect}]);
    change::<Node>(&mut cluster, &n1, |node| node["spec"]["taints"] = taint("NoSchedule"));
    assert_eq!(settle(&mut cluster), ["n1@1", "n2@1"], "what is there may stay");
    assert_eq!(counts(&cluster), [1, 1, 1, 1, 1, 0, 1]);
    change::<Node>(&mut cluster, &n1, |node| node["spec"]["taints"] = taint("NoExecute"));
    assert_eq!(settle(&mut cluster), ["n2@1"]);
    change::<Node>(&mut cluster, &n1, |node| node["spec"]["taints"] = json!([]));
    assert_eq!(settle(&mut cluster), ["n1@1", "n2@1"]);
    cluster.view.remove(&Kind::of::<Node>(), &n1, 1_000_000);
    assert_eq!(settle(&mut cluster), ["n2@1"], "it waited for a node that is gone");
}

#[test]
fn an_update_replaces_one_after_the_other() {
    let mut cluster = cluster(&json!({}), &["n1", "n2"]);
    roll(&mut cluster);
    images(&mut cluster, "2");
    assert_eq!(roll(&mut cluster), [["n1@2", "n2@1"], ["n1@2", "n2@2"]]);
    images(&mut cluster, "1");
    assert_eq!(roll(&mut cluster), [["n1@3", "n2@2"], ["n1@3", "n2@3"]], "the first revision is the latest again");
    assert_eq!(cluster.view.all::<ControllerRevision>().count(), 2);
}

#[test]
fn a_pod_that_is_not_available_is_replaced_at_once() {
    let mut cluster = cluster(&json!({}), &["n1", "n2", "n3"]);
    settle(&mut cluster);
    images(&mut cluster, "2");
    assert_eq!(settle(&mut cluster), ["n1@2", "n2@2", "n3@2"], "no template is finished that never ran");
}

#[test]
fn a_surge_makes_the_new_pod_first() {
    let strategy = json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": "50%"}});
    let mut cluster = cluster(&json!({"updateStrategy": strategy}), &["n1", "n2"]);
    roll(&mut cluster);
    images(&mut cluster, "2");
    let steps = roll(&mut cluster);
    assert_eq!(steps, [vec!["n1@1", "n1@2", "n2@1"], vec!["n1@2", "n2@1", "n2@2"], vec!["n1@2", "n2@2"]]);
    assert_eq!(counts(&cluster), [2, 2, 2, 2, 2, 0, 0]);
}

#[test]
fn on_delete_waits_for_deletions() {
    let mut cluster = cluster(&json!({"updateStrategy": {"type": "OnDelete"}}), &["n1", "n2"]);
    roll(&mut cluster);
    images(&mut cluster, "2");
    assert_eq!(roll(&mut cluster), [["n1@1", "n2@1"]]);
    assert_eq!(counts(&cluster), [2, 2, 2, 2, 0, 0, 0]);
    let first = cluster.view.all::<Pod>().find(|pod| node::of_pod(pod) == Some("n1")).unwrap();
    let first = machinery_client::key_of(&first.metadata);
    cluster.view.remove(&Kind::of::<Pod>(), &first, 1_000_000);
    assert_eq!(settle(&mut cluster), ["n1@2", "n2@1"]);
}

#[test]
fn ended_pods_are_replaced_with_doubling_back_off() {
    let mut cluster = cluster(&json!({}), &["n1"]);
    settle(&mut cluster);
    let pod = |cluster: &Simulation| machinery_client::key_of(&cluster.view.all::<Pod>().next().unwrap().metadata);
    for wait in [0, 1, 2, 4, 8] {
        let first = pod(&cluster);
        change::<Pod>(&mut cluster, &first, |pod| pod["status"] = json!({"phase": "Failed"}));
        if wait > 0 {
            let due = cluster.now.saturating_add(std::time::Duration::from_secs(wait)).unwrap();
            assert_eq!(pass(&mut cluster).requeue_at, Some(due));
            settle(&mut cluster);
            assert_eq!(pod(&cluster), first);
            cluster.now = due;
        }
        let plan = pass(&mut cluster);
        assert!(plan.actions.iter().any(|a| matches!(a, Action::Event(event) if event.reason == "FailedDaemonPod")));
        settle(&mut cluster);
        assert_ne!(pod(&cluster), first, "after {wait} s");
    }
    let second = pod(&cluster);
    change::<Pod>(&mut cluster, &second, |pod| pod["status"] = json!({"phase": "Succeeded"}));
    settle(&mut cluster);
    assert_ne!(pod(&cluster), second);
}

#[test]
fn pods_and_revisions_are_adopted_and_released() {
    let mut cluster = cluster(&json!({}), &["n1"]);
    roll(&mut cluster);
    let pod = machinery_client::key_of(&cluster.view.all::<Pod>().next().unwrap().metadata);
    let revision = machinery_client::key_of(&cluster.view.all::<ControllerRevision>().next().unwrap().metadata);
    let orphaned = |object: &mut Value| object["metadata"]["ownerReferences"] = json!([]);
    change::<Pod>(&mut cluster, &pod, orphaned);
    change::<ControllerRevision>(&mut cluster, &revision, orphaned);
    assert_eq!(settle(&mut cluster), ["n1@1"]);
    assert!(cluster.view.get::<Pod>(&pod).unwrap().metadata.owner_references.as_ref().is_some_and(|o| o.len() == 1));
    assert_eq!(cluster.view.controlled::<ControllerRevision>("set").count(), 1);
    change::<Pod>(&mut cluster, &pod, |pod| pod["metadata"]["labels"]["app"] = json!("other"));
    settle(&mut cluster);
    assert_eq!(cluster.view.all::<Pod>().count(), 2, "it went its own way, and another one came");
}
