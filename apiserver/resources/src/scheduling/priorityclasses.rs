//! PriorityClasses: the two system classes are fixed and can't be deleted; only they exceed a thousand million.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::cells::{AGE, NAME, age, column, name};
use crate::field::{ErrorList, Path};
use crate::read::{default_to, flag, get, int, text};
use crate::{Column, Context, Row, Storage, Strategy};

pub(crate) static ROW: Row = Row {
    group: "scheduling.k8s.io",
    kind: "PriorityClass",
    plural: "priorityclasses",
    singular: "priorityclass",
    short_names: &["pc"],
    schema: "io.k8s.api.scheduling.v1.PriorityClass",
    storage: Storage::Stored("priorityclasses"),
    strategy: &PriorityClass,
    example: r#"apiVersion: scheduling.k8s.io/v1
kind: PriorityClass
metadata: {name: example}
value: 1000
"#,
    ..Row::CLUSTER
};

struct PriorityClass;

const COLUMNS: &[Column] =
    &[NAME, column("Value", "integer"), column("Global-Default", "boolean"), AGE, column("PreemptionPolicy", "string")];
const SYSTEM_PREFIX: &str = "system-";
const USER_VALUE_MAX: i64 = 1_000_000_000;
const SYSTEM: &[(&str, i64)] = &[("system-cluster-critical", 2_000_000_000), ("system-node-critical", 2_000_001_000)];

fn differs_from_system_class(class: &str, value: i64, global: bool) -> Option<String> {
    match SYSTEM.iter().find(|(name, _)| *name == class) {
        None => Some(format!("{class} is not a known system priority class")),
        Some((name, known)) if *known != value => Some(format!("value of {name} PriorityClass must be {known}")),
        Some((name, _)) if global => Some(format!("globalDefault of {name} PriorityClass must be false")),
        Some(_) => None,
    }
}

fn validate_new(errors: &mut ErrorList, object: &Value) {
    let class = crate::read::name(object);
    let value = int(object, "value").unwrap_or(0);
    if class.starts_with(SYSTEM_PREFIX) {
        if let Some(why) = differs_from_system_class(class, value, flag(object, "globalDefault")) {
            let why = format!(
                "priority class names with '{SYSTEM_PREFIX}' prefix are reserved for system use only. error: {why}"
            );
            errors.forbidden(&Path::root("metadata.name"), &why);
        }
    } else if value > USER_VALUE_MAX {
        let why = format!("maximum allowed value of a user defined priority is {USER_VALUE_MAX}");
        errors.forbidden(&Path::root("value"), &why);
    }
    match text(object, "preemptionPolicy") {
        "PreemptLowerPriority" | "Never" => {}
        "" => errors.required(&Path::root("preemptionPolicy"), ""),
        other => errors.not_supported(&Path::root("preemptionPolicy"), other, &["PreemptLowerPriority", "Never"]),
    }
}

fn validate_change(errors: &mut ErrorList, new: &Value, old: &Value) {
    if int(new, "value").unwrap_or(0) != int(old, "value").unwrap_or(0) {
        errors.forbidden(&Path::root("value"), "may not be changed in an update.");
    }
    let key = "preemptionPolicy";
    errors.immutable(&Path::root(key), get(new, key), get(old, key));
}

impl Strategy for PriorityClass {
    fn default(&self, object: &mut Value) {
        default_to(object, "preemptionPolicy", "PreemptLowerPriority");
        // Go's encoder always writes the value.
        default_to(object, "value", 0);
    }

    fn counts_generation(&self) -> bool {
        true
    }

    fn generation_changes(&self, _: &Value, _: &Value) -> bool {
        false
    }

    fn validate(&self, _: &Context<'_>, object: &Value, old: Option<&Value>, errors: &mut ErrorList) {
        match old {
            None => validate_new(errors, object),
            Some(old) => validate_change(errors, object, old),
        }
    }

    fn delete_denied_reason(&self, object: &Value) -> Option<&'static str> {
        let class = crate::read::name(object);
        SYSTEM.iter().any(|(name, _)| *name == class).then_some("this is a system priority class and cannot be deleted")
    }

    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        vec![
            name(object),
            json!(int(object, "value").unwrap_or(0)),
            json!(flag(object, "globalDefault")),
            age(object, now),
            json!(text(object, "preemptionPolicy")),
        ]
    }
}
