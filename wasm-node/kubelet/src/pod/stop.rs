//! What comes before a container's stop, and the end of its grace period (contract.md §4).

use tokio::sync::watch;
use tokio::time::Instant;

use super::check::HookSpec;
use super::runner::Context;
use super::state::CellEvent;
use super::worker::happened;

/// Calls the container's `preStop` hook, where it has one and there is any time for it, no longer than to `ends`. Whether there was one.
pub(crate) async fn pre_stop(context: &Context, ends: &watch::Receiver<Instant>) -> bool {
    let (Some(hook), Some(asker)) = (HookSpec::pre_stop(&context.container.get()), context.asker()) else {
        return false;
    };
    if *ends.borrow() <= Instant::now() {
        return true;
    }
    let tell = async |event| {
        let _ = context.messages.send(happened(context.index, event)).await;
    };
    tokio::select! {
        hooked = asker.hook(&hook) => {
            if let Some(host) = hooked.fell_back {
                tell(CellEvent::HookFellBack { host }).await;
            }
            if let Some(error) = hooked.failure {
                tracing::debug!(%error, "a preStop hook failed");
                tell(CellEvent::HookFailed).await;
            }
        }
        () = over(ends.clone()) => {
            // As upstream, whose hook fails when the container is killed, unless it only waits.
            if !matches!(hook, HookSpec::Sleep(_)) {
                tell(CellEvent::HookFailed).await;
            }
        }
    }
    true
}

/// Resolves at the end of the grace period, also where that is moved.
pub(crate) async fn over(mut ends: watch::Receiver<Instant>) {
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
