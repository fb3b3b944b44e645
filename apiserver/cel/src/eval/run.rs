//! The interpreter: runs compiled operations over an activation and a meter, and returns a value or an error. Each
//! operation is charged before its effect.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::plan::{At, CallOp, Code, Op};
use super::{Activation, actual};
use crate::budget::{Budget, Meter};
use crate::error::{ErrorKind, EvalError};
use crate::library::{Call, Implementation};
use crate::value::{Key, List, Map, Object, Res, Value, equal};

/// The value of a loop variable.
#[derive(Clone, Debug, Default)]
pub(super) enum Slot<'d> {
    #[default]
    Empty,
    Value(Res<Value<'d>>),
    /// An operation that is evaluated on first use.
    Pending(At),
}

pub(super) struct Machine<'c, 'a, 'd, 'm, 'i> {
    pub(super) code: &'c Code,
    pub(super) activation: &'a Activation<'d>,
    pub(super) slots: Vec<Slot<'d>>,
    pub(super) meter: &'m mut Meter<'i>,
}

pub(super) fn run<'d>(code: &Code, activation: &Activation<'d>, meter: &mut Meter<'_>) -> Res<Value<'d>> {
    let slots = vec![Slot::Empty; code.slots];
    Machine { code, activation, slots, meter }.eval(code.root)
}

/// Runs a conversion at compile time.
pub(super) fn convert(call: &CallOp, args: &[Value<'static>]) -> Res<Value<'static>> {
    let run = implementation(call, args)?;
    let budget = Budget::default();
    run(&mut Call { function: &call.name, args, meter: &mut budget.meter(), authorizer: None, pattern: None })
}

/// The value that an argument's cost is computed from; an error counts as null.
fn cost_value<'v, 'd>(value: &'v Res<Value<'d>>) -> &'v Value<'d> {
    value.as_ref().unwrap_or(&Value::Null)
}

/// Whether an error ends the evaluation regardless of the surrounding operations.
pub(super) fn is_fatal(error: &EvalError) -> bool {
    error.kind != ErrorKind::Value
}

impl<'c, 'd, 'i> Machine<'c, '_, 'd, '_, 'i> {
    pub(super) fn eval(&mut self, at: At) -> Res<Value<'d>> {
        self.meter.enter()?;
        let result = self.operation(at);
        self.meter.leave();
        result
    }

    fn operation(&mut self, at: At) -> Res<Value<'d>> {
        let code: &'c Code = self.code;
        match &code.ops[at as usize] {
            Op::Constant(value) => Ok(value.clone()),
            Op::Variable(number, billed) => {
                self.meter.cost(u64::from(*billed))?;
                self.variable(*number)
            }
            Op::Slot(slot, billed) => {
                self.meter.cost(u64::from(*billed))?;
                self.slot(*slot)
            }
            Op::Take(slot, billed) => {
                self.meter.cost(u64::from(*billed))?;
                self.take(*slot)
            }
            Op::Relative(at, billed) => {
                let value = self.eval(*at);
                self.meter.cost(u64::from(*billed))?;
                value
            }
            Op::Select { operand, field, optional } => self.select(*operand, field, *optional),
            Op::Test { operand, field } => self.test(*operand, field),
            Op::Index { operand, index, optional } => self.index(*operand, *index, *optional),
            Op::Logic { a, b, or } => self.logic(*a, *b, *or),
            Op::Conditional { condition, yes, no } => match self.eval(*condition)? {
                Value::Bool(true) => self.eval(*yes),
                Value::Bool(false) => self.eval(*no),
                _ => Err(EvalError::no_such_overload()),
            },
            Op::Equal { a, b, not } => self.equal(*a, *b, *not),
            Op::NotStrictlyFalse(a) => {
                let value = self.eval(*a);
                self.meter.cost(1)?;
                match value {
                    Err(error) if is_fatal(&error) => Err(error),
                    Ok(Value::Bool(value)) => Ok(Value::Bool(value)),
                    _ => Ok(Value::Bool(true)),
                }
            }
            Op::Or { a, b, value } => self.or(*a, *b, *value),
            Op::Call(call) => self.call(call),
            Op::Member(call) => {
                let args = [self.eval(call.args[0])?, self.eval(call.args[1])?];
                (implementation(call, &args)?)(&mut self.call_context(call, &args))
            }
            Op::List { items, optional } => self.list(items, optional),
            Op::Map(entries) => self.map(entries),
            Op::Object { name, fields } => self.object(name, fields),
            Op::Fold(fold) => self.fold(fold),
            Op::Append { slot, items } => self.append(*slot, *items),
            Op::Insert { slot, key, value } => self.insert(*slot, *key, *value),
        }
    }

    fn variable(&mut self, number: u16) -> Res<Value<'d>> {
        let name = &self.code.variables[usize::from(number)];
        match self.activation.values.iter().find(|(other, _)| **other == **name) {
            Some((_, value)) => value.clone(),
            None => Err(EvalError::new(format!("no such attribute(s): {name}"))),
        }
    }

    fn slot(&mut self, slot: u16) -> Res<Value<'d>> {
        match &self.slots[usize::from(slot)] {
            Slot::Value(value) => value.clone(),
            Slot::Pending(at) => {
                let at = *at;
                let value = self.eval(at);
                self.slots[usize::from(slot)] = Slot::Value(value.clone());
                value
            }
            Slot::Empty => Ok(Value::Null),
        }
    }

    pub(super) fn take(&mut self, slot: u16) -> Res<Value<'d>> {
        match std::mem::take(&mut self.slots[usize::from(slot)]) {
            Slot::Value(value) => value,
            _ => Ok(Value::Null),
        }
    }

    fn select(&mut self, operand: At, field: &Arc<str>, optional: bool) -> Res<Value<'d>> {
        let operand = self.eval(operand)?;
        if optional || matches!(operand, Value::Optional(_)) {
            let inner = match &operand {
                Value::Optional(inner) => inner.as_deref(),
                other => Some(other),
            };
            let found = inner.and_then(|inner| self.field(inner, field)).transpose()?;
            // An absent field is free.
            self.meter.cost(u64::from(found.is_some()))?;
            return Ok(Value::Optional(found.map(Arc::new)));
        }
        self.meter.cost(1)?;
        let found = self.field(&operand, field).transpose()?;
        match (found, &operand) {
            (Some(value), _) => Ok(value),
            (None, Value::List(_)) => Err(EvalError::new("unsupported index type 'string' in list")),
            (None, _) => Err(EvalError::no_such_key(field)),
        }
    }

    fn field(&mut self, of: &Value<'d>, field: &str) -> Option<Res<Value<'d>>> {
        match of {
            Value::Map(map) => map.field(field),
            Value::Object(object) => object.fields.get(field).cloned().map(Ok),
            Value::Variables => self.activation.lazy_value(field, self.meter),
            _ => None,
        }
    }

    /// Presence test. It costs as much as a selection; the access to the operand is free.
    fn test(&mut self, operand: At, field: &Arc<str>) -> Res<Value<'d>> {
        let operand = self.eval(operand)?;
        let inner = match &operand {
            Value::Optional(None) => return Ok(Value::Bool(false)),
            Value::Optional(Some(inner)) => inner,
            other => other,
        };
        let present = match inner {
            Value::Variables => self.activation.lazy.iter().any(|lazy| lazy.name == *field),
            Value::Map(map) => map.field(field).is_some(),
            Value::Object(object) => object.fields.contains_key(field),
            _ => false,
        };
        // An optional value's absent field is free.
        self.meter.cost(u64::from(present || !matches!(operand, Value::Optional(_))))?;
        Ok(Value::Bool(present))
    }

    fn index(&mut self, operand: At, index: At, optional: bool) -> Res<Value<'d>> {
        let operand = self.eval(operand)?;
        let (inner, optional) = match &operand {
            Value::Optional(None) => return Ok(Value::Optional(None)),
            Value::Optional(Some(inner)) => (&**inner, true),
            other => (other, optional),
        };
        let index = self.eval(index);
        self.meter.cost(u64::from(!optional))?;
        let index = index?;
        let found = match inner {
            Value::List(list) => {
                let at = List::index(&index)?;
                usize::try_from(at).ok().and_then(|at| list.get(at)).transpose()?
            }
            Value::Map(map) => map.get(&index)?,
            Value::Variables | Value::Object(_) => match &index {
                Value::String(name) => self.field(inner, name).transpose()?,
                _ => None,
            },
            _ => None,
        };
        match found {
            found if optional => {
                self.meter.cost(u64::from(found.is_some()))?;
                Ok(Value::Optional(found.map(Arc::new)))
            }
            Some(value) => Ok(value),
            None if matches!(inner, Value::List(_)) => Err(EvalError::new(format!("index out of bounds: {index}"))),
            None => Err(EvalError::no_such_key(&index)),
        }
    }

    /// `&&` and `||`: one deciding operand determines the result, even if the other one fails.
    fn logic(&mut self, a: At, b: At, or: bool) -> Res<Value<'d>> {
        let first = self.term(a)?;
        if first == Ok(or) {
            return Ok(Value::Bool(or));
        }
        let second = self.term(b)?;
        if second == Ok(or) {
            return Ok(Value::Bool(or));
        }
        first?;
        second.map(Value::Bool)
    }

    /// The outer error ends the evaluation; the inner error can be absorbed.
    fn term(&mut self, at: At) -> Res<Res<bool>> {
        match self.eval(at) {
            Ok(Value::Bool(value)) => Ok(Ok(value)),
            Ok(_) => Ok(Err(EvalError::no_such_overload())),
            Err(error) if is_fatal(&error) => Err(error),
            Err(error) => Ok(Err(error)),
        }
    }

    fn equal(&mut self, a: At, b: At, not: bool) -> Res<Value<'d>> {
        let (a, b) = (self.argument(a)?, self.argument(b)?);
        self.meter.cost(actual::equality(cost_value(&a), cost_value(&b), not))?;
        Ok(Value::Bool(equal(&a?, &b?, self.meter)? != not))
    }

    /// The outer error ends the evaluation; the inner error is the call's result.
    fn argument(&mut self, at: At) -> Res<Res<Value<'d>>> {
        match self.eval(at) {
            Err(error) if is_fatal(&error) => Err(error),
            other => Ok(other),
        }
    }

    fn or(&mut self, a: At, b: At, value: bool) -> Res<Value<'d>> {
        match self.eval(a)? {
            Value::Optional(None) => self.eval(b),
            Value::Optional(Some(inner)) if value => Ok((*inner).clone()),
            present @ Value::Optional(_) => Ok(present),
            _ => Err(EvalError::no_such_overload()),
        }
    }

    /// Calls with an error argument are charged if all arguments were evaluated, which is always so for two of them.
    fn call(&mut self, call: &'c CallOp) -> Res<Value<'d>> {
        match &*call.args {
            [] => self.invoke(call, &[]),
            [a] => match self.argument(*a)? {
                Ok(a) => self.invoke(call, &[a]),
                Err(error) => self.charge_failed_call(call, &[Value::Null], error),
            },
            [a, b] => match (self.argument(*a)?, self.argument(*b)?) {
                (Ok(a), Ok(b)) => self.invoke(call, &[a, b]),
                (Err(error), b) => self.charge_failed_call(call, &[Value::Null, b.unwrap_or(Value::Null)], error),
                (Ok(a), Err(error)) => self.charge_failed_call(call, &[a, Value::Null], error),
            },
            [more @ .., last] => {
                let mut args = more.iter().map(|at| self.eval(*at)).collect::<Res<Vec<_>>>()?;
                let last = self.argument(*last)?;
                args.push(last.clone().unwrap_or(Value::Null));
                match last {
                    Ok(_) => self.invoke(call, &args),
                    Err(error) => self.charge_failed_call(call, &args, error),
                }
            }
        }
    }

    fn call_context<'w>(&'w mut self, call: &'w CallOp, args: &'w [Value<'d>]) -> Call<'w, 'd, 'i> {
        let (authorizer, pattern) = (self.activation.authorizer, call.pattern.as_ref());
        Call { function: &call.name, args, meter: self.meter, authorizer, pattern }
    }

    fn charge_failed_call(&mut self, call: &CallOp, args: &[Value<'d>], error: EvalError) -> Res<Value<'d>> {
        self.meter.cost(call.cost.charge(args, None))?;
        Err(error)
    }

    fn invoke(&mut self, call: &CallOp, args: &[Value<'d>]) -> Res<Value<'d>> {
        let run = match implementation(call, args) {
            Ok(run) => run,
            Err(error) => return self.charge_failed_call(call, args, error),
        };
        let result = run(&mut self.call_context(call, args));
        self.meter.cost(call.cost.charge(args, result.as_ref().ok()))?;
        result
    }

    fn list(&mut self, items: &[At], optional: &[bool]) -> Res<Value<'d>> {
        let made = self.build_list(items, optional);
        self.meter.cost(actual::LIST)?;
        made
    }

    fn map(&mut self, entries: &[(At, At, bool)]) -> Res<Value<'d>> {
        let made = self.build_map(entries);
        self.meter.cost(actual::MAP)?;
        made
    }

    fn object(&mut self, name: &Arc<str>, fields: &[(Arc<str>, At, bool)]) -> Res<Value<'d>> {
        let made = self.build_object(name, fields);
        self.meter.cost(actual::OBJECT)?;
        made
    }

    fn build_list(&mut self, items: &[At], optional: &[bool]) -> Res<Value<'d>> {
        let mut values = Vec::with_capacity(items.len());
        for (item, optional) in items.iter().zip(optional) {
            match (self.eval(*item)?, optional) {
                (value, false) => values.push(value),
                (Value::Optional(Some(value)), true) => values.push((*value).clone()),
                (Value::Optional(None), true) => {}
                (other, true) => {
                    let what = "cannot initialize optional list element from non-optional value";
                    return Err(EvalError::new(format!("{what} {other}")));
                }
            }
        }
        self.meter.allocate(values.len() * size_of::<Value<'_>>())?;
        Ok(Value::list(values))
    }

    fn build_map(&mut self, entries: &[(At, At, bool)]) -> Res<Value<'d>> {
        let mut map = BTreeMap::new();
        for (key, value, optional) in entries {
            let key = self.eval(*key)?;
            let value = self.eval(*value)?;
            let Some(value) = present_value(value, *optional, &key)? else { continue };
            let name = match &key {
                Value::Double(_) => None,
                key => Key::from_value(key),
            };
            let name = name.ok_or_else(|| EvalError::new(format!("unsupported key type: {}", key.type_name())))?;
            map.insert(name, value);
        }
        self.meter.allocate(map.len() * 2 * size_of::<Value<'_>>())?;
        Ok(Value::Map(Map::owned(map)))
    }

    fn build_object(&mut self, name: &Arc<str>, fields: &[(Arc<str>, At, bool)]) -> Res<Value<'d>> {
        let mut made = BTreeMap::new();
        for (field, value, optional) in fields {
            let value = self.eval(*value)?;
            if let Some(value) = present_value(value, *optional, &Value::text(&**field))? {
                made.insert(field.clone(), value);
            }
        }
        self.meter.allocate(made.len() * 2 * size_of::<Value<'_>>())?;
        Ok(Value::Object(Arc::new(Object { name: name.clone(), fields: made })))
    }
}

/// The value of an entry; `None` if it is an empty optional.
fn present_value<'d>(value: Value<'d>, optional: bool, key: &Value<'_>) -> Res<Option<Value<'d>>> {
    match (value, optional) {
        (value, false) => Ok(Some(value)),
        (Value::Optional(value), true) => Ok(value.map(Arc::unwrap_or_clone)),
        (other, true) => {
            Err(EvalError::new(format!("cannot initialize optional entry '{key}' from non-optional value {other}")))
        }
    }
}

/// The only overload, or the one that accepts the values' types.
fn implementation(call: &CallOp, args: &[Value<'_>]) -> Res<Implementation> {
    let fits = match &*call.overloads {
        [one] => Some(one),
        many => many.iter().find(|overload| overload.accepts(args)).or(match many {
            // Operators have one implementation with a more specific error.
            [first, ..] if !first.member => Some(first),
            _ => None,
        }),
    };
    fits.and_then(|overload| overload.run).ok_or_else(|| {
        let types: Vec<&str> = args.iter().map(Value::type_name).collect();
        EvalError::new(format!("no such overload: {}({})", call.name, types.join(", ")))
    })
}
