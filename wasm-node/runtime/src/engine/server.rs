//! An HTTP server's requests: an instance for each, within the container's concurrency, time and memory, and exactly
//! the answers of contract.md §4 where the guest gives none.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body::Body as _;
use http_body_util::{BodyExt, Empty, Full};
use machinery_api::names::REASON_HEADER;
use machinery_serve::net::framing::{strip_framing, strip_hop_by_hop};
use machinery_serve::net::{Body, Origin, Refused, Serve};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use wasmtime::{PoolConcurrencyLimitError, Store, Trap};
use wasmtime_wasi::I32Exit;
use wasmtime_wasi_http::WasiHttpView;
use wasmtime_wasi_http::p2::bindings::Proxy;
use wasmtime_wasi_http::p2::bindings::http::types::{ErrorCode, Scheme};
use wasmtime_wasi_http::p2::body::HyperOutgoingBody;

use super::admission::{Admission, fits_alone};
use super::body::{Exchange, GuestBody};
use super::command::count_fuel;
use super::container::{Container, Live, Shared};
use super::cpu::Metered;
use super::growth::StoreLimiter;
use super::limits::QUEUED_REQUESTS_MAX;
use super::load::Pre;
use super::state::{ComponentState, incoming};
use runtime_api::{Kind, LoadError, NodeCall, Trial};

/// Calls of the node's own at once: a probe of each kind, a hook, and a trial, which all wait for their answer.
const NODE_CALLS_MAX: usize = 8;
/// Body frames of a finished guest that are gathered before the head is sent: what its channel can hold, and trailers.
const GATHERED_FRAMES_MAX: usize = 4;

/// Answers requests for one container; cheap to clone. [`HttpServer::shut`] ends its requests.
#[derive(Clone)]
pub struct HttpServer {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
    permits: Arc<Semaphore>,
    node_permits: Arc<Semaphore>,
    queued: AtomicUsize,
    in_flight: Arc<InFlight>,
}

/// Requests whose guest still runs, so that a drain can wait for them.
#[derive(Default)]
struct InFlight {
    count: AtomicUsize,
    changed: tokio::sync::Notify,
    shut: tokio_util::sync::CancellationToken,
}

struct Flight(Arc<InFlight>);

impl Flight {
    fn new(all: &Arc<InFlight>) -> Self {
        all.count.fetch_add(1, Ordering::AcqRel);
        Self(all.clone())
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        if self.0.count.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.changed.notify_waiters();
        }
    }
}

/// Why the guest gave no response, or none to the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Failure {
    Trap,
    Memory,
    Fuel,
    Timeout,
    NoResponse,
    /// More requests wait than can be kept.
    Overload,
    /// The container is being stopped.
    Stopped,
}

impl Failure {
    fn parts(self) -> (StatusCode, &'static str) {
        match self {
            Self::Trap => (StatusCode::BAD_GATEWAY, "trap"),
            Self::Memory => (StatusCode::SERVICE_UNAVAILABLE, "memory"),
            Self::Fuel => (StatusCode::SERVICE_UNAVAILABLE, "fuel"),
            Self::Timeout => (StatusCode::GATEWAY_TIMEOUT, "timeout"),
            Self::NoResponse => (StatusCode::BAD_GATEWAY, "no-response"),
            Self::Overload => (StatusCode::SERVICE_UNAVAILABLE, "overload"),
            Self::Stopped => (StatusCode::SERVICE_UNAVAILABLE, "stopped"),
        }
    }

    fn count(self, shared: &Shared) {
        let counters = &shared.counters;
        let counter = match self {
            Self::Trap => &counters.trap,
            Self::Memory => &counters.memory,
            Self::Fuel => &counters.fuel,
            Self::Timeout => &counters.timeout,
            Self::NoResponse => &counters.no_response,
            Self::Overload | Self::Stopped => return,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    fn response(self, shared: &Shared) -> Response<Body> {
        self.count(shared);
        let (status, reason) = self.parts();
        let text = format!("{} ({reason})\n", status.canonical_reason().unwrap_or_default());
        let mut response = Response::new(full(Bytes::from(text)));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(HeaderName::from_static(REASON_HEADER), HeaderValue::from_static(reason));
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        response
    }
}

fn full(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}

/// How a guest ended.
type End = Result<(), Failure>;
type Head = Result<Response<HyperOutgoingBody>, ErrorCode>;

impl Container {
    /// Makes a server of the container. Nothing runs until a request comes.
    pub fn serve(&self) -> Result<HttpServer, LoadError> {
        if self.kind() != Kind::HttpServer {
            return Err(LoadError::Unsupported("the module is a command, not an HTTP server".into()));
        }
        let shared = self.shared.clone();
        // More than there are slots would only wait for one.
        let most = shared.door.share.slots().capacity().instances as usize;
        let permits = Arc::new(Semaphore::new(shared.limits.concurrency.clamp(1, most)));
        let node_permits = Arc::new(Semaphore::new(NODE_CALLS_MAX));
        let inner = Inner { shared, permits, node_permits, queued: AtomicUsize::new(0), in_flight: Arc::default() };
        Ok(HttpServer { inner: Arc::new(inner) })
    }

    /// Makes one instance and drops it: whether the module's start works under this container's limits.
    pub async fn try_instantiate(&self) -> Trial {
        let shared = self.shared.clone();
        let timeout = shared.limits.timeout;
        let call = NodeCall::default();
        let own = call.clone();
        let attempt =
            async move { instantiate(&shared, None, Some(&own)).await.map(drop).map_err(|error| format!("{error:#}")) };
        let metered = Metered::new(attempt, self.shared.cpu.clone(), self.shared.engine.clone()).going_first(true);
        let bounded = async move { tokio::time::timeout(timeout, metered).await };
        match AbortOnDrop(self.shared.engine.guest_runtime().spawn(bounded)).await {
            Ok(Ok(Ok(()))) => Trial::Sound,
            Ok(Ok(Err(error))) => Trial::Broken(error),
            Ok(Err(_)) if call.waits() => Trial::NoRoom,
            Ok(Err(_)) => Trial::Broken("the module does not start within its timeout".into()),
            Err(error) => Trial::Broken(error.to_string()),
        }
    }
}

impl HttpServer {
    /// Requests whose guest runs or that wait for one.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.inner.in_flight.count.load(Ordering::Acquire)
    }

    /// Waits until no request is left, also none whose guest goes on after its response.
    pub async fn drained(&self) {
        loop {
            let changed = self.inner.in_flight.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if self.in_flight() == 0 {
                return;
            }
            changed.await;
        }
    }

    /// Cuts off what still runs; later requests get 503.
    pub fn shut(&self) {
        self.inner.in_flight.shut.cancel();
    }

    /// The container that answers.
    #[must_use]
    pub fn container(&self) -> Container {
        Container { shared: self.inner.shared.clone() }
    }
}

#[cfg(test)]
impl HttpServer {
    /// As the pod network asks, with what a client of HTTP would get where the request is not taken.
    pub(crate) async fn http(&self, request: Request<Body>) -> Response<Body> {
        let local = std::net::SocketAddr::from(([127, 66, 0, 2], 80));
        let origin = Origin { peer: machinery_serve::net::Peer::Node, local, via: None };
        let answer = Serve::http(self, &origin, request).await;
        answer.unwrap_or_else(|refused| machinery_serve::net::http::refusal(&refused))
    }
}

#[async_trait::async_trait]
impl Serve for HttpServer {
    async fn http(&self, _: &Origin, request: Request<Body>) -> Result<Response<Body>, Refused<Request<Body>>> {
        let shared = &self.inner.shared;
        shared.counters.requests.fetch_add(1, Ordering::Relaxed);
        if shared.engine.on_guest_thread() {
            return self.inner.clone().answer(request).await;
        }
        let task = shared.engine.guest_runtime().spawn(self.inner.clone().answer(request));
        match AbortOnDrop(task).await {
            Ok(answer) => answer,
            Err(error) => {
                tracing::error!(container = shared.name, "a request's task failed: {error}");
                Ok(Failure::Trap.response(shared))
            }
        }
    }
}

impl Inner {
    async fn answer(self: Arc<Self>, mut request: Request<Body>) -> Result<Response<Body>, Refused<Request<Body>>> {
        let deadline = Instant::now() + self.shared.limits.timeout;
        let flight = Flight::new(&self.in_flight);
        let call = request.extensions_mut().remove::<NodeCall>();
        let permit = match self.permit(if call.is_some() { &self.node_permits } else { &self.permits }, deadline).await
        {
            Ok(permit) => permit,
            // Nothing of the request was seen: another pod can have it.
            Err(Failure::Stopped) => return Err(Refused::gone(request)),
            Err(Failure::Overload) => return Err(Refused::busy(request)),
            Err(failure) => return Ok(failure.response(&self.shared)),
        };
        Ok(self.taken((request, call), deadline, (permit, flight)).await)
    }

    /// Answers a request that has its place.
    async fn taken(
        self: Arc<Self>,
        request: (Request<Body>, Option<NodeCall>),
        deadline: Instant,
        place: (OwnedSemaphorePermit, Flight),
    ) -> Response<Body> {
        let head_only = request.0.method() == Method::HEAD;
        let exchange = Arc::new(Exchange::new());
        let goes_first = request.1.is_some();
        let (sender, mut receiver) = oneshot::channel();
        let guest = guest(self.shared.clone(), request, exchange.clone(), sender, place);
        let guest = Metered::new(guest, self.shared.cpu.clone(), self.shared.engine.clone());
        let mut guest = guest.going_first(goes_first);

        let mut end: Option<End> = None;
        let mut sleep = None;
        let mut shut = std::pin::pin!(self.in_flight.shut.cancelled());
        let head = poll_fn(|cx| {
            if end.is_none()
                && let Poll::Ready(result) = Pin::new(&mut guest).poll(cx)
            {
                end = Some(result);
            }
            // A guest's own response comes before anything that happened in the same poll.
            match Pin::new(&mut receiver).poll(cx) {
                Poll::Ready(Ok(head)) => return Poll::Ready(Ok(head)),
                Poll::Ready(Err(_)) if end.is_some() => {}
                _ if end.is_some() => {}
                _ => {
                    if shut.as_mut().poll(cx).is_ready() {
                        return Poll::Ready(Err(Failure::Stopped));
                    }
                    // A timer is registered only for guests that do not answer at once.
                    let sleep = sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
                    return sleep.as_mut().poll(cx).map(|()| Err(Failure::Timeout));
                }
            }
            Poll::Ready(Err(end.and_then(Result::err).unwrap_or(Failure::NoResponse)))
        })
        .await;
        let head = match head {
            Ok(head) => head,
            Err(failure) => {
                exchange.end(true);
                if failure == Failure::Timeout {
                    self.shared.log_system(&format!("no response within {:?}", self.shared.limits.timeout));
                }
                return failure.response(&self.shared);
            }
        };
        if end.is_none() {
            let rest = drive_to_end(self.clone(), guest, exchange.clone());
            self.shared.engine.guest_runtime().spawn(rest);
        } else if let Some(Err(failure)) = end {
            failure.count(&self.shared);
        }
        match head {
            Ok(response) => respond(&self.shared, response, exchange, end, head_only),
            Err(code) => {
                self.shared.log_system(&format!("the handler answered with an error: {code:?}"));
                Failure::NoResponse.response(&self.shared)
            }
        }
    }

    async fn permit(&self, permits: &Arc<Semaphore>, deadline: Instant) -> Result<OwnedSemaphorePermit, Failure> {
        if self.in_flight.shut.is_cancelled() {
            return Err(Failure::Stopped);
        }
        if let Ok(permit) = permits.clone().try_acquire_owned() {
            return Ok(permit);
        }
        struct Queued<'a>(&'a AtomicUsize);
        impl Drop for Queued<'_> {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::Relaxed);
            }
        }
        let waiting = self.queued.fetch_add(1, Ordering::Relaxed);
        let _queued = Queued(&self.queued);
        if waiting >= QUEUED_REQUESTS_MAX {
            return Err(Failure::Overload);
        }
        tokio::select! {
            permit = permits.clone().acquire_owned() => permit.map_err(|_| Failure::Stopped),
            () = self.in_flight.shut.cancelled() => Err(Failure::Stopped),
            () = tokio::time::sleep_until(deadline) => Err(Failure::Timeout),
        }
    }
}

/// Lets a guest go on after its head: until it returns, its reader goes away, or nothing moves for the timeout.
async fn drive_to_end<G: Future<Output = End>>(inner: Arc<Inner>, mut guest: Metered<G>, exchange: Arc<Exchange>) {
    let timeout = inner.shared.limits.timeout;
    let mut shut = std::pin::pin!(inner.in_flight.shut.cancelled());
    loop {
        let idle_at = exchange.progress_at() + timeout;
        tokio::select! {
            biased;
            end = &mut guest => {
                if let Err(failure) = end {
                    failure.count(&inner.shared);
                }
                return;
            }
            () = exchange.abandoned.notified() => break,
            () = &mut shut => break,
            () = tokio::time::sleep_until(idle_at) => {
                if exchange.progress_at() + timeout <= Instant::now() {
                    Failure::Timeout.count(&inner.shared);
                    inner.shared.log_system(&format!("nothing moved for {timeout:?} after the response's head"));
                    break;
                }
            }
        }
    }
    // Before the guest is dropped below: its body's channel closes then, and must not look like an end.
    exchange.end(true);
}

/// One request's guest, from its instance to its end.
async fn guest(
    shared: Arc<Shared>,
    (request, call): (Request<Body>, Option<NodeCall>),
    exchange: Arc<Exchange>,
    head: oneshot::Sender<Head>,
    held: (OwnedSemaphorePermit, Flight),
) -> End {
    let end = match instantiate(&shared, Some(exchange.clone()), call.as_ref()).await {
        Ok(mut instance) => {
            let result = handle(&mut instance.store, &instance.proxy, request, head).await;
            count_fuel(&shared, &instance.store);
            let limiter = &instance.store.data().limiter;
            shared.door.ended(fits_alone(limiter, &shared).unwrap_or_else(|| limiter.held_bytes()));
            let end = settle(&shared, result, limiter);
            // Before the store goes: see `Exchange::end`.
            exchange.end(end.is_err());
            drop(instance);
            end
        }
        Err(error) => {
            exchange.end(true);
            Err(error.failure)
        }
    };
    drop(held);
    end
}

struct InstantiateError {
    failure: Failure,
    error: wasmtime::Error,
}

impl std::fmt::Display for InstantiateError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:#}", self.error)
    }
}

/// A live instance. What it takes is given back after it is gone: fields are dropped in their order.
struct Instance {
    store: Store<ComponentState>,
    proxy: Proxy,
    _live: Live,
    _admission: Admission,
}

async fn instantiate(
    shared: &Arc<Shared>,
    exchange: Option<Arc<Exchange>>,
    call: Option<&NodeCall>,
) -> Result<Instance, InstantiateError> {
    let trap = |error| InstantiateError { failure: Failure::Trap, error };
    let Pre::Server(pre) = &*shared.pre else {
        return Err(trap(wasmtime::Error::msg("not an HTTP server")));
    };
    let mut need = 0;
    loop {
        let admission = shared.admit(call, need).await;
        let live = Live::new(shared);
        let mut store = ComponentState::store(shared, exchange.clone()).map_err(trap)?;
        let error = match pre.instantiate_async(&mut store).await {
            Ok(proxy) => {
                shared.door.started(store.data().limiter.held_bytes());
                shared.instantiated(None);
                return Ok(Instance { store, proxy, _live: live, _admission: admission });
            }
            Err(error) => error,
        };
        // Slots are counted so that this doesn't happen; if it does, it is no failure of the guest.
        if error.is::<PoolConcurrencyLimitError>() {
            tracing::warn!(container = shared.name, "the pool of instances is full before its slots are: {error:#}");
            let slots = shared.door.share.slots().clone();
            drop(store);
            drop((live, admission));
            slots.released().await;
            continue;
        }
        // The others that live took the memory meanwhile: that says nothing about the module. Once more, when there is
        // as much as this start is known to take.
        if let Some(least) = fits_alone(&store.data().limiter, shared) {
            need = least;
            shared.door.started(least);
            drop(store);
            continue;
        }
        shared.instantiated(Some(&error));
        let end = settle(shared, Err(error), &store.data().limiter);
        let error = wasmtime::Error::msg(shared.last_broken());
        return Err(InstantiateError { failure: end.err().unwrap_or(Failure::Trap), error });
    }
}

async fn handle(
    store: &mut Store<ComponentState>,
    proxy: &Proxy,
    request: Request<Body>,
    head: oneshot::Sender<Head>,
) -> wasmtime::Result<()> {
    let (mut parts, body) = request.into_parts();
    strip_hop_by_hop(&mut parts.headers);
    let https = parts.uri.scheme() == Some(&http::uri::Scheme::HTTPS);
    // A request without an authority, or with one that is no text, still is a request.
    let readable = parts.headers.get(header::HOST).is_some_and(|host| host.to_str().is_ok());
    if parts.uri.authority().is_none() && !readable {
        parts.headers.insert(header::HOST, HeaderValue::from_static("localhost"));
    }
    let request = Request::from_parts(parts, incoming(body));
    let mut view = store.data_mut().http();
    let request = view.new_incoming_request(if https { Scheme::Https } else { Scheme::Http }, request)?;
    let out = view.new_response_outparam(head)?;
    proxy.wasi_http_incoming_handler().call_handle(store, request, out).await
}

fn settle(shared: &Shared, result: wasmtime::Result<()>, limiter: &StoreLimiter) -> End {
    let Err(error) = result else { return Ok(()) };
    if matches!(error.downcast_ref::<I32Exit>(), Some(I32Exit(0))) {
        return Ok(());
    }
    shared.log_error(&error);
    if limiter.exceeded().is_some() {
        return Err(Failure::Memory);
    }
    match error.downcast_ref::<Trap>() {
        Some(Trap::OutOfFuel) => Err(Failure::Fuel),
        _ => Err(Failure::Trap),
    }
}

/// Removes what a guest must not say: the node's own headers, and those that frame a message.
pub(crate) fn strip(headers: &mut HeaderMap) {
    strip_framing(headers);
    headers.remove(header::TE);
    headers.remove(header::TRAILER);
    let own: Vec<HeaderName> = headers.keys().filter(|name| name.as_str().starts_with("coracle-")).cloned().collect();
    for name in own {
        headers.remove(name);
    }
}

fn respond(
    shared: &Shared,
    response: Response<HyperOutgoingBody>,
    exchange: Arc<Exchange>,
    end: Option<End>,
    head_only: bool,
) -> Response<Body> {
    let (mut parts, body) = response.into_parts();
    if parts.status.is_informational() {
        shared.log_system(&format!("the handler answered with status {}, which is no response", parts.status));
        exchange.abandoned.notify_one();
        return Failure::NoResponse.response(shared);
    }
    strip(&mut parts.headers);
    let length = parts.headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()).and_then(|v| v.parse().ok());
    if body.is_end_stream() || head_only {
        // No body was made: only an answer to HEAD may speak of the length of another.
        if !head_only || length.is_none() {
            parts.headers.remove(header::CONTENT_LENGTH);
        }
        if !body.is_end_stream() {
            return Response::from_parts(parts, GuestBody::new(body, exchange, None).boxed_unsync());
        }
        return Response::from_parts(parts, Empty::new().map_err(|never| match never {}).boxed_unsync());
    }
    if matches!(end, Some(Ok(()))) {
        // The guest is done: what it wrote lies in the channel, and its length is known.
        let mut first: Option<Bytes> = None;
        let mut more: Vec<u8> = Vec::new();
        let mut cx = Context::from_waker(Waker::noop());
        let mut whole = GuestBody::new(body, exchange, length);
        for _ in 0..GATHERED_FRAMES_MAX {
            match Pin::new(&mut whole).poll_frame(&mut cx) {
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) if first.is_none() => first = Some(data),
                    Ok(data) => more.extend_from_slice(&data),
                    Err(trailers) => {
                        return Response::from_parts(parts, put_back(first, more, Some(Ok(trailers)), whole));
                    }
                },
                Poll::Ready(None) => {
                    parts.headers.remove(header::CONTENT_LENGTH);
                    return Response::from_parts(parts, full(join(first, more)));
                }
                Poll::Ready(Some(Err(error))) => {
                    return Response::from_parts(parts, put_back(first, more, Some(Err(error)), whole));
                }
                Poll::Pending => break,
            }
        }
        whole.only_looked_at();
        return Response::from_parts(parts, put_back(first, more, None, whole));
    }
    if length.is_none() {
        parts.headers.remove(header::CONTENT_LENGTH);
    }
    Response::from_parts(parts, GuestBody::new(body, exchange, length).boxed_unsync())
}

fn join(first: Option<Bytes>, more: Vec<u8>) -> Bytes {
    match first {
        Some(first) if more.is_empty() => first,
        Some(first) => [first.as_ref(), &more].concat().into(),
        None => Bytes::new(),
    }
}

/// A body of what was gathered, then `then`, then the rest.
fn put_back(
    first: Option<Bytes>,
    more: Vec<u8>,
    then: Option<Result<http_body::Frame<Bytes>, machinery_serve::net::BoxError>>,
    rest: GuestBody,
) -> Body {
    let gathered = first.map(|first| Ok(http_body::Frame::data(join(Some(first), more))));
    let frames = futures::stream::iter(gathered.into_iter().chain(then));
    let rest = futures::StreamExt::chain(frames, http_body_util::BodyStream::new(rest));
    http_body_util::StreamBody::new(rest).boxed_unsync()
}

/// A task that ends with whoever waits for it.
pub(crate) struct AbortOnDrop<T>(pub(crate) JoinHandle<T>);

impl<T> Future for AbortOnDrop<T> {
    type Output = Result<T, tokio::task::JoinError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(cx)
    }
}

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}
