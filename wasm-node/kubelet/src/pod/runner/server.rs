//! The runner of HTTP servers, which respond to requests at the pod's address until they are stopped.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{HTTPGetAction, Probe};
use machinery_env::Deadline;
use machinery_serve::net::{AddrInUse, Listen, Serve};
use runtime_api::{Kind, LogSink as _, Server, StdStream};
use tokio::sync::watch;

use super::{MessageReader, RunContext, Runner, RunnerClass};
use crate::pod::lifecycle::settings;
use crate::pod::lifecycle::state::{Class, ContainerEvent};
use crate::pod::listen::listen;
use crate::pod::serve::{AttachedAddress, ServerHandle};
use crate::pod::start::{CreatedContainer, StartError};
use crate::pod::stop::{grace_period_end, pre_stop};
use crate::pod::worker::{Task, container_message};

/// How long a server accepts requests after its endpoint has left all routing tables of this process (docs/contract.md §4).
/// Callers in this process don't need it: a late request goes to the next endpoint (`Refused::Gone`). Other processes
/// (clients with the resolved name, other proxies) are notified by a watch, well within 1 s.
const UNROUTED_FOR: Duration = Duration::from_secs(1);
/// The maximum wait for a server's removal from the routing tables. A Service with `publishNotReadyAddresses` keeps the
/// pod until its end, which must not use up the grace period.
const ROUTED_MAX: Duration = Duration::from_secs(10);
pub(super) const CLASS: RunnerClass =
    RunnerClass { kind: Kind::HttpServer, is_admitted: false, is_server: true, leaves_message: false, start };

struct HttpServer {
    context: RunContext,
    server: Arc<dyn Server>,
    /// The server's address, if it has one.
    address: Option<AttachedAddress>,
    read_message: Option<MessageReader>,
    _listener: Option<Task>,
}

fn start(context: RunContext, created: &mut CreatedContainer) -> Result<Box<dyn Runner>, StartError> {
    let run_error = |message: String| ("RunContainerError", message);
    let container = context.container.get();
    let server = created.container.serve().map_err(|error| run_error(error.to_string()))?;
    if context.attempt == 0 && context.class == Class::Main && settings::of_job(&context.view.snapshot().pod.get()) {
        context.warn("NeverCompletes", settings::server_in_job(&container.name));
    }
    let port = settings::server_port(&settings::tcp_ports(&container, &created.image.exposed_tcp_ports));
    let of = (context.index, context.attempt);
    let env = context.node.parts.env.clone();
    let handle =
        ServerHandle::new(created, server.clone(), of, (context.view.clone(), context.messages.clone()), env.clone());
    let (mut address, mut listener) = (None, None);
    if let Some(ip) = context.ip {
        match context.node.parts.network.attach(Listen::tcp(ip, port), handle.clone()) {
            Ok(attached) => address = Some(AttachedAddress::new(attached)),
            Err(taken) => return Ok(Box::new(PortConflict::end(&context, created, &taken))),
        }
        if context.node.identity.host_pod_listeners {
            let (recorder, about) = (context.node.recorder.clone(), context.about());
            let address = SocketAddr::new(ip, port);
            let serve: Arc<dyn Serve> = handle.clone();
            listener = Some(Task(tokio::spawn(listen(env, address, move || Some(serve.clone()), recorder, about))));
        }
    }
    // Probes by request detect themselves whether an instance can be created.
    let calls_guest = |probe: &Option<Probe>| {
        let own = |get: &HTTPGetAction| get.host.as_deref().is_none_or(str::is_empty);
        probe.as_ref().is_some_and(|probe| probe.http_get.as_ref().is_some_and(own) || probe.grpc.is_some())
    };
    if !calls_guest(&container.readiness_probe) && !calls_guest(&container.startup_probe) {
        handle.check_instances();
    }
    let read_message = Some(context.read_message(created));
    Ok(Box::new(HttpServer { context, server, address, read_message, _listener: listener }))
}

/// A server whose port is used by another container of the pod: it exits like a process whose `bind` fails.
struct PortConflict(#[expect(dead_code, reason = "ends with it")] Task);

impl PortConflict {
    fn end(context: &RunContext, created: &mut CreatedContainer, taken: &AddrInUse) -> Self {
        let (index, messages, read_message) = (context.index, context.messages.clone(), context.read_message(created));
        created.log.write(StdStream::Stderr, format!("{taken}\n").as_bytes());
        let message = Some(taken.to_string());
        let exited = ContainerEvent::Exited { attempt: context.attempt, code: 1, reason: "Error".into(), message };
        Self(Task(tokio::spawn(async move {
            let _ = tokio::task::spawn_blocking(move || read_message(true)).await;
            let _ = messages.send(container_message(index, exited)).await;
        })))
    }
}

impl Runner for PortConflict {
    fn stop(&mut self, _: bool, _: watch::Receiver<Deadline>) -> Option<Task> {
        None
    }

    fn kill(&mut self) {}
}

impl Runner for HttpServer {
    fn stop(&mut self, restart: bool, ends: watch::Receiver<Deadline>) -> Option<Task> {
        let read_message = self.read_message.take()?;
        let (context, server, address) = (self.context.clone(), self.server.clone(), self.address.clone());
        Some(Task(tokio::spawn(drain(context, server, address, restart, read_message, ends))))
    }

    fn kill(&mut self) {
        if let Some(address) = &self.address {
            address.close();
        }
        self.server.shut();
    }
}

/// Stops a server and reports its exit.
async fn drain(
    context: RunContext,
    server: Arc<dyn Server>,
    address: Option<AttachedAddress>,
    restart: bool,
    read_message: MessageReader,
    ends: watch::Receiver<Deadline>,
) {
    let (network, env) = (context.node.parts.network.clone(), &context.node.parts.env);
    let close = || {
        if let Some(address) = &address {
            address.close();
        }
    };
    let drain = async {
        pre_stop(&context, &ends).await;
        if let Some(ip) = context.ip {
            let _ = env.timeout(ROUTED_MAX, network.wait_unrouted(ip)).await;
            env.sleep(UNROUTED_FOR).await;
            close();
            let _ = context.messages.send(container_message(context.index, ContainerEvent::StoppedListening)).await;
        }
        server.drained().await;
    };
    let drained = tokio::select! {
        () = drain => true,
        () = grace_period_end(env, ends.clone()) => false,
    };
    close();
    server.shut();
    let (code, reason) = match (drained, restart) {
        (true, false) => (0, "Completed"),
        (true, true) => (143, "Error"),
        (false, _) => (137, "Error"),
    };
    let message = tokio::task::spawn_blocking(move || read_message(code != 0)).await.ok().flatten();
    let exited = ContainerEvent::Exited { attempt: context.attempt, code, reason: reason.into(), message };
    let _ = context.messages.send(container_message(context.index, exited)).await;
}
