//! The fields set by a new object, written as FieldsV1 in one walk: most creates find that text in the pool and build
//! no set. Invariant (a property test): the result equals the added and modified fields of
//! [`compare`](super::compare::compare).

use serde_json::{Map, Value};

use super::compare::equal_when_stored;
use super::fields::{write_element, write_field};
use super::path::{PathElement, same};
use super::set::Set;
use super::shape::{EMPTY, Shape, ShapeKind, printed};
use crate::TypeRef;

/// The fields set by a new object as text, without `dropped`; `{}` for none. List items without a key have no path: they
/// belong to no manager.
pub(super) fn created(found: TypeRef<'_>, new: &Value, dropped: &Set) -> String {
    let mut out = String::with_capacity(1024);
    out.push('{');
    members(Shape::root(found), Some(&EMPTY), Some(new), Some(dropped), &mut out);
    out.push('}');
    out
}

type MaybeValue<'a> = Option<&'a Value>;

fn map_of(value: MaybeValue<'_>) -> Option<&Map<String, Value>> {
    value.and_then(Value::as_object)
}

/// Writes `"f:x":{…}`, or nothing if no part is new. `old` is the printed form of an empty object.
fn member(
    element: &dyn Fn(&mut String),
    shape: Shape<'_>,
    old: MaybeValue<'_>,
    new: &Value,
    dropped: Option<&Set>,
    out: &mut String,
) {
    let begin = out.len();
    if !out.ends_with('{') {
        out.push(',');
    }
    element(out);
    out.push_str(":{");
    let inner = out.len();
    let deduced_leaf = matches!(shape.of, ShapeKind::Deduced) && !new.is_object();
    let leaf = shape.is_leaf() || deduced_leaf || (shape.is_empty(old, true) && shape.is_empty(Some(new), true));
    let is_new = match old {
        None => true,
        Some(old) => leaf && !same(old, new) && !equal_when_stored(shape, old, new),
    };
    if !leaf {
        if is_new {
            out.push_str("\".\":{}");
        }
        match shape.of {
            ShapeKind::List(..) => items(shape, new, dropped, out),
            _ => members(shape, old, Some(new), dropped, out),
        }
        if out.len() == inner + 6 && is_new {
            // Only the field itself.
            out.truncate(inner);
        }
    }
    if out.len() == inner && !is_new {
        out.truncate(begin);
    } else {
        out.push('}');
    }
}

fn members(shape: Shape<'_>, old: MaybeValue<'_>, new: MaybeValue<'_>, dropped: Option<&Set>, out: &mut String) {
    let (was, is) = (map_of(old), map_of(new));
    // The printed form of an empty object has declared fields only.
    let ShapeKind::Struct(of) = shape.of else {
        for (name, value) in is.into_iter().flatten() {
            if let Some((inner, _)) = shape.member(name)
                && let Some(rest) = dropped_below(dropped, name)
            {
                member(&|out| write_field(name, out), inner, None, value, rest, out);
            }
        }
        return;
    };
    if !shape.is_loose() {
        for field in &of.fields {
            let given = is.and_then(|map| map.get(&*field.name));
            let Some(value) = printed(field, given) else { continue };
            let Some(rest) = dropped_below(dropped, &field.name) else { continue };
            let before = old.and_then(|_| printed(field, was.and_then(|map| map.get(&*field.name))));
            if given.is_none() && before == Some(value) {
                continue;
            }
            member(&|out| write_field(&field.name, out), shape.of_field(field), before, value, rest, out);
        }
        return;
    }
    let mut names: Vec<&str> = of.fields.iter().map(|field| &*field.name).collect();
    names.extend(is.into_iter().flat_map(Map::keys).map(String::as_str));
    names.sort_unstable();
    names.dedup();
    for name in names {
        let Some((inner, field)) = shape.member(name) else { continue };
        let given = is.and_then(|map| map.get(name));
        let (before, value) = match field {
            Some(field) => (old.and_then(|_| printed(field, None)), printed(field, given)),
            None => (None, given),
        };
        if let (Some(value), Some(rest)) = (value, dropped_below(dropped, name)) {
            member(&|out| write_field(name, out), inner, before, value, rest, out);
        }
    }
}

/// The dropped fields below a field; `None` if the field itself is dropped.
fn dropped_below<'a>(dropped: Option<&'a Set>, name: &str) -> Option<Option<&'a Set>> {
    let Some(dropped) = dropped else { return Some(None) };
    let Some(node) = dropped.nodes.iter().find(|node| matches!(&node.element, PathElement::Field(n) if **n == *name))
    else {
        return Some(None);
    };
    (!node.member).then_some(node.below.as_deref())
}

fn items(shape: Shape<'_>, new: &Value, dropped: Option<&Set>, out: &mut String) {
    let ShapeKind::List(kind, _) = shape.of else { return };
    let list = new.as_array().into_iter().flatten();
    let mut all: Vec<(PathElement, &Value)> = list.filter_map(|item| Some((shape.item(item).ok()?, item))).collect();
    all.sort_by(|a, b| a.0.cmp(&b.0));
    let inner = shape.of_kind(kind);
    let mut rest = &*all;
    while let [(element, value), after @ ..] = rest {
        let twice = after.iter().take_while(|(other, _)| other == element).count();
        let below = dropped.and_then(|dropped| dropped.below(element));
        if twice == 0 {
            member(&|out| write_element(element, out), inner, None, value, below, out);
        } else {
            if !out.ends_with('{') {
                out.push(',');
            }
            write_element(element, out);
            out.push_str(":{}");
        }
        rest = &after[twice..];
    }
}
