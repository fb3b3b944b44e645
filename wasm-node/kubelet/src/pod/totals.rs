//! Counters of a node over all its pods; they outlive the pods, so that no counter decreases.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use images::Histogram;

/// The buckets of the pod start histogram, in seconds (upstream's, and finer ones for fast starts).
pub(crate) const START_SECONDS: [f64; 13] =
    [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 60.0, 300.0];

/// The buckets of the pull histograms, in seconds (upstream's).
const PULL_SECONDS: [f64; 18] = [
    1.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 180.0, 240.0, 300.0, 360.0, 480.0, 600.0, 900.0, 1200.0, 1800.0, 2700.0,
    3600.0,
];
/// The size classes of pulls with their lower bounds in bytes (upstream's, up to the maximum size here).
const PULL_SIZES: [(u64, &str); 5] = [
    (1 << 30, "1GB-5GB"),
    (500 << 20, "500MB-1GB"),
    (100 << 20, "100MB-500MB"),
    (10 << 20, "10MB-100MB"),
    (0, "0-10MB"),
];

/// Image volumes of created containers, as upstream counts them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct ImageVolumes {
    /// Image volumes of the containers.
    pub(crate) requested: u64,
    pub(crate) mounted: u64,
    pub(crate) failed: u64,
}

#[derive(Debug)]
struct Counters {
    /// The CPU time of ended containers.
    ended: Duration,
    /// The largest sum that was reported.
    shown: Duration,
    starts: Histogram,
    image_volumes: ImageVolumes,
    /// Pull histograms by size class.
    pulls: BTreeMap<&'static str, Histogram>,
}

impl Default for Counters {
    fn default() -> Self {
        let (ended, shown, image_volumes) = Default::default();
        Self { ended, shown, starts: Histogram::new(&START_SECONDS), image_volumes, pulls: BTreeMap::new() }
    }
}

/// The counters of one node.
#[derive(Debug, Default)]
pub(crate) struct Totals(Mutex<Counters>);

impl Totals {
    fn with<T>(&self, act: impl FnOnce(&mut Counters) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Adds the CPU time of an ended container.
    pub(crate) fn ended(&self, cpu: Duration) {
        self.with(|counters| counters.ended += cpu);
    }

    /// The CPU time of all containers; `live` is that of the running ones.
    pub(crate) fn cpu(&self, live: Duration) -> Duration {
        self.with(|counters| {
            // Between its end and this count, a container is in neither sum.
            counters.shown = counters.shown.max(counters.ended + live);
            counters.shown
        })
    }

    /// Records a pod's start latency: from its adoption to its readiness.
    pub(crate) fn started(&self, after: Duration) {
        self.with(|counters| counters.starts.observe(after));
    }

    pub(crate) fn starts(&self) -> Histogram {
        self.with(|counters| counters.starts.clone())
    }

    /// Adds the image volumes of a creation, successful or not.
    pub(crate) fn image_volumes(&self, more: ImageVolumes) {
        self.with(|Counters { image_volumes, .. }| {
            image_volumes.requested += more.requested;
            image_volumes.mounted += more.mounted;
            image_volumes.failed += more.failed;
        });
    }

    pub(crate) fn all_image_volumes(&self) -> ImageVolumes {
        self.with(|counters| counters.image_volumes)
    }

    /// Records a pull of an image of that size, including its wait in the queue.
    pub(crate) fn pulled(&self, size_bytes: u64, took: Duration) {
        let size = PULL_SIZES.iter().find(|(from, _)| size_bytes > *from).map_or("N/A", |(_, size)| size);
        self.with(|counters| {
            counters.pulls.entry(size).or_insert_with(|| Histogram::new(&PULL_SECONDS)).observe(took);
        });
    }

    pub(crate) fn pulls(&self) -> BTreeMap<&'static str, Histogram> {
        self.with(|counters| counters.pulls.clone())
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
        let within: Vec<u64> = starts.within().map(|(_, count)| count).collect();
        assert_eq!((within[2], within[3], within[12], starts.count()), (0, 1, 1, 2));
    }

    #[test]
    fn pulls_are_counted_by_size() {
        let totals = Totals::default();
        for size in [0, 1, 10 << 20, (10 << 20) + 1, 2 << 30] {
            totals.pulled(size, Duration::from_secs(2));
        }
        let sizes: Vec<_> = totals.pulls().into_iter().map(|(size, pulls)| (size, pulls.count())).collect();
        assert_eq!(sizes, [("0-10MB", 2), ("10MB-100MB", 1), ("1GB-5GB", 1), ("N/A", 1)]);
    }
}
