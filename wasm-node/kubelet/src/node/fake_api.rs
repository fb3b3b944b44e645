//! A fake API server: a test supplies the responses; requests and watches are handled here.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::BoxBody};
use kube::Client;
use machinery_client::in_process;
use machinery_env::Env;
use serde_json::{Value, json};
use tokio::sync::mpsc;

/// A timeout longer than any wait on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

const POLL: Duration = Duration::from_millis(1);

/// The sender of a watch's events.
pub(super) type Watch = mpsc::UnboundedSender<Value>;

/// The behaviour of a test's cluster. Changes are sent to its watches.
pub(super) trait FakeCluster: Default + Send + 'static {
    /// The initial events of a watch on `path`: the kind, the objects, and the version.
    fn initial_events(&self, path: &str) -> (&'static str, Vec<Value>, u64);

    /// Registers a watch on `path`, which lasts as long as its sender.
    fn add_watch(&mut self, path: &str, watch: Watch);

    /// Whether the server is unavailable.
    fn is_unavailable(&self) -> bool {
        false
    }

    /// Whether the server accepts requests and responds to none.
    fn is_silent(&self) -> bool {
        false
    }

    /// The response to any other request; `None` never responds.
    fn respond(&mut self, method: &Method, path: &str, body: &Value) -> Option<(u16, Value)>;

    /// A description of the state, for a timeout's message.
    fn describe(&self) -> String;
}

/// Sends a change to all watches.
pub(super) fn send_event(watches: &mut Vec<Watch>, kind: &str, object: &Value) {
    watches.retain(|watch| watch.send(json!({"type": kind, "object": object})).is_ok());
}

pub(super) fn not_found() -> (u16, Value) {
    (404, json!({"kind": "Status", "code": 404, "reason": "NotFound", "status": "Failure"}))
}

/// A fake API server.
pub(super) struct FakeApi<C>(Arc<Mutex<C>>);

impl<C> Clone for FakeApi<C> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<C: FakeCluster> Default for FakeApi<C> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<C: FakeCluster> FakeApi<C> {
    pub(super) fn with<T>(&self, act: impl FnOnce(&mut C) -> T) -> T {
        act(&mut self.0.lock().unwrap())
    }

    pub(super) fn client(&self) -> Client {
        let api = self.clone();
        let service = tower::service_fn(move |request: Request<kube::client::Body>| {
            let api = api.clone();
            async move { Ok::<_, Infallible>(api.serve(request).await) }
        });
        in_process(&Env::real(), service, |request| request)
    }

    async fn serve(&self, request: Request<kube::client::Body>) -> Response<BoxBody<Bytes, Infallible>> {
        let (head, body) = request.into_parts();
        if self.with(|cluster| cluster.is_silent()) {
            return std::future::pending().await;
        }
        if self.with(|cluster| cluster.is_unavailable()) {
            let status = json!({"kind": "Status", "code": 503, "reason": "ServiceUnavailable", "status": "Failure"});
            let body = Full::new(Bytes::from(status.to_string())).boxed();
            return Response::builder().status(503).body(body).unwrap();
        }
        if head.uri.query().is_some_and(|query| query.contains("watch=true")) {
            let (sender, mut lines) = mpsc::unbounded_channel();
            self.with(|cluster| {
                let (kind, objects, version) = cluster.initial_events(head.uri.path());
                for object in objects {
                    let _ = sender.send(json!({"type": "ADDED", "object": object}));
                }
                let end = json!({"kind": kind, "apiVersion": "v1", "metadata": {
                    "resourceVersion": version.to_string(), "annotations": {"k8s.io/initial-events-end": "true"}}});
                let _ = sender.send(json!({"type": "BOOKMARK", "object": end}));
                cluster.add_watch(head.uri.path(), sender);
            });
            let frames = futures::stream::poll_fn(move |cx| {
                lines.poll_recv(cx).map(|line| line.map(|line| Ok(Frame::data(Bytes::from(format!("{line}\n"))))))
            });
            return Response::new(StreamBody::new(frames).boxed());
        }
        let body = body.collect().await.unwrap().to_bytes();
        let body: Value = serde_json::from_slice(&body).unwrap_or_default();
        let Some((code, answer)) = self.with(|cluster| cluster.respond(&head.method, head.uri.path(), &body)) else {
            return std::future::pending().await;
        };
        Response::builder().status(code).body(Full::new(Bytes::from(answer.to_string())).boxed()).unwrap()
    }

    /// Waits until the cluster is in the wanted state.
    pub(super) async fn until<T>(&self, what: &str, wanted: impl Fn(&C) -> Option<T>) -> T {
        let found = async {
            loop {
                match self.with(|cluster| wanted(cluster)) {
                    Some(found) => return found,
                    // The sleep advances a paused clock.
                    None => Env::real().sleep(POLL).await,
                }
            }
        };
        let found = Env::real().timeout(PATIENCE, found).await;
        found.unwrap_or_else(|_| panic!("never {what}: {}", self.with(|cluster| cluster.describe())))
    }
}
