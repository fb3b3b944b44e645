//! `pods/NAME/proxy`, `services/NAME/proxy`, `nodes/NAME/proxy`: proxies HTTP requests and upgrades to a pod through
//! its node's kubelet, or to the kubelet itself
//! (<https://kubernetes.io/docs/tasks/access-application-cluster/access-cluster-services/>).
//!
//! A Service's request goes to one of its ready pods, chosen at random. Only pods are dialed: an address that a user
//! wrote into an EndpointSlice is never used.

pub(super) mod location;
mod rewrite;

use std::sync::Arc;

use axum::body::Body;
use http::header::{self, HeaderName};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use machinery_api::ApiError;
use machinery_api::error::GroupResource;
use machinery_serve::dial::unverified;
use machinery_serve::upgraded::copy_upgraded;
use machinery_serve::{browsers, framing};
use machinery_streaming::websocket::upgrade_of;
use serde_json::Value;

use super::connect::forward_subprotocols;
use super::handle::{RequestContext, RequestHandler};
use super::kubelets::{self, NodeAddress};
use super::user_limits::{PROXIED_MAX, UserPermit};
use crate::registry::RequestScope;
use apiserver_resources::ProxyBackend;
use apiserver_resources::objects::ObjectReader;
use location::{Backend, Endpoint, unreachable_service};
use rewrite::ProxiedPage;

/// Headers that are for this server and are not forwarded.
const OWN_HEADERS: &[&str] = &["authorization", "impersonate-user", "impersonate-group", "impersonate-uid"];
const OWN_HEADER_PREFIXES: &[&str] = &["impersonate-extra-", "x-remote-"];

/// The backend of a proxied request.
enum ProxyTarget {
    Pod { node: NodeAddress, pod: String, ip: String, port: u16, tls: bool },
    Kubelet(NodeAddress),
}

impl ProxyTarget {
    fn host(&self) -> String {
        match self {
            Self::Pod { ip, port, .. } if ip.contains(':') => format!("[{ip}]:{port}"),
            Self::Pod { ip, port, .. } => format!("{ip}:{port}"),
            Self::Kubelet(node) => node.host(),
        }
    }
}

impl RequestHandler {
    /// Proxies a request and its response.
    pub(super) async fn proxy(
        &self,
        ctx: &mut RequestContext<'_>,
        call: &RequestScope<'_>,
        to: ProxyBackend,
        body: Body,
    ) -> Result<Response<Body>, ApiError> {
        if ctx.head.query.get("dryRun").is_some() {
            return Err(ApiError::BadRequest("dryRun is not supported".into()));
        }
        let Some(permit) = self.proxied.try_acquire(&ctx.user.name) else {
            let message = format!("more than {PROXIED_MAX} requests of this user are passed on at once; try again");
            return Err(ApiError::TooManyRequests(message, 1));
        };
        let (method, uri) = (ctx.head.method, ctx.head.uri);
        let (before, rest) = location::split_path(uri.path(), call.row.namespaced).ok_or(ApiError::NoSuchResource)?;
        let upgrading = upgrade_of(ctx.head.headers).is_some();
        let target = self.target(call, to).await?;
        if rest.is_empty() && !upgrading && (method == Method::GET || method == Method::HEAD) {
            return redirect(uri);
        }
        let client = ctx.connection.session.peer.as_ref().map(|peer| peer.address.ip().to_string());
        let mut headers = request_headers(ctx.head.headers, upgrading, client.as_deref());
        let client_host = client_host(ctx.head.headers, uri);
        for (name, value) in [(header::HOST, &*client_host), (FORWARDED_URI, &*format!("{before}{rest}"))] {
            if let Ok(value) = HeaderValue::try_from(value) {
                headers.insert(name, value);
            }
        }
        if let ProxyTarget::Kubelet(_) = target {
            browsers::remove_page(&mut headers);
        }
        let path = if rest.is_empty() { "/" } else { &rest };
        let query = uri.query().map(|query| format!("?{query}")).unwrap_or_default();
        let mut request = Request::builder().method(method).uri(format!("{path}{query}"));
        if let Some(all) = request.headers_mut() {
            *all = headers;
        }
        let request = request.body(body).map_err(|error| ApiError::BadRequest(error.to_string()))?;
        let mut answer = self.exchange(call, &target, request).await?;
        let status = answer.status();
        if upgrading {
            if status == StatusCode::SWITCHING_PROTOCOLS
                && let Some(upgrade) = ctx.connection.upgrade.take()
            {
                let backend = hyper::upgrade::on(&mut answer);
                let held = (std::mem::take(&mut ctx.connection.session), permit);
                tokio::spawn(copy_upgraded(upgrade, backend, held, self.stop.clone()));
                let mut response = Response::new(Body::empty());
                *response.status_mut() = status;
                *response.headers_mut() = answer.headers().clone();
                return Ok(response);
            }
            if status.as_u16() < 400 {
                let message = format!("invalid upgrade response: status code {}", status.as_u16());
                return Err(ApiError::Internal(message));
            }
        }
        let page = ProxiedPage { prefix: before.to_owned(), client_host, own_host: target.host() };
        response(answer, matches!(target, ProxyTarget::Pod { .. }), &page, permit)
    }

    /// Resolves the backend.
    async fn target(&self, call: &RequestScope<'_>, to: ProxyBackend) -> Result<ProxyTarget, ApiError> {
        match to {
            ProxyBackend::Pod => {
                let backend = Backend::parse(call.name, "pod")?;
                let pod = self.named(call, "pods", backend.name).await?;
                let port = backend.pod_port(&pod)?;
                self.pod_target(pod, port, backend.tls)
            }
            ProxyBackend::Service => {
                let backend = Backend::parse(call.name, "service")?;
                let (endpoint, pod) = self.endpoint(call, &backend).await?;
                self.pod_target(pod, endpoint.port, backend.tls)
            }
            ProxyBackend::Node => {
                let backend = Backend::parse(call.name, "node")?;
                let node = self.named(call, "nodes", backend.name).await?;
                let at = NodeAddress::of(&node).ok_or_else(|| ApiError::BadRequest("address not allowed".into()))?;
                // Only the kubelet's port of a node's address is allowed: other ports belong to the machine.
                if !backend.port.is_empty() && backend.port != at.port().to_string() {
                    return Err(ApiError::BadRequest("address not allowed".into()));
                }
                Ok(ProxyTarget::Kubelet(at))
            }
        }
    }

    async fn named(&self, call: &RequestScope<'_>, plural: &'static str, name: &str) -> Result<Arc<Value>, ApiError> {
        self.deps.registry.sync_cache().await?;
        let found = self.deps.registry.objects.get("", plural, call.namespace, name);
        found.ok_or_else(|| ApiError::NotFound(GroupResource::new("", plural), name.to_owned()))
    }

    fn pod_target(&self, pod: Arc<Value>, port: u16, tls: bool) -> Result<ProxyTarget, ApiError> {
        let not_allowed = || ApiError::BadRequest("address not allowed".into());
        let ip = pod["status"]["podIP"].as_str().filter(|ip| !ip.is_empty()).ok_or_else(not_allowed)?.to_owned();
        let (_, node) = self.node_of(&pod)?.ok_or_else(not_allowed)?;
        let pod = pod["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        Ok(ProxyTarget::Pod { node, pod, ip, port, tls })
    }

    /// A ready pod of a Service, and its endpoint.
    async fn endpoint(
        &self,
        call: &RequestScope<'_>,
        backend: &Backend<'_>,
    ) -> Result<(Endpoint, Arc<Value>), ApiError> {
        self.deps.registry.sync_cache().await?;
        let objects = &self.deps.registry.objects;
        let service = objects.get("", "services", call.namespace, backend.name);
        let missing = || ApiError::NotFound(GroupResource::new("", "services"), backend.name.to_owned());
        let port = backend.service_port(service.as_deref())?.ok_or_else(missing)?;
        let slices = objects.list("discovery.k8s.io", "endpointslices", Some(call.namespace));
        let of_service =
            |slice: &&Value| slice["metadata"]["labels"]["kubernetes.io/service-name"].as_str() == Some(backend.name);
        let slices: Vec<&Value> = slices.iter().map(|slice| &**slice).filter(of_service).collect();
        let mut endpoints = location::endpoints(slices.iter().copied(), &port);
        if service.is_none() && slices.is_empty() {
            return Err(missing());
        }
        let none = |name| ApiError::ServiceUnavailable(format!("no endpoints available for service {name:?}"));
        if slices.iter().all(|slice| slice["endpoints"].as_array().is_none_or(Vec::is_empty)) {
            return Err(none(backend.name));
        }
        while !endpoints.is_empty() {
            let one = endpoints.swap_remove(self.deps.env.below(endpoints.len() as u64) as usize);
            if let Some(pod) = objects.get("", "pods", call.namespace, &one.pod)
                && pod["status"]["podIPs"].as_array().into_iter().flatten().any(|ip| ip["ip"] == *one.ip)
            {
                return Ok((one, pod));
            }
        }
        Err(none(call.name))
    }

    async fn exchange(
        &self,
        call: &RequestScope<'_>,
        target: &ProxyTarget,
        request: Request<Body>,
    ) -> Result<Response<Incoming>, ApiError> {
        let to_node = &self.deps.kubelets;
        let done = match target {
            ProxyTarget::Kubelet(node) => to_node.send_without_timeout(node, request).await,
            ProxyTarget::Pod { node, pod, ip, port, tls } => {
                let path = format!("/podStream/{}/{pod}/{port}", call.namespace);
                match to_node.stream(node, &path).await {
                    Ok(stream) if *tls => match unverified::handshake(ip, stream).await {
                        Ok(stream) => kubelets::send_over_stream(stream, request).await,
                        Err(why) => Err(why.to_string()),
                    },
                    Ok(stream) => kubelets::send_over_stream(stream, request).await,
                    Err(why) => Err(why),
                }
                .map_err(|why| format!("dial tcp {}: {why}", target.host()))
            }
        };
        done.map_err(|why| unreachable_service(&why))
    }
}

const FORWARDED_URI: HeaderName = HeaderName::from_static("x-forwarded-uri");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The host that the client requested.
fn client_host(headers: &HeaderMap, uri: &Uri) -> String {
    let named = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    named.or_else(|| uri.authority().map(|authority| authority.as_str())).unwrap_or_default().to_owned()
}

/// Adds the slash to a path that ends with `/proxy`, so that relative references of the proxied page resolve.
fn redirect(uri: &Uri) -> Result<Response<Body>, ApiError> {
    let query = uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    Response::builder()
        .status(StatusCode::MOVED_PERMANENTLY)
        .header(header::LOCATION, format!("{}/{query}", uri.path()))
        .body(Body::empty())
        .map_err(|error| ApiError::BadRequest(error.to_string()))
}

/// The forwarded headers of a request: without those for this server and the hop-by-hop ones.
fn request_headers(from: &HeaderMap, upgrading: bool, client: Option<&str>) -> HeaderMap {
    let mut headers = from.clone();
    let upgrade = from.get(header::UPGRADE).cloned();
    framing::strip_hop_by_hop(&mut headers);
    let own: Vec<HeaderName> = headers
        .keys()
        .filter(|name| {
            let name = name.as_str();
            OWN_HEADERS.contains(&name) || OWN_HEADER_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
        })
        .cloned()
        .collect();
    for name in own {
        headers.remove(name);
    }
    forward_subprotocols(from, &mut headers);
    if let (true, Some(upgrade)) = (upgrading, upgrade) {
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(header::UPGRADE, upgrade);
    }
    if let Some(client) = client {
        let before = headers.get(FORWARDED_FOR).and_then(|value| value.to_str().ok());
        let all = before.map_or_else(|| client.to_owned(), |before| format!("{before}, {client}"));
        if let Ok(value) = HeaderValue::try_from(all) {
            headers.insert(FORWARDED_FOR, value);
        }
    }
    headers
}

/// The forwarded response. CORS headers are removed: a pod must not allow other origins on this server's behalf.
fn response(
    answer: Response<Incoming>,
    of_pod: bool,
    page: &ProxiedPage,
    permit: UserPermit,
) -> Result<Response<Body>, ApiError> {
    let (mut head, body) = answer.into_parts();
    framing::response(&mut head, false).map_err(unreachable_service)?;
    if of_pod {
        let cors: Vec<HeaderName> =
            head.headers.keys().filter(|name| name.as_str().starts_with("access-control-")).cloned().collect();
        for name in cors {
            head.headers.remove(name);
        }
        if let Some(location) = head.headers.get(header::LOCATION).and_then(|value| value.to_str().ok())
            && let Ok(location) = HeaderValue::try_from(page.rewrite(location))
        {
            head.headers.insert(header::LOCATION, location);
        }
    }
    browsers::isolate(&mut head.headers);
    let body = body.map_frame(move |frame| {
        let _held_to_the_end = &permit;
        frame
    });
    Ok(Response::from_parts(head, Body::new(body)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_for_the_server_are_not_forwarded() {
        let mut from = HeaderMap::new();
        for (name, value) in [
            ("authorization", "Bearer secret"),
            ("impersonate-user", "root"),
            ("impersonate-extra-scopes", "x"),
            ("x-remote-group", "system:masters"),
            ("connection", "close, x-hop"),
            ("x-hop", "1"),
            ("proxy-authorization", "Basic YTpi"),
            ("cookie", "a=b"),
            ("accept", "text/html"),
            ("x-forwarded-for", "192.0.2.1"),
        ] {
            from.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        let to = request_headers(&from, false, Some("127.0.0.1"));
        let mut names: Vec<&str> = to.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["accept", "cookie", "x-forwarded-for"]);
        assert_eq!(to[FORWARDED_FOR], "192.0.2.1, 127.0.0.1");
    }

    #[test]
    fn an_upgrade_keeps_its_handshake_but_for_tokens() {
        let mut from = HeaderMap::new();
        for (name, value) in [
            ("connection", "keep-alive, Upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-protocol", "base64url.bearer.authorization.k8s.io.c2VjcmV0, chat"),
        ] {
            from.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        let to = request_headers(&from, true, None);
        assert_eq!((&to["connection"], &to["upgrade"]), (&"Upgrade".parse().unwrap(), &"websocket".parse().unwrap()));
        assert_eq!(to["sec-websocket-protocol"], "chat");
    }
}
