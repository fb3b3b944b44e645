//! Streams of bytes to pods: through a pipe to one of this process, over the tunnel to one of another node.

use std::net::SocketAddr;
use std::sync::Arc;

use machinery_serve::net::{CallRejected, Caller, DialError, Origin, Peer, Protocol, ServicePort, Stream, Target};

use crate::connection::open::open_stream;
use crate::http::forward::{Way, pick_endpoint, refused};
use crate::routing::table::{Endpoint, PortRoute};
use crate::state::ProxyState;

impl ProxyState {
    /// Opens a stream to an endpoint of a route. An endpoint of another node that doesn't take it is skipped.
    pub(crate) async fn stream_to_endpoint(
        &self,
        caller: &Caller,
        route: &Arc<PortRoute>,
        to: &Target,
    ) -> Result<Stream, DialError> {
        let named = || format!("{}:{}", to.host, to.port);
        let mut tried: Vec<SocketAddr> = Vec::new();
        loop {
            let way = |endpoint: &Endpoint| {
                let at = endpoint.address();
                let is_admitted = route.admits_node(endpoint, &caller.node) && !tried.contains(&at);
                if is_admitted { Way::to(self, route, Protocol::Tcp, at) } else { None }
            };
            let picked = pick_endpoint(self, route, caller.into(), way);
            let (endpoint, way) = picked.ok_or_else(|| DialError::NoEndpoint(named()))?;
            let at = endpoint.address();
            let Way::Pod(serve) = way else { return self.egress.stream(caller, vec![at], &to.host).await };
            match open_stream(serve, origin_of(caller, at, route.via.clone())).await {
                Ok(stream) => return Ok(stream),
                Err(CallRejected::Gone(_) | CallRejected::Busy(_)) => tried.push(at),
                Err(rejected) => return Err(not_opened(&rejected, at)),
            }
        }
    }
}

/// The origin of a pod's call.
pub(crate) fn origin_of(caller: &Caller, at: SocketAddr, via: Option<Arc<ServicePort>>) -> Origin {
    Origin { peer: Peer::Pod(caller.clone()), local: at, via }
}

/// The error of a stream or of datagrams that no pod took.
pub(crate) fn not_opened(rejected: &CallRejected<()>, address: impl ToString) -> DialError {
    match rejected {
        CallRejected::Denied(policy) => DialError::Denied(format!("{} (policy {policy})", address.to_string())),
        CallRejected::Gone(_) | CallRejected::Busy(_) | CallRejected::Closed => refused(address),
    }
}

#[cfg(test)]
mod tests {
    use http::{Request, Response};
    use machinery_api::ObjectKey;
    use machinery_serve::net::{Body, Dial as _, Listen, Serve};
    use serde_json::json;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;
    use crate::plane::tests::{caller, plane};

    /// Sends its own name on each stream.
    struct Pod(&'static str);

    #[async_trait::async_trait]
    impl Serve for Pod {
        async fn http(&self, _: &Origin, _: Request<Body>) -> Result<Response<Body>, CallRejected<Request<Body>>> {
            Err(CallRejected::Closed)
        }

        async fn stream(self: Arc<Self>, _: Origin, mut stream: Stream) -> Result<(), CallRejected<Stream>> {
            let _ = stream.write_all(self.0.as_bytes()).await;
            Ok(())
        }
    }

    #[tokio::test]
    async fn a_local_traffic_policy_leaves_the_endpoints_of_the_callers_node() {
        let plane = plane();
        let key = ObjectKey::new("shop", "db");
        let spec = json!({"clusterIP": "127.64.0.12", "internalTrafficPolicy": "Local", "ports": [{"port": 80}]});
        plane.service(&key, Some(json!({"metadata": {"name": "db", "namespace": "shop"}, "spec": spec})));
        let slice = json!({"metadata": {"name": "db", "namespace": "shop", "labels": {"kubernetes.io/service-name": "db"}},
            "addressType": "IPv4", "ports": [{"name": "", "port": 8080}], "endpoints": [
                {"addresses": ["127.66.0.2"], "nodeName": "coracle-1"},
                {"addresses": ["127.66.0.3"], "nodeName": "coracle-2"}]});
        plane.slice(&key, Some(slice));
        let attach = |ip: &str, says| {
            plane.state.network.attach(Listen::tcp(ip.parse().unwrap(), 8080), Arc::new(Pod(says))).unwrap()
        };
        let _pods = [attach("127.66.0.2", "near"), attach("127.66.0.3", "far")];
        let to = Target { host: "db".to_owned(), port: 80 };
        for _ in 0..20 {
            let mut received = String::new();
            let mut stream = plane.stream(&caller(), &to).await.unwrap();
            let _ = stream.read_to_string(&mut received).await;
            assert_eq!(received, "near");
        }
        let elsewhere = Caller { node: "coracle-3".into(), ..caller() };
        assert!(matches!(plane.stream(&elsewhere, &to).await, Err(DialError::NoEndpoint(_))));
    }
}
