//! RFC 6902 as upstream's library does it: `replace` of a missing key adds it, `test` of one against null passes, `copy`
//! of one yields null, list indexes may be negative, and a path's first segment before `/` is not looked at.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::schema::budget::Budget;
use crate::schema::raw::Raw;
use crate::schema::typed::doubled_keys;

/// Operations in one patch.
pub(super) const OPERATIONS_MAX: usize = 10_000;
/// What `copy` operations may add to a document, in bytes of JSON: as large as a body may be.
const COPIED_BYTES_MAX: usize = 3 * 1024 * 1024;

/// One operation; `value` is `None` where it is missing.
#[derive(Debug, Default)]
pub(super) struct Operation {
    op: String,
    path: Option<String>,
    from: Option<String>,
    value: Option<Value>,
}

/// List elements that may be moved along by insertions and removals: each moves all that stand behind it.
const ELEMENTS_MOVED_MAX: usize = 50_000_000;

/// Why a patch doesn't apply (upstream tells the client no more than that).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refused {
    /// A `test` operation doesn't hold.
    Test,
    /// An operation can't be done.
    Operation,
}

type Step<T> = Result<T, Refused>;

/// The operations, and the strict findings. The error is Go's sentence.
pub(super) fn read(raw: Raw, budget: &mut Budget) -> Result<(Vec<Operation>, Vec<String>), String> {
    const FIELDS: [&str; 4] = ["op", "path", "from", "value"];
    let items = match raw {
        Raw::Null => Vec::new(),
        Raw::List(items) => items,
        other => {
            return Err(format!(
                "json: cannot unmarshal {} into Go value of type []handlers.jsonPatchOp",
                other.go_name()
            ));
        }
    };
    let (mut operations, mut findings) = (Vec::with_capacity(items.len()), Vec::new());
    for (at, item) in items.into_iter().enumerate() {
        let mut operation = Operation::default();
        let entries = match item {
            Raw::Map(entries) => entries,
            Raw::Null => Vec::new(),
            other => {
                return Err(format!(
                    "json: cannot unmarshal {} into Go value of type handlers.jsonPatchOp",
                    other.go_name()
                ));
            }
        };
        let mut seen = BTreeSet::new();
        for (key, value) in entries {
            if seen.contains(key.as_str()) {
                findings.push(format!("json patch duplicate field \"[{at}].{key}\""));
            } else if !FIELDS.contains(&key.as_str()) {
                findings.push(format!("json patch unknown field \"[{at}].{key}\""));
            }
            let text = |value: Raw| match value {
                Raw::String(text) => Ok(Some(text)),
                Raw::Null => Ok(None),
                other => Err(format!(
                    "json: cannot unmarshal {} into Go struct field jsonPatchOp.{key} of type string",
                    other.go_name()
                )),
            };
            if key == "value" {
                let inner = doubled_keys(&value).into_iter();
                findings.extend(inner.map(|f| {
                    f.replacen("duplicate field \"", &format!("json patch duplicate field \"[{at}].value."), 1)
                }));
            }
            match key.as_str() {
                "op" => operation.op = text(value)?.unwrap_or_default(),
                "path" => operation.path = text(value)?,
                "from" => operation.from = text(value)?,
                "value" => operation.value = Some(value.into_value(budget).ok_or("exceeded max depth")?),
                _ => {}
            }
            seen.insert(key);
        }
        operations.push(operation);
    }
    findings.truncate(100);
    Ok((operations, findings))
}

/// Applies operations in order.
pub(super) fn apply(document: &mut Value, operations: Vec<Operation>) -> Step<()> {
    let (mut copied_bytes, mut moved) = (0, 0);
    for operation in operations {
        let path = operation.path.ok_or(Refused::Operation);
        let from = operation.from.ok_or(Refused::Operation);
        match operation.op.as_str() {
            "add" => add(document, &path?, operation.value.unwrap_or(Value::Null), &mut moved)?,
            "remove" => drop(remove(document, &path?, &mut moved)?),
            "replace" => replace(document, &path?, operation.value)?,
            "move" => {
                let value = remove(document, &from?, &mut moved)?;
                add(document, &path?, value, &mut moved)?;
            }
            "test" => test(document, &path?, operation.value.as_ref())?,
            "copy" => {
                let value = get(document, &from?)?.cloned().unwrap_or(Value::Null);
                copied_bytes += serde_json::to_string(&value).map_or(0, |text| text.len());
                if copied_bytes > COPIED_BYTES_MAX {
                    return Err(Refused::Operation);
                }
                add(document, &path?, value, &mut moved)?;
            }
            _ => return Err(Refused::Operation),
        }
    }
    Ok(())
}

/// The container that a path ends in, and the key in it.
fn find<'a>(document: &'a mut Value, path: &str) -> Step<(&'a mut Value, String)> {
    let mut segments: Vec<&str> = path.split('/').skip(1).collect();
    let last = segments.pop().ok_or(Refused::Operation)?;
    let mut here = document;
    for segment in segments {
        let key = decoded(segment);
        here = match here {
            Value::Object(map) => map.get_mut(&key).ok_or(Refused::Operation)?,
            Value::Array(items) => {
                let at = index(&key, items.len())?;
                &mut items[at]
            }
            _ => return Err(Refused::Operation),
        };
    }
    if here.is_object() || here.is_array() { Ok((here, decoded(last))) } else { Err(Refused::Operation) }
}

fn decoded(segment: &str) -> String {
    let mut out = String::with_capacity(segment.len());
    let mut characters = segment.chars().peekable();
    while let Some(c) = characters.next() {
        match (c, characters.peek()) {
            ('~', Some('1')) => out.push('/'),
            ('~', Some('0')) => out.push('~'),
            _ => {
                out.push(c);
                continue;
            }
        }
        characters.next();
    }
    out
}

/// An existing element's place; negative counts from the end.
fn index(key: &str, length: usize) -> Step<usize> {
    let at: i64 = key.parse().map_err(|_| Refused::Operation)?;
    let length = length as i64;
    let at = if at < 0 { at + length } else { at };
    if (0..length).contains(&at) { Ok(at as usize) } else { Err(Refused::Operation) }
}

fn get<'a>(document: &'a mut Value, path: &str) -> Step<Option<&'a Value>> {
    match find(document, path)? {
        (Value::Object(map), key) => Ok(map.get(&key)),
        (Value::Array(items), key) => {
            let at = index(&key, items.len())?;
            Ok(items.get(at))
        }
        _ => Err(Refused::Operation),
    }
}

fn count(moved: &mut usize, elements: usize) -> Step<()> {
    *moved += elements;
    if *moved > ELEMENTS_MOVED_MAX { Err(Refused::Operation) } else { Ok(()) }
}

fn add(document: &mut Value, path: &str, value: Value, moved: &mut usize) -> Step<()> {
    match find(document, path)? {
        (Value::Object(map), key) => drop(map.insert(key, value)),
        (Value::Array(items), key) if key == "-" => items.push(value),
        (Value::Array(items), key) => {
            let at = index(&key, items.len() + 1)?;
            count(moved, items.len() - at)?;
            items.insert(at, value);
        }
        _ => return Err(Refused::Operation),
    }
    Ok(())
}

fn remove(document: &mut Value, path: &str, moved: &mut usize) -> Step<Value> {
    match find(document, path)? {
        (Value::Object(map), key) => map.remove(&key).ok_or(Refused::Operation),
        (Value::Array(items), key) => {
            let at = index(&key, items.len())?;
            count(moved, items.len() - at)?;
            Ok(items.remove(at))
        }
        _ => Err(Refused::Operation),
    }
}

fn replace(document: &mut Value, path: &str, value: Option<Value>) -> Step<()> {
    if path.is_empty() {
        let value = value.filter(|v| v.is_object() || v.is_array()).ok_or(Refused::Operation)?;
        *document = value;
        return Ok(());
    }
    let value = value.unwrap_or(Value::Null);
    match find(document, path)? {
        (Value::Object(map), key) => drop(map.insert(key, value)),
        (Value::Array(items), key) => {
            let at = index(&key, items.len())?;
            items[at] = value;
        }
        _ => return Err(Refused::Operation),
    }
    Ok(())
}

fn test(document: &mut Value, path: &str, value: Option<&Value>) -> Step<()> {
    let equal = if path.is_empty() {
        Some(&*document) == value
    } else {
        match get(document, path)? {
            None | Some(Value::Null) => value.is_none_or(Value::is_null),
            found => found == value,
        }
    };
    if equal { Ok(()) } else { Err(Refused::Test) }
}
