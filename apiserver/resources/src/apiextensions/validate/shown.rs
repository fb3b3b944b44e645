//! Definitions as errors show them: upstream prints the fields of its internal form, in their order and by their Go names.

use serde_json::{Map, Value, json};

use super::alike;
use crate::field::go_json;
use crate::read::get;

/// Fields of a schema: what Go calls them, what JSON does, and of what sort they are.
const SCHEMA: &[(&str, &str, Sort)] = &[
    ("ID", "id", Sort::Text),
    ("Schema", "$schema", Sort::Text),
    ("Ref", "$ref", Sort::Plain),
    ("Description", "description", Sort::Text),
    ("Type", "type", Sort::Text),
    ("Nullable", "nullable", Sort::Flag),
    ("Format", "format", Sort::Text),
    ("Title", "title", Sort::Text),
    ("Default", "default", Sort::Plain),
    ("Maximum", "maximum", Sort::Plain),
    ("ExclusiveMaximum", "exclusiveMaximum", Sort::Flag),
    ("Minimum", "minimum", Sort::Plain),
    ("ExclusiveMinimum", "exclusiveMinimum", Sort::Flag),
    ("MaxLength", "maxLength", Sort::Plain),
    ("MinLength", "minLength", Sort::Plain),
    ("Pattern", "pattern", Sort::Text),
    ("MaxItems", "maxItems", Sort::Plain),
    ("MinItems", "minItems", Sort::Plain),
    ("UniqueItems", "uniqueItems", Sort::Flag),
    ("MultipleOf", "multipleOf", Sort::Plain),
    ("Enum", "enum", Sort::Plain),
    ("MaxProperties", "maxProperties", Sort::Plain),
    ("MinProperties", "minProperties", Sort::Plain),
    ("Required", "required", Sort::Plain),
    ("Items", "items", Sort::Items),
    ("AllOf", "allOf", Sort::Schemas),
    ("OneOf", "oneOf", Sort::Schemas),
    ("AnyOf", "anyOf", Sort::Schemas),
    ("Not", "not", Sort::Schema),
    ("Properties", "properties", Sort::Named),
    ("AdditionalProperties", "additionalProperties", Sort::SchemaOrFlag),
    ("PatternProperties", "patternProperties", Sort::Named),
    ("Dependencies", "dependencies", Sort::Dependencies),
    ("AdditionalItems", "additionalItems", Sort::SchemaOrFlag),
    ("Definitions", "definitions", Sort::Named),
    (
        "ExternalDocs",
        "externalDocs",
        Sort::Fields(&[("Description", "description", Sort::Text), ("URL", "url", Sort::Text)]),
    ),
    ("Example", "example", Sort::Plain),
    ("XPreserveUnknownFields", "x-kubernetes-preserve-unknown-fields", Sort::Plain),
    ("XEmbeddedResource", "x-kubernetes-embedded-resource", Sort::Flag),
    ("XIntOrString", "x-kubernetes-int-or-string", Sort::Flag),
    ("XListMapKeys", "x-kubernetes-list-map-keys", Sort::Plain),
    ("XListType", "x-kubernetes-list-type", Sort::Plain),
    ("XMapType", "x-kubernetes-map-type", Sort::Plain),
    ("XValidations", "x-kubernetes-validations", Sort::Each(RULE)),
];

const RULE: &[(&str, &str, Sort)] = &[
    ("Rule", "rule", Sort::Text),
    ("Message", "message", Sort::Text),
    ("MessageExpression", "messageExpression", Sort::Text),
    ("Reason", "reason", Sort::Plain),
    ("FieldPath", "fieldPath", Sort::Text),
    ("OptionalOldSelf", "optionalOldSelf", Sort::Plain),
];

const COLUMN: &[(&str, &str, Sort)] = &[
    ("Name", "name", Sort::Text),
    ("Type", "type", Sort::Text),
    ("Format", "format", Sort::Text),
    ("Description", "description", Sort::Text),
    ("Priority", "priority", Sort::Number),
    ("JSONPath", "jsonPath", Sort::Text),
];

const SCALE: &[(&str, &str, Sort)] = &[
    ("SpecReplicasPath", "specReplicasPath", Sort::Text),
    ("StatusReplicasPath", "statusReplicasPath", Sort::Text),
    ("LabelSelectorPath", "labelSelectorPath", Sort::Plain),
];

const VERSION: &[(&str, &str, Sort)] = &[
    ("Name", "name", Sort::Text),
    ("Served", "served", Sort::Flag),
    ("Storage", "storage", Sort::Flag),
    ("Deprecated", "deprecated", Sort::Flag),
    ("DeprecationWarning", "deprecationWarning", Sort::Plain),
    ("Schema", "schema", Sort::Fields(&[("OpenAPIV3Schema", "openAPIV3Schema", Sort::Schema)])),
    (
        "Subresources",
        "subresources",
        Sort::Fields(&[("Status", "status", Sort::Fields(&[])), ("Scale", "scale", Sort::Fields(SCALE))]),
    ),
    ("AdditionalPrinterColumns", "additionalPrinterColumns", Sort::Each(COLUMN)),
    ("SelectableFields", "selectableFields", Sort::Each(&[("JSONPath", "jsonPath", Sort::Text)])),
];

/// What a field holds, and so what stands for one that isn't there.
#[derive(Clone, Copy)]
enum Sort {
    /// JSON as it is, or null.
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
    Fields(&'static [(&'static str, &'static str, Sort)]),
    Each(&'static [(&'static str, &'static str, Sort)]),
}

fn fields(value: &Value, of: &[(&str, &str, Sort)]) -> String {
    let parts: Vec<String> =
        of.iter().map(|(name, key, sort)| format!("\"{name}\":{}", shown(get(value, key), *sort))).collect();
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

fn shown(value: &Value, sort: Sort) -> String {
    match (sort, value) {
        (Sort::Text, Value::Null) => "\"\"".into(),
        (Sort::Flag, Value::Null) => "false".into(),
        (Sort::Number, Value::Null) => "0".into(),
        (Sort::Schema, Value::Object(_)) => schema(value),
        (Sort::Schemas, Value::Array(list)) => each(list, schema),
        (Sort::Named, Value::Object(map)) => named(map, schema),
        (Sort::Items, Value::Array(list)) => format!("{{\"Schema\":null,\"JSONSchemas\":{}}}", each(list, schema)),
        (Sort::Items, Value::Object(_)) => format!("{{\"Schema\":{},\"JSONSchemas\":null}}", schema(value)),
        (Sort::SchemaOrFlag, Value::Object(_)) => format!("{{\"Allows\":true,\"Schema\":{}}}", schema(value)),
        (Sort::SchemaOrFlag, Value::Bool(allows)) => format!("{{\"Allows\":{allows},\"Schema\":null}}"),
        (Sort::Dependencies, Value::Object(map)) => named(map, |one| match one {
            Value::Array(_) => format!("{{\"Schema\":null,\"Property\":{}}}", go_json(one)),
            other => format!("{{\"Schema\":{},\"Property\":null}}", schema(other)),
        }),
        (Sort::Fields(of), Value::Object(_)) => fields(value, of),
        (Sort::Each(of), Value::Array(list)) => each(list, |one| fields(one, of)),
        (_, other) => go_json(other),
    }
}

/// A schema.
pub(super) fn schema(schema: &Value) -> String {
    fields(schema, SCHEMA)
}

/// The schema or the schemas of a list's items.
pub(super) fn of_items(schema: &Value) -> String {
    shown(get(schema, "items"), Sort::Items)
}

/// A rule.
pub(super) fn rule(rule: &Value) -> String {
    fields(rule, RULE)
}

/// The versions, without what all have alike.
pub(super) fn versions(spec: &Value) -> String {
    let Value::Array(all) = get(spec, "versions") else { return "null".into() };
    let top: Vec<&str> = ["schema", "subresources", "additionalPrinterColumns", "selectableFields"]
        .into_iter()
        .filter(|key| alike(all, key).is_some())
        .collect();
    each(all, |version| {
        let mut version = version.clone();
        if let Value::Object(map) = &mut version {
            map.retain(|key, _| !top.contains(&key.as_str()));
        }
        fields(&version, VERSION)
    })
}
