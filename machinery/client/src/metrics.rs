//! The figures of the work queues, under upstream's names (`workqueue_*`).

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// The queue that a figure is about.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Name {
    name: &'static str,
}

/// The figures of all queues.
#[derive(Debug, Clone)]
pub struct Metrics {
    depth: Family<Name, Gauge>,
    adds: Family<Name, Counter>,
    retries: Family<Name, Counter>,
    waited: Family<Name, Histogram, fn() -> Histogram>,
    worked: Family<Name, Histogram, fn() -> Histogram>,
}

/// client-go's buckets: from 10 ns, times ten.
fn seconds() -> Histogram {
    Histogram::new(exponential_buckets(1e-8, 10.0, 10))
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            depth: Family::default(),
            adds: Family::default(),
            retries: Family::default(),
            waited: Family::new_with_constructor(seconds),
            worked: Family::new_with_constructor(seconds),
        }
    }
}

impl Metrics {
    /// Makes the figures visible in `registry`.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("workqueue_depth", "Current depth of the queue", self.depth.clone());
        registry.register("workqueue_adds", "Number of keys added to the queue", self.adds.clone());
        registry.register("workqueue_retries", "Number of keys added again after a failure", self.retries.clone());
        let help = "How long in seconds a key stays in the queue before it is worked on";
        registry.register("workqueue_queue_duration_seconds", help, self.waited.clone());
        let help = "How long in seconds working on a key takes";
        registry.register("workqueue_work_duration_seconds", help, self.worked.clone());
    }

    /// A key was added.
    pub(super) fn added(&self, name: &'static str) {
        self.adds.get_or_create(&Name { name }).inc();
    }

    /// A key failed and comes again.
    pub(super) fn retried(&self, name: &'static str) {
        self.retries.get_or_create(&Name { name }).inc();
    }

    /// A key was taken.
    pub(super) fn taken(&self, name: &'static str, waited: Duration, depth: usize) {
        self.waited.get_or_create(&Name { name }).observe(waited.as_secs_f64());
        self.depth.get_or_create(&Name { name }).set(depth as i64);
    }

    /// Work on a key ended.
    pub(super) fn done(&self, name: &'static str, worked: Duration) {
        self.worked.get_or_create(&Name { name }).observe(worked.as_secs_f64());
    }
}
