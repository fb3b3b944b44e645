//! Forwards one request to one endpoint of a route: into a pod's `Serve` without a socket, or over a socket.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, PoisonError};

use http::{Method, Request, Response, StatusCode, Version};
use machinery_serve::framing::{self, WantsUpgrade};
use machinery_serve::net::http::plain;
use machinery_serve::net::{Body, CallRejected, Caller, DialError, Origin, Peer, Protocol, Serve, empty_body};
use machinery_serve::trace::Span;

use super::guarded_body::guarded;
use super::spans;
use crate::connection::open::open_stream;
use crate::egress::SendError;
use crate::egress::pod_limit;
use crate::routing::balance;
use crate::routing::table::{AppProtocol, Endpoint, PortRoute};
use crate::state::ProxyState;
use crate::state::read_ahead::{self, ReadAheadBudget};

/// Maximum connection failures before a request fails: each may take seconds.
const CONNECTS_MAX: usize = 3;

/// The caller's properties that endpoint choice and TLS depend on.
pub(crate) struct Exchange<'a> {
    /// The caller.
    pub(crate) from: Peer,
    /// The name that the caller used: the server name of a TLS connection.
    pub(crate) name: &'a str,
    /// Whether the caller used HTTPS.
    pub(crate) https: bool,
    /// The request's span.
    pub(crate) span: &'a Span,
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

    fn place(&self) -> ClientPlace<'_> {
        ClientPlace { ip: self.client(), node: self.node() }
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

/// Result of offering a request to one endpoint.
enum OfferOutcome {
    Answered(Response<Body>),
    /// The endpoint saw no byte of it; the next one may take it.
    NotTaken(Request<Body>, NotTakenReason),
    Failed(DialError),
}

enum NotTakenReason {
    Gone,
    Busy,
    Unreachable(DialError),
}

/// Result of forwarding a request.
pub(super) enum AttemptOutcome {
    Answered(Response<Body>),
    /// The route has no endpoint; none saw a byte of the request.
    NoEndpoint(Request<Body>, DialError),
    /// All endpoints are overloaded.
    Busy(Request<Body>),
    Failed(DialError),
}

/// The response of an overloaded pod, the same for all callers.
pub(super) fn overload() -> Response<Body> {
    plain(StatusCode::SERVICE_UNAVAILABLE, "overload", "too many requests wait already")
}

/// Offers `request` to the route's endpoints.
///
/// Skips an endpoint that doesn't take the request, so that a stale table loses no request. Nothing is retried once an
/// endpoint has seen a byte of it.
pub(super) async fn attempt(
    state: &ProxyState,
    route: &Arc<PortRoute>,
    exchange: &Exchange<'_>,
    mut request: Request<Body>,
) -> AttemptOutcome {
    let mut tried: Vec<SocketAddr> = Vec::new();
    let (mut busy, mut unreachable) = (false, Vec::new());
    while unreachable.len() < CONNECTS_MAX {
        let way = |endpoint: &Endpoint| {
            let at = endpoint.address();
            let local = !route.local_only || exchange.node().is_none() || endpoint.node.as_deref() == exchange.node();
            if local && !tried.contains(&at) { Way::to(state, route, Protocol::Tcp, at) } else { None }
        };
        let Some((endpoint, way)) = pick_endpoint(state, route, exchange.place(), way) else { break };
        let open = endpoint.in_flight.start();
        let at = endpoint.address();
        match offer(state, route, (at, way), exchange, request).await {
            OfferOutcome::Answered(response) => {
                spans::describe_endpoint(exchange.span, &endpoint, tried.len());
                return AttemptOutcome::Answered(response.map(|body| guarded(body, open)));
            }
            OfferOutcome::Failed(error) => return AttemptOutcome::Failed(error),
            OfferOutcome::NotTaken(back, why) => {
                request = back;
                match why {
                    NotTakenReason::Gone => {}
                    NotTakenReason::Busy => busy = true,
                    NotTakenReason::Unreachable(error) => unreachable.push(error),
                }
            }
        }
        tried.push(at);
    }
    if busy {
        return AttemptOutcome::Busy(request);
    }
    if let Some(error) = unreachable.pop() {
        return AttemptOutcome::Failed(error);
    }
    let name = route.via.as_ref().map(|via| format!("service {} port {}", via.service, via.port));
    AttemptOutcome::NoEndpoint(request, DialError::NoEndpoint(name.unwrap_or_else(|| exchange.name.to_owned())))
}

async fn offer(
    state: &ProxyState,
    route: &PortRoute,
    (at, way): (SocketAddr, Way),
    exchange: &Exchange<'_>,
    mut request: Request<Body>,
) -> OfferOutcome {
    if let Way::Pod(serve) = way {
        // A server of bytes gets the request so, whatever the client speaks.
        *request.version_mut() = match route.app_protocol {
            AppProtocol::H2c => Version::HTTP_2,
            AppProtocol::Http | AppProtocol::Unknown => Version::HTTP_11,
        };
        let origin = Origin { peer: exchange.from.clone(), local: at, via: route.via.clone() };
        let wants_upgrade = request.extensions().get::<WantsUpgrade>().is_some();
        if wants_upgrade && serve.find_out_http(at).await == Some(false) {
            return match open_stream(serve, origin).await {
                Ok(stream) => sent(state.egress.over_stream(&exchange.from, stream, at, request).await),
                Err(rejected) => not_taken(rejected.map(|()| request), at),
            };
        }
        return match hand_over(&serve, &origin, request, &state.read_ahead).await {
            Ok(response) => OfferOutcome::Answered(response),
            Err(rejected) => not_taken(rejected, at),
        };
    }
    state.metrics.socket_hops.inc();
    let name = (exchange.name, exchange.https);
    sent(state.egress.to_endpoint(&exchange.from, name, at, route.app_protocol, request).await)
}

fn not_taken(rejected: CallRejected<Request<Body>>, at: SocketAddr) -> OfferOutcome {
    match rejected {
        CallRejected::Gone(request) => OfferOutcome::NotTaken(*request, NotTakenReason::Gone),
        CallRejected::Busy(request) => OfferOutcome::NotTaken(*request, NotTakenReason::Busy),
        CallRejected::Denied(policy) => OfferOutcome::Failed(DialError::Denied(format!("{at} (policy {policy})"))),
        CallRejected::Closed => OfferOutcome::Failed(refused(at)),
    }
}

fn sent(result: Result<Response<Body>, SendError>) -> OfferOutcome {
    match result {
        Ok(response) => OfferOutcome::Answered(response),
        Err(SendError::NotSent(request, error)) => OfferOutcome::NotTaken(*request, NotTakenReason::Unreachable(error)),
        Err(SendError::Lost(error)) => OfferOutcome::Failed(error),
    }
}

/// The error for an address without a listener.
pub(crate) fn refused(address: impl ToString) -> DialError {
    let source = std::io::Error::new(std::io::ErrorKind::ConnectionRefused, "connection refused");
    DialError::Connection { address: address.to_string(), source: source.into() }
}

/// Hands a request to a pod. Rejects upgrades with 501: a handler of requests never gets a connection of its own.
pub(crate) async fn hand_over(
    serve: &Arc<dyn Serve>,
    origin: &Origin,
    mut request: Request<Body>,
    budget: &ReadAheadBudget,
) -> Result<Response<Body>, CallRejected<Request<Body>>> {
    if let Some(WantsUpgrade(protocol)) = request.extensions_mut().remove() {
        let text =
            format!("pods cannot switch a connection to {}: use plain requests", protocol.to_str().unwrap_or("it"));
        return Ok(plain(StatusCode::NOT_IMPLEMENTED, "upgrade", &text));
    }
    let Peer::Pod(caller) = &origin.peer else {
        // The connection of the client drops a body that its response can't have, and the system buffers what it sends.
        let (mut head, body) = serve.http(origin, request).await?.into_parts();
        framing::strip_hop_by_hop(&mut head.headers);
        return Ok(Response::from_parts(head, body));
    };
    let is_head = request.method() == Method::HEAD;
    let (head, body) = request.into_parts();
    let (body, sending) = read_ahead::observed(body);
    let (mut head, body) = serve.http(origin, Request::from_parts(head, body)).await?.into_parts();
    framing::strip_hop_by_hop(&mut head.headers);
    // On a connection such a body would be the beginning of the next response.
    let body = if framing::has_body(head.status, is_head) {
        read_ahead::read_ahead(body, &sending, budget, pod_limit::pod(caller))
    } else {
        empty_body()
    };
    Ok(Response::from_parts(head, body))
}

/// The caller's properties that the choice of an endpoint depends on.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct ClientPlace<'a> {
    /// Its address, for session affinity.
    pub(crate) ip: Option<IpAddr>,
    /// Its node, for preferences.
    pub(crate) node: Option<&'a str>,
}

impl<'a> From<&'a Caller> for ClientPlace<'a> {
    fn from(caller: &'a Caller) -> Self {
        Self { ip: caller.ip, node: Some(&caller.node) }
    }
}

/// The way to an endpoint.
pub(crate) enum Way {
    /// A pod of this process, or of another node over the tunnel.
    Pod(Arc<dyn Serve>),
    /// A socket to an address that may be dialled.
    Socket,
}

impl Way {
    /// The way to an address behind a route; `None` if nothing listens there, or it may not be dialled.
    pub(crate) fn to(state: &ProxyState, route: &PortRoute, protocol: Protocol, at: SocketAddr) -> Option<Self> {
        match state.network.find(at.ip(), protocol, at.port()) {
            Some(serve) => Some(Self::Pod(serve)),
            None => state.may_dial(route, at).then_some(Self::Socket),
        }
    }
}

/// Picks the endpoint for one request or connection, with the way to it. Endpoints that are hinted for the caller's node come first, then those
/// of its zone (`trafficDistribution`), then all.
pub(crate) fn pick_endpoint<W>(
    state: &ProxyState,
    route: &PortRoute,
    client: ClientPlace<'_>,
    way: impl Fn(&Endpoint) -> Option<W>,
) -> Option<(Arc<Endpoint>, W)> {
    if let Some(node) = client.node.filter(|_| route.hinted) {
        let on_node = |endpoint: &Endpoint| endpoint.hints.nodes.iter().any(|name| **name == *node);
        let near =
            pick_usable(state, route, client.ip, |endpoint| if on_node(endpoint) { way(endpoint) } else { None });
        let in_zone = || {
            let zone = state.routes.zone_of(node)?;
            let in_zone = |endpoint: &Endpoint| endpoint.hints.zones.iter().any(|name| **name == *zone);
            pick_usable(state, route, client.ip, |endpoint| if in_zone(endpoint) { way(endpoint) } else { None })
        };
        if let Some(picked) = near.or_else(in_zone) {
            return Some(picked);
        }
    }
    pick_usable(state, route, client.ip, way)
}

/// Picks a usable endpoint: the client's sticky one, else by [`balance::pick`].
fn pick_usable<W>(
    state: &ProxyState,
    route: &PortRoute,
    client: Option<IpAddr>,
    way: impl Fn(&Endpoint) -> Option<W>,
) -> Option<(Arc<Endpoint>, W)> {
    let any = || {
        let picked = balance::pick(route.usable(), &way, |bound| state.env.below(bound));
        picked.map(|(endpoint, way)| (endpoint.clone(), way))
    };
    let (Some(sticky), Some(client)) = (&route.sticky, client) else { return any() };
    let now = state.env.elapsed();
    let mut clients = sticky.clients.lock().unwrap_or_else(PoisonError::into_inner);
    let known = clients.find(route.usable(), client, now, sticky.timeout);
    let picked = match known.and_then(|endpoint| Some((endpoint.clone(), way(endpoint)?))) {
        Some(picked) => picked,
        None => any()?,
    };
    clients.remember(client, &picked.0, now);
    Some(picked)
}
