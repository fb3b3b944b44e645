//! The checks of the restricted standard in addition to the baseline ones. Pure.

use serde_json::Value;

use super::pod::{Pod, Texts, Violation, containers, plural, quoted, security, setters, text};

pub(super) fn allow_privilege_escalation_1_8(pod: Pod<'_>) -> Option<Violation> {
    let bad = pod.containers_where(|container| security(container)["allowPrivilegeEscalation"] != false);
    if bad.is_empty() {
        return None;
    }
    let detail = format!("{} must set securityContext.allowPrivilegeEscalation=false", containers(&bad));
    Violation::some("allowPrivilegeEscalation != false", detail)
}

pub(super) fn allow_privilege_escalation_1_25(pod: Pod<'_>) -> Option<Violation> {
    if pod.is_windows() { None } else { allow_privilege_escalation_1_8(pod) }
}

pub(super) fn capabilities_1_22(pod: Pod<'_>) -> Option<Violation> {
    let list = |container: &'_ Value, field: &str| -> Vec<String> {
        let list = security(container)["capabilities"][field].as_array();
        list.into_iter().flatten().map(|name| text(name).to_owned()).collect()
    };
    let not_dropped = pod.containers_where(|container| !list(container, "drop").iter().any(|name| name == "ALL"));
    let mut forbidden = Texts::new();
    let adding = pod.containers_where(|container| {
        let added: Vec<String> = list(container, "add").into_iter().filter(|name| name != "NET_BIND_SERVICE").collect();
        let adds = !added.is_empty();
        forbidden.extend(added);
        adds
    });
    let mut details = Vec::new();
    if !not_dropped.is_empty() {
        details.push(format!("{} must set securityContext.capabilities.drop=[\"ALL\"]", containers(&not_dropped)));
    }
    if !adding.is_empty() {
        details.push(format!(
            "{} must not include {} in securityContext.capabilities.add",
            containers(&adding),
            quoted(forbidden)
        ));
    }
    if details.is_empty() {
        return None;
    }
    Violation::some("unrestricted capabilities", details.join("; "))
}

pub(super) fn capabilities_1_25(pod: Pod<'_>) -> Option<Violation> {
    if pod.is_windows() { None } else { capabilities_1_22(pod) }
}

/// The allowed volume types.
const ALLOWED_VOLUMES: &[&str] = &[
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "image",
    "persistentVolumeClaim",
    "projected",
    "secret",
];

/// The forbidden volume types, in the order in which upstream reports them.
const FORBIDDEN_VOLUMES: &[&str] = &[
    "hostPath",
    "gcePersistentDisk",
    "awsElasticBlockStore",
    "gitRepo",
    "nfs",
    "iscsi",
    "glusterfs",
    "rbd",
    "flexVolume",
    "cinder",
    "cephfs",
    "flocker",
    "fc",
    "azureFile",
    "vsphereVolume",
    "quobyte",
    "azureDisk",
    "photonPersistentDisk",
    "portworxVolume",
    "scaleIO",
    "storageos",
];

pub(super) fn volumes(pod: Pod<'_>) -> Option<Violation> {
    let (mut bad, mut types) = (Vec::new(), Texts::new());
    for volume in pod.spec["volumes"].as_array().into_iter().flatten() {
        let is = |field: &&&str| volume[**field].is_object();
        if ALLOWED_VOLUMES.iter().any(|field| is(&field)) {
            continue;
        }
        bad.push(text(&volume["name"]));
        types.insert((*FORBIDDEN_VOLUMES.iter().find(is).unwrap_or(&"unknown")).to_owned());
    }
    if bad.is_empty() {
        return None;
    }
    let detail = format!(
        "{} {} {} {} {}",
        plural("volume", "volumes", bad.len()),
        quoted(&bad),
        plural("uses", "use", bad.len()),
        plural("restricted volume type", "restricted volume types", types.len()),
        quoted(&types),
    );
    Violation::some("restricted volume types", detail)
}

pub(super) fn run_as_non_root_1_0(pod: Pod<'_>) -> Option<Violation> {
    let whole = &pod.security()["runAsNonRoot"];
    let explicit = pod.containers_where(|container| security(container)["runAsNonRoot"] == false);
    let reason = "runAsNonRoot != true";
    if let Some(setters) = setters(*whole == false, &explicit) {
        return Violation::some(reason, format!("{setters} must not set securityContext.runAsNonRoot=false"));
    }
    let implicit =
        pod.containers_where(|container| *whole != true && !security(container)["runAsNonRoot"].is_boolean());
    if implicit.is_empty() {
        return None;
    }
    Violation::some(reason, format!("pod or {} must set securityContext.runAsNonRoot=true", containers(&implicit)))
}

pub(super) fn run_as_non_root_1_35(pod: Pod<'_>) -> Option<Violation> {
    if pod.has_own_users() { None } else { run_as_non_root_1_0(pod) }
}

pub(super) fn run_as_user_1_23(pod: Pod<'_>) -> Option<Violation> {
    let is_root = |security: &Value| security["runAsUser"].as_i64() == Some(0);
    let explicit = pod.containers_where(|container| is_root(security(container)));
    let setters = setters(is_root(pod.security()), &explicit)?;
    Violation::some("runAsUser=0", format!("{setters} must not set runAsUser=0"))
}

pub(super) fn run_as_user_1_35(pod: Pod<'_>) -> Option<Violation> {
    if pod.has_own_users() { None } else { run_as_user_1_23(pod) }
}

pub(super) fn seccomp_profile_1_19(pod: Pod<'_>) -> Option<Violation> {
    if let Some(explicit) = super::baseline::seccomp_profile_1_19(pod) {
        return Some(explicit);
    }
    if pod.security()["seccompProfile"].is_object() {
        return None;
    }
    let implicit = pod.containers_where(|container| !security(container)["seccompProfile"].is_object());
    if implicit.is_empty() {
        return None;
    }
    let detail = format!(
        "pod or {} must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\"",
        containers(&implicit)
    );
    Violation::some("seccompProfile", detail)
}

pub(super) fn seccomp_profile_1_25(pod: Pod<'_>) -> Option<Violation> {
    if pod.is_windows() { None } else { seccomp_profile_1_19(pod) }
}
