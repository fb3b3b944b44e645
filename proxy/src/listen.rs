//! One listener per ClusterIP and port, and per NodePort: opened, kept over changes of the route, closed, tried again.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use machinery_api::ObjectKey;
use machinery_serve::descriptors::{Class, Descriptors, Held};
use tokio::net::TcpListener;
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;

use crate::http::server;
use crate::l4;
use crate::state::ProxyState;
use crate::table::{Change, Listen, PortRoute};

/// Pause after a failed accept (out of file handles): long enough not to spin, short enough not to be noticed after.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// A port that could not be bound, for the Service's event.
#[derive(Debug)]
pub(crate) struct BindFailure {
    pub(crate) service: ObjectKey,
    pub(crate) address: SocketAddr,
    pub(crate) error: io::Error,
}

/// How long a connection may live, and what it holds till then: also of what it becomes by an upgrade.
#[derive(Clone)]
pub(crate) struct Tenure {
    pub(crate) stop: CancellationToken,
    pub(crate) _permit: Arc<OwnedSemaphorePermit>,
}

struct Open {
    route: Arc<ArcSwap<PortRoute>>,
    stop: CancellationToken,
    _held: [Held; 2],
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
            Listen::Node(_) => true,
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
            Listen::Cluster(ip, port) => SocketAddr::new(ip, port),
            Listen::Node(port) => SocketAddr::new(self.state.config.bind, port),
        };
        match bind(address) {
            Ok((listener, held)) => {
                self.failed.remove(&listen);
                let route = Arc::new(ArcSwap::new(route));
                let open = Open { route, stop: self.stop.child_token(), _held: held };
                tokio::spawn(accept(self.state.clone(), listener, open.route.clone(), open.stop.clone()));
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

fn bind(address: SocketAddr) -> io::Result<(TcpListener, [Held; 2])> {
    // Its own, and the one connection that waits at it for a permit.
    let descriptors = Descriptors::process();
    let held = [descriptors.take(Class::Listeners)?, descriptors.take(Class::Listeners)?];
    let listener = std::net::TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    Ok((TcpListener::from_std(listener)?, held))
}

async fn accept(
    state: Arc<ProxyState>,
    listener: TcpListener,
    route: Arc<ArcSwap<PortRoute>>,
    stop: CancellationToken,
) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => return,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_RETRY).await;
                continue;
            }
        };
        // Only now: a listener that nobody calls must not hold what others wait for. Each holds one connection that waits.
        let permit = tokio::select! {
            permit = state.connections.clone().acquire_owned() => permit,
            () = stop.cancelled() => return,
        };
        let Ok(permit) = permit else { return };
        // Closed at once where pods' own listeners on the host hold the rest of what clients may.
        let Ok(held) = Descriptors::process().take(Class::Clients) else { continue };
        let _ = stream.set_nodelay(true);
        let (state, route, stop) = (state.clone(), route.clone(), stop.clone());
        tokio::spawn(async move {
            let now = route.load_full();
            if state.is_http(&now) {
                server::serve(state, route, stream, peer, Tenure { stop, _permit: Arc::new(permit) }).await;
            } else {
                l4::serve(&state, &now, stream, peer, stop).await;
                drop(permit);
            }
            drop(held);
        });
    }
}
