//! The span of a guest's run: its pod, its waits, its fuel, and the reason of a failure. The guest gets its context in the
//! request's headers, and its outgoing requests continue it.

use http::Request;
use machinery_api::names::REASON_HEADER;
use machinery_serve::net::{Body, Origin, Peer};
use machinery_serve::trace::w3c::TRACEPARENT;
use machinery_serve::trace::{Parent, Span, SpanKind, is_enabled, method_name};

use super::container::ContainerState;

/// Starts the span of a request and puts its context into the headers. Probes and other calls of the node have none, unless
/// they carry a context.
pub(super) fn start(shared: &ContainerState, from: &Origin, request: &mut Request<Body>) -> Span {
    if !is_enabled() || (matches!(from.peer, Peer::Node) && !request.headers().contains_key(TRACEPARENT)) {
        return Span::NONE;
    }
    let container = shared.name.rsplit('/').next().unwrap_or_default();
    let name = format!("{} {container}", method_name(request.method()));
    let span = Span::start_at(SpanKind::Server, Parent::Headers(request.headers()), name.into(), None);
    if span.is_recording() {
        describe(&span, shared, from, container);
        span.set_request(request);
    }
    span.inject(request.headers_mut());
    span
}

fn describe(span: &Span, shared: &ContainerState, from: &Origin, container: &str) {
    let own = &shared.guest.caller;
    span.set("k8s.namespace.name", own.namespace.to_string());
    span.set("k8s.pod.name", own.pod.to_string());
    span.set("k8s.container.name", container.to_owned());
    span.set("k8s.node.name", own.node.to_string());
    match &from.peer {
        Peer::Pod(caller) => span.set("coracle.client.pod", format!("{}/{}", caller.namespace, caller.pod)),
        Peer::Host(address) => span.set("client.address", address.ip().to_string()),
        Peer::Node => {}
    }
    if let Some(via) = &from.via {
        span.set("coracle.service", via.service.to_string());
    }
}

/// Sets the result of a run: the guest's own response, or the one in its place.
pub(super) fn answered(span: &Span, response: &http::Response<Body>) {
    if let Some(reason) = response.headers().get(REASON_HEADER).and_then(|reason| reason.to_str().ok()) {
        failed(span, reason);
    }
    span.set_response(response, 500);
}

/// Sets why a run failed.
pub(super) fn failed(span: &Span, reason: &str) {
    if span.is_recording() {
        span.set("coracle.reason", reason.to_owned());
        span.fail(reason.to_owned());
    }
}
