//! Volume sources of storage systems. Most have no driver any more; the API still validates them.

use std::sync::LazyLock;

use regex::Regex;
use serde_json::Value;

use super::claims;
use super::volumes::{descending, required};
use crate::choices::optional_choice;
use crate::field::{ErrorList, Path};
use crate::metadata::{annotations, labels};
use crate::read::{entries, flag, get, has, int, is_zero, items, text};
use crate::rules;

const CSI_DRIVER_BYTES_MAX: usize = 63;
static IS_IQN: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"iqn\.\d{4}-\d{2}\.([[:alnum:].-]+)(:[^,;*&$|\s]+)$").expect("the pattern is a constant")
});

/// Validates one source by the name of its field.
pub(crate) fn source(errors: &mut ErrorList, key: &str, source: &Value, path: &Path<'_>) {
    match key {
        "gitRepo" => {
            required(errors, source, &["repository"], path);
            descending(errors, text(source, "directory"), &path.child("directory"));
        }
        "gcePersistentDisk" | "awsElasticBlockStore" => {
            required(errors, source, &[if key == "gcePersistentDisk" { "pdName" } else { "volumeID" }], path);
            let partition = int(source, "partition").unwrap_or(0);
            if !(0..=255).contains(&partition) {
                errors.invalid(&path.child("partition"), partition, "must be between 1 and 255, inclusive");
            }
        }
        "nfs" => {
            required(errors, source, &["server", "path"], path);
            let file = text(source, "path");
            if !file.starts_with('/') {
                errors.invalid(&path.child("path"), file, "must be an absolute path");
            }
        }
        "iscsi" => iscsi(errors, source, path, "must be valid format starting with iqn, eui, or naa"),
        "glusterfs" => required(errors, source, &["endpoints", "path"], path),
        "flocker" => flocker(errors, source, path),
        "rbd" | "cephfs" => {
            if items(source, "monitors").is_empty() {
                errors.required(&path.child("monitors"), "");
            }
            if key == "rbd" {
                required(errors, source, &["image"], path);
            }
        }
        "cinder" => {
            required(errors, source, &["volumeID"], path);
            secret_name(errors, source, path);
        }
        "quobyte" => quobyte(errors, source, path),
        "fc" => fibre_channel(errors, source, path),
        "flexVolume" => flex_volume(errors, source, path),
        "azureFile" => required(errors, source, &["secretName", "shareName"], path),
        "vsphereVolume" => required(errors, source, &["volumePath"], path),
        "photonPersistentDisk" => required(errors, source, &["pdID"], path),
        "portworxVolume" => required(errors, source, &["volumeID"], path),
        "azureDisk" => azure_disk(errors, source, path),
        "storageos" => storage_os(errors, source, path),
        "scaleIO" => required(errors, source, &["gateway", "system", "volumeName"], path),
        "csi" => csi(errors, source, path),
        "ephemeral" => ephemeral(errors, source, path),
        _ => {}
    }
}

fn flex_volume(errors: &mut ErrorList, source: &Value, path: &Path<'_>) {
    required(errors, source, &["driver"], path);
    let options_at = path.child("options");
    for (key, _) in entries(source, "options") {
        let namespace = format!(".{}", key.split('/').next().unwrap_or(key).to_lowercase());
        let owned = key.contains('/') || !key.is_empty();
        if owned && (namespace.ends_with(".kubernetes.io") || namespace.ends_with(".k8s.io")) {
            errors.invalid(&options_at.key(key), key.as_str(), "kubernetes.io and k8s.io namespaces are reserved");
        }
    }
}

fn storage_os(errors: &mut ErrorList, source: &Value, path: &Path<'_>) {
    let name = text(source, "volumeName");
    if name.is_empty() {
        errors.required(&path.child("volumeName"), "");
    } else {
        errors.invalid_each(&path.child("volumeName"), name, rules::dns_label(name));
    }
    let namespace = text(source, "volumeNamespace");
    if !namespace.is_empty() {
        errors.invalid_each(&path.child("volumeNamespace"), namespace, rules::dns_label(namespace));
    }
    secret_name(errors, source, path);
}

fn secret_name(errors: &mut ErrorList, source: &Value, path: &Path<'_>) {
    if has(source, "secretRef") && text(get(source, "secretRef"), "name").is_empty() {
        errors.required(&path.child("secretRef.name"), "");
    }
}

/// Validates an initiator's or target's name; `other` is the error of one with another prefix.
fn iqn(errors: &mut ErrorList, name: &str, path: &Path<'_>, other: &str) {
    let alnum =
        |rest: &str, length: usize| rest.len() == length + 1 && rest.bytes().skip(1).all(|b| b.is_ascii_alphanumeric());
    let ok = if name.starts_with("iqn") {
        IS_IQN.is_match(name)
    } else if let Some(rest) = name.strip_prefix("eui") {
        alnum(rest, 16)
    } else if let Some(rest) = name.strip_prefix("naa") {
        alnum(rest, 32)
    } else {
        return errors.invalid(path, name, other);
    };
    if !ok {
        errors.invalid(path, name, "must be valid format");
    }
}

/// Upstream's errors of a pod's volume and of a PersistentVolume differ in the text for an unknown prefix.
pub(crate) fn iscsi(errors: &mut ErrorList, source: &Value, path: &Path<'_>, other: &str) {
    required(errors, source, &["targetPortal", "iqn"], path);
    let name = text(source, "iqn");
    if !name.is_empty() {
        iqn(errors, name, &path.child("iqn"), other);
    }
    let lun = int(source, "lun").unwrap_or(0);
    for message in rules::in_range(lun, 0, 255) {
        errors.invalid(&path.child("lun"), lun, &message);
    }
    if (flag(source, "chapAuthDiscovery") || flag(source, "chapAuthSession")) && !has(source, "secretRef") {
        errors.required(&path.child("secretRef"), "");
    }
    if has(source, "initiatorName") {
        iqn(errors, text(source, "initiatorName"), &path.child("initiatorname"), other);
    }
}

fn flocker(errors: &mut ErrorList, source: &Value, path: &Path<'_>) {
    let (name, uuid) = (text(source, "datasetName"), text(source, "datasetUUID"));
    if name.is_empty() && uuid.is_empty() {
        errors.required(path, "one of datasetName and datasetUUID is required");
    }
    if !name.is_empty() && !uuid.is_empty() {
        errors.invalid(path, "resource", "datasetName and datasetUUID can not be specified simultaneously");
    }
    if name.contains('/') {
        errors.invalid(&path.child("datasetName"), name, "must not contain '/'");
    }
}

fn quobyte(errors: &mut ErrorList, source: &Value, path: &Path<'_>) {
    let why = "must be a host:port pair or multiple pairs separated by commas";
    let registry = text(source, "registry");
    if registry.is_empty() {
        errors.required(&path.child("registry"), why);
    } else if text(source, "tenant").len() >= 65 {
        errors.required(&path.child("tenant"), "must be a UUID and may not exceed a length of 64 characters");
    } else {
        for pair in registry.split(',') {
            let whole = match pair.rsplit_once(':') {
                Some((host, _)) => !host.contains(':') || (host.starts_with('[') && host.ends_with(']')),
                None => false,
            };
            if !whole {
                errors.invalid(&path.child("registry"), registry, why);
            }
        }
    }
    required(errors, source, &["volume"], path);
}

fn fibre_channel(errors: &mut ErrorList, source: &Value, path: &Path<'_>) {
    let (targets, ids) = (items(source, "targetWWNs"), items(source, "wwids"));
    let at = path.child("targetWWNs");
    if targets.is_empty() && ids.is_empty() {
        errors.required(&at, "must specify either targetWWNs or wwids, but not both");
    }
    if !targets.is_empty() && !ids.is_empty() {
        let why = "targetWWNs and wwids can not be specified simultaneously";
        errors.invalid(&at, get(source, "targetWWNs").clone(), why);
    }
    if !targets.is_empty() {
        match int(source, "lun") {
            None => errors.required(&path.child("lun"), "lun is required if targetWWNs is specified"),
            Some(lun) => {
                for message in rules::in_range(lun, 0, 255) {
                    errors.invalid(&path.child("lun"), lun, &message);
                }
            }
        }
    }
}

fn azure_disk(errors: &mut ErrorList, source: &Value, path: &Path<'_>) {
    required(errors, source, &["diskName", "diskURI"], path);
    let (kind, uri) = (text(source, "kind"), text(source, "diskURI"));
    optional_choice(errors, source, "cachingMode", &["None", "ReadOnly", "ReadWrite"], path);
    optional_choice(errors, source, "kind", &["Dedicated", "Managed", "Shared"], path);
    if !has(source, "kind") {
        return;
    }
    let (begin, form) = if kind == "Managed" {
        (
            "/subscriptions/",
            "/subscriptions/{sub-id}/resourcegroups/{group-name}/providers/microsoft.compute/disks/{disk-id}",
        )
    } else {
        ("https://", "https://{account-name}.blob.core.windows.net/{container-name}/{disk-name}.vhd")
    };
    if !uri.starts_with(begin) {
        errors.not_supported(&path.child("diskURI"), uri, &[form]);
    }
}

/// A CSI driver's name.
pub(crate) fn csi_driver(errors: &mut ErrorList, driver: &str, at: &Path<'_>) {
    if driver.is_empty() {
        errors.required(at, "");
        return;
    }
    if driver.len() > CSI_DRIVER_BYTES_MAX {
        errors.too_long(at, CSI_DRIVER_BYTES_MAX);
    }
    errors.invalid_each(at, driver, rules::dns_subdomain(&driver.to_lowercase()));
}

fn csi(errors: &mut ErrorList, source: &Value, path: &Path<'_>) {
    csi_driver(errors, text(source, "driver"), &path.child("driver"));
    if has(source, "nodePublishSecretRef") {
        match text(get(source, "nodePublishSecretRef"), "name") {
            "" => errors.required(&path.child("nodePublishSecretRef.name"), ""),
            name => errors.invalid_each(&path.child("name"), name, rules::dns_subdomain(name)),
        }
    }
}

/// Whether a Go struct field is set. An empty list counts as set, and so does a zero: decoding leaves it only in a
/// pointer.
pub(crate) fn is_set(value: &Value) -> bool {
    value.is_array() || value.is_object() || value.is_number() || !is_zero(value)
}

/// A metadata field as upstream derives its name from Go's.
pub(crate) fn go_field(key: &str) -> &str {
    if key == "uid" { "uID" } else { key }
}

fn ephemeral(errors: &mut ErrorList, source: &Value, path: &Path<'_>) {
    let template = get(source, "volumeClaimTemplate");
    let at = path.child("volumeClaimTemplate");
    if template.is_null() {
        errors.required(&at, "");
        return;
    }
    let meta = get(template, "metadata");
    let meta_at = at.child("metadata");
    annotations(errors, get(meta, "annotations"), &meta_at.child("annotations"));
    labels(errors, get(meta, "labels"), &meta_at.child("labels"));
    for (key, value) in meta.as_object().into_iter().flatten() {
        if key != "annotations" && key != "labels" && is_set(value) {
            errors.forbidden(&meta_at.child(go_field(key)), "cannot be set");
        }
    }
    claims::spec(errors, get(template, "spec"), &at.child("spec"));
}
