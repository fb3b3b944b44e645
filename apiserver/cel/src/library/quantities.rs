//! Quantity and semver functions, with upstream's parsers and error messages.

use std::cmp::Ordering;

use machinery_api::quantity::{Format, Quantity};
use std::num::IntErrorKind;

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
            Err(error) => Err(EvalError::new(error.to_string())),
        },
        "isQuantity" => |call| Ok(Value::Bool(Quantity::parse(call.text(0)?).is_ok())),
        "sign" => |call| Ok(Value::Int(quantity(call, 0)?.sign().into())),
        "isGreaterThan" => |call| Ok(Value::Bool(compared(call)? == Ordering::Greater)),
        "isLessThan" => |call| Ok(Value::Bool(compared(call)? == Ordering::Less)),
        "compareTo" => |call| Ok(Value::Int(compared(call)? as i64)),
        "asApproximateFloat" => |call| Ok(Value::Double(to_double(quantity(call, 0)?))),
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

/// The nearest double: exact for whole numbers, otherwise to billionths.
fn to_double(quantity: &Quantity) -> f64 {
    if quantity.is_whole() {
        return quantity.value() as f64;
    }
    // The text has all digits of the whole part and the fraction.
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
        "semver" => |call| match parse_version_argument(call) {
            Ok(version) => Ok(Value::opaque(Opaque::Semver(version?))),
            Err(error) => Err(error),
        },
        "isSemver" => |call| Ok(Value::Bool(parse_version_argument(call)?.is_ok())),
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

/// The parsed version of an argument, or its error; a `true` after it normalizes the text first.
fn parse_version_argument(call: &Call<'_, '_, '_>) -> Res<Res<Version>> {
    let loose = match call.args.get(1) {
        Some(Value::Bool(loose)) => *loose,
        Some(_) => return Err(EvalError::no_such_overload()),
        None => false,
    };
    let text = call.text(0)?;
    let read = if loose { normalize_version(text).and_then(|text| parse_version(&text)) } else { parse_version(text) };
    Ok(read.map_err(EvalError::new))
}

/// Parses a version part by part, with upstream's errors.
fn parse_version(text: &str) -> Result<Version, String> {
    if text.is_empty() {
        return Err("Version string empty".into());
    }
    let mut parts = text.splitn(3, '.');
    let (Some(major), Some(minor), Some(rest)) = (parts.next(), parts.next(), parts.next()) else {
        return Err("No Major.Minor.Patch elements found".into());
    };
    let patch = &rest[..rest.find(['+', '-']).unwrap_or(rest.len())];
    for (name, upper, number) in [("major", "Major", major), ("minor", "Minor", minor), ("patch", "Patch", patch)] {
        if !number.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(format!("Invalid character(s) found in {name} number {number:?}"));
        }
        if number.len() > 1 && number.starts_with('0') {
            return Err(format!("{upper} number must not contain leading zeroes {number:?}"));
        }
        if let Err(error) = number.parse::<u64>() {
            let why = if *error.kind() == IntErrorKind::Empty { "invalid syntax" } else { "value out of range" };
            return Err(format!("strconv.ParseUint: parsing {number:?}: {why}"));
        }
    }
    Version::parse(text).map_err(|error| error.to_string())
}

/// Removes `v` and leading zeros, and adds missing minor and patch versions.
fn normalize_version(text: &str) -> Result<String, String> {
    let text = text.strip_prefix('v').unwrap_or(text);
    let mut parts: Vec<String> = text
        .splitn(3, '.')
        .map(|part| match part.trim_start_matches('0') {
            stripped if part.len() < 2 || stripped.len() == part.len() => part.to_owned(),
            stripped if stripped.starts_with(|c: char| c.is_ascii_digit()) => stripped.to_owned(),
            stripped => format!("0{stripped}"),
        })
        .collect();
    if parts.len() < 3 && parts.last().is_some_and(|last| last.contains(['+', '-'])) {
        return Err("short version cannot contain PreRelease/Build meta data".into());
    }
    while parts.len() < 3 {
        parts.push("0".to_owned());
    }
    Ok(parts.join("."))
}
