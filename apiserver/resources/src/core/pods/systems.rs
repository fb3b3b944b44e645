//! Rules for the pod's operating system: Windows options and users, host process containers, and fields that each
//! system doesn't support.

use std::sync::LazyLock;

use regex::Regex;
use serde_json::{Value, json};

use super::each_container;
use crate::field::{ErrorList, Path};
use crate::read::{flag, get, has, text};
use crate::rules;

const WINDOWS_POD: &str = "cannot be set for a windows pod";

const NETBIOS: &str = r#"^[^\\/:\*\?"<>|\.][^\\/:\*\?"<>|]{0,14}$"#;
const WINDOWS_DOMAIN: &str =
    "^[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?(?:\\.[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?)*$";
static IS_NETBIOS: LazyLock<Regex> = LazyLock::new(|| Regex::new(NETBIOS).expect("the pattern is a constant"));
static IS_WINDOWS_DOMAIN: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(WINDOWS_DOMAIN).expect("the pattern is a constant"));

pub(super) fn windows(errors: &mut ErrorList, options: &Value, path: &Path<'_>) {
    const SPEC_KIB_MAX: usize = 64;
    if options.is_null() {
        return;
    }
    if has(options, "gmsaCredentialSpecName") {
        let name = text(options, "gmsaCredentialSpecName");
        errors.invalid_each(&path.child("gmsaCredentialSpecName"), name, rules::dns_subdomain(name));
    }
    if has(options, "gmsaCredentialSpec") {
        let spec = text(options, "gmsaCredentialSpec");
        let at = path.child("gmsaCredentialSpec");
        if spec.is_empty() {
            errors.invalid(&at, spec, "gmsaCredentialSpec cannot be an empty string");
        } else if spec.len() > SPEC_KIB_MAX * 1024 {
            errors.invalid(&at, spec, &format!("gmsaCredentialSpec size must be under {SPEC_KIB_MAX} KiB"));
        }
    }
    if has(options, "runAsUserName") {
        windows_user(errors, text(options, "runAsUserName"), &path.child("runAsUserName"));
    }
}

fn windows_user(errors: &mut ErrorList, name: &str, path: &Path<'_>) {
    let mut bad = |why: &str| errors.invalid(path, name, why);
    let parts: Vec<&str> = name.split('\\').collect();
    let (domain, user) = match parts.as_slice() {
        _ if name.is_empty() => return bad("runAsUserName cannot be an empty string"),
        _ if name.bytes().any(|b| b.is_ascii_control()) => {
            return bad("runAsUserName cannot contain control characters");
        }
        [user] => (None, *user),
        [domain, user] => (Some(*domain), *user),
        _ => return bad("runAsUserName cannot contain more than one backslash"),
    };
    if let Some(domain) = domain {
        if domain.len() >= 256 {
            bad("runAsUserName's Domain length must be under 256 characters");
        }
        if !IS_NETBIOS.is_match(domain) && !IS_WINDOWS_DOMAIN.is_match(domain) {
            bad("runAsUserName's Domain doesn't match the NetBios nor the DNS format");
        }
    }
    if user.is_empty() {
        bad("runAsUserName's User cannot be empty");
    } else if user.len() > 104 {
        bad("runAsUserName's User length must not be longer than 104 characters");
    }
    if !user.is_empty() && user.chars().all(|c| c == '.' || c == ' ') {
        bad("runAsUserName's User cannot contain only periods or spaces");
    }
    if user.contains(|c| "\"/\\:;|=,+*?<>@[]".contains(c)) {
        bad("runAsUserName's User cannot contain the following characters: \"/\\:;|=,+*?<>@[]");
    }
}

/// Windows host process containers: all or none.
pub(super) fn host_process(errors: &mut ErrorList, spec: &Value, path: &Path<'_>) {
    let of = |context: &Value| get(get(context, "windowsOptions"), "hostProcess").as_bool();
    let pod = of(get(spec, "securityContext"));
    let (mut all, mut hosted) = (0, 0);
    each_container(spec, path, |container, at| {
        all += 1;
        let own = of(get(container, "securityContext"));
        if let (Some(pod), Some(own)) = (pod, own)
            && pod != own
        {
            let why = format!("pod hostProcess value must be identical if both are specified, was {pod}");
            errors.invalid(&at.child("securityContext.windowsOptions.hostProcess"), own, &why);
        }
        hosted += usize::from(own.or(pod) == Some(true));
    });
    if hosted == 0 {
        return;
    }
    if hosted != all {
        let why = "If pod contains any hostProcess containers then all containers must be HostProcess containers";
        errors.invalid(path, "", why);
    }
    if !flag(spec, "hostNetwork") {
        let why = "hostNetwork must be true if pod contains any hostProcess containers";
        errors.invalid(&path.child("hostNetwork"), false, why);
    }
}

/// Fields that `spec.os` rules out.
pub(super) fn os(errors: &mut ErrorList, spec: &Value, path: &Path<'_>) {
    let os = get(spec, "os");
    if os.is_null() {
        return;
    }
    let at = path.child("os");
    match text(os, "name") {
        "" => errors.required(&at.child("name"), ""),
        "linux" => linux(errors, spec, path),
        "windows" => windows_pod(errors, spec, path),
        other => errors.not_supported(&at, other, &["linux", "windows"]),
    }
}

fn linux(errors: &mut ErrorList, spec: &Value, path: &Path<'_>) {
    let why = "windows options cannot be set for a linux pod";
    if has(get(spec, "securityContext"), "windowsOptions") {
        errors.forbidden(&path.child("securityContext.windowsOptions"), why);
    }
    each_container(spec, path, |container, at| {
        if has(get(container, "securityContext"), "windowsOptions") {
            errors.forbidden(&at.child("securityContext.windowsOptions"), why);
        }
    });
}

fn windows_pod(errors: &mut ErrorList, spec: &Value, path: &Path<'_>) {
    const POD: &[(&str, bool)] = &[
        ("appArmorProfile", true),
        ("seLinuxOptions", true),
        ("hostUsers", false),
        ("hostPID", false),
        ("hostIPC", false),
        ("seccompProfile", true),
        ("fsGroup", true),
        ("fsGroupChangePolicy", true),
        ("sysctls", true),
        ("shareProcessNamespace", false),
        ("runAsUser", true),
        ("runAsGroup", true),
        ("supplementalGroups", true),
        ("supplementalGroupsPolicy", true),
        ("seLinuxChangePolicy", true),
    ];
    const CONTAINER: &[&str] = &[
        "appArmorProfile",
        "seLinuxOptions",
        "seccompProfile",
        "capabilities",
        "readOnlyRootFilesystem",
        "privileged",
        "allowPrivilegeEscalation",
        "procMount",
        "runAsUser",
        "runAsGroup",
    ];
    let context = get(spec, "securityContext");
    let at = path.child("securityContext");
    for (key, inside) in POD {
        let value = get(if *inside { context } else { spec }, key);
        let given = match *key {
            "hostPID" | "hostIPC" => value == &json!(true),
            "sysctls" => value.as_array().is_some_and(|l| !l.is_empty()),
            _ => !value.is_null(),
        };
        if given {
            errors.forbidden(&if *inside { at.child(key) } else { path.child(key) }, WINDOWS_POD);
        }
    }
    each_container(spec, path, |container, at| {
        let context = get(container, "securityContext");
        let at = at.child("securityContext");
        for key in CONTAINER {
            if has(context, key) {
                errors.forbidden(&at.child(key), WINDOWS_POD);
            }
        }
    });
}
