//! What the kubelet API is asked for, counted under upstream's names and labels: a session counts as under way until it ends.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::http::{Method, Uri};
use machinery_env::Env;

/// The buckets of the durations, in seconds (upstream's, which are Prometheus' own).
const BUCKETS: [f64; 11] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// What is served, as the label has it; all else is `other`.
const PATHS: [&str; 9] =
    ["attach", "containerLogs", "exec", "healthz", "metrics", "metrics/resource", "podStream", "pods", "portForward"];
const METHODS: [&str; 2] = ["GET", "POST"];
const OTHER: &str = "other";
/// What lasts as long as its client likes.
const LONG_RUNNING: [&str; 4] = ["attach", "exec", "podStream", "portForward"];
/// Those that may come over a WebSocket, by the subresource that leads to them.
const SUBRESOURCES: [(&str, &str); 3] = [("attach", "attach"), ("exec", "exec"), ("portForward", "portforward")];

/// What a request is counted by; every value is of a fixed list, so that no client makes more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Of {
    method: &'static str,
    path: &'static str,
}

impl Of {
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
struct Counted {
    total: u64,
    inflight: u64,
    within: [u64; BUCKETS.len()],
    ended: u64,
    seconds: f64,
}

#[derive(Debug, Default)]
struct Counts {
    requests: BTreeMap<Of, Counted>,
    websockets: [u64; SUBRESOURCES.len()],
}

/// The counts of a node.
#[derive(Debug, Clone)]
pub(crate) struct Requests {
    env: Env,
    counts: Arc<Mutex<Counts>>,
}

/// A request that is under way, until it is dropped.
#[derive(Debug)]
pub(crate) struct UnderWay {
    of: Of,
    since: Duration,
    requests: Requests,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let seconds = self.requests.env.elapsed().saturating_sub(self.since).as_secs_f64();
        self.requests.count(|counts| {
            let counted = counts.requests.entry(self.of).or_default();
            counted.inflight -= 1;
            counted.ended += 1;
            counted.seconds += seconds;
            for (bound, within) in BUCKETS.iter().zip(&mut counted.within) {
                *within += u64::from(seconds <= *bound);
            }
        });
    }
}

impl Requests {
    pub(crate) fn new(env: &Env) -> Self {
        Self { env: env.clone(), counts: Arc::default() }
    }

    fn count<T>(&self, count: impl FnOnce(&mut Counts) -> T) -> T {
        count(&mut self.counts.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A request has come.
    pub(super) fn begin(&self, method: &Method, uri: &Uri, by_websocket: bool) -> UnderWay {
        let of = Of::new(method, uri);
        self.count(|counts| {
            let counted = counts.requests.entry(of).or_default();
            counted.total += 1;
            counted.inflight += 1;
            let subresource = SUBRESOURCES.iter().position(|(path, _)| *path == of.path);
            if let (Some(at), true) = (subresource, by_websocket) {
                counts.websockets[at] += 1;
            }
        });
        UnderWay { of, since: self.env.elapsed(), requests: self.clone() }
    }

    /// In the text format.
    pub(super) fn text(&self) -> String {
        self.count(|counts| text(counts))
    }
}

fn text(counts: &Counts) -> String {
    let mut text = String::new();
    let mut head = |name: &str, kind: &str, help: &str, samples: &dyn Fn(&mut String)| {
        // Writing into a string does not fail.
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        samples(&mut text);
    };
    let each = |text: &mut String, line: &dyn Fn(&mut String, &str, &Counted)| {
        for (of, counted) in &counts.requests {
            line(text, &of.labels(), counted);
        }
    };
    let name = "kubelet_http_inflight_requests";
    head(name, "gauge", "Number of the inflight http requests", &|text| {
        each(text, &|text, labels, counted| {
            let _ = writeln!(text, "{name}{{{labels}}} {}", counted.inflight);
        });
    });
    let name = "kubelet_http_requests_duration_seconds";
    head(name, "histogram", "Duration in seconds to serve http requests", &|text| {
        each(text, &|text, labels, counted| {
            for (bound, within) in BUCKETS.iter().zip(counted.within) {
                let _ = writeln!(text, "{name}_bucket{{{labels},le=\"{bound}\"}} {within}");
            }
            let _ = writeln!(text, "{name}_bucket{{{labels},le=\"+Inf\"}} {}", counted.ended);
            let _ = writeln!(text, "{name}_sum{{{labels}}} {}", counted.seconds);
            let _ = writeln!(text, "{name}_count{{{labels}}} {}", counted.ended);
        });
    });
    let name = "kubelet_http_requests_total";
    head(name, "counter", "Number of the http requests received since the server started", &|text| {
        each(text, &|text, labels, counted| {
            let _ = writeln!(text, "{name}{{{labels}}} {}", counted.total);
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
    fn requests_are_counted_by_what_they_ask_for_and_until_they_end() {
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
