//! HTTP/1.1 and HTTP/2 (prior knowledge) over a stream, for whatever answers requests: one place that bounds, frames
//! and refuses, for all listeners of the pod network.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ::http::header::{CONNECTION, CONTENT_TYPE};
use ::http::{HeaderValue, Request, Response, StatusCode, Version};
use http_body_util::{BodyExt as _, Empty, Full};
use hyper::body::{Body as _, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;

use super::reset::Broken;
use super::{Body, Origin, Refused, Serve, Stream, framing};
use machinery_api::names::REASON_HEADER;

/// How long a client may take to send a request's head: slow ones must not hold connections.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// A request's head, and what is read of a body ahead of its reader. hyper's own default is 400 KiB a connection.
const BUFFER_BYTES_MAX: usize = 64 << 10;
/// Requests at once on one HTTP/2 connection (hyper's own default has no bound that fits one machine).
const HTTP2_STREAMS_MAX: u32 = 256;
/// HTTP/2 connections are pinged so often, so that one whose peer vanished doesn't hold its place for ever.
const HTTP2_PING_INTERVAL: Duration = Duration::from_secs(30);
/// And closed where the answer takes longer than this.
const HTTP2_PING_TIMEOUT: Duration = Duration::from_secs(20);

/// Serves `stream` until its end, or gracefully until its open requests' end once `stop` is over.
///
/// `answer` gets requests that [`framing::request`] has let through: one `Host`, nothing of the client's connection.
/// `local` is the address that was called.
///
/// # Errors
/// The connection broke off.
pub async fn serve<F, R>(
    stream: Stream,
    local: SocketAddr,
    stop: impl Future<Output = ()>,
    answer: F,
) -> Result<(), super::BoxError>
where
    F: Fn(Request<Body>) -> R + Clone + Send + 'static,
    R: Future<Output = Response<Body>> + Send + 'static,
{
    // Of a pipe, whoever gave it away drops this future when the other end is gone: an end of what it says is no more than
    // that, and its request is answered. A socket's says that nobody waits.
    let half_closes = matches!(stream, Stream::Pipe(_));
    let broken = Broken::default();
    let connection = broken.connection(stream);
    let local: Arc<str> = local.to_string().into();
    let service = service_fn(move |request: Request<Incoming>| {
        let (answer, local) = (answer.clone(), local.clone());
        let broken = (request.version() == Version::HTTP_10).then(|| broken.clone());
        async move {
            let multiplexed = request.version() > Version::HTTP_11;
            let (mut head, body) = request.into_parts();
            let response = match framing::request(&mut head, &local) {
                Ok(()) => answer(Request::from_parts(head, boxed(body))).await,
                Err(refusal) => {
                    let mut response = plain(refusal.status(), "framing", &refusal.to_string());
                    if !multiplexed {
                        // What follows on the connection cannot be trusted to be a request.
                        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                    }
                    response
                }
            };
            Ok::<_, Infallible>(match broken {
                Some(broken) => response.map(|body| broken.watch(body)),
                None => response,
            })
        }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    let http1 = &mut builder.http1();
    http1.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT).max_buf_size(BUFFER_BYTES_MAX);
    http1.half_close(half_closes);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(HTTP2_STREAMS_MAX)
        .keep_alive_interval(HTTP2_PING_INTERVAL)
        .keep_alive_timeout(HTTP2_PING_TIMEOUT);
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(connection), service);
    tokio::pin!(connection);
    tokio::select! {
        result = connection.as_mut() => return result,
        () = stop => connection.as_mut().graceful_shutdown(),
    }
    connection.await
}

/// What is empty takes no room.
fn boxed(body: Incoming) -> Body {
    if body.is_end_stream() {
        return Empty::new().map_err(|never| match never {}).boxed_unsync();
    }
    body.map_err(Into::into).boxed_unsync()
}

/// Serves a stream to a pod's own [`Serve::http`].
pub(super) async fn serve_stream<S: Serve + ?Sized>(serve: Arc<S>, from: Origin, stream: Stream) {
    let local = from.local;
    let answer = move |request| {
        let (serve, from) = (serve.clone(), from.clone());
        async move { serve.http(&from, request).await.unwrap_or_else(|refused| refusal(&refused)) }
    };
    if let Err(error) = self::serve(stream, local, std::future::pending(), answer).await {
        tracing::debug!(%local, error, "connection ended");
    }
}

/// What a client of HTTP gets where its request was not taken and there is nobody else to take it.
#[must_use]
pub fn refusal<T>(refused: &Refused<T>) -> Response<Body> {
    match refused {
        Refused::Gone(_) | Refused::Closed => {
            plain(StatusCode::SERVICE_UNAVAILABLE, "stopped", "the server is stopping")
        }
        Refused::Busy(_) => plain(StatusCode::SERVICE_UNAVAILABLE, "overload", "too many requests wait already"),
        Refused::Denied(policy) => plain(StatusCode::FORBIDDEN, "denied", &format!("denied by policy {policy}")),
    }
}

/// An answer that no guest gave: `reason` for programs, `text` for people.
#[must_use]
pub fn plain(status: StatusCode, reason: &'static str, text: &str) -> Response<Body> {
    let body = Full::from(format!("{text}\n")).map_err(|never| match never {}).boxed_unsync();
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(REASON_HEADER, HeaderValue::from_static(reason));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}
