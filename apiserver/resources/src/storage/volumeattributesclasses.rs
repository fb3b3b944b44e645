//! VolumeAttributesClasses: parameters that can be changed on volumes in use.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{parameters, provisioner};
use crate::cells::{AGE, NAME, age, column, name};
use crate::field::{ErrorList, FieldError, Path};
use crate::read::{get, text};
use crate::{Column, Context, MetadataChecks, Row, Storage, Strategy};

pub(crate) static ROW: Row = Row {
    group: "storage.k8s.io",
    kind: "VolumeAttributesClass",
    plural: "volumeattributesclasses",
    singular: "volumeattributesclass",
    short_names: &["vac"],
    schema: "io.k8s.api.storage.v1.VolumeAttributesClass",
    storage: Storage::Stored("volumeattributesclasses"),
    inert: Some("nothing changes volumes here yet"),
    strategy: &VolumeAttributesClass,
    example: r#"apiVersion: storage.k8s.io/v1
kind: VolumeAttributesClass
metadata: {name: example}
driverName: disks.example.com
parameters: {iops: "1000"}
"#,
    ..Row::CLUSTER
};

struct VolumeAttributesClass;

const COLUMNS: &[Column] = &[NAME, column("DriverName", "string"), AGE];

fn validate(errors: &mut ErrorList, object: &Value) {
    provisioner(errors, object, "driverName");
    parameters(errors, object, false);
}

impl Strategy for VolumeAttributesClass {
    fn metadata_checks(&self) -> MetadataChecks {
        MetadataChecks::ChangeThenWhole
    }

    fn delete_answers_object(&self) -> bool {
        true
    }

    fn validate(&self, _: &Context<'_>, object: &Value) -> Vec<FieldError> {
        let mut errors = ErrorList::new();
        validate(&mut errors, object);
        errors.list()
    }

    fn validate_update(&self, _: &Context<'_>, new: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = ErrorList::new();
        for key in ["driverName", "parameters"] {
            if get(new, key) != get(old, key) {
                errors.forbidden(&Path::root(key), &format!("updates to {key} are forbidden."));
            }
        }
        validate(&mut errors, new);
        errors.list()
    }

    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        vec![name(object), json!(text(object, "driverName")), age(object, now)]
    }
}
