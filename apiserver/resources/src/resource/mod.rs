//! The group `resource.k8s.io`: dynamic resource allocation of devices.

mod claim;
pub(crate) mod deviceclasses;
mod devices;
pub(crate) mod resourceclaims;
pub(crate) mod resourceclaimtemplates;
pub(crate) mod resourceslices;
mod selectors;
mod status;

use std::collections::BTreeSet;

use serde_json::Value;

use crate::field::{ErrorList, Path};
use crate::read::{items, texts};
use crate::rules;

const POOL_BYTES_MAX: usize = 253;
const ID_BYTES_MAX: usize = 32;
const SEPARATOR: char = '/';
const REQUESTS_MAX: usize = 32;
const CONFIG_MAX: usize = 32;

/// A list's items; a list that is too long yields one error and no items.
fn bounded<'a>(errors: &mut ErrorList, of: &'a Value, key: &str, most: usize, path: &Path<'_>) -> &'a [Value] {
    let list = items(of, key);
    if list.len() > most {
        errors.too_many(path, list.len(), most);
        return &[];
    }
    list
}

/// Keys must be unique.
fn unique(errors: &mut ErrorList, keys: impl Iterator<Item = String>, path: &Path<'_>) {
    let mut seen = BTreeSet::new();
    for (i, key) in keys.enumerate() {
        if seen.contains(&key) {
            errors.duplicate(&path.index(i), key);
        } else {
            seen.insert(key);
        }
    }
}

fn label(errors: &mut ErrorList, name: &str, path: &Path<'_>) {
    errors.invalid_each(path, name, rules::dns_label(name));
}

fn pool_name(errors: &mut ErrorList, name: &str, path: &Path<'_>) {
    if name.is_empty() {
        return errors.required(path, "");
    }
    if name.len() > POOL_BYTES_MAX {
        errors.too_long(path, POOL_BYTES_MAX);
    }
    for part in name.split(SEPARATOR) {
        errors.invalid_each(path, part, rules::dns_subdomain(part));
    }
}

fn identifier(errors: &mut ErrorList, id: &str, path: &Path<'_>) {
    if id.len() > ID_BYTES_MAX {
        errors.too_long(path, ID_BYTES_MAX);
    }
    errors.invalid_each(path, id, rules::c_identifier(id));
}

/// A name with an optional driver domain. As in upstream, more than one slash is accepted.
fn qualified_name(errors: &mut ErrorList, name: &str, path: &Path<'_>) {
    let parts: Vec<&str> = name.splitn(3, SEPARATOR).collect();
    match parts.as_slice() {
        [id] => identifier(errors, id, path),
        [domain, id] => {
            if domain.is_empty() {
                errors.invalid(path, "", "the domain must not be empty");
            } else {
                crate::storage::driver_name(errors, domain, path);
            }
            if id.is_empty() {
                errors.invalid(path, "", "the name must not be empty");
            } else {
                identifier(errors, id, path);
            }
        }
        _ => {}
    }
}

fn fully_qualified_name(errors: &mut ErrorList, name: &str, path: &Path<'_>) {
    qualified_name(errors, name, path);
    if !name.contains(SEPARATOR) {
        let why = "a fully qualified name must be a domain and a name separated by a slash";
        errors.invalid(path, name, why);
    }
}

/// A JSON object of bounded size.
fn raw_object(errors: &mut ErrorList, value: &Value, most: usize, path: &Path<'_>) {
    match value {
        Value::Null => errors.required(path, ""),
        value if value.to_string().len() > most => errors.too_long(path, most),
        Value::Object(_) => {}
        _ => errors.invalid(path, "<value omitted>", "must be a valid JSON object"),
    }
}

fn uuid(errors: &mut ErrorList, uid: &str, path: &Path<'_>) {
    let hyphens = [8, 13, 18, 23];
    let is_normal = |(at, byte): (usize, u8)| match byte {
        b'-' => hyphens.contains(&at),
        byte => !hyphens.contains(&at) && (byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte)),
    };
    if uid.len() != 36 || !uid.bytes().enumerate().all(is_normal) {
        let why = "uid must be in RFC 4122 normalized form, `xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx` with lowercase hexadecimal characters";
        errors.invalid(path, uid, why);
    }
}

/// Conditions for the binding of a pod to the device, and failure conditions: both or none, without overlap.
fn binding_conditions(errors: &mut ErrorList, of: &Value, path: &Path<'_>) {
    const MOST: usize = 4;
    const KEYS: [&str; 2] = ["bindingConditions", "bindingFailureConditions"];
    for key in KEYS {
        let at = path.child(key);
        for (i, condition) in bounded(errors, of, key, MOST, &at).iter().enumerate() {
            crate::metadata::label_name(errors, condition.as_str().unwrap_or(""), &at.index(i));
        }
    }
    let [waits, fails] = KEYS;
    unique(errors, texts(of, waits).take(REQUESTS_MAX).map(str::to_owned), &path.child(waits));
    let awaited: BTreeSet<&str> = texts(of, waits).collect();
    let fails_at = path.child(fails);
    unique(errors, texts(of, fails).take(REQUESTS_MAX).map(str::to_owned), &fails_at);
    for (i, condition) in texts(of, fails).enumerate().filter(|(_, condition)| awaited.contains(condition)) {
        let why = "bindingFailureConditions must not overlap with bindingConditions";
        errors.invalid(&fails_at.index(i), condition, why);
    }
    for (key, other) in [(waits, fails), (fails, waits)] {
        if items(of, key).is_empty() && !items(of, other).is_empty() {
            let given = crate::read::get(of, key).clone();
            errors.invalid(&path.child(key), given, &format!("{key} are required to use {other}"));
        }
    }
}

/// The key of an allocated device, in results and statuses.
fn device_key(of: &Value) -> String {
    let part = |key| crate::read::text(of, key);
    let share = part("shareID");
    let slash = if share.is_empty() { "" } else { "/" };
    format!("{}/{}/{}{slash}{share}", part("driver"), part("pool"), part("device"))
}
