//! An API server that a test plays: what it answers is the test's, how it is asked and watched is here.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::BoxBody};
use kube::Client;
use machinery_client::in_process;
use serde_json::{Value, json};
use tokio::sync::mpsc;

/// Longer than anything here takes on a crowded machine.
const PATIENCE: Duration = Duration::from_secs(30);

const POLL: Duration = Duration::from_millis(1);

/// Where the lines of a watch go.
pub(super) type Watch = mpsc::UnboundedSender<Value>;

/// What a test's cluster does. Changes are shown to those that watch.
pub(super) trait Played: Default + Send + 'static {
    /// What a client that watches `path` is shown first: of which kind, what, and the version.
    fn begin(&self, path: &str) -> (&'static str, Vec<Value>, u64);

    /// A client watches `path` from here on: kept for as long as it is to last.
    fn watched(&mut self, path: &str, watch: Watch);

    /// It answers nobody.
    fn away(&self) -> bool {
        false
    }

    /// The answer to any other request; none where it never comes.
    fn answer(&mut self, method: &Method, path: &str, body: &Value) -> Option<(u16, Value)>;

    /// What there is, for whoever waited in vain.
    fn tell(&self) -> String;
}

/// Shows a change to all who watch.
pub(super) fn show(watches: &mut Vec<Watch>, kind: &str, object: &Value) {
    watches.retain(|watch| watch.send(json!({"type": kind, "object": object})).is_ok());
}

pub(super) fn missing() -> (u16, Value) {
    (404, json!({"kind": "Status", "code": 404, "reason": "NotFound", "status": "Failure"}))
}

/// The API server.
pub(super) struct Api<C>(Arc<Mutex<C>>);

impl<C> Clone for Api<C> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<C: Played> Default for Api<C> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<C: Played> Api<C> {
    pub(super) fn with<T>(&self, act: impl FnOnce(&mut C) -> T) -> T {
        act(&mut self.0.lock().unwrap())
    }

    pub(super) fn client(&self) -> Client {
        let api = self.clone();
        let service = tower::service_fn(move |request: Request<kube::client::Body>| {
            let api = api.clone();
            async move { Ok::<_, Infallible>(api.serve(request).await) }
        });
        in_process(service, |request| request)
    }

    async fn serve(&self, request: Request<kube::client::Body>) -> Response<BoxBody<Bytes, Infallible>> {
        let (head, body) = request.into_parts();
        if self.with(|cluster| cluster.away()) {
            let status = json!({"kind": "Status", "code": 503, "reason": "ServiceUnavailable", "status": "Failure"});
            let body = Full::new(Bytes::from(status.to_string())).boxed();
            return Response::builder().status(503).body(body).unwrap();
        }
        if head.uri.query().is_some_and(|query| query.contains("watch=true")) {
            let (sender, mut lines) = mpsc::unbounded_channel();
            self.with(|cluster| {
                let (kind, objects, version) = cluster.begin(head.uri.path());
                for object in objects {
                    let _ = sender.send(json!({"type": "ADDED", "object": object}));
                }
                let end = json!({"kind": kind, "apiVersion": "v1", "metadata": {
                    "resourceVersion": version.to_string(), "annotations": {"k8s.io/initial-events-end": "true"}}});
                let _ = sender.send(json!({"type": "BOOKMARK", "object": end}));
                cluster.watched(head.uri.path(), sender);
            });
            let frames = futures::stream::poll_fn(move |cx| {
                lines.poll_recv(cx).map(|line| line.map(|line| Ok(Frame::data(Bytes::from(format!("{line}\n"))))))
            });
            return Response::new(StreamBody::new(frames).boxed());
        }
        let body = body.collect().await.unwrap().to_bytes();
        let body: Value = serde_json::from_slice(&body).unwrap_or_default();
        let Some((code, answer)) = self.with(|cluster| cluster.answer(&head.method, head.uri.path(), &body)) else {
            return std::future::pending().await;
        };
        Response::builder().status(code).body(Full::new(Bytes::from(answer.to_string())).boxed()).unwrap()
    }

    /// Waits until the cluster is as wanted.
    pub(super) async fn until<T>(&self, what: &str, wanted: impl Fn(&C) -> Option<T>) -> T {
        let found = async {
            loop {
                match self.with(|cluster| wanted(cluster)) {
                    Some(found) => return found,
                    // Time passes meanwhile, also on a paused clock.
                    None => tokio::time::sleep(POLL).await,
                }
            }
        };
        let found = tokio::time::timeout(PATIENCE, found).await;
        found.unwrap_or_else(|_| panic!("never {what}: {}", self.with(|cluster| cluster.tell())))
    }
}
