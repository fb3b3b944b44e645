//! The TLS listener: accepts hostile clients' connections within limits, and hands each request the peer's identity.
//!
//! As upstream, a client certificate is asked for and never demanded, and one that doesn't verify ends in 401 for the
//! request, not in a broken handshake: so it is checked after the handshake, which only proves possession of its key.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use jiff::Timestamp;
use machinery_env::Env;
use machinery_serve::accept::{Seat, Seats, accept};
use machinery_serve::descriptors::Descriptors;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::CryptoProvider;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::time_provider::TimeProvider;
use rustls::{DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, UnixTime};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use x509_parser::prelude::FromDer;

use super::pki::{Identity, PkiError};
use super::{CREDENTIAL_ID, UserInfo};

/// A client that hasn't finished its handshake by then is gone or hostile.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// HTTP/1.1: from the first byte of a request's head, or the connection's start, to the head's end (upstream's).
const HEADER_TIMEOUT: Duration = Duration::from_secs(32);
/// HTTP/1.1: from the last answer to the first byte of the next request (upstream's).
const KEPT_ALIVE_MAX: Duration = Duration::from_secs(90);
/// HTTP/2: a silent connection is asked this often whether it still lives, and dropped when no answer comes.
const PING_INTERVAL: Duration = Duration::from_secs(30);
/// See [`PING_INTERVAL`].
const PING_TIMEOUT: Duration = Duration::from_secs(15);
/// A connection on which nothing has been asked for this long is closed, so that idle ones don't keep the seats.
const IDLE_MAX: Duration = Duration::from_secs(180);
/// What a client of HTTP/2 begins with.
const HTTP2_BEGINNING: &[u8] = b"PRI * HTTP/2";
/// How often that is looked at.
const IDLE_CHECK: Duration = Duration::from_secs(60);
/// HTTP/2 streams at once per connection (upstream's default).
const STREAMS_MAX: u32 = 250;
/// All header fields of one request: tokens are long, and impersonation adds more.
const HEADER_BYTES_MAX: u32 = 64 * 1024;
/// After the stop signal, requests that still run have this long.
const DRAIN: Duration = Duration::from_secs(2);

/// Who is at the other end of a connection: in each request's extensions.
#[derive(Debug, Clone)]
pub struct Peer {
    /// Where from.
    pub address: SocketAddr,
    /// What its certificate came to.
    pub certificate: PeerCertificate,
    seat: Arc<Seat>,
}

impl Peer {
    /// A request on this connection showed who sent it: the connection no longer makes way for others.
    pub fn identify(&self) {
        self.seat.identify();
    }
}

/// What the peer's certificate came to.
#[derive(Debug, Clone)]
pub enum PeerCertificate {
    /// It sent none.
    Absent,
    /// It verified: this user, until then.
    Verified(Arc<UserInfo>, Timestamp),
    /// It sent one that is expired, of another authority, or not for clients.
    Refused,
}

/// Everything that a listener needs to know.
#[derive(Clone)]
pub struct Acceptor {
    tls: TlsAcceptor,
    verifier: Arc<dyn ClientCertVerifier>,
    env: Env,
    seats: Arc<Seats>,
}

impl std::fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Acceptor(…)")
    }
}

impl Acceptor {
    /// Serves with `serving`, and knows clients by certificates of the authority `ca_pem`.
    pub fn new(env: &Env, serving: &Identity, ca_pem: &str) -> Result<Self, PkiError> {
        let failed = |why: &dyn std::fmt::Display| PkiError::Issue(why.to_string());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        let ca = CertificateDer::from_pem_slice(ca_pem.as_bytes()).map_err(|e| failed(&e))?;
        roots.add(ca).map_err(|e| failed(&e))?;
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
            .allow_unauthenticated()
            .build()
            .map_err(|e| failed(&e))?;
        let (certs, key) = serving.der()?;
        let mut config = ServerConfig::builder_with_details(provider, Arc::new(EnvTime(env.clone())))
            .with_safe_default_protocol_versions()
            .map_err(|e| failed(&e))?
            .with_client_cert_verifier(Arc::new(AnyCertificate(verifier.clone())))
            .with_single_cert(certs, key)
            .map_err(|e| failed(&e))?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        // No resumption: a resumed session would bring back a certificate that was judged at another time.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        let seats = Descriptors::process().api_seats().clone();
        Ok(Self { tls: TlsAcceptor::from(Arc::new(config)), verifier, env: env.clone(), seats })
    }

    fn judge(&self, chain: Option<&[CertificateDer<'_>]>) -> PeerCertificate {
        let Some((leaf, intermediates)) = chain.and_then(<[_]>::split_first) else { return PeerCertificate::Absent };
        let now = UnixTime::since_unix_epoch(Duration::from_secs(self.env.now().as_second().max(0).cast_unsigned()));
        if self.verifier.verify_client_cert(leaf, intermediates, now).is_err() {
            return PeerCertificate::Refused;
        }
        subject(leaf).map_or(PeerCertificate::Refused, |(user, until)| PeerCertificate::Verified(Arc::new(user), until))
    }
}

/// The user that a certificate names, and when it ends.
fn subject(leaf: &CertificateDer<'_>) -> Option<(UserInfo, Timestamp)> {
    let (_, cert) = x509_parser::certificate::X509Certificate::from_der(leaf).ok()?;
    let name = cert.subject().iter_common_name().next()?.as_str().ok()?.to_owned();
    if name.is_empty() {
        return None;
    }
    let groups = cert
        .subject()
        .iter_organization()
        .map(|o| o.as_str().map(str::to_owned))
        .collect::<Result<Vec<_>, _>>()
        .ok()?;
    let until = Timestamp::from_second(cert.validity().not_after.timestamp()).ok()?;
    let id = format!("X509SHA256={}", hex::encode(Sha256::digest(leaf)));
    let extra = std::iter::once((CREDENTIAL_ID.to_owned(), vec![id])).collect();
    Some((UserInfo { name, uid: String::new(), groups, extra }, until))
}

/// Serves until `stop`, then lets running requests end for a moment and returns.
///
/// Each request carries its [`Peer`] in its extensions. `handle` is cloned per connection. Watches should end by
/// themselves on `stop`: what still runs after the drain is cut off. Connections beyond the acceptor's seats wait in the
/// system's queue; one that never showed an identity makes way for them.
pub async fn serve<H, F, B>(listener: TcpListener, acceptor: Acceptor, handle: H, stop: CancellationToken)
where
    H: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<B>> + Send + 'static,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let connections = TaskTracker::new();
    let cut = CancellationToken::new();
    let server = Arc::new(server());
    loop {
        let (socket, address, seat) = tokio::select! {
            () = stop.cancelled() => break,
            accepted = accept(&listener, &acceptor.seats) => accepted,
        };
        let seat = Arc::new(seat);
        let connection =
            connection(socket, address, seat.clone(), acceptor.clone(), server.clone(), handle.clone(), stop.clone());
        let cut = cut.clone();
        connections.spawn(async move {
            tokio::select! {
                () = cut.cancelled() => {}
                () = seat.lost() => tracing::debug!(%address, "a stranger's connection made way for another"),
                () = connection => {}
            }
        });
    }
    drop(listener);
    connections.close();
    if tokio::time::timeout(DRAIN, connections.wait()).await.is_err() {
        cut.cancel();
        connections.wait().await;
    }
}

fn server() -> auto::Builder<TokioExecutor> {
    let mut server = auto::Builder::new(TokioExecutor::new());
    server.http1().timer(TokioTimer::new()).header_read_timeout(KEPT_ALIVE_MAX);
    server
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEADER_BYTES_MAX);
    server
}

async fn connection<H, F, B>(
    socket: TcpStream,
    address: SocketAddr,
    seat: Arc<Seat>,
    acceptor: Acceptor,
    server: Arc<auto::Builder<TokioExecutor>>,
    handle: H,
    stop: CancellationToken,
) where
    H: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<B>> + Send + 'static,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    // Small answers go out at once; a socket that refuses is only slower.
    let _ = socket.set_nodelay(true);
    let handshake = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.tls.accept(socket));
    let stream = tokio::select! {
        () = stop.cancelled() => return,
        done = handshake => match done {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return tracing::debug!(%address, %error, "TLS handshake failed"),
            Err(_) => return tracing::debug!(%address, "TLS handshake took too long"),
        },
    };
    let activity = Arc::new(Activity::new(&acceptor.env));
    let seen = activity.clone();
    let peer = Peer { address, certificate: acceptor.judge(stream.get_ref().1.peer_certificates()), seat };
    if matches!(peer.certificate, PeerCertificate::Verified(..)) {
        peer.identify();
    }
    let service = hyper::service::service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(peer.clone());
        let running = Running::begin(&seen);
        let answer = handle(request);
        async move {
            // The body holds on to it until it has been sent or given up.
            Ok::<_, Infallible>(answer.await.map(|body| Watched { body: Box::pin(body), _running: running }))
        }
    });
    let stream = Heads::new(stream, activity.clone(), HEADER_TIMEOUT);
    let serving = server.serve_connection_with_upgrades(TokioIo::new(stream), service);
    tokio::pin!(serving);
    let ended = loop {
        tokio::select! {
            ended = serving.as_mut() => break ended,
            () = stop.cancelled() => {}
            () = tokio::time::sleep(IDLE_CHECK) => {
                if !activity.is_idle() {
                    continue;
                }
            }
        }
        serving.as_mut().graceful_shutdown();
        break serving.await;
    };
    if let Err(error) = ended {
        tracing::debug!(%address, error, "connection ended");
    }
}

/// What goes on over a connection.
struct Activity {
    env: Env,
    /// Requests that ever began.
    begun: AtomicUsize,
    running: AtomicUsize,
    /// When the last request ended, in seconds of the environment's monotonic clock.
    ended_at: AtomicU64,
}

impl Activity {
    fn new(env: &Env) -> Self {
        let ended_at = AtomicU64::new(env.elapsed().as_secs());
        Self { env: env.clone(), begun: AtomicUsize::new(0), running: AtomicUsize::new(0), ended_at }
    }

    fn is_idle(&self) -> bool {
        let since = self.env.elapsed().as_secs().saturating_sub(self.ended_at.load(Ordering::Acquire));
        self.running.load(Ordering::Acquire) == 0 && since >= IDLE_MAX.as_secs()
    }
}

/// One request on a connection, from its head to the end of its answer.
struct Running(Arc<Activity>);

impl Running {
    fn begin(activity: &Arc<Activity>) -> Self {
        activity.running.fetch_add(1, Ordering::AcqRel);
        activity.begun.fetch_add(1, Ordering::AcqRel);
        Self(activity.clone())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.ended_at.store(self.0.env.elapsed().as_secs(), Ordering::Release);
        self.0.running.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A stream that ends where the head of a request (HTTP/1.1) takes longer than [`HEADER_TIMEOUT`] from its first byte.
struct Heads<S> {
    stream: S,
    activity: Arc<Activity>,
    /// It speaks HTTP/2, which has times of its own.
    http2: bool,
    /// On its way is the head that follows so many requests.
    head: Option<usize>,
    time_max: Duration,
    deadline: Pin<Box<tokio::time::Sleep>>,
}

impl<S> Heads<S> {
    /// A new connection's stream: its first request is due from now on.
    fn new(stream: S, activity: Arc<Activity>, time_max: Duration) -> Self {
        let deadline = Box::pin(tokio::time::sleep(time_max));
        Self { stream, activity, http2: false, head: Some(0), time_max, deadline }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Heads<S> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = into.filled().len();
        let polled = Pin::new(&mut this.stream).poll_read(context, into);
        let fresh = &into.filled()[before..];
        this.http2 |= this.head == Some(0) && fresh.starts_with(HTTP2_BEGINNING);
        if this.http2 {
            return polled;
        }
        let begun = this.activity.begun.load(Ordering::Acquire);
        if this.head.is_some_and(|head| head != begun) {
            this.head = None;
        }
        // What comes while a request runs is its body.
        if !fresh.is_empty() && this.head.is_none() && this.activity.running.load(Ordering::Acquire) == 0 {
            this.head = Some(begun);
            this.deadline.as_mut().reset(tokio::time::Instant::now() + this.time_max);
        }
        if polled.is_pending() && this.head.is_some() && this.deadline.as_mut().poll(context).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Heads<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// A body that counts as running until it is dropped.
struct Watched<B> {
    body: Pin<Box<B>>,
    _running: Running,
}

impl<B: http_body::Body> http_body::Body for Watched<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<B::Data>, B::Error>>> {
        self.body.as_mut().poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}

/// Lets rustls read our clock.
struct EnvTime(Env);

impl std::fmt::Debug for EnvTime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("EnvTime")
    }
}

impl TimeProvider for EnvTime {
    fn current_time(&self) -> Option<UnixTime> {
        let seconds = u64::try_from(self.0.now().as_second()).ok()?;
        Some(UnixTime::since_unix_epoch(Duration::from_secs(seconds)))
    }
}

/// Takes any certificate whose key the client holds; [`Acceptor::judge`] decides what it is worth.
#[derive(Debug)]
struct AnyCertificate(Arc<dyn ClientCertVerifier>);

impl ClientCertVerifier for AnyCertificate {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

/// The provider that every TLS configuration of ours names: no process-wide default is set or used.
#[must_use]
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::pki::Pki;
    use http_body_util::Full;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    async fn start(env: &Env, pki: &Pki) -> (SocketAddr, CancellationToken, tokio::task::JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let acceptor = Acceptor::new(env, pki.serving(), pki.ca_pem()).unwrap();
        let stop = CancellationToken::new();
        let handle = |request: Request<Incoming>| async move {
            let peer = request.extensions().get::<Peer>().cloned().unwrap();
            let who = match peer.certificate {
                PeerCertificate::Absent => "nobody".to_owned(),
                PeerCertificate::Refused => "refused".to_owned(),
                PeerCertificate::Verified(user, _) => format!("{} {:?}", user.name, user.groups),
            };
            Response::new(Full::new(Bytes::from(format!("{who} {:?}", request.version()))))
        };
        let serving = tokio::spawn(serve(listener, acceptor, handle, stop.clone()));
        (address, stop, serving)
    }

    async fn ask(address: SocketAddr, ca_pem: &str, identity: Option<&Identity>) -> String {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(ca_pem.as_bytes()).unwrap()).unwrap();
        let builder = rustls::ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let config = match identity.map(|identity| identity.der().unwrap()) {
            Some((certs, key)) => builder.with_client_auth_cert(certs, key).unwrap(),
            None => builder.with_no_client_auth(),
        };
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let socket = TcpStream::connect(address).await.unwrap();
        let mut stream = connector.connect("kubernetes.default.svc".try_into().unwrap(), socket).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer.split("\r\n\r\n").nth(1).unwrap_or_default().to_owned()
    }

    #[test]
    fn a_connection_is_idle_when_its_last_answer_ended_long_ago() {
        let (env, clock) = Env::seeded(1, Timestamp::UNIX_EPOCH);
        let activity = Arc::new(Activity::new(&env));
        let watch = Running::begin(&activity);
        clock.advance(IDLE_MAX * 2);
        assert!(!activity.is_idle(), "a watch runs");
        drop(watch);
        assert!(!activity.is_idle(), "it has only just ended");
        clock.advance(IDLE_MAX);
        assert!(activity.is_idle());
    }

    #[tokio::test]
    async fn a_head_has_its_time_and_a_body_more() {
        const TIME_MAX: Duration = Duration::from_millis(100);
        let env = Env::real();
        let connection = || {
            let activity = Arc::new(Activity::new(&env));
            let (stream, client) = tokio::io::duplex(64);
            (Heads::new(stream, activity.clone(), TIME_MAX), client, activity)
        };
        let ended = async |heads: &mut Heads<tokio::io::DuplexStream>| heads.read(&mut [0]).await.map_err(|e| e.kind());
        // A connection on which nothing comes.
        let (mut heads, _client, _) = connection();
        assert_eq!(ended(&mut heads).await, Err(io::ErrorKind::TimedOut));
        // Bytes that trickle in buy no time: a writer that never stops is cut off.
        let (mut heads, mut client, activity) = connection();
        let began = env.elapsed();
        let trickle = tokio::spawn(async move {
            while client.write_all(b"x").await.is_ok() {
                tokio::time::sleep(TIME_MAX / 20).await;
            }
        });
        while ended(&mut heads).await.is_ok() {}
        assert!(env.elapsed() - began >= TIME_MAX);
        drop(heads);
        trickle.await.unwrap();
        // A body, and the time to the next request, are not the head's; the next head is.
        let (stream, mut client) = tokio::io::duplex(64);
        let mut heads = Heads::new(stream, activity.clone(), TIME_MAX);
        let request = Running::begin(&activity);
        client.write_all(b"b").await.unwrap();
        assert_eq!(ended(&mut heads).await, Ok(1));
        assert!(tokio::time::timeout(TIME_MAX * 3, ended(&mut heads)).await.is_err());
        drop(request);
        assert!(tokio::time::timeout(TIME_MAX * 3, ended(&mut heads)).await.is_err());
        client.write_all(b"G").await.unwrap();
        assert_eq!(ended(&mut heads).await, Ok(1));
        assert_eq!(ended(&mut heads).await, Err(io::ErrorKind::TimedOut));
        // HTTP/2 has times of its own.
        let (mut heads, mut client, _) = connection();
        client.write_all(HTTP2_BEGINNING).await.unwrap();
        heads.read_exact(&mut [0; 12]).await.unwrap();
        assert!(tokio::time::timeout(TIME_MAX * 3, ended(&mut heads)).await.is_err());
    }

    #[tokio::test]
    async fn peers_are_known_by_their_certificates() {
        let (ours, theirs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let env = Env::real();
        let pki = Pki::open_or_create(ours.path(), &env, &[]).unwrap();
        let other = Pki::open_or_create(theirs.path(), &env, &[]).unwrap();
        let (address, stop, serving) = start(&env, &pki).await;

        // Garbage, and a client that never says anything, harm nobody else.
        let mut garbage = TcpStream::connect(address).await.unwrap();
        garbage.write_all(b"GET / HTTP/1.0\r\n\r\n").await.unwrap();
        let silent = TcpStream::connect(address).await.unwrap();

        assert_eq!(ask(address, pki.ca_pem(), None).await, "nobody HTTP/1.1");
        let admin = ask(address, pki.ca_pem(), Some(pki.admin())).await;
        assert_eq!(admin, "kubernetes-admin [\"system:masters\"] HTTP/1.1");
        let node = pki.issue_client("system:node:n1", "system:nodes").unwrap();
        assert_eq!(ask(address, pki.ca_pem(), Some(&node)).await, "system:node:n1 [\"system:nodes\"] HTTP/1.1");
        assert_eq!(ask(address, pki.ca_pem(), Some(other.admin())).await, "refused HTTP/1.1");
        assert_eq!(
            ask(address, pki.ca_pem(), Some(pki.serving())).await,
            "refused HTTP/1.1",
            "a serving certificate is no client's"
        );

        stop.cancel();
        serving.await.unwrap();
        assert!(TcpStream::connect(address).await.is_err());
        drop(silent);
    }
}
