//! `pods/NAME/portforward`: a connection that becomes another protocol's, handed through to the node that runs the pod.
//!
//! Who may do so is asked twice: for the request's own verb, and for `create`, as a WebSocket's GET opens a way into the pod
//! (upstream's `AuthorizePodWebsocketUpgradeCreatePermission`). What goes through is the node's and the client's business.

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::Empty;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use machinery_api::ApiError;
use machinery_streaming::websocket::upgrade_of;
use tokio_util::sync::CancellationToken;

use super::handle::{RequestContext, RequestHandler, attributes, exact_fields};
use super::kubelets;
use super::respond;
use crate::auth::Attributes;
use crate::auth::tls::Peer;
use crate::registry::RequestScope;
use crate::request::query::Query;

/// Ports of one WebSocket with numbered channels, of which each takes two.
const PORTS_MAX: usize = 100;
/// The subprotocol by which browsers send a token: it is meant for this server.
pub(super) const BEARER_PROTOCOL: &str = "base64url.bearer.authorization.k8s.io.";
/// Headers of a handshake that pass from the client to the node, and back.
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

/// What an upgrade needs of the client's connection.
#[derive(Debug, Default)]
pub(super) struct ClientConnection {
    /// Resolves to it once the 101 is sent; none where it can't become another protocol's.
    pub(super) upgrade: Option<OnUpgrade>,
    /// Keeps its place among the connections.
    pub(super) peer: Option<Peer>,
}

/// The `port` parameters for the node, of a client's `ports`.
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

/// The headers of a handshake. Of subprotocols, a token's stays here.
fn handshake(from: &HeaderMap) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for name in HANDSHAKE {
        for value in from.get_all(&name) {
            headers.append(name.clone(), value.clone());
        }
    }
    for value in from.get_all(header::SEC_WEBSOCKET_PROTOCOL) {
        let protocols = value.to_str().unwrap_or_default().split(',').map(str::trim);
        let kept: Vec<&str> = protocols.filter(|one| !one.is_empty() && !one.starts_with(BEARER_PROTOCOL)).collect();
        if let (false, Ok(value)) = (kept.is_empty(), HeaderValue::try_from(kept.join(", "))) {
            headers.append(header::SEC_WEBSOCKET_PROTOCOL, value);
        }
    }
    headers
}

impl RequestHandler {
    /// Hands the client's connection through to the pod's node.
    pub(super) async fn connect(
        &self,
        asking: &mut RequestContext<'_>,
        call: &RequestScope<'_>,
    ) -> Result<Response<Body>, ApiError> {
        if asking.info.verb != "create" {
            let fields = exact_fields(asking.info);
            let create = Attributes { verb: "create", ..attributes(asking.info, &fields) };
            self.deps.authorizer.check(&*self.deps.registry.objects, asking.user, &create).await?;
        }
        let pod = self.pod(call).await?;
        let Some((node_name, at)) = self.node_of(&pod)? else {
            return Err(ApiError::BadRequest(format!("pod {} does not have a host assigned", call.name)));
        };
        let query = node_query(asking.asked.query)?;
        if upgrade_of(asking.asked.headers).is_none() {
            return Err(ApiError::BadRequest("Upgrade request required".into()));
        }
        let Some(upgrade) = asking.connection.upgrade.take() else {
            return Err(ApiError::BadRequest("this connection cannot be upgraded: use HTTP/1.1".into()));
        };
        let target = format!("/portForward/{}/{}?{query}", call.namespace, call.name);
        let mut request = Request::post(&target).header(header::HOST, at.host());
        if asking.info.verb == "get" {
            request = request.method("GET");
        }
        if let Some(headers) = request.headers_mut() {
            headers.extend(handshake(asking.asked.headers));
        }
        let request = request.body(Empty::<Bytes>::new()).map_err(|error| ApiError::BadRequest(error.to_string()))?;
        let mut answer =
            self.deps.kubelets.send(&at, request).await.map_err(|why| {
                ApiError::ServiceUnavailable(format!("error dialing backend: node {node_name}: {why}"))
            })?;
        let status = answer.status();
        let headers = handshake(answer.headers());
        if status != StatusCode::SWITCHING_PROTOCOLS {
            let text = kubelets::refusal(answer.into_body()).await;
            let mut response = respond::bytes(status.as_u16(), "text/plain; charset=utf-8", Body::from(text));
            response.headers_mut().extend(headers);
            response.headers_mut().remove(header::CONNECTION);
            return Ok(response);
        }
        let node = hyper::upgrade::on(&mut answer);
        tokio::spawn(hand_through(upgrade, node, asking.connection.peer.take(), self.stop.clone()));
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        response.headers_mut().extend(headers);
        Ok(response)
    }
}

/// Copies between the client and the node until one of them ends, or `stop`.
pub(super) async fn hand_through(client: OnUpgrade, node: OnUpgrade, place: Option<Peer>, stop: CancellationToken) {
    let copied = async {
        let (client, node) = tokio::try_join!(client, node).map_err(std::io::Error::other)?;
        tokio::io::copy_bidirectional(&mut TokioIo::new(client), &mut TokioIo::new(node)).await
    };
    tokio::select! {
        done = copied => {
            if let Err(error) = done {
                tracing::debug!(%error, "a forwarded connection ended");
            }
        }
        () = stop.cancelled() => {}
    }
    drop(place);
}

#[cfg(test)]
mod tests {
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
