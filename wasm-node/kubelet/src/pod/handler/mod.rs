//! Runs the handlers of a container's probes and hooks: HTTP and gRPC requests, TCP connections, commands in its sandbox.
//!
//! Requests to the pod use no socket. Requests to another `host` go through the data plane with the pod's identity and
//! its share, and never reach the host's own ports.

mod exec;
mod external;
mod grpc;
mod http;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use machinery_env::Env;
use machinery_serve::net::{Caller, Dial, DialError, PodNetwork, Protocol, Target};

use self::exec::{ExecFailure, ExecOutput};
use super::lifecycle::check::{Check, HookSpec, Port};
use super::lifecycle::state::ProbeResult;
use super::lifecycle::status::pod_text;
use super::sandbox::Sandboxes;
use super::shared::NodeContext;
use super::start::caller;

/// The outcome of one probe.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum ProbeOutcome {
    /// The probe has a result.
    Result(ProbeResult),
    /// No instance could be created beside the live ones. The guest was not called, so the result is unknown.
    NoCapacity,
}

impl ProbeOutcome {
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

/// The outcome of a hook.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct HookOutcome {
    /// The host whose server lacked TLS, where the hook fell back to HTTP.
    pub(crate) fell_back: Option<String>,
    /// The failure, in upstream's words.
    pub(crate) failure: Option<String>,
}

/// Runs the probes and hooks of one container.
#[derive(Clone)]
pub(crate) struct HandlerRunner {
    env: Env,
    network: PodNetwork,
    dial: Arc<dyn Dial>,
    sandboxes: Arc<Sandboxes>,
    caller: Caller,
    ip: IpAddr,
    uid: String,
    container: String,
    /// The pod's name in upstream's messages.
    pod: String,
}

impl HandlerRunner {
    pub(crate) fn new(node: &NodeContext, pod: &Pod, container: &str, ip: IpAddr) -> Self {
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        Self {
            env: node.parts.env.clone(),
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

    /// Runs one probe.
    pub(crate) async fn probe(&self, check: &Check, timeout: Duration) -> ProbeOutcome {
        match check {
            Check::Http(get) => self.probe_http(get, timeout).await,
            Check::Tcp { host, port } => match self.tcp(host.as_deref(), port, timeout).await {
                Ok(()) => ProbeOutcome::passed(),
                Err(outcome) => outcome,
            },
            Check::Grpc { port, service } => self.probe_grpc(*port, service, timeout).await,
            Check::Exec(command) => self.probe_exec(command, timeout).await,
        }
    }

    /// Whether the port accepts connections: a pod's listener accepts every connection at once.
    async fn tcp(&self, host: Option<&str>, port: &Port, timeout: Duration) -> Result<(), ProbeOutcome> {
        let number = port.number.ok_or_else(|| ProbeOutcome::errored(no_port(port)))?;
        let Some(host) = host else {
            let found = self.network.find(self.ip, Protocol::Tcp, number);
            let refused = || format!("dial tcp {}: connect: connection refused", SocketAddr::new(self.ip, number));
            return found.map(drop).ok_or_else(|| ProbeOutcome::failed(refused()));
        };
        let to = Target { host: host.to_owned(), port: number };
        match self.env.timeout(timeout, self.dial.stream(&self.caller, &to)).await {
            Ok(Ok(_stream)) => Ok(()),
            Ok(Err(error)) => Err(ProbeOutcome::failed(dial_text(&error))),
            Err(_) => Err(ProbeOutcome::failed(format!("dial tcp {host}:{number}: i/o timeout"))),
        }
    }

    async fn probe_exec(&self, command: &[String], timeout: Duration) -> ProbeOutcome {
        match self.exec(command, Some(timeout)).await {
            Ok(ExecOutput { code: 0, .. }) => ProbeOutcome::passed(),
            Ok(ended) => ProbeOutcome::failed(ended.combined()),
            Err(ExecFailure::TimedOut) => {
                let timeout = timeout.as_secs();
                ProbeOutcome::failed(format!(
                    "command timed out: failed to exec in container: timeout {timeout}s exceeded: context deadline exceeded"
                ))
            }
            Err(why) => ProbeOutcome::errored(why.to_string()),
        }
    }

    /// Runs a hook, without a timeout.
    pub(crate) async fn hook(&self, hook: &HookSpec) -> HookOutcome {
        let (name, pod) = (&self.container, &self.pod);
        match hook {
            HookSpec::Sleep(sleep) => {
                self.env.sleep(*sleep).await;
                HookOutcome::default()
            }
            HookSpec::Http(get) => match self.call(get).await {
                Ok(fell_back) => HookOutcome { fell_back, failure: None },
                Err(error) => HookOutcome::failed(format!(
                    "HTTP lifecycle hook ({}) for Container {name:?} in Pod {pod:?} failed - error: {error}",
                    get.path
                )),
            },
            HookSpec::Exec(command) => match self.exec(command, None).await {
                Ok(ExecOutput { code: 0, .. }) => HookOutcome::default(),
                other => {
                    let words = command.join(" ");
                    let (error, output) = match other {
                        Ok(ended) => {
                            let error = format!("command '{words}' exited with {}: {}", ended.code, ended.stderr());
                            (error, ended.combined())
                        }
                        Err(why) => (why.to_string(), String::new()),
                    };
                    HookOutcome::failed(format!(
                        "Exec lifecycle hook ([{words}]) for Container {name:?} in Pod {pod:?} failed - error: {error}, message: {output:?}"
                    ))
                }
            },
            HookSpec::Invalid => HookOutcome::failed("Cannot run handler: invalid handler: tcpSocket".into()),
        }
    }
}

impl HookOutcome {
    fn failed(why: String) -> Self {
        Self { fell_back: None, failure: Some(why) }
    }
}

fn no_port(port: &Port) -> String {
    format!("couldn't find port: {}", port.text)
}

/// A dial error in the words of Go's dialer.
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
