//! HTTP server of a container: an instance per request, within the container's concurrency, time and memory. Without a
//! guest's response it sends exactly those of docs/contract.md §4.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use http::{Method, Request, Response};
use machinery_env::Deadline;
use machinery_serve::net::{Body, CallRejected, Origin, Serve};
use machinery_serve::trace::Span;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::container::{Container, ContainerState};
use super::failure::Failure;
use super::gate::{Gate, GatePermit};
use super::metered::MeteredFuture;
use super::request::{GuestResult, ResponseHead, attempt, guest};
use super::response::respond;
use super::spans;
use super::warm::WarmPool;
use crate::host::exchange::Exchange;
use runtime_api::{Kind, LoadError, NodeCall, TrialOutcome};

/// Serves requests of one container; cheap to clone. [`HttpServer::shut`] ends its requests.
#[derive(Clone)]
pub struct HttpServer {
    inner: Arc<HttpServerInner>,
}

struct HttpServerInner {
    shared: Arc<ContainerState>,
    gate: Gate,
    /// Idle instances, where they are reused.
    warm: Option<Arc<WarmPool>>,
}

impl Container {
    /// Creates a server of the container. Nothing runs before the first request.
    pub fn serve(&self) -> Result<HttpServer, LoadError> {
        if self.kind() != Kind::HttpServer {
            return Err(LoadError::Unsupported("the module is not an HTTP server".into()));
        }
        let shared = self.shared.clone();
        let inner = HttpServerInner { gate: Gate::new(&shared), warm: WarmPool::new(&shared), shared };
        Ok(HttpServer { inner: Arc::new(inner) })
    }

    /// Creates one instance and drops it: whether the module's start works under this container's limits.
    pub async fn try_instantiate(&self) -> TrialOutcome {
        let shared = self.shared.clone();
        let timeout = shared.limits.timeout;
        let call = NodeCall::default();
        let own = call.clone();
        let attempt = async move { attempt(&shared, &own).await.map_err(|error| format!("{error:#}")) };
        let metered = MeteredFuture::new(attempt, self.shared.clone()).bypassing_queue(true);
        let env = self.shared.engine.env().clone();
        // Created on the guest runtime, whose timers it uses.
        let bounded = async move { env.timeout(timeout, metered).await };
        match AbortOnDrop(self.shared.engine.guest_runtime().spawn(bounded)).await {
            Ok(Ok(Ok(()))) => TrialOutcome::Sound,
            Ok(Ok(Err(error))) => TrialOutcome::Broken(error),
            Ok(Err(_)) if call.waits() => TrialOutcome::NoCapacity,
            Ok(Err(_)) => TrialOutcome::Broken("the module does not start within its timeout".into()),
            Err(error) => TrialOutcome::Broken(error.to_string()),
        }
    }
}

impl HttpServer {
    /// Number of running and queued requests.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.inner.gate.in_flight()
    }

    /// Waits until no request is left, including those whose guest continues after its response.
    pub async fn drained(&self) {
        self.inner.gate.drained().await;
    }

    /// Cuts off running requests; later ones get 503.
    pub fn shut(&self) {
        self.inner.gate.shut();
        if let Some(warm) = &self.inner.warm {
            warm.close();
        }
    }

    /// The container that serves.
    #[must_use]
    pub fn container(&self) -> Container {
        Container { shared: self.inner.shared.clone() }
    }
}

#[cfg(test)]
impl HttpServer {
    /// Serves like the pod network, with the HTTP response for a rejected request.
    pub(crate) async fn http(&self, request: Request<Body>) -> Response<Body> {
        let local = std::net::SocketAddr::from(([127, 66, 0, 2], 80));
        let origin = Origin { peer: machinery_serve::net::Peer::Node, local, via: None };
        let answer = Serve::http(self, &origin, request).await;
        answer.unwrap_or_else(|refused| machinery_serve::net::http::refusal(&refused))
    }
}

#[async_trait::async_trait]
impl Serve for HttpServer {
    async fn http(
        &self,
        from: &Origin,
        mut request: Request<Body>,
    ) -> Result<Response<Body>, CallRejected<Request<Body>>> {
        let shared = &self.inner.shared;
        shared.counters.requests.fetch_add(1, Ordering::Relaxed);
        if request.extensions().get::<NodeCall>().is_some() {
            shared.counters.probes.fetch_add(1, Ordering::Relaxed);
        }
        let span = spans::start(shared, from, &mut request);
        if shared.engine.on_guest_thread() {
            return self.inner.clone().answer(request, span).await;
        }
        let task = shared.engine.guest_runtime().spawn(self.inner.clone().answer(request, span));
        match AbortOnDrop(task).await {
            Ok(answer) => answer,
            Err(error) => {
                tracing::error!(container = shared.name, "a request's task failed: {error}");
                Ok(Failure::Trap.response(shared))
            }
        }
    }
}

impl HttpServerInner {
    async fn answer(
        self: Arc<Self>,
        mut request: Request<Body>,
        span: Span,
    ) -> Result<Response<Body>, CallRejected<Request<Body>>> {
        let began = self.shared.engine.env().instant();
        let deadline = Deadline::after(began, self.shared.limits.timeout);
        let call = request.extensions_mut().remove::<NodeCall>();
        let permit = match self.gate.acquire(call.is_some(), deadline).await {
            Ok(permit) => permit,
            // No byte of the request was read: another pod can take it.
            Err(failure @ (Failure::Stopped | Failure::Overload)) => {
                spans::failed(&span, failure.reason());
                return Err(match failure {
                    Failure::Stopped => CallRejected::gone(request),
                    _ => CallRejected::busy(request),
                });
            }
            Err(failure) => {
                let response = failure.response(&self.shared);
                spans::answered(&span, &response);
                return Ok(response);
            }
        };
        let exchange = Exchange::new(self.shared.engine.env().clone(), began, span);
        exchange.trace_elapsed("coracle.queue.wait_ms");
        Ok(self.serve_admitted((request, call), (Arc::new(exchange), deadline), permit).await)
    }

    /// Polls a guest until it has sent its response's head, has ended, or may not go on. Its end is stored in `end`.
    async fn wait_for_head<G: Future<Output = GuestResult>>(
        &self,
        (guest, end): (&mut MeteredFuture<G>, &mut Option<GuestResult>),
        receiver: &mut oneshot::Receiver<ResponseHead>,
        deadline: Deadline,
    ) -> Result<ResponseHead, Failure> {
        let mut sleep = None;
        let mut shut = std::pin::pin!(self.gate.cut());
        poll_fn(|cx| {
            if end.is_none()
                && let Poll::Ready(result) = Pin::new(&mut *guest).poll(cx)
            {
                *end = Some(result);
            }
            // A guest's own response precedes anything else of the same poll.
            match Pin::new(&mut *receiver).poll(cx) {
                Poll::Ready(Ok(head)) => return Poll::Ready(Ok(head)),
                _ if end.is_some() => {}
                _ => {
                    if shut.as_mut().poll(cx).is_ready() {
                        return Poll::Ready(Err(Failure::Stopped));
                    }
                    // A timer is registered only for guests that don't respond at once.
                    let sleep = sleep.get_or_insert_with(|| Box::pin(self.shared.engine.env().sleep_until(deadline)));
                    return sleep.as_mut().poll(cx).map(|()| Err(Failure::Timeout));
                }
            }
            Poll::Ready(Err(end.and_then(Result::err).unwrap_or(Failure::NoResponse)))
        })
        .await
    }

    /// Serves an admitted request.
    async fn serve_admitted(
        self: Arc<Self>,
        request: (Request<Body>, Option<NodeCall>),
        (exchange, deadline): (Arc<Exchange>, Deadline),
        permit: GatePermit,
    ) -> Response<Body> {
        let head_only = request.0.method() == Method::HEAD;
        let bypasses_queue = request.1.is_some();
        let (sender, mut receiver) = oneshot::channel();
        let guest = guest(self.shared.clone(), request, exchange.clone(), sender, (self.warm.clone(), permit));
        let guest = MeteredFuture::new(guest, self.shared.clone());
        let mut guest = guest.bypassing_queue(bypasses_queue).within(exchange.span.scope());

        let mut end: Option<GuestResult> = None;
        let head = self.wait_for_head((&mut guest, &mut end), &mut receiver, deadline).await;
        let head = match head {
            Ok(head) => head,
            Err(failure) => {
                exchange.end(true);
                if failure == Failure::Timeout {
                    self.shared.log_system(&format!("no response within {:?}", self.shared.limits.timeout));
                }
                let response = failure.response(&self.shared);
                spans::answered(&exchange.span, &response);
                return response;
            }
        };
        if end.is_none() {
            let rest = drive_to_end(self.clone(), guest, exchange.clone());
            self.shared.engine.guest_runtime().spawn(rest);
        } else if let Some(Err(failure)) = end {
            match &head {
                Ok(_) => failure.count_cut(&self.shared),
                Err(_) => failure.count(&self.shared),
            }
            spans::failed(&exchange.span, failure.reason());
        }
        match head {
            Ok(response) => respond(&self.shared, response, exchange, end, head_only),
            Err(code) => {
                self.shared.log_system(&format!("the handler answered with an error: {code:?}"));
                let response = Failure::NoResponse.response(&self.shared);
                spans::answered(&exchange.span, &response);
                response
            }
        }
    }
}

/// Drives a guest after its head: until it returns, its reader disconnects, or it makes no progress for the timeout.
async fn drive_to_end<G: Future<Output = GuestResult>>(
    inner: Arc<HttpServerInner>,
    mut guest: MeteredFuture<G>,
    exchange: Arc<Exchange>,
) {
    let (timeout, env) = (inner.shared.limits.timeout, inner.shared.engine.env());
    let mut shut = std::pin::pin!(inner.gate.cut());
    loop {
        let idle_at = exchange.progress_at() + timeout;
        tokio::select! {
            biased;
            end = &mut guest => {
                if let Err(failure) = end {
                    failure.count_cut(&inner.shared);
                    spans::failed(&exchange.span, failure.reason());
                }
                return;
            }
            () = exchange.abandoned.notified() => break,
            () = &mut shut => break,
            () = env.sleep_until(idle_at) => {
                if exchange.progress_at() + timeout <= env.instant() {
                    Failure::Timeout.count_cut(&inner.shared);
                    spans::failed(&exchange.span, Failure::Timeout.reason());
                    inner.shared.log_system(&format!("nothing moved for {timeout:?} after the response's head"));
                    break;
                }
            }
        }
    }
    // Before the guest is dropped below: that closes its body's channel, which must not look like a clean end.
    exchange.end(true);
}

/// A task that is aborted with its waiter.
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
