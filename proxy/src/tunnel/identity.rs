//! Identities of the tunnel's ends: the client certificates of nodes, and of the API server, at both ends.
//!
//! Any cluster signs a node's client certificate (signer `kubernetes.io/kube-apiserver-client-kubelet`: CN
//! `system:node:NAME`, O `system:nodes`), while serving certificates need an approval by hand at most upstream clusters.
//! So the dialling side verifies the server by its client certificate, too.

use std::sync::Arc;

use machinery_env::Env;
use machinery_serve::dial::tls::ClientTls;
use machinery_serve::dial::trust::Trust;
use rustls::client::ResolvesClientCert;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::time_provider::TimeProvider;
use rustls::{RootCertStore, ServerConfig, SignatureScheme};
use tokio::sync::watch;

use super::ALPN;

/// The prefix of a node's user name.
const NODE_USER: &str = "system:node:";
/// The group of all nodes.
const NODE_GROUP: &str = "system:nodes";
/// The group of the API server's own client certificate.
const MASTERS_GROUP: &str = "system:masters";

/// A certificate, a key or the CA is invalid.
#[derive(Debug, thiserror::Error)]
#[error("the tunnel's {what} cannot be used: {why}")]
pub struct IdentityError {
    what: &'static str,
    why: String,
}

impl IdentityError {
    fn of(what: &'static str) -> impl Fn(&dyn std::fmt::Display) -> Self {
        move |why| Self { what, why: why.to_string() }
    }
}

/// The node's client certificate with its chain and key.
#[derive(Debug, Clone)]
pub struct NodeCertificate(Arc<CertifiedKey>);

impl NodeCertificate {
    /// Parses the chain (leaf first) and the key, both PEM.
    ///
    /// # Errors
    /// If either is invalid, or they don't belong together.
    pub fn from_pem(chain_pem: &str, key_pem: &str) -> Result<Self, IdentityError> {
        let (chain_error, key_error) = (IdentityError::of("certificate"), IdentityError::of("key"));
        let chain: Vec<_> = CertificateDer::pem_slice_iter(chain_pem.as_bytes())
            .collect::<Result<_, _>>()
            .map_err(|error| chain_error(&error))?;
        let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).map_err(|error| key_error(&error))?;
        let provider = rustls::crypto::ring::default_provider();
        let certified = CertifiedKey::from_der(chain, key, &provider).map_err(|error| chain_error(&error))?;
        Ok(Self(Arc::new(certified)))
    }
}

/// The newest certificate of this node.
pub type CertificateReceiver = watch::Receiver<Arc<NodeCertificate>>;

/// The authenticated user at the other end.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum PeerUser {
    /// The node of this name.
    Node(Arc<str>),
    /// An API server.
    ApiServer,
}

/// The other end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PeerIdentity {
    pub(super) user: PeerUser,
    /// When the certificate expires, in seconds since 1970.
    pub(super) expires_at: i64,
}

impl PeerIdentity {
    /// The subject of a verified certificate; `None` if it is neither a node's nor an API server's.
    pub(super) fn of(certificate: &CertificateDer<'_>) -> Option<Self> {
        let (_, certificate) = x509_parser::parse_x509_certificate(certificate).ok()?;
        let subject = certificate.subject();
        let mut names = subject.iter_common_name();
        let name = names.next()?.as_str().ok()?;
        if names.next().is_some() {
            return None;
        }
        let in_group = |wanted| subject.iter_organization().any(|group| group.as_str() == Ok(wanted));
        let user = match name.strip_prefix(NODE_USER) {
            Some(node) if !node.is_empty() && in_group(NODE_GROUP) => PeerUser::Node(node.into()),
            Some(_) => return None,
            None if in_group(MASTERS_GROUP) => PeerUser::ApiServer,
            None => return None,
        };
        Some(Self { user, expires_at: certificate.validity().not_after.timestamp() })
    }
}

/// Serves and presents the newest certificate.
#[derive(Debug)]
struct Newest(CertificateReceiver);

impl Newest {
    fn get(&self) -> Arc<CertifiedKey> {
        self.0.borrow().0.clone()
    }
}

impl ResolvesServerCert for Newest {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.get())
    }
}

impl ResolvesClientCert for Newest {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.get())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// The process's clock for rustls.
pub(super) struct Clock(Env);

impl std::fmt::Debug for Clock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Clock")
    }
}

impl TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        let seconds = u64::try_from(self.0.now().as_second()).ok()?;
        Some(UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds)))
    }
}

/// TLS settings of one node's tunnel: TLS 1.3, no resumption (a resumed session would skip the certificates).
#[derive(Debug)]
pub(super) struct TunnelTls {
    pub(super) clients: Arc<dyn ClientCertVerifier>,
    newest: Arc<Newest>,
    pub(super) clock: Arc<Clock>,
    pub(super) server: Arc<ServerConfig>,
}

impl TunnelTls {
    /// This node's certificate and key.
    pub(super) fn newest(&self) -> Arc<CertifiedKey> {
        self.newest.get()
    }

    pub(super) fn new(env: &Env, ca_pem: &str, certificate: CertificateReceiver) -> Result<Self, IdentityError> {
        let (ca_error, tls_error) = (IdentityError::of("CA"), IdentityError::of("TLS configuration"));
        let mut roots = RootCertStore::empty();
        for root in CertificateDer::pem_slice_iter(ca_pem.as_bytes()) {
            roots.add(root.map_err(|error| ca_error(&error))?).map_err(|error| ca_error(&error))?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
            .build()
            .map_err(|error| ca_error(&error))?;
        let (newest, clock) = (Arc::new(Newest(certificate)), Arc::new(Clock(env.clone())));
        let mut server = ServerConfig::builder_with_details(provider, clock.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|error| tls_error(&error))?
            .with_client_cert_verifier(clients.clone())
            .with_cert_resolver(newest.clone());
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        server.alpn_protocols = vec![ALPN.to_vec()];
        Ok(Self { clients, newest, clock, server: Arc::new(server) })
    }

    /// TLS to a node: to the server that shows the client certificate of this name.
    pub(super) fn client(&self, node: &Arc<str>) -> Result<ClientTls, IdentityError> {
        let node = node.clone();
        let trust = Trust::clients(
            self.clients.clone(),
            move |leaf| matches!(PeerIdentity::of(leaf), Some(PeerIdentity { user: PeerUser::Node(name), .. }) if name == node),
        );
        ClientTls::of_peers(trust, self.newest.clone(), self.clock.clone(), ALPN)
            .map_err(|error| IdentityError::of("TLS configuration")(&error))
    }
}
