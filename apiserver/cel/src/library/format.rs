//! `'…'.format([…])`: replaces clauses by arguments with cel-go's text forms, and quotes texts as Go does.

use super::Call;
use super::template::{Clause, Piece, format_type_error, pieces};
use crate::error::EvalError;
use crate::limits::VALUE_DEPTH;
use crate::value::{Map, Res, Value};

/// The default number of decimals.
const DIGITS: usize = 6;
const ABOVE: [char; 10] = ['⁰', '¹', '²', '³', '⁴', '⁵', '⁶', '⁷', '⁸', '⁹'];

/// The text as a quoted Go string.
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
    let mut used = 0usize;
    for piece in pieces(&template) {
        let clause = match piece {
            Piece::Text(text) => {
                written.push_str(text);
                continue;
            }
            Piece::Argument(clause) => clause,
        };
        let arg = list.get(used).ok_or_else(|| EvalError::new(format!("index {used} out of range")))??;
        used += 1;
        let text = format_argument(clause.map_err(EvalError::new)?, &arg, call)?;
        call.meter.allocate(text.len())?;
        written.push_str(&text);
    }
    call.new_text(written)
}

fn format_argument(clause: Clause, value: &Value<'_>, call: &mut Call<'_, '_, '_>) -> Res<String> {
    let digits = clause.precision.unwrap_or(DIGITS);
    Ok(match (clause.verb, value) {
        ('s', value) => {
            let mut text = String::new();
            write_plain(value, &mut text, call, 0)?;
            text
        }
        ('d', Value::Int(value)) => value.to_string(),
        ('d', Value::Uint(value)) => value.to_string(),
        ('f', value) => format_fixed(number(clause, value)?, digits),
        ('e', value) => format_scientific(number(clause, value)?, digits),
        ('b', Value::Bool(value)) => i32::from(*value).to_string(),
        ('b', Value::Int(value)) => signed(*value, |value| format!("{value:b}")),
        ('b', Value::Uint(value)) => format!("{value:b}"),
        ('o', Value::Int(value)) => signed(*value, |value| format!("{value:o}")),
        ('o', Value::Uint(value)) => format!("{value:o}"),
        ('x' | 'X', value) => {
            let text = match value {
                Value::Int(value) => signed(*value, |value| format!("{value:x}")),
                Value::Uint(value) => format!("{value:x}"),
                Value::String(text) => text.bytes().map(|byte| format!("{byte:02x}")).collect(),
                Value::Bytes(bytes) => bytes.iter().map(|byte| format!("{byte:02x}")).collect(),
                value => return Err(type_error(clause.verb, value)),
            };
            if clause.verb == 'X' { text.to_uppercase() } else { text }
        }
        (verb, value) => return Err(type_error(verb, value)),
    })
}

fn type_error(verb: char, value: &Value<'_>) -> EvalError {
    EvalError::new(format_type_error(verb, value.type_name()))
}

/// A double, or the name of a special value.
fn number(clause: Clause, value: &Value<'_>) -> Res<f64> {
    match value {
        Value::Double(value) => Ok(*value),
        Value::String(text) => match &**text {
            "NaN" => Ok(f64::NAN),
            "Infinity" => Ok(f64::INFINITY),
            "-Infinity" => Ok(f64::NEG_INFINITY),
            _ => Err(type_error(clause.verb, value)),
        },
        value => Err(type_error(clause.verb, value)),
    }
}

/// American format with thousands separators.
fn format_fixed(value: f64, digits: usize) -> String {
    if !value.is_finite() {
        return format_special(value);
    }
    let text = format!("{:.digits$}", value.abs());
    let (whole, fraction) = text.split_at(text.find('.').unwrap_or(text.len()));
    let mut written = String::from(if value < 0.0 { "-" } else { "" });
    for (at, digit) in whole.chars().enumerate() {
        if at > 0 && (whole.len() - at).is_multiple_of(3) {
            written.push(',');
        }
        written.push(digit);
    }
    written + fraction
}

/// Scientific notation with superscript exponent. Special values are padded to the requested width.
fn format_scientific(value: f64, digits: usize) -> String {
    if !value.is_finite() {
        return format!("{:>digits$}", format_special(value));
    }
    let text = format!("{:.*e}", DIGITS, value.abs());
    let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let (sign, exponent) = exponent.strip_prefix('-').map_or(("", exponent), |exponent| ("⁻", exponent));
    let above: String = format!("{exponent:0>2}").bytes().map(|digit| ABOVE[usize::from(digit - b'0')]).collect();
    let minus = if value < 0.0 { "-" } else { "" };
    format!("{minus}{mantissa}×10{sign}{above}")
}

fn signed(value: i64, digits: impl Fn(u64) -> String) -> String {
    format!("{}{}", if value < 0 { "-" } else { "" }, digits(value.unsigned_abs()))
}

fn format_special(value: f64) -> String {
    if value.is_nan() {
        "NaN"
    } else if value > 0.0 {
        "∞"
    } else {
        "-∞"
    }
    .to_owned()
}

/// A value as text; within a list or a map in the form of a literal.
fn write_plain(value: &Value<'_>, text: &mut String, call: &mut Call<'_, '_, '_>, depth: usize) -> Res<()> {
    call.meter.step(1)?;
    if depth > VALUE_DEPTH {
        return Err(EvalError::cost_limit());
    }
    let before = text.len();
    let within = depth > 0;
    match value {
        Value::List(list) => {
            text.push('[');
            for (at, item) in list.iter().enumerate() {
                if at > 0 {
                    text.push_str(", ");
                }
                write_plain(&item?, text, call, depth + 1)?;
            }
            text.push(']');
        }
        Value::Map(map) => write_entries(map, text, call, depth)?,
        Value::String(value) if within => text.push_str(&quote(value)),
        Value::Bytes(bytes) => {
            let bytes = str::from_utf8(bytes).map_err(|_| invalid_bytes())?;
            text.push_str(&if within { format!("b{}", quote(bytes)) } else { bytes.to_owned() });
        }
        Value::Double(value) if within && !value.is_finite() => {
            let name = if value.is_nan() {
                "NaN"
            } else if *value > 0.0 {
                "+Inf"
            } else {
                "-Inf"
            };
            text.push_str(&format!("\"{name}\""));
        }
        Value::Double(value) if within => text.push_str(&format!("{value:.DIGITS$}")),
        Value::Timestamp(_) | Value::Duration(_) if within => {
            let name = if matches!(value, Value::Timestamp(_)) { "timestamp" } else { "duration" };
            text.push_str(&format!("{name}(\"{value}\")"));
        }
        Value::Null
        | Value::Bool(_)
        | Value::Int(_)
        | Value::Uint(_)
        | Value::Double(_)
        | Value::String(_)
        | Value::Timestamp(_)
        | Value::Duration(_)
        | Value::Type(_) => text.push_str(&value.to_string()),
        other if within => {
            let what = format!("error during formatting: no formatting function for {}", other.type_name());
            return Err(EvalError::new(what));
        }
        other => return Err(type_error('s', other)),
    }
    if depth == 0 { Ok(()) } else { call.meter.allocate(text.len() - before) }
}

fn invalid_bytes() -> EvalError {
    let what = "invalid UTF-8 in bytes, cannot convert to string";
    EvalError::new(format!("error during formatting: could not convert argument {} to string", quote(what)))
}

/// A map's entries, sorted by the text of their keys.
fn write_entries(map: &Map<'_>, text: &mut String, call: &mut Call<'_, '_, '_>, depth: usize) -> Res<()> {
    let mut pairs = Vec::new();
    for key in map.keys() {
        let (mut name, mut shown) = (String::new(), String::new());
        write_plain(&key, &mut name, call, depth + 1)?;
        if let Some(value) = map.get(&key)? {
            write_plain(&value, &mut shown, call, depth + 1)?;
        }
        pairs.push(format!("{name}:{shown}"));
    }
    pairs.sort();
    text.push('{');
    text.push_str(&pairs.join(", "));
    text.push('}');
    Ok(())
}
