//! The server's own metrics, under upstream's names and labels.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::gauge_guard::GaugeGuard;
use super::info::RequestInfo;
use super::prometheus_text;

/// Upstream's buckets, in seconds.
const BUCKETS: [f64; 23] = [
    0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0, 20.0, 30.0,
    45.0, 60.0,
];

/// The labels of a request. Every value comes from the resource table or a fixed list, so clients cannot increase the
/// cardinality.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RequestLabels {
    verb: &'static str,
    dry_run: &'static str,
    group: Arc<str>,
    version: Arc<str>,
    resource: Arc<str>,
    subresource: &'static str,
    scope: &'static str,
    component: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResponseLabels {
    #[prometheus(flatten)]
    request: RequestLabels,
    code: u16,
}

/// The labels of a long-running request.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LongRunningLabels {
    verb: &'static str,
    group: Arc<str>,
    version: Arc<str>,
    resource: Arc<str>,
    subresource: &'static str,
    scope: &'static str,
    component: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct InFlightLabels {
    request_kind: &'static str,
}

/// The labels of connections that are upgraded to a WebSocket.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WebSocketLabels {
    subresource: &'static str,
    proxy_type: &'static str,
}

pub struct Metrics {
    registry: Arc<Mutex<Registry>>,
    requests: Family<ResponseLabels, Counter>,
    durations: Family<RequestLabels, Histogram, fn() -> Histogram>,
    in_flight: Family<InFlightLabels, Gauge>,
    long_running: Family<LongRunningLabels, Gauge>,
    websockets: Family<WebSocketLabels, Counter>,
}

fn histogram() -> Histogram {
    Histogram::new(BUCKETS)
}

impl RequestLabels {
    /// The labels of a request; `row` and `subresource` where a resource serves it.
    #[must_use]
    pub fn new(info: &RequestInfo, target: Option<&super::route::Target>, dry_run: bool) -> Self {
        let verb = match info.verb.as_str() {
            "create" | "post" => "POST",
            "update" | "put" => "PUT",
            "patch" => "PATCH",
            "delete" | "deletecollection" => "DELETE",
            "list" => "LIST",
            "watch" => "WATCH",
            "get" => "GET",
            _ => "other",
        };
        let scope = if target.is_some_and(|t| t.is_item) {
            "resource"
        } else if !info.namespace.is_empty() {
            "namespace"
        } else if target.is_some() {
            "cluster"
        } else {
            ""
        };
        Self {
            verb,
            dry_run: if dry_run { "All" } else { "" },
            group: target.map_or_else(Arc::default, |t| t.row.group.clone()),
            version: target.map_or_else(Arc::default, |t| t.row.version.clone()),
            resource: target.map_or_else(Arc::default, |t| t.row.plural.clone()),
            subresource: target.and_then(|t| t.subresource).map_or("", |s| s.name),
            scope,
            component: "apiserver",
        }
    }
}

impl Metrics {
    /// Registers with the process's registry.
    #[must_use]
    pub fn new(registry: Arc<Mutex<Registry>>) -> Self {
        let metrics = Self {
            registry: registry.clone(),
            requests: Family::default(),
            durations: Family::new_with_constructor(histogram as fn() -> Histogram),
            in_flight: Family::default(),
            long_running: Family::default(),
            websockets: Family::default(),
        };
        let mut registry = registry.lock().unwrap_or_else(PoisonError::into_inner);
        registry.register("apiserver_request", "Requests answered", metrics.requests.clone());
        registry.register(
            "apiserver_request_duration_seconds",
            "Time from a request's arrival to its answer's head",
            metrics.durations.clone(),
        );
        registry.register("apiserver_current_inflight_requests", "Requests being answered", metrics.in_flight.clone());
        registry.register(
            "apiserver_longrunning_requests",
            "Open watches, logs and sessions",
            metrics.long_running.clone(),
        );
        registry.register(
            "apiserver_websocket_streaming_requests",
            "Requests of exec, attach and portforward by WebSocket",
            metrics.websockets.clone(),
        );
        drop(registry);
        metrics
    }

    /// Adds metrics that are computed at collection.
    pub(crate) fn collect(&self, from: Box<dyn Collector>) {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner).register_collector(from);
    }

    /// Counts a finished request and observes its duration.
    pub fn observe(&self, labels: &RequestLabels, code: u16, took: Duration) {
        self.requests.get_or_create(&ResponseLabels { request: labels.clone(), code }).inc();
        if labels.verb != "WATCH" {
            self.durations.get_or_create(labels).observe(took.as_secs_f64());
        }
    }

    /// Counts a request in the in-flight gauge until the guard is dropped.
    pub(super) fn in_flight(&self, mutating: bool) -> GaugeGuard {
        let request_kind = if mutating { "mutating" } else { "readOnly" };
        GaugeGuard::begin(self.in_flight.get_or_create_owned(&InFlightLabels { request_kind }))
    }

    /// Counts a WebSocket of `pods/SUBRESOURCE` that is proxied to a kubelet; no WebSocket is translated here.
    pub fn websocket(&self, subresource: &'static str) {
        self.websockets.get_or_create(&WebSocketLabels { subresource, proxy_type: "proxied_to_kubelet" }).inc();
    }

    /// The same for long-running requests: watches, logs, sessions.
    pub(super) fn long_running(&self, of: &RequestLabels) -> GaugeGuard {
        let RequestLabels { verb, dry_run: _, group, version, resource, subresource, scope, component } = of.clone();
        let labels = LongRunningLabels { verb, group, version, resource, subresource, scope, component };
        GaugeGuard::begin(self.long_running.get_or_create_owned(&labels))
    }

    /// The content of `/metrics`.
    #[must_use]
    pub fn page(&self) -> String {
        prometheus_text::encode(&self.registry.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_requests_are_on_the_page_while_they_last() {
        let metrics = Metrics::new(Arc::default());
        let _changing = metrics.in_flight(true);
        let (group, version, resource) = Default::default();
        let (verb, dry_run, subresource, scope, component) = ("GET", "", "", "", "apiserver");
        let of = RequestLabels { verb, dry_run, group, version, resource, subresource, scope, component };
        metrics.observe(&of, 200, Duration::ZERO);
        let open = metrics.long_running(&of);
        let text = metrics.page();
        assert!(text.contains("# TYPE apiserver_request_total counter\n"), "{text}");
        assert!(text.contains("\napiserver_current_inflight_requests{request_kind=\"mutating\"} 1\n"), "{text}");
        let lasts = |text: &str, count: u8| {
            let mut lines = text.lines().filter(|line| line.starts_with("apiserver_longrunning_requests{verb=\"GET\""));
            lines.next().is_some_and(|line| line.ends_with(&format!(" {count}")))
        };
        assert!(lasts(&text, 1), "{text}");
        drop(open);
        assert!(lasts(&metrics.page(), 0));
    }
}
