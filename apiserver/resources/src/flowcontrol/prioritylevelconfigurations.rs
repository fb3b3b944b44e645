//! PriorityLevelConfigurations: the concurrency limit of a level, and its queues.

use crate::ResetFields;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::conditions;
use crate::cells::{AGE, NAME, age, column, name};
use crate::core::pods::update::semantically_equal;
use crate::field::{ErrorList, Path};
use crate::metadata::reset_for_status;
use crate::read::{at, default_to, default_zero_to, fields, get, has, int, put, remove, text};
use crate::{Column, Context, MetadataChecks, Row, STATUS, Storage, Strategy, prepare_update_by_default};

pub(crate) static ROW: Row = Row {
    group: "flowcontrol.apiserver.k8s.io",
    kind: "PriorityLevelConfiguration",
    plural: "prioritylevelconfigurations",
    singular: "prioritylevelconfiguration",
    schema: "io.k8s.api.flowcontrol.v1.PriorityLevelConfiguration",
    subresources: &[STATUS],
    storage: Storage::Stored("prioritylevelconfigurations"),
    inert: Some("nothing acts on PriorityLevelConfigurations here yet: all requests have the same limits"),
    strategy: &PriorityLevelConfiguration,
    example: r#"apiVersion: flowcontrol.apiserver.k8s.io/v1
kind: PriorityLevelConfiguration
metadata: {name: example}
spec: {type: Limited, limited: {nominalConcurrencyShares: 5, limitResponse: {type: Reject}}}
"#,
    ..Row::CLUSTER
};

struct PriorityLevelConfiguration;

const COLUMNS: &[Column] = &[
    NAME,
    column("Type", "string"),
    column("NominalConcurrencyShares", "string"),
    column("Queues", "string"),
    column("HandSize", "string"),
    column("QueueLengthLimit", "string"),
    AGE,
];
const SPEC: Path<'static> = Path::root("spec");
const EXEMPT: &str = "exempt";
const CATCH_ALL: &str = "catch-all";
const QUEUES_MAX: i64 = 10_000_000;
const HASH_BITS_MAX: i64 = 60;
const ROUND_TRIP: &str = "flowcontrol.k8s.io/v1beta3-preserve-zero-concurrency-shares";

/// The bits of a hash that are needed to deal a hand of queues.
fn entropy_bits(queues: i64, hand: i64) -> i64 {
    #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "both are at most ten million")]
    let bits = ((queues as f64).log2() * hand as f64).ceil() as i64;
    bits
}

fn queuing(errors: &mut ErrorList, queuing: &Value, path: &Path<'_>) {
    let number = |key| int(queuing, key).unwrap_or(0);
    let (length, queues, hand) = (number("queueLengthLimit"), number("queues"), number("handSize"));
    if length <= 0 {
        errors.invalid(&path.child("queueLengthLimit"), length, "must be positive");
    }
    if queues <= 0 {
        errors.invalid(&path.child("queues"), queues, "must be positive");
    } else if queues > QUEUES_MAX {
        errors.invalid(&path.child("queues"), queues, &format!("must not be greater than {QUEUES_MAX}"));
    }
    let hand_at = path.child("handSize");
    if hand <= 0 {
        errors.invalid(&hand_at, hand, "must be positive");
    } else if hand > queues {
        errors.invalid(&hand_at, hand, &format!("should not be greater than queues ({queues})"));
    } else if entropy_bits(queues, hand) > HASH_BITS_MAX {
        let why = format!(
            "required entropy bits of deckSize {queues} and handSize {hand} should not be greater than {HASH_BITS_MAX}"
        );
        errors.invalid(&hand_at, hand, &why);
    }
}

fn lendable(errors: &mut ErrorList, of: &Value, path: &Path<'_>) {
    if let Some(percent) = int(of, "lendablePercent").filter(|percent| !(0..=100).contains(percent)) {
        errors.invalid(&path.child("lendablePercent"), percent, "must be between 0 and 100, inclusive");
    }
}

fn shares(errors: &mut ErrorList, of: &Value, path: &Path<'_>) {
    if let Some(shares) = int(of, "nominalConcurrencyShares").filter(|shares| *shares < 0) {
        errors.invalid(&path.child("nominalConcurrencyShares"), shares, "must be a non-negative integer");
    }
}

fn limited(errors: &mut ErrorList, limited: &Value, path: &Path<'_>) {
    shares(errors, limited, path);
    let (response, response_at) = (get(limited, "limitResponse"), path.child("limitResponse"));
    let queuing_at = response_at.child("queuing");
    match (text(response, "type"), has(response, "queuing")) {
        ("Reject", true) => errors.forbidden(&queuing_at, "must be nil if limited.limitResponse.type is not Limited"),
        ("Reject", false) => {}
        ("Queue", true) => queuing(errors, get(response, "queuing"), &queuing_at),
        ("Queue", false) => {
            errors.required(&queuing_at, "must not be empty if limited.limitResponse.type is Limited");
        }
        ("", _) => errors.required(&response_at.child("type"), ""),
        (other, _) => errors.not_supported(&response_at.child("type"), other, &["Queue", "Reject"]),
    }
    lendable(errors, limited, path);
    if let Some(percent) = int(limited, "borrowingLimitPercent").filter(|percent| *percent < 0) {
        let why = "if specified, must be a non-negative integer";
        errors.invalid(&path.child("borrowingLimitPercent"), percent, why);
    }
}

/// The two mandatory levels are immutable, except for the lendable share of the exempt one.
fn mandatory(errors: &mut ErrorList, spec: &Value, name: &str) {
    let mut compared = spec.clone();
    let (fixed, but) = match name {
        EXEMPT => {
            remove(&mut compared, "exempt");
            (json!({"type": "Exempt"}), " except the 'spec.exempt' field")
        }
        CATCH_ALL => {
            let limited =
                json!({"nominalConcurrencyShares": 5, "lendablePercent": 0, "limitResponse": {"type": "Reject"}});
            (json!({"type": "Limited", "limited": limited}), "")
        }
        _ => return,
    };
    if !semantically_equal(&fixed, &compared) {
        errors.invalid(&SPEC, spec.clone(), &format!("spec of '{name}'{but} must equal the fixed value"));
    }
}

fn validate(errors: &mut ErrorList, object: &Value) {
    let (spec, named) = (get(object, "spec"), crate::read::name(object));
    if has(at(object, &["metadata", "annotations"]), ROUND_TRIP) {
        errors.forbidden(&Path::root("metadata.annotations"), &format!("annotation '{ROUND_TRIP}' is forbidden"));
    }
    let (kind, type_at) = (text(spec, "type"), SPEC.child("type"));
    if (named == EXEMPT) != (kind == "Exempt") {
        errors.invalid(&type_at, kind, "must be 'Exempt' if and only if `name` is 'exempt'");
    }
    let (limited_at, exempt_at) = (SPEC.child("limited"), SPEC.child("exempt"));
    match kind {
        "Exempt" => {
            if has(spec, "limited") {
                errors.forbidden(&limited_at, "must be nil if the type is not Limited");
            }
            shares(errors, get(spec, "exempt"), &exempt_at);
            lendable(errors, get(spec, "exempt"), &exempt_at);
        }
        "Limited" => {
            if has(spec, "exempt") {
                errors.forbidden(&exempt_at, "must be nil if the type is Limited");
            }
            if has(spec, "limited") {
                limited(errors, get(spec, "limited"), &limited_at);
            } else {
                errors.required(&limited_at, "must not be empty when type is Limited");
            }
        }
        "" => errors.required(&type_at, ""),
        other => errors.not_supported(&type_at, other, &["Exempt", "Limited"]),
    }
    mandatory(errors, spec, named);
    conditions(errors, object);
}

impl Strategy for PriorityLevelConfiguration {
    fn reset_fields(&self, subresource: &str) -> ResetFields {
        match subresource {
            "status" => ResetFields::METADATA_TOO,
            _ => ResetFields::Below(&[&["status"]]),
        }
    }

    fn default(&self, object: &mut Value) {
        if let Some(exempt) = object.pointer_mut("/spec/exempt").filter(|exempt| exempt.is_object()) {
            default_to(exempt, "nominalConcurrencyShares", 0);
            default_to(exempt, "lendablePercent", 0);
        }
        if let Some(limited) = object.pointer_mut("/spec/limited").filter(|limited| limited.is_object()) {
            default_to(limited, "nominalConcurrencyShares", 30);
            default_to(limited, "lendablePercent", 0);
            if let Some(queuing) = limited.pointer_mut("/limitResponse/queuing").filter(|queuing| queuing.is_object()) {
                for (key, value) in [("handSize", 8), ("queues", 64), ("queueLengthLimit", 50)] {
                    default_zero_to(queuing, key, value);
                }
            }
        }
        // Go's encoder always writes it.
        fields(object).entry("status").or_insert_with(|| json!({}));
    }

    fn prepare_create(&self, _: &Context<'_>, object: &mut Value) {
        put(object, "status", json!({}));
    }

    fn prepare_update(&self, context: &Context<'_>, new: &mut Value, old: &Value) {
        prepare_update_by_default(context, new, old);
        if !context.subresource.is_empty() {
            reset_for_status(new, old);
        }
    }

    fn counts_generation(&self) -> bool {
        true
    }

    fn metadata_checks_of(&self, subresource: &str) -> MetadataChecks {
        if subresource.is_empty() { MetadataChecks::Whole } else { MetadataChecks::None }
    }

    fn validate(&self, context: &Context<'_>, object: &Value, _: Option<&Value>, errors: &mut ErrorList) {
        if context.subresource.is_empty() {
            validate(errors, object);
        } else {
            conditions(errors, object);
        }
    }

    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let spec = get(object, "spec");
        let (limited, queuing) = (get(spec, "limited"), at(spec, &["limited", "limitResponse", "queuing"]));
        let number =
            |of: &Value, key: &str| if of.is_null() { json!("<none>") } else { json!(int(of, key).unwrap_or(0)) };
        vec![
            name(object),
            json!(text(spec, "type")),
            number(limited, "nominalConcurrencyShares"),
            number(queuing, "queues"),
            number(queuing, "handSize"),
            number(queuing, "queueLengthLimit"),
            age(object, now),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hands_are_bounded_by_the_hash() {
        assert_eq!(
            [entropy_bits(1, 1), entropy_bits(64, 8), entropy_bits(128, 6), entropy_bits(512, 8)],
            [0, 48, 42, 72]
        );
    }
}
