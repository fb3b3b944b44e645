//! How nodes are reached: over TLS, with an identity of the server's own, at the address that their Node names.

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
use machinery_api::error::Named;
use machinery_serve::accept::keep_alive;
use machinery_serve::descriptors::{Class, Descriptors};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::handle::RequestHandler;
use super::node_pool::{KEPT_MAX, Pool};
use crate::auth::pki::{Identity, PkiError};
use crate::auth::tls;
use crate::registry::RequestScope;
use apiserver_resources::objects::ObjectReader;

/// A node that doesn't take a connection by then is gone.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A node that doesn't begin to answer by then is stuck.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// Where kubelets listen if their node doesn't say.
const KUBELET_PORT: u64 = 10250;

/// How much of a node's refusal is passed on.
const REFUSAL_BYTES_MAX: usize = 4096;

/// A body on its way to a node.
type Sent = UnsyncBoxBody<Bytes, BoxError>;
type BoxError = Box<dyn std::error::Error + Send + Sync>;
/// A connection to a node, of which no answer is under way.
type Connection = SendRequest<Sent>;

/// How nodes are reached.
#[derive(Clone, Default)]
pub struct Kubelets {
    /// Trusts nodes' certificates and shows the server's own; `None`: nodes can't be reached.
    pub tls: Option<Arc<rustls::ClientConfig>>,
    kept: Arc<Kept>,
}

/// Connections that wait for their next request.
struct Kept {
    pool: Mutex<Pool<Connection>>,
    began: Instant,
}

impl Default for Kept {
    fn default() -> Self {
        // Each has an end in the kubelet of this process, where there is one.
        let max = KEPT_MAX.min(Descriptors::process().max(Class::Node) / 4);
        Self { pool: Mutex::new(Pool::new(max)), began: Instant::now() }
    }
}

impl Kept {
    fn pool(&self) -> MutexGuard<'_, Pool<Connection>> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Duration {
        self.began.elapsed()
    }

    fn take(&self, to: &NodeAddress) -> Option<(Connection, Duration)> {
        self.pool().take(to, self.now(), Connection::is_ready)
    }

    fn keep(&self, to: NodeAddress, connection: Connection, made: Duration) {
        self.pool().keep(to, connection, made, self.now(), |idle| !idle.is_closed());
    }
}

/// Where a node's kubelet listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NodeAddress {
    /// Of the Node: another one at the same place is another node.
    uid: String,
    address: String,
    port: u16,
}

impl NodeAddress {
    /// As the Node says; none where it names no address.
    pub(crate) fn of(node: &Value) -> Option<Self> {
        let addresses = node["status"]["addresses"].as_array()?;
        let address = addresses.iter().find(|a| a["type"] == "InternalIP")?["address"].as_str()?.to_owned();
        let port = node["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"].as_u64().filter(|p| *p > 0);
        let uid = node["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
        Some(Self { uid, address, port: u16::try_from(port.unwrap_or(KUBELET_PORT)).ok()? })
    }

    /// Whether it is the place of `other`, whichever node that is.
    pub(super) fn is_where(&self, other: &Self) -> bool {
        (&self.address, self.port) == (&other.address, other.port)
    }

    /// The port that the kubelet listens on.
    pub(super) const fn port(&self) -> u16 {
        self.port
    }

    /// As in a URL.
    pub(crate) fn host(&self) -> String {
        let Self { address, port, .. } = self;
        if address.contains(':') { format!("[{address}]:{port}") } else { format!("{address}:{port}") }
    }
}

impl Kubelets {
    /// Trusts certificates of the authority `ca_pem`, and shows `identity`.
    pub fn new(ca_pem: &str, identity: &Identity) -> Result<Self, PkiError> {
        let failed = |why: &dyn std::fmt::Display| PkiError::Issue(why.to_string());
        let mut roots = rustls::RootCertStore::empty();
        let ca = CertificateDer::from_pem_slice(ca_pem.as_bytes()).map_err(|e| failed(&e))?;
        roots.add(ca).map_err(|e| failed(&e))?;
        let (chain, key) = identity.der()?;
        let config = rustls::ClientConfig::builder_with_provider(tls::provider())
            .with_safe_default_protocol_versions()
            .map_err(|e| failed(&e))?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)
            .map_err(|e| failed(&e))?;
        Ok(Self { tls: Some(Arc::new(config)), kept: Arc::default() })
    }

    /// Sends a request, and waits for the head of its answer. A 101 can be upgraded (`hyper::upgrade::on`); any other's
    /// connection is kept for the next request once its body was read.
    pub(crate) async fn send<B>(&self, to: &NodeAddress, request: Request<B>) -> Result<Response<Incoming>, String>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let answer = tokio::time::timeout(HEAD_TIMEOUT, self.pass(to, request)).await;
        answer.map_err(|_| "the node takes too long to answer".to_owned())?
    }

    /// The same for somebody else's request: how long he waits is his affair.
    pub(super) async fn pass<B>(&self, to: &NodeAddress, request: Request<B>) -> Result<Response<Incoming>, String>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let mut request = request.map(|body| body.map_err(Into::into).boxed_unsync());
        // What comes with a body may leave some of it behind: such a connection meets no other request.
        let keeps = request.body().is_end_stream();
        while keeps && let Some((connection, made)) = self.kept.take(to) {
            match self.ask(to, connection, Some(made), request).await {
                Ok(answer) => return Ok(answer),
                // The node closed it before anything was sent.
                Err((_, Some(back))) => request = back,
                Err((why, None)) => return Err(why),
            }
        }
        let made = self.kept.now();
        let connection = handshake(self.connect(to).await?).await?;
        self.ask(to, connection, keeps.then_some(made), request).await.map_err(|(why, _)| why)
    }

    async fn connect(&self, to: &NodeAddress) -> Result<TlsStream<TcpStream>, String> {
        let tls = self.tls.clone().ok_or("this server has no identity to show to nodes")?;
        let server = ServerName::try_from(to.address.clone()).map_err(|e| e.to_string())?;
        let connect = async {
            let socket = TcpStream::connect((to.address.as_str(), to.port)).await.map_err(|e| e.to_string())?;
            keep_alive(&socket);
            TlsConnector::from(tls).connect(server, socket).await.map_err(|e| e.to_string())
        };
        tokio::time::timeout(CONNECT_TIMEOUT, connect).await.map_err(|_| "connecting took too long")?
    }

    /// Sends a request over a connection; one that was `made` then is kept when the answer has been read. The request comes
    /// back where nothing of it was sent.
    async fn ask(
        &self,
        to: &NodeAddress,
        mut connection: Connection,
        made: Option<Duration>,
        request: Request<Sent>,
    ) -> Result<Response<Incoming>, (String, Option<Request<Sent>>)> {
        let answer = connection.try_send_request(request).await.map_err(|mut error| {
            let back = error.take_message();
            (error.into_error().to_string(), back)
        })?;
        if let Some(made) = made.filter(|_| answer.status() != StatusCode::SWITCHING_PROTOCOLS) {
            let (kept, to) = (self.kept.clone(), to.clone());
            tokio::spawn(async move {
                // Never where the connection ends with the answer, or the answer is given up.
                if connection.ready().await.is_ok() {
                    kept.keep(to, connection, made);
                }
            });
        }
        Ok(answer)
    }

    /// A byte stream that the kubelet hands out at `path`; the error is what it says instead.
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
        let said = refusal(answer.into_body()).await;
        Err(String::from_utf8_lossy(&said).trim_end().to_owned())
    }
}

/// HTTP/1.1 over a stream. The connection lasts as long as its sender, or the answer under way.
async fn handshake<B>(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Result<SendRequest<B>, String>
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let (sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "a connection to a node ended");
        }
    });
    Ok(sender)
}

/// Sends a request over a stream that is used for nothing else, and waits for the head of its answer. The stream ends with
/// the answer's body: when the client goes, the body is dropped and so is the connection.
pub(super) async fn pass_over<B>(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<B>,
) -> Result<Response<Incoming>, String>
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    handshake(stream).await?.send_request(request).await.map_err(|e| e.to_string())
}

/// What a node says where it doesn't do what it was asked; nothing where it says too much.
pub(super) async fn refusal(body: Incoming) -> Bytes {
    let said = Limited::new(body, REFUSAL_BYTES_MAX).collect().await;
    said.map(|said| said.to_bytes()).unwrap_or_default()
}

impl RequestHandler {
    /// The pod that a request is about.
    pub(super) async fn pod(&self, call: &RequestScope<'_>) -> Result<Arc<Value>, ApiError> {
        self.deps.registry.newest().await?;
        self.deps.registry.objects.get("", "pods", call.namespace, call.name).ok_or_else(|| call.not_found())
    }

    /// The name of the node that a pod is bound to, and where it listens; none before.
    pub(super) fn node_of(&self, pod: &Value) -> Result<Option<(String, NodeAddress)>, ApiError> {
        let Some(name) = pod["spec"]["nodeName"].as_str().filter(|name| !name.is_empty()) else { return Ok(None) };
        let node = self.deps.registry.objects.get("", "nodes", "", name);
        let node = node.ok_or_else(|| ApiError::NotFound(Named::new("", "nodes"), name.to_owned()))?;
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
    fn a_node_is_where_it_says() {
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
}
