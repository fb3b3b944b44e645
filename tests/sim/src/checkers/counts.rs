//! A Job counts each finished pod once: its status lists the pod, then the pod loses its finalizer, then the number grows by
//! the pods no longer listed. A controller that dies in between loses nothing and counts nothing twice.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::history::KeyChange;

const JOBS: &str = "/registry/jobs/";
const PODS: &str = "/registry/pods/";
/// The finalizer of an uncounted pod.
const TRACKED: &str = "batch.kubernetes.io/job-tracking";

/// State of a Job.
#[derive(Default)]
struct JobState {
    /// Pods that its status has ever listed.
    named: BTreeSet<String>,
    /// The current status.
    status: Value,
    indexed: bool,
    going: bool,
}

/// State derived from earlier changes.
#[derive(Default)]
pub(crate) struct Counts {
    /// By uid.
    jobs: BTreeMap<String, JobState>,
    /// Pods that Jobs control, with whether the finalizer holds them.
    jobs_pods: BTreeMap<String, bool>,
}

fn text<'a>(object: &'a Value, path: &str) -> &'a str {
    object.pointer(path).and_then(Value::as_str).unwrap_or_default()
}

fn number(status: &Value, field: &str) -> i64 {
    status[field].as_i64().unwrap_or(0)
}

fn uncounted(status: &Value, field: &str) -> BTreeSet<String> {
    let uids = status["uncountedTerminatedPods"][field].as_array().into_iter().flatten();
    uids.filter_map(|uid| uid.as_str().map(str::to_owned)).collect()
}

/// The indexes of `1,3-5,7`.
fn indexes(text: &str) -> BTreeSet<i64> {
    let parts = text.split(',').filter(|part| !part.is_empty());
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.parse::<i64>().ok()?..=last.parse().ok()?)
    };
    parts.filter_map(range).flatten().collect()
}

/// The Job that controls a pod.
fn job_of(pod: &Value) -> Option<&str> {
    let owners = pod["metadata"]["ownerReferences"].as_array().into_iter().flatten();
    owners.into_iter().find(|owner| owner["controller"] == true && owner["kind"] == "Job")?["uid"].as_str()
}

fn is_tracked(pod: &Value) -> bool {
    pod["metadata"]["finalizers"].as_array().into_iter().flatten().any(|name| name == TRACKED)
}

fn has_condition(status: &Value, kind: &str) -> bool {
    let conditions = status["conditions"].as_array().into_iter().flatten();
    conditions.into_iter().any(|condition| condition["type"] == kind && condition["status"] == "True")
}

impl Counts {
    /// The violations of one change.
    pub(crate) fn step(&mut self, step: &KeyChange) -> Vec<String> {
        let mut problems = Vec::new();
        let (old, new) = (step.old.as_deref(), step.new.as_deref());
        if step.key.starts_with(JOBS) {
            match (new, old) {
                (Some(new), _) => self.job(new.value(), &mut problems),
                (None, Some(old)) => drop(self.jobs.remove(text(old.value(), "/metadata/uid"))),
                (None, None) => {}
            }
        } else if step.key.starts_with(PODS) {
            self.pod(old.map(|old| old.value()), new.map(|new| new.value()), &mut problems);
        }
        problems.into_iter().map(|problem| format!("{} at {}: {problem}", step.key, step.revision)).collect()
    }

    fn job(&mut self, job: &Value, problems: &mut Vec<String>) {
        let known = self.jobs.entry(text(job, "/metadata/uid").to_owned()).or_default();
        known.indexed = job["spec"]["completionMode"] == "Indexed";
        known.going = !job["metadata"]["deletionTimestamp"].is_null();
        let (old, new) = (std::mem::replace(&mut known.status, job["status"].clone()), &job["status"]);
        let mut named_now = BTreeSet::new();
        for field in ["succeeded", "failed"] {
            let (before, after) = (uncounted(&old, field), uncounted(new, field));
            for uid in after.difference(&before) {
                if !known.named.insert(uid.clone()) {
                    problems.push(format!("the pod {uid} is counted twice"));
                }
                match self.jobs_pods.get(uid) {
                    Some(true) => {}
                    _ => problems.push(format!("the pod {uid} is counted, and nothing holds it")),
                }
            }
            for uid in before.difference(&after) {
                if self.jobs_pods.get(uid) == Some(&true) {
                    problems.push(format!("the pod {uid} counts by now, and is held to be counted"));
                }
            }
            if !after.is_disjoint(&named_now) {
                problems.push(format!("one pod has succeeded and failed: {}", new["uncountedTerminatedPods"]));
            }
            named_now.extend(after.iter().cloned());
            let (grown, left) = (number(new, field) - number(&old, field), before.difference(&after).count());
            if !(known.indexed && field == "succeeded") && i64::try_from(left) != Ok(grown) {
                problems.push(format!("{grown} more have {field}, and {left} are to be counted no more"));
            }
        }
        if known.indexed {
            let (before, after) = (indexes(text(&old, "/completedIndexes")), indexes(text(new, "/completedIndexes")));
            if !after.is_superset(&before) || i64::try_from(after.len()) != Ok(number(new, "succeeded")) {
                let count = number(new, "succeeded");
                problems.push(format!("{count} have succeeded: the indexes {after:?}, and before {before:?}"));
            }
        }
        let over = has_condition(new, "Complete") || has_condition(new, "Failed");
        if over && !named_now.is_empty() {
            problems.push(format!("it is over, and {named_now:?} are not counted"));
        }
    }

    fn pod(&mut self, old: Option<&Value>, new: Option<&Value>, problems: &mut Vec<String>) {
        let Some(pod) = new.or(old) else { return };
        let (uid, tracked) = (text(pod, "/metadata/uid"), new.is_some_and(is_tracked));
        match new.and_then(job_of) {
            Some(_) => {
                if old.is_none() && !tracked {
                    problems.push("a Job's pod is made that nothing holds".into());
                }
                self.jobs_pods.insert(uid.to_owned(), tracked);
            }
            None => drop(self.jobs_pods.remove(uid)),
        }
        let lost = old.is_some_and(is_tracked) && !tracked;
        // A pod without a controller is not counted.
        let job = if new.is_some() { new.and_then(job_of) } else { old.and_then(job_of) };
        let Some(job) = job.and_then(|job| self.jobs.get(job)).filter(|job| lost && !job.going) else { return };
        if !job.counts(pod, uid) {
            problems.push(format!("it is let go and not counted: {}", job.status));
        }
    }
}

impl JobState {
    /// Whether the status accounts for a finished pod.
    fn counts(&self, pod: &Value, uid: &str) -> bool {
        let phase = pod["status"]["phase"].as_str().unwrap_or_default();
        let ended = matches!(phase, "Succeeded" | "Failed");
        // A surplus pod loses its finalizer first, then is deleted: it isn't counted.
        if !ended && pod["metadata"]["deletionTimestamp"].is_null() {
            return true;
        }
        let index = text(pod, "/metadata/annotations/batch.kubernetes.io~1job-completion-index").parse::<i64>();
        let done = indexes(text(&self.status, "/completedIndexes"));
        uncounted(&self.status, "succeeded").contains(uid)
            || uncounted(&self.status, "failed").contains(uid)
            || (self.indexed && phase == "Succeeded" && index.is_ok_and(|index| done.contains(&index)))
            // A pod stopped after the Job's success hasn't failed.
            || (!ended && has_condition(&self.status, "SuccessCriteriaMet"))
    }
}
