//! HTTP servers: they answer requests at the pod's address, and run for as long as they are wanted.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{HTTPGetAction, Probe};
use machinery_serve::net::{AddrInUse, Listen};
use runtime_api::{Kind, LogSink as _, Server, StdStream};
use tokio::sync::watch;
use tokio::time::Instant;

use super::{Context, LastWords, Runner, RunnerClass};
use crate::pod::listen::listen;
use crate::pod::serve::{AttachedAddress, ServerHandle};
use crate::pod::settings;
use crate::pod::start::{Made, Refused};
use crate::pod::state::{CellEvent, Class};
use crate::pod::stop::{over, pre_stop};
use crate::pod::worker::{Task, happened};

/// How long a server goes on accepting after its endpoint has left every routing table of this process (contract.md §4).
/// Callers of this process need none of it: a request that comes too late is handed back and goes to the next endpoint
/// (`Refused::Gone`). Other processes (a client that resolved the pod's name, a proxy elsewhere) hear of the end by a watch
/// of their own, which takes well under a second.
const UNROUTED_FOR: Duration = Duration::from_secs(1);
/// How long a server waits to leave the routing tables. A Service that publishes addresses that are not ready names a
/// pod until it is gone, and its grace period should not pass for that.
const ROUTED_MAX: Duration = Duration::from_secs(10);
pub(super) const CLASS: RunnerClass =
    RunnerClass { kind: Kind::HttpServer, is_admitted: false, leaves_message: false, start };

struct HttpServer {
    context: Context,
    server: Arc<dyn Server>,
    /// Its address, where it has one.
    door: Option<AttachedAddress>,
    last_words: Option<LastWords>,
    _listener: Option<Task>,
}

fn start(context: Context, made: &mut Made) -> Result<Box<dyn Runner>, Refused> {
    let refused = |message: String| ("RunContainerError", message);
    let container = context.container.get();
    let server = made.container.serve().map_err(|error| refused(error.to_string()))?;
    if context.attempt == 0 && context.class == Class::Main && settings::of_job(&context.view.look().pod.get()) {
        context.warn("NeverCompletes", settings::server_in_job(&container.name));
    }
    let port = settings::server_port(&container);
    let of = (context.index, context.attempt);
    let gate = ServerHandle::new(made.container.clone(), server.clone(), of, context.messages.clone());
    let (mut door, mut listener) = (None, None);
    if let Some(ip) = context.ip {
        match context.node.parts.network.attach(Listen::tcp(ip, port), gate.clone()) {
            Ok(attached) => door = Some(AttachedAddress::new(attached)),
            Err(taken) => return Ok(Box::new(Unbound::end(&context, made, &taken))),
        }
        if context.node.identity.host_pod_listeners {
            let (recorder, about) = (context.node.recorder.clone(), context.about());
            listener = Some(Task(tokio::spawn(listen(ip, port, gate.clone(), recorder, about))));
        }
    }
    // A probe that makes a request finds out by itself whether an instance can be made.
    let asks = |probe: &Option<Probe>| {
        let own = |get: &HTTPGetAction| get.host.as_deref().is_none_or(str::is_empty);
        probe.as_ref().is_some_and(|probe| probe.http_get.as_ref().is_some_and(own) || probe.grpc.is_some())
    };
    if !asks(&container.readiness_probe) && !asks(&container.startup_probe) {
        gate.look();
    }
    let last_words = Some(context.last_words(made));
    Ok(Box::new(HttpServer { context, server, door, last_words, _listener: listener }))
}

/// A server whose port another container of the pod has: it has ended like a process whose `bind` fails.
struct Unbound(#[expect(dead_code, reason = "ends with it")] Task);

impl Unbound {
    fn end(context: &Context, made: &mut Made, taken: &AddrInUse) -> Self {
        let (index, messages, last_words) = (context.index, context.messages.clone(), context.last_words(made));
        made.log.write(StdStream::Stderr, format!("{taken}\n").as_bytes());
        let message = Some(taken.to_string());
        let exited = CellEvent::Exited { attempt: context.attempt, code: 1, reason: "Error".into(), message };
        Self(Task(tokio::spawn(async move {
            let _ = tokio::task::spawn_blocking(move || last_words(true)).await;
            let _ = messages.send(happened(index, exited)).await;
        })))
    }
}

impl Runner for Unbound {
    fn stop(&mut self, _: bool, _: watch::Receiver<Instant>) -> Option<Task> {
        None
    }

    fn kill(&mut self) {}
}

impl Runner for HttpServer {
    fn stop(&mut self, restart: bool, ends: watch::Receiver<Instant>) -> Option<Task> {
        let last_words = self.last_words.take()?;
        let (context, server, door) = (self.context.clone(), self.server.clone(), self.door.clone());
        Some(Task(tokio::spawn(drain(context, server, door, restart, last_words, ends))))
    }

    fn kill(&mut self) {
        if let Some(door) = &self.door {
            door.close();
        }
        self.server.shut();
    }
}

/// Stops a server and tells its end.
async fn drain(
    context: Context,
    server: Arc<dyn Server>,
    door: Option<AttachedAddress>,
    restart: bool,
    last_words: LastWords,
    ends: watch::Receiver<Instant>,
) {
    let network = context.node.parts.network.clone();
    let close = || {
        if let Some(door) = &door {
            door.close();
        }
    };
    let drain = async {
        pre_stop(&context, &ends).await;
        if let Some(ip) = context.ip {
            let _ = tokio::time::timeout(ROUTED_MAX, network.until_unrouted(ip)).await;
            tokio::time::sleep(UNROUTED_FOR).await;
            close();
            let _ = context.messages.send(happened(context.index, CellEvent::Closed)).await;
        }
        server.drained().await;
    };
    let drained = tokio::select! {
        () = drain => true,
        () = over(ends.clone()) => false,
    };
    close();
    server.shut();
    let (code, reason) = match (drained, restart) {
        (true, false) => (0, "Completed"),
        (true, true) => (143, "Error"),
        (false, _) => (137, "Error"),
    };
    let message = tokio::task::spawn_blocking(move || last_words(code != 0)).await.ok().flatten();
    let exited = CellEvent::Exited { attempt: context.attempt, code, reason: reason.into(), message };
    let _ = context.messages.send(happened(context.index, exited)).await;
}
