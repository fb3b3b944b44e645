//! What a container is asked for by its probes and hooks. Pure: the fields of its spec, read once.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, HTTPGetAction, LifecycleHandler, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::settings::count;
use super::state::ProbeKind;
use crate::config::environment::expand;

/// One probe's doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProbeSpec {
    /// From the container's start.
    pub initial_delay: Duration,
    /// From one to the next.
    pub period: Duration,
    /// How long one may take.
    pub timeout: Duration,
    /// What is asked for.
    pub check: Check,
}

/// What a probe asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Check {
    /// A good answer.
    Http(Get),
    /// That a connection is taken.
    Tcp {
        /// Where to, if not to the pod.
        host: Option<String>,
        /// The port.
        port: Port,
    },
    /// That `grpc.health.v1.Health` says `SERVING`.
    Grpc {
        /// The port.
        port: u16,
        /// Of which service.
        service: String,
    },
    /// That a command ends well.
    Exec(Vec<String>),
}

/// A port as the spec names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// Its number; none where the name is no port's.
    pub number: Option<u16>,
    /// As it is written.
    pub text: String,
}

/// An HTTP request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Get {
    /// Where to, if not to the pod.
    pub host: Option<String>,
    /// By TLS.
    pub https: bool,
    /// The port.
    pub port: Port,
    /// As it is written: path and query.
    pub path: String,
    /// More headers.
    pub headers: Vec<(String, String)>,
}

/// What a hook does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HookSpec {
    /// Waits.
    Sleep(Duration),
    /// Asks, whatever is answered.
    Http(Get),
    /// Runs a command.
    Exec(Vec<String>),
    /// What the API takes and no kubelet can do: `tcpSocket`.
    Invalid,
}

impl HookSpec {
    /// What comes after a container's start.
    #[must_use]
    pub fn post_start(container: &Container) -> Option<Self> {
        Some(Self::of(container, container.lifecycle.as_ref()?.post_start.as_ref()?))
    }

    /// What comes before its stop.
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

/// The probe of that kind.
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

/// As upstream for a probe's command: `$(NAME)` stands for what the spec itself says of the variable, and for nothing that
/// comes from elsewhere.
fn expand_static(container: &Container, word: &str) -> String {
    let mut known: Vec<(&str, String)> = Vec::new();
    for variable in container.env.iter().flatten().filter(|variable| variable.value_from.is_none()) {
        let value = variable.value.as_deref().unwrap_or_default();
        let value = expand(value, &|name| known.iter().rfind(|(of, _)| *of == name).map(|(_, value)| value.clone()));
        known.push((&variable.name, value));
    }
    expand(word, &|name| known.iter().rfind(|(of, _)| *of == name).map(|(_, value)| value.clone()))
}

fn get(container: &Container, action: &HTTPGetAction) -> Get {
    let headers = action.http_headers.iter().flatten().map(|header| (header.name.clone(), header.value.clone()));
    Get {
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
            Some(Check::Http(Get {
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
