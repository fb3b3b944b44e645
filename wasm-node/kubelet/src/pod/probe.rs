//! Runs one probe of a container: first after its initial delay, then once per period.

use std::time::Duration;

use jiff::Timestamp;
use machinery_env::Env;

use super::handler::{HandlerRunner, ProbeOutcome};
use super::lifecycle::check::ProbeSpec;
use super::lifecycle::state::{ContainerEvent, ProbeKind, ProbeResult};
use super::worker::{Message, container_message};
use crate::mailbox::Sender;

/// The target of a probe.
pub(crate) struct ProbeTarget {
    pub(crate) container: usize,
    pub(crate) attempt: u32,
    pub(crate) kind: ProbeKind,
    /// The time of that start.
    pub(crate) since: Timestamp,
}

/// Probes until the future is dropped; a startup probe ends with its success.
pub(crate) async fn run(
    env: Env,
    handlers: HandlerRunner,
    spec: ProbeSpec,
    of: ProbeTarget,
    messages: Sender<Message>,
) {
    let ProbeTarget { container, attempt, kind, since } = of;
    let run_for = Duration::try_from(env.now().duration_since(since)).unwrap_or_default();
    let delay = spec.initial_delay.saturating_sub(run_for);
    // A zero-length timer fires up to 2 ms late, which would delay the pod's readiness.
    if !delay.is_zero() {
        env.sleep(delay).await;
    }
    let mut ticks = env.interval_at(env.deadline(spec.period), spec.period);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let (mut first, mut started) = (true, false);
    loop {
        if !std::mem::take(&mut first) {
            ticks.tick().await;
        }
        let result = match handlers.probe(&spec.check, spec.timeout).await {
            ProbeOutcome::Result(result) => result,
            // As upstream if a probe can't run: it counts as neither success nor failure.
            ProbeOutcome::NoCapacity => {
                tracing::debug!(container, ?kind, "a probe found no memory beside the live instances");
                continue;
            }
        };
        started = started || matches!(result, ProbeResult::Passed | ProbeResult::Warned(_));
        let probed = ContainerEvent::Probed { attempt, kind, result };
        if messages.send(container_message(container, probed)).await.is_err() || kind == ProbeKind::Startup && started {
            return;
        }
    }
}
