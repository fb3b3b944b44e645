//! Validation of conditions of the common type `meta.k8s.io/v1 Condition`, with upstream's messages. Pure.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use regex::Regex;
use serde_json::Value;

use crate::choices::choice;
use crate::field::{ErrorList, Path};
use crate::metadata::label_name;
use crate::read::{has, int, items, text};
use crate::rules;

const REASON: &str = "[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?";
const REASON_BYTES_MAX: usize = 1 << 10;
const MESSAGE_BYTES_MAX: usize = 32 << 10;
const STATUSES: &[&str] = &["False", "True", "Unknown"];
static IS_REASON: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(&format!("^(?:{REASON})$")).expect("the pattern is a constant"));

/// Validates the conditions of a status.
pub(super) fn validate(errors: &mut ErrorList, status: &Value, path: &Path<'_>) {
    let mut seen = BTreeSet::new();
    for (i, condition) in items(status, "conditions").iter().enumerate() {
        let at = path.index(i);
        let kind = text(condition, "type");
        if !seen.insert(kind) {
            errors.duplicate(&at.child("type"), kind);
        }
        validate_condition(errors, condition, &at);
    }
}

fn validate_condition(errors: &mut ErrorList, condition: &Value, at: &Path<'_>) {
    label_name(errors, text(condition, "type"), &at.child("type"));
    choice(errors, condition, "status", STATUSES, at);
    if let Some(generation) = int(condition, "observedGeneration").filter(|generation| *generation < 0) {
        errors.invalid(&at.child("observedGeneration"), generation, "must be greater than or equal to zero");
    }
    if !has(condition, "lastTransitionTime") {
        errors.required(&at.child("lastTransitionTime"), "");
    }
    let (reason, reason_at) = (text(condition, "reason"), at.child("reason"));
    if reason.is_empty() {
        errors.required(&reason_at, "");
    } else {
        if !IS_REASON.is_match(reason) {
            let what = "a condition reason must start with alphabetic character, optionally followed by a string of alphanumeric characters or '_,:', and must end with an alphanumeric character or '_'";
            let examples = ["my_name", "MY_NAME", "MyName", "ReasonA,ReasonB", "ReasonA:ReasonB"];
            errors.invalid(&reason_at, reason, &rules::regex_sentence(what, REASON, &examples));
        }
        if reason.len() > REASON_BYTES_MAX {
            errors.too_long(&reason_at, REASON_BYTES_MAX);
        }
    }
    if text(condition, "message").len() > MESSAGE_BYTES_MAX {
        errors.too_long(&at.child("message"), MESSAGE_BYTES_MAX);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn conditions_are_whole_and_each_of_a_type() {
        let good = json!({"type": "A", "status": "True", "reason": "All_fine", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"});
        let errors_of = |conditions: Value| -> Vec<String> {
            let mut errors = ErrorList::new();
            validate(&mut errors, &json!({"conditions": conditions}), &Path::root("status.conditions"));
            errors.shown().iter().map(|error| error.field.clone()).collect()
        };
        assert_eq!(errors_of(json!([good])), Vec::<String>::new());
        assert_eq!(errors_of(json!([good, good])), ["status.conditions[1].type"]);
        let bad = json!({"type": "a b", "status": "Yes", "reason": "1", "observedGeneration": -1});
        assert_eq!(
            errors_of(json!([bad])),
            ["type", "status", "observedGeneration", "lastTransitionTime", "reason"]
                .map(|field| format!("status.conditions[0].{field}"))
        );
    }
}
