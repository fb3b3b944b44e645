//! Expands macros (`has`, `all`, `map`, `cel.bind` …) at parse time to loops and bindings, so that later stages have no
//! macros.

use std::sync::Arc;

use super::parser::{Parsed, Parser};
use super::{ACCUMULATOR, Fold, Id, Kind, Literal};

/// The name of an unused loop variable.
const UNUSED: &str = "#unused";
const SORT_INPUT: &str = "@__sortBy_input__";

/// The kinds of quantifier macros.
#[derive(Clone, Copy)]
enum Quantifier {
    All,
    Exists,
    One,
}

/// Expands a macro call; `None` if the call is no macro.
pub(super) fn expand(
    parser: &mut Parser<'_>,
    name: &str,
    target: Option<Id>,
    args: &[Id],
    at: u32,
) -> Parsed<Option<Id>> {
    let Some(target) = target else {
        return if (name, args.len()) == ("has", 1) { has(parser, args[0], at).map(Some) } else { Ok(None) };
    };
    let mut expander = MacroExpander { parser, at };
    let expanded = match (name, args.len()) {
        ("all", 2 | 3) => expander.quantifier(Quantifier::All, target, args),
        ("exists", 2 | 3) => expander.quantifier(Quantifier::Exists, target, args),
        ("exists_one", 2 | 3) | ("existsOne", 3) => expander.quantifier(Quantifier::One, target, args),
        ("map", 2 | 3) => expander.map(target, args),
        ("filter", 2) => expander.filter(target, args),
        ("transformList" | "transformMap" | "transformMapEntry", 3 | 4) => expander.transform(name, target, args),
        ("optMap" | "optFlatMap", 2) => expander.optional(name, target, args),
        ("sortBy", 2) => expander.sort_by(target, args),
        ("bind", 3) if expander.parser.binds && expander.is_named(target, "cel") => expander.expand_bind(target, args),
        _ => return Ok(None),
    };
    expanded.map(Some)
}

fn has(parser: &mut Parser<'_>, arg: Id, at: u32) -> Parsed<Id> {
    let node = parser.tree.get(arg).clone();
    match node.kind {
        Kind::Select { operand, field, test: false } => parser.add(Kind::Select { operand, field, test: true }, at),
        _ => {
            parser.error(node.at, "invalid argument to has() macro");
            Ok(arg)
        }
    }
}

struct MacroExpander<'p, 'a> {
    parser: &'p mut Parser<'a>,
    at: u32,
}

/// The variable names of a loop.
struct LoopVariables {
    first: Arc<str>,
    second: Option<Arc<str>>,
}

impl MacroExpander<'_, '_> {
    fn add(&mut self, kind: Kind) -> Parsed<Id> {
        self.parser.add(kind, self.at)
    }

    fn call(&mut self, function: &str, args: Vec<Id>) -> Parsed<Id> {
        self.parser.call(function, args, self.at)
    }

    fn method(&mut self, target: Id, function: &str, args: Vec<Id>) -> Parsed<Id> {
        self.add(Kind::Call { function: function.into(), target: Some(target), args })
    }

    fn literal(&mut self, literal: Literal) -> Parsed<Id> {
        self.add(Kind::Literal(literal))
    }

    fn ident(&mut self, name: &str) -> Parsed<Id> {
        self.add(Kind::Ident(name.into()))
    }

    fn accumulator(&mut self) -> Parsed<Id> {
        self.ident(ACCUMULATOR)
    }

    fn list(&mut self, items: Vec<Id>) -> Parsed<Id> {
        let optional = vec![false; items.len()];
        self.add(Kind::List { items, optional })
    }

    /// The argument as a simple name.
    fn name(&mut self, arg: Id, complaint: &str) -> Option<Arc<str>> {
        let node = self.parser.tree.get(arg).clone();
        match node.kind {
            Kind::Ident(name) if &*name == ACCUMULATOR || &*name == "__result__" => {
                self.parser.error(node.at, "iteration variable overwrites accumulator variable");
                None
            }
            Kind::Ident(name) => Some(name),
            _ => {
                self.parser.error(node.at, complaint);
                None
            }
        }
    }

    fn names(&mut self, first: Id, second: Option<Id>, complaint: &str) -> Option<LoopVariables> {
        let name = self.name(first, complaint)?;
        let Some(second) = second else { return Some(LoopVariables { first: name, second: None }) };
        let other = self.name(second, complaint)?;
        if name == other {
            let at = self.parser.tree.get(second).at;
            self.parser.error(at, format!("duplicate variable name: {name}"));
            return None;
        }
        Some(LoopVariables { first: name, second: Some(other) })
    }

    fn fold(&mut self, range: Id, names: LoopVariables, init: Id, condition: Id, step: Id, result: Id) -> Parsed<Id> {
        let accumulator = ACCUMULATOR.into();
        let LoopVariables { first: variable, second } = names;
        self.add(Kind::Fold(Box::new(Fold { range, variable, second, accumulator, init, condition, step, result })))
    }

    fn quantifier(&mut self, which: Quantifier, target: Id, args: &[Id]) -> Parsed<Id> {
        let second = (args.len() == 3).then(|| args[1]);
        let Some(names) = self.names(args[0], second, "argument must be a simple name") else { return Ok(target) };
        let predicate = args[args.len() - 1];
        let accumulated = self.accumulator()?;
        let (init, condition, step) = match which {
            Quantifier::All => {
                let init = self.literal(Literal::Bool(true))?;
                let condition = self.call("@not_strictly_false", vec![accumulated])?;
                (init, condition, self.call("_&&_", vec![accumulated, predicate])?)
            }
            Quantifier::Exists => {
                let init = self.literal(Literal::Bool(false))?;
                let not = self.call("!_", vec![accumulated])?;
                let condition = self.call("@not_strictly_false", vec![not])?;
                (init, condition, self.call("_||_", vec![accumulated, predicate])?)
            }
            Quantifier::One => {
                let init = self.literal(Literal::Int(0))?;
                let condition = self.literal(Literal::Bool(true))?;
                let one = self.literal(Literal::Int(1))?;
                let more = self.call("_+_", vec![accumulated, one])?;
                (init, condition, self.call("_?_:_", vec![predicate, more, accumulated])?)
            }
        };
        let result = match which {
            Quantifier::One => {
                let one = self.literal(Literal::Int(1))?;
                self.call("_==_", vec![accumulated, one])?
            }
            _ => accumulated,
        };
        self.fold(target, names, init, condition, step, result)
    }

    /// A loop that collects: its step runs only for items that pass the filter.
    fn collect(&mut self, target: Id, names: LoopVariables, init: Id, filter: Option<Id>, step: Id) -> Parsed<Id> {
        let accumulated = self.accumulator()?;
        let condition = self.literal(Literal::Bool(true))?;
        let step = match filter {
            Some(filter) => self.call("_?_:_", vec![filter, step, accumulated])?,
            None => step,
        };
        self.fold(target, names, init, condition, step, accumulated)
    }

    /// `accumulator + [item]`
    fn append(&mut self, item: Id) -> Parsed<Id> {
        let accumulated = self.accumulator()?;
        let list = self.list(vec![item])?;
        self.call("_+_", vec![accumulated, list])
    }

    fn map(&mut self, target: Id, args: &[Id]) -> Parsed<Id> {
        let Some(names) = self.names(args[0], None, "argument is not an identifier") else { return Ok(target) };
        let init = self.list(Vec::new())?;
        let step = self.append(args[args.len() - 1])?;
        self.collect(target, names, init, (args.len() == 3).then(|| args[1]), step)
    }

    fn filter(&mut self, target: Id, args: &[Id]) -> Parsed<Id> {
        let Some(names) = self.names(args[0], None, "argument is not an identifier") else { return Ok(target) };
        let init = self.list(Vec::new())?;
        let step = self.append(args[0])?;
        self.collect(target, names, init, Some(args[1]), step)
    }

    fn transform(&mut self, name: &str, target: Id, args: &[Id]) -> Parsed<Id> {
        let names = self.names(args[0], Some(args[1]), "argument must be a simple name");
        let Some(names) = names else { return Ok(target) };
        let value = args[args.len() - 1];
        let (init, step) = match name {
            "transformList" => (self.list(Vec::new())?, self.append(value)?),
            _ => {
                let init = self.add(Kind::Map(Vec::new()))?;
                let mut inserted = vec![self.accumulator()?];
                if name == "transformMap" {
                    inserted.push(self.ident(&names.first.clone())?);
                }
                inserted.push(value);
                (init, self.call("cel.@mapInsert", inserted)?)
            }
        };
        self.collect(target, names, init, (args.len() == 4).then(|| args[2]), step)
    }

    fn is_named(&self, node: Id, name: &str) -> bool {
        matches!(&self.parser.tree.get(node).kind, Kind::Ident(found) if &**found == name)
    }

    /// `cel.bind(name, value, expression)`
    fn expand_bind(&mut self, target: Id, args: &[Id]) -> Parsed<Id> {
        let named = self.name(args[0], "cel.bind() variable names must be simple identifiers");
        named.map_or(Ok(target), |name| self.bind(name, args[1], args[2]))
    }

    /// Binds a name to a value in one expression.
    fn bind(&mut self, name: Arc<str>, value: Id, result: Id) -> Parsed<Id> {
        let range = self.list(Vec::new())?;
        let condition = self.literal(Literal::Bool(false))?;
        let step = self.ident(&name)?;
        let fold = Fold {
            range,
            variable: UNUSED.into(),
            second: None,
            accumulator: name,
            init: value,
            condition,
            step,
            result,
        };
        self.add(Kind::Fold(Box::new(fold)))
    }

    fn optional(&mut self, name: &str, target: Id, args: &[Id]) -> Parsed<Id> {
        let complaint = format!("{name}() variable name must be a simple identifier");
        let Some(variable) = self.name(args[0], &complaint) else { return Ok(target) };
        let present = self.method(target, "hasValue", Vec::new())?;
        let value = self.method(target, "value", Vec::new())?;
        let bound = self.bind(variable, value, args[1])?;
        let some = if name == "optMap" { self.call("optional.of", vec![bound])? } else { bound };
        let none = self.call("optional.none", Vec::new())?;
        self.call("_?_:_", vec![present, some, none])
    }

    fn sort_by(&mut self, target: Id, args: &[Id]) -> Parsed<Id> {
        if matches!(self.parser.tree.get(target).kind, Kind::Literal(_) | Kind::Map(_) | Kind::Struct { .. }) {
            let at = self.parser.tree.get(target).at;
            self.parser.error(
                at,
                "sortBy can only be applied to a list, identifier, comprehension, call or select expression",
            );
            return Ok(target);
        }
        let input = self.ident(SORT_INPUT)?;
        let keys = self.map(input, args)?;
        let sorted = self.method(input, "@sortByAssociatedKeys", vec![keys])?;
        self.bind(SORT_INPUT.into(), target, sorted)
    }
}
