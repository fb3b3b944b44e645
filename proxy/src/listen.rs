//! Listeners for streams and datagrams: one per ClusterIP and port, per NodePort, per load balancer or external address
//! and port, and per health check port. A
//! listener survives changes of its route; a failed bind is retried.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use machinery_api::ObjectKey;
use machinery_serve::accept::{self, ConnectionPermit, Limit, Listener};
use machinery_serve::descriptors::Descriptors;
use machinery_serve::net::Protocol;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::connection::lifetime::ConnectionLifetime;
use crate::egress::external::DNS_PORT;
use crate::http::{health, server};
use crate::routing::table::{Change, Entrance, Listen, PortRoute};
use crate::state::ProxyState;
use crate::streams::l4;
use crate::udp::listener::DatagramListener;

/// A port that could not be bound, for an event on the Service.
#[derive(Debug)]
pub(crate) struct BindFailure {
    pub(crate) service: ObjectKey,
    pub(crate) address: SocketAddr,
    pub(crate) error: io::Error,
}

struct OpenListener {
    route: ListenerRoute,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

/// The route of an open listener, which follows changes of the table.
enum ListenerRoute {
    Streams(Arc<ArcSwap<PortRoute>>),
    Datagrams(watch::Sender<Arc<PortRoute>>),
}

impl ListenerRoute {
    fn store(&self, route: Arc<PortRoute>) {
        match self {
            Self::Streams(current) => current.store(route),
            Self::Datagrams(current) => drop(current.send_replace(route)),
        }
    }

    fn now(&self) -> Arc<PortRoute> {
        match self {
            Self::Streams(current) => current.load_full(),
            Self::Datagrams(current) => current.borrow().clone(),
        }
    }
}

/// All listeners of one data plane.
pub(crate) struct Listeners {
    state: Arc<ProxyState>,
    open: HashMap<Listen, OpenListener>,
    /// Listeners whose address could not be bound, or went to a load balancer.
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
            Listen::Cluster(ip, DNS_PORT) | Listen::Datagrams(Entrance::Cluster(ip, DNS_PORT))
                if self.state.config.cluster_dns == Some(*ip) =>
            {
                false
            }
            Listen::Cluster(..) | Listen::Datagrams(Entrance::Cluster(..)) => self.state.config.cluster_ip_listeners,
            // The table contains addresses of the pool only.
            _ => true,
        });
        let wanted: Vec<_> = wanted.collect();
        wanted.into_iter().filter_map(|(listen, route)| self.set(listen, route)).collect()
    }

    /// Retries failed binds. A repeated failure is not reported again.
    pub(crate) fn retry(&mut self) {
        // One at a time: an external address is compared with the load balancers' that failed, too.
        let failed: Vec<(Listen, Arc<PortRoute>)> =
            self.failed.iter().map(|(at, route)| (*at, route.clone())).collect();
        for (listen, route) in failed {
            self.set(listen, route);
        }
    }

    /// Ends the listeners without an endpoint that serves on when the node's agent has ended. Returns their tasks, which
    /// complete open requests.
    pub(crate) fn close_unreachable(&mut self) -> Vec<JoinHandle<()>> {
        let state = &self.state;
        let closed = self.open.extract_if(|listen, open| {
            let route = open.route.now();
            let protocol = match listen {
                // These have no endpoint.
                Listen::Health(_) => return false,
                Listen::Datagrams(_) => Protocol::Udp,
                _ => Protocol::Tcp,
            };
            let stays = |at: SocketAddr| match state.network.find(at.ip(), protocol, at.port()) {
                Some(serve) => serve.outlives_agent(),
                None => state.may_dial(&route, at),
            };
            !route.usable().iter().any(|endpoint| stays(endpoint.address()))
        });
        let closed = closed.map(|(_, open)| {
            open.stop.cancel();
            open.task
        });
        closed.collect()
    }

    fn set(&mut self, listen: Listen, route: Arc<PortRoute>) -> Option<BindFailure> {
        if let Some(open) = self.open.get(&listen) {
            open.route.store(route);
            return None;
        }
        let address = self.address(listen);
        match self.open(listen, address, &route) {
            Ok(open) => {
                self.failed.remove(&listen);
                self.open.insert(listen, open);
                None
            }
            Err(error) => {
                let service = route.via.as_ref().map(|via| via.service.clone());
                let known = self.failed.insert(listen, route).is_some();
                let is_elsewhere = self.is_elsewhere(listen, &error);
                service.filter(|_| !known && !is_elsewhere).map(|service| BindFailure { service, address, error })
            }
        }
    }
}

impl Listeners {
    fn address(&self, listen: Listen) -> SocketAddr {
        match listen {
            Listen::Cluster(ip, port) | Listen::Balancer(ip, port) | Listen::External(ip, port) => {
                SocketAddr::new(ip, port)
            }
            Listen::Datagrams(
                Entrance::Cluster(ip, port) | Entrance::Balancer(ip, port) | Entrance::External(ip, port),
            ) => SocketAddr::new(ip, port),
            Listen::Node(port) | Listen::Health(port) | Listen::Datagrams(Entrance::Node(port)) => {
                SocketAddr::new(self.state.config.bind, port)
            }
        }
    }

    /// Whether another machine may have the address of a listener that failed.
    fn is_elsewhere(&self, listen: Listen, error: &io::Error) -> bool {
        let is_of_pool = matches!(
            listen,
            Listen::Balancer(..)
                | Listen::External(..)
                | Listen::Datagrams(Entrance::Balancer(..) | Entrance::External(..))
        );
        is_of_pool && self.state.config.is_pool_shared && error.kind() == io::ErrorKind::AddrNotAvailable
    }

    /// Whether the same address is a load balancer's, which an external address never takes (CVE-2020-8554).
    fn is_balancers(&self, listen: Listen) -> bool {
        let balancer = match listen {
            Listen::External(ip, port) => Listen::Balancer(ip, port),
            Listen::Datagrams(Entrance::External(ip, port)) => Listen::Datagrams(Entrance::Balancer(ip, port)),
            _ => return false,
        };
        self.open.contains_key(&balancer) || self.failed.contains_key(&balancer)
    }

    /// Closes the external listener at a load balancer's address; its socket is free soon after, and a bind is retried.
    fn displace_external(&mut self, listen: Listen) {
        let external = match listen {
            Listen::Balancer(ip, port) => Listen::External(ip, port),
            Listen::Datagrams(Entrance::Balancer(ip, port)) => Listen::Datagrams(Entrance::External(ip, port)),
            _ => return,
        };
        if let Some(open) = self.open.remove(&external) {
            open.stop.cancel();
            self.failed.insert(external, open.route.now());
        }
    }

    fn open(&mut self, listen: Listen, address: SocketAddr, route: &Arc<PortRoute>) -> io::Result<OpenListener> {
        if self.is_balancers(listen) {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        self.displace_external(listen);
        let stop = self.stop.child_token();
        let state = self.state.clone();
        if let Listen::Datagrams(entrance) = listen {
            let (socket, held) = DatagramListener::bind(address)?;
            let (sender, route) = watch::channel(route.clone());
            let sources_only = matches!(entrance, Entrance::Balancer(..));
            let listener = DatagramListener { state, socket, address, route, sources_only, stop: stop.clone() };
            let task = tokio::spawn(listener.serve(held));
            return Ok(OpenListener { route: ListenerRoute::Datagrams(sender), stop, task });
        }
        let listener = Listener::bind(address)?;
        let route = Arc::new(ArcSwap::new(route.clone()));
        let clients = match listen {
            Listen::Balancer(..) => ListenerClients::Sources,
            Listen::Health(_) => ListenerClients::Balancers,
            _ => ListenerClients::All,
        };
        let task = tokio::spawn(run(state, listener, route.clone(), clients, stop.clone()));
        Ok(OpenListener { route: ListenerRoute::Streams(route), stop, task })
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
    let group: Arc<str> = match &route.load().via {
        Some(via) => via.service.to_string().into(),
        None => "none".into(),
    };
    let descriptors = Descriptors::process();
    let limit = Limit::new(descriptors.client_seats(), group.clone());
    let spliced = Limit::new(descriptors.spliced_seats(), group);
    let each = |stream, peer: SocketAddr, permit: Arc<ConnectionPermit>, ending| {
        let (state, route, stop, spliced) = (state.clone(), route.clone(), stop.clone(), spliced.clone());
        async move {
            if clients == ListenerClients::Balancers {
                let lifetime = ConnectionLifetime { stop, permit };
                return health::serve(state.env.clone(), route, stream, peer, lifetime, ending).await;
            }
            let now = route.load_full();
            if clients == ListenerClients::Sources && !now.admits(Some(peer.ip())) {
                return;
            }
            if state.is_http(&now).await {
                server::serve(state, route, stream, peer, ConnectionLifetime { stop, permit }, ending).await;
            } else {
                // The requests of a stream of bytes are unknown: it is in use from its start.
                let _in_use = permit.begin();
                let carried = async {
                    tokio::select! {
                        () = l4::serve(&state, &now, stream, peer, stop) => {}
                        () = accept::end_of_stream(&state.env, &ending) => {}
                    }
                };
                // A connection to a pod takes no second descriptor.
                if !state.leads_outside(&now) {
                    return carried.await;
                }
                let Some(endpoint_seat) = spliced.take(peer).await.map(Arc::new) else {
                    return tracing::debug!(%peer, "too many connections are open to endpoints outside the cluster");
                };
                let _endpoint_in_use = endpoint_seat.begin();
                tokio::select! {
                    () = endpoint_seat.displaced() => tracing::debug!(%peer, "a connection was displaced by another one"),
                    () = carried => {}
                }
            }
        }
    };
    accept::serve(listener, limit, None, &state.env, &stop, each).await;
}

#[cfg(test)]
mod tests {
    use ::http::{Request, Response};
    use machinery_serve::net::{Body, CallRejected, Listen as At, Origin, Serve};

    use super::*;
    use crate::plane::tests::plane;
    use crate::routing::table::tests::route;

    struct Pod {
        outlives_agent: bool,
    }

    #[async_trait::async_trait]
    impl Serve for Pod {
        async fn http(&self, _: &Origin, _: Request<Body>) -> Result<Response<Body>, CallRejected<Request<Body>>> {
            Err(CallRejected::Closed)
        }

        fn outlives_agent(&self) -> bool {
            self.outlives_agent
        }
    }

    #[tokio::test]
    async fn at_a_takeover_listeners_without_a_lasting_endpoint_leave_their_clients_to_the_next_process() {
        let plane = plane();
        let state = plane.state.clone();
        let attach = |ip: &str, outlives_agent| {
            state.network.attach(At::tcp(ip.parse().unwrap(), 80), Arc::new(Pod { outlives_agent })).unwrap()
        };
        let _attached = [attach("127.66.0.2", true), attach("127.66.0.3", false)];
        let mut listeners = Listeners::new(state.clone(), CancellationToken::new());
        let free = || std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        for (ips, lasts) in [
            (&["127.66.0.2"][..], true),
            (&["127.66.0.3"], false),
            (&["127.66.0.2", "127.66.0.3"], true),
            (&["127.66.0.9"], false),
            (&[], false),
        ] {
            let listen = Listen::Node(free());
            assert!(listeners.set(listen, Arc::new(route(ips))).is_none());
            let closed = listeners.close_unreachable();
            assert_eq!((closed.len(), listeners.open.contains_key(&listen)), (usize::from(!lasts), lasts), "{ips:?}");
            for task in closed {
                task.await.unwrap();
            }
        }
    }
}
