//! Quantities and versions.

use std::cmp::Ordering;

use machinery_api::quantity::{Format, Quantity};
use semver::Version;

use super::{Call, Implementation};
use crate::error::EvalError;
use crate::value::{Opaque, Res, Value};

pub(super) fn find(function: &str, id: &str) -> Option<Implementation> {
    if id.starts_with("semver") || id.contains("semver") {
        return version_function(function);
    }
    Some(match function {
        "quantity" => |call| match Quantity::parse(call.text(0)?) {
            Ok(quantity) => Ok(Value::opaque(Opaque::Quantity(quantity))),
            Err(_) => Err(EvalError::new(
                "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
            )),
        },
        "isQuantity" => |call| Ok(Value::Bool(Quantity::parse(call.text(0)?).is_ok())),
        "sign" => |call| Ok(Value::Int(quantity(call, 0)?.sign().into())),
        "isGreaterThan" => |call| Ok(Value::Bool(compared(call)? == Ordering::Greater)),
        "isLessThan" => |call| Ok(Value::Bool(compared(call)? == Ordering::Less)),
        "compareTo" => |call| Ok(Value::Int(compared(call)? as i64)),
        "asApproximateFloat" => |call| Ok(Value::Double(approximate(quantity(call, 0)?))),
        "asInteger" => |call| match whole(quantity(call, 0)?) {
            Some(value) => Ok(Value::Int(value)),
            None => Err(EvalError::new("cannot convert value to integer")),
        },
        "isInteger" => |call| Ok(Value::Bool(whole(quantity(call, 0)?).is_some())),
        "add" => |call| {
            let sum = quantity(call, 0)?.add(&other(call)?);
            Ok(Value::opaque(Opaque::Quantity(sum)))
        },
        "sub" => |call| {
            let difference = quantity(call, 0)?.sub(&other(call)?);
            Ok(Value::opaque(Opaque::Quantity(difference)))
        },
        _ => return None,
    })
}

fn quantity<'c>(call: &'c Call<'_, '_, '_>, at: usize) -> Res<&'c Quantity> {
    match call.arg(at)? {
        Value::Opaque(opaque) => match &**opaque {
            Opaque::Quantity(quantity) => Ok(quantity),
            _ => Err(EvalError::no_such_overload()),
        },
        _ => Err(EvalError::no_such_overload()),
    }
}

fn other(call: &Call<'_, '_, '_>) -> Res<Quantity> {
    match call.arg(1)? {
        Value::Int(value) => Ok(Quantity::from_int(*value, Format::DecimalExponent)),
        _ => quantity(call, 1).cloned(),
    }
}

fn compared(call: &Call<'_, '_, '_>) -> Res<Ordering> {
    Ok(quantity(call, 0)?.cmp(quantity(call, 1)?))
}

fn whole(quantity: &Quantity) -> Option<i64> {
    let value = quantity.value();
    (quantity.is_whole() && quantity.cmp_int(value).is_eq()).then_some(value)
}

/// As near as a double comes: exact for whole numbers, by billionths otherwise.
fn approximate(quantity: &Quantity) -> f64 {
    if quantity.is_whole() {
        return quantity.value() as f64;
    }
    // The whole part and the rest, which text has with all its digits.
    let text = quantity.sub(&Quantity::zero()).to_string();
    let digits = text.find(|c: char| !(c.is_ascii_digit() || matches!(c, '.' | '-' | '+'))).unwrap_or(text.len());
    let number: f64 = text[..digits].parse().unwrap_or(f64::NAN);
    let factor = match &text[digits..] {
        "n" => 1e-9,
        "u" => 1e-6,
        "m" => 1e-3,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "P" => 1e15,
        "E" => 1e18,
        suffix => suffix.strip_prefix(['e', 'E']).and_then(|e| format!("1e{e}").parse().ok()).unwrap_or(1.0),
    };
    number * factor
}

fn version_function(function: &str) -> Option<Implementation> {
    Some(match function {
        "semver" => |call| match parsed(call) {
            Ok(version) => Ok(Value::opaque(Opaque::Semver(version?))),
            Err(error) => Err(error),
        },
        "isSemver" => |call| Ok(Value::Bool(parsed(call)?.is_ok())),
        "isGreaterThan" => |call| Ok(Value::Bool(version(call, 0)?.cmp_precedence(version(call, 1)?).is_gt())),
        "isLessThan" => |call| Ok(Value::Bool(version(call, 0)?.cmp_precedence(version(call, 1)?).is_lt())),
        "compareTo" => |call| Ok(Value::Int(version(call, 0)?.cmp_precedence(version(call, 1)?) as i64)),
        "major" => |call| Ok(Value::Int(version(call, 0)?.major as i64)),
        "minor" => |call| Ok(Value::Int(version(call, 0)?.minor as i64)),
        "patch" => |call| Ok(Value::Int(version(call, 0)?.patch as i64)),
        _ => return None,
    })
}

fn version<'c>(call: &'c Call<'_, '_, '_>, at: usize) -> Res<&'c Version> {
    match call.arg(at)? {
        Value::Opaque(opaque) => match &**opaque {
            Opaque::Semver(version) => Ok(version),
            _ => Err(EvalError::no_such_overload()),
        },
        _ => Err(EvalError::no_such_overload()),
    }
}

/// The version of a text, or why it is none; with `true` behind it a loose one is put in order first.
fn parsed(call: &Call<'_, '_, '_>) -> Res<Res<Version>> {
    let loose = match call.args.get(1) {
        Some(Value::Bool(loose)) => *loose,
        Some(_) => return Err(EvalError::no_such_overload()),
        None => false,
    };
    let text = call.text(0)?;
    let text = if loose { normalized(text) } else { text.to_owned() };
    if text.is_empty() {
        return Ok(Err(EvalError::new("Version string empty")));
    }
    Ok(Version::parse(&text).map_err(|_| match text.split('.').count() {
        1 | 2 => EvalError::new("No Major.Minor.Patch elements found"),
        _ => EvalError::new(format!("Invalid Semantic Version {text:?}")),
    }))
}

/// Without `v` and zeros in front, with a minor version and a patch.
fn normalized(text: &str) -> String {
    let text = text.trim().trim_start_matches('v');
    let end = text.find(['-', '+']).unwrap_or(text.len());
    let (numbers, rest) = text.split_at(end);
    let mut parts: Vec<String> = numbers
        .splitn(3, '.')
        .map(|part| match part.trim_start_matches('0') {
            "" if !part.is_empty() => "0".to_owned(),
            stripped if stripped.starts_with(|c: char| c.is_ascii_digit()) => stripped.to_owned(),
            _ => part.to_owned(),
        })
        .collect();
    if parts.len() < 3 && !rest.is_empty() {
        // Only a whole version may have more behind it.
        return text.to_owned();
    }
    while parts.len() < 3 {
        parts.push("0".to_owned());
    }
    parts.join(".") + rest
}
