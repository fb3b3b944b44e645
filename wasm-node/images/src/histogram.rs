//! A histogram of durations for the metrics endpoint.

use std::time::Duration;

/// Upper bounds in seconds of upstream's metrics, where a metric sets none.
pub(super) const DEFAULT_SECONDS: [f64; 11] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// Counts of durations by bucket.
#[derive(Debug, Clone, PartialEq)]
pub struct Histogram {
    bounds: &'static [f64],
    within: Vec<u64>,
    count: u64,
    sum_seconds: f64,
}

impl Histogram {
    /// Creates an empty histogram with these upper bounds in seconds, in ascending order.
    #[must_use]
    pub fn new(bounds: &'static [f64]) -> Self {
        Self { bounds, within: vec![0; bounds.len()], count: 0, sum_seconds: 0.0 }
    }

    /// Counts a duration.
    pub fn observe(&mut self, took: Duration) {
        let seconds = took.as_secs_f64();
        let all = self.bounds.iter().zip(&mut self.within);
        all.filter(|(bound, _)| seconds <= **bound).for_each(|(_, count)| *count += 1);
        self.count += 1;
        self.sum_seconds += seconds;
    }

    /// Yields each upper bound with the number of durations up to it.
    pub fn within(&self) -> impl Iterator<Item = (f64, u64)> + '_ {
        self.bounds.iter().copied().zip(self.within.iter().copied())
    }

    /// Returns the number of durations.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Returns the sum of the durations, in seconds.
    #[must_use]
    pub fn sum_seconds(&self) -> f64 {
        self.sum_seconds
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_counted_in_all_buckets_that_it_fits() {
        let mut histogram = Histogram::new(&[0.1, 1.0]);
        [50, 100, 900, 5000].into_iter().map(Duration::from_millis).for_each(|took| histogram.observe(took));
        assert_eq!(histogram.within().collect::<Vec<_>>(), [(0.1, 2), (1.0, 3)]);
        assert_eq!((histogram.count(), histogram.sum_seconds()), (4, 6.05));
    }
}
