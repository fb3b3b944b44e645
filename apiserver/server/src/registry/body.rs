//! Decodes a request body into an object: parses it, checks its version and kind, applies defaults.

use std::borrow::Cow;
use std::fmt::Write as _;

use machinery_api::error::ApiResult;
use machinery_api::{ApiError, GroupVersionKind};
use serde_json::{Map, Value};

use super::PatchType;
use apiserver_catalog::Catalog;
use apiserver_resources::ResourceInfo;
use apiserver_schema::patch;
use apiserver_schema::{self as schema, Decoded, FieldValidation, Media, Target, decode};

/// A request's body.
#[derive(Debug, Clone, Copy)]
pub struct Body<'a> {
    /// Its bytes.
    pub bytes: &'a [u8],
    /// The encoding of the bytes.
    pub media: Media,
}

fn target(group: &'static str, version: &'static str, kind: &'static str) -> ApiResult<Target<'static>> {
    Target::kind(group, version, kind).ok_or_else(|| ApiError::Internal(format!("no type for {kind}")))
}

fn defaulted(row: &ResourceInfo, decoded: Decoded, warnings: &mut Vec<String>) -> ApiResult<Value> {
    let mut object = decoded.object;
    if let Some(why) = row.strategy.conversion_error(&object) {
        let (kind, version) = (&row.kind, &row.version);
        return Err(ApiError::BadRequest(format!(
            "{kind} in version \"{version}\" cannot be handled as a {kind}: {why}"
        )));
    }
    warnings.extend(decoded.warnings);
    default(row, &mut object);
    Ok(object)
}

/// Applies the kind's defaults.
pub fn default(row: &ResourceInfo, object: &mut Value) {
    schema::default(row.schema.hold().get(), object);
    row.strategy.default(object);
}

/// Converts to the stored and compared form; call it again after fields were removed or added.
pub fn normalise(row: &ResourceInfo, object: &mut Value) {
    if let Err(error) = schema::normalise(row.schema.hold().get(), object) {
        tracing::warn!(kind = %row.kind, error, "an object made by the server doesn't match its schema");
    }
}

/// An empty list or map in a client's object: its path, and which of the two it is.
pub struct Empty {
    pointer: String,
    value: Value,
}

/// The paths of a client's empty lists and maps, which [`normalise`] drops, for the kinds whose validation errors
/// depend on them (`{}` or `null`).
pub fn explicit_empties(row: &ResourceInfo, object: &Value) -> Vec<Empty> {
    fn walk(value: &Value, path: &mut String, found: &mut Vec<Empty>) {
        let length = path.len();
        match value {
            Value::Object(map) if map.is_empty() => {
                found.push(Empty { pointer: path.clone(), value: Value::Object(Map::new()) });
            }
            Value::Array(list) if list.is_empty() => {
                found.push(Empty { pointer: path.clone(), value: Value::Array(Vec::new()) });
            }
            Value::Object(map) => {
                for (key, value) in map {
                    path.push('/');
                    if key.contains(['~', '/']) {
                        path.push_str(&key.replace('~', "~0").replace('/', "~1"));
                    } else {
                        path.push_str(key);
                    }
                    walk(value, path, found);
                    path.truncate(length);
                }
            }
            Value::Array(list) => {
                for (i, value) in list.iter().enumerate() {
                    // Writing into a String cannot fail.
                    let _ = write!(path, "/{i}");
                    walk(value, path, found);
                    path.truncate(length);
                }
            }
            _ => {}
        }
    }
    let mut found = Vec::new();
    if row.shows_empty || row.strategy.generation_counts_empty() {
        for (key, value) in object.as_object().into_iter().flatten() {
            if !["metadata", "status"].contains(&key.as_str()) {
                walk(value, &mut format!("/{key}"), &mut found);
            }
        }
    }
    found
}

/// Whether normalisation dropped one of the client's empty lists and maps.
pub fn drops_empties(given: &[Empty], normal: &Value) -> bool {
    given.iter().any(|Empty { pointer, .. }| normal.pointer(pointer).is_none_or(Value::is_null))
}

/// The object for validation: with the client's empty lists and maps restored.
pub fn with_empties<'a>(object: &'a Value, explicit_empties: Vec<Empty>) -> Cow<'a, Value> {
    let mut shown = Cow::Borrowed(object);
    for Empty { pointer, value } in explicit_empties {
        let absent = object.pointer(&pointer).is_none_or(Value::is_null);
        let (parent, key) = pointer.rsplit_once('/').unwrap_or_default();
        // A spec that contained only empty values was dropped as a whole.
        let gone = parent == "/spec" && object.get("spec").is_none_or(Value::is_null);
        if gone && let Some(map) = shown.to_mut().as_object_mut() {
            map.entry("spec").or_insert_with(|| Value::Object(Map::new()));
        }
        if absent
            && (gone || object.pointer(parent).is_some_and(Value::is_object))
            && let Some(Value::Object(map)) = shown.to_mut().pointer_mut(parent)
        {
            map.insert(key.replace("~1", "/").replace("~0", "~"), value);
        }
    }
    shown
}

/// Decodes an object of a row, with defaults.
pub fn object(
    row: &ResourceInfo,
    body: Body<'_>,
    validation: FieldValidation,
    warnings: &mut Vec<String>,
) -> Result<Value, ApiError> {
    let decoded = decode::body(body.bytes, body.media, &row.target(&row.schema.hold()), validation)?;
    defaulted(row, decoded, warnings)
}

/// Decodes an object of any type in the schema, such as a Scale.
pub fn of_type(
    kind: (&'static str, &'static str, &'static str),
    body: Body<'_>,
    validation: FieldValidation,
    warnings: &mut Vec<String>,
) -> Result<Value, ApiError> {
    let target = target(kind.0, kind.1, kind.2)?;
    let decoded = decode::body(body.bytes, body.media, &target, validation)?;
    warnings.extend(decoded.warnings);
    let mut object = decoded.object;
    schema::default(target.schema, &mut object);
    Ok(object)
}

/// The same for a body of `kind` with the type of `like`: another version with the same fields.
pub fn of_type_as(
    kind: (&'static str, &'static str, &'static str),
    like: (&'static str, &'static str, &'static str),
    body: Body<'_>,
    validation: FieldValidation,
    warnings: &mut Vec<String>,
) -> Result<Value, ApiError> {
    let target = Target { group: kind.0, version: kind.1, kind: kind.2, ..target(like.0, like.1, like.2)? };
    let decoded = decode::body(body.bytes, body.media, &target, validation)?;
    warnings.extend(decoded.warnings);
    let mut object = decoded.object;
    schema::default(target.schema, &mut object);
    Ok(object)
}

/// Decodes an object of a kind independent of the path's resource (Binding).
pub fn of_kind(
    catalog: &Catalog,
    (group, version, kind): (&str, &str, &str),
    body: Body<'_>,
    validation: FieldValidation,
    warnings: &mut Vec<String>,
) -> Result<Value, ApiError> {
    let wanted = GroupVersionKind { group, version, kind };
    let row = catalog.resources().iter().find(|resource| resource.gvk() == wanted).ok_or(ApiError::NoSuchResource)?;
    object(row, body, validation, warnings)
}

/// Decodes DeleteOptions: any apiVersion is accepted, but no other kind.
pub fn delete_options(body: Body<'_>) -> Result<Value, ApiError> {
    decode::options(body.bytes, body.media, "DeleteOptions", "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions")
}

/// Applies a patch to an object of a row, and decodes the result like a body.
pub fn patched(
    row: &ResourceInfo,
    kind: PatchType,
    patch: &[u8],
    current: &Value,
    validation: FieldValidation,
    warnings: &mut Vec<String>,
) -> Result<Value, ApiError> {
    let decoded = patch::apply(kind, patch, current, &row.target(&row.schema.hold()), validation)?;
    defaulted(row, decoded, warnings)
}

/// The same for any type of the schema.
pub fn patched_type(
    kind: (&'static str, &'static str, &'static str),
    how: PatchType,
    patch: &[u8],
    current: &Value,
    validation: FieldValidation,
    warnings: &mut Vec<String>,
) -> Result<Value, ApiError> {
    let decoded = patch::apply(how, patch, current, &target(kind.0, kind.1, kind.2)?, validation)?;
    warnings.extend(decoded.warnings);
    Ok(decoded.object)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn empty_fields_are_returned_and_stored_as_absent() {
        let row = crate::test_catalog::resource("", "pods");
        let text =
            br#"{"apiVersion":"v1","kind":"Pod","metadata":{"labels":{}},"spec":{"nodeSelector":{},"tolerations":null,
            "containers":[{"name":"c","resources":{"limits":{}}}]}}"#;
        let body = Body { bytes: text, media: Media::Json };
        let given = object(row, body, FieldValidation::Strict, &mut Vec::new()).unwrap();
        let explicit_empties = explicit_empties(row, &given);
        let mut stored = given.clone();
        normalise(row, &mut stored);
        assert_eq!(stored.pointer("/spec/nodeSelector"), None);
        let checked = with_empties(&stored, explicit_empties);
        assert_eq!(checked["spec"]["nodeSelector"], json!({}));
        assert_eq!(checked["spec"]["containers"][0]["resources"]["limits"], json!({}));
        assert_eq!(checked.pointer("/spec/tolerations"), None);
    }
}
