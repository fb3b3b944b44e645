//! Validation of a Job's status, and of its transitions.

use std::collections::BTreeSet;

use serde_json::Value;

use super::policies::intervals;
use super::validate::error_without_value;
use super::{is_finished, is_true};
use crate::core::workloads::{STATUS, not_negative};
use crate::field::{ErrorList, FieldError};
use crate::read::{get, has, int, is_zero, items, text, time};

/// Validates an update of the status.
pub(super) fn update(errors: &mut ErrorList, new: &Value, old: &Value) {
    let (spec, status, was) = (get(new, "spec"), get(new, "status"), get(old, "status"));
    let changed = |key: &str| get(status, key) != get(was, key);
    let turned = |kind: &str| is_true(new, kind) != is_true(old, kind);
    not_negative(errors, status, &["active", "succeeded", "failed", "ready", "terminating"], &STATUS);
    uncounted(errors, status);
    conditions(errors, new, &turned);
    times(errors, new, &changed, &turned);
    let finished = is_finished(new);
    let finish_turned = finished != is_finished(old);
    let active = int(status, "active").unwrap_or(0);
    if (finish_turned || changed("active")) && active > 0 && finished {
        errors.invalid(&STATUS.child("active"), active, "active>0 is invalid for finished job");
    }
    let nothing_to_do = get(spec, "suspend") == &Value::Bool(true) && int(spec, "completions") == Some(0);
    if (finish_turned || changed("startTime")) && !nothing_to_do && finished && !has(status, "startTime") {
        errors.required(&STATUS.child("startTime"), "startTime is required for finished job");
    }
    let pods = get(status, "uncountedTerminatedPods");
    let some = !items(pods, "failed").is_empty() || !items(pods, "succeeded").is_empty();
    if (finish_turned || changed("uncountedTerminatedPods")) && finished && some {
        let shown = format!("{{\"Succeeded\":{},\"Failed\":{}}}", get(pods, "succeeded"), get(pods, "failed"));
        let at = STATUS.child("uncountedTerminatedPods");
        errors.add(|| FieldError::invalid_shown(&at, &shown, "must be empty for finished job"));
    }
    indexes(errors, new, &changed);
    let terminating = int(status, "terminating").unwrap_or(0);
    if (finish_turned || changed("terminating")) && terminating > 0 && finished {
        errors.invalid(&STATUS.child("terminating"), terminating, "terminating>0 is invalid for finished job");
    }
    if let Some(ready) = int(status, "ready").filter(|r| *r > active && (changed("ready") || changed("active"))) {
        errors.invalid(&STATUS.child("ready"), ready, "cannot set more ready pods than active");
    }
    criteria(errors, new);
    going_on(errors, new, old);
}

fn uncounted(errors: &mut ErrorList, status: &Value) {
    let at = STATUS.child("uncountedTerminatedPods");
    let mut seen = BTreeSet::new();
    for key in ["succeeded", "failed"] {
        let list_at = at.child(key);
        for (i, uid) in items(get(status, "uncountedTerminatedPods"), key).iter().enumerate() {
            let uid = uid.as_str().unwrap_or("");
            if uid.is_empty() {
                errors.invalid(&list_at.index(i), "", "must not be empty");
            } else if !seen.insert(uid) {
                errors.duplicate(&list_at.index(i), uid);
            }
        }
    }
}

fn conditions(errors: &mut ErrorList, job: &Value, turned: &dyn Fn(&str) -> bool) {
    let at = STATUS.child("conditions");
    let mut both = |one: &str, other: &str, checked: bool, why: &str| {
        if checked && is_true(job, one) && is_true(job, other) {
            errors.add(|| error_without_value(&at, why));
        }
    };
    let why = "cannot set Complete=True and Failed=true conditions";
    both("Complete", "Failed", turned("Complete") || turned("Failed"), why);
    let why = "cannot set Complete=True and FailureTarget=true conditions";
    both("Complete", "FailureTarget", turned("Complete") || turned("FailureTarget"), why);
}

fn times(errors: &mut ErrorList, job: &Value, changed: &dyn Fn(&str) -> bool, turned: &dyn Fn(&str) -> bool) {
    let status = get(job, "status");
    let at = STATUS.child("completionTime");
    let end = get(status, "completionTime");
    let complete = is_true(job, "Complete");
    if turned("Complete") || changed("completionTime") {
        if !end.is_null() && !complete {
            let why = "cannot set completionTime when there is no Complete=True condition";
            errors.invalid(&at, end.clone(), why);
        }
        if end.is_null() && complete {
            errors.required(&at, "completionTime is required for Complete jobs");
        }
    }
    if changed("startTime") || changed("completionTime") {
        let (from, to) = (time(status, "startTime"), time(status, "completionTime"));
        if from.zip(to).is_some_and(|(from, to)| to < from) {
            errors.invalid(&at, end.clone(), "must be equal to or after `startTime`");
        }
    }
    let at = STATUS.child("conditions");
    let failed_indexes = changed("failedIndexes");
    if (turned("Failed") || failed_indexes) && is_true(job, "Failed") && !is_true(job, "FailureTarget") {
        let why = "cannot set Failed=True condition without the FailureTarget=true condition";
        errors.add(|| error_without_value(&at, why));
    }
    if (turned("Complete") || turned("SuccessCriteriaMet")) && complete && !is_true(job, "SuccessCriteriaMet") {
        let why = "cannot set Complete=True condition without the SuccessCriteriaMet=true condition";
        errors.add(|| error_without_value(&at, why));
    }
}

fn indexes(errors: &mut ErrorList, job: &Value, changed: &dyn Fn(&str) -> bool) {
    let (spec, status) = (get(job, "spec"), get(job, "status"));
    let (done, failed) = (text(status, "completedIndexes"), text(status, "failedIndexes"));
    let (done_at, failed_at) = (STATUS.child("completedIndexes"), STATUS.child("failedIndexes"));
    let has_failed = has(status, "failedIndexes");
    let per_index = has(spec, "backoffLimitPerIndex");
    let all = int(spec, "completions");
    if changed("completedIndexes")
        && let Some(all) = all
        && let Err(why) = intervals(done, all)
    {
        errors.invalid(&done_at, done, &format!("error parsing completedIndexes: {why}"));
    }
    if changed("failedIndexes")
        && let Some(all) = all
        && per_index
        && has_failed
        && let Err(why) = intervals(failed, all)
    {
        errors.invalid(&failed_at, failed, &format!("error parsing failedIndexes: {why}"));
    }
    if changed("completedIndexes") && !done.is_empty() && text(spec, "completionMode") != "Indexed" {
        let why = "cannot set non-empty completedIndexes when non-indexed completion mode";
        errors.invalid(&done_at, done, why);
    }
    if changed("failedIndexes") && !per_index && has_failed {
        let why = "cannot set non-null failedIndexes when backoffLimitPerIndex is null";
        errors.invalid(&failed_at, failed, why);
    }
    if (changed("failedIndexes") || changed("completedIndexes"))
        && has_failed
        && let Some(all) = all
        && let (Ok(done), Ok(lost)) = (intervals(done, all), intervals(failed, all))
        && let Some(index) = first_common(&done, &lost)
    {
        let why = format!("failedIndexes and completedIndexes overlap at index: {index}");
        errors.invalid(&failed_at, failed, &why);
    }
}

/// The first index that two ascending lists of intervals share.
fn first_common(done: &[(i64, i64)], lost: &[(i64, i64)]) -> Option<i64> {
    let mut lost = lost.iter().peekable();
    done.iter().find_map(|(a, b)| {
        while lost.next_if(|(_, d)| d < a).is_some() {}
        lost.peek().filter(|(c, _)| c <= b).map(|(c, _)| *a.max(c))
    })
}

fn criteria(errors: &mut ErrorList, job: &Value) {
    let at = STATUS.child("conditions");
    let met = is_true(job, "SuccessCriteriaMet");
    if met && is_true(job, "Failed") {
        errors.add(|| error_without_value(&at, "cannot set SuccessCriteriaMet=True and Failed=true conditions"));
    }
    if met && is_true(job, "FailureTarget") {
        errors.add(|| error_without_value(&at, "cannot set SuccessCriteriaMet=True and FailureTarget=true conditions"));
    }
    if has(get(job, "spec"), "successPolicy") && !met && is_true(job, "Complete") {
        let why = "cannot set Complete=True for Job with SuccessPolicy unless SuccessCriteriaMet=True";
        errors.add(|| error_without_value(&at, why));
    }
}

fn going_on(errors: &mut ErrorList, new: &Value, old: &Value) {
    let (spec, status, was) = (get(new, "spec"), get(new, "status"), get(old, "status"));
    let at = STATUS.child("conditions");
    for kind in ["Failed", "Complete", "FailureTarget"] {
        if is_true(old, kind) && !is_true(new, kind) {
            errors.add(|| error_without_value(&at, &format!("cannot disable the terminal {kind}=True condition")));
        }
    }
    let count = |of: &Value, key: &str| int(of, key).unwrap_or(0);
    if count(status, "failed") < count(was, "failed") {
        errors.invalid(&STATUS.child("failed"), count(status, "failed"), "cannot decrease the failed counter");
    }
    let elastic = text(spec, "completionMode") == "Indexed" && int(spec, "completions") == int(spec, "parallelism");
    if !elastic && count(status, "succeeded") < count(was, "succeeded") {
        let why = "cannot decrease the succeeded counter";
        errors.invalid(&STATUS.child("succeeded"), count(status, "succeeded"), why);
    }
    let (end, ended) = (get(status, "completionTime"), get(was, "completionTime"));
    if !end.is_null() && !ended.is_null() && end != ended {
        errors.invalid(&STATUS.child("completionTime"), end.clone(), "field is immutable");
    }
    let (start, started) = (get(status, "startTime"), get(was, "startTime"));
    let resumed = is_true(old, "Suspended")
        && items(status, "conditions").iter().any(|c| text(c, "type") == "Suspended" && text(c, "status") == "False");
    let suspended = get(spec, "suspend") == &Value::Bool(true);
    if !is_zero(started) && start != started && !suspended && !resumed {
        let why = "field is immutable for unsuspended job once set";
        errors.invalid(&STATUS.child("startTime"), start.clone(), why);
    }
    let (met, was_met) = (is_true(new, "SuccessCriteriaMet"), is_true(old, "SuccessCriteriaMet"));
    if was_met && !met {
        errors.add(|| error_without_value(&at, "cannot disable the SuccessCriteriaMet=True condition"));
    }
    if is_true(old, "Complete") && !was_met && met {
        let why = "cannot set SuccessCriteriaMet=True for Job already has Complete=true conditions";
        errors.add(|| error_without_value(&at, why));
    }
}
