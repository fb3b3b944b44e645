//! Validates an OpenAPI schema of a definition: keywords, structure, defaults, and the schemas below.

use std::cell::RefCell;

use serde_json::{Map, Value};

use super::options::Options;
use super::rules;
use super::{defaults, field_path, go_format, structural};
use crate::apiextensions::schema::{DEPTH_MAX, NODES_MAX, compile};
use crate::field::{ERRORS_MAX, ErrorList, FieldError, Path};
use crate::read::{flag, get, items, text, texts};

const TYPES: &[&str] = &["array", "boolean", "integer", "number", "object", "string"];

pub(super) fn is_type(kind: &str) -> bool {
    kind.is_empty() || TYPES.contains(&kind)
}

/// The JSON type of a schema keyword's value.
fn keyword(key: &str) -> Option<&'static str> {
    Some(match key {
        "$ref"
        | "$schema"
        | "description"
        | "format"
        | "id"
        | "pattern"
        | "title"
        | "type"
        | "x-kubernetes-list-type"
        | "x-kubernetes-map-type" => "string",
        "exclusiveMaximum"
        | "exclusiveMinimum"
        | "nullable"
        | "uniqueItems"
        | "x-kubernetes-embedded-resource"
        | "x-kubernetes-int-or-string"
        | "x-kubernetes-preserve-unknown-fields" => "boolean",
        "maxItems" | "maxLength" | "maxProperties" | "minItems" | "minLength" | "minProperties" => "integer",
        "maximum" | "minimum" | "multipleOf" => "number",
        "allOf"
        | "anyOf"
        | "enum"
        | "oneOf"
        | "required"
        | "x-kubernetes-list-map-keys"
        | "x-kubernetes-validations" => "array",
        "definitions" | "dependencies" | "externalDocs" | "not" | "patternProperties" | "properties" => "object",
        "additionalItems" | "additionalProperties" | "default" | "example" | "items" => "",
        _ => return None,
    })
}

/// Whether a key is a schema keyword.
pub(crate) fn is_keyword(key: &str) -> bool {
    keyword(key).is_some()
}

/// The schemas directly below one.
fn below(schema: &Value) -> impl Iterator<Item = &Value> {
    let several = ["allOf", "anyOf", "oneOf"].into_iter().flat_map(|key| items(schema, key));
    let one = ["items", "not", "additionalProperties", "additionalItems"].into_iter().map(|key| get(schema, key));
    let maps = ["properties", "patternProperties", "definitions", "dependencies"];
    let named = maps.into_iter().flat_map(|key| get(schema, key).as_object().into_iter().flatten()).map(|(_, v)| v);
    several.chain(one.filter(|schema| schema.is_object())).chain(named).chain(items(schema, "items"))
}

/// Whether a schema, or one below it, satisfies a predicate.
pub(super) fn any(schema: &Value, pred: &mut dyn FnMut(&Value) -> bool) -> bool {
    schema.is_object() && (pred(schema) || below(schema).any(|schema| any(schema, &mut *pred)))
}

/// Whether a schema itself has an extension that only structural schemas may have.
pub(super) fn has_extensions(schema: &Value) -> bool {
    let has = |key: &str| !get(schema, &format!("x-kubernetes-{key}")).is_null();
    let is = |key: &str| flag(schema, &format!("x-kubernetes-{key}"));
    let any = |key: &str| !items(schema, &format!("x-kubernetes-{key}")).is_empty();
    is("embedded-resource")
        || is("int-or-string")
        || has("preserve-unknown-fields")
        || has("list-type")
        || any("list-map-keys")
        || any("validations")
}

/// Counts the schemas, up to one more than allowed, and checks the depth.
fn measure(schema: &Value, depth: usize, nodes: &mut usize) -> usize {
    *nodes += 1;
    if depth > DEPTH_MAX || *nodes > NODES_MAX {
        return depth;
    }
    below(schema).map(|schema| measure(schema, depth + 1, nodes)).max().unwrap_or(depth)
}

/// A version's `schema`.
pub(super) fn validation(
    errors: &mut ErrorList,
    validation: &Value,
    has_status: bool,
    options: &Options,
    at: &Path<'_>,
) {
    let schema = get(validation, "openAPIV3Schema");
    if !schema.is_object() {
        return;
    }
    let before = errors.count();
    let schema_at = at.child("openAPIV3Schema");
    let mut nodes = 0;
    if measure(schema, 0, &mut nodes) > DEPTH_MAX {
        return errors.invalid(&schema_at, "", &format!("must not nest deeper than {DEPTH_MAX} schemas"));
    }
    if nodes > NODES_MAX {
        return errors.invalid(&schema_at, "", &format!("must not hold more than {NODES_MAX} schemas"));
    }
    if has_status {
        status_root(errors, schema, at);
    }
    if flag(schema, "nullable") {
        errors.forbidden(&at.child("openAPIV3Schema.nullable"), "nullable cannot be true at the root");
    }
    let (structural_before, mut unsupported) = (errors.count(), None);
    if options.requires_structure {
        unsupported = unsupported_field(schema);
        if unsupported.is_none() {
            let mut found = structural::validate(schema, &schema_at);
            if found.is_empty() {
                found = defaults::validate(schema, &schema_at, options.requires_pruned);
            }
            errors.append(found);
        }
    }
    let is_structural = errors.count() == structural_before && unsupported.is_none();
    let wrong = RefCell::default();
    let walk = Walk { options, allows_defaults: true, reason: "", in_meta: false, wrong: &wrong };
    walk.schema(errors, schema, true, &schema_at);
    let mut wrong = wrong.into_inner();
    if wrong.len() > ERRORS_MAX {
        wrong = vec![schema_at.to_string()];
    }
    if errors.count() == before
        && let Some(why) = unsupported
    {
        errors.invalid(&schema_at, "", &why);
    }
    if options.requires_structure && is_structural {
        rules::validate(errors, schema, (options, &wrong), &schema_at);
    }
    if errors.count() == before
        && let Err(problem) = compile(schema)
    {
        errors.invalid(at, "", &format!("error building validator: {problem}"));
    }
}

/// With a status subresource, the root schema may have only certain keywords beside the properties.
fn status_root(errors: &mut ErrorList, schema: &Value, at: &Path<'_>) {
    const ALLOWED: &[&str] = &[
        "description",
        "type",
        "format",
        "title",
        "maximum",
        "exclusiveMaximum",
        "minimum",
        "exclusiveMinimum",
        "maxLength",
        "minLength",
        "pattern",
        "maxItems",
        "minItems",
        "uniqueItems",
        "multipleOf",
        "required",
        "items",
        "properties",
        "externalDocs",
        "example",
        "x-kubernetes-preserve-unknown-fields",
        "x-kubernetes-validations",
    ];
    const NAMES: &str = "[Description Type Format Title Maximum ExclusiveMaximum Minimum ExclusiveMinimum MaxLength MinLength \
        Pattern MaxItems MinItems UniqueItems MultipleOf Required Items Properties ExternalDocs Example \
        XPreserveUnknownFields XValidations]";
    let kind = text(schema, "type");
    // Upstream stops at the first error, in the order of its fields.
    let is_first = ["id", "$schema", "$ref"].into_iter().all(|key| get(schema, key).is_null());
    if is_first && !kind.is_empty() && kind != "object" {
        let why =
            "only \"object\" is allowed as the type at the root of the schema if the status subresource is enabled";
        return errors.invalid(&at.child("openAPIV3Schema.type"), kind, why);
    }
    if schema.as_object().into_iter().flatten().any(|(key, _)| !ALLOWED.contains(&key.as_str())) {
        let why =
            format!("only {NAMES} fields are allowed at the root of the schema if the status subresource is enabled");
        errors.add(|| FieldError::invalid_shown(&at.child("openAPIV3Schema"), &go_format::schema(schema), &why));
    }
}

/// A keyword that structural schemas can't have.
pub(super) fn unsupported_field(schema: &Value) -> Option<String> {
    let mut found = None;
    any(schema, &mut |schema| {
        let set = |key: &str| match get(schema, key) {
            Value::Null => false,
            Value::String(text) => !text.is_empty(),
            Value::Object(map) => !map.is_empty(),
            _ => true,
        };
        let keys = ["id", "$schema", "$ref", "patternProperties", "dependencies", "additionalItems", "definitions"];
        if let Some(key) = keys.into_iter().find(|key| set(key)) {
            found =
                Some(format!("OpenAPIV3Schema '{}' is not supported", if key == "$schema" { "schema" } else { key }));
        } else if get(schema, "items").is_array() {
            found = Some("OpenAPIV3Schema 'items' must be a schema, but is an array".into());
        } else if get(schema, "x-kubernetes-preserve-unknown-fields") == &Value::Bool(false) {
            found = Some("internal error: 'x-kubernetes-preserve-unknown-fields' must be true or undefined".into());
        }
        found.is_some()
    });
    found
}

#[derive(Clone, Copy)]
struct Walk<'a> {
    options: &'a Options,
    allows_defaults: bool,
    /// Why defaults are forbidden.
    reason: &'a str,
    /// Whether the schema is within a kind, a version or metadata.
    in_meta: bool,
    /// The paths of invalid schemas, up to one more than are reported.
    wrong: &'a RefCell<Vec<String>>,
}

impl<'a> Walk<'a> {
    fn without_defaults(self, reason: &'a str) -> Self {
        Self { allows_defaults: false, reason, ..self }
    }

    fn schema(self, errors: &mut ErrorList, schema: &Value, is_root: bool, at: &Path<'_>) {
        let Value::Object(map) = schema else { return };
        let before = errors.count();
        let fits = keyword_types(errors, map, at);
        if fits {
            self.keywords(errors, schema, at);
        }
        let of_keywords = errors.count() - before;
        if fits {
            self.below(errors, schema, is_root, at);
            let before = errors.count();
            structural_extensions(errors, schema, self.options, at);
            rule_texts(errors, schema, at);
            if errors.count() == before && of_keywords == 0 {
                return;
            }
        }
        let mut wrong = self.wrong.borrow_mut();
        if wrong.len() <= ERRORS_MAX {
            wrong.push(at.to_string());
        }
    }

    fn below(self, errors: &mut ErrorList, schema: &Value, is_root: bool, at: &Path<'_>) {
        let additional = get(schema, "additionalProperties");
        if !additional.is_null() {
            let inside = "inside additionalProperties applying to object metadata";
            let below = if self.in_meta { self.without_defaults(inside) } else { self };
            below.schema(errors, additional, false, &at.child("additionalProperties"));
        }
        self.properties(errors, schema, is_root, at);
        self.schema(errors, get(schema, "not"), false, &at.child("not"));
        for key in ["allOf", "oneOf", "anyOf"] {
            let below = at.child(key);
            for (i, schema) in items(schema, key).iter().enumerate() {
                self.schema(errors, schema, false, &below.index(i));
            }
        }
        for key in ["definitions", "dependencies"] {
            let below = at.child(key);
            for (name, schema) in get(schema, key).as_object().into_iter().flatten() {
                self.schema(errors, schema, false, &below.key(name));
            }
        }
        let items_at = at.child("items");
        self.schema(errors, get(schema, "items"), false, &items_at);
        for (i, schema) in items(schema, "items").iter().enumerate() {
            self.schema(errors, schema, false, &items_at.index(i));
        }
    }

    fn properties(self, errors: &mut ErrorList, schema: &Value, is_root: bool, at: &Path<'_>) {
        let properties_at = at.child("properties");
        for (name, property) in get(schema, "properties").as_object().into_iter().flatten() {
            let mut below = self;
            let reason;
            let is_meta = matches!(name.as_str(), "metadata" | "kind" | "apiVersion");
            if is_meta && (is_root || flag(schema, "x-kubernetes-embedded-resource")) {
                below.in_meta = true;
                if is_root {
                    reason = format!("in top-level {name}");
                    Walk { allows_defaults: false, reason: &reason, in_meta: true, ..self }.schema(
                        errors,
                        property,
                        false,
                        &properties_at.key(name),
                    );
                    continue;
                }
            }
            below.schema(errors, property, false, &properties_at.key(name));
        }
    }

    fn keywords(self, errors: &mut ErrorList, schema: &Value, at: &Path<'_>) {
        let kind = text(schema, "type");
        if self.options.requires_types && !is_type(kind) {
            errors.not_supported(&at.child("type"), kind, TYPES);
        }
        if !get(schema, "default").is_null() && !self.allows_defaults {
            let why = if self.reason.is_empty() { String::new() } else { format!(" {}", self.reason) };
            errors.forbidden(&at.child("default"), &format!("must not be set{why}"));
        }
        for key in ["id", "additionalItems", "patternProperties", "definitions", "dependencies", "$ref"] {
            let set = match get(schema, key) {
                Value::Null => false,
                // Upstream tests these for presence, the others for content.
                _ if matches!(key, "$ref" | "dependencies" | "additionalItems") => true,
                Value::String(text) => !text.is_empty(),
                Value::Object(map) => !map.is_empty(),
                _ => true,
            };
            if set {
                errors.forbidden(&at.child(key), &format!("{key} is not supported"));
            }
        }
        if kind == "null" {
            errors.forbidden(&at.child("type"), "type cannot be set to null, use nullable as an alternative");
        }
        if !items(schema, "items").is_empty() {
            errors.forbidden(&at.child("items"), "items must be a schema object and not an array");
        }
        if self.in_meta && flag(schema, "x-kubernetes-embedded-resource") {
            let why = "must not be used inside of resource meta";
            errors.forbidden(&at.child("x-kubernetes-embedded-resource"), why);
        }
        if flag(schema, "uniqueItems") {
            let why = "uniqueItems cannot be set to true since the runtime complexity becomes quadratic";
            errors.forbidden(&at.child("uniqueItems"), why);
        }
        let additional = get(schema, "additionalProperties");
        let properties = get(schema, "properties").as_object().is_some_and(|map| !map.is_empty());
        if properties && !additional.is_null() && additional != &Value::Bool(true) {
            let why = "additionalProperties and properties are mutual exclusive";
            errors.forbidden(&at.child("additionalProperties"), why);
        }
    }
}

/// Whether every keyword's value has its JSON type. Keywords of several types are not checked, as in Go's decoding.
fn keyword_types(errors: &mut ErrorList, map: &Map<String, Value>, at: &Path<'_>) -> bool {
    let before = errors.count();
    for (key, value) in map {
        let Some(wanted) = keyword(key) else { continue };
        let fits = match wanted {
            "string" => value.is_string(),
            "boolean" => value.is_boolean(),
            "integer" => value.is_i64(),
            "number" => value.is_number(),
            "array" => value.is_array(),
            "object" => value.is_object(),
            _ => true,
        };
        if !fits && !value.is_null() {
            errors
                .add(|| FieldError::type_invalid(&at.child(key), value.clone(), &format!("must be of type {wanted}")));
        }
    }
    errors.count() == before
}

/// The structural `x-kubernetes-…` extensions.
fn structural_extensions(errors: &mut ErrorList, schema: &Value, options: &Options, at: &Path<'_>) {
    let kind = text(schema, "type");
    let key = "x-kubernetes-preserve-unknown-fields";
    if get(schema, key) == &Value::Bool(false) {
        errors.invalid(&at.child(key), false, "must be true or undefined");
    }
    let of_type = |errors: &mut ErrorList, wanted: &str, key: &str| {
        let why = format!("must be {wanted} if {key} is specified");
        let at = at.child("type");
        if kind.is_empty() { errors.required(&at, &why) } else { errors.invalid(&at, kind, &why) }
    };
    let map_type = get(schema, "x-kubernetes-map-type");
    if let Some(map_type) = map_type.as_str() {
        if kind != "object" {
            of_type(errors, "object", "x-kubernetes-map-type");
        }
        if !matches!(map_type, "atomic" | "granular") {
            errors.not_supported(&at.child("x-kubernetes-map-type"), map_type, &["atomic", "granular"]);
        }
    }
    let listed = get(schema, "x-kubernetes-list-type").as_str();
    let list_at = at.child("x-kubernetes-list-type");
    let of_items = get(schema, "items");
    if listed.is_some() && kind != "array" {
        of_type(errors, "array", "x-kubernetes-list-type");
    } else if options.requires_atomic_sets && listed == Some("set") && of_items.is_object() {
        let why = "must be atomic as item of a list with x-kubernetes-list-type=set";
        let items_at = at.child("items");
        match text(of_items, "type") {
            "array" if !matches!(text(of_items, "x-kubernetes-list-type"), "" | "atomic") => {
                let shown = get(of_items, "x-kubernetes-list-type").clone();
                errors.invalid(&items_at.child("x-kubernetes-list-type"), shown, why);
            }
            "object" if text(of_items, "x-kubernetes-map-type") != "atomic" => {
                let shown = get(of_items, "x-kubernetes-list-type").clone();
                errors.invalid(&items_at.child("x-kubernetes-map-type"), shown, why);
            }
            _ => {}
        }
    }
    if let Some(listed) = listed.filter(|listed| !matches!(*listed, "atomic" | "set" | "map")) {
        errors.not_supported(&list_at, listed, &["atomic", "set", "map"]);
    }
    let keys: Vec<&str> = texts(schema, "x-kubernetes-list-map-keys").collect();
    if !keys.is_empty() && listed != Some("map") {
        let why = "must be map if x-kubernetes-list-map-keys is non-empty";
        match listed {
            None => errors.required(&list_at, why),
            Some(listed) => errors.invalid(&list_at, listed, why),
        }
    }
    if listed == Some("map") {
        list_map(errors, schema, &keys, at);
    }
    if options.requires_list_keys {
        list_keys(errors, schema, at);
    }
}

fn list_map(errors: &mut ErrorList, schema: &Value, keys: &[&str], at: &Path<'_>) {
    let keys_at = at.child("x-kubernetes-list-map-keys");
    let items_at = at.child("items");
    let of_items = get(schema, "items");
    if keys.is_empty() {
        errors.required(&keys_at, "must not be empty if x-kubernetes-list-type is map");
    }
    if of_items.is_null() {
        return errors.required(&items_at, "must have a schema if x-kubernetes-list-type is map");
    }
    if !of_items.is_object() {
        let why = "must only have a single schema if x-kubernetes-list-type is map";
        return errors.add(|| FieldError::invalid_shown(&items_at, &go_format::of_items(schema), why));
    }
    let kind = text(of_items, "type");
    if kind != "object" {
        let why = "must be object if parent array's x-kubernetes-list-type is map";
        return errors.invalid(&items_at.child("type"), kind, why);
    }
    for (i, key) in keys.iter().enumerate() {
        let shown = || get(schema, "x-kubernetes-list-map-keys").clone();
        let property = get(get(of_items, "properties"), key);
        if !property.is_object() {
            errors.invalid(&keys_at, shown(), "entries must all be names of item properties");
        } else if matches!(text(property, "type"), "array" | "object") {
            let why = "must be a scalar type if parent array's x-kubernetes-list-type is map";
            errors.invalid(&items_at.child("properties").key(key).child("type"), kind, why);
        }
        if keys[..i].contains(key) {
            errors.invalid(&keys_at, shown(), "must not contain duplicate entries");
        }
    }
}

/// Keys of list maps must be present, and items must not be nullable.
pub(super) fn list_keys(errors: &mut ErrorList, schema: &Value, at: &Path<'_>) {
    let (listed, of_items) = (text(schema, "x-kubernetes-list-type"), get(schema, "items"));
    if !of_items.is_object() || !matches!(listed, "set" | "map") {
        return;
    }
    let items_at = at.child("items");
    if flag(of_items, "nullable") {
        let why = format!("cannot be nullable when x-kubernetes-list-type is {listed}");
        errors.forbidden(&items_at.child("nullable"), &why);
    }
    if listed != "map" {
        return;
    }
    let properties_at = items_at.child("properties");
    for key in texts(schema, "x-kubernetes-list-map-keys") {
        let property = get(get(of_items, "properties"), key);
        if !property.is_object() {
            continue;
        }
        let at = properties_at.key(key);
        if !texts(of_items, "required").any(|required| required == key) && get(property, "default").is_null() {
            let why =
                "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property";
            errors.required(&at.child("default"), why);
        }
        if flag(property, "nullable") {
            let why = "this property is in x-kubernetes-list-map-keys, so it cannot be nullable";
            errors.forbidden(&at.child("nullable"), why);
        }
    }
}

/// The texts of rules, without their expressions.
fn rule_texts(errors: &mut ErrorList, schema: &Value, at: &Path<'_>) {
    const REASONS: &[&str] = &["FieldValueDuplicate", "FieldValueForbidden", "FieldValueInvalid", "FieldValueRequired"];
    let rules_at = at.child("x-kubernetes-validations");
    for (i, rule) in items(schema, "x-kubernetes-validations").iter().enumerate() {
        let at = rules_at.index(i);
        let broken = |text: &str| text.contains(['\n', '\r']);
        let (expression, message) = (text(rule, "rule").trim(), text(rule, "message"));
        if expression.is_empty() {
            errors.required(&at.child("rule"), "rule is not specified");
        } else if !message.is_empty() && message.trim().is_empty() {
            errors.invalid(&at.child("message"), message, "must be non-empty if specified");
        } else if broken(message.trim()) {
            errors.invalid(&at.child("message"), message, "must not contain line breaks");
        } else if broken(expression) && message.trim().is_empty() {
            errors.required(&at.child("message"), "message must be specified if rule contains line breaks");
        }
        let of_message = text(rule, "messageExpression");
        if !of_message.is_empty() && of_message.trim().is_empty() {
            errors.required(&at.child("messageExpression"), "messageExpression must be non-empty if specified");
        }
        if let Some(reason) = get(rule, "reason").as_str().filter(|reason| !REASONS.contains(reason)) {
            errors.not_supported(&at.child("reason"), reason, REASONS);
        }
        let path = text(rule, "fieldPath");
        let path_at = at.child("fieldPath");
        if !path.is_empty() && path.trim().is_empty() {
            errors.invalid(&path_at, path, "must be non-empty if specified");
        }
        if broken(path) {
            errors.invalid(&path_at, path, "must not contain line breaks");
        }
        // The path can't be checked in a schema that isn't structural.
        let is_wrong = !path.is_empty() && field_path::parse(path, schema, true).is_err();
        if is_wrong && unsupported_field(schema).is_none() {
            errors.invalid(&path_at, path, "must be a valid path");
        }
    }
}
