//! The decision: which node a pod goes to, or why it goes nowhere. Pure: the same snapshot, pod, start and seed give the
//! same answer.

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

/// Below this many nodes all are tried; above, feasible ones are looked for until there are enough (as upstream).
const FEASIBLE_NODES_MIN: usize = 100;
/// At least this part of the nodes in a large cluster.
const FEASIBLE_PERCENT_MIN: usize = 5;

/// What becomes of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// It goes to a node.
    Node {
        /// Its name.
        name: String,
        /// How many nodes were looked at: the next decision begins after them.
        tried: usize,
    },
    /// It goes nowhere now.
    Nowhere {
        /// Upstream's message.
        message: String,
        /// The plugins that refused; none: there was no node.
        refused_by: BTreeSet<&'static str>,
        /// The node on which room is being made for it.
        nomination: Nomination,
        /// Who has to go for it there.
        victims: Vec<Arc<PodInfo>>,
        /// Where that could be as well, and who: for others who have a say in it.
        candidates: Vec<Candidate>,
    },
}

/// What becomes of a pod's nomination (`status.nominatedNodeName`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Nomination {
    /// It stays as it is.
    Keep,
    /// It goes.
    Clear,
    /// Room is being made on this node.
    Node(String),
}

/// How many feasible nodes are looked for, of `nodes`: that part of them, or a part that is smaller the more there are.
#[must_use]
pub fn num_feasible_nodes(nodes: usize, percent: Option<usize>) -> usize {
    if nodes < FEASIBLE_NODES_MIN {
        return nodes;
    }
    let adaptive = || 50usize.saturating_sub(nodes / 125).max(FEASIBLE_PERCENT_MIN);
    (nodes * percent.unwrap_or_else(adaptive) / 100).max(FEASIBLE_NODES_MIN)
}

/// Decides. `start` is where in the order of nodes to begin; `seed` chooses among equals.
#[must_use]
pub fn decide(snapshot: &Snapshot, pod: &PodInfo, profile: &Profile, start: usize, seed: u64) -> Decision {
    decide_with(snapshot, pod, profile, start, seed, None)
}

/// The nodes that will do for a pod, as others are then asked about: the first half of a decision with them. All of them, where a
/// plugin may then refuse some.
#[must_use]
pub fn feasible(snapshot: &Snapshot, pod: &PodInfo, profile: &Profile, start: usize) -> Vec<String> {
    let cycle = Cycle { pod, snapshot, args: &profile.args, seed: 0 };
    let Some(mut filters) = pod.wants.unsupported.is_empty().then(|| Filters::of(cycle, profile).ok()).flatten() else {
        return Vec::new();
    };
    let nominated = cycle.nominated().and_then(|name| snapshot.node(name));
    let all = profile.wasm.iter().any(|plugin| plugin.filters);
    let wanted = if all { usize::MAX } else { num_feasible_nodes(snapshot.node_count(), profile.feasible_percent) };
    let others = snapshot.nodes_from(start).filter(|node| nominated.is_none_or(|nominated| nominated.id != node.id));
    let fits = nominated.into_iter().chain(others).filter(|node| filters.fits(node).is_ok());
    fits.take(wanted).map(|node| node.name().to_owned()).collect()
}

/// The second half, with what extenders said of those nodes: whatever has changed meanwhile counts, and nodes that they weren't
/// asked about are none of this decision's.
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
    let nowhere = |message: String, refused_by| Decision::Nowhere {
        message,
        refused_by,
        nomination: Nomination::Clear,
        victims: Vec::new(),
        candidates: Vec::new(),
    };
    if nodes == 0 {
        return nowhere("no nodes available to schedule pods".into(), BTreeSet::new());
    }
    if !pod.wants.unsupported.is_empty() {
        let fields = pod.wants.unsupported.join(", ");
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
    // Where room was made for it, it is likely to fit now, and nowhere else.
    if let Some(node) = cycle.nominated().and_then(|name| snapshot.node(name))
        && filters.fits(node).is_ok()
        && verdicts.is_none_or(|verdicts| matches!(verdicts.of(node.name()), Some(Verdict::Fits(_))))
    {
        return Decision::Node { name: node.name().to_owned(), tried: 0 };
    }
    let wanted = num_feasible_nodes(nodes, profile.feasible_percent);
    let mut diagnosis = Diagnosis::default();
    diagnosis.asks_elsewhere = profile.wasm.iter().any(|plugin| plugin.filters);
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

/// Asks the plugins whether a pod that fits nowhere can be helped. The first that makes room is the last that is asked.
fn post_filter<'a>(
    cycle: Cycle<'a>,
    profile: &Profile,
    filters: &mut Filters<'a>,
    diagnosis: Diagnosis,
    mut message: String,
) -> Decision {
    let (mut said, mut going, mut others) = (Vec::new(), Vec::new(), Vec::new());
    let mut asked = profile.at(Point::PostFilter).filter_map(|(plugin, _)| plugin.post_filter).peekable();
    let mut nomination = if asked.peek().is_some() { Nomination::Keep } else { Nomination::Clear };
    for post_filter in asked {
        match post_filter(cycle, filters, &diagnosis) {
            PostFilterResult::Unschedulable(why) => said.push(why),
            PostFilterResult::Hopeless(why) => {
                said.push(why);
                nomination = Nomination::Clear;
            }
            PostFilterResult::Asks(candidates) => others = candidates,
            PostFilterResult::Nominated { node, victims, candidates } => {
                (nomination, going, others) = (Nomination::Node(node), victims, candidates);
                said.clear();
                break;
            }
        }
    }
    if !said.is_empty() {
        message = format!("{message} {}", said.join(", "));
    }
    Decision::Nowhere { message, refused_by: diagnosis.refused_by, nomination, victims: going, candidates: others }
}

/// Stands for fields that ask for something that isn't done: only a change of the pod helps.
pub const UNSUPPORTED: &str = "unsupported fields";

/// Whether extenders, and plugins that run elsewhere, have nothing against a node. One that they were not asked about isn't counted either way.
fn extended(node: &NodeInfo, verdicts: &Verdicts, diagnosis: &mut Diagnosis) -> bool {
    match verdicts.of(node.name()) {
        Some(Verdict::Fits(_)) => return true,
        Some(Verdict::Refused { by, why, unresolvable }) => {
            let reasons = Reasons::Many(why.iter().map(|why| why.clone().into()).collect());
            diagnosis.count(node.id, by, Refusal { reasons, unresolvable: *unresolvable });
            if !unresolvable && *by != EXTENDER {
                diagnosis.refused_elsewhere.insert(node.id);
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

/// A plugin's scores of all feasible nodes.
pub(crate) enum Scores<'s> {
    /// On its own scale.
    Own(&'s [i64]),
    /// From 0 to 100.
    Counting(&'s [i64]),
}

/// Asks the plugins that score for all feasible nodes at once. `each` gets a plugin's name, its weight and its scores, first as
/// they are and then as they count.
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
