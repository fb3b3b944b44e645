//! Parses a container's run settings: limits, annotations, ports, probes, grace periods. Pure: reads the pod's fields once.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, ContainerRestartRule, Pod, Probe};
use machinery_api::imports::ImportRules;
use machinery_api::quantity::Quantity;
use machinery_api::{duration, names};
use machinery_client::interner::Interner;

use super::check::HookSpec;
use super::reuse;
use super::state::{Class, ContainerPolicy, LifecyclePolicy, PostStart, RestartPolicy, RestartRule, Thresholds};
use super::status::pod_text;
use crate::spec::{containers, requests};
use runtime_api::{CONCURRENCY_DEFAULT, Grants, Kind, Limits, REQUEST_TIMEOUT_DEFAULT, cpu_shares};

/// The port of a server whose container declares none.
const PORT_DEFAULT: u16 = 80;
/// The maximum concurrency; a larger value would be no limit.
const CONCURRENCY_MAX: usize = 1_000_000;
/// The maximum request timeout by annotation: a day.
const TIMEOUT_MAX: Duration = Duration::from_secs(86_400);

static POLICIES: Interner<Vec<ContainerPolicy>> = Interner::new();

/// All container annotations.
const KNOWN: [&str; 9] = [
    names::FUEL,
    names::TIMEOUT,
    names::CONCURRENCY,
    names::HOST,
    names::IMPORTS,
    names::STOP,
    names::EXEC,
    names::REUSE,
    names::KIND,
];

/// The pod's lifecycle policy.
#[must_use]
pub fn rules(pod: &Pod) -> LifecyclePolicy {
    let spec = containers::spec(pod);
    let seconds = |seconds: i64| Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
    let restart = restart(spec.restart_policy.as_deref()).unwrap_or(RestartPolicy::Always);
    let containers = containers::each(&spec).map(|(class, own)| container_rules(class, &own, restart)).collect();
    LifecyclePolicy {
        containers: POLICIES.intern(containers),
        pod: pod_text(pod),
        restart,
        deadline: spec.active_deadline_seconds.map(seconds),
        grace: spec.termination_grace_period_seconds.map_or(Duration::from_secs(30), seconds),
    }
}

/// The grace period of a requested deletion.
pub(in crate::pod) fn grace(pod: &Pod) -> Option<Duration> {
    pod.metadata.deletion_timestamp.as_ref()?;
    let seconds = pod.metadata.deletion_grace_period_seconds.unwrap_or(30);
    Some(Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
}

fn restart(policy: Option<&str>) -> Option<RestartPolicy> {
    match policy {
        Some("Always") => Some(RestartPolicy::Always),
        Some("OnFailure") => Some(RestartPolicy::OnFailure),
        Some("Never") => Some(RestartPolicy::Never),
        _ => None,
    }
}

fn container_rules(class: Class, container: &Container, pod: RestartPolicy) -> ContainerPolicy {
    let own = restart(container.restart_policy.as_deref());
    let restart = match (class, own.unwrap_or(pod)) {
        // An init container runs until its first success.
        (Class::Init, RestartPolicy::Always) => RestartPolicy::OnFailure,
        (Class::Ephemeral, _) => RestartPolicy::Never,
        (_, restart) => restart,
    };
    let rules = container.restart_policy_rules.iter().flatten().filter(|_| own.is_some());
    ContainerPolicy {
        name: container.name.clone(),
        class,
        restart,
        restart_rules: rules.filter_map(restart_rule).collect(),
        image: container.image.clone().unwrap_or_default(),
        startup: container.startup_probe.as_ref().map(thresholds),
        readiness: container.readiness_probe.as_ref().map(thresholds),
        liveness: container.liveness_probe.as_ref().map(thresholds),
        post_start: HookSpec::post_start(container).map(|hook| match hook {
            HookSpec::Sleep(_) => PostStart::Sleep,
            HookSpec::Exec(_) | HookSpec::Http(_) | HookSpec::Invalid => PostStart::Call,
        }),
    }
}

fn restart_rule(rule: &ContainerRestartRule) -> Option<RestartRule> {
    let codes = rule.exit_codes.as_ref()?;
    Some(RestartRule {
        exit_codes: codes.values.clone().unwrap_or_default(),
        others: codes.operator == "NotIn",
        all: rule.action == "RestartAllContainers",
    })
}

pub(in crate::pod) fn count(value: Option<i32>, default: u32) -> u32 {
    value.and_then(|value| u32::try_from(value).ok()).filter(|value| *value > 0).unwrap_or(default)
}

fn thresholds(probe: &Probe) -> Thresholds {
    Thresholds {
        success: count(probe.success_threshold, 1),
        failure: count(probe.failure_threshold, 3),
        grace: probe
            .termination_grace_period_seconds
            .map(|seconds| Duration::from_secs(u64::try_from(seconds).unwrap_or(0))),
    }
}

/// The TCP ports of a container, in order and each once: those that it declares, else those that its image exposes.
#[must_use]
pub fn tcp_ports(container: &Container, exposed: &[u16]) -> Vec<u16> {
    let declared = container.ports.as_deref().unwrap_or_default();
    if declared.is_empty() {
        return exposed.to_vec();
    }
    let mut ports = Vec::new();
    for port in declared.iter().filter(|port| port.protocol.as_deref().is_none_or(|of| of == "TCP")) {
        ports.extend(u16::try_from(port.container_port).ok().filter(|port| !ports.contains(port)));
    }
    ports
}

/// The port of a server: the first one of its TCP ports.
#[must_use]
pub fn server_port(tcp_ports: &[u16]) -> u16 {
    tcp_ports.first().copied().unwrap_or(PORT_DEFAULT)
}

/// A container's settings from its annotations and resources.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The limits for the engine.
    pub limits: Limits,
    /// The granted optional host interfaces.
    pub grants: Grants,
    /// The only imports that the module may have, if they are restricted.
    pub imports: Option<Arc<ImportRules>>,
    /// A command keeps running until the grace period ends.
    pub stop_at_grace: bool,
    /// The allowed sessions.
    pub exec: ExecAccess,
    /// Runs the module as a command, even if it can serve.
    pub as_command: bool,
}

/// The sessions that a container allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ExecAccess {
    /// Any session.
    #[default]
    Allowed,
    /// Only programs of its image.
    Image,
    /// Neither exec nor attach.
    Denied,
}

impl Settings {
    /// Checks that the annotations apply to a module of this kind, and returns the kind.
    pub(in crate::pod) fn suit(&self, container: &str, kind: Kind) -> Result<Kind, BadAnnotation> {
        if self.limits.reuse.is_none() || kind == Kind::HttpServer {
            return Ok(kind);
        }
        let why = "only an HTTP server's instances can answer again: a command runs once, a plugin has sessions";
        Err(BadAnnotation { name: format!("{}{container}", names::REUSE), why: why.to_owned() })
    }

    /// The error if a module can't run as a command.
    pub(in crate::pod) fn no_command(container: &str) -> BadAnnotation {
        let why = "the module exports neither wasi:cli/run nor _start, so it cannot be a command".to_owned();
        BadAnnotation { name: format!("{}{container}", names::KIND), why }
    }
}

/// An annotation with an invalid value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("annotation {name}: {why}")]
pub struct BadAnnotation {
    /// The annotation's name.
    pub name: String,
    /// The error in its value.
    pub why: String,
}

/// Parses the settings. `optional`: the host interfaces that can be granted.
pub fn settings(pod: &Pod, container: &Container, optional: &[&str]) -> Result<Settings, BadAnnotation> {
    let annotations = pod.metadata.annotations.as_ref();
    let find = |prefix: &str| {
        let name = format!("{prefix}{}", container.name);
        let value = annotations?.get(&name)?.trim().to_owned();
        Some((name, value))
    };
    let bad = |name: String, why: String| Err(BadAnnotation { name, why });
    let mut limits = Limits { timeout: REQUEST_TIMEOUT_DEFAULT, concurrency: CONCURRENCY_DEFAULT, ..Limits::default() };
    let limit = |name: &str| {
        let text = &container.resources.as_ref()?.limits.as_ref()?.get(name)?.0;
        Quantity::parse(text).ok()
    };
    let own = limit("memory").and_then(|memory| u64::try_from(memory.value()).ok());
    // A container without a limit has the pod's limit at once, as if no other container held memory.
    limits.memory_bytes = own.into_iter().chain(requests::pod_limit(pod, "memory")).min();
    limits.cpu_millis = limit("cpu").and_then(|cpu| u64::try_from(cpu.milli()).ok()).filter(|millis| *millis > 0);
    let request = container.resources.as_ref().and_then(|resources| resources.requests.as_ref()?.get("cpu"));
    let request = request.and_then(|text| u64::try_from(Quantity::parse(&text.0).ok()?.milli()).ok());
    limits.cpu_shares = cpu_shares(request.unwrap_or_else(|| requests::default_cpu_request(pod)));
    if let Some((name, value)) = find(names::FUEL) {
        match value.parse::<u64>() {
            Ok(fuel) if fuel > 0 => limits.fuel = Some(fuel),
            _ => return bad(name, format!("{value:?} is not a whole number of units of fuel above 0")),
        }
    }
    if let Some((name, value)) = find(names::TIMEOUT) {
        match duration::parse_unsigned(&value) {
            Some(timeout) if timeout > Duration::ZERO && timeout <= TIMEOUT_MAX => limits.timeout = timeout,
            Some(_) => return bad(name, format!("{value:?} is not between 1ms and 24h")),
            None => return bad(name, format!("{value:?} is not a duration such as 500ms, 2s or 1m30s")),
        }
    }
    if let Some((name, value)) = find(names::CONCURRENCY) {
        match value.parse::<usize>() {
            Ok(concurrency) if (1..=CONCURRENCY_MAX).contains(&concurrency) => limits.concurrency = concurrency,
            _ => return bad(name, format!("{value:?} is not a whole number from 1 to {CONCURRENCY_MAX}")),
        }
    }
    if let Some((name, value)) = find(names::REUSE) {
        limits.reuse = Some(reuse::parse(&value).map_err(|why| BadAnnotation { name, why })?);
    }
    let grants = match find(names::HOST) {
        Some((name, value)) => match Grants::parse(&value, optional) {
            Ok(grants) => grants,
            Err(error) => return bad(name, error.to_string()),
        },
        None => Grants::default(),
    };
    let imports = match find(names::IMPORTS) {
        Some((name, value)) => Some(Arc::new(ImportRules::parse(&value).map_err(|why| BadAnnotation { name, why })?)),
        None => None,
    };
    let stop_at_grace = is_word(find(names::STOP), "grace")?;
    let exec = match find(names::EXEC) {
        Some((_, value)) if value == "deny" => ExecAccess::Denied,
        Some((_, value)) if value == "image" => ExecAccess::Image,
        Some((name, value)) => return bad(name, format!("{value:?} is neither \"deny\" nor \"image\"")),
        None => ExecAccess::Allowed,
    };
    let as_command = is_word(find(names::KIND), "command")?;
    check_names(pod, container)?;
    Ok(Settings { limits, grants, imports, stop_at_grace, exec, as_command })
}

/// Whether an annotation with a single allowed value is present.
fn is_word(found: Option<(String, String)>, word: &str) -> Result<bool, BadAnnotation> {
    match found {
        Some((_, value)) if value == word => Ok(true),
        Some((name, value)) => {
            Err(BadAnnotation { name, why: format!("{value:?} is not {word:?}, the only value that there is") })
        }
        None => Ok(false),
    }
}

/// Checks that each annotation in our domain is known, and names an existing container.
fn check_names(pod: &Pod, container: &Container) -> Result<(), BadAnnotation> {
    let bad = |name: String, why: String| Err(BadAnnotation { name, why });
    let spec = containers::spec(pod);
    let names: BTreeSet<&str> = containers::names(&spec).collect();
    for name in pod.metadata.annotations.iter().flatten().map(|(name, _)| name) {
        let Some((domain, of)) = name.split_once('/') else { continue };
        if !domain.ends_with(names::ANNOTATIONS_DOMAIN) {
            continue;
        }
        if !KNOWN.iter().any(|known| known.strip_suffix('/') == Some(domain)) {
            let known = KNOWN.map(|known| format!("{known}{}", container.name)).join(", ");
            return bad(name.clone(), format!("there is no such annotation; there are {known}"));
        }
        if !names.contains(of) {
            return bad(name.clone(), format!("the pod has no container {of:?}"));
        }
    }
    Ok(())
}

/// Whether the pod is controlled by a Job.
pub(crate) fn of_job(pod: &Pod) -> bool {
    pod.metadata.owner_references.iter().flatten().any(|owner| owner.controller == Some(true) && owner.kind == "Job")
}

/// The warning for a server in a Job.
pub(crate) fn server_in_job(container: &str) -> String {
    format!(
        "The module of container {container} is an HTTP server, which does not end by itself: the Job will not \
         complete. Run it in a Deployment, or give the Job a module that exports wasi:cli/run; of one that exports both, \
         annotation {}{container}: command takes the command",
        names::KIND
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_is_seen_by_its_reference() {
        let of = |kind: &str, controller: bool| {
            let owner = serde_json::json!({
                "apiVersion": "batch/v1", "kind": kind, "name": "j", "uid": "u", "controller": controller,
            });
            of_job(&serde_json::from_value(serde_json::json!({"metadata": {"ownerReferences": [owner]}})).unwrap())
        };
        assert_eq!([of("Job", true), of("Job", false), of("ReplicaSet", true)], [true, false, false]);
    }
    use serde_json::json;

    #[test]
    fn the_ports_are_declared_or_else_exposed() {
        for (ports, exposed, wanted, server) in [
            (json!([]), &[][..], &[][..], 80),
            (json!([]), &[443, 8080], &[443, 8080], 443),
            (
                json!([{"containerPort": 9000}, {"containerPort": 53, "protocol": "UDP"}, {"containerPort": 81},
                {"containerPort": 9000, "protocol": "TCP"}]),
                &[443],
                &[9000, 81],
                9000,
            ),
            (json!([{"containerPort": 53, "protocol": "UDP"}]), &[443], &[], 80),
        ] {
            let container = serde_json::from_value(json!({"name": "c", "ports": ports})).unwrap();
            let found = tcp_ports(&container, exposed);
            assert_eq!((&found[..], server_port(&found)), (wanted, server), "{container:?}");
        }
    }

    #[test]
    fn annotations_are_read_or_named() {
        let pod = |annotations: serde_json::Value| -> Pod {
            serde_json::from_value(json!({
                "metadata": {"name": "p", "annotations": annotations},
                "spec": {"containers": [{"name": "c", "resources": {
                    "limits": {"memory": "64Mi", "cpu": "500m"}, "requests": {"cpu": "250m"}}}]},
            }))
            .unwrap()
        };
        let read = |pod: &Pod| settings(pod, &pod.spec.as_ref().unwrap().containers[0], &[]);
        let good = read(&pod(json!({
            "fuel.coracle.dev/c": "5", "timeout.coracle.dev/c": "2s", "concurrency.coracle.dev/c": "7",
            "stop.coracle.dev/c": "grace", "exec.coracle.dev/c": "deny", "reuse.coracle.dev/c": "count=8", "kind.coracle.dev/c": "command",
        })))
        .unwrap();
        assert_eq!(
            (good.limits.fuel, good.limits.concurrency, good.stop_at_grace, good.as_command),
            (Some(5), 7, true, true)
        );
        let suits = [Kind::HttpServer, Kind::Command, Kind::Plugin].map(|kind| good.suit("c", kind).is_ok());
        assert_eq!(suits, [true, false, false]);
        assert_eq!((good.exec, good.limits.reuse.map(|reuse| reuse.count)), (ExecAccess::Denied, Some(8)));
        assert_eq!((good.limits.memory_bytes, good.limits.cpu_millis), (Some(64 << 20), Some(500)));
        assert_eq!((good.limits.timeout, good.limits.cpu_shares), (Duration::from_secs(2), 256));
        for (name, value) in [
            ("fuel.coracle.dev/c", "-1"),
            ("fuel.coracle.dev/c", "0"),
            ("timeout.coracle.dev/c", "soon"),
            ("timeout.coracle.dev/c", "0s"),
            ("concurrency.coracle.dev/c", "0"),
            ("host.coracle.dev/c", "nonsense"),
            ("stop.coracle.dev/c", "now"),
            ("exec.coracle.dev/c", "allow"),
            ("reuse.coracle.dev/c", "yes"),
            ("kind.coracle.dev/c", "server"),
            ("fuel.coracle.dev/other", "5"),
            ("fule.coracle.dev/c", "5"),
            ("a.fuel.coracle.dev/c", "5"),
        ] {
            let error = read(&pod(json!({name: value}))).unwrap_err();
            assert_eq!(error.name, name);
        }
        let error = read(&pod(json!({"fule.coracle.dev/c": "5"}))).unwrap_err();
        assert!(error.why.contains("fuel.coracle.dev/c, timeout.coracle.dev/c"), "{error}");
        read(&pod(json!({"example.com/fuel": "x", "coracle": "y", "fuel.coracle.dev.example.com/c": "z"}))).unwrap();
    }
}
