//! The span of an API request: named by verb and resource, with upstream's names and attributes.
//!
//! Long-running requests have none. Without a caller's context, neither have requests outside of resources, and those for
//! Leases: each component renews its own every few seconds.

use http::header::USER_AGENT;
use http::request::Parts;
use http::{HeaderValue, Response};
use jiff::Timestamp;
use machinery_serve::trace::w3c::TRACEPARENT;
use machinery_serve::trace::{Parent, Span, SpanKind, is_enabled, method_name};

use super::info::RequestInfo;
use apiserver_auth::{MASTERS, UserInfo};

/// The group of monitoring systems; their context is continued, too.
const MONITORING: &str = "system:monitoring";

/// The group of Leases.
const COORDINATION: &str = "coordination.k8s.io";

/// Starts the span of an authenticated request that arrived at `at`.
///
/// The caller's context is continued for privileged users; a span of any other user begins a trace with a link to it, as upstream.
pub(super) fn of_request(
    parts: &Parts,
    info: &RequestInfo,
    (user, audit_id): (&UserInfo, &HeaderValue),
    (at, long_running): (Timestamp, bool),
) -> Span {
    if long_running || !is_enabled() || (!parts.headers.contains_key(TRACEPARENT) && !makes_root(info)) {
        return Span::NONE;
    }
    let headers = &parts.headers;
    let trusted = user.is_in(MASTERS) || user.is_in(MONITORING);
    let parent = if trusted { Parent::Headers(headers) } else { Parent::Linked(headers) };
    let span = Span::start_at(SpanKind::Server, parent, name(parts, info).into(), Some(at.into()));
    if !span.is_recording() {
        return span;
    }
    let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    span.set("http.request.method", method_name(&parts.method));
    span.set("url.scheme", "https");
    span.set("url.path", parts.uri.path().to_owned());
    span.set("http.target", parts.uri.path_and_query().map_or_else(String::new, |target| target.as_str().to_owned()));
    span.set("audit-id", text(audit_id));
    if let Some(agent) = headers.get(USER_AGENT) {
        span.set("user_agent.original", text(agent));
    }
    if info.is_resource {
        span.set("k8s.verb", info.verb.clone());
        span.set("k8s.resource", info.resource.clone());
        span.set("k8s.namespace.name", info.namespace.clone());
        span.set("k8s.object.name", info.name.clone());
    }
    span.set("enduser.id", user.name.clone());
    span
}

/// Sets the result of a request, and writes its line of the access log: at level debug, target `access`.
pub(super) fn answered<B>(span: &Span, parts: &Parts, user: &UserInfo, response: &Response<B>) {
    span.set_response(response, 500);
    span.log(|| {
        tracing::debug!(
            target: "access",
            method = parts.method.as_str(),
            path = parts.uri.path(),
            user = user.name,
            status = response.status().as_u16(),
            "API request"
        );
    });
}

/// Whether a request without a caller's context is traced.
fn makes_root(info: &RequestInfo) -> bool {
    info.is_resource && info.group != COORDINATION
}

/// As upstream: method and path, with placeholders for namespace and name.
fn name(parts: &Parts, info: &RequestInfo) -> String {
    let mut name = method_name(&parts.method).to_owned();
    if !info.is_resource {
        return name;
    }
    name.push_str(" /");
    name.push_str(&info.prefix);
    for part in [&info.group, &info.version] {
        if !part.is_empty() {
            name.push('/');
            name.push_str(part);
        }
    }
    if !info.namespace.is_empty() {
        name.push_str("/namespaces/{:namespace}");
    }
    name.push('/');
    name.push_str(&info.resource);
    if !info.name.is_empty() {
        name.push_str("/{:name}");
    }
    if !info.subresource.is_empty() {
        name.push('/');
        name.push_str(&info.subresource);
    }
    name
}

#[cfg(test)]
mod tests {
    use apiserver_resources::query::Query;
    use http::Request;

    use super::*;

    #[test]
    fn names_have_placeholders() {
        for (method, path, wanted, root) in [
            ("GET", "/api/v1/nodes", "GET /api/v1/nodes", true),
            ("POST", "/api/v1/namespaces/a/pods", "POST /api/v1/namespaces/{:namespace}/pods", true),
            (
                "PATCH",
                "/apis/apps/v1/namespaces/a/deployments/b/status",
                "PATCH /apis/apps/v1/namespaces/{:namespace}/deployments/{:name}/status",
                true,
            ),
            (
                "PUT",
                "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/a",
                "PUT /apis/coordination.k8s.io/v1/namespaces/{:namespace}/leases/{:name}",
                false,
            ),
            ("GET", "/livez", "GET", false),
        ] {
            let (parts, ()) = Request::builder().method(method).uri(path).body(()).unwrap().into_parts();
            let info = RequestInfo::read(method, path, &Query::parse(""));
            assert_eq!((name(&parts, &info).as_str(), makes_root(&info)), (wanted, root));
        }
    }
}
