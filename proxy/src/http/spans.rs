//! Spans of requests through the data plane: a server's for host processes, a client's for guests. Both have the Service and
//! the endpoint that answered, and pass their context on in the request's headers.

use std::net::SocketAddr;

use http::{Request, Response};
use machinery_serve::net::{Body, Caller};
use machinery_serve::trace::{Parent, Span, SpanKind, is_enabled, method_name};

use super::guarded_body::guarded;
use crate::routing::table::{Endpoint, PortRoute};

/// The span of a host process's request to a Service, by the name that it used.
pub(super) fn of_host(route: &PortRoute, (host, peer): (&str, SocketAddr), request: &mut Request<Body>) -> Span {
    if !is_enabled() {
        return Span::NONE;
    }
    let service = route.via.as_ref().map(|via| via.service.to_string());
    let method = method_name(request.method());
    let name = service.as_ref().map_or_else(|| method.to_owned(), |service| format!("{method} {service}"));
    let span = Span::start_at(SpanKind::Server, Parent::Headers(request.headers()), name.into(), None);
    if span.is_recording() {
        span.set_request(request);
        span.set("client.address", peer.ip().to_string());
        span.set("server.address", host.to_owned());
        if let Some(service) = service {
            span.set("coracle.service", service);
        }
    }
    span.inject(request.headers_mut());
    span
}

/// The span of a guest's request. Its parent is in the headers: of the guest's own span, or as the guest has set it.
pub(crate) fn of_guest(caller: &Caller, request: &mut Request<Body>) -> Span {
    let host = request.uri().host().unwrap_or_default().to_owned();
    let name = method_name(request.method());
    let span = Span::start_at(SpanKind::Client, Parent::Headers(request.headers()), name.into(), None);
    if span.is_recording() {
        span.set_request(request);
        span.set("server.address", host);
        if let Some(port) = request.uri().port_u16() {
            span.set("server.port", i64::from(port));
        }
        span.set("k8s.namespace.name", caller.namespace.to_string());
        span.set("k8s.pod.name", caller.pod.to_string());
        span.set("k8s.node.name", caller.node.to_string());
    }
    span.inject(request.headers_mut());
    span
}

/// Sets the endpoint that answered, after `failed` others that did not take the request. Its pod's name is in the span of the
/// guest.
pub(super) fn describe_endpoint(span: &Span, endpoint: &Endpoint, failed: usize) {
    if !span.is_recording() {
        return;
    }
    span.set("network.peer.address", endpoint.ip.to_string());
    span.set("network.peer.port", i64::from(endpoint.port));
    if let Some(node) = &endpoint.node {
        span.set("coracle.endpoint.node", node.clone());
    }
    if failed > 0 {
        span.set("http.request.resend_count", i64::try_from(failed).unwrap_or(i64::MAX));
    }
}

/// Sets the result of a request; its span ends with the response's body. A failure begins at status `failed_from`.
pub(crate) fn answered(span: Span, response: Response<Body>, failed_from: u16) -> Response<Body> {
    span.set_response(&response, failed_from);
    span.log(|| tracing::debug!(target: "access", status = response.status().as_u16(), "request through a Service"));
    if span.is_recording() { response.map(|body| guarded(body, span)) } else { response }
}
