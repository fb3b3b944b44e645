//! Graceful shutdown of a node (KEP-2000): its pods end in order of their importance, each with its grace and its hooks, before
//! the process does. Off where no time is given for it, as upstream: then guests end with the process, and the next start takes them up.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;

use super::eviction::CRITICAL_PRIORITY;
use crate::pod::admit;
use crate::pod::shared::Shared;
use crate::pod::worker::PodView;

/// How often is looked whether all have ended.
const LOOK: Duration = Duration::from_millis(50);
/// What the API may take to hear of the last of a group, beyond their time.
const TOLD: Duration = Duration::from_secs(2);

fn is_critical(pod: &Pod) -> bool {
    pod.spec.as_ref().and_then(|spec| spec.priority).unwrap_or(0) >= CRITICAL_PRIORITY
}

/// What a pod gets of its group's time, where it needs less itself (upstream's rule).
fn grace_of(pod: &Pod, period: Duration) -> Duration {
    let own = pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds);
    own.and_then(|seconds| u64::try_from(seconds).ok()).map_or(period, |own| period.min(Duration::from_secs(own)))
}

/// Waits for the end of the node, and ends its pods then.
pub(super) async fn run(node: Arc<Shared>) {
    let shutdown = node.shutdown.clone();
    tokio::select! {
        () = node.stop.cancelled() => return,
        () = shutdown.begun() => {}
    }
    tracing::info!(node = node.identity.name, "the node shuts down: its pods end");
    for (critical, period) in shutdown.grace.groups() {
        let pods: Vec<Arc<PodView>> = node.pods.all();
        let pods = pods.into_iter().filter(|view| is_critical(&view.look().pod.get()) == critical && !told(view));
        let mut pods: Vec<_> = pods.collect();
        for view in &pods {
            view.shut_down(grace_of(&view.look().pod.get(), period));
        }
        let until = node.parts.env.elapsed() + period + TOLD;
        loop {
            // Who has ended is not looked at again: a pod that rests is read at each look.
            pods.retain(|view| !told(view));
            if pods.is_empty() || node.parts.env.elapsed() >= until {
                break;
            }
            tokio::time::sleep(LOOK).await;
        }
    }
    shutdown.end();
}

/// Whether the API shows that a pod has ended.
fn told(view: &Arc<PodView>) -> bool {
    admit::ended(&view.look().pod.get())
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
