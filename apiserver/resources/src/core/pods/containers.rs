//! Containers: names, ports, environment, mounts, devices, restart rules; init and ephemeral containers.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::{environment, probes, resources, security, volumes};
use crate::choices::{choice, required_choice};
use crate::field::{ErrorList, FieldError, Path, go_struct};
use crate::read::{flag, get, has, int, items, text};
use crate::rules;

const RESTART_RULES_MAX: usize = 20;
const EXIT_CODES_MAX: usize = 255;

/// Properties of the pod that the rules of its containers need.
pub(super) struct PodValidationContext<'a> {
    pub(super) volumes: BTreeMap<&'a str, &'a Value>,
    pub(super) claims: BTreeSet<&'a str>,
    pub(super) grace_seconds: Option<i64>,
    pub(super) restart_policy: &'a str,
    pub(super) host_users: bool,
    pub(super) os: Option<&'a str>,
}

/// Regular containers.
pub(super) fn containers(errors: &mut ErrorList, list: &[Value], around: &PodValidationContext<'_>, path: &Path<'_>) {
    if list.is_empty() {
        errors.required(path, "");
        return;
    }
    let mut names = BTreeSet::new();
    for (i, container) in list.iter().enumerate() {
        let at = path.index(i);
        common(errors, container, around, &at);
        let name = text(container, "name");
        if !names.insert(name) {
            errors.duplicate(&at.child("name"), name);
        }
        probes::lifecycle(errors, container, around, &at);
        probes::probes(errors, container, around, &at);
        restart_policy(errors, container, &at);
    }
    host_ports(errors, list, path);
}

/// Init containers; those with restart policy `Always` are sidecars.
pub(super) fn init_containers(
    errors: &mut ErrorList,
    list: &[Value],
    regular: &[Value],
    around: &PodValidationContext<'_>,
    path: &Path<'_>,
) {
    let mut names: BTreeSet<&str> = regular.iter().map(|c| text(c, "name")).collect();
    for (i, container) in list.iter().enumerate() {
        let at = path.index(i);
        common(errors, container, around, &at);
        let sidecar = text(container, "restartPolicy") == "Always";
        if has(container, "restartPolicy") || !items(container, "restartPolicyRules").is_empty() {
            restart_policy(errors, container, &at);
        }
        let name = text(container, "name");
        if names.contains(name) {
            errors.duplicate(&at.child("name"), name);
        } else if !name.is_empty() {
            names.insert(name);
        }
        host_ports(errors, std::slice::from_ref(container), path);
        if sidecar {
            probes::lifecycle(errors, container, around, &at);
            probes::probes(errors, container, around, &at);
        } else {
            for key in ["lifecycle", "livenessProbe", "readinessProbe", "startupProbe"] {
                if has(container, key) {
                    errors.forbidden(&at.child(key), "may not be set for init containers without restartPolicy=Always");
                }
            }
            let policies_at = at.child("resizePolicy");
            for (j, policy) in items(container, "resizePolicy").iter().enumerate() {
                if text(policy, "restartPolicy") == "RestartContainer" {
                    errors.invalid(
                        &policies_at.index(j).child("restartPolicy"),
                        "RestartContainer",
                        "must not be set to 'RestartContainer' for non-sidecar initContainers",
                    );
                }
            }
        }
    }
}

pub(super) fn ephemeral_containers(
    errors: &mut ErrorList,
    spec: &Value,
    around: &PodValidationContext<'_>,
    path: &Path<'_>,
) {
    let others: BTreeSet<&str> =
        ["containers", "initContainers"].iter().flat_map(|l| items(spec, l)).map(|c| text(c, "name")).collect();
    let mut names = others.clone();
    for (i, container) in items(spec, "ephemeralContainers").iter().enumerate() {
        let at = path.index(i);
        common(errors, container, around, &at);
        image_padding(errors, container, &at);
        let name = text(container, "name");
        if !names.insert(name) {
            errors.duplicate(&at.child("name"), name);
        }
        let target = text(container, "targetContainerName");
        if !target.is_empty() && !others.contains(target) {
            errors.not_found(&at.child("targetContainerName"), target);
        }
        for key in [
            "ports",
            "resources",
            "resizePolicy",
            "restartPolicy",
            "restartPolicyRules",
            "livenessProbe",
            "readinessProbe",
            "startupProbe",
            "lifecycle",
        ] {
            // Upstream tests for presence: an empty hook or probe is set. Resources are a struct of maps.
            let set = match get(container, key) {
                Value::Object(resources) if key == "resources" => !resources.values().all(Value::is_null),
                value => !value.is_null(),
            };
            if set {
                errors.forbidden(&at.child(key), "cannot be set for an Ephemeral Container");
            }
        }
        let mounts_at = at.child("volumeMounts");
        for (j, mount) in items(container, "volumeMounts").iter().enumerate() {
            for key in ["subPath", "subPathExpr"] {
                if !text(mount, key).is_empty() {
                    errors.forbidden(&mounts_at.index(j).child(key), "cannot be set for an Ephemeral Container");
                }
            }
        }
    }
}

/// Rejects whitespace around images, a rule of pods only.
pub(super) fn image_padding(errors: &mut ErrorList, container: &Value, path: &Path<'_>) {
    let image = text(container, "image");
    if image.trim().len() != image.len() {
        errors.invalid(&path.child("image"), image, "must not have leading or trailing whitespace");
    }
}

fn common(errors: &mut ErrorList, container: &Value, around: &PodValidationContext<'_>, path: &Path<'_>) {
    let name = text(container, "name");
    if name.is_empty() {
        errors.required(&path.child("name"), "");
    } else {
        errors.invalid_each(&path.child("name"), name, rules::dns_label(name));
    }
    if text(container, "image").is_empty() {
        errors.required(&path.child("image"), "");
    }
    required_choice(errors, container, "terminationMessagePolicy", &["File", "FallbackToLogsOnError"], path);
    ports(errors, items(container, "ports"), &path.child("ports"));
    environment::variables(errors, items(container, "env"), &path.child("env"));
    environment::sources(errors, items(container, "envFrom"), &path.child("envFrom"));
    mounts(errors, container, around, &path.child("volumeMounts"));
    devices(errors, container, around, &path.child("volumeDevices"));
    pull_policy(errors, text(container, "imagePullPolicy"), &path.child("imagePullPolicy"));
    resources::requirements(errors, get(container, "resources"), &around.claims, &path.child("resources"), false);
    resize_policy(errors, items(container, "resizePolicy"), around, &path.child("resizePolicy"));
    security::container(errors, get(container, "securityContext"), around.host_users, &path.child("securityContext"));
}

pub(super) fn pull_policy(errors: &mut ErrorList, policy: &str, path: &Path<'_>) {
    match policy {
        "Always" | "IfNotPresent" | "Never" => {}
        "" => errors.required(path, ""),
        other => errors.not_supported(path, other, &["Always", "IfNotPresent", "Never"]),
    }
}

fn ports(errors: &mut ErrorList, ports: &[Value], path: &Path<'_>) {
    let mut names = BTreeSet::new();
    for (i, port) in ports.iter().enumerate() {
        let at = path.index(i);
        let name = text(port, "name");
        if !name.is_empty() {
            let wrong = rules::port_name(name);
            if !wrong.is_empty() {
                errors.invalid_each(&at.child("name"), name, wrong);
            } else if !names.insert(name) {
                errors.duplicate(&at.child("name"), name);
            }
        }
        for key in ["containerPort", "hostPort"] {
            match int(port, key).unwrap_or(0) {
                0 if key == "hostPort" => {}
                0 => errors.required(&at.child(key), ""),
                number => {
                    for message in rules::port_number(number) {
                        errors.invalid(&at.child(key), number, &message);
                    }
                }
            }
        }
        required_choice(errors, port, "protocol", &["SCTP", "TCP", "UDP"], &at);
    }
}

fn host_ports(errors: &mut ErrorList, containers: &[Value], path: &Path<'_>) {
    let mut taken = BTreeSet::new();
    for (i, container) in containers.iter().enumerate() {
        let at = path.index(i);
        let ports_at = at.child("ports");
        for (j, port) in items(container, "ports").iter().enumerate() {
            let number = int(port, "hostPort").unwrap_or(0);
            if number == 0 {
                continue;
            }
            let key = format!("{}/{}/{number}", text(port, "protocol"), text(port, "hostIP"));
            if taken.contains(&key) {
                errors.duplicate(&ports_at.index(j).child("hostPort"), key);
            } else {
                taken.insert(key);
            }
        }
    }
}

fn mounts(errors: &mut ErrorList, container: &Value, around: &PodValidationContext<'_>, path: &Path<'_>) {
    let devices = items(container, "volumeDevices");
    let device_names: BTreeSet<&str> = devices.iter().map(|d| text(d, "name")).collect();
    let device_paths: BTreeSet<&str> = devices.iter().map(|d| text(d, "devicePath")).collect();
    let mut paths = BTreeSet::new();
    for (i, mount) in items(container, "volumeMounts").iter().enumerate() {
        let at = path.index(i);
        let (name, mount_path) = (text(mount, "name"), text(mount, "mountPath"));
        let (name_at, path_at) = (at.child("name"), at.child("mountPath"));
        if name.is_empty() {
            errors.required(&name_at, "");
        }
        if !around.volumes.contains_key(name) {
            errors.not_found(&name_at, name);
        }
        if mount_path.is_empty() {
            errors.required(&path_at, "");
        }
        if !paths.insert(mount_path) {
            errors.invalid(&path_at, mount_path, "must be unique");
        }
        if device_names.contains(name) {
            errors.invalid(&name_at, name, "must not already exist in volumeDevices");
        }
        if device_paths.contains(mount_path) {
            errors.invalid(&path_at, mount_path, "must not already exist as a path in volumeDevices");
        }
        let (sub, expression) = (text(mount, "subPath"), text(mount, "subPathExpr"));
        if !sub.is_empty() {
            volumes::descending(errors, sub, &path.child("subPath"));
        }
        if !expression.is_empty() {
            if !sub.is_empty() {
                let why = "subPathExpr and subPath are mutually exclusive";
                errors.invalid(&at.child("subPathExpr"), expression, why);
            }
            volumes::descending(errors, expression, &path.child("subPathExpr"));
        }
        mount_modes(errors, mount, container, path);
    }
}

fn mount_modes(errors: &mut ErrorList, mount: &Value, container: &Value, path: &Path<'_>) {
    let propagation = text(mount, "mountPropagation");
    if has(mount, "mountPropagation") {
        let at = path.child("mountPropagation");
        choice(errors, mount, "mountPropagation", &["Bidirectional", "HostToContainer", "None"], path);
        if propagation == "Bidirectional" && !flag(get(container, "securityContext"), "privileged") {
            let why = "Bidirectional mount propagation is available only to privileged containers";
            errors.forbidden(&at, why);
        }
    }
    if has(mount, "recursiveReadOnly") {
        let at = path.child("recursiveReadOnly");
        match text(mount, "recursiveReadOnly") {
            "Disabled" => {}
            "Enabled" | "IfPossible" => {
                if !flag(mount, "readOnly") {
                    errors.forbidden(&at, "may only be specified when readOnly is true");
                }
                if has(mount, "mountPropagation") && propagation != "None" {
                    let why = "may only be specified when mountPropagation is None or not specified";
                    errors.forbidden(&at, why);
                }
            }
            other => errors.not_supported(&at, other, &["Disabled", "Enabled", "IfPossible"]),
        }
    }
}

fn devices(errors: &mut ErrorList, container: &Value, around: &PodValidationContext<'_>, path: &Path<'_>) {
    let mounts = items(container, "volumeMounts");
    let mount_names: BTreeSet<&str> = mounts.iter().map(|m| text(m, "name")).collect();
    let mount_paths: BTreeSet<&str> = mounts.iter().map(|m| text(m, "mountPath")).collect();
    let (mut names, mut paths) = (BTreeSet::new(), BTreeSet::new());
    for (i, device) in items(container, "volumeDevices").iter().enumerate() {
        let at = path.index(i);
        let (name, device_path) = (text(device, "name"), text(device, "devicePath"));
        let (name_at, path_at) = (at.child("name"), at.child("devicePath"));
        if name.is_empty() {
            errors.required(&name_at, "");
        }
        if names.contains(name) {
            errors.invalid(&name_at, name, "must be unique");
        }
        match around.volumes.get(name) {
            Some(volume) if !has(volume, "persistentVolumeClaim") && !has(volume, "ephemeral") => {
                let why = "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode";
                errors.invalid(&name_at, name, why);
            }
            Some(_) => {}
            None => errors.not_found(&name_at, name),
        }
        if device_path.is_empty() {
            errors.required(&path_at, "");
        }
        if paths.contains(device_path) {
            errors.invalid(&path_at, device_path, "must be unique");
        }
        if device_path.split('/').any(|part| part == "..") {
            errors.invalid(&path_at, device_path, "can not contain backsteps ('..')");
        } else {
            paths.insert(device_path);
        }
        if mount_names.contains(name) {
            errors.invalid(&name_at, name, "must not already exist in volumeMounts");
        }
        if mount_paths.contains(device_path) {
            errors.invalid(&path_at, device_path, "must not already exist as a path in volumeMounts");
        }
        if !name.is_empty() {
            names.insert(name);
        }
    }
}

fn resize_policy(errors: &mut ErrorList, policies: &[Value], around: &PodValidationContext<'_>, path: &Path<'_>) {
    let mut seen = BTreeSet::new();
    for (i, policy) in policies.iter().enumerate() {
        let (resource, restart) = (text(policy, "resourceName"), text(policy, "restartPolicy"));
        if !seen.insert(resource) {
            errors.duplicate(&path.index(i), resource);
        }
        match resource {
            "cpu" | "memory" => {}
            "" => errors.required(path, ""),
            other => errors.not_supported(path, other, &["cpu", "memory"]),
        }
        match restart {
            "NotRequired" | "RestartContainer" => {}
            "" => errors.required(path, ""),
            other => errors.not_supported(path, other, &["NotRequired", "RestartContainer"]),
        }
        if around.restart_policy == "Never" && restart != "NotRequired" {
            errors.invalid(path, restart, "must be 'NotRequired' when pod `restartPolicy` is 'Never'");
        }
    }
}

fn restart_policy(errors: &mut ErrorList, container: &Value, path: &Path<'_>) {
    let rules = items(container, "restartPolicyRules");
    let at = path.child("restartPolicy");
    if has(container, "restartPolicy") {
        choice(errors, container, "restartPolicy", &["Always", "Never", "OnFailure"], path);
    } else if rules.is_empty() {
        return;
    } else {
        errors.required(&at, "must specify restartPolicy when restart rules are used");
    }
    let rules_at = path.child("restartPolicyRules");
    if rules.len() > RESTART_RULES_MAX {
        errors.too_many(&rules_at, rules.len(), RESTART_RULES_MAX);
    }
    for (i, rule) in rules.iter().enumerate() {
        let at = rules_at.index(i);
        choice(errors, rule, "action", &["Restart", "RestartAllContainers"], &at);
        let codes = get(rule, "exitCodes");
        let codes_at = at.child("exitCodes");
        if codes.is_null() {
            errors.required(&codes_at, "must be specified");
            continue;
        }
        choice(errors, codes, "operator", &["In", "NotIn"], &codes_at);
        let values = items(codes, "values").len();
        if values > EXIT_CODES_MAX {
            errors.too_many(&codes_at.child("values"), values, EXIT_CODES_MAX);
        }
    }
}

/// Device claims, which must be among the pod's.
pub(super) fn resource_claims(errors: &mut ErrorList, claims: &[Value], path: &Path<'_>) {
    const ORDER: &[&str] = &["Name", "ResourceClaimName", "ResourceClaimTemplateName"];
    let mut names = BTreeSet::new();
    for (i, claim) in claims.iter().enumerate() {
        let at = path.index(i);
        let name = text(claim, "name");
        if name.is_empty() {
            errors.required(&at.child("name"), "");
        } else if names.contains(name) {
            errors.duplicate(&at.child("name"), name);
        } else {
            errors.invalid_each(&at.child("name"), name, rules::dns_label(name));
            names.insert(name);
        }
        let both = (has(claim, "resourceClaimName"), has(claim, "resourceClaimTemplateName"));
        let why = match both {
            (true, true) => "at most one of `resourceClaimName` or `resourceClaimTemplateName` may be specified",
            (false, false) => "must specify one of: `resourceClaimName`, `resourceClaimTemplateName`",
            _ => "",
        };
        if !why.is_empty() {
            let inner = serde_json::json!({"Name": name, "ResourceClaimName": get(claim, "resourceClaimName"),
                "ResourceClaimTemplateName": get(claim, "resourceClaimTemplateName")});
            errors.add(|| FieldError::invalid_shown(&at, &go_struct(&inner, ORDER), why));
        }
        for key in ["resourceClaimName", "resourceClaimTemplateName"] {
            if has(claim, key) {
                let value = text(claim, key);
                errors.invalid_each(&at.child(key), value, rules::dns_subdomain(value));
            }
        }
    }
}
