//! Which of several nodes is taken, by upstream's five questions.

use super::Candidate;

/// Made to all priorities before they are summed, so that none is negative: of two nodes with victims of the same negative
/// priority the one with fewer is better.
const PRIORITY_OFFSET: i64 = 1 << 31;

/// The fewest violated budgets, then the least important victim at the top, then the smallest sum of priorities, then the
/// fewest victims, then the one whose most important victims have run for the shortest time; of equals the first.
pub(crate) fn choose<'a>(candidates: impl IntoIterator<Item = &'a Candidate>) -> Option<&'a Candidate> {
    candidates.into_iter().min_by_key(|candidate| {
        let Candidate { victims, violations, .. } = candidate;
        let top = victims.iter().map(|pod| pod.priority).max();
        let sum: i128 = victims.iter().map(|pod| i128::from(i64::from(pod.priority) + PRIORITY_OFFSET)).sum();
        let earliest = victims.iter().filter(|pod| Some(pod.priority) == top).map(|pod| pod.started()).min();
        (*violations, top, sum, victims.len(), std::cmp::Reverse(earliest))
    })
}
