//! Eviction decisions: the pod's phase and readiness, and the status of its budget. Pure: the registry reads and
//! writes.

use jiff::Timestamp;
use machinery_api::error::{ApiError, Cause, GroupResource};
use machinery_api::selector::LabelSelector;
use machinery_api::time::seconds;
use serde_json::{Value, json};

use crate::read::{entries, get, has, int, items, object_mut, put, text};

/// The group and plural of budgets.
pub const BUDGETS: (&str, &str) = (super::poddisruptionbudgets::ROW.group, super::poddisruptionbudgets::ROW.plural);
/// Maximum number of evictions that a budget's controller hasn't observed: more indicate that none is running.
const DISRUPTED_MAX: usize = 2000;
const REFUSED: &str = "Cannot evict pod as it would violate the pod's disruption budget.";
const ALLOWED: &str = "DisruptionAllowed";

fn phase(pod: &Value) -> &str {
    text(get(pod, "status"), "phase")
}

fn is_deleting(pod: &Value) -> bool {
    has(get(pod, "metadata"), "deletionTimestamp")
}

/// Whether the pod is evicted regardless of budgets: it isn't running, or is being deleted.
#[must_use]
pub fn ignores_budgets(pod: &Value) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed" | "Pending") || is_deleting(pod)
}

/// Whether such a pod must be unchanged on deletion, since it could become ready meanwhile.
#[must_use]
pub fn requires_unchanged(pod: &Value) -> bool {
    !matches!(phase(pod), "Succeeded" | "Failed") && !is_deleting(pod)
}

/// Whether a budget selects the pod.
#[must_use]
pub fn covers(budget: &Value, pod: &Value) -> bool {
    let selector = get(get(budget, "spec"), "selector");
    let parsed = if selector.is_null() { return false } else { LabelSelector::from_value(Some(selector)) };
    parsed.is_ok_and(|selector| selector.matches_object(pod))
}

/// The effect of a budget on the pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BudgetEffect {
    /// The pod isn't ready: its eviction isn't counted, under the condition that it is unchanged.
    Unready,
    /// Its eviction is counted.
    Counts,
}

/// Computes the [`BudgetEffect`] of a budget for a pod.
#[must_use]
pub fn budget_effect(budget: &Value, pod: &Value) -> BudgetEffect {
    let conditions = items(get(pod, "status"), "conditions");
    if conditions.iter().any(|one| text(one, "type") == "Ready" && text(one, "status") == "True") {
        return BudgetEffect::Counts;
    }
    let status = get(budget, "status");
    let count = |key| int(status, key).unwrap_or(0);
    let always = text(get(budget, "spec"), "unhealthyPodEvictionPolicy") == "AlwaysAllow";
    let enough = count("currentHealthy") >= count("desiredHealthy") && count("desiredHealthy") > 0;
    if always || enough { BudgetEffect::Unready } else { BudgetEffect::Counts }
}

/// The error while a budget allows no disruption.
#[must_use]
pub fn refused(message: String, wait_seconds: u32) -> ApiError {
    let cause = Cause { reason: "DisruptionBudget".into(), message, ..Cause::default() };
    ApiError::TooManyRequestsBecause(REFUSED.into(), wait_seconds, vec![cause])
}

/// The error while the budget's controller hasn't observed the budget's generation.
#[must_use]
pub fn not_ready(budget: &str) -> ApiError {
    refused(format!("The disruption budget {budget} is still being processed by the server."), 10)
}

/// The budget with one eviction counted, or why none is allowed.
pub fn counted(budget: &Value, pod: &str, now: Timestamp) -> Result<Value, ApiError> {
    let (meta, status) = (get(budget, "metadata"), get(budget, "status"));
    let name = text(meta, "name");
    let count = |key| int(status, key).unwrap_or(0);
    let forbidden = |why: &str| {
        Err(ApiError::Forbidden(GroupResource::new("policy", "poddisruptionbudget"), name.to_owned(), why.to_owned()))
    };
    if count("observedGeneration") < int(meta, "generation").unwrap_or(0) {
        return Err(not_ready(name));
    }
    let allowed = count("disruptionsAllowed");
    if allowed < 0 {
        return forbidden("pdb disruptions allowed is negative");
    }
    if entries(status, "disruptedPods").count() > DISRUPTED_MAX {
        return forbidden("DisruptedPods map too big - too many evictions not confirmed by PDB controller");
    }
    if allowed == 0 {
        return Err(refused(denial_message(name, status), 0));
    }
    let mut new = budget.clone();
    let status = object_mut(&mut new, "status");
    put(status, "disruptionsAllowed", json!(allowed - 1));
    if allowed == 1 {
        set_exhausted(status, now);
    }
    put(object_mut(status, "disruptedPods"), pod, json!(seconds(now)));
    Ok(new)
}

fn denial_message(name: &str, status: &Value) -> String {
    let count = |key| int(status, key).unwrap_or(0);
    let (current, desired) = (count("currentHealthy"), count("desiredHealthy"));
    let condition = items(status, "conditions").iter().find(|one| text(one, "type") == ALLOWED);
    let condition = condition.filter(|one| text(one, "status") == "False" && !text(one, "message").is_empty());
    let condition = condition.map(|one| (text(one, "reason"), text(one, "message")));
    match condition {
        Some(("SyncFailed", message)) => format!(
            "The disruption budget {name} does not allow evicting pods currently because it failed sync: {message}"
        ),
        _ if current <= desired => {
            format!("The disruption budget {name} needs {desired} healthy pods and has {current} currently")
        }
        Some((reason, message)) => {
            format!("The disruption budget {name} does not allow evicting pods currently ({reason}): {message}")
        }
        None => format!("The disruption budget {name} does not allow evicting pods currently"),
    }
}

/// Sets the condition that no disruption is allowed.
fn set_exhausted(status: &mut Value, now: Timestamp) {
    let seen = get(status, "observedGeneration").clone();
    let mut list = items(status, "conditions").to_vec();
    if !list.iter().any(|one| text(one, "type") == ALLOWED) {
        list.push(json!({"type": ALLOWED}));
    }
    for one in list.iter_mut().filter(|one| text(one, "type") == ALLOWED) {
        if text(one, "status") != "False" {
            put(one, "lastTransitionTime", json!(seconds(now)));
        }
        put(one, "status", json!("False"));
        put(one, "reason", json!("InsufficientPods"));
        put(one, "message", json!(""));
        put(one, "observedGeneration", seen.clone());
    }
    put(status, "conditions", Value::Array(list));
}

/// The pod with the condition `DisruptionTarget`.
#[must_use]
pub fn disrupted(pod: &Value, now: Timestamp) -> Value {
    let mut new = pod.clone();
    let status = object_mut(&mut new, "status");
    let mut condition = json!({
        "type": "DisruptionTarget",
        "status": "True",
        "reason": "EvictionByEvictionAPI",
        "message": "Eviction API: evicting",
        "lastProbeTime": null,
        "lastTransitionTime": seconds(now),
    });
    let mut list = items(status, "conditions").to_vec();
    match list.iter_mut().find(|one| text(one, "type") == "DisruptionTarget") {
        Some(old) => {
            if text(old, "status") == "True" {
                put(&mut condition, "lastTransitionTime", get(old, "lastTransitionTime").clone());
            }
            *old = condition;
        }
        None => list.push(condition),
    }
    put(status, "conditions", Value::Array(list));
    new
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget(status: Value) -> Value {
        json!({"metadata": {"name": "b", "generation": 2}, "spec": {"selector": {"matchLabels": {"a": "b"}}}, "status": status})
    }

    fn why(result: Result<Value, ApiError>) -> (u16, u32, String) {
        let status = result.unwrap_err().status();
        let details = status.details.unwrap_or_default();
        let message = details.causes.first().map_or(status.message, |cause| cause.message.clone());
        (status.code, details.retry_after_seconds, message)
    }

    #[test]
    fn a_budget_allows_as_many_as_its_controller_has_counted() {
        let now = Timestamp::UNIX_EPOCH;
        let old = budget(json!({"observedGeneration": 1, "disruptionsAllowed": 5}));
        let message = "The disruption budget b is still being processed by the server.";
        assert_eq!(why(counted(&old, "p", now)), (429, 10, message.into()));
        let none = budget(json!({"observedGeneration": 2, "desiredHealthy": 2, "currentHealthy": 2}));
        let message = "The disruption budget b needs 2 healthy pods and has 2 currently";
        assert_eq!(why(counted(&none, "p", now)), (429, 0, message.into()));
        let failed = json!([{"type": ALLOWED, "status": "False", "reason": "SyncFailed", "message": "no scale"}]);
        let failed = budget(json!({"observedGeneration": 2, "conditions": failed}));
        assert!(why(counted(&failed, "p", now)).2.ends_with("because it failed sync: no scale"));
        let negative = budget(json!({"observedGeneration": 2, "disruptionsAllowed": -1}));
        assert_eq!(why(counted(&negative, "p", now)).0, 403);
        let many: serde_json::Map<String, Value> = (0..2001).map(|i| (format!("p{i}"), json!("x"))).collect();
        let many = budget(json!({"observedGeneration": 2, "disruptionsAllowed": 1, "disruptedPods": many}));
        assert_eq!(why(counted(&many, "p", now)).0, 403);
        let two = budget(json!({"observedGeneration": 2, "disruptionsAllowed": 2}));
        let one = counted(&two, "p", now).unwrap();
        assert_eq!(one["status"]["disruptionsAllowed"], 1);
        assert_eq!(one["status"]["disruptedPods"], json!({"p": "1970-01-01T00:00:00Z"}));
        assert_eq!(one["status"].get("conditions"), None);
        let last = counted(&one, "q", now).unwrap();
        assert_eq!(last["status"]["conditions"][0]["reason"], "InsufficientPods");
        assert_eq!(last["status"]["disruptedPods"].as_object().unwrap().len(), 2);
        assert_eq!(why(counted(&last, "r", now)).0, 429);
    }

    #[test]
    fn pods_that_do_not_run_need_no_leave_and_unready_ones_seldom() {
        let pod = |phase: &str, ready: &str| json!({"metadata": {"labels": {"a": "b"}}, "status": {"phase": phase, "conditions": [{"type": "Ready", "status": ready}]}});
        assert!(ignores_budgets(&pod("Pending", "False")) && requires_unchanged(&pod("Pending", "False")));
        assert!(ignores_budgets(&pod("Failed", "False")) && !requires_unchanged(&pod("Failed", "False")));
        assert!(!ignores_budgets(&pod("Running", "True")));
        let mut with = budget(json!({"currentHealthy": 1, "desiredHealthy": 1}));
        assert!(covers(&with, &pod("Running", "True")) && !covers(&with, &json!({"metadata": {}})));
        assert_eq!(budget_effect(&with, &pod("Running", "True")), BudgetEffect::Counts);
        assert_eq!(budget_effect(&with, &pod("Running", "False")), BudgetEffect::Unready);
        with["status"]["currentHealthy"] = json!(0);
        assert_eq!(budget_effect(&with, &pod("Running", "False")), BudgetEffect::Counts);
        with["spec"]["unhealthyPodEvictionPolicy"] = json!("AlwaysAllow");
        assert_eq!(budget_effect(&with, &pod("Running", "False")), BudgetEffect::Unready);
        with["spec"]["selector"] = Value::Null;
        assert!(!covers(&with, &pod("Running", "True")), "nothing is selected by no selector");
    }

    #[test]
    fn an_evicted_pod_has_one_disruption_condition() {
        let pod = disrupted(&json!({"status": {}}), Timestamp::UNIX_EPOCH);
        assert_eq!(pod["status"]["conditions"][0]["reason"], "EvictionByEvictionAPI");
        let later = Timestamp::from_second(60).unwrap();
        assert_eq!(disrupted(&pod, later), pod);
    }
}
