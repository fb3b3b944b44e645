//! Detects nodes without heartbeats, by this process's own clock alone.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Node;
use machinery_api::ObjectKey;
use machinery_client::{Context, Kind, ObjectCache};

use super::condition;
use crate::Settings;

/// The namespace of nodes' Leases.
pub(super) const LEASES: &str = "kube-node-lease";

/// The last heartbeat by this process's own monotonic clock (upstream's `probeTimestamp`): the later of the receipt of
/// the Lease and the heartbeat in the node's status. Heartbeats from before the process count from its start, as it
/// can't know about silence before. The node's clock and suspends of the machine don't matter.
fn last_heartbeat(view: &ObjectCache, node: &Node, context: &Context<'_, Settings>) -> Option<Duration> {
    let name = node.metadata.name.as_deref().unwrap_or_default();
    let renewed = view.seen_at(&Kind::of::<Lease>(), &ObjectKey::new(LEASES, name));
    let posted = condition(node, "Ready").and_then(|ready| ready.last_heartbeat_time.as_ref()).map(|at| {
        let age = Duration::try_from(context.now.duration_since(at.0)).unwrap_or_default();
        // The newest version of the Node may be another client's write: the heartbeat is not later than that.
        let seen = view.seen_at(&Kind::of::<Node>(), &ObjectKey::cluster(name)).unwrap_or_default();
        context.elapsed.saturating_sub(age).min(seen)
    });
    renewed.max(posted)
}

/// The grace period of a node. With fast failover a Lease shorter than the usual grace period counts by its own
/// duration: three of its four renewals are then missing.
fn grace(view: &ObjectCache, node: &Node, settings: &Settings) -> Duration {
    let usual = settings.options.node_lifecycle.monitor_grace;
    if !settings.options.node_lifecycle.fast_failover {
        return usual;
    }
    let name = node.metadata.name.as_deref().unwrap_or_default();
    let lease = view.get::<Lease>(&ObjectKey::new(LEASES, name)).and_then(|lease| lease.spec.as_ref());
    let seconds = lease.and_then(|spec| spec.lease_duration_seconds).and_then(|seconds| u64::try_from(seconds).ok());
    let own = seconds.filter(|seconds| *seconds > 0).map(Duration::from_secs);
    own.filter(|own| *own < usual).map_or(usual, |own| own * 3 / 4)
}

/// The time until the node counts as silent; none if it does already.
pub(super) fn time_until_silent(view: &ObjectCache, node: &Node, context: &Context<'_, Settings>) -> Option<Duration> {
    let wait = match last_heartbeat(view, node, context) {
        Some(heard) => (heard + grace(view, node, context.settings)).saturating_sub(context.elapsed),
        None => {
            let created = node.metadata.creation_timestamp.as_ref().map_or(context.now, |at| at.0);
            let age = Duration::try_from(context.now.duration_since(created)).unwrap_or_default();
            context.settings.options.node_lifecycle.startup_grace.saturating_sub(age)
        }
    };
    (!wait.is_zero()).then_some(wait)
}

/// Whether two thirds of the grace period have passed without a heartbeat. Four heartbeats fit a grace period, so a
/// live node is never late. Of nodes that fail at once, all are late before the first reaches its grace period.
pub(super) fn is_late(view: &ObjectCache, node: &Node, context: &Context<'_, Settings>) -> bool {
    let Some(heard) = last_heartbeat(view, node, context) else { return false };
    context.elapsed.saturating_sub(heard) > grace(view, node, context.settings) * 2 / 3
}
