//! Parser: from text to a tree, before names are resolved.

mod lexer;
mod literal;
mod macros;
mod parser;
mod recovery;
mod source;

use std::sync::Arc;

pub(crate) use parser::{RESERVED, parse};
pub use source::{CompileError, Issue};
pub(crate) use source::{Issues, Source};

/// The index of a node in its tree's vector.
pub(crate) type Id = u32;

/// The name of a loop's accumulator, which no expression can spell.
pub(crate) const ACCUMULATOR: &str = "@result";

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Literal {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    String(Arc<str>),
    Bytes(Arc<[u8]>),
}

#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) key: Id,
    pub(crate) value: Id,
    pub(crate) optional: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct FieldInit {
    pub(crate) name: Arc<str>,
    pub(crate) value: Id,
    pub(crate) optional: bool,
    pub(crate) at: u32,
}

/// A loop over a range, the expansion of all macros but `has`. With an empty range it binds a name to a value.
#[derive(Clone, Debug)]
pub(crate) struct Fold {
    pub(crate) range: Id,
    pub(crate) variable: Arc<str>,
    pub(crate) second: Option<Arc<str>>,
    pub(crate) accumulator: Arc<str>,
    pub(crate) init: Id,
    pub(crate) condition: Id,
    pub(crate) step: Id,
    pub(crate) result: Id,
}

#[derive(Clone, Debug)]
pub(crate) enum Kind {
    Literal(Literal),
    Ident(Arc<str>),
    Select { operand: Id, field: Arc<str>, test: bool },
    Call { function: Arc<str>, target: Option<Id>, args: Vec<Id> },
    List { items: Vec<Id>, optional: Vec<bool> },
    Map(Vec<Entry>),
    Struct { name: Arc<str>, fields: Vec<FieldInit> },
    Fold(Box<Fold>),
}

#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) kind: Kind,
    /// The character position that this node's errors refer to.
    pub(crate) at: u32,
    pub(crate) depth: u16,
}

/// Nodes in creation order: children come before their parents. A node may have two parents.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tree {
    pub(crate) nodes: Vec<Node>,
    pub(crate) root: Id,
}

impl Kind {
    /// Calls `each` for every child, in order of evaluation.
    pub(crate) fn children(&self, mut each: impl FnMut(Id)) {
        match self {
            Kind::Literal(_) | Kind::Ident(_) => {}
            Kind::Select { operand, .. } => each(*operand),
            Kind::Call { target, args, .. } => target.iter().chain(args).for_each(|id| each(*id)),
            Kind::List { items, .. } => items.iter().for_each(|id| each(*id)),
            Kind::Map(entries) => entries.iter().for_each(|entry| {
                each(entry.key);
                each(entry.value);
            }),
            Kind::Struct { fields, .. } => fields.iter().for_each(|field| each(field.value)),
            Kind::Fold(fold) => {
                [fold.range, fold.init, fold.condition, fold.step, fold.result].into_iter().for_each(each);
            }
        }
    }
}

impl Tree {
    pub(crate) fn get(&self, id: Id) -> &Node {
        &self.nodes[id as usize]
    }

    /// Adds a node and computes its depth from its children.
    pub(crate) fn add(&mut self, kind: Kind, at: u32) -> Id {
        let mut depth = 0;
        kind.children(|child| depth = depth.max(self.nodes[child as usize].depth));
        self.nodes.push(Node { kind, at, depth: depth.saturating_add(1) });
        (self.nodes.len() - 1) as Id
    }

    /// The dotted name that a chain of selections spells, if any.
    pub(crate) fn qualified_name(&self, id: Id) -> Option<String> {
        match &self.get(id).kind {
            Kind::Ident(name) => Some(name.to_string()),
            Kind::Select { operand, field, test: false } => {
                let mut name = self.qualified_name(*operand)?;
                name.push('.');
                name.push_str(field);
                Some(name)
            }
            _ => None,
        }
    }
}
