//! The checks of the baseline standard: each maps a pod spec to its violations, with upstream's messages. Pure.

use apiserver_resources::field::quoted as go_quoted;
use serde_json::Value;

use super::pod::{Pod, Texts, Violation, containers, plural, quoted, security, setters, text};

pub(super) fn app_armor_profile(pod: Pod<'_>) -> Option<Violation> {
    let bad_type = |security: &Value| {
        let profile = &security["appArmorProfile"];
        let allowed = matches!(text(&profile["type"]), "RuntimeDefault" | "Localhost");
        (profile.is_object() && !allowed).then(|| text(&profile["type"]).to_owned())
    };
    let whole = bad_type(pod.security());
    let mut types: Texts = whole.iter().cloned().collect();
    let bad = pod.containers_where(|container| {
        let bad = bad_type(security(container));
        types.extend(bad.clone());
        bad.is_some()
    });
    let annotations: Vec<String> = pod.metadata["annotations"]
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(key, _)| key.starts_with("container.apparmor.security.beta.kubernetes.io/"))
        .map(|(key, value)| (key, text(value)))
        .filter(|(_, value)| !(value.is_empty() || *value == "runtime/default" || value.starts_with("localhost/")))
        .map(|(key, value)| format!("{key}={}", go_quoted(value)))
        .collect();
    let mut who: Vec<String> = setters(whole.is_some(), &bad).into_iter().collect();
    if !annotations.is_empty() {
        who.push(plural("annotation", "annotations", annotations.len()).to_owned());
    }
    if who.is_empty() {
        return None;
    }
    let values: Vec<String> = types.into_iter().chain(annotations).collect();
    let reason = plural("forbidden AppArmor profile", "forbidden AppArmor profiles", values.len());
    let detail = format!("{} must not set AppArmor profile type to {}", who.join(" and "), quoted(values));
    Violation::some(reason, detail)
}

/// Capabilities that containers may add.
const CAPABILITIES: &[&str] = &[
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

pub(super) fn capabilities(pod: Pod<'_>) -> Option<Violation> {
    let mut other = Texts::new();
    let bad = pod.containers_where(|container| {
        let added = security(container)["capabilities"]["add"].as_array().map(Vec::as_slice).unwrap_or_default();
        let names = added.iter().map(text).filter(|name| !CAPABILITIES.contains(name));
        let names: Vec<String> = names.map(str::to_owned).collect();
        let adds = !names.is_empty();
        other.extend(names);
        adds
    });
    if bad.is_empty() {
        return None;
    }
    let detail = format!("{} must not include {} in securityContext.capabilities.add", containers(&bad), quoted(other));
    Violation::some("non-default capabilities", detail)
}

pub(super) fn host_namespaces(pod: Pod<'_>) -> Option<Violation> {
    let used: Vec<String> = ["hostNetwork", "hostPID", "hostIPC"]
        .iter()
        .filter(|field| pod.spec[**field] == true)
        .map(|field| format!("{field}=true"))
        .collect();
    if used.is_empty() { None } else { Violation::some("host namespaces", used.join(", ")) }
}

pub(super) fn host_path_volumes(pod: Pod<'_>) -> Option<Violation> {
    let volumes = pod.spec["volumes"].as_array().map(Vec::as_slice).unwrap_or_default();
    let bad: Vec<&str> = volumes.iter().filter(|v| v["hostPath"].is_object()).map(|v| text(&v["name"])).collect();
    if bad.is_empty() {
        return None;
    }
    Violation::some("hostPath volumes", format!("{} {}", plural("volume", "volumes", bad.len()), quoted(bad)))
}

pub(super) fn host_ports(pod: Pod<'_>) -> Option<Violation> {
    let mut ports = Texts::new();
    let bad = pod.containers_where(|container| {
        let used = container["ports"].as_array().into_iter().flatten().filter_map(|port| port["hostPort"].as_i64());
        let used: Vec<String> = used.filter(|port| *port != 0).map(|port| port.to_string()).collect();
        let uses = !used.is_empty();
        ports.extend(used);
        uses
    });
    if bad.is_empty() {
        return None;
    }
    let detail = format!(
        "{} {} {} {}",
        containers(&bad),
        plural("uses", "use", bad.len()),
        plural("hostPort", "hostPorts", ports.len()),
        ports.into_iter().collect::<Vec<_>>().join(", "),
    );
    Violation::some("hostPort", detail)
}

pub(super) fn host_probes(pod: Pod<'_>) -> Option<Violation> {
    let (mut names, mut hosts) = (Texts::new(), Texts::new());
    for container in pod.containers() {
        let lifecycle = &container["lifecycle"];
        let handlers = [
            &container["livenessProbe"],
            &container["readinessProbe"],
            &container["startupProbe"],
            &lifecycle["postStart"],
            &lifecycle["preStop"],
        ];
        for host in handlers.iter().flat_map(|handler| [&handler["httpGet"]["host"], &handler["tcpSocket"]["host"]]) {
            if !text(host).is_empty() {
                names.insert(text(&container["name"]).to_owned());
                hosts.insert(text(host).to_owned());
            }
        }
    }
    if names.is_empty() {
        return None;
    }
    let detail = format!(
        "{} {} {} {} {}",
        plural("container", "containers", names.len()),
        quoted(&names),
        plural("uses", "use", names.len()),
        plural("probe or lifecycle host", "probe or lifecycle hosts", hosts.len()),
        quoted(&hosts),
    );
    Violation::some("probe or lifecycle host", detail)
}

pub(super) fn privileged(pod: Pod<'_>) -> Option<Violation> {
    let bad = pod.containers_where(|container| security(container)["privileged"] == true);
    if bad.is_empty() {
        return None;
    }
    Violation::some("privileged", format!("{} must not set securityContext.privileged=true", containers(&bad)))
}

pub(super) fn proc_mount_1_0(pod: Pod<'_>) -> Option<Violation> {
    let mut types = Texts::new();
    let bad = pod.containers_where(|container| {
        let mount = security(container)["procMount"].as_str().filter(|mount| *mount != "Default");
        types.extend(mount.map(str::to_owned));
        mount.is_some()
    });
    if bad.is_empty() {
        return None;
    }
    let detail = format!("{} must not set securityContext.procMount to {}", containers(&bad), quoted(types));
    Violation::some("procMount", detail)
}

pub(super) fn proc_mount_1_35(pod: Pod<'_>) -> Option<Violation> {
    if pod.has_own_users() { None } else { proc_mount_1_0(pod) }
}

pub(super) fn selinux_options_1_0(pod: Pod<'_>) -> Option<Violation> {
    selinux_options(pod, &["", "container_t", "container_init_t", "container_kvm_t"])
}

pub(super) fn selinux_options_1_31(pod: Pod<'_>) -> Option<Violation> {
    selinux_options(pod, &["", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"])
}

fn selinux_options(pod: Pod<'_>, allowed: &[&str]) -> Option<Violation> {
    let (mut types, mut user, mut role) = (Texts::new(), false, false);
    let mut is_bad = |security: &Value| {
        let options = &security["seLinuxOptions"];
        let bad_type = !allowed.contains(&text(&options["type"]));
        let (sets_user, sets_role) = (!text(&options["user"]).is_empty(), !text(&options["role"]).is_empty());
        if bad_type {
            types.insert(text(&options["type"]).to_owned());
        }
        user |= sets_user;
        role |= sets_role;
        bad_type || sets_user || sets_role
    };
    let whole = is_bad(pod.security());
    let bad = pod.containers_where(|container| is_bad(security(container)));
    let setters = setters(whole, &bad)?;
    let mut found = Vec::new();
    if !types.is_empty() {
        found.push(format!("{} {}", plural("type", "types", types.len()), quoted(types)));
    }
    if user {
        found.push("user may not be set".to_owned());
    }
    if role {
        found.push("role may not be set".to_owned());
    }
    let detail = format!("{setters} set forbidden securityContext.seLinuxOptions: {}", found.join("; "));
    Violation::some("seLinuxOptions", detail)
}

pub(super) fn seccomp_profile_1_0(pod: Pod<'_>) -> Option<Violation> {
    let mut forbidden = Texts::new();
    let mut check = |annotation: String| {
        let Some(value) = pod.metadata["annotations"][&annotation].as_str() else { return };
        let allowed = matches!(value, "runtime/default" | "docker/default") || value.starts_with("localhost/");
        if !allowed {
            forbidden.insert(format!("{annotation}={}", go_quoted(value)));
        }
    };
    check("seccomp.security.alpha.kubernetes.io/pod".to_owned());
    for container in pod.containers() {
        check(format!("container.seccomp.security.alpha.kubernetes.io/{}", text(&container["name"])));
    }
    if forbidden.is_empty() {
        return None;
    }
    let count = plural("annotation", "annotations", forbidden.len());
    let list = forbidden.into_iter().collect::<Vec<_>>().join(", ");
    Violation::some("seccompProfile", format!("forbidden {count} {list}"))
}

pub(super) fn seccomp_profile_1_19(pod: Pod<'_>) -> Option<Violation> {
    let mut values = Texts::new();
    let mut is_bad = |security: &Value| {
        let profile = &security["seccompProfile"];
        let bad = profile.is_object() && !matches!(text(&profile["type"]), "Localhost" | "RuntimeDefault");
        if bad {
            values.insert(text(&profile["type"]).to_owned());
        }
        bad
    };
    let whole = is_bad(pod.security());
    let bad = pod.containers_where(|container| is_bad(security(container)));
    let setters = setters(whole, &bad)?;
    let detail = format!("{setters} must not set securityContext.seccompProfile.type to {}", quoted(values));
    Violation::some("seccompProfile", detail)
}

const SYSCTLS_1_0: &[&str] = &[
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_unprivileged_port_start",
];
const SYSCTLS_1_27: &[&str] = &["net.ipv4.ip_local_reserved_ports"];
const SYSCTLS_1_29: &[&str] = &[
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
];
const SYSCTLS_1_32: &[&str] = &["net.ipv4.tcp_rmem", "net.ipv4.tcp_wmem"];

pub(super) fn sysctls_1_0(pod: Pod<'_>) -> Option<Violation> {
    sysctls(pod, &[SYSCTLS_1_0])
}

pub(super) fn sysctls_1_27(pod: Pod<'_>) -> Option<Violation> {
    sysctls(pod, &[SYSCTLS_1_0, SYSCTLS_1_27])
}

pub(super) fn sysctls_1_29(pod: Pod<'_>) -> Option<Violation> {
    sysctls(pod, &[SYSCTLS_1_0, SYSCTLS_1_27, SYSCTLS_1_29])
}

pub(super) fn sysctls_1_32(pod: Pod<'_>) -> Option<Violation> {
    sysctls(pod, &[SYSCTLS_1_0, SYSCTLS_1_27, SYSCTLS_1_29, SYSCTLS_1_32])
}

fn sysctls(pod: Pod<'_>, allowed: &[&[&str]]) -> Option<Violation> {
    let set = pod.security()["sysctls"].as_array().map(Vec::as_slice).unwrap_or_default();
    let names = set.iter().map(|sysctl| text(&sysctl["name"]));
    let bad: Vec<&str> = names.filter(|name| !allowed.iter().any(|names| names.contains(name))).collect();
    if bad.is_empty() { None } else { Violation::some("forbidden sysctls", bad.join(", ")) }
}

pub(super) fn windows_host_process(pod: Pod<'_>) -> Option<Violation> {
    let is_bad = |security: &Value| security["windowsOptions"]["hostProcess"] == true;
    let bad = pod.containers_where(|container| is_bad(security(container)));
    let setters = setters(is_bad(pod.security()), &bad)?;
    Violation::some("hostProcess", format!("{setters} must not set securityContext.windowsOptions.hostProcess=true"))
}
