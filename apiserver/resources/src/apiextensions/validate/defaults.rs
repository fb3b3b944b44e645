//! Whether a schema's defaults are values that the schema takes.

use serde_json::{Value, json};

use crate::apiextensions::schema::{Schema, check, compile, embedded, prune};
use crate::field::{ErrorList, FieldError, Path};

/// What is wrong with the defaults of a structural schema.
pub(super) fn validate(schema: &Value, at: &Path<'_>, must_be_pruned: bool) -> ErrorList {
    let mut errors = ErrorList::new();
    // A pattern that is none has been found before.
    if let Ok(compiled) = compile(schema) {
        walk(&mut errors, &compiled, at, must_be_pruned, true, None);
    }
    errors
}

/// Whether all defaults have only known fields, as those that were stored before need not.
pub(super) fn are_pruned(schema: &Value) -> bool {
    fn walk(schema: &Schema, root: bool) -> bool {
        if !schema.has.defaults {
            return true;
        }
        let own = schema.default.as_ref().is_none_or(|default| unknown(default, schema, root).is_empty());
        let below = schema.items.as_deref().into_iter().chain(schema.properties.values());
        own && below.into_iter().all(|schema| walk(schema, false))
    }
    compile(schema).is_ok_and(|schema| walk(&schema, true))
}

fn unknown(default: &Value, schema: &Schema, root: bool) -> Vec<String> {
    let mut pruned = default.clone();
    // The root's and an embedded object's own kind and metadata are known.
    let mut paths = prune(&mut pruned, schema);
    if !root && !schema.embedded {
        let own = ["apiVersion", "kind", "metadata"].into_iter().filter(|key| default.get(key).is_some());
        paths.extend(own.filter(|key| !schema.properties.contains_key(*key) && !schema.preserves).map(Into::into));
    }
    paths
}

/// `meta`: within the kind, version or metadata of an object, by these names.
fn walk(
    errors: &mut ErrorList,
    schema: &Schema,
    at: &Path<'_>,
    must_be_pruned: bool,
    root: bool,
    meta: Option<&[&str]>,
) {
    if !schema.has.defaults {
        return;
    }
    let is_resource = root || schema.embedded;
    let meta = if is_resource { None } else { meta };
    if let Some(default) = &schema.default {
        one(errors, schema, default, &at.child("default"), must_be_pruned, root, meta);
    }
    if let Some(items) = &schema.items {
        walk(errors, items, &at.child("items"), must_be_pruned, false, meta);
    }
    let properties_at = at.child("properties");
    for (name, property) in &schema.properties {
        let path: Vec<&str> = meta.unwrap_or_default().iter().copied().chain([&**name]).collect();
        let begins = is_resource && matches!(&**name, "metadata" | "apiVersion" | "kind");
        let meta = (begins || meta.is_some()).then_some(path.as_slice());
        walk(errors, property, &properties_at.key(name), must_be_pruned, false, meta);
    }
}

fn one(
    errors: &mut ErrorList,
    schema: &Schema,
    default: &Value,
    at: &Path<'_>,
    must_be_pruned: bool,
    root: bool,
    meta: Option<&[&str]>,
) {
    let place = at.to_string();
    if let Some(names) = meta {
        // As part of an object that has nothing else.
        let mut object = names.iter().rev().fold(default.clone(), |inner, name| json!({*name: inner}));
        for (key, value) in [("apiVersion", "validation/v1"), ("kind", "Validation")] {
            if object.get(key).is_none() {
                object[key] = json!(value);
            }
        }
        let mut found = ErrorList::new();
        embedded::validate_one(&object, &mut found);
        if !found.is_empty() {
            let all: Vec<String> = found.list().iter().map(|e| format!("{}: {}", e.field, e.message)).collect();
            let all = if all.len() == 1 { all.concat() } else { format!("[{}]", all.join(", ")) };
            return errors
                .add(|| FieldError::invalid(at, default.clone(), &format!("must result in valid metadata: {all}")));
        }
        return errors.append(check::check(default, schema, &place, None));
    }
    if must_be_pruned && !unknown(default, schema, root).is_empty() {
        errors.add(|| FieldError::invalid(at, default.clone(), "must not have unknown fields"));
    }
    let mut coerced = default.clone();
    if let Err(why) = embedded::coerce(&mut coerced, schema, false) {
        return errors.add(|| FieldError::invalid(at, default.clone(), &why));
    }
    let mut found = ErrorList::new();
    embedded::validate(default, schema, Some(at), &mut found);
    if !found.is_empty() {
        return errors.append(found);
    }
    errors.append(check::check(default, schema, &place, None));
}
