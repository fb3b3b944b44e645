//! What a node counts over all pods that it ever ran: a counter never falls because a pod went.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::image::histogram::Histogram;

/// Upper bounds of the histogram of a pod's start, in seconds (upstream's, and finer ones below: our pods are quick).
pub(crate) const START_SECONDS: [f64; 13] =
    [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 60.0, 300.0];

/// Upper bounds of the histogram of pulls, in seconds (upstream's).
const PULL_SECONDS: [f64; 18] = [
    1.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 180.0, 240.0, 300.0, 360.0, 480.0, 600.0, 900.0, 1200.0, 1800.0, 2700.0,
    3600.0,
];
/// Sizes that pulls are told apart by, each from a number of bytes on (upstream's, as far as images here can be).
const PULL_SIZES: [(u64, &str); 5] = [
    (1 << 30, "1GB-5GB"),
    (500 << 20, "500MB-1GB"),
    (100 << 20, "100MB-500MB"),
    (10 << 20, "10MB-100MB"),
    (0, "0-10MB"),
];

/// Image volumes of containers that were begun, as upstream counts them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct ImageVolumes {
    /// Of their pods.
    pub(crate) requested: u64,
    pub(crate) mounted: u64,
    pub(crate) failed: u64,
}

#[derive(Debug)]
struct Inner {
    /// CPU time of containers that have ended.
    ended: Duration,
    /// The largest sum that was ever shown.
    shown: Duration,
    starts: Histogram,
    image_volumes: ImageVolumes,
    /// By the size of the image.
    pulls: BTreeMap<&'static str, Histogram>,
}

impl Default for Inner {
    fn default() -> Self {
        let (ended, shown, image_volumes) = Default::default();
        Self { ended, shown, starts: Histogram::new(&START_SECONDS), image_volumes, pulls: BTreeMap::new() }
    }
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
        self.with(|inner| inner.starts.observe(after));
    }

    pub(crate) fn starts(&self) -> Histogram {
        self.with(|inner| inner.starts.clone())
    }

    /// A container was begun, or could not be, with that many of each.
    pub(crate) fn image_volumes(&self, more: ImageVolumes) {
        self.with(|Inner { image_volumes, .. }| {
            image_volumes.requested += more.requested;
            image_volumes.mounted += more.mounted;
            image_volumes.failed += more.failed;
        });
    }

    pub(crate) fn all_image_volumes(&self) -> ImageVolumes {
        self.with(|inner| inner.image_volumes)
    }

    /// An image of that size was pulled, with what it waited for others.
    pub(crate) fn pulled(&self, size_bytes: u64, took: Duration) {
        let size = PULL_SIZES.iter().find(|(from, _)| size_bytes > *from).map_or("N/A", |(_, size)| size);
        self.with(|inner| {
            inner.pulls.entry(size).or_insert_with(|| Histogram::new(&PULL_SECONDS)).observe(took);
        });
    }

    pub(crate) fn pulls(&self) -> BTreeMap<&'static str, Histogram> {
        self.with(|inner| inner.pulls.clone())
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
    fn pulls_are_told_apart_by_size() {
        let totals = Totals::default();
        for size in [0, 1, 10 << 20, (10 << 20) + 1, 2 << 30] {
            totals.pulled(size, Duration::from_secs(2));
        }
        let sizes: Vec<_> = totals.pulls().into_iter().map(|(size, pulls)| (size, pulls.count())).collect();
        assert_eq!(sizes, [("0-10MB", 2), ("10MB-100MB", 1), ("1GB-5GB", 1), ("N/A", 1)]);
    }
}
