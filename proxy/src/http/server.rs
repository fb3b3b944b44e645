//! Serves one connection of a host process: HTTP/1.1 or HTTP/2 with prior knowledge, balanced per request.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use http::{Request, Response, StatusCode};
use machinery_serve::framing::WantsUpgrade;
use machinery_serve::last_request::{self, LastRequest};
use machinery_serve::net::{Body, DialError, Peer, Stream};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use super::activator;
use super::forward::Exchange;
use super::spans;
use crate::connection::lifetime::ConnectionLifetime;
use crate::routing::table::PortRoute;
use crate::state::ProxyState;

/// Time of an idle connection for one more request when its listener ends. The next process serves meanwhile.
const IDLE_END_MAX: Duration = Duration::from_secs(2);

/// Time of an idle connection for one more request, when its listener ends. At a takeover a listener without a lasting
/// endpoint is `stopped` by itself, before its endpoints end: a later request would meet none, and a new connection is served
/// by the next process. `has_begun`: there was a request.
pub(super) fn idle_end(stopped: bool, has_begun: bool) -> Duration {
    if stopped { last_request::idle_max(has_begun) } else { IDLE_END_MAX }
}

/// Serves `stream` until its end; from `ending` on it completes its requests, and one more if it is idle.
pub(crate) async fn serve(
    state: Arc<ProxyState>,
    route: Arc<ArcSwap<PortRoute>>,
    stream: TcpStream,
    peer: SocketAddr,
    lifetime: ConnectionLifetime,
    ending: CancellationToken,
) {
    // `local_addr` fails on a closed connection.
    let local = stream.local_addr().unwrap_or(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0));
    let (lifetime, last, env) = (Arc::new(lifetime), Arc::new(LastRequest::new(ending)), state.env.clone());
    let (announcer, permit) = (last.clone(), lifetime.permit.clone());
    let begin = move || permit.begin();
    let stop = lifetime.stop.clone();
    let stop = async move { last.passed(&env, |has_begun| idle_end(stop.is_cancelled(), has_begun)).await };
    let answer = move |mut request: Request<Body>| {
        announcer.observe(request.version());
        let announcer = announcer.clone();
        let (state, route) = (state.clone(), route.load_full());
        if request.extensions().get::<WantsUpgrade>().is_some() {
            request.extensions_mut().insert(ConnectionLifetime::clone(&lifetime));
        }
        async move {
            state.metrics.requests_parsed.inc();
            state.metrics.socket_hops.inc();
            let host = request.headers().get(http::header::HOST).cloned();
            let name = host.as_ref().and_then(|host| host.to_str().ok()).unwrap_or_default();
            let span = spans::of_host(&route, (name, peer), &mut request);
            let exchange = Exchange { from: Peer::Host(peer), name, https: false, span: &span };
            let answer = span.within(activator::send(&state, &route, &exchange, request)).await;
            let mut answer = spans::answered(span, answer.unwrap_or_else(|error| refusal(&error)), 500);
            announcer.announce(&mut answer);
            answer
        }
    };
    if let Err(error) = machinery_serve::net::http::serve(Stream::Tcp(stream), local, stop, answer, begin).await {
        tracing::debug!(%peer, error, "connection ended");
    }
}

/// The response for a host process when no endpoint answered.
fn refusal(error: &DialError) -> Response<Body> {
    let (status, reason) = match error {
        DialError::NoEndpoint(_) | DialError::NameNotFound(_) => (StatusCode::SERVICE_UNAVAILABLE, "no-endpoint"),
        DialError::Denied(_) => (StatusCode::FORBIDDEN, "denied"),
        DialError::Timeout(_) => (StatusCode::GATEWAY_TIMEOUT, "timeout"),
        DialError::Connection { .. } => (StatusCode::BAD_GATEWAY, "connection"),
    };
    machinery_serve::net::http::plain(status, reason, &error.to_string())
}

#[cfg(test)]
mod tests {
    use machinery_serve::accept::{FIRST_REQUEST_MAX, LAST_REQUEST_MAX};

    use super::*;

    #[test]
    fn connections_of_a_listener_that_stops_end_before_its_endpoints() {
        for (stopped, has_begun, wanted) in [
            (false, false, IDLE_END_MAX),
            (false, true, IDLE_END_MAX),
            (true, false, FIRST_REQUEST_MAX),
            (true, true, LAST_REQUEST_MAX),
        ] {
            assert_eq!(idle_end(stopped, has_begun), wanted);
        }
    }
}
