//! DeviceClasses: kinds of devices, defined by selectors.

use serde_json::Value;

use super::{CONFIG_MAX, bounded, claim, selectors};
use crate::core::pods::update::semantically_equal;
use crate::field::{ErrorList, Path};
use crate::read::{get, has, spec_of, text};
use crate::rules::NameRule;
use crate::{Context, MetadataChecks, Row, Storage, Strategy};

pub(crate) static ROW: Row = Row {
    group: "resource.k8s.io",
    kind: "DeviceClass",
    plural: "deviceclasses",
    singular: "deviceclass",
    schema: "io.k8s.api.resource.v1.DeviceClass",
    storage: Storage::Stored("deviceclasses"),
    inert: Some("nothing allocates devices here"),
    strategy: &DeviceClass,
    example: r#"apiVersion: resource.k8s.io/v1
kind: DeviceClass
metadata: {name: example}
spec: {selectors: [{cel: {expression: device.driver == "devices.example.com"}}]}
"#,
    ..Row::CLUSTER
};

struct DeviceClass;

const SPEC: Path<'static> = Path::root("spec");

fn validate(errors: &mut ErrorList, spec: &Value, old: Option<&Value>) {
    // Stored expressions are exempt if unchanged.
    if !old.is_some_and(|old| semantically_equal(get(old, "selectors"), get(spec, "selectors"))) {
        selectors::validate(errors, spec, &SPEC);
    }
    let config_at = SPEC.child("config");
    for (i, given) in bounded(errors, spec, "config", CONFIG_MAX, &config_at).iter().enumerate() {
        claim::configuration(errors, given, &config_at.index(i));
    }
    let extended = "extendedResourceName";
    if has(spec, extended) && !crate::core::pods::resources::is_extended(text(spec, extended)) {
        errors.invalid(&SPEC.child(extended), text(spec, extended), "must be a valid extended resource name");
    }
}

impl Strategy for DeviceClass {
    fn default(&self, object: &mut Value) {
        // Go's encoder always writes it.
        spec_of(object);
    }

    fn counts_generation(&self) -> bool {
        true
    }

    fn metadata_checks(&self) -> MetadataChecks {
        MetadataChecks::WholeThenChange
    }

    fn delete_answers_object(&self) -> bool {
        true
    }

    fn name_rule(&self) -> NameRule {
        NameRule::GeneratedSubdomain
    }

    fn validate(&self, _: &Context<'_>, object: &Value, old: Option<&Value>, errors: &mut ErrorList) {
        validate(errors, get(object, "spec"), old.map(|old| get(old, "spec")));
    }
}
