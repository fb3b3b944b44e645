//! The probes and hooks of a container. Pure: parses the fields of its spec once.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, HTTPGetAction, LifecycleHandler, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::settings::count;
use super::state::ProbeKind;
use crate::config::environment::expand;

/// A container's probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProbeSpec {
    /// The delay from the container's start.
    pub initial_delay: Duration,
    /// The period between two probes.
    pub period: Duration,
    /// The timeout of one probe.
    pub timeout: Duration,
    /// The check.
    pub check: Check,
}

/// The check that a probe performs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Check {
    /// An HTTP request with a successful response.
    Http(HttpGet),
    /// A TCP connection.
    Tcp {
        /// The target, if it isn't the pod.
        host: Option<String>,
        /// The port.
        port: Port,
    },
    /// A `SERVING` status of `grpc.health.v1.Health`.
    Grpc {
        /// The port.
        port: u16,
        /// The name of the service.
        service: String,
    },
    /// A command with exit code 0.
    Exec(Vec<String>),
}

/// A port in a spec.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// The port's number; `None` if the name is unknown.
    pub number: Option<u16>,
    /// The text in the spec.
    pub text: String,
}

/// An HTTP request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpGet {
    /// The target, if it isn't the pod.
    pub host: Option<String>,
    /// Uses TLS.
    pub https: bool,
    /// The port.
    pub port: Port,
    /// Path and query as in the spec.
    pub path: String,
    /// Additional headers.
    pub headers: Vec<(String, String)>,
}

/// The action of a hook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HookSpec {
    /// Sleeps.
    Sleep(Duration),
    /// Sends a request; any response is a success.
    Http(HttpGet),
    /// Runs a command.
    Exec(Vec<String>),
    /// A handler that the API accepts and no kubelet supports: `tcpSocket`.
    Invalid,
}

impl HookSpec {
    /// The container's `postStart` hook.
    #[must_use]
    pub fn post_start(container: &Container) -> Option<Self> {
        Some(Self::of(container, container.lifecycle.as_ref()?.post_start.as_ref()?))
    }

    /// The container's `preStop` hook.
    #[must_use]
    pub fn pre_stop(container: &Container) -> Option<Self> {
        Some(Self::of(container, container.lifecycle.as_ref()?.pre_stop.as_ref()?))
    }

    fn of(container: &Container, handler: &LifecycleHandler) -> Self {
        match (&handler.exec, &handler.http_get, &handler.sleep) {
            (Some(exec), ..) => Self::Exec(exec.command.clone().unwrap_or_default()),
            (None, Some(action), _) => Self::Http(get(container, action)),
            (None, None, Some(sleep)) => Self::Sleep(Duration::from_secs(u64::try_from(sleep.seconds).unwrap_or(0))),
            (None, None, None) => Self::Invalid,
        }
    }
}

fn host(host: Option<&String>) -> Option<String> {
    host.filter(|host| !host.is_empty()).cloned()
}

/// The container's probe of that kind.
#[must_use]
pub fn probe(container: &Container, kind: ProbeKind) -> Option<ProbeSpec> {
    let probe = match kind {
        ProbeKind::Startup => &container.startup_probe,
        ProbeKind::Readiness => &container.readiness_probe,
        ProbeKind::Liveness => &container.liveness_probe,
    };
    let probe = probe.as_ref()?;
    let seconds = |value, default| Duration::from_secs(u64::from(count(value, default)));
    Some(ProbeSpec {
        initial_delay: seconds(probe.initial_delay_seconds, 0),
        period: seconds(probe.period_seconds, 10),
        timeout: seconds(probe.timeout_seconds, 1),
        check: check(container, probe)?,
    })
}

fn check(container: &Container, probe: &Probe) -> Option<Check> {
    Some(match (&probe.exec, &probe.http_get, &probe.tcp_socket, &probe.grpc) {
        (Some(exec), ..) => {
            Check::Exec(exec.command.iter().flatten().map(|word| expand_static(container, word)).collect())
        }
        (None, Some(action), ..) => Check::Http(get(container, action)),
        (None, None, Some(tcp), _) => Check::Tcp { host: host(tcp.host.as_ref()), port: port(container, &tcp.port) },
        (None, None, None, Some(grpc)) => Check::Grpc {
            port: u16::try_from(grpc.port).unwrap_or_default(),
            service: grpc.service.clone().unwrap_or_default(),
        },
        (None, None, None, None) => return None,
    })
}

/// As upstream for a probe's command: `$(NAME)` is expanded by literal variables of the spec only, not by values from
/// other sources.
fn expand_static(container: &Container, word: &str) -> String {
    let mut known: Vec<(&str, String)> = Vec::new();
    for variable in container.env.iter().flatten().filter(|variable| variable.value_from.is_none()) {
        let value = variable.value.as_deref().unwrap_or_default();
        let value = expand(value, &|name| known.iter().rfind(|(of, _)| *of == name).map(|(_, value)| value.clone()));
        known.push((&variable.name, value));
    }
    expand(word, &|name| known.iter().rfind(|(of, _)| *of == name).map(|(_, value)| value.clone()))
}

fn get(container: &Container, action: &HTTPGetAction) -> HttpGet {
    let headers = action.http_headers.iter().flatten().map(|header| (header.name.clone(), header.value.clone()));
    HttpGet {
        host: host(action.host.as_ref()),
        https: action.scheme.as_deref() == Some("HTTPS"),
        port: port(container, &action.port),
        path: action.path.clone().unwrap_or_default(),
        headers: headers.collect(),
    }
}

fn port(container: &Container, of: &IntOrString) -> Port {
    match of {
        IntOrString::Int(port) => Port { number: u16::try_from(*port).ok(), text: port.to_string() },
        IntOrString::String(name) => {
            let named = container.ports.iter().flatten().find(|port| port.name.as_deref() == Some(name));
            let port = named.map(|port| port.container_port).or_else(|| name.parse().ok());
            Port { number: port.and_then(|port| u16::try_from(port).ok()), text: name.clone() }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn container(more: serde_json::Value) -> Container {
        let mut container = json!({"name": "c", "ports": [{"name": "web", "containerPort": 8080}],
            "env": [{"name": "A", "value": "a"}, {"name": "B", "value": "$(A)b"},
                {"name": "N", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]});
        container.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        serde_json::from_value(container).unwrap()
    }

    #[test]
    fn each_kind_of_check_is_read() {
        let check =
            |probe: serde_json::Value| probe_of(&container(json!({"readinessProbe": probe}))).map(|spec| spec.check);
        let port = |number| Port { number, text: "web".into() };
        assert_eq!(
            check(json!({"tcpSocket": {"port": "web", "host": ""}})),
            Some(Check::Tcp { host: None, port: port(Some(8080)) })
        );
        assert_eq!(
            check(json!({"httpGet": {"port": "web", "host": "h", "scheme": "HTTPS", "path": "x"}})),
            Some(Check::Http(HttpGet {
                host: Some("h".into()),
                https: true,
                port: port(Some(8080)),
                path: "x".into(),
                headers: vec![]
            }))
        );
        assert_eq!(check(json!({"grpc": {"port": 9}})), Some(Check::Grpc { port: 9, service: String::new() }));
        let words = vec!["sh", "ab $(N) $(X) $(A)"].into_iter().map(str::to_owned).collect();
        assert_eq!(check(json!({"exec": {"command": ["sh", "$(B) $(N) $(X) $$(A)"]}})), Some(Check::Exec(words)));
        assert_eq!(check(json!({})), None);
    }

    fn probe_of(container: &Container) -> Option<ProbeSpec> {
        probe(container, ProbeKind::Readiness)
    }

    #[test]
    fn each_kind_of_hook_is_read() {
        let hook =
            |handler: serde_json::Value| HookSpec::post_start(&container(json!({"lifecycle": {"postStart": handler}})));
        assert_eq!(hook(json!({"sleep": {"seconds": 2}})), Some(HookSpec::Sleep(Duration::from_secs(2))));
        assert_eq!(hook(json!({"exec": {"command": ["$(A)"]}})), Some(HookSpec::Exec(vec!["$(A)".into()])));
        assert_eq!(hook(json!({"tcpSocket": {"port": 1}})), Some(HookSpec::Invalid));
        assert!(matches!(hook(json!({"httpGet": {"port": 1}})), Some(HookSpec::Http(_))));
        assert_eq!(HookSpec::pre_stop(&container(json!({"lifecycle": {}}))), None);
    }
}
