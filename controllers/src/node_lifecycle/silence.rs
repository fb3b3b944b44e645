//! Whether a node is heard of, by this process's own clock alone.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Node;
use machinery_api::ObjectKey;
use machinery_client::{Context, Kind, ObjectCache};

use super::condition;
use crate::Settings;

/// Where nodes' Leases are.
pub(super) const LEASES: &str = "kube-node-lease";

/// When the node was last heard of, by this process's own monotonic clock (upstream's `probeTimestamp`): when its Lease
/// was received, or the heartbeat in its status, whichever was later. What is older than the process counts from its
/// start: whoever was not there to listen cannot say that a node was silent. Neither a node's clock nor a suspended
/// machine takes part.
fn heard_of(view: &ObjectCache, node: &Node, context: &Context<'_, Settings>) -> Option<Duration> {
    let name = node.metadata.name.as_deref().unwrap_or_default();
    let renewed = view.seen_at(&Kind::of::<Lease>(), &ObjectKey::new(LEASES, name));
    let posted = condition(node, "Ready").and_then(|ready| ready.last_heartbeat_time.as_ref()).map(|at| {
        let age = Duration::try_from(context.now.duration_since(at.0)).unwrap_or_default();
        // The newest version of the Node may be another one's work: its heartbeat came no later than that.
        let seen = view.seen_at(&Kind::of::<Node>(), &ObjectKey::cluster(name)).unwrap_or_default();
        context.elapsed.saturating_sub(age).min(seen)
    });
    renewed.max(posted)
}

/// For how long a node may be silent. With fast failover a Lease that is shorter than the usual grace counts by what it
/// says itself: three of the four renewals that it is made for have not come.
fn grace(view: &ObjectCache, node: &Node, settings: &Settings) -> Duration {
    let usual = settings.node_lifecycle.monitor_grace;
    if !settings.node_lifecycle.fast_failover {
        return usual;
    }
    let name = node.metadata.name.as_deref().unwrap_or_default();
    let lease = view.get::<Lease>(&ObjectKey::new(LEASES, name)).and_then(|lease| lease.spec.as_ref());
    let seconds = lease.and_then(|spec| spec.lease_duration_seconds).and_then(|seconds| u64::try_from(seconds).ok());
    let own = seconds.filter(|seconds| *seconds > 0).map(Duration::from_secs);
    own.filter(|own| *own < usual).map_or(usual, |own| own * 3 / 4)
}

/// How long until the node counts as silent; none where it does already.
pub(super) fn silent_in(view: &ObjectCache, node: &Node, context: &Context<'_, Settings>) -> Option<Duration> {
    let wait = match heard_of(view, node, context) {
        Some(heard) => (heard + grace(view, node, context.settings)).saturating_sub(context.elapsed),
        None => {
            let created = node.metadata.creation_timestamp.as_ref().map_or(context.now, |at| at.0);
            let age = Duration::try_from(context.now.duration_since(created)).unwrap_or_default();
            context.settings.node_lifecycle.startup_grace.saturating_sub(age)
        }
    };
    (!wait.is_zero()).then_some(wait)
}

/// Whether two thirds of the grace are over without a word: heartbeats come four times in a grace, so one that is heard
/// of is never late. Of nodes that went silent at one moment the first reaches its grace when the others are late already.
pub(super) fn is_late(view: &ObjectCache, node: &Node, context: &Context<'_, Settings>) -> bool {
    let Some(heard) = heard_of(view, node, context) else { return false };
    context.elapsed.saturating_sub(heard) > grace(view, node, context.settings) * 2 / 3
}
