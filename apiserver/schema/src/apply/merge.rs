//! Merges an apply configuration into an object: fields of the configuration win, others stay; list items keep the
//! object's order unless the configuration orders them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde_json::{Map, Value};

use super::path::PathElement;
use super::shape::{Shape, ShapeKind};
use crate::TypeRef;

/// Merges a configuration of the same type into an object. The error names a list item without a key.
pub(super) fn merge(found: TypeRef<'_>, object: &Value, config: &Value) -> Result<Value, String> {
    Ok(values(Shape::root(found), Some(object), Some(config))?.unwrap_or_else(|| Value::Object(Map::new())))
}

type MaybeValue<'a> = Option<&'a Value>;

/// `None` for no value.
fn values(shape: Shape<'_>, old: MaybeValue<'_>, new: MaybeValue<'_>) -> Result<Option<Value>, String> {
    let empty = |value: MaybeValue<'_>| match value {
        None | Some(Value::Null) => true,
        Some(Value::Array(items)) => items.is_empty(),
        Some(Value::Object(map)) => map.is_empty(),
        Some(_) => false,
    };
    if shape.is_leaf() || (empty(old) && empty(new)) {
        return Ok(new.or(old).cloned());
    }
    match shape.of {
        ShapeKind::Struct(_) | ShapeKind::Map(_) => members(shape, old, new),
        ShapeKind::Deduced => match (old, new) {
            // A missing value adopts the other's form.
            (_, Some(Value::Object(_))) | (Some(Value::Object(_)), None | Some(Value::Null)) => {
                members(shape, old, new)
            }
            _ => Ok(new.or(old).cloned()),
        },
        ShapeKind::List(..) => items(shape, old, new),
        ShapeKind::Scalar(_) | ShapeKind::Untyped => Ok(new.or(old).cloned()),
    }
}

fn members(shape: Shape<'_>, old: MaybeValue<'_>, new: MaybeValue<'_>) -> Result<Option<Value>, String> {
    let map_of = |value: MaybeValue<'_>| value.and_then(Value::as_object).cloned();
    let (was, is) = (old.and_then(Value::as_object), new.and_then(Value::as_object));
    let Some(is) = is else { return Ok(map_of(old).map(Value::Object)) };
    let mut out = Map::new();
    for (name, value) in was.into_iter().flatten() {
        if !is.contains_key(name) {
            out.insert(name.clone(), value.clone());
        }
    }
    for (name, value) in is {
        let old = was.and_then(|was| was.get(name));
        let merged = match shape.member(name) {
            Some((inner, _)) => values(inner, old, Some(value))?,
            None => Some(value.clone()),
        };
        if let Some(merged) = merged {
            out.insert(name.clone(), merged);
        }
    }
    Ok((!out.is_empty()).then_some(Value::Object(out)))
}

type Items<'a> = Vec<(PathElement, &'a Value)>;
type ByElement<'a> = BTreeMap<PathElement, Option<&'a Value>>;

/// Indexes a list by its items' elements. A duplicate maps to `None`: it can't be merged.
fn indexed<'a>(shape: Shape<'_>, list: MaybeValue<'a>, doubled: bool) -> Result<(Items<'a>, ByElement<'a>), String> {
    let mut all = Vec::new();
    let mut by = BTreeMap::new();
    for (i, item) in list.and_then(Value::as_array).into_iter().flatten().enumerate() {
        let element = shape.item(item).map_err(|error| format!("element {i}: {error}"))?;
        if by.contains_key(&element) {
            if !doubled {
                return Err(format!("duplicate entries for key {element}"));
            }
            by.insert(element.clone(), None);
        } else {
            by.insert(element.clone(), Some(item));
        }
        all.push((element, item));
    }
    Ok((all, by))
}

fn items(shape: Shape<'_>, old: MaybeValue<'_>, new: MaybeValue<'_>) -> Result<Option<Value>, String> {
    let ShapeKind::List(kind, _) = shape.of else { return Ok(new.cloned()) };
    let inner = shape.of_kind(kind);
    let (wanted, is) = indexed(shape, new, false)?;
    let (there, was) = indexed(shape, old, true)?;
    // Common items are in the configuration's order.
    let mut shared: VecDeque<&PathElement> =
        wanted.iter().map(|(element, _)| element).filter(|element| was.contains_key(element)).collect();
    let mut next = shared.pop_front();
    let mut done: BTreeSet<&PathElement> = BTreeSet::new();
    let mut out = Vec::new();
    let merged = |element: &PathElement, out: &mut Vec<Value>| {
        let old = was.get(element).copied().flatten();
        let new = is.get(element).copied().flatten();
        out.extend(values(inner, old, new)?);
        Ok::<_, String>(())
    };
    let (mut l, mut r) = (0, 0);
    while l < there.len() || r < wanted.len() {
        if let (Some((left, _)), Some((right, _))) = (there.get(l), wanted.get(r)) {
            if left == right {
                done.insert(right);
                merged(right, &mut out)?;
                (l, r, next) = (l + 1, r + 1, shared.pop_front());
                continue;
            }
            if is.contains_key(left) && next.is_some_and(|next| next != left) {
                // A common item, but not the next one.
                l += 1;
                continue;
            }
        }
        if let Some((left, item)) = there.get(l) {
            if !is.contains_key(left) {
                out.push((*item).clone());
                l += 1;
                continue;
            }
            if done.contains(left) {
                l += 1;
            }
        }
        if let Some((right, _)) = wanted.get(r) {
            done.insert(right);
            merged(right, &mut out)?;
            r += 1;
            if next == Some(right) {
                next = shared.pop_front();
            }
        }
    }
    Ok((!out.is_empty()).then_some(Value::Array(out)))
}
