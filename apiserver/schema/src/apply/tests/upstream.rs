//! The cases of structured-merge-diff v6.3.3 (its `merge` tests), recorded as data: its updater's results for each
//! object and each manager's fields. A type with separate list types inside maps is omitted: OpenAPI can't express it.

use std::sync::Arc;

use serde_json::{Value, json};

use super::super::managers::{Managers, Operation};
use super::super::rules::{Ignored, Versions, Writer, changed};
use super::super::{Failure, Form, apply};
use crate::{SharedType, TypeRef, built_in, structural};
use machinery_api::key::GroupVersionKind;

const CASES: &str = include_str!("../testdata/cases.jsonl");

/// All versions have one type.
struct Alike(SharedType);

impl Versions for Alike {
    fn schema(&self, _: &str) -> Option<TypeRef<'_>> {
        Some(self.0.get())
    }
    fn convert(&self, object: &Value, _: &str, _: &str) -> Option<Value> {
        Some(object.clone())
    }
    fn ignored(&self, _: &str) -> Ignored {
        Ignored::Nothing
    }
}

fn types(schema: &Value) -> Alike {
    let kind = GroupVersionKind { group: "x.example.com", version: "v1", kind: "Case" };
    Alike(structural(built_in(), kind, schema).unwrap())
}

/// In the format of the cases.
fn managed(managers: &Managers) -> Value {
    let entry = |e: &super::super::Entry| {
        let set: Value = e.fields.read(|text| serde_json::from_str(text)).unwrap();
        (e.who.manager.to_string(), json!([e.who.api_version, e.who.operation == Operation::Apply, set]))
    };
    Value::Object(managers.entries().iter().map(entry).collect())
}

/// `manager path` of each conflict.
fn conflicts(failure: Failure) -> Vec<String> {
    let status = failure.into_error().status();
    let causes = status.details.map(|details| details.causes).unwrap_or_default();
    let manager = |message: &str| message.split('"').nth(1).unwrap_or_default().to_owned();
    let mut all: Vec<String> = causes.iter().map(|c| format!("{} {}", manager(&c.message), c.field)).collect();
    all.sort();
    all
}

/// The result of an operation, if it differs from the expected one.
fn wrong(op: &Value, versions: &Alike, live: &mut Value, managers: &mut Managers) -> Option<String> {
    let text = |field: &str| op[field].as_str().unwrap_or_default();
    let writer = Writer { manager: text("manager"), api_version: text("version"), subresource: "", now: 1, versions };
    let object = &op["object"];
    if op["op"] == "update" {
        *managers = changed(managers, writer, Some(live), object, Form::Whole).unwrap();
        *live = object.clone();
    } else {
        match apply(managers, writer, live, object, op["force"] == true) {
            Ok(applied) => {
                *managers = applied.managers;
                *live = applied.object.unwrap_or_else(|| live.clone());
            }
            Err(Failure::Typed(_)) if op["error"] == true => {}
            Err(failure) => {
                let (found, wanted) = (conflicts(failure), &op["conflicts"]);
                return (json!(found) != *wanted).then(|| format!("conflicts {found:?}, not {wanted}"));
            }
        }
    }
    let wanted = op.get("live").cloned().unwrap_or_else(|| json!({}));
    let found = managed(managers);
    let expected = op.get("managed").cloned().unwrap_or_else(|| json!({}));
    match () {
        () if op.get("conflicts").is_some() => Some("there are no conflicts".to_owned()),
        () if *live != wanted && !(live.is_null() && wanted == json!({})) => {
            Some(format!("object {live}, not {wanted}"))
        }
        () if found != expected => Some(format!("managers {found}, not {expected}")),
        () => None,
    }
}

#[test]
fn each_case_equals_upstreams_result() {
    let (mut count, mut failures) = (0, Vec::new());
    for line in CASES.lines() {
        let case: Value = serde_json::from_str(line).unwrap();
        let mut versions = None;
        let (mut live, mut managers) = (json!({}), Managers::default());
        for (i, op) in case["ops"].as_array().unwrap().iter().enumerate() {
            if let Some(schema) = op.get("schema") {
                versions = Some(Arc::new(types(schema)));
            }
            let versions = versions.clone().unwrap();
            if let Some(why) = wrong(op, &versions, &mut live, &mut managers) {
                failures.push(format!("{} operation {i}: {why}", case["case"]));
                break;
            }
        }
        count += 1;
    }
    assert!(failures.is_empty(), "{} of {count}:\n{}", failures.len(), failures.join("\n"));
    assert!(count >= 80, "{count}");
}
