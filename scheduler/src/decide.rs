//! One scheduling decision: the node for a pod, or the reason why no node fits. Pure: the same snapshot, pod, start and
//! seed give the same decision.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::diagnosis::Diagnosis;
use crate::extender::{EXTENDER, Verdict, Verdicts};
use crate::node::NodeInfo;
use crate::plugins::default_preemption::Candidate;
use crate::plugins::{Cycle, Filters, Point, PostFilterResult, Profile};
use crate::pod::PodInfo;
use crate::refusal::{Reasons, Refusal};
use crate::snapshot::Snapshot;

/// With fewer nodes all are filtered. With more, filtering stops at enough feasible nodes, as upstream.
const FEASIBLE_NODES_MIN: usize = 100;
/// The minimum percentage of nodes to find feasible in a large cluster.
const FEASIBLE_PERCENT_MIN: usize = 5;

/// The result of a decision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// The pod is scheduled.
    Node {
        /// The node's name.
        name: String,
        /// The number of nodes that were filtered: the next decision starts after them.
        tried: usize,
    },
    /// No node fits.
    Unschedulable {
        /// Upstream's message.
        message: String,
        /// The plugins that rejected nodes; empty if there was no node.
        refused_by: BTreeSet<&'static str>,
        /// The change of the nomination.
        nomination: Nomination,
        /// The pods to preempt on the nominated node.
        victims: Vec<Arc<PodInfo>>,
        /// All candidate nodes with their victims, for extenders and WebAssembly plugins.
        candidates: Vec<Candidate>,
    },
}

/// The change of a pod's nomination (`status.nominatedNodeName`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Nomination {
    /// Unchanged.
    Keep,
    /// Cleared.
    Clear,
    /// Set to this node, whose victims are preempted.
    Node(String),
}

/// The number of feasible nodes to find among `nodes`: `percent`, or a percentage that shrinks as the cluster grows.
#[must_use]
pub fn num_feasible_nodes(nodes: usize, percent: Option<usize>) -> usize {
    if nodes < FEASIBLE_NODES_MIN {
        return nodes;
    }
    let adaptive = || 50usize.saturating_sub(nodes / 125).max(FEASIBLE_PERCENT_MIN);
    (nodes * percent.unwrap_or_else(adaptive) / 100).max(FEASIBLE_NODES_MIN)
}

/// Decides. `start` is the first node in the snapshot's order; `seed` chooses among nodes of equal score.
#[must_use]
pub fn decide(snapshot: &Snapshot, pod: &PodInfo, profile: &Profile, start: usize, seed: u64) -> Decision {
    decide_with(snapshot, pod, profile, start, seed, None)
}

/// The first half of a decision with extenders or WebAssembly plugins: the feasible nodes to pass to them. All feasible
/// nodes, if a plugin may reject some of them.
#[must_use]
pub fn feasible(snapshot: &Snapshot, pod: &PodInfo, profile: &Profile, start: usize) -> Vec<String> {
    let cycle = Cycle { pod, snapshot, args: &profile.args, seed: 0 };
    let Some(mut filters) = pod.requirements.unsupported.is_empty().then(|| Filters::of(cycle, profile).ok()).flatten()
    else {
        return Vec::new();
    };
    let nominated = cycle.nominated().and_then(|name| snapshot.node(name));
    let all = profile.wasm.iter().any(|plugin| plugin.filters);
    let wanted = if all { usize::MAX } else { num_feasible_nodes(snapshot.node_count(), profile.feasible_percent) };
    let others = snapshot.nodes_from(start).filter(|node| nominated.is_none_or(|nominated| nominated.id != node.id));
    let fits = nominated.into_iter().chain(others).filter(|node| filters.fits(node).is_ok());
    fits.take(wanted).map(|node| node.name().to_owned()).collect()
}

/// The second half, with the verdicts on those nodes. The snapshot may have changed meanwhile, so filters run again.
/// Nodes without a verdict are not chosen.
#[must_use]
pub fn decide_with(
    snapshot: &Snapshot,
    pod: &PodInfo,
    profile: &Profile,
    start: usize,
    seed: u64,
    verdicts: Option<&Verdicts>,
) -> Decision {
    let nodes = snapshot.node_count();
    let nowhere = |message: String, refused_by| Decision::Unschedulable {
        message,
        refused_by,
        nomination: Nomination::Clear,
        victims: Vec::new(),
        candidates: Vec::new(),
    };
    if nodes == 0 {
        return nowhere("no nodes available to schedule pods".into(), BTreeSet::new());
    }
    if !pod.requirements.unsupported.is_empty() {
        let fields = pod.requirements.unsupported.join(", ");
        let message = format!("0/{nodes} nodes are available: this scheduler does not act on {fields} yet.");
        return nowhere(message, BTreeSet::from([UNSUPPORTED]));
    }
    let cycle = Cycle { pod, snapshot, args: &profile.args, seed };
    let mut filters = match Filters::of(cycle, profile) {
        Ok(filters) => filters,
        Err((plugin, why)) => {
            let message = format!("0/{nodes} nodes are available: {why}.");
            let diagnosis = Diagnosis::all(nodes, plugin);
            return post_filter(cycle, profile, &mut Filters::none(cycle), diagnosis, message);
        }
    };
    // The nominated node comes first: after the preemption the pod probably fits there and nowhere else.
    if let Some(node) = cycle.nominated().and_then(|name| snapshot.node(name))
        && filters.fits(node).is_ok()
        && verdicts.is_none_or(|verdicts| matches!(verdicts.of(node.name()), Some(Verdict::Fits(_))))
    {
        return Decision::Node { name: node.name().to_owned(), tried: 0 };
    }
    let wanted = num_feasible_nodes(nodes, profile.feasible_percent);
    let mut diagnosis = Diagnosis::default();
    diagnosis.has_wasm_filters = profile.wasm.iter().any(|plugin| plugin.filters);
    let mut feasible: Vec<&NodeInfo> = Vec::with_capacity(wanted);
    let mut tried = 0;
    for node in snapshot.nodes_from(start) {
        tried += 1;
        match filters.fits(node) {
            Err((plugin, refusal)) => diagnosis.count(node.id, plugin, refusal),
            Ok(()) => {
                if let Some(verdicts) = verdicts
                    && !extended(node, verdicts, &mut diagnosis)
                {
                    continue;
                }
                feasible.push(node);
                if feasible.len() >= wanted {
                    break;
                }
            }
        }
    }
    match best(cycle, profile, &feasible, seed, verdicts) {
        Some(node) => Decision::Node { name: node.name().to_owned(), tried },
        None => {
            let message = diagnosis.message(nodes);
            post_filter(cycle, profile, &mut filters, diagnosis, message)
        }
    }
}

/// Calls the `PostFilter` plugins in order, until one nominates a node.
fn post_filter<'a>(
    cycle: Cycle<'a>,
    profile: &Profile,
    filters: &mut Filters<'a>,
    diagnosis: Diagnosis,
    mut message: String,
) -> Decision {
    let (mut reasons, mut going, mut others) = (Vec::new(), Vec::new(), Vec::new());
    let mut post_filters = profile.at(Point::PostFilter).filter_map(|(plugin, _)| plugin.post_filter).peekable();
    let mut nomination = if post_filters.peek().is_some() { Nomination::Keep } else { Nomination::Clear };
    for post_filter in post_filters {
        match post_filter(cycle, filters, &diagnosis) {
            PostFilterResult::Unschedulable(why) => reasons.push(why),
            PostFilterResult::NotHelpful(why) => {
                reasons.push(why);
                nomination = Nomination::Clear;
            }
            PostFilterResult::Candidates(candidates) => others = candidates,
            PostFilterResult::Nominated { node, victims, candidates } => {
                (nomination, going, others) = (Nomination::Node(node), victims, candidates);
                reasons.clear();
                break;
            }
        }
    }
    if !reasons.is_empty() {
        message = format!("{message} {}", reasons.join(", "));
    }
    Decision::Unschedulable {
        message,
        refused_by: diagnosis.refused_by,
        nomination,
        victims: going,
        candidates: others,
    }
}

/// Stands for fields that this scheduler doesn't support: only an update of the pod helps.
pub const UNSUPPORTED: &str = "unsupported fields";

/// Whether extenders and WebAssembly plugins accept a node. A node without a verdict is counted neither as accepted nor
/// as rejected.
fn extended(node: &NodeInfo, verdicts: &Verdicts, diagnosis: &mut Diagnosis) -> bool {
    match verdicts.of(node.name()) {
        Some(Verdict::Fits(_)) => return true,
        Some(Verdict::Refused { by, why, unresolvable }) => {
            let reasons = Reasons::Many(why.iter().map(|why| why.clone().into()).collect());
            diagnosis.count(node.id, by, Refusal { reasons, unresolvable: *unresolvable });
            if !unresolvable && *by != EXTENDER {
                diagnosis.rejected_by_wasm.insert(node.id);
            }
        }
        None => {
            diagnosis.refused_by.insert(EXTENDER);
        }
    }
    false
}

/// The feasible node with the best weighted score.
fn best<'a>(
    cycle: Cycle<'a>,
    profile: &Profile,
    feasible: &[&'a NodeInfo],
    seed: u64,
    verdicts: Option<&Verdicts>,
) -> Option<&'a NodeInfo> {
    if feasible.len() < 2 {
        return feasible.first().copied();
    }
    let mut totals = vec![0i64; feasible.len()];
    score_each(cycle, profile, feasible, |_, weight, scores| {
        let Scores::Counting(scores) = scores else { return };
        for (total, score) in totals.iter_mut().zip(scores) {
            *total += weight * score;
        }
    });
    if let Some(verdicts) = verdicts {
        for (total, node) in totals.iter_mut().zip(feasible) {
            if let Some(Verdict::Fits(score)) = verdicts.of(node.name()) {
                *total = total.saturating_add(*score);
            }
        }
    }
    let max = *totals.iter().max()?;
    let equals = || feasible.iter().zip(&totals).filter(|(_, total)| **total == max).map(|(node, _)| *node);
    let pick = usize::try_from(seed % equals().count() as u64).unwrap_or(0);
    equals().nth(pick)
}

/// One plugin's scores of all feasible nodes.
pub(crate) enum Scores<'s> {
    /// Raw, on the plugin's own scale.
    Own(&'s [i64]),
    /// Normalized, from 0 to 100.
    Counting(&'s [i64]),
}

/// Runs the `Score` plugins on all feasible nodes. `each` gets a plugin's name, its weight and its scores, raw first
/// and then normalized.
pub(crate) fn score_each<'a>(
    cycle: Cycle<'a>,
    profile: &Profile,
    feasible: &[&'a NodeInfo],
    mut each: impl FnMut(&'static str, i64, Scores<'_>),
) {
    let mut scores = vec![0i64; feasible.len()];
    for (plugin, weight) in profile.at(Point::Score).filter(|(_, weight)| *weight != 0) {
        let Some(score) = plugin.pre_score.and_then(|pre_score| pre_score(cycle, feasible)) else { continue };
        scores.iter_mut().zip(feasible).for_each(|(of, node)| *of = score.score(node));
        each(plugin.name, weight, Scores::Own(&scores));
        score.normalize(feasible, &mut scores);
        each(plugin.name, weight, Scores::Counting(&scores));
    }
}
