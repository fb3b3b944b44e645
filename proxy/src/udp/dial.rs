//! Datagrams of guests: to pods and Services without a socket, to the outside over one.

use std::net::SocketAddr;
use std::sync::Arc;

use machinery_serve::net::{Caller, DatagramPipe, DialError, Protocol, Serve, ServicePort, Target};

use crate::http::forward::{Way, pick_endpoint, refused};
use crate::routing::destination::Resolved;
use crate::routing::table::Endpoint;
use crate::state::ProxyState;
use crate::streams::open::{not_opened, origin_of};
use crate::udp::relay::{connected, relay};

impl ProxyState {
    /// Opens a guest's pipe of datagrams to a destination.
    pub(crate) async fn dial_datagrams(
        &self,
        caller: &Caller,
        to: &Target,
        destination: Resolved,
    ) -> Result<DatagramPipe, DialError> {
        let named = || format!("{}:{}", to.host, to.port);
        match destination {
            Resolved::Unknown => Err(DialError::NameNotFound(to.host.clone())),
            Resolved::Refused => Err(refused(named())),
            Resolved::Own => match self.own_listener(caller, (Protocol::Udp, to.port)) {
                Some((serve, at)) => to_pod(&serve, caller, at, None),
                None => Err(refused(named())),
            },
            Resolved::Address(ip) => {
                let at = SocketAddr::new(ip, to.port);
                match self.network.find(ip, Protocol::Udp, to.port) {
                    Some(serve) => to_pod(&serve, caller, at, None),
                    None if self.is_cluster(ip) => Err(refused(at)),
                    None if self.egress.is_forbidden(ip) => Err(DialError::Denied(named())),
                    None => self.datagrams_outside(caller, at).await,
                }
            }
            Resolved::Outside(name) => {
                let ip = self.egress.resolve(caller, &name).await?.into_iter().next();
                let ip = ip.ok_or_else(|| DialError::NameNotFound(name))?;
                self.datagrams_outside(caller, SocketAddr::new(ip, to.port)).await
            }
            Resolved::Route(route) => {
                let way = |endpoint: &Endpoint| {
                    let is_admitted = route.admits_node(endpoint, &caller.node);
                    if is_admitted { Way::to(self, &route, Protocol::Udp, endpoint.address()) } else { None }
                };
                let picked = pick_endpoint(self, &route, caller.into(), way);
                let (endpoint, way) = picked.ok_or_else(|| DialError::NoEndpoint(named()))?;
                let at = endpoint.address();
                match way {
                    Way::Pod(serve) => to_pod(&serve, caller, at, route.via.clone()),
                    Way::Socket => self.datagrams_outside(caller, at).await,
                }
            }
        }
    }

    /// Exchanges datagrams with an address that the caller may dial. The pipe holds one of the pod's exchanges.
    async fn datagrams_outside(&self, caller: &Caller, to: SocketAddr) -> Result<DatagramPipe, DialError> {
        let permit = self.egress.permit(crate::egress::pod_limit::pod(caller)).await;
        self.metrics.socket_hops.inc();
        let failed = |error: std::io::Error| DialError::Connection { address: to.to_string(), source: error.into() };
        Ok(relay(connected(to).map_err(failed)?, permit))
    }

    /// The listener on the caller's own loopback.
    pub(crate) fn own_listener(
        &self,
        caller: &Caller,
        (protocol, port): (Protocol, u16),
    ) -> Option<(Arc<dyn Serve>, SocketAddr)> {
        let ip = caller.ip?;
        Some((self.network.loopback(ip, protocol, port)?, SocketAddr::new(ip, port)))
    }
}

/// Opens a pipe of datagrams to a pod of this process, or over the tunnel to one of another node.
fn to_pod(
    serve: &Arc<dyn Serve>,
    caller: &Caller,
    at: SocketAddr,
    via: Option<Arc<ServicePort>>,
) -> Result<DatagramPipe, DialError> {
    serve.datagrams(&origin_of(caller, at, via)).map_err(|rejected| not_opened(&rejected, at))
}
