//! Equality across types, order of values of one type, and concatenation of lists. Equality and concatenation are
//! charged.

use std::cmp::Ordering;

use serde_json::Value as Json;

use super::{List, Map, Res, Value};
use crate::budget::Meter;
use crate::error::EvalError;
use crate::limits::VALUE_DEPTH;
use crate::types::ListKind;

pub(crate) fn equal(a: &Value<'_>, b: &Value<'_>, meter: &mut Meter<'_>) -> Res<bool> {
    equal_at_depth(a, b, meter, 0)
}

fn equal_at_depth(a: &Value<'_>, b: &Value<'_>, meter: &mut Meter<'_>, depth: usize) -> Res<bool> {
    meter.step(1)?;
    if depth > VALUE_DEPTH {
        return Err(EvalError::cost_limit());
    }
    Ok(match (a, b) {
        (Value::Null, Value::Null) | (Value::Variables, Value::Variables) => true,
        (Value::Bool(a), Value::Bool(b)) => a == b,
        (Value::String(a), Value::String(b)) => **a == **b,
        (Value::Bytes(a), Value::Bytes(b)) => a == b,
        (Value::Duration(a), Value::Duration(b)) => a == b,
        (Value::Timestamp(a), Value::Timestamp(b)) => a == b,
        (Value::Type(a), Value::Type(b)) => a == b,
        (Value::Opaque(a), Value::Opaque(b)) => a == b,
        (Value::Preserved(a), Value::Preserved(b)) => same_json(a, b),
        (Value::Optional(a), Value::Optional(b)) => match (a, b) {
            (None, None) => true,
            (Some(a), Some(b)) => equal_at_depth(a, b, meter, depth + 1)?,
            _ => false,
        },
        (Value::List(a), Value::List(b)) => equal_lists(a, b, meter, depth)?,
        (Value::Map(a), Value::Map(b)) => equal_maps(a, b, meter, depth)?,
        (Value::Object(a), Value::Object(b)) => {
            if a.name != b.name || a.fields.len() != b.fields.len() {
                return Ok(false);
            }
            for ((name, value), (other_name, other)) in a.fields.iter().zip(&b.fields) {
                if name != other_name || !equal_at_depth(value, other, meter, depth + 1)? {
                    return Ok(false);
                }
            }
            true
        }
        (a, b) => compare_numbers(a, b).is_some_and(Ordering::is_eq),
    })
}

fn same_json(a: &Json, b: &Json) -> bool {
    a == b
}

fn equal_lists(a: &List<'_>, b: &List<'_>, meter: &mut Meter<'_>, depth: usize) -> Res<bool> {
    if a.len() != b.len() {
        return Ok(false);
    }
    match a.kind() {
        ListKind::Atomic => {
            for (a, b) in a.iter().zip(b.iter()) {
                if !equal_at_depth(&a?, &b?, meter, depth + 1)? {
                    return Ok(false);
                }
            }
            Ok(true)
        }
        ListKind::Set => {
            let own: Vec<Value<'_>> = a.iter().collect::<Res<_>>()?;
            for item in b.iter() {
                if !contains(&own, &item?, meter, depth)? {
                    return Ok(false);
                }
            }
            Ok(true)
        }
        ListKind::Map(keys) => {
            let own: Vec<Value<'_>> = a.iter().collect::<Res<_>>()?;
            for item in b.iter() {
                let item = item?;
                let Some(at) = find_by_keys(&own, &item, keys, meter)? else { return Ok(false) };
                if !equal_at_depth(&own[at], &item, meter, depth + 1)? {
                    return Ok(false);
                }
            }
            Ok(true)
        }
    }
}

fn contains(items: &[Value<'_>], item: &Value<'_>, meter: &mut Meter<'_>, depth: usize) -> Res<bool> {
    for other in items {
        if equal_at_depth(other, item, meter, depth + 1)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The index of the item of a map list that has the same keys.
fn find_by_keys(items: &[Value<'_>], item: &Value<'_>, keys: &[String], meter: &mut Meter<'_>) -> Res<Option<usize>> {
    let Value::Map(item) = item else { return Ok(None) };
    'items: for (at, other) in items.iter().enumerate() {
        let Value::Map(other) = other else { continue };
        for key in keys {
            let name = crate::types::escape(key).unwrap_or_else(|| key.clone());
            let same = match (item.field(&name).transpose()?, other.field(&name).transpose()?) {
                (Some(a), Some(b)) => equal(&a, &b, meter)?,
                (None, None) => true,
                _ => false,
            };
            if !same {
                continue 'items;
            }
        }
        return Ok(Some(at));
    }
    Ok(None)
}

/// `a + b`, where Kubernetes' lists may be sets or maps.
pub(crate) fn concat<'d>(a: &List<'d>, b: &List<'d>, meter: &mut Meter<'_>) -> Res<List<'d>> {
    let size = std::mem::size_of::<Value<'_>>() * (a.len() + b.len());
    meter.allocate(size)?;
    meter.step(a.len() + b.len())?;
    let mut items: Vec<Value<'d>> = a.iter().collect::<Res<_>>()?;
    for item in b.iter() {
        let item = item?;
        match a.kind() {
            ListKind::Set if contains(&items, &item, meter, 0)? => {}
            ListKind::Map(keys) => match find_by_keys(&items, &item, keys, meter)? {
                Some(at) => items[at] = item,
                None => items.push(item),
            },
            _ => items.push(item),
        }
    }
    Ok(a.with(items))
}

fn equal_maps(a: &Map<'_>, b: &Map<'_>, meter: &mut Meter<'_>, depth: usize) -> Res<bool> {
    if a.len() != b.len() {
        return Ok(false);
    }
    // Data that a schema hides is compared as JSON.
    if let (Map::Json { map: a_map, schema: Some(_) }, Map::Json { map: b_map, schema: Some(_) }) = (a, b) {
        let hidden = |map: &Map<'_>, name: &str| {
            let shown = crate::types::escape(name).unwrap_or_else(|| name.to_owned());
            map.field(&shown).is_none()
        };
        for (name, value) in a_map.iter().filter(|(name, _)| hidden(a, name)) {
            if b_map.get(name).is_some_and(|other| !same_json(value, other)) {
                return Ok(false);
            }
        }
    }
    for key in a.keys() {
        let same = match (a.get(&key)?, b.get(&key)?) {
            (Some(a), Some(b)) => equal_at_depth(&a, &b, meter, depth + 1)?,
            (None, None) => true,
            _ => false,
        };
        if !same {
            return Ok(false);
        }
    }
    Ok(true)
}

fn compare_numbers(a: &Value<'_>, b: &Value<'_>) -> Option<Ordering> {
    match (a, b) {
        (Value::Int(a), Value::Int(b)) => Some(a.cmp(b)),
        (Value::Uint(a), Value::Uint(b)) => Some(a.cmp(b)),
        (Value::Int(a), Value::Uint(b)) => Some(i128::from(*a).cmp(&i128::from(*b))),
        (Value::Uint(a), Value::Int(b)) => Some(i128::from(*a).cmp(&i128::from(*b))),
        (Value::Double(a), Value::Double(b)) => a.partial_cmp(b),
        (Value::Double(a), Value::Int(b)) => compare_double(*a, *b as f64),
        (Value::Double(a), Value::Uint(b)) => compare_double(*a, *b as f64),
        (Value::Int(_) | Value::Uint(_), Value::Double(_)) => compare_numbers(b, a).map(Ordering::reverse),
        _ => None,
    }
}

fn compare_double(a: f64, rounded: f64) -> Option<Ordering> {
    // Values far out of range are decided before rounding makes them equal.
    if !(-9.3e18..=1.85e19).contains(&a) {
        return Some(if a < 0.0 { Ordering::Less } else { Ordering::Greater });
    }
    a.partial_cmp(&rounded)
}

/// Compares two values of an ordered type.
pub(crate) fn order(a: &Value<'_>, b: &Value<'_>) -> Res<Ordering> {
    let nan = |value: &Value<'_>| matches!(value, Value::Double(number) if number.is_nan());
    let number = |value: &Value<'_>| matches!(value, Value::Int(_) | Value::Uint(_) | Value::Double(_));
    match (a, b) {
        (Value::String(a), Value::String(b)) => Ok((**a).cmp(&**b)),
        (Value::Bytes(a), Value::Bytes(b)) => Ok(a.cmp(b)),
        (Value::Bool(a), Value::Bool(b)) => Ok(a.cmp(b)),
        (Value::Duration(a), Value::Duration(b)) => Ok(a.cmp(b)),
        (Value::Timestamp(a), Value::Timestamp(b)) => Ok(a.cmp(b)),
        (a, b) if number(a) && number(b) => {
            if nan(a) || nan(b) {
                return Err(EvalError::new("NaN values cannot be ordered"));
            }
            compare_numbers(a, b).ok_or_else(EvalError::no_such_overload)
        }
        _ => Err(EvalError::no_such_overload()),
    }
}
