//! Projects a [`PodState`] to a pod's status, and recalls a state from the status of an earlier run. Pure.

use std::net::IpAddr;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting, ContainerStatus,
    HostIP, Pod, PodCondition, PodIP, PodStatus, ResourceRequirements, VolumeMountStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::{Map, Value, json};

use super::state::{
    Class, ContainerMachine, ContainerRun, ContainerStage, Exit, LifecyclePolicy, PodState, Stage, TerminalReason,
    WaitReason,
};
use crate::spec::containers;
use crate::volume::is_read_only;

/// The conditions of a resize, which are removed at its end.
const RESIZES: [&str; 2] = [super::resize::PENDING, super::resize::IN_PROGRESS];

mod conditions;
mod recall;

pub use recall::recall;

/// The node's part of a status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// The node's address.
    pub host_ip: IpAddr,
    /// The pod's address.
    pub pod_ip: Option<IpAddr>,
}

/// Projects the whole status. `previous` are the pod's current conditions: they supply transition times and readiness gates.
#[must_use]
pub fn project(
    state: &PodState,
    pod: &Pod,
    rules: &LifecyclePolicy,
    facts: &Facts,
    previous: &[PodCondition],
    now: Timestamp,
) -> PodStatus {
    // As upstream: reason and message appear with the final phase, not while containers may still run.
    let terminal_reason = state
        .terminal_reason()
        .cloned()
        .filter(|_| state.succeeded().is_some())
        .unwrap_or(TerminalReason { reason: None, message: None, rejected: false });
    let pod_ip = facts.pod_ip.filter(|_| !matches!(state.stage(), Stage::Refused { .. })).map(|ip| ip.to_string());
    let (mut init, mut own, mut ephemeral) = (Vec::new(), Vec::new(), Vec::new());
    for (index, (class, container)) in containers::each(&containers::spec(pod)).enumerate() {
        let status = container_status(state, pod, index, &container);
        match class {
            Class::Init | Class::Sidecar => init.push((class, status)),
            Class::Main => own.push(status),
            Class::Ephemeral => ephemeral.push(status),
        }
    }
    let begun = |machine: &ContainerMachine| {
        let ran = machine.attempt.is_some() && (!machine.hook_pending() || machine.exit.is_some());
        machine.class == Class::Main && machine.stage != ContainerStage::Idle && ran
    };
    let phase = match state.succeeded() {
        Some(true) => "Succeeded",
        Some(false) => "Failed",
        None => {
            let begun = state.machines().iter().any(begun);
            // Containers that run again after a node restart: an earlier exit doesn't count as initialized.
            let initializing =
                !begun && state.machines().iter().any(|machine| machine.class == Class::Init && !machine.passed);
            if initializing { "Pending" } else { conditions::phase(&init, &own, begun) }
        }
    };
    // As upstream, for a stable order.
    [&mut own, &mut ephemeral].into_iter().for_each(|list| list.sort_by(|a, b| a.name.cmp(&b.name)));
    let listed = |list: Vec<ContainerStatus>| Some(list).filter(|list| !terminal_reason.rejected && !list.is_empty());
    PodStatus {
        phase: Some(phase.into()),
        reason: terminal_reason.reason.map(Into::into),
        message: terminal_reason.message.clone(),
        conditions: Some(conditions::conditions(state, pod, rules, previous, now)),
        host_ip: Some(facts.host_ip.to_string()),
        host_ips: Some(vec![HostIP { ip: facts.host_ip.to_string() }]),
        pod_ips: pod_ip.clone().map(|ip| vec![PodIP { ip }]),
        pod_ip,
        start_time: Some(Time(whole_seconds(state.began()))),
        observed_generation: pod.metadata.generation,
        init_container_statuses: listed(init.into_iter().map(|(_, status)| status).collect()),
        container_statuses: listed(own),
        ephemeral_container_statuses: listed(ephemeral),
        ..PodStatus::default()
    }
}

fn whole_seconds(at: Timestamp) -> Timestamp {
    Timestamp::from_second(at.as_second()).unwrap_or(at)
}

fn time(at: Timestamp) -> Option<Time> {
    Some(Time(whole_seconds(at)))
}

/// The patch that sets this status: a strategic merge, so that conditions of other writers remain.
#[must_use]
pub fn patch(pod: &Pod, status: &PodStatus) -> Value {
    let mut value = serde_json::to_value(status).unwrap_or_else(|_| json!({}));
    if let Some(fields) = value.as_object_mut() {
        for absent in ["reason", "message"] {
            fields.entry(absent).or_insert(Value::Null);
        }
        for condition in fields.get_mut("conditions").and_then(Value::as_array_mut).into_iter().flatten() {
            if let Some(condition) = condition.as_object_mut() {
                // Conditions merge by type: an absent field would remain.
                for absent in ["reason", "message"] {
                    condition.entry(absent).or_insert(Value::Null);
                }
            }
        }
        remove_conditions(fields, pod);
        replace_list(fields, "podIPs");
        replace_list(fields, "hostIPs");
    }
    json!({"metadata": {"uid": pod.metadata.uid}, "status": value})
}

/// Whether the API has the wanted status: compares the node's own conditions, and the other fields that the node
/// writes.
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
        resources: of.resources.clone(),
        allocated_resources: of.allocated_resources.clone().filter(|amounts| !amounts.is_empty()),
        init_container_statuses: plain(&of.init_container_statuses),
        container_statuses: plain(&of.container_statuses),
        ephemeral_container_statuses: plain(&of.ephemeral_container_statuses),
        ..PodStatus::default()
    };
    let there = api.conditions.as_deref().unwrap_or_default();
    let kept = |of: &PodCondition| wanted.conditions.iter().flatten().any(|own| own.type_ == of.type_);
    let over = there.iter().any(|there| RESIZES.contains(&there.type_.as_str()) && !kept(there));
    !over
        && wanted.conditions.iter().flatten().all(|own| there.iter().any(|there| same(own, there)))
        && own(api) == own(wanted)
}

/// Whether no container of a status runs: another writer may have failed the pod while the node was down.
#[must_use]
pub fn tells_the_end(status: &PodStatus) -> bool {
    let lists = [&status.init_container_statuses, &status.container_statuses, &status.ephemeral_container_statuses];
    let goes_on = |status: &ContainerStatus| status.state.as_ref().is_some_and(|state| state.running.is_some());
    !lists.into_iter().flatten().flatten().any(goes_on)
}

/// Removes empty objects, which a server may drop.
fn plain(statuses: &Option<Vec<ContainerStatus>>) -> Option<Vec<ContainerStatus>> {
    let one = |status: ContainerStatus| ContainerStatus {
        state: status.state.clone().filter(|state| *state != ContainerState::default()),
        last_state: status.last_state.clone().filter(|state| *state != ContainerState::default()),
        resources: status.resources.clone().filter(|resources| *resources != ResourceRequirements::default()),
        ..status
    };
    statuses.clone().filter(|statuses| !statuses.is_empty()).map(|all| all.into_iter().map(one).collect())
}

/// Removes the conditions of a finished resize: a merge by type would keep them.
fn remove_conditions(fields: &mut Map<String, Value>, pod: &Pod) {
    let there = pod.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    let Some(Value::Array(wanted)) = fields.get_mut("conditions") else { return };
    for kind in RESIZES {
        let wants = wanted.iter().any(|condition| condition["type"] == kind);
        if !wants && there.iter().any(|condition| condition.type_ == kind) {
            wanted.push(json!({"$patch": "delete", "type": kind}));
        }
    }
}

/// Both lists merge by address, so that a changed address would be added.
fn replace_list(fields: &mut Map<String, Value>, name: &str) {
    if let Some(Value::Array(list)) = fields.get_mut(name) {
        list.insert(0, json!({"$patch": "replace"}));
    }
}

fn waiting(reason: &str, message: Option<String>) -> ContainerState {
    ContainerState {
        waiting: Some(ContainerStateWaiting { reason: Some(reason.into()), message }),
        ..ContainerState::default()
    }
}

/// The current state of a container, and the last state that it implies.
fn current(
    state: &PodState,
    pod: &Pod,
    index: usize,
    machine: &ContainerMachine,
    name: &str,
) -> (ContainerState, Option<ContainerState>) {
    let running = |running: &ContainerRun| ContainerState {
        running: Some(ContainerStateRunning { started_at: time(running.since) }),
        ..ContainerState::default()
    };
    let exit = || machine.exit.as_ref().map(terminated);
    if let Stage::Refused { message } = state.stage() {
        return (waiting("CreateContainerConfigError", Some(message.clone())), None);
    }
    match &machine.stage {
        ContainerStage::Running(run) | ContainerStage::Stopping { running: run, .. } if !run.hook_pending => {
            (running(run), None)
        }
        ContainerStage::Waiting { wait, .. } => {
            let current = match wait {
                WaitReason::Pull { reason, message, .. } => waiting(reason, Some(message.clone())),
                WaitReason::PullBackOff { message } => waiting("ImagePullBackOff", Some(message.clone())),
                WaitReason::Config { reason, message } => waiting(reason, Some(message.clone())),
                WaitReason::Hook { message } => waiting("PostStartHookError", Some(message.clone())),
                WaitReason::Crash { wait } => waiting("CrashLoopBackOff", Some(crash_message(*wait, pod, name))),
            };
            (current, exit())
        }
        ContainerStage::Idle
            if state.is_restarting_all() && machine.class != Class::Ephemeral && machine.exit.is_some() =>
        {
            let message = "The container is removed because RestartAllContainers in place".to_owned();
            (waiting("RestartingAllContainers", Some(message)), exit())
        }
        ContainerStage::Idle
        | ContainerStage::Pulling
        | ContainerStage::Starting
        | ContainerStage::Running(_)
        | ContainerStage::Stopping { .. }
        | ContainerStage::Done => match exit() {
            Some(exit) => (exit, None),
            None if state.succeeded().is_some() && is_lost(state.machines(), index) => (lost(), None),
            None => {
                let first = containers::spec(pod).init_containers.as_ref().is_none_or(Vec::is_empty);
                (waiting(if first { "ContainerCreating" } else { "PodInitializing" }, None), None)
            }
        },
    }
}

/// As upstream for a container that never started before the pod ended.
fn lost() -> ContainerState {
    ContainerState {
        terminated: Some(ContainerStateTerminated {
            exit_code: 137,
            reason: Some("ContainerStatusUnknown".into()),
            message: Some("The container could not be located when the pod was terminated".into()),
            ..ContainerStateTerminated::default()
        }),
        ..ContainerState::default()
    }
}

/// Whether a container of an ended pod counts as possibly run (upstream's `TerminatePod`): all main containers or none;
/// init containers before one that ran, and always the first.
fn is_lost(machines: &[ContainerMachine], index: usize) -> bool {
    let ran = |machine: &ContainerMachine| machine.attempt.is_some() || machine.exit.is_some();
    let is_init = |machine: &ContainerMachine| matches!(machine.class, Class::Init | Class::Sidecar);
    match machines.get(index).map(|machine| machine.class) {
        Some(Class::Init | Class::Sidecar) => {
            index <= machines.iter().rposition(|machine| is_init(machine) && ran(machine)).unwrap_or(0)
        }
        Some(Class::Main) => {
            machines.iter().any(|machine| machine.class == Class::Main && ran(machine))
                || machines.iter().rfind(|machine| is_init(machine)).is_none_or(|last| last.passed)
        }
        Some(Class::Ephemeral) | None => false,
    }
}

fn container_status(state: &PodState, pod: &Pod, index: usize, container: &Container) -> ContainerStatus {
    let never = ContainerMachine::new(Class::Main);
    let machine = state.machines().get(index).unwrap_or(&never);
    let (current, last) = current(state, pod, index, machine, &container.name);
    let run = match &machine.stage {
        ContainerStage::Running(run) | ContainerStage::Stopping { running: run, .. } if !run.hook_pending => Some(run),
        ContainerStage::Idle
        | ContainerStage::Pulling
        | ContainerStage::Waiting { .. }
        | ContainerStage::Starting
        | ContainerStage::Running(_)
        | ContainerStage::Stopping { .. }
        | ContainerStage::Done => None,
    };
    // Until its `postStart` hook has ended, the status shows the previous run.
    let starts =
        machine.attempt.unwrap_or(0).saturating_sub(u32::from(machine.hook_pending() && machine.exit.is_some()));
    let ended_well = current.terminated.as_ref().is_some_and(|ended| ended.exit_code == 0);
    let ready = match machine.class {
        Class::Init => ended_well,
        Class::Main | Class::Sidecar => machine.ready(state.deleted().is_some()),
        Class::Ephemeral => false,
    };
    let container_id = run.map(|run| run.container_id.clone());
    let resources = container.resources.clone().unwrap_or_default();
    let runs = current.running.is_some();
    ContainerStatus {
        name: container.name.clone(),
        state: Some(current),
        last_state: Some(last.or_else(|| machine.last.as_ref().map(terminated)).unwrap_or_default()),
        ready,
        started: (machine.class != Class::Ephemeral).then(|| run.is_some_and(|run| run.started)),
        restart_count: i32::try_from(starts).unwrap_or(i32::MAX),
        image: container.image.clone().unwrap_or_default(),
        image_id: machine.image_id.clone(),
        container_id: container_id.or_else(|| machine.exit.as_ref().and_then(|exit| exit.container_id.clone())),
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
                    let requested = mount.recursive_read_only.as_deref();
                    requested.filter(|requested| *requested != "IfPossible").unwrap_or("Disabled").to_owned()
                }),
                ..VolumeMountStatus::default()
            }
        })
        .collect();
    (!mounts.is_empty()).then_some(mounts)
}

fn crash_message(wait: std::time::Duration, pod: &Pod, name: &str) -> String {
    format!("back-off {} restarting failed container={name} pod={}", go_duration(wait), pod_text(pod))
}

/// Formats `10s`, `1m20s`, `5m0s`.
fn go_duration(wait: std::time::Duration) -> String {
    let seconds = wait.as_secs();
    if seconds < 60 { format!("{seconds}s") } else { format!("{}m{}s", seconds / 60, seconds % 60) }
}

/// The pod in upstream's messages: `name_namespace(uid)`.
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

#[cfg(test)]
mod tests;
