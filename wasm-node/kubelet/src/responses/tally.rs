//! Counts of responses: atomics that only grow, and their values at the last two samples.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use machinery_rules::response_times::{self, BUCKETS};

/// Values of a tally, or their growth since a sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Counts {
    /// By duration; the count of all is their sum.
    pub(crate) durations: response_times::Counts,
    /// Of these, responses with status 5xx.
    pub(crate) errors: u64,
}

impl Default for Counts {
    fn default() -> Self {
        Self { durations: [0; BUCKETS], errors: 0 }
    }
}

impl Counts {
    fn since(&self, earlier: &Self) -> Self {
        let durations = std::array::from_fn(|at| self.durations[at].saturating_sub(earlier.durations[at]));
        Self { durations, errors: self.errors.saturating_sub(earlier.errors) }
    }
}

/// The counts at the last two samples.
#[derive(Debug, Default)]
struct Samples {
    earlier: Counts,
    last: Counts,
}

/// Responses by duration, and errors.
#[derive(Debug, Default)]
pub(super) struct Tally {
    durations: [AtomicU64; BUCKETS],
    errors: AtomicU64,
    /// Locked by the sampler and readers of metrics alone.
    samples: Mutex<Samples>,
}

impl Tally {
    pub(super) fn record(&self, took: Duration, is_error: bool) {
        self.durations[response_times::bucket(took)].fetch_add(1, Ordering::Relaxed);
        if is_error {
            self.errors.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(super) fn counts(&self) -> Counts {
        let durations = std::array::from_fn(|at| self.durations[at].load(Ordering::Relaxed));
        Counts { durations, errors: self.errors.load(Ordering::Relaxed) }
    }

    /// Takes a sample. Returns whether anything was counted between the last two samples.
    pub(super) fn sample(&self) -> bool {
        let counts = self.counts();
        let mut samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        samples.earlier = std::mem::replace(&mut samples.last, counts);
        samples.earlier != samples.last
    }

    /// The growth since the earlier of the last two samples.
    pub(super) fn recent(&self) -> Counts {
        self.counts().since(&self.samples.lock().unwrap_or_else(PoisonError::into_inner).earlier)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recent_counts_are_those_since_the_earlier_sample() {
        let tally = Tally::default();
        let count = |tally: &Tally| response_times::count(&tally.recent().durations);
        tally.record(Duration::from_millis(3), true);
        assert_eq!((count(&tally), tally.recent().errors), (1, 1));
        assert!(tally.sample());
        tally.record(Duration::from_millis(3), false);
        assert_eq!(count(&tally), 2);
        assert!(tally.sample());
        assert_eq!((count(&tally), tally.recent().errors), (1, 0));
        assert!(!tally.sample(), "nothing since the last one");
        assert_eq!(count(&tally), 0);
        assert_eq!((response_times::count(&tally.counts().durations), tally.counts().errors), (2, 1));
    }
}
