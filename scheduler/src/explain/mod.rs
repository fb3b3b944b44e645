//! Explains a decision for one pod node by node: runs the same filters and scores, and returns each result instead of
//! the sum. Pure.

mod recording;

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests;

use std::cmp::Reverse;

use serde::Serialize;

pub use self::recording::{Recording, RecordingError};
use crate::decide::{Decision, Nomination, Scores, decide_with, score_each};
use crate::node::NodeInfo;
use crate::plugins::{Cycle, Filters, Profile};
use crate::pod::PodInfo;
use crate::refusal::{Reasons, Refusal};
use crate::snapshot::Snapshot;
use crate::wasm::{Answers, Failed};

/// The verdict of each plugin on each node for one pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// Namespace and name.
    pub pod: String,
    /// The `schedulerName` of the profile that decides.
    pub profile: String,
    /// The chosen node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Nodes with the same score: the scheduler picks one of them at random.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub equals: Vec<String>,
    /// Whether the node was chosen because the pod is nominated there, whatever its score.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub nominated: bool,
    /// The reason why no node fits, as in the pod's condition.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// The preemption that would make the pod fit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preemption: Option<Preemption>,
    /// Whether the pod has scheduling gates, and so isn't queued.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub gated: bool,
    /// Extenders and WebAssembly plugins that a decision would call, and that were not called here.
    #[serde(rename = "notAsked", skip_serializing_if = "Vec::is_empty")]
    pub not_queried: Vec<String>,
    /// Ignorable plugins that failed, with the error.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub failed: Vec<String>,
    /// The plugins that scored, in order.
    pub plugins: Vec<Weighted>,
    /// The feasible nodes, the best first, and then the others.
    pub nodes: Vec<NodeExplanation>,
}

/// The preemption of pods on one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Preemption {
    /// The node of the victims.
    pub node: String,
    /// The victims, as `namespace/name`.
    pub victims: Vec<String>,
}

/// A plugin and the weight of its scores.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Weighted {
    pub name: &'static str,
    pub weight: i64,
}

/// The result for one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeExplanation {
    pub name: String,
    /// The rejection, if the node was filtered out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<RefusedBy>,
    /// The sum of the weighted scores.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total: Option<i64>,
    /// In the order of [`Explanation::plugins`].
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub scores: Vec<NodeScore>,
}

/// The first filter that rejected a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RefusedBy {
    pub plugin: &'static str,
    /// With upstream's text.
    pub reasons: Vec<String>,
    /// Whether preemption might help.
    pub resolvable: bool,
}

/// A plugin's score of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NodeScore {
    pub plugin: &'static str,
    /// Raw, on the plugin's own scale.
    pub score: i64,
    /// From 0 to 100.
    pub normalized: i64,
    /// `normalized` times the weight.
    pub weighted: i64,
}

/// Explains the decision for a pod without a node. All nodes are filtered, while a decision in a large cluster stops at
/// enough feasible nodes.
#[must_use]
pub fn explain(snapshot: &Snapshot, pod: &PodInfo, profile: &Profile) -> Explanation {
    explain_with(snapshot, pod, profile, None)
}

/// As [`explain`], with the answers of WebAssembly plugins.
#[must_use]
pub fn explain_with(snapshot: &Snapshot, pod: &PodInfo, profile: &Profile, answers: Option<&Answers>) -> Explanation {
    let mut this = Explanation {
        pod: pod.key.to_string(),
        profile: profile.scheduler_name.clone(),
        node: None,
        equals: Vec::new(),
        nominated: false,
        message: None,
        preemption: None,
        gated: !profile.admits_to_queue(pod),
        not_queried: Vec::new(),
        failed: answers.into_iter().flat_map(|answers| &answers.failed).map(failure_text).collect(),
        plugins: Vec::new(),
        nodes: Vec::new(),
    };
    let cycle = Cycle { pod, snapshot, args: &profile.args, seed: 0 };
    let mut feasible = Vec::new();
    // A rejection in `PreFilter` has a message of its own.
    if pod.requirements.unsupported.is_empty() {
        match Filters::of(cycle, profile) {
            Ok(mut filters) => {
                for node in snapshot.nodes() {
                    match filters.fits(node) {
                        Ok(()) => match answers.and_then(|answers| answers.refusal(&profile.wasm, node.name())) {
                            None => feasible.push(node),
                            Some((plugin, refusal)) => this.nodes.push(refused(node, plugin, refusal)),
                        },
                        Err((plugin, refusal)) => this.nodes.push(refused(node, plugin, refusal)),
                    }
                }
            }
            Err((plugin, why)) => {
                let refusal = || Refusal { reasons: Reasons::Many(vec![why.clone().into()]), unresolvable: true };
                this.nodes.extend(snapshot.nodes().map(|node| refused(node, plugin, refusal())));
            }
        }
    }
    this.nodes.sort_by(|a, b| a.name.cmp(&b.name));
    if feasible.is_empty() {
        let verdicts = answers.map(|answers| answers.verdicts(&profile.wasm));
        this.goes_nowhere(decide_with(snapshot, pod, profile, 0, 0, verdicts.as_ref()));
    } else {
        this.score(cycle, profile, &feasible, answers);
    }
    this
}

fn failure_text(failed: &Failed) -> String {
    format!("{} at {}: {}", failed.plugin, failed.extension_point, failed.why)
}

fn refused(node: &NodeInfo, plugin: &'static str, refusal: Refusal) -> NodeExplanation {
    let reasons = match refusal.reasons {
        Reasons::One(reason) => vec![reason.to_owned()],
        Reasons::Many(reasons) => reasons.into_iter().map(std::borrow::Cow::into_owned).collect(),
    };
    let refused = Some(RefusedBy { plugin, reasons, resolvable: !refusal.unresolvable });
    NodeExplanation { name: node.name().to_owned(), refused, total: None, scores: Vec::new() }
}

impl Explanation {
    fn goes_nowhere(&mut self, decision: Decision) {
        let Decision::Unschedulable { message, nomination, victims, .. } = decision else { return };
        self.message = Some(message);
        if let Nomination::Node(node) = nomination {
            let victims = victims.iter().map(|victim| victim.key.to_string()).collect();
            self.preemption = Some(Preemption { node, victims });
        }
    }

    fn score<'a>(&mut self, cycle: Cycle<'a>, profile: &Profile, feasible: &[&'a NodeInfo], answers: Option<&Answers>) {
        let named = |node: &&NodeInfo| NodeExplanation {
            name: node.name().to_owned(),
            refused: None,
            total: Some(0),
            scores: Vec::new(),
        };
        let mut nodes: Vec<NodeExplanation> = feasible.iter().map(named).collect();
        let mut raw = Vec::new();
        score_each(cycle, profile, feasible, |plugin, weight, scores| {
            let after = match scores {
                Scores::Own(own) => return raw = own.to_vec(),
                Scores::Counting(scores) => scores,
            };
            self.plugins.push(Weighted { name: plugin, weight });
            for ((node, score), normalized) in nodes.iter_mut().zip(&raw).zip(after) {
                let weighted = weight * normalized;
                node.total = node.total.map(|total| total + weighted);
                node.scores.push(NodeScore { plugin, score: *score, normalized: *normalized, weighted });
            }
        });
        for (name, weight, scores) in answers.into_iter().flat_map(|answers| answers.counting(&profile.wasm)) {
            self.plugins.push(Weighted { name, weight });
            for node in &mut nodes {
                let score = scores.get(node.name.as_str()).copied().unwrap_or(0);
                let weighted = weight.saturating_mul(score);
                node.total = node.total.map(|total| total.saturating_add(weighted));
                node.scores.push(NodeScore { plugin: name, score, normalized: score, weighted });
            }
        }
        nodes.sort_by(|a, b| a.name.cmp(&b.name));
        nodes.sort_by_key(|node| Reverse(node.total));
        let there = cycle.nominated().filter(|name| nodes.iter().any(|node| node.name == *name));
        self.nominated = there.is_some();
        let best = nodes.first().map(|node| node.total);
        let mut best = nodes.iter().filter(|node| Some(node.total) == best).map(|node| node.name.clone());
        self.node = there.map(str::to_owned).or_else(|| best.next());
        if !self.nominated {
            self.equals = best.collect();
        }
        nodes.append(&mut self.nodes);
        self.nodes = nodes;
    }
}
