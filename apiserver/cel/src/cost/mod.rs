//! Static cost estimate of an expression, from the declared sizes of its variables.

mod calls;
mod range;

use std::collections::HashMap;
use std::sync::Arc;

use crate::check::{CheckedTree, Declarations, Reference};
use crate::syntax::{ACCUMULATOR, Entry, Fold, Id, Kind, Literal};
use crate::types::{DeclType, Type};

pub use range::CostEstimate;
use range::Size;

const SELECT: CostEstimate = CostEstimate::fixed(1);
const LIST: CostEstimate = CostEstimate::fixed(10);
const MAP: CostEstimate = CostEstimate::fixed(30);
const OBJECT: CostEstimate = CostEstimate::fixed(40);

/// Steps from a variable to the value of a node.
type Path = Option<Arc<Vec<Arc<str>>>>;

/// The sizes of a list's or a map's entries.
#[derive(Clone, Copy, Debug)]
struct EntrySize {
    list: bool,
    key: Size,
    value: Size,
}

#[derive(Clone, Debug, Default)]
struct LocalVariable {
    path: Path,
    size: Option<Size>,
    entries: Option<EntrySize>,
}

struct Coster<'c> {
    checked: &'c CheckedTree,
    names: &'c Declarations,
    paths: HashMap<Id, Path>,
    locals: Vec<(Arc<str>, LocalVariable)>,
    sizes: HashMap<Id, Size>,
    entries: HashMap<Id, EntrySize>,
    costs: HashMap<Id, CostEstimate>,
}

pub(crate) fn estimate(checked: &CheckedTree, names: &Declarations) -> CostEstimate {
    let mut coster = Coster {
        checked,
        names,
        paths: HashMap::new(),
        locals: Vec::new(),
        sizes: HashMap::new(),
        entries: HashMap::new(),
        costs: HashMap::new(),
    };
    coster.cost(checked.tree.root)
}

fn step(path: &Path, name: &str) -> Path {
    // An undeclared path has no size.
    let mut steps = path.as_ref().map(|path| (**path).clone()).unwrap_or_default();
    if steps.len() > 64 {
        return None;
    }
    steps.push(name.into());
    Some(Arc::new(steps))
}

impl Coster<'_> {
    fn cost(&mut self, id: Id) -> CostEstimate {
        if let Some(known) = self.costs.get(&id) {
            return *known;
        }
        let checked = self.checked;
        let cost = match &checked.tree.get(id).kind {
            Kind::Literal(_) => CostEstimate::fixed(0),
            Kind::Ident(name) => self.ident(id, name),
            Kind::Select { operand, field, test } => self.select(id, *operand, field, *test),
            Kind::Call { function, target, args } => self.call(id, function, *target, args),
            Kind::List { items, .. } => self.list(id, items),
            Kind::Map(entries) => self.map(id, entries),
            Kind::Struct { fields, .. } => fields.iter().fold(OBJECT, |cost, field| cost.add(self.cost(field.value))),
            Kind::Fold(fold) => self.fold(id, fold),
        };
        self.costs.insert(id, cost);
        cost
    }

    fn local(&self, name: &str) -> Option<&LocalVariable> {
        self.locals.iter().rev().find(|(local, _)| **local == *name).map(|(_, local)| local)
    }

    fn ident(&mut self, id: Id, name: &Arc<str>) -> CostEstimate {
        let path = match self.local(name) {
            Some(local) => local.path.clone(),
            None => step(&None, name),
        };
        self.paths.insert(id, path);
        SELECT
    }

    fn path(&self, id: Id) -> Path {
        if let Kind::Ident(name) = &self.checked.tree.get(id).kind
            && let Some(local) = self.local(name)
        {
            return local.path.clone();
        }
        self.paths.get(&id).cloned().flatten()
    }

    fn select(&mut self, id: Id, operand: Id, field: &Arc<str>, test: bool) -> CostEstimate {
        if let Reference::Variable(name) | Reference::Type(name) = self.checked.reference(id) {
            return self.ident(id, &name.clone());
        }
        let mut cost = self.cost(operand);
        if test {
            return cost;
        }
        if matches!(self.checked.ty(operand), Type::Map(_) | Type::Struct(_) | Type::Param(_)) {
            cost = cost.add(SELECT);
        }
        let path = step(&self.path(operand), field);
        self.paths.insert(id, path);
        cost
    }

    fn list(&mut self, id: Id, items: &[Id]) -> CostEstimate {
        let mut cost = LIST;
        let mut size = Size { min: if items.is_empty() { 0 } else { u64::MAX }, max: 0 };
        for item in items {
            cost = cost.add(self.cost(*item));
            size = size.union(self.size_or_unknown(*item));
        }
        self.entries.insert(id, EntrySize { list: true, key: Size::fixed(1), value: size });
        cost
    }

    fn map(&mut self, id: Id, entries: &[Entry]) -> CostEstimate {
        let mut cost = MAP;
        let nothing = Size { min: if entries.is_empty() { 0 } else { u64::MAX }, max: 0 };
        let (mut key, mut value) = (nothing, nothing);
        for entry in entries {
            cost = cost.add(self.cost(entry.key)).add(self.cost(entry.value));
            key = key.union(self.size_or_unknown(entry.key));
            value = value.union(self.size_or_unknown(entry.value));
        }
        self.entries.insert(id, EntrySize { list: false, key, value });
        cost
    }

    fn fold(&mut self, id: Id, fold: &Fold) -> CostEstimate {
        let tree = &self.checked.tree;
        let empty = matches!(&tree.get(fold.range).kind, Kind::List { items, .. } if items.is_empty());
        let never = matches!(&tree.get(fold.condition).kind, Kind::Literal(Literal::Bool(false)));
        // The empty list is counted even if the loop has no iterations.
        let mut cost = self.cost(fold.range).add(self.cost(fold.init));
        let bound = LocalVariable {
            path: self.path(fold.init),
            size: self.size(fold.init),
            entries: self.entry_size(fold.init),
        };
        self.locals.push((fold.accumulator.clone(), bound));
        if empty && never && &*fold.accumulator != ACCUMULATOR {
            cost = cost.add(self.cost(fold.result));
            self.locals.pop();
            self.copy_sizes(id, fold.result);
            return cost;
        }
        let depth = self.locals.len();
        self.push_loop_variables(fold);
        let turn = self.cost(fold.condition).add(self.cost(fold.step));
        self.locals.truncate(depth);
        cost = cost.add(self.cost(fold.result));
        self.locals.pop();
        let range = self.size_or_unknown(fold.range);
        cost = cost.add(range.times(turn));
        match &self.checked.tree.get(fold.init).kind {
            Kind::Literal(_) => {
                if let Some(size) = self.size(fold.init) {
                    self.sizes.insert(id, size);
                }
            }
            Kind::List { .. } | Kind::Map(_) => {
                self.sizes.insert(id, range);
                if let Some(entries) = self.entry_size(fold.step) {
                    self.entries.insert(id, entries);
                }
            }
            _ => {}
        }
        cost
    }

    fn push_loop_variables(&mut self, fold: &Fold) {
        let entries = self.entry_size(fold.range);
        let path = self.path(fold.range);
        let list = entries.map_or_else(|| matches!(self.checked.ty(fold.range), Type::List(_)), |e| e.list);
        let key = entries.map(|entries| entries.key);
        let value = entries.map(|entries| entries.value);
        let local = |name: &str, size| LocalVariable { path: step(&path, name), size, entries: None };
        let keys = if list { "@indices" } else { "@keys" };
        let values = if list { "@items" } else { "@values" };
        match &fold.second {
            Some(second) => {
                self.locals.push((fold.variable.clone(), local(keys, key)));
                self.locals.push((second.clone(), local(values, value)));
            }
            None if list => self.locals.push((fold.variable.clone(), local(values, value))),
            None => self.locals.push((fold.variable.clone(), local(keys, key))),
        }
    }

    fn copy_sizes(&mut self, to: Id, from: Id) {
        if let Some(size) = self.size(from) {
            self.sizes.insert(to, size);
        }
        if let Some(entries) = self.entry_size(from) {
            self.entries.insert(to, entries);
        }
    }

    fn size_or_unknown(&mut self, id: Id) -> Size {
        self.size(id).unwrap_or(Size::UNKNOWN)
    }

    fn size(&mut self, id: Id) -> Option<Size> {
        if let Some(size) = self.sizes.get(&id) {
            return Some(*size);
        }
        if let Some(size) = literal_size(&self.checked.tree.get(id).kind) {
            return Some(Size::fixed(size));
        }
        if let Some(size) = self.declared_size(&self.path(id)) {
            self.sizes.insert(id, size);
            return Some(size);
        }
        if self.checked.ty(id).is_scalar() {
            return Some(Size::fixed(1));
        }
        let Kind::Ident(name) = &self.checked.tree.get(id).kind else { return None };
        self.local(name)?.size
    }

    /// The size that a variable's declaration gives for the value at a path.
    fn declared_size(&self, path: &Path) -> Option<Size> {
        let (first, rest) = path.as_ref()?.split_first()?;
        // Upstream resolves every name that is no local variable to the schema's root. So `int` in `type(self) ==
        // int` has the size of `self` instead of being unbounded.
        let variables = &self.names.variables;
        let mut at: &Arc<DeclType> = variables.get(first).or_else(|| variables.get("self"))?;
        for name in rest {
            if &**name == "@keys" {
                // Keys are strings without a bound in the schema; upstream counts them as empty.
                return matches!(at.shape, crate::types::Shape::Map(_)).then_some(Size::fixed(0));
            }
            at = at.step(name)?;
        }
        u64::try_from(at.max_elements).ok().map(|max| Size { min: 0, max })
    }

    fn entry_size(&self, id: Id) -> Option<EntrySize> {
        if let Some(entries) = self.entries.get(&id) {
            return Some(*entries);
        }
        let Kind::Ident(name) = &self.checked.tree.get(id).kind else { return None };
        self.local(name)?.entries
    }
}

fn literal_size(kind: &Kind) -> Option<u64> {
    Some(match kind {
        Kind::Literal(Literal::String(text)) => text.chars().count() as u64,
        Kind::Literal(Literal::Bytes(bytes)) => bytes.len() as u64,
        Kind::Literal(_) => 1,
        Kind::List { items, .. } => items.len() as u64,
        Kind::Map(entries) => entries.len() as u64,
        _ => return None,
    })
}
