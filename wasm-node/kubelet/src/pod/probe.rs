//! Runs one probe of a container, first after its delay and then once a period.

use std::time::Duration;

use jiff::Timestamp;
use machinery_env::Env;

use super::ask::{Asked, Asker};
use super::check::ProbeSpec;
use super::state::{CellEvent, ProbeKind, ProbeResult};
use super::worker::{Message, happened};
use crate::mailbox::Sender;

/// Whose probe it is.
pub(crate) struct Probed {
    pub(crate) container: usize,
    pub(crate) attempt: u32,
    pub(crate) kind: ProbeKind,
    /// When that start was.
    pub(crate) since: Timestamp,
}

/// Probes until it is dropped; a startup probe ends with its success.
pub(crate) async fn run(env: Env, asker: Asker, spec: ProbeSpec, of: Probed, messages: Sender<Message>) {
    let Probed { container, attempt, kind, since } = of;
    let run_for = Duration::try_from(env.now().duration_since(since)).unwrap_or_default();
    let delay = spec.initial_delay.saturating_sub(run_for);
    // A timer of no time ends with the next millisecond or the one after: a pod would become ready that much later.
    if !delay.is_zero() {
        tokio::time::sleep(delay).await;
    }
    let mut ticks = tokio::time::interval_at(tokio::time::Instant::now() + spec.period, spec.period);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let (mut first, mut started) = (true, false);
    loop {
        if !std::mem::take(&mut first) {
            ticks.tick().await;
        }
        let result = match asker.probe(&spec.check, spec.timeout).await {
            Asked::Result(result) => result,
            // As upstream where a probe cannot be made: it counts neither way.
            Asked::NoRoom => {
                tracing::debug!(container, ?kind, "a probe found no memory beside the live instances");
                continue;
            }
        };
        started = started || matches!(result, ProbeResult::Passed | ProbeResult::Warned(_));
        let probed = CellEvent::Probed { attempt, kind, result };
        if messages.send(happened(container, probed)).await.is_err() || kind == ProbeKind::Startup && started {
            return;
        }
    }
}
