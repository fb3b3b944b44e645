//! Checks an apply configuration against its type, and lists the fields that it sets.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use serde_json::Value;

use super::path::PathElement;
use super::set::Set;
use super::shape::{Items, Shape, ShapeKind};
use crate::{Kind, TypeRef};

/// Maximum reported errors of one configuration.
const ERRORS_MAX: usize = 64;

/// Checks an object against its type; the error has upstream's messages, one a line. `doubled`: whether list items may
/// have duplicate keys.
///
/// # Errors
/// If the object doesn't conform.
pub fn check(found: TypeRef<'_>, object: &Value, doubled: bool) -> Result<(), String> {
    let mut check = ConfigChecker { doubled, path: String::new(), errors: Vec::new() };
    check.value(Shape::root(found), object);
    match &*check.errors {
        [] => Ok(()),
        [one] => Err(one.clone()),
        many => Err(many.iter().fold("errors:".to_owned(), |mut all, one| {
            let _ = write!(all, "\n  {one}");
            all
        })),
    }
}

struct ConfigChecker {
    doubled: bool,
    path: String,
    errors: Vec<String>,
}

/// A value's kind as Go prints it in an error.
fn go_kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "<nil>",
        Value::Bool(_) => "bool",
        Value::Number(n) if n.is_f64() => "float64",
        Value::Number(_) => "int64",
        Value::String(_) => "string",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
    }
}

impl ConfigChecker {
    fn wrong(&mut self, what: &str) {
        if self.errors.len() < ERRORS_MAX {
            let separator = if self.path.is_empty() { "" } else { ": " };
            self.errors.push(format!("{}{separator}{what}", self.path));
        }
    }

    fn below(&mut self, element: &str, shape: Shape<'_>, value: &Value) {
        let length = self.path.len();
        self.path.push_str(element);
        self.value(shape, value);
        self.path.truncate(length);
    }

    fn value(&mut self, shape: Shape<'_>, value: &Value) {
        if value.is_null() || self.errors.len() >= ERRORS_MAX {
            return;
        }
        match (shape.of, value) {
            (ShapeKind::Scalar(kind), value) => self.scalar(kind, value),
            (ShapeKind::Struct(_) | ShapeKind::Map(_), Value::Object(map)) => {
                for (name, value) in map {
                    match shape.member(name) {
                        Some((inner, _)) => self.below(&format!(".{name}"), inner, value),
                        None => {
                            let length = self.path.len();
                            let _ = write!(self.path, ".{name}");
                            self.wrong("field not declared in schema");
                            self.path.truncate(length);
                            // Upstream stops here too.
                            return;
                        }
                    }
                }
            }
            (ShapeKind::Struct(_) | ShapeKind::Map(_), other) => self.wrong(&format!("expected map, got &{{{other}}}")),
            (ShapeKind::List(kind, items), Value::Array(list)) => self.list(shape.of_kind(kind), shape, items, list),
            (ShapeKind::List(..), other) => self.wrong(&format!("expected list, got &{{{other}}}")),
            (ShapeKind::Deduced | ShapeKind::Untyped, _) => {}
        }
    }

    fn list(&mut self, inner: Shape<'_>, shape: Shape<'_>, items: Items<'_>, list: &[Value]) {
        let mut seen = BTreeSet::new();
        for (i, item) in list.iter().enumerate() {
            let element = match items {
                Items::Atomic => PathElement::Index(i64::try_from(i).unwrap_or(i64::MAX)),
                Items::Set | Items::Keyed(_) => match shape.item(item) {
                    Ok(element) => {
                        if !seen.insert(element.clone()) && !self.doubled {
                            self.wrong(&format!("duplicate entries for key {element}"));
                        }
                        element
                    }
                    Err(error) => return self.wrong(&format!("element {i}: {error}")),
                },
            };
            self.below(&element.to_string(), inner, item);
        }
    }

    fn scalar(&mut self, kind: &Kind, value: &Value) {
        let fits = match kind {
            Kind::String | Kind::Bytes => value.is_string(),
            Kind::Bool => value.is_boolean(),
            Kind::Int32 | Kind::Int64 | Kind::Double => value.is_number(),
            _ => !value.is_object() && !value.is_array(),
        };
        if fits {
            return;
        }
        match kind {
            Kind::String | Kind::Bytes => {
                self.wrong(&format!("expected string, got &value.valueUnstructured{{Value:{value}}}"))
            }
            Kind::Bool => self.wrong(&format!("expected boolean, got &{{{value}}}")),
            Kind::Int32 | Kind::Int64 | Kind::Double => {
                self.wrong(&format!("expected numeric (int or float), got {}", go_kind(value)));
            }
            _ => self.wrong(&format!("expected any scalar, got &{{{value}}}")),
        }
    }
}

/// All fields and items of an object.
#[must_use]
pub(super) fn fields_of(found: TypeRef<'_>, object: &Value) -> Set {
    let mut set = Set::default();
    walk(Shape::root(found), object, &mut Vec::new(), &mut set);
    set
}

fn walk(shape: Shape<'_>, value: &Value, path: &mut Vec<PathElement>, set: &mut Set) {
    if shape.is_leaf() {
        return set.insert(path);
    }
    match (shape.of, value) {
        (ShapeKind::Deduced, Value::Object(_)) | (ShapeKind::Struct(_) | ShapeKind::Map(_), _) => {
            for (name, value) in value.as_object().into_iter().flatten() {
                let Some((inner, field)) = shape.member(name) else { continue };
                path.push(PathElement::field(name));
                walk(inner, value, path, set);
                let empty = value.is_null() || value.as_object().is_some_and(serde_json::Map::is_empty);
                if empty || field.is_none() {
                    set.insert(path);
                }
                path.pop();
            }
        }
        (ShapeKind::List(kind, _), _) => {
            let mut seen = BTreeSet::new();
            let mut doubled = BTreeSet::new();
            let mut items: Vec<_> = value
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|item| Some((shape.item(item).ok()?, item)))
                .collect();
            // Sorted, so that each is appended at the set's end.
            items.sort_by(|a, b| a.0.cmp(&b.0));
            for (element, _) in &items {
                if !seen.insert(element.clone()) {
                    doubled.insert(element.clone());
                }
            }
            for (element, item) in items {
                path.push(element.clone());
                if !doubled.contains(&element) {
                    walk(shape.of_kind(kind), item, path, set);
                }
                set.insert(path);
                path.pop();
            }
        }
        _ => set.insert(path),
    }
}
