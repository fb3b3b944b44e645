//! Optional values (`?`, `orValue`), and maps with an inserted entry, which are copies.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Call, Implementation, is_zero};
use crate::error::EvalError;
use crate::value::{Key, List, Map, Res, Value};

pub(super) fn find(function: &str) -> Option<Implementation> {
    Some(match function {
        "optional.of" => |call| Ok(Value::Optional(Some(Arc::new(call.arg(0)?.clone())))),
        "optional.ofNonZeroValue" => |call| {
            let value = call.arg(0)?;
            Ok(Value::Optional((!is_zero(value)).then(|| Arc::new(value.clone()))))
        },
        "optional.none" => |_| Ok(Value::Optional(None)),
        "hasValue" => |call| Ok(Value::Bool(optional(call)?.is_some())),
        "value" => |call| match optional(call)? {
            Some(value) => Ok((**value).clone()),
            None => Err(EvalError::new("optional.none() dereference")),
        },
        "optional.unwrap" | "unwrapOpt" => unwrap,
        "first" => |call| Ok(Value::Optional(list(call)?.get(0).transpose()?.map(Arc::new))),
        "last" => |call| {
            let list = list(call)?;
            Ok(Value::Optional(list.len().checked_sub(1).and_then(|at| list.get(at)).transpose()?.map(Arc::new)))
        },
        "cel.@mapInsert" => insert,
        _ => return None,
    })
}

fn optional<'c, 'd>(call: &'c Call<'_, 'd, '_>) -> Res<Option<&'c Arc<Value<'d>>>> {
    match call.arg(0)? {
        Value::Optional(value) => Ok(value.as_ref()),
        _ => Err(EvalError::no_such_overload()),
    }
}

fn list<'c, 'd>(call: &'c Call<'_, 'd, '_>) -> Res<&'c List<'d>> {
    match call.arg(0)? {
        Value::List(list) => Ok(list),
        _ => Err(EvalError::no_such_overload()),
    }
}

fn unwrap<'d>(call: &mut Call<'_, 'd, '_>) -> Res<Value<'d>> {
    let mut present = Vec::new();
    for item in list(call)?.iter() {
        match item? {
            Value::Optional(Some(value)) => present.push((*value).clone()),
            Value::Optional(None) => {}
            other => return Err(EvalError::new(format!("value {other} is not optional"))),
        }
    }
    call.new_list(present)
}

/// A copy of a map with one entry, or another map's entries, inserted.
fn insert<'d>(call: &mut Call<'_, 'd, '_>) -> Res<Value<'d>> {
    let Value::Map(map) = call.arg(0)? else { return Err(EvalError::no_such_overload()) };
    let mut entries: BTreeMap<Key<'d>, Value<'d>> = match map {
        Map::Own(entries) => (**entries).clone(),
        Map::Json { .. } => {
            let mut entries = BTreeMap::new();
            for key in map.keys() {
                if let (Some(key), Some(value)) = (Key::from_value(&key), map.get(&key)?) {
                    entries.insert(key, value);
                }
            }
            entries
        }
    };
    let added: Vec<(Value<'d>, Value<'d>)> = match call.args {
        [_, Value::Map(more)] => {
            let mut added = Vec::new();
            for key in more.keys() {
                if let Some(value) = more.get(&key)? {
                    added.push((key, value));
                }
            }
            added
        }
        [_, key, value] => vec![(key.clone(), value.clone())],
        _ => return Err(EvalError::no_such_overload()),
    };
    call.meter.step(entries.len() + added.len())?;
    call.meter.allocate(added.len() * 2 * std::mem::size_of::<Value<'_>>())?;
    for (key, value) in added {
        let name = Key::from_value(&key);
        let name = name.ok_or_else(|| EvalError::new(format!("unsupported key type: {}", key.type_name())))?;
        if entries.insert(name, value).is_some() {
            return Err(EvalError::new(format!("insert failed: key {key} already exists")));
        }
    }
    Ok(Value::Map(Map::owned(entries)))
}
