//! A pod's phase and conditions, with upstream's reasons and messages. Pure.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodCondition};

use super::time;
use crate::pod::lifecycle::state::{Class, ContainerMachine, LifecyclePolicy, PodState, Stage, TerminalReason};
use crate::spec::containers;

/// The status, reason and message of a condition.
type Now = (bool, Option<&'static str>, Option<String>);

/// The phase of a running pod (upstream's `getPhase`). `begun`: a main container was started since the volumes were
/// filled.
pub(super) fn phase(init: &[(Class, ContainerStatus)], own: &[ContainerStatus], begun: bool) -> &'static str {
    let state = |status: &ContainerStatus| status.state.clone().unwrap_or_default();
    let runs = |status: &ContainerStatus| state(status).running.is_some();
    let ended_before =
        |status: &ContainerStatus| status.last_state.as_ref().is_some_and(|last| last.terminated.is_some());
    let waits = |status: &ContainerStatus| state(status).waiting.is_some() && !ended_before(status);
    let of = |class: Class| init.iter().filter(move |(of, _)| *of == class).map(|(_, status)| status);
    let initializing = of(Class::Init).any(|status| runs(status) || waits(status))
        || !begun && of(Class::Sidecar).any(|status| runs(status) && status.started != Some(true));
    if initializing || of(Class::Sidecar).chain(own).any(waits) {
        return "Pending";
    }
    let stopped = |status: &ContainerStatus| state(status).terminated.is_some() || ended_before(status);
    let running = of(Class::Sidecar).any(runs) || own.iter().any(|status| runs(status) || stopped(status));
    if running { "Running" } else { "Pending" }
}

/// The Initialized condition, as upstream computes it.
fn initialized(state: &PodState, rules: &LifecyclePolicy, was: bool) -> Now {
    if state.succeeded() == Some(true) {
        return (true, Some("PodCompleted"), None);
    }
    let begun = |machine: &ContainerMachine| {
        machine.class == Class::Main && (machine.is_live() && !machine.hook_pending() || machine.exit.is_some())
    };
    if was || state.machines().iter().any(begun) {
        return (true, None, None);
    }
    let lacks = |machine: &ContainerMachine| matches!(machine.class, Class::Init | Class::Sidecar) && !machine.passed;
    match names(state, rules, lacks) {
        None => (true, None, None),
        Some(names) => {
            (false, Some("ContainersNotInitialized"), Some(format!("containers with incomplete status: [{names}]")))
        }
    }
}

/// The names of matching containers; `None` without a match.
fn names(state: &PodState, rules: &LifecyclePolicy, which: impl Fn(&ContainerMachine) -> bool) -> Option<String> {
    let named = state.machines().iter().zip(rules.containers.iter()).filter(|(machine, _)| which(machine));
    let names: Vec<&str> = named.map(|(_, own)| own.name.as_str()).collect();
    (!names.is_empty()).then(|| names.join(" "))
}

/// The AllContainersRestarting condition, if a rule of the pod can restart all containers.
fn restarting(state: &PodState, rules: &LifecyclePolicy) -> Option<Now> {
    let could = rules.containers.iter().any(|own| own.restart_rules.iter().any(|rule| rule.all));
    could.then(|| match state.succeeded() {
        Some(true) => (false, Some("PodCompleted"), None),
        Some(false) => (false, Some("PodFailed"), None),
        None if state.is_restarting_all() => {
            (true, Some("RestartAllContainersStarted"), Some("container exited with restart policy rule".into()))
        }
        None => (false, None, None),
    })
}

/// The conditions of the node; `previous` are the pod's current ones.
pub(super) fn conditions(
    state: &PodState,
    pod: &Pod,
    rules: &LifecyclePolicy,
    previous: &[PodCondition],
    now: Timestamp,
) -> Vec<PodCondition> {
    let sandbox = state.has_sandbox() && !matches!(state.stage(), Stage::Ended | Stage::Refused { .. });
    let was = previous.iter().any(|condition| condition.type_ == "Initialized" && condition.status == "True");
    let counts = |machine: &ContainerMachine| matches!(machine.class, Class::Main | Class::Sidecar);
    let unready = |machine: &ContainerMachine| counts(machine) && !machine.ready(state.deleted().is_some());
    let containers: Now = match (state.succeeded(), names(state, rules, unready)) {
        (Some(true), _) => (false, Some("PodCompleted"), None),
        (Some(false), _) => (false, Some("PodFailed"), None),
        (None, None) if state.ready() => (true, None, None),
        (None, names) => {
            let message = format!("containers with unready status: [{}]", names.unwrap_or_default());
            (false, Some("ContainersNotReady"), Some(message))
        }
    };
    let readiness = containers::spec(pod).readiness_gates.clone().unwrap_or_default();
    let ready = if containers.0 { gates(&readiness, previous) } else { containers.clone() };
    let mut rows = vec![
        ("PodReadyToStartContainers", (sandbox, None, None)),
        ("Initialized", initialized(state, rules, was)),
        ("Ready", ready),
        ("ContainersReady", containers),
        ("PodScheduled", (true, None, None)),
    ];
    rows.extend(restarting(state, rules).map(|now| ("AllContainersRestarting", now)));
    if let (Some(_), Some(TerminalReason { reason: Some("Evicted" | "Terminated"), message, .. })) =
        (state.succeeded(), state.terminal_reason())
    {
        rows.push(("DisruptionTarget", (true, Some("TerminationByKubelet"), message.clone())));
    }
    rows.into_iter()
        .map(|(kind, (status, reason, message))| {
            let status = if status { "True" } else { "False" };
            let before = previous.iter().find(|condition| condition.type_ == kind);
            let since = before.filter(|before| before.status == status).and_then(|b| b.last_transition_time.clone());
            PodCondition {
                type_: kind.into(),
                status: status.into(),
                reason: reason.map(Into::into),
                message,
                last_transition_time: since.or_else(|| time(now)),
                last_probe_time: None,
                // As upstream, whose newest condition has no observed generation.
                observed_generation: pod.metadata.generation.filter(|_| kind != "AllContainersRestarting"),
            }
        })
        .collect()
}

fn gates(gates: &[k8s_openapi::api::core::v1::PodReadinessGate], previous: &[PodCondition]) -> Now {
    let mut messages = Vec::new();
    for gate in gates {
        let name = &gate.condition_type;
        match previous.iter().find(|condition| condition.type_ == *name) {
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

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::PodReadinessGate;

    use super::*;

    #[test]
    fn each_readiness_gate_is_a_condition_that_others_set() {
        let condition = |type_: &str, status: &str| PodCondition {
            type_: type_.into(),
            status: status.into(),
            ..PodCondition::default()
        };
        let wanted = ["a.com/x", "a.com/y"].map(|name| PodReadinessGate { condition_type: name.into() });
        let (is, reason, message) = gates(&wanted, &[condition("a.com/x", "False")]);
        assert_eq!((is, reason), (false, Some("ReadinessGatesNotReady")));
        let says = "the status of pod readiness gate \"a.com/x\" is not \"True\", but False, \
                    corresponding condition of pod readiness gate \"a.com/y\" does not exist.";
        assert_eq!(message.as_deref(), Some(says));
        let all = [condition("a.com/x", "True"), condition("a.com/y", "True")];
        assert_eq!(gates(&wanted, &all), (true, None, None));
    }
}
