//! Definitions in error messages: upstream prints the fields of its internal form, in Go's order and with Go's names.

use serde_json::{Map, Value, json};

use super::shared_value;
use crate::field::go_json;
use crate::read::get;

/// Fields of a schema: Go's name, the JSON name, and the kind of value.
const SCHEMA: &[(&str, &str, FieldKind)] = &[
    ("ID", "id", FieldKind::Text),
    ("Schema", "$schema", FieldKind::Text),
    ("Ref", "$ref", FieldKind::Plain),
    ("Description", "description", FieldKind::Text),
    ("Type", "type", FieldKind::Text),
    ("Nullable", "nullable", FieldKind::Flag),
    ("Format", "format", FieldKind::Text),
    ("Title", "title", FieldKind::Text),
    ("Default", "default", FieldKind::Plain),
    ("Maximum", "maximum", FieldKind::Plain),
    ("ExclusiveMaximum", "exclusiveMaximum", FieldKind::Flag),
    ("Minimum", "minimum", FieldKind::Plain),
    ("ExclusiveMinimum", "exclusiveMinimum", FieldKind::Flag),
    ("MaxLength", "maxLength", FieldKind::Plain),
    ("MinLength", "minLength", FieldKind::Plain),
    ("Pattern", "pattern", FieldKind::Text),
    ("MaxItems", "maxItems", FieldKind::Plain),
    ("MinItems", "minItems", FieldKind::Plain),
    ("UniqueItems", "uniqueItems", FieldKind::Flag),
    ("MultipleOf", "multipleOf", FieldKind::Plain),
    ("Enum", "enum", FieldKind::Plain),
    ("MaxProperties", "maxProperties", FieldKind::Plain),
    ("MinProperties", "minProperties", FieldKind::Plain),
    ("Required", "required", FieldKind::Plain),
    ("Items", "items", FieldKind::Items),
    ("AllOf", "allOf", FieldKind::Schemas),
    ("OneOf", "oneOf", FieldKind::Schemas),
    ("AnyOf", "anyOf", FieldKind::Schemas),
    ("Not", "not", FieldKind::Schema),
    ("Properties", "properties", FieldKind::Named),
    ("AdditionalProperties", "additionalProperties", FieldKind::SchemaOrFlag),
    ("PatternProperties", "patternProperties", FieldKind::Named),
    ("Dependencies", "dependencies", FieldKind::Dependencies),
    ("AdditionalItems", "additionalItems", FieldKind::SchemaOrFlag),
    ("Definitions", "definitions", FieldKind::Named),
    (
        "ExternalDocs",
        "externalDocs",
        FieldKind::Fields(&[("Description", "description", FieldKind::Text), ("URL", "url", FieldKind::Text)]),
    ),
    ("Example", "example", FieldKind::Plain),
    ("XPreserveUnknownFields", "x-kubernetes-preserve-unknown-fields", FieldKind::Plain),
    ("XEmbeddedResource", "x-kubernetes-embedded-resource", FieldKind::Flag),
    ("XIntOrString", "x-kubernetes-int-or-string", FieldKind::Flag),
    ("XListMapKeys", "x-kubernetes-list-map-keys", FieldKind::Plain),
    ("XListType", "x-kubernetes-list-type", FieldKind::Plain),
    ("XMapType", "x-kubernetes-map-type", FieldKind::Plain),
    ("XValidations", "x-kubernetes-validations", FieldKind::Each(RULE)),
];

const RULE: &[(&str, &str, FieldKind)] = &[
    ("Rule", "rule", FieldKind::Text),
    ("Message", "message", FieldKind::Text),
    ("MessageExpression", "messageExpression", FieldKind::Text),
    ("Reason", "reason", FieldKind::Plain),
    ("FieldPath", "fieldPath", FieldKind::Text),
    ("OptionalOldSelf", "optionalOldSelf", FieldKind::Plain),
];

const COLUMN: &[(&str, &str, FieldKind)] = &[
    ("Name", "name", FieldKind::Text),
    ("Type", "type", FieldKind::Text),
    ("Format", "format", FieldKind::Text),
    ("Description", "description", FieldKind::Text),
    ("Priority", "priority", FieldKind::Number),
    ("JSONPath", "jsonPath", FieldKind::Text),
];

const SCALE: &[(&str, &str, FieldKind)] = &[
    ("SpecReplicasPath", "specReplicasPath", FieldKind::Text),
    ("StatusReplicasPath", "statusReplicasPath", FieldKind::Text),
    ("LabelSelectorPath", "labelSelectorPath", FieldKind::Plain),
];

const VERSION: &[(&str, &str, FieldKind)] = &[
    ("Name", "name", FieldKind::Text),
    ("Served", "served", FieldKind::Flag),
    ("Storage", "storage", FieldKind::Flag),
    ("Deprecated", "deprecated", FieldKind::Flag),
    ("DeprecationWarning", "deprecationWarning", FieldKind::Plain),
    ("Schema", "schema", FieldKind::Fields(&[("OpenAPIV3Schema", "openAPIV3Schema", FieldKind::Schema)])),
    (
        "Subresources",
        "subresources",
        FieldKind::Fields(&[
            ("Status", "status", FieldKind::Fields(&[])),
            ("Scale", "scale", FieldKind::Fields(SCALE)),
        ]),
    ),
    ("AdditionalPrinterColumns", "additionalPrinterColumns", FieldKind::Each(COLUMN)),
    ("SelectableFields", "selectableFields", FieldKind::Each(&[("JSONPath", "jsonPath", FieldKind::Text)])),
];

/// The kind of a field's value, which determines the text of an absent one.
#[derive(Clone, Copy)]
enum FieldKind {
    /// JSON, or null.
    Plain,
    Text,
    Flag,
    Number,
    Schema,
    Schemas,
    Named,
    Items,
    SchemaOrFlag,
    Dependencies,
    Fields(&'static [(&'static str, &'static str, FieldKind)]),
    Each(&'static [(&'static str, &'static str, FieldKind)]),
}

fn fields(value: &Value, of: &[(&str, &str, FieldKind)]) -> String {
    let parts: Vec<String> =
        of.iter().map(|(name, key, sort)| format!("\"{name}\":{}", format_field(get(value, key), *sort))).collect();
    format!("{{{}}}", parts.join(","))
}

fn each(list: &[Value], shown: impl Fn(&Value) -> String) -> String {
    let parts: Vec<String> = list.iter().map(shown).collect();
    format!("[{}]", parts.join(","))
}

fn named(map: &Map<String, Value>, shown: impl Fn(&Value) -> String) -> String {
    let parts: Vec<String> =
        map.iter().map(|(name, value)| format!("{}:{}", go_json(&json!(name)), shown(value))).collect();
    format!("{{{}}}", parts.join(","))
}

fn format_field(value: &Value, sort: FieldKind) -> String {
    match (sort, value) {
        (FieldKind::Text, Value::Null) => "\"\"".into(),
        (FieldKind::Flag, Value::Null) => "false".into(),
        (FieldKind::Number, Value::Null) => "0".into(),
        (FieldKind::Schema, Value::Object(_)) => schema(value),
        (FieldKind::Schemas, Value::Array(list)) => each(list, schema),
        (FieldKind::Named, Value::Object(map)) => named(map, schema),
        (FieldKind::Items, Value::Array(list)) => format!("{{\"Schema\":null,\"JSONSchemas\":{}}}", each(list, schema)),
        (FieldKind::Items, Value::Object(_)) => format!("{{\"Schema\":{},\"JSONSchemas\":null}}", schema(value)),
        (FieldKind::SchemaOrFlag, Value::Object(_)) => format!("{{\"Allows\":true,\"Schema\":{}}}", schema(value)),
        (FieldKind::SchemaOrFlag, Value::Bool(allows)) => format!("{{\"Allows\":{allows},\"Schema\":null}}"),
        (FieldKind::Dependencies, Value::Object(map)) => named(map, |one| match one {
            Value::Array(_) => format!("{{\"Schema\":null,\"Property\":{}}}", go_json(one)),
            other => format!("{{\"Schema\":{},\"Property\":null}}", schema(other)),
        }),
        (FieldKind::Fields(of), Value::Object(_)) => fields(value, of),
        (FieldKind::Each(of), Value::Array(list)) => each(list, |one| fields(one, of)),
        (_, other) => go_json(other),
    }
}

pub(super) fn schema(schema: &Value) -> String {
    fields(schema, SCHEMA)
}

/// The schema or the schemas of a list's items.
pub(super) fn of_items(schema: &Value) -> String {
    format_field(get(schema, "items"), FieldKind::Items)
}

pub(super) fn rule(rule: &Value) -> String {
    fields(rule, RULE)
}

/// The versions, without the values that all share.
pub(super) fn versions(spec: &Value) -> String {
    let Value::Array(all) = get(spec, "versions") else { return "null".into() };
    let top: Vec<&str> = ["schema", "subresources", "additionalPrinterColumns", "selectableFields"]
        .into_iter()
        .filter(|key| shared_value(all, key).is_some())
        .collect();
    each(all, |version| {
        let mut version = version.clone();
        if let Value::Object(map) = &mut version {
            map.retain(|key, _| !top.contains(&key.as_str()));
        }
        fields(&version, VERSION)
    })
}
