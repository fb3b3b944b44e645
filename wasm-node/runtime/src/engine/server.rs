//! An HTTP server's requests: an instance for each, within the container's concurrency, time and memory, and exactly
//! the answers of contract.md §4 where the guest gives none.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use http::{Method, Request, Response};
use machinery_serve::net::{Body, Origin, Peer, Refused, Serve};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::container::{Container, Shared};
use super::failure::Failure;
use super::gate::{Gate, Place};
use super::metered::Metered;
use super::request::{End, attempt, guest};
use super::response::respond;
use super::warm::Warm;
use crate::host::exchange::Exchange;
use runtime_api::{Kind, LoadError, NodeCall, Trial};

/// Answers requests for one container; cheap to clone. [`HttpServer::shut`] ends its requests.
#[derive(Clone)]
pub struct HttpServer {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
    gate: Gate,
    /// Where instances are used again.
    warm: Option<Arc<Warm>>,
}

impl Container {
    /// Makes a server of the container. Nothing runs until a request comes.
    pub fn serve(&self) -> Result<HttpServer, LoadError> {
        if self.kind() != Kind::HttpServer {
            return Err(LoadError::Unsupported("the module is not an HTTP server".into()));
        }
        let shared = self.shared.clone();
        let inner = Inner { gate: Gate::new(&shared), warm: Warm::new(&shared), shared };
        Ok(HttpServer { inner: Arc::new(inner) })
    }

    /// Makes one instance and drops it: whether the module's start works under this container's limits.
    pub async fn try_instantiate(&self) -> Trial {
        let shared = self.shared.clone();
        let timeout = shared.limits.timeout;
        let call = NodeCall::default();
        let own = call.clone();
        let attempt = async move { attempt(&shared, &own).await.map_err(|error| format!("{error:#}")) };
        let metered = Metered::new(attempt, self.shared.clone()).going_first(true);
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
        self.inner.gate.in_flight()
    }

    /// Waits until no request is left, also none whose guest goes on after its response.
    pub async fn drained(&self) {
        self.inner.gate.drained().await;
    }

    /// Cuts off what still runs; later requests get 503.
    pub fn shut(&self) {
        self.inner.gate.shut();
        if let Some(warm) = &self.inner.warm {
            warm.close();
        }
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
    async fn http(&self, from: &Origin, request: Request<Body>) -> Result<Response<Body>, Refused<Request<Body>>> {
        let shared = &self.inner.shared;
        shared.counters.requests.fetch_add(1, Ordering::Relaxed);
        if matches!(from.peer, Peer::Node) {
            shared.counters.probes.fetch_add(1, Ordering::Relaxed);
        }
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
        let began = Instant::now();
        let deadline = began + self.shared.limits.timeout;
        let call = request.extensions_mut().remove::<NodeCall>();
        let place = match self.gate.place(call.is_some(), deadline).await {
            Ok(place) => place,
            // Nothing of the request was seen: another pod can have it.
            Err(Failure::Stopped) => return Err(Refused::gone(request)),
            Err(Failure::Overload) => return Err(Refused::busy(request)),
            Err(failure) => return Ok(failure.response(&self.shared)),
        };
        Ok(self.taken((request, call), (began, deadline), place).await)
    }

    /// Answers a request that has its place.
    async fn taken(
        self: Arc<Self>,
        request: (Request<Body>, Option<NodeCall>),
        (began, deadline): (Instant, Instant),
        place: Place,
    ) -> Response<Body> {
        let head_only = request.0.method() == Method::HEAD;
        let exchange = Arc::new(Exchange::new(began));
        let goes_first = request.1.is_some();
        let (sender, mut receiver) = oneshot::channel();
        let guest = guest(self.shared.clone(), request, exchange.clone(), sender, (self.warm.clone(), place));
        let guest = Metered::new(guest, self.shared.clone());
        let mut guest = guest.going_first(goes_first);

        let mut end: Option<End> = None;
        let mut sleep = None;
        let mut shut = std::pin::pin!(self.gate.cut());
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
}

/// Lets a guest go on after its head: until it returns, its reader goes away, or nothing moves for the timeout.
async fn drive_to_end<G: Future<Output = End>>(inner: Arc<Inner>, mut guest: Metered<G>, exchange: Arc<Exchange>) {
    let timeout = inner.shared.limits.timeout;
    let mut shut = std::pin::pin!(inner.gate.cut());
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
