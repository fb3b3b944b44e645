//! JSON, merge and strategic merge patches over structured values and a schema, with upstream's deviations and
//! messages.
//!
//! [`apply`] returns a decoded object (sparse, as from a body): default it and [`crate::normalise`] it.

mod json;
mod merge;
mod strategic;

use machinery_api::error::{ApiError, ApiResult, Cause, GroupResource};
use machinery_api::key::GroupVersion;
use machinery_api::selector::go_quoted;
use serde_json::Value;

use crate::budget::Budget;
use crate::raw::{self, Raw};
use crate::typed::{FINDINGS_MAX, Form};
use crate::{Decoded, FieldValidation, Target, decode, internal_group, typed};

/// The patch types.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PatchKind {
    /// RFC 6902.
    Json,
    /// RFC 7386.
    Merge,
    /// Kubernetes' strategic merge, by merge keys.
    Strategic,
}

impl PatchKind {
    /// From a `Content-Type` header, case-sensitive. `None`: 415.
    #[must_use]
    pub fn of(content_type: &str) -> Option<Self> {
        match content_type.split(';').next().unwrap_or_default() {
            "application/json-patch+json" => Some(Self::Json),
            "application/merge-patch+json" => Some(Self::Merge),
            "application/strategic-merge-patch+json" => Some(Self::Strategic),
            _ => None,
        }
    }
}

/// Applies a patch to the object as the client reads it (in the row's version, normalised).
pub fn apply(
    kind: PatchKind,
    patch: &[u8],
    current: &Value,
    target: &Target<'_>,
    validation: FieldValidation,
) -> ApiResult<Decoded> {
    let checked = validation != FieldValidation::Ignore;
    let (mut findings, patched) = match kind {
        PatchKind::Strategic => strategically(patch, current, target),
        PatchKind::Json | PatchKind::Merge => patched(kind, patch, current, checked),
    }?;
    if !checked {
        findings.clear();
    }
    let mut budget = Budget::of_body(patch.len() + CURRENT_BYTES_MAX);
    let shown = || format_rejected(kind, patch, current, checked);
    let decoded = decode_patched(kind, &shown, patched, findings, target, validation, &mut budget);
    budget.check()?;
    decoded
}

/// Why a JSON patch doesn't apply to an object, with the library's message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JsonPatchRefusal {
    /// A `test` operation failed.
    Test(String),
    /// An operation failed.
    Operation(String),
}

/// Why a JSON patch doesn't apply; `None` if it applies or can't be parsed. It repeats the patch: call it only after
/// [`apply`] failed.
#[must_use]
pub fn json_refusal(patch: &[u8], current: &Value) -> Option<JsonPatchRefusal> {
    let raw = raw::parse(patch).ok()?;
    let (operations, _) = json::read(raw, &mut Budget::of_body(patch.len())).ok()?;
    Some(match json::apply(&mut current.clone(), operations).err()? {
        json::JsonPatchError::Test(why) => JsonPatchRefusal::Test(why),
        json::JsonPatchError::Operation(why) => JsonPatchRefusal::Operation(why),
    })
}

/// The patch or result in an error message: upstream prints the result, or a strategic patch. It is recomputed, since
/// rejected patches are rare.
fn format_rejected(kind: PatchKind, patch: &[u8], current: &Value, checked: bool) -> String {
    match kind {
        PatchKind::Strategic => {
            let patch = raw::parse(patch).ok().and_then(|raw| raw.into_value(&mut Budget::of_body(patch.len())));
            patch.map(|patch| strategic::go_format(&patch, current)).unwrap_or_default()
        }
        PatchKind::Json | PatchKind::Merge => {
            patched(kind, patch, current, checked).map(|(_, patched)| text(&patched)).unwrap_or_default()
        }
    }
}

fn text(patched: &Value) -> String {
    serde_json::to_string(patched).unwrap_or_default()
}

/// The result of a strategic patch, with its findings.
fn strategically(patch: &[u8], current: &Value, target: &Target<'_>) -> ApiResult<(Vec<String>, Value)> {
    let mut budget = Budget::of_body(patch.len());
    let raw = raw::parse(patch).map_err(ApiError::BadRequest)?;
    if !matches!(raw, Raw::Map(_) | Raw::Null) {
        return Err(ApiError::BadRequest(not_a_map(&raw)));
    }
    let findings = typed::doubled_keys(&raw);
    let patch = whole(raw, &mut budget)?.ok_or_else(|| ApiError::BadRequest("exceeded max depth".into()))?;
    let patched = strategic::apply(target.schema, current.clone(), patch).map_err(|error| match error {
        strategic::Error::Bad(message) => ApiError::BadRequest(message),
        strategic::Error::Unprocessable => unprocessable(),
    })?;
    Ok((findings, patched))
}

/// The result of a JSON or merge patch, with its findings.
fn patched(kind: PatchKind, patch: &[u8], current: &Value, checked: bool) -> ApiResult<(Vec<String>, Value)> {
    let mut budget = Budget::of_body(patch.len());
    if matches!(kind, PatchKind::Json) {
        let raw = raw::parse(patch).map_err(|e| bad_patch(&e, checked))?;
        let read = json::read(raw, &mut budget).map_err(|e| bad_patch(&e, checked));
        budget.check()?;
        let (operations, findings) = read?;
        if operations.len() > json::OPERATIONS_MAX {
            return Err(ApiError::TooLarge(format!(
                "Request entity too large: The allowed maximum operations in a JSON patch is {}, got {}",
                json::OPERATIONS_MAX,
                operations.len()
            )));
        }
        let mut patched = current.clone();
        json::apply(&mut patched, operations).map_err(|_| unprocessable())?;
        return Ok((findings, patched));
    }
    let raw = match raw::parse(patch) {
        Ok(raw) => raw,
        Err(error) if checked => return Err(bad_patch(&error, true)),
        Err(_) => return Err(ApiError::BadRequest("Invalid JSON Patch".into())),
    };
    let findings = match &raw {
        Raw::Map(_) => typed::doubled_keys(&raw),
        Raw::List(_) if !checked => Vec::new(),
        Raw::Null => return Err(ApiError::BadRequest("Invalid JSON Patch".into())),
        other if checked => return Err(bad_patch(&not_a_map(other), true)),
        _ => return Err(ApiError::BadRequest("Invalid JSON Patch".into())),
    };
    let patch = whole(raw, &mut budget)?.ok_or_else(|| bad_patch("exceeded max depth", checked))?;
    Ok((findings, merge::apply(current.clone(), patch)))
}

/// Maximum size of a stored object (`etcd`'s limit on a request, which the verbs enforce).
const CURRENT_BYTES_MAX: usize = 1536 << 10;

/// Converts a patch to a value; `None` if it is too deep.
fn whole(raw: Raw, budget: &mut Budget) -> ApiResult<Option<Value>> {
    let value = raw.into_value(budget);
    budget.check()?;
    Ok(value)
}

/// Rejects a patch that changes a custom resource's kind or version.
fn check_identity_unchanged(patched: &Value, target: &Target<'_>) -> ApiResult<()> {
    let text = |key: &str| patched.get(key).and_then(Value::as_str).unwrap_or_default();
    let (kind, version, expected) = (text("kind"), text("apiVersion"), target.group_version().to_string());
    let wrong = [("kind", kind, target.kind), ("apiVersion", version, &expected)].into_iter();
    let causes: Vec<Cause> = wrong
        .filter(|(_, found, wanted)| !found.is_empty() && found != wanted)
        .map(|(field, found, wanted)| Cause {
            reason: "FieldValueInvalid".into(),
            message: format!("Invalid value: {}: must be {wanted}", go_quoted(found)),
            field: field.into(),
        })
        .collect();
    if causes.is_empty() {
        return Ok(());
    }
    let name = patched["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    Err(ApiError::Invalid(GroupResource::new(GroupVersion::parse(version).group, kind), name, causes))
}

/// Decodes the result, which must still be an object of the kind.
fn decode_patched(
    kind: PatchKind,
    shown: &dyn Fn() -> String,
    mut patched: Value,
    mut findings: Vec<String>,
    target: &Target<'_>,
    validation: FieldValidation,
    budget: &mut Budget,
) -> ApiResult<Decoded> {
    let strategic = matches!(kind, PatchKind::Strategic);
    let mut emptied = false;
    if strategic {
        // Upstream converts into the Go type, whatever kind the patch sets.
        if let Some(map) = patched.as_object_mut() {
            for key in ["kind", "apiVersion"] {
                if map.get(key).is_some_and(Value::is_string) {
                    map.remove(key);
                }
            }
        }
    } else if let Some(error) = no_kind(&patched) {
        return Err(invalid(&text(&patched), &error));
    } else if target.schema.of.unstructured.is_some() {
        check_identity_unchanged(&patched, target)?;
    } else if let Some(error) = other_kind(&patched, target) {
        return Err(invalid(&text(&patched), &error));
    } else if patched.get("apiVersion").and_then(Value::as_str).is_none_or(str::is_empty) {
        // Upstream then decodes into its internal type, which has none of these fields.
        let keys = patched.as_object().into_iter().flat_map(|map| map.keys()).filter(|key| *key != "kind");
        let unknown = keys.filter(|key| *key != "apiVersion").map(|key| format!("unknown field {}", go_quoted(key)));
        if validation != FieldValidation::Ignore {
            findings.extend(unknown.take(FINDINGS_MAX));
        }
        patched = Value::Object(Default::default());
        emptied = true;
    }
    let refused = |error: &str| invalid(&if emptied { "{}".into() } else { shown() }, error);
    // Findings of the patch and of its result are reported together.
    let emitted = if validation == FieldValidation::Strict { FieldValidation::Warn } else { validation };
    let mut decoded = decode::value(patched, target, emitted, strategic, budget).map_err(|error| refused(&error))?;
    findings.append(&mut decoded.warnings);
    if validation == FieldValidation::Strict && !findings.is_empty() {
        return Err(refused(&format!("strict decoding error: {}", findings.join(", "))));
    }
    Ok(Decoded { object: decoded.object, warnings: findings })
}

/// Checked first: an object without kind or version.
fn no_kind(patched: &Value) -> Option<String> {
    let wrong = |key: &str| {
        patched.get(key).filter(|value| !value.is_null() && !value.is_string()).map(|v| (key.to_owned(), v))
    };
    let (key, value) = wrong("apiVersion").or_else(|| wrong("kind"))?;
    let name = Raw::from(value.clone()).go_name();
    Some(format!(
        "couldn't get version/kind; json parse error: json: cannot unmarshal {name} into Go struct field .{key} of type string"
    ))
}

fn other_kind(patched: &Value, target: &Target<'_>) -> Option<String> {
    let text = |key: &str| patched.get(key).and_then(Value::as_str).filter(|t| !t.is_empty());
    let expected = target.group_version().to_string();
    if let Some(Err(why)) = text("apiVersion").map(GroupVersion::parse_checked) {
        return Some(why);
    }
    let (kind, version) = (text("kind").unwrap_or(target.kind), text("apiVersion").unwrap_or(&expected));
    if kind == target.kind && version == expected {
        return None;
    }
    let GroupVersion { group, version: plain } = GroupVersion::parse(version);
    Some(if let Some(found) = target.schema.types.of_kind(group, plain, kind) {
        if let Err(error) = typed::convert(found, Raw::from(patched.clone()), Form::Sparse, &mut Budget::unlimited()) {
            return Some(error);
        }
        let hub = internal_group(target.group);
        format!("converting ({plain}.{kind}) to ({hub}.{}): unknown conversion", target.kind)
    } else {
        decode::not_registered(kind, version)
    })
}

fn not_a_map(raw: &Raw) -> String {
    format!("json: cannot unmarshal {} into Go value of type map[string]interface {{}}", raw.go_name())
}

fn bad_patch(error: &str, checked: bool) -> ApiError {
    ApiError::BadRequest(if checked { format!("error decoding patch: {error}") } else { error.into() })
}

fn unprocessable() -> ApiError {
    ApiError::Unprocessable
}

fn invalid(patched: &str, error: &str) -> ApiError {
    let cause = Cause {
        reason: "FieldValueInvalid".into(),
        message: format!("Invalid value: {}: {error}", go_quoted(patched)),
        field: "patch".into(),
    };
    ApiError::Invalid(GroupResource::default(), String::new(), vec![cause])
}

#[cfg(test)]
mod tests;
