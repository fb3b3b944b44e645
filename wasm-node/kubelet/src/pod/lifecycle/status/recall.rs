//! Recalls the state of a pod that an earlier run of the agent left, from the pod's status. Pure.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStatus, PodStatus};

use crate::pod::lifecycle::state::{Exit, LifecyclePolicy, PodState, TerminalReason};

/// The state in which an earlier run of the agent left the pod of that status.
#[must_use]
pub fn recall(status: Option<&PodStatus>, rules: &LifecyclePolicy, now: Timestamp) -> PodState {
    let Some(status) = status else { return PodState::new(now, rules) };
    let began = status.start_time.as_ref().map_or(now, |time| time.0);
    let mut state = PodState::adopted(now, began, rules);
    let lists = [&status.init_container_statuses, &status.container_statuses, &status.ephemeral_container_statuses];
    let reported: BTreeMap<&str, &ContainerStatus> =
        lists.into_iter().flatten().flatten().map(|status| (status.name.as_str(), status)).collect();
    for (index, own) in rules.containers.iter().enumerate() {
        let container = reported.get(own.name.as_str());
        if let Some((container, exit)) =
            container.and_then(|container| Some((container, previous_exit(container, now)?)))
        {
            let attempt = u32::try_from(container.restart_count).unwrap_or(0);
            state.resume(index, attempt, exit, container.image_id.clone());
        }
    }
    match status.phase.as_deref() {
        Some("Succeeded") => state.resume_ended(true, None),
        Some("Failed") => {
            let terminal_reason = status.reason.as_deref().map(|reason| TerminalReason {
                reason: static_reason(reason),
                message: status.message.clone(),
                rejected: false,
            });
            state.resume_ended(false, terminal_reason);
        }
        _ => {}
    }
    state
}

/// The reason, if this node writes it.
fn static_reason(reason: &str) -> Option<&'static str> {
    ["Evicted", "DeadlineExceeded"].into_iter().find(|own| *own == reason)
}

/// The exit that an earlier run of the agent has reported, or that its end implies for a running container.
fn previous_exit(container: &ContainerStatus, now: Timestamp) -> Option<Exit> {
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
