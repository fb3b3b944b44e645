//! CSINodes: the CSI drivers of a node.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde_json::{Value, json};

use super::driver_name;
use crate::cells::{AGE, NAME, age, column, name};
use crate::core::pods::update::semantically_equal;
use crate::field::{ErrorList, FieldError, IMMUTABLE, Path};
use crate::read::{at, get, int, items, remove, text, texts};
use crate::{Column, Context, MetadataChecks, Row, Storage, Strategy, rules};

pub(crate) static ROW: Row = Row {
    group: "storage.k8s.io",
    kind: "CSINode",
    plural: "csinodes",
    singular: "csinode",
    schema: "io.k8s.api.storage.v1.CSINode",
    storage: Storage::Stored("csinodes"),
    inert: Some("nothing runs CSI drivers here"),
    strategy: &CsiNode,
    example: r#"apiVersion: storage.k8s.io/v1
kind: CSINode
metadata: {name: example}
spec: {drivers: [{name: disks.example.com, nodeID: example}]}
"#,
    ..Row::CLUSTER
};

struct CsiNode;

const COLUMNS: &[Column] = &[NAME, column("Drivers", "integer"), AGE];
const DRIVERS: Path<'static> = Path::root("spec.drivers");
const NODE_ID_BYTES_MAX: usize = 256;

fn drivers(object: &Value) -> &[Value] {
    items(get(object, "spec"), "drivers")
}

fn validate(errors: &mut ErrorList, object: &Value) {
    let mut names = BTreeSet::new();
    for (i, driver) in drivers(object).iter().enumerate() {
        let path = DRIVERS.index(i);
        let (named, id) = (text(driver, "name"), text(driver, "nodeID"));
        driver_name(errors, named, &path.child("name"));
        if id.is_empty() {
            errors.required(&path.child("nodeID"), "");
        }
        if id.len() > NODE_ID_BYTES_MAX {
            errors.invalid(&path.child("nodeID"), id, &format!("must be {NODE_ID_BYTES_MAX} characters or less"));
        }
        let allocatable = path.child("allocatable");
        errors.non_negative(&allocatable.child("count"), int(get(driver, "allocatable"), "count"));
        if !names.insert(named) {
            errors.duplicate(&path.child("name"), named);
        }
        let mut keys = BTreeSet::new();
        for key in texts(driver, "topologyKeys") {
            if key.is_empty() {
                errors.required(&path, "");
            }
            if !keys.insert(key) {
                errors.duplicate(&path, key);
            }
            errors.invalid_each(&path, key, rules::label_key(key));
        }
    }
}

/// A driver is immutable, except for the number of volumes that it supports.
fn validate_changes(errors: &mut ErrorList, new: &Value, old: &Value) {
    let had: BTreeMap<&str, &Value> = drivers(old).iter().map(|driver| (text(driver, "name"), driver)).collect();
    let immutable_part = |driver: &Value| {
        let mut driver = driver.clone();
        remove(&mut driver, "allocatable");
        driver
    };
    for driver in drivers(new) {
        let Some(old) = had.get(text(driver, "name")) else { continue };
        let new = immutable_part(driver);
        if !semantically_equal(&new, &immutable_part(old)) {
            let order = ["Name", "NodeID", "TopologyKeys", "Allocatable"];
            let inner = json!({"Name": text(&new, "name"), "NodeID": text(&new, "nodeID"),
                "TopologyKeys": get(&new, "topologyKeys"), "Allocatable": null});
            let shown = crate::field::go_struct(&inner, &order);
            errors.add(|| FieldError::invalid_shown(&DRIVERS, &shown, IMMUTABLE));
        }
    }
}

impl Strategy for CsiNode {
    fn default(&self, object: &mut Value) {
        // Go's encoder always writes the list.
        let spec = crate::read::spec_of(object);
        if at(spec, &["drivers"]).is_null() {
            crate::read::fields(spec).insert("drivers".into(), Value::Null);
        }
    }

    fn metadata_checks(&self) -> MetadataChecks {
        MetadataChecks::Whole
    }

    fn delete_answers_object(&self) -> bool {
        true
    }

    fn validate(&self, _: &Context<'_>, object: &Value, old: Option<&Value>, errors: &mut ErrorList) {
        validate(errors, object);
        if let Some(old) = old {
            validate_changes(errors, object, old);
        }
    }

    fn unconditional_update(&self) -> bool {
        false
    }

    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        vec![name(object), json!(drivers(object).len()), age(object, now)]
    }
}
