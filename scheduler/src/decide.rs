//! The decision: which node a pod goes to, or why it goes nowhere. Pure: the same snapshot, pod, start and seed give the
//! same answer.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use crate::node::NodeInfo;
use crate::plugins::{Cycle, Filter, PreFilterResult, Profile, Reasons, Refusal};
use crate::pod::PodInfo;
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
    },
}

/// How many feasible nodes are looked for, of `nodes`.
#[must_use]
pub fn num_feasible_nodes(nodes: usize) -> usize {
    if nodes < FEASIBLE_NODES_MIN {
        return nodes;
    }
    let percent = 50usize.saturating_sub(nodes / 125).max(FEASIBLE_PERCENT_MIN);
    (nodes * percent / 100).max(FEASIBLE_NODES_MIN)
}

/// Counts why nodes were refused.
#[derive(Default)]
struct Diagnosis {
    /// Fixed sentences, found by their address: there are few.
    known: Vec<(&'static str, usize)>,
    made: BTreeMap<Cow<'static, str>, usize>,
    unresolvable: usize,
    others: usize,
    refused_by: BTreeSet<&'static str>,
}

impl Diagnosis {
    fn count(&mut self, plugin: &'static str, refusal: Refusal) {
        if !self.refused_by.contains(plugin) {
            self.refused_by.insert(plugin);
        }
        match refusal.reasons {
            Reasons::One(reason) => match self.known.iter_mut().find(|(known, _)| std::ptr::eq(*known, reason)) {
                Some((_, count)) => *count += 1,
                None => self.known.push((reason, 1)),
            },
            Reasons::Many(reasons) => {
                for reason in reasons {
                    *self.made.entry(reason).or_default() += 1;
                }
            }
        }
        if refusal.unresolvable {
            self.unresolvable += 1;
        } else {
            self.others += 1;
        }
    }

    /// Upstream's sentence, with what preemption has to say.
    fn message(&self, nodes: usize, pod: &PodInfo) -> String {
        let sentence = |counts: Vec<(usize, &str)>| {
            let mut parts: Vec<String> = counts.iter().map(|(count, reason)| format!("{count} {reason}")).collect();
            parts.sort();
            format!("0/{nodes} nodes are available: {}.", parts.join(", "))
        };
        let mut reasons: BTreeMap<&str, usize> = self.made.iter().map(|(reason, count)| (&**reason, *count)).collect();
        for (reason, count) in &self.known {
            *reasons.entry(reason).or_default() += count;
        }
        let why = sentence(reasons.into_iter().map(|(reason, count)| (count, reason)).collect());
        let preemption = if pod.wants.never_preempts {
            "not eligible due to preemptionPolicy=Never.".to_owned()
        } else {
            let counts = [
                (self.others, "No preemption victims found for incoming pod"),
                (self.unresolvable, "Preemption is not helpful for scheduling"),
            ];
            sentence(counts.into_iter().filter(|(count, _)| *count > 0).collect())
        };
        format!("{why} no new claims to deallocate, preemption: {preemption}")
    }
}

/// What the plugins have to say before nodes are tried.
struct Filters<'a> {
    filters: Vec<(&'static str, Box<dyn Filter + 'a>)>,
    /// Only these are tried, by this plugin's will.
    only: Option<(&'static str, BTreeSet<&'a str>)>,
}

impl<'a> Filters<'a> {
    /// Or the plugin that says that the pod can go nowhere, and why.
    fn of(cycle: Cycle<'a>, profile: &Profile) -> Result<Self, (&'static str, String)> {
        let mut this = Self { filters: Vec::new(), only: None };
        for (plugin, _) in &profile.plugins {
            match (plugin.filter)(cycle) {
                PreFilterResult::Skip => {}
                PreFilterResult::Unschedulable(why) => return Err((plugin.name, why)),
                PreFilterResult::Nodes(names, filter) => {
                    this.only = Some((plugin.name, names));
                    this.filters.push((plugin.name, filter));
                }
                PreFilterResult::Filter(filter) => this.filters.push((plugin.name, filter)),
            }
        }
        Ok(this)
    }

    fn check(&self, node: &NodeInfo) -> Result<(), (&'static str, Refusal)> {
        if let Some((plugin, _)) = self.only.as_ref().filter(|(_, names)| !names.contains(node.name())) {
            let reason = format!("node(s) didn't satisfy plugin(s) [{plugin}]").into();
            return Err((plugin, Refusal { reasons: Reasons::Many(vec![reason]), unresolvable: true }));
        }
        self.filters.iter().try_for_each(|(plugin, filter)| filter.check(node).map_err(|refusal| (*plugin, refusal)))
    }
}

/// Decides. `start` is where in the order of nodes to begin; `seed` chooses among equals.
#[must_use]
pub fn decide(snapshot: &Snapshot, pod: &PodInfo, profile: &Profile, start: usize, seed: u64) -> Decision {
    let nodes = snapshot.node_count();
    let nowhere = |message: String, refused_by| Decision::Nowhere { message, refused_by };
    if nodes == 0 {
        return nowhere("no nodes available to schedule pods".into(), BTreeSet::new());
    }
    if !pod.wants.unsupported.is_empty() {
        let fields = pod.wants.unsupported.join(", ");
        let message = format!("0/{nodes} nodes are available: this scheduler does not act on {fields} yet.");
        return nowhere(message, BTreeSet::from([UNSUPPORTED]));
    }
    let cycle = Cycle { pod, snapshot, packing: profile.packing };
    let filters = match Filters::of(cycle, profile) {
        Ok(filters) => filters,
        Err((plugin, why)) => {
            return nowhere(format!("0/{nodes} nodes are available: {why}."), BTreeSet::from([plugin]));
        }
    };
    let wanted = num_feasible_nodes(nodes);
    let mut diagnosis = Diagnosis::default();
    let mut feasible: Vec<&NodeInfo> = Vec::with_capacity(wanted);
    let mut tried = 0;
    for node in snapshot.nodes_from(start) {
        tried += 1;
        match filters.check(node) {
            Err((plugin, refusal)) => diagnosis.count(plugin, refusal),
            Ok(()) => {
                feasible.push(node);
                if feasible.len() >= wanted {
                    break;
                }
            }
        }
    }
    match best(cycle, profile, &feasible, seed) {
        Some(node) => Decision::Node { name: node.name().to_owned(), tried },
        None => nowhere(diagnosis.message(nodes, pod), diagnosis.refused_by),
    }
}

/// Stands for fields that ask for something that isn't done: only a change of the pod helps.
pub const UNSUPPORTED: &str = "unsupported fields";

/// The feasible node with the best weighted score.
fn best<'a>(cycle: Cycle<'a>, profile: &Profile, feasible: &[&'a NodeInfo], seed: u64) -> Option<&'a NodeInfo> {
    if feasible.len() < 2 {
        return feasible.first().copied();
    }
    let mut totals = vec![0i64; feasible.len()];
    let mut scores = vec![0i64; feasible.len()];
    for (plugin, weight) in profile.plugins.iter().filter(|(_, weight)| *weight > 0) {
        let Some(score) = (plugin.score)(cycle, feasible) else { continue };
        scores.iter_mut().zip(feasible).for_each(|(of, node)| *of = score.score(node));
        score.normalize(feasible, &mut scores);
        for (total, score) in totals.iter_mut().zip(&scores) {
            *total += weight * score;
        }
    }
    let max = *totals.iter().max()?;
    let equals = || feasible.iter().zip(&totals).filter(|(_, total)| **total == max).map(|(node, _)| *node);
    let pick = usize::try_from(seed % equals().count() as u64).unwrap_or(0);
    equals().nth(pick)
}
