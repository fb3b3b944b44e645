//! ResourceClaims: requested devices, their allocation, and the consumers.

use crate::ResetFields;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{claim, status};
use crate::cells::{AGE, NAME, age, column, name};
use crate::field::{ErrorList, IMMUTABLE, Path};
use crate::go_structs;
use crate::metadata::reset_for_status;
use crate::read::{at, fields, get, has, items, object_mut};
use crate::{Column, Context, MetadataChecks, Row, STATUS, Storage, Strategy, prepare_update_by_default};

pub(crate) static ROW: Row = Row {
    group: "resource.k8s.io",
    kind: "ResourceClaim",
    plural: "resourceclaims",
    singular: "resourceclaim",
    schema: "io.k8s.api.resource.v1.ResourceClaim",
    subresources: &[STATUS],
    storage: Storage::Stored("resourceclaims"),
    inert: Some("nothing allocates devices here"),
    shows_empty: true,
    strategy: &ResourceClaim,
    example: r#"apiVersion: resource.k8s.io/v1
kind: ResourceClaim
metadata: {name: example}
spec: {devices: {requests: [{name: one, exactly: {deviceClassName: example}}]}}
"#,
    ..Row::NAMESPACED
};

struct ResourceClaim;

const COLUMNS: &[Column] = &[NAME, column("State", "string"), AGE];
const SPEC: Path<'static> = Path::root("spec");

impl Strategy for ResourceClaim {
    fn reset_fields(&self, subresource: &str) -> ResetFields {
        match subresource {
            "status" => ResetFields::METADATA_TOO,
            _ => ResetFields::Below(&[&["status"]]),
        }
    }

    fn default(&self, object: &mut Value) {
        claim::default(object_mut(object, "spec"));
        // Go's encoder always writes both.
        fields(object_mut(object, "spec")).entry("devices").or_insert_with(|| json!({}));
        fields(object).entry("status").or_insert_with(|| json!({}));
    }

    fn prepare_create(&self, _: &Context<'_>, object: &mut Value) {
        fields(object).insert("status".into(), json!({}));
    }

    fn prepare_update(&self, context: &Context<'_>, new: &mut Value, old: &Value) {
        prepare_update_by_default(context, new, old);
        if !context.subresource.is_empty() {
            reset_for_status(new, old);
            status::drop_deallocated_statuses(new, old);
        }
    }

    fn metadata_checks_of(&self, subresource: &str) -> MetadataChecks {
        if subresource.is_empty() { MetadataChecks::WholeThenChange } else { MetadataChecks::Change }
    }

    fn delete_answers_object(&self) -> bool {
        true
    }

    fn validate(&self, context: &Context<'_>, object: &Value, old: Option<&Value>, errors: &mut ErrorList) {
        let spec = get(object, "spec");
        match old {
            None => claim::validate(errors, spec, &SPEC),
            Some(old) if !context.subresource.is_empty() => status::validate(errors, object, old),
            Some(old) if go_structs::equal(spec, get(old, "spec"), "ResourceClaimSpec") => {}
            Some(_) => go_structs::invalid(errors, &SPEC, spec, "ResourceClaimSpec", IMMUTABLE),
        }
    }

    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let going = has(get(object, "metadata"), "deletionTimestamp");
        let allocated = !at(object, &["status", "allocation"]).is_null();
        let reserved = allocated && !items(get(object, "status"), "reservedFor").is_empty();
        let states =
            [(going, "deleted"), (!allocated && !going, "pending"), (allocated, "allocated"), (reserved, "reserved")];
        let shown: Vec<&str> = states.iter().filter(|(is, _)| *is).map(|(_, state)| *state).collect();
        vec![name(object), json!(shown.join(",")), age(object, now)]
    }
}
