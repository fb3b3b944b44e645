//! Examples of ReplicaSets, EndpointSlices and namespaces: given objects, expected actions.

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::{Namespace, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use machinery_api::ObjectKey;
use machinery_client::object::decode;
use machinery_client::simulate::Simulation;
use machinery_client::{Action, Kind, Plan, Pod, value_of};
use serde_json::{Value, json};

use crate::CONTROLLERS;
use crate::table_tests::{decide, settle, start};

fn key(name: &str) -> ObjectKey {
    ObjectKey::new("a", name)
}

fn set(replicas: usize) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": {"name": "web", "namespace": "a", "uid": "set"},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "web"}},
            "template": {"metadata": {"labels": {"app": "web"}, "annotations": {"note": "x"}},
                "spec": {"containers": [{"name": "c", "image": "i"}]}}}})
}

/// A pod of the set, with some fields of its own.
fn pod(name: &str, more: &Value) -> Value {
    let mut pod = json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "a", "uid": name, "labels": {"app": "web"},
            "creationTimestamp": "2025-12-31T23:00:00Z",
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web", "uid": "set", "controller": true}]},
        "spec": {"nodeName": "m1", "containers": [{"name": "c", "image": "i"}]},
        "status": {"phase": "Running", "podIPs": [{"ip": "10.0.0.1"}], "conditions": [
            {"type": "Ready", "status": "True", "lastTransitionTime": "2025-12-31T23:00:00Z"}]}});
    merge(&mut pod, more);
    pod
}

fn merge(into: &mut Value, from: &Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (name, value) in from {
                merge(into.entry(name.clone()).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from.clone(),
    }
}

fn deleted(plan: &Plan) -> Vec<&str> {
    fn names(action: &Action) -> Vec<&str> {
        match action {
            Action::Delete { key, .. } => vec![key.name.as_str()],
            Action::Concurrent(actions) => actions.iter().flat_map(names).collect(),
            Action::Reporting { tried, .. } => names(tried),
            _ => Vec::new(),
        }
    }
    plan.actions.iter().flat_map(names).collect()
}

#[test]
fn pods_are_given_up_in_upstreams_order() {
    // Each pod is deleted before the next one, for one more reason.
    let order = [
        ("unassigned", json!({"spec": {"nodeName": ""}, "status": {"phase": "Pending", "conditions": []}})),
        ("pending", json!({"status": {"phase": "Pending", "conditions": []}})),
        ("unready", json!({"status": {"conditions": [{"type": "Ready", "status": "False"}]}})),
        ("cheap", json!({"metadata": {"annotations": {"controller.kubernetes.io/pod-deletion-cost": "-1"}}})),
        ("crowded", json!({"spec": {"nodeName": "m1"}})),
        (
            "lately-ready",
            json!({"spec": {"nodeName": "m2"}, "status": {"conditions": [
                {"type": "Ready", "status": "True", "lastTransitionTime": "2025-12-31T23:59:00Z"}]}}),
        ),
        (
            "restarted",
            json!({"spec": {"nodeName": "m3"}, "status": {"containerStatuses": [
                {"name": "c", "image": "i", "imageID": "", "ready": true, "restartCount": 3}]}}),
        ),
        ("young", json!({"metadata": {"creationTimestamp": "2025-12-31T23:59:00Z"}, "spec": {"nodeName": "m4"}})),
        ("old", json!({"spec": {"nodeName": "m5"}})),
    ];
    let mut objects: Vec<Value> = order.iter().map(|(name, more)| pod(name, more)).collect();
    objects.reverse();
    for wanted in 0..order.len() {
        let simulation = crate::simulation(start(), objects.iter().cloned().chain([set(wanted)]));
        let plan = decide("replicaset-controller", &simulation, &key("web"));
        let gone: Vec<&str> = order.iter().take(order.len() - wanted).map(|(name, _)| *name).collect();
        let mut deleted = deleted(&plan);
        deleted.sort_by_key(|name| order.iter().position(|(n, _)| n == name));
        assert_eq!(deleted, gone);
    }
}

#[test]
fn missing_pods_are_made_slowly_and_a_failure_shows_in_the_status() {
    let mut simulation = crate::simulation(start(), [set(3)]);
    let plan = decide("replicaset-controller", &simulation, &key("web"));
    let [Action::RequireFreshCache { .. }, Action::Reporting { tried, otherwise, message_at }] =
        plan.actions.as_slice()
    else {
        panic!("{:?}", plan.actions)
    };
    let Action::SlowStart(creates) = &**tried else { panic!("{tried:?}") };
    assert_eq!(creates.len(), 3);
    let Action::Create { object, notes, .. } = &creates[0] else { panic!("{creates:?}") };
    assert_eq!(object["metadata"]["generateName"], "web-");
    assert_eq!(object["metadata"]["annotations"]["note"], "x");
    assert_eq!(object["metadata"]["ownerReferences"][0]["controller"], true);
    assert_eq!(notes.done.as_ref().unwrap().message, "Created pod: {name}");

    let Action::Update { object: failing, subresource: Some("status"), .. } = &**otherwise else {
        panic!("{otherwise:?}")
    };
    let condition = &failing["status"]["conditions"][0];
    assert_eq!((&condition["type"], &condition["reason"]), (&json!("ReplicaFailure"), &json!("FailedCreate")));
    assert_eq!(failing.pointer(message_at), Some(&json!("{error}")));

    // The first failure stays as long as pods are missing; it derives from the view alone.
    let mut failing = failing.clone();
    failing["status"]["conditions"][0]["message"] = json!("pods are forbidden");
    simulation.apply(
        vec![Action::Update { kind: Kind::of::<ReplicaSet>(), object: failing, subresource: Some("status") }].into(),
    );
    let plan = decide("replicaset-controller", &simulation, &key("web"));
    assert!(matches!(plan.actions.last(), Some(Action::SlowStart(_))), "it is tried again: {:?}", plan.actions);

    settle(&mut simulation);
    let status = simulation.view.get::<ReplicaSet>(&key("web")).unwrap().status.clone().unwrap();
    assert_eq!((status.replicas, status.fully_labeled_replicas, status.conditions), (3, Some(3), None));
}

#[test]
fn pods_are_adopted_and_released_by_their_labels() {
    let mut strange = pod("strange", &json!({}));
    strange["metadata"]["labels"] = json!({"app": "other"});
    let mut orphan = pod("orphan", &json!({}));
    orphan["metadata"]["ownerReferences"] = json!([]);
    let mut simulation = crate::simulation(start(), [set(1), strange, orphan]);
    let plan = decide("replicaset-controller", &simulation, &key("web"));
    assert_eq!(simulation.apply(plan), Vec::<String>::new());
    let owners = |name: &str| {
        let pod = simulation.view.get::<Pod>(&key(name)).unwrap();
        pod.metadata.owner_references.iter().flatten().map(|o| o.uid.clone()).collect::<Vec<_>>()
    };
    assert_eq!((owners("strange"), owners("orphan")), (vec![], vec!["set".to_owned()]));
}

/// What a deleted owner adopts would be collected with it. So an adoption follows a check with the server, whose answer
/// the view of the owners may not show yet. (The executor's tests have the check itself.)
#[test]
fn no_owner_adopts_before_the_server_confirms_that_it_is_live() {
    let pods = json!({"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let selector = json!({"matchLabels": {"app": "web"}});
    let spec = json!({"replicas": 1, "selector": selector, "template": pods, "serviceName": "web"});
    let simple = json!({"replicas": 1, "selector": {"app": "web"}, "template": pods});
    for (controller, api, kind, spec) in [
        ("replicaset-controller", "apps/v1", "ReplicaSet", &spec),
        ("replicationcontroller-controller", "v1", "ReplicationController", &simple),
        ("statefulset-controller", "apps/v1", "StatefulSet", &spec),
        ("daemonset-controller", "apps/v1", "DaemonSet", &spec),
        ("deployment-controller", "apps/v1", "Deployment", &spec),
        ("job-controller", "batch/v1", "Job", &spec),
    ] {
        let owner = json!({"apiVersion": api, "kind": kind, "metadata": {"name": "web", "namespace": "a", "uid": "owner"}, "spec": spec});
        let mut orphan = if kind == "Deployment" { set(1) } else { pod("web-0", &json!({})) };
        orphan["metadata"]["ownerReferences"] = json!([]);
        orphan["metadata"]["labels"] = json!({"app": "web"});
        let mut simulation = crate::simulation(start(), [owner, orphan]);
        // Some controllers write a revision or a status first.
        let plan = (0..4).find_map(|_| {
            let plan = decide(controller, &simulation, &key("web"));
            let adopts = |action: &Action| {
                matches!(action, Action::Patch { patch, .. } if !patch["metadata"]["ownerReferences"].is_null())
            };
            if let Some(at) = plan.actions.iter().position(adopts) {
                return Some((plan, at));
            }
            simulation.apply(plan);
            None
        });
        let Some((plan, at)) = plan else { panic!("{controller} adopts nothing") };
        let checked = |action: &Action| matches!(action, Action::ExpectLive { key, uid, .. } if key.name == "web" && uid.as_deref() == Some("owner"));
        assert!(plan.actions[..at].iter().any(checked), "{controller}: {plan:?}");
    }
}

#[test]
fn a_pod_counts_as_available_once_it_has_been_ready_for_long_enough() {
    let mut set = set(1);
    set["spec"]["minReadySeconds"] = json!(3610);
    let mut simulation = crate::simulation(start(), [set, pod("p", &json!({}))]);
    let plan = decide("replicaset-controller", &simulation, &key("web"));
    let due: Timestamp = "2026-01-01T00:00:10Z".parse().unwrap();
    assert_eq!(plan.requeue_at, Some(due));
    let available =
        |s: &Simulation| s.view.get::<ReplicaSet>(&key("web")).unwrap().status.clone().unwrap().available_replicas;
    simulation.apply(plan);
    assert_eq!(available(&simulation), None);
    simulation.now = due;
    let plan = decide("replicaset-controller", &simulation, &key("web"));
    simulation.apply(plan);
    assert_eq!(available(&simulation), Some(1));
}

fn service(more: &Value) -> Value {
    let mut service = json!({"apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "web", "namespace": "a", "labels": {"of": "me"}},
        "spec": {"clusterIP": "10.96.0.9", "ipFamilies": ["IPv4"], "selector": {"app": "web"},
            "ports": [{"name": "http", "port": 80, "targetPort": "www", "protocol": "TCP"}]}});
    merge(&mut service, more);
    service
}

fn served(name: &str, ip: &str) -> Value {
    let mut pod = pod(name, &json!({"status": {"podIPs": [{"ip": ip}]}}));
    pod["spec"]["containers"] = json!([{"name": "c", "image": "i", "ports": [{"name": "www", "containerPort": 8080}]}]);
    pod
}

fn node(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}})
}

fn slices(simulation: &Simulation) -> Vec<EndpointSlice> {
    simulation.view.all::<EndpointSlice>().cloned().collect()
}

fn reconcile_service(simulation: &mut Simulation) -> Plan {
    let plan = decide("endpointslice-controller", simulation, &key("web"));
    assert_eq!(simulation.apply(plan.clone()), Vec::<String>::new());
    plan
}

#[test]
fn endpoints_fill_slices_of_a_hundred_and_stay_in_place() {
    let pods = (0..150).map(|n| served(&format!("p{n:03}"), &format!("10.0.0.{n}")));
    let mut simulation = crate::simulation(start(), pods.chain([node("m1"), service(&json!({}))]));
    reconcile_service(&mut simulation);
    let mut sizes: Vec<usize> = slices(&simulation).iter().map(|s| s.endpoints.as_ref().unwrap().len()).collect();
    sizes.sort_unstable();
    assert_eq!(sizes, [50, 100]);
    let slice = &slices(&simulation)[0];
    assert_eq!(slice.ports.as_ref().unwrap()[0].port, Some(8080));
    let labels = slice.metadata.labels.as_ref().unwrap();
    assert_eq!((labels["of"].as_str(), labels["kubernetes.io/service-name"].as_str()), ("me", "web"));

    // One pod fewer and one more are one change of one slice.
    simulation.view.remove(&Kind::of::<Pod>(), &key("p010"), 1_000_000);
    simulation.create(&Kind::of::<Pod>(), served("q", "10.0.1.1"));
    let plan = reconcile_service(&mut simulation);
    assert_eq!(plan.actions.len(), 1);
    assert!(decide("endpointslice-controller", &simulation, &key("web")).actions.is_empty());
}

#[test]
fn conditions_of_endpoints_follow_their_pods() {
    for (change, publish, expected) in [
        (json!({}), false, [true, true, false]),
        (json!({"status": {"conditions": []}}), false, [false, false, false]),
        (
            json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["x"]}}),
            false,
            [false, true, true],
        ),
        (json!({"status": {"conditions": []}}), true, [true, false, false]),
    ] {
        let mut one = served("p", "10.0.0.1");
        merge(&mut one, &change);
        let wish = service(&json!({"spec": {"publishNotReadyAddresses": publish}}));
        let mut simulation = crate::simulation(start(), [one, node("m1"), wish]);
        reconcile_service(&mut simulation);
        let conditions = slices(&simulation)[0].endpoints.as_ref().unwrap()[0].conditions.clone().unwrap();
        let got = [conditions.ready, conditions.serving, conditions.terminating].map(|c| c == Some(true));
        assert_eq!(got, expected, "{change}");
    }
}

#[test]
fn a_service_without_endpoints_has_one_empty_slice() {
    // The pod's node isn't there, so the pod is no endpoint.
    let mut simulation = crate::simulation(start(), [served("p", "10.0.0.1"), service(&json!({}))]);
    let plan = reconcile_service(&mut simulation);
    let [Action::Create { object, .. }] = plan.actions.as_slice() else { panic!("{plan:?}") };
    assert_eq!((&object["endpoints"], &object["ports"]), (&Value::Null, &Value::Null));
    simulation.create(&Kind::of::<k8s_openapi::api::core::v1::Node>(), node("m1"));
    let plan = reconcile_service(&mut simulation);
    assert!(matches!(plan.actions.as_slice(), [Action::Update { .. }]), "the empty slice is filled: {plan:?}");
    simulation.view.remove(&Kind::of::<Pod>(), &key("p"), 1_000_000);
    let plan = reconcile_service(&mut simulation);
    assert!(matches!(plan.actions.as_slice(), [Action::Update { .. }]), "and emptied again: {plan:?}");
    assert!(simulation.view.get::<Service>(&key("web")).is_some());
}

#[test]
fn a_namespace_waits_for_its_pods_and_then_for_finalizers() {
    let held = |kind: &str, name: &str| {
        json!({"apiVersion": "v1", "kind": kind,
            "metadata": {"name": name, "namespace": "gone", "finalizers": ["example.com/hold"]}})
    };
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": "gone", "deletionTimestamp": "2025-12-31T23:00:00Z"}});
    let mut simulation = crate::simulation(start(), [namespace, held("Pod", "p"), held("ConfigMap", "c")]);
    let gone = ObjectKey::cluster("gone");
    let pass = |simulation: &mut Simulation| {
        for _ in 0..3 {
            let plan = decide("namespace-controller", simulation, &gone);
            assert_eq!(simulation.apply(plan), Vec::<String>::new());
        }
    };
    let free = |simulation: &mut Simulation, kind: &Kind, name: &str| {
        let mut object = simulation.view.object(kind, &ObjectKey::new("gone", name)).unwrap().to_value();
        object["metadata"]["finalizers"] = json!([]);
        simulation.write(kind, object);
    };
    let (pods, maps) = (Kind::of::<Pod>(), Kind::of::<k8s_openapi::api::core::v1::ConfigMap>());
    pass(&mut simulation);
    let map = simulation.view.metadata(&maps, &ObjectKey::new("gone", "c")).unwrap();
    assert!(map.deletion_timestamp.is_none(), "pods go first");
    free(&mut simulation, &pods, "p");
    pass(&mut simulation);
    let status = value_of(simulation.view.get::<Namespace>(&gone).unwrap())["status"].take();
    let messages: Vec<&str> =
        status["conditions"].as_array().unwrap().iter().map(|c| c["message"].as_str().unwrap()).collect();
    assert_eq!(
        messages[3..],
        [
            "Some resources are remaining: configmaps. has 1 resource instances",
            "Some content in the namespace has finalizers remaining: example.com/hold in 1 resource instances"
        ]
    );
    free(&mut simulation, &maps, "c");
    pass(&mut simulation);
    assert!(simulation.view.get::<Namespace>(&gone).is_none());
}

#[test]
fn an_event_alone_does_not_end_a_namespaces_back_off() {
    let namespace = |finalizers: Value, message: &str| {
        json!({"apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": "gone", "deletionTimestamp": "2025-12-31T23:00:00Z"},
            "spec": {"finalizers": finalizers},
            "status": {"conditions": [{"type": "NamespaceDeletionContentFailure", "status": "True", "message": message}]}})
    };
    let mut simulation = crate::simulation(start(), []);
    let controller = CONTROLLERS.iter().find(|controller| controller.name == "namespace-controller").unwrap();
    let mut woken = |namespace: Value| {
        let namespace = decode::<Namespace>(&namespace.to_string()).unwrap();
        let change = simulation.view.put(&Kind::of::<Namespace>(), namespace).unwrap();
        controller.inputs.iter().flat_map(|input| input.keys(&simulation.view, &change)).count()
    };
    assert_eq!(woken(namespace(json!(["kubernetes"]), "it failed at 10:00")), 1);
    assert_eq!(woken(namespace(json!(["kubernetes"]), "it failed at 10:01")), 0);
    assert_eq!(woken(namespace(json!(["kubernetes", "mine"]), "it failed at 10:01")), 1);
}

#[test]
fn a_pod_whose_removal_broke_off_is_removed() {
    let gone = json!({"metadata": {"deletionTimestamp": "2025-12-31T23:30:00Z", "deletionGracePeriodSeconds": 0},
        "status": {"phase": "Failed"}});
    let mut held = gone.clone();
    held["metadata"]["finalizers"] = json!(["example.dev/hold"]);
    let mut cluster = crate::simulation(start(), []);
    for pod in [pod("marked", &gone), pod("held", &held)] {
        // The simulation deletes objects without finalizers at once.
        cluster.view.put(&Kind::of::<Pod>(), machinery_client::object::decode::<Pod>(&pod.to_string()).unwrap());
    }
    cluster.now = start().saturating_add(std::time::Duration::from_secs(40)).unwrap();
    let plan = |name| decide("pod-garbage-collector-controller", &cluster, &key(name));
    assert_eq!(deleted(&plan("marked")), ["marked"], "its node is gone, and nothing holds it");
    assert_eq!(deleted(&plan("held")), [""; 0], "only its finalizer is left");
}
