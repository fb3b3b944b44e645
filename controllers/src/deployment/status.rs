//! Status of a Deployment: counts, and the conditions Available, Progressing and ReplicaFailure.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::{DeploymentCondition, DeploymentStatus, ReplicaSet};

use super::{Rollout, actual, annotations, available, name, size, strategy, wanted};
use crate::{conditions, pods};

/// The condition of a rollout's progress.
pub(super) const PROGRESSING: &str = "Progressing";
const AVAILABLE: &str = "NewReplicaSetAvailable";
const TIMED_OUT: &str = "ProgressDeadlineExceeded";
const PAUSED: &str = "DeploymentPaused";

/// Counts the replicas, and sets the condition Available.
pub(super) fn count(rollout: &mut Rollout<'_>) {
    let deployment = rollout.deployment;
    let sum = |of: &dyn Fn(&ReplicaSet) -> i32| rollout.all().map(of).fold(0, i32::saturating_add);
    let up = sum(&available);
    let ready = sum(&|set| set.status.as_ref().and_then(|s| s.ready_replicas).unwrap_or(0));
    let unavailable = sum(&size).saturating_sub(up).max(0);
    let mut terminating = Some(0);
    for set in rollout.all() {
        let known = set.status.as_ref();
        let seen = known.and_then(|s| s.observed_generation).unwrap_or(0) != 0;
        match known.and_then(|s| s.terminating_replicas) {
            Some(n) => terminating = terminating.map(|sum: i32| sum.saturating_add(n)),
            None if seen => terminating = None,
            None => {}
        }
    }
    let replicas = sum(&actual);
    let updated = rollout.new.as_ref().map_or(0, actual);
    let status = &mut rollout.status;
    status.observed_generation = deployment.metadata.generation;
    status.replicas = pods::count(replicas);
    status.updated_replicas = pods::count(updated);
    status.ready_replicas = pods::count(ready);
    status.available_replicas = pods::count(up);
    status.unavailable_replicas = pods::count(unavailable);
    status.terminating_replicas = terminating;
    let now = rollout.now;
    if up >= wanted(deployment).saturating_sub(strategy::max_unavailable(deployment)) {
        let message = "Deployment has minimum availability.";
        set_condition(status, "Available", "True", "MinimumReplicasAvailable", message, now);
    } else {
        let message = "Deployment does not have minimum availability.";
        set_condition(status, "Available", "False", "MinimumReplicasUnavailable", message, now);
    }
}

/// Records a pause or resume in the condition, so that a pause doesn't count towards the deadline.
pub(super) fn note_pause(rollout: &mut Rollout<'_>) {
    let known = progressing(&rollout.status).and_then(|c| c.reason.as_deref());
    if !rollout.has_deadline() || known == Some(TIMED_OUT) {
        return;
    }
    let noted = known == Some(PAUSED);
    let now = rollout.now;
    if rollout.paused() && !noted {
        set_condition(&mut rollout.status, PROGRESSING, "Unknown", PAUSED, "Deployment is paused", now);
    } else if !rollout.paused() && noted {
        let message = "Deployment is resumed";
        set_condition(&mut rollout.status, PROGRESSING, "Unknown", "DeploymentResumed", message, now);
    }
}

/// Sets the condition Progressing from the view's status and the new counts.
pub(super) fn judge_progress(rollout: &mut Rollout<'_>) {
    let before = rollout.deployment.status.clone().unwrap_or_default();
    let deployment_name = rollout.deployment.metadata.name.clone().unwrap_or_default();
    let subject = match &rollout.new {
        Some(set) => format!("ReplicaSet {:?}", name(set)),
        None => format!("Deployment {deployment_name:?}"),
    };
    let now = rollout.now;
    if !rollout.has_deadline() {
        remove_condition(&mut rollout.status, PROGRESSING);
    } else {
        let current = progressing(&rollout.status).cloned();
        let reason = current.as_ref().and_then(|c| c.reason.as_deref());
        let resting = rollout.status.replicas == rollout.status.updated_replicas && reason == Some(AVAILABLE);
        if resting {
        } else if is_complete(rollout, &rollout.status) {
            let message = format!("{subject} has successfully progressed.");
            set_condition(&mut rollout.status, PROGRESSING, "True", AVAILABLE, &message, now);
        } else if has_progressed(&before, &rollout.status) {
            let message = format!("{subject} is progressing.");
            let since = current.filter(|c| c.status == "True").and_then(|c| c.last_transition_time);
            remove_condition(&mut rollout.status, PROGRESSING);
            set_condition(&mut rollout.status, PROGRESSING, "True", "ReplicaSetUpdated", &message, now);
            let condition = rollout.status.conditions.iter_mut().flatten().find(|c| c.type_ == PROGRESSING);
            if let (Some(condition), Some(since)) = (condition, since) {
                condition.last_transition_time = Some(since);
            }
        } else if deadline(rollout, current.as_ref()).is_some_and(|at| at <= now) {
            let message = format!("{subject} has timed out progressing.");
            set_condition(&mut rollout.status, PROGRESSING, "False", TIMED_OUT, &message, now);
        }
        let current = progressing(&rollout.status).cloned();
        if !is_complete(rollout, &rollout.status)
            && let Some(at) = deadline(rollout, current.as_ref())
        {
            rollout.plan.revisit(at.max(now.saturating_add(Duration::from_secs(1)).unwrap_or(Timestamp::MAX)));
        }
    }
    match failure(rollout) {
        Some(failure) => {
            let at = failure.last_transition_time.as_ref().map_or(now, |t| t.0);
            let (reason, message) = (failure.reason.unwrap_or_default(), failure.message.unwrap_or_default());
            set_condition(&mut rollout.status, "ReplicaFailure", &failure.status, &reason, &message, at);
        }
        None => remove_condition(&mut rollout.status, "ReplicaFailure"),
    }
}

/// The progress deadline; none if it doesn't apply.
fn deadline(rollout: &Rollout<'_>, condition: Option<&DeploymentCondition>) -> Option<Timestamp> {
    let condition = condition?;
    if matches!(condition.reason.as_deref(), Some(AVAILABLE | TIMED_OUT)) {
        return None;
    }
    let from = condition.last_update_time.as_ref()?.0;
    let seconds = rollout.deadline_seconds().filter(|_| rollout.has_deadline())?;
    Some(from.saturating_add(SignedDuration::from_secs(seconds.into())).unwrap_or(Timestamp::MAX))
}

/// The replica failure of the new set, else of any.
fn failure(rollout: &Rollout<'_>) -> Option<k8s_openapi::api::apps::v1::ReplicaSetCondition> {
    let sets = rollout.new.iter().chain(&rollout.old);
    let mut conditions = sets.flat_map(|set| set.status.iter().flat_map(|s| s.conditions.iter().flatten()));
    conditions.find(|c| c.type_ == "ReplicaFailure").cloned()
}

/// Whether all replicas have the current template and are available, and no others are left.
pub(super) fn is_complete(rollout: &Rollout<'_>, status: &DeploymentStatus) -> bool {
    let wanted = wanted(rollout.deployment);
    let all = |n: Option<i32>| n.unwrap_or(0) == wanted;
    all(status.updated_replicas)
        && all(status.replicas)
        && all(status.available_replicas)
        && status.observed_generation.unwrap_or(0) >= rollout.deployment.metadata.generation.unwrap_or(0)
}

/// Whether only replica counts of an unfinished rollout changed, and no condition.
pub(super) fn is_progress(rollout: &Rollout<'_>) -> bool {
    let Some(known) = &rollout.deployment.status else { return false };
    let status = &rollout.status;
    let revision = rollout.deployment.metadata.annotations.as_ref().and_then(|a| a.get(annotations::REVISION));
    known.observed_generation == status.observed_generation
        && rollout.revision.as_ref() == revision
        && condition_states(known).eq(condition_states(status))
        && !is_complete(rollout, status)
}

/// The conditions without their times.
fn condition_states(status: &DeploymentStatus) -> impl Iterator<Item = (&str, &str, Option<&str>, Option<&str>)> {
    let conditions = status.conditions.iter().flatten();
    conditions.map(|c| (&*c.type_, &*c.status, c.reason.as_deref(), c.message.as_deref()))
}

/// Whether there are more new, ready or available replicas, or fewer old ones.
fn has_progressed(before: &DeploymentStatus, now: &DeploymentStatus) -> bool {
    let n = |n: Option<i32>| n.unwrap_or(0);
    let old = |s: &DeploymentStatus| n(s.replicas) - n(s.updated_replicas);
    n(now.updated_replicas) > n(before.updated_replicas)
        || old(now) < old(before)
        || n(now.ready_replicas) > n(before.ready_replicas)
        || n(now.available_replicas) > n(before.available_replicas)
}

/// The condition Progressing.
pub(super) fn progressing(status: &DeploymentStatus) -> Option<&DeploymentCondition> {
    status.conditions.iter().flatten().find(|c| c.type_ == PROGRESSING)
}

fn remove_condition(status: &mut DeploymentStatus, type_: &str) {
    if let Some(conditions) = &mut status.conditions {
        conditions.retain(|c| c.type_ != type_);
    }
}

/// Sets a condition, unless one with the same status and reason exists.
pub(super) fn set_condition(
    status: &mut DeploymentStatus,
    type_: &str,
    value: &str,
    reason: &str,
    message: &str,
    now: Timestamp,
) {
    let conditions = status.conditions.get_or_insert_default();
    let known = conditions.iter().find(|c| c.type_ == type_);
    if known.is_some_and(|c| c.status == value && c.reason.as_deref() == Some(reason)) {
        return;
    }
    let stamp = pods::stamp(now);
    let new = DeploymentCondition {
        type_: type_.to_owned(),
        status: value.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_update_time: Some(stamp.clone()),
        last_transition_time: Some(stamp),
    };
    conditions::set_last(conditions, new);
}

/// For comparison and writing: zero and empty are absent.
pub(super) fn normal(mut status: DeploymentStatus) -> DeploymentStatus {
    for n in [
        &mut status.replicas,
        &mut status.updated_replicas,
        &mut status.ready_replicas,
        &mut status.available_replicas,
        &mut status.unavailable_replicas,
    ] {
        *n = n.filter(|n| *n != 0);
    }
    status.observed_generation = status.observed_generation.filter(|g| *g != 0);
    status.conditions = status.conditions.filter(|c| !c.is_empty());
    status
}
