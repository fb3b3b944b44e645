//! Strategic merge: objects merge, lists merge by the key of their type, directed by `$patch`, `$retainKeys`,
//! `$setElementOrder/…` and `$deleteFromPrimitiveList/…`. A merged list is ordered by `$setElementOrder`, then by the
//! patch, then by the object.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value};

use crate::{Field, Kind, TypeRef, Types};

const DIRECTIVE: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const DELETE_PRIMITIVES: &str = "$deleteFromPrimitiveList";
const ELEMENT_ORDER: &str = "$setElementOrder";

/// Why a patch doesn't apply.
#[derive(Debug, PartialEq)]
pub(super) enum Error {
    /// 400 with this message.
    Bad(String),
    /// 422 with upstream's general message.
    Unprocessable,
}

/// Maximum list elements visited by one patch: duplicates of a key merge one after the other, each with all of the
/// object's elements.
const ELEMENTS_MAX: usize = 1_000_000;

/// Number of list elements visited.
struct WorkBudget(usize);

impl WorkBudget {
    fn spend(&mut self, elements: usize) -> MergeResult<()> {
        self.0 += elements;
        if self.0 > ELEMENTS_MAX { bad("the patch merges too many list elements") } else { Ok(()) }
    }
}

type MergeResult<T> = Result<T, Error>;
type Object = Map<String, Value>;

fn bad<T>(message: impl Into<String>) -> MergeResult<T> {
    Err(Error::Bad(message.into()))
}

/// The type of the merged value.
#[derive(Clone, Copy)]
enum Meta<'a> {
    Type(TypeRef<'a>),
    /// A map, or another value without declared fields.
    Plain(&'static str),
    /// An undeclared value that a type preserves.
    Undeclared,
}

impl<'a> Meta<'a> {
    fn of(types: &'a Types, kind: &'a Kind) -> Self {
        match kind {
            Kind::Object(id) => {
                let found = types.refer(*id);
                if found.of.scalar.is_some() { Self::Plain("struct") } else { Self::Type(found) }
            }
            Kind::Map(_) => Self::Plain("map"),
            Kind::List(_) | Kind::Bytes => Self::Plain("slice"),
            Kind::String | Kind::Quantity | Kind::Amount | Kind::Time | Kind::MicroTime | Kind::IntOrString => {
                Self::Plain("string")
            }
            Kind::Bool => Self::Plain("bool"),
            Kind::Int32 | Kind::Int64 | Kind::Double => Self::Plain("int32"),
            Kind::Any => Self::Plain("struct"),
        }
    }

    /// A declared field with its set of types; `None` for a preserved undeclared one.
    fn declared(self, name: &str) -> MergeResult<Option<(&'a Types, &'a Field)>> {
        match self {
            Self::Type(found) => match found.of.field(name) {
                Some(field) => Ok(Some((found.types, field))),
                None if found.of.preserves_unknown => Ok(None),
                None => {
                    bad(format!("unable to find api field in struct {} for the json field {name:?}", found.of.short()))
                }
            },
            Self::Undeclared => Ok(None),
            Self::Plain(what) => {
                bad(format!("merging an object in json but data type is not struct, instead is: {what}"))
            }
        }
    }

    /// An object field: its type, and whether it is replaced.
    fn object(self, name: &str) -> MergeResult<(Self, bool)> {
        let declared = self.declared(name)?;
        Ok(declared.map_or((Self::Undeclared, false), |(types, field)| (Self::of(types, &field.kind), field.replaces)))
    }

    /// A list field: its element type, its merge key, whether it merges.
    fn list(self, name: &str) -> MergeResult<(Self, Option<&'a str>, bool)> {
        let Some((types, field)) = self.declared(name)? else { return Ok((Self::Undeclared, None, false)) };
        match &field.kind {
            Kind::List(inner) => Ok((Self::of(types, inner), field.merge_key.as_deref(), field.merges)),
            other => match Self::of(types, other) {
                Self::Plain(what) => bad(format!("expected slice or array type, but got: {what}")),
                _ => bad("expected slice or array type, but got: struct"),
            },
        }
    }
}

/// Applies a patch to an object of the type.
pub(super) fn apply(found: TypeRef<'_>, current: Value, patch: Value) -> MergeResult<Value> {
    let (Value::Object(current), patch) = (current, patch) else { return bad("invalid JSON document") };
    match patch {
        Value::Object(patch) => merge_map(current, patch, Meta::Type(found), &mut WorkBudget(0)).map(Value::Object),
        _ => Ok(Value::Object(current)),
    }
}

fn merge_map(mut original: Object, mut patch: Object, meta: Meta<'_>, work: &mut WorkBudget) -> MergeResult<Object> {
    match patch.remove(DIRECTIVE) {
        None => {}
        Some(Value::String(text)) if text == "replace" => return Ok(patch),
        Some(Value::String(text)) if text == "delete" => return Ok(Object::new()),
        Some(other) => {
            patch.insert(DIRECTIVE.into(), other.clone());
            return bad(unknown_directive(&other, &patch));
        }
    }
    retain_keys(&mut original, &mut patch)?;
    ordered_lists(&mut original, &mut patch, meta, work)?;
    for (key, mut value) in patch {
        let (key, deletes) = match key.strip_prefix(DELETE_PRIMITIVES) {
            Some(rest) => match rest.strip_prefix('/') {
                Some(name) => (name.to_owned(), true),
                None => return bad("invalid patch format of primitive list"),
            },
            None => (key, false),
        };
        if value.is_null() {
            original.remove(&key);
            continue;
        }
        let merged = match (original.remove(&key), value) {
            (Some(before), _) if deletes && !before.is_array() => Some(before),
            (None, _) if deletes => None,
            (Some(Value::Object(before)), Value::Object(after)) => {
                let (below, replaces) = meta.object(&key)?;
                Some(Value::Object(if replaces { after } else { merge_map(before, after, below, work)? }))
            }
            (Some(Value::Array(before)), Value::Array(after)) => {
                let (element, merge_key, merges) = meta.list(&key)?;
                Some(Value::Array(if merges || deletes {
                    merge_list(before, after, element, merge_key, deletes, work)?
                } else {
                    after
                }))
            }
            (_, taken) => {
                value = taken;
                discard_nulls(&mut value);
                without_directives(value)
            }
        };
        if let Some(merged) = merged {
            original.insert(key, merged);
        }
    }
    Ok(original)
}

fn unknown_directive(directive: &Value, patch: &Object) -> String {
    let shown = directive.as_str().map_or_else(|| directive.to_string(), str::to_owned);
    format!("unknown patch type: {shown} in map: {}", go_map(patch))
}

/// A map in the format of Go's `%v`.
fn go_map(map: &Object) -> String {
    fn shown(value: &Value) -> String {
        match value {
            Value::Null => "<nil>".into(),
            Value::String(text) => text.clone(),
            Value::Array(items) => format!("[{}]", items.iter().map(shown).collect::<Vec<_>>().join(" ")),
            Value::Object(map) => go_map(map),
            other => other.to_string(),
        }
    }
    format!("map[{}]", map.iter().map(|(k, v)| format!("{k}:{}", shown(v))).collect::<Vec<_>>().join(" "))
}

fn retain_keys(original: &mut Object, patch: &mut Object) -> MergeResult<()> {
    const FORMAT: &str = "invalid patch format of retainKeys";
    let Some(retained) = patch.remove(RETAIN_KEYS) else { return Ok(()) };
    let Value::Array(retained) = retained else { return bad(FORMAT) };
    let retained: HashSet<&str> = retained.iter().filter_map(Value::as_str).collect();
    let kept = |key: &str| retained.contains(key);
    for (key, value) in &*patch {
        let directs = key.starts_with(DELETE_PRIMITIVES) || key.starts_with(ELEMENT_ORDER);
        if !value.is_null() && !directs && !kept(key) {
            return bad(FORMAT);
        }
    }
    original.retain(|key, _| kept(key));
    Ok(())
}

/// Merges the lists ordered by the patch, and removes them from the patch.
fn ordered_lists(original: &mut Object, patch: &mut Object, meta: Meta<'_>, work: &mut WorkBudget) -> MergeResult<()> {
    const FORMAT: &str = "invalid patch format of setElementOrder list";
    let directed: Vec<String> = patch.keys().filter(|k| k.starts_with(ELEMENT_ORDER)).cloned().collect();
    for directive in directed {
        let Some(Value::Array(order)) = patch.remove(&directive) else { return bad(FORMAT) };
        let Some(key) = directive.strip_prefix(ELEMENT_ORDER).and_then(|rest| rest.strip_prefix('/')) else {
            return bad(FORMAT);
        };
        let list = |value: Option<Value>| match value {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Array(items)) => Ok(Some(items)),
            Some(_) => bad("expected a []interface {}, but received another type"),
        };
        // `key: null` beside an order removes the list, as without an order.
        if patch.get(key).is_some_and(Value::is_null) {
            continue;
        }
        let (element, merge_key, merges) = meta.list(key)?;
        let before = list(original.get(key).cloned())?;
        let after = list(patch.get(key).cloned())?;
        check_order(after.as_deref().unwrap_or_default(), &order, merge_key)?;
        let merged = match (&before, after.clone()) {
            (None, None) => continue,
            (Some(before), None) => before.clone(),
            (None, Some(after)) => after.into_iter().filter_map(without_directives).collect(),
            (Some(before), Some(after)) if merges => {
                merge_list(before.clone(), after, element, merge_key, false, work)?
            }
            (Some(_), Some(after)) => after,
        };
        let before = before.unwrap_or_default();
        one_kind(before.iter().chain(after.iter().flatten()))?;
        let before = if merges { reused(before, after.as_deref().unwrap_or_default(), merge_key) } else { before };
        patch.remove(key);
        original.insert(key.into(), Value::Array(arrange(merged, &order, &before, merge_key)?));
    }
    Ok(())
}

/// The object's list as upstream's ordering reads it: upstream deletes in place, so new elements occupy the slots of
/// deleted ones, after the elements before those.
fn reused(before: Vec<Value>, after: &[Value], merge_key: Option<&str>) -> Vec<Value> {
    let Some(key) = merge_key else { return before };
    let length = before.len();
    let name = |item: &Value| item.get(key).map(Value::to_string);
    let deletes = |item: &&Value| item.get(DIRECTIVE).is_some_and(|d| d == "delete");
    let gone: HashSet<Option<String>> = after.iter().filter(deletes).map(name).collect();
    let mut out: Vec<Value> = before.into_iter().filter(|item| !gone.contains(&name(item))).collect();
    let mut seen: HashSet<Option<String>> = out.iter().map(name).collect();
    for item in after.iter().filter(|a| a.get(DIRECTIVE).is_none()) {
        if out.len() < length && seen.insert(name(item)) {
            out.push(item.clone());
        }
    }
    out
}

/// Checks that the patch's elements occur in the given order.
fn check_order(patch: &[Value], order: &[Value], merge_key: Option<&str>) -> MergeResult<()> {
    if patch.is_empty() || order.is_empty() {
        return Ok(());
    }
    let deletes = |item: &Value| item.get(DIRECTIVE).is_some_and(|d| d == "delete");
    let kept: Vec<&Value> = patch.iter().filter(|item| merge_key.is_none() || !deletes(item)).collect();
    let (mut at, mut place) = (0, 0);
    while at < kept.len() && place < order.len() {
        if kept[at].get(DIRECTIVE).is_some() {
            at += 1;
            continue;
        }
        if identity(kept[at], merge_key)? == identity(&order[place], merge_key)? {
            at += 1;
        }
        place += 1;
    }
    if at < kept.len() {
        return bad(format!(
            "The order in patch list:\n{}\n doesn't match {ELEMENT_ORDER} list:\n{}\n",
            shown_list(patch),
            shown_list(order)
        ));
    }
    Ok(())
}

/// A patch in Go's format.
pub(super) fn go_format(patch: &Value, current: &Value) -> String {
    let patch = without_nulls(patch, current);
    patch.as_object().map_or_else(|| "map[]".into(), go_map)
}

/// The rest of a patch after merging: nothing is deleted below non-maps, so nulls are dropped there.
fn without_nulls(patch: &Value, current: &Value) -> Value {
    fn discard(value: &Value) -> Value {
        match value {
            Value::Object(map) => map
                .iter()
                .filter(|(_, v)| !v.is_null())
                .map(|(k, v)| (k.clone(), discard(v)))
                .collect::<Object>()
                .into(),
            Value::Array(items) => items.iter().map(discard).collect(),
            other => other.clone(),
        }
    }
    let Value::Object(map) = patch else { return patch.clone() };
    let below = |(key, value): (&String, &Value)| {
        let value = match current.get(key) {
            Some(there @ Value::Object(_)) if value.is_object() => without_nulls(value, there),
            _ if value.is_object() => discard(value),
            _ => value.clone(),
        };
        (key.clone(), value)
    };
    map.iter().map(below).collect::<Object>().into()
}

fn shown_list(items: &[Value]) -> String {
    let text =
        |v: &Value| v.as_object().map_or_else(|| v.as_str().map_or_else(|| v.to_string(), str::to_owned), go_map);
    format!("[{}]", items.iter().map(text).collect::<Vec<_>>().join(" "))
}

/// An element's identity: its merge key's value, or the element itself.
fn identity<'a>(item: &'a Value, merge_key: Option<&str>) -> MergeResult<&'a Value> {
    let Some(key) = merge_key else { return Ok(item) };
    match item {
        Value::Object(map) => match map.get(key) {
            Some(value) => Ok(value),
            None => bad(format!("map: {} does not contain declared merge key: {key}", go_map(map))),
        },
        _ => bad("expected a map[string]interface {}, but received another type"),
    }
}

/// Checks that all elements are objects, or all scalars of one type; returns true for objects.
fn one_kind<'a>(items: impl Iterator<Item = &'a Value>) -> MergeResult<bool> {
    let mut first: Option<&Value> = None;
    for item in items {
        if item.is_array() {
            return Err(Error::Unprocessable);
        }
        let same = first.is_none_or(|f| std::mem::discriminant(f) == std::mem::discriminant(item));
        if !same || item.is_null() {
            return bad("list element types are not identical");
        }
        first = Some(item);
    }
    match first {
        Some(item) => Ok(item.is_object()),
        None => bad("no elements in any of the given slices"),
    }
}

fn merge_list(
    before: Vec<Value>,
    after: Vec<Value>,
    element: Meta<'_>,
    merge_key: Option<&str>,
    deletes: bool,
    work: &mut WorkBudget,
) -> MergeResult<Vec<Value>> {
    if before.is_empty() && after.is_empty() {
        return Ok(before);
    }
    work.spend(before.len() + after.len())?;
    if !one_kind(before.iter().chain(&after))? {
        if deletes {
            let gone: HashSet<String> = after.iter().map(Value::to_string).collect();
            return Ok(before.into_iter().filter(|item| !gone.contains(&item.to_string())).collect());
        }
        let mut seen = HashSet::new();
        let merged = before.iter().chain(&after).filter(|item| seen.insert(item.to_string())).cloned().collect();
        return arrange(merged, &after, &before, None);
    }
    let Some(key) = merge_key else {
        let what = match element {
            Meta::Type(_) | Meta::Undeclared => "struct",
            Meta::Plain(what) => what,
        };
        return bad(format!("cannot merge lists without merge key for {what}"));
    };
    let (before, after) = special_elements(before, after, key)?;
    let mut merged = before.clone();
    let mut places = places(&merged, key);
    for item in &after {
        let wanted = identity(item, Some(key))?.to_string();
        match (places.get(&wanted).copied(), item) {
            (Some(at), Value::Object(patch)) => {
                let Value::Object(original) = merged[at].take() else {
                    return bad(format!("value for key {at} is not a map"));
                };
                merged[at] = Value::Object(merge_map(original, patch.clone(), element, work)?);
            }
            _ => {
                places.insert(wanted, merged.len());
                merged.push(item.clone());
            }
        }
    }
    arrange(merged, &after, &before, Some(key))
}

/// The first index of each merge key's value.
fn places(list: &[Value], key: &str) -> HashMap<String, usize> {
    let mut out = HashMap::with_capacity(list.len());
    for (at, item) in list.iter().enumerate() {
        if let Some(value) = item.get(key) {
            out.entry(value.to_string()).or_insert(at);
        }
    }
    out
}

/// Executes `$patch` in elements; returns the rest of the object's list and of the patch's.
fn special_elements(mut before: Vec<Value>, after: Vec<Value>, key: &str) -> MergeResult<(Vec<Value>, Vec<Value>)> {
    let (mut plain, mut replaces, mut gone) = (Vec::new(), false, HashSet::new());
    for item in after {
        match item.get(DIRECTIVE) {
            None => plain.push(item),
            Some(Value::String(text)) if text == "delete" => {
                gone.insert(identity(&item, Some(key))?.to_string());
            }
            Some(Value::String(text)) if text == "replace" => replaces = true,
            Some(Value::String(text)) if text == "merge" => {
                return bad("merging lists cannot yet be specified in the patch");
            }
            Some(other) => {
                return bad(unknown_directive(other, item.as_object().unwrap_or(&Object::new())));
            }
        }
    }
    if !gone.is_empty() {
        before.retain(|item| item.get(key).is_none_or(|value| !gone.contains(&value.to_string())));
    }
    Ok(if replaces { (plain, Vec::new()) } else { (before, plain) })
}

/// Orders a merged list: elements of `order` by it, the others by the object's order, merged such that an element of
/// the object precedes the first element that followed it there.
fn arrange(merged: Vec<Value>, order: &[Value], before: &[Value], merge_key: Option<&str>) -> MergeResult<Vec<Value>> {
    let index = |list: &[Value]| -> MergeResult<HashMap<String, usize>> {
        let mut out = HashMap::with_capacity(list.len());
        for (at, item) in list.iter().enumerate() {
            out.entry(identity(item, merge_key)?.to_string()).or_insert(at);
        }
        Ok(out)
    };
    let (live, dictated) = (index(before)?, index(order)?);
    let (mut named, mut others) = (Vec::new(), Vec::new());
    for item in merged {
        let wanted = identity(&item, merge_key)?.to_string();
        let live = live.get(&wanted).copied();
        match dictated.get(&wanted) {
            Some(at) => named.push((*at, live, item)),
            None => others.push((live, item)),
        }
    }
    named.sort_by_key(|(at, ..)| *at);
    others.sort_by_key(|(live, _)| live.unwrap_or(usize::MAX));
    let mut out = Vec::with_capacity(named.len() + others.len());
    let (mut named, mut others) = (named.into_iter().peekable(), others.into_iter().peekable());
    loop {
        let other_first = match (others.peek(), named.peek()) {
            (None, None) => return Ok(out),
            (Some(_), None) => true,
            (None, Some(_)) => false,
            (Some((Some(l), _)), Some((_, Some(r), _))) => l < r,
            _ => false,
        };
        let next = if other_first { others.next().map(|(_, item)| item) } else { named.next().map(|(.., item)| item) };
        out.extend(next);
    }
}

fn discard_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, v| !v.is_null());
            map.values_mut().for_each(discard_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(discard_nulls),
        _ => {}
    }
}

/// A new value without directives.
fn without_directives(value: Value) -> Option<Value> {
    match value {
        Value::Object(map) if map.contains_key(DIRECTIVE) => None,
        Value::Object(map) => {
            Some(Value::Object(map.into_iter().filter_map(|(k, v)| Some((k, without_directives(v)?))).collect()))
        }
        Value::Array(items) => Some(Value::Array(items.into_iter().filter_map(without_directives).collect())),
        other => Some(other),
    }
}
