//! Whatever waits for a time is done soon after it, however often others write of it meanwhile: pods that tolerate a taint for
//! some seconds, Jobs with a deadline or a time to live, pods that are being deleted.
//!
//! A wait begins when the store shows first what it waits for; how late it is counts from when faults ended.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;

use super::invariants::ended;
use crate::history::{History, Step, Version};

const PODS: &str = "/registry/pods/";
const NODES: &str = "/registry/minions/";
const JOBS: &str = "/registry/jobs/";
/// How long after its time something may still wait where nothing goes wrong: a pod that no longer tolerates its node, and
/// what waits for pods to end, which may be on a node that is gone and have a quarantine.
const LATE: Duration = Duration::from_secs(30);
const LATE_ENDING: Duration = Duration::from_secs(120);

/// The taint that users set.
pub(crate) const TAINT: &str = "example.com/trouble";

/// What an object waits for.
type What = &'static str;
const TOLERATION: What = "the end of its toleration";

/// See the module.
#[derive(Default)]
pub(crate) struct Waits {
    /// By uid and what is waited for: the object's key, and when its time is over.
    due: BTreeMap<(String, What), (String, Instant)>,
    /// Since when nothing goes wrong.
    calm: Option<Instant>,
}

fn seconds(value: &Value) -> Option<Duration> {
    value.as_u64().map(Duration::from_secs)
}

fn has_ended(job: &Value) -> bool {
    let conditions = job["status"]["conditions"].as_array().into_iter().flatten();
    conditions.into_iter().any(|condition| {
        matches!(condition["type"].as_str(), Some("Complete" | "Failed")) && condition["status"] == "True"
    })
}

/// For how long a pod tolerates what users do to its node; none: for ever, or there is nothing to tolerate.
fn tolerated(pod: &Value, node: &Value) -> Option<Duration> {
    let taints = node["spec"]["taints"].as_array().into_iter().flatten();
    let tainted = taints.into_iter().any(|taint| taint["key"] == TAINT && taint["effect"] == "NoExecute");
    if !tainted {
        return None;
    }
    let tolerations = pod["spec"]["tolerations"].as_array().into_iter().flatten();
    let matching: Vec<&Value> = tolerations
        .filter(|one| one["key"].is_null() || one["key"] == TAINT)
        .filter(|one| one["effect"].is_null() || one["effect"] == "NoExecute")
        .collect();
    if matching.is_empty() {
        return Some(Duration::ZERO);
    }
    matching.iter().filter_map(|one| seconds(&one["tolerationSeconds"])).min()
}

/// Whether somebody ends the pods of a node.
fn is_well(node: Option<&Value>) -> bool {
    let conditions = node.and_then(|node| node["status"]["conditions"].as_array()).into_iter().flatten();
    conditions.into_iter().any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}

/// What an object waits for now, and for how long at most.
fn waits(history: &History, key: &str, object: &Value) -> Vec<(What, Duration)> {
    let mut all = Vec::new();
    let metadata = &object["metadata"];
    let going = !metadata["deletionTimestamp"].is_null();
    let held = metadata["finalizers"].as_array().is_some_and(|finalizers| !finalizers.is_empty());
    if key.starts_with(PODS) {
        let node = object["spec"]["nodeName"].as_str().unwrap_or_default();
        let node = history.at(&format!("{NODES}{node}"), u64::MAX).filter(|_| !node.is_empty());
        if going && !held && is_well(node.as_deref().map(Version::value)) {
            let grace = seconds(&metadata["deletionGracePeriodSeconds"]).unwrap_or_default();
            all.push(("its deletion", grace));
        }
        if let Some(time) = node.and_then(|node| tolerated(object, node.value())).filter(|_| !going && !ended(object)) {
            all.push((TOLERATION, time));
        }
    } else if key.starts_with(JOBS) && !going {
        let (spec, status) = (&object["spec"], &object["status"]);
        if has_ended(object) {
            all.extend(seconds(&spec["ttlSecondsAfterFinished"]).map(|time| ("the end of its time to live", time)));
        } else if !status["startTime"].is_null() {
            all.extend(seconds(&spec["activeDeadlineSeconds"]).map(|time| ("its deadline", time)));
        }
    }
    all
}

impl Waits {
    /// From now on nothing goes wrong.
    pub(crate) fn calm(&mut self, now: Instant) {
        self.calm = Some(now);
    }

    /// Everybody's clock was set: what is counted by it comes later where it was set back.
    pub(crate) fn jumped(&mut self, seconds: i64) {
        let back = Duration::from_secs(u64::try_from(-seconds).unwrap_or(0));
        self.due.values_mut().for_each(|(_, due)| *due += back);
    }

    /// Takes one step in; answers what has waited for too long.
    pub(crate) fn step(&mut self, history: &History, step: &Step, now: Instant) -> Vec<String> {
        let touched: Vec<(String, Value)> = if let Some(node) = step.key.strip_prefix(NODES) {
            let pods = history.now(PODS);
            let on_it = pods.iter().filter(|(_, pod)| pod.value()["spec"]["nodeName"] == *node);
            on_it.map(|(key, pod)| (key.to_string(), pod.value().clone())).collect()
        } else if step.key.starts_with(PODS) || step.key.starts_with(JOBS) {
            if let Some(old) = &step.old {
                let uid = old.value()["metadata"]["uid"].as_str().unwrap_or_default();
                let same = |new: &Value| new["metadata"]["uid"] == uid;
                if !step.new.as_deref().is_some_and(|new| same(new.value())) {
                    self.due.retain(|(known, _), _| known != uid);
                }
            }
            step.new.iter().map(|new| (step.key.to_string(), new.value().clone())).collect()
        } else {
            Vec::new()
        };
        for (key, object) in touched {
            self.see(history, &key, &object, now);
        }
        self.overdue(now)
    }

    fn see(&mut self, history: &History, key: &str, object: &Value, now: Instant) {
        let uid = object["metadata"]["uid"].as_str().unwrap_or_default();
        let waits = waits(history, key, object);
        self.due.retain(|(known, what), _| known != uid || waits.iter().any(|(other, _)| other == what));
        for (what, time) in waits {
            let due = (key.to_owned(), now + time);
            let known = self.due.entry((uid.to_owned(), what)).or_insert_with(|| due.clone());
            // A time may be shortened, not lengthened.
            if due.1 < known.1 {
                *known = due;
            }
        }
    }

    /// What has waited for too long, each told once.
    fn overdue(&mut self, now: Instant) -> Vec<String> {
        let Some(calm) = self.calm else { return Vec::new() };
        let allowed = |what: What| if what == TOLERATION { LATE } else { LATE_ENDING };
        let mut found = Vec::new();
        self.due.retain(|(_, what), (key, due)| {
            let late = now > (*due).max(calm) + allowed(*what);
            if late {
                found.push(format!("{key} still waits for {what}, {} s later", (now - *due).as_secs()));
            }
            !late
        });
        found
    }

    /// Whether something waits for the end of a toleration.
    pub(crate) fn tolerates(&self) -> bool {
        self.due.keys().any(|(_, what)| *what == TOLERATION)
    }
}
