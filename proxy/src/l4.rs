//! TCP proxy for connections that are not HTTP of the cluster: one endpoint per connection, bytes copied both ways.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use machinery_serve::descriptors::{Class, Descriptors};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use crate::http::forward::pick_endpoint;
use crate::join::join;
use crate::state::ProxyState;
use crate::table::PortRoute;

/// Timeout of connecting to an endpoint.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Connects `stream` with an endpoint of the route; closes it without one.
pub(crate) async fn serve(
    state: &ProxyState,
    route: &Arc<PortRoute>,
    mut stream: TcpStream,
    peer: SocketAddr,
    stop: CancellationToken,
) {
    state.metrics.socket_hops.inc();
    let usable = |endpoint: &crate::table::Endpoint| state.may_dial(route, endpoint.address());
    let Some(endpoint) = pick_endpoint(state, route, Some(peer.ip()), usable) else {
        state.metrics.no_endpoint.inc();
        return;
    };
    let _open = endpoint.in_flight.start();
    let _held = match Descriptors::process().take(Class::Backends) {
        Ok(held) => held,
        Err(error) => return tracing::debug!(%peer, ip = %endpoint.ip, %error, "no connection to an endpoint"),
    };
    let connect = TcpStream::connect((endpoint.ip, endpoint.port));
    let mut to = match state.env.timeout(CONNECT_TIMEOUT, connect).await {
        Ok(Ok(to)) => to,
        Ok(Err(error)) => return tracing::debug!(%peer, ip = %endpoint.ip, %error, "endpoint refused a connection"),
        Err(_) => return tracing::debug!(%peer, ip = %endpoint.ip, "endpoint did not accept in time"),
    };
    state.metrics.socket_hops.inc();
    let _ = to.set_nodelay(true);
    join(&mut stream, &mut to, &stop, peer).await;
}
