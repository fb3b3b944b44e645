//! DefaultPreemption: finds out of a pod that fits nowhere on which node pods of lower priority could go for it.

mod choice;
mod victims;

#[cfg(test)]
mod tests;

use std::sync::Arc;

pub(crate) use self::choice::choose;
pub(crate) use self::victims::sort;
use super::{Cycle, Filters, Plugin, PostFilterResult, plugin};
use crate::budget::Violations;
use crate::diagnosis::Diagnosis;
use crate::node::{NodeId, NodeInfo};
use crate::pod::PodInfo;

pub(super) const PLUGIN: Plugin = Plugin { post_filter: Some(post_filter), ..plugin("DefaultPreemption") };

/// `DefaultPreemptionArgs`: on how many nodes it is tried who would have to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PreemptionArgs {
    /// At least this part of the nodes on which going may help, in hundredths.
    pub min_candidate_nodes_percentage: i64,
    /// At least this many.
    pub min_candidate_nodes_absolute: i64,
}

impl Default for PreemptionArgs {
    /// Upstream's.
    fn default() -> Self {
        Self { min_candidate_nodes_percentage: 10, min_candidate_nodes_absolute: 100 }
    }
}

impl PreemptionArgs {
    fn candidates(self, nodes: usize) -> usize {
        let count = i64::try_from(nodes).unwrap_or(i64::MAX);
        let part = count.saturating_mul(self.min_candidate_nodes_percentage) / 100;
        usize::try_from(part.max(self.min_candidate_nodes_absolute)).unwrap_or(0).min(nodes)
    }
}

/// A node that could take the pod if some went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Its name.
    pub node: String,
    /// Who would have to go, the most important first.
    pub victims: Vec<Arc<PodInfo>>,
    /// How many of them would go against a disruption budget.
    pub violations: usize,
    /// Others of lower priority, of whom a plugin that runs elsewhere may want some to go besides: who is let stay first comes first.
    pub spare: Vec<Spare>,
}

/// Who need not go for what is decided here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spare {
    /// The pod.
    pub pod: Arc<PodInfo>,
    /// It would go against a disruption budget.
    pub violates: bool,
}

/// Nobody has left any of the nodes on which it would help.
pub(crate) const NO_CANDIDATE: &str = "preemption: no candidate node for preemption";

/// What was found out about preempting others for a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// It isn't done for this pod, now.
    NotEligible(&'static str),
    /// These nodes would do, or would as far as it is known here: one at least.
    Candidates(Vec<Candidate>),
    /// It helps nowhere; upstream's sentence.
    None(String),
}

fn post_filter<'a>(cycle: Cycle<'a>, filters: &mut Filters<'a>, diagnosis: &Diagnosis) -> PostFilterResult {
    match find(cycle, filters, diagnosis) {
        Found::NotEligible(why) => PostFilterResult::Unschedulable(format!("preemption: {why}")),
        Found::None(why) => PostFilterResult::Hopeless(format!("preemption: {why}")),
        Found::Candidates(candidates) => {
            match choose(candidates.iter().filter(|candidate| !candidate.victims.is_empty())).cloned() {
                Some(Candidate { node, victims, .. }) => PostFilterResult::Nominated { node, victims, candidates },
                None => PostFilterResult::Asks(candidates),
            }
        }
    }
}

/// Looks for nodes on which pods of lower priority could go for this one.
pub(crate) fn find<'a>(cycle: Cycle<'a>, filters: &mut Filters<'a>, diagnosis: &Diagnosis) -> Found {
    if let Some(why) = not_eligible(cycle, diagnosis) {
        return Found::NotEligible(why);
    }
    let nodes = &diagnosis.resolvable;
    let wanted = cycle.args.preemption.candidates(nodes.len());
    let mut refused = Diagnosis::default();
    let (mut keeping, mut violating, mut elsewhere) = (Vec::new(), Vec::new(), Vec::new());
    let offset = usize::try_from(cycle.seed % nodes.len().max(1) as u64).unwrap_or(0);
    let mut violations = Violations::new(&cycle.snapshot.budgets);
    let (before, after) = nodes.split_at(offset);
    for id in after.iter().chain(before) {
        match victims::select(cycle, filters, cycle.snapshot.node_by_id(*id), diagnosis, &mut violations) {
            Ok(candidate) if candidate.victims.is_empty() => elsewhere.push(candidate),
            Ok(candidate) if candidate.violations == 0 => keeping.push(candidate),
            Ok(candidate) if violating.len() < wanted => violating.push(candidate),
            Ok(_) => {}
            Err((plugin, refusal)) => refused.count(*id, plugin, refusal),
        }
        let hopeful = keeping.len() + elsewhere.len();
        if hopeful > 0 && hopeful + violating.len() >= wanted {
            break;
        }
    }
    keeping.append(&mut violating);
    keeping.append(&mut elsewhere);
    if !keeping.is_empty() {
        return Found::Candidates(keeping);
    }
    let all = cycle.snapshot.node_count();
    Found::None(refused.message_with(all, "Preemption is not helpful for scheduling"))
}

/// Why nobody goes for this pod now, in upstream's words.
fn not_eligible(cycle: Cycle<'_>, diagnosis: &Diagnosis) -> Option<&'static str> {
    let Cycle { pod, snapshot, .. } = cycle;
    if pod.wants.never_preempts {
        return Some("not eligible due to preemptionPolicy=Never.");
    }
    let node: &NodeInfo = snapshot.node(cycle.nominated()?)?;
    // Where the pod can't go any more whoever goes, it is looked for another node.
    let helpless = |id: NodeId| !diagnosis.resolvable.contains(&id);
    let going = || node.pods.values().any(|other| other.priority < pod.priority && other.is_preempted());
    (!helpless(node.id) && going()).then_some("not eligible due to a terminating pod on the nominated node.")
}
