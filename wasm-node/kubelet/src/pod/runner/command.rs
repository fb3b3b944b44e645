//! The runner of commands: runs the module once, sends the stop signal, and kills it at the end of the grace period.

use std::net::SocketAddr;
use std::time::Duration;

use machinery_env::Deadline;
use machinery_serve::net::Protocol;
use runtime_api::{Kind, StopSignal};
use tokio::sync::{oneshot, watch};

use super::{RunContext, Runner, RunnerClass};
use crate::pod::lifecycle::settings;
use crate::pod::lifecycle::state::ContainerEvent;
use crate::pod::listen::listen;
use crate::pod::not_listening;
use crate::pod::start::{CreatedContainer, StartError};
use crate::pod::stop::{grace_period_end, pre_stop};
use crate::pod::worker::{Task, container_message};

/// The minimum time of a command after its hook, even if the hook has used up the grace period (upstream's).
const AFTER_HOOK_MIN: Duration = Duration::from_secs(2);

pub(super) const CLASS: RunnerClass =
    RunnerClass { kind: Kind::Command, is_admitted: true, is_server: false, leaves_message: true, start };

struct Command {
    context: RunContext,
    /// Sends no signal, and kills the command at the end of its grace period.
    at_grace: bool,
    /// Sends the stop signal.
    signal: Option<oneshot::Sender<StopSignal>>,
    run: Option<Task>,
    /// Warns if it doesn't listen.
    warning: Option<Task>,
    _listeners: Vec<Task>,
}

fn start(context: RunContext, created: &mut CreatedContainer) -> Result<Box<dyn Runner>, StartError> {
    let (signal, stopped) = oneshot::channel();
    let (container, admitted) = (created.container.clone(), created.admitted.take());
    let (index, attempt, messages) = (context.index, context.attempt, context.messages.clone());
    let read_message = context.read_message(created);
    let run = Task(tokio::spawn(async move {
        let stop = async move {
            match stopped.await {
                Ok(signal) => signal,
                // No signal can come any more: the run ends when this task is dropped.
                Err(_) => std::future::pending().await,
            }
        };
        let admitted = match admitted {
            Some(admitted) => admitted,
            None => container.admit().await,
        };
        let outcome = container.run(admitted, Box::pin(stop)).await;
        let failed = outcome.exit_code != 0;
        let read = tokio::task::spawn_blocking(move || read_message(failed));
        let message = read.await.ok().flatten().or(outcome.message);
        let reason = outcome.reason.as_str().to_owned();
        let exited = ContainerEvent::Exited { attempt, code: outcome.exit_code, reason, message };
        let _ = messages.send(container_message(index, exited)).await;
    }));
    let at_grace = created.settings.stop_at_grace;
    let ports = settings::tcp_ports(&context.container.get(), &created.image.exposed_tcp_ports);
    let warning = not_listening::watch(&context, &created.image, &ports);
    let listeners = host_listeners(&context, &ports);
    Ok(Box::new(Command { context, at_grace, signal: Some(signal), run: Some(run), warning, _listeners: listeners }))
}

/// The host's listeners at the pod's address, if the node has such: for each port, whatever the command listens on then.
fn host_listeners(context: &RunContext, ports: &[u16]) -> Vec<Task> {
    let ip = context.ip.filter(|_| context.node.identity.host_pod_listeners);
    let ports = ip.into_iter().flat_map(|ip| ports.iter().map(move |port| SocketAddr::new(ip, *port)));
    let open = |at: SocketAddr| {
        let (parts, recorder) = (&context.node.parts, context.node.recorder.clone());
        let network = parts.network.clone();
        let answers = move || network.find_local(at.ip(), Protocol::Tcp, at.port());
        Task(tokio::spawn(listen(parts.env.clone(), at, answers, recorder, context.about())))
    };
    ports.map(open).collect()
}

impl Runner for Command {
    fn stop(&mut self, _: bool, ends: watch::Receiver<Deadline>) -> Option<Task> {
        let signal = self.signal.take()?;
        self.warning = None;
        Some(Task(tokio::spawn(interrupt(self.context.clone(), signal, self.at_grace, ends))))
    }

    fn kill(&mut self) {
        self.run = None;
    }
}

/// Stops a command; its run reports the exit.
async fn interrupt(
    context: RunContext,
    signal: oneshot::Sender<StopSignal>,
    at_grace: bool,
    ends: watch::Receiver<Deadline>,
) {
    let hook_ran = pre_stop(&context, &ends).await;
    if at_grace {
        let env = &context.node.parts.env;
        grace_period_end(env, ends).await;
        if hook_ran {
            env.sleep(AFTER_HOOK_MIN).await;
        }
        let _ = signal.send(StopSignal::Kill);
    } else {
        let _ = signal.send(StopSignal::Terminate);
    }
}
