//! Finds duplicate items in lists of type set and map.

use std::collections::HashMap;

use serde_json::{Map, Value};

use super::compile::{ListType, Schema};
use crate::field::{ErrorList, FieldError, Path};

/// The duplicates in a whole object.
pub(crate) fn duplicates(object: &Value, schema: &Schema) -> ErrorList {
    let mut errors = ErrorList::new();
    if let Value::Object(map) = object {
        within(map, schema, None, &mut errors);
    }
    errors
}

fn within(map: &Map<String, Value>, schema: &Schema, at: Option<&Path<'_>>, errors: &mut ErrorList) {
    if !schema.has.unique_lists {
        return;
    }
    for (key, value) in map {
        if let Some(property) = schema.properties.get(key.as_str()) {
            match at {
                Some(at) => node(value, property, &at.child(key), errors),
                None => node(value, property, &Path::root(key), errors),
            }
        } else if let (Some(additional), Some(at)) = (schema.additional.schema(), at) {
            node(value, additional, &at.key(key), errors);
        }
    }
}

fn node(value: &Value, schema: &Schema, at: &Path<'_>, errors: &mut ErrorList) {
    if !schema.has.unique_lists {
        return;
    }
    match value {
        Value::Object(map) => within(map, schema, Some(at), errors),
        Value::Array(items) => {
            match &schema.listed {
                ListType::Atomic => {}
                ListType::Set => {
                    for i in second_occurrences(items.iter().map(Value::to_string)) {
                        errors.duplicate(&at.index(i), items[i].clone());
                    }
                }
                ListType::Map(keys) => keyed(items, keys, at, errors),
            }
            if let Some(of_items) = &schema.items {
                for (i, item) in items.iter().enumerate() {
                    node(item, of_items, &at.index(i), errors);
                }
            }
        }
        _ => {}
    }
}

fn keyed(items: &[Value], keys: &[Box<str>], at: &Path<'_>, errors: &mut ErrorList) {
    if let Some(i) = items.iter().position(|item| !item.is_object() && !item.is_null()) {
        let why = "must be an object for an array of list-type map";
        return errors.add(|| FieldError::invalid(&at.index(i), items[i].clone(), why));
    }
    let key_of = |item: &Value| -> Map<String, Value> {
        keys.iter().filter_map(|key| Some((key.to_string(), item.get(&**key)?.clone()))).collect()
    };
    for i in second_occurrences(items.iter().map(|item| Value::Object(key_of(item)).to_string())) {
        errors.duplicate(&at.index(i), key_of(&items[i]));
    }
}

/// The indexes of second occurrences: third and later ones aren't reported.
fn second_occurrences(items: impl Iterator<Item = String>) -> Vec<usize> {
    let mut seen: HashMap<String, usize> = HashMap::new();
    let mut found = Vec::new();
    for (i, item) in items.enumerate() {
        let times = seen.entry(item).or_default();
        *times += 1;
        if *times == 2 {
            found.push(i);
        }
    }
    found
}
