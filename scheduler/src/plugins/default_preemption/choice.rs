//! Choice among the candidate nodes of a preemption, by upstream's criteria.

use super::Candidate;

/// Added to each priority before summing, so that no summand is negative: among victims of the same negative priority,
/// fewer victims are better.
const PRIORITY_OFFSET: i64 = 1 << 31;

/// In order: fewest violated budgets, lowest priority of the most important victim, smallest sum of priorities, fewest
/// victims, latest start of the most important victims. Ties go to the first.
pub(crate) fn choose<'a>(candidates: impl IntoIterator<Item = &'a Candidate>) -> Option<&'a Candidate> {
    candidates.into_iter().min_by_key(|candidate| {
        let Candidate { victims, violations, .. } = candidate;
        let top = victims.iter().map(|pod| pod.priority).max();
        let sum: i128 = victims.iter().map(|pod| i128::from(i64::from(pod.priority) + PRIORITY_OFFSET)).sum();
        let earliest = victims.iter().filter(|pod| Some(pod.priority) == top).map(|pod| pod.started()).min();
        (*violations, top, sum, victims.len(), std::cmp::Reverse(earliest))
    })
}
