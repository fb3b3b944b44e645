//! Timed waits end soon after their time, however often other writers change the object: pods that tolerate a taint for some
//! seconds, Jobs with a deadline or a time to live, pods in deletion.
//!
//! A wait starts when the store first contains its cause; its delay counts from the end of faults.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;

use super::invariants::ended;
use crate::history::{History, KeyChange, Version};

const PODS: &str = "/registry/pods/";
const NODES: &str = "/registry/minions/";
const JOBS: &str = "/registry/jobs/";
/// Maximum delays without faults: of a pod that no longer tolerates its node, and of waits for pods to end, which may be on a
/// removed node and be quarantined.
const LATE: Duration = Duration::from_secs(30);
const LATE_ENDING: Duration = Duration::from_secs(120);

/// The taint that users set.
pub(crate) const TAINT: &str = "example.com/trouble";

/// The event that an object waits for.
type WaitKind = &'static str;
const TOLERATION: WaitKind = "the end of its toleration";

/// Checks waits.
#[derive(Default)]
pub(crate) struct Waits {
    /// By uid and event: the object's key, and the end of its time.
    due: BTreeMap<(String, WaitKind), (String, Instant)>,
    /// Start of the time without faults.
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

/// The time that a pod tolerates users' taint of its node; `None`: for ever, or without the taint.
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

/// Whether a node ends its pods.
fn is_well(node: Option<&Value>) -> bool {
    let conditions = node.and_then(|node| node["status"]["conditions"].as_array()).into_iter().flatten();
    conditions.into_iter().any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}

/// An object's current waits, with their maximum time.
fn waits(history: &History, key: &str, object: &Value) -> Vec<(WaitKind, Duration)> {
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
    /// Marks the end of faults.
    pub(crate) fn calm(&mut self, now: Instant) {
        self.calm = Some(now);
    }

    /// Adjusts for a step of all clocks: a step back delays their deadlines.
    pub(crate) fn clock_stepped(&mut self, seconds: i64) {
        let back = Duration::from_secs(u64::try_from(-seconds).unwrap_or(0));
        self.due.values_mut().for_each(|(_, due)| *due += back);
    }

    /// Records one change; returns overdue waits.
    pub(crate) fn step(&mut self, history: &History, step: &KeyChange, now: Instant) -> Vec<String> {
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
            self.update_deadlines(history, &key, &object, now);
        }
        self.overdue(now)
    }

    fn update_deadlines(&mut self, history: &History, key: &str, object: &Value, now: Instant) {
        let uid = object["metadata"]["uid"].as_str().unwrap_or_default();
        let waits = waits(history, key, object);
        self.due.retain(|(known, what), _| known != uid || waits.iter().any(|(other, _)| other == what));
        for (what, time) in waits {
            let due = (key.to_owned(), now + time);
            let known = self.due.entry((uid.to_owned(), what)).or_insert_with(|| due.clone());
            // A deadline may be shortened, not extended.
            if due.1 < known.1 {
                *known = due;
            }
        }
    }

    /// Overdue waits, each reported once.
    fn overdue(&mut self, now: Instant) -> Vec<String> {
        let Some(calm) = self.calm else { return Vec::new() };
        let allowed = |what: WaitKind| if what == TOLERATION { LATE } else { LATE_ENDING };
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

    /// Whether a pod waits for the end of a toleration.
    pub(crate) fn tolerates(&self) -> bool {
        self.due.keys().any(|(_, what)| *what == TOLERATION)
    }
}
