//! Validates a schema's defaults against the schema itself.

use apiserver_cel::Budget;
use serde_json::{Value, json};

use crate::apiextensions::schema::{Schema, check, compile, embedded, prune, rules};
use crate::field::{ErrorList, FieldError, Path};

/// Validates the defaults of a structural schema.
pub(super) fn validate(schema: &Value, at: &Path<'_>, must_be_pruned: bool) -> ErrorList {
    let mut errors = ErrorList::new();
    // A default of the root must be an object with a kind and metadata.
    let whole = (!schema["default"].is_null()).then(|| {
        let mut whole = schema.clone();
        whole["x-kubernetes-embedded-resource"] = json!(true);
        whole
    });
    // Invalid patterns have been reported before.
    if let Ok(compiled) = compile(whole.as_ref().unwrap_or(schema)) {
        let mut all = DefaultsValidator { errors: &mut errors, must_be_pruned, budget: Budget::default() };
        all.walk(&compiled, at, true, None);
    }
    errors
}

/// Whether no default has unknown fields; those of stored definitions may have some.
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
    // The kind and metadata of the root and of embedded objects are known.
    let mut paths = prune(&mut pruned, schema);
    if !root && !schema.embedded {
        let own = ["apiVersion", "kind", "metadata"].into_iter().filter(|key| default.get(key).is_some());
        paths.extend(own.filter(|key| !schema.properties.contains_key(key) && !schema.preserves).map(Into::into));
    }
    paths
}

struct DefaultsValidator<'e> {
    errors: &'e mut ErrorList,
    must_be_pruned: bool,
    /// Shared by the rules of all defaults.
    budget: Budget<'static>,
}

impl DefaultsValidator<'_> {
    /// `meta`: the path within an object's kind, version or metadata.
    fn walk(&mut self, schema: &Schema, at: &Path<'_>, root: bool, meta: Option<&[&str]>) {
        if !schema.has.defaults || self.budget.exhausted() {
            return;
        }
        let is_resource = root || schema.embedded;
        let meta = if is_resource { None } else { meta };
        if let Some(default) = &schema.default {
            self.validate_default(schema, default, &at.child("default"), root, meta);
        }
        if let Some(items) = &schema.items {
            self.walk(items, &at.child("items"), false, meta);
        }
        let properties_at = at.child("properties");
        for (name, property) in schema.properties.iter() {
            let path: Vec<&str> = meta.unwrap_or_default().iter().copied().chain([name]).collect();
            let begins = is_resource && matches!(name, "metadata" | "apiVersion" | "kind");
            let meta = (begins || meta.is_some()).then_some(path.as_slice());
            self.walk(property, &properties_at.key(name), false, meta);
        }
    }

    fn validate_default(&mut self, schema: &Schema, default: &Value, at: &Path<'_>, root: bool, meta: Option<&[&str]>) {
        if let Some(names) = meta {
            if let Some(why) = in_metadata(default, names) {
                return self.errors.add(|| FieldError::invalid(at, default.clone(), &why));
            }
        } else {
            let is_unknown = self.must_be_pruned && !unknown(default, schema, root).is_empty();
            // Unknown metadata fields are dropped first, so that errors don't show them.
            let mut coerced = default.clone();
            let malformed = embedded::coerce(&mut coerced, schema, false).err();
            if is_unknown {
                self.errors.add(|| FieldError::invalid(at, coerced.clone(), "must not have unknown fields"));
            }
            if let Some(wrong) = malformed {
                return self.errors.add(|| wrong.below(at));
            }
            let mut found = ErrorList::new();
            embedded::validate(&coerced, schema, Some(at), &mut found);
            if !found.is_empty() {
                return self.errors.append(found);
            }
            return self.held_to_schema(schema, &coerced, at);
        }
        self.held_to_schema(schema, default, at);
    }

    fn held_to_schema(&mut self, schema: &Schema, default: &Value, at: &Path<'_>) {
        let wrong = check::check_default(default, schema, &at.to_string());
        match wrong.is_empty() {
            true => self.errors.append(rules::check_default(default, schema, at, &mut self.budget)),
            false => self.errors.append(wrong),
        }
    }
}

/// Why a default within an object's kind, version or metadata is invalid, tested in an object that has nothing else.
fn in_metadata(default: &Value, names: &[&str]) -> Option<String> {
    let mut object = names.iter().rev().fold(default.clone(), |inner, name| json!({*name: inner}));
    for (key, value) in [("apiVersion", "validation/v1"), ("kind", "Validation")] {
        if object.get(key).is_none() {
            object[key] = json!(value);
        }
    }
    let mut found = ErrorList::new();
    embedded::validate_one(&object, &mut found);
    let own = |error: &FieldError| error.field.strip_prefix("default.").unwrap_or(&error.field).to_owned();
    let all: Vec<String> = found.shown().iter().map(|error| format!("{}: {}", own(error), error.message)).collect();
    match &*all {
        [] => None,
        [one] => Some(format!("must result in valid metadata: {one}")),
        more => Some(format!("must result in valid metadata: [{}]", more.join(", "))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_held_to_rules() {
        let wrong = |default: Value, rule: &str| {
            let property = json!({"type": "integer", "default": default, "x-kubernetes-validations": [{"rule": rule}]});
            let schema = json!({"type": "object", "properties": {"a": property}});
            let found = validate(&schema, &Path::root("s"), true).shown().to_vec();
            found.into_iter().map(|error| format!("{}: {}", error.field, error.message)).collect::<Vec<_>>()
        };
        let none: [&str; 0] = [];
        assert_eq!(wrong(json!(5), "self > 3"), none);
        assert_eq!(wrong(json!(2), "self > 3"), ["s.properties[a].default: Invalid value: 2: failed rule: self > 3"]);
        // Also evaluated as an update.
        let twice = "s.properties[a].default: Invalid value: 5: failed rule: self > oldSelf";
        assert_eq!(wrong(json!(5), "self > oldSelf"), [twice]);
        assert_eq!(wrong(json!(5), "self >= oldSelf"), none);
    }

    /// Upstream's answers.
    #[test]
    fn unknown_types_and_numbers_or_texts_are_checked_as_upstream_does() {
        let wrong = |property: Value| {
            let schema = json!({"type": "object", "properties": {"z": property}});
            let found = validate(&schema, &Path::root("s"), true).shown().to_vec();
            found.into_iter().map(|error| format!("{}: {}", error.field, error.message)).collect::<Vec<_>>()
        };
        let of = |is: &str, kind: &str| {
            format!(r#"s.properties[z].default: Invalid value: "{is}":  in body must be of type {kind}: "{is}""#)
        };
        assert_eq!(wrong(json!({"type": "bogus", "default": 1})), [of("integer", "bogus")]);
        assert_eq!(wrong(json!({"type": "bogus", "default": null})), [""; 0]);
        for default in [json!({}), json!(true), json!(1.5)] {
            assert_eq!(wrong(json!({"x-kubernetes-int-or-string": true, "default": default})), [""; 0]);
        }
        let either = json!([{"type": "integer"}, {"type": "string"}]);
        let found = wrong(json!({"x-kubernetes-int-or-string": true, "anyOf": either, "default": true}));
        assert_eq!(found.last(), Some(&of("boolean", "integer")));
        assert_eq!(found.len(), 2, "{found:?}");
    }

    #[test]
    fn malformed_objects_are_named_by_their_place() {
        let schema = json!({"type": "object", "properties": {"a": {"type": "object", "default": {"b": {"metadata": 42}},
            "properties": {"b": {"type": "object", "x-kubernetes-embedded-resource": true}}}}});
        let found = validate(&schema, &Path::root("s"), true).shown().to_vec();
        let why = "Invalid value: 42: json: cannot unmarshal number into Go value of type v1.ObjectMeta";
        assert_eq!((&*found[0].field, &*found[0].message), ("s.properties[a].default.b.metadata", why));
    }
}
