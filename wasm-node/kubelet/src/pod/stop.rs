//! Stopping a container as contract.md §4 says: a server when nobody is sent to it any more and its requests are
//! answered, a command by interrupting it; both within the grace period.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Container;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use super::ask::call;
use super::serve::Door;
use super::settings::{Get, get};
use super::state::Event;
use super::worker::Message;
use crate::node::Shared;
use runtime_api::StopSignal;

/// How long a server goes on accepting after its endpoint has left every routing table of this process (contract.md §4).
/// Callers of this process need none of it: a request that comes too late is handed back and goes to the next endpoint
/// (`Refused::Gone`). Other processes (a client that resolved the pod's name, a proxy elsewhere) hear of the end by a watch
/// of their own, which takes well under a second.
const UNROUTED_FOR: Duration = Duration::from_secs(1);
/// How long a server waits to leave the routing tables. A Service that publishes addresses that are not ready names a
/// pod until it is gone, and its grace period should not pass for that.
const ROUTED_MAX: Duration = Duration::from_secs(10);
/// What a command gets after its hook even where the hook has used up the grace period (upstream's).
const AFTER_HOOK_MIN: Duration = Duration::from_secs(2);

/// What is done before stopping.
pub(crate) enum Hook {
    None,
    Sleep(Duration),
    Get(Get),
}

impl Hook {
    pub(crate) fn of(container: &Container) -> Self {
        let Some(hook) = container.lifecycle.as_ref().and_then(|lifecycle| lifecycle.pre_stop.as_ref()) else {
            return Self::None;
        };
        match (&hook.sleep, &hook.http_get) {
            (Some(sleep), _) => Self::Sleep(Duration::from_secs(u64::try_from(sleep.seconds).unwrap_or(0))),
            (None, Some(action)) => Self::Get(get(container, action)),
            (None, None) => Self::None,
        }
    }

    async fn run(
        self,
        node: &Shared,
        ip: Option<IpAddr>,
        ends: &watch::Receiver<Instant>,
        messages: &mpsc::Sender<Message>,
    ) {
        let left = ends.borrow().saturating_duration_since(Instant::now());
        match (self, ip) {
            (Self::None, _) | (Self::Get(_), None) => {}
            (Self::Sleep(sleep), _) => tokio::time::sleep(sleep.min(left)).await,
            (Self::Get(get), Some(ip)) => {
                if let Err(error) = call(&node.parts.network, ip, &get, left).await {
                    tracing::debug!(%error, "a preStop hook failed");
                    let _ = messages.send(Message::Event(Event::HookFailed)).await;
                }
            }
        }
    }
}

/// Resolves at the end of the grace period, also where that is moved.
async fn over(mut ends: watch::Receiver<Instant>) {
    loop {
        let end = *ends.borrow_and_update();
        tokio::select! {
            () = tokio::time::sleep_until(end) => return,
            changed = ends.changed() => if changed.is_err() {
                tokio::time::sleep_until(end).await;
                return;
            },
        }
    }
}

/// A server to stop.
pub(crate) struct Server {
    pub(crate) server: Arc<dyn runtime_api::Server>,
    /// Its address, where it has one.
    pub(crate) door: Option<Door>,
    /// To be started again: its end is a failure.
    pub(crate) restart: bool,
    /// What it leaves when it has ended; told whether it failed. Reads files.
    pub(crate) last_words: LastWords,
}

/// Reads a termination message.
pub(crate) type LastWords = Box<dyn FnOnce(bool) -> Option<String> + Send>;

/// Stops a server and tells its end.
pub(crate) async fn server(
    node: Arc<Shared>,
    what: Server,
    ip: Option<IpAddr>,
    hook: Hook,
    ends: watch::Receiver<Instant>,
    attempt: u32,
    messages: mpsc::Sender<Message>,
) {
    let network = node.parts.network.clone();
    let close = || {
        if let Some(door) = &what.door {
            door.close();
        }
    };
    let drain = async {
        hook.run(&node, ip, &ends, &messages).await;
        if let Some(ip) = ip {
            let _ = tokio::time::timeout(ROUTED_MAX, network.until_unrouted(ip)).await;
            tokio::time::sleep(UNROUTED_FOR).await;
            close();
            let _ = messages.send(Message::Event(Event::Closed)).await;
        }
        what.server.drained().await;
    };
    let drained = tokio::select! {
        () = drain => true,
        () = over(ends.clone()) => false,
    };
    close();
    what.server.shut();
    let (code, reason) = match (drained, what.restart) {
        (true, false) => (0, "Completed"),
        (true, true) => (143, "Error"),
        (false, _) => (137, "Error"),
    };
    let last_words = what.last_words;
    let message = tokio::task::spawn_blocking(move || last_words(code != 0)).await.ok().flatten();
    let exited = Event::Exited { attempt, code, reason: reason.into(), message };
    let _ = messages.send(Message::Event(exited)).await;
}

/// Interrupts a command; its run tells its end.
pub(crate) async fn command(
    node: Arc<Shared>,
    signal: oneshot::Sender<StopSignal>,
    at_grace: bool,
    ip: Option<IpAddr>,
    hook: Hook,
    ends: watch::Receiver<Instant>,
    messages: mpsc::Sender<Message>,
) {
    let hooked = !matches!(hook, Hook::None);
    hook.run(&node, ip, &ends, &messages).await;
    if at_grace {
        over(ends.clone()).await;
        if hooked {
            tokio::time::sleep(AFTER_HOOK_MIN).await;
        }
        let _ = signal.send(StopSignal::Kill);
    } else {
        let _ = signal.send(StopSignal::Terminate);
    }
}
