//! A small HTTP load generator: a few connections with sequential requests; counts failures and records latencies.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::Request;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use machinery_env::Env;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

/// Timeout of a request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Maximum duration of a load, whatever its caller does.
const LOAD_MAX: Duration = Duration::from_secs(120);

/// Maximum number of recorded latencies, enough for a meaningful p99; further requests are only counted.
const SAMPLES_MAX: usize = 100_000;

/// A running load.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<Vec<Duration>>>,
    failures: Arc<AtomicU64>,
    requests: Arc<AtomicU64>,
    env: Env,
    started: Duration,
}

/// Result of a load.
#[derive(Debug, Clone, Default)]
pub(crate) struct LoadResult {
    pub(crate) requests: u64,
    pub(crate) failures: u64,
    pub(crate) took: Duration,
    latencies: Vec<Duration>,
}

impl LoadResult {
    /// The latency below which `share` of all requests stayed.
    pub(crate) fn percentile(&self, share: f64) -> Duration {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "an index into at most SAMPLES_MAX latencies"
        )]
        let index = ((self.latencies.len() as f64 - 1.0) * share).round().max(0.0) as usize;
        self.latencies.get(index).copied().unwrap_or_default()
    }

    /// Requests per second.
    pub(crate) fn rate(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52 requests")]
        let requests = self.requests as f64;
        requests / self.took.as_secs_f64().max(f64::MIN_POSITIVE)
    }
}

impl Load {
    /// Starts `connections` connections to `host:port` that request `path` until [`finish`](Self::finish).
    pub(crate) fn start(env: &Env, host: &str, port: u16, path: &str, connections: usize) -> Self {
        let (stop, failures, requests) =
            (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let tasks = (0..connections)
            .map(|_| {
                let asker = LoadConnection {
                    env: env.clone(),
                    authority: format!("{host}:{port}"),
                    path: path.to_owned(),
                    stop: stop.clone(),
                    failures: failures.clone(),
                    requests: requests.clone(),
                    samples_max: SAMPLES_MAX / connections.max(1),
                };
                tokio::spawn(asker.run())
            })
            .collect();
        Self { stop, tasks, failures, requests, env: env.clone(), started: env.elapsed() }
    }

    /// Stops the load and returns its result.
    pub(crate) async fn finish(self) -> LoadResult {
        self.stop.store(true, Ordering::Relaxed);
        let mut latencies = Vec::new();
        for task in self.tasks {
            latencies.extend(task.await.unwrap_or_default());
        }
        latencies.sort_unstable();
        LoadResult {
            requests: self.requests.load(Ordering::Relaxed),
            failures: self.failures.load(Ordering::Relaxed),
            took: self.env.elapsed().saturating_sub(self.started),
            latencies,
        }
    }
}

struct LoadConnection {
    env: Env,
    authority: String,
    path: String,
    stop: Arc<AtomicBool>,
    failures: Arc<AtomicU64>,
    requests: Arc<AtomicU64>,
    samples_max: usize,
}

impl LoadConnection {
    async fn run(self) -> Vec<Duration> {
        let mut latencies = Vec::new();
        let mut connection = None;
        let end = self.env.elapsed() + LOAD_MAX;
        while !self.stop.load(Ordering::Relaxed) && self.env.elapsed() < end {
            let before = self.env.elapsed();
            let answered = self.env.timeout(REQUEST_TIMEOUT, self.send_request(&mut connection)).await;
            self.requests.fetch_add(1, Ordering::Relaxed);
            if matches!(answered, Ok(Ok(status)) if status < 400) {
                if latencies.len() < self.samples_max {
                    latencies.push(self.env.elapsed().saturating_sub(before));
                }
            } else {
                self.failures.fetch_add(1, Ordering::Relaxed);
                connection = None;
            }
        }
        latencies
    }

    async fn send_request(&self, connection: &mut Option<SendRequest<Empty<Bytes>>>) -> anyhow::Result<u16> {
        // A connection that the server closed between two requests is not a failed request.
        let mut kept = connection.take().filter(|sender| !sender.is_closed());
        let usable = match &mut kept {
            Some(sender) => sender.ready().await.is_ok(),
            None => false,
        };
        let mut sender = match kept.filter(|_| usable) {
            Some(sender) => sender,
            None => {
                let stream = TcpStream::connect(&self.authority).await?;
                stream.set_nodelay(true)?;
                let (sender, driver) = handshake(TokioIo::new(stream)).await?;
                tokio::spawn(driver);
                sender
            }
        };
        let request = Request::get(&self.path).header("host", &self.authority).body(Empty::new())?;
        let response = sender.send_request(request).await?;
        let status = response.status().as_u16();
        response.into_body().collect().await?;
        *connection = Some(sender);
        Ok(status)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_of_few_and_of_none() {
        let of =
            |n: u64| LoadResult { latencies: (1..=n).map(Duration::from_millis).collect(), ..LoadResult::default() };
        assert_eq!(of(100).percentile(0.5), Duration::from_millis(51));
        assert_eq!(of(100).percentile(0.99), Duration::from_millis(99));
        assert_eq!(of(0).percentile(0.99), Duration::ZERO);
    }
}
