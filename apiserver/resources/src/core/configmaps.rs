//! ConfigMaps, and rules shared with Secrets: a bound on the bytes of all values, and the permanent flag `immutable`.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::cells::{AGE, NAME, age, column, name};
use crate::field::{ErrorList, Path};
use crate::read::{entries, flag, get, is_zero};
use crate::{Column, Context, MetadataChecks, Row, Storage, Strategy, rules};

pub(crate) static ROW: Row = Row {
    kind: "ConfigMap",
    plural: "configmaps",
    singular: "configmap",
    short_names: &["cm"],
    schema: "io.k8s.api.core.v1.ConfigMap",
    storage: Storage::Stored("configmaps"),
    strategy: &ConfigMap,
    example: r#"apiVersion: v1
kind: ConfigMap
metadata: {name: example}
data: {color: blue}
"#,
    ..Row::NAMESPACED
};

struct ConfigMap;

const COLUMNS: &[Column] = &[NAME, column("Data", "string"), AGE];
/// Bound on all values of a ConfigMap or Secret together, in bytes.
pub(crate) const DATA_BYTES_MAX: usize = 1 << 20;
const SEALED: &str = "field is immutable when `immutable` is set";

/// The decoded length of a base64 text, in bytes.
pub(crate) fn decoded_bytes(text: &str) -> usize {
    let letters = text.trim_end_matches('=').len();
    letters / 4 * 3 + (letters % 4).saturating_sub(1)
}

/// Fields that are immutable once `immutable` is set.
pub(crate) fn validate_immutable(errors: &mut ErrorList, new: &Value, old: &Value, keys: &[&str]) {
    if !flag(old, "immutable") {
        return;
    }
    if !flag(new, "immutable") {
        errors.forbidden(&Path::root("immutable"), SEALED);
    }
    for key in keys {
        let (now, was) = (get(new, key), get(old, key));
        // Upstream treats an empty map and an absent one as different only if the other object's map has entries.
        if now != was && !(is_zero(now) && is_zero(was)) {
            errors.forbidden(&Path::root(key), SEALED);
        }
    }
}

fn validate(errors: &mut ErrorList, object: &Value) {
    let (data_at, binary_at) = (Path::root("data"), Path::root("binaryData"));
    let binary = get(object, "binaryData");
    let mut bytes = 0;
    for (key, value) in entries(object, "data") {
        errors.invalid_each(&data_at.key(key), key, rules::config_map_key(key));
        if binary.get(key).is_some() {
            errors.invalid(&data_at.key(key), key.as_str(), "duplicate of key present in binaryData");
        }
        bytes += value.as_str().map_or(0, str::len);
    }
    for (key, value) in entries(object, "binaryData") {
        errors.invalid_each(&binary_at.key(key), key, rules::config_map_key(key));
        bytes += value.as_str().map_or(0, decoded_bytes);
    }
    if bytes > DATA_BYTES_MAX {
        errors.too_long(&Path::root(""), DATA_BYTES_MAX);
    }
}

impl Strategy for ConfigMap {
    fn metadata_checks(&self) -> MetadataChecks {
        MetadataChecks::ChangeThenWhole
    }

    fn validate(&self, _: &Context<'_>, object: &Value, old: Option<&Value>, errors: &mut ErrorList) {
        if let Some(old) = old {
            validate_immutable(errors, object, old, &["data", "binaryData"]);
        }
        validate(errors, object);
    }

    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let count = entries(object, "data").count() + entries(object, "binaryData").count();
        vec![name(object), json!(count), age(object, now)]
    }
}
