//! Type conversions (`int`, `string`, `timestamp` …). A value outside of the range of the result is an error.

use super::{Call, Implementation};
use crate::error::EvalError;
use crate::value::{Opaque, Res, Timestamp, Value, format_double, format_duration, parse_duration, parse_timestamp};

pub(super) fn find(function: &str, id: &str) -> Option<Implementation> {
    Some(match function {
        "string" if id == "ip_to_string" || id == "cidr_to_string" => to_string,
        "bool" => to_bool,
        "bytes" => |call| match call.arg(0)? {
            Value::String(text) => Ok(Value::Bytes(text.as_bytes().into())),
            Value::Bytes(bytes) => Ok(Value::Bytes(bytes.clone())),
            other => Err(wrong(other, "bytes")),
        },
        "double" => to_double,
        "duration" => to_duration,
        "int" => to_int,
        "string" => to_string,
        "timestamp" => to_timestamp,
        "uint" => to_uint,
        _ => return None,
    })
}

fn wrong(value: &Value<'_>, to: &str) -> EvalError {
    EvalError::new(format!("type conversion error from '{}' to '{to}'", value.type_name()))
}

fn to_bool<'d>(call: &mut Call<'_, 'd, '_>) -> Res<Value<'d>> {
    let value = call.arg(0)?;
    match value {
        Value::Bool(value) => Ok(Value::Bool(*value)),
        Value::String(text) => match &**text {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(Value::Bool(true)),
            "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(Value::Bool(false)),
            _ => Err(wrong(value, "bool")),
        },
        other => Err(wrong(other, "bool")),
    }
}

fn to_double<'d>(call: &mut Call<'_, 'd, '_>) -> Res<Value<'d>> {
    let value = call.arg(0)?;
    let converted = match value {
        Value::Double(value) => Some(*value),
        Value::Int(value) => Some(*value as f64),
        Value::Uint(value) => Some(*value as f64),
        Value::String(text) => text.parse().ok().filter(|value: &f64| {
            // A literal that overflows is an error; the names of infinity are not.
            value.is_finite() || text.trim_start_matches(['+', '-']).starts_with(['i', 'I', 'n', 'N'])
        }),
        _ => None,
    };
    converted.map(Value::Double).ok_or_else(|| wrong(value, "double"))
}

fn to_int<'d>(call: &mut Call<'_, 'd, '_>) -> Res<Value<'d>> {
    const BOUND: f64 = 9_223_372_036_854_775_808.0;
    let value = call.arg(0)?;
    let overflow = || EvalError::new("integer overflow");
    match value {
        Value::Int(value) => Ok(Value::Int(*value)),
        Value::Uint(value) => i64::try_from(*value).map(Value::Int).map_err(|_| overflow()),
        Value::Double(value) if *value > -BOUND && *value < BOUND => Ok(Value::Int(*value as i64)),
        Value::Double(_) => Err(overflow()),
        Value::Duration(value) => Ok(Value::Int(*value)),
        Value::Timestamp(time) => Ok(Value::Int(time.second())),
        Value::String(text) => text.parse().map(Value::Int).map_err(|_| wrong(value, "int")),
        other => Err(wrong(other, "int")),
    }
}

fn to_uint<'d>(call: &mut Call<'_, 'd, '_>) -> Res<Value<'d>> {
    let value = call.arg(0)?;
    let overflow = || EvalError::new("unsigned integer overflow");
    match value {
        Value::Uint(value) => Ok(Value::Uint(*value)),
        Value::Int(value) => u64::try_from(*value).map(Value::Uint).map_err(|_| overflow()),
        Value::Double(value) if *value >= 0.0 && *value < 18_446_744_073_709_551_616.0 => {
            Ok(Value::Uint(*value as u64))
        }
        Value::Double(_) => Err(overflow()),
        Value::String(text) if !text.starts_with('+') => {
            text.parse().map(Value::Uint).map_err(|_| wrong(value, "uint"))
        }
        other => Err(wrong(other, "uint")),
    }
}

fn to_string<'d>(call: &mut Call<'_, 'd, '_>) -> Res<Value<'d>> {
    let value = call.arg(0)?;
    let text = match value {
        Value::String(_) => return Ok(value.clone()),
        Value::Bool(value) => value.to_string(),
        Value::Int(value) => value.to_string(),
        Value::Uint(value) => value.to_string(),
        Value::Double(value) => format_double(*value),
        Value::Bytes(bytes) => match std::str::from_utf8(bytes) {
            Ok(text) => text.to_owned(),
            Err(_) => return Err(EvalError::new("invalid UTF-8 in bytes, cannot convert to string")),
        },
        Value::Duration(value) => format_duration(*value),
        Value::Timestamp(time) => time.to_string(),
        Value::Opaque(opaque) => match &**opaque {
            Opaque::Ip(address) => address.to_string(),
            Opaque::Cidr(cidr) => format!("{}/{}", cidr.address, cidr.bits),
            _ => return Err(wrong(value, "string")),
        },
        other => return Err(wrong(other, "string")),
    };
    call.new_text(text)
}

fn to_duration<'d>(call: &mut Call<'_, 'd, '_>) -> Res<Value<'d>> {
    let value = call.arg(0)?;
    match value {
        Value::Duration(value) => Ok(Value::Duration(*value)),
        Value::String(text) => {
            parse_duration(text).map(Value::Duration).ok_or_else(|| wrong(value, "google.protobuf.Duration"))
        }
        Value::Int(value) => Ok(Value::Duration(*value)),
        other => Err(wrong(other, "google.protobuf.Duration")),
    }
}

fn to_timestamp<'d>(call: &mut Call<'_, 'd, '_>) -> Res<Value<'d>> {
    let value = call.arg(0)?;
    match value {
        Value::Timestamp(time) => Ok(Value::Timestamp(*time)),
        Value::String(text) => {
            parse_timestamp(text).map(Value::Timestamp).ok_or_else(|| wrong(value, "google.protobuf.Timestamp"))
        }
        Value::Int(seconds) => {
            Timestamp::new(*seconds, 0).map(Value::Timestamp).ok_or_else(|| EvalError::new("timestamp overflow"))
        }
        other => Err(wrong(other, "google.protobuf.Timestamp")),
    }
}
