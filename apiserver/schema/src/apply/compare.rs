//! Compares two values of a type; returns sets of fields.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::path::{PathElement, same};
use super::set::Set;
use super::shape::{EMPTY, Shape, ShapeKind, printed};
use crate::{TypeRef, normalise as normalise_whole, normalise_kind};

/// The differences of two values.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Comparison {
    /// Fields of the old value only.
    pub removed: Set,
    /// Fields of both with different values.
    pub modified: Set,
    /// Fields of the new value only.
    pub added: Set,
}

impl Comparison {
    /// Whether the values are equal.
    #[must_use]
    pub fn is_same(&self) -> bool {
        self.removed.is_empty() && self.modified.is_empty() && self.added.is_empty()
    }

    /// Maps each set.
    #[must_use]
    pub fn map(self, change: impl Fn(Set) -> Set) -> Self {
        Self { removed: change(self.removed), modified: change(self.modified), added: change(self.added) }
    }
}

/// The interpretation of values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Values as they are.
    Whole,
    /// Values in printed form: fields without omitempty are present, empty ones with it are absent. List items without a
    /// key have no path and are left out.
    Printed,
}

/// Compares two objects; without an old one, the new one with the printed form of an empty object. The error names a
/// list item without a key, which only [`Form::Whole`] reports.
pub fn compare(found: TypeRef<'_>, old: Option<&Value>, new: &Value, form: Form) -> Result<Comparison, String> {
    let mut walk = Comparer { form, path: Vec::new(), out: Comparison::default() };
    walk.values(Shape::root(found), Some(old.unwrap_or(&EMPTY)), Some(new))?;
    Ok(walk.out)
}

struct Comparer {
    form: Form,
    path: Vec<PathElement>,
    out: Comparison,
}

type MaybeValue<'a> = Option<&'a Value>;

fn map_of(value: MaybeValue<'_>) -> Option<&Map<String, Value>> {
    value.and_then(Value::as_object)
}

impl Comparer {
    fn values(&mut self, shape: Shape<'_>, old: MaybeValue<'_>, new: MaybeValue<'_>) -> Result<(), String> {
        if old.is_some() && old == new {
            return Ok(());
        }
        let prints = self.form == Form::Printed;
        if shape.is_leaf() || (shape.is_empty(old, prints) && shape.is_empty(new, prints)) {
            self.leaf(shape, old, new);
            return Ok(());
        }
        match shape.of {
            ShapeKind::List(..) => self.items(shape, old, new)?,
            ShapeKind::Deduced => {
                let (was_map, is_map) = (map_of(old).is_some(), map_of(new).is_some());
                if !was_map && !is_map {
                    self.leaf(shape, old, new);
                    return Ok(());
                }
                let other =
                    |value: MaybeValue<'_>, is_map: bool| value.is_some_and(|value| !value.is_null()) && !is_map;
                if other(old, was_map) || other(new, is_map) {
                    self.leaf(shape, old, new);
                }
                self.members(shape, old, new)?;
            }
            _ => self.members(shape, old, new)?,
        }
        if old.is_none() {
            self.out.added.insert(&self.path);
        } else if new.is_none() {
            self.out.removed.insert(&self.path);
        }
        Ok(())
    }

    fn leaf(&mut self, shape: Shape<'_>, old: MaybeValue<'_>, new: MaybeValue<'_>) {
        match (old, new) {
            (None, _) => self.out.added.insert(&self.path),
            (_, None) => self.out.removed.insert(&self.path),
            (Some(old), Some(new)) if same(old, new) => {}
            (Some(old), Some(new)) if self.form == Form::Printed && equal_when_stored(shape, old, new) => {}
            _ => self.out.modified.insert(&self.path),
        }
    }

    fn below(
        &mut self,
        element: PathElement,
        shape: Shape<'_>,
        old: MaybeValue<'_>,
        new: MaybeValue<'_>,
    ) -> Result<(), String> {
        self.path.push(element);
        let done = self.values(shape, old, new);
        self.path.pop();
        done
    }

    fn members(&mut self, shape: Shape<'_>, old: MaybeValue<'_>, new: MaybeValue<'_>) -> Result<(), String> {
        let (was, is) = (map_of(old), map_of(new));
        if let (ShapeKind::Struct(of), Form::Printed) = (shape.of, self.form) {
            for field in &of.fields {
                let old = old.and_then(|_| printed(field, was.and_then(|map| map.get(&*field.name))));
                let new = new.and_then(|_| printed(field, is.and_then(|map| map.get(&*field.name))));
                if old.is_some() || new.is_some() {
                    self.below(PathElement::field(&field.name), shape.of_field(field), old, new)?;
                }
            }
            if !shape.is_loose() {
                return Ok(());
            }
        }
        let declared = |name: &str| {
            self.form == Form::Printed && matches!(shape.of, ShapeKind::Struct(of) if of.field(name).is_some())
        };
        let mut names: Vec<&String> = was.into_iter().chain(is).flat_map(Map::keys).filter(|n| !declared(n)).collect();
        names.sort_unstable();
        names.dedup();
        for name in names {
            let Some((shape, _)) = shape.member(name) else { continue };
            let (old, new) = (was.and_then(|map| map.get(name)), is.and_then(|map| map.get(name)));
            self.below(PathElement::field(name), shape, old, new)?;
        }
        Ok(())
    }

    fn items(&mut self, shape: Shape<'_>, old: MaybeValue<'_>, new: MaybeValue<'_>) -> Result<(), String> {
        let ShapeKind::List(kind, _) = shape.of else { return Ok(()) };
        let mut all: BTreeMap<PathElement, [Vec<&Value>; 2]> = BTreeMap::new();
        for (side, list) in [old, new].into_iter().enumerate() {
            for item in list.and_then(Value::as_array).into_iter().flatten() {
                match shape.item(item) {
                    Ok(element) => all.entry(element).or_default()[side].push(item),
                    Err(_) if self.form == Form::Printed => {}
                    Err(error) => return Err(error),
                }
            }
        }
        let inner = shape.of_kind(kind);
        for (element, [was, is]) in all {
            match (&*was, &*is) {
                ([] | [_], [] | [_]) => self.below(element, inner, was.first().copied(), is.first().copied())?,
                ([_, _, ..], [_, _, ..]) => {
                    if was.len() != is.len() || was.iter().zip(&is).any(|(a, b)| !same(a, &stored_form(inner, b))) {
                        self.here(element, |out| &mut out.modified);
                    }
                }
                ([_, _, ..], one) => {
                    if let [one] = one {
                        self.below(element.clone(), inner, None, Some(one))?;
                    }
                    self.here(element, |out| &mut out.removed);
                }
                (one, _) => {
                    if let [one] = one {
                        self.below(element.clone(), inner, Some(one), None)?;
                    }
                    self.here(element, |out| &mut out.added);
                }
            }
        }
        Ok(())
    }

    fn here(&mut self, element: PathElement, set: impl Fn(&mut Comparison) -> &mut Set) {
        self.path.push(element);
        set(&mut self.out).insert(&self.path);
        self.path.pop();
    }
}

/// Whether two values are equal in their stored form.
pub(super) fn equal_when_stored(shape: Shape<'_>, old: &Value, new: &Value) -> bool {
    !matches!(shape.of, ShapeKind::Untyped | ShapeKind::Deduced)
        && same(&stored_form(shape, old), &stored_form(shape, new))
}

/// A value in its stored form.
pub(super) fn stored_form(shape: Shape<'_>, value: &Value) -> Value {
    let mut value = value.clone();
    match shape.of {
        ShapeKind::Scalar(kind) => normalise_kind(shape.types, kind, &mut value),
        ShapeKind::Struct(of) => drop(normalise_whole(TypeRef { types: shape.types, of }, &mut value)),
        ShapeKind::Map(kind) => value
            .as_object_mut()
            .into_iter()
            .flat_map(Map::values_mut)
            .for_each(|value| normalise_kind(shape.types, kind, value)),
        ShapeKind::List(kind, _) => {
            value.as_array_mut().into_iter().flatten().for_each(|value| normalise_kind(shape.types, kind, value))
        }
        ShapeKind::Deduced | ShapeKind::Untyped => {}
    }
    value
}
