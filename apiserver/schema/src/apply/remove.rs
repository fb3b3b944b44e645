//! Removes fields from an object, and reconciles field sets with their type.

use serde_json::{Map, Value};

use std::sync::Arc;

use super::path::PathElement;
use super::set::{Node, Set};
use super::shape::{Shape, ShapeKind};
use crate::TypeRef;

/// Removes fields and items from an object. Containers that become empty are null, as upstream's.
#[must_use]
pub(super) fn remove(found: TypeRef<'_>, object: &Value, fields: &Set) -> Value {
    value(Shape::root(found), object, fields)
}

fn value(shape: Shape<'_>, from: &Value, fields: &Set) -> Value {
    match (shape.of, from) {
        (ShapeKind::List(kind, _), Value::Array(items)) => {
            if shape.is_leaf() || items.is_empty() {
                return Value::Null;
            }
            let mut left = Vec::with_capacity(items.len());
            for item in items {
                let node = shape.item(item).ok().and_then(|element| fields.find(&element));
                match node {
                    Some(node) if node.member => {}
                    Some(Node { below: Some(below), .. }) => left.push(value(shape.of_kind(kind), item, below)),
                    _ => left.push(item.clone()),
                }
            }
            if left.is_empty() { Value::Null } else { Value::Array(left) }
        }
        (ShapeKind::Struct(_) | ShapeKind::Map(_) | ShapeKind::Deduced, Value::Object(map)) => {
            if shape.is_leaf() {
                return Value::Null;
            }
            let mut left = Map::new();
            for (name, item) in map {
                match fields.find(&PathElement::field(name)) {
                    Some(node) if node.member => {}
                    Some(Node { below: Some(below), .. }) => {
                        let item =
                            shape.member(name).map_or_else(|| item.clone(), |(inner, _)| value(inner, item, below));
                        left.insert(name.clone(), item);
                    }
                    _ => drop(left.insert(name.clone(), item.clone())),
                }
            }
            if left.is_empty() { Value::Null } else { Value::Object(left) }
        }
        (ShapeKind::Deduced, Value::Array(_)) => Value::Null,
        (_, other) => other.clone(),
    }
}

/// Adds the declared ancestors of a set's members: a partly owned object counts as owned.
#[must_use]
pub(super) fn with_declared_ancestors(found: TypeRef<'_>, set: &Set) -> Set {
    add_declared_ancestors(Some(Shape::root(found)), set)
}

fn add_declared_ancestors(shape: Option<Shape<'_>>, set: &Set) -> Set {
    let nodes = set.nodes.iter().map(|node| {
        let (inner, declared) = match (&node.element, shape) {
            (PathElement::Field(name), Some(shape)) => match shape.member(name) {
                Some((inner, field)) => (Some(inner), field.is_some()),
                None => (None, false),
            },
            (PathElement::Key(_), Some(Shape { of: ShapeKind::List(kind, _), .. })) => {
                (shape.map(|shape| shape.of_kind(kind)), false)
            }
            _ => (None, false),
        };
        let below = node.below.as_ref().map(|below| Arc::new(add_declared_ancestors(inner, below)));
        Node { element: node.element.clone(), member: node.member || (declared && below.is_some()), below }
    });
    Set { nodes: nodes.collect() }
}

/// Adapts a set to the present type: a field that became atomic is owned as a whole; `None` if unchanged.
#[must_use]
pub(super) fn reconciled(found: TypeRef<'_>, set: &Set) -> Option<Set> {
    let mut changed = false;
    let set = reconcile_level(Shape::root(found), set, &mut changed);
    changed.then_some(set)
}

fn reconcile_level(shape: Shape<'_>, set: &Set, changed: &mut bool) -> Set {
    let nodes = set.nodes.iter().map(|node| {
        let inner = match (&node.element, shape.of) {
            (PathElement::Field(name), ShapeKind::Struct(_) | ShapeKind::Map(_)) => {
                shape.member(name).map(|(inner, _)| inner)
            }
            (_, ShapeKind::List(kind, _)) => Some(shape.of_kind(kind)),
            _ => None,
        };
        let (Some(inner), Some(below)) = (inner, &node.below) else { return node.clone() };
        let whole =
            matches!(inner.of, ShapeKind::List(..) | ShapeKind::Struct(_) | ShapeKind::Map(_)) && inner.is_leaf();
        if whole {
            *changed = true;
            return Node { element: node.element.clone(), member: true, below: None };
        }
        Node { below: Some(Arc::new(reconcile_level(inner, below, changed))), ..node.clone() }
    });
    Set { nodes: nodes.collect() }
}
