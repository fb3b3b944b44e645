//! From which nodes pods are evicted: one decision for all nodes, by zones, each at a rate that follows from how many of
//! its nodes are down. Where all are, the fault is likelier ours than theirs, and nobody is evicted.
//!
//! There is no memory: when the last node of a zone was given up says the time on its taint.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Taint};
use machinery_client::{Action, Context, ObjectCache, Plan, value_of};
use serde_json::json;

use super::{condition, silence, taints};
use crate::Settings;

/// A node with this label says nothing about its zone.
const EXCLUDED: &str = "node.kubernetes.io/exclude-disruption";
/// Fewer nodes that are down are no disruption of a zone, whatever their share.
const DISRUPTED_MIN: usize = 3;
/// How often it is looked whether a node that was held back may go, with fast failover.
const LOOK_FAST: Duration = Duration::from_millis(500);

/// Region and zone; both empty where the node has neither.
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

/// How a zone is (upstream's names).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Normal,
    PartialDisruption,
    FullDisruption,
}

/// The state of a zone with so many nodes, of which so many are down.
pub(super) fn state(nodes: usize, down: usize, threshold: f32) -> State {
    if nodes > 0 && down == nodes {
        State::FullDisruption
    } else if down >= DISRUPTED_MIN && share(down, nodes) >= threshold {
        State::PartialDisruption
    } else {
        State::Normal
    }
}

#[expect(clippy::cast_precision_loss, reason = "there are no 16 million nodes")]
fn share(part: usize, whole: usize) -> f32 {
    part as f32 / whole as f32
}

/// What is known of one zone.
#[derive(Default)]
struct Found<'a> {
    /// Nodes that count.
    nodes: usize,
    /// Of these, those that say that they are not ready, or of which that is said.
    down: usize,
    /// The same, with those that have been silent for so long that they will be soon.
    down_soon: usize,
    /// Nodes from which pods should be evicted and are not yet, with since when they are down.
    pending: Vec<(Option<Timestamp>, &'a Node)>,
    /// When nodes were given up.
    given_up: Vec<Timestamp>,
}

fn survey<'a>(view: &'a ObjectCache, context: &Context<'_, Settings>) -> BTreeMap<Zone<'a>, Found<'a>> {
    let mut zones: BTreeMap<Zone<'a>, Found<'a>> = BTreeMap::new();
    for node in view.all::<Node>() {
        let found = zones.entry(zone(node)).or_default();
        let ready = condition(node, "Ready");
        if !is_excluded(node) {
            let down = ready.is_none_or(|ready| ready.status != "True");
            found.nodes += 1;
            found.down += usize::from(down);
            found.down_soon += usize::from(down || silence::is_late(view, node, context));
        }
        let given_up = taints::evicting(node).filter_map(|taint| taint.time_added.as_ref()).map(|at| at.0).max();
        let tainted = taints::evicting(node).next().is_some();
        // A clock that was set back is no reason to wait for it.
        found.given_up.extend(given_up.filter(|at| *at <= context.now));
        let meant = taints::meant_by(node).filter(|key| !tainted && taints::keeps_away(node, key));
        if meant.is_some() && node.metadata.deletion_timestamp.is_none() {
            let since = ready.and_then(|ready| ready.last_transition_time.as_ref()).map(|at| at.0);
            found.pending.push((since, node));
        }
    }
    zones
}

/// How many nodes a zone may give up at this moment, and when to ask again; the rate is in nodes a second.
fn allowance(rate: f32, given_up: &[Timestamp], now: Timestamp) -> (usize, Option<Duration>) {
    if rate <= 0.0 {
        return (0, None);
    }
    // Times on taints are in whole seconds: a rate above one a second is counted by the second.
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

/// See the module.
pub(super) fn reconcile(view: &ObjectCache, context: &Context<'_, Settings>) -> Plan {
    let settings = &context.settings.node_lifecycle;
    let zones = survey(view, context);
    let counted = || zones.values().filter(|found| found.nodes > 0);
    let all_down =
        |down: fn(&Found<'_>) -> usize| counted().next().is_some() && counted().all(|found| down(found) == found.nodes);
    let mut plan = Plan::nothing();
    if all_down(|found| found.down) {
        let tainted = view.all::<Node>().filter(|node| taints::evicting(node).next().is_some());
        plan.actions = tainted.map(|node| write(node, &taints::without_eviction(node))).collect();
    }
    let stopped = all_down(|found| found.down_soon);
    let look = if settings.fast_failover { LOOK_FAST } else { settings.monitor_period };
    for mut found in zones.into_values().filter(|found| !found.pending.is_empty()) {
        let rate = match state(found.nodes, found.down_soon, settings.unhealthy_zone_threshold) {
            _ if stopped => 0.0,
            State::Normal | State::FullDisruption => settings.eviction_rate,
            State::PartialDisruption if found.nodes > settings.large_cluster_size_threshold => {
                settings.secondary_eviction_rate
            }
            State::PartialDisruption => 0.0,
        };
        let (most, wait) = allowance(rate, &found.given_up, context.now);
        found.pending.sort_by_key(|(since, node)| (*since, node.metadata.name.clone()));
        for (_, node) in found.pending.iter().take(most) {
            let key = taints::meant_by(node).unwrap_or(taints::UNREACHABLE);
            plan.push(write(node, &taints::with_eviction(node, key, context.now)));
        }
        if found.pending.len() > most {
            // What holds a node back may end sooner than its turn comes.
            plan.requeue_after(context.now, wait.map_or(look, |wait| wait.min(look)));
        }
    }
    plan
}
