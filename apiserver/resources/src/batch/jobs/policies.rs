//! Pod failure policy and success policy of a Job: conditions under which it ends before all its pods do.

use std::collections::BTreeSet;

use serde_json::Value;

use super::validate::error_without_value;
use crate::field::{ErrorList, FieldError, Path};
use crate::read::{get, has, int, items, text};
use crate::rules;

const RULES_MAX: usize = 20;
const EXIT_CODES_MAX: usize = 255;
const CONDITIONS_MAX: usize = 20;
const INDEXES_BYTES_MAX: usize = 64 * 1024;

fn listed(values: &[&str]) -> String {
    let values: Vec<String> = values.iter().map(|v| format!("\"{v}\"")).collect();
    format!("valid values: [{}]", values.join(" "))
}

pub(super) fn failure_policy(errors: &mut ErrorList, spec: &Value, path: &Path<'_>) {
    const ACTIONS: &[&str] = &["Count", "FailIndex", "FailJob", "Ignore"];
    let at = path.child("podFailurePolicy");
    let at = at.child("rules");
    let rules = items(get(spec, "podFailurePolicy"), "rules");
    if rules.len() > RULES_MAX {
        errors.too_many(&at, rules.len(), RULES_MAX);
    }
    let pod = get(get(spec, "template"), "spec");
    let names: BTreeSet<&str> =
        ["containers", "initContainers"].iter().flat_map(|l| items(pod, l)).map(|c| text(c, "name")).collect();
    for (i, rule) in rules.iter().enumerate() {
        let at = at.index(i);
        let action = text(rule, "action");
        let action_at = at.child("action");
        match action {
            "" => errors.required(&action_at, &listed(ACTIONS)),
            "FailIndex" if !has(spec, "backoffLimitPerIndex") => {
                errors.invalid(&action_at, action, "requires the backoffLimitPerIndex to be set");
            }
            _ if !ACTIONS.contains(&action) => errors.not_supported(&action_at, action, ACTIONS),
            _ => {}
        }
        let (codes, conditions) = (get(rule, "onExitCodes"), items(rule, "onPodConditions"));
        if !codes.is_null() {
            exit_codes(errors, codes, &names, &at.child("onExitCodes"));
        }
        pod_conditions(errors, conditions, &at.child("onPodConditions"));
        if !codes.is_null() && !conditions.is_empty() {
            errors.add(|| error_without_value(&at, "specifying both OnExitCodes and OnPodConditions is not supported"));
        }
        if codes.is_null() && conditions.is_empty() {
            errors.add(|| error_without_value(&at, "specifying one of OnExitCodes and OnPodConditions is required"));
        }
    }
}

fn pod_conditions(errors: &mut ErrorList, patterns: &[Value], path: &Path<'_>) {
    const STATUSES: &[&str] = &["False", "True", "Unknown"];
    if patterns.len() > CONDITIONS_MAX {
        errors.too_many(path, patterns.len(), CONDITIONS_MAX);
    }
    for (i, pattern) in patterns.iter().enumerate() {
        let at = path.index(i);
        let (kind, status) = (text(pattern, "type"), text(pattern, "status"));
        errors.invalid_each(&at.child("type"), kind, rules::label_key(kind));
        if status.is_empty() {
            errors.required(&at.child("status"), &listed(STATUSES));
        } else if !STATUSES.contains(&status) {
            errors.not_supported(&at.child("status"), status, STATUSES);
        }
    }
}

fn exit_codes(errors: &mut ErrorList, codes: &Value, names: &BTreeSet<&str>, path: &Path<'_>) {
    let operator = text(codes, "operator");
    let operator_at = path.child("operator");
    if operator.is_empty() {
        errors.required(&operator_at, &listed(&["In", "NotIn"]));
    } else if !["In", "NotIn"].contains(&operator) {
        errors.not_supported(&operator_at, operator, &["In", "NotIn"]);
    }
    if has(codes, "containerName") && !names.contains(text(codes, "containerName")) {
        let why = "must be one of the container or initContainer names in the pod template";
        errors.invalid(&path.child("containerName"), text(codes, "containerName"), why);
    }
    let values_at = path.child("values");
    let values: Vec<i64> = items(codes, "values").iter().map(|v| v.as_i64().unwrap_or(0)).collect();
    if values.is_empty() {
        errors.invalid(&values_at, get(codes, "values").clone(), "at least one value is required");
    } else if values.len() > EXIT_CODES_MAX {
        errors.too_many(&values_at, values.len(), EXIT_CODES_MAX);
    }
    let mut seen = BTreeSet::new();
    for (i, value) in values.iter().enumerate() {
        if operator == "In" && *value == 0 {
            errors.invalid(&values_at.index(i), 0, "must not be 0 for the In operator");
        }
        if !seen.insert(value) {
            errors.duplicate(&values_at.index(i), *value);
        }
    }
    if !values.is_sorted() {
        errors.invalid(&values_at, get(codes, "values").clone(), "must be ordered");
    }
}

/// A list in Go's format: nil is null.
fn go_list(list: &Value, one: impl Fn(&Value) -> String) -> String {
    match list.as_array() {
        Some(list) => format!("[{}]", list.iter().map(one).collect::<Vec<_>>().join(",")),
        None => "null".into(),
    }
}

pub(super) fn go_policy(policy: &Value, rule: impl Fn(&Value) -> String) -> String {
    if policy.is_null() {
        return "null".into();
    }
    format!("{{\"Rules\":{}}}", go_list(get(policy, "rules"), rule))
}

pub(super) fn go_success_rule(rule: &Value) -> String {
    let (indexes, count) = (get(rule, "succeededIndexes"), get(rule, "succeededCount"));
    format!("{{\"SucceededIndexes\":{indexes},\"SucceededCount\":{count}}}")
}

pub(super) fn go_failure_rule(rule: &Value) -> String {
    let word = |of: &Value, key: &str| Value::from(text(of, key)).to_string();
    let codes = get(rule, "onExitCodes");
    let codes = if codes.is_null() {
        "null".into()
    } else {
        let (container, values) = (get(codes, "containerName"), go_list(get(codes, "values"), Value::to_string));
        format!("{{\"ContainerName\":{container},\"Operator\":{},\"Values\":{values}}}", word(codes, "operator"))
    };
    let conditions = go_list(get(rule, "onPodConditions"), |pattern| {
        format!("{{\"Type\":{},\"Status\":{}}}", word(pattern, "type"), word(pattern, "status"))
    });
    format!("{{\"Action\":{},\"OnExitCodes\":{codes},\"OnPodConditions\":{conditions}}}", word(rule, "action"))
}

pub(super) fn success_policy(errors: &mut ErrorList, spec: &Value, path: &Path<'_>) {
    let at = path.child("successPolicy");
    let rules = items(get(spec, "successPolicy"), "rules");
    if text(spec, "completionMode") != "Indexed" {
        let shown = go_policy(get(spec, "successPolicy"), go_success_rule);
        errors.add(|| FieldError::invalid_shown(&at, &shown, "requires indexed completion mode"));
        return;
    }
    let at = at.child("rules");
    if rules.is_empty() {
        errors.required(&at, "at least one rules must be specified when the successPolicy is specified");
    }
    if rules.len() > RULES_MAX {
        errors.too_many(&at, rules.len(), RULES_MAX);
    }
    let all = int(spec, "completions").unwrap_or(0);
    for (i, rule) in rules.iter().enumerate() {
        let at = at.index(i);
        let (count, given) = (int(rule, "succeededCount"), has(rule, "succeededIndexes"));
        if count.is_none() && !given {
            errors.required(&at, "at least one of succeededCount or succeededIndexes must be specified");
        }
        let mut total = 0;
        if given {
            let indexes = text(rule, "succeededIndexes");
            let at = at.child("succeededIndexes");
            if indexes.len() > INDEXES_BYTES_MAX {
                errors.too_long(&at, INDEXES_BYTES_MAX);
            }
            match intervals(indexes, all) {
                Ok(found) => total = found.iter().map(|(from, to)| to - from + 1).sum(),
                Err(why) => errors.invalid(&at, indexes, &format!("error parsing succeededIndexes: {why}")),
            }
        }
        if let Some(count) = count {
            let at = at.child("succeededCount");
            errors.non_negative(&at, Some(count));
            if count > all {
                let why = format!("must be less than or equal to {all} (the number of specified completions)");
                errors.invalid(&at, count, &why);
            }
            if given && count > total {
                let why = format!(
                    "must be less than or equal to {total} (the number of indexes in the specified succeededIndexes field)"
                );
                errors.invalid(&at, count, &why);
            }
        }
    }
}

/// Parses `1,3-5,7`: ascending, below `completions`.
pub(super) fn intervals(indexes: &str, completions: i64) -> Result<Vec<(i64, i64)>, String> {
    let mut found: Vec<(i64, i64)> = Vec::new();
    if indexes.is_empty() {
        return Ok(found);
    }
    let number = |text: &str| -> Result<i64, String> {
        let shown = crate::field::quoted(text);
        let value: i64 = text.parse().map_err(|_| format!("cannot convert string to integer for index: {shown}"))?;
        if value >= completions { Err(format!("too large index: {shown}")) } else { Ok(value) }
    };
    for part in indexes.split(',') {
        let limits: Vec<&str> = part.split('-').collect();
        let (from, to) = match limits.as_slice() {
            [one] => (number(one)?, number(one)?),
            [from, to] => {
                let (from, to) = (number(from)?, number(to)?);
                if from >= to {
                    return Err(format!("non-increasing order, previous: {from}, current: {to}"));
                }
                (from, to)
            }
            _ => {
                let shown = crate::field::quoted(part);
                return Err(format!(
                    "the fragment {shown} violates the requirement that an index interval can have at most two parts separated by '-'"
                ));
            }
        };
        if let Some((_, last)) = found.last()
            && *last >= from
        {
            return Err(format!("non-increasing order, previous: {last}, current: {from}"));
        }
        found.push((from, to));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn index_lists() {
        assert_eq!(intervals("1,3-5,7", 8), Ok(vec![(1, 1), (3, 5), (7, 7)]));
        assert_eq!(intervals("", 8), Ok(Vec::new()));
        assert_eq!(intervals("8", 8), Err("too large index: \"8\"".into()));
        assert_eq!(intervals("3,2", 8), Err("non-increasing order, previous: 3, current: 2".into()));
        assert_eq!(intervals("x", 8), Err("cannot convert string to integer for index: \"x\"".into()));
        assert!(intervals("1-2-3", 8).is_err());
    }
}
