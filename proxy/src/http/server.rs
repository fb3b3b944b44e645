//! Serves one connection of a host process: HTTP/1.1 or HTTP/2 with prior knowledge, each request balanced by itself.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use http::{HeaderValue, Request, Response, StatusCode, Version};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use machinery::api::names::REASON_HEADER;
use machinery::net::{Body, DialError};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use super::forward::{self, Exchange};
use super::reset::Broken;
use crate::plane::Inner;
use crate::table::PortRoute;

/// How long a client may take to send a request's head: slow ones must not hold connections.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);

/// Requests at once on one HTTP/2 connection (hyper's own default has no bound that fits one machine).
const HTTP2_STREAMS_MAX: u32 = 256;

/// Serves `stream` until its end, or gracefully until its open requests' end once `stop` is cancelled.
pub(crate) async fn serve(
    inner: Arc<Inner>,
    route: Arc<ArcSwap<PortRoute>>,
    stream: TcpStream,
    peer: SocketAddr,
    stop: CancellationToken,
) {
    let broken = Broken::default();
    let socket = broken.socket(stream);
    let service = service_fn(move |request: Request<Incoming>| {
        let (inner, route) = (inner.clone(), route.load_full());
        let broken = (request.version() == Version::HTTP_10).then(|| broken.clone());
        async move {
            let response = answer(&inner, &route, peer, request).await;
            Ok::<_, std::convert::Infallible>(match broken {
                Some(broken) => response.map(|body| broken.watch(body)),
                None => response,
            })
        }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    builder.http2().timer(TokioTimer::new()).max_concurrent_streams(HTTP2_STREAMS_MAX);
    let connection = builder.serve_connection(TokioIo::new(socket), service);
    tokio::pin!(connection);
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%peer, error, "connection ended");
    }
}

async fn answer(inner: &Inner, route: &Arc<PortRoute>, peer: SocketAddr, request: Request<Incoming>) -> Response<Body> {
    inner.metrics.requests_parsed.inc();
    inner.metrics.socket_hops.inc();
    let name =
        request.headers().get(http::header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default().to_owned();
    let exchange = Exchange { client: Some(peer.ip()), node: None, name: &name, https: false };
    let request = request.map(|body| body.map_err(Into::into).boxed_unsync());
    match forward::send(inner, route, &exchange, request).await {
        Ok(response) => response,
        Err(error) => refusal(&error),
    }
}

/// What a host process gets when no endpoint answered.
fn refusal(error: &DialError) -> Response<Body> {
    let (status, reason) = match error {
        DialError::NoEndpoint(_) | DialError::NameNotFound(_) => (StatusCode::SERVICE_UNAVAILABLE, "no-endpoint"),
        DialError::Denied(_) => (StatusCode::FORBIDDEN, "denied"),
        DialError::Timeout(_) => (StatusCode::GATEWAY_TIMEOUT, "timeout"),
        DialError::Connection { .. } => (StatusCode::BAD_GATEWAY, "connection"),
    };
    let body = Full::from(format!("{error}\n")).map_err(|never| match never {}).boxed_unsync();
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(REASON_HEADER, HeaderValue::from_static(reason));
    response.headers_mut().insert(http::header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}
