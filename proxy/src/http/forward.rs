//! Sends one request to one endpoint of a route: straight into a pod's `Serve`, or over a socket.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, PoisonError};

use http::{Request, Response, StatusCode};
use machinery_serve::net::framing::{self, WantsUpgrade};
use machinery_serve::net::http::plain;
use machinery_serve::net::{Body, Caller, DialError, Origin, Peer, Protocol, Refused, Serve};

use super::counted::counted;
use crate::balance;
use crate::egress::Unsent;
use crate::state::ProxyState;
use crate::table::{Endpoint, PortRoute};

/// Endpoints that a request is offered to after one could not be connected: each may take seconds.
const CONNECTS_MAX: usize = 3;

/// Who sends a request, as far as the choice of an endpoint and a connection's TLS need it.
pub(crate) struct Exchange<'a> {
    /// The caller.
    pub(crate) from: Peer,
    /// The name that was called: the server name of a TLS connection.
    pub(crate) name: &'a str,
    /// Whether the caller asked for HTTPS.
    pub(crate) https: bool,
}

impl Exchange<'_> {
    /// The caller's address, for session affinity.
    fn client(&self) -> Option<IpAddr> {
        match &self.from {
            Peer::Pod(caller) => caller.ip,
            Peer::Host(address) => Some(address.ip()),
            Peer::Node => None,
        }
    }

    /// The calling pod.
    fn pod(&self) -> Option<&Caller> {
        match &self.from {
            Peer::Pod(caller) => Some(caller),
            Peer::Host(_) | Peer::Node => None,
        }
    }

    /// The caller's node, for traffic policies.
    fn node(&self) -> Option<&str> {
        self.pod().map(|caller| &*caller.node)
    }
}

/// What became of an offer to one endpoint.
enum Offer {
    Answered(Response<Body>),
    /// Nothing of it was seen; the next endpoint may have it.
    Passed(Request<Body>, Why),
    Failed(DialError),
}

enum Why {
    Gone,
    Busy,
    Unreachable(DialError),
}

/// What became of a request.
pub(super) enum Sent {
    Answered(Response<Body>),
    /// No endpoint is there; nothing of it was seen.
    Nobody(Request<Body>, DialError),
    /// Endpoints are there, and have too much to do.
    Busy(Request<Body>),
    Failed(DialError),
}

/// The endpoints' own word, whoever calls.
pub(super) fn overload() -> Response<Body> {
    plain(StatusCode::SERVICE_UNAVAILABLE, "overload", "too many requests wait already")
}

/// Offers `request` to the route's endpoints.
///
/// An endpoint that doesn't take the request is passed over, so that no request is lost to a table that is behind;
/// nothing is offered again once an endpoint has seen it.
pub(super) async fn attempt(
    state: &ProxyState,
    route: &Arc<PortRoute>,
    exchange: &Exchange<'_>,
    mut request: Request<Body>,
) -> Sent {
    let mut passed: Vec<SocketAddr> = Vec::new();
    let (mut busy, mut unreachable) = (false, Vec::new());
    while unreachable.len() < CONNECTS_MAX {
        let usable = |endpoint: &Endpoint| {
            let at = endpoint.address();
            let local = !route.local_only || exchange.node().is_none() || endpoint.node.as_deref() == exchange.node();
            let reachable =
                state.network.find(at.ip(), Protocol::Tcp, at.port()).is_some() || state.may_dial(route, at);
            local && reachable && !passed.contains(&at)
        };
        let Some(endpoint) = choose(state, route, exchange.client(), usable) else { break };
        let open = endpoint.pending.open();
        let at = endpoint.address();
        match offer(state, route, at, exchange, request).await {
            Offer::Answered(response) => return Sent::Answered(response.map(|body| counted(body, open))),
            Offer::Failed(error) => return Sent::Failed(error),
            Offer::Passed(back, why) => {
                request = back;
                match why {
                    Why::Gone => {}
                    Why::Busy => busy = true,
                    Why::Unreachable(error) => unreachable.push(error),
                }
            }
        }
        passed.push(at);
    }
    if busy {
        return Sent::Busy(request);
    }
    if let Some(error) = unreachable.pop() {
        return Sent::Failed(error);
    }
    let name = route.via.as_ref().map(|via| format!("service {} port {}", via.service, via.port));
    Sent::Nobody(request, DialError::NoEndpoint(name.unwrap_or_else(|| exchange.name.to_owned())))
}

async fn offer(
    state: &ProxyState,
    route: &PortRoute,
    at: SocketAddr,
    exchange: &Exchange<'_>,
    request: Request<Body>,
) -> Offer {
    if let Some(serve) = state.network.find(at.ip(), Protocol::Tcp, at.port()) {
        let origin = Origin { peer: exchange.from.clone(), local: at, via: route.via.clone() };
        return match hand_over(&serve, &origin, request).await {
            Ok(response) => Offer::Answered(response),
            Err(Refused::Gone(request)) => Offer::Passed(*request, Why::Gone),
            Err(Refused::Busy(request)) => Offer::Passed(*request, Why::Busy),
            Err(Refused::Denied(policy)) => Offer::Failed(DialError::Denied(format!("{at} (policy {policy})"))),
            Err(Refused::Closed) => Offer::Failed(refused(at)),
        };
    }
    if !state.may_dial(route, at) {
        return Offer::Passed(request, Why::Gone);
    }
    state.metrics.socket_hops.inc();
    match state.egress.to_endpoint(exchange.pod(), (exchange.name, exchange.https), at, route.speaks, request).await {
        Ok(response) => Offer::Answered(response),
        Err(Unsent::Back(request, error)) => Offer::Passed(*request, Why::Unreachable(error)),
        Err(Unsent::Lost(error)) => Offer::Failed(error),
    }
}

/// Nobody takes connections there.
pub(crate) fn refused(address: impl ToString) -> DialError {
    let source = std::io::Error::new(std::io::ErrorKind::ConnectionRefused, "connection refused");
    DialError::Connection { address: address.to_string(), source: source.into() }
}

/// Hands a request to a pod. What a pod cannot do is said, not left to break: a guest never gets a connection of its own.
pub(crate) async fn hand_over(
    serve: &Arc<dyn Serve>,
    origin: &Origin,
    mut request: Request<Body>,
) -> Result<Response<Body>, Refused<Request<Body>>> {
    if let Some(WantsUpgrade(protocol)) = request.extensions_mut().remove() {
        let text =
            format!("pods cannot switch a connection to {}: use plain requests", protocol.to_str().unwrap_or("it"));
        return Ok(plain(StatusCode::NOT_IMPLEMENTED, "upgrade", &text));
    }
    let response = serve.http(origin, request).await?;
    let (mut head, body) = response.into_parts();
    framing::strip_hop_by_hop(&mut head.headers);
    Ok(Response::from_parts(head, body))
}

/// The endpoint for one request or connection.
pub(crate) fn choose(
    state: &ProxyState,
    route: &PortRoute,
    client: Option<IpAddr>,
    usable: impl Fn(&Endpoint) -> bool,
) -> Option<Arc<Endpoint>> {
    let any = || balance::pick(route.usable(), &usable, |bound| state.env.below(bound)).cloned();
    let (Some(sticky), Some(client)) = (&route.sticky, client) else { return any() };
    let now = state.env.elapsed();
    let mut clients = sticky.clients.lock().unwrap_or_else(PoisonError::into_inner);
    let endpoint = match clients.find(route.usable(), client, now, sticky.timeout).filter(|endpoint| usable(endpoint)) {
        Some(endpoint) => endpoint.clone(),
        None => any()?,
    };
    clients.remember(client, &endpoint, now);
    Some(endpoint)
}
