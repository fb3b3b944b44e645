//! The table of checks: level, versions, and the check that each one replaces.

use super::baseline::*;
use super::pod::{Pod, Violation};
use super::policy::{Level, Standard, Version};
use super::restricted;

type CheckFn = fn(Pod<'_>) -> Option<Violation>;

struct Check {
    id: &'static str,
    level: Level,
    /// The implementations by the minor version that introduced them, ascending.
    versions: &'static [(i64, CheckFn)],
    /// The ID of the baseline check that this one replaces.
    replaces: &'static str,
}

const fn baseline(id: &'static str, versions: &'static [(i64, CheckFn)]) -> Check {
    Check { id, level: Level::Baseline, versions, replaces: "" }
}

const fn restricted(id: &'static str, versions: &'static [(i64, CheckFn)], replaces: &'static str) -> Check {
    Check { id, level: Level::Restricted, versions, replaces }
}

/// In the order of the messages.
const CHECKS: &[Check] = &[
    baseline("appArmorProfile", &[(0, app_armor_profile)]),
    baseline("capabilities_baseline", &[(0, capabilities)]),
    baseline("hostNamespaces", &[(0, host_namespaces)]),
    baseline("hostPathVolumes", &[(0, host_path_volumes)]),
    baseline("hostPorts", &[(0, host_ports)]),
    baseline("hostProbesAndHostLifecycle", &[(34, host_probes)]),
    baseline("privileged", &[(0, privileged)]),
    baseline("procMount", &[(0, proc_mount_1_0), (35, proc_mount_1_35)]),
    baseline("seLinuxOptions", &[(0, selinux_options_1_0), (31, selinux_options_1_31)]),
    baseline("seccompProfile_baseline", &[(0, seccomp_profile_1_0), (19, seccomp_profile_1_19)]),
    baseline("sysctls", &[(0, sysctls_1_0), (27, sysctls_1_27), (29, sysctls_1_29), (32, sysctls_1_32)]),
    baseline("windowsHostProcess", &[(0, windows_host_process)]),
    restricted(
        "allowPrivilegeEscalation",
        &[(8, restricted::allow_privilege_escalation_1_8), (25, restricted::allow_privilege_escalation_1_25)],
        "",
    ),
    restricted(
        "capabilities_restricted",
        &[(22, restricted::capabilities_1_22), (25, restricted::capabilities_1_25)],
        "capabilities_baseline",
    ),
    restricted("procMount_restricted", &[(35, proc_mount_1_0)], "procMount"),
    restricted("restrictedVolumes", &[(0, restricted::volumes)], "hostPathVolumes"),
    restricted("runAsNonRoot", &[(0, restricted::run_as_non_root_1_0), (35, restricted::run_as_non_root_1_35)], ""),
    restricted("runAsUser", &[(23, restricted::run_as_user_1_23), (35, restricted::run_as_user_1_35)], ""),
    restricted(
        "seccompProfile_restricted",
        &[(19, restricted::seccomp_profile_1_19), (25, restricted::seccomp_profile_1_25)],
        "seccompProfile_baseline",
    ),
];

impl Check {
    /// The implementation for a version; `None` if the check is newer.
    fn in_version(&self, version: Version) -> Option<CheckFn> {
        let since = |minor: i64| version >= Version::Minor(minor);
        self.versions.iter().rev().find(|(minor, _)| since(*minor)).map(|(_, check)| *check)
    }
}

/// The violations of a standard by a pod.
pub(super) fn violations(standard: Standard, pod: Pod<'_>) -> Vec<Violation> {
    let active = |check: &&Check| check.level <= standard.level && check.in_version(standard.version).is_some();
    let replaced = |id: &str| CHECKS.iter().filter(active).any(|check| check.replaces == id);
    let checks = CHECKS.iter().filter(active).filter(|check| !replaced(check.id));
    checks.filter_map(|check| check.in_version(standard.version)?(pod)).collect()
}

/// `hostPort (container "c" uses hostPort 80), privileged (…)`
pub(super) fn details(violations: &[Violation]) -> String {
    let one = |violation: &Violation| match violation.detail.as_str() {
        "" => violation.reason.to_owned(),
        detail => format!("{} ({detail})", violation.reason),
    };
    violations.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// `hostPort, privileged`
pub(super) fn reasons(violations: &[Violation]) -> String {
    violations.iter().map(|violation| violation.reason).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn violations_of(level: Level, minor: Option<i64>, object: &Value) -> String {
        let version = minor.map_or(Version::Latest, Version::Minor);
        details(&violations(Standard { level, version }, Pod::of(object)))
    }

    fn pod(spec: Value) -> Value {
        let mut spec = spec;
        if spec["containers"].is_null() {
            spec["containers"] = json!([{"name": "c"}]);
        }
        json!({"metadata": {"annotations": {}}, "spec": spec})
    }

    fn container(security: Value) -> Value {
        pod(json!({"containers": [{"name": "c", "securityContext": security}]}))
    }

    #[test]
    fn a_plain_pod_is_baseline_and_not_restricted() {
        let plain = pod(json!({}));
        assert_eq!(violations_of(Level::Baseline, None, &plain), "");
        assert_eq!(
            violations_of(Level::Restricted, None, &plain),
            "allowPrivilegeEscalation != false (container \"c\" must set securityContext.allowPrivilegeEscalation=false), \
             unrestricted capabilities (container \"c\" must set securityContext.capabilities.drop=[\"ALL\"]), runAsNonRoot != \
             true (pod or container \"c\" must set securityContext.runAsNonRoot=true), seccompProfile (pod or container \"c\" \
             must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\")"
        );
        assert_eq!(
            violations_of(Level::Restricted, Some(7), &plain),
            "runAsNonRoot != true (pod or container \"c\" must set securityContext.runAsNonRoot=true)"
        );
        let windows = pod(json!({"os": {"name": "windows"}, "securityContext": {"runAsNonRoot": true}}));
        assert_eq!(violations_of(Level::Restricted, None, &windows), "");
        assert!(violations_of(Level::Restricted, Some(24), &windows).starts_with("allowPrivilegeEscalation"));
        let good = pod(json!({
            "securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{"name": "c", "securityContext":
                {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]}}}],
            "volumes": [{"name": "v", "emptyDir": {}}]}));
        assert_eq!(violations_of(Level::Restricted, None, &good), "");
    }

    #[test]
    fn the_baseline_standard_is_enforced() {
        let rows = [
            (
                container(json!({"privileged": true})),
                "privileged (container \"c\" must not set securityContext.privileged=true)",
            ),
            (pod(json!({"hostNetwork": true, "hostIPC": true})), "host namespaces (hostNetwork=true, hostIPC=true)"),
            (
                container(json!({"capabilities": {"add": ["CHOWN", "SYS_ADMIN", "BPF"]}})),
                "non-default capabilities (container \"c\" must not include \"BPF\", \"SYS_ADMIN\" in \
                 securityContext.capabilities.add)",
            ),
            (pod(json!({"volumes": [{"name": "h", "hostPath": {"path": "/"}}]})), "hostPath volumes (volume \"h\")"),
            (
                pod(json!({"containers": [{"name": "a", "ports": [{"hostPort": 80}, {"hostPort": 443}]},
                    {"name": "b", "ports": [{"hostPort": 80}]}]})),
                "hostPort (containers \"a\", \"b\" use hostPorts 443, 80)",
            ),
            (
                pod(json!({"containers": [{"name": "c", "livenessProbe": {"httpGet": {"host": "h"}}}]})),
                "probe or lifecycle host (container \"c\" uses probe or lifecycle host \"h\")",
            ),
            (
                container(json!({"procMount": "Unmasked"})),
                "procMount (container \"c\" must not set securityContext.procMount to \"Unmasked\")",
            ),
            (
                pod(json!({"securityContext": {"seLinuxOptions": {"type": "spc_t", "user": "u"}}})),
                "seLinuxOptions (pod set forbidden securityContext.seLinuxOptions: type \"spc_t\"; user may not be set)",
            ),
            (
                container(json!({"seccompProfile": {"type": "Unconfined"}})),
                "seccompProfile (container \"c\" must not set securityContext.seccompProfile.type to \"Unconfined\")",
            ),
            (
                pod(
                    json!({"securityContext": {"sysctls": [{"name": "net.ipv4.tcp_rmem"}, {"name": "kernel.msgmax"}]}}),
                ),
                "forbidden sysctls (kernel.msgmax)",
            ),
            (
                container(json!({"windowsOptions": {"hostProcess": true}})),
                "hostProcess (container \"c\" must not set securityContext.windowsOptions.hostProcess=true)",
            ),
            (
                container(json!({"appArmorProfile": {"type": "Unconfined"}})),
                "forbidden AppArmor profile (container \"c\" must not set AppArmor profile type to \"Unconfined\")",
            ),
        ];
        for (object, wanted) in rows {
            assert_eq!(violations_of(Level::Baseline, None, &object), wanted);
        }
        assert_eq!(violations_of(Level::Privileged, None, &container(json!({"privileged": true}))), "");
    }

    #[test]
    fn standards_change_with_versions() {
        let users = pod(
            json!({"hostUsers": false, "containers": [{"name": "c", "securityContext": {"procMount": "Unmasked"}}]}),
        );
        assert_eq!(violations_of(Level::Baseline, Some(35), &users), "");
        assert!(violations_of(Level::Baseline, Some(34), &users).starts_with("procMount"));
        assert!(violations_of(Level::Restricted, Some(99), &users).contains("procMount"), "its own check");
        let probe = pod(json!({"containers": [{"name": "c", "livenessProbe": {"tcpSocket": {"host": "h"}}}]}));
        assert_eq!(violations_of(Level::Baseline, Some(33), &probe), "");
        let mut annotated = pod(json!({}));
        annotated["metadata"]["annotations"] = json!({"seccomp.security.alpha.kubernetes.io/pod": "unconfined",
            "container.apparmor.security.beta.kubernetes.io/c": "unconfined"});
        assert_eq!(
            violations_of(Level::Baseline, Some(18), &annotated),
            "forbidden AppArmor profile (annotation must not set AppArmor profile type to \
             \"container.apparmor.security.beta.kubernetes.io/c=\"unconfined\"\"), seccompProfile (forbidden annotation \
             seccomp.security.alpha.kubernetes.io/pod=\"unconfined\")"
        );
    }

    #[test]
    fn the_restricted_standard_is_enforced() {
        let spec = json!({
            "securityContext": {"runAsNonRoot": false, "runAsUser": 0, "seccompProfile": {"type": "Localhost"}},
            "volumes": [{"name": "n", "nfs": {}}, {"name": "h", "hostPath": {}}, {"name": "u"}],
            "containers": [{"name": "c", "securityContext": {"allowPrivilegeEscalation": false,
                "capabilities": {"add": ["NET_RAW"]}}}]});
        assert_eq!(
            violations_of(Level::Restricted, None, &pod(spec)),
            "unrestricted capabilities (container \"c\" must set securityContext.capabilities.drop=[\"ALL\"]; container \"c\" \
             must not include \"NET_RAW\" in securityContext.capabilities.add), restricted volume types (volumes \"n\", \"h\", \
             \"u\" use restricted volume types \"hostPath\", \"nfs\", \"unknown\"), runAsNonRoot != true (pod must not set \
             securityContext.runAsNonRoot=false), runAsUser=0 (pod must not set runAsUser=0)"
        );
    }
}
