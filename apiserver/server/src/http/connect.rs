//! `pods/NAME/attach`, `exec` and `portforward`: upgrades the client's connection and copies it to and from the kubelet
//! of the pod's node.
//!
//! The request is authorized twice: for its own verb, and for `create`, because a WebSocket's GET opens a stream into
//! the pod (upstream's `AuthorizePodWebsocketUpgradeCreatePermission`). The bytes of the session are not interpreted
//! here.

use axum::body::Body;
use bytes::Bytes;
use futures::Stream;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::Empty;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use machinery_api::error::GroupResource;
use machinery_api::{ApiError, GroupVersion, names};
use machinery_env::Env;
use machinery_serve::upgraded::copy_upgraded;
use machinery_streaming::websocket::{self, OutgoingMessage, upgrade_of, wants_websocket};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::gauge_guard::GaugeGuard;
use super::handle::{RequestContext, RequestHandler, attributes, exact_fields};
use super::kubelets;
use super::logs;
use super::proxy;
use super::respond;
use super::user_limits::UserPermit;
use crate::registry::RequestScope;
use crate::tls::Peer;
use apiserver_auth::{Attributes, MASTERS, websocket_token};
use apiserver_resources::SubresourceKind;
use apiserver_resources::query::Query;

/// The maximum number of ports of one WebSocket. Each port takes two of the numbered channels.
const PORTS_MAX: usize = 100;
/// The handshake headers that are forwarded in both directions.
const HANDSHAKE: [HeaderName; 8] = [
    header::CONNECTION,
    header::UPGRADE,
    header::SEC_WEBSOCKET_KEY,
    header::SEC_WEBSOCKET_VERSION,
    header::SEC_WEBSOCKET_ACCEPT,
    header::SEC_WEBSOCKET_EXTENSIONS,
    HeaderName::from_static("x-stream-protocol-version"),
    HeaderName::from_static("x-accepted-stream-protocol-versions"),
];

/// The connect options that admission sees: an object of the subresource's kind. `below` is the part of the path that
/// belongs to the proxied server, if any.
fn options(call: &RequestScope<'_>, query: &Query, below: Option<&str>) -> Value {
    let (group, version, kind) = call.subresource.and_then(|subresource| subresource.body).unwrap_or_default();
    let api_version = GroupVersion { group, version }.to_string();
    let mut options = json!({"kind": kind, "apiVersion": api_version});
    for field in ["stdin", "stdout", "stderr", "tty"] {
        if query.flag(field) == Some(true) {
            options[field] = json!(true);
        }
    }
    for (field, text) in [("container", query.text("container")), ("path", below.unwrap_or(query.text("path")))] {
        if !text.is_empty() {
            options[field] = json!(text);
        }
    }
    let command: Vec<&str> = query.all("command").collect();
    let ports: Vec<i64> = query.all("ports").filter_map(|port| port.parse().ok()).collect();
    if !command.is_empty() {
        options["command"] = json!(command);
    }
    if !ports.is_empty() {
        options["ports"] = json!(ports);
    }
    options
}

impl RequestHandler {
    /// Runs admission for the connection.
    pub(super) async fn admit_connect(
        &self,
        ctx: &mut RequestContext<'_>,
        call: &mut RequestScope<'_>,
    ) -> Result<(), ApiError> {
        let proxied = call.subresource.is_some_and(|sub| matches!(sub.what, SubresourceKind::Proxy(_)));
        let below = proxied.then(|| proxy::location::below(ctx.head.uri.path(), call.row.namespaced));
        let options = options(call, ctx.head.query, below.as_deref());
        let work = Box::pin(self.deps.registry.admit_connect(call, options));
        let admitted = self.run_fairly(None, ctx, work).await;
        ctx.warnings.append(&mut call.warnings);
        admitted
    }
}

/// The client's connection, as far as an upgrade needs it.
#[derive(Debug, Default)]
pub(super) struct ClientConnection {
    /// Resolves to the connection after the 101 is sent. `None` when the connection cannot be upgraded.
    pub(super) upgrade: Option<OnUpgrade>,
    pub(super) session: SessionGuards,
}

/// Held until a session ends: its entry in the connection table, and its count in the gauge of long-running requests.
#[derive(Debug, Default)]
pub(super) struct SessionGuards {
    pub(super) peer: Option<Peer>,
    pub(super) gauge_guard: Option<GaugeGuard>,
    /// One of its user's upgraded connections.
    pub(super) permit: Option<UserPermit>,
}

impl RequestHandler {
    /// Takes the client's connection for a session, as one of its user's. `system:masters` are trusted with all.
    fn upgrade(&self, ctx: &mut RequestContext<'_>) -> Result<OnUpgrade, ApiError> {
        let Some(upgrade) = ctx.connection.upgrade.take() else {
            return Err(ApiError::BadRequest("this connection cannot be upgraded: use HTTP/1.1".into()));
        };
        if ctx.user.is_in(MASTERS) {
            return Ok(upgrade);
        }
        let permit = self.sessions.try_acquire(&ctx.user.name).ok_or_else(|| {
            let max = self.sessions.max();
            ApiError::TooManyRequests(
                format!("this user has {max} upgraded connections already; end one, or try again"),
                1,
            )
        })?;
        ctx.connection.session.permit = Some(permit);
        Ok(upgrade)
    }
}

/// Converts the client's `ports` into the kubelet's `port` parameters.
fn node_query(query: &Query) -> Result<String, ApiError> {
    let bad = |text: &str| {
        let message = format!("strconv.ParseInt: parsing {text:?}: invalid syntax");
        ApiError::BadRequest(message)
    };
    let mut ports = Vec::new();
    for text in query.all("ports").flat_map(|value| value.split(',')).filter(|text| !text.is_empty()) {
        ports.push(text.parse::<i32>().map_err(|_| bad(text))?);
    }
    if ports.len() > PORTS_MAX {
        return Err(ApiError::BadRequest(format!("at most {PORTS_MAX} ports can be forwarded at once")));
    }
    Ok(ports.iter().map(|port| format!("port={port}")).collect::<Vec<_>>().join("&"))
}

/// The kind of stream that a connection carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ConnectKind {
    Ports,
    Session,
}

impl ConnectKind {
    fn of(call: &RequestScope<'_>) -> Self {
        match call.subresource.map(|sub| sub.name) {
            Some("exec" | "attach") => Self::Session,
            _ => Self::Ports,
        }
    }
}

/// The request target on the kubelet.
fn node_target(call: &RequestScope<'_>, pod: &Value, query: &Query) -> Result<String, ApiError> {
    let RequestScope { namespace, name, .. } = call;
    Ok(match ConnectKind::of(call) {
        ConnectKind::Ports => format!("/portForward/{namespace}/{name}?{}", node_query(query)?),
        ConnectKind::Session => {
            let container = logs::container(pod, query.text("container"))?;
            let what = call.subresource.map_or("exec", |sub| sub.name);
            format!("/{what}/{namespace}/{name}/{container}?{}", session_query(query))
        }
    })
}

/// The session parameters of the kubelet, as upstream names them.
fn session_query(query: &Query) -> String {
    let flags = [("stdin", "input"), ("stdout", "output"), ("stderr", "error"), ("tty", "tty")];
    let flags = flags.iter().filter(|(from, _)| query.flag(from) == Some(true)).map(|(_, to)| format!("{to}=1"));
    let command = query.all("command").map(|argument| {
        let argument = percent_encoding::utf8_percent_encode(argument, percent_encoding::NON_ALPHANUMERIC);
        format!("command={argument}")
    });
    flags.chain(command).collect::<Vec<_>>().join("&")
}

/// Rejects the session if the pod's annotation denies exec and attach for the container.
fn check_sessions(of: GroupResource, pod: &Value, container: &str) -> Result<(), ApiError> {
    let name = format!("{}{container}", names::EXEC);
    let value = pod["metadata"]["annotations"][&name].as_str().unwrap_or_default();
    if value.trim() != "deny" {
        return Ok(());
    }
    let pod = pod["metadata"]["name"].as_str().unwrap_or_default();
    let why = format!("exec, cp and attach of container {container:?} are denied by the pod's annotation {name}");
    Err(ApiError::Forbidden(of, pod.to_owned(), why))
}

/// The handshake headers, without the subprotocol that carries a token.
fn handshake(from: &HeaderMap) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for name in HANDSHAKE {
        for value in from.get_all(&name) {
            headers.append(name.clone(), value.clone());
        }
    }
    forward_subprotocols(from, &mut headers);
    headers
}

/// Forwards the offered subprotocols, except the one that carries a token for this server.
pub(super) fn forward_subprotocols(from: &HeaderMap, to: &mut HeaderMap) {
    to.remove(header::SEC_WEBSOCKET_PROTOCOL);
    let offered = from.get_all(header::SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|value| value.to_str().ok());
    let kept: Vec<&str> = offered
        .flat_map(|value| value.split(',').map(str::trim))
        .filter(|protocol| !protocol.is_empty() && !protocol.starts_with(websocket_token::PREFIX))
        .collect();
    if let (false, Ok(value)) = (kept.is_empty(), HeaderValue::try_from(kept.join(", "))) {
        to.insert(header::SEC_WEBSOCKET_PROTOCOL, value);
    }
}

impl RequestHandler {
    /// Answers a handshake with one of the subprotocols that are `supported`, and sends `messages` of the chosen one over
    /// the WebSocket.
    pub(super) fn serve_messages<S>(
        &self,
        ctx: &mut RequestContext<'_>,
        supported: &[&'static str],
        messages: impl FnOnce(&'static str) -> S,
    ) -> Result<Response<Body>, ApiError>
    where
        S: Stream<Item = std::io::Result<OutgoingMessage>> + Send + 'static,
    {
        let mut offered = ctx.head.headers.clone();
        forward_subprotocols(ctx.head.headers, &mut offered);
        let taken = websocket::handshake(&offered, supported);
        let taken = taken.map_err(|why| ApiError::BadRequest(why.to_string()))?;
        let upgrade = self.upgrade(ctx)?;
        let session = std::mem::take(&mut ctx.connection.session);
        let messages = messages(taken.protocol);
        tokio::spawn(send_messages(upgrade, self.deps.env.clone(), messages, session, self.stop.clone()));
        let mut response = Response::new(Body::empty());
        *response.status_mut() = http::StatusCode::SWITCHING_PROTOCOLS;
        response.headers_mut().extend(taken.headers);
        Ok(response)
    }

    /// Upgrades the client's connection and proxies it to the pod's kubelet.
    pub(super) async fn connect(
        &self,
        ctx: &mut RequestContext<'_>,
        call: &RequestScope<'_>,
    ) -> Result<Response<Body>, ApiError> {
        if ctx.info.verb != "create" {
            let fields = exact_fields(ctx.info);
            let create = Attributes { verb: "create", ..attributes(ctx.info, &fields) };
            self.deps.authorizer.check(&*self.deps.registry.objects, ctx.user, &create).await?;
        }
        let pod = self.pod(call).await?;
        if let ConnectKind::Session = ConnectKind::of(call) {
            let container = logs::container(&pod, ctx.head.query.text("container"))?;
            check_sessions(GroupResource::new(&*call.row.group, &*call.row.plural), &pod, &container)?;
        }
        let Some((node_name, at)) = self.node_of(&pod)? else {
            return Err(ApiError::BadRequest(format!("pod {} does not have a host assigned", call.name)));
        };
        let target = node_target(call, &pod, ctx.head.query)?;
        if upgrade_of(ctx.head.headers).is_none() {
            return Err(ApiError::BadRequest("Upgrade request required".into()));
        }
        let by_websocket = wants_websocket(ctx.head.headers);
        if let (true, Some(subresource)) = (by_websocket, call.subresource) {
            self.deps.metrics.websocket(subresource.name);
        }
        let upgrade = self.upgrade(ctx)?;
        let mut request = Request::post(&target).header(header::HOST, at.host());
        if ctx.info.verb == "get" {
            request = request.method("GET");
        }
        if let Some(headers) = request.headers_mut() {
            headers.extend(handshake(ctx.head.headers));
        }
        let request = request.body(Empty::<Bytes>::new()).map_err(|error| ApiError::BadRequest(error.to_string()))?;
        let mut answer =
            self.deps.kubelets.send(&at, request).await.map_err(|why| {
                ApiError::ServiceUnavailable(format!("error dialing backend: node {node_name}: {why}"))
            })?;
        let status = answer.status();
        let headers = handshake(answer.headers());
        if status != StatusCode::SWITCHING_PROTOCOLS {
            let is_json = answer.headers().get(header::CONTENT_TYPE).is_some_and(|kind| kind == "application/json");
            let kind = if is_json { "application/json" } else { "text/plain; charset=utf-8" };
            let text = kubelets::error_text(answer.into_body()).await;
            let mut response = respond::bytes(status.as_u16(), kind, Body::from(text));
            response.headers_mut().extend(headers);
            response.headers_mut().remove(header::CONNECTION);
            return Ok(response);
        }
        let node = hyper::upgrade::on(&mut answer);
        let session = std::mem::take(&mut ctx.connection.session);
        tokio::spawn(copy_upgraded(upgrade, node, session, self.stop.clone()));
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        response.headers_mut().extend(headers);
        Ok(response)
    }
}

/// Sends messages over a connection that is upgraded to a WebSocket, until either side closes, or until `stop`.
pub(super) async fn send_messages(
    client: OnUpgrade,
    env: Env,
    messages: impl Stream<Item = std::io::Result<OutgoingMessage>>,
    session: SessionGuards,
    stop: CancellationToken,
) {
    let sent = async {
        let client = TokioIo::new(client.await.map_err(std::io::Error::other)?);
        websocket::send(client, &env, messages).await
    };
    tokio::select! {
        done = sent => {
            if let Err(error) = done {
                tracing::debug!(%error, "sending messages over a WebSocket failed");
            }
        }
        () = stop.cancelled() => {}
    }
    drop(session);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn ports_are_read_as_upstream_reads_them() {
        let read = |query: &str| node_query(&Query::parse(query)).map_err(|error| error.status().message);
        assert_eq!(read(""), Ok(String::new()));
        assert_eq!(read("ports=80,81&ports=82"), Ok("port=80&port=81&port=82".into()));
        assert_eq!(read("ports=x"), Err("strconv.ParseInt: parsing \"x\": invalid syntax".into()));
        assert!(read(&format!("ports={}", vec!["1"; PORTS_MAX + 1].join(","))).is_err());
    }

    #[test]
    fn a_session_is_passed_on_as_upstream_passes_it() {
        let to =
            session_query(&Query::parse("stdin=true&stdout=1&stderr=false&tty=&command=sh&command=-c&command=a%26b+c"));
        assert_eq!(to, "input=1&output=1&tty=1&command=sh&command=%2Dc&command=a%26b%20c");
        assert_eq!(session_query(&Query::parse("stdout=0&container=x")), "");
    }

    #[test]
    fn an_annotation_denies_sessions_of_its_container() {
        let pod = |value: &str| json!({"metadata": {"name": "p", "annotations": {"exec.coracle.dev/c": value}}});
        let check =
            |value: &str, container: &str| check_sessions(GroupResource::new("", "things"), &pod(value), container);
        let status = check("deny", "c").unwrap_err().status();
        let says = "things \"p\" is forbidden: exec, cp and attach of container \"c\" are denied by the pod's annotation \
                    exec.coracle.dev/c";
        assert_eq!((status.code, status.message.as_str()), (403, says));
        assert!(check("deny", "other").is_ok() && check("image", "c").is_ok());
    }

    #[test]
    fn a_handshake_passes_and_nothing_else_does() {
        let mut from = HeaderMap::new();
        for (name, value) in [
            ("authorization", "Bearer secret"),
            ("cookie", "a=b"),
            ("connection", "Upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-key", "k"),
            ("sec-websocket-protocol", "base64url.bearer.authorization.k8s.io.c2VjcmV0, v4.channel.k8s.io"),
        ] {
            from.insert(name, HeaderValue::from_static(value));
        }
        let to = handshake(&from);
        assert_eq!(to.len(), 4);
        assert_eq!(to["sec-websocket-protocol"], "v4.channel.k8s.io");
    }
}
