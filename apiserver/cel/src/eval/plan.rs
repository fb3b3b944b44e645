//! Compiles a checked tree to operations: resolves names, folds constants, compiles patterns.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::sync::Arc;

use regex::Regex;

use super::actual::CostRule;
use super::run::convert;
use crate::check::{CheckedTree, Reference};
use crate::error::EvalError;
use crate::library::{Overload, compile_pattern};
use crate::syntax::{ACCUMULATOR, Fold, Id, Kind, Literal};
use crate::value::{Key, Map, Res, Text, Value};

/// Conversion functions, which are folded where their argument is a constant.
const CONVERSIONS: &[&str] =
    &["bool", "bytes", "double", "duration", "dyn", "int", "string", "timestamp", "type", "uint"];

/// Whether an access costs anything by itself. Accesses in a condition's branches and in an index are free.
pub(super) type Billed = bool;

/// The index of an operation.
pub(super) type At = u32;

#[derive(Debug, Default)]
pub(crate) struct Code {
    pub(super) ops: Vec<Op>,
    pub(super) root: At,
    pub(super) variables: Vec<Arc<str>>,
    /// The number of slots for loop variables.
    pub(super) slots: usize,
}

#[derive(Debug)]
pub(super) enum Op {
    Constant(Value<'static>),
    Variable(u16, Billed),
    Slot(u16, Billed),
    /// Moves the value out of a slot: the loop writes it back right after.
    Take(u16, Billed),
    /// A value that is no variable, as the operand of a selection.
    Relative(At, Billed),
    Select {
        operand: At,
        field: Arc<str>,
        optional: bool,
    },
    Test {
        operand: At,
        field: Arc<str>,
    },
    Index {
        operand: At,
        index: At,
        optional: bool,
    },
    Logic {
        a: At,
        b: At,
        or: bool,
    },
    Conditional {
        condition: At,
        yes: At,
        no: At,
    },
    Equal {
        a: At,
        b: At,
        not: bool,
    },
    NotStrictlyFalse(At),
    /// The second operand if the first is empty.
    Or {
        a: At,
        b: At,
        value: bool,
    },
    Call(Box<CallOp>),
    /// Membership in a constant list, which is free.
    Member(Box<CallOp>),
    List {
        items: Box<[At]>,
        optional: Box<[bool]>,
    },
    Map(Box<[(At, At, bool)]>),
    Object {
        name: Arc<str>,
        fields: Box<[(Arc<str>, At, bool)]>,
    },
    Fold(Box<FoldOp>),
    /// Appends items to a slot's list in place.
    Append {
        slot: u16,
        items: At,
    },
    /// Inserts an entry, or a map's entries, into a slot's map in place.
    Insert {
        slot: u16,
        key: Option<At>,
        value: At,
    },
}

pub(super) struct CallOp {
    pub(super) name: Arc<str>,
    pub(super) overloads: Box<[&'static Overload]>,
    pub(super) args: Box<[At]>,
    pub(super) cost: CostRule,
    pub(super) pattern: Option<Regex>,
}

impl std::fmt::Debug for CallOp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}({:?})", self.name, self.args)
    }
}

#[derive(Debug)]
pub(super) struct FoldOp {
    pub(super) range: At,
    pub(super) variable: u16,
    pub(super) second: Option<u16>,
    pub(super) accumulator: u16,
    pub(super) init: At,
    pub(super) condition: At,
    pub(super) step: At,
    pub(super) result: At,
    /// Binds a name to a value and doesn't iterate.
    pub(super) binds: bool,
}

struct Planner<'c> {
    checked: &'c CheckedTree,
    ops: Vec<Op>,
    planned: HashMap<Id, At>,
    variables: Vec<Arc<str>>,
    locals: Vec<(Arc<str>, u16)>,
    slots: u16,
    /// The first error in a constant.
    first_error: Option<EvalError>,
}

/// Fails on an invalid constant, with which every evaluation would fail.
pub(crate) fn plan(checked: &CheckedTree) -> Res<Code> {
    let (variables, locals) = (Vec::new(), Vec::new());
    let mut planner =
        Planner { checked, ops: Vec::new(), planned: HashMap::new(), variables, locals, slots: 0, first_error: None };
    let root = planner.node(checked.tree.root);
    match planner.first_error {
        Some(error) => Err(error),
        None => Ok(Code { ops: planner.ops, root, variables: planner.variables, slots: usize::from(planner.slots) }),
    }
}

impl Planner<'_> {
    fn add(&mut self, op: Op) -> At {
        self.ops.push(op);
        (self.ops.len() - 1) as At
    }

    fn constant(&self, at: At) -> Option<&Value<'static>> {
        match &self.ops[at as usize] {
            Op::Constant(value) => Some(value),
            _ => None,
        }
    }

    fn nodes(&mut self, ids: &[Id]) -> Box<[At]> {
        ids.iter().map(|id| self.node(*id)).collect()
    }

    fn node(&mut self, id: Id) -> At {
        if let Some(at) = self.planned.get(&id) {
            return *at;
        }
        let checked = self.checked;
        let op = match &checked.tree.get(id).kind {
            Kind::Literal(literal) => Op::Constant(constant(literal)),
            Kind::Ident(name) => self.ident(id, name),
            Kind::Select { operand, field, test } => match checked.reference(id) {
                Reference::None => {
                    let (operand, field) = (self.operand(*operand), field.clone());
                    if *test {
                        Op::Test { operand: self.without_cost(operand), field }
                    } else {
                        Op::Select { operand, field, optional: false }
                    }
                }
                _ => self.ident(id, field),
            },
            Kind::Call { function, target, args } => self.call(id, function, *target, args),
            Kind::List { items, optional } => self.list(items, optional),
            Kind::Map(entries) => {
                let entries: Box<[_]> =
                    entries.iter().map(|e| (self.node(e.key), self.node(e.value), e.optional)).collect();
                self.map(entries)
            }
            Kind::Struct { name, fields } => {
                let fields = fields.iter().map(|f| (f.name.clone(), self.node(f.value), f.optional)).collect();
                Op::Object { name: name.trim_start_matches('.').into(), fields }
            }
            Kind::Fold(fold) => self.fold(fold),
        };
        let at = self.add(op);
        self.planned.insert(id, at);
        at
    }

    /// The operand of a selection.
    fn operand(&mut self, id: Id) -> At {
        let at = self.node(id);
        self.relative(at)
    }

    fn relative(&mut self, at: At) -> At {
        match &self.ops[at as usize] {
            Op::Variable(..)
            | Op::Slot(..)
            | Op::Relative(..)
            | Op::Select { .. }
            | Op::Test { .. }
            | Op::Index { .. }
            | Op::Conditional { .. } => at,
            _ => self.add(Op::Relative(at, true)),
        }
    }

    /// The same access without a cost of its own.
    fn without_cost(&mut self, at: At) -> At {
        let op = match &self.ops[at as usize] {
            Op::Variable(number, _) => Op::Variable(*number, false),
            Op::Slot(slot, _) => Op::Slot(*slot, false),
            Op::Take(slot, _) => Op::Take(*slot, false),
            Op::Relative(of, _) => Op::Relative(*of, false),
            Op::Select { operand, field, optional } => {
                let (operand, field, optional) = (*operand, field.clone(), *optional);
                Op::Select { operand: self.without_cost(operand), field, optional }
            }
            Op::Index { operand, index, optional } => {
                let (operand, index, optional) = (*operand, *index, *optional);
                Op::Index { operand: self.without_cost(operand), index, optional }
            }
            _ => return at,
        };
        self.add(op)
    }

    fn slot(&self, name: &str) -> Option<u16> {
        self.locals.iter().rev().find(|(local, _)| **local == *name).map(|(_, slot)| *slot)
    }

    fn ident(&mut self, id: Id, name: &str) -> Op {
        match self.checked.reference(id) {
            Reference::Variable(name) => {
                let known = self.variables.iter().position(|other| other == name);
                let number = known.unwrap_or_else(|| {
                    self.variables.push(name.clone());
                    self.variables.len() - 1
                });
                Op::Variable(number as u16, true)
            }
            Reference::Type(name) => Op::Constant(Value::Type(name.clone())),
            _ => self.slot(name).map_or_else(|| Op::Constant(Value::Null), |slot| Op::Slot(slot, true)),
        }
    }

    fn list(&mut self, items: &[Id], optional: &[bool]) -> Op {
        let items = self.nodes(items);
        let constants: Option<Vec<Value<'static>>> = items.iter().map(|at| self.constant(*at).cloned()).collect();
        match constants {
            Some(items) if !optional.contains(&true) => Op::Constant(Value::list(items)),
            _ => Op::List { items, optional: optional.into() },
        }
    }

    fn map(&mut self, entries: Box<[(At, At, bool)]>) -> Op {
        let mut folded = BTreeMap::new();
        for (key, value, optional) in &entries {
            let key = self.constant(*key).and_then(Key::from_value);
            let (Some(key), Some(value), false) = (key, self.constant(*value), *optional) else {
                return Op::Map(entries);
            };
            // The last value of a repeated key wins.
            folded.insert(key, value.clone());
        }
        Op::Constant(Value::Map(Map::owned(folded)))
    }

    fn call(&mut self, id: Id, function: &str, target: Option<Id>, args: &[Id]) -> Op {
        if function == "_?._" {
            let field = match &self.checked.tree.get(args[1]).kind {
                Kind::Literal(Literal::String(field)) => field.clone(),
                _ => "".into(),
            };
            return Op::Select { operand: self.operand(args[0]), field, optional: true };
        }
        let (name, is_target) = match self.checked.reference(id) {
            Reference::Function { name, target, .. } => (name.clone(), *target),
            _ => (function.into(), target.is_some()),
        };
        let all: Vec<Id> = target.filter(|_| is_target).into_iter().chain(args.iter().copied()).collect();
        let args = self.nodes(&all);
        match (&*name, &*args) {
            ("_&&_", [a, b]) => Op::Logic { a: *a, b: *b, or: false },
            ("_||_", [a, b]) => Op::Logic { a: *a, b: *b, or: true },
            ("_?_:_", [condition, yes, no]) => {
                Op::Conditional { condition: *condition, yes: self.without_cost(*yes), no: self.without_cost(*no) }
            }
            ("_==_", [a, b]) => Op::Equal { a: *a, b: *b, not: false },
            ("_!=_", [a, b]) => Op::Equal { a: *a, b: *b, not: true },
            ("_[_]" | "_[?_]", [operand, index]) => {
                let unsupported = match self.constant(*index) {
                    Some(Value::Bytes(_)) => Some("Bytes"),
                    Some(Value::Null) => Some("Null"),
                    Some(Value::Duration(_)) => Some("Duration"),
                    Some(Value::Timestamp(_)) => Some("Timestamp"),
                    _ => None,
                };
                if let Some(name) = unsupported {
                    self.first_error.get_or_insert(EvalError::new(format!("invalid qualifier type: types.{name}")));
                }
                let index = self.without_cost(*index);
                Op::Index { operand: self.relative(*operand), index, optional: &*name == "_[?_]" }
            }
            ("@not_strictly_false", [a]) => Op::NotStrictlyFalse(*a),
            ("or", [a, b]) => Op::Or { a: *a, b: *b, value: false },
            ("orValue", [a, b]) => Op::Or { a: *a, b: *b, value: true },
            _ => self.function(id, name, args),
        }
    }

    fn function(&mut self, id: Id, name: Arc<str>, args: Box<[At]>) -> Op {
        let overloads: Box<[&'static Overload]> = self.checked.overloads(id).into();
        let one = if overloads.len() == 1 { &*overloads[0].id } else { "" };
        let cost = CostRule::of(&name, one);
        let mut pattern_error = None;
        let takes_pattern = matches!(&*name, "matches" | "find" | "findAll");
        let pattern = args.get(1).filter(|_| takes_pattern).and_then(|at| self.constant(*at)?.as_str());
        let pattern = pattern.and_then(|pattern| match compile_pattern(pattern) {
            Ok(pattern) => Some(pattern),
            Err(error) => {
                pattern_error = Some(EvalError::new(error.to_string()));
                None
            }
        });
        self.first_error = self.first_error.take().or(pattern_error);
        let call = CallOp { name, overloads, args, cost, pattern };
        match *call.args {
            [at] if CONVERSIONS.contains(&&*call.name) => match self.convert_constant(&call, at) {
                Some(value) => Op::Constant(value),
                None => Op::Call(Box::new(call)),
            },
            [_, list] if one == "in_list" => match self.constant(list) {
                Some(Value::List(list)) if list.len() == 0 => Op::Constant(Value::Bool(false)),
                Some(Value::List(list)) if list.iter().all(|item| item.is_ok_and(|item| item.is_primitive())) => {
                    Op::Member(Box::new(call))
                }
                _ => Op::Call(Box::new(call)),
            },
            _ => Op::Call(Box::new(call)),
        }
    }

    /// The converted constant.
    fn convert_constant(&mut self, call: &CallOp, at: At) -> Option<Value<'static>> {
        let value = self.constant(at)?.clone();
        match convert(call, &[value]) {
            Ok(value) => Some(value),
            Err(error) => {
                self.first_error.get_or_insert(error);
                None
            }
        }
    }

    fn fold(&mut self, fold: &Fold) -> Op {
        let range_node = &self.checked.tree.get(fold.range).kind;
        let empty = matches!(range_node, Kind::List { items, .. } if items.is_empty());
        let binds = empty && &*fold.accumulator != ACCUMULATOR;
        let range = self.node(fold.range);
        let init = self.node(fold.init);
        let accumulator = self.slots;
        let variable = accumulator + 1;
        let second = fold.second.as_ref().map(|_| accumulator + 2);
        self.slots += 3;
        let depth = self.locals.len();
        self.locals.push((fold.accumulator.clone(), accumulator));
        self.locals.push((fold.variable.clone(), variable));
        if let (Some(name), Some(slot)) = (&fold.second, second) {
            self.locals.push((name.clone(), slot));
        }
        let condition = self.node(fold.condition);
        let gathers = matches!(&self.checked.tree.get(fold.init).kind, Kind::List { .. } | Kind::Map(_));
        let step = if gathers && !binds { self.collecting_step(fold.step, accumulator) } else { self.node(fold.step) };
        self.locals.truncate(depth + 1);
        let result = self.node(fold.result);
        self.locals.truncate(depth);
        Op::Fold(Box::new(FoldOp { range, variable, second, accumulator, init, condition, step, result, binds }))
    }

    /// The step of a collecting loop, changed to append in place instead of copying.
    fn collecting_step(&mut self, id: Id, slot: u16) -> At {
        let checked = self.checked;
        let accumulates = |id: Id| matches!(&checked.tree.get(id).kind, Kind::Ident(name) if &**name == ACCUMULATOR);
        let op = match &checked.tree.get(id).kind {
            Kind::Ident(_) if accumulates(id) => Op::Take(slot, true),
            Kind::Call { function, args, .. } if &**function == "_?_:_" => {
                let condition = self.node(args[0]);
                let yes = self.collecting_step(args[1], slot);
                let no = self.collecting_step(args[2], slot);
                Op::Conditional { condition, yes: self.without_cost(yes), no: self.without_cost(no) }
            }
            Kind::Call { function, args, .. } if &**function == "_+_" && accumulates(args[0]) => {
                Op::Append { slot, items: self.node(args[1]) }
            }
            Kind::Call { function, args, .. } if &**function == "cel.@mapInsert" && accumulates(args[0]) => {
                let key = (args.len() == 3).then(|| self.node(args[1]));
                Op::Insert { slot, key, value: self.node(args[args.len() - 1]) }
            }
            _ => return self.node(id),
        };
        self.add(op)
    }
}

fn constant(literal: &Literal) -> Value<'static> {
    match literal {
        Literal::Null => Value::Null,
        Literal::Bool(value) => Value::Bool(*value),
        Literal::Int(value) => Value::Int(*value),
        Literal::Uint(value) => Value::Uint(*value),
        Literal::Double(value) => Value::Double(*value),
        Literal::String(text) => Value::String(Text::Own(text.clone())),
        Literal::Bytes(bytes) => Value::Bytes(bytes.clone()),
    }
}

impl Code {
    pub(crate) fn uses(&self, variable: &str) -> bool {
        self.variables.iter().any(|name| **name == *variable)
    }
}
