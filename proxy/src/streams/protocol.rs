//! Whether the requests of a client's connection are balanced, or the connection itself (docs/contract.md §4): by
//! `appProtocol`, else by what the endpoints in the cluster understand.

use std::sync::Arc;
use std::time::Duration;

use machinery_serve::net::Protocol;

use crate::routing::table::{AppProtocol, Endpoint, PortRoute};
use crate::state::ProxyState;

/// Endpoints of this process that are looked at for a connection: those of a Service are nearly always alike.
const LOCAL_ENDPOINTS_MAX: usize = 8;
/// Endpoints of other nodes that are queried for one connection, until one answers.
const REMOTE_ENDPOINTS_MAX: usize = 2;
/// Timeout of asking another node: a client's connection waits meanwhile.
const REMOTE_TIMEOUT: Duration = Duration::from_secs(2);

impl ProxyState {
    /// Whether requests, not connections, are balanced. Without an endpoint that answers, as it was before; HTTP at first.
    pub(crate) async fn is_http(&self, route: &PortRoute) -> bool {
        if route.app_protocol != AppProtocol::Unknown {
            return true;
        }
        let endpoints = route.usable();
        let in_cluster: Vec<&Arc<Endpoint>> =
            endpoints.iter().filter(|endpoint| self.is_cluster(endpoint.ip)).take(LOCAL_ENDPOINTS_MAX).collect();
        if in_cluster.is_empty() && !endpoints.is_empty() {
            return false;
        }
        let found = match self.local_servers_speak_http(&in_cluster) {
            Some(found) => Some(found),
            None => self.ask_for_http(&in_cluster).await,
        };
        found.inspect(|is_http| route.learned.learn(*is_http)).or_else(|| route.learned.is_http()).unwrap_or(true)
    }

    /// Whether all servers of this process among `endpoints` speak HTTP; `None` without one.
    fn local_servers_speak_http(&self, endpoints: &[&Arc<Endpoint>]) -> Option<bool> {
        let server = |endpoint: &&Arc<Endpoint>| self.network.find_local(endpoint.ip, Protocol::Tcp, endpoint.port);
        endpoints.iter().filter_map(server).map(|serve| serve.speaks_http()).reduce(|all, speaks| all && speaks)
    }

    async fn ask_for_http(&self, endpoints: &[&Arc<Endpoint>]) -> Option<bool> {
        let ask = async {
            for endpoint in endpoints.iter().take(REMOTE_ENDPOINTS_MAX) {
                let Some(serve) = self.network.find(endpoint.ip, Protocol::Tcp, endpoint.port) else { continue };
                if let Some(found) = serve.find_out_http(endpoint.address()).await {
                    return Some(found);
                }
            }
            None
        };
        self.env.timeout(REMOTE_TIMEOUT, ask).await.ok().flatten()
    }

    /// Whether a connection of the route may lead to a socket outside of the cluster.
    pub(crate) fn leads_outside(&self, route: &PortRoute) -> bool {
        route.usable().iter().any(|endpoint| !self.is_cluster(endpoint.ip))
    }
}
