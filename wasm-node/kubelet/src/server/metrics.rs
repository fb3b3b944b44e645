//! Metrics of a node in the text format: `/metrics`, `/metrics/resource`, `/stats/summary`. Computed on request.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use images::{Histogram, ProviderMetrics};
use jiff::Timestamp;
use machinery_api::time;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::pod_states::{self, ActivePod};
use super::rates::NODE_COUNTER;
use super::{Kubelet, rates};
use crate::pod::worker::{ContainerSnapshot, PodSnapshot, PodView};
use crate::responses::ResponseMeter;
use runtime_api::Stats;
use runtime_api::ledger::Resource;

pub(super) struct RunningContainer {
    namespace: String,
    pod: String,
    pub(super) container: String,
    since: Timestamp,
    stats: Stats,
    /// Measures its responses, if it serves.
    pub(super) responses: Option<Arc<ResponseMeter>>,
    dropped: (u64, u64),
}

impl RunningContainer {
    pub(super) fn labels(&self) -> [(&str, &str); 3] {
        [("container", &self.container), ("namespace", &self.namespace), ("pod", &self.pod)]
    }
}

/// A pod with running containers.
pub(super) struct RunningPod {
    namespace: String,
    pod: String,
    uid: String,
    pub(super) containers: Vec<RunningContainer>,
    /// CPU time of all runs of its containers.
    cpu: Duration,
    memory_bytes: u64,
}

impl RunningPod {
    #[cfg(test)]
    pub(super) fn of_tests(pod: &str, responses: Option<Arc<ResponseMeter>>) -> Self {
        let container = RunningContainer {
            namespace: "n".into(),
            pod: pod.into(),
            container: "c".into(),
            since: Timestamp::UNIX_EPOCH,
            stats: Stats::default(),
            responses,
            dropped: (0, 0),
        };
        Self {
            namespace: "n".into(),
            pod: pod.into(),
            uid: pod.into(),
            containers: vec![container],
            cpu: Duration::ZERO,
            memory_bytes: 0,
        }
    }

    pub(super) fn reference(&self) -> Value {
        json!({"name": self.pod, "namespace": self.namespace, "uid": self.uid})
    }
}

fn running(kubelet: &Kubelet) -> Vec<RunningPod> {
    running_pods(kubelet, |_| true)
}

/// The wanted pods that have running containers, sorted.
pub(super) fn running_pods(kubelet: &Kubelet, wants: impl Fn(&PodView) -> bool) -> Vec<RunningPod> {
    let views = kubelet.pods.all().into_iter().filter(|view| wants(view));
    let mut all: Vec<RunningPod> = views.filter_map(|view| running_pod(&view.snapshot())).collect();
    all.sort_by(|a, b| (&a.namespace, &a.pod).cmp(&(&b.namespace, &b.pod)));
    all
}

fn running_pod(seen: &PodSnapshot) -> Option<RunningPod> {
    let of = |container: &ContainerSnapshot| {
        let (running, since) = container.running.as_ref()?;
        Some(RunningContainer {
            namespace: seen.id.namespace.clone(),
            pod: seen.id.name.clone(),
            container: container.name.to_string(),
            since: *since,
            stats: running.stats(),
            responses: container.responses.clone(),
            dropped: container.log.dropped(),
        })
    };
    let containers: Vec<RunningContainer> = seen.containers.iter().filter_map(of).collect();
    let cpu: Duration = containers.iter().map(|one| one.stats.cpu).sum();
    (!containers.is_empty()).then(|| RunningPod {
        namespace: seen.id.namespace.clone(),
        pod: seen.id.name.clone(),
        uid: seen.id.uid.clone(),
        cpu: seen.cpu_before + cpu,
        memory_bytes: containers.iter().map(|one| one.stats.memory_bytes).sum(),
        containers,
    })
}

/// Yields all running containers.
pub(super) fn each(pods: &[RunningPod]) -> impl Iterator<Item = &RunningContainer> + Clone {
    pods.iter().flat_map(|pod| &pod.containers)
}

/// Returns the pods that aren't finished, with the status that the node reports.
fn active(kubelet: &Kubelet) -> Vec<ActivePod> {
    let of = |seen: PodSnapshot| {
        let status = seen.status.peek();
        let (namespace, pod) = (seen.id.namespace.clone(), seen.id.name.clone());
        pod_states::is_active(&status).then_some(ActivePod { namespace, pod, status })
    };
    let mut all: Vec<ActivePod> = kubelet.pods.all().into_iter().filter_map(|view| of(view.snapshot())).collect();
    all.sort_by(|a, b| (&a.namespace, &a.pod).cmp(&(&b.namespace, &b.pod)));
    all
}

/// Metrics in the text format.
#[derive(Default)]
pub(super) struct MetricsText(String);

impl MetricsText {
    #[cfg(test)]
    pub(super) fn text(&self) -> &str {
        &self.0
    }

    pub(super) fn head(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a string can't fail.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    pub(super) fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl std::fmt::Display) {
        let labels: Vec<String> = labels
            .iter()
            .map(|(name, value)| {
                let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
                format!("{name}=\"{value}\"")
            })
            .collect();
        let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        let _ = writeln!(self.0, "{name}{labels} {value}");
    }

    fn histogram(&mut self, name: &str, labels: &[(&str, &str)], histogram: &Histogram) {
        self.buckets(name, labels, histogram.within(), (histogram.sum_seconds(), histogram.count()));
    }

    /// Writes a histogram: each upper bound with the count up to it, and the sum in seconds with the count of all.
    pub(super) fn buckets(
        &mut self,
        name: &str,
        labels: &[(&str, &str)],
        within: impl Iterator<Item = (f64, u64)>,
        (seconds, count): (f64, u64),
    ) {
        let bounds = within.map(|(bound, count)| (bound.to_string(), count));
        for (bound, count) in bounds.chain([("+Inf".to_owned(), count)]) {
            let labels: Vec<_> = labels.iter().copied().chain([("le", bound.as_str())]).collect();
            self.sample(&format!("{name}_bucket"), &labels, count);
        }
        self.sample(&format!("{name}_sum"), labels, seconds);
        self.sample(&format!("{name}_count"), labels, count);
    }

    /// Writes one value for each running container.
    fn each(
        &mut self,
        all: &[RunningPod],
        (name, kind, help): (&str, &str, &str),
        value: impl Fn(&RunningContainer) -> f64,
    ) {
        self.head(name, kind, help);
        for one in each(all) {
            self.sample(name, &one.labels(), value(one));
        }
    }
}

impl IntoResponse for MetricsText {
    fn into_response(self) -> Response {
        ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], self.0).into_response()
    }
}

pub(super) async fn resource(State(kubelet): State<Kubelet>) -> Response {
    let all = running(&kubelet);
    let mut text = MetricsText::default();
    let cpu = |one: &RunningContainer| one.stats.cpu.as_secs_f64();
    text.each(
        &all,
        (
            "container_cpu_usage_seconds_total",
            "counter",
            "Cumulative cpu time consumed by the container in core-seconds",
        ),
        cpu,
    );
    text.each(
        &all,
        ("container_memory_working_set_bytes", "gauge", "Current working set of the container in bytes"),
        |one| one.stats.memory_bytes as f64,
    );
    text.each(
        &all,
        ("container_start_time_seconds", "gauge", "Start time of the container since unix epoch in seconds"),
        |one| one.since.as_millisecond() as f64 / 1000.0,
    );
    text.head("pod_cpu_usage_seconds_total", "counter", "Cumulative cpu time consumed by the pod in core-seconds");
    for one in &all {
        text.sample(
            "pod_cpu_usage_seconds_total",
            &[("namespace", &one.namespace), ("pod", &one.pod)],
            one.cpu.as_secs_f64(),
        );
    }
    text.head("pod_memory_working_set_bytes", "gauge", "Current working set of the pod in bytes");
    for one in &all {
        let labels = [("namespace", &*one.namespace), ("pod", &*one.pod)];
        text.sample("pod_memory_working_set_bytes", &labels, one.memory_bytes);
    }
    let total = kubelet.pods.totals.cpu(each(&all).map(|one| one.stats.cpu).sum()).as_secs_f64();
    text.head("node_cpu_usage_seconds_total", "counter", "Cumulative cpu time consumed by the node in core-seconds");
    text.sample("node_cpu_usage_seconds_total", &[], total);
    text.head("node_memory_working_set_bytes", "gauge", "Current working set of the node in bytes");
    text.sample("node_memory_working_set_bytes", &[], all.iter().map(|one| one.memory_bytes).sum::<u64>());
    text.head("resource_scrape_error", "gauge", "1 if there was an error while getting container metrics, 0 otherwise");
    text.sample("resource_scrape_error", &[], 0);
    text.into_response()
}

/// Writes metrics of images and credential providers. The providers belong to the process, so all its nodes report the
/// same values.
fn images(text: &mut MetricsText, kubelet: &Kubelet) {
    let totals = &kubelet.pods.totals;
    let name = "kubelet_image_pull_duration_seconds";
    text.head(name, "histogram", "Duration in seconds to pull an image.");
    for (size, pulls) in &totals.pulls() {
        text.histogram(name, &[("image_size_in_bytes", size)], pulls);
    }
    let volumes = totals.all_image_volumes();
    for (what, help, value) in [
        ("requested", "Number of requested image volumes.", volumes.requested),
        ("mounted_succeed", "Number of successful image volume mounts.", volumes.mounted),
        ("mounted_errors", "Number of failed image volume mounts.", volumes.failed),
    ] {
        let name = format!("kubelet_image_volume_{what}_total");
        text.head(&name, "counter", help);
        text.sample(&name, &[], value);
    }
    let ProviderMetrics { config_hash, calls } = kubelet.images.provider_metrics();
    let Some(hash) = config_hash else { return };
    let name = "kubelet_credential_provider_config_info";
    text.head(name, "gauge", "Information about the last applied credential provider configuration with hash as label");
    text.sample(name, &[("hash", &hash)], 1);
    let name = "kubelet_credential_provider_plugin_duration";
    text.head(name, "histogram", "Duration of execution in seconds for credential provider plugin");
    for (provider, calls, _) in calls.iter().filter(|(_, calls, _)| calls.count() > 0) {
        text.histogram(name, &[("plugin_name", provider)], calls);
    }
    let name = "kubelet_credential_provider_plugin_errors_total";
    text.head(name, "counter", "Number of errors from credential provider plugin");
    for (provider, _, errors) in calls.iter().filter(|(_, _, errors)| *errors > 0) {
        text.sample(name, &[("plugin_name", provider)], errors);
    }
}

/// Writes the use of the network's resources, and what limits rejected. Bytes and failures by `limits.memory` have metrics of
/// their own; a container without a rejection has no row.
fn resources(text: &mut MetricsText, all: &[RunningPod]) {
    let network = [Resource::Connections, Resource::Sockets, Resource::Listeners, Resource::Datagrams];
    text.head("coracle_guest_resources", "gauge", "Connections, sockets, ports, and queued datagrams in use");
    for (one, resource) in each(all).flat_map(|one| network.map(|resource| (one, resource))) {
        let [container, namespace, pod] = one.labels();
        let labels = [container, namespace, pod, ("resource", resource.label())];
        text.sample("coracle_guest_resources", &labels, one.stats.resources[resource as usize].used);
    }
    text.head(
        "coracle_guest_rejections_total",
        "counter",
        "Rejections by a limit of the socket, container, pod or node",
    );
    for (one, resource) in each(all).flat_map(|one| Resource::ALL.map(|resource| (one, resource))) {
        let of = one.stats.resources[resource as usize];
        let [container, namespace, pod] = one.labels();
        for (level, count) in [
            ("node", of.rejected_by_node),
            ("pod", of.rejected_by_pod),
            ("container", of.rejected_by_container),
            ("socket", of.rejected_by_socket),
        ] {
            if count > 0 {
                let labels = [container, ("level", level), namespace, pod, ("resource", resource.label())];
                text.sample("coracle_guest_rejections_total", &labels, count);
            }
        }
    }
}

pub(super) async fn metrics(State(kubelet): State<Kubelet>) -> Response {
    let all = running(&kubelet);
    let mut text = MetricsText::default();
    text.head("kubelet_node_name", "gauge", "The node's name. The count is always 1.");
    text.sample("kubelet_node_name", &[("node", &kubelet.node)], 1);
    text.head("kubelet_running_pods", "gauge", "Number of pods that have a running pod sandbox");
    text.sample("kubelet_running_pods", &[], all.len());
    text.head("kubelet_running_containers", "gauge", "Number of containers currently running");
    text.sample("kubelet_running_containers", &[("container_state", "running")], each(&all).count());
    text.head("kubelet_desired_pods", "gauge", "The number of pods the kubelet is being instructed to run.");
    text.sample("kubelet_desired_pods", &[("static", "")], kubelet.pods.all().len());
    pod_states::write(&mut text, &active(&kubelet));
    let name = "kubelet_pod_start_sli_duration_seconds";
    text.head(name, "histogram", "Duration in seconds from a pod being seen by the node to it being ready");
    text.histogram(name, &[], &kubelet.pods.totals.starts());
    images(&mut text, &kubelet);

    text.0.push_str(&kubelet.requests.text());

    text.head("coracle_guest_memory_bytes", "gauge", "Memory that all guests of this process hold");
    text.sample("coracle_guest_memory_bytes", &[], kubelet.runtime.ledger().used(Resource::Memory));
    let count = |value: u64| value as f64;
    text.each(&all, ("coracle_instances_started_total", "counter", "Instances made"), |one| {
        count(one.stats.instances_started)
    });
    text.each(&all, ("coracle_instances_live", "gauge", "Instances that live"), |one| count(one.stats.instances_live));
    text.each(&all, ("coracle_requests_total", "counter", "Requests answered"), |one| count(one.stats.requests));
    text.each(&all, ("coracle_fuel_used_total", "counter", "Fuel used, where it is metered"), |one| {
        count(one.stats.fuel_used)
    });
    text.each(&all, ("coracle_memory_peak_bytes", "gauge", "The most that live instances ever held"), |one| {
        count(one.stats.memory_peak_bytes)
    });
    text.each(&all, ("coracle_cpu_throttled_seconds_total", "counter", "Time held back by limits.cpu"), |one| {
        one.stats.cpu_throttled.as_secs_f64()
    });
    text.each(&all, ("coracle_log_dropped_bytes_total", "counter", "Log bytes dropped for the rate"), |one| {
        count(one.dropped.1)
    });
    text.head("coracle_failures_total", "counter", "Requests and runs that a limit or a trap ended");
    for one in each(&all) {
        let failures = one.stats.failures;
        for (reason, value) in [
            ("trap", failures.trap),
            ("memory", failures.memory),
            ("fuel", failures.fuel),
            ("timeout", failures.timeout),
            ("no-response", failures.no_response),
        ] {
            let [container, namespace, pod] = one.labels();
            text.sample("coracle_failures_total", &[container, namespace, pod, ("reason", reason)], value);
        }
    }
    resources(&mut text, &all);
    super::responses::write(&mut text, &all);
    text.into_response()
}

/// Returns the key of a container's rate.
fn counter_key(one: &RunningContainer) -> String {
    format!("{}/{}/{}", one.namespace, one.pod, one.container)
}

/// Reads a container's counter.
type ReadCounter = fn(&RunningContainer) -> u64;
/// The custom metrics for autoscalers: the rates of these counters.
const RATE_METRICS: [(&str, ReadCounter); 3] = [
    ("http_requests_per_second", |one| one.stats.requests.saturating_sub(one.stats.probes)),
    ("http_errors_per_second", |one| {
        let responses = one.responses.as_ref().and_then(|meter| meter.totals());
        responses.map_or(0, |all| all.counts.errors).saturating_add(one.stats.cut)
    }),
    ("fuel_per_second", |one| one.stats.fuel_used),
];

/// Converts a count to a duration, as rates are computed from durations: the rate is then in thousandths per second.
fn count_as_duration(count: u64) -> Duration {
    Duration::from_micros(count)
}

/// Samples CPU time and responses until `stop`.
pub(super) async fn sample(kubelet: &Kubelet, stop: &CancellationToken) {
    let mut ticks = kubelet.env.interval(rates::PERIOD);
    while stop.run_until_cancelled(ticks.tick()).await.is_some() {
        let all = running(kubelet);
        let total = kubelet.pods.totals.cpu(each(&all).map(|one| one.stats.cpu).sum());
        let counters = each(&all).flat_map(|one| {
            let rate_counters = RATE_METRICS
                .map(|(metric, count)| (format!("{}#{metric}", counter_key(one)), count_as_duration(count(one))));
            [(counter_key(one), one.stats.cpu)].into_iter().chain(rate_counters)
        });
        kubelet.rates.sample(kubelet.env.elapsed(), counters.chain([(NODE_COUNTER.to_owned(), total)]));
        let earlier = kubelet.rates.sampled_at(NODE_COUNTER).unwrap_or_default();
        each(&all).filter_map(|one| one.responses.as_ref()).for_each(|meter| meter.sample(earlier));
    }
}

/// How long a container has run.
pub(super) fn age(one: &RunningContainer, wall: Timestamp) -> Duration {
    Duration::try_from(wall.duration_since(one.since)).unwrap_or_default()
}

/// The custom metrics of a container.
pub(super) fn user_defined(
    kubelet: &Kubelet,
    one: &RunningContainer,
    wall: Timestamp,
    elapsed: Duration,
) -> Vec<Value> {
    let rates = RATE_METRICS.iter().filter_map(|(metric, count)| {
        let name = format!("{}#{metric}", counter_key(one));
        let rate = kubelet.rates.rate(&name, elapsed, count_as_duration(count(one)), age(one, wall))?;
        Some(json!({"name": metric, "type": "gauge", "units": "1/s", "time": time::seconds(wall),
            "value": rate.nano_cores as f64 / 1000.0, "windowSeconds": rate.window.as_secs_f64()}))
    });
    rates.collect()
}

pub(super) async fn summary(State(kubelet): State<Kubelet>) -> Response {
    let (wall, elapsed) = (kubelet.env.now(), kubelet.env.elapsed());
    let now = time::seconds(wall);
    let all = running(&kubelet);
    let rated = |mut cpu: Value, name: &str, used: Duration, age: Duration| {
        if let Some(rate) = kubelet.rates.rate(name, elapsed, used, age) {
            cpu["usageNanoCores"] = json!(rate.nano_cores);
            // Our own field: the duration that the rate covers.
            cpu["windowSeconds"] = json!(rate.window.as_secs_f64());
        }
        cpu
    };
    let usage = |stats: &Stats| {
        let cpu = u64::try_from(stats.cpu.as_nanos()).unwrap_or(u64::MAX);
        (
            json!({"time": now, "usageCoreNanoSeconds": cpu}),
            json!({"time": now, "usageBytes": stats.memory_bytes, "workingSetBytes": stats.memory_bytes}),
        )
    };
    let container = |one: &RunningContainer| {
        let (cpu, memory) = usage(&one.stats);
        let cpu = rated(cpu, &counter_key(one), one.stats.cpu, age(one, wall));
        let mut of =
            json!({"name": one.container, "startTime": time::seconds(one.since), "cpu": cpu, "memory": memory});
        of["userDefinedMetrics"] = user_defined(&kubelet, one, wall, elapsed).into();
        of
    };
    let pod = |pod: &RunningPod| {
        let sum = Stats { cpu: pod.cpu, memory_bytes: pod.memory_bytes, ..Stats::default() };
        let (cpu, memory) = usage(&sum);
        let since = pod.containers.iter().map(|one| one.since).min().map(time::seconds);
        json!({
            "podRef": pod.reference(),
            "startTime": since, "cpu": cpu, "memory": memory,
            "containers": pod.containers.iter().map(container).collect::<Vec<_>>(),
        })
    };
    let pods: Vec<Value> = all.iter().map(pod).collect();
    let mut total = Stats::default();
    for one in each(&all) {
        total.cpu += one.stats.cpu;
        total.memory_bytes += one.stats.memory_bytes;
    }
    total.cpu = kubelet.pods.totals.cpu(total.cpu);
    let (cpu, memory) = usage(&total);
    // The node's counter began with the agent, some seconds before its first sample.
    let cpu = rated(cpu, NODE_COUNTER, total.cpu, elapsed);
    super::json(&json!({"node": {"nodeName": kubelet.node, "cpu": cpu, "memory": memory}, "pods": pods}))
}
