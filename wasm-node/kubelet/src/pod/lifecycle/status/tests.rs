//! Examples of pod statuses: phases, conditions, patches, and recalled states.

use super::*;
use crate::pod::lifecycle::settings::rules;
use crate::pod::lifecycle::state::{Admission, ContainerEvent, Event, ProbeKind, ProbeResult};

fn pod(status: Value) -> Pod {
    serde_json::from_value(json!({
        "metadata": {"name": "p", "namespace": "n", "uid": "u", "generation": 3},
        "spec": {"containers": [{"name": "c", "image": "i"}], "readinessGates": []},
        "status": status,
    }))
    .unwrap()
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

#[test]
fn a_running_pod_is_ready_and_its_patch_replaces_merged_lists() {
    let pod = pod(json!({}));
    let (mut state, _) = PodState::new(at(1), &rules(&pod)).begin(&rules(&pod), Admission::default(), at(1));
    let facts = Facts { host_ip: [127, 0, 0, 1].into(), pod_ip: Some([127, 66, 0, 1].into()) };
    let before = project(&state, &pod, &rules(&pod), &facts, &[], at(1));
    assert_eq!(before.phase.as_deref(), Some("Pending"));
    for event in [
        Event::Mounted,
        Event::Container(0, ContainerEvent::Pulled { preparation: 1, image_id: "id".into(), message: String::new() }),
        Event::Container(0, ContainerEvent::Started { container_id: "wasmtime://1".into() }),
    ] {
        state = state.step(&rules(&pod), event, at(5)).0;
    }
    let status = project(&state, &pod, &rules(&pod), &facts, &before.conditions.unwrap(), at(9));
    let since = |kind: &str| {
        let condition = status.conditions.iter().flatten().find(|c| c.type_ == kind).unwrap();
        (condition.status.clone(), condition.last_transition_time.as_ref().unwrap().0.as_second())
    };
    assert_eq!(since("Ready"), ("True".to_owned(), 9));
    assert_eq!(since("Initialized"), ("True".to_owned(), 1), "it holds since before");
    let patch = patch(&pod, &status);
    assert_eq!(patch["metadata"]["uid"], "u");
    assert_eq!(patch["status"]["podIPs"], json!([{"$patch": "replace"}, {"ip": "127.66.0.1"}]));
    assert!(patch["status"]["conditions"][2]["reason"].is_null() && patch["status"]["reason"].is_null());
    assert_eq!(patch["status"]["containerStatuses"][0]["imageID"], "id");
    assert_eq!(patch["status"]["observedGeneration"], 3);
}

/// As upstream's status manager, which delays the whole final status while containers may still run.
#[test]
fn an_evicted_pod_shows_its_reason_with_its_final_phase() {
    let pod = pod(json!({}));
    let facts = Facts { host_ip: [127, 0, 0, 1].into(), pod_ip: None };
    let mut state = PodState::new(at(1), &rules(&pod)).begin(&rules(&pod), Admission::default(), at(1)).0;
    let mut shown = Vec::new();
    for event in [
        Event::Mounted,
        Event::Container(0, ContainerEvent::Pulled { preparation: 1, image_id: "id".into(), message: String::new() }),
        Event::Container(0, ContainerEvent::Started { container_id: "wasmtime://1".into() }),
        Event::Evicted("no room".into()),
        Event::Container(0, ContainerEvent::Exited { attempt: 0, code: 137, reason: "Error".into(), message: None }),
    ] {
        state = state.step(&rules(&pod), event, at(5)).0;
        let status = project(&state, &pod, &rules(&pod), &facts, &[], at(6));
        let disrupted = status.conditions.iter().flatten().any(|c| c.type_ == "DisruptionTarget");
        shown.push((status.phase.unwrap(), status.reason, status.message, disrupted));
    }
    let running = ("Running".to_owned(), None, None, false);
    assert_eq!(shown[2..4], [running.clone(), running]);
    assert_eq!(shown[4], ("Failed".to_owned(), Some("Evicted".to_owned()), Some("no room".to_owned()), true));
}

#[test]
fn foreign_writes_to_the_nodes_fields_are_detected() {
    let pod = pod(json!({}));
    let state = PodState::new(at(1), &rules(&pod)).begin(&rules(&pod), Admission::default(), at(1)).0;
    let facts = Facts { host_ip: [127, 0, 0, 1].into(), pod_ip: None };
    let wanted = project(&state, &pod, &rules(&pod), &facts, &[], at(1));
    // The status through JSON, with fields and conditions of other writers.
    let mut there: Value = serde_json::to_value(&wanted).unwrap();
    there["qosClass"] = json!("BestEffort");
    there["nominatedNodeName"] = json!("n");
    let others = json!({"type": "example.com/gate", "status": "False"});
    there["conditions"].as_array_mut().unwrap().push(others);
    let shows = |there: &Value| shows(&serde_json::from_value(there.clone()).unwrap(), &wanted);
    assert!(shows(&there));
    let mut dropped = there.clone();
    dropped["containerStatuses"][0].as_object_mut().unwrap().remove("lastState");
    assert!(shows(&dropped));
    let mut moved = there.clone();
    moved["conditions"][2]["lastTransitionTime"] = json!("2026-01-01T00:00:00Z");
    assert!(shows(&moved), "times alone are nobody's concern, as upstream");
    for (at, value) in [
        ("/conditions/2/status", json!("True")),
        ("/conditions/2/reason", json!("Other")),
        ("/phase", json!("Running")),
        ("/message", json!("other")),
        ("/containerStatuses/0/ready", json!(true)),
        ("/containerStatuses", json!([])),
    ] {
        let mut changed = there.clone();
        match changed.pointer_mut(at) {
            Some(field) => *field = value,
            None => changed[at.trim_start_matches('/')] = value,
        }
        assert!(!shows(&changed), "{at}");
    }
}

#[test]
fn an_earlier_run_is_recalled() {
    let container = |state: Value, last: Value| {
        json!({"phase": "Running", "startTime": "1970-01-01T00:00:07Z", "containerStatuses": [{
            "name": "c", "image": "i", "imageID": "id", "ready": true, "restartCount": 4, "state": state, "lastState": last,
        }]})
    };
    let recall = |pod: &Pod, now| recall(pod.status.as_ref(), &rules(pod), now);
    let running = recall(&pod(container(json!({"running": {"startedAt": "1970-01-01T00:00:08Z"}}), json!({}))), at(20));
    assert_eq!((running.machines()[0].attempt, running.is_resumed(), running.began()), (Some(4), true, at(7)));
    assert_eq!(running.machines()[0].exit.as_ref().map(|exit| (exit.code, exit.finished)), Some((255, at(20))));
    let crashed = json!({"terminated": {"exitCode": 3, "finishedAt": "1970-01-01T00:00:09Z"}});
    let waiting = recall(&pod(container(json!({"waiting": {"reason": "CrashLoopBackOff"}}), crashed)), at(20));
    assert_eq!(waiting.machines()[0].exit.as_ref().map(|exit| (exit.code, exit.finished)), Some((3, at(9))));
    let fresh = recall(&pod(container(json!({"waiting": {"reason": "ContainerCreating"}}), json!({}))), at(20));
    assert_eq!((fresh.machines()[0].attempt, fresh.began()), (None, at(7)));
    assert_eq!(recall(&pod(json!({"phase": "Failed"})), at(1)).succeeded(), Some(false));
}

/// The status of a pod with a sidecar, an init container and a main one, after some events.
fn several(restart: &str, events: Vec<(usize, ContainerEvent)>) -> PodStatus {
    let pod: Pod = serde_json::from_value(json!({
        "metadata": {"name": "p", "namespace": "n", "uid": "u"},
        "spec": {
            "restartPolicy": restart,
            "initContainers": [{"name": "s", "restartPolicy": "Always", "startupProbe": {}}, {"name": "i"}],
            "containers": [{"name": "c", "readinessProbe": {}}],
        },
    }))
    .unwrap();
    let rules = rules(&pod);
    let state =
        PodState::new(at(1), &rules).begin(&rules, Admission::default(), at(1)).0.step(&rules, Event::Mounted, at(1)).0;
    let step = |state: PodState, (index, event)| state.step(&rules, Event::Container(index, event), at(2)).0;
    let state = events.into_iter().fold(state, step);
    project(&state, &pod, &rules, &Facts { host_ip: [127, 0, 0, 1].into(), pod_ip: None }, &[], at(3))
}

fn starts(index: usize) -> [(usize, ContainerEvent); 2] {
    let pulled = ContainerEvent::Pulled { preparation: 1, image_id: "id".into(), message: String::new() };
    [(index, pulled), (index, ContainerEvent::Started { container_id: "x://1".into() })]
}

fn ends(index: usize, code: i32) -> (usize, ContainerEvent) {
    (index, ContainerEvent::Exited { attempt: 0, code, reason: "Error".into(), message: None })
}

fn passes(index: usize, kind: ProbeKind) -> (usize, ContainerEvent) {
    (index, ContainerEvent::Probed { attempt: 0, kind, result: ProbeResult::Passed })
}

/// The phase; status, reason and message of Initialized and Ready; the state's reason of each container.
fn summary(status: &PodStatus) -> Vec<String> {
    let mut lines = vec![status.phase.clone().unwrap_or_default()];
    for kind in ["Initialized", "Ready"] {
        let of = status.conditions.iter().flatten().find(|condition| condition.type_ == kind).unwrap();
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        lines.push(format!("{} {} {}", of.status, text(&of.reason), text(&of.message)).trim_end().to_owned());
    }
    let lists = [&status.init_container_statuses, &status.container_statuses];
    for status in lists.into_iter().flatten().flatten() {
        let state = status.state.clone().unwrap();
        let reason = state.waiting.and_then(|waiting| waiting.reason);
        let reason = reason.or(state.terminated.and_then(|ended| ended.reason)).unwrap_or_else(|| "runs".into());
        lines.push(format!("{} {reason}{}", status.name, if status.ready { " ready" } else { "" }));
    }
    lines
}

#[test]
fn init_containers_and_sidecars_are_reported_as_upstream_does() {
    let mut events = Vec::new();
    let unready = "False ContainersNotReady containers with unready status: [s c]";
    let lacks = |names: &str| format!("False ContainersNotInitialized containers with incomplete status: [{names}]");
    let wait = "PodInitializing";
    let lines = |events: &[(usize, ContainerEvent)]| summary(&several("Always", events.to_vec()));
    let waits = format!("c {wait}");
    assert_eq!(lines(&events), ["Pending", &lacks("s i"), unready, &format!("s {wait}"), &format!("i {wait}"), &waits]);
    events.extend(starts(0));
    assert_eq!(lines(&events), ["Pending", &lacks("s i"), unready, "s runs", &format!("i {wait}"), &waits]);
    events.push(passes(0, ProbeKind::Startup));
    let sidecar_ready = unready.replace("s c", "c");
    assert_eq!(lines(&events), ["Pending", &lacks("i"), &sidecar_ready, "s runs ready", &format!("i {wait}"), &waits]);
    events.extend(starts(1));
    events.push(ends(1, 3));
    let failed = [&events[..], &[]].concat();
    // The first restart is immediate, and the status shows the exit meanwhile.
    assert_eq!(lines(&failed), ["Pending", &lacks("i"), &sidecar_ready, "s runs ready", "i Error", &waits]);
    events.pop();
    events.push(ends(1, 0));
    let done = "i Error ready";
    assert_eq!(lines(&events), ["Pending", "True", &sidecar_ready, "s runs ready", done, &waits]);
    events.extend(starts(2));
    assert_eq!(lines(&events), ["Running", "True", &sidecar_ready, "s runs ready", done, "c runs"]);
    events.push(passes(2, ProbeKind::Readiness));
    assert_eq!(lines(&events), ["Running", "True", "True", "s runs ready", done, "c runs ready"]);
    events.push(ends(0, 1));
    let down = unready.replace("s c", "s");
    assert_eq!(
        lines(&events),
        ["Running", "True", &down, "s Error", done, "c runs ready"],
        "it is initialized for good"
    );
}

#[test]
fn a_failed_init_container_fails_the_pod_that_never_restarts() {
    let begin = [starts(0).to_vec(), vec![passes(0, ProbeKind::Startup)], starts(1).to_vec()].concat();
    let failing = [&begin[..], &[ends(1, 3)]].concat();
    let wait = "c PodInitializing";
    let lines = |events: &[(usize, ContainerEvent)]| summary(&several("Never", events.to_vec()));
    let status = lines(&failing);
    assert_eq!((status[0].as_str(), &status[3..]), ("Pending", &["s runs".into(), "i Error".into(), wait.into()][..]));
    let status = lines(&[&failing[..], &[ends(0, 143)]].concat());
    assert_eq!(status[0], "Failed");
    assert_eq!(status[1], "False ContainersNotInitialized containers with incomplete status: [i]");
    assert_eq!((status[2].as_str(), status[5].as_str()), ("False PodFailed", wait), "it was never to begin");
}
