//! Listeners: one per ClusterIP and port, per NodePort, per load balancer address and port, and per health check port. A
//! listener survives changes of its route; a failed bind is retried.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use machinery_api::ObjectKey;
use machinery_serve::accept::{self, Limit, Listener};
use machinery_serve::descriptors::Class;
use tokio_util::sync::CancellationToken;

use crate::http::{health, server};
use crate::l4;
use crate::lifetime::ConnectionLifetime;
use crate::names::DNS_PORT;
use crate::state::ProxyState;
use crate::table::{Change, Listen, PortRoute};

/// A port that could not be bound, for an event on the Service.
#[derive(Debug)]
pub(crate) struct BindFailure {
    pub(crate) service: ObjectKey,
    pub(crate) address: SocketAddr,
    pub(crate) error: io::Error,
}

struct OpenListener {
    route: Arc<ArcSwap<PortRoute>>,
    stop: CancellationToken,
}

/// All listeners of one data plane.
pub(crate) struct Listeners {
    state: Arc<ProxyState>,
    open: HashMap<Listen, OpenListener>,
    /// Listeners whose address could not be bound.
    failed: HashMap<Listen, Arc<PortRoute>>,
    stop: CancellationToken,
}

impl Listeners {
    pub(crate) fn new(state: Arc<ProxyState>, stop: CancellationToken) -> Self {
        Self { state, open: HashMap::new(), failed: HashMap::new(), stop }
    }

    /// Opens and closes listeners for a change of the table; returns those that could not be bound.
    pub(crate) fn apply(&mut self, change: Change) -> Vec<BindFailure> {
        for listen in &change.closed {
            self.failed.remove(listen);
            if let Some(open) = self.open.remove(listen) {
                open.stop.cancel();
            }
        }
        let wanted = change.set.into_iter().filter(|(listen, _)| match listen {
            // Cluster DNS itself serves its address, also where a Service has it.
            Listen::Cluster(ip, DNS_PORT) if self.state.config.cluster_dns == Some(*ip) => false,
            Listen::Cluster(..) => self.state.config.cluster_ip_listeners,
            // The table contains addresses of the pool only.
            Listen::Node(_) | Listen::Balancer(..) | Listen::Health(_) => true,
        });
        let wanted: Vec<_> = wanted.collect();
        wanted.into_iter().filter_map(|(listen, route)| self.set(listen, route)).collect()
    }

    /// Retries failed binds. A repeated failure is not reported again.
    pub(crate) fn retry(&mut self) {
        for (listen, route) in std::mem::take(&mut self.failed) {
            self.set(listen, route);
        }
    }

    fn set(&mut self, listen: Listen, route: Arc<PortRoute>) -> Option<BindFailure> {
        if let Some(open) = self.open.get(&listen) {
            open.route.store(route);
            return None;
        }
        let address = match listen {
            Listen::Cluster(ip, port) | Listen::Balancer(ip, port) => SocketAddr::new(ip, port),
            Listen::Node(port) | Listen::Health(port) => SocketAddr::new(self.state.config.bind, port),
        };
        match Listener::bind(address) {
            Ok(listener) => {
                self.failed.remove(&listen);
                let route = Arc::new(ArcSwap::new(route));
                let open = OpenListener { route, stop: self.stop.child_token() };
                let clients = match listen {
                    Listen::Cluster(..) | Listen::Node(_) => ListenerClients::All,
                    Listen::Balancer(..) => ListenerClients::Sources,
                    Listen::Health(_) => ListenerClients::Balancers,
                };
                tokio::spawn(run(self.state.clone(), listener, open.route.clone(), clients, open.stop.clone()));
                self.open.insert(listen, open);
                None
            }
            Err(error) => {
                let service = route.via.as_ref().map(|via| via.service.clone());
                let known = self.failed.insert(listen, route).is_some();
                service.filter(|_| !known).map(|service| BindFailure { service, address, error })
            }
        }
    }
}

/// A listener's permitted clients and its response to them.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ListenerClients {
    /// All clients, forwarded to the route's endpoints.
    All,
    /// Clients of the route's source ranges.
    Sources,
    /// Load balancers' health checks.
    Balancers,
}

/// Serves a listener's connections until `stop`, then drains open requests.
async fn run(
    state: Arc<ProxyState>,
    listener: Listener,
    route: Arc<ArcSwap<PortRoute>>,
    clients: ListenerClients,
    stop: CancellationToken,
) {
    let limit = Limit::Permits(state.connections.clone(), Class::Clients);
    let each = |stream, peer: SocketAddr, permit| {
        let (state, route, stop) = (state.clone(), route.clone(), stop.clone());
        async move {
            if clients == ListenerClients::Balancers {
                return health::serve(route, stream, peer, ConnectionLifetime { stop, _permit: permit }).await;
            }
            let now = route.load_full();
            if clients == ListenerClients::Sources && !now.admits(Some(peer.ip())) {
                return;
            }
            if state.is_http(&now) {
                server::serve(state, route, stream, peer, ConnectionLifetime { stop, _permit: permit }).await;
            } else {
                l4::serve(&state, &now, stream, peer, stop).await;
            }
        }
    };
    accept::serve(listener, limit, None, &state.env, &stop, each).await;
}
