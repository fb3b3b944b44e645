//! Tally of a Job's pods: active, succeeded and failed ones, and the Job's status that follows.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{Job, JobCondition, JobSpec, JobStatus, UncountedTerminatedPods};
use machinery_client::{EventRecord, Pod};

use super::create;
use super::ending::{Ending, is_tracked};
use super::index::{self, Indexes};
use super::policy::{self, Failures, Verdict};
use crate::{conditions, pods};

/// The maximum number of uids in a status (upstream's `MaxUncountedPods`, which keeps it small). Other pods keep their
/// finalizer until these have been counted.
pub(super) const UNCOUNTED_MAX: usize = 500;

/// The state of a Job's pods at one moment.
pub(super) struct Tally<'a> {
    /// Neither terminal nor terminating.
    pub(super) active: Vec<&'a Pod>,
    /// Terminating and not terminal.
    pub(super) terminating: Vec<&'a Pod>,
    /// All that have succeeded, counted or not.
    pub(super) succeeded: i32,
    /// All that have failed, counted or not.
    pub(super) failed: i32,
    /// For an Indexed Job.
    pub(super) succeeded_indexes: Indexes,
    /// For a Job with a limit per index.
    pub(super) failed_indexes: Option<Indexes>,
    /// The reason, if a pod's failure fails the Job.
    pub(super) fails_job: Option<String>,
    /// The back-off for replacements.
    pub(super) failures: Failures,
    /// Terminal pods that still have the finalizer.
    ended: Vec<&'a Pod>,
    /// The uids for the status, and those of the status whose finalizer is gone.
    uncounted: UncountedTerminatedPods,
    counted_succeeded: i32,
    counted_failed: i32,
    /// By index: the number of failures, and when the last pod ended.
    index_failures: BTreeMap<i32, (u32, Timestamp)>,
    /// The last failed pod of each index until its replacement: it keeps its finalizer, and with it the failure count.
    kept: BTreeSet<String>,
    /// Terminal pods beyond the limit of the status: they keep their finalizer, too.
    later: BTreeSet<String>,
    indexed: bool,
    all: Vec<&'a Pod>,
}

fn uid(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

fn list(uids: Vec<String>) -> Option<Vec<String>> {
    (!uids.is_empty()).then_some(uids)
}

fn is_named(known: &[String], pod: &Pod) -> bool {
    known.iter().any(|known| known == uid(pod))
}

/// Removes and returns the uids beyond `most`.
fn beyond(uids: &mut Vec<String>, most: usize) -> BTreeSet<String> {
    uids.drain(most.min(uids.len())..).collect()
}

/// Whether a pod counts as failed: it has failed, or it is terminating and may be replaced at once.
fn has_failed(spec: &JobSpec, pod: &Pod) -> bool {
    let replaces_failed_only = spec.pod_replacement_policy.as_deref() == Some("Failed");
    pods::phase(pod) == "Failed"
        || (!replaces_failed_only && pod.metadata.deletion_timestamp.is_some() && pods::phase(pod) != "Succeeded")
}

/// Uids of pods that still have their finalizer, and the number of those that don't.
fn split(uids: Option<Vec<String>>, tracked: &BTreeMap<&str, &Pod>) -> (Vec<String>, i32) {
    let (still, gone): (Vec<String>, Vec<String>) =
        uids.unwrap_or_default().into_iter().partition(|uid| tracked.contains_key(uid.as_str()));
    (still, i32::try_from(gone.len()).unwrap_or(i32::MAX))
}

/// Whether the Job's status has the condition already.
fn is_to_end(job: &Job, condition: &str) -> bool {
    let mut conditions = job.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.any(|c| c.type_ == condition && c.status == "True")
}

fn failures(job: &Job, spec: &JobSpec, mine: &[&Pod], before: Option<&Failures>) -> Failures {
    let job_uid = job.metadata.uid.as_deref().unwrap_or_default();
    let succeeded = mine.iter().copied().filter(|pod| pods::phase(pod) == "Succeeded");
    // A pod that this controller deletes (of a suspended Job, a surplus one) has lost its finalizer first, and is no
    // failure. A pod that failed and was counted has lost it, too, but nothing has deleted it.
    let counts = |pod: &&Pod| is_tracked(pod) || pod.metadata.deletion_timestamp.is_none();
    Failures::next(before, job_uid, succeeded, mine.iter().copied().filter(|pod| has_failed(spec, pod)).filter(counts))
}

impl<'a> Tally<'a> {
    pub(super) fn of(job: &Job, spec: &JobSpec, mine: &[&'a Pod], before: Option<&Failures>) -> Self {
        let status = job.status.clone().unwrap_or_default();
        let (succeeds, fails) = (is_to_end(job, "SuccessCriteriaMet"), is_to_end(job, "FailureTarget"));
        let indexed = spec.completion_mode.as_deref() == Some("Indexed");
        let completions = spec.completions.unwrap_or(i32::MAX);
        let named = status.uncounted_terminated_pods.unwrap_or_default();
        let tracked: BTreeMap<&str, &Pod> =
            mine.iter().filter(|pod| is_tracked(pod)).map(|pod| (uid(pod), *pod)).collect();
        let (mut new_succeeded, more_succeeded) = split(named.succeeded, &tracked);
        let (mut new_failed, more_failed) = split(named.failed, &tracked);
        let (known_succeeded, known_failed) = (new_succeeded.len(), new_failed.len());
        let mut tally = Self {
            active: mine.iter().copied().filter(|pod| pods::is_active(pod)).collect(),
            terminating: mine.iter().copied().filter(|pod| pods::is_terminating(pod)).collect(),
            succeeded: 0,
            failed: 0,
            succeeded_indexes: Indexes::parse(status.completed_indexes.as_deref().unwrap_or_default(), completions),
            failed_indexes: spec
                .backoff_limit_per_index
                .map(|_| Indexes::parse(status.failed_indexes.as_deref().unwrap_or_default(), completions)),
            fails_job: None,
            failures: failures(job, spec, mine, before),
            ended: Vec::new(),
            uncounted: UncountedTerminatedPods::default(),
            counted_succeeded: status.succeeded.unwrap_or(0).saturating_add(more_succeeded),
            counted_failed: status.failed.unwrap_or(0).saturating_add(more_failed),
            index_failures: BTreeMap::new(),
            kept: BTreeSet::new(),
            later: BTreeSet::new(),
            indexed,
            all: mine.to_vec(),
        };
        tally.count_index_failures(job, spec, completions);
        for pod in tracked.values().copied() {
            let own = index::of_pod(pod).filter(|index| *index < completions);
            if pods::phase(pod) == "Succeeded" && !is_named(&new_failed[..known_failed], pod) {
                match own {
                    Some(index) if indexed => tally.succeeded_indexes.insert(index),
                    None if indexed => {}
                    _ if is_named(&new_succeeded[..known_succeeded], pod) => {}
                    _ => new_succeeded.push(uid(pod).to_owned()),
                }
                tally.ended.push(pod);
            } else if pods::phase(pod) == "Succeeded" {
                // The pod was counted as failed when its deletion started, and stays so.
                tally.ended.push(pod);
            } else if has_failed(spec, pod) || (fails && pod.metadata.deletion_timestamp.is_some()) {
                // A pod that is stopped because the Job has failed counts, replaced or not. A pod that is stopped
                // because the Job has succeeded hasn't failed.
                if (!succeeds || pods::phase(pod) == "Failed")
                    && tally.counts(job, pod, own)
                    && !is_named(&new_failed[..known_failed], pod)
                {
                    new_failed.push(uid(pod).to_owned());
                }
                tally.ended.push(pod);
            }
        }
        if indexed {
            tally.counted_succeeded = tally.succeeded_indexes.len();
        }
        tally.name((new_succeeded, known_succeeded), (new_failed, known_failed));
        tally
    }

    /// Counts the terminal pods that aren't counted yet, and chooses the uids for the status. Uids that are in the
    /// status already come first; they stay until their finalizer is gone, even beyond the limit.
    fn name(
        &mut self,
        (mut succeeded, known_succeeded): (Vec<String>, usize),
        (mut failed, known_failed): (Vec<String>, usize),
    ) {
        let number = |uids: &[String]| i32::try_from(uids.len()).unwrap_or(i32::MAX);
        self.succeeded = self.counted_succeeded.saturating_add(number(&succeeded));
        self.failed = self.counted_failed.saturating_add(number(&failed));
        self.later = beyond(&mut succeeded, UNCOUNTED_MAX.saturating_sub(known_failed).max(known_succeeded));
        self.later.append(&mut beyond(&mut failed, UNCOUNTED_MAX.saturating_sub(succeeded.len()).max(known_failed)));
        self.uncounted = UncountedTerminatedPods { succeeded: list(succeeded), failed: list(failed) };
    }

    /// Whether a pod's failure counts by the Job's policy, which may also fail the Job.
    fn counts(&mut self, job: &Job, pod: &Pod, own: Option<i32>) -> bool {
        let verdict = policy::verdict(job, pod);
        if let Verdict::FailsJob(message) = &verdict {
            self.fails_job.get_or_insert_with(|| message.clone());
        }
        verdict != Verdict::Ignored && (!self.indexed || own.is_some())
    }

    /// With a limit per index: the failures of each index, the indexes over the limit, and the pods to keep.
    fn count_index_failures(&mut self, job: &Job, spec: &JobSpec, completions: i32) {
        let (Some(limit), Some(mut over)) = (spec.backoff_limit_per_index, self.failed_indexes.take()) else { return };
        let limit = u32::try_from(limit).unwrap_or(0);
        let mut last: BTreeMap<i32, (u32, Timestamp, &'a Pod)> = BTreeMap::new();
        let ends = is_to_end(job, "FailureTarget") || is_to_end(job, "SuccessCriteriaMet");
        // A surplus pod has lost its finalizer before its deletion, and doesn't count for its index.
        for pod in self.all.iter().copied().filter(|pod| is_tracked(pod) && has_failed(spec, pod)) {
            let Some(index) = index::of_pod(pod).filter(|index| *index < completions) else { continue };
            let before = pod
                .metadata
                .annotations
                .as_ref()
                .and_then(|a| a.get(create::FAILURE_COUNT)?.parse::<u32>().ok())
                .unwrap_or(0);
            let verdict = policy::verdict(job, pod);
            let failures = before + u32::from(verdict != Verdict::Ignored);
            // Neither does a pod that is stopped because the Job ends.
            if (verdict == Verdict::FailsIndex || failures > limit) && (!ends || pods::phase(pod) == "Failed") {
                over.insert(index);
            }
            let ended = policy::finished_at(pod);
            let newer = last.get(&index).is_none_or(|(known, at, _)| (failures, ended) >= (*known, *at));
            if newer {
                last.insert(index, (failures, ended, pod));
            }
        }
        let busy: BTreeSet<i32> = self.active.iter().filter_map(|pod| index::of_pod(pod)).collect();
        for (index, (failures, ended, pod)) in last {
            self.index_failures.insert(index, (failures, ended));
            if !busy.contains(&index) && !over.contains(index) && !self.succeeded_indexes.contains(index) {
                self.kept.insert(uid(pod).to_owned());
            }
        }
        self.failed_indexes = Some(over);
    }

    /// The failures of an index, and when its last pod ended.
    pub(super) fn failures_of(&self, index: i32) -> (u32, Timestamp) {
        self.index_failures.get(&index).copied().unwrap_or((0, Timestamp::UNIX_EPOCH))
    }

    /// With restartPolicy OnFailure, restarts in place count towards the limit.
    pub(super) fn past_limit_in_place(&self, spec: &JobSpec, limit: i32) -> bool {
        if spec.template.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref()) != Some("OnFailure") {
            return false;
        }
        let statuses = self.active.iter().filter_map(|pod| pod.status.as_ref());
        let restarts = statuses
            .flat_map(|status| {
                status.container_statuses.iter().flatten().chain(status.init_container_statuses.iter().flatten())
            })
            .map(|container| container.restart_count)
            .fold(0i32, i32::saturating_add);
        if limit == 0 { restarts > 0 } else { restarts >= limit }
    }

    /// The lowest indexes without an active pod.
    pub(super) fn free_indexes(&self, completions: i32, not_terminating: bool) -> impl Iterator<Item = i32> + use<> {
        let waits = if not_terminating { self.terminating.as_slice() } else { &[] };
        let mut taken: Indexes = self.active.iter().chain(waits).filter_map(|pod| index::of_pod(pod)).collect();
        taken.extend(&self.succeeded_indexes);
        self.failed_indexes.iter().for_each(|failed| taken.extend(failed));
        taken.missing(completions)
    }

    /// The pods whose finalizer is removed after the status is written; all of them if the Job ends.
    pub(super) fn to_untrack(&self, ends: bool) -> impl Iterator<Item = &'a Pod> {
        let all = self.all.iter().copied().filter(move |pod| ends && is_tracked(pod) && !pods::is_active(pod));
        let ended = self.ended.iter().copied().filter(move |pod| !ends && !self.kept.contains(uid(pod)));
        all.chain(ended).filter(|pod| !self.later.contains(uid(pod)))
    }

    /// The new status, and the events for its changes.
    pub(super) fn status(
        &self,
        job: &Job,
        spec: &JobSpec,
        ending: Option<&Ending>,
        suspended: bool,
        now: Timestamp,
    ) -> (JobStatus, Vec<EventRecord>) {
        let mut status = job.status.clone().unwrap_or_default();
        let mut events = Vec::new();
        let number = |n: usize| i32::try_from(n).unwrap_or(i32::MAX);
        let running: &[&Pod] = if ending.is_some() { &[] } else { &self.active };
        status.active = pods::count(number(running.len()));
        status.ready = Some(number(running.iter().filter(|pod| pods::is_ready(pod)).count()));
        status.terminating =
            Some(number(self.terminating.len() + if ending.is_some() { self.active.len() } else { 0 }));
        status.succeeded = pods::count(self.counted_succeeded);
        status.failed = pods::count(self.counted_failed);
        let mut uncounted = self.uncounted.clone();
        if ending.is_none() && job.metadata.deletion_timestamp.is_none() {
            // A kept pod is added to the status once it is replaced.
            uncounted.failed = uncounted
                .failed
                .and_then(|failed| list(failed.into_iter().filter(|uid| !self.kept.contains(uid)).collect()));
        }
        status.uncounted_terminated_pods = Some(uncounted);
        if self.indexed {
            status.completed_indexes = Some(self.succeeded_indexes.to_string()).filter(|text| !text.is_empty());
        }
        if let Some(failed) = &self.failed_indexes {
            status.failed_indexes = Some(failed.to_string());
        }
        let mut conditions = status.conditions.take().unwrap_or_default();
        if !suspended {
            // Also for a Job that ends before any pod was created.
            status.start_time.get_or_insert_with(|| pods::stamp(now));
        }
        match ending {
            None if suspended => {
                if set(&mut conditions, "Suspended", "True", "JobSuspended", "Job suspended", now) {
                    events.push(EventRecord::normal(job, "Suspended", "Job suspended"));
                }
                status.start_time = None;
            }
            None => {
                if conditions.iter().any(|c| c.type_ == "Suspended" && c.status == "True") {
                    set(&mut conditions, "Suspended", "False", "JobResumed", "Job resumed", now);
                    events.push(EventRecord::normal(job, "Resumed", "Job resumed"));
                    status.start_time = Some(pods::stamp(now));
                }
            }
            Some(ending) => self.end(job, spec, ending, &mut status, &mut conditions, &mut events, now),
        }
        status.conditions = (!conditions.is_empty()).then_some(conditions);
        (status, events)
    }

    /// First the pending condition; then, once no pod is active and each is counted, the final one.
    #[expect(clippy::too_many_arguments, reason = "the parts of one status that is being written")]
    fn end(
        &self,
        job: &Job,
        spec: &JobSpec,
        ending: &Ending,
        status: &mut JobStatus,
        conditions: &mut Vec<JobCondition>,
        events: &mut Vec<EventRecord>,
        now: Timestamp,
    ) {
        let (target, terminal) =
            if ending.success { ("SuccessCriteriaMet", "Complete") } else { ("FailureTarget", "Failed") };
        set(conditions, target, "True", &ending.reason, &ending.message, now);
        let settled = self.active.is_empty() && self.terminating.is_empty();
        let uncounted = self.uncounted.succeeded.is_some() || self.uncounted.failed.is_some();
        if !settled || uncounted || !self.later.is_empty() {
            return;
        }
        set(conditions, terminal, "True", &ending.reason, &ending.message, now);
        if ending.success {
            status.completion_time = Some(pods::stamp(now));
            if spec.completions.is_some_and(|wanted| self.succeeded > wanted) {
                events.push(EventRecord::warning(
                    job,
                    "TooManySucceededPods",
                    "Too many succeeded pods running after completion count reached",
                ));
            }
            events.push(EventRecord::normal(job, "Completed", "Job completed"));
        } else {
            let reason = match ending.reason.as_str() {
                "BackoffLimitExceeded" => "BackoffLimitExceeded",
                "DeadlineExceeded" => "DeadlineExceeded",
                "PodFailurePolicy" => "PodFailurePolicy",
                "MaxFailedIndexesExceeded" => "MaxFailedIndexesExceeded",
                _ => "FailedIndexes",
            };
            events.push(EventRecord::warning(job, reason, ending.message.clone()));
        }
    }
}

/// Sets a condition; returns whether its status changed.
fn set(
    conditions: &mut Vec<JobCondition>,
    kind: &str,
    status: &str,
    reason: &str,
    message: &str,
    now: Timestamp,
) -> bool {
    if conditions.iter().any(|c| c.type_ == kind && c.status == status) {
        return false;
    }
    let condition = JobCondition {
        type_: kind.into(),
        status: status.into(),
        reason: Some(reason.into()),
        message: Some(message.into()),
        last_probe_time: Some(pods::stamp(now)),
        last_transition_time: Some(pods::stamp(now)),
    };
    conditions::set(conditions, condition);
    true
}
