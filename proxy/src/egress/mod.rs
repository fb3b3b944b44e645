//! Egress: exchanges with destinations that are no pod of the cluster, over the real network, and with the API server.
//!
//! Rejects the host's loopback, link-local and other special addresses, and the cluster's own, after name resolution,
//! so that no name leads a guest to them.

pub(crate) mod external;
pub(crate) mod http1;
pub(crate) mod pod_limit;
mod pool;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use http::header::{CONNECTION, UPGRADE};
use http::{HeaderValue, Request, Response, StatusCode, Version};
use http_body::Body as _;
use http_body_util::BodyExt as _;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use ipnet::IpNet;
use machinery_env::Env;
use machinery_rules::reserved_address::is_reserved;
use machinery_serve::control_frames::Limited;
use machinery_serve::descriptors::{Class, DescriptorPermit, Descriptors};
use machinery_serve::dial::tls::{ClientTls, Identity};
use machinery_serve::dial::trust::Trust;
use machinery_serve::framing::{self, WantsUpgrade};
use machinery_serve::joined::JoinedBody;
use machinery_serve::net::{Body, BoxError, Caller, DialError, Io, Peer, Stream, empty_body};
use machinery_serve::request_head::{to_http1, to_http2};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;

use crate::connection::lifetime::{ConnectionLifetime, splice};
use crate::egress::external::ExternalResolver;
use crate::egress::http1::Http1;
use crate::egress::pod_limit::{Pod, PodLimit, PodPermit};
use crate::egress::pool::{Http2, Pool};
use crate::routing::table::AppProtocol;

/// Maximum concurrent exchanges with external destinations, of all guests together: bounds file handles.
const EXCHANGES_MAX: usize = 256;
/// Maximum per pod, and per client outside the cluster: three stuck callers leave a quarter to the others.
const EXCHANGES_PER_POD_MAX: usize = 64;
/// Timeout of connecting and the TLS handshake together, over all addresses of a name.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum addresses of a name that are dialled.
const ADDRESSES_MAX: usize = 8;
/// Delay before the next address is dialled in parallel (RFC 8305 §8 recommends it).
const NEXT_ADDRESS_AFTER: Duration = Duration::from_millis(250);
/// Read buffer of a connection, response head included. hyper's own default is 400 KiB.
const BUFFER_BYTES_MAX: usize = 64 << 10;
/// Ping interval of pooled HTTP/2 connections: detects a vanished peer.
const PING_INTERVAL: Duration = Duration::from_secs(30);
/// Timeout of a ping; the connection is closed after it.
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// Interval between two attempts to get a descriptor for a connection to an endpoint.
const DESCRIPTOR_RETRY_INTERVAL: Duration = Duration::from_millis(10);
/// Attempts before a request fails without a descriptor: 1 s in all.
const DESCRIPTOR_ATTEMPTS_MAX: u32 = 100;

/// The cluster's CA is not valid PEM.
#[derive(Debug, thiserror::Error)]
#[error("the cluster's CA is no PEM certificate: {0}")]
pub struct BadCertificate(String);

/// A request without a response.
pub(crate) enum SendError {
    /// No byte of the request was sent; the request is returned for a retry.
    NotSent(Box<Request<Body>>, DialError),
    Lost(DialError),
}

impl SendError {
    fn error(self) -> DialError {
        match self {
            Self::NotSent(_, error) | Self::Lost(error) => error,
        }
    }
}

/// Client for destinations outside the cluster and for endpoints on sockets.
pub(crate) struct Egress {
    tls: ClientTls,
    exchanges: Arc<PodLimit>,
    names: ExternalResolver,
    pool: Pool,
    env: Env,
    /// The cluster's own CIDRs: external names must not resolve into them.
    cluster: Vec<IpNet>,
}

impl std::fmt::Debug for Egress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Egress").finish_non_exhaustive()
    }
}

/// Permit of one exchange, shared by the parts of it that still run.
pub(crate) type Permit = Arc<PodPermit>;

/// Address, protocol and pooling of one connection.
struct EgressTarget<'a> {
    /// The share that the exchange is counted for.
    share: Pod,
    address: SocketAddr,
    /// The name that the caller used: the server name of a TLS connection.
    name: &'a str,
    https: bool,
    /// Whether the connection may be pooled: true for endpoints of a Service, false for external destinations.
    keep: bool,
}

impl Egress {
    pub(crate) fn new(env: &Env, cluster_ca_pem: Option<&str>, cluster: Vec<IpNet>) -> Result<Self, BadCertificate> {
        let bad = |error: &dyn std::fmt::Display| BadCertificate(error.to_string());
        let mut roots = rustls::RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
        if let Some(pem) = cluster_ca_pem {
            for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
                roots.add(certificate.map_err(|error| bad(&error))?).map_err(|error| bad(&error))?;
            }
        }
        let trust = Trust::authorities(roots).map_err(|error| bad(&error))?;
        let tls = ClientTls::new(trust, Identity::Anonymous).map_err(|error| bad(&error))?;
        let exchanges = EXCHANGES_MAX.min(Descriptors::process().max(Class::Outbound));
        Ok(Self {
            tls,
            exchanges: PodLimit::new(EXCHANGES_PER_POD_MAX.min(exchanges.div_ceil(4)), exchanges),
            names: ExternalResolver::of_host(env.clone()),
            pool: Pool::new(env.clone()),
            env: env.clone(),
            cluster,
        })
    }

    /// Sends a request to an external name, given as resolved and as called.
    pub(crate) async fn http(
        &self,
        caller: &Caller,
        (looked_up, name): (&str, &str),
        port: u16,
        https: bool,
        request: Request<Body>,
    ) -> Result<Response<Body>, DialError> {
        let addresses = self.resolve(caller, looked_up).await?;
        let permit = self.permit(pod_limit::pod(caller)).await;
        let address = |ip: &IpAddr| SocketAddr::new(*ip, port);
        let stream = self.connect(addresses.iter().map(address).collect(), name).await?;
        let to = EgressTarget {
            share: pod_limit::pod(caller),
            address: SocketAddr::new(addresses[0], port),
            name,
            https,
            keep: false,
        };
        let sender = self.http1(&to, Stream::Tcp(stream)).await?;
        self.send_http1(&to, sender, false, request, permit).await.map_err(SendError::error)
    }

    /// Sends a request to an external address.
    pub(crate) async fn http_to(
        &self,
        caller: &Caller,
        address: SocketAddr,
        name: &str,
        https: bool,
        request: Request<Body>,
    ) -> Result<Response<Body>, DialError> {
        if self.is_forbidden(address.ip()) {
            return Err(DialError::Denied(address.ip().to_string()));
        }
        let to = EgressTarget { share: pod_limit::pod(caller), address, name, https, keep: false };
        self.exchange(&to, AppProtocol::Http, request).await.map_err(SendError::error)
    }

    /// Sends a request to an endpoint of a Service. The caller has checked `may_dial`.
    pub(crate) async fn to_endpoint(
        &self,
        from: &Peer,
        (name, https): (&str, bool),
        address: SocketAddr,
        app_protocol: AppProtocol,
        request: Request<Body>,
    ) -> Result<Response<Body>, SendError> {
        self.exchange(
            &EgressTarget { share: pod_limit::peer(from), address, name, https, keep: !https },
            app_protocol,
            request,
        )
        .await
    }

    /// Sends a request over a stream to a pod's server of bytes, which may switch protocols.
    pub(crate) async fn over_stream(
        &self,
        from: &Peer,
        stream: Stream,
        address: SocketAddr,
        request: Request<Body>,
    ) -> Result<Response<Body>, SendError> {
        let to = EgressTarget { share: pod_limit::peer(from), address, name: "", https: false, keep: false };
        let permit = self.permit(to.share.clone()).await;
        match self.http1(&to, stream).await {
            Ok(connection) => self.send_http1(&to, connection, false, request, permit).await,
            Err(error) => Err(SendError::NotSent(Box::new(request), error)),
        }
    }

    /// Opens a byte stream to the first address that accepts. The caller has checked the addresses.
    pub(crate) async fn stream(
        &self,
        caller: &Caller,
        addresses: Vec<SocketAddr>,
        name: &str,
    ) -> Result<Stream, DialError> {
        let permit = self.permit(pod_limit::pod(caller)).await;
        let stream = self.connect(addresses, name).await?;
        Ok(Stream::Tcp(stream).holding(permit))
    }

    /// Starts TLS with the authorities of requests.
    pub(crate) async fn start_tls(&self, server: &str, stream: Stream) -> Result<Stream, BoxError> {
        Ok(Stream::Tunnel(Box::new(self.tls.connect_to(server, stream).await?)))
    }

    /// The host's name servers.
    pub(crate) fn names(&self) -> &ExternalResolver {
        &self.names
    }

    #[cfg(test)]
    pub(crate) fn set_names(&mut self, names: ExternalResolver) {
        self.names = names;
    }

    /// The host's first name server.
    pub(crate) fn name_server(&self) -> Option<IpAddr> {
        self.names.first_server()
    }

    /// Whether an external name exists.
    pub(crate) async fn exists(&self, caller: &Caller, name: &str) -> Result<bool, DialError> {
        match self.names.lookup(caller, name).await {
            Ok(_) => Ok(true),
            Err(DialError::NameNotFound(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The addresses of an external name that may be dialled.
    pub(crate) async fn resolve(&self, caller: &Caller, name: &str) -> Result<Vec<IpAddr>, DialError> {
        let mut addresses = self.names.lookup(caller, name).await?;
        addresses.retain(|ip| !self.is_forbidden(*ip));
        if addresses.is_empty() { Err(DialError::Denied(name.to_owned())) } else { Ok(addresses) }
    }

    /// Whether guests must not dial an address.
    pub(crate) fn is_forbidden(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        is_reserved(ip) || self.cluster.iter().any(|cidr| cidr.contains(&ip))
    }

    /// Number of pooled connections.
    #[cfg(test)]
    pub(crate) fn pooled_connections(&self) -> usize {
        self.pool.count()
    }

    pub(crate) async fn permit(&self, share: Pod) -> Permit {
        Arc::new(self.exchanges.acquire(share).await)
    }

    async fn exchange(
        &self,
        to: &EgressTarget<'_>,
        app_protocol: AppProtocol,
        request: Request<Body>,
    ) -> Result<Response<Body>, SendError> {
        let back = |request: Request<Body>, error| SendError::NotSent(Box::new(request), error);
        let permit = self.permit(to.share.clone()).await;
        let wants_upgrade = request.extensions().get::<WantsUpgrade>().is_some();
        let mut request = request;
        if app_protocol == AppProtocol::H2c && to.keep && !wants_upgrade {
            if let Some(sender) = self.pool.shared_http2(to.address) {
                let again = replay(&request);
                match (send_http2(to, sender, request, permit.clone()).await, again) {
                    // The pooled connection has ended: retry on a new one.
                    (Err(SendError::NotSent(back, _)), _) => request = *back,
                    (Err(SendError::Lost(_)), Some(again)) => request = again,
                    (answer, _) => return answer,
                }
            }
            return match self.http2(to).await {
                Ok(sender) => send_http2(to, sender, request, permit).await,
                Err(error) => Err(back(request, error)),
            };
        }
        if to.keep
            && !wants_upgrade
            && let Some(again) = replay(&request)
            && let Some(sender) = self.pool.take_http1(to.address)
        {
            // Pooled connections may end at any moment; a replayable request is retried.
            match self.send_http1(to, sender, true, request, permit.clone()).await {
                Ok(response) => return Ok(response),
                Err(_) => request = again,
            }
        }
        let connected = async {
            let stream = self.connect_to(to).await?;
            self.http1(to, stream).await
        };
        match connected.await {
            Ok(sender) => self.send_http1(to, sender, to.keep, request, permit).await,
            Err(error) => Err(back(request, error)),
        }
    }

    /// Connects to one of the addresses; dials the next one in parallel after `NEXT_ADDRESS_AFTER`.
    async fn connect(&self, addresses: Vec<SocketAddr>, name: &str) -> Result<TcpStream, DialError> {
        let race = async {
            let mut waiting = addresses.iter().copied().take(ADDRESSES_MAX);
            let mut attempts = FuturesUnordered::new();
            let mut failed = None;
            loop {
                if let Some(address) = waiting.next() {
                    attempts.push(async move { TcpStream::connect(address).await.map_err(|error| (address, error)) });
                }
                tokio::select! {
                    attempt = attempts.next() => match attempt {
                        Some(Ok(stream)) => return Ok(stream),
                        Some(Err(error)) => failed = Some(error),
                        None => return Err(failed),
                    },
                    () = self.env.sleep(NEXT_ADDRESS_AFTER), if waiting.len() > 0 => {}
                }
            }
        };
        let fail = |failed: Option<(SocketAddr, std::io::Error)>| match failed {
            Some((address, error)) => DialError::Connection { address: address.to_string(), source: error.into() },
            None => DialError::NameNotFound(name.to_owned()),
        };
        let connected = self.env.timeout(CONNECT_TIMEOUT, race).await;
        let stream = connected.map_err(|_| DialError::Timeout(name.to_owned()))?.map_err(fail)?;
        let _ = stream.set_nodelay(true);
        Ok(stream)
    }

    /// Connects to one address. A poolable connection holds a descriptor permit while it is open.
    async fn connect_to(&self, to: &EgressTarget<'_>) -> Result<Stream, DialError> {
        if !to.keep {
            return Ok(Stream::Tcp(self.connect(vec![to.address], to.name).await?));
        }
        let held = self.acquire_descriptor().await.map_err(|error| to.failed(error.into()))?;
        let stream = self.connect(vec![to.address], to.name).await?;
        Ok(Stream::Tcp(stream).holding(held))
    }

    /// Acquires a descriptor for a connection to an endpoint: closes idle ones first, then waits for those in use.
    async fn acquire_descriptor(&self) -> std::io::Result<DescriptorPermit> {
        let descriptors = Descriptors::process();
        for _ in 0..DESCRIPTOR_ATTEMPTS_MAX {
            if let Ok(held) = descriptors.take(Class::Backends) {
                return Ok(held);
            }
            self.pool.close_idle();
            self.env.sleep(DESCRIPTOR_RETRY_INTERVAL).await;
        }
        descriptors.take(Class::Backends)
    }

    async fn http1(&self, to: &EgressTarget<'_>, stream: Stream) -> Result<Http1, DialError> {
        let shake = async {
            let io: Box<dyn Io> = if to.https {
                let server = to.name.trim_start_matches('[').trim_end_matches(']').to_owned();
                Box::new(self.tls.connect(ServerName::try_from(server)?, stream).await?)
            } else {
                Box::new(stream)
            };
            let mut builder = hyper::client::conn::http1::Builder::new();
            builder.max_buf_size(BUFFER_BYTES_MAX);
            Ok::<_, BoxError>(builder.handshake::<_, Body>(TokioIo::new(io)).await?)
        };
        let connection = self.env.timeout(CONNECT_TIMEOUT, shake).await;
        let connection = connection.map_err(|_| DialError::Timeout(to.address.to_string()))?;
        connection.map(Http1::new).map_err(|error| to.failed(error))
    }

    async fn http2(&self, to: &EgressTarget<'_>) -> Result<Http2, DialError> {
        let stream = self.connect_to(to).await?;
        let mut builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
        builder.timer(TokioTimer::new()).keep_alive_interval(PING_INTERVAL).keep_alive_timeout(PING_TIMEOUT);
        let shake = self
            .env
            .timeout(CONNECT_TIMEOUT, builder.handshake::<_, Body>(TokioIo::new(Limited::of_server(stream))))
            .await;
        let (sender, connection) =
            shake.map_err(|_| DialError::Timeout(to.address.to_string()))?.map_err(|error| to.failed(error.into()))?;
        let address = to.address;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%address, %error, "connection to an endpoint ended");
            }
        });
        self.pool.put_http2(to.address, sender.clone());
        Ok(sender)
    }

    async fn send_http1(
        &self,
        to: &EgressTarget<'_>,
        connection: Http1,
        keep: bool,
        mut request: Request<Body>,
        permit: Permit,
    ) -> Result<Response<Body>, SendError> {
        let lifetime = request.extensions().get::<ConnectionLifetime>().cloned();
        let upgrade = request.extensions_mut().remove::<WantsUpgrade>();
        let client = upgrade.is_some().then(|| hyper::upgrade::on(&mut request));
        if let Err(error) = to_http1(&mut request, upgrade) {
            return Err(SendError::Lost(to.failed(error.into())));
        }
        let (connection, mut response) = match connection.send(request, client.is_some(), to.address).await {
            Ok(answered) => answered,
            Err(error) => return Err(to.classify_send_error(error)),
        };
        let switched = response.status() == StatusCode::SWITCHING_PROTOCOLS;
        let server = (switched && client.is_some()).then(|| hyper::upgrade::on(&mut response));
        let protocol = response.headers().get(UPGRADE).cloned();
        let (mut head, body) = response.into_parts();
        framing::response(&mut head, client.is_some()).map_err(|why| SendError::Lost(to.failed(why.into())))?;
        head.version = Version::HTTP_11;
        if let (Some(client), Some(server)) = (client, server) {
            head.headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
            head.headers.extend(protocol.map(|protocol| (UPGRADE, protocol)));
            tokio::spawn(splice(client, server, lifetime, permit.clone(), to.address));
        }
        let (pool, address) = (self.pool.clone(), to.address);
        let body = connection.body(body, keep.then_some(move |back| pool.put_http1(address, back)), permit);
        Ok(Response::from_parts(head, body))
    }
}

impl EgressTarget<'_> {
    fn failed(&self, source: BoxError) -> DialError {
        DialError::Connection { address: self.address.to_string(), source }
    }

    /// Classifies a send error; returns the request if no byte of it was sent.
    fn classify_send_error(&self, mut error: hyper::client::conn::TrySendError<Request<Body>>) -> SendError {
        let back = error.take_message();
        let error = self.failed(error.into_error().into());
        match back {
            Some(request) => SendError::NotSent(Box::new(request), error),
            None => SendError::Lost(error),
        }
    }
}

async fn send_http2(
    to: &EgressTarget<'_>,
    mut sender: Http2,
    mut request: Request<Body>,
    permit: Permit,
) -> Result<Response<Body>, SendError> {
    if let Err(error) = to_http2(&mut request) {
        return Err(SendError::Lost(to.failed(error.into())));
    }
    let request = request.map(|body| JoinedBody::new(body).boxed_unsync());
    let response = match sender.try_send_request(request).await {
        Ok(response) => response,
        Err(error) => return Err(to.classify_send_error(error)),
    };
    let (mut head, body) = response.into_parts();
    framing::response(&mut head, false).map_err(|why| SendError::Lost(to.failed(why.into())))?;
    let body = body.map_err(Into::into).map_frame(move |frame| {
        let _held = &permit;
        frame
    });
    Ok(Response::from_parts(head, body.boxed_unsync()))
}

/// A copy of an idempotent request without a body, for one retry (RFC 9110 §9.2.2).
fn replay(request: &Request<Body>) -> Option<Request<Body>> {
    if !request.method().is_idempotent() || !request.body().is_end_stream() {
        return None;
    }
    let body = empty_body();
    let mut again = Request::new(body);
    *again.method_mut() = request.method().clone();
    *again.uri_mut() = request.uri().clone();
    *again.headers_mut() = request.headers().clone();
    *again.extensions_mut() = request.extensions().clone();
    Some(again)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_and_its_link_are_not_the_outside() {
        for ip in
            ["127.0.0.1", "127.64.0.1", "0.0.0.0", "169.254.169.254", "::1", "::ffff:127.0.0.1", "fe80::1", "224.0.0.1"]
        {
            assert!(is_reserved(ip.parse().unwrap()), "{ip}");
        }
        assert!(!is_reserved("192.0.2.1".parse().unwrap()));
    }

    #[tokio::test]
    async fn all_addresses_of_a_name_are_tried() {
        let egress = Egress::new(&Env::real(), None, Vec::new()).unwrap();
        let live = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let live = live.local_addr().map(|address| (live, address)).unwrap();
        let dead = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        // A listener with a full queue doesn't answer, like a host behind a firewall.
        let silent = tokio::net::TcpSocket::new_v4().unwrap();
        silent.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let full = silent.listen(0).unwrap();
        let silent = full.local_addr().unwrap();
        let mut queue = vec![TcpStream::connect(silent).await.unwrap()];
        while let Ok(Ok(stream)) = egress.env.timeout(NEXT_ADDRESS_AFTER, TcpStream::connect(silent)).await {
            queue.push(stream);
        }
        let stream = egress.connect(vec![dead, silent, dead, live.1], "a").await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), live.1);
        assert!(matches!(egress.connect(vec![dead, dead], "a").await, Err(DialError::Connection { .. })));
        assert!(matches!(egress.connect(Vec::new(), "a").await, Err(DialError::NameNotFound(_))));
    }

    /// A server of TLS on one end of a pipe, with a certificate for `db.shop`, and the authority of it.
    fn tls_server() -> (Stream, String) {
        let signed = rcgen::generate_simple_self_signed(["db.shop".to_owned()]).unwrap();
        let (pem, chain) = (signed.cert.pem(), vec![signed.cert.der().clone()]);
        let key = rustls::pki_types::PrivateKeyDer::try_from(signed.signing_key.serialize_der()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let config = config.unwrap().with_no_client_auth().with_single_cert(chain, key).unwrap();
        let (near, far) = Stream::pipe();
        tokio::spawn(async move {
            let mut served = tokio_rustls::TlsAcceptor::from(Arc::new(config)).accept(far).await?;
            tokio::io::AsyncWriteExt::write_all(&mut served, b"ready").await?;
            tokio::io::AsyncWriteExt::shutdown(&mut served).await
        });
        (near, pem)
    }

    #[tokio::test]
    async fn tls_over_a_stream_trusts_the_clusters_authority_and_checks_the_name() {
        let (stream, pem) = tls_server();
        let egress = Egress::new(&Env::real(), Some(&pem), Vec::new()).unwrap();
        let mut received = String::new();
        let mut stream = egress.start_tls("db.shop", stream).await.unwrap();
        tokio::io::AsyncReadExt::read_to_string(&mut stream, &mut received).await.unwrap();
        assert_eq!(received, "ready");
        // Another authority, another name, no name.
        assert!(egress.start_tls("db.shop", tls_server().0).await.is_err());
        for server in ["other.shop", "no name"] {
            let (stream, pem) = tls_server();
            let egress = Egress::new(&Env::real(), Some(&pem), Vec::new()).unwrap();
            assert!(egress.start_tls(server, stream).await.is_err(), "{server}");
        }
    }

    #[test]
    fn names_do_not_lead_into_the_cluster() {
        let egress = Egress::new(&Env::real(), None, vec!["10.96.0.0/12".parse().unwrap()]).unwrap();
        for ip in ["10.96.0.1", "::ffff:10.96.0.1", "127.0.0.1", "169.254.169.254"] {
            assert!(egress.is_forbidden(ip.parse().unwrap()), "{ip}");
        }
        assert!(!egress.is_forbidden("192.0.2.1".parse().unwrap()));
    }
}
