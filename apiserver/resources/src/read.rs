//! Access to untyped objects: an absent field reads as Go's zero value, so that rules resemble upstream's.

use jiff::Timestamp;
use serde_json::{Map, Value};

/// The value of an absent field.
pub static NULL: Value = Value::Null;

/// A field, or null.
#[must_use]
pub fn get<'a>(object: &'a Value, key: &str) -> &'a Value {
    object.get(key).unwrap_or(&NULL)
}

/// A field below fields, or null.
#[must_use]
pub fn at<'a>(object: &'a Value, keys: &[&str]) -> &'a Value {
    keys.iter().fold(object, |value, key| get(value, key))
}

/// A text field; empty where it is absent.
#[must_use]
pub fn text<'a>(object: &'a Value, key: &str) -> &'a str {
    get(object, key).as_str().unwrap_or("")
}

/// An integer field.
#[must_use]
pub fn int(object: &Value, key: &str) -> Option<i64> {
    get(object, key).as_i64()
}

/// A flag; false where it is absent.
#[must_use]
pub fn flag(object: &Value, key: &str) -> bool {
    get(object, key).as_bool().unwrap_or(false)
}

/// A list field's items.
#[must_use]
pub fn items<'a>(object: &'a Value, key: &str) -> &'a [Value] {
    get(object, key).as_array().map_or(&[], Vec::as_slice)
}

/// A list field's texts.
pub fn texts<'a>(object: &'a Value, key: &str) -> impl Iterator<Item = &'a str> {
    items(object, key).iter().map(|item| item.as_str().unwrap_or(""))
}

/// A map field's entries.
pub fn entries<'a>(object: &'a Value, key: &str) -> impl Iterator<Item = (&'a String, &'a Value)> {
    get(object, key).as_object().into_iter().flatten()
}

/// Whether a field is given (not absent and not null).
#[must_use]
pub fn has(object: &Value, key: &str) -> bool {
    !get(object, key).is_null()
}

/// Whether a value is Go's zero value of its type, or absent.
#[must_use]
pub fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(flag) => !flag,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
    }
}

/// The object's fields; a value of another type is replaced by an object.
pub fn fields(value: &mut Value) -> &mut Map<String, Value> {
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    match value {
        Value::Object(map) => map,
        _ => unreachable!("made an object above"),
    }
}

/// A field as a mutable object, created if absent.
pub fn object_mut<'a>(object: &'a mut Value, key: &str) -> &'a mut Value {
    let value = fields(object).entry(key).or_insert(Value::Null);
    fields(value);
    value
}

/// A list field's items, mutable; empty if absent.
pub fn items_mut<'a>(object: &'a mut Value, key: &str) -> &'a mut [Value] {
    object.get_mut(key).and_then(Value::as_array_mut).map_or(&mut [], Vec::as_mut_slice)
}

/// Sets a field that is absent or null: a pointer in Go.
pub fn default_to(object: &mut Value, key: &str, value: impl Into<Value>) {
    if let Some(map) = object.as_object_mut()
        && map.get(key).is_none_or(Value::is_null)
    {
        map.insert(key.into(), value.into());
    }
}

/// Sets a field that is absent or has Go's zero value: a plain field in Go.
pub fn default_zero_to(object: &mut Value, key: &str, value: impl Into<Value>) {
    if let Some(map) = object.as_object_mut()
        && map.get(key).is_none_or(is_zero)
    {
        map.insert(key.into(), value.into());
    }
}

/// Removes a field.
pub fn remove(object: &mut Value, key: &str) -> Option<Value> {
    object.as_object_mut()?.remove(key)
}

/// Sets a field, or removes it where the value is null.
pub fn put(object: &mut Value, key: &str, value: Value) {
    if value.is_null() {
        remove(object, key);
    } else {
        fields(object).insert(key.into(), value);
    }
}

/// A time field (RFC 3339).
#[must_use]
pub fn time(object: &Value, key: &str) -> Option<Timestamp> {
    get(object, key).as_str().and_then(|text| text.parse().ok())
}

/// The object's name.
#[must_use]
pub fn name(object: &Value) -> &str {
    text(get(object, "metadata"), "name")
}

/// The spec, created if absent.
pub fn spec_of(object: &mut Value) -> &mut Value {
    fields(object);
    object_mut(object, "spec")
}
