//! Sends one request to one endpoint of a route: straight into a local pod's `Serve`, or over a socket.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, PoisonError};

use http::{Request, Response};
use machinery::net::{Body, DialError};

use super::counted::counted;
use crate::balance::{self, Affinity};
use crate::plane::Inner;
use crate::table::{Endpoint, PortRoute};

/// Who sends a request, as far as the choice of an endpoint and a connection's TLS need it.
pub(crate) struct Exchange<'a> {
    /// The caller's address, for session affinity.
    pub(crate) client: Option<IpAddr>,
    /// The caller's node, for traffic policies.
    pub(crate) node: Option<&'a str>,
    /// The name that was called: the server name of a TLS connection.
    pub(crate) name: &'a str,
    /// Whether the caller asked for HTTPS.
    pub(crate) https: bool,
}

/// Sends `request` to one of the route's endpoints.
///
/// A local pod that has gone since the table was made is passed over before anything was sent, so that no request is
/// lost to a stale table; nothing is retried once an endpoint has seen the request.
///
/// # Errors
/// No endpoint, or the connection to it failed.
pub(crate) async fn send(
    inner: &Inner,
    route: &Arc<PortRoute>,
    exchange: &Exchange<'_>,
    request: Request<Body>,
) -> Result<Response<Body>, DialError> {
    let name = || {
        let service = route.service.as_ref().map_or_else(|| exchange.name.to_owned(), ToString::to_string);
        format!("service {service} port {}", route.port)
    };
    let usable = |endpoint: &Endpoint| {
        let local = !route.local_only || exchange.node.is_none() || endpoint.node.as_deref() == exchange.node;
        let reachable = inner.network.find(endpoint.ip, endpoint.port).is_some() || inner.may_dial(route, endpoint.ip);
        local && reachable
    };
    let Some(endpoint) = choose(inner, route, exchange.client, usable) else {
        inner.metrics.no_endpoint.inc();
        return Err(DialError::NoEndpoint(name()));
    };
    let open = endpoint.pending.open();
    let response = match inner.network.find(endpoint.ip, endpoint.port) {
        Some(serve) => serve.http(request).await,
        None if inner.may_dial(route, endpoint.ip) => {
            inner.metrics.socket_hops.inc();
            let address = SocketAddr::new(endpoint.ip, endpoint.port);
            inner.outside.exchange(address, exchange.name, exchange.https, request).await?
        }
        None => return Err(DialError::NoEndpoint(name())),
    };
    Ok(response.map(|body| counted(body, open)))
}

/// The endpoint for one request or connection.
pub(crate) fn choose(
    inner: &Inner,
    route: &PortRoute,
    client: Option<IpAddr>,
    usable: impl Fn(&Endpoint) -> bool,
) -> Option<Arc<Endpoint>> {
    let any = || balance::pick(route.usable(), &usable, |bound| inner.env.below(bound)).cloned();
    let (Some(timeout), Some(client), Some(service)) = (route.affinity, client, &route.service) else { return any() };
    let now = inner.env.elapsed();
    let mut all = inner.affinity.lock().unwrap_or_else(PoisonError::into_inner);
    let affinity: &mut Affinity = all.entry((service.to_string(), route.port)).or_default();
    let endpoint = match affinity.find(route, client, now, timeout).filter(|endpoint| usable(endpoint)) {
        Some(endpoint) => endpoint.clone(),
        None => any()?,
    };
    affinity.remember(client, &endpoint, now);
    Some(endpoint)
}
