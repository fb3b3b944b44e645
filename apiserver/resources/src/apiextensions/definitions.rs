//! CustomResourceDefinitions: the strategy of definitions themselves.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::conditions::{self, FINALIZER};
use super::validate;
use crate::cells::{NAME_AND_CREATED, name_and_created};
use crate::field::ErrorList;
use crate::read::{default_to, default_zero_to, get, items, items_mut, object_mut, text, texts};
use crate::rules::NameRule;
use crate::{Column, Context, Row, STATUS, Storage, Strategy, prepare_update_by_default};

/// Their storage prefix.
pub(crate) const STORED: &str = "apiextensions.k8s.io/customresourcedefinitions";

pub(crate) static ROW: Row = Row {
    group: "apiextensions.k8s.io",
    kind: "CustomResourceDefinition",
    plural: "customresourcedefinitions",
    singular: "customresourcedefinition",
    short_names: &["crd", "crds"],
    categories: &["api-extensions"],
    schema: "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.CustomResourceDefinition",
    subresources: &[STATUS],
    storage: Storage::Stored(STORED),
    shows_empty: true,
    strategy: &CustomResourceDefinition,
    example: r#"apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: widgets.example.com}
spec:
  group: example.com
  scope: Namespaced
  names: {plural: widgets, kind: Widget}
  versions:
  - name: v1
    served: true
    storage: true
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec: {type: object, properties: {size: {type: integer, minimum: 0}}}
"#,
    ..Row::CLUSTER
};

struct CustomResourceDefinition;

/// The name of the storage version.
pub(crate) fn storage_version(object: &Value) -> Option<&str> {
    let versions = items(get(object, "spec"), "versions");
    versions.iter().find(|version| get(version, "storage") == &Value::Bool(true)).map(|version| text(version, "name"))
}

/// Adds the storage version to `status.storedVersions`.
fn record_storage_version(object: &mut Value) {
    let Some(name) = storage_version(object).map(str::to_owned) else { return };
    let status = object_mut(object, "status");
    if texts(status, "storedVersions").any(|stored| stored == name) {
        return;
    }
    let mut stored: Vec<String> = texts(status, "storedVersions").map(Into::into).collect();
    stored.push(name);
    status["storedVersions"] = json!(stored);
}

/// Drops keys that are no schema keywords in fields of several types, such as `items`.
fn drop_unknown_keywords(schema: &mut Value) {
    let Value::Object(map) = schema else { return };
    map.retain(|key, value| !value.is_null() && validate::is_keyword(key));
    for key in ["items", "additionalProperties", "additionalItems", "not"] {
        if let Some(below) = map.get_mut(key) {
            drop_unknown_keywords(below);
            below.as_array_mut().into_iter().flatten().for_each(drop_unknown_keywords);
        }
    }
    for key in ["allOf", "anyOf", "oneOf"] {
        map.get_mut(key).and_then(Value::as_array_mut).into_iter().flatten().for_each(drop_unknown_keywords);
    }
    for key in ["properties", "patternProperties", "definitions"] {
        map.get_mut(key)
            .and_then(Value::as_object_mut)
            .into_iter()
            .flatten()
            .for_each(|(_, v)| drop_unknown_keywords(v));
    }
    for key in ["default", "example"] {
        if map.get(key) == Some(&Value::Null) {
            map.remove(key);
        }
    }
}

impl Strategy for CustomResourceDefinition {
    fn default(&self, object: &mut Value) {
        let Some(spec) = object.get_mut("spec").filter(|spec| spec.is_object()) else { return };
        default_to(spec, "conversion", json!({"strategy": "None"}));
        if let Some(service) = spec.pointer_mut("/conversion/webhook/clientConfig/service").filter(|s| s.is_object()) {
            default_to(service, "port", 443);
        }
        let names = object_mut(spec, "names");
        let kind = text(names, "kind").to_owned();
        if !kind.is_empty() {
            default_zero_to(names, "singular", kind.to_lowercase());
            default_zero_to(names, "listKind", format!("{kind}List"));
        }
        for version in items_mut(spec, "versions") {
            if let Some(schema) = version.pointer_mut("/schema/openAPIV3Schema") {
                drop_unknown_keywords(schema);
            }
        }
        if texts(get(object, "status"), "storedVersions").next().is_none() {
            record_storage_version(object);
        }
    }

    fn prepare_create(&self, _: &Context<'_>, object: &mut Value) {
        object["status"] = json!({});
        record_storage_version(object);
    }

    fn prepare_update(&self, context: &Context<'_>, new: &mut Value, old: &Value) {
        prepare_update_by_default(context, new, old);
        if context.subresource.is_empty() {
            record_storage_version(new);
        }
    }

    fn counts_generation(&self) -> bool {
        true
    }

    fn name_rule(&self) -> NameRule {
        NameRule::Subdomain
    }

    fn checks_finalizers(&self) -> bool {
        false
    }

    fn validate(&self, context: &Context<'_>, object: &Value, old: Option<&Value>, errors: &mut ErrorList) {
        match old {
            Some(_) if context.subresource == "status" => validate::status(errors, object),
            Some(old) => validate::updated(errors, object, old),
            None => validate::created(errors, object),
        }
    }

    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        validate::format_warnings(object, old)
    }

    fn unconditional_update(&self) -> bool {
        false
    }

    fn start_deletion(&self, object: &Value, now: Timestamp) -> Option<Value> {
        let metadata = get(object, "metadata");
        if !get(metadata, "deletionTimestamp").is_null() {
            return None;
        }
        let mut new = object.clone();
        let mut finalizers: Vec<String> = texts(metadata, "finalizers").map(Into::into).collect();
        if !finalizers.iter().any(|finalizer| finalizer == FINALIZER) {
            finalizers.push(FINALIZER.into());
        }
        new["metadata"]["deletionTimestamp"] = json!(now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string());
        new["metadata"]["finalizers"] = json!(finalizers);
        let why = "CustomResourceDefinition marked for deletion; CustomResource deletion will begin soon";
        conditions::set(&mut new, conditions::TERMINATING, "True", "InstanceDeletionPending", why, now);
        Some(new)
    }

    fn columns(&self) -> &[Column] {
        NAME_AND_CREATED
    }

    fn cells(&self, object: &Value, _: Timestamp) -> Vec<Value> {
        name_and_created(object)
    }
}
