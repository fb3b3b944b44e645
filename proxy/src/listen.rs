//! One listener per ClusterIP and port, per NodePort, and per load balancer's address and port, and per health check: opened, kept over changes of the route, closed, tried again.

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
use crate::state::ProxyState;
use crate::table::{Change, Listen, PortRoute};
use crate::tenure::Tenure;

/// A port that could not be bound, for the Service's event.
#[derive(Debug)]
pub(crate) struct BindFailure {
    pub(crate) service: ObjectKey,
    pub(crate) address: SocketAddr,
    pub(crate) error: io::Error,
}

struct Open {
    route: Arc<ArcSwap<PortRoute>>,
    stop: CancellationToken,
}

/// All listeners of one data plane.
pub(crate) struct Listeners {
    state: Arc<ProxyState>,
    open: HashMap<Listen, Open>,
    /// Wanted, but their address could not be bound.
    failed: HashMap<Listen, Arc<PortRoute>>,
    stop: CancellationToken,
}

impl Listeners {
    pub(crate) fn new(state: Arc<ProxyState>, stop: CancellationToken) -> Self {
        Self { state, open: HashMap::new(), failed: HashMap::new(), stop }
    }

    /// Makes the listeners what the table says; returns what could not be bound.
    pub(crate) fn apply(&mut self, change: Change) -> Vec<BindFailure> {
        for listen in &change.closed {
            self.failed.remove(listen);
            if let Some(open) = self.open.remove(listen) {
                open.stop.cancel();
            }
        }
        let wanted = change.set.into_iter().filter(|(listen, _)| match listen {
            Listen::Cluster(..) => self.state.config.cluster_ip_listeners,
            // Addresses of the pool alone are in the table.
            Listen::Node(_) | Listen::Balancer(..) | Listen::Health(_) => true,
        });
        let wanted: Vec<_> = wanted.collect();
        wanted.into_iter().filter_map(|(listen, route)| self.set(listen, route)).collect()
    }

    /// Tries again what could not be bound. A failure that is known already is not told again.
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
                let open = Open { route, stop: self.stop.child_token() };
                let for_whom = match listen {
                    Listen::Cluster(..) | Listen::Node(_) => For::All,
                    Listen::Balancer(..) => For::Sources,
                    Listen::Health(_) => For::Balancers,
                };
                tokio::spawn(run(self.state.clone(), listener, open.route.clone(), for_whom, open.stop.clone()));
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

/// Whom a listener serves, and with what.
#[derive(Clone, Copy, PartialEq, Eq)]
enum For {
    /// Everybody, with the route's endpoints.
    All,
    /// Those from the route's sources.
    Sources,
    /// Load balancers, which ask whether there are endpoints.
    Balancers,
}

/// Serves a listener's connections until `stop`; open requests have their answers then.
async fn run(
    state: Arc<ProxyState>,
    listener: Listener,
    route: Arc<ArcSwap<PortRoute>>,
    for_whom: For,
    stop: CancellationToken,
) {
    let limit = Limit::Permits(state.connections.clone(), Class::Clients);
    let each = |stream, peer: SocketAddr, permit| {
        let (state, route, stop) = (state.clone(), route.clone(), stop.clone());
        async move {
            if for_whom == For::Balancers {
                return health::serve(route, stream, peer, Tenure { stop, _permit: permit }).await;
            }
            let now = route.load_full();
            if for_whom == For::Sources && !now.admits(Some(peer.ip())) {
                return;
            }
            if state.is_http(&now) {
                server::serve(state, route, stream, peer, Tenure { stop, _permit: permit }).await;
            } else {
                l4::serve(&state, &now, stream, peer, stop).await;
            }
        }
    };
    accept::serve(listener, limit, None, &stop, each).await;
}
