//! Lists and maps, either borrowed from data or built by the expression.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value as Json;

use super::{Res, Text, Value, exact_int, from_json};
use crate::error::EvalError;
use crate::types::{ListKind, Schema, SchemaKind, escape, unescape};

#[derive(Clone, Debug)]
pub enum List<'d> {
    Json { items: &'d [Json], schema: Option<&'d Schema> },
    Own { items: Arc<Vec<Value<'d>>>, schema: Option<&'d Schema> },
}

/// Objects of the data, which expose what their schema specifies, and maps built by the expression.
#[derive(Clone, Debug)]
pub enum Map<'d> {
    Json { map: &'d serde_json::Map<String, Json>, schema: Option<&'d Schema> },
    Own(Arc<BTreeMap<Key<'d>, Value<'d>>>),
}

/// A map key; equal numbers of two types are one key.
#[derive(Clone, Debug)]
pub enum Key<'d> {
    Bool(bool),
    Int(i64),
    Uint(u64),
    String(Text<'d>),
}

impl<'d> List<'d> {
    pub(crate) fn owned(items: Vec<Value<'d>>) -> Self {
        List::Own { items: Arc::new(items), schema: None }
    }

    pub(crate) fn len(&self) -> usize {
        match self {
            List::Json { items, .. } => items.len(),
            List::Own { items, .. } => items.len(),
        }
    }

    pub(crate) fn get(&self, at: usize) -> Option<Res<Value<'d>>> {
        match self {
            List::Json { items, schema } => items.get(at).map(|item| from_json(item, item_schema(*schema))),
            List::Own { items, .. } => items.get(at).cloned().map(Ok),
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = Res<Value<'d>>> + '_ {
        (0..self.len()).map_while(|at| self.get(at))
    }

    fn schema(&self) -> Option<&'d Schema> {
        match self {
            List::Json { schema, .. } | List::Own { schema, .. } => *schema,
        }
    }

    pub(crate) fn kind(&self) -> &'d ListKind {
        match self.schema().map(|schema| &schema.kind) {
            Some(SchemaKind::List(_, kind)) => kind,
            _ => &ListKind::Atomic,
        }
    }

    /// A list with this one's schema and other items.
    pub(crate) fn with(&self, items: Vec<Value<'d>>) -> Self {
        List::Own { items: Arc::new(items), schema: self.schema() }
    }

    /// A list index from a number of any type.
    pub(crate) fn index(index: &Value<'_>) -> Res<i64> {
        match index {
            Value::Int(at) => Ok(*at),
            Value::Uint(_) | Value::Double(_) => {
                exact_int(index).ok_or_else(|| EvalError::new(format!("unsupported index value {index} in list")))
            }
            other => Err(EvalError::new(format!("unsupported index type '{}' in list", other.type_name()))),
        }
    }
}

fn item_schema(schema: Option<&Schema>) -> Option<&Schema> {
    match schema.map(|schema| &schema.kind) {
        Some(SchemaKind::List(item, _)) => Some(item),
        _ => None,
    }
}

impl<'d> Key<'d> {
    pub(crate) fn from_value(value: &Value<'d>) -> Option<Self> {
        match value {
            Value::Bool(value) => Some(Key::Bool(*value)),
            Value::Int(value) => Some(Key::Int(*value)),
            Value::Uint(value) => Some(Key::Uint(*value)),
            Value::Double(_) => exact_int(value).map(Key::Int),
            Value::String(text) => Some(Key::String(text.clone())),
            _ => None,
        }
    }

    pub(crate) fn to_value(&self) -> Value<'d> {
        match self {
            Key::Bool(value) => Value::Bool(*value),
            Key::Int(value) => Value::Int(*value),
            Key::Uint(value) => Value::Uint(*value),
            Key::String(text) => Value::String(text.clone()),
        }
    }
}

impl Ord for Key<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        let rank = |key: &Key<'_>| match key {
            Key::Bool(_) => 0,
            Key::Int(_) | Key::Uint(_) => 1,
            Key::String(_) => 2,
        };
        let wide = |key: &Key<'_>| match key {
            Key::Int(value) => i128::from(*value),
            Key::Uint(value) => i128::from(*value),
            Key::Bool(value) => i128::from(*value),
            Key::String(_) => 0,
        };
        match (self, other) {
            (Key::String(a), Key::String(b)) => (**a).cmp(&**b),
            (a, b) => rank(a).cmp(&rank(b)).then(wide(a).cmp(&wide(b))),
        }
    }
}

impl PartialOrd for Key<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Key<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Key<'_> {}

impl<'d> Map<'d> {
    pub(crate) fn owned(entries: BTreeMap<Key<'d>, Value<'d>>) -> Self {
        Map::Own(Arc::new(entries))
    }

    pub(crate) fn len(&self) -> usize {
        match self {
            Map::Json { map, .. } => map.len(),
            Map::Own(entries) => entries.len(),
        }
    }

    /// The value of a field, read by its schema.
    pub(crate) fn field(&self, name: &str) -> Option<Res<Value<'d>>> {
        match self {
            Map::Json { map, schema: None } => map.get(name).map(|value| from_json(value, None)),
            Map::Json { map, schema: Some(schema) } => match &schema.kind {
                SchemaKind::Object(properties) => {
                    let name = unescape(name)?;
                    let value = map.get(&*name).filter(|value| !value.is_null())?;
                    Some(from_json(value, Some(properties.get(&*name)?)))
                }
                SchemaKind::Map(values) => map.get(name).map(|value| from_json(value, Some(values))),
                _ => None,
            },
            Map::Own(entries) => entries.get(&Key::String(Text::Ref(name))).cloned().map(Ok),
        }
    }

    /// The value of a key.
    pub(crate) fn get(&self, key: &Value<'_>) -> Res<Option<Value<'d>>> {
        if let Value::String(name) = key {
            return self.field(name).transpose();
        }
        let Map::Own(entries) = self else {
            let known = matches!(key, Value::Bool(_) | Value::Int(_) | Value::Uint(_) | Value::Double(_));
            return if known { Ok(None) } else { Err(EvalError::new(unsupported(key))) };
        };
        Ok(Key::from_value(key).and_then(|key| entries.get(&key).cloned()))
    }

    /// The keys, in order.
    pub(crate) fn keys(&self) -> Vec<Value<'d>> {
        let text = |name: &'d String| Value::String(Text::Ref(name));
        match self {
            Map::Own(entries) => entries.keys().map(Key::to_value).collect(),
            Map::Json { map, schema: None } => map.keys().map(text).collect(),
            Map::Json { map, schema: Some(schema) } => match &schema.kind {
                SchemaKind::Object(properties) => {
                    let shown = map.keys().filter(|name| properties.contains_key(*name));
                    shown.map(|name| escape(name).map_or_else(|| text(name), Value::text)).collect()
                }
                SchemaKind::Map(_) => map.keys().map(text).collect(),
                _ => Vec::new(),
            },
        }
    }
}

fn unsupported(key: &Value<'_>) -> String {
    format!("unsupported key type: {}", key.type_name())
}

#[cfg(test)]
mod tests {
    use machinery_api::order::total_order_fault;

    use super::*;

    #[test]
    fn keys_of_maps_have_a_total_order() {
        let mut keys = vec![Key::Bool(true), Key::Bool(false)];
        keys.extend([i64::MIN, -1, 0, 1, i64::MAX].map(Key::Int));
        keys.extend([0, 1, 1 << 63, u64::MAX].map(Key::Uint));
        keys.extend(["", "a", "0"].map(|text| Key::String(crate::value::Text::Ref(text))));
        assert_eq!(total_order_fault(&keys, Ord::cmp), None);
    }
}
