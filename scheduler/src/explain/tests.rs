//! Explanations agree with decisions.

use std::sync::Arc;

use serde_json::json;

use super::{Preemption, Recording, RecordingError, explain};
use crate::decide::{Decision, decide};
use crate::plugins::Profile;
use crate::pod::PodInfo;
use crate::snapshot::Snapshot;
use crate::tests::{node, pod};

fn cluster() -> Snapshot {
    let mut snapshot = Snapshot::default();
    snapshot.set_node(node("empty", json!({"metadata": {"labels": {"disk": "ssd"}}})));
    snapshot.set_node(node(
        "full",
        json!({"metadata": {"labels": {"disk": "ssd"}}, "status": {"allocatable": {"pods": "1"}}}),
    ));
    snapshot.set_node(node("slow", json!({})));
    snapshot.set_node(node("used", json!({"metadata": {"labels": {"disk": "ssd"}}})));
    let asks = json!({"spec": {"containers": [{"name": "c", "image": "x", "resources": {"requests": {"cpu": "4", "memory": "1Gi"}}}]}});
    snapshot.put_pod(Arc::new(pod("other", asks)), "used", false);
    snapshot.put_pod(Arc::new(pod("last", json!({}))), "full", false);
    snapshot
}

fn picky(priority: i32) -> PodInfo {
    pod("mine", json!({"spec": {"nodeSelector": {"disk": "ssd"}, "priority": priority}}))
}

#[test]
fn each_node_has_its_refusal_or_its_scores() {
    let (snapshot, pod) = (cluster(), picky(0));
    let explanation = explain(&snapshot, &pod, &Profile::default());
    let names: Vec<&str> = explanation.nodes.iter().map(|node| node.name.as_str()).collect();
    assert_eq!(names, ["empty", "used", "full", "slow"]);
    assert_eq!(
        (explanation.node.as_deref(), &explanation.equals, &explanation.message),
        (Some("empty"), &vec![], &None)
    );
    let why = |at: usize| {
        explanation.nodes[at].refused.as_ref().map(|by| (by.plugin, by.reasons.join("|"), by.resolvable)).unwrap()
    };
    assert_eq!(why(2), ("NodeResourcesFit", "Too many pods".into(), true));
    assert_eq!(why(3), ("NodeAffinity", "node(s) didn't match Pod's node affinity/selector".into(), false));
    // The total is the sum that the decision compares.
    let decided = decide(&snapshot, &pod, &Profile::default(), 0, 0);
    assert_eq!(decided, Decision::Node { name: "empty".into(), tried: 4 });
    let best = &explanation.nodes[0];
    assert_eq!(best.total, Some(best.scores.iter().map(|score| score.weighted).sum()));
    assert!(best.scores.iter().zip(&explanation.plugins).all(|(score, plugin)| score.plugin == plugin.name
        && score.weighted == score.normalized * plugin.weight
        && (0..=100).contains(&score.normalized)));
    assert!(explanation.plugins.iter().any(|plugin| plugin.name == "NodeResourcesFit"));
}

#[test]
fn equals_are_named_and_a_nomination_goes_before_scores() {
    let mut snapshot = Snapshot::default();
    for name in ["a", "b"] {
        snapshot.set_node(node(name, json!({})));
    }
    let explanation = explain(&snapshot, &pod("mine", json!({})), &Profile::default());
    assert_eq!((explanation.node.as_deref(), explanation.equals), (Some("a"), vec!["b".to_owned()]));
    let nominated = pod("mine", json!({"status": {"nominatedNodeName": "b"}}));
    let explanation = explain(&snapshot, &nominated, &Profile::default());
    assert_eq!((explanation.node.as_deref(), explanation.nominated, explanation.equals.len()), (Some("b"), true, 0));
}

#[test]
fn a_pod_that_goes_nowhere_has_the_decisions_message() {
    let mut snapshot = cluster();
    for name in ["empty", "used"] {
        snapshot.remove_node(name);
    }
    let explanation = explain(&snapshot, &picky(1), &Profile::default());
    let Decision::Unschedulable { message, .. } = decide(&snapshot, &picky(1), &Profile::default(), 0, 0) else {
        panic!()
    };
    assert_eq!(explanation.message, Some(message));
    assert_eq!(explanation.preemption, Some(Preemption { node: "full".into(), victims: vec!["default/last".into()] }));
    assert_eq!((explanation.node, explanation.plugins.len()), (None, 0));
    let gated = pod("mine", json!({"spec": {"schedulingGates": [{"name": "g"}]}}));
    assert!(explain(&snapshot, &gated, &Profile::default()).gated);
    let none = explain(&Snapshot::default(), &gated, &Profile::default());
    assert_eq!(none.message.as_deref(), Some("no nodes available to schedule pods"));
}

#[test]
fn a_recording_replays_with_the_pod_as_if_it_had_no_node() {
    let file = json!({
        "kind": "SchedulingRecord", "form": 1,
        "pod": {"metadata": {"name": "mine", "namespace": "default", "uid": "m"},
            "spec": {"schedulerName": "packs", "nodeName": "b", "containers": [{"name": "c", "env": [{"name": "KEY", "value": "secret"}]}]}},
        "pods": [{"metadata": {"name": "mine", "namespace": "default", "uid": "m"}, "spec": {"nodeName": "b"}}],
        "nodes": [{"metadata": {"name": "a"}, "status": {"allocatable": {"cpu": "1", "memory": "1Gi", "pods": "1"}}},
            {"metadata": {"name": "b"}, "status": {"allocatable": {"cpu": "1", "memory": "1Gi", "pods": "1"}}}],
        "configuration": {"apiVersion": "kubescheduler.config.k8s.io/v1", "kind": "KubeSchedulerConfiguration",
            "extenders": [{"urlPrefix": "http://127.0.0.1:9", "filterVerb": "f"}, {"urlPrefix": "http://127.0.0.1:9/b", "bindVerb": "b"}],
            "profiles": [{"schedulerName": "packs", "plugins": {"score": {"disabled": [{"name": "*"}], "enabled": [{"name": "NodeResourcesFit", "weight": 7}]}, "preScore": {"disabled": [{"name": "*"}], "enabled": [{"name": "NodeResourcesFit"}]}}}]},
    });
    let recording = Recording::parse(&file.to_string()).unwrap();
    let explanation = recording.explain().unwrap();
    assert_eq!(
        (explanation.profile.as_str(), explanation.node.as_deref(), &explanation.equals[..]),
        ("packs", Some("a"), &["b".to_owned()][..])
    );
    assert_eq!(
        explanation.plugins.iter().map(|plugin| (plugin.name, plugin.weight)).collect::<Vec<_>>(),
        [("NodeResourcesFit", 7)]
    );
    assert_eq!(explanation.not_queried, ["http://127.0.0.1:9"]);
    let written = serde_json::to_string(&recording).unwrap();
    assert!(!written.contains("secret"), "what scheduling doesn't read isn't kept: {written}");
    assert_eq!(Recording::parse(&written).unwrap().explain().unwrap(), explanation);
}

#[test]
fn invalid_recordings_are_rejected_with_a_reason() {
    let why = |file: serde_json::Value| match Recording::parse(&file.to_string()).and_then(|r| r.explain()) {
        Err(why) => why,
        Ok(explanation) => panic!("{explanation:?}"),
    };
    let with = |more: serde_json::Value| {
        let mut file = json!({"kind": "SchedulingRecord", "form": 1, "pod": {"metadata": {"name": "p"}, "spec": {"schedulerName": "default-scheduler"}}});
        file.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        file
    };
    assert!(matches!(why(json!({"kind": "Pod"})), RecordingError::Unread(why) if why.contains("its kind is \"Pod\"")));
    assert_eq!(why(with(json!({"form": 9, "new": 1}))), RecordingError::Form(9));
    assert!(matches!(why(with(json!({"new": 1}))), RecordingError::Unread(why) if why.contains("unknown field `new`")));
    assert_eq!(why(with(json!({"nodes": [{"metadata": {}}]}))).to_string(), "nodes[0].metadata.name: Required value");
    assert_eq!(why(with(json!({"pod": {}}))).to_string(), "pod.metadata.name: Required value");
    let other = with(json!({"pod": {"metadata": {"name": "p"}, "spec": {"schedulerName": "x"}}}));
    assert_eq!(
        why(other).to_string(),
        "no profile decides for the schedulerName \"x\" of the pod; there are: default-scheduler"
    );
    assert_eq!(why(with(json!({"configuration": {}}))).to_string(), "configuration: Object 'Kind' is missing");
}
