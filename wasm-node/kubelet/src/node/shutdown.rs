//! Graceful node shutdown (KEP-2000): pods end in order of priority, each with its grace period and hooks. Without a
//! period it is off, as upstream: guests end with the process, and the next start resumes their pods.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;

use super::eviction::CRITICAL_PRIORITY;
use crate::pod::admit;
use crate::pod::shared::NodeContext;
use crate::pod::worker::PodView;

/// The poll interval for ended pods.
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// The time for the final status writes of a group, beyond its grace period.
const STATUS_WRITE_MAX: Duration = Duration::from_secs(2);

fn is_critical(pod: &Pod) -> bool {
    pod.spec.as_ref().and_then(|spec| spec.priority).unwrap_or(0) >= CRITICAL_PRIORITY
}

/// A pod's grace period within its group's period (upstream's rule).
fn grace_of(pod: &Pod, period: Duration) -> Duration {
    let own = pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds);
    own.and_then(|seconds| u64::try_from(seconds).ok()).map_or(period, |own| period.min(Duration::from_secs(own)))
}

/// Waits for the node's shutdown, and ends its pods.
pub(super) async fn run(node: Arc<NodeContext>) {
    let shutdown = node.shutdown.clone();
    tokio::select! {
        () = node.stop.cancelled() => return,
        () = shutdown.started() => {}
    }
    tracing::info!(node = node.identity.name, "the node shuts down: its pods end");
    for (critical, period) in shutdown.grace.groups() {
        let pods: Vec<Arc<PodView>> = node.pods.all();
        let pods =
            pods.into_iter().filter(|view| is_critical(&view.snapshot().pod.get()) == critical && !has_ended(view));
        let mut pods: Vec<_> = pods.collect();
        for view in &pods {
            view.shut_down(grace_of(&view.snapshot().pod.get(), period));
        }
        let until = node.parts.env.elapsed() + period + STATUS_WRITE_MAX;
        loop {
            // Ended pods are removed, as each check of a compressed pod decompresses it.
            pods.retain(|view| !has_ended(view));
            if pods.is_empty() || node.parts.env.elapsed() >= until {
                break;
            }
            node.parts.env.sleep(POLL_INTERVAL).await;
        }
    }
    shutdown.end();
}

/// Whether a pod has ended according to the API.
fn has_ended(view: &Arc<PodView>) -> bool {
    admit::has_ended(&view.snapshot().pod.get())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn pods_take_no_more_than_they_need() {
        let second = Duration::from_secs;
        let pod = |spec: serde_json::Value| -> Pod { serde_json::from_value(json!({"spec": spec})).unwrap() };
        let plain = pod(json!({"containers": [], "terminationGracePeriodSeconds": 5, "priority": 7}));
        assert_eq!((grace_of(&plain, second(20)), grace_of(&plain, second(3))), (second(5), second(3)));
        let critical = pod(json!({"containers": [], "priority": 2_000_001_000}));
        assert_eq!(
            (is_critical(&plain), is_critical(&critical), grace_of(&critical, second(9))),
            (false, true, second(9))
        );
    }
}
