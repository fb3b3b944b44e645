//! What a node counts over all pods that it ever ran: a counter never falls because a pod went.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Upper bounds of the histogram of a pod's start, in seconds (upstream's, and finer ones below: our pods are quick).
pub(crate) const START_SECONDS: [f64; 13] =
    [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 60.0, 300.0];

/// The starts of pods, as a histogram.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Starts {
    /// How many took no longer than each bound.
    pub(crate) within: [u64; START_SECONDS.len()],
    pub(crate) count: u64,
    pub(crate) sum_seconds: f64,
}

#[derive(Debug, Default)]
struct Inner {
    /// CPU time of containers that have ended.
    ended: Duration,
    /// The largest sum that was ever shown.
    shown: Duration,
    starts: Starts,
}

/// The sums of one node.
#[derive(Debug, Default)]
pub(crate) struct Totals(Mutex<Inner>);

impl Totals {
    fn with<T>(&self, act: impl FnOnce(&mut Inner) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A container has ended that had used so much.
    pub(crate) fn ended(&self, cpu: Duration) {
        self.with(|inner| inner.ended += cpu);
    }

    /// The CPU time of all containers, where those that run have used `live`.
    pub(crate) fn cpu(&self, live: Duration) -> Duration {
        self.with(|inner| {
            // Between its end and its being counted here a container is in neither sum.
            inner.shown = inner.shown.max(inner.ended + live);
            inner.shown
        })
    }

    /// A pod was ready so long after the node had seen it.
    pub(crate) fn started(&self, after: Duration) {
        let seconds = after.as_secs_f64();
        self.with(|Inner { starts, .. }| {
            let bounds = START_SECONDS.iter().zip(&mut starts.within);
            bounds.filter(|(bound, _)| seconds <= **bound).for_each(|(_, count)| *count += 1);
            starts.count += 1;
            starts.sum_seconds += seconds;
        });
    }

    pub(crate) fn starts(&self) -> Starts {
        self.with(|inner| inner.starts.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_never_falls() {
        let (totals, second) = (Totals::default(), Duration::from_secs);
        assert_eq!(totals.cpu(second(5)), second(5));
        assert_eq!(totals.cpu(second(2)), second(5), "one of 3 s has gone and isn't counted yet");
        totals.ended(second(3));
        assert_eq!(totals.cpu(second(3)), second(6));
    }

    #[test]
    fn starts_stay_counted() {
        let totals = Totals::default();
        totals.started(Duration::from_millis(30));
        totals.started(Duration::from_secs(400));
        let starts = totals.starts();
        assert_eq!((starts.within[2], starts.within[3], starts.within[12], starts.count), (0, 1, 1, 2));
    }
}
