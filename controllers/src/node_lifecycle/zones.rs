//! Eviction of pods from unready nodes: one decision for all nodes, by zone, at a rate that depends on the share of
//! unready nodes. If all nodes are down, the control plane is the likelier cause, and nothing is evicted.
//!
//! No memory: the time of a zone's last eviction is in the taint.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Taint};
use machinery_client::{Action, Context, ObjectCache, Plan, value_of};
use serde_json::json;

use super::{condition, heartbeat, taints};
use crate::Settings;

/// A node with this label doesn't count for its zone.
const EXCLUDED: &str = "node.kubernetes.io/exclude-disruption";
/// Fewer unready nodes than this are no disruption of a zone, whatever their share.
const DISRUPTED_MIN: usize = 3;
/// The interval of passes while an eviction is held back, with fast failover.
const FAST_PERIOD: Duration = Duration::from_millis(500);

/// Region and zone; both empty if the node has neither.
type Zone<'a> = (&'a str, &'a str);

pub(super) fn zone(node: &Node) -> Zone<'_> {
    let label = |key: &str| node.metadata.labels.as_ref().and_then(|labels| labels.get(key)).map(String::as_str);
    let either = |old: &str, new: &str| label(old).or_else(|| label(new)).unwrap_or_default();
    (
        either("failure-domain.beta.kubernetes.io/region", "topology.kubernetes.io/region"),
        either("failure-domain.beta.kubernetes.io/zone", "topology.kubernetes.io/zone"),
    )
}

pub(super) fn is_excluded(node: &Node) -> bool {
    node.metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(EXCLUDED))
}

/// The state of a zone (upstream's names).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ZoneState {
    Normal,
    PartialDisruption,
    FullDisruption,
}

/// The state of a zone by its total and unready nodes.
pub(super) fn state(nodes: usize, down: usize, threshold: f32) -> ZoneState {
    if nodes > 0 && down == nodes {
        ZoneState::FullDisruption
    } else if down >= DISRUPTED_MIN && share(down, nodes) >= threshold {
        ZoneState::PartialDisruption
    } else {
        ZoneState::Normal
    }
}

#[expect(clippy::cast_precision_loss, reason = "there are no 16 million nodes")]
fn share(part: usize, whole: usize) -> f32 {
    part as f32 / whole as f32
}

/// The nodes of one zone.
#[derive(Default)]
struct ZoneNodes<'a> {
    /// Nodes that count.
    nodes: usize,
    /// Of these, nodes without a Ready condition that is true.
    down: usize,
    /// The same, with those that are late and soon unready.
    down_soon: usize,
    /// Nodes to evict, with the time since which they are down.
    pending: Vec<(Option<Timestamp>, &'a Node)>,
    /// The times of the eviction taints.
    given_up: Vec<Timestamp>,
}

fn survey<'a>(view: &'a ObjectCache, context: &Context<'_, Settings>) -> BTreeMap<Zone<'a>, ZoneNodes<'a>> {
    let mut zones: BTreeMap<Zone<'a>, ZoneNodes<'a>> = BTreeMap::new();
    for node in view.all::<Node>() {
        let found = zones.entry(zone(node)).or_default();
        let ready = condition(node, "Ready");
        if !is_excluded(node) {
            let down = ready.is_none_or(|ready| ready.status != "True");
            found.nodes += 1;
            found.down += usize::from(down);
            found.down_soon += usize::from(down || heartbeat::is_late(view, node, context));
        }
        let given_up = taints::evicting(node).filter_map(|taint| taint.time_added.as_ref()).map(|at| at.0).max();
        let tainted = taints::evicting(node).next().is_some();
        // A time in the future means that the clock was set back: it is ignored.
        found.given_up.extend(given_up.filter(|at| *at <= context.now));
        let meant = taints::eviction_taint(node).filter(|key| !tainted && taints::has_no_schedule(node, key));
        if meant.is_some() && node.metadata.deletion_timestamp.is_none() {
            let since = ready.and_then(|ready| ready.last_transition_time.as_ref()).map(|at| at.0);
            found.pending.push((since, node));
        }
    }
    zones
}

/// The number of nodes that a zone may evict now, and the time to the next; `rate` is in nodes per second.
fn allowance(rate: f32, given_up: &[Timestamp], now: Timestamp) -> (usize, Option<Duration>) {
    if rate <= 0.0 {
        return (0, None);
    }
    // Taint times are whole seconds: rates above 1 are counted per second.
    let (most, period) = if rate < 1.0 {
        (1, Duration::from_secs_f32((1.0 / rate).min(1e9)))
    } else {
        (whole(rate), Duration::from_secs(1))
    };
    let age = |at: &Timestamp| Duration::try_from(now.duration_since(*at)).unwrap_or_default();
    let recent: Vec<Duration> = given_up.iter().map(age).filter(|age| *age < period).collect();
    let wait = recent.iter().max().map_or(period, |oldest| period.saturating_sub(*oldest));
    (most.saturating_sub(recent.len()), Some(wait))
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a cast from f32 saturates; it is above 1")]
fn whole(rate: f32) -> usize {
    rate as usize
}

fn write(node: &Node, taints: &[Taint]) -> Action {
    let taints = if taints.is_empty() { json!(null) } else { value_of(&taints) };
    let metadata = json!({"uid": node.metadata.uid, "resourceVersion": node.metadata.resource_version});
    Action::patch(node, json!({"spec": {"taints": taints}, "metadata": metadata}))
}

/// The decision over all nodes.
pub(super) fn reconcile(view: &ObjectCache, context: &Context<'_, Settings>) -> Plan {
    let settings = &context.settings.options.node_lifecycle;
    let zones = survey(view, context);
    let counted = || zones.values().filter(|found| found.nodes > 0);
    let all_down = |down: fn(&ZoneNodes<'_>) -> usize| {
        counted().next().is_some() && counted().all(|found| down(found) == found.nodes)
    };
    let mut plan = Plan::nothing();
    if all_down(|found| found.down) {
        let tainted = view.all::<Node>().filter(|node| taints::evicting(node).next().is_some());
        plan.actions = tainted.map(|node| write(node, &taints::without_eviction(node))).collect();
    }
    let stopped = all_down(|found| found.down_soon);
    let look = if settings.fast_failover { FAST_PERIOD } else { settings.monitor_period };
    for mut found in zones.into_values().filter(|found| !found.pending.is_empty()) {
        let rate = match state(found.nodes, found.down_soon, settings.unhealthy_zone_threshold) {
            _ if stopped => 0.0,
            ZoneState::Normal | ZoneState::FullDisruption => settings.eviction_rate,
            ZoneState::PartialDisruption if found.nodes > settings.large_cluster_size_threshold as usize => {
                settings.secondary_eviction_rate
            }
            ZoneState::PartialDisruption => 0.0,
        };
        let (most, wait) = allowance(rate, &found.given_up, context.now);
        found.pending.sort_by_key(|(since, node)| (*since, node.metadata.name.clone()));
        for (_, node) in found.pending.iter().take(most) {
            let key = taints::eviction_taint(node).unwrap_or(taints::UNREACHABLE);
            plan.push(write(node, &taints::with_eviction(node, key, context.now)));
        }
        if found.pending.len() > most {
            // The cause of the hold may end before the rate allows the next node.
            plan.requeue_after(context.now, wait.map_or(look, |wait| wait.min(look)));
        }
    }
    plan
}
