//! The TLS listener: accepts connections of untrusted clients within limits, and attaches the peer's identity to each
//! request.
//!
//! As upstream, a client certificate is requested but optional. An invalid one results in 401 for the request, not in a
//! failed handshake. The handshake therefore only proves possession of the key, and the certificate is verified
//! afterwards.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use hyper::body::Incoming;
use jiff::Timestamp;
use machinery_env::Env;
use machinery_serve::accept::{self, ConnectionPermit, Limit, Seats};
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
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use x509_parser::prelude::FromDer;

use super::certificates::{Certificates, Fingerprint};
use super::pki::PkiError;
use super::{CREDENTIAL_ID, UserInfo};

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

/// The state of the peer's certificate.
#[derive(Debug, Clone)]
pub enum PeerCertificate {
    /// The peer sent none.
    Absent,
    /// The certificate is valid for this user until this time.
    Verified(Arc<UserInfo>, Timestamp),
    /// The certificate is expired, revoked, of another authority, or not for clients.
    Invalid,
}

/// The configuration and dependencies of a listener.
#[derive(Clone)]
pub struct Acceptor {
    tls: TlsAcceptor,
    certificates: Arc<Certificates>,
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
    /// Serves with the certificate in `certificates`, and verifies clients against the authority `ca_pem`.
    pub fn new(env: &Env, certificates: Arc<Certificates>, ca_pem: &str) -> Result<Self, PkiError> {
        let failed = |why: &dyn std::fmt::Display| PkiError::Issue(why.to_string());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        let ca = CertificateDer::from_pem_slice(ca_pem.as_bytes()).map_err(|e| failed(&e))?;
        roots.add(ca).map_err(|e| failed(&e))?;
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
            .allow_unauthenticated()
            .build()
            .map_err(|e| failed(&e))?;
        let mut config = ServerConfig::builder_with_details(provider, Arc::new(EnvTime(env.clone())))
            .with_safe_default_protocol_versions()
            .map_err(|e| failed(&e))?
            .with_client_cert_verifier(Arc::new(AnyCertificate(verifier.clone())))
            .with_cert_resolver(certificates.clone());
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        // Session resumption is disabled: a resumed session would carry a certificate that was verified at an earlier
        // time.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        let seats = Descriptors::process().api_seats().clone();
        Ok(Self { tls: TlsAcceptor::from(Arc::new(config)), certificates, verifier, env: env.clone(), seats })
    }

    fn verify_peer(&self, chain: Option<&[CertificateDer<'_>]>) -> PeerCertificate {
        let Some((leaf, intermediates)) = chain.and_then(<[_]>::split_first) else { return PeerCertificate::Absent };
        if self.certificates.is_revoked(&fingerprint(leaf)) {
            return PeerCertificate::Invalid;
        }
        let now = UnixTime::since_unix_epoch(Duration::from_secs(self.env.now().as_second().max(0).cast_unsigned()));
        if self.verifier.verify_client_cert(leaf, intermediates, now).is_err() {
            return PeerCertificate::Invalid;
        }
        subject(leaf).map_or(PeerCertificate::Invalid, |(user, until)| PeerCertificate::Verified(Arc::new(user), until))
    }
}

fn fingerprint(leaf: &CertificateDer<'_>) -> Fingerprint {
    Sha256::digest(leaf).into()
}

/// The user in a certificate, and its expiry.
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
    let id = format!("X509SHA256={}", hex::encode(fingerprint(leaf)));
    let extra = std::iter::once((CREDENTIAL_ID.to_owned(), vec![id])).collect();
    Some((UserInfo { name, uid: String::new(), groups, extra }, until))
}

/// Serves until `stop`, then drains running requests for a limited time and returns.
///
/// Each request has its [`Peer`] in its extensions. `handle` is cloned per connection. Watches should end on `stop`;
/// requests still running after the drain are aborted. Connections above the process's limit wait in the system's
/// backlog; unauthenticated ones are closed in their favour.
pub async fn serve<H, F, B>(listener: TcpListener, acceptor: Acceptor, handle: H, stop: CancellationToken)
where
    H: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<B>> + Send + 'static,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let limit = Limit::Seats(acceptor.seats.clone());
    let each =
        |socket, address, permit| connection(socket, address, permit, acceptor.clone(), handle.clone(), stop.clone());
    accept::serve(listener.into(), limit, Some(DRAIN), &acceptor.env, &stop, each).await;
}

async fn connection<H, F, B>(
    socket: TcpStream,
    address: SocketAddr,
    permit: Arc<ConnectionPermit>,
    acceptor: Acceptor,
    handle: H,
    stop: CancellationToken,
) where
    H: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<B>> + Send + 'static,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let handshake = acceptor.env.timeout(HANDSHAKE_TIMEOUT, acceptor.tls.accept(socket));
    let stream = tokio::select! {
        () = stop.cancelled() => return,
        done = handshake => match done {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return tracing::debug!(%address, %error, "TLS handshake failed"),
            Err(_) => return tracing::debug!(%address, "TLS handshake timed out"),
        },
    };
    let chain = stream.get_ref().1.peer_certificates();
    let peer = Peer { address, certificate: acceptor.verify_peer(chain), permit };
    let leaf_fingerprint = chain.and_then(<[_]>::first).map(fingerprint);
    let verified = matches!(peer.certificate, PeerCertificate::Verified(..));
    if verified {
        peer.mark_authenticated();
    }
    let service = hyper::service::service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(peer.clone());
        let answer = handle(request);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let served = machinery_serve::connection::serve(stream, &acceptor.env, service, &stop);
    let Some(leaf_fingerprint) = leaf_fingerprint.filter(|_| verified) else { return log_end(address, served.await) };
    tokio::select! {
        done = served => log_end(address, done),
        // Ends everything on the connection, also watches and sessions.
        () = acceptor.certificates.revoked(&leaf_fingerprint) => {
            tracing::info!(%address, "the client's certificate was revoked");
        }
    }
}

fn log_end<E: std::fmt::Display>(address: SocketAddr, done: Result<(), E>) {
    if let Err(error) = done {
        tracing::debug!(%address, %error, "connection ended");
    }
}

/// Supplies the environment's clock to rustls.
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

/// Accepts any certificate whose key the client holds; [`Acceptor::verify_peer`] verifies it afterwards.
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

/// The crypto provider of every TLS configuration. No process-wide default is set or used.
#[must_use]
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::pki::{Identity, Pki};
    use http_body_util::Full;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
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
        let handle = |request: Request<Incoming>| async move {
            let peer = request.extensions().get::<Peer>().cloned().unwrap();
            let who = match peer.certificate {
                PeerCertificate::Absent => "nobody".to_owned(),
                PeerCertificate::Invalid => "refused".to_owned(),
                PeerCertificate::Verified(user, _) => format!("{} {:?}", user.name, user.groups),
            };
            Response::new(Full::new(Bytes::from(format!("{who} {:?}", request.version()))))
        };
        let serving = tokio::spawn(serve(listener, acceptor, handle, stop.clone()));
        (address, stop, serving)
    }

    async fn ask(address: SocketAddr, ca_pem: &str, identity: Option<&Identity>) -> String {
        let mut stream = connect(address, ca_pem, identity).await;
        stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer.split("\r\n\r\n").nth(1).unwrap_or_default().to_owned()
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
        let mut held = connect(address, pki.ca_pem(), Some(&client)).await;
        assert_eq!(ask(address, pki.ca_pem(), Some(&client)).await, "ada [\"dev\"] HTTP/1.1");
        certificates.revoke([fingerprint(&client.der().unwrap().0[0])].into());
        let _ = held.read_to_end(&mut Vec::new()).await;
        assert_eq!(ask(address, pki.ca_pem(), Some(&client)).await, "refused HTTP/1.1");
        assert_eq!(
            ask(address, pki.ca_pem(), Some(pki.admin())).await,
            "kubernetes-admin [\"system:masters\"] HTTP/1.1"
        );
        certificates.revoke(Default::default());
        assert_eq!(ask(address, pki.ca_pem(), Some(&client)).await, "ada [\"dev\"] HTTP/1.1");
        stop.cancel();
        serving.await.unwrap();
    }
}
