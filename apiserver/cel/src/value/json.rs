//! Converts JSON to values by its schema, lazily for lists and objects, and values to JSON.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value as Json;

use super::{List, Map, Res, Text, Value, format_duration, parse_duration, parse_timestamp};
use crate::error::EvalError;
use crate::limits::{EVALUATION_STEPS, VALUE_DEPTH};
use crate::types::{Format, Schema, SchemaKind};

/// A value of JSON data, read by its schema if there is one. Lists and objects are read lazily.
pub(crate) fn from_json<'d>(json: &'d Json, schema: Option<&'d Schema>) -> Res<Value<'d>> {
    match schema {
        Some(schema) => by_schema(json, schema),
        None => Ok(plain(json)),
    }
}

fn plain(json: &Json) -> Value<'_> {
    match json {
        Json::Null => Value::Null,
        Json::Bool(value) => Value::Bool(*value),
        Json::Number(number) => match number.as_i64() {
            Some(value) => Value::Int(value),
            None => number.as_u64().map_or_else(|| Value::Double(number.as_f64().unwrap_or(f64::NAN)), Value::Uint),
        },
        Json::String(text) => Value::String(Text::Ref(text)),
        Json::Array(items) => Value::List(List::Json { items, schema: None }),
        Json::Object(map) => Value::Map(Map::Json { map, schema: None }),
    }
}

fn kind(json: &Json) -> &'static str {
    match json {
        Json::Null => "<nil>",
        Json::Bool(_) => "bool",
        Json::Number(number) if number.is_f64() => "float64",
        Json::Number(_) => "int64",
        Json::String(_) => "string",
        Json::Array(_) => "[]interface {}",
        Json::Object(_) => "map[string]interface {}",
    }
}

fn by_schema<'d>(json: &'d Json, schema: &'d Schema) -> Res<Value<'d>> {
    let wrong = |message: &'static str| Err(EvalError::new(message));
    match (&schema.kind, json) {
        (_, Json::Null) if schema.nullable => Ok(Value::Null),
        (_, Json::Null) => wrong("invalid data, got null for schema with nullable=false"),
        (SchemaKind::Preserved, json) => Ok(Value::Preserved(json)),
        (SchemaKind::IntOrString, Json::String(_)) => Ok(plain(json)),
        (SchemaKind::IntOrString, Json::Number(number)) if number.is_i64() => Ok(plain(json)),
        (SchemaKind::IntOrString, _) => {
            wrong("invalid data, expected XIntOrString value to be either a string or integer")
        }
        (SchemaKind::Object(_) | SchemaKind::Map(_) | SchemaKind::Opaque, Json::Object(map)) => {
            Ok(Value::Map(Map::Json { map, schema: Some(schema) }))
        }
        (SchemaKind::Object(_) | SchemaKind::Map(_) | SchemaKind::Opaque, _) => {
            wrong("invalid data, expected a map for the provided schema with type=object")
        }
        (SchemaKind::List(..), Json::Array(items)) => Ok(Value::List(List::Json { items, schema: Some(schema) })),
        (SchemaKind::List(..), _) => wrong("invalid data, expected an array for the provided schema with type=array"),
        (SchemaKind::String(format), Json::String(text)) => string(text, *format),
        (SchemaKind::String(_), json) => {
            Err(EvalError::new(format!("invalid data, expected string, got {}", kind(json))))
        }
        (SchemaKind::Number, Json::Number(number)) => Ok(Value::Double(number.as_f64().unwrap_or(f64::NAN))),
        (SchemaKind::Number, json) => Err(EvalError::new(format!("invalid data, expected float, got {}", kind(json)))),
        (SchemaKind::Integer, Json::Number(number)) => match number.as_i64() {
            Some(value) => Ok(Value::Int(value)),
            None => wrong("invalid data, expected int, got float64"),
        },
        (SchemaKind::Integer, json) => Err(EvalError::new(format!("invalid data, expected int, got {}", kind(json)))),
        (SchemaKind::Boolean, Json::Bool(value)) => Ok(Value::Bool(*value)),
        (SchemaKind::Boolean, json) => Err(EvalError::new(format!("invalid data, expected bool, got {}", kind(json)))),
    }
}

fn string(text: &str, format: Format) -> Res<Value<'_>> {
    match format {
        Format::Plain => Ok(Value::String(Text::Ref(text))),
        Format::Byte => {
            let bytes = STANDARD.decode(text);
            let bytes = bytes.map_err(|error| EvalError::new(format!("Invalid byte formatted string {text}: {error}")));
            Ok(Value::Bytes(bytes?.into()))
        }
        Format::Duration => {
            let duration = parse_duration(text);
            duration.map(Value::Duration).ok_or_else(|| {
                EvalError::new(format!("Invalid duration {text}: unable to parse \"{text}\" into duration"))
            })
        }
        Format::Date => {
            let time = parse_timestamp(&format!("{text}T00:00:00Z"));
            time.map(Value::Timestamp).ok_or_else(|| EvalError::new(format!("Invalid date formatted string {text}")))
        }
        Format::DateTime => {
            let time = parse_timestamp(text);
            let wrong = || EvalError::new(format!("Invalid date-time formatted string {text}"));
            time.map(Value::Timestamp).ok_or_else(wrong)
        }
    }
}

/// A value as JSON; values without a JSON form are errors.
pub fn to_json(value: &Value<'_>) -> Result<Json, EvalError> {
    let mut steps = EVALUATION_STEPS / 20;
    write(value, 0, &mut steps)
}

fn write(value: &Value<'_>, depth: usize, steps: &mut u64) -> Res<Json> {
    *steps = steps.checked_sub(1).ok_or_else(EvalError::cost_limit)?;
    if depth > VALUE_DEPTH {
        return Err(EvalError::cost_limit());
    }
    Ok(match value {
        Value::Null => Json::Null,
        Value::Bool(value) => Json::Bool(*value),
        Value::Int(value) => Json::from(*value),
        Value::Uint(value) => Json::from(*value),
        Value::Double(value) => {
            serde_json::Number::from_f64(*value).map(Json::Number).ok_or_else(EvalError::no_such_overload)?
        }
        Value::String(text) => Json::String(text.to_string()),
        Value::Bytes(bytes) => Json::String(STANDARD.encode(bytes)),
        Value::Duration(value) => Json::String(format_duration(*value)),
        Value::Timestamp(value) => Json::String(value.to_string()),
        Value::List(List::Json { items, .. }) => Json::Array(items.to_vec()),
        Value::List(list) => {
            Json::Array(list.iter().map(|item| write(&item?, depth + 1, steps)).collect::<Res<Vec<_>>>()?)
        }
        Value::Map(Map::Json { map, .. }) => Json::Object((*map).clone()),
        Value::Map(Map::Own(entries)) => {
            let mut object = serde_json::Map::new();
            for (key, value) in entries.iter() {
                let Value::String(name) = key.to_value() else {
                    return Err(EvalError::new("type conversion error from 'map' to JSON: keys are to be strings"));
                };
                object.insert(name.to_string(), write(value, depth + 1, steps)?);
            }
            Json::Object(object)
        }
        Value::Object(made) => {
            let fields =
                made.fields.iter().map(|(name, value)| Ok((field_name(name), write(value, depth + 1, steps)?)));
            Json::Object(fields.collect::<Res<_>>()?)
        }
        Value::Optional(Some(value)) => write(value, depth + 1, steps)?,
        Value::Preserved(json) => (*json).clone(),
        other => return Err(EvalError::new(format!("type conversion error from '{}' to JSON", other.type_name()))),
    })
}

fn field_name(name: &Arc<str>) -> String {
    crate::types::unescape(name).map_or_else(|| name.to_string(), |name| name.into_owned())
}
