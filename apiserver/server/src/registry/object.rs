//! Object metadata, as the verbs read and write it, and the stored form.
//!
//! Stored bytes begin with kind, apiVersion and metadata, in this order, so that lists strip the head and insert the
//! resourceVersion without parsing.

use std::collections::BTreeSet;

use jiff::Timestamp;
use machinery_api::{ApiError, ResourceVersion, Uid};
use serde_json::{Map, Value, json};

use apiserver_resources::ResourceInfo;
use apiserver_storage::cache::Cached;

/// The finalizer for orphaning dependents.
pub const ORPHAN: &str = "orphan";
/// The finalizer for deleting dependents first.
pub const FOREGROUND: &str = "foregroundDeletion";

/// A time in the format of `creationTimestamp`.
#[must_use]
pub fn time(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// The metadata, created if it is missing.
pub fn metadata_mut(object: &mut Value) -> &mut Map<String, Value> {
    if !object.is_object() {
        *object = json!({});
    }
    let metadata = &mut object["metadata"];
    if !metadata.is_object() {
        *metadata = json!({});
    }
    metadata.as_object_mut().expect("just made an object of it")
}

/// A string in the metadata; empty if absent.
#[must_use]
pub fn text<'a>(object: &'a Value, field: &str) -> &'a str {
    object.get("metadata").and_then(|m| m.get(field)).and_then(Value::as_str).unwrap_or("")
}

/// The object's uid.
#[must_use]
pub fn uid(object: &Value) -> Uid<'_> {
    Uid(text(object, "uid"))
}

/// The uid that a body gives for its object, if any.
#[must_use]
pub fn uid_precondition(body: &Value) -> Option<Uid<'_>> {
    Some(uid(body)).filter(|uid| *uid != Uid::default())
}

/// A metadata field that is present and not null.
#[must_use]
pub fn field<'a>(object: &'a Value, field: &str) -> Option<&'a Value> {
    object.get("metadata").and_then(|m| m.get(field)).filter(|v| !v.is_null())
}

/// The finalizers.
#[must_use]
pub fn finalizers(object: &Value) -> Vec<&str> {
    field(object, "finalizers")
        .and_then(Value::as_array)
        .map_or_else(Vec::new, |list| list.iter().filter_map(Value::as_str).collect())
}

/// Sets the finalizers; an empty list removes the field.
pub fn set_finalizers(object: &mut Value, finalizers: &[String]) {
    let metadata = metadata_mut(object);
    if finalizers.is_empty() {
        metadata.remove("finalizers");
    } else {
        metadata.insert("finalizers".into(), json!(finalizers));
    }
}

/// Whether the object has a deletion timestamp.
#[must_use]
pub fn is_deleting(object: &Value) -> bool {
    field(object, "deletionTimestamp").is_some()
}

/// The generation; 0 if absent.
#[must_use]
pub fn generation(object: &Value) -> i64 {
    field(object, "generation").and_then(Value::as_i64).unwrap_or(0)
}

/// Sets the generation; 0 removes it.
pub fn set_generation(object: &mut Value, generation: i64) {
    let metadata = metadata_mut(object);
    if generation == 0 {
        metadata.remove("generation");
    } else {
        metadata.insert("generation".into(), json!(generation));
    }
}

/// The object with a resourceVersion, for a response.
#[must_use]
pub fn versioned(mut object: Value, version: u64) -> Value {
    metadata_mut(&mut object).insert("resourceVersion".into(), json!(version.to_string()));
    object
}

/// The resourceVersion of a client's object: 0 if absent, an error if it is no number.
pub fn client_version(object: &Value) -> Result<u64, ApiError> {
    match text(object, "resourceVersion") {
        "" => Ok(0),
        version => parse_version(version).map_err(ApiError::BadRequest),
    }
}

/// Parses like Go's `strconv.ParseUint`.
pub fn parse_version(text: &str) -> Result<u64, String> {
    ResourceVersion::parse(text).map(|version| version.0)
}

/// Sets the object's namespace to the request's, or rejects a different one. `namespace` is empty for cluster-wide
/// kinds.
pub fn match_namespace(object: &mut Value, namespace: &str) -> Result<(), ApiError> {
    let own = text(object, "namespace");
    if own == namespace {
        if own.is_empty() {
            metadata_mut(object).remove("namespace");
        }
        return Ok(());
    }
    if namespace.is_empty() {
        metadata_mut(object).remove("namespace");
        return Ok(());
    }
    if own.is_empty() {
        metadata_mut(object).insert("namespace".into(), json!(namespace));
        return Ok(());
    }
    Err(ApiError::BadRequest(
        "the namespace of the provided object does not match the namespace sent on the request".into(),
    ))
}

/// Drops duplicate owner references with a warning; `patched` selects upstream's text for patches.
pub fn dedup_owners(object: &mut Value, warnings: &mut Vec<String>, patched: bool) {
    let Some(owners) = object.pointer_mut("/metadata/ownerReferences").and_then(Value::as_array_mut) else { return };
    let (mut seen, mut twice): (BTreeSet<String>, Vec<String>) = (BTreeSet::new(), Vec::new());
    owners.retain(|owner| {
        let new = seen.insert(owner.to_string());
        if !new {
            twice.push(owner["uid"].as_str().unwrap_or_default().to_owned());
        }
        new
    });
    if !twice.is_empty() {
        let after = if patched { " after mutating admission happens" } else { "" };
        warnings.push(format!(
            ".metadata.ownerReferences contains duplicate entries{after}; API server dedups owner references in 1.20+, and \
             may reject such requests as early as 1.24; please fix your requests; duplicate UID(s) observed: {}",
            twice.join(", ")
        ));
    }
}

/// Rejects an object whose name isn't the path's.
pub fn match_name(object: &Value, name: &str) -> Result<(), ApiError> {
    match text(object, "name") {
        "" => Err(ApiError::BadRequest(format!(
            "the name of the object ({name} based on URL) was undeterminable: name must be provided"
        ))),
        own if own == name => Ok(()),
        own => Err(ApiError::BadRequest(format!(
            "the name of the object ({own}) does not match the name on the URL ({name})"
        ))),
    }
}

/// `{"kind":"ConfigMap","apiVersion":"v1",`
#[must_use]
pub fn head(row: &ResourceInfo) -> String {
    head_of(&row.kind, &row.api_version)
}

/// The head for any kind.
#[must_use]
pub fn head_of(kind: &str, api_version: &str) -> String {
    format!("{{\"kind\":\"{kind}\",\"apiVersion\":\"{api_version}\",")
}

const METADATA: &str = "\"metadata\":{";

/// The stored form: without resourceVersion and managedFields.
#[must_use]
pub fn encode(row: &ResourceInfo, object: &Value) -> Vec<u8> {
    write(row, object, None)
}

/// The response form with a resourceVersion (`None`: without).
#[must_use]
pub fn write(row: &ResourceInfo, object: &Value, version: Option<u64>) -> Vec<u8> {
    // The size of a pod: a buffer that grows is copied each time.
    let mut out = Vec::with_capacity(4096);
    out.extend_from_slice(head(row).as_bytes());
    out.extend_from_slice(METADATA.as_bytes());
    let mut first = true;
    let mut put = |out: &mut Vec<u8>, key: &str, value: &Value| {
        if !first {
            out.push(b',');
        }
        first = false;
        // Writing a Value into memory cannot fail.
        let _ = serde_json::to_writer(&mut *out, key);
        out.push(b':');
        let _ = serde_json::to_writer(&mut *out, value);
    };
    if let Some(version) = version {
        put(&mut out, "resourceVersion", &Value::String(version.to_string()));
    }
    for (key, value) in object.get("metadata").and_then(Value::as_object).into_iter().flatten() {
        if key != "resourceVersion" && key != "managedFields" {
            put(&mut out, key, value);
        }
    }
    out.push(b'}');
    first = false;
    for (key, value) in object.as_object().into_iter().flatten() {
        if !matches!(key.as_str(), "kind" | "apiVersion" | "metadata") {
            out.push(b',');
            let _ = serde_json::to_writer(&mut out, key);
            out.push(b':');
            let _ = serde_json::to_writer(&mut out, value);
        }
    }
    let _ = first;
    out.push(b'}');
    out
}

/// The byte offset of the resourceVersion in [`encode`]'s result.
#[must_use]
pub fn stamp_at(row: &ResourceInfo) -> usize {
    head(row).len() + METADATA.len()
}

/// Appends a list item: the object without kind and apiVersion, with `managedFields` if `managed`.
pub fn write_item(head: &str, cached: &Cached, managed: bool, out: &mut Vec<u8>) {
    let stored = cached.stored();
    let rest = stored.strip_prefix(head.as_bytes()).and_then(|r| r.strip_prefix(METADATA.as_bytes()));
    match rest {
        Some(rest) => {
            out.reserve(rest.len() + 56);
            out.push(b'{');
            out.extend_from_slice(METADATA.as_bytes());
            out.extend_from_slice(b"\"resourceVersion\":\"");
            out.extend_from_slice(cached.modified.to_string().as_bytes());
            out.push(b'"');
            if managed && !cached.managers().is_empty() {
                out.push(b',');
                cached.managers().write_json(out);
            }
            if !rest.starts_with(b"}") {
                out.push(b',');
            }
            out.extend_from_slice(rest);
        }
        None => {
            let mut value = cached.value();
            if let Some(map) = value.as_object_mut() {
                map.remove("kind");
                map.remove("apiVersion");
            }
            let _ = serde_json::to_writer(&mut *out, &value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_are_kept_once() {
        let owner = |name: &str, uid: &str| json!({"kind": "Pod", "name": name, "uid": uid});
        let owners = json!([owner("a", "u"), owner("a", "u"), owner("b", "u"), owner("a", "v")]);
        let mut object = json!({"metadata": {"ownerReferences": owners}});
        let mut warnings = Vec::new();
        dedup_owners(&mut object, &mut warnings, false);
        assert_eq!(object["metadata"]["ownerReferences"].as_array().unwrap().len(), 3, "one uid may stand twice");
        assert!(warnings[0].ends_with("duplicate UID(s) observed: u"), "{warnings:?}");
        dedup_owners(&mut object, &mut warnings, true);
        assert_eq!(warnings.len(), 1);
    }

    #[test]
    fn namespaces_match() {
        let mut object = json!({"metadata": {"name": "a"}});
        match_namespace(&mut object, "n").unwrap();
        assert_eq!(text(&object, "namespace"), "n");
        assert!(match_namespace(&mut object, "m").is_err());
        match_namespace(&mut object, "").unwrap();
        assert_eq!(text(&object, "namespace"), "");
    }
}
