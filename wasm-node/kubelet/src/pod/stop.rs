//! What comes before a container's stop, and the end of its grace period (contract.md §4).

use std::net::IpAddr;
use std::time::Duration;

use k8s_openapi::api::core::v1::Container;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::pod_http::call;
use super::settings::{Get, get};
use super::shared::Shared;
use super::state::CellEvent;
use super::worker::{Message, happened};

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

    pub(crate) async fn run(
        self,
        node: &Shared,
        ip: Option<IpAddr>,
        ends: &watch::Receiver<Instant>,
        (container, messages): (usize, &mpsc::Sender<Message>),
    ) {
        let left = ends.borrow().saturating_duration_since(Instant::now());
        match (self, ip) {
            (Self::None, _) | (Self::Get(_), None) => {}
            (Self::Sleep(sleep), _) => tokio::time::sleep(sleep.min(left)).await,
            (Self::Get(get), Some(ip)) => {
                if let Err(error) = call(&node.parts.network, ip, &get, left).await {
                    tracing::debug!(%error, "a preStop hook failed");
                    let _ = messages.send(happened(container, CellEvent::HookFailed)).await;
                }
            }
        }
    }
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
