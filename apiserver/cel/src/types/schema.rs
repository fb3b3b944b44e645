//! Structural schemas: the type that an expression sees, and the interpretation of the values.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value as Json;

use super::{DeclType, Shape, Type, escape};
use crate::limits::REQUEST_BYTES;

/// Maximum depth of a schema; deeper parts aren't exposed.
const DEPTH: usize = 100;

/// A schema as rules see it.
#[derive(Clone, Debug)]
pub struct Declared {
    pub decl: Arc<DeclType>,
    pub schema: Arc<Schema>,
}

/// How values under a schema are interpreted.
#[derive(Clone, Debug, Default)]
pub struct Schema {
    pub(crate) kind: SchemaKind,
    pub(crate) nullable: bool,
}

#[derive(Clone, Debug, Default)]
pub(crate) enum SchemaKind {
    IntOrString,
    /// Properties by their unescaped names.
    Object(BTreeMap<String, Arc<Schema>>),
    /// A map with arbitrary keys, and the schema of its values.
    Map(Arc<Schema>),
    /// An object without declared properties: no key is visible.
    Opaque,
    List(Arc<Schema>, ListKind),
    String(Format),
    Number,
    Integer,
    Boolean,
    /// Unspecified data, which can only be compared.
    #[default]
    Preserved,
}

/// `x-kubernetes-list-type`, which determines equality and addition.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) enum ListKind {
    #[default]
    Atomic,
    Set,
    Map(Vec<String>),
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Format {
    Plain,
    Byte,
    Duration,
    Date,
    DateTime,
}

/// The type of `self` in a schema's rules; `None` if the schema isn't exposed. `root` marks a resource, whose type
/// and name are present whatever it declares.
pub fn from_schema(schema: &Json, root: bool) -> Option<Declared> {
    from_schema_at(schema, root, "selfType")
}

/// As `from_schema`, with a name for the type.
pub fn from_schema_at(schema: &Json, root: bool, name: &str) -> Option<Declared> {
    let decl = declare(schema, root, 0)?;
    Some(Declared { decl: Arc::new(decl.named(name)), schema: Arc::new(interpret(schema, root, 0)) })
}

/// Whether a schema preserves unknown fields.
pub fn preserves_unknown(schema: &Json) -> bool {
    flag(schema, "x-kubernetes-preserve-unknown-fields")
}

fn flag(schema: &Json, name: &str) -> bool {
    schema.get(name).and_then(Json::as_bool).unwrap_or(false)
}

fn text<'a>(schema: &'a Json, name: &str) -> &'a str {
    schema.get(name).and_then(Json::as_str).unwrap_or_default()
}

fn bound(schema: &Json, name: &str) -> Option<i64> {
    let bound = schema.get(name)?;
    let whole = bound.as_i64().or_else(|| bound.as_f64().map(|bound| bound as i64));
    whole.map(|bound| bound.max(0))
}

fn is_embedded(schema: &Json) -> bool {
    flag(schema, "x-kubernetes-embedded-resource")
}

/// The schema of additional properties, if there is one.
fn additional(schema: &Json) -> Option<&Json> {
    schema.get("additionalProperties").filter(|schema| schema.is_object())
}

/// The declared properties; a root gets those of every resource.
fn properties(schema: &Json, root: bool) -> BTreeMap<&str, Json> {
    let declared = schema.get("properties").and_then(Json::as_object);
    let mut found: BTreeMap<&str, Json> =
        declared.into_iter().flatten().map(|(name, property)| (name.as_str(), property.clone())).collect();
    if !root {
        return found;
    }
    let is =
        |found: &BTreeMap<&str, Json>, name: &str, ty: &str| found.get(name).is_some_and(|p| text(p, "type") == ty);
    let named = |name: &str| {
        let metadata = schema.get("properties").and_then(|p| p.get("metadata")?.get("properties")?.get(name));
        metadata.is_some_and(|property| text(property, "type") == "string")
    };
    let complete =
        is(&found, "kind", "string") && is(&found, "apiVersion", "string") && is(&found, "metadata", "object");
    if !(complete && named("name") && named("generateName")) {
        let string = serde_json::json!({"type": "string"});
        let names = serde_json::json!({"name": string, "generateName": string});
        found.insert("kind", string.clone());
        found.insert("apiVersion", string);
        found.insert("metadata", serde_json::json!({"type": "object", "properties": names}));
    }
    found
}

fn declare(schema: &Json, root: bool, depth: usize) -> Option<DeclType> {
    if depth > DEPTH {
        return None;
    }
    if flag(schema, "x-kubernetes-int-or-string") {
        let max = bound(schema, "maxLength").map_or(REQUEST_BYTES - 2, |max| max.saturating_mul(4));
        return Some(DeclType { max_elements: max, ..DeclType::scalar(Type::Dyn, 1) });
    }
    match text(schema, "type") {
        "array" => {
            let items = schema.get("items")?;
            let item = declare(items, is_embedded(items), depth + 1)?;
            let max = bound(schema, "maxItems").unwrap_or((REQUEST_BYTES - 2) / (item.min_size + 1));
            Some(DeclType::list(item, max))
        }
        "object" => declare_object(schema, root, depth),
        "string" => Some(declare_string(schema)),
        "boolean" => Some(DeclType::scalar(Type::Bool, 4)),
        "number" => Some(DeclType::scalar(Type::Double, 1)),
        "integer" => Some(DeclType::scalar(Type::Int, 1)),
        _ => None,
    }
}

fn declare_object(schema: &Json, root: bool, depth: usize) -> Option<DeclType> {
    if !root && let Some(values) = additional(schema) {
        let value = declare(values, is_embedded(values), depth + 1)?;
        let max = bound(schema, "maxProperties").unwrap_or((REQUEST_BYTES - 2) / (value.min_size + 6));
        return Some(DeclType::map(value, max));
    }
    let required: Vec<&str> =
        schema.get("required").and_then(Json::as_array).into_iter().flatten().filter_map(Json::as_str).collect();
    let mut fields: BTreeMap<Arc<str>, Arc<DeclType>> = BTreeMap::new();
    let mut min_size = 2i64;
    for (name, property) in properties(schema, root) {
        let Some(field) = declare(&property, is_embedded(&property), depth + 1) else { continue };
        if required.contains(&name) && property.get("default").is_none() {
            min_size = min_size.saturating_add(name.len() as i64 + field.min_size + 4);
        }
        if let Some(escaped) = escape(name) {
            fields.insert(escaped.into(), Arc::new(field));
        }
    }
    let ty = Type::object("object");
    Some(DeclType { ty, max_elements: 0, min_size, shape: Shape::Object(fields) })
}

fn declare_string(schema: &Json) -> DeclType {
    let sized = |ty, min_size, max_elements| DeclType { max_elements, ..DeclType::scalar(ty, min_size) };
    match text(schema, "format") {
        "byte" => sized(Type::Bytes, 2, bound(schema, "maxLength").unwrap_or(REQUEST_BYTES - 2)),
        "duration" => sized(Type::Duration, 3, 32),
        "date" => sized(Type::Timestamp, 12, 12),
        "date-time" => sized(Type::Timestamp, 21, 32),
        _ => {
            let choices = schema.get("enum").and_then(Json::as_array).filter(|choices| !choices.is_empty());
            let longest = || choices.map(|c| c.iter().filter_map(Json::as_str).map(str::len).max().unwrap_or(0) as i64);
            let max = bound(schema, "maxLength").map(|max| max.saturating_mul(4)).or_else(longest);
            sized(Type::String, 2, max.unwrap_or(REQUEST_BYTES - 2))
        }
    }
}

fn interpret(schema: &Json, root: bool, depth: usize) -> Schema {
    let nullable = flag(schema, "nullable");
    if depth > DEPTH {
        return Schema { nullable, ..Schema::default() };
    }
    let inner = |schema: &Json| Arc::new(interpret(schema, is_embedded(schema), depth + 1));
    let kind = if flag(schema, "x-kubernetes-int-or-string") {
        SchemaKind::IntOrString
    } else {
        match text(schema, "type") {
            "object" if root || is_embedded(schema) || schema.get("properties").is_some() => {
                let properties = properties(schema, root || is_embedded(schema));
                SchemaKind::Object(properties.iter().map(|(name, p)| ((*name).to_owned(), inner(p))).collect())
            }
            "object" => additional(schema).map_or(SchemaKind::Opaque, |values| SchemaKind::Map(inner(values))),
            "array" => {
                let keys = schema.get("x-kubernetes-list-map-keys").and_then(Json::as_array);
                let keys = keys.into_iter().flatten().filter_map(Json::as_str).map(str::to_owned).collect();
                let list = match text(schema, "x-kubernetes-list-type") {
                    "set" => ListKind::Set,
                    "map" => ListKind::Map(keys),
                    _ => ListKind::Atomic,
                };
                SchemaKind::List(schema.get("items").map(inner).unwrap_or_default(), list)
            }
            "string" => SchemaKind::String(match text(schema, "format") {
                "byte" => Format::Byte,
                "duration" => Format::Duration,
                "date" => Format::Date,
                "date-time" => Format::DateTime,
                _ => Format::Plain,
            }),
            "number" => SchemaKind::Number,
            "integer" => SchemaKind::Integer,
            "boolean" => SchemaKind::Boolean,
            _ => SchemaKind::Preserved,
        }
    };
    Schema { kind, nullable }
}
