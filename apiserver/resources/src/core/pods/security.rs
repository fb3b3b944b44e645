//! Security contexts of pods and containers, and the annotations that preceded them.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use regex::Regex;
use serde_json::{Value, json};

use crate::choices::{choice, optional_choice};
use crate::field::{ErrorList, FieldError, Path, go_struct};
use crate::read::{NULL, flag, get, has, int, items, items_mut, object_mut, put, text, texts};
use crate::rules;

use super::systems::windows;
use super::{each_container, volumes};

const ID_MAX: i64 = i32::MAX as i64;
const SYSCTL: &str = r"([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?";
const SYSCTL_BYTES_MAX: usize = 253;
const LOCALHOST_PROFILE_BYTES_MAX: usize = 4095;
const APPARMOR_ANNOTATION: &str = "container.apparmor.security.beta.kubernetes.io/";
const SECCOMP_POD_ANNOTATION: &str = "seccomp.security.alpha.kubernetes.io/pod";
const SECCOMP_ANNOTATION: &str = "container.seccomp.security.alpha.kubernetes.io/";

static IS_SYSCTL: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(&format!("^{SYSCTL}$")).expect("the pattern is a constant"));

fn id(errors: &mut ErrorList, context: &Value, key: &str, path: &Path<'_>) {
    if let Some(id) = int(context, key) {
        for message in rules::in_range(id, 0, ID_MAX) {
            errors.invalid(&path.child(key), id, &message);
        }
    }
}

/// A container's security context.
pub(super) fn container(errors: &mut ErrorList, context: &Value, host_users: bool, path: &Path<'_>) {
    if context.is_null() {
        return;
    }
    id(errors, context, "runAsUser", path);
    id(errors, context, "runAsGroup", path);
    if has(context, "procMount") {
        let mount = text(context, "procMount");
        let at = path.child("procMount");
        choice(errors, context, "procMount", &["Default", "Unmasked"], path);
        if host_users && mount == "Unmasked" {
            errors.invalid(&at, mount, "`hostUsers` must be false to use `Unmasked`");
        }
    }
    seccomp(errors, get(context, "seccompProfile"), &path.child("seccompProfile"));
    if get(context, "allowPrivilegeEscalation") == &json!(false) {
        if flag(context, "privileged") {
            let why = "cannot set `allowPrivilegeEscalation` to false and `privileged` to true";
            errors.add(|| FieldError::invalid_shown(path, &inner_context(context), why));
        }
        if texts(get(context, "capabilities"), "add").any(|c| c == "CAP_SYS_ADMIN") {
            let why = "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN";
            errors.add(|| FieldError::invalid_shown(path, &inner_context(context), why));
        }
    }
    windows(errors, get(context, "windowsOptions"), &path.child("windowsOptions"));
    app_armor(errors, get(context, "appArmorProfile"), &path.child("appArmorProfile"));
}

/// Upstream shows a security context as its internal struct, whose fields have no JSON names.
fn inner_context(context: &Value) -> String {
    const FIELDS: &[(&str, &str)] = &[
        ("Capabilities", "capabilities"),
        ("Privileged", "privileged"),
        ("SELinuxOptions", "seLinuxOptions"),
        ("WindowsOptions", "windowsOptions"),
        ("RunAsUser", "runAsUser"),
        ("RunAsGroup", "runAsGroup"),
        ("RunAsNonRoot", "runAsNonRoot"),
        ("ReadOnlyRootFilesystem", "readOnlyRootFilesystem"),
        ("AllowPrivilegeEscalation", "allowPrivilegeEscalation"),
        ("ProcMount", "procMount"),
        ("SeccompProfile", "seccompProfile"),
        ("AppArmorProfile", "appArmorProfile"),
    ];
    let parts: Vec<String> = FIELDS
        .iter()
        .map(|(inner, outer)| {
            let value = get(context, outer);
            let shown = match (*outer, value) {
                (_, Value::Null) => "null".to_owned(),
                ("capabilities", value) => go_struct(
                    &json!({"Add": get(value, "add"), "Drop": get(value, "drop")}),
                    &["Add", "Drop"],
                ),
                ("seccompProfile" | "appArmorProfile", value) => go_struct(
                    &json!({"Type": text(value, "type"), "LocalhostProfile": get(value, "localhostProfile")}),
                    &["Type", "LocalhostProfile"],
                ),
                ("seLinuxOptions", value) => go_struct(
                    &json!({"User": text(value, "user"), "Role": text(value, "role"), "Type": text(value, "type"), "Level": text(value, "level")}),
                    &["User", "Role", "Type", "Level"],
                ),
                (_, value) => value.to_string(),
            };
            format!("\"{inner}\":{shown}")
        })
        .collect();
    format!("{{{}}}", parts.join(","))
}

fn seccomp(errors: &mut ErrorList, profile: &Value, path: &Path<'_>) {
    if profile.is_null() {
        return;
    }
    let at = path.child("localhostProfile");
    match text(profile, "type") {
        "Localhost" => {
            if has(profile, "localhostProfile") {
                volumes::descending(errors, text(profile, "localhostProfile"), &at);
            } else {
                errors.required(&at, "must be set when seccomp type is Localhost");
            }
            return;
        }
        "RuntimeDefault" | "Unconfined" => {}
        "" => errors.required(&path.child("type"), "type is required when seccompProfile is set"),
        other => {
            errors.not_supported(&path.child("type"), other, &["Localhost", "RuntimeDefault", "Unconfined"]);
        }
    }
    if has(profile, "localhostProfile") {
        let inner = json!({"Type": text(profile, "type"), "LocalhostProfile": get(profile, "localhostProfile")});
        let shown = go_struct(&inner, &["Type", "LocalhostProfile"]);
        errors.add(|| FieldError::invalid_shown(&at, &shown, "can only be set when seccomp type is Localhost"));
    }
}

fn app_armor(errors: &mut ErrorList, profile: &Value, path: &Path<'_>) {
    if profile.is_null() {
        return;
    }
    let at = path.child("localhostProfile");
    let localhost = text(profile, "localhostProfile");
    match text(profile, "type") {
        "Localhost" => {
            if !has(profile, "localhostProfile") {
                errors.required(&at, "must be set when AppArmor type is Localhost");
                return;
            }
            if localhost.trim() != localhost {
                errors.invalid(&at, localhost, "must not be padded with whitespace");
            } else if localhost.is_empty() {
                errors.required(&at, "must be set when AppArmor type is Localhost");
            }
            if localhost.len() > LOCALHOST_PROFILE_BYTES_MAX {
                errors.too_long(&at, LOCALHOST_PROFILE_BYTES_MAX);
            }
        }
        "RuntimeDefault" | "Unconfined" => {
            if has(profile, "localhostProfile") {
                errors.invalid(&at, localhost, "can only be set when AppArmor type is Localhost");
            }
        }
        "" => errors.required(&path.child("type"), "type is required when appArmorProfile is set"),
        other => {
            errors.not_supported(&path.child("type"), other, &["Localhost", "RuntimeDefault", "Unconfined"]);
        }
    }
}

/// The pod's security context.
pub(super) fn pod(errors: &mut ErrorList, spec: &Value, path: &Path<'_>) {
    let context = get(spec, "securityContext");
    if context.is_null() {
        return;
    }
    let at = path.child("securityContext");
    id(errors, context, "fsGroup", &at);
    id(errors, context, "runAsUser", &at);
    id(errors, context, "runAsGroup", &at);
    let groups_at = at.child("supplementalGroups");
    for (i, group) in items(context, "supplementalGroups").iter().enumerate() {
        let group = group.as_i64().unwrap_or(0);
        for message in rules::in_range(group, 0, ID_MAX) {
            errors.invalid(&groups_at.index(i), group, &message);
        }
    }
    if flag(spec, "shareProcessNamespace") && flag(spec, "hostPID") {
        let why = "ShareProcessNamespace and HostPID cannot both be enabled";
        errors.invalid(&at.child("shareProcessNamespace"), true, why);
    }
    sysctls(errors, spec, items(context, "sysctls"), &at.child("sysctls"));
    for (key, allowed) in [
        ("fsGroupChangePolicy", &["Always", "OnRootMismatch"][..]),
        ("supplementalGroupsPolicy", &["Merge", "Strict"][..]),
        ("seLinuxChangePolicy", &["Recursive"][..]),
    ] {
        if key == "supplementalGroupsPolicy" {
            seccomp(errors, get(context, "seccompProfile"), &at.child("seccompProfile"));
            windows(errors, get(context, "windowsOptions"), &at.child("windowsOptions"));
            app_armor(errors, get(context, "appArmorProfile"), &at.child("appArmorProfile"));
        }
        optional_choice(errors, context, key, allowed, &at);
    }
}

fn sysctls(errors: &mut ErrorList, spec: &Value, list: &[Value], path: &Path<'_>) {
    let mut names = BTreeSet::new();
    for (i, sysctl) in list.iter().enumerate() {
        let at = path.index(i);
        let at = at.child("name");
        let name = text(sysctl, "name");
        if name.is_empty() {
            errors.required(&at, "");
        } else if name.len() > SYSCTL_BYTES_MAX || !IS_SYSCTL.is_match(name) {
            let why = format!("must have at most {SYSCTL_BYTES_MAX} characters and match regex ^{SYSCTL}$");
            errors.invalid(&at, name, &why);
        } else if names.contains(name) {
            errors.duplicate(&at, name);
        }
        // The first separator decides whether slashes or dots separate the segments.
        let dotted = match name.find(['.', '/']) {
            Some(i) if name.as_bytes()[i] == b'/' => name.replace('/', "."),
            _ => name.to_owned(),
        };
        let ipc = ["kernel.shm", "kernel.msg", "fs.mqueue."].iter().any(|p| dotted.starts_with(p))
            || ["kernel.sem"].contains(&dotted.as_str());
        if flag(spec, "hostNetwork") && dotted.starts_with("net.") {
            errors.invalid(&at, name, "may not be specified when 'hostNetwork' is true");
        } else if flag(spec, "hostIPC") && ipc {
            errors.invalid(&at, name, "may not be specified when 'hostIPC' is true");
        }
        names.insert(name);
    }
}

/// A pod with a user namespace must not use host namespaces.
pub(super) fn host_users(errors: &mut ErrorList, spec: &Value, path: &Path<'_>) {
    if get(spec, "hostUsers") != &json!(false) {
        return;
    }
    let why = "when `hostUsers` is false";
    for (key, shown) in [("hostNetwork", "hostNetwork"), ("hostPID", "HostPID"), ("hostIPC", "HostIPC")] {
        if flag(spec, key) {
            errors.forbidden(&path.child(shown), why);
        }
    }
    each_container(spec, path, |container, at| {
        if !items(container, "volumeDevices").is_empty() {
            errors.forbidden(&at.child("volumeDevices"), why);
        }
    });
}

/// Annotations of earlier releases that upstream still validates.
pub(super) fn annotations(errors: &mut ErrorList, annotations: &Value, spec: &Value, path: &Path<'_>) {
    for (key, value) in annotations.as_object().into_iter().flatten() {
        let value = value.as_str().unwrap_or("");
        if key == SECCOMP_POD_ANNOTATION || key.starts_with(SECCOMP_ANNOTATION) {
            seccomp_annotation(errors, value, &path.child(key));
        }
    }
    for (key, value) in annotations.as_object().into_iter().flatten() {
        let Some(name) = key.strip_prefix(APPARMOR_ANNOTATION) else { continue };
        let value = value.as_str().unwrap_or("");
        let mut found = false;
        each_container(spec, path, |container, _| found |= text(container, "name") == name);
        if !found {
            errors.invalid(&path.key(key), name, "container not found");
        }
        if !["", "runtime/default", "unconfined"].contains(&value) && !value.starts_with("localhost/") {
            let why = format!("invalid AppArmor profile name: {}", crate::field::quoted(value));
            errors.invalid(&path.key(key), value, &why);
        }
    }
}

/// The profile that an AppArmor annotation specifies.
fn profile_of(annotation: &str) -> Option<Value> {
    match annotation {
        "unconfined" => Some(json!({"type": "Unconfined"})),
        "runtime/default" => Some(json!({"type": "RuntimeDefault"})),
        other => {
            let file = other.strip_prefix("localhost/").filter(|file| !file.is_empty() && file.trim() == *file)?;
            (file.len() <= LOCALHOST_PROFILE_BYTES_MAX).then(|| json!({"type": "Localhost", "localhostProfile": file}))
        }
    }
}

/// Sets the containers' AppArmor profiles from the annotations of a new pod.
pub(super) fn apply_old_annotations(pod: &mut Value) {
    let notes = get(get(pod, "metadata"), "annotations").clone();
    let Some(spec) = pod.get_mut("spec").filter(|spec| text(get(spec, "os"), "name") != "windows") else { return };
    let whole = get(get(spec, "securityContext"), "appArmorProfile").clone();
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        for container in items_mut(spec, list) {
            let key = format!("{APPARMOR_ANNOTATION}{}", text(container, "name"));
            let Some(profile) = notes.get(&key).and_then(Value::as_str).and_then(profile_of) else { continue };
            if !has(get(container, "securityContext"), "appArmorProfile") && profile != whole {
                put(object_mut(container, "securityContext"), "appArmorProfile", profile);
            }
        }
    }
}

fn seccomp_annotation(errors: &mut ErrorList, value: &str, path: &Path<'_>) {
    match value {
        "runtime/default" | "docker/default" | "unconfined" => {}
        _ => match value.strip_prefix("localhost/") {
            Some(file) => volumes::descending(errors, file, path),
            None => errors.invalid(path, value, "must be a valid seccomp profile"),
        },
    }
}

/// Annotations must agree with the corresponding fields.
pub(super) fn annotations_agree(errors: &mut ErrorList, annotations: &Value, spec: &Value, path: &Path<'_>) {
    let context = get(spec, "securityContext");
    let given = |key: &str| annotations.get(key).and_then(Value::as_str);
    let check = |errors: &mut ErrorList, given: &str, profile: &Value, at: &Path<'_>, what: &str| {
        let (kind, file) = (text(profile, "type"), get(profile, "localhostProfile").as_str());
        let agrees = match kind {
            "Unconfined" => given == "unconfined",
            "RuntimeDefault" => given == "runtime/default" || (what == "seccomp" && given == "docker/default"),
            "Localhost" => given.starts_with("localhost/"),
            _ => true,
        };
        if !agrees {
            errors.forbidden(&at.child("type"), &format!("{what} type in annotation and field must match"));
        } else if kind == "Localhost" && file != given.strip_prefix("localhost/") {
            let why = format!("{what} profile in annotation and field must match");
            errors.forbidden(&at.child("localhostProfile"), &why);
        }
    };
    let pod_profile = get(context, "seccompProfile");
    if let Some(value) = given(SECCOMP_POD_ANNOTATION)
        && !pod_profile.is_null()
    {
        check(errors, value, pod_profile, &path.child("securityContext.seccompProfile"), "seccomp");
    }
    each_container(spec, path, |container, at| {
        let profile = get(get(container, "securityContext"), "seccompProfile");
        let key = format!("{SECCOMP_ANNOTATION}{}", text(container, "name"));
        if let Some(value) = given(&key)
            && !profile.is_null()
        {
            check(errors, value, profile, &at.child("securityContext.seccompProfile"), "seccomp");
        }
    });
    if text(get(spec, "os"), "name") == "windows" {
        return;
    }
    each_container(spec, path, |container, at| {
        let own = get(get(container, "securityContext"), "appArmorProfile");
        let profile = if own.is_null() { get(context, "appArmorProfile") } else { own };
        let key = format!("{APPARMOR_ANNOTATION}{}", text(container, "name"));
        if let Some(value) = given(&key)
            && profile != &NULL
        {
            check(errors, value, profile, &at.child("securityContext.appArmorProfile"), "apparmor");
        }
    });
}
