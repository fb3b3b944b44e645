//! `'…'.format([…])`, and quotation.

use super::Call;
use crate::error::EvalError;
use crate::limits::VALUE_DEPTH;
use crate::value::{Res, Value};

/// The text as Go would write it in source.
pub(super) fn quote(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        match c {
            '\u{7}' => quoted.push_str("\\a"),
            '\u{8}' => quoted.push_str("\\b"),
            '\u{c}' => quoted.push_str("\\f"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            '\u{b}' => quoted.push_str("\\v"),
            '\\' => quoted.push_str("\\\\"),
            '"' => quoted.push_str("\\\""),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

pub(super) fn format<'d>(call: &mut Call<'_, 'd, '_>) -> Res<Value<'d>> {
    let Value::List(list) = call.arg(1)? else { return Err(EvalError::no_such_overload()) };
    let list = list.clone();
    let template = call.text(0)?.to_owned();
    let mut written = String::new();
    let mut args = list.iter();
    let mut used = 0usize;
    let mut chars = template.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '%' {
            written.push(c);
            continue;
        }
        if chars.next_if_eq(&'%').is_some() {
            written.push('%');
            continue;
        }
        let arg = args.next().ok_or_else(|| EvalError::new(format!("index {used} out of range")))??;
        used += 1;
        let mut precision = None;
        if chars.next_if_eq(&'.').is_some() {
            let mut digits = String::new();
            while let Some(digit) = chars.next_if(char::is_ascii_digit) {
                digits.push(digit);
            }
            let wanted: usize =
                digits.parse().map_err(|_| EvalError::new("error while checking precision: invalid precision"))?;
            precision = Some(wanted.min(1000));
        }
        let verb = chars.next().ok_or_else(|| EvalError::new("unexpected end of string"))?;
        let clause = clause(verb, precision, &arg, call)?;
        call.meter.allocate(clause.len())?;
        written.push_str(&clause);
    }
    if used < list.len() {
        return Err(EvalError::new(format!(
            "too many arguments supplied to string.format (expected {used}, got {})",
            list.len()
        )));
    }
    call.made(written)
}

fn unfit(what: &str, value: &Value<'_>) -> EvalError {
    EvalError::new(format!("error during formatting: {what}, was given {}", value.type_name()))
}

fn clause(verb: char, precision: Option<usize>, value: &Value<'_>, call: &mut Call<'_, '_, '_>) -> Res<String> {
    match verb {
        's' => {
            let mut text = String::new();
            plain(value, &mut text, call, 0)?;
            Ok(text)
        }
        'd' => match value {
            Value::Int(value) => Ok(value.to_string()),
            Value::Uint(value) => Ok(value.to_string()),
            Value::Double(value) if !value.is_finite() => Ok(special(*value)),
            value => Err(unfit("decimal clause can only be used on integers", value)),
        },
        'f' => match value {
            Value::Double(value) if !value.is_finite() => Ok(special(*value)),
            Value::Double(value) => Ok(format!("{value:.*}", precision.unwrap_or(6))),
            Value::Int(value) => Ok(format!("{:.*}", precision.unwrap_or(6), *value as f64)),
            Value::Uint(value) => Ok(format!("{:.*}", precision.unwrap_or(6), *value as f64)),
            value => Err(unfit("fixed-point clause can only be used on doubles", value)),
        },
        'e' => match value {
            Value::Double(value) if !value.is_finite() => Ok(special(*value)),
            Value::Double(value) => {
                let text = format!("{value:.*e}", precision.unwrap_or(6));
                let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
                let exponent: i32 = exponent.parse().unwrap_or(0);
                let sign = if exponent < 0 { '-' } else { '+' };
                Ok(format!("{mantissa}e{sign}{:02}", exponent.abs()))
            }
            value => Err(unfit("scientific clause can only be used on doubles", value)),
        },
        'b' => match value {
            Value::Bool(value) => Ok(i32::from(*value).to_string()),
            Value::Int(value) => Ok(signed(*value, |value| format!("{value:b}"))),
            Value::Uint(value) => Ok(format!("{value:b}")),
            value => Err(unfit("only integers and bools can be formatted as binary", value)),
        },
        'o' => match value {
            Value::Int(value) => Ok(signed(*value, |value| format!("{value:o}"))),
            Value::Uint(value) => Ok(format!("{value:o}")),
            value => Err(unfit("octal clause can only be used on integers", value)),
        },
        'x' | 'X' => {
            let text = match value {
                Value::Int(value) => signed(*value, |value| format!("{value:x}")),
                Value::Uint(value) => format!("{value:x}"),
                Value::String(text) => text.bytes().map(|byte| format!("{byte:02x}")).collect(),
                Value::Bytes(bytes) => bytes.iter().map(|byte| format!("{byte:02x}")).collect(),
                value => {
                    return Err(unfit("only integers, byte buffers, and strings can be formatted as hex", value));
                }
            };
            Ok(if verb == 'X' { text.to_uppercase() } else { text })
        }
        verb => {
            Err(EvalError::new(format!("could not parse formatting clause: unrecognized formatting clause \"{verb}\"")))
        }
    }
}

fn signed(value: i64, digits: impl Fn(u64) -> String) -> String {
    format!("{}{}", if value < 0 { "-" } else { "" }, digits(value.unsigned_abs()))
}

fn special(value: f64) -> String {
    if value.is_nan() {
        "NaN"
    } else if value > 0.0 {
        "Infinity"
    } else {
        "-Infinity"
    }
    .to_owned()
}

fn plain(value: &Value<'_>, text: &mut String, call: &mut Call<'_, '_, '_>, depth: usize) -> Res<()> {
    call.meter.step(1)?;
    if depth > VALUE_DEPTH {
        return Err(EvalError::cost_limit());
    }
    let before = text.len();
    match value {
        Value::List(list) => {
            text.push('[');
            for (at, item) in list.iter().enumerate() {
                if at > 0 {
                    text.push_str(", ");
                }
                plain(&item?, text, call, depth + 1)?;
            }
            text.push(']');
        }
        Value::Map(map) => {
            text.push('{');
            for (at, key) in map.keys().into_iter().enumerate() {
                if at > 0 {
                    text.push_str(", ");
                }
                plain(&key, text, call, depth + 1)?;
                text.push_str(": ");
                if let Some(value) = map.get(&key)? {
                    plain(&value, text, call, depth + 1)?;
                }
            }
            text.push('}');
        }
        Value::Double(value) if !value.is_finite() => text.push_str(&special(*value)),
        Value::Bytes(bytes) => text.push_str(&String::from_utf8_lossy(bytes)),
        Value::Timestamp(time) => text.push_str(&time.to_string()),
        Value::Null
        | Value::Bool(_)
        | Value::Int(_)
        | Value::Uint(_)
        | Value::Double(_)
        | Value::String(_)
        | Value::Duration(_)
        | Value::Type(_) => text.push_str(&value.to_string()),
        other => {
            let what = "string clause can only be used on strings, bools, bytes, ints, doubles, maps, lists, types, \
                        durations, and timestamps";
            return Err(unfit(what, other));
        }
    }
    if depth == 0 { Ok(()) } else { call.meter.allocate(text.len() - before) }
}
