//! Operators, and the functions of every type. Integer, duration and timestamp overflow is an error.

use std::cmp::Ordering;

use super::{Call, Implementation};
use crate::error::EvalError;
use crate::value::{Res, Text, Timestamp, Value, concat, equal, order};

pub(super) fn find(function: &str) -> Option<Implementation> {
    Some(match function {
        "!_" => |call| match call.arg(0)? {
            Value::Bool(value) => Ok(Value::Bool(!value)),
            _ => Err(EvalError::no_such_overload()),
        },
        "-_" => negate,
        "_+_" => |call| add(call.arg(0)?, call.arg(1)?, call.meter),
        "_-_" => subtract,
        "_*_" => multiply,
        "_/_" => divide,
        "_%_" => modulo,
        "_<_" => |call| Ok(Value::Bool(compare(call)? == Ordering::Less)),
        "_<=_" => |call| Ok(Value::Bool(compare(call)? != Ordering::Greater)),
        "_>_" => |call| Ok(Value::Bool(compare(call)? == Ordering::Greater)),
        "_>=_" => |call| Ok(Value::Bool(compare(call)? != Ordering::Less)),
        "@in" => contained,
        "size" => size,
        "type" => |call| Ok(Value::Type(call.arg(0)?.type_name().into())),
        "dyn" => |call| call.arg(0).cloned(),
        _ => return None,
    })
}

fn overflow(what: &'static str) -> EvalError {
    EvalError::new(what)
}

const INT: &str = "integer overflow";
const UINT: &str = "unsigned integer overflow";
const DURATION: &str = "duration overflow";
const TIMESTAMP: &str = "timestamp overflow";

/// The error for operands that an operator doesn't support.
fn unsupported_operands(function: &str, first: &Value<'_>, fits: impl Fn(&Value<'_>) -> bool) -> EvalError {
    // cel-go dispatches on the first operand, which lacks either the operator or an overload for the other operand.
    if fits(first) { EvalError::no_such_overload() } else { EvalError::new(format!("no such overload: {function}")) }
}

fn is_number(value: &Value<'_>) -> bool {
    matches!(value, Value::Int(_) | Value::Uint(_) | Value::Double(_))
}

/// A timestamp with an offset added.
fn add_nanoseconds<'d>(time: Timestamp, nanoseconds: i128) -> Res<Value<'d>> {
    let time = Timestamp::from_nanoseconds(time.nanoseconds() + nanoseconds);
    time.map(Value::Timestamp).ok_or_else(|| overflow(TIMESTAMP))
}

pub(crate) fn add<'d>(a: &Value<'d>, b: &Value<'d>, meter: &mut crate::budget::Meter<'_>) -> Res<Value<'d>> {
    match (a, b) {
        (Value::Int(a), Value::Int(b)) => a.checked_add(*b).map(Value::Int).ok_or_else(|| overflow(INT)),
        (Value::Uint(a), Value::Uint(b)) => a.checked_add(*b).map(Value::Uint).ok_or_else(|| overflow(UINT)),
        (Value::Double(a), Value::Double(b)) => Ok(Value::Double(a + b)),
        (Value::String(a), Value::String(b)) => {
            meter.allocate(a.len() + b.len())?;
            let mut text = String::with_capacity(a.len() + b.len());
            text.push_str(a);
            text.push_str(b);
            Ok(Value::String(Text::from(text)))
        }
        (Value::Bytes(a), Value::Bytes(b)) => {
            meter.allocate(a.len() + b.len())?;
            Ok(Value::Bytes([&**a, &**b].concat().into()))
        }
        (Value::List(a), Value::List(b)) => concat(a, b, meter).map(Value::List),
        (Value::Duration(a), Value::Duration(b)) => {
            a.checked_add(*b).map(Value::Duration).ok_or_else(|| overflow(DURATION))
        }
        (Value::Duration(by), Value::Timestamp(time)) | (Value::Timestamp(time), Value::Duration(by)) => {
            add_nanoseconds(*time, i128::from(*by))
        }
        (a, _) => Err(unsupported_operands("_+_", a, |value| {
            let other = matches!(value, Value::String(_) | Value::Bytes(_) | Value::List(_) | Value::Duration(_));
            is_number(value) || other || matches!(value, Value::Timestamp(_))
        })),
    }
}

fn subtract<'d>(call: &mut Call<'_, 'd, '_>) -> Res<Value<'d>> {
    match (call.arg(0)?, call.arg(1)?) {
        (Value::Int(a), Value::Int(b)) => a.checked_sub(*b).map(Value::Int).ok_or_else(|| overflow(INT)),
        (Value::Uint(a), Value::Uint(b)) => a.checked_sub(*b).map(Value::Uint).ok_or_else(|| overflow(UINT)),
        (Value::Double(a), Value::Double(b)) => Ok(Value::Double(a - b)),
        (Value::Duration(a), Value::Duration(b)) => {
            a.checked_sub(*b).map(Value::Duration).ok_or_else(|| overflow(DURATION))
        }
        (Value::Timestamp(time), Value::Duration(by)) => add_nanoseconds(*time, -i128::from(*by)),
        (Value::Timestamp(a), Value::Timestamp(b)) => {
            let between = a.nanoseconds() - b.nanoseconds();
            i64::try_from(between).map(Value::Duration).map_err(|_| overflow(INT))
        }
        (a, _) => Err(unsupported_operands("_-_", a, |value| {
            is_number(value) || matches!(value, Value::Duration(_) | Value::Timestamp(_))
        })),
    }
}

fn multiply<'d>(call: &mut Call<'_, 'd, '_>) -> Res<Value<'d>> {
    match (call.arg(0)?, call.arg(1)?) {
        (Value::Int(a), Value::Int(b)) => a.checked_mul(*b).map(Value::Int).ok_or_else(|| overflow(INT)),
        (Value::Uint(a), Value::Uint(b)) => a.checked_mul(*b).map(Value::Uint).ok_or_else(|| overflow(UINT)),
        (Value::Double(a), Value::Double(b)) => Ok(Value::Double(a * b)),
        (a, _) => Err(unsupported_operands("_*_", a, is_number)),
    }
}

fn divide<'d>(call: &mut Call<'_, 'd, '_>) -> Res<Value<'d>> {
    match (call.arg(0)?, call.arg(1)?) {
        (Value::Int(_), Value::Int(0)) | (Value::Uint(_), Value::Uint(0)) => Err(EvalError::new("division by zero")),
        (Value::Int(a), Value::Int(b)) => a.checked_div(*b).map(Value::Int).ok_or_else(|| overflow(INT)),
        (Value::Uint(a), Value::Uint(b)) => Ok(Value::Uint(a / b)),
        (Value::Double(a), Value::Double(b)) => Ok(Value::Double(a / b)),
        (a, _) => Err(unsupported_operands("_/_", a, is_number)),
    }
}

fn modulo<'d>(call: &mut Call<'_, 'd, '_>) -> Res<Value<'d>> {
    match (call.arg(0)?, call.arg(1)?) {
        (Value::Int(_), Value::Int(0)) | (Value::Uint(_), Value::Uint(0)) => Err(EvalError::new("modulus by zero")),
        (Value::Int(a), Value::Int(b)) => a.checked_rem(*b).map(Value::Int).ok_or_else(|| overflow(INT)),
        (Value::Uint(a), Value::Uint(b)) => Ok(Value::Uint(a % b)),
        (a, _) => Err(unsupported_operands("_%_", a, |value| matches!(value, Value::Int(_) | Value::Uint(_)))),
    }
}

fn negate<'d>(call: &mut Call<'_, 'd, '_>) -> Res<Value<'d>> {
    match call.arg(0)? {
        Value::Int(value) => value.checked_neg().map(Value::Int).ok_or_else(|| overflow(INT)),
        Value::Double(value) => Ok(Value::Double(-value)),
        Value::Bool(_) => Err(EvalError::no_such_overload()),
        _ => Err(EvalError::new("no such overload: -_")),
    }
}

fn compare(call: &Call<'_, '_, '_>) -> Res<Ordering> {
    let (a, b) = (call.arg(0)?, call.arg(1)?);
    let orderable = |value: &Value<'_>| {
        let other = matches!(value, Value::String(_) | Value::Bytes(_) | Value::Bool(_) | Value::Duration(_));
        is_number(value) || other || matches!(value, Value::Timestamp(_))
    };
    match order(a, b) {
        Err(_) if !orderable(a) => Err(unsupported_operands(call.function, a, orderable)),
        answer => answer,
    }
}

fn contained<'d>(call: &mut Call<'_, 'd, '_>) -> Res<Value<'d>> {
    let (item, within) = (call.arg(0)?, call.arg(1)?);
    match within {
        Value::List(list) => {
            for other in list.iter() {
                if equal(&other?, item, call.meter)? {
                    return Ok(Value::Bool(true));
                }
            }
            Ok(Value::Bool(false))
        }
        Value::Map(map) => Ok(Value::Bool(map.get(item)?.is_some())),
        _ => Err(EvalError::no_such_overload()),
    }
}

fn size<'d>(call: &mut Call<'_, 'd, '_>) -> Res<Value<'d>> {
    let value = call.arg(0)?;
    match value {
        Value::String(_) | Value::Bytes(_) | Value::List(_) | Value::Map(_) => Ok(Value::Int(value.size() as i64)),
        _ => Err(EvalError::new("no such overload: size")),
    }
}

/// Whether a value is its type's zero value.
pub(crate) fn is_zero(value: &Value<'_>) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::Int(value) => *value == 0,
        Value::Uint(value) => *value == 0,
        Value::Double(value) => *value == 0.0,
        Value::String(text) => text.is_empty(),
        Value::Bytes(bytes) => bytes.is_empty(),
        Value::Duration(value) => *value == 0,
        Value::Timestamp(time) => time.is_zero_time(),
        Value::Type(_) | Value::Opaque(_) | Value::Preserved(_) | Value::Variables => false,
        Value::List(list) => list.len() == 0,
        Value::Map(map) => map.len() == 0,
        Value::Object(object) => object.fields.values().all(is_zero),
        Value::Optional(value) => value.is_none(),
    }
}
