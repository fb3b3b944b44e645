//! TCP proxy for connections that are not HTTP of the cluster: one endpoint per connection, bytes copied both ways.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use machinery_serve::descriptors::{Class, Descriptors};
use machinery_serve::net::{CallRejected, Origin, Peer, Protocol, Stream};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use crate::endpoint::Endpoint;
use crate::http::forward::pick_endpoint;
use crate::join::join;
use crate::state::ProxyState;
use crate::table::PortRoute;

/// Timeout of connecting to an endpoint.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Connects `stream` with an endpoint of the route; closes it without one. A pod that doesn't take it is skipped.
pub(crate) async fn serve(
    state: &ProxyState,
    route: &Arc<PortRoute>,
    stream: TcpStream,
    peer: SocketAddr,
    stop: CancellationToken,
) {
    state.metrics.socket_hops.inc();
    let mut stream = Stream::Tcp(stream);
    let found = |at: SocketAddr| state.network.find(at.ip(), Protocol::Tcp, at.port());
    let mut tried: Vec<SocketAddr> = Vec::new();
    loop {
        let usable = |endpoint: &Endpoint| {
            let at = endpoint.address();
            !tried.contains(&at) && (found(at).is_some() || state.may_dial(route, at))
        };
        let Some(endpoint) = pick_endpoint(state, route, Some(peer.ip()), usable) else {
            state.metrics.no_endpoint.inc();
            return;
        };
        let _open = endpoint.in_flight.start();
        let at = endpoint.address();
        let Some(serve) = found(at) else { return splice(state, at, stream, peer, &stop).await };
        let origin = Origin { peer: Peer::Host(peer), local: at, via: route.via.clone() };
        match stop.run_until_cancelled(serve.stream(origin, stream)).await {
            Some(Err(CallRejected::Gone(back) | CallRejected::Busy(back))) => stream = *back,
            None | Some(Ok(()) | Err(_)) => return,
        }
        tried.push(at);
    }
}

/// Connects `stream` with an endpoint on a socket.
async fn splice(state: &ProxyState, at: SocketAddr, mut stream: Stream, peer: SocketAddr, stop: &CancellationToken) {
    let _held = match Descriptors::process().take(Class::Backends) {
        Ok(held) => held,
        Err(error) => return tracing::debug!(%peer, ip = %at.ip(), %error, "no connection to an endpoint"),
    };
    let mut to = match state.env.timeout(CONNECT_TIMEOUT, TcpStream::connect(at)).await {
        Ok(Ok(to)) => to,
        Ok(Err(error)) => return tracing::debug!(%peer, ip = %at.ip(), %error, "endpoint refused a connection"),
        Err(_) => return tracing::debug!(%peer, ip = %at.ip(), "endpoint did not accept in time"),
    };
    state.metrics.socket_hops.inc();
    let _ = to.set_nodelay(true);
    join(&mut stream, &mut to, stop, peer).await;
}
