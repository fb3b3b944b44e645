//! Decodes objects without a Go struct, of a kind whose schema was added at run time. They are JSON as given, except
//! for their metadata. Fields that the schema doesn't have are pruned and reported on request. Type errors are found
//! later, by validation.

use std::fmt;
use std::sync::{Arc, LazyLock};

use serde_json::{Map, Value};

use super::budget::Budget;
use super::built_in;
use super::decode::{Decoded, FieldValidation, Target};
use super::raw::Raw;
use super::typed::{self, Converter, FINDINGS_MAX, Form};
use super::types::{Field, Kind, Type, TypeRef, Types};
use machinery_api::error::{ApiError, ApiResult, Cause, GroupResource};
use machinery_api::selector::go_quoted;

const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";

/// What happens to nulls that the schema doesn't allow and that have no default.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Nulls {
    /// They are dropped, as Go's decoder does with a struct's fields: of a body, and of the result of a patch.
    Drop,
    /// They are kept, and validation rejects them: of the result of an apply, and of admission.
    Keep,
}

/// Operations of a kind's own schema on its objects.
pub trait Unstructured: Send + Sync + fmt::Debug {
    /// Prunes fields that the schema doesn't have. Returns the pruned paths in order; the error names invalid metadata
    /// of an embedded object.
    fn coerce(&self, object: &mut Value, nulls: Nulls) -> Result<Vec<String>, String>;
    /// Sets the schema's defaults.
    fn default(&self, object: &mut Value);
}

/// A type set with one type: an object with kind, metadata and arbitrary fields.
static FREE: LazyLock<Types> = LazyLock::new(|| {
    let base = built_in().clone();
    let metadata = base.id(OBJECT_META).expect("a built-in type");
    let plain = |name: &'static str, kind| Field { omit_empty: true, ..Field::new(name.into(), kind) };
    let fields =
        vec![plain("apiVersion", Kind::String), plain("kind", Kind::String), plain("metadata", Kind::Object(metadata))];
    let mut free = Type::object("unstructured", fields);
    free.preserves_unknown = true;
    let first = base.first + base.own.len() as u32;
    Types { base: Some(base), first, own: vec![free], ..Types::default() }
});

fn free() -> TypeRef<'static> {
    TypeRef { types: &FREE, of: &FREE.own[0] }
}

/// A decoded object with its strict findings.
struct DecodedUnstructured {
    object: Value,
    findings: Vec<String>,
}

/// Decodes an object: its metadata by its type, the rest by `schema`; the error is Go's message.
fn read(raw: Raw, schema: &dyn Unstructured, nulls: Nulls, budget: &mut Budget) -> Result<DecodedUnstructured, String> {
    let mut findings = typed::doubled_keys(&raw);
    let converted = typed::convert(free(), raw, Form::Sparse, budget)?;
    let mut object = converted.object;
    whole_numbers(&mut object);
    let unknown = |path: &str| format!("unknown field {}", go_quoted(path));
    findings.extend(converted.findings.into_iter().filter(|finding| finding.starts_with("unknown field")));
    let taken = schema.coerce(&mut object, nulls)?;
    findings.extend(taken.iter().map(|path| unknown(path)));
    findings.truncate(FINDINGS_MAX);
    Ok(DecodedUnstructured { object, findings })
}

/// Prints whole numbers that were written with a decimal point without one, as Go does.
fn whole_numbers(value: &mut Value) {
    const EXACT_MAX: f64 = 9_007_199_254_740_992.0;
    match value {
        Value::Number(number) if number.is_f64() => {
            if let Some(n) = number.as_f64().filter(|n| n.fract() == 0.0 && n.abs() <= EXACT_MAX) {
                #[expect(clippy::cast_possible_truncation, reason = "whole and exact")]
                let whole = n as i64;
                *value = whole.into();
            }
        }
        Value::Array(items) => items.iter_mut().for_each(whole_numbers),
        Value::Object(map) => map.values_mut().for_each(whole_numbers),
        _ => {}
    }
}

/// Decodes a request's body whose kind and version were read already.
pub(super) fn body(
    raw: Raw,
    doubled: Vec<String>,
    (kind, version): (&str, &str),
    schema: &dyn Unstructured,
    target: &Target<'_>,
    budget: &mut Budget,
) -> ApiResult<(Value, Vec<String>)> {
    let expected = target.group_version().to_string();
    if version != expected {
        return Err(ApiError::BadRequest(format!(
            "the API version in the data ({version}) does not match the expected API version ({expected})"
        )));
    }
    let read = read(raw, schema, Nulls::Drop, budget).map_err(|error| {
        // Metadata are decoded on their own.
        let error = error.replacen("Go struct field ObjectMeta.metadata.", "Go struct field ObjectMeta.", 1);
        ApiError::BadRequest(format!(
            "{kind} in version {} cannot be handled as a {}: {error}",
            go_quoted(target.version),
            target.kind
        ))
    });
    budget.check()?;
    let read = read?;
    if kind != target.kind {
        let cause = Cause {
            reason: "FieldValueInvalid".into(),
            message: format!("Invalid value: {}: must be {}", go_quoted(kind), target.kind),
            field: "kind".into(),
        };
        let name = read.object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        return Err(ApiError::Invalid(GroupResource::new(target.group, kind), name, vec![cause]));
    }
    let mut findings = doubled;
    findings.extend(read.findings);
    Ok((read.object, findings))
}

/// Decodes the result of a patch or of an apply.
pub(crate) fn value(
    object: Value,
    (schema, nulls): (&dyn Unstructured, Nulls),
    target: &Target<'_>,
    validation: FieldValidation,
    budget: &mut Budget,
) -> Result<Decoded, String> {
    let expected = target.group_version().to_string();
    let text = |key: &str| object.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (kind, version) = (text("kind"), text("apiVersion"));
    if kind.is_empty() {
        return Err(format!("Object 'Kind' is missing in '{object}'"));
    }
    if version != expected {
        return Err(format!(
            "the API version in the data ({version}) does not match the expected API version ({expected})"
        ));
    }
    let read = read(Raw::from(object), schema, nulls, budget)?;
    let warnings = match validation {
        FieldValidation::Ignore => Vec::new(),
        FieldValidation::Warn => read.findings,
        FieldValidation::Strict if read.findings.is_empty() => Vec::new(),
        FieldValidation::Strict => return Err(format!("strict decoding error: {}", read.findings.join(", "))),
    };
    Ok(Decoded { object: read.object, warnings })
}

/// Normalises to the stored form: prunes fields that admission added and the schema doesn't have.
pub(super) fn normalise(schema: &Arc<dyn Unstructured>, object: &mut Value) -> Result<(), String> {
    if !object.is_object() {
        *object = Value::Object(Map::new());
    }
    schema.coerce(object, Nulls::Keep)?;
    let metadata = built_in().by_name(OBJECT_META).expect("a built-in type");
    let mut budget = Budget::unlimited();
    let mut walk = Converter::new(metadata.types, Form::Full, false, &mut budget);
    if let Some(found) = object.get_mut("metadata") {
        walk.typed_in_place(metadata.of, found);
    }
    walk.failed().map_or(Ok(()), Err)
}

/// Normalises the metadata of an embedded object. Returns the paths of unknown fields, below `path`. `drop`: fields of
/// a wrong type are removed (from objects stored before the check existed), else they are an error.
pub fn metadata_in_place(value: &mut Value, path: &str, drop: bool) -> Result<Vec<String>, String> {
    let of_meta = built_in().by_name(OBJECT_META).expect("a built-in type");
    let convert = |value: Value| {
        let mut budget = Budget::unlimited();
        typed::convert(of_meta, Raw::from(value), Form::Sparse, &mut budget)
    };
    let mut unknown = Vec::new();
    let mut emitted = |findings: Vec<String>| {
        for finding in findings {
            if let Some(key) = finding.strip_prefix("unknown field \"").and_then(|key| key.strip_suffix('"')) {
                unknown.push(format!("{path}.{key}"));
            }
        }
    };
    match convert(value.clone()) {
        Ok(converted) => {
            *value = converted.object;
            emitted(converted.findings);
        }
        Err(why) if !drop => return Err(why),
        Err(_) => {
            if let Value::Object(map) = value {
                map.retain(|key, value| convert(serde_json::json!({ key.as_str(): value })).is_ok());
            }
            let converted = convert(value.take())?;
            *value = converted.object;
            emitted(converted.findings);
        }
    }
    Ok(unknown)
}
