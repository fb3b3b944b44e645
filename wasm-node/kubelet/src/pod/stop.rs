//! The `preStop` hook of a container, and the end of its grace period (docs/contract.md §4).

use machinery_env::{Deadline, Env};
use tokio::sync::watch;

use super::lifecycle::check::HookSpec;
use super::lifecycle::state::ContainerEvent;
use super::runner::RunContext;
use super::worker::container_message;

/// Runs the container's `preStop` hook, if it has one and time remains, at most until `ends`. Returns whether it has one.
pub(crate) async fn pre_stop(context: &RunContext, ends: &watch::Receiver<Deadline>) -> bool {
    let (Some(hook), Some(handlers)) = (HookSpec::pre_stop(&context.container.get()), context.handlers()) else {
        return false;
    };
    if ends.borrow().passed(&context.node.parts.env) {
        return true;
    }
    let send = async |event| {
        let _ = context.messages.send(container_message(context.index, event)).await;
    };
    tokio::select! {
        outcome = handlers.hook(&hook) => {
            if let Some(host) = outcome.fell_back {
                send(ContainerEvent::HookFellBack { host }).await;
            }
            if let Some(error) = outcome.failure {
                tracing::debug!(%error, "a preStop hook failed");
                send(ContainerEvent::HookFailed).await;
            }
        }
        () = grace_period_end(&context.node.parts.env, ends.clone()) => {
            // As upstream, where a hook fails when the container is killed, unless it only sleeps.
            if !matches!(hook, HookSpec::Sleep(_)) {
                send(ContainerEvent::HookFailed).await;
            }
        }
    }
    true
}

/// Resolves at the end of the grace period, which may change.
pub(crate) async fn grace_period_end(env: &Env, mut ends: watch::Receiver<Deadline>) {
    loop {
        let end = *ends.borrow_and_update();
        tokio::select! {
            () = env.sleep_until(end) => return,
            changed = ends.changed() => if changed.is_err() {
                env.sleep_until(end).await;
                return;
            },
        }
    }
}
