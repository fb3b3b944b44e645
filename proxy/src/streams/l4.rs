//! TCP proxy for connections that are not HTTP of the cluster: one endpoint per connection, bytes copied both ways.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use machinery_serve::descriptors::{Class, Descriptors};
use machinery_serve::net::{CallRejected, Origin, Peer, Protocol, Stream};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use crate::connection::join::join;
use crate::http::forward::{ClientPlace, Way, pick_endpoint};
use crate::routing::endpoint::Endpoint;
use crate::routing::table::PortRoute;
use crate::state::ProxyState;

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
    let client = ClientPlace { ip: Some(peer.ip()), node: None };
    let mut tried: Vec<SocketAddr> = Vec::new();
    loop {
        let way = |endpoint: &Endpoint| {
            let at = endpoint.address();
            if tried.contains(&at) { None } else { Way::to(state, route, Protocol::Tcp, at) }
        };
        let Some((endpoint, way)) = pick_endpoint(state, route, client, way) else {
            state.metrics.no_endpoint.inc();
            return;
        };
        let _open = endpoint.in_flight.start();
        let at = endpoint.address();
        let Way::Pod(serve) = way else { return splice(state, at, stream, peer, &stop).await };
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

#[cfg(test)]
mod tests {
    use http::{Request, Response};
    use machinery_api::ObjectKey;
    use machinery_serve::net::{Body, Listen, Serve};
    use serde_json::json;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;
    use crate::plane::tests::{add_endpoints, plane};

    /// Rejects streams, or echoes them.
    struct Pod {
        rejects: bool,
    }

    #[async_trait::async_trait]
    impl Serve for Pod {
        async fn http(&self, _: &Origin, _: Request<Body>) -> Result<Response<Body>, CallRejected<Request<Body>>> {
            Err(CallRejected::Closed)
        }

        async fn stream(self: Arc<Self>, from: Origin, mut stream: Stream) -> Result<(), CallRejected<Stream>> {
            if self.rejects {
                return Err(CallRejected::gone(stream));
            }
            assert!(matches!(from.peer, Peer::Host(_)) && from.via.is_some());
            let mut received = Vec::new();
            let _ = stream.read_to_end(&mut received).await;
            let _ = stream.write_all(&received).await;
            Ok(())
        }
    }

    #[tokio::test]
    async fn a_connection_that_one_pod_does_not_take_goes_to_the_next() {
        let plane = plane();
        let key = ObjectKey::new("shop", "db");
        let spec = json!({"clusterIP": "127.64.0.12", "ports": [{"port": 80}]});
        plane.service(&key, Some(json!({"metadata": {"name": "db", "namespace": "shop"}, "spec": spec})));
        add_endpoints(&plane, "db", &["127.66.0.2", "127.66.0.3", "127.66.0.4"]);
        let attach = |ip: &str, rejects| {
            let at = Listen::tcp(ip.parse().unwrap(), 8080);
            plane.state.network.attach(at, Arc::new(Pod { rejects })).unwrap()
        };
        let _rejecting = [attach("127.66.0.2", true), attach("127.66.0.3", true)];
        let route = plane.state.routes.of(&key).unwrap().tcp(80).unwrap().clone();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let dial = async || {
            let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            let (served, peer) = listener.accept().await.unwrap();
            client.write_all(b"boats").await.unwrap();
            client.shutdown().await.unwrap();
            serve(&plane.state, &route, served, peer, CancellationToken::new()).await;
            let mut received = String::new();
            let _ = client.read_to_string(&mut received).await;
            received
        };
        assert_eq!(dial().await, "", "no pod takes it");
        let _taking = attach("127.66.0.4", false);
        for _ in 0..5 {
            assert_eq!(dial().await, "boats");
        }
    }
}
