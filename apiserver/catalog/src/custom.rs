//! OpenAPI schemas of custom resources: in v3 as the definition has them; in v2, as upstream, without the parts that
//! kubectl's v2 validation cannot express.

use serde_json::{Map, Value, json};

use super::openapi::{REFERENCE, list_of, reference};
use super::openapi_v2;
use super::schemas::META;
use apiserver_resources::ResourceInfo;

const PRESERVES: &str = "x-kubernetes-preserve-unknown-fields";
const EMBEDDED: &str = "x-kubernetes-embedded-resource";
const INT_OR_STRING: &str = "x-kubernetes-int-or-string";
const SELECTABLE: &str = "x-kubernetes-selectable-fields";
const OF_KIND: &str = "x-kubernetes-group-version-kind";

/// A resource with a schema of its own.
pub(super) struct Custom<'a> {
    row: &'a ResourceInfo,
    schema: Value,
}

type Schema = Map<String, Value>;

impl<'a> Custom<'a> {
    pub(super) fn of(row: &'a ResourceInfo) -> Option<Self> {
        row.openapi.as_deref().map(|schema| Self { row, schema: schema.value() })
    }

    /// The schemas of the kind and its list in v3.
    pub(super) fn schemas_v3(&self) -> [(String, Value); 2] {
        let mut schema = self.schema.clone();
        visit_schemas(&mut schema, &mut |schema| {
            add_int_or_string(schema);
            add_embedded_fields(schema);
        });
        if let Some(root) = schema.as_object_mut() {
            describe_meta(root, "ObjectMeta");
        }
        self.named(schema)
    }

    /// The schemas of the kind and its list in v2.
    pub(super) fn schemas_v2(&self) -> [(String, Value); 2] {
        let mut schema = self.schema.clone();
        if schema[PRESERVES] == true {
            // Not even metadata is described: kubectl treats an object with some described fields as having no others.
            schema = json!({ "type": "object" });
            if let Some(fields) = self.schema.get(SELECTABLE) {
                schema[SELECTABLE] = fields.clone();
            }
        } else {
            visit_schemas(&mut schema, &mut remove_unsupported);
            visit_schemas(&mut schema, &mut |schema| {
                if !is_true(schema, PRESERVES) {
                    add_embedded_fields(schema);
                }
            });
            if let Some(root) = schema.as_object_mut() {
                describe_meta(root, "ObjectMeta");
            }
        }
        self.named(schema).map(|(name, mut schema)| {
            openapi_v2::schema(&mut schema);
            (name, schema)
        })
    }

    fn named(&self, mut schema: Value) -> [(String, Value); 2] {
        let row = self.row;
        let of_kind = |kind: &str| json!([{ "group": &*row.group, "version": &*row.version, "kind": kind }]);
        schema[OF_KIND] = of_kind(&row.kind);
        let items = json!({
            "type": "array", "description": format!("The {} themselves.", row.plural), "items": reference(row.schema.name()),
        });
        let mut list = json!({
            "type": "object", "description": format!("A list of {} objects.", row.kind), "required": ["items"],
            "properties": { "items": items }, OF_KIND: of_kind(&row.list_kind()),
        });
        if let Some(fields) = schema.get(SELECTABLE) {
            list[SELECTABLE] = fields.clone();
        }
        if let Some(list) = list.as_object_mut() {
            describe_meta(list, "ListMeta");
        }
        [(row.schema.name().to_owned(), schema), (list_of(row), list)]
    }
}

/// Visits a schema and its nested value schemas, parents first.
fn visit_schemas(schema: &mut Value, visit: &mut dyn FnMut(&mut Schema)) {
    let Some(map) = schema.as_object_mut() else { return };
    visit(map);
    for below in ["items", "additionalProperties"] {
        if let Some(below) = map.get_mut(below) {
            visit_schemas(below, visit);
        }
    }
    for below in map.get_mut("properties").and_then(Value::as_object_mut).into_iter().flat_map(Map::values_mut) {
        visit_schemas(below, visit);
    }
}

fn is_true(schema: &Schema, key: &str) -> bool {
    schema.get(key) == Some(&Value::Bool(true))
}

/// Adds the `anyOf` of integer and string that `x-kubernetes-int-or-string` implies.
fn add_int_or_string(schema: &mut Schema) {
    if !is_true(schema, INT_OR_STRING) || schema.contains_key("anyOf") {
        return;
    }
    let either = json!([{ "type": "integer" }, { "type": "string" }]);
    let first_is_either =
        schema.get("allOf").and_then(|all| all.get(0)).and_then(|first| first.get("anyOf")) == Some(&either);
    if !first_is_either {
        schema.insert("anyOf".into(), either);
    }
}

/// Adds the fields of an embedded object.
fn add_embedded_fields(schema: &mut Schema) {
    if !is_true(schema, EMBEDDED) {
        return;
    }
    describe_meta(schema, "ObjectMeta");
    let required = schema.entry("required").or_insert_with(|| json!([]));
    if let Some(required) = required.as_array_mut() {
        for name in ["kind", "apiVersion"] {
            if !required.iter().any(|other| other == name) {
                required.push(name.into());
            }
        }
    }
}

/// Adds the fields that every object has.
fn describe_meta(schema: &mut Schema, metadata: &str) {
    let properties = schema.entry("properties").or_insert_with(|| json!({}));
    let metadata = json!([{ "$ref": format!("{REFERENCE}{META}{metadata}") }]);
    let text = |about: &str| json!({ "type": "string", "description": about });
    properties["apiVersion"] = text("APIVersion defines the group and version of the object, such as apps/v1.");
    properties["kind"] = text("The kind of the object.");
    properties["metadata"] =
        json!({ "description": "Standard object's metadata, common to all kinds.", "allOf": metadata });
}

/// Removes what v2 cannot express, as upstream: kubectl validates against v2 and would reject valid objects.
fn remove_unsupported(schema: &mut Schema) {
    for key in ["allOf", "oneOf", "anyOf", "not"] {
        schema.remove(key);
    }
    if schema.remove("nullable") == Some(Value::Bool(true)) {
        schema.retain(|key, _| !matches!(key.as_str(), "type" | "items" | "properties"));
    }
    if is_true(schema, PRESERVES) {
        schema.retain(|key, _| !matches!(key.as_str(), "items" | "properties"));
        if schema.get("type").is_some_and(|of| of == "object") {
            schema.remove("type");
        }
    }
    if !schema.contains_key("items") && schema.get("type").is_some_and(|of| of == "array") {
        schema.remove("type");
    }
    let nullable = |schema: &Value| schema["nullable"] == true;
    if schema.get("additionalProperties").is_some_and(nullable) {
        schema.remove("required");
    }
    let may_be_null: Vec<String> = schema
        .get("properties")
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
        .filter(|(_, below)| nullable(below))
        .map(|(name, _)| name.clone())
        .collect();
    if let Some(required) = schema.get_mut("required").and_then(Value::as_array_mut) {
        required.retain(|name| !may_be_null.iter().any(|other| name == other));
        if required.is_empty() {
            schema.remove("required");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn degraded(mut schema: Value) -> Value {
        visit_schemas(&mut schema, &mut remove_unsupported);
        openapi_v2::schema(&mut schema);
        schema
    }

    /// Recorded from upstream.
    #[test]
    fn openapi_v2_omits_inexpressible_parts() {
        for (v3, v2) in [
            (json!({ "type": "object", PRESERVES: true, "properties": { "a": {} } }), json!({ PRESERVES: true })),
            (json!({ "type": "object", "nullable": true, "properties": { "b": {} } }), json!({})),
            (
                json!({ "type": "array", "items": { "type": "object", PRESERVES: true } }),
                json!({ "type": "array", "items": { PRESERVES: true } }),
            ),
            (json!({ "type": "string", "oneOf": [{ "enum": ["a"] }], "not": {} }), json!({ "type": "string" })),
            (
                json!({ INT_OR_STRING: true, "anyOf": [], "pattern": "x" }),
                json!({ INT_OR_STRING: true, "pattern": "x" }),
            ),
            (
                json!({ "type": "object", "required": ["m", "n"], "properties": { "m": { "type": "string", "nullable": true }, "n": { "default": 1 } } }),
                json!({ "type": "object", "required": ["n"], "properties": { "m": {}, "n": {} } }),
            ),
            (
                json!({ "type": "object", "additionalProperties": { "type": "string", "nullable": true } }),
                json!({ "type": "object", "additionalProperties": {} }),
            ),
        ] {
            assert_eq!(degraded(v3), v2);
        }
    }

    #[test]
    fn int_or_string_and_embedded_resources_are_marked() {
        let mut schema =
            json!({ "properties": { "port": { INT_OR_STRING: true }, "t": { "type": "object", EMBEDDED: true } } });
        visit_schemas(&mut schema, &mut |schema| {
            add_int_or_string(schema);
            add_embedded_fields(schema);
        });
        assert_eq!(schema["properties"]["port"]["anyOf"], json!([{ "type": "integer" }, { "type": "string" }]));
        assert_eq!(schema["properties"]["t"]["required"], json!(["kind", "apiVersion"]));
        assert!(schema["properties"]["t"]["properties"]["metadata"]["allOf"].is_array());
    }
}
