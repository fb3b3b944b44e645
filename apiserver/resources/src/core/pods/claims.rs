//! The spec of a volume claim, shared by PersistentVolumeClaims, ephemeral volumes and StatefulSet templates.

use serde_json::{Value, json};

use super::resources;
use super::volumes::required;
use crate::choices::optional_choice;
use crate::field::{ErrorList, FieldError, Path, quoted};
use crate::metadata::{label_selector, quantity};
use crate::read::{get, text, texts};
use crate::rules;

const MODES: &[&str] = &["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];

/// Access modes, at least one of which is required.
pub(crate) fn access_modes(errors: &mut ErrorList, spec: &Value, path: &Path<'_>) {
    let modes_at = path.child("accessModes");
    for mode in texts(spec, "accessModes") {
        if !MODES.contains(&mode) {
            errors.not_supported(&modes_at, mode, MODES);
        }
    }
    let once = |mode: &str| mode == "ReadWriteOncePod";
    if texts(spec, "accessModes").any(once) && texts(spec, "accessModes").any(|m| !once(m) && MODES.contains(&m)) {
        errors.forbidden(&modes_at, "may not use ReadWriteOncePod with other access modes");
    }
}

/// `volumeMode`, if set.
pub(crate) fn volume_mode(errors: &mut ErrorList, spec: &Value, path: &Path<'_>) {
    optional_choice(errors, spec, "volumeMode", &["Block", "Filesystem"], path);
}

/// Validates the spec of a claim.
pub(crate) fn spec(errors: &mut ErrorList, spec: &Value, path: &Path<'_>) {
    if texts(spec, "accessModes").next().is_none() {
        errors.required(&path.child("accessModes"), "at least 1 access mode is required");
    }
    label_selector(errors, get(spec, "selector"), &path.child("selector"));
    access_modes(errors, spec, path);
    let storage_at = path.child("resources");
    let storage_at = storage_at.key("storage");
    let storage = get(get(get(spec, "resources"), "requests"), "storage");
    match quantity(storage) {
        None => errors.required(&storage_at, ""),
        Some(amount) if amount.sign() <= 0 => {
            errors.invalid(&storage_at, amount.to_string(), "must be greater than zero");
        }
        Some(_) => resources::amount(errors, "storage", storage, &storage_at),
    }
    class_name(errors, spec, "storageClassName", path);
    volume_mode(errors, spec, path);
    data_sources(errors, spec, path);
    class_name(errors, spec, "volumeAttributesClassName", path);
}

fn class_name(errors: &mut ErrorList, spec: &Value, key: &str, path: &Path<'_>) {
    let name = text(spec, key);
    if !name.is_empty() {
        errors.invalid_each(&path.child(key), name, rules::dns_subdomain(name));
    }
}

fn data_sources(errors: &mut ErrorList, spec: &Value, path: &Path<'_>) {
    let (source, reference) = (get(spec, "dataSource"), get(spec, "dataSourceRef"));
    data_source(errors, source, &path.child("dataSource"));
    data_source(errors, reference, &path.child("dataSourceRef"));
    if source.is_null() || reference.is_null() {
        return;
    }
    let same = ["apiGroup", "kind", "name"].iter().all(|key| get(source, key) == get(reference, key));
    if !text(reference, "namespace").is_empty() {
        let why = "may not be specified when dataSourceRef.namespace is specified";
        errors.add(|| FieldError::invalid_shown(path, "{}", why));
    } else if !same {
        errors.add(|| FieldError::invalid_shown(path, "{}", "must match dataSourceRef"));
    }
}

fn data_source(errors: &mut ErrorList, source: &Value, path: &Path<'_>) {
    if source.is_null() {
        return;
    }
    required(errors, source, &["name", "kind"], path);
    let (group, kind) = (text(source, "apiGroup"), text(source, "kind"));
    if group.is_empty() {
        if kind != "PersistentVolumeClaim" {
            let why = "must be 'PersistentVolumeClaim' when referencing the default apiGroup";
            errors.invalid(path, json!(kind), why);
        }
    } else {
        errors.invalid_each(&path.child("apiGroup"), group, rules::dns_subdomain(group));
    }
    let namespace = text(source, "namespace");
    if !namespace.is_empty() {
        errors.invalid_each(&path.child("namespace"), namespace, rules::dns_label(namespace));
    }
}

/// Warnings about the spec of a claim.
pub(crate) fn warnings(found: &mut Vec<String>, spec: &Value, path: &Path<'_>) {
    let resources_at = path.child("resources");
    for part in ["requests", "limits"] {
        let amount = quantity(get(get(get(spec, "resources"), part), "storage"));
        if let Some(amount) = amount.filter(|amount| !amount.is_whole_at_milli()) {
            let (at, shown) = (resources_at.child(part), quoted(&amount.to_string()));
            found.push(format!("{}: fractional byte value {shown} is invalid, must be an integer", at.key("storage")));
        }
    }
}
