//! Volumes of a pod: exactly one source each, and the fields of each source.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::{containers, disks, environment};
use crate::choices::choice;
use crate::field::{ErrorList, Path};
use crate::metadata::quantity;
use crate::read::{get, has, int, items, text};
use crate::rules;

const MODE_MAX: i64 = 0o777;
const BAD_MODE: &str = "must be a number between 0 and 0777 (octal), both inclusive";
const ONE_SOURCE: &str = "may not specify more than 1 volume type";
const DUPLICATE_PATH: &str = "conflicting duplicate paths";
const TOKEN_SECONDS_MIN: i64 = 600;
const TOKEN_SECONDS_MAX: i64 = 1 << 32;
const FILE_FIELDS: &[&str] =
    &["metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"];

/// Sources in upstream's order: the field, its name in upstream's "more than one", and its name in errors below it.
const SOURCES: &[(&str, &str, &str)] = &[
    ("emptyDir", "emptyDir", "emptyDir"),
    ("hostPath", "hostPath", "hostPath"),
    ("gitRepo", "gitRepo", "gitRepo"),
    ("gcePersistentDisk", "gcePersistentDisk", "persistentDisk"),
    ("awsElasticBlockStore", "awsElasticBlockStore", "awsElasticBlockStore"),
    ("secret", "secret", "secret"),
    ("nfs", "nfs", "nfs"),
    ("iscsi", "iscsi", "iscsi"),
    ("glusterfs", "glusterfs", "glusterfs"),
    ("flocker", "flocker", "flocker"),
    ("persistentVolumeClaim", "persistentVolumeClaim", "persistentVolumeClaim"),
    ("rbd", "rbd", "rbd"),
    ("cinder", "cinder", "cinder"),
    ("cephfs", "cephFS", "cephfs"),
    ("quobyte", "quobyte", "quobyte"),
    ("downwardAPI", "downwarAPI", "downwardAPI"),
    ("fc", "fc", "fc"),
    ("flexVolume", "flexVolume", "flexVolume"),
    ("configMap", "configMap", "configMap"),
    ("azureFile", "azureFile", "azureFile"),
    ("vsphereVolume", "vsphereVolume", "vsphereVolume"),
    ("photonPersistentDisk", "photonPersistentDisk", "photonPersistentDisk"),
    ("portworxVolume", "portworxVolume", "portworxVolume"),
    ("azureDisk", "azureDisk", "azureDisk"),
    ("storageos", "storageos", "storageos"),
    ("projected", "projected", "projected"),
    ("scaleIO", "scaleIO", "scaleIO"),
    ("csi", "csi", "csi"),
    ("ephemeral", "ephemeral", "ephemeral"),
    ("image", "image", "image"),
];

/// Validates all volumes and returns the valid ones by name.
pub(super) fn volumes<'a>(
    errors: &mut ErrorList,
    volumes: &'a [Value],
    pod_name: &str,
    path: &Path<'_>,
    is_pod: bool,
) -> BTreeMap<&'a str, &'a Value> {
    let created: BTreeSet<String> = volumes
        .iter()
        .filter(|v| !pod_name.is_empty() && has(v, "ephemeral"))
        .map(|v| format!("{pod_name}-{}", text(v, "name")))
        .collect();
    let mut named = BTreeMap::new();
    for (i, volume) in volumes.iter().enumerate() {
        let at = path.index(i);
        let name = text(volume, "name");
        let before = errors.count();
        source(errors, volume, pod_name, &at, is_pod);
        let name_at = at.child("name");
        if name.is_empty() {
            errors.required(&name_at, "");
        } else {
            errors.invalid_each(&name_at, name, rules::dns_label(name));
        }
        if named.contains_key(name) {
            errors.duplicate(&name_at, name);
        }
        if errors.count() == before {
            named.insert(name, volume);
        }
        let claim = text(get(volume, "persistentVolumeClaim"), "claimName");
        if has(volume, "persistentVolumeClaim") && created.contains(claim) {
            let why = "must not reference a PVC that gets created for an ephemeral volume";
            errors.invalid(&at.child("persistentVolumeClaim.claimName"), claim, why);
        }
    }
    named
}

fn source(errors: &mut ErrorList, volume: &Value, pod_name: &str, path: &Path<'_>, is_pod: bool) {
    let name = text(volume, "name");
    let mut given = 0;
    for (key, as_second, inside) in SOURCES {
        let source = get(volume, key);
        if source.is_null() {
            continue;
        }
        given += 1;
        if given > 1 {
            errors.forbidden(&path.child(as_second), ONE_SOURCE);
        } else {
            one_source(errors, key, source, &path.child(inside), is_pod);
        }
        if *key == "iscsi" && has(source, "initiatorName") {
            let length = name.len() + 1 + text(source, "targetPortal").len();
            if length > 64 {
                let why = "Total length of <volume name>:<iscsi.targetPortal> must be under 64 characters if iscsi.initiatorName is specified.";
                errors.invalid(&path.child("name"), name, why);
            }
        }
        if *key == "ephemeral" && given == 1 && !pod_name.is_empty() && !name.is_empty() {
            let claim = format!("{pod_name}-{name}");
            for message in rules::dns_subdomain(&claim) {
                errors.invalid(&path.child("name"), name, &format!("PVC name \"{claim}\": {message}"));
            }
        }
    }
    if given == 0 {
        errors.required(path, "must specify a volume type");
    }
}

fn one_source(errors: &mut ErrorList, key: &str, source: &Value, path: &Path<'_>, is_pod: bool) {
    match key {
        "emptyDir" => {
            if quantity(get(source, "sizeLimit")).is_some_and(|q| q.sign() < 0) {
                errors.forbidden(&path.child("sizeLimit"), "SizeLimit field must be a valid resource quantity");
            }
        }
        "hostPath" => host_path(errors, source, path),
        "secret" => {
            required(errors, source, &["secretName"], path);
            mode(errors, source, "defaultMode", path);
            keys(errors, source, path);
        }
        "configMap" => {
            required(errors, source, &["name"], path);
            mode(errors, source, "defaultMode", path);
            keys(errors, source, path);
        }
        "persistentVolumeClaim" => required(errors, source, &["claimName"], path),
        "downwardAPI" => {
            mode(errors, source, "defaultMode", path);
            for file in items(source, "items") {
                downward_file(errors, file, path);
            }
        }
        "projected" => {
            mode(errors, source, "defaultMode", path);
            projected(errors, source, path);
        }
        "image" => {
            if is_pod && text(source, "reference").is_empty() {
                errors.required(&path.child("reference"), "");
            }
            containers::pull_policy(errors, text(source, "pullPolicy"), &path.child("pullPolicy"));
        }
        _ => disks::source(errors, key, source, path),
    }
}

/// Required text fields.
pub(crate) fn required(errors: &mut ErrorList, source: &Value, keys: &[&str], path: &Path<'_>) {
    for key in keys {
        if text(source, key).is_empty() {
            errors.required(&path.child(key), "");
        }
    }
}

fn mode(errors: &mut ErrorList, source: &Value, key: &str, path: &Path<'_>) {
    if let Some(mode) = int(source, key).filter(|m| !(0..=MODE_MAX).contains(m)) {
        errors.invalid(&path.child(key), mode, BAD_MODE);
    }
}

/// A path on the host.
pub(crate) fn host_path(errors: &mut ErrorList, source: &Value, path: &Path<'_>) {
    const TYPES: &[&str] =
        &["", "BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"];
    let file = text(source, "path");
    if file.is_empty() {
        errors.required(&path.child("path"), "");
        return;
    }
    no_backsteps(errors, file, &path.child("path"));
    choice(errors, source, "type", TYPES, path);
}

fn keys(errors: &mut ErrorList, source: &Value, path: &Path<'_>) {
    let at = path.child("items");
    for (i, item) in items(source, "items").iter().enumerate() {
        key_to_path(errors, item, &at.index(i));
    }
}

fn key_to_path(errors: &mut ErrorList, item: &Value, path: &Path<'_>) {
    required(errors, item, &["key", "path"], path);
    local_path(errors, text(item, "path"), &path.child("path"));
    mode(errors, item, "mode", path);
}

fn downward_file(errors: &mut ErrorList, file: &Value, path: &Path<'_>) {
    required(errors, file, &["path"], path);
    local_path(errors, text(file, "path"), &path.child("path"));
    if has(file, "fieldRef") {
        environment::field_ref(errors, get(file, "fieldRef"), FILE_FIELDS, &path.child("fieldRef"));
        if has(file, "resourceFieldRef") {
            errors.invalid(path, "resource", "fieldRef and resourceFieldRef can not be specified simultaneously");
        }
    } else if has(file, "resourceFieldRef") {
        let reference = get(file, "resourceFieldRef");
        environment::resource_field_ref(errors, reference, &path.child("resourceFieldRef"), true);
    } else {
        errors.required(path, "one of fieldRef and resourceFieldRef is required");
    }
    mode(errors, file, "mode", path);
}

fn projected(errors: &mut ErrorList, projected: &Value, path: &Path<'_>) {
    let mut paths = BTreeSet::new();
    let sources_at = path.child("sources");
    for (i, source) in items(projected, "sources").iter().enumerate() {
        let at = sources_at.index(i);
        let mut given = 0;
        for key in ["secret", "configMap"] {
            let part = get(source, key);
            if part.is_null() {
                continue;
            }
            given += 1;
            let at = at.child(key);
            let name = text(part, "name");
            if name.is_empty() {
                errors.required(&at.child("name"), "");
            }
            let items_at = at.child("items");
            for (j, item) in items(part, "items").iter().enumerate() {
                key_to_path(errors, item, &items_at.index(j));
                let file = text(item, "path");
                if !file.is_empty() && !paths.insert(file) {
                    errors.invalid(path, name, DUPLICATE_PATH);
                }
            }
        }
        if has(source, "downwardAPI") {
            given += 1;
            for file in items(get(source, "downwardAPI"), "items") {
                downward_file(errors, file, &at.child("downwardAPI"));
                let file = text(file, "path");
                if !file.is_empty() && !paths.insert(file) {
                    errors.invalid(path, file, DUPLICATE_PATH);
                }
            }
        }
        let token = get(source, "serviceAccountToken");
        if !token.is_null() {
            given += 1;
            let seconds_at = at.child("serviceAccountToken.expirationSeconds");
            let seconds = int(token, "expirationSeconds").unwrap_or(0);
            if seconds < TOKEN_SECONDS_MIN {
                errors.invalid(&seconds_at, seconds, "may not specify a duration less than 10 minutes");
            }
            if seconds > TOKEN_SECONDS_MAX {
                errors.invalid(&seconds_at, seconds, "may not specify a duration larger than 2^32 seconds");
            }
            match text(token, "path") {
                "" => errors.required(&path.child("path"), ""),
                file => local_path(errors, file, &path.child("path")),
            }
        }
        if given > 1 {
            errors.forbidden(&at, "may not specify more than 1 volume type per source");
        }
    }
}

/// A path below the volume's root.
pub(super) fn descending(errors: &mut ErrorList, file: &str, path: &Path<'_>) {
    if file.starts_with('/') {
        errors.invalid(path, file, "must be a relative path");
    }
    no_backsteps(errors, file, path);
}

/// A path without `..`.
pub(crate) fn no_backsteps(errors: &mut ErrorList, file: &str, path: &Path<'_>) {
    if file.split('/').any(|part| part == "..") {
        errors.invalid(path, file, "must not contain '..'");
    }
}

fn local_path(errors: &mut ErrorList, file: &str, path: &Path<'_>) {
    descending(errors, file, path);
    if file.starts_with("..") && !file.starts_with("../") {
        errors.invalid(path, file, "must not start with '..'");
    }
}
