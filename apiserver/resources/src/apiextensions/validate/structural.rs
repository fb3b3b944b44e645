//! Whether a schema is structural: every field has a type outside of alternatives, which don't specify structure.

use serde_json::{Map, Value};

use crate::apiextensions::schema::compile_pattern;
use crate::field::{ErrorList, Path};
use crate::read::{flag, get, is_zero, items, text};

#[derive(Clone, Copy, PartialEq)]
enum Level {
    Root,
    Item,
    Field,
}

/// The violations of structure, sorted.
pub(super) fn validate(schema: &Value, at: &Path<'_>) -> ErrorList {
    let mut errors = ErrorList::new();
    invariants(&mut errors, schema, Level::Root, at);
    completeness(&mut errors, schema, Some(schema), at);
    errors.sort();
    errors
}

fn properties(schema: &Value) -> impl Iterator<Item = (&String, &Value)> {
    get(schema, "properties").as_object().into_iter().flatten()
}

fn is_set(schema: &Value, key: &str) -> bool {
    !get(schema, key).is_null()
}

/// Whether alternatives are an integer and a string, with nothing else; some empty lists are nothing.
fn is_int_or_string(alternatives: &Value) -> bool {
    const NOTHING: [&str; 6] = ["allOf", "anyOf", "oneOf", "enum", "definitions", "patternProperties"];
    let empty = |key: &str| NOTHING.contains(&key);
    let one = |schema: &Value, kind: &str| {
        text(schema, "type") == kind
            && schema
                .as_object()
                .into_iter()
                .flatten()
                .all(|(key, value)| key == "type" || (is_zero(value) && empty(key)))
    };
    matches!(alternatives.as_array().map(Vec::as_slice), Some([a, b]) if one(a, "integer") && one(b, "string"))
}

fn invariants(errors: &mut ErrorList, schema: &Value, level: Level, at: &Path<'_>) {
    let kind = text(schema, "type");
    let items_schema = get(schema, "items");
    if kind == "array" && !items_schema.is_object() {
        errors.required(&at.child("items"), "must be specified");
    }
    if items_schema.is_object() {
        invariants(errors, items_schema, Level::Item, &at.child("items"));
    }
    let properties_at = at.child("properties");
    for (name, property) in properties(schema) {
        invariants(errors, property, Level::Field, &properties_at.key(name));
    }
    let additional = get(schema, "additionalProperties");
    if !additional.is_null() {
        if level == Level::Root {
            errors.forbidden(&at.child("additionalProperties"), "must not be used at the root");
        }
        if additional.is_object() {
            invariants(errors, additional, Level::Field, &at.child("additionalProperties"));
        }
    }
    extensions(errors, schema, at);
    let any_of = is_int_or_string(get(schema, "anyOf"));
    let all_of = items(schema, "allOf").first().is_some_and(|first| is_int_or_string(get(first, "anyOf")));
    value_validation(errors, schema, (any_of, all_of), level, at);
    types(errors, schema, kind, level, at);
    meta(errors, schema, level, at);
}

fn extensions(errors: &mut ErrorList, schema: &Value, at: &Path<'_>) {
    if !flag(schema, "x-kubernetes-int-or-string") {
        return;
    }
    for key in ["x-kubernetes-preserve-unknown-fields", "x-kubernetes-embedded-resource"] {
        if flag(schema, key) {
            errors.invalid(&at.child(key), true, "must be false if x-kubernetes-int-or-string is true");
        }
    }
}

fn types(errors: &mut ErrorList, schema: &Value, kind: &str, level: Level, at: &Path<'_>) {
    let embedded = flag(schema, "x-kubernetes-embedded-resource");
    let free = flag(schema, "x-kubernetes-int-or-string") || flag(schema, "x-kubernetes-preserve-unknown-fields");
    let type_at = at.child("type");
    if embedded && kind != "object" {
        let why = "must be object if x-kubernetes-embedded-resource is true";
        if kind.is_empty() { errors.required(&type_at, why) } else { errors.invalid(&type_at, kind, why) }
    } else if kind.is_empty() && !free {
        errors.required(
            &type_at,
            match level {
                Level::Root => "must not be empty at the root",
                Level::Item => "must not be empty for specified array items",
                Level::Field => "must not be empty for specified object fields",
            },
        );
    }
    if embedded && is_set(schema, "additionalProperties") {
        let why = "must not be used if x-kubernetes-embedded-resource is set";
        errors.forbidden(&at.child("additionalProperties"), why);
    }
    if level == Level::Root && !kind.is_empty() && kind != "object" {
        errors.invalid(&type_at, kind, "must be object at the root");
    }
}

fn meta(errors: &mut ErrorList, schema: &Value, level: Level, at: &Path<'_>) {
    let embedded = flag(schema, "x-kubernetes-embedded-resource");
    let checks = level == Level::Root || embedded;
    let properties_at = at.child("properties");
    let of_schema = get(schema, "properties");
    for key in ["kind", "apiVersion"] {
        let property = get(of_schema, key);
        if checks && property.is_object() && text(property, "type") != "string" {
            errors.invalid(&properties_at.key(key).child("type"), text(property, "type"), "must be string");
        }
    }
    let metadata = get(of_schema, "metadata");
    if metadata.is_object() {
        let at = properties_at.key("metadata");
        if checks && text(metadata, "type") != "object" {
            errors.invalid(&at.child("type"), text(metadata, "type"), "must be object");
        }
        if level == Level::Root && !only_names(metadata) {
            let why =
                "must not specify anything other than name and generateName, but metadata is implicitly specified";
            errors.forbidden(&at, why);
        }
    }
    let empty = of_schema.as_object().is_none_or(Map::is_empty);
    if embedded && !flag(schema, "x-kubernetes-preserve-unknown-fields") && empty {
        let why =
            "must not be empty if x-kubernetes-embedded-resource is true without x-kubernetes-preserve-unknown-fields";
        errors.required(&properties_at, why);
    }
}

/// Whether a schema of metadata restricts only `name` and `generateName`.
fn only_names(metadata: &Value) -> bool {
    let names = properties(metadata).all(|(name, _)| name == "name" || name == "generateName");
    let others = metadata.as_object().into_iter().flatten();
    names && others.into_iter().all(|(key, _)| matches!(key.as_str(), "type" | "properties" | "default"))
}

fn value_validation(
    errors: &mut ErrorList,
    schema: &Value,
    (skips_any_of, skips_first): (bool, bool),
    level: Level,
    at: &Path<'_>,
) {
    for key in ["anyOf", "allOf", "oneOf"] {
        if key == "anyOf" && skips_any_of {
            continue;
        }
        let below = at.child(key);
        for (i, schema) in items(schema, key).iter().enumerate() {
            nested(errors, schema, key == "allOf" && skips_first && i == 0, level, &below.index(i));
        }
    }
    if get(schema, "not").is_object() {
        nested(errors, get(schema, "not"), false, level, &at.child("not"));
    }
    let pattern = text(schema, "pattern");
    if !pattern.is_empty()
        && let Err(why) = compile_pattern(pattern)
    {
        let why = format!("must be a valid regular expression, but isn't: {why}");
        errors.invalid(&at.child("pattern"), pattern, &why);
    }
}

fn nested(errors: &mut ErrorList, schema: &Value, skips_any_of: bool, level: Level, at: &Path<'_>) {
    value_validation(errors, schema, (skips_any_of, false), level, at);
    if get(schema, "items").is_object() {
        nested(errors, get(schema, "items"), false, level, &at.child("items"));
    }
    let properties_at = at.child("properties");
    for (name, property) in properties(schema) {
        nested(errors, property, false, Level::Field, &properties_at.key(name));
    }
    let mut forbid = |key: &'static str, set: bool, why: &str| {
        if set {
            errors.forbidden(&at.child(key), why);
        }
    };
    forbid("type", !text(schema, "type").is_empty(), "must be empty to be structural");
    let additional = get(schema, "additionalProperties");
    let additional = additional.is_object() || additional == &Value::Bool(true);
    forbid("additionalProperties", additional, "must be undefined to be structural");
    forbid("default", is_set(schema, "default"), "must be undefined to be structural");
    forbid("title", !text(schema, "title").is_empty(), "must be empty to be structural");
    forbid("description", !text(schema, "description").is_empty(), "must be empty to be structural");
    forbid("nullable", flag(schema, "nullable"), "must be false to be structural");
    for key in ["x-kubernetes-preserve-unknown-fields", "x-kubernetes-embedded-resource", "x-kubernetes-int-or-string"]
    {
        forbid(key, flag(schema, key), "must be false to be structural");
    }
    let keys = !items(schema, "x-kubernetes-list-map-keys").is_empty();
    forbid("x-kubernetes-list-map-keys", keys, "must be empty to be structural");
    for key in ["x-kubernetes-list-type", "x-kubernetes-map-type"] {
        forbid(key, is_set(schema, key), "must be undefined to be structural");
    }
    let rules = !items(schema, "x-kubernetes-validations").is_empty();
    forbid("x-kubernetes-validations", rules, "must be empty to be structural");
    if is_set(get(schema, "properties"), "metadata") {
        errors.forbidden(&properties_at.key("metadata"), "must not be specified in a nested context");
    }
}

/// Checks that fields in alternatives of the root are also specified outside of them (upstream checks only the root).
fn completeness(errors: &mut ErrorList, validation: &Value, structure: Option<&Value>, at: &Path<'_>) {
    for key in ["allOf", "anyOf", "oneOf"] {
        let below = at.child(key);
        for (i, nested) in items(validation, key).iter().enumerate() {
            nested_completeness(errors, nested, structure, at, &below.index(i));
        }
    }
    if get(validation, "not").is_object() {
        nested_completeness(errors, get(validation, "not"), structure, at, &at.child("not"));
    }
}

/// `outside`: the path of the structure that lacks the fields.
fn nested_completeness(
    errors: &mut ErrorList,
    nested: &Value,
    structure: Option<&Value>,
    outside: &Path<'_>,
    inside: &Path<'_>,
) {
    for key in ["allOf", "anyOf", "oneOf"] {
        let below = inside.child(key);
        for (i, schema) in items(nested, key).iter().enumerate() {
            nested_completeness(errors, schema, structure, outside, &below.index(i));
        }
    }
    if get(nested, "not").is_object() {
        nested_completeness(errors, get(nested, "not"), structure, outside, &inside.child("not"));
    }
    let part = |key: &str| structure.map(|structure| get(structure, key)).filter(|part| part.is_object());
    if get(nested, "items").is_object() {
        match part("items") {
            None => {
                let why = format!("because it is defined in {}", inside.child("items"));
                errors.required(&outside.child("items"), &why);
            }
            items => {
                nested_completeness(
                    errors,
                    get(nested, "items"),
                    items,
                    &outside.child("items"),
                    &inside.child("items"),
                );
            }
        }
    }
    let (outer, inner) = (outside.child("properties"), inside.child("properties"));
    for (name, property) in properties(nested) {
        match part("properties").map(|all| get(all, name)).filter(|found| found.is_object()) {
            None => errors.required(&outer.key(name), &format!("because it is defined in {}", inner.key(name))),
            found => nested_completeness(errors, property, found, &outer.key(name), &inner.key(name)),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Upstream's answers.
    #[test]
    fn some_empty_lists_beside_an_integer_or_a_string_are_nothing() {
        for (key, empty, is) in [
            ("oneOf", json!([]), true),
            ("enum", json!([]), true),
            ("definitions", json!({}), true),
            ("required", json!([]), false),
            ("properties", json!({}), false),
            ("x-kubernetes-validations", json!([]), false),
        ] {
            assert_eq!(is_int_or_string(&json!([{"type": "integer", key: empty}, {"type": "string"}])), is, "{key}");
        }
        assert!(!is_int_or_string(&json!([{"type": "string"}, {"type": "integer"}])));
    }
}
