//! `job-controller`: runs pods until enough have succeeded, or too many have failed.
//!
//! A terminal pod is counted exactly once (KEP-2307). Its finalizer keeps it until its uid is in the Job's status. Then
//! the finalizer is removed, and a later pass moves the uid into the count. Each step derives from the view alone, so a
//! crash between steps loses nothing.

mod create;
mod ending;
mod index;
mod policy;
mod strays;
mod tally;

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{Job, JobCondition, JobSpec};
use k8s_openapi::api::core::v1 as core;
use machinery_api::ObjectKey;
use machinery_client::selector::selects;
use machinery_client::{
    Action, BackOff, Change, Context, Controller, EventRecord, Input, ObjectCache, Plan, Pod, ReconcilerState,
    controlled_by, controller_of, value_of,
};
use serde_json::json;

use self::ending::{Ending, is_tracked};
use self::policy::Failures;
use self::tally::Tally;
use crate::Settings;
use crate::pods;

/// The maximum number of pods created or deleted in one pass (upstream's bound).
const BURST_PODS: usize = 500;
/// The value of `spec.managedBy` for this controller.
const OUR_NAME: &str = "kubernetes.io/job-controller";

pub(crate) const CONTROLLER: Controller<Settings> = Controller {
    name: "job-controller",
    account: "job-controller",
    workers: 5,
    // Upstream's `DefaultJobApiBackOff` and `MaxJobApiBackOff`: rejected creations are not retried a hundred times a
    // second.
    back_off: BackOff { first: Duration::from_secs(1), most: Duration::from_mins(1) },
    inputs: &[Input::of::<Job>(strays::of_job), Input::of::<Pod>(of_pod)],
    reconcile,
};

/// When a Job finished.
pub(crate) fn finished_at(job: &Job) -> Option<Timestamp> {
    let ended =
        conditions(job).iter().find(|c| matches!(c.type_.as_str(), "Complete" | "Failed") && c.status == "True")?;
    Some(ended.last_transition_time.as_ref().map_or(Timestamp::UNIX_EPOCH, |at| at.0))
}

fn conditions(job: &Job) -> &[JobCondition] {
    job.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default()
}

/// The Jobs that own or owned the pod; for an orphan, the Jobs that may adopt it; and the key of the strays, if the pod
/// is one.
fn of_pod(view: &ObjectCache, change: &Change) -> Vec<ObjectKey> {
    let namespace = &change.key.namespace;
    let owners = change.states().filter_map(controller_of).filter(|owner| owner.kind == "Job");
    let mut keys: Vec<ObjectKey> = owners.map(|owner| ObjectKey::new(&**namespace, &*owner.name)).collect();
    if let Some(pod) = change.after::<Pod>() {
        if controller_of(&pod.metadata).is_none() {
            let willing = view.list::<Job>(namespace).filter(|job| chooses(job, pod));
            keys.extend(willing.map(|job| machinery_client::key_of(&job.metadata)));
        }
        if strays::is_stray(view, pod) {
            keys.push(strays::key(namespace));
        }
    }
    keys.dedup();
    keys
}

fn chooses(job: &Job, pod: &Pod) -> bool {
    let selector = job.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    selector.is_some_and(|selector| selects(selector, pod.metadata.labels.as_ref()))
}

/// Removes the tracking finalizer of a pod.
fn untrack(pod: &Pod) -> Action {
    let rest: Vec<&String> = pod.metadata.finalizers.iter().flatten().filter(|f| *f != create::TRACKING).collect();
    let rest = if rest.is_empty() { json!(null) } else { json!(rest) };
    let patch = json!({"metadata": {"uid": pod.metadata.uid, "resourceVersion": pod.metadata.resource_version, "finalizers": rest}});
    Action::patch(pod, patch)
}

fn reconcile(view: &ObjectCache, key: &ObjectKey, context: &Context<'_, Settings>) -> Plan {
    if *key == strays::key(&key.namespace) {
        return strays::release_all(view, &key.namespace);
    }
    let Some(job) = view.get::<Job>(key) else { return Plan::nothing() };
    let Some(spec) = &job.spec else { return Plan::nothing() };
    if spec.managed_by.as_deref().is_some_and(|name| name != OUR_NAME) {
        return Plan::nothing();
    }
    let uid = job.metadata.uid.as_deref().unwrap_or_default();
    if finished_at(job).is_some() {
        let tracked = view.controlled::<Pod>(uid).filter(|pod| is_tracked(pod));
        return together(tracked.map(untrack).collect());
    }
    let going = job.metadata.deletion_timestamp.is_some();
    let (mut mine, strange): (Vec<&Pod>, Vec<&Pod>) = view.controlled::<Pod>(uid).partition(|pod| chooses(job, pod));
    let mut plan = Plan::nothing();
    if going {
        // Such pods are neither counted nor released any more.
        let held = strange.iter().filter(|pod| is_tracked(pod) && !pods::is_active(pod));
        plan.actions.extend(held.map(|pod| untrack(pod)));
    } else {
        plan.actions.extend(strange.iter().map(|pod| release(pod)));
        let orphans = view.uncontrolled::<Pod>(&key.namespace);
        let orphans: Vec<&Pod> = orphans.filter(|pod| pods::is_active(pod) && chooses(job, pod)).collect();
        if !orphans.is_empty() {
            // As pods::adopt, with the finalizer.
            plan.push(Action::expect_live(job));
        }
        plan.actions.extend(orphans.iter().map(|pod| adopt(job, pod)));
        mine.extend(orphans);
    }
    if !plan.actions.is_empty() {
        return plan; // ownership is settled first; its change requeues the key
    }
    let tally = Tally::of(job, spec, &mine, context.reconciler_cache.of::<Failures>(key));
    let mut plan = decide(job, spec, &tally, context.now);
    plan.state = (!tally.failures.is_empty()).then(|| ReconcilerState::of(tally.failures));
    plan
}

fn together(actions: Vec<Action>) -> Plan {
    if actions.is_empty() { Plan::nothing() } else { vec![Action::Concurrent(actions)].into() }
}

fn adopt(job: &Job, pod: &Pod) -> Action {
    let mut owners = pod.metadata.owner_references.clone().unwrap_or_default();
    owners.push(controlled_by(job));
    let mut finalizers = pod.metadata.finalizers.clone().unwrap_or_default();
    if !is_tracked(pod) {
        finalizers.push(create::TRACKING.into());
    }
    let patch = json!({"metadata": {"uid": pod.metadata.uid, "resourceVersion": pod.metadata.resource_version,
        "ownerReferences": value_of(&owners), "finalizers": finalizers}});
    Action::patch(pod, patch)
}

fn release(pod: &Pod) -> Action {
    let mut action = pods::release(pod);
    if let (true, Action::Patch { patch, .. }, Action::Patch { patch: untracked, .. }) =
        (is_tracked(pod), &mut action, untrack(pod))
    {
        patch["metadata"]["finalizers"] = untracked["metadata"]["finalizers"].clone();
    }
    action
}

fn decide(job: &Job, spec: &JobSpec, tally: &Tally<'_>, now: Timestamp) -> Plan {
    let mut plan = Plan::nothing();
    let mut work = Vec::new();
    let suspended = spec.suspend == Some(true);
    let ending = ending(job, spec, tally, now, suspended, &mut plan);
    let mut active = tally.active.clone();
    match &ending {
        Some(_) => {
            work.extend(active.iter().take(BURST_PODS).map(|pod| delete(job, pod)));
            active.clear();
        }
        None if job.metadata.deletion_timestamp.is_none() => work = manage(job, spec, tally, suspended, now, &mut plan),
        None => {}
    }
    let (status, events) = tally.status(job, spec, ending.as_ref(), suspended, now);
    if job.status.as_ref() != Some(&status) {
        plan.push(Action::update_status(&Job { status: Some(status.clone()), ..job.clone() }));
        plan.actions.extend(events.into_iter().map(Action::Event));
    }
    // The finalizer of a pod is removed only after the status names the pod.
    let counted: Vec<Action> =
        tally.to_untrack(ending.is_some() || job.metadata.deletion_timestamp.is_some()).map(untrack).collect();
    if !counted.is_empty() {
        plan.push(Action::Concurrent(counted));
    }
    plan.actions.extend(work);
    plan
}

/// Whether and how the Job ends now; sets the requeue time for deadlines.
fn ending(
    job: &Job,
    spec: &JobSpec,
    tally: &Tally<'_>,
    now: Timestamp,
    suspended: bool,
    plan: &mut Plan,
) -> Option<Ending> {
    let announced = |kind: &str| conditions(job).iter().find(|c| c.type_ == kind && c.status == "True");
    let reason = |c: &JobCondition| (c.reason.clone().unwrap_or_default(), c.message.clone().unwrap_or_default());
    if let Some((reason, message)) = announced("SuccessCriteriaMet").map(reason) {
        return Some(Ending { success: true, reason, message });
    }
    if let Some((reason, message)) = announced("FailureTarget").map(reason) {
        return Some(Ending { success: false, reason, message });
    }
    if let Some(message) = &tally.fails_job {
        return Some(Ending::failure("PodFailurePolicy", message.clone()));
    }
    let limit = spec.backoff_limit.unwrap_or(6);
    if tally.failed > limit || tally.past_limit_in_place(spec, limit) {
        return Some(Ending::failure("BackoffLimitExceeded", "Job has reached the specified backoff limit"));
    }
    let started = job.status.as_ref().and_then(|status| status.start_time.as_ref());
    if let (Some(seconds), Some(started), false) = (spec.active_deadline_seconds, started, suspended) {
        let due = started
            .0
            .saturating_add(Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
            .unwrap_or(Timestamp::MAX);
        if due <= now {
            return Some(Ending::failure("DeadlineExceeded", "Job was active longer than specified deadline"));
        }
        plan.revisit(due);
    } else if let (Some(seconds), None, false) = (spec.active_deadline_seconds, started, suspended) {
        plan.requeue_after(now, Duration::from_secs(u64::try_from(seconds).unwrap_or(0)));
    }
    if let (Some(max), Some(failed)) = (spec.max_failed_indexes, &tally.failed_indexes)
        && failed.len() > max
    {
        let message = "Job has exceeded the specified maximal number of failed indexes";
        return Some(Ending::failure("MaxFailedIndexesExceeded", message));
    }
    let completions = spec.completions;
    if let (Some(policy), Some(completions)) = (&spec.success_policy, completions)
        && let Some(message) = policy::success(policy, &tally.succeeded_indexes, completions)
    {
        return Some(Ending::success("SuccessPolicy", message));
    }
    let active = !tally.active.is_empty();
    let failed_indexes = tally.failed_indexes.as_ref().map_or(0, index::Indexes::len);
    match completions {
        Some(completions) if failed_indexes > 0 && tally.succeeded.saturating_add(failed_indexes) >= completions => {
            Some(Ending::failure("FailedIndexes", "Job has failed indexes"))
        }
        Some(completions) if tally.succeeded >= completions && !active => {
            Some(Ending::success("CompletionsReached", "Reached expected number of succeeded pods"))
        }
        None if tally.succeeded > 0 && !active => {
            Some(Ending::success("CompletionsReached", "Reached expected number of succeeded pods"))
        }
        _ => None,
    }
}

fn delete(job: &Job, pod: &Pod) -> Action {
    Action::delete(pod).noted(
        Some(EventRecord::normal(job, "SuccessfulDelete", "Deleted pod: {name}")),
        Some(EventRecord::warning(job, "FailedDelete", "Error deleting: {error}")),
    )
}

/// Creates or deletes pods to match the desired number.
fn manage(
    job: &Job,
    spec: &JobSpec,
    tally: &Tally<'_>,
    suspended: bool,
    now: Timestamp,
    plan: &mut Plan,
) -> Vec<Action> {
    let active = tally.active.len();
    let count = |n: i32| usize::try_from(n).unwrap_or(0);
    let parallelism = count(spec.parallelism.unwrap_or(1));
    let wanted = match spec.completions {
        _ if suspended => 0,
        // A work queue Job: after the first success no pod is replaced.
        None if tally.succeeded > 0 => active.min(parallelism),
        None => parallelism,
        Some(completions) => {
            let failed = tally.failed_indexes.as_ref().map_or(0, index::Indexes::len);
            count(completions.saturating_sub(tally.succeeded).saturating_sub(failed)).min(parallelism)
        }
    };
    let surplus = create::surplus_pods(job, &tally.active, active.saturating_sub(wanted));
    if !surplus.is_empty() {
        // Surplus pods are no failures: their finalizer is removed first, so that their end isn't counted.
        let untracked = surplus.iter().filter(|pod| is_tracked(pod)).map(|pod| untrack(pod)).collect();
        let deleted = surplus.iter().take(BURST_PODS).map(|pod| delete(job, pod)).collect();
        return vec![Action::Concurrent(untracked), Action::Concurrent(deleted)];
    }
    let replaces_failed_only = spec.pod_replacement_policy.as_deref() == Some("Failed");
    let occupied = if replaces_failed_only { tally.terminating.len() } else { 0 };
    let missing = wanted.saturating_sub(active + occupied).min(BURST_PODS);
    if missing == 0 {
        return Vec::new();
    }
    let note = |pod: &core::Pod| {
        Action::create(pod).noted(
            Some(EventRecord::normal(job, "SuccessfulCreate", "Created pod: {name}")),
            Some(EventRecord::warning(job, "FailedCreate", "Error creating: {error}")),
        )
    };
    let indexed = spec.completion_mode.as_deref() == Some("Indexed");
    let per_index = spec.backoff_limit_per_index.is_some();
    if !per_index && let Some(until) = tally.failures.wait_until().filter(|until| *until > now) {
        plan.revisit(until);
        return Vec::new();
    }
    let made: Vec<Action> = if indexed {
        let free = tally.free_indexes(spec.completions.unwrap_or(0), replaces_failed_only);
        let mut made = Vec::new();
        for index in free {
            if made.len() == missing {
                break;
            }
            let failures = per_index.then(|| tally.failures_of(index));
            if let Some((failures, ended)) = failures.filter(|(failures, _)| *failures > 0) {
                let until = ended.saturating_add(policy::backoff(failures)).unwrap_or(Timestamp::MAX);
                if until > now {
                    plan.revisit(until);
                    continue;
                }
            }
            made.push(note(&create::pod(job, Some(index), failures.map(|(failures, _)| failures))));
        }
        made
    } else {
        vec![note(&create::pod(job, None, None)); missing]
    };
    if made.is_empty() { Vec::new() } else { vec![Action::SlowStart(made)] }
}

#[cfg(test)]
mod tests;
