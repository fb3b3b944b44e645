//! Responses in Kubernetes protobuf, encoded from the stored JSON by the types of the resource table.

use std::sync::Arc;

use bytes::Bytes;
use serde_json::{Value, json};

use super::large::{PIECE_BYTES, Pieces};
use super::negotiate::Transform;
use super::respond::value_of;
use crate::registry::ResponseObject;
use apiserver_resources::ResourceInfo;
use apiserver_schema::TypeRef;
use apiserver_schema::encode;
use apiserver_storage::cache::Cached;

/// Encodes a document by its kind and apiVersion; negotiation guarantees that it has a message type.
pub(super) fn document(value: &Value) -> Bytes {
    encode::type_of(value).map(|found| encode::enveloped(found, value)).unwrap_or_default().into()
}

/// One event of a watch.
pub(super) fn event(kind: &str, object: &Value) -> Bytes {
    encode::type_of(object).map(|found| encode::watch_event(kind, found, object)).unwrap_or_default().into()
}

/// Reduces an object to PartialObjectMetadata.
pub(super) fn partial(api_version: &str, mut object: Value) -> Value {
    json!({ "kind": "PartialObjectMetadata", "apiVersion": api_version, "metadata": object["metadata"].take() })
}

/// A list item in the requested form.
fn shown(row: &ResourceInfo, transform: Option<Transform>, managed: bool, cached: &Arc<Cached>) -> Value {
    let value = value_of(row, &ResponseObject::Cached(cached.clone()), managed);
    match transform {
        Some(Transform::Metadata(version) | Transform::MetadataList(version)) => partial(version.api_version(), value),
        _ => value,
    }
}

/// A list, one piece at a time. The length of each item precedes it, so each object is encoded twice and none is
/// buffered.
pub(super) fn list(
    row: &Arc<ResourceInfo>,
    transform: Option<Transform>,
    managed: bool,
    metadata: Value,
    items: Vec<Arc<Cached>>,
) -> Pieces {
    let (kind, api_version) = match transform {
        Some(Transform::Metadata(version) | Transform::MetadataList(version)) => {
            ("PartialObjectMetadata".to_owned(), version.api_version().to_owned())
        }
        _ => (row.kind.to_string(), row.api_version.to_string()),
    };
    let list = json!({ "kind": format!("{kind}List"), "apiVersion": api_version, "metadata": metadata });
    let item_type = encode::type_of(&json!({ "kind": kind, "apiVersion": api_version }));
    let row = row.clone();
    let (mut next, mut begun) = (0, false);
    Box::new(move |out| {
        let (Some(of_list), Some(of_item)) = (encode::type_of(&list), item_type) else { return false };
        if !std::mem::replace(&mut begun, true) {
            let length = items.iter().map(|cached| length(of_item, &shown(&row, transform, managed, cached))).sum();
            out.extend_from_slice(&encode::list_head(of_list, &list, length));
        }
        let begins = out.len();
        while out.len() - begins < PIECE_BYTES {
            let Some(cached) = items.get(next) else {
                out.extend_from_slice(encode::LIST_END);
                return false;
            };
            encode::item(of_item, &shown(&row, transform, managed, cached), out);
            next += 1;
        }
        true
    })
}

fn length(of: TypeRef<'_>, object: &Value) -> usize {
    let mut out = Vec::new();
    encode::item(of, object, &mut out);
    out.len()
}
