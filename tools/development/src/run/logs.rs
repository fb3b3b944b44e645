//! Follows the logs of all containers of a session's workloads and prints their lines as they come, in the order of their
//! times as far as they come together.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::StreamExt as _;
use http::Request;
use http_body_util::BodyExt as _;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::Client;
use kube::client::Body;
use machinery_client::request::query_string;
use machinery_env::Env;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::cluster::Cluster;
use tools_command::output::print_stdout;

/// Interval of looks for new pods, and of attempts to read the log of one that has not started.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// Time in which lines of several containers are put in order.
const SORT_TIME: Duration = Duration::from_millis(50);
/// Lines that wait for the terminal; then the streams wait.
const LINES_MAX: usize = 1024;
/// Maximum bytes of a line: a longer one is cut into several.
const LINE_BYTES_MAX: usize = 64 << 10;
/// Maximum containers whose logs are followed: each one is a connection.
const CONTAINERS_MAX: usize = 100;

/// A container by namespace, pod and name, with the pod's uid.
type ContainerKey = (String, String, String, String);

/// A line of a container's log.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Line {
    at: Timestamp,
    /// `POD` or `POD/CONTAINER`.
    origin: String,
    text: String,
}

/// Follows the logs, until it is dropped.
pub(super) async fn follow(cluster: &Cluster) {
    let (sender, mut lines) = mpsc::channel(LINES_MAX);
    let mut followers = Followers::default();
    let mut look = std::pin::pin!(followers.run(cluster, sender));
    let print = async {
        let mut origins = BTreeMap::new();
        while let Some(first) = lines.recv().await {
            let mut batch: Vec<Line> = vec![first];
            cluster.env.sleep(SORT_TIME).await;
            while batch.len() < LINES_MAX
                && let Ok(line) = lines.try_recv()
            {
                batch.push(line);
            }
            batch.sort_by_key(|line| line.at);
            let now = cluster.env.elapsed();
            origins.extend(batch.iter().map(|line| (line.origin.clone(), now)));
            origins.retain(|_, seen: &mut Duration| now.saturating_sub(*seen) < PREFIX_TIME);
            let several = origins.len() > 1;
            cluster.spinner.above(|| {
                for line in &batch {
                    let _ = if several {
                        print_stdout!("[{}] {}", line.origin, line.text)
                    } else {
                        print_stdout!("{}", line.text)
                    };
                }
            });
        }
    };
    tokio::select! {
        () = &mut look => {}
        () = print => {}
    }
}

/// Time after a line of a container in which lines of others have a prefix.
const PREFIX_TIME: Duration = Duration::from_secs(60);

/// One task for each container. They end with this value.
#[derive(Default)]
struct Followers {
    running: JoinSet<ContainerKey>,
    known: Vec<ContainerKey>,
}

impl Followers {
    async fn run(&mut self, cluster: &Cluster, sender: mpsc::Sender<Line>) {
        loop {
            let workloads = cluster.workloads.borrow().clone();
            for workload in &workloads {
                for pod in cluster.pods(workload).await.unwrap_or_default() {
                    self.add(cluster, &pod, &sender);
                }
            }
            let looked = cluster.env.sleep(LOOK_INTERVAL);
            let ended = async {
                match self.running.join_next().await {
                    Some(Ok(key)) => key,
                    Some(Err(_)) | None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = looked => {}
                key = ended => self.known.retain(|known| *known != key),
            }
        }
    }

    fn add(&mut self, cluster: &Cluster, pod: &Pod, sender: &mpsc::Sender<Line>) {
        let text = |field: &Option<String>| field.clone().unwrap_or_default();
        let (namespace, name, uid) = (text(&pod.metadata.namespace), text(&pod.metadata.name), text(&pod.metadata.uid));
        let containers = pod.spec.as_ref().map(|spec| spec.containers.as_slice()).unwrap_or_default();
        for container in containers {
            let key: ContainerKey = (namespace.clone(), name.clone(), container.name.clone(), uid.clone());
            if self.known.contains(&key) || self.known.len() >= CONTAINERS_MAX {
                continue;
            }
            self.known.push(key.clone());
            let origin = if containers.len() > 1 { format!("{name}/{}", container.name) } else { name.clone() };
            let (client, env, sender) = (cluster.client.clone(), cluster.env.clone(), sender.clone());
            self.running.spawn(async move {
                follow_container(&client, &env, &key, &origin, &sender).await;
                key
            });
        }
    }
}

/// Reads a container's log until its pod is gone. A stream that ends is continued after its last line.
async fn follow_container(
    client: &Client,
    env: &Env,
    (namespace, pod, container, _): &ContainerKey,
    origin: &str,
    sender: &mpsc::Sender<Line>,
) {
    let mut last: Option<Timestamp> = None;
    loop {
        let since = last.map(|at| at.to_string());
        let mut query = vec![("container", container.as_str()), ("follow", "true"), ("timestamps", "true")];
        query.extend(since.as_deref().map(|since| ("sinceTime", since)));
        let path = format!("/api/v1/namespaces/{namespace}/pods/{pod}/log?{}", query_string(&query));
        let Ok(request) = Request::get(path).body(Body::empty()) else { return };
        match client.send(request).await {
            Ok(response) if response.status().is_success() => {
                let mut pieces = response.into_body().into_data_stream();
                let (mut splitter, resumed) = (Splitter::default(), last);
                while let Some(Ok(piece)) = pieces.next().await {
                    for line in splitter.add(&piece) {
                        let Some((at, text)) = parse(&line) else { continue };
                        if resumed.is_some_and(|resumed| at <= resumed) {
                            continue;
                        }
                        last = Some(at);
                        if sender.send(Line { at, origin: origin.to_owned(), text }).await.is_err() {
                            return;
                        }
                    }
                }
            }
            // 404: the pod is deleted.
            Ok(response) if response.status().as_u16() == 404 => return,
            // 400: the container has not started.
            Ok(_) | Err(_) => {}
        }
        env.sleep(LOOK_INTERVAL).await;
    }
}

/// The time and the text of a line of `?timestamps=true`.
fn parse(line: &[u8]) -> Option<(Timestamp, String)> {
    let line = String::from_utf8_lossy(line);
    let (at, text) = line.split_once(' ')?;
    Some((at.parse().ok()?, text.to_owned()))
}

/// Splits a stream into lines.
#[derive(Debug, Default)]
struct Splitter(Vec<u8>);

impl Splitter {
    fn add(&mut self, piece: &[u8]) -> Vec<Vec<u8>> {
        let mut lines = Vec::new();
        for part in piece.split_inclusive(|byte| *byte == b'\n') {
            match part.strip_suffix(b"\n") {
                Some(end) => {
                    self.0.extend_from_slice(end);
                    lines.push(std::mem::take(&mut self.0));
                }
                None => self.0.extend_from_slice(part),
            }
        }
        // The rest of an overlong line has no time, and is left out.
        self.0.truncate(LINE_BYTES_MAX);
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_split_into_lines_with_times() {
        let mut splitter = Splitter::default();
        assert!(splitter.add(b"2026-01-01T00:00:01.5Z one ").is_empty());
        let lines = splitter.add(b"two\n2026-01-01T00:00:02Z \n2026");
        let lines: Vec<_> = lines.iter().map(|line| parse(line).unwrap()).collect();
        assert_eq!(lines[0], ("2026-01-01T00:00:01.5Z".parse().unwrap(), "one two".to_owned()));
        assert_eq!(lines[1].1, "");
        assert_eq!(splitter.0, b"2026");
        splitter.add(&[b'x'; 2 * LINE_BYTES_MAX]);
        assert_eq!(splitter.0.len(), LINE_BYTES_MAX);
        assert_eq!(parse(b"no time"), None);
        assert_eq!(parse(b""), None);
    }
}
