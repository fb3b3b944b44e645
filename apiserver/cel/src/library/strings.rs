//! String functions. Indexes count characters; patterns are compiled with bounds and charged as steps.

use regex::Regex;

use super::{Call, Implementation, format, pattern};
use crate::error::EvalError;
use crate::value::{List, Res, Value};

/// Steps charged for compiling a pattern, in addition to the cost.
const COMPILE_STEPS: usize = 100_000;

pub(super) fn find(function: &str, _: &str) -> Option<Implementation> {
    Some(match function {
        "contains" => |call| {
            call.meter.step(call.text(0)?.len() / 8)?;
            Ok(Value::Bool(call.text(0)?.contains(call.text(1)?)))
        },
        "startsWith" => |call| Ok(Value::Bool(call.text(0)?.starts_with(call.text(1)?))),
        "endsWith" => |call| Ok(Value::Bool(call.text(0)?.ends_with(call.text(1)?))),
        "matches" => |call| with_pattern(call, |call, pattern| Ok(Value::Bool(pattern.is_match(call.text(0)?)))),
        "find" => |call| {
            with_pattern(call, |call, pattern| {
                let found = pattern.find(call.text(0)?).map_or("", |found| found.as_str()).to_owned();
                call.new_text(found)
            })
        },
        "findAll" => |call| with_pattern(call, find_all),
        "charAt" => char_at,
        "indexOf" => index_of,
        "lastIndexOf" => last_index_of,
        "lowerAscii" => |call| call.new_text(call.text(0)?.to_ascii_lowercase()),
        "upperAscii" => |call| call.new_text(call.text(0)?.to_ascii_uppercase()),
        "replace" => replace,
        "split" => split,
        "substring" => substring,
        "trim" => |call| call.new_text(call.text(0)?.trim_matches(is_space).to_owned()),
        "format" => format::format,
        "strings.quote" => |call| call.new_text(format::quote(call.text(0)?)),
        "join" => join,
        "jsonpatch.escapeKey" => |call| call.new_text(call.text(0)?.replace('~', "~0").replace('/', "~1")),
        _ => return None,
    })
}

/// Go's `unicode.IsSpace`.
fn is_space(c: char) -> bool {
    c.is_whitespace()
}

fn with_pattern<'c, 'd, 'i>(
    call: &mut Call<'c, 'd, 'i>,
    run: impl FnOnce(&mut Call<'c, 'd, 'i>, &Regex) -> Res<Value<'d>>,
) -> Res<Value<'d>> {
    call.meter.step(call.text(0)?.len())?;
    if let Some(pattern) = call.pattern {
        return run(call, pattern);
    }
    let text = call.text(1)?;
    let known = match call.meter.pattern.take().filter(|(known, _)| known == text) {
        Some(known) => known,
        None => {
            call.meter.step(COMPILE_STEPS)?;
            let compiled = pattern::compile(text).map_err(|error| match call.function {
                "matches" => EvalError::new(error),
                _ => EvalError::new(format!("Illegal regex: {error}")),
            });
            (text.to_owned(), compiled?)
        }
    };
    let result = run(call, &known.1);
    call.meter.pattern = Some(known);
    result
}

fn find_all<'d>(call: &mut Call<'_, 'd, '_>, pattern: &Regex) -> Res<Value<'d>> {
    let limit = if call.args.len() > 2 { call.int(2)? } else { -1 };
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let mut found = Vec::new();
    let text = call.text(0)?.to_owned();
    for part in pattern.find_iter(&text).take(limit) {
        call.meter.step(1)?;
        found.push(call.new_text(part.as_str().to_owned())?);
    }
    call.new_list(found)
}

fn out_of_range(at: i64) -> EvalError {
    EvalError::new(format!("index out of range: {at}"))
}

/// The byte offset of a character index; the end counts as an index.
fn byte_offset(text: &str, at: i64) -> Option<usize> {
    let at = usize::try_from(at).ok()?;
    text.char_indices().map(|(start, _)| start).chain([text.len()]).nth(at)
}

fn char_at<'d>(call: &mut Call<'_, 'd, '_>) -> Res<Value<'d>> {
    let (text, at) = (call.text(0)?, call.int(1)?);
    let start = byte_offset(text, at).ok_or_else(|| out_of_range(at))?;
    let found = text[start..].chars().next().map(String::from).unwrap_or_default();
    call.new_text(found)
}

fn index_of<'d>(call: &mut Call<'_, 'd, '_>) -> Res<Value<'d>> {
    let (text, part) = (call.text(0)?, call.text(1)?);
    let from = if call.args.len() > 2 { call.int(2)? } else { 0 };
    call.meter.step(text.len())?;
    if part.is_empty() {
        return Ok(Value::Int(from));
    }
    if from < 0 {
        return Err(out_of_range(from));
    }
    let found = byte_offset(text, from).and_then(|start| text[start..].find(part).map(|at| start + at));
    Ok(Value::Int(found.map_or(-1, |at| text[..at].chars().count() as i64)))
}

fn last_index_of<'d>(call: &mut Call<'_, 'd, '_>) -> Res<Value<'d>> {
    let (text, part) = (call.text(0)?, call.text(1)?);
    let length = text.chars().count() as i64;
    call.meter.step(text.len())?;
    let given = call.args.len() > 2;
    let from = if given { call.int(2)? } else { length - 1 };
    if part.is_empty() {
        return Ok(Value::Int(if given { from } else { length }));
    }
    if !given && text.len() < part.len() {
        return Ok(Value::Int(-1));
    }
    if from < 0 {
        return Err(out_of_range(from));
    }
    if from >= length {
        return Ok(Value::Int(-1));
    }
    // A match starts at `from` at the latest.
    let end = byte_offset(text, from).map_or(text.len(), |start| (start + part.len()).min(text.len()));
    let end = (0..=end).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    let found = text[..end].rfind(part);
    Ok(Value::Int(found.map_or(-1, |at| text[..at].chars().count() as i64)))
}

fn replace<'d>(call: &mut Call<'_, 'd, '_>) -> Res<Value<'d>> {
    let (text, old, new) = (call.text(0)?, call.text(1)?, call.text(2)?);
    let limit = if call.args.len() > 3 { call.int(3)? } else { -1 };
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let count = text.matches(old).count().min(limit);
    call.meter.allocate(text.len().saturating_add(count.saturating_mul(new.len())))?;
    let replaced = text.replacen(old, new, limit);
    Ok(Value::text(replaced))
}

fn split<'d>(call: &mut Call<'_, 'd, '_>) -> Res<Value<'d>> {
    let (text, separator) = (call.text(0)?, call.text(1)?);
    let limit = if call.args.len() > 2 { call.int(2)? } else { -1 };
    let parts: Vec<String> = match usize::try_from(limit) {
        Ok(0) => Vec::new(),
        limit => {
            let limit = limit.unwrap_or(usize::MAX);
            if separator.is_empty() { characters(text, limit) } else { pieces(text, separator, limit) }
        }
    };
    let mut items = Vec::with_capacity(parts.len());
    for part in parts {
        items.push(call.new_text(part)?);
    }
    call.new_list(items)
}

fn pieces(text: &str, separator: &str, limit: usize) -> Vec<String> {
    text.splitn(limit, separator).map(str::to_owned).collect()
}

fn characters(text: &str, limit: usize) -> Vec<String> {
    let mut parts = Vec::new();
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        if parts.len() + 1 == limit {
            parts.push(rest.to_owned());
            break;
        }
        parts.push(c.to_string());
        rest = &rest[c.len_utf8()..];
    }
    parts
}

fn substring<'d>(call: &mut Call<'_, 'd, '_>) -> Res<Value<'d>> {
    let (text, start) = (call.text(0)?, call.int(1)?);
    let length = text.chars().count() as i64;
    let end = if call.args.len() > 2 { call.int(2)? } else { length };
    if call.args.len() > 2 && start > end {
        return Err(EvalError::new(format!("invalid substring range. start: {start}, end: {end}")));
    }
    let from = byte_offset(text, start).ok_or_else(|| out_of_range(start))?;
    let to = byte_offset(text, end).ok_or_else(|| out_of_range(end))?;
    call.new_text(text[from..to].to_owned())
}

fn join<'d>(call: &mut Call<'_, 'd, '_>) -> Res<Value<'d>> {
    let Value::List(list) = call.arg(0)? else { return Err(EvalError::no_such_overload()) };
    let list: List<'d> = list.clone();
    let separator = if call.args.len() > 1 { call.text(1)?.to_owned() } else { String::new() };
    let mut joined = String::new();
    for (at, item) in list.iter().enumerate() {
        let item = item?;
        let Value::String(text) = &item else {
            return Err(EvalError::new("join: invalid input: ".to_owned() + &item.to_string()));
        };
        call.meter.allocate(text.len() + separator.len())?;
        if at > 0 {
            joined.push_str(&separator);
        }
        joined.push_str(text);
    }
    Ok(Value::text(joined))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_count_characters() {
        assert_eq!(byte_offset("aé", 1), Some(1));
        assert_eq!(byte_offset("aé", 2), Some(3));
        assert_eq!(byte_offset("aé", 3), None);
        assert_eq!(characters("abc", 2), ["a", "bc"]);
    }
}
