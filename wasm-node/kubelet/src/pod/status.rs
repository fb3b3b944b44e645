//! A pod's status as a projection of its [`State`], and the state that an earlier run's status tells of. Pure.

use std::net::IpAddr;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting, ContainerStatus,
    HostIP, Pod, PodCondition, PodIP, PodStatus, ResourceRequirements, VolumeMountStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::{Map, Value, json};

use super::state::{Cell, CellStage, Exit, Running, Stage, State, TerminalReason, Wait};
use crate::volume::is_read_only;

/// What the node adds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// The node's address.
    pub host_ip: IpAddr,
    /// The pod's address.
    pub pod_ip: Option<IpAddr>,
}

/// `Pending`, `Running`, `Succeeded`, `Failed`.
#[must_use]
pub fn phase(state: &State) -> &'static str {
    match state.succeeded {
        Some(true) => "Succeeded",
        Some(false) => "Failed",
        None if state.ran() => "Running",
        None => "Pending",
    }
}

/// The whole status. `known` are the conditions that the pod has, for their times and for those of others.
#[must_use]
pub fn project(state: &State, pod: &Pod, facts: &Facts, known: &[PodCondition], now: Timestamp) -> PodStatus {
    let spec = pod.spec.clone().unwrap_or_default();
    let terminal_reason =
        state.terminal_reason.clone().unwrap_or(TerminalReason { reason: None, message: None, rejected: false });
    let pod_ip = facts.pod_ip.filter(|_| !matches!(state.stage, Stage::Refused { .. })).map(|ip| ip.to_string());
    let containers =
        spec.containers.iter().enumerate().map(|(index, of)| container_status(state, pod, index, of)).collect();
    PodStatus {
        phase: Some(phase(state).into()),
        reason: terminal_reason.reason.map(Into::into),
        message: terminal_reason.message.clone(),
        conditions: Some(conditions(state, pod, known, now)),
        host_ip: Some(facts.host_ip.to_string()),
        host_ips: Some(vec![HostIP { ip: facts.host_ip.to_string() }]),
        pod_ips: pod_ip.clone().map(|ip| vec![PodIP { ip }]),
        pod_ip,
        start_time: Some(Time(whole_seconds(state.began))),
        observed_generation: pod.metadata.generation,
        container_statuses: Some(containers).filter(|_| !terminal_reason.rejected),
        ..PodStatus::default()
    }
}

fn whole_seconds(at: Timestamp) -> Timestamp {
    Timestamp::from_second(at.as_second()).unwrap_or(at)
}

fn time(at: Timestamp) -> Option<Time> {
    Some(Time(whole_seconds(at)))
}

/// The patch that makes the API's status this one: strategic, so that the conditions of others stay.
#[must_use]
pub fn patch(pod: &Pod, status: &PodStatus) -> Value {
    let mut value = serde_json::to_value(status).unwrap_or_else(|_| json!({}));
    if let Some(fields) = value.as_object_mut() {
        for absent in ["reason", "message"] {
            fields.entry(absent).or_insert(Value::Null);
        }
        for condition in fields.get_mut("conditions").and_then(Value::as_array_mut).into_iter().flatten() {
            if let Some(condition) = condition.as_object_mut() {
                // Merged by type: what isn't said stays.
                for absent in ["reason", "message"] {
                    condition.entry(absent).or_insert(Value::Null);
                }
            }
        }
        replace_list(fields, "podIPs");
        replace_list(fields, "hostIPs");
    }
    json!({"metadata": {"uid": pod.metadata.uid}, "status": value})
}

/// Whether the API shows what the node wants: of the conditions those that are the node's own, of the other fields those
/// that it writes at all.
#[must_use]
pub fn shows(api: &PodStatus, wanted: &PodStatus) -> bool {
    let same = |own: &PodCondition, there: &PodCondition| {
        (&own.type_, &own.status, &own.reason, &own.message, own.observed_generation)
            == (&there.type_, &there.status, &there.reason, &there.message, there.observed_generation)
    };
    let own = |of: &PodStatus| PodStatus {
        phase: of.phase.clone(),
        reason: of.reason.clone().filter(|reason| !reason.is_empty()),
        message: of.message.clone().filter(|message| !message.is_empty()),
        host_ip: of.host_ip.clone(),
        host_ips: of.host_ips.clone(),
        pod_ip: of.pod_ip.clone(),
        pod_ips: of.pod_ips.clone(),
        start_time: of.start_time.clone(),
        observed_generation: of.observed_generation,
        container_statuses: of.container_statuses.clone().filter(|statuses| !statuses.is_empty()).map(plain),
        ..PodStatus::default()
    };
    let there = api.conditions.as_deref().unwrap_or_default();
    wanted.conditions.iter().flatten().all(|own| there.iter().any(|there| same(own, there))) && own(api) == own(wanted)
}

/// Without the empty objects that a server may drop.
fn plain(statuses: Vec<ContainerStatus>) -> Vec<ContainerStatus> {
    let one = |status: ContainerStatus| ContainerStatus {
        state: status.state.clone().filter(|state| *state != ContainerState::default()),
        last_state: status.last_state.clone().filter(|state| *state != ContainerState::default()),
        resources: status.resources.clone().filter(|resources| *resources != ResourceRequirements::default()),
        ..status
    };
    statuses.into_iter().map(one).collect()
}

/// Both lists merge by address, so a changed address would be one more.
fn replace_list(fields: &mut Map<String, Value>, name: &str) {
    if let Some(Value::Array(list)) = fields.get_mut(name) {
        list.insert(0, json!({"$patch": "replace"}));
    }
}

fn container_status(state: &State, pod: &Pod, index: usize, container: &Container) -> ContainerStatus {
    let never = Cell::default();
    let cell = state.cells.get(index).unwrap_or(&never);
    let waiting = |reason: &str, message: Option<String>| ContainerState {
        waiting: Some(ContainerStateWaiting { reason: Some(reason.into()), message }),
        ..ContainerState::default()
    };
    let running = |running: &Running| ContainerState {
        running: Some(ContainerStateRunning { started_at: time(running.since) }),
        ..ContainerState::default()
    };
    let mut last = cell.last.as_ref().map(terminated);
    let mut container_id = None;
    let mut started = false;
    let refused = match &state.stage {
        Stage::Refused { message } => Some(waiting("CreateContainerConfigError", Some(message.clone()))),
        _ => None,
    };
    let current = match &cell.stage {
        _ if refused.is_some() => refused.unwrap_or_default(),
        CellStage::Running(run) | CellStage::Stopping { running: run, .. } => {
            container_id = Some(run.container_id.clone());
            started = run.started;
            running(run)
        }
        CellStage::Waiting { wait, .. } => {
            last = cell.exit.as_ref().map(terminated).or(last);
            match wait {
                Wait::Pull { reason, message } => waiting(reason, Some(message.clone())),
                Wait::PullBackOff { message } => waiting("ImagePullBackOff", Some(message.clone())),
                Wait::Config { reason, message } => waiting(reason, Some(message.clone())),
                Wait::Crash { wait } => waiting("CrashLoopBackOff", Some(crash_message(*wait, pod, container))),
            }
        }
        _ => match &cell.exit {
            Some(exit) => terminated(exit),
            None if state.succeeded.is_some() => ContainerState {
                // As upstream for a pod that ends with a container that never began.
                terminated: Some(ContainerStateTerminated {
                    exit_code: 137,
                    reason: Some("ContainerStatusUnknown".into()),
                    message: Some("The container could not be located when the pod was terminated".into()),
                    ..ContainerStateTerminated::default()
                }),
                ..ContainerState::default()
            },
            None => waiting("ContainerCreating", None),
        },
    };
    if container_id.is_none() {
        container_id = cell.exit.as_ref().and_then(|exit| exit.container_id.clone());
    }
    let resources = container.resources.clone().unwrap_or_default();
    let runs = current.running.is_some();
    ContainerStatus {
        name: container.name.clone(),
        state: Some(current),
        last_state: Some(last.unwrap_or_default()),
        ready: cell.ready(state.deleted.is_some()),
        started: Some(started),
        restart_count: i32::try_from(cell.attempt.unwrap_or(0)).unwrap_or(i32::MAX),
        image: container.image.clone().unwrap_or_default(),
        image_id: cell.image_id.clone(),
        container_id,
        allocated_resources: resources.requests.clone().filter(|requests| runs && !requests.is_empty()),
        resources: runs.then_some(ResourceRequirements { claims: None, ..resources }),
        volume_mounts: mounts(pod, container),
        ..ContainerStatus::default()
    }
}

fn mounts(pod: &Pod, container: &Container) -> Option<Vec<VolumeMountStatus>> {
    let volumes = pod.spec.as_ref().and_then(|spec| spec.volumes.as_deref()).unwrap_or_default();
    let mounts: Vec<VolumeMountStatus> = container
        .volume_mounts
        .iter()
        .flatten()
        .map(|mount| {
            let config = volumes.iter().any(|volume| volume.name == mount.name && is_read_only(volume));
            let read_only = mount.read_only == Some(true) || config;
            VolumeMountStatus {
                name: mount.name.clone(),
                mount_path: mount.mount_path.clone(),
                read_only: read_only.then_some(true),
                recursive_read_only: read_only.then(|| {
                    let asked = mount.recursive_read_only.as_deref();
                    asked.filter(|asked| *asked != "IfPossible").unwrap_or("Disabled").to_owned()
                }),
                ..VolumeMountStatus::default()
            }
        })
        .collect();
    (!mounts.is_empty()).then_some(mounts)
}

fn crash_message(wait: std::time::Duration, pod: &Pod, container: &Container) -> String {
    format!("back-off {} restarting failed container={} pod={}", go_duration(wait), container.name, pod_text(pod))
}

/// `10s`, `1m20s`, `5m0s`.
fn go_duration(wait: std::time::Duration) -> String {
    let seconds = wait.as_secs();
    if seconds < 60 { format!("{seconds}s") } else { format!("{}m{}s", seconds / 60, seconds % 60) }
}

/// `name_namespace(uid)`.
#[must_use]
pub fn pod_text(pod: &Pod) -> String {
    let metadata = &pod.metadata;
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    format!("{}_{}({})", text(&metadata.name), text(&metadata.namespace), text(&metadata.uid))
}

fn terminated(exit: &Exit) -> ContainerState {
    ContainerState {
        terminated: Some(ContainerStateTerminated {
            exit_code: exit.code,
            reason: Some(exit.reason.clone()),
            message: exit.message.clone(),
            started_at: exit.started.and_then(time),
            finished_at: time(exit.finished),
            container_id: exit.container_id.clone(),
            signal: None,
        }),
        ..ContainerState::default()
    }
}

/// One condition's state: status, reason, message.
type Now = (bool, Option<&'static str>, Option<String>);

fn conditions(state: &State, pod: &Pod, known: &[PodCondition], now: Timestamp) -> Vec<PodCondition> {
    let spec = pod.spec.clone().unwrap_or_default();
    let sandbox = state.sandbox && !matches!(state.stage, Stage::Ended | Stage::Refused { .. });
    let initialized: Now = (true, (state.succeeded == Some(true)).then_some("PodCompleted"), None);
    let unready: Now = match state.succeeded {
        Some(true) => (false, Some("PodCompleted"), None),
        Some(false) => (false, Some("PodFailed"), None),
        None => {
            let names: Vec<&str> = spec.containers.iter().map(|container| container.name.as_str()).collect();
            let message = format!("containers with unready status: [{}]", names.join(" "));
            (false, Some("ContainersNotReady"), Some(message))
        }
    };
    let containers: Now = if state.ready() { (true, None, None) } else { unready };
    let ready = if containers.0 { gates(&spec.readiness_gates.unwrap_or_default(), known) } else { containers.clone() };
    let mut rows = vec![
        ("PodReadyToStartContainers", (sandbox, None, None)),
        ("Initialized", initialized),
        ("Ready", ready),
        ("ContainersReady", containers),
        ("PodScheduled", (true, None, None)),
    ];
    if let Some(TerminalReason { reason: Some("Evicted"), message, .. }) = &state.terminal_reason {
        rows.push(("DisruptionTarget", (true, Some("TerminationByKubelet"), message.clone())));
    }
    rows.into_iter()
        .map(|(kind, (status, reason, message))| {
            let status = if status { "True" } else { "False" };
            let before = known.iter().find(|condition| condition.type_ == kind);
            let since = before.filter(|before| before.status == status).and_then(|b| b.last_transition_time.clone());
            PodCondition {
                type_: kind.into(),
                status: status.into(),
                reason: reason.map(Into::into),
                message,
                last_transition_time: since.or_else(|| time(now)),
                last_probe_time: None,
                observed_generation: pod.metadata.generation,
            }
        })
        .collect()
}

fn gates(gates: &[k8s_openapi::api::core::v1::PodReadinessGate], known: &[PodCondition]) -> Now {
    let mut messages = Vec::new();
    for gate in gates {
        let name = &gate.condition_type;
        match known.iter().find(|condition| condition.type_ == *name) {
            None => messages.push(format!("corresponding condition of pod readiness gate {name:?} does not exist.")),
            Some(condition) if condition.status != "True" => messages
                .push(format!("the status of pod readiness gate {name:?} is not \"True\", but {}", condition.status)),
            Some(_) => {}
        }
    }
    if messages.is_empty() {
        (true, None, None)
    } else {
        (false, Some("ReadinessGatesNotReady"), Some(messages.join(", ")))
    }
}

/// The state in which an earlier run of the agent left the pod, as its status tells.
#[must_use]
pub fn recall(pod: &Pod, now: Timestamp) -> State {
    let specs = pod.spec.as_ref().map_or(&[][..], |spec| &spec.containers);
    let Some(status) = &pod.status else { return State::new(now, specs.len()) };
    let began = status.start_time.as_ref().map_or(now, |time| time.0);
    let mut state = State::begun(now, began, specs.len());
    for (index, spec) in specs.iter().enumerate() {
        let container = status.container_statuses.iter().flatten().find(|container| container.name == spec.name);
        if let Some((container, exit)) = container.and_then(|container| Some((container, left(container, now)?))) {
            let attempt = u32::try_from(container.restart_count).unwrap_or(0);
            state.resume(index, attempt, exit, container.image_id.clone());
        }
    }
    match status.phase.as_deref() {
        Some("Succeeded") => state.succeeded = Some(true),
        Some("Failed") => {
            state.succeeded = Some(false);
            if status.reason.is_some() {
                state.terminal_reason = Some(TerminalReason {
                    reason: status.reason.as_deref().and_then(known_reason),
                    message: status.message.clone(),
                    rejected: false,
                });
            }
        }
        _ => {}
    }
    state
}

fn known_reason(reason: &str) -> Option<&'static str> {
    ["Evicted", "DeadlineExceeded"].into_iter().find(|known| *known == reason)
}

fn left(container: &ContainerStatus, now: Timestamp) -> Option<Exit> {
    let state = container.state.clone().unwrap_or_default();
    if let Some(running) = state.running {
        return Some(Exit {
            code: 255,
            reason: "Unknown".into(),
            message: Some("The node was started again while the container ran".into()),
            started: running.started_at.map(|time| time.0),
            finished: now,
            container_id: container.container_id.clone(),
        });
    }
    let ended = state.terminated.or_else(|| container.last_state.clone()?.terminated)?;
    Some(Exit {
        code: ended.exit_code,
        reason: ended.reason.unwrap_or_default(),
        message: ended.message,
        started: ended.started_at.map(|time| time.0),
        finished: ended.finished_at.map_or(now, |time| time.0),
        container_id: ended.container_id,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::settings::rules;
    use crate::pod::state::{CellEvent, Event};

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
    fn a_running_pod_is_ready_and_its_patch_replaces_what_merging_would_keep() {
        let pod = pod(json!({}));
        let (mut state, _) = State::new(at(1), 1).begin(&rules(&pod), None, at(1));
        let facts = Facts { host_ip: [127, 0, 0, 1].into(), pod_ip: Some([127, 66, 0, 1].into()) };
        let before = project(&state, &pod, &facts, &[], at(1));
        assert_eq!(before.phase.as_deref(), Some("Pending"));
        for event in [
            Event::Mounted,
            Event::Container(0, CellEvent::Pulled { image_id: "id".into(), message: String::new() }),
            Event::Container(0, CellEvent::Started { container_id: "wasmtime://1".into() }),
        ] {
            state = state.step(&rules(&pod), event, at(5)).0;
        }
        let status = project(&state, &pod, &facts, &before.conditions.unwrap(), at(9));
        let since = |kind: &str| {
            let found = status.conditions.iter().flatten().find(|c| c.type_ == kind).unwrap();
            (found.status.clone(), found.last_transition_time.as_ref().unwrap().0.as_second())
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

    #[test]
    fn what_others_write_into_the_nodes_part_is_seen() {
        let pod = pod(json!({}));
        let state = State::new(at(1), 1).begin(&rules(&pod), None, at(1)).0;
        let facts = Facts { host_ip: [127, 0, 0, 1].into(), pod_ip: None };
        let wanted = project(&state, &pod, &facts, &[], at(1));
        // As the API gives it back: through JSON, with fields and conditions of others.
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
        let running =
            recall(&pod(container(json!({"running": {"startedAt": "1970-01-01T00:00:08Z"}}), json!({}))), at(20));
        assert_eq!((running.cells[0].attempt, running.resumed, running.began), (Some(4), true, at(7)));
        assert_eq!(running.cells[0].exit.as_ref().map(|exit| (exit.code, exit.finished)), Some((255, at(20))));
        let crashed = json!({"terminated": {"exitCode": 3, "finishedAt": "1970-01-01T00:00:09Z"}});
        let waiting = recall(&pod(container(json!({"waiting": {"reason": "CrashLoopBackOff"}}), crashed)), at(20));
        assert_eq!(waiting.cells[0].exit.as_ref().map(|exit| (exit.code, exit.finished)), Some((3, at(9))));
        let fresh = recall(&pod(container(json!({"waiting": {"reason": "ContainerCreating"}}), json!({}))), at(20));
        assert_eq!((fresh.cells[0].attempt, fresh.began), (None, at(7)));
        assert_eq!(recall(&pod(json!({"phase": "Failed"})), at(1)).succeeded, Some(false));
    }
}
