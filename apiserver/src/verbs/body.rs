//! From a request's bytes to an object that the verbs work on: decoded, checked for its version and kind, defaulted.

use machinery::api::ApiError;
use machinery::api::error::ApiResult;
use serde_json::Value;

use super::PatchType;
use crate::patch;
use crate::resources::Row;
use crate::schema::{self, Decoded, FieldValidation, Media, Target, decode};

/// A request's body.
#[derive(Debug, Clone, Copy)]
pub struct Body<'a> {
    /// Its bytes.
    pub bytes: &'a [u8],
    /// What they are written in.
    pub media: Media,
}

fn target(group: &'static str, version: &'static str, kind: &'static str) -> ApiResult<Target<'static>> {
    Target::kind(group, version, kind).ok_or_else(|| ApiError::Internal(format!("no type for {kind}")))
}

fn defaulted(row: &'static Row, decoded: Decoded, warnings: &mut Vec<String>) -> Value {
    warnings.extend(decoded.warnings);
    let mut object = decoded.object;
    schema::default(row.schema, &mut object);
    row.strategy.default(&mut object);
    object
}

/// The form that is stored and compared; call it again where fields were removed or added.
pub fn normalise(row: &'static Row, object: &mut Value) {
    if let Err(error) = schema::normalise(row.schema, object) {
        tracing::warn!(kind = row.kind, error, "an object of the server's own making doesn't fit its type");
    }
}

/// Decodes an object of a row, with defaults.
pub fn object(
    row: &'static Row,
    body: Body<'_>,
    validation: FieldValidation,
    warnings: &mut Vec<String>,
) -> Result<Value, ApiError> {
    let decoded = decode::body(body.bytes, body.media, &Target::row(row), validation)?;
    Ok(defaulted(row, decoded, warnings))
}

/// Decodes an object of any type of the schema, such as a Scale.
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
    schema::default(target.type_name, &mut object);
    Ok(object)
}

/// Decodes an object of the core row that `plural` names, whatever the path is about (Binding).
pub fn of_kind(
    plural: &str,
    body: Body<'_>,
    validation: FieldValidation,
    warnings: &mut Vec<String>,
) -> Result<Value, ApiError> {
    let row = crate::resources::find("", "v1", plural).ok_or(ApiError::NoSuchResource)?;
    object(row, body, validation, warnings)
}

/// Decodes DeleteOptions: any apiVersion will do, another kind won't.
pub fn delete_options(body: Body<'_>) -> Result<Value, ApiError> {
    decode::options(body.bytes, body.media, "DeleteOptions", "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions")
}

/// Applies a patch to an object of a row, and reads the result as a body is read.
pub fn patched(
    row: &'static Row,
    kind: PatchType,
    patch: &[u8],
    current: &Value,
    validation: FieldValidation,
    warnings: &mut Vec<String>,
) -> Result<Value, ApiError> {
    let decoded = patch::apply(kind, patch, current, &Target::row(row), validation)?;
    Ok(defaulted(row, decoded, warnings))
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
