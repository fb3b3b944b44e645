//! Embedded resources: their kind, version and metadata are validated as those of any object.

use apiserver_schema::metadata_in_place;
use machinery_api::GroupVersion;
use serde_json::{Map, Value};

use super::compile::Schema;
use crate::field::{ErrorList, FieldError, Path};
use crate::{metadata, rules};

/// A malformed part of an embedded object: path, value, reason.
#[derive(Debug)]
pub(crate) struct Malformed {
    path: String,
    value: Value,
    why: String,
}

impl std::fmt::Display for Malformed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: Invalid value: {}: {}", self.path, self.value, self.why)
    }
}

impl Malformed {
    /// The error, with its path below that of the object.
    pub(crate) fn below(self, at: &Path<'_>) -> FieldError {
        let dot = if self.path.is_empty() || self.path.starts_with('[') { "" } else { "." };
        let whole = format!("{at}{dot}{}", self.path);
        FieldError::invalid(&Path::root(&whole), self.value, &self.why)
    }
}

/// The error of Go's decoder for a value that is no metadata.
fn metadata_type_error(value: &Value) -> String {
    let is = match value {
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        _ => "array",
    };
    format!("json: cannot unmarshal {is} into Go value of type v1.ObjectMeta")
}

/// Normalises the metadata of embedded objects and returns the paths of unknown fields. `drop` removes malformed
/// parts, which objects stored before the check may have; otherwise they are errors.
pub(crate) fn coerce(object: &mut Value, schema: &Schema, drop: bool) -> Result<Vec<String>, Malformed> {
    let mut unknown_fields = Vec::new();
    if schema.has.embedded {
        walk(object, schema, &mut String::new(), drop, &mut unknown_fields)?;
        unknown_fields.sort();
    }
    Ok(unknown_fields)
}

fn walk(
    value: &mut Value,
    schema: &Schema,
    path: &mut String,
    drop: bool,
    unknown_fields: &mut Vec<String>,
) -> Result<(), Malformed> {
    if !schema.has.embedded {
        return Ok(());
    }
    let length = path.len();
    match value {
        Value::Object(map) => {
            if schema.embedded {
                type_meta(map, path, drop)?;
            }
            for (key, value) in map.iter_mut() {
                let below = schema.properties.get(key.as_str()).or_else(|| schema.additional.schema());
                if length > 0 {
                    path.push('.');
                }
                path.push_str(key);
                if schema.embedded && key == "metadata" && value.is_object() {
                    match metadata_in_place(value, path, drop) {
                        Ok(unknown) => unknown_fields.extend(unknown),
                        Err(why) => return Err(Malformed { path: path.clone(), value: value.clone(), why }),
                    }
                } else if schema.embedded && key == "metadata" && !drop && !value.is_null() {
                    let why = metadata_type_error(value);
                    return Err(Malformed { path: path.clone(), value: value.clone(), why });
                }
                if let Some(below) = below {
                    walk(value, below, path, drop, unknown_fields)?;
                }
                path.truncate(length);
            }
        }
        Value::Array(items) => {
            let Some(of_items) = schema.items.as_deref() else { return Ok(()) };
            for (at, item) in items.iter_mut().enumerate() {
                path.push_str(&format!("[{at}]"));
                walk(item, of_items, path, drop, unknown_fields)?;
                path.truncate(length);
            }
        }
        _ => {}
    }
    Ok(())
}

fn type_meta(map: &mut Map<String, Value>, path: &str, drop: bool) -> Result<(), Malformed> {
    for key in ["apiVersion", "kind"] {
        let Some(value) = map.get(key).filter(|value| !value.is_string()) else { continue };
        if !drop {
            let path = if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
            return Err(Malformed { path, value: value.clone(), why: "must be a string".into() });
        }
        map.remove(key);
    }
    Ok(())
}

/// Validates embedded objects.
pub(crate) fn validate(object: &Value, schema: &Schema, at: Option<&Path<'_>>, errors: &mut ErrorList) {
    if !schema.has.embedded {
        return;
    }
    match object {
        Value::Object(map) => {
            if let (true, Some(at)) = (schema.embedded, at) {
                validate_object(map, at, errors);
            }
            for (key, value) in map {
                let (below, keyed) = match (schema.properties.get(key.as_str()), schema.additional.schema()) {
                    (Some(below), _) => (below, false),
                    (None, Some(below)) => (below, true),
                    (None, None) => continue,
                };
                match at {
                    Some(at) if keyed => validate(value, below, Some(&at.key(key)), errors),
                    Some(at) => validate(value, below, Some(&at.child(key)), errors),
                    None => validate(value, below, Some(&Path::root(key)), errors),
                }
            }
        }
        Value::Array(items) => {
            if let (Some(of_items), Some(at)) = (&schema.items, at) {
                for (i, item) in items.iter().enumerate() {
                    validate(item, of_items, Some(&at.index(i)), errors);
                }
            }
        }
        _ => {}
    }
}

/// Validates an object on its own.
pub(crate) fn validate_one(object: &Value, errors: &mut ErrorList) {
    if let Value::Object(map) = object {
        let whole = Path::root("default");
        validate_object(map, &whole, errors);
        let Some(metadata) = map.get("metadata") else { return };
        let why = match metadata.is_object() {
            true => metadata_in_place(&mut metadata.clone(), "", false).err(),
            false => Some(metadata_type_error(metadata)),
        };
        if let Some(why) = why {
            errors.add(|| FieldError::invalid(&whole.child("metadata"), metadata.clone(), &why));
        }
    }
}

fn validate_object(map: &Map<String, Value>, at: &Path<'_>, errors: &mut ErrorList) {
    let (version_at, kind_at) = (at.child("apiVersion"), at.child("kind"));
    for (key, at) in [("apiVersion", &version_at), ("kind", &kind_at)] {
        match map.get(key) {
            None => errors.required(at, ""),
            Some(Value::String(text)) if text.is_empty() => errors.invalid(at, "", "must not be empty"),
            Some(Value::String(_)) => {}
            Some(other) => errors.add(|| FieldError::invalid(at, other.clone(), "must be a string")),
        }
    }
    if let Some(version) = map.get("apiVersion").and_then(Value::as_str)
        && let Err(why) = GroupVersion::parse_checked(version)
    {
        errors.invalid(&version_at, version, &why);
    }
    if let Some(kind) = map.get("kind").and_then(Value::as_str).filter(|kind| !kind.is_empty()) {
        let why = rules::dns_1035_label(&kind.to_lowercase());
        if !why.is_empty() {
            let why = format!("may have mixed case, but should otherwise match: {}", why.join(","));
            errors.invalid(&kind_at, kind, &why);
        }
    }
    if let Some(metadata) = map.get("metadata").filter(|metadata| metadata.is_object()) {
        metadata::validate_embedded(errors, metadata, &at.child("metadata"));
    }
}
