//! Work queue metrics under upstream's names (`workqueue_*`). Gauges are computed at collection, so a queue pays
//! nothing for them.

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::queue::{WorkQueue, WorkQueueMetrics};

/// Label: the queue.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct QueueLabel {
    name: &'static str,
}

/// Label: the controller.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ControllerLabel {
    controller: &'static str,
}

/// Metrics of all work queues.
#[derive(Debug, Clone)]
pub struct Metrics {
    /// Maps a controller's name to its queue's name.
    called: fn(&'static str) -> &'static str,
    queues: Queues,
    waited: Family<QueueLabel, Histogram, fn() -> Histogram>,
    worked: Family<QueueLabel, Histogram, fn() -> Histogram>,
    panics: Family<ControllerLabel, Counter>,
}

/// The live queues. Gauges are computed at collection.
#[derive(Debug, Clone, Default)]
struct Queues(Arc<Mutex<Vec<NamedQueue>>>);

/// A queue under its name.
type NamedQueue = (&'static str, Weak<WorkQueue>);

impl Queues {
    fn all(&self) -> Vec<(QueueLabel, WorkQueueMetrics)> {
        let mut queues = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        queues.retain(|(_, queue)| queue.strong_count() > 0);
        let living = queues.iter().filter_map(|(name, queue)| Some((QueueLabel { name }, queue.upgrade()?.metrics())));
        living.collect()
    }
}

/// client-go's buckets: from 10 ns, times ten.
fn seconds() -> Histogram {
    Histogram::new(exponential_buckets(1e-8, 10.0, 10))
}

impl Default for Metrics {
    fn default() -> Self {
        Self::called(|controller| controller)
    }
}

impl Metrics {
    /// Metrics with queue names from `called`.
    #[must_use]
    pub fn called(called: fn(&'static str) -> &'static str) -> Self {
        Self {
            called,
            queues: Queues::default(),
            waited: Family::new_with_constructor(seconds),
            worked: Family::new_with_constructor(seconds),
            panics: Family::default(),
        }
    }

    /// Adds the metrics to `registry`.
    pub fn register(&self, registry: &mut Registry) {
        registry.register_collector(Box::new(self.queues.clone()));
        let help = "How long in seconds a key stays in the queue before it is worked on";
        registry.register("workqueue_queue_duration_seconds", help, self.waited.clone());
        let help = "How long in seconds working on a key takes";
        registry.register("workqueue_work_duration_seconds", help, self.worked.clone());
        let help = "Number of panics while a controller reconciled an object; each is retried with back-off";
        registry.register("coracle_controller_panics", help, self.panics.clone());
    }

    /// Adds a controller's queue.
    pub(super) fn watch(&self, controller: &'static str, queue: &Arc<WorkQueue>) {
        let mut queues = self.queues.0.lock().unwrap_or_else(PoisonError::into_inner);
        queues.push(((self.called)(controller), Arc::downgrade(queue)));
        // Export zero as well: an alert needs a series that increases.
        drop(self.panics.get_or_create(&ControllerLabel { controller }));
    }

    /// Counts a panic in a pass.
    pub(super) fn count_panic(&self, controller: &'static str) {
        self.panics.get_or_create(&ControllerLabel { controller }).inc();
    }

    /// Records a key's time in the queue.
    pub(super) fn record_queue_time(&self, controller: &'static str, waited: Duration) {
        self.waited.get_or_create(&QueueLabel { name: (self.called)(controller) }).observe(waited.as_secs_f64());
    }

    /// Records a key's processing time.
    pub(super) fn record_work_time(&self, controller: &'static str, worked: Duration) {
        self.worked.get_or_create(&QueueLabel { name: (self.called)(controller) }).observe(worked.as_secs_f64());
    }
}

/// A gauge of each queue: name, help, getter.
type QueueGauge<T> = (&'static str, &'static str, fn(&WorkQueueMetrics) -> T);

impl Collector for Queues {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let queues = self.all();
        let counters: [QueueGauge<u64>; 2] = [
            ("workqueue_adds", "Number of keys added to the queue", |of| of.added),
            ("workqueue_retries", "Number of keys added to be worked on later, after a failure or a wait", |of| {
                of.retried
            }),
        ];
        for (metric, help, read) in counters {
            let kind = ConstCounter::new(0u64).metric_type();
            let mut encoder = encoder.encode_descriptor(metric, help, None, kind)?;
            for (name, metrics) in &queues {
                ConstCounter::new(read(metrics)).encode(encoder.encode_family(name)?)?;
            }
        }
        let gauges: [QueueGauge<f64>; 3] = [
            ("workqueue_depth", "Current depth of the queue", |of| of.waiting),
            (
                "workqueue_unfinished_work_seconds",
                "For how long the keys that are being worked on have been, in sum",
                |of| of.unfinished.as_secs_f64(),
            ),
            (
                "workqueue_longest_running_processor_seconds",
                "For how long the key has been worked on that is worked on for longest",
                |of| of.longest.as_secs_f64(),
            ),
        ];
        for (metric, help, read) in gauges {
            let kind = ConstGauge::new(0f64).metric_type();
            let mut encoder = encoder.encode_descriptor(metric, help, None, kind)?;
            for (name, metrics) in &queues {
                ConstGauge::new(read(metrics)).encode(encoder.encode_family(name)?)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use machinery_api::ObjectKey;
    use machinery_env::Env;

    #[tokio::test]
    async fn queue_metrics_have_upstreams_names() {
        let metrics = Metrics::called(|name| name.strip_suffix("-controller").unwrap_or(name));
        let mut registry = Registry::default();
        metrics.register(&mut registry);
        let queue = Arc::new(WorkQueue::new(Env::real(), crate::BackOff::DEFAULT));
        metrics.watch("job-controller", &queue);
        for name in ["a", "b", "b"] {
            queue.add(ObjectKey::new("n", name));
        }
        let taken = queue.next().await;
        metrics.record_queue_time("job-controller", taken.waited);
        queue.add_rate_limited(taken.key);
        let shown = || {
            let mut text = String::new();
            prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
            text
        };
        let text = shown();
        for line in [
            "workqueue_adds_total{name=\"job\"} 2",
            "workqueue_retries_total{name=\"job\"} 1",
            "workqueue_depth{name=\"job\"} 1.0",
            "workqueue_queue_duration_seconds_count{name=\"job\"} 1",
            "# TYPE workqueue_unfinished_work_seconds gauge",
            "coracle_controller_panics_total{controller=\"job-controller\"} 0",
        ] {
            assert!(text.lines().any(|shown| shown == line), "{line} in {text}");
        }
        let value = |text: &str| {
            let line =
                text.lines().find(|line| line.starts_with("workqueue_longest_running_processor_seconds{")).unwrap();
            line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()
        };
        assert!(value(&text) > 0.0);
        drop(queue);
        assert!(!shown().contains("workqueue_depth{"), "nobody works on it any more");
    }
}
