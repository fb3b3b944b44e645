//! Explanations of objects and recordings. Broken recordings are rejected.

use bolero::check;
use machinery_client::Kind;
use serde_json::{Value, json};

use super::*;
use crate::CONTROLLERS;
use crate::table_tests::{CLUSTER, objects, start};

/// A recording of an object of the tests' cluster, with the lists and responses that it needs.
fn record(kind: &str, name: &str, controller: Option<&str>) -> Result<Recording, RecordingError> {
    let simulation = crate::simulation(start(), objects(CLUSTER.trim()));
    let kind = find_kind(kind, &of_controllers()).unwrap();
    let list = |kind: &Kind, namespace: &str| -> Vec<Value> {
        let namespace = if kind.namespaced { namespace } else { "" };
        let all = simulation.view.metadata_of(kind, namespace).map(machinery_client::key_of).collect::<Vec<_>>();
        all.iter().map(|key| simulation.view.object(kind, key).unwrap().to_value()).collect()
    };
    let object = list(&kind, "").into_iter().find(|object| object["metadata"]["name"] == name).unwrap();
    let mut recording = Recording::new(start(), &kind, object, controller);
    let inputs = recording.inputs()?;
    inputs.kinds.iter().for_each(|kind| recording.add(kind, list(kind, &inputs.namespace), false));
    if inputs.everything {
        let others = simulation.view.kinds().filter(|kind| !inputs.kinds.contains(kind));
        others.for_each(|kind| recording.add(kind, list(kind, &inputs.namespace), true));
    }
    loop {
        let missing = recording.missing()?;
        if missing.is_empty() {
            return Ok(recording);
        }
        for path in missing {
            let (code, reason, message) = (404, "NotFound".to_owned(), "not found".to_owned());
            recording.respond(&path, Response::Error { code, reason, message });
        }
    }
}

fn explained(kind: &str, name: &str, controller: Option<&str>) -> Explanation {
    record(kind, name, controller).unwrap().explain().unwrap()
}

fn controllers(explanation: &Explanation) -> Vec<&str> {
    explanation.controllers.iter().map(|plan| plan.controller).collect()
}

#[test]
fn an_object_has_the_plans_of_the_controllers_with_its_key() {
    let service = explained("service", "alone", None);
    assert_eq!(controllers(&service), ["endpoints-controller", "endpointslice-controller"]);
    let text = service.to_string();
    assert!(text.starts_with("Service a/alone at 2026-01-01T00:00:00Z\n\nendpoints-controller\n  "), "{text}");
    assert!(text.contains("\n  create EndpointSlice a/alone-*: "), "{text}");
    assert!(text.contains("--controller NAME): ") && text.contains("resourcequota-controller"), "{text}");
    assert_eq!(controllers(&explained("hpa", "web", None)), ["horizontal-pod-autoscaler-controller"]);
    assert!(controllers(&explained("namespace", "gone", None)).contains(&"namespace-controller"));
    let balanced = explained("svc", "balanced", None).to_string();
    assert!(balanced.contains("  note: the pool of addresses is unknown here"), "{balanced}");
}

#[test]
fn a_named_controller_explains_its_keys_of_the_object() {
    let set = explained("pod", "orphan", Some("replicaset-controller"));
    assert!(set.to_string().contains("\nreplicaset-controller, key a/alone\n"), "{set}");
    let collected = explained("cm", "left-behind", Some("garbage-collector"));
    assert!(collected.to_string().contains("delete ConfigMap a/left-behind"), "{collected}");
}

#[test]
fn errors_name_the_next_step() {
    let error =
        |kind: &str, name: &str, controller: Option<&str>| record(kind, name, controller).unwrap_err().to_string();
    let none = error("configmap", "left-behind", None);
    assert!(none.contains("root-ca-certificate-publisher-controller; name one with --controller"), "{none}");
    let unknown = error("deployment", "web", Some("deploy"));
    assert!(
        unknown.contains("no controller \"deploy\"; these watch deployments.apps: deployment-controller"),
        "{unknown}"
    );
    let other = error("deployment", "web", Some("job"));
    assert!(other.contains("job-controller has nothing to decide about Deployment a/web now"), "{other}");
}

#[test]
fn a_recording_has_no_values_of_secrets() {
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "type": "bootstrap.kubernetes.io/token",
        "metadata": {"name": "bootstrap-token-a", "namespace": "kube-system", "managedFields": [{}]},
        "data": {"token-secret": "c2VjcmV0", "expiration": "MjAyNS0xMi0zMVQwMDowMDowMFo="}});
    let kind = find_kind("secret", &of_controllers()).unwrap();
    let recording = Recording::new(start(), &kind, secret, None);
    let text = serde_json::to_string(&recording).unwrap();
    assert!(!text.contains("c2VjcmV0") && !text.contains("managedFields"), "{text}");
    assert!(recording.explain().unwrap().to_string().contains("delete Secret kube-system/bootstrap-token-a"));
}

#[test]
fn controllers_with_unknown_inputs_exist() {
    for (name, _) in UNKNOWN_INPUTS {
        assert!(CONTROLLERS.iter().any(|row| row.name == *name), "{name}");
    }
}

#[test]
fn a_replayed_recording_has_the_same_plans_and_a_broken_one_is_rejected() {
    let recordings = [("deploy", "web"), ("hpa", "web"), ("pvc", "c"), ("quota", "q"), ("node", "m1"), ("ns", "a")]
        .map(|(kind, name)| {
            let recording = record(kind, name, None).unwrap();
            let text = serde_json::to_string(&recording).unwrap();
            assert_eq!(Recording::parse(&text).unwrap().explain().unwrap(), recording.explain().unwrap());
            text
        });
    check!().with_type::<(u8, u16, u16, Vec<u8>)>().for_each(|(which, from, length, instead)| {
        let mut text = recordings[usize::from(*which) % recordings.len()].clone();
        let start = text.floor_char_boundary(usize::from(*from) % text.len());
        let end = text.floor_char_boundary(start + usize::from(*length % 64));
        text.replace_range(start..end, &String::from_utf8_lossy(instead));
        match Recording::parse(&text).and_then(|recording| recording.explain()) {
            Ok(explanation) => assert!(!explanation.to_string().is_empty()),
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    });
}
