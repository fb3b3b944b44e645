//! The server's own metrics, under upstream's names and labels.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::info::RequestInfo;
use super::under_way::UnderWay;

/// Upstream's buckets, in seconds.
const BUCKETS: [f64; 23] = [
    0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0, 20.0, 30.0,
    45.0, 60.0,
];
/// The media type of `/metrics`, unless a client asks for the other one.
const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8; escaping=underscores";
/// The media type of OpenMetrics, for clients that ask for it.
pub const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What requests are counted by; every value comes from the resource table or a fixed list, so that no client makes more.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Of {
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
struct Coded {
    #[prometheus(flatten)]
    of: Of,
    code: u16,
}

/// A request that lasts until its client goes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Lasting {
    verb: &'static str,
    group: Arc<str>,
    version: Arc<str>,
    resource: Arc<str>,
    subresource: &'static str,
    scope: &'static str,
    component: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Manner {
    request_kind: &'static str,
}

/// Connections that become a WebSocket.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Streaming {
    subresource: &'static str,
    proxy_type: &'static str,
}

/// All metrics.
pub struct Metrics {
    registry: Arc<Mutex<Registry>>,
    requests: Family<Coded, Counter>,
    durations: Family<Of, Histogram, fn() -> Histogram>,
    running: Family<Manner, Gauge>,
    long_running: Family<Lasting, Gauge>,
    websockets: Family<Streaming, Counter>,
}

fn histogram() -> Histogram {
    Histogram::new(BUCKETS)
}

impl Of {
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
            running: Family::default(),
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
        registry.register("apiserver_current_inflight_requests", "Requests being answered", metrics.running.clone());
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

    /// Counts a finished request.
    pub fn done(&self, of: &Of, code: u16, took: Duration) {
        self.requests.get_or_create(&Coded { of: of.clone(), code }).inc();
        if of.verb != "WATCH" {
            self.durations.get_or_create(of).observe(took.as_secs_f64());
        }
    }

    /// Counts a request among those that are being answered, until what this returns is dropped.
    pub(super) fn running(&self, mutating: bool) -> UnderWay {
        let request_kind = if mutating { "mutating" } else { "readOnly" };
        UnderWay::begin(self.running.get_or_create_owned(&Manner { request_kind }))
    }

    /// Counts a WebSocket of `pods/SUBRESOURCE` that is handed through to a node: none is translated here.
    pub fn websocket(&self, subresource: &'static str) {
        self.websockets.get_or_create(&Streaming { subresource, proxy_type: "proxied_to_kubelet" }).inc();
    }

    /// The same for a watch, a log or a session.
    pub(super) fn long_running(&self, of: &Of) -> UnderWay {
        let Of { verb, dry_run: _, group, version, resource, subresource, scope, component } = of.clone();
        let lasting = Lasting { verb, group, version, resource, subresource, scope, component };
        UnderWay::begin(self.long_running.get_or_create_owned(&lasting))
    }

    /// What `/metrics` shows to a client, and its media type: OpenMetrics where the client accepts that, as upstream.
    #[must_use]
    pub fn page(&self, accept: Option<&str>) -> (&'static str, String) {
        let mut media = accept.unwrap_or_default().split(',').filter_map(|clause| clause.split(';').next());
        match media.any(|media| media.trim() == "application/openmetrics-text") {
            true => (OPEN_METRICS, self.open_metrics()),
            false => (TEXT, classic(&self.open_metrics())),
        }
    }

    fn open_metrics(&self) -> String {
        let mut text = String::new();
        let registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        // Writing into a String cannot fail.
        let _ = prometheus_client::encoding::text::encode(&mut text, &registry);
        text
    }
}

/// OpenMetrics text in Prometheus' older format: a counter is described under the name that its samples have, units are
/// part of names alone, and nothing marks the end.
fn classic(open_metrics: &str) -> String {
    let described = |line: &str| {
        line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ').map(|(name, _)| name.to_owned()))
    };
    let counters: BTreeSet<String> =
        open_metrics.lines().filter(|line| line.ends_with(" counter")).filter_map(described).collect();
    let mut text = String::with_capacity(open_metrics.len());
    for line in open_metrics.lines().filter(|line| *line != "# EOF" && !line.starts_with("# UNIT ")) {
        // Counters that have no `_total` upstream.
        if let Some((name, rest)) = line.split_once("_count_total") {
            text.extend([name, "_count", rest, "\n"]);
            continue;
        }
        let words = ["# HELP ", "# TYPE "].into_iter().find_map(|word| Some((word, line.strip_prefix(word)?)));
        match words.and_then(|(word, rest)| Some((word, rest.split_once(' ')?))) {
            Some((word, (name, rest))) if counters.contains(name) && !name.ends_with("_count") => {
                text.extend([word, name, "_total ", rest, "\n"]);
            }
            _ => text.extend([line, "\n"]),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_text_unless_open_metrics_are_asked_for() {
        let metrics = Metrics::new(Arc::default());
        let _changing = metrics.running(true);
        let (group, version, resource) = Default::default();
        let (verb, dry_run, subresource, scope, component) = ("GET", "", "", "", "apiserver");
        let of = Of { verb, dry_run, group, version, resource, subresource, scope, component };
        metrics.done(&of, 200, Duration::ZERO);
        let open = metrics.long_running(&of);
        let (media, text) = metrics.page(Some("text/html, */*;q=0.1"));
        assert!(media.starts_with("text/plain; version=0.0.4"), "{media}");
        assert!(text.contains("# TYPE apiserver_request_total counter\n"), "{text}");
        assert!(text.contains("\napiserver_current_inflight_requests{request_kind=\"mutating\"} 1\n"), "{text}");
        let lasts = |text: &str, count: u8| {
            let mut lines = text.lines().filter(|line| line.starts_with("apiserver_longrunning_requests{verb=\"GET\""));
            lines.next().is_some_and(|line| line.ends_with(&format!(" {count}")))
        };
        assert!(lasts(&text, 1), "{text}");
        drop(open);
        assert!(lasts(&metrics.page(None).1, 0));
        assert!(!text.contains("EOF"));
        let (media, text) = metrics.page(Some("application/openmetrics-text;version=1.0.0,text/plain;q=0.5"));
        assert!(media.starts_with("application/openmetrics-text"), "{media}");
        assert!(text.contains("# TYPE apiserver_request counter\n") && text.ends_with("# EOF\n"), "{text}");
    }
}
