//! The scheduler's metrics, under upstream's names; clones share the values. Plugin metrics cover WebAssembly plugins.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::queue::Depth;
use crate::wasm::{CallPoint, PluginMetrics};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Attempt {
    result: &'static str,
    profile: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Attempts {
    attempts: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Queue {
    queue: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Execution {
    plugin: &'static str,
    extension_point: &'static str,
    status: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PluginFailure {
    plugin: &'static str,
    reason: &'static str,
}

/// The result of a scheduling attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Scheduled,
    Unschedulable,
    Error,
}

/// Attempts above this number share one label value, as upstream.
const ATTEMPTS_MAX: u32 = 16;

/// The metrics. Clones share the values.
#[derive(Debug, Clone)]
pub struct Metrics {
    attempts: Family<Attempt, Counter>,
    attempt_seconds: Family<Attempt, Histogram, fn() -> Histogram>,
    pod_seconds: Family<Attempts, Histogram, fn() -> Histogram>,
    pending: Family<Queue, Gauge>,
    preemptions: Counter,
    victims: Histogram,
    executions: Family<Execution, Histogram, fn() -> Histogram>,
    failures: Family<PluginFailure, Counter>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            attempts: Family::default(),
            attempt_seconds: Family::new_with_constructor(|| Histogram::new(exponential_buckets(0.001, 2.0, 15))),
            pod_seconds: Family::new_with_constructor(|| Histogram::new(exponential_buckets(0.01, 2.0, 20))),
            pending: Family::default(),
            preemptions: Counter::default(),
            victims: Histogram::new(exponential_buckets(1.0, 2.0, 7)),
            executions: Family::new_with_constructor(|| Histogram::new(exponential_buckets(0.00001, 1.5, 20))),
            failures: Family::default(),
        }
    }
}

impl Metrics {
    /// Registers the metrics with `registry`.
    pub fn register(&self, registry: &mut Registry) {
        let help = "Number of attempts to schedule pods, by the result";
        registry.register("scheduler_schedule_attempts", help, self.attempts.clone());
        let help = "Scheduling attempt latency in seconds";
        registry.register("scheduler_scheduling_attempt_duration_seconds", help, self.attempt_seconds.clone());
        let help = "Latency in seconds from a pod's first sight to its binding, over all attempts";
        registry.register("scheduler_pod_scheduling_duration_seconds", help, self.pod_seconds.clone());
        let help = "Total preemption attempts in the cluster till now";
        registry.register("scheduler_preemption_attempts", help, self.preemptions.clone());
        let help = "Number of selected preemption victims";
        registry.register("scheduler_preemption_victims", help, self.victims.clone());
        let help = "Duration of running a WebAssembly plugin at an extension point, for all nodes at once";
        registry.register("scheduler_plugin_execution_duration_seconds", help, self.executions.clone());
        let help = "Times that a WebAssembly plugin failed, by the reason";
        registry.register("coracle_scheduler_plugin_failures", help, self.failures.clone());
        registry.register("scheduler_pending_pods", "Number of pending pods, by the queue", self.pending.clone());
    }

    pub(crate) fn tried(&self, profile: &str, outcome: Outcome, took: Duration) {
        let result = match outcome {
            Outcome::Scheduled => "scheduled",
            Outcome::Unschedulable => "unschedulable",
            Outcome::Error => "error",
        };
        let attempt = Attempt { result, profile: profile.to_owned() };
        self.attempts.get_or_create(&attempt).inc();
        self.attempt_seconds.get_or_create(&attempt).observe(took.as_secs_f64());
    }

    pub(crate) fn bound(&self, attempts: u32, took: Duration) {
        let attempts = Attempts { attempts: attempts.min(ATTEMPTS_MAX) };
        self.pod_seconds.get_or_create(&attempts).observe(took.as_secs_f64());
    }

    /// Counts a preemption with its number of victims.
    pub(crate) fn preempted(&self, victims: usize) {
        self.preemptions.inc();
        if victims > 0 {
            self.victims.observe(f64::from(u32::try_from(victims).unwrap_or(u32::MAX)));
        }
    }

    pub(crate) fn waiting(&self, depth: Depth) {
        let figures = [("active", depth.active), ("backoff", depth.backoff), ("unschedulable", depth.unschedulable)];
        for (queue, pods) in figures {
            self.pending.get_or_create(&Queue { queue }).set(i64::try_from(pods).unwrap_or(i64::MAX));
        }
    }
}

impl PluginMetrics for Metrics {
    fn observe_call(&self, plugin: &'static str, at: CallPoint, status: &'static str, took: Duration) {
        let execution = Execution { plugin, extension_point: at.as_str(), status };
        self.executions.get_or_create(&execution).observe(took.as_secs_f64());
    }

    fn observe_failure(&self, plugin: &'static str, reason: &'static str) {
        self.failures.get_or_create(&PluginFailure { plugin, reason }).inc();
    }
}
