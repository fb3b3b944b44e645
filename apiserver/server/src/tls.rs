//! The TLS listener: accepts connections of untrusted clients within limits, and attaches the peer's identity to each
//! request. [`PeerVerifier`] verifies client certificates.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use apiserver_auth::certificates::Certificates;
use apiserver_auth::pki::PkiError;
use apiserver_auth::tls::{PeerCertificate, PeerVerifier, revocation_entries};
use apiserver_auth::websocket_token::WebSocketToken;
use apiserver_auth::{Credentials, UserInfo};
use bytes::Bytes;
use http::{Extensions, HeaderMap, HeaderValue, Request, Response, StatusCode};
use machinery_env::Env;
use machinery_serve::accept::{self, ConnectionPermit, Limit, Listener, Seats};
use machinery_serve::connection::RequestBody;
use machinery_serve::descriptors::Descriptors;
use machinery_streaming::websocket::wants_websocket;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

/// The maximum duration of a handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// The maximum time for running requests after the stop signal.
const DRAIN: Duration = Duration::from_secs(2);

/// The remote end of a connection, in each request's extensions.
#[derive(Debug, Clone)]
pub struct Peer {
    pub address: SocketAddr,
    /// The state of its certificate.
    pub certificate: PeerCertificate,
    permit: Arc<ConnectionPermit>,
}

impl Peer {
    /// Marks the connection as authenticated, so that it is no longer closed in favour of others.
    pub fn mark_authenticated(&self) {
        self.permit.mark_authenticated();
    }
}

/// The bearer token that a WebSocket request offers as a subprotocol.
pub(crate) fn websocket_token(headers: &HeaderMap) -> Option<WebSocketToken> {
    if !wants_websocket(headers) {
        return None;
    }
    let offered = headers.get_all(http::header::SEC_WEBSOCKET_PROTOCOL).iter();
    WebSocketToken::read(offered.filter_map(|value| value.to_str().ok()))
}

/// Reads the credentials from a request's extensions ([`UserInfo`], [`Peer`]), headers, and [`websocket_token`].
pub(crate) fn credentials<'a>(
    headers: &'a HeaderMap,
    extensions: &'a Extensions,
    websocket: Option<&'a WebSocketToken>,
) -> Credentials<'a> {
    Credentials {
        in_process: extensions.get::<UserInfo>(),
        certificate: extensions.get::<Peer>().map(|peer| &peer.certificate),
        authorization: headers.get(http::header::AUTHORIZATION).map(HeaderValue::as_bytes),
        websocket,
    }
}

/// The configuration and dependencies of a listener.
#[derive(Clone)]
pub struct Acceptor {
    tls: TlsAcceptor,
    peers: PeerVerifier,
    env: Env,
    seats: Arc<Seats>,
}

impl std::fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Acceptor(…)")
    }
}

impl Acceptor {
    /// Serves with the certificate in `certificates`, and verifies clients against the authority `ca_pem`.
    ///
    /// # Errors
    /// Fails if the authority's certificate is invalid.
    pub fn new(env: &Env, certificates: Arc<Certificates>, ca_pem: &str) -> Result<Self, PkiError> {
        let peers = PeerVerifier::new(env, certificates, ca_pem)?;
        let tls = TlsAcceptor::from(Arc::new(peers.server_config()?));
        let seats = Descriptors::process().api_seats().clone();
        Ok(Self { tls, peers, env: env.clone(), seats })
    }
}

/// Serves until `stop`, then drains running requests for a limited time and returns.
///
/// Where the listener's table is retired instead, they complete. Each request has its [`Peer`] in its extensions. `handle` is cloned per connection. Watches should end on `stop`;
/// requests still running after the drain are aborted. At the process's limit a connection displaces one of a client with
/// more connections, unauthenticated ones first, or is closed.
pub async fn serve<H, F, B>(listener: impl Into<Listener>, acceptor: Acceptor, handle: H, stop: CancellationToken)
where
    H: Fn(Request<RequestBody>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<B>> + Send + 'static,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let limit = Limit::new(&acceptor.seats, "API server");
    let each = |socket, address, permit, ending| {
        let stops = Stops { stop: stop.clone(), ending };
        connection(socket, address, permit, acceptor.clone(), handle.clone(), stops)
    };
    accept::serve(listener.into(), limit, Some(DRAIN), &acceptor.env, &stop, each).await;
}

/// The stop of a server, and the end of a connection, which then completes its requests.
struct Stops {
    stop: CancellationToken,
    ending: CancellationToken,
}

async fn connection<H, F, B>(
    socket: TcpStream,
    address: SocketAddr,
    permit: Arc<ConnectionPermit>,
    acceptor: Acceptor,
    handle: H,
    stops: Stops,
) where
    H: Fn(Request<RequestBody>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<B>> + Send + 'static,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let handshake = acceptor.env.timeout(HANDSHAKE_TIMEOUT, acceptor.tls.accept(socket));
    let stream = tokio::select! {
        () = stops.stop.cancelled() => return,
        () = accept::end_of_handshake(&acceptor.env, &stops.ending) => return,
        done = handshake => match done {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return tracing::debug!(%address, %error, "TLS handshake failed"),
            Err(_) => return tracing::debug!(%address, "TLS handshake timed out"),
        },
    };
    let chain = stream.get_ref().1.peer_certificates();
    let peer = Peer { address, certificate: acceptor.peers.verify(chain), permit };
    let revocation = chain.and_then(<[_]>::first).map(revocation_entries);
    let verified = matches!(peer.certificate, PeerCertificate::Verified(..));
    if verified {
        peer.mark_authenticated();
    }
    // The verdict on a certificate is the handshake's, and clock and revocations change: a rejected certificate ends its
    // connection, and is verified again with the next one.
    let rejected = stops.ending.child_token();
    let (ending, env) = (rejected.clone(), acceptor.env.clone());
    let service = hyper::service::service_fn(move |mut request: Request<RequestBody>| {
        request.extensions_mut().insert(peer.clone());
        let is_rejected =
            !matches!(peer.certificate, PeerCertificate::Absent) && peer.certificate.user_at(env.now()).is_none();
        let (response, rejected) = (handle(request), rejected.clone());
        async move {
            let response = response.await;
            if is_rejected && response.status() == StatusCode::UNAUTHORIZED {
                rejected.cancel();
            }
            Ok::<_, Infallible>(response)
        }
    });
    let served = machinery_serve::connection::serve(stream, &acceptor.env, service, &ending);
    let Some(revocation) = revocation.filter(|_| verified) else { return log_end(address, served.await) };
    tokio::select! {
        done = served => log_end(address, done),
        // Ends everything on the connection, also watches and sessions.
        () = acceptor.peers.revoked(&revocation) => {
            tracing::info!(%address, "the client's certificate was revoked");
        }
    }
}

fn log_end<E: std::fmt::Display>(address: SocketAddr, done: Result<(), E>) {
    if let Err(error) = done {
        tracing::debug!(%address, %error, "connection ended");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use apiserver_auth::certificates::user_entry;
    use apiserver_auth::pki::{Identity, Pki};
    use apiserver_auth::tls::{fingerprint, provider};
    use http_body_util::Full;
    use rustls::RootCertStore;
    use rustls_pki_types::CertificateDer;
    use rustls_pki_types::pem::PemObject;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;
    use tokio_rustls::client::TlsStream;

    async fn start(
        env: &Env,
        pki: &Pki,
        certificates: Arc<Certificates>,
    ) -> (SocketAddr, CancellationToken, tokio::task::JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let acceptor = Acceptor::new(env, certificates, pki.ca_pem()).unwrap();
        let stop = CancellationToken::new();
        let handle = |request: Request<RequestBody>| async move {
            let peer = request.extensions().get::<Peer>().cloned().unwrap();
            let who = match peer.certificate {
                PeerCertificate::Absent => "nobody".to_owned(),
                PeerCertificate::Invalid => "refused".to_owned(),
                PeerCertificate::Verified(user, _) => format!("{} {:?}", user.name, user.groups),
            };
            let mut response = Response::new(Full::new(Bytes::from(format!("{who} {:?}", request.version()))));
            if who == "refused" {
                *response.status_mut() = StatusCode::UNAUTHORIZED;
            }
            response
        };
        let serving = tokio::spawn(serve(listener, acceptor, handle, stop.clone()));
        (address, stop, serving)
    }

    async fn ask(address: SocketAddr, ca_pem: &str, identity: Option<&Identity>) -> String {
        let mut stream = connect(address, ca_pem, identity).await;
        stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).await.unwrap();
        response.split("\r\n\r\n").nth(1).unwrap_or_default().to_owned()
    }

    async fn connect(address: SocketAddr, ca_pem: &str, identity: Option<&Identity>) -> TlsStream<TcpStream> {
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
        connector.connect("kubernetes.default.svc".try_into().unwrap(), socket).await.unwrap()
    }

    #[tokio::test]
    async fn peers_are_known_by_their_certificates() {
        let (ours, theirs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let env = Env::real();
        let pki = Pki::open_or_create(ours.path(), &env, &[]).unwrap();
        let other = Pki::open_or_create(theirs.path(), &env, &[]).unwrap();
        let certificates = Arc::new(Certificates::new(pki.serving()).unwrap());
        let (address, stop, serving) = start(&env, &pki, certificates).await;

        // Garbage and a silent client do not affect other connections.
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

    /// A client that keeps its connection would keep the verdict of its handshake.
    #[tokio::test]
    async fn a_rejected_certificate_ends_its_connection() {
        let folder = tempfile::tempdir().unwrap();
        let env = Env::real();
        let pki = Pki::open_or_create(folder.path(), &env, &[]).unwrap();
        let certificates = Arc::new(Certificates::new(pki.serving()).unwrap());
        let (address, stop, serving) = start(&env, &pki, certificates.clone()).await;
        let client = pki.issue_client("ada", "dev").unwrap();
        certificates.revoke([user_entry("ada")].into());
        let request = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n";
        let mut kept = connect(address, pki.ca_pem(), Some(&client)).await;
        kept.write_all(request).await.unwrap();
        let mut response = String::new();
        let ended = env.timeout(HANDSHAKE_TIMEOUT, kept.read_to_string(&mut response)).await;
        assert!(ended.is_ok() && response.starts_with("HTTP/1.1 401"), "{response}");
        certificates.revoke(Default::default());
        assert_eq!(ask(address, pki.ca_pem(), Some(&client)).await, "ada [\"dev\"] HTTP/1.1");
        // Without a certificate, and with a good one, connections stay.
        for identity in [None, Some(&client)] {
            let mut kept = connect(address, pki.ca_pem(), identity).await;
            for _ in 0..2 {
                kept.write_all(request).await.unwrap();
                let mut head = [0; 12];
                kept.read_exact(&mut head).await.unwrap();
                assert_eq!(&head, b"HTTP/1.1 200");
                let mut rest = Vec::new();
                while !rest.ends_with(b"HTTP/1.1") {
                    rest.push(kept.read_u8().await.unwrap());
                }
            }
        }
        stop.cancel();
        serving.await.unwrap();
    }

    #[tokio::test]
    async fn certificates_change_while_the_listener_serves() {
        let folder = tempfile::tempdir().unwrap();
        let env = Env::real();
        let pki = Pki::open_or_create(folder.path(), &env, &[]).unwrap();
        let certificates = Arc::new(Certificates::new(pki.serving()).unwrap());
        let (address, stop, serving) = start(&env, &pki, certificates.clone()).await;
        let served = async || {
            let stream = connect(address, pki.ca_pem(), None).await;
            stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
        };
        let first = served().await;
        let names = ["kubernetes.default.svc".to_owned()];
        certificates.serve_with(&pki.issue_serving("kube-apiserver", "", &names).unwrap()).unwrap();
        assert_ne!(served().await, first);

        let client = pki.issue_client("ada", "dev").unwrap();
        let allowed = "ada [\"dev\"] HTTP/1.1";
        for entry in [fingerprint(&client.der().unwrap().0[0]), user_entry("ada")] {
            let mut held = connect(address, pki.ca_pem(), Some(&client)).await;
            assert_eq!(ask(address, pki.ca_pem(), Some(&client)).await, allowed);
            certificates.revoke([entry].into());
            let _ = held.read_to_end(&mut Vec::new()).await;
            assert_eq!(ask(address, pki.ca_pem(), Some(&client)).await, "refused HTTP/1.1");
            assert_eq!(
                ask(address, pki.ca_pem(), Some(pki.admin())).await,
                "kubernetes-admin [\"system:masters\"] HTTP/1.1"
            );
            certificates.revoke(Default::default());
        }
        assert_eq!(ask(address, pki.ca_pem(), Some(&client)).await, allowed);
        stop.cancel();
        serving.await.unwrap();
    }
}
