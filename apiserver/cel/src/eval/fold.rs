//! Evaluation of loops (comprehensions), which append to their accumulator in place where they can.

use std::sync::Arc;

use super::actual;
use super::plan::{At, FoldOp};
use super::run::{Machine, Slot, is_fatal};
use crate::error::EvalError;
use crate::value::{Key, List, Map, Res, Value, concat};

impl<'d> Machine<'_, '_, 'd, '_, '_> {
    pub(super) fn fold(&mut self, fold: &FoldOp) -> Res<Value<'d>> {
        if fold.binds {
            self.slots[usize::from(fold.accumulator)] = Slot::Pending(fold.init);
            return self.eval(fold.result);
        }
        let range = self.eval(fold.range)?;
        let init = self.eval(fold.init);
        self.slots[usize::from(fold.accumulator)] = Slot::Value(init);
        match &range {
            Value::List(list) => {
                for at in 0..list.len() {
                    let item = list.get(at).unwrap_or(Ok(Value::Null));
                    let (first, second) = match fold.second {
                        Some(_) => (Ok(Value::Int(at as i64)), Some(item)),
                        None => (item, None),
                    };
                    if !self.count_iteration(fold, first, second)? {
                        break;
                    }
                }
            }
            Value::Map(map) => {
                for key in map.keys() {
                    let value = fold.second.map(|_| map.get(&key).map(|value| value.unwrap_or(Value::Null)));
                    if !self.count_iteration(fold, Ok(key), value)? {
                        break;
                    }
                }
            }
            other => {
                return Err(EvalError::new(format!("got '{}', expected iterable type", other.type_name())));
            }
        }
        self.eval(fold.result)
    }

    /// Runs one iteration; false ends the loop.
    fn count_iteration(&mut self, fold: &FoldOp, first: Res<Value<'d>>, second: Option<Res<Value<'d>>>) -> Res<bool> {
        self.meter.count_iteration()?;
        self.slots[usize::from(fold.variable)] = Slot::Value(first);
        if let (Some(slot), Some(second)) = (fold.second, second) {
            self.slots[usize::from(slot)] = Slot::Value(second);
        }
        match self.eval(fold.condition) {
            Ok(Value::Bool(false)) => return Ok(false),
            Err(error) if is_fatal(&error) => return Err(error),
            _ => {}
        }
        let step = self.eval(fold.step);
        match &step {
            Err(error) if is_fatal(error) => return Err(error.clone()),
            _ => {}
        }
        self.slots[usize::from(fold.accumulator)] = Slot::Value(step);
        Ok(true)
    }

    pub(super) fn append(&mut self, slot: u16, items: At) -> Res<Value<'d>> {
        self.meter.cost(1)?;
        let items = self.eval(items);
        if let Err(error) = &items
            && is_fatal(error)
        {
            return items;
        }
        self.meter.cost(1)?;
        let (Value::List(mut gathered), Value::List(more)) = (self.take(slot)?, items?) else {
            return Err(EvalError::no_such_overload());
        };
        if let List::Own { items: own, schema: None } = &mut gathered
            && let Some(own) = Arc::get_mut(own)
        {
            self.meter.allocate(more.len() * size_of::<Value<'_>>())?;
            for item in more.iter() {
                own.push(item?);
            }
            return Ok(Value::List(gathered));
        }
        concat(&gathered, &more, self.meter).map(Value::List)
    }

    pub(super) fn insert(&mut self, slot: u16, key: Option<At>, value: At) -> Res<Value<'d>> {
        self.meter.cost(1)?;
        let gathered = self.take(slot);
        let added = match key {
            Some(key) => {
                let gathered = gathered.as_ref().map_err(Clone::clone);
                gathered?;
                let key = self.eval(key)?;
                let value = self.eval(value);
                if value.as_ref().is_err_and(|error| !is_fatal(error)) {
                    self.meter.cost(actual::CALL)?;
                }
                vec![(key, value?)]
            }
            None => {
                let value = self.eval(value);
                if gathered.is_err() || value.as_ref().is_err_and(|error| !is_fatal(error)) {
                    self.meter.cost(actual::CALL)?;
                }
                let gathered = gathered.as_ref().map_err(Clone::clone);
                gathered?;
                let Value::Map(map) = value? else { return Err(EvalError::no_such_overload()) };
                let mut added = Vec::new();
                for key in map.keys() {
                    if let Some(value) = map.get(&key)? {
                        added.push((key, value));
                    }
                }
                added
            }
        };
        self.meter.cost(actual::CALL)?;
        let Value::Map(Map::Own(mut entries)) = gathered? else { return Err(EvalError::no_such_overload()) };
        let map = Arc::make_mut(&mut entries);
        for (key, value) in added {
            self.meter.allocate(2 * size_of::<Value<'_>>())?;
            let name = Key::from_value(&key);
            let name = name.ok_or_else(|| EvalError::new(format!("unsupported key type: {}", key.type_name())))?;
            if map.insert(name, value).is_some() {
                return Err(EvalError::new(format!("insert failed: key {key} already exists")));
            }
        }
        Ok(Value::Map(Map::Own(entries)))
    }
}
