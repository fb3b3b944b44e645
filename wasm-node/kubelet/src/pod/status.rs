//! A pod's status as a projection of its [`State`], and the state that an earlier run's status tells of. Pure.

use std::net::IpAddr;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting, ContainerStatus,
    HostIP, Pod, PodCondition, PodIP, PodStatus, ResourceRequirements, VolumeMountStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::{Map, Value, json};

use super::state::{Cell, CellStage, Class, Exit, LifecyclePolicy, Running, Stage, State, TerminalReason, Wait};
use crate::spec::containers;
use crate::volume::is_read_only;

/// Conditions that are there for a while.
const RESIZES: [&str; 2] = [super::resize::PENDING, super::resize::IN_PROGRESS];

mod conditions;
mod recall;

pub use recall::recall;

/// What the node adds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// The node's address.
    pub host_ip: IpAddr,
    /// The pod's address.
    pub pod_ip: Option<IpAddr>,
}

/// The whole status. `known` are the conditions that the pod has, for their times and for those of others.
#[must_use]
pub fn project(
    state: &State,
    pod: &Pod,
    rules: &LifecyclePolicy,
    facts: &Facts,
    known: &[PodCondition],
    now: Timestamp,
) -> PodStatus {
    // As upstream: reason and message come with the final phase, not while containers may still run.
    let terminal_reason = state
        .terminal_reason
        .clone()
        .filter(|_| state.succeeded.is_some())
        .unwrap_or(TerminalReason { reason: None, message: None, rejected: false });
    let pod_ip = facts.pod_ip.filter(|_| !matches!(state.stage, Stage::Refused { .. })).map(|ip| ip.to_string());
    let (mut init, mut own, mut ephemeral) = (Vec::new(), Vec::new(), Vec::new());
    for (index, (class, container)) in containers::each(&containers::spec(pod)).enumerate() {
        let status = container_status(state, pod, index, &container);
        match class {
            Class::Init | Class::Sidecar => init.push((class, status)),
            Class::Main => own.push(status),
            Class::Ephemeral => ephemeral.push(status),
        }
    }
    let begun = |cell: &Cell| {
        let ran = cell.attempt.is_some() && (!cell.hooking() || cell.exit.is_some());
        cell.class == Class::Main && cell.stage != CellStage::Idle && ran
    };
    let phase = match state.succeeded {
        Some(true) => "Succeeded",
        Some(false) => "Failed",
        None => {
            let begun = state.cells.iter().any(begun);
            // Those that run again, after a start of the node: one that has ended before is no less to come than one that never ran.
            let initializing = !begun && state.cells.iter().any(|cell| cell.class == Class::Init && !cell.passed);
            if initializing { "Pending" } else { conditions::phase(&init, &own, begun) }
        }
    };
    // As upstream, whose clients find them in one order.
    [&mut own, &mut ephemeral].into_iter().for_each(|list| list.sort_by(|a, b| a.name.cmp(&b.name)));
    let listed = |list: Vec<ContainerStatus>| Some(list).filter(|list| !terminal_reason.rejected && !list.is_empty());
    PodStatus {
        phase: Some(phase.into()),
        reason: terminal_reason.reason.map(Into::into),
        message: terminal_reason.message.clone(),
        conditions: Some(conditions::conditions(state, pod, rules, known, now)),
        host_ip: Some(facts.host_ip.to_string()),
        host_ips: Some(vec![HostIP { ip: facts.host_ip.to_string() }]),
        pod_ips: pod_ip.clone().map(|ip| vec![PodIP { ip }]),
        pod_ip,
        start_time: Some(Time(whole_seconds(state.began))),
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
        remove_conditions(fields, pod);
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

/// Whether a status tells of no container that it goes on: another may have ended the pod while the node was away.
#[must_use]
pub fn tells_the_end(status: &PodStatus) -> bool {
    let lists = [&status.init_container_statuses, &status.container_statuses, &status.ephemeral_container_statuses];
    let goes_on = |status: &ContainerStatus| status.state.as_ref().is_some_and(|state| state.running.is_some());
    !lists.into_iter().flatten().flatten().any(goes_on)
}

/// Without the empty objects that a server may drop.
fn plain(statuses: &Option<Vec<ContainerStatus>>) -> Option<Vec<ContainerStatus>> {
    let one = |status: ContainerStatus| ContainerStatus {
        state: status.state.clone().filter(|state| *state != ContainerState::default()),
        last_state: status.last_state.clone().filter(|state| *state != ContainerState::default()),
        resources: status.resources.clone().filter(|resources| *resources != ResourceRequirements::default()),
        ..status
    };
    statuses.clone().filter(|statuses| !statuses.is_empty()).map(|all| all.into_iter().map(one).collect())
}

/// Conditions of a resize that is over are removed: merged by type they would stay.
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

/// Both lists merge by address, so a changed address would be one more.
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

/// The state of a container, and the last one that this one implies.
fn current(
    state: &State,
    pod: &Pod,
    index: usize,
    cell: &Cell,
    name: &str,
) -> (ContainerState, Option<ContainerState>) {
    let running = |running: &Running| ContainerState {
        running: Some(ContainerStateRunning { started_at: time(running.since) }),
        ..ContainerState::default()
    };
    let exit = || cell.exit.as_ref().map(terminated);
    if let Stage::Refused { message } = &state.stage {
        return (waiting("CreateContainerConfigError", Some(message.clone())), None);
    }
    match &cell.stage {
        CellStage::Running(run) | CellStage::Stopping { running: run, .. } if !run.hooking => (running(run), None),
        CellStage::Waiting { wait, .. } => {
            let current = match wait {
                Wait::Pull { reason, message, .. } => waiting(reason, Some(message.clone())),
                Wait::PullBackOff { message } => waiting("ImagePullBackOff", Some(message.clone())),
                Wait::Config { reason, message } => waiting(reason, Some(message.clone())),
                Wait::Hook { message } => waiting("PostStartHookError", Some(message.clone())),
                Wait::Crash { wait } => waiting("CrashLoopBackOff", Some(crash_message(*wait, pod, name))),
            };
            (current, exit())
        }
        CellStage::Idle if state.anew && cell.class != Class::Ephemeral && cell.exit.is_some() => {
            let message = "The container is removed because RestartAllContainers in place".to_owned();
            (waiting("RestartingAllContainers", Some(message)), exit())
        }
        _ => match exit() {
            Some(exit) => (exit, None),
            None if state.succeeded.is_some() && is_lost(&state.cells, index) => (lost(), None),
            None => {
                let first = containers::spec(pod).init_containers.as_ref().is_none_or(Vec::is_empty);
                (waiting(if first { "ContainerCreating" } else { "PodInitializing" }, None), None)
            }
        },
    }
}

/// As upstream for a pod that ends with a container that never began.
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

/// Whether a container of a pod that has ended counts as one that may have run: of the pod's own all or none, of init
/// containers those before one that ran, the first of all in any case (upstream's `TerminatePod`).
fn is_lost(cells: &[Cell], index: usize) -> bool {
    let ran = |cell: &Cell| cell.attempt.is_some() || cell.exit.is_some();
    let is_init = |cell: &Cell| matches!(cell.class, Class::Init | Class::Sidecar);
    match cells.get(index).map(|cell| cell.class) {
        Some(Class::Init | Class::Sidecar) => {
            index <= cells.iter().rposition(|cell| is_init(cell) && ran(cell)).unwrap_or(0)
        }
        Some(Class::Main) => {
            cells.iter().any(|cell| cell.class == Class::Main && ran(cell))
                || cells.iter().rfind(|cell| is_init(cell)).is_none_or(|last| last.passed)
        }
        Some(Class::Ephemeral) | None => false,
    }
}

fn container_status(state: &State, pod: &Pod, index: usize, container: &Container) -> ContainerStatus {
    let never = Cell::new(Class::Main);
    let cell = state.cells.get(index).unwrap_or(&never);
    let (current, last) = current(state, pod, index, cell, &container.name);
    let run = match &cell.stage {
        CellStage::Running(run) | CellStage::Stopping { running: run, .. } if !run.hooking => Some(run),
        _ => None,
    };
    // Until the hook after its start has ended, it is said what was before.
    let starts = cell.attempt.unwrap_or(0).saturating_sub(u32::from(cell.hooking() && cell.exit.is_some()));
    let ended_well = current.terminated.as_ref().is_some_and(|ended| ended.exit_code == 0);
    let ready = match cell.class {
        Class::Init => ended_well,
        Class::Main | Class::Sidecar => cell.ready(state.deleted.is_some()),
        Class::Ephemeral => false,
    };
    let container_id = run.map(|run| run.container_id.clone());
    let resources = container.resources.clone().unwrap_or_default();
    let runs = current.running.is_some();
    ContainerStatus {
        name: container.name.clone(),
        state: Some(current),
        last_state: Some(last.or_else(|| cell.last.as_ref().map(terminated)).unwrap_or_default()),
        ready,
        started: (cell.class != Class::Ephemeral).then(|| run.is_some_and(|run| run.started)),
        restart_count: i32::try_from(starts).unwrap_or(i32::MAX),
        image: container.image.clone().unwrap_or_default(),
        image_id: cell.image_id.clone(),
        container_id: container_id.or_else(|| cell.exit.as_ref().and_then(|exit| exit.container_id.clone())),
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

fn crash_message(wait: std::time::Duration, pod: &Pod, name: &str) -> String {
    format!("back-off {} restarting failed container={name} pod={}", go_duration(wait), pod_text(pod))
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

#[cfg(test)]
mod tests;
