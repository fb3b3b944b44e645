//! Metrics of the kubelet API's requests, with upstream's names and labels: a session is in flight until it ends.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::http::{Method, Uri};
use machinery_env::Env;

/// The upper bounds of the duration buckets in seconds (upstream's, which are Prometheus' defaults).
const BUCKETS: [f64; 11] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// The values of the path label; any other path is `other`.
const PATHS: [&str; 9] =
    ["attach", "containerLogs", "exec", "healthz", "metrics", "metrics/resource", "podStream", "pods", "portForward"];
const METHODS: [&str; 2] = ["GET", "POST"];
const OTHER: &str = "other";
/// Requests whose duration the client determines.
const LONG_RUNNING: [&str; 4] = ["attach", "exec", "podStream", "portForward"];
/// Requests that may come over a WebSocket, with their subresource.
const SUBRESOURCES: [(&str, &str); 3] = [("attach", "attach"), ("exec", "exec"), ("portForward", "portforward")];

/// The labels of a request. All values are of fixed lists, so that clients can't create more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct RequestLabels {
    method: &'static str,
    path: &'static str,
}

impl RequestLabels {
    fn new(method: &Method, uri: &Uri) -> Self {
        let mut parts = uri.path().trim_start_matches('/').split('/');
        let root = parts.next().unwrap_or_default();
        let named = match (root, parts.next()) {
            ("stats", _) => "stats",
            ("metrics", Some(of)) => {
                PATHS.iter().find(|path| path.strip_prefix("metrics/") == Some(of)).unwrap_or(&OTHER)
            }
            _ => PATHS.iter().find(|path| **path == root).unwrap_or(&OTHER),
        };
        let method = METHODS.iter().find(|known| **known == method.as_str()).unwrap_or(&OTHER);
        Self { method, path: named }
    }

    fn labels(self) -> String {
        let long_running = LONG_RUNNING.contains(&self.path);
        let Self { method, path } = self;
        format!("long_running=\"{long_running}\",method=\"{method}\",path=\"{path}\",server_type=\"readwrite\"")
    }
}

#[derive(Debug, Default)]
struct RequestCounters {
    total: u64,
    inflight: u64,
    within: [u64; BUCKETS.len()],
    ended: u64,
    seconds: f64,
}

#[derive(Debug, Default)]
struct Counters {
    requests: BTreeMap<RequestLabels, RequestCounters>,
    websockets: [u64; SUBRESOURCES.len()],
}

/// The request metrics of a node.
#[derive(Debug, Clone)]
pub(crate) struct Requests {
    env: Env,
    counts: Arc<Mutex<Counters>>,
}

/// A request in flight, until it is dropped.
#[derive(Debug)]
pub(crate) struct InFlightRequest {
    labels: RequestLabels,
    since: Duration,
    requests: Requests,
}

impl Drop for InFlightRequest {
    fn drop(&mut self) {
        let seconds = self.requests.env.elapsed().saturating_sub(self.since).as_secs_f64();
        self.requests.count(|counts| {
            let counters = counts.requests.entry(self.labels).or_default();
            counters.inflight -= 1;
            counters.ended += 1;
            counters.seconds += seconds;
            for (bound, within) in BUCKETS.iter().zip(&mut counters.within) {
                *within += u64::from(seconds <= *bound);
            }
        });
    }
}

impl Requests {
    pub(crate) fn new(env: &Env) -> Self {
        Self { env: env.clone(), counts: Arc::default() }
    }

    fn count<T>(&self, count: impl FnOnce(&mut Counters) -> T) -> T {
        count(&mut self.counts.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Counts the begin of a request.
    pub(super) fn begin(&self, method: &Method, uri: &Uri, by_websocket: bool) -> InFlightRequest {
        let labels = RequestLabels::new(method, uri);
        self.count(|counts| {
            let counters = counts.requests.entry(labels).or_default();
            counters.total += 1;
            counters.inflight += 1;
            let subresource = SUBRESOURCES.iter().position(|(path, _)| *path == labels.path);
            if let (Some(at), true) = (subresource, by_websocket) {
                counts.websockets[at] += 1;
            }
        });
        InFlightRequest { labels, since: self.env.elapsed(), requests: self.clone() }
    }

    /// Returns the metrics in the text format.
    pub(super) fn text(&self) -> String {
        self.count(|counts| text(counts))
    }
}

fn text(counts: &Counters) -> String {
    let mut text = String::new();
    let mut head = |name: &str, kind: &str, help: &str, samples: &dyn Fn(&mut String)| {
        // Writing to a string can't fail.
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        samples(&mut text);
    };
    let each = |text: &mut String, line: &dyn Fn(&mut String, &str, &RequestCounters)| {
        for (of, counters) in &counts.requests {
            line(text, &of.labels(), counters);
        }
    };
    let name = "kubelet_http_inflight_requests";
    head(name, "gauge", "Number of the inflight http requests", &|text| {
        each(text, &|text, labels, counters| {
            let _ = writeln!(text, "{name}{{{labels}}} {}", counters.inflight);
        });
    });
    let name = "kubelet_http_requests_duration_seconds";
    head(name, "histogram", "Duration in seconds to serve http requests", &|text| {
        each(text, &|text, labels, counters| {
            for (bound, within) in BUCKETS.iter().zip(counters.within) {
                let _ = writeln!(text, "{name}_bucket{{{labels},le=\"{bound}\"}} {within}");
            }
            let _ = writeln!(text, "{name}_bucket{{{labels},le=\"+Inf\"}} {}", counters.ended);
            let _ = writeln!(text, "{name}_sum{{{labels}}} {}", counters.seconds);
            let _ = writeln!(text, "{name}_count{{{labels}}} {}", counters.ended);
        });
    });
    let name = "kubelet_http_requests_total";
    head(name, "counter", "Number of the http requests received since the server started", &|text| {
        each(text, &|text, labels, counters| {
            let _ = writeln!(text, "{name}{{{labels}}} {}", counters.total);
        });
    });
    let name = "kubelet_websocket_streaming_requests_total";
    head(name, "counter", "Requests of exec, attach and portforward that came over a WebSocket", &|text| {
        for ((_, subresource), count) in SUBRESOURCES.iter().zip(counts.websockets).filter(|(_, count)| *count > 0) {
            let _ = writeln!(text, "{name}{{subresource=\"{subresource}\"}} {count}");
        }
    });
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_counted_by_path_until_they_end() {
        let requests = Requests::new(&Env::real());
        let begin = |method: Method, path: &'static str, by_websocket| {
            requests.begin(&method, &Uri::from_static(path), by_websocket)
        };
        let session = begin(Method::GET, "/exec/default/pod/box?command=sh", true);
        drop(begin(Method::GET, "/exec/default/pod/box", false));
        drop(begin(Method::GET, "/metrics/resource", false));
        drop(begin(Method::GET, "/metrics/garbage", false));
        drop(begin(Method::from_bytes(b"GARBAGE").unwrap(), "/garbage/of/a/client", true));
        let has = |line: &str| assert!(requests.text().lines().any(|one| one == line), "{line}: {}", requests.text());
        let exec = "long_running=\"true\",method=\"GET\",path=\"exec\",server_type=\"readwrite\"";
        has(&format!("kubelet_http_requests_total{{{exec}}} 2"));
        has(&format!("kubelet_http_inflight_requests{{{exec}}} 1"));
        has(&format!("kubelet_http_requests_duration_seconds_count{{{exec}}} 1"));
        has("kubelet_websocket_streaming_requests_total{subresource=\"exec\"} 1");
        let labels = |method, path| {
            format!("long_running=\"false\",method=\"{method}\",path=\"{path}\",server_type=\"readwrite\"")
        };
        has(&format!("kubelet_http_requests_total{{{}}} 1", labels("GET", "metrics/resource")));
        has(&format!("kubelet_http_requests_total{{{}}} 1", labels("GET", "other")));
        has(&format!("kubelet_http_requests_duration_seconds_bucket{{{},le=\"0.005\"}} 1", labels("other", "other")));
        drop(session);
        has(&format!("kubelet_http_inflight_requests{{{exec}}} 0"));
        assert_eq!(requests.count(|counts| counts.requests.len()), 4);
    }
}
