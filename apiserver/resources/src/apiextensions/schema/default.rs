//! Sets a schema's defaults, and drops nulls that the schema doesn't allow.

use serde_json::Value;

use super::compile::Schema;

/// Drops nulls that are not allowed and have no default; [`fill`] replaces those with a default.
pub(crate) fn drop_nulls(value: &mut Value, schema: Option<&Schema>) {
    match value {
        Value::Object(map) => map.retain(|key, value| {
            let below =
                schema.and_then(|schema| schema.properties.get(key.as_str()).or_else(|| schema.additional.schema()));
            if value.is_null() && below.is_some_and(|below| !below.nullable && below.default.is_none()) {
                return false;
            }
            if below.is_some() && matches!(value, Value::Object(_) | Value::Array(_)) {
                drop_nulls(value, below);
            }
            true
        }),
        Value::Array(items) => {
            if let Some(below) = schema.and_then(|schema| schema.items.as_deref()) {
                items.iter_mut().for_each(|item| drop_nulls(item, Some(below)));
            }
        }
        _ => {}
    }
}

fn is_null_by_mistake(value: &Value, schema: &Schema) -> bool {
    value.is_null() && !schema.nullable
}

/// Sets missing fields to their defaults.
pub(crate) fn fill(value: &mut Value, schema: &Schema) {
    if !schema.has.defaults {
        return;
    }
    match value {
        Value::Object(map) => {
            for (name, property) in schema.properties.iter() {
                if !property.has.defaults {
                    continue;
                }
                if let Some(default) = &property.default
                    && map.get(name).is_none_or(|value| is_null_by_mistake(value, property))
                {
                    map.insert(name.into(), (**default).clone());
                }
                if let Some(value) = map.get_mut(name) {
                    fill(value, property);
                }
            }
            if let Some(additional) = schema.additional.schema() {
                for (_, value) in map.iter_mut().filter(|(name, _)| !schema.properties.contains_key(name.as_str())) {
                    if is_null_by_mistake(value, additional) {
                        *value = additional.default.as_deref().cloned().unwrap_or_default();
                    }
                    fill(value, additional);
                }
            }
        }
        Value::Array(list) => {
            let Some(items) = &schema.items else { return };
            for value in list {
                if is_null_by_mistake(value, items) {
                    *value = items.default.as_deref().cloned().unwrap_or_default();
                }
                fill(value, items);
            }
        }
        _ => {}
    }
}
