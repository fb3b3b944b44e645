//! DefaultPreemption: finds nodes where a pod would fit if pods of lower priority were deleted.

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

/// `DefaultPreemptionArgs`: the number of candidate nodes to examine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PreemptionArgs {
    /// The minimum percentage of the nodes where preemption might help.
    pub min_candidate_nodes_percentage: i64,
    /// The minimum number of nodes.
    pub min_candidate_nodes_absolute: i64,
}

impl Default for PreemptionArgs {
    /// Upstream's defaults.
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

/// A node that can take the pod after a preemption.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    pub node: String,
    /// The victims, the most important first.
    pub victims: Vec<Arc<PodInfo>>,
    /// The number of victims whose deletion violates a disruption budget.
    pub violations: usize,
    /// Other pods of lower priority, which a WebAssembly plugin may need as victims too; the first is reprieved first.
    pub spare: Vec<SparePod>,
}

/// A pod of lower priority that the filters here don't need as a victim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SparePod {
    pub pod: Arc<PodInfo>,
    /// Whether its deletion violates a disruption budget.
    pub violates: bool,
}

/// Upstream's message if no candidate is left.
pub(crate) const NO_CANDIDATE: &str = "preemption: no candidate node for preemption";

/// The result of the search for candidates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PreemptionSearch {
    /// The pod may not preempt now, for this reason.
    NotEligible(&'static str),
    /// At least one candidate; WebAssembly plugins may still reject it.
    Candidates(Vec<Candidate>),
    /// Preemption helps nowhere, with upstream's message.
    None(String),
}

fn post_filter<'a>(cycle: Cycle<'a>, filters: &mut Filters<'a>, diagnosis: &Diagnosis) -> PostFilterResult {
    match find_candidates(cycle, filters, diagnosis) {
        PreemptionSearch::NotEligible(why) => PostFilterResult::Unschedulable(format!("preemption: {why}")),
        PreemptionSearch::None(why) => PostFilterResult::NotHelpful(format!("preemption: {why}")),
        PreemptionSearch::Candidates(candidates) => {
            match choose(candidates.iter().filter(|candidate| !candidate.victims.is_empty())).cloned() {
                Some(Candidate { node, victims, .. }) => PostFilterResult::Nominated { node, victims, candidates },
                None => PostFilterResult::Candidates(candidates),
            }
        }
    }
}

/// Searches nodes where the pod would fit without pods of lower priority.
pub(crate) fn find_candidates<'a>(
    cycle: Cycle<'a>,
    filters: &mut Filters<'a>,
    diagnosis: &Diagnosis,
) -> PreemptionSearch {
    if let Some(why) = not_eligible(cycle, diagnosis) {
        return PreemptionSearch::NotEligible(why);
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
        return PreemptionSearch::Candidates(keeping);
    }
    let all = cycle.snapshot.node_count();
    PreemptionSearch::None(refused.message_with(all, "Preemption is not helpful for scheduling"))
}

/// Why the pod may not preempt now, with upstream's text.
fn not_eligible(cycle: Cycle<'_>, diagnosis: &Diagnosis) -> Option<&'static str> {
    let Cycle { pod, snapshot, .. } = cycle;
    if pod.requirements.never_preempts {
        return Some("not eligible due to preemptionPolicy=Never.");
    }
    let node: &NodeInfo = snapshot.node(cycle.nominated()?)?;
    // If preemption can't help on the nominated node any more, the pod may preempt on another node.
    let helpless = |id: NodeId| !diagnosis.resolvable.contains(&id);
    let going = || node.pods.values().any(|other| other.priority < pod.priority && other.is_preempted());
    (!helpless(node.id) && going()).then_some("not eligible due to a terminating pod on the nominated node.")
}
