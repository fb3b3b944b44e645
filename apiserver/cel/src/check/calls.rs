//! Overload resolution: from a call with checked arguments to its result type, or the error "found no matching
//! overload".

use std::sync::Arc;

use super::{Checker, Reference};
use crate::library::{FUNCTIONS, Overload};
use crate::syntax::{Id, Kind, Literal};
use crate::types::Type;

impl Checker<'_> {
    pub(super) fn call(&mut self, id: Id, function: &Arc<str>, target: Option<Id>, args: &[Id]) -> Type {
        if &**function == "_?._" {
            return self.optional_select(id, args);
        }
        for arg in args {
            self.check(*arg);
        }
        let plain = function.strip_prefix('.').unwrap_or(function);
        let Some(target) = target else {
            let Some((name, overloads)) = FUNCTIONS.get_key_value(plain) else {
                return self.undeclared(id, function);
            };
            return self.resolve(id, name, overloads, None, args);
        };
        // The text before the dot may be part of the function's name.
        let known = |name: &str| name != "jsonpatch.escapeKey" || self.names.mutation;
        if let Some(prefix) = self.tree.qualified_name(target)
            && let Some((name, overloads)) = FUNCTIONS.get_key_value(format!("{prefix}.{function}").as_str())
            && known(name)
        {
            return self.resolve(id, name, overloads, None, args);
        }
        self.check(target);
        match FUNCTIONS.get_key_value(plain) {
            Some((name, overloads)) => self.resolve(id, name, overloads, Some(target), args),
            None => self.undeclared(id, function),
        }
    }

    fn optional_select(&mut self, id: Id, args: &[Id]) -> Type {
        let (operand, field) = (args[0], args[1]);
        let tree = self.tree;
        let Kind::Literal(Literal::String(name)) = &tree.get(field).kind else { return Type::Error };
        self.types[field as usize] = Some(Type::String);
        let ty = self.field(id, operand, name, true);
        self.unifier.substitute(&ty, false)
    }

    fn resolve(
        &mut self,
        id: Id,
        name: &Arc<str>,
        overloads: &'static [Overload],
        target: Option<Id>,
        args: &[Id],
    ) -> Type {
        let given: Vec<Type> =
            target.iter().chain(args).map(|arg| self.types[*arg as usize].clone().unwrap_or(Type::Error)).collect();
        if matches!(&**name, "_&&_" | "_||_") {
            return self.logic(id, name, args, &given);
        }
        let mut result: Option<Type> = None;
        let mut found = Vec::new();
        for (number, overload) in overloads.iter().enumerate() {
            if overload.member != target.is_some() || overload.args.len() != given.len() {
                continue;
            }
            let first = if overload.params > 0 { self.unifier.fresh_many(overload.params) } else { 0 };
            let (expected, overload_result) = overload.instance(first);
            if !self.unifier.are_assignable(given.iter().zip(&expected)) {
                continue;
            }
            found.push(number as u16);
            let overload_result = self.unifier.substitute(&overload_result, false);
            result = Some(match result {
                None => overload_result,
                Some(before) if before == Type::Dyn || before == overload_result => before,
                Some(_) => Type::Dyn,
            });
        }
        let Some(result) = result else {
            self.no_overload(id, name, &given, target.is_some());
            return Type::Error;
        };
        self.references[id as usize] =
            Reference::Function { name: name.clone(), overloads: found, target: target.is_some() };
        result
    }

    fn logic(&mut self, id: Id, name: &Arc<str>, args: &[Id], given: &[Type]) -> Type {
        let mut result = Type::Bool;
        for (arg, ty) in args.iter().zip(given) {
            if !self.unifier.is_assignable(ty, &Type::Bool) {
                self.mismatch(*arg, &Type::Bool, ty);
                result = Type::Error;
            }
        }
        self.references[id as usize] = Reference::Function { name: name.clone(), overloads: vec![0], target: false };
        result
    }

    fn no_overload(&mut self, id: Id, name: &str, given: &[Type], member: bool) {
        let mut texts: Vec<String> = given.iter().map(|ty| self.unifier.substitute(ty, true).to_string()).collect();
        let target = if member { format!("{}.", texts.remove(0)) } else { String::new() };
        let signature = format!("{target}({})", texts.join(", "));
        self.error(id, format!("found no matching overload for '{name}' applied to '{signature}'"));
    }
}
