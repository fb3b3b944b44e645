//! Validation of environment variables: their sources, and references to the pod's own fields.

use serde_json::Value;

use super::volumes;
use crate::field::{ErrorList, Path};
use crate::metadata::quantity;
use crate::read::{get, has, items, text};
use crate::rules;

const ENV_FIELDS: &[&str] = &[
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];
const RESOURCE_FIELDS: &[&str] = &[
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
];
const BYTE_DIVISORS: &[&str] = &["1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei"];

/// Validates each variable.
pub(super) fn variables(errors: &mut ErrorList, variables: &[Value], path: &Path<'_>) {
    for (i, variable) in variables.iter().enumerate() {
        let at = path.index(i);
        let name = text(variable, "name");
        if name.is_empty() {
            errors.required(&at.child("name"), "");
        } else {
            errors.invalid_each(&at.child("name"), name, rules::env_var_name(name));
        }
        value_from(errors, variable, &at.child("valueFrom"));
    }
}

fn value_from(errors: &mut ErrorList, variable: &Value, path: &Path<'_>) {
    let from = get(variable, "valueFrom");
    if from.is_null() {
        return;
    }
    let mut sources = 0;
    if has(from, "fieldRef") {
        sources += 1;
        field_ref(errors, get(from, "fieldRef"), ENV_FIELDS, &path.child("fieldRef"));
    }
    if has(from, "resourceFieldRef") {
        sources += 1;
        resource_field_ref(errors, get(from, "resourceFieldRef"), &path.child("resourceFieldRef"), false);
    }
    for key in ["configMapKeyRef", "secretKeyRef"] {
        if !has(from, key) {
            continue;
        }
        sources += 1;
        let (reference, at) = (get(from, key), path.child(key));
        let name = text(reference, "name");
        errors.invalid_each(&at.child("name"), name, rules::dns_subdomain(name));
        let key = text(reference, "key");
        if key.is_empty() {
            errors.required(&at.child("key"), "");
        } else {
            errors.invalid_each(&at.child("key"), key, rules::config_map_key(key));
        }
    }
    if has(from, "fileKeyRef") {
        sources += 1;
        let (reference, at) = (get(from, "fileKeyRef"), path.child("fileKeyRef"));
        match text(reference, "key") {
            "" => errors.required(&at.child("key"), ""),
            key => errors.invalid_each(&at.child("key"), key, rules::env_var_name(key)),
        }
        match text(reference, "volumeName") {
            "" => errors.required(&at.child("volumeName"), ""),
            name => errors.invalid_each(&at.child("volumeName"), name, rules::dns_label(name)),
        }
        match text(reference, "path") {
            "" => errors.required(&at.child("path"), ""),
            file => volumes::no_backsteps(errors, file, &at.child("path")),
        }
    }
    if sources == 0 {
        let why =
            "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`";
        errors.invalid(path, "", why);
    } else if !text(variable, "value").is_empty() {
        errors.invalid(path, "", "may not be specified when `value` is not empty");
    } else if sources > 1 {
        errors.invalid(path, "", "may not have more than one field specified at a time");
    }
}

fn subscript(field_path: &str) -> Option<(&str, &str)> {
    let (path, rest) = field_path.strip_suffix("']")?.split_once("['")?;
    (!path.is_empty()).then_some((path, rest))
}

/// A pod field in an environment variable or a file.
pub(super) fn field_ref(errors: &mut ErrorList, reference: &Value, allowed: &[&str], path: &Path<'_>) {
    let (version, field) = (text(reference, "apiVersion"), text(reference, "fieldPath"));
    if version.is_empty() {
        errors.required(&path.child("apiVersion"), "");
        return;
    }
    let at = path.child("fieldPath");
    if field.is_empty() {
        errors.required(&at, "");
        return;
    }
    let unknown = |errors: &mut ErrorList, why: String| {
        errors.invalid(&at, field, &format!("error converting fieldPath: {why}"));
    };
    if version != "v1" {
        unknown(errors, format!("unsupported pod version: {version}"));
        return;
    }
    if let Some((base, key)) = subscript(field) {
        match base {
            "metadata.annotations" => {
                errors.invalid_each(path, &key.to_lowercase(), rules::label_key(&key.to_lowercase()))
            }
            "metadata.labels" => errors.invalid_each(path, key, rules::label_key(key)),
            _ => unknown(errors, format!("field label does not support subscript: {field}")),
        }
        return;
    }
    let inner = match field {
        "spec.host" => "spec.nodeName",
        "metadata.annotations"
        | "metadata.labels"
        | "metadata.name"
        | "metadata.namespace"
        | "metadata.uid"
        | "spec.nodeName"
        | "spec.restartPolicy"
        | "spec.serviceAccountName"
        | "spec.schedulerName"
        | "status.phase"
        | "status.hostIP"
        | "status.hostIPs"
        | "status.podIP"
        | "status.podIPs" => field,
        _ => {
            unknown(errors, format!("field label not supported: {field}"));
            return;
        }
    };
    if !allowed.contains(&inner) {
        errors.not_supported(&at, inner, allowed);
    }
}

/// A container's resource in an environment variable or a file (`volume`).
pub(super) fn resource_field_ref(errors: &mut ErrorList, reference: &Value, path: &Path<'_>, volume: bool) {
    let resource = text(reference, "resource");
    let huge = resource.starts_with("requests.hugepages-") || resource.starts_with("limits.hugepages-");
    if volume && text(reference, "containerName").is_empty() {
        errors.required(&path.child("containerName"), "");
    } else if resource.is_empty() {
        errors.required(&path.child("resource"), "");
    } else if !RESOURCE_FIELDS.contains(&resource) && !huge {
        errors.not_supported(&path.child("resource"), resource, RESOURCE_FIELDS);
    }
    let Some(divisor) = quantity(get(reference, "divisor")).filter(|d| !d.is_zero()) else { return };
    let (allowed, list, what): (&[&str], &str, &str) = match resource {
        "limits.cpu" | "requests.cpu" => (&["1m", "1"], "1m and 1", "cpu resource"),
        "limits.memory" | "requests.memory" => (BYTE_DIVISORS, "", "memory resource"),
        "limits.ephemeral-storage" | "requests.ephemeral-storage" => {
            (BYTE_DIVISORS, "", "local ephemeral storage resource")
        }
        _ if huge => (BYTE_DIVISORS, "", "hugepages resource"),
        _ => return,
    };
    if !allowed.contains(&divisor.to_string().as_str()) {
        let list = if list.is_empty() { BYTE_DIVISORS.join(", ") } else { list.to_owned() };
        let why = format!("only divisor's values {list} are supported with the {what}");
        errors.invalid(&path.child("divisor"), resource, &why);
    }
}

/// `envFrom`: whole config maps and secrets.
pub(super) fn sources(errors: &mut ErrorList, sources: &[Value], path: &Path<'_>) {
    for (i, source) in sources.iter().enumerate() {
        let at = path.index(i);
        let prefix = text(source, "prefix");
        if !prefix.is_empty() {
            errors.invalid_each(&at.child("prefix"), prefix, rules::env_var_name(prefix));
        }
        let mut given = 0;
        for key in ["configMapRef", "secretRef"] {
            if !has(source, key) {
                continue;
            }
            given += 1;
            let name_at = at.child(key);
            match text(get(source, key), "name") {
                "" => errors.required(&name_at.child("name"), ""),
                name => {
                    errors.invalid_each(&name_at.child("name"), name, rules::NameRule::Subdomain.check(name, true));
                }
            }
        }
        match given {
            0 => errors.invalid(path, "", "must specify one of: `configMapRef` or `secretRef`"),
            1 => {}
            _ => errors.invalid(path, "", "may not have more than one field specified at a time"),
        }
    }
}

/// Variables from files must refer to an emptyDir of the pod.
pub(super) fn file_keys(errors: &mut ErrorList, spec: &Value, path: &Path<'_>) {
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        let list_at = path.child(list);
        for (i, container) in items(spec, list).iter().enumerate() {
            let at = list_at.index(i);
            let env_at = at.child("env");
            for (j, variable) in items(container, "env").iter().enumerate() {
                let reference = get(get(variable, "valueFrom"), "fileKeyRef");
                if reference.is_null() {
                    continue;
                }
                let name = text(reference, "volumeName");
                let one = env_at.index(j);
                let at = one.child("valueFrom.fileKeyRef.volumeName");
                match items(spec, "volumes").iter().rfind(|v| text(v, "name") == name) {
                    None => errors.not_found(&at, name),
                    Some(volume) if !has(volume, "emptyDir") => {
                        errors.invalid(&at, name, "referenced volume must be of type emptyDir");
                    }
                    Some(_) => {}
                }
            }
        }
    }
}
