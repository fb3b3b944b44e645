//! Type inference: assignability, and the types that it infers for type parameters.

use std::sync::Arc;

use super::Type;

/// The inferred types of the parameters. A failed attempt is rolled back.
#[derive(Debug, Default)]
pub(crate) struct Unifier {
    bindings: Vec<Option<Type>>,
    journal: Vec<(u32, Option<Type>)>,
}

impl Unifier {
    pub(crate) fn fresh(&mut self) -> Type {
        self.bindings.push(None);
        Type::Param(self.bindings.len() as u32 - 1)
    }

    /// Allocates `count` consecutive parameters and returns the first one's number.
    pub(crate) fn fresh_many(&mut self, count: u32) -> u32 {
        let first = self.bindings.len() as u32;
        self.bindings.resize(self.bindings.len() + count as usize, None);
        first
    }

    fn bind(&mut self, param: u32, ty: Type) {
        let before = self.bindings[param as usize].replace(ty);
        self.journal.push((param, before));
    }

    fn attempt(&mut self, try_it: impl FnOnce(&mut Self) -> bool) -> bool {
        self.journal.clear();
        let fits = try_it(self);
        while !fits && let Some((param, before)) = self.journal.pop() {
            self.bindings[param as usize] = before;
        }
        fits
    }

    pub(crate) fn is_assignable(&mut self, from: &Type, to: &Type) -> bool {
        self.attempt(|unifier| unifier.assignable(from, to))
    }

    pub(crate) fn are_assignable<'t>(&mut self, pairs: impl Iterator<Item = (&'t Type, &'t Type)>) -> bool {
        self.attempt(|unifier| {
            let mut pairs = pairs;
            pairs.all(|(from, to)| unifier.assignable(from, to))
        })
    }

    fn assignable(&mut self, from: &Type, to: &Type) -> bool {
        if let Type::Param(param) = to {
            match self.substitutes(from, *param) {
                Some(true) => return true,
                Some(false) => return false,
                None => {}
            }
        }
        if let Type::Param(param) = from {
            return self.substitutes(to, *param).unwrap_or(false);
        }
        if from.is_dyn_or_error() || to.is_dyn_or_error() {
            return true;
        }
        let nullable = |ty: &Type| {
            let other = matches!(ty, Type::Opaque(_) | Type::Optional(_) | Type::Struct(_));
            other || matches!(ty, Type::Null | Type::Duration | Type::Timestamp)
        };
        match (from, to) {
            (Type::Null, other) | (other, Type::Null) => nullable(other),
            (Type::Type(_), Type::Type(_)) => true,
            (Type::List(a), Type::List(b)) | (Type::Optional(a), Type::Optional(b)) => self.assignable(a, b),
            (Type::Map(a), Type::Map(b)) => self.assignable(&a.0, &b.0) && self.assignable(&a.1, &b.1),
            (a, b) => a == b,
        }
    }

    /// Whether a type can stand for a parameter; `None` if the parameter occurs within it.
    fn substitutes(&mut self, ty: &Type, param: u32) -> Option<bool> {
        if *ty == Type::Param(param) {
            return Some(true);
        }
        if let Some(known) = self.bindings[param as usize].clone() {
            if *ty == known {
                return Some(true);
            }
            if !self.assignable(ty, &known) {
                return Some(false);
            }
            let general = if less_specific(ty, &known) { ty.clone() } else { known };
            if !self.occurs(param, &general) {
                self.bind(param, general);
            }
            return Some(true);
        }
        if self.occurs(param, ty) {
            return None;
        }
        self.bind(param, ty.clone());
        Some(true)
    }

    fn occurs(&self, param: u32, within: &Type) -> bool {
        match within {
            Type::Param(other) if *other == param => true,
            Type::Param(other) => {
                self.bindings[*other as usize].as_ref().is_some_and(|known| self.occurs(param, known))
            }
            Type::List(inner) | Type::Optional(inner) | Type::Type(Some(inner)) => self.occurs(param, inner),
            Type::Map(entry) => self.occurs(param, &entry.0) || self.occurs(param, &entry.1),
            _ => false,
        }
    }

    /// The type with inferred parameters substituted; `to_dyn` turns the others into `dyn`.
    pub(crate) fn substitute(&self, ty: &Type, to_dyn: bool) -> Type {
        match ty {
            Type::Param(param) => match &self.bindings[*param as usize] {
                Some(known) => self.substitute(known, to_dyn),
                None if to_dyn => Type::Dyn,
                None => ty.clone(),
            },
            Type::List(inner) => Type::list(self.substitute(inner, to_dyn)),
            Type::Optional(inner) => Type::optional(self.substitute(inner, to_dyn)),
            Type::Type(Some(inner)) => Type::Type(Some(Arc::new(self.substitute(inner, to_dyn)))),
            Type::Map(entry) => Type::map(self.substitute(&entry.0, to_dyn), self.substitute(&entry.1, to_dyn)),
            other => other.clone(),
        }
    }

    /// The common type of two elements of one literal, if they have one.
    pub(crate) fn join(&mut self, previous: Option<Type>, current: Type) -> Result<Type, Type> {
        let Some(previous) = previous else { return Ok(current) };
        if !self.is_assignable(&previous, &current) {
            return Err(previous);
        }
        Ok(if less_specific(&previous, &current) { previous } else { current })
    }
}

/// The type with its parameters renumbered by an offset.
pub(crate) fn shift(ty: &Type, by: u32) -> Type {
    match ty {
        Type::Param(param) => Type::Param(param + by),
        Type::List(inner) => Type::list(shift(inner, by)),
        Type::Optional(inner) => Type::optional(shift(inner, by)),
        Type::Type(Some(inner)) => Type::Type(Some(Arc::new(shift(inner, by)))),
        Type::Map(entry) => Type::map(shift(&entry.0, by), shift(&entry.1, by)),
        other => other.clone(),
    }
}

/// Whether the first is at most as specific as the second.
fn less_specific(a: &Type, b: &Type) -> bool {
    match (a, b) {
        (Type::Dyn | Type::Param(_), _) => true,
        (_, Type::Dyn | Type::Param(_)) => false,
        (Type::List(a), Type::List(b)) | (Type::Optional(a), Type::Optional(b)) => less_specific(a, b),
        (Type::Map(a), Type::Map(b)) => less_specific(&a.0, &b.0) && less_specific(&a.1, &b.1),
        (Type::Type(_), Type::Type(_)) => true,
        (a, b) => a == b,
    }
}
