//! HTTP/1.1 and HTTP/2 (prior knowledge) over a stream: limits, framing and rejections for all listeners of the pod
//! network.
//!
//! - [`request_over_stream`]: the client's side, for one request.

mod client;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ::http::header::{CONNECTION, CONTENT_TYPE};
use ::http::{HeaderValue, Request, Response, StatusCode, Version};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body as _, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;

pub use client::{request_over_pipe, request_over_stream};

use super::reset::ResetOnBrokenBody;
use super::{Body, BoxError, CallRejected, Origin, Serve, Stream, empty_body};
use crate::control_frames;
use crate::exchange::{BrokenBody, Exchanges, RequestBody};
use crate::framing;
use crate::guarded_body::GuardedBody;
use crate::hooked::Hooked;
use crate::joined::JoinedBody;
use machinery_api::names::REASON_HEADER;

/// Timeout of a request's head: slow clients must not occupy connections.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// Maximum buffer for a request's head and for read-ahead of a body. hyper's default is 400 KiB a connection.
const BUFFER_BYTES_MAX: usize = 64 << 10;
/// Concurrent requests of one HTTP/2 connection (hyper's default has no bound that suits one machine).
const HTTP2_STREAMS_MAX: u32 = 256;
/// Interval of pings on HTTP/2 connections, so that a vanished peer doesn't occupy its permit for ever.
const HTTP2_PING_INTERVAL: Duration = Duration::from_secs(30);
/// Timeout of a ping's answer, after which the connection is closed.
const HTTP2_PING_TIMEOUT: Duration = Duration::from_secs(20);

/// Serves `stream` until its end; after `stop` its open requests are completed first, unread bodies aren't discarded any more,
/// and a connection without a request is dropped.
///
/// `answer` receives requests that [`framing::request`] has accepted: one `Host`, no hop-by-hop fields. `local` is the
/// called address. `begin` makes a guard for each request, which lasts until its response has been sent.
///
/// # Errors
/// If the connection breaks.
pub async fn serve<F, R, G>(
    stream: Stream,
    local: SocketAddr,
    stop: impl Future<Output = ()>,
    answer: F,
    begin: impl Fn() -> G + Clone + Send + 'static,
) -> Result<(), BoxError>
where
    G: Send + Unpin + 'static,
    F: Fn(Request<Body>) -> R + Clone + Send + 'static,
    R: Future<Output = Response<Body>> + Send + 'static,
{
    // A pipe's owner drops this future when the other end is gone.
    let is_pipe = matches!(stream, Stream::Pipe(_));
    let (broken, exchanges) = (ResetOnBrokenBody::default(), Exchanges::default());
    let connection = control_frames::Limited::of_client(broken.connection(stream));
    let connection = Hooked::new(connection, exchanges.clone());
    let abandoned = exchanges.clone();
    let abandoned = async move {
        if is_pipe {
            return std::future::pending().await;
        }
        abandoned.abandoned().await;
    };
    let local: Arc<str> = local.to_string().into();
    let (has_request, discarding) = (Arc::new(AtomicBool::new(false)), exchanges.clone());
    let begun = has_request.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        begun.store(true, Ordering::Relaxed);
        let (answer, local, running) = (answer.clone(), local.clone(), begin());
        let (request, exchange) = exchanges.begin(request);
        let broken = (request.version() == Version::HTTP_10).then(|| broken.clone());
        async move {
            let multiplexed = request.version() > Version::HTTP_11;
            let (mut head, body) = request.into_parts();
            let response = match framing::request(&mut head, &local) {
                Ok(()) => answer(Request::from_parts(head, boxed(body))).await,
                Err(refusal) => ambiguous(refusal, multiplexed),
            };
            let response = match broken {
                Some(broken) => response.map(|body| broken.watch(body)),
                None => response,
            };
            let response = exchange.finish(response.map(|body| GuardedBody::new(body, running)));
            Ok::<_, Infallible>(response.map(JoinedBody::new))
        }
    });
    let builder = builder();
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(connection), service);
    tokio::pin!(connection, abandoned);
    tokio::select! {
        result = connection.as_mut() => return result,
        () = abandoned.as_mut() => return Ok(()),
        // hyper would wait for the rest of a first head.
        () = stop => match has_request.load(Ordering::Relaxed) {
            true => connection.as_mut().graceful_shutdown(),
            false => return Ok(()),
        },
    }
    discarding.end();
    tokio::select! {
        result = connection => result,
        () = abandoned => Ok(()),
    }
}

fn builder() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT).max_buf_size(BUFFER_BYTES_MAX);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(HTTP2_STREAMS_MAX)
        .keep_alive_interval(HTTP2_PING_INTERVAL)
        .keep_alive_timeout(HTTP2_PING_TIMEOUT);
    builder
}

/// The response to an ambiguous head.
fn ambiguous(refusal: framing::Refusal, multiplexed: bool) -> Response<Body> {
    let mut response = plain(refusal.status(), "framing", &refusal.to_string());
    if !multiplexed {
        // The following bytes on the connection can't be trusted to be a request.
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// Boxes a body; an empty one needs no allocation.
fn boxed(body: RequestBody) -> Body {
    if body.is_end_stream() {
        return empty_body();
    }
    body.map_err(|BrokenBody(error)| error).boxed_unsync()
}

/// Serves HTTP on a stream by a pod's [`Serve::http`].
pub(super) async fn serve_stream<S: Serve + ?Sized>(serve: Arc<S>, from: Origin, stream: Stream) {
    let local = from.local;
    let answer = move |request| {
        let (serve, from) = (serve.clone(), from.clone());
        async move { serve.http(&from, request).await.unwrap_or_else(|refused| refusal(&refused)) }
    };
    if let Err(error) = self::serve(stream, local, std::future::pending(), answer, || ()).await {
        tracing::debug!(%local, error, "connection ended");
    }
}

/// The HTTP response for a request that no server accepted.
#[must_use]
pub fn refusal<T>(refused: &CallRejected<T>) -> Response<Body> {
    match refused {
        CallRejected::Gone(_) | CallRejected::Closed => {
            plain(StatusCode::SERVICE_UNAVAILABLE, "stopped", "the server is stopping")
        }
        CallRejected::Busy(_) => plain(StatusCode::SERVICE_UNAVAILABLE, "overload", "too many requests wait already"),
        CallRejected::Denied(policy) => plain(StatusCode::FORBIDDEN, "denied", &format!("denied by policy {policy}")),
    }
}

/// A response that is not a guest's: `reason` for programs, `text` for people.
#[must_use]
pub fn plain(status: StatusCode, reason: &'static str, text: &str) -> Response<Body> {
    let body = Full::from(format!("{text}\n")).map_err(|never| match never {}).boxed_unsync();
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(REASON_HEADER, HeaderValue::from_static(reason));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}
