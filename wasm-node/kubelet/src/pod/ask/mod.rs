//! What the node asks of a container itself, for its probes and hooks: a request, a connection, a command in its sandbox.
//!
//! What goes to the pod goes straight there, over no socket. What a pod has the node ask elsewhere (`host`) is asked as the
//! pod itself would: through the data plane, with the pod's own share of it, and never of the host's own ports.

mod exec;
mod grpc;
mod http;
mod outside;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use machinery_serve::net::{Caller, Dial, DialError, PodNetwork, Protocol, Target};

use self::exec::{Ended, NotRun};
use super::check::{Check, HookSpec, Port};
use super::sandbox::Sandboxes;
use super::shared::Shared;
use super::start::caller;
use super::state::ProbeResult;
use super::status::pod_text;

/// How a probe went.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// There is a result.
    Result(ProbeResult),
    /// No instance could be made beside those that live: the guest was not asked, so nothing is known.
    NoRoom,
}

impl Asked {
    fn passed() -> Self {
        Self::Result(ProbeResult::Passed)
    }

    fn failed(why: impl Into<String>) -> Self {
        Self::Result(ProbeResult::Failed(why.into()))
    }

    fn errored(why: impl Into<String>) -> Self {
        Self::Result(ProbeResult::Errored(why.into()))
    }
}

/// A hook that ended.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Hooked {
    /// It asked this host by HTTPS, and made do with HTTP.
    pub(crate) fell_back: Option<String>,
    /// What is wrong where it failed, in upstream's words.
    pub(crate) failure: Option<String>,
}

/// Asks one container of a pod.
#[derive(Clone)]
pub(crate) struct Asker {
    network: PodNetwork,
    dial: Arc<dyn Dial>,
    sandboxes: Arc<Sandboxes>,
    caller: Caller,
    ip: IpAddr,
    uid: String,
    container: String,
    /// As upstream's messages call the pod.
    pod: String,
}

impl Asker {
    pub(crate) fn new(node: &Shared, pod: &Pod, container: &str, ip: IpAddr) -> Self {
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        Self {
            network: node.parts.network.clone(),
            dial: node.parts.dial.clone(),
            sandboxes: node.pods.sandboxes.clone(),
            caller: caller(node, pod, ip),
            ip,
            uid: text(&pod.metadata.uid),
            container: container.to_owned(),
            pod: pod_text(pod),
        }
    }

    /// Asks for a probe.
    pub(crate) async fn probe(&self, check: &Check, timeout: Duration) -> Asked {
        match check {
            Check::Http(get) => self.probe_http(get, timeout).await,
            Check::Tcp { host, port } => match self.tcp(host.as_deref(), port, timeout).await {
                Ok(()) => Asked::passed(),
                Err(asked) => asked,
            },
            Check::Grpc { port, service } => self.probe_grpc(*port, service, timeout).await,
            Check::Exec(command) => self.probe_exec(command, timeout).await,
        }
    }

    /// Whether somebody takes connections: a pod's listener takes every one at once.
    async fn tcp(&self, host: Option<&str>, port: &Port, timeout: Duration) -> Result<(), Asked> {
        let number = port.number.ok_or_else(|| Asked::errored(no_port(port)))?;
        let Some(host) = host else {
            let found = self.network.find(self.ip, Protocol::Tcp, number);
            let refused = || format!("dial tcp {}: connect: connection refused", SocketAddr::new(self.ip, number));
            return found.map(drop).ok_or_else(|| Asked::failed(refused()));
        };
        let to = Target { host: host.to_owned(), port: number };
        match tokio::time::timeout(timeout, self.dial.stream(&self.caller, &to)).await {
            Ok(Ok(_stream)) => Ok(()),
            Ok(Err(error)) => Err(Asked::failed(dial_text(&error))),
            Err(_) => Err(Asked::failed(format!("dial tcp {host}:{number}: i/o timeout"))),
        }
    }

    async fn probe_exec(&self, command: &[String], timeout: Duration) -> Asked {
        match self.exec(command, Some(timeout)).await {
            Ok(Ended { code: 0, .. }) => Asked::passed(),
            Ok(ended) => Asked::failed(ended.combined()),
            Err(NotRun::TimedOut) => {
                let timeout = timeout.as_secs();
                Asked::failed(format!(
                    "command timed out: failed to exec in container: timeout {timeout}s exceeded: context deadline exceeded"
                ))
            }
            Err(why) => Asked::errored(why.to_string()),
        }
    }

    /// Calls a hook, for as long as it takes.
    pub(crate) async fn hook(&self, hook: &HookSpec) -> Hooked {
        let (name, pod) = (&self.container, &self.pod);
        match hook {
            HookSpec::Sleep(sleep) => {
                tokio::time::sleep(*sleep).await;
                Hooked::default()
            }
            HookSpec::Http(get) => match self.call(get).await {
                Ok(fell_back) => Hooked { fell_back, failure: None },
                Err(error) => Hooked::failed(format!(
                    "HTTP lifecycle hook ({}) for Container {name:?} in Pod {pod:?} failed - error: {error}",
                    get.path
                )),
            },
            HookSpec::Exec(command) => match self.exec(command, None).await {
                Ok(Ended { code: 0, .. }) => Hooked::default(),
                other => {
                    let words = command.join(" ");
                    let (error, output) = match other {
                        Ok(ended) => {
                            let error = format!("command '{words}' exited with {}: {}", ended.code, ended.stderr());
                            (error, ended.combined())
                        }
                        Err(why) => (why.to_string(), String::new()),
                    };
                    Hooked::failed(format!(
                        "Exec lifecycle hook ([{words}]) for Container {name:?} in Pod {pod:?} failed - error: {error}, message: {output:?}"
                    ))
                }
            },
            HookSpec::Invalid => Hooked::failed("Cannot run handler: invalid handler: tcpSocket".into()),
        }
    }
}

impl Hooked {
    fn failed(why: String) -> Self {
        Self { fell_back: None, failure: Some(why) }
    }
}

fn no_port(port: &Port) -> String {
    format!("couldn't find port: {}", port.text)
}

/// Why nobody was reached, as Go's dialer says it.
fn dial_text(error: &DialError) -> String {
    match error {
        DialError::NameNotFound(name) => format!("dial tcp: lookup {name}: no such host"),
        DialError::NoEndpoint(name) => format!("dial tcp {name}: connect: no endpoint is ready"),
        DialError::Denied(what) => format!("dial tcp {what}: connect: connections to {what} are not allowed"),
        DialError::Timeout(what) => format!("dial tcp {what}: i/o timeout"),
        DialError::Connection { address, source } => {
            let refused = source
                .downcast_ref::<std::io::Error>()
                .is_some_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused);
            let source = if refused { "connection refused".to_owned() } else { source.to_string() };
            format!("dial tcp {address}: connect: {source}")
        }
    }
}

#[cfg(test)]
mod tests;
