//! Type checker: assigns a type to each node of a tree, or reports why it has none.

mod calls;
mod validators;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::library::{FUNCTIONS, Overload, named};
use crate::syntax::{CompileError, Entry, FieldInit, Fold, Id, Issue, Issues, Kind, Literal, Source, Tree};
use crate::types::{DeclType, Shape, Type, Unifier};

/// The meaning of a name in a tree.
#[derive(Clone, Debug, Default)]
pub(crate) enum Reference {
    #[default]
    None,
    /// A variable of the activation.
    Variable(Arc<str>),
    /// A type.
    Type(Arc<str>),
    /// A function's overloads by index. `target` is false where the target was part of the name and is no argument.
    Function { name: Arc<str>, overloads: Vec<u16>, target: bool },
}

/// A tree with a type and a reference for each node.
pub(crate) struct CheckedTree {
    pub(crate) tree: Tree,
    pub(crate) types: Vec<Type>,
    pub(crate) references: Vec<Reference>,
}

impl CheckedTree {
    pub(crate) fn ty(&self, id: Id) -> &Type {
        &self.types[id as usize]
    }

    pub(crate) fn reference(&self, id: Id) -> &Reference {
        &self.references[id as usize]
    }

    pub(crate) fn overloads(&self, id: Id) -> Vec<&'static Overload> {
        let Reference::Function { name, overloads, .. } = self.reference(id) else { return Vec::new() };
        let all = FUNCTIONS.get(name);
        overloads.iter().filter_map(|number| all?.get(usize::from(*number))).collect()
    }
}

/// The names that an expression may use, besides functions.
#[derive(Clone, Debug, Default)]
pub(crate) struct Declarations {
    pub(crate) variables: BTreeMap<Arc<str>, Arc<DeclType>>,
    pub(crate) structs: BTreeMap<Arc<str>, Arc<DeclType>>,
    /// Whether expressions can construct `Object`, its fields' types and `JSONPatch`.
    pub(crate) mutation: bool,
    /// Whether `cel.bind` is a macro.
    pub(crate) binds: bool,
}

impl Declarations {
    fn is_struct(&self, name: &str) -> bool {
        let made = name == "Object" || name == "JSONPatch" || name.starts_with("Object.");
        self.structs.contains_key(name) || (self.mutation && made)
    }

    /// The type of an object's field, if the object has it.
    fn field(&self, name: &str, field: &str) -> Option<Type> {
        if self.mutation && name == "JSONPatch" {
            return match field {
                "op" | "path" | "from" => Some(Type::String),
                "value" => Some(Type::Dyn),
                _ => None,
            };
        }
        if self.mutation && (name == "Object" || name.starts_with("Object.")) {
            return Some(Type::Dyn);
        }
        let declared = self.structs.get(name)?;
        match &declared.shape {
            Shape::Object(fields) => {
                // A reserved word is allowed after a dot.
                let escaped = || fields.get(format!("__{field}__").as_str());
                fields.get(field).or_else(escaped).map(|field| field.ty.clone())
            }
            _ => None,
        }
    }
}

struct Checker<'a> {
    tree: &'a Tree,
    source: &'a Source,
    names: &'a Declarations,
    types: Vec<Option<Type>>,
    references: Vec<Reference>,
    unifier: Unifier,
    /// Loop variables, the innermost last.
    locals: Vec<(Arc<str>, Type)>,
    issues: Issues,
    /// Issues found within a node.
    node_issues: HashMap<Id, Vec<Issue>>,
}

pub(crate) fn check(tree: Tree, source: &Source, names: &Declarations) -> Result<CheckedTree, CompileError> {
    let count = tree.nodes.len();
    let mut checker = Checker {
        tree: &tree,
        source,
        names,
        types: vec![None; count],
        references: vec![Reference::None; count],
        unifier: Unifier::default(),
        locals: Vec::new(),
        issues: Issues::default(),
        node_issues: HashMap::new(),
    };
    checker.check(tree.root);
    let Checker { types, references, unifier, issues, .. } = checker;
    if !issues.is_empty() {
        return Err(issues.into_error(source));
    }
    let types = types.into_iter().map(|ty| ty.map_or(Type::Dyn, |ty| unifier.substitute(&ty, true))).collect();
    let checked = CheckedTree { tree, types, references };
    let mut issues = Issues::default();
    validators::validate(&checked, source, &mut issues);
    if issues.is_empty() { Ok(checked) } else { Err(issues.into_error(source)) }
}

impl Checker<'_> {
    fn check(&mut self, id: Id) -> Type {
        if let Some(known) = &self.types[id as usize] {
            // A node that a macro duplicated reports its issues at both places.
            for issue in self.node_issues.get(&id).into_iter().flatten() {
                self.issues.add(issue.clone());
            }
            return known.clone();
        }
        let before = self.issues.found().len();
        let tree = self.tree;
        let ty = match &tree.get(id).kind {
            Kind::Literal(literal) => match literal {
                Literal::Null => Type::Null,
                Literal::Bool(_) => Type::Bool,
                Literal::Int(_) => Type::Int,
                Literal::Uint(_) => Type::Uint,
                Literal::Double(_) => Type::Double,
                Literal::String(_) => Type::String,
                Literal::Bytes(_) => Type::Bytes,
            },
            Kind::Ident(name) => self.ident(id, name),
            Kind::Select { operand, field, test } => self.select(id, *operand, field, *test),
            Kind::Call { function, target, args } => self.call(id, function, *target, args),
            Kind::List { items, optional } => self.list(items, optional),
            Kind::Map(entries) => self.map(entries),
            Kind::Struct { name, fields } => self.object(id, name, fields),
            Kind::Fold(fold) => self.fold(fold),
        };
        self.types[id as usize] = Some(ty.clone());
        if let Some(issues) = self.issues.found().get(before..).filter(|issues| !issues.is_empty()) {
            self.node_issues.insert(id, issues.to_vec());
        }
        ty
    }

    fn error(&mut self, id: Id, message: String) {
        let at = self.tree.get(id).at;
        self.issues.report(self.source, at, message);
    }

    fn undeclared(&mut self, id: Id, name: &str) -> Type {
        self.error(id, format!("undeclared reference to '{name}' (in container '')"));
        Type::Error
    }

    fn mismatch(&mut self, id: Id, expected: &Type, found: &Type) {
        self.error(id, format!("expected type '{expected}' but found '{found}'"));
    }

    /// Resolves a name to its type and reference.
    fn lookup(&self, name: &str) -> Option<(Type, Reference)> {
        let plain = name.strip_prefix('.').unwrap_or(name);
        if plain.len() == name.len()
            && let Some((_, ty)) = self.locals.iter().rev().find(|(local, _)| **local == *name)
        {
            return Some((ty.clone(), Reference::None));
        }
        if let Some((key, declared)) = self.names.variables.get_key_value(plain) {
            return Some((declared.ty.clone(), Reference::Variable(key.clone())));
        }
        if let Some(ty) = named(plain).filter(|_| !matches!(plain, "duration" | "timestamp" | "dyn")) {
            return Some((Type::Type(Some(Arc::new(ty))), Reference::Type(plain.into())));
        }
        let ty = self.names.is_struct(plain).then(|| Type::object(plain))?;
        Some((Type::Type(Some(Arc::new(ty))), Reference::Type(plain.into())))
    }

    fn ident(&mut self, id: Id, name: &str) -> Type {
        match self.lookup(name) {
            Some((ty, reference)) => {
                self.references[id as usize] = reference;
                ty
            }
            None => self.undeclared(id, name),
        }
    }

    fn select(&mut self, id: Id, operand: Id, field: &str, test: bool) -> Type {
        if !test
            && let Some(name) = self.tree.qualified_name(id)
            && let Some((ty, reference)) = self.lookup(&name)
        {
            self.references[id as usize] = reference;
            return ty;
        }
        let ty = self.field(id, operand, field, false);
        if test { Type::Bool } else { self.unifier.substitute(&ty, false) }
    }

    /// The type of a selection. Selecting from an optional value gives an optional type.
    fn field(&mut self, id: Id, operand: Id, field: &str, optional: bool) -> Type {
        let operand = self.check(operand);
        let operand = self.unifier.substitute(&operand, false);
        let (target, was_optional) = match &operand {
            Type::Optional(inner) => ((**inner).clone(), true),
            _ => (operand, false),
        };
        let ty = match &target {
            Type::Map(entry) => entry.1.clone(),
            Type::Struct(name) => match self.names.field(name, field) {
                Some(ty) => ty,
                None => {
                    self.error(id, format!("undefined field '{field}'"));
                    Type::Error
                }
            },
            Type::Param(_) => {
                self.unifier.is_assignable(&Type::Dyn, &target);
                Type::Dyn
            }
            ty if ty.is_dyn_or_error() => Type::Dyn,
            ty => {
                self.error(id, format!("type '{ty}' does not support field selection"));
                Type::Dyn
            }
        };
        if was_optional || optional { Type::optional(ty) } else { ty }
    }

    /// The type of an element; an element marked optional must be of an optional type.
    fn element_type(&mut self, id: Id, ty: Type, optional: bool) -> Type {
        match ty {
            Type::Optional(inner) if optional => (*inner).clone(),
            ty => {
                if optional && ty != Type::Dyn {
                    self.mismatch(id, &Type::optional(ty.clone()), &ty);
                }
                ty
            }
        }
    }

    /// The common type of a literal's elements, or `dyn` where they differ.
    fn join(&mut self, before: Option<Type>, ty: Type) -> Option<Type> {
        Some(self.unifier.join(before, ty).unwrap_or(Type::Dyn))
    }

    fn list(&mut self, items: &[Id], optional: &[bool]) -> Type {
        let mut joined = None;
        for (item, optional) in items.iter().zip(optional) {
            let ty = self.check(*item);
            let ty = self.element_type(*item, ty, *optional);
            joined = self.join(joined, ty);
        }
        Type::list(joined.unwrap_or_else(|| self.unifier.fresh()))
    }

    fn map(&mut self, entries: &[Entry]) -> Type {
        let (mut keys, mut values) = (None, None);
        for entry in entries {
            let key = self.check(entry.key);
            keys = self.join(keys, key);
            let value = self.check(entry.value);
            let value = self.element_type(entry.value, value, entry.optional);
            values = self.join(values, value);
        }
        let key = keys.unwrap_or_else(|| self.unifier.fresh());
        Type::map(key, values.unwrap_or_else(|| self.unifier.fresh()))
    }

    fn object(&mut self, id: Id, name: &str, fields: &[FieldInit]) -> Type {
        let ty = match self.lookup(name) {
            None => return self.undeclared(id, name),
            Some((Type::Type(Some(ty)), reference)) => {
                self.references[id as usize] = reference;
                (*ty).clone()
            }
            Some((ty, _)) => {
                self.error(id, format!("'{ty}' is not a type"));
                Type::Error
            }
        };
        let struct_name = match &ty {
            Type::Struct(name) => Some(name.clone()),
            Type::Error => None,
            other => {
                let message = format!("'{other}' is not a message type");
                self.error(id, message);
                None
            }
        };
        for field in fields {
            let value = self.check(field.value);
            let Some(struct_name) = &struct_name else { continue };
            let Some(expected) = self.names.field(struct_name, &field.name) else {
                self.issues.report(self.source, field.at, format!("undefined field '{}'", field.name));
                continue;
            };
            let value = self.element_type(field.value, value, field.optional);
            if !self.unifier.is_assignable(&expected, &value) {
                let name = &field.name;
                let message = format!("expected type of field '{name}' is '{expected}' but provided type is '{value}'");
                self.issues.report(self.source, field.at, message);
            }
        }
        if struct_name.is_some() { ty } else { Type::Error }
    }

    fn fold(&mut self, fold: &Fold) -> Type {
        self.check(fold.range);
        let init = self.check(fold.init);
        let range = self.types[fold.range as usize].clone().unwrap_or(Type::Error);
        let range = self.unifier.substitute(&range, false);
        let depth = self.locals.len();
        self.locals.push((fold.accumulator.clone(), init.clone()));
        let (first, second) = self.loop_types(fold, &range);
        self.locals.push((fold.variable.clone(), first));
        if let Some(name) = &fold.second {
            self.locals.push((name.clone(), second));
        }
        for (part, expected) in [(fold.condition, Type::Bool), (fold.step, init)] {
            let found = self.check(part);
            if !self.unifier.is_assignable(&expected, &found) {
                self.mismatch(part, &expected, &found);
            }
        }
        self.locals.truncate(depth + 1);
        let result = self.check(fold.result);
        self.locals.truncate(depth);
        self.unifier.substitute(&result, false)
    }

    /// The types of a loop's variables.
    fn loop_types(&mut self, fold: &Fold, range: &Type) -> (Type, Type) {
        let two = fold.second.is_some();
        match range {
            Type::List(item) if two => (Type::Int, (**item).clone()),
            Type::List(item) => ((**item).clone(), Type::Error),
            Type::Map(entry) => (entry.0.clone(), entry.1.clone()),
            Type::Dyn | Type::Error | Type::Param(_) => {
                self.unifier.is_assignable(&Type::Dyn, range);
                (Type::Dyn, Type::Dyn)
            }
            other => {
                let what = "cannot be range of a comprehension (must be list, map, or dynamic)";
                self.error(fold.range, format!("expression of type '{other}' {what}"));
                (Type::Error, Type::Error)
            }
        }
    }
}
