//! Selects the victims on one node: as few and as unimportant as possible, tried on a copy of the node.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::sync::Arc;

use super::{Candidate, Cycle, Filters, PLUGIN, SparePod};
use crate::budget::Violations;
use crate::diagnosis::Diagnosis;
use crate::node::NodeInfo;
use crate::pod::PodInfo;
use crate::refusal::{Reasons, Refusal};

/// Runs the selection. The filters are restored at the end.
pub(super) fn select<'a>(
    cycle: Cycle<'a>,
    filters: &mut Filters<'a>,
    node: &NodeInfo,
    diagnosis: &Diagnosis,
    violations: &mut Violations<'_>,
) -> Result<Candidate, (&'static str, Refusal)> {
    let pod = cycle.pod;
    if node.lowest_priority().is_none_or(|lowest| lowest >= pod.priority) {
        return Err((PLUGIN.name, Refusal::unresolvable("No preemption victims found for incoming pod")));
    }
    let mut lower: Vec<Arc<PodInfo>> =
        node.pods.values().filter(|other| other.priority < pod.priority).cloned().collect();
    // The most important first: they are reprieved first.
    lower.sort_by_key(importance);
    let violating = violations.of(&lower);
    let mut trial = NodeTrial { filters, node: node.clone(), gone: Vec::new() };
    lower.iter().for_each(|pod| trial.take(pod));
    let fits = trial.fits();
    let mut violated = 0;
    if fits.is_ok() {
        for against in [true, false] {
            for (victim, _) in lower.iter().zip(&violating).filter(|(_, violates)| **violates == against) {
                trial.put(victim);
                if trial.fits().is_err() {
                    trial.take(victim);
                    violated += usize::from(against);
                }
            }
        }
    }
    let mut victims = trial.end();
    fits?;
    let mut spare = Vec::new();
    if diagnosis.has_wasm_filters {
        let of = |against| lower.iter().zip(&violating).filter(move |(_, violates)| **violates == against);
        let all = [true, false].into_iter().flat_map(of);
        let stay = all.filter(|(pod, _)| !victims.iter().any(|victim| victim.key == pod.key));
        spare.extend(stay.map(|(pod, violates)| SparePod { pod: pod.clone(), violates: *violates }));
    }
    if victims.is_empty() && !diagnosis.rejected_by_wasm.contains(&node.id) {
        // The node was rejected by an extender, and not for lack of resources.
        let why = format!("expected at least one victim pod on node {:?}", node.name());
        let reasons = Reasons::Many(vec![Cow::Owned(why)]);
        return Err((PLUGIN.name, Refusal { reasons, unresolvable: true }));
    }
    sort(&mut victims);
    Ok(Candidate { node: node.name().to_owned(), victims, violations: violated, spare })
}

/// Sorts by importance, the most important first.
pub(crate) fn sort(victims: &mut [Arc<PodInfo>]) {
    victims.sort_by(|a, b| (importance(a), &a.key).cmp(&(importance(b), &b.key)));
}

/// The sort key: higher priority first, then earlier start.
fn importance(pod: &Arc<PodInfo>) -> (Reverse<i32>, i64) {
    (Reverse(pod.priority), pod.started())
}

/// A copy of a node, with filters updated to match it.
struct NodeTrial<'t, 'a> {
    filters: &'t mut Filters<'a>,
    node: NodeInfo,
    gone: Vec<Arc<PodInfo>>,
}

impl NodeTrial<'_, '_> {
    fn take(&mut self, pod: &Arc<PodInfo>) {
        self.node.take(&pod.key);
        self.filters.remove_pod(pod, &self.node);
        self.gone.push(pod.clone());
    }

    fn put(&mut self, pod: &Arc<PodInfo>) {
        self.gone.retain(|gone| gone.key != pod.key);
        self.node.put(pod.clone());
        self.filters.add_pod(pod, &self.node);
    }

    fn fits(&mut self) -> Result<(), (&'static str, Refusal)> {
        self.filters.fits_with_nominated(&mut self.node)
    }

    /// Restores the filters, and returns the removed pods.
    fn end(mut self) -> Vec<Arc<PodInfo>> {
        for pod in std::mem::take(&mut self.gone) {
            self.node.put(pod.clone());
            self.filters.add_pod(&pod, &self.node);
            self.gone.push(pod);
        }
        self.gone
    }
}
