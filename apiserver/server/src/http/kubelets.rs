//! The client for kubelets: TLS with a client certificate of the server, at the address in the Node's status, over
//! pooled connections.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body::Body;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use machinery_api::ApiError;
use machinery_api::error::GroupResource;
use machinery_env::Env;
use machinery_serve::descriptors::{Class, Descriptors};
use machinery_serve::dial;
use machinery_serve::dial::idle::{IdleConnections, IdleLimits, Reusable, WhenFull};
use machinery_serve::dial::tls::{ClientTls, Identity as ClientIdentity};
use machinery_serve::dial::trust::Trust;
use machinery_serve::framing::HEADERS_MAX;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::handle::RequestHandler;
use crate::registry::RequestScope;
use apiserver_auth::pki::{Identity, PkiError};
use apiserver_resources::objects::ObjectReader;

/// The connect timeout, after which a node counts as unreachable.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The maximum time until a response's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// The default kubelet port, where the Node's status has none.
const KUBELET_PORT: u64 = 10250;

/// The maximum number of bytes of a kubelet's error response that is forwarded.
const ERROR_BYTES_MAX: usize = 4096;

/// The limits of idle connections, so that logs, sessions and metrics do not pay a TLS handshake each.
const IDLE: IdleLimits = IdleLimits {
    // To one node: a burst need not keep all of its connections.
    per_key_max: 4,
    max: 64,
    // Shorter than the kubelet's, so that the kubelet does not close a connection while a request is sent.
    idle_max: Duration::from_secs(60),
    age_max: Duration::from_secs(600),
    when_full: WhenFull::ClosesOldest,
};

/// The body of a request to a node.
type RequestBody = UnsyncBoxBody<Bytes, BoxError>;
type BoxError = Box<dyn std::error::Error + Send + Sync>;
/// A connection to a node without a response in progress.
type Connection = SendRequest<RequestBody>;

/// The client for kubelets; clones share one pool.
#[derive(Clone)]
pub struct Kubelets {
    /// Trusts the nodes' certificates and presents the server's own. `None` disables access to nodes.
    pub tls: Option<ClientTls>,
    idle: Arc<NodeConnections>,
}

/// The idle connections, and the pool's clock.
struct NodeConnections {
    pool: Mutex<IdleConnections<NodeAddress, Connection>>,
    env: Env,
}

impl NodeConnections {
    fn new(env: Env) -> Self {
        // Each connection also takes a descriptor of the kubelet in this process, if there is one.
        let max = IDLE.max.min(Descriptors::process().max(Class::Node) / 4);
        Self { pool: Mutex::new(IdleConnections::new(IdleLimits { max, ..IDLE })), env }
    }

    fn pool(&self) -> MutexGuard<'_, IdleConnections<NodeAddress, Connection>> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Duration {
        self.env.elapsed()
    }

    fn take(&self, to: &NodeAddress) -> Option<(Connection, Duration)> {
        take_idle(&mut self.pool(), to, self.now())
    }

    fn keep(&self, to: NodeAddress, connection: Connection, created_at: Duration) {
        let now = self.now();
        let mut pool = self.pool();
        pool.sweep(now);
        pool.keep(to, connection, created_at, now);
    }
}

/// Takes a connection to a node, with its creation time. Those to a former Node at the same address are closed.
fn take_idle<C: Reusable>(
    pool: &mut IdleConnections<NodeAddress, C>,
    to: &NodeAddress,
    now: Duration,
) -> Option<(C, Duration)> {
    pool.sweep(now);
    pool.retain(|idle| idle == to || !idle.has_address_of(to));
    pool.take(to, now)
}

/// The address of a node's kubelet.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct NodeAddress {
    /// The Node's uid: a new Node at the same address is another node.
    uid: String,
    name: String,
    address: String,
    port: u16,
}

impl NodeAddress {
    /// From the Node's status; `None` without an InternalIP.
    pub(crate) fn of(node: &Value) -> Option<Self> {
        let addresses = node["status"]["addresses"].as_array()?;
        let address = addresses.iter().find(|a| a["type"] == "InternalIP")?["address"].as_str()?.to_owned();
        let port = node["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"].as_u64().filter(|p| *p > 0);
        let text = |field: &str| node["metadata"][field].as_str().unwrap_or_default().to_owned();
        Some(Self {
            uid: text("uid"),
            name: text("name"),
            address,
            port: u16::try_from(port.unwrap_or(KUBELET_PORT)).ok()?,
        })
    }

    /// Whether address and port are equal, whichever Node they belong to.
    fn has_address_of(&self, other: &Self) -> bool {
        (&self.address, self.port) == (&other.address, other.port)
    }

    pub(super) const fn port(&self) -> u16 {
        self.port
    }

    /// The name that the kubelet's certificate must have: its address. A loopback address is every machine's, and no
    /// certificate is proof of it: there it is the Node's name.
    fn server_name(&self) -> Result<ServerName<'static>, String> {
        let is_loopback = self.address.parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback());
        let name = if is_loopback { &self.name } else { &self.address };
        ServerName::try_from(name.clone()).map_err(|error| error.to_string())
    }

    /// The host part of a URL.
    pub(crate) fn host(&self) -> String {
        let Self { address, port, .. } = self;
        if address.contains(':') { format!("[{address}]:{port}") } else { format!("{address}:{port}") }
    }
}

impl Kubelets {
    /// Trusts certificates of the authority `ca_pem`, and presents `identity`.
    pub fn new(env: &Env, ca_pem: &str, identity: &Identity) -> Result<Self, PkiError> {
        let failed = |why: &dyn std::fmt::Display| PkiError::Issue(why.to_string());
        let mut roots = rustls::RootCertStore::empty();
        let ca = CertificateDer::from_pem_slice(ca_pem.as_bytes()).map_err(|e| failed(&e))?;
        roots.add(ca).map_err(|e| failed(&e))?;
        let (chain, key) = identity.der()?;
        let trust = Trust::authorities(roots).map_err(|e| failed(&e))?;
        let tls = ClientTls::new(trust, ClientIdentity::Fixed(chain, key)).map_err(|e| failed(&e))?;
        Ok(Self { tls: Some(tls), idle: Arc::new(NodeConnections::new(env.clone())) })
    }

    /// Without access to nodes.
    #[must_use]
    pub fn disabled(env: &Env) -> Self {
        Self { tls: None, idle: Arc::new(NodeConnections::new(env.clone())) }
    }

    /// Sends a request and waits for the response's head. A 101 can be upgraded (`hyper::upgrade::on`); other
    /// connections return to the pool once the body has been read.
    pub(crate) async fn send<B>(&self, to: &NodeAddress, request: Request<B>) -> Result<Response<Incoming>, String>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let answer = self.idle.env.timeout(HEAD_TIMEOUT, self.send_without_timeout(to, request)).await;
        answer.map_err(|_| "the node takes too long to answer".to_owned())?
    }

    /// The same for a proxied request: without a timeout for the response's head.
    pub(super) async fn send_without_timeout<B>(
        &self,
        to: &NodeAddress,
        request: Request<B>,
    ) -> Result<Response<Incoming>, String>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let mut request = request.map(|body| body.map_err(Into::into).boxed_unsync());
        // A response may precede the end of the request's body, so a connection with a request body is not pooled.
        let keeps = request.body().is_end_stream();
        while keeps && let Some((connection, created_at)) = self.idle.take(to) {
            match self.send_over(to, connection, Some(created_at), request).await {
                Ok(answer) => return Ok(answer),
                // The node closed the connection before anything was sent.
                Err((_, Some(back))) => request = back,
                Err((why, None)) => return Err(why),
            }
        }
        let created_at = self.idle.now();
        let connection = handshake(self.connect(to).await?).await?;
        self.send_over(to, connection, keeps.then_some(created_at), request).await.map_err(|(why, _)| why)
    }

    async fn connect(&self, to: &NodeAddress) -> Result<TlsStream<TcpStream>, String> {
        let tls = self.tls.as_ref().ok_or("this server has no client certificate for nodes")?;
        let server = to.server_name()?;
        let connect = async {
            let socket = dial::tcp(&to.address, to.port).await.map_err(|e| e.to_string())?;
            tls.connect(server, socket).await.map_err(|e| e.to_string())
        };
        self.idle.env.timeout(CONNECT_TIMEOUT, connect).await.map_err(|_| "connecting took too long")?
    }

    /// Sends a request over a connection. With `created_at`, its creation time, the connection returns to the pool once the
    /// response has been read. The error holds the request if nothing of it was sent.
    async fn send_over(
        &self,
        to: &NodeAddress,
        mut connection: Connection,
        created_at: Option<Duration>,
        request: Request<RequestBody>,
    ) -> Result<Response<Incoming>, (String, Option<Request<RequestBody>>)> {
        let answer = connection.try_send_request(request).await.map_err(|mut error| {
            let back = error.take_message();
            (error.into_error().to_string(), back)
        })?;
        if let Some(created_at) = created_at.filter(|_| answer.status() != StatusCode::SWITCHING_PROTOCOLS) {
            let (idle, to) = (self.idle.clone(), to.clone());
            tokio::spawn(async move {
                // This fails if the connection ends with the response, or if the response is dropped.
                if connection.ready().await.is_ok() {
                    idle.keep(to, connection, created_at);
                }
            });
        }
        Ok(answer)
    }

    /// Opens a byte stream that the kubelet serves at `path`; the error is the kubelet's text.
    pub(crate) async fn stream(
        &self,
        to: &NodeAddress,
        path: &str,
    ) -> Result<impl AsyncRead + AsyncWrite + Unpin + Send + use<>, String> {
        let request = Request::get(path)
            .header(header::HOST, to.host())
            .header(header::CONNECTION, "Upgrade")
            .header(header::UPGRADE, "tcp")
            .body(Empty::<Bytes>::new())
            .map_err(|e| e.to_string())?;
        let mut answer = self.send(to, request).await?;
        if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
            return hyper::upgrade::on(&mut answer).await.map(TokioIo::new).map_err(|e| e.to_string());
        }
        let message = error_text(answer.into_body()).await;
        Err(String::from_utf8_lossy(&message).trim_end().to_owned())
    }
}

/// HTTP/1.1 over a stream. The connection lives as long as its sender, or the response in progress.
async fn handshake<B>(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Result<SendRequest<B>, String>
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let mut client = hyper::client::conn::http1::Builder::new();
    client.max_headers(HEADERS_MAX);
    let (sender, connection) = client.handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "a connection to a node ended");
        }
    });
    Ok(sender)
}

/// Sends a request over a stream of its own, and waits for the response's head. The stream ends with the response's
/// body: when the client disconnects, the body is dropped and so is the connection.
pub(super) async fn send_over_stream<B>(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<B>,
) -> Result<Response<Incoming>, String>
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    handshake(stream).await?.send_request(request).await.map_err(|e| e.to_string())
}

/// The text of a kubelet's error response; empty if it exceeds the limit.
pub(super) async fn error_text(body: Incoming) -> Bytes {
    let collected = Limited::new(body, ERROR_BYTES_MAX).collect().await;
    collected.map(|collected| collected.to_bytes()).unwrap_or_default()
}

impl RequestHandler {
    /// The pod of a request.
    pub(super) async fn pod(&self, call: &RequestScope<'_>) -> Result<Arc<Value>, ApiError> {
        self.deps.registry.sync_cache().await?;
        self.deps.registry.objects.get("", "pods", call.namespace, call.name).ok_or_else(|| call.not_found())
    }

    /// The name and the kubelet address of the pod's node; `None` before the pod is bound.
    pub(super) fn node_of(&self, pod: &Value) -> Result<Option<(String, NodeAddress)>, ApiError> {
        let Some(name) = pod["spec"]["nodeName"].as_str().filter(|name| !name.is_empty()) else { return Ok(None) };
        let node = self.deps.registry.objects.get("", "nodes", "", name);
        // Upstream's text: it wraps the lookup of the node as one of the pod.
        let node = node.ok_or_else(|| ApiError::NotFound(GroupResource::new("", "pods"), name.to_owned()))?;
        let address = NodeAddress::of(&node)
            .ok_or_else(|| ApiError::ServiceUnavailable(format!("node {name} has no address to reach")))?;
        Ok(Some((name.to_owned(), address)))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_node_is_at_its_reported_address() {
        let at = |address: &str, port: Value| {
            let addresses = json!([{"type": "Hostname", "address": "n"}, {"type": "InternalIP", "address": address}]);
            let endpoints = json!({"kubeletEndpoint": {"Port": port}});
            NodeAddress::of(&json!({"status": {"addresses": addresses, "daemonEndpoints": endpoints}}))
                .map(|at| at.host())
        };
        assert_eq!(at("127.0.0.2", json!(1234)).as_deref(), Some("127.0.0.2:1234"));
        assert_eq!(at("::1", Value::Null).as_deref(), Some("[::1]:10250"));
        assert_eq!(at("127.0.0.2", json!(70_000)), None);
        assert_eq!(NodeAddress::of(&json!({})), None);
    }

    /// A connection that is always ready.
    #[derive(Debug, PartialEq)]
    struct Open(u32);

    impl Reusable for Open {
        fn is_ready(&mut self) -> bool {
            true
        }

        fn is_closed(&mut self) -> bool {
            false
        }
    }

    #[test]
    fn a_node_that_was_created_again_gets_no_connection_of_its_predecessor() {
        let node = |uid: &str| {
            let status = json!({"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]});
            NodeAddress::of(&json!({"metadata": {"uid": uid}, "status": status})).unwrap()
        };
        let (mut pool, now) = (IdleConnections::new(IDLE), Duration::from_secs(1));
        pool.keep(node("a"), Open(1), Duration::ZERO, Duration::ZERO);
        assert_eq!(take_idle(&mut pool, &node("b"), now), None);
        assert!(pool.is_empty(), "the former node's connections are closed");
    }

    #[test]
    fn a_loopback_address_proves_no_node() {
        let name = |address: &str| {
            let addresses = json!([{"type": "InternalIP", "address": address}]);
            let node = json!({"metadata": {"name": "n"}, "status": {"addresses": addresses}});
            NodeAddress::of(&node).unwrap().server_name().unwrap().to_str().into_owned()
        };
        assert_eq!(["192.0.2.1", "2001:db8::1"].map(name), ["192.0.2.1", "2001:db8::1"]);
        assert_eq!(["127.0.0.1", "127.64.0.1", "::1", "::ffff:127.0.0.1"].map(name), ["n"; 4]);
    }
}
