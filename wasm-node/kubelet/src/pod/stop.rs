//! The `preStop` hook of a container, and the end of its grace period (contract.md §4).

use tokio::sync::watch;
use tokio::time::Instant;

use super::check::HookSpec;
use super::runner::RunContext;
use super::state::ContainerEvent;
use super::worker::container_message;

/// Runs the container's `preStop` hook, if it has one and time remains, at most until `ends`. Returns whether it has one.
pub(crate) async fn pre_stop(context: &RunContext, ends: &watch::Receiver<Instant>) -> bool {
    let (Some(hook), Some(handlers)) = (HookSpec::pre_stop(&context.container.get()), context.handlers()) else {
        return false;
    };
    if *ends.borrow() <= Instant::now() {
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
        () = grace_period_end(ends.clone()) => {
            // As upstream, where a hook fails when the container is killed, unless it only sleeps.
            if !matches!(hook, HookSpec::Sleep(_)) {
                send(ContainerEvent::HookFailed).await;
            }
        }
    }
    true
}

/// Resolves at the end of the grace period, which may change.
pub(crate) async fn grace_period_end(mut ends: watch::Receiver<Instant>) {
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
