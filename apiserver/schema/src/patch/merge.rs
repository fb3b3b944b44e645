//! RFC 7386 with the deviation of upstream's library: nulls are pruned from new values, but not inside replaced ones.

use serde_json::{Map, Value};

/// Merges a patch into a document.
pub(super) fn apply(current: Value, patch: Value) -> Value {
    match (current, patch) {
        (Value::Object(mut document), Value::Object(patch)) => {
            merge(&mut document, patch);
            Value::Object(document)
        }
        (_, mut patch) => {
            prune(&mut patch);
            patch
        }
    }
}

fn merge(document: &mut Map<String, Value>, patch: Map<String, Value>) {
    for (key, mut value) in patch {
        if value.is_null() {
            document.remove(&key);
            continue;
        }
        match (document.get_mut(&key), value) {
            (Some(Value::Object(inner)), Value::Object(patch)) => merge(inner, patch),
            (Some(slot @ Value::Object(_)), value) => *slot = value,
            (Some(slot), value_of) => {
                value = value_of;
                prune(&mut value);
                *slot = value;
            }
            (None, value_of) => {
                value = value_of;
                prune(&mut value);
                document.insert(key, value);
            }
        }
    }
}

fn prune(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, v| !v.is_null());
            map.values_mut().for_each(prune);
        }
        Value::Array(items) => items.iter_mut().for_each(prune),
        _ => {}
    }
}
