//! One HTTP/1.1 connection to an endpoint. A request without a body drives it in its own task, so that a response costs
//! no switch between tasks; a request with a body, or one that switches protocols, gives it a task of its own.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;
use hyper::client::conn::http1::{Connection, SendRequest};
use hyper_util::rt::TokioIo;
use machinery_serve::dial::idle::Reusable;
use machinery_serve::net::{Body, BoxError, Io, empty_body};
use tokio::runtime::Handle;

use crate::egress::pod_limit::PodPermit;

/// Attempts to bring a connection whose response has ended back to where it takes a request: it needs one or two.
const SETTLE_POLLS_MAX: usize = 2;

type Driver = Connection<TokioIo<Box<dyn Io>>, Body>;

/// A connection that takes a request.
pub(crate) struct Http1 {
    sender: SendRequest<Body>,
    /// `None` once a task drives it.
    driver: Option<Driver>,
}

impl Http1 {
    pub(crate) fn new((sender, driver): (SendRequest<Body>, Driver)) -> Self {
        Self { sender, driver: Some(driver) }
    }

    /// Whether the connection takes a request now. Without a task of its own, it reads here whether its peer has closed it.
    pub(crate) fn is_ready(&mut self) -> bool {
        self.poll_driver(&mut Context::from_waker(Waker::noop()));
        self.sender.is_ready()
    }

    /// Polls the connection; forgets it once it has ended.
    fn poll_driver(&mut self, context: &mut Context<'_>) {
        if let Some(driver) = &mut self.driver
            && let Poll::Ready(ended) = Pin::new(driver).poll(context)
        {
            if let Err(error) = ended {
                tracing::debug!(%error, "connection to an endpoint ended");
            }
            self.driver = None;
        }
    }

    /// Sends a request, and returns the connection with the head of its response.
    pub(crate) async fn send(
        mut self,
        request: Request<Body>,
        upgrades: bool,
        address: SocketAddr,
    ) -> Result<(Self, Response<Incoming>), TrySendError<Request<Body>>> {
        if (upgrades || !request.body().is_end_stream())
            && let Some(driver) = self.driver.take()
        {
            tokio::spawn(async move {
                if let Err(error) = driver.with_upgrades().await {
                    tracing::debug!(%address, %error, "connection to an endpoint ended");
                }
            });
        }
        let mut response = std::pin::pin!(self.sender.try_send_request(request));
        if self.driver.is_none() {
            return response.await.map(|response| (self, response));
        }
        let response = std::future::poll_fn(|context| {
            self.poll_driver(context);
            // It is ready by what the driver has done just now, or not before the driver is polled again.
            response.as_mut().poll(&mut Context::from_waker(Waker::noop()))
        })
        .await?;
        Ok((self, response))
    }

    /// The body of the response that was just received. At its end `keep` gets the connection, unless it is ending, and `held`
    /// is dropped.
    pub(crate) fn body(self, body: Incoming, keep: Option<impl Keep>, held: Arc<PodPermit>) -> Body {
        let ended = body.is_end_stream();
        // Its drop ends an exchange without a body.
        let exchange = Http1Body { body: Some(body), rest: Some(Rest { connection: self, keep, _held: held }) };
        if ended { empty_body() } else { exchange.boxed_unsync() }
    }
}

impl Reusable for Http1 {
    fn is_ready(&mut self) -> bool {
        self.sender.is_ready()
    }

    /// Its last response has ended: if it isn't ready then, its peer has closed it.
    fn is_closed(&mut self) -> bool {
        !Self::is_ready(self)
    }
}

/// Keeps a connection for further requests.
pub(crate) trait Keep: FnOnce(Http1) + Send + Unpin + 'static {}
impl<T: FnOnce(Http1) + Send + Unpin + 'static> Keep for T {}

/// What outlives a response's head until its body has ended.
struct Rest<K> {
    connection: Http1,
    keep: Option<K>,
    _held: Arc<PodPermit>,
}

impl<K: Keep> Rest<K> {
    /// Keeps the connection once it is ready for the next request. One that isn't is closed, unless a task drives it: its
    /// request may still be being sent.
    fn finish(mut self) {
        let Some(keep) = self.keep.take() else { return };
        for _ in 0..SETTLE_POLLS_MAX {
            if self.connection.is_ready() {
                return keep(self.connection);
            }
        }
        if self.connection.driver.is_none()
            && !self.connection.sender.is_closed()
            && let Ok(runtime) = Handle::try_current()
        {
            runtime.spawn(async move {
                if self.connection.sender.ready().await.is_ok() {
                    keep(self.connection);
                }
            });
        }
    }
}

/// A response's body, which drives its connection.
struct Http1Body<K: Keep> {
    /// `None` only during the drop.
    body: Option<Incoming>,
    /// `None` after the end.
    rest: Option<Rest<K>>,
}

impl<K: Keep> Http1Body<K> {
    fn poll_body(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        Pin::new(body).poll_frame(context).map_err(Into::into)
    }
}

impl<K: Keep> Drop for Http1Body<K> {
    fn drop(&mut self) {
        // The connection passes over what isn't read, if it has come already.
        self.body = None;
        if let Some(rest) = self.rest.take() {
            rest.finish();
        }
    }
}

impl<K: Keep> http_body::Body for Http1Body<K> {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        let mut polled = this.poll_body(&mut Context::from_waker(Waker::noop()));
        if polled.is_pending() {
            if let Some(rest) = &mut this.rest {
                rest.connection.poll_driver(context);
            }
            // Without a driver here, the frame comes from a task.
            polled = this.poll_body(context);
        }
        let ended = matches!(polled, Poll::Ready(None)) || (polled.is_ready() && this.is_end_stream());
        if ended && let Some(rest) = this.rest.take() {
            rest.finish();
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Incoming::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(SizeHint::default, Incoming::size_hint)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use http_body_util::Full;
    use machinery_env::Env;
    use machinery_serve::net::Peer;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;
    use crate::egress::Egress;
    use crate::routing::table::AppProtocol;

    /// An endpoint that counts its connections, and responds to each request once its last byte has come.
    async fn endpoint() -> (SocketAddr, Arc<AtomicUsize>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, count) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
        let counted = count.clone();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                counted.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(async move {
                    let mut request = Vec::new();
                    while stream.read_buf(&mut request).await.unwrap_or(0) > 0 {
                        if request.ends_with(b"\r\n\r\n") || request.ends_with(b"end") {
                            request.clear();
                            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nboats").await.unwrap();
                        }
                    }
                });
            }
        });
        (address, count)
    }

    async fn send(egress: &Egress, to: SocketAddr, body: &'static str) -> Response<Body> {
        let body = Full::from(body).map_err(|never| match never {}).boxed_unsync();
        let request = Request::put("/").header("host", "a").body(body).unwrap();
        egress.to_endpoint(&Peer::Node, ("a", false), to, AppProtocol::Http, request).await.ok().unwrap()
    }

    #[tokio::test]
    async fn the_connections_of_a_burst_serve_the_next_one() {
        let egress = Egress::new(&Env::real(), None, Vec::new()).unwrap();
        let (address, connections) = endpoint().await;
        for _ in 0..3 {
            let burst = (0..32).map(|_| async { send(&egress, address, "").await.collect().await.unwrap().to_bytes() });
            assert!(futures::future::join_all(burst).await.iter().all(|body| body == "boats"));
            assert_eq!((connections.load(Ordering::Relaxed), egress.pooled_connections()), (32, 32));
        }
    }

    #[tokio::test]
    async fn a_connection_survives_an_unread_response_and_a_request_with_a_body() {
        let egress = Egress::new(&Env::real(), None, Vec::new()).unwrap();
        let (address, connections) = endpoint().await;
        // A request with a body can't be repeated, so it has a new connection.
        for (body, wanted) in [("", 1), ("", 1), ("the end", 2), ("", 2), ("", 2)] {
            let response = send(&egress, address, body).await;
            assert_eq!((response.status().as_u16(), connections.load(Ordering::Relaxed)), (200, wanted), "{body}");
            drop(response);
            while egress.pooled_connections() < wanted {
                tokio::task::yield_now().await;
            }
        }
    }
}
