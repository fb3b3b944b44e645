//! Parses the body of an apply patch, and decodes the applied object.

use serde_json::Value;

use crate::budget::Budget;
use crate::raw::Raw;
use crate::{FieldValidation, Nulls, Target, decode, unstructured, yaml};
use machinery_api::error::{ApiError, ApiResult};

/// An apply configuration as written, without defaults, and its duplicate keys (a sentence each).
pub struct Config {
    /// The configuration.
    pub object: Value,
    /// Texts for `Warning` headers, or for a rejection.
    pub doubled: Vec<String>,
}

/// Parses the body of an apply patch.
pub fn config(bytes: &[u8]) -> ApiResult<Config> {
    let wrong = |why: &str| ApiError::BadRequest(format!("error decoding YAML: {why}"));
    let mut budget = Budget::of_body(bytes.len());
    let document =
        yaml::parse(bytes, &mut budget).map_err(|error| wrong(&format!("error converting YAML to JSON: {error}")));
    budget.check()?;
    let document = document?;
    let raw = match document.raw {
        Raw::Null => Raw::Map(Vec::new()),
        raw @ Raw::Map(_) => raw,
        other => {
            let what = other.go_name();
            return Err(wrong(&format!(
                "error unmarshaling JSON: while decoding JSON: json: cannot unmarshal {what} into Go value of type \
                 map[string]interface {{}}"
            )));
        }
    };
    let object = raw.into_value(&mut budget);
    budget.check()?;
    let object = object.ok_or_else(|| wrong("exceeded max depth"))?;
    Ok(Config { object, doubled: document.doubled })
}

/// Decodes the result of an apply as an object of its kind (sparse, as from a body).
pub fn object(applied: Value, target: &Target<'_>) -> ApiResult<Value> {
    let mut budget = Budget::unlimited();
    let validation = FieldValidation::Ignore;
    let decoded = match &target.schema.of.unstructured {
        Some(schema) => unstructured::value(applied, (&**schema, Nulls::Keep), target, validation, &mut budget),
        None => decode::value(applied, target, validation, true, &mut budget),
    };
    decoded
        .map(|decoded| decoded.object)
        .map_err(|error| ApiError::BadRequest(format!("failed to convert new object to proper version: {error}")))
}
