//! ControllerRevisions: snapshots of a controller's template. Their data is immutable.

use jiff::Timestamp;
use machinery_api::GroupVersion;
use serde_json::{Value, json};

use crate::cells::{AGE, NAME, age, column, name};
use crate::field::{ErrorList, Path};
use crate::read::{flag, get, int, items, text};
use crate::{Column, Context, MetadataChecks, Row, Storage, Strategy};

pub(crate) static ROW: Row = Row {
    group: "apps",
    kind: "ControllerRevision",
    plural: "controllerrevisions",
    singular: "controllerrevision",
    schema: "io.k8s.api.apps.v1.ControllerRevision",
    storage: Storage::Stored("controllerrevisions"),
    strategy: &ControllerRevision,
    example: r#"apiVersion: apps/v1
kind: ControllerRevision
metadata: {name: example}
revision: 1
data: {spec: {template: {}}}
"#,
    ..Row::NAMESPACED
};

struct ControllerRevision;

const COLUMNS: &[Column] = &[NAME, column("Controller", "string"), column("Revision", "string"), AGE];

fn revision(errors: &mut ErrorList, object: &Value) {
    errors.non_negative(&Path::root("revision"), int(object, "revision"));
}

impl Strategy for ControllerRevision {
    fn metadata_checks(&self) -> MetadataChecks {
        MetadataChecks::ChangeThenWhole
    }

    fn validate(&self, _: &Context<'_>, object: &Value, old: Option<&Value>, errors: &mut ErrorList) {
        revision(errors, object);
        match (get(object, "data"), old) {
            (data, Some(old)) => errors.immutable(&Path::root("data"), data, get(old, "data")),
            (Value::Null, None) => errors.required(&Path::root("data"), "data is mandatory"),
            (Value::Object(_), None) => {}
            (_, None) => errors.required(&Path::root("data"), "data must be a valid JSON object"),
        }
    }

    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let owners = items(get(object, "metadata"), "ownerReferences");
        let controller = owners.iter().find(|owner| flag(owner, "controller")).map_or_else(
            || "<none>".to_owned(),
            |owner| {
                let kind = match GroupVersion::parse(text(owner, "apiVersion")).group {
                    "" => text(owner, "kind").to_owned(),
                    group => format!("{}.{group}", text(owner, "kind")),
                };
                format!("{}/{}", kind.to_lowercase(), text(owner, "name"))
            },
        );
        vec![name(object), json!(controller), json!(int(object, "revision").unwrap_or(0)), age(object, now)]
    }
}
