//! The network between clients and the API server. Each request and each piece of a watch has its own delay, so that those of
//! different clients overtake each other. Requests are lost before they reach the server, responses after they took effect;
//! links are cut; a sender can die between any two of its writes.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use apiserver::server::ApiService;
use apiserver_auth::UserInfo;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use kube::Client;
use kube::client::Body;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tower::{BoxError, Service};

use crate::checkers::{reads, watches};
use crate::clock;
use crate::log::log;
use crate::parsed_request::ParsedRequest;
use crate::sabotage;
use crate::stream::{Pump, SimBody};
use crate::world::World;

/// A request that failed in the network.
#[derive(Debug)]
struct Broken(&'static str);

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for Broken {}

/// Death of a component by its own writes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Doom {
    /// Number of writes until then.
    pub(crate) writes: u64,
    /// Whether the last one takes effect.
    pub(crate) done: bool,
}

#[derive(Default)]
struct LinkState {
    cut: bool,
    frozen: bool,
    doom: Option<Doom>,
    /// Wakers of everything blocked on the link, in order of arrival.
    waiting: Vec<Waker>,
}

/// One client's connection to the server: a component's, for one of its lives.
pub(crate) struct Link {
    pub(crate) name: String,
    /// Cancelled when the component is dead: no message of it passes any more.
    pub(crate) dead: CancellationToken,
    healed: Notify,
    state: Mutex<LinkState>,
}

impl Link {
    pub(crate) fn new(name: impl Into<String>) -> Arc<Self> {
        let (dead, healed, state) = Default::default();
        Arc::new(Self { name: name.into(), dead, healed, state })
    }

    fn state(&self) -> MutexGuard<'_, LinkState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Cuts the link: messages of both directions are lost without an error.
    pub(crate) fn cut(&self) {
        self.state().cut = true;
    }

    pub(crate) fn heal(&self) {
        self.unblock(|state| state.cut = false);
        self.healed.notify_waiters();
    }

    /// Freezes the component until it resumes as if no time had passed: sends in progress continue then.
    pub(crate) fn freeze(&self) {
        self.state().frozen = true;
    }

    pub(crate) fn thaw(&self) {
        self.unblock(|state| state.frozen = false);
    }

    /// Changes the link's state and wakes everything blocked on it.
    fn unblock(&self, change: impl FnOnce(&mut LinkState)) {
        let waiting = {
            let mut state = self.state();
            change(&mut state);
            std::mem::take(&mut state.waiting)
        };
        waiting.into_iter().for_each(Waker::wake);
    }

    /// Whether the component is frozen; registers the waker for the change.
    pub(crate) fn is_frozen(&self, waker: &Waker) -> bool {
        let mut state = self.state();
        if state.frozen {
            state.waiting.push(waker.clone());
        }
        state.frozen
    }

    pub(crate) fn schedule_death(&self, doom: Option<Doom>) {
        self.state().doom = doom;
    }

    /// Whether messages are blocked; registers the waker for the change.
    pub(crate) fn is_blocked(&self, waker: &Waker) -> bool {
        let mut state = self.state();
        if state.cut {
            state.waiting.push(waker.clone());
        }
        state.cut
    }

    fn is_cut(&self) -> bool {
        self.state().cut
    }

    /// Counts a write. At the last one, returns whether it takes effect.
    fn last_write(&self) -> Option<bool> {
        let mut state = self.state();
        let doom = state.doom.as_mut()?;
        doom.writes = doom.writes.saturating_sub(1);
        (doom.writes == 0).then_some(doom.done)
    }
}

/// A running server.
#[derive(Clone)]
struct RunningServer {
    life: u64,
    service: ApiService,
    dead: CancellationToken,
}

/// The simulated network.
pub(crate) struct Network {
    pub(crate) world: Arc<World>,
    pub(crate) pump: Arc<Pump>,
    server: Mutex<Option<RunningServer>>,
    requests: AtomicU64,
    lives: AtomicU64,
    /// Number of responses by status, as a summary for readers.
    pub(crate) answered: Mutex<BTreeMap<u16, u64>>,
}

impl Network {
    pub(crate) fn new(world: Arc<World>) -> Arc<Self> {
        let pump = Pump::start(world.clone());
        let (server, requests, lives, answered) = Default::default();
        Arc::new(Self { world, pump, server, requests, lives, answered })
    }

    /// Routes requests to this server. The token is cancelled when it dies.
    pub(crate) fn serve(&self, service: ApiService) -> CancellationToken {
        let life = self.lives.fetch_add(1, Ordering::Relaxed) + 1;
        let dead = CancellationToken::new();
        let serving = RunningServer { life, service, dead: dead.clone() };
        *self.server.lock().unwrap_or_else(PoisonError::into_inner) = Some(serving);
        dead
    }

    /// Kills the server: its pending work is dropped, and its clients see the connection break.
    pub(crate) fn kill_server(&self) {
        let Some(server) = self.server.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
        server.dead.cancel();
        self.pump.break_all(|stream| stream.life == server.life);
    }

    /// A client with a user's identity over a link.
    pub(crate) fn client(self: &Arc<Self>, link: &Arc<Link>, user: UserInfo) -> Client {
        let service = Wire { network: self.clone(), link: link.clone() };
        machinery_client::in_process(&self.world.env, service, move |request| {
            let (mut head, body) = request.into_parts();
            head.extensions.insert(user.clone());
            Request::from_parts(head, body)
        })
    }

    async fn send(self: Arc<Self>, link: Arc<Link>, request: Request<Body>) -> Result<Response<SimBody>, BoxError> {
        let world = &self.world;
        let parsed = ParsedRequest::of(request.method(), request.uri());
        let (head, body) = request.into_parts();
        let body = body.collect().await?.to_bytes();
        let body = sabotage::replace_body(world.sabotage, &world.history, &link.name, &parsed, body);
        let id = self.requests.fetch_add(1, Ordering::Relaxed);
        let target = head.uri.path_and_query().map_or("", |path| path.as_str());
        log!(world, "{}: #{id} {} {target} {}", link.name, head.method, String::from_utf8_lossy(&body));
        let last = if parsed.writes() { link.last_write() } else { None };
        if last == Some(false) {
            log!(world, "{}: dies before #{id}", link.name);
            link.dead.cancel();
        }
        if link.dead.is_cancelled() {
            return std::future::pending().await;
        }
        self.check_scale(&link, &parsed, &body);
        clock::sleep(world.message_delay()).await;
        if link.is_cut() {
            return self.unreachable(&link, id).await;
        }
        if world.random.chance(world.weather().lost) {
            log!(world, "{}: #{id} is lost", link.name);
            clock::sleep(world.random.millis(0, 2000)).await;
            return Err(Broken("the connection broke before the request was sent").into());
        }
        let server = self.server.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(mut server) = server else {
            return Err(Broken("connection refused").into());
        };
        if world.random.chance(world.weather().busy) {
            log!(world, "{}: #{id} 429", link.name);
            clock::sleep(world.message_delay()).await;
            return Ok(busy());
        }
        if let Some(reported) = self.serve_metrics(&link, head.uri.path()).await {
            return reported;
        }
        let (before, after) = (world.server_delay(), world.server_delay());
        let dies = |dead: CancellationToken, after: Duration| async move {
            clock::timeout(after, dead.cancelled()).await.is_ok()
        };
        if !before.is_zero() && dies(server.dead.clone(), before).await {
            return Err(Broken("connection reset").into());
        }
        let begun = world.history.revision();
        let call = server.service.call(Request::from_parts(head, Full::new(body)));
        let answer = tokio::select! {
            biased;
            () = server.dead.cancelled() => None,
            answer = call => Some(answer),
        };
        let Some(Ok(answer)) = answer else {
            log!(world, "{}: #{id} broke off with the server", link.name);
            return Err(Broken("connection reset").into());
        };
        let status = answer.status();
        *self.answered.lock().unwrap_or_else(PoisonError::into_inner).entry(status.as_u16()).or_default() += 1;
        let (head, body) = answer.into_parts();
        let body = body.map_err(BoxError::from);
        let body = if parsed.watch && status.is_success() {
            log!(world, "{}: #{id} {} watches", link.name, status.as_u16());
            let checker = watches::Replay::new(&parsed, begun);
            self.pump.add(id, server.life, link.clone(), body.boxed_unsync(), checker)
        } else {
            let body = tokio::select! {
                biased;
                () = server.dead.cancelled() => return Err(Broken("connection reset").into()),
                body = body.collect() => body?.to_bytes(),
            };
            log!(world, "{}: #{id} {} {} bytes", link.name, status.as_u16(), body.len());
            reads::check(world, &parsed, status.as_u16(), &body, begun);
            SimBody::whole(body)
        };
        if !after.is_zero() && dies(server.dead.clone(), after).await {
            return Err(Broken("connection reset").into());
        }
        if last == Some(true) {
            log!(world, "{}: dies after #{id}", link.name);
            link.dead.cancel();
        }
        if world.random.chance(world.weather().unanswered) {
            log!(world, "{}: the answer to #{id} is lost", link.name);
            clock::sleep(world.random.millis(0, 2000)).await;
            return Err(Broken("the connection broke before the answer came").into());
        }
        clock::sleep(world.message_delay()).await;
        if link.is_cut() {
            return self.unreachable(&link, id).await;
        }
        if link.dead.is_cancelled() {
            return std::future::pending().await;
        }
        Ok(Response::from_parts(head, body))
    }

    /// The response of a metrics server beside the API server.
    async fn serve_metrics(&self, link: &Arc<Link>, path: &str) -> Option<Result<Response<SimBody>, BoxError>> {
        let rest = path.strip_prefix("/apis/external.metrics.k8s.io/v1beta1/namespaces/")?;
        let (namespace, name) = rest.split_once('/')?;
        let deployment = format!("{namespace}/{name}");
        let world = &self.world;
        let load = world.autoscaling.load(&deployment);
        clock::sleep(world.message_delay()).await;
        if link.is_cut() || world.random.chance(world.weather().unanswered) {
            return Some(Err(Broken("the connection broke before the answer came").into()));
        }
        log!(world, "{}: the load of {deployment} is {load}", link.name);
        if !link.dead.is_cancelled() {
            world.autoscaling.record_metric(link, &deployment, load);
        }
        let item = serde_json::json!({"metricName": name, "metricLabels": {}, "timestamp": "1970-01-01T00:00:00Z",
            "value": load.to_string()});
        let list = serde_json::json!({"kind": "ExternalMetricValueList", "apiVersion": "external.metrics.k8s.io/v1beta1",
            "metadata": {}, "items": [item]});
        let mut answer = Response::new(SimBody::whole(list.to_string().into()));
        let json = http::HeaderValue::from_static("application/json");
        answer.headers_mut().insert(http::header::CONTENT_TYPE, json);
        Some(Ok(answer))
    }

    /// Checks the sizes set by an autoscaler against its metrics.
    fn check_scale(&self, link: &Arc<Link>, parsed: &ParsedRequest, body: &[u8]) {
        let scales =
            parsed.method == "PUT" && parsed.subresource == "scale" && link.name == crate::cluster::CONTROLLERS;
        let Some(size) = scales.then(|| serde_json::from_slice::<serde_json::Value>(body).ok()).flatten() else {
            return;
        };
        let size = size["spec"]["replicas"].as_i64().unwrap_or(0);
        let of = (&*parsed.namespace, &*parsed.name);
        let wrong = self.world.autoscaling.check_size(&self.world.history, link, of, size);
        wrong.into_iter().for_each(|what| self.world.record_violation(what));
    }

    /// No response: the client times out.
    async fn unreachable(&self, link: &Link, id: u64) -> Result<Response<SimBody>, BoxError> {
        log!(self.world, "{}: #{id} goes nowhere", link.name);
        let gives_up = self.world.random.millis(500, 10_000);
        let _ = clock::timeout(gives_up, link.healed.notified()).await;
        Err(Broken("timed out").into())
    }
}

/// The response of an overloaded server.
fn busy() -> Response<SimBody> {
    let status = br#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"Too many requests, please try again later.","reason":"TooManyRequests","details":{"retryAfterSeconds":1},"code":429}"#;
    let mut answer = Response::new(SimBody::whole(Bytes::from_static(status)));
    *answer.status_mut() = http::StatusCode::TOO_MANY_REQUESTS;
    let headers = answer.headers_mut();
    headers.insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    headers.insert(http::header::RETRY_AFTER, http::HeaderValue::from_static("1"));
    answer
}

/// One client's service.
struct Wire {
    network: Arc<Network>,
    link: Arc<Link>,
}

impl Service<Request<Body>> for Wire {
    type Response = Response<SimBody>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Response<SimBody>, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(self.network.clone().send(self.link.clone(), request))
    }
}

/// A piece of a body in transit.
pub(crate) type Piece = Result<Bytes, BoxError>;

/// The error of a watch's broken connection.
pub(crate) fn reset() -> BoxError {
    Broken("connection reset").into()
}
