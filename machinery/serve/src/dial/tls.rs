//! The client's side of TLS. All connections use one provider of cryptography.

use std::io;
use std::sync::Arc;

use rustls::ClientConfig;
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::time_provider::TimeProvider;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::trust::Trust;

/// The certificate that the client presents.
pub enum Identity {
    /// None: the client is anonymous.
    Anonymous,
    /// The same at each connection: the chain, leaf first, and its key.
    Fixed(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>),
    /// The one that is newest at each connection.
    Newest(Arc<dyn ResolvesClientCert>),
}

/// TLS of connections that trust the same servers and present the same identity. Cheap to clone.
#[derive(Clone)]
pub struct ClientTls(TlsConnector);

impl std::fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ClientTls")
    }
}

/// The provider of cryptography. No process-wide default is set or used.
pub(super) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

impl ClientTls {
    /// TLS 1.2 and 1.3 without ALPN, with the server's name in the clear and with resumption.
    ///
    /// # Errors
    /// If the identity's key is not the certificate's.
    pub fn new(trust: Trust, identity: Identity) -> Result<Self, rustls::Error> {
        let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
        let builder = builder.dangerous().with_custom_certificate_verifier(trust.verifier());
        let config = match identity {
            Identity::Anonymous => builder.with_no_client_auth(),
            Identity::Fixed(chain, key) => builder.with_client_auth_cert(chain, key)?,
            Identity::Newest(newest) => builder.with_client_cert_resolver(newest),
        };
        Ok(Self(TlsConnector::from(Arc::new(config))))
    }

    /// Between processes of this program: TLS 1.3 with one protocol (ALPN), without the server's name, and without
    /// resumption, which would skip the certificates. Certificates are valid by `clock`.
    ///
    /// # Errors
    /// If the provider has no TLS 1.3.
    pub fn of_peers(
        trust: Trust,
        newest: Arc<dyn ResolvesClientCert>,
        clock: Arc<dyn TimeProvider>,
        protocol: &[u8],
    ) -> Result<Self, rustls::Error> {
        let mut config = ClientConfig::builder_with_details(provider(), clock)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(trust.verifier())
            .with_client_cert_resolver(newest);
        config.resumption = Resumption::disabled();
        config.enable_sni = false;
        config.alpn_protocols = vec![protocol.to_vec()];
        Ok(Self(TlsConnector::from(Arc::new(config))))
    }

    /// As [`ClientTls::connect`], to a server by its name or address.
    ///
    /// # Errors
    /// If the name is none, or the handshake fails.
    pub async fn connect_to<S>(&self, server: &str, stream: S) -> io::Result<TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let name = ServerName::try_from(server.to_owned());
        let name = name.map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "not the name of a server"))?;
        self.connect(name, stream).await
    }

    /// Starts TLS on `stream`, which leads to `server`. The timeout is the caller's.
    ///
    /// # Errors
    /// If the handshake fails: with a [`rustls::Error`] inside if that is the cause.
    pub async fn connect<S>(&self, server: ServerName<'static>, stream: S) -> io::Result<TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        self.0.connect(server, stream).await
    }
}
