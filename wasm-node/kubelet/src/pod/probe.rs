//! Runs one probe of a container, first after its delay and then once a period.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::mpsc;

use super::pod_http::{Asked, ask};
use super::settings::ProbeSpec;
use super::shared::Shared;
use super::state::{CellEvent, ProbeKind};
use super::worker::{Message, happened};

/// Whose probe it is.
pub(crate) struct Probed {
    pub(crate) container: usize,
    pub(crate) attempt: u32,
    pub(crate) kind: ProbeKind,
    /// When that start was.
    pub(crate) since: Timestamp,
}

/// Probes until it is dropped; a startup probe ends with its success.
pub(crate) async fn run(node: Arc<Shared>, spec: ProbeSpec, of: Probed, ip: IpAddr, messages: mpsc::Sender<Message>) {
    let Probed { container, attempt, kind, since } = of;
    let run_for = Duration::try_from(node.parts.env.now().duration_since(since)).unwrap_or_default();
    tokio::time::sleep(spec.initial_delay.saturating_sub(run_for)).await;
    let mut ticks = tokio::time::interval(spec.period);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut started = false;
    loop {
        ticks.tick().await;
        let failure = match ask(&node.parts.network, ip, &spec.check, spec.timeout).await {
            Asked::Passed => None,
            Asked::Failed(why) => Some(why),
            // As upstream where a probe cannot be made: it counts neither way.
            Asked::NoRoom => {
                tracing::debug!(%ip, ?kind, "a probe found no memory beside the live instances");
                continue;
            }
        };
        started = started || failure.is_none();
        let probed = CellEvent::Probed { attempt, kind, failure };
        if messages.send(happened(container, probed)).await.is_err() || kind == ProbeKind::Startup && started {
            return;
        }
    }
}
