//! VolumeAttributesClasses: parameters that can be changed on volumes in use.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{parameters, provisioner};
use crate::cells::{AGE, NAME, age, column, name};
use crate::field::{ErrorList, Path};
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

    fn validate(&self, _: &Context<'_>, object: &Value, old: Option<&Value>, errors: &mut ErrorList) {
        if let Some(old) = old {
            for key in ["driverName", "parameters"] {
                if get(object, key) != get(old, key) {
                    errors.forbidden(&Path::root(key), &format!("updates to {key} are forbidden."));
                }
            }
        }
        validate(errors, object);
    }

    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        vec![name(object), json!(text(object, "driverName")), age(object, now)]
    }
}
