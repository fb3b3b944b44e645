//! RFC 6902 with the deviations of upstream's library: `replace` of a missing key adds it, `test` of one against null
//! passes, `copy` of one yields null, list indexes may be negative, and a path's first segment before `/` is ignored.

use std::collections::BTreeSet;
use std::num::{IntErrorKind, ParseIntError};

use serde_json::Value;

use crate::budget::Budget;
use crate::raw::Raw;
use crate::typed::doubled_keys;
use machinery_api::selector::go_quoted;

/// Maximum operations of a patch.
pub(super) const OPERATIONS_MAX: usize = 10_000;
/// Maximum growth by `copy` operations, in bytes of JSON: the maximum size of a body.
const COPIED_BYTES_MAX: usize = 3 * 1024 * 1024;

/// One operation; `value` is `None` if it is missing.
#[derive(Debug, Default)]
pub(super) struct Operation {
    op: String,
    path: Option<String>,
    from: Option<String>,
    value: Option<Value>,
}

/// Maximum list elements moved by insertions and removals: each moves all elements behind it.
const ELEMENTS_MOVED_MAX: usize = 50_000_000;

/// Why a patch doesn't apply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum JsonPatchError {
    /// A `test` operation failed, with the library's message.
    Test(String),
    /// An operation failed, with the library's message.
    Operation(String),
}

type PatchResult<T> = Result<T, JsonPatchError>;

/// Fails an operation.
fn fail<T>(why: String) -> PatchResult<T> {
    Err(JsonPatchError::Operation(why))
}

/// Parses the operations; returns them with strict findings. The error is Go's message.
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
pub(super) fn apply(document: &mut Value, operations: Vec<Operation>) -> PatchResult<()> {
    let (mut copied_bytes, mut moved) = (0, 0);
    for operation in operations {
        apply_operation(document, operation, &mut copied_bytes, &mut moved)?;
    }
    Ok(())
}

fn apply_operation(
    document: &mut Value,
    operation: Operation,
    copied_bytes: &mut usize,
    moved: &mut usize,
) -> PatchResult<()> {
    let Operation { op, path, from, value } = operation;
    let op = op.as_str();
    let path = || match &path {
        Some(path) => Ok(path.as_str()),
        // Upstream names the field in some operations only.
        None if matches!(op, "add" | "remove" | "copy") => {
            fail(format!("{op} operation failed to decode path: {MISSING}"))
        }
        None => fail(format!("{op} operation failed to decode path: operation missing path field: {MISSING}")),
    };
    let from = || match &from {
        Some(from) => Ok(from.as_str()),
        None => fail(format!("{op} operation failed to decode from: operation, missing from field: {MISSING}")),
    };
    match op {
        "add" => {
            let path = path()?;
            let (container, key) = target(document, path, || {
                format!("add operation does not apply: doc is missing path: \"{path}\": {MISSING}")
            })?;
            let added = add(container, key, value.unwrap_or(Value::Null), moved);
            added.or_else(|why| fail(format!("error in add for path: '{path}': {why}")))
        }
        "remove" => {
            let path = path()?;
            let (container, key) = target(document, path, || {
                format!("remove operation does not apply: doc is missing path: \"{path}\": {MISSING}")
            })?;
            match remove(container, &key, moved) {
                Ok(_) => Ok(()),
                Err(why) => fail(format!("error in remove for path: '{path}': {why}")),
            }
        }
        "replace" => replace(document, path()?, value),
        "move" => {
            let value = take_source(document, from()?, moved)?;
            let path = path()?;
            let (container, key) = destination(document, op, path)?;
            let added = add(container, key, value, moved);
            added.or_else(|why| fail(format!("error in move for path: '{path}': {why}")))
        }
        "test" => test(document, path()?, value.as_ref()),
        "copy" => {
            let value = copy_source(document, from()?)?;
            let (container, key) = destination(document, op, path()?)?;
            *copied_bytes += serde_json::to_string(&value).map_or(0, |text| text.len());
            if *copied_bytes > COPIED_BYTES_MAX {
                return fail(format!(
                    "Unable to complete the copy, the accumulated size increase of copy is {copied_bytes}, exceeding the \
                     limit {COPIED_BYTES_MAX}"
                ));
            }
            let added = add(container, key, value, moved);
            added.or_else(|why| fail(format!("error while adding value during copy: {why}")))
        }
        other => fail(format!("Unexpected kind: {other}")),
    }
}

/// The container that holds a path's last key, and the key; else an error.
fn target<'a>(document: &'a mut Value, path: &str, why: impl Fn() -> String) -> PatchResult<(&'a mut Value, String)> {
    find(document, path).ok_or_else(|| JsonPatchError::Operation(why()))
}

/// The destination of a `move` or `copy`.
fn destination<'a>(document: &'a mut Value, op: &str, path: &str) -> PatchResult<(&'a mut Value, String)> {
    target(document, path, || {
        format!("{op} operation does not apply: doc is missing destination path: {path}: {MISSING}")
    })
}

/// Removes the source value of a `move`.
fn take_source(document: &mut Value, from: &str, moved: &mut usize) -> PatchResult<Value> {
    let (container, key) = target(document, from, || {
        format!("move operation does not apply: doc is missing from path: {from}: {MISSING}")
    })?;
    let value = remove(container, &key, moved);
    value.or_else(|why| fail(format!("error in move for path: '{key}': {why}")))
}

/// Reads the source value of a `copy`.
fn copy_source(document: &mut Value, from: &str) -> PatchResult<Value> {
    let (container, key) = target(document, from, || {
        format!("copy operation does not apply: doc is missing from path: {from}: {MISSING}")
    })?;
    match get(container, &key) {
        Ok(value) => Ok(value.cloned().unwrap_or(Value::Null)),
        Err(why) => fail(format!("error in copy for from: '{from}': {why}")),
    }
}

/// The library's message for a missing value.
const MISSING: &str = "missing value";

/// The container that holds a path's last key, and the key; `None` if it is missing.
fn find<'a>(document: &'a mut Value, path: &str) -> Option<(&'a mut Value, String)> {
    let mut segments: Vec<&str> = path.split('/').skip(1).collect();
    let last = segments.pop()?;
    let mut here = document;
    for segment in segments {
        let key = decoded(segment);
        here = match here {
            Value::Object(map) => map.get_mut(&key)?,
            Value::Array(items) => {
                let at = index(&key, items.len()).ok()?;
                &mut items[at]
            }
            _ => return None,
        };
    }
    (here.is_object() || here.is_array()).then(|| (here, decoded(last)))
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

/// Parses an integer as Go's `strconv.Atoi`.
fn number(key: &str) -> Result<i64, String> {
    key.parse().map_err(|error: ParseIntError| {
        let why = match error.kind() {
            IntErrorKind::PosOverflow | IntErrorKind::NegOverflow => "value out of range",
            _ => "invalid syntax",
        };
        format!("strconv.Atoi: parsing {}: {why}", go_quoted(key))
    })
}

/// The index of an existing element; a negative number counts from the end.
fn index(key: &str, length: usize) -> Result<usize, String> {
    let (given, length) = (number(key)?, length as i64);
    let at = if given < 0 { given.saturating_add(length) } else { given };
    if (0..length).contains(&at) {
        Ok(at as usize)
    } else {
        Err(format!("Unable to access invalid index: {given}: invalid index referenced"))
    }
}

fn get<'a>(container: &'a Value, key: &str) -> Result<Option<&'a Value>, String> {
    match container {
        Value::Array(items) => Ok(items.get(index(key, items.len())?)),
        other => Ok(other.get(key)),
    }
}

fn count(moved: &mut usize, elements: usize) -> Result<(), String> {
    *moved += elements;
    match *moved > ELEMENTS_MOVED_MAX {
        true => Err(format!("the patch moves more than {ELEMENTS_MOVED_MAX} elements of lists")),
        false => Ok(()),
    }
}

fn add(container: &mut Value, key: String, value: Value, moved: &mut usize) -> Result<(), String> {
    match container {
        Value::Array(items) if key == "-" => items.push(value),
        Value::Array(items) => {
            number(&key).map_err(|why| format!("value was not a proper array index: '{key}': {why}"))?;
            let at = index(&key, items.len() + 1)?;
            count(moved, items.len() - at)?;
            items.insert(at, value);
        }
        Value::Object(map) => drop(map.insert(key, value)),
        // `find` returns containers only.
        _ => {}
    }
    Ok(())
}

fn remove(container: &mut Value, key: &str, moved: &mut usize) -> Result<Value, String> {
    match container {
        Value::Array(items) => {
            let at = index(key, items.len())?;
            count(moved, items.len() - at)?;
            Ok(items.remove(at))
        }
        other => {
            let removed = other.as_object_mut().and_then(|map| map.remove(key));
            removed.ok_or_else(|| format!("Unable to remove nonexistent key: {key}: {MISSING}"))
        }
    }
}

fn replace(document: &mut Value, path: &str, value: Option<Value>) -> PatchResult<()> {
    if path.is_empty() {
        let Some(value) = value.filter(|v| v.is_object() || v.is_array()) else {
            // The library formats a nil error.
            return fail("replace operation value must be object or array: %!w(<nil>)".into());
        };
        *document = value;
        return Ok(());
    }
    let value = value.unwrap_or(Value::Null);
    let Some((container, key)) = find(document, path) else {
        return fail(format!("replace operation does not apply: doc is missing path: {path}: {MISSING}"));
    };
    match container {
        Value::Array(items) => {
            let Ok(at) = index(&key, items.len()) else {
                return fail(format!("replace operation does not apply: doc is missing key: {path}: {MISSING}"));
            };
            items[at] = value;
        }
        other => other[key] = value,
    }
    Ok(())
}

fn test(document: &mut Value, path: &str, value: Option<&Value>) -> PatchResult<()> {
    let equal = if path.is_empty() {
        Some(&*document) == value
    } else {
        let Some((container, key)) = find(document, path) else {
            return fail(format!("test operation does not apply: is missing path: {path}: {MISSING}"));
        };
        let found = get(container, &key);
        match found.or_else(|why| fail(format!("error in test for path: '{path}': {why}")))? {
            None | Some(Value::Null) => value.is_none_or(Value::is_null),
            found => found == value,
        }
    };
    if equal { Ok(()) } else { Err(JsonPatchError::Test(format!("testing value {path} failed: test failed"))) }
}
