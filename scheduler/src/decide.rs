//! The decision: which node a pod goes to, or why it goes nowhere. Pure: the same snapshot, pod, start and seed give the
//! same answer.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use crate::node::NodeInfo;
use crate::plugins::{Before, Cycle, Filter, PLUGINS, Packing};
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

/// How many feasible nodes are enough, of `nodes`.
#[must_use]
pub fn enough(nodes: usize) -> usize {
    if nodes < FEASIBLE_NODES_MIN {
        return nodes;
    }
    let percent = 50usize.saturating_sub(nodes / 125).max(FEASIBLE_PERCENT_MIN);
    (nodes * percent / 100).max(FEASIBLE_NODES_MIN)
}

/// Counts why nodes were refused.
#[derive(Default)]
struct Diagnosis {
    reasons: BTreeMap<Cow<'static, str>, usize>,
    helpless: usize,
    others: usize,
    refused_by: BTreeSet<&'static str>,
}

impl Diagnosis {
    fn count(&mut self, plugin: &'static str, reasons: Vec<Cow<'static, str>>, helpless: bool) {
        self.refused_by.insert(plugin);
        for reason in reasons {
            *self.reasons.entry(reason).or_default() += 1;
        }
        if helpless {
            self.helpless += 1;
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
        let why = sentence(self.reasons.iter().map(|(reason, count)| (*count, &**reason)).collect());
        let preemption = if pod.wants.never_preempts {
            "not eligible due to preemptionPolicy=Never.".to_owned()
        } else {
            let counts = [
                (self.others, "No preemption victims found for incoming pod"),
                (self.helpless, "Preemption is not helpful for scheduling"),
            ];
            sentence(counts.into_iter().filter(|(count, _)| *count > 0).collect())
        };
        format!("{why} no new claims to deallocate, preemption: {preemption}")
    }
}

/// Decides. `start` is where in the order of nodes to begin; `seed` chooses among equals.
#[must_use]
pub fn decide(snapshot: &Snapshot, pod: &PodInfo, packing: Packing, start: usize, seed: u64) -> Decision {
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
    let cycle = Cycle { pod, snapshot, packing };
    let mut filters: Vec<(&'static str, Box<dyn Filter + '_>)> = Vec::new();
    let mut among: Option<(&'static str, BTreeSet<&str>)> = None;
    for plugin in PLUGINS {
        match (plugin.filter)(cycle) {
            Before::Skip => {}
            Before::Refuse(why) => {
                let message = format!("0/{nodes} nodes are available: {why}.");
                return nowhere(message, BTreeSet::from([plugin.name]));
            }
            Before::Among(names, filter) => {
                among = Some((plugin.name, names));
                filters.push((plugin.name, filter));
            }
            Before::Check(filter) => filters.push((plugin.name, filter)),
        }
    }
    let enough = enough(nodes);
    let mut diagnosis = Diagnosis::default();
    let mut feasible: Vec<&NodeInfo> = Vec::new();
    let mut tried = 0;
    for node in snapshot.nodes_from(start) {
        tried += 1;
        if let Some((plugin, _)) = among.as_ref().filter(|(_, names)| !names.contains(node.name())) {
            let reason = format!("node(s) didn't satisfy plugin(s) [{plugin}]");
            diagnosis.count(plugin, vec![reason.into()], true);
            continue;
        }
        match filters.iter().find_map(|(plugin, filter)| Some((plugin, filter.check(node).err()?))) {
            Some((plugin, refusal)) => diagnosis.count(plugin, refusal.reasons, refusal.helpless),
            None => {
                feasible.push(node);
                if feasible.len() >= enough {
                    break;
                }
            }
        }
    }
    match best(cycle, &feasible, seed) {
        Some(node) => Decision::Node { name: node.name().to_owned(), tried },
        None => nowhere(diagnosis.message(nodes, pod), diagnosis.refused_by),
    }
}

/// Stands for fields that ask for something that isn't done: only a change of the pod helps.
pub const UNSUPPORTED: &str = "unsupported fields";

/// The feasible node with the best weighted score.
fn best<'a>(cycle: Cycle<'a>, feasible: &[&'a NodeInfo], seed: u64) -> Option<&'a NodeInfo> {
    if feasible.len() < 2 {
        return feasible.first().copied();
    }
    let mut totals = vec![0i64; feasible.len()];
    for plugin in PLUGINS.iter().filter(|plugin| plugin.weight > 0) {
        let Some(score) = (plugin.score)(cycle, feasible) else { continue };
        let mut scores: Vec<i64> = feasible.iter().map(|node| score.score(node)).collect();
        score.normalize(feasible, &mut scores);
        for (total, score) in totals.iter_mut().zip(scores) {
            *total += plugin.weight * score;
        }
    }
    let max = totals.iter().max()?;
    let equals: Vec<&NodeInfo> =
        feasible.iter().zip(&totals).filter(|(_, total)| *total == max).map(|(node, _)| *node).collect();
    let pick = usize::try_from(seed % equals.len() as u64).unwrap_or(0);
    equals.get(pick).copied()
}
