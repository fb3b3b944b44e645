//! ResourceClaimTemplates: templates of claims that are created per pod.

use serde_json::{Value, json};

use super::claim;
use crate::core::pods::disks::{go_field, is_set};
use crate::field::{ErrorList, IMMUTABLE, Path};
use crate::go_structs;
use crate::metadata::{annotations, labels};
use crate::read::{entries, fields, get, object_mut, spec_of};
use crate::{Context, MetadataChecks, Row, Storage, Strategy};

pub(crate) static ROW: Row = Row {
    group: "resource.k8s.io",
    kind: "ResourceClaimTemplate",
    plural: "resourceclaimtemplates",
    singular: "resourceclaimtemplate",
    schema: "io.k8s.api.resource.v1.ResourceClaimTemplate",
    storage: Storage::Stored("resourceclaimtemplates"),
    inert: Some("nothing allocates devices here: no claims are created"),
    shows_empty: true,
    strategy: &ResourceClaimTemplate,
    example: r#"apiVersion: resource.k8s.io/v1
kind: ResourceClaimTemplate
metadata: {name: example}
spec: {spec: {devices: {requests: [{name: one, exactly: {deviceClassName: example}}]}}}
"#,
    ..Row::NAMESPACED
};

struct ResourceClaimTemplate;

const SPEC: Path<'static> = Path::root("spec");

fn validate(errors: &mut ErrorList, spec: &Value) {
    let (metadata, metadata_at) = (get(spec, "metadata"), SPEC.child("metadata"));
    annotations(errors, get(metadata, "annotations"), &metadata_at.child("annotations"));
    labels(errors, get(metadata, "labels"), &metadata_at.child("labels"));
    for (key, _) in entries(spec, "metadata").filter(|(_, value)| is_set(value)) {
        if key != "annotations" && key != "labels" {
            errors.forbidden(&metadata_at.child(go_field(key)), "cannot be set");
        }
    }
    claim::validate(errors, get(spec, "spec"), &SPEC.child("spec"));
}

impl Strategy for ResourceClaimTemplate {
    fn default(&self, object: &mut Value) {
        let spec = object_mut(spec_of(object), "spec");
        // Go's encoder always writes it.
        fields(spec).entry("devices").or_insert_with(|| json!({}));
        claim::default(spec);
    }

    fn metadata_checks(&self) -> MetadataChecks {
        MetadataChecks::WholeThenChange
    }

    fn delete_answers_object(&self) -> bool {
        true
    }

    fn validate(&self, _: &Context<'_>, object: &Value, old: Option<&Value>, errors: &mut ErrorList) {
        let spec = get(object, "spec");
        // Empty lists of the template's metadata are rejected beside an unchanged spec, as upstream's declarative rules do.
        validate(errors, spec);
        if old.is_some_and(|old| !go_structs::equal(spec, get(old, "spec"), "ResourceClaimTemplateSpec")) {
            go_structs::invalid(errors, &SPEC, spec, "ResourceClaimTemplateSpec", IMMUTABLE);
        }
    }
}
