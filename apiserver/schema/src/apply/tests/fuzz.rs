//! Fuzz targets of client input: FieldsV1, managed fields, apply configurations.

use bolero::check;
use serde_json::{Value, json};

use super::super::body;
use super::super::managers::Managers;
use super::super::{apply, fields};
use super::{applied, kind, writer, zero};
use crate::apply::rules::update;
use crate::apply::{Form, pool};
use crate::normalise;

#[test]
fn sets_that_read_are_written_and_read_again() {
    check!().for_each(|bytes: &[u8]| {
        let Ok(text) = std::str::from_utf8(bytes) else { return };
        let Ok(set) = fields::decode(text) else { return };
        let written = fields::encode(&set);
        assert_eq!(fields::decode(&written).as_ref(), Ok(&set));
        pool::of_set(&set).read(|text| assert_eq!(text, written));
        let _ = set.printed();
    });
}

#[test]
fn managers_of_records_read_or_are_refused() {
    check!().for_each(|bytes: &[u8]| {
        let Some(managers) = Managers::decode(bytes) else { return };
        let mut again = Vec::new();
        managers.write_to(&mut again);
        assert_eq!(again, bytes);
    });
}

/// Applies arbitrary YAML as a pod's configuration to an existing pod.
fn over(state: &(Value, Managers), bytes: &[u8]) {
    let versions = &kind(super::POD);
    let Ok(config) = body::config(bytes) else { return };
    let _ = Managers::of_value(&config.object["metadata"]["managedFields"]);
    if let Ok(done) = apply(&state.1, writer(versions, "fuzz"), &state.0, &config.object, true) {
        let mut object = done.object.unwrap_or_else(|| state.0.clone());
        // An object that doesn't convert is rejected before it is stored.
        if normalise(versions.0, &mut object).is_ok() {
            let after = (object, done.managers);
            let _ = update(&after.1, writer(versions, "u"), Some(&after.0), &state.0, Form::Printed);
            let _ = applied(versions, &after, "fuzz", &config.object, false);
        }
    }
}

#[test]
fn configurations_are_applied_or_refused() {
    let versions = kind(super::POD);
    let first = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i",
        "ports": [{"containerPort": 80}], "env": [{"name": "E", "value": "1"}]}], "tolerations": [{"operator": "Exists"}]}});
    let state = applied(&versions, &(zero(&versions), Managers::default()), "first", &first, true).unwrap();
    check!().for_each(|bytes: &[u8]| over(&state, bytes));
    for text in [
        "spec: {containers: [{name: c, ports: [{}, {}]}]}",
        "spec: {containers: {name: c}, tolerations: null}",
        "metadata: {labels: {a: [1]}, finalizers: [a, a]}",
        "spec: {containers: [null, 1, []]}",
        "metadata: {managedFields: [{manager: 1, fieldsV1: {f:a: {}}}]}",
    ] {
        over(&state, text.as_bytes());
    }
}
