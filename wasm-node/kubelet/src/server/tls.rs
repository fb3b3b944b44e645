//! TLS of the kubelet API: a certificate that may be replaced while it serves, and the CA of its clients.

use std::sync::{Arc, Mutex, PoisonError};

use machinery_client::TlsIdentity;
use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use super::ServerError;

/// The certificate that a node serves with, and the CA of its clients in PEM.
#[derive(Clone)]
pub struct ServingTls {
    identity: watch::Receiver<Arc<TlsIdentity>>,
    client_ca: Vec<u8>,
}

impl std::fmt::Debug for ServingTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServingTls").finish_non_exhaustive()
    }
}

impl ServingTls {
    /// One certificate for as long as the node runs.
    #[must_use]
    pub fn fixed(identity: TlsIdentity, client_ca: Vec<u8>) -> Self {
        Self::rotating(watch::channel(Arc::new(identity)).1, client_ca)
    }

    /// The newest certificate, for new connections.
    #[must_use]
    pub fn rotating(identity: watch::Receiver<Arc<TlsIdentity>>, client_ca: Vec<u8>) -> Self {
        Self { identity, client_ca }
    }

    pub(super) fn acceptor(&self) -> Result<TlsAcceptor, ServerError> {
        let bad = |error: &dyn std::fmt::Display| ServerError::Tls(error.to_string());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(&self.client_ca) {
            roots.add(certificate.map_err(|error| bad(&error))?).map_err(|error| bad(&error))?;
        }
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
            .allow_unauthenticated()
            .build()
            .map_err(|error| bad(&error))?;
        let newest = NewestCertificate::new(self.identity.clone(), provider.clone()).map_err(|error| bad(&error))?;
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| bad(&error))?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(Arc::new(newest));
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(TlsAcceptor::from(Arc::new(config)))
    }
}

/// Resolves to the newest certificate that can be used.
#[derive(Debug)]
struct NewestCertificate {
    provider: Arc<CryptoProvider>,
    state: Mutex<NewestState>,
}

#[derive(Debug)]
struct NewestState {
    identity: watch::Receiver<Arc<TlsIdentity>>,
    current: Arc<CertifiedKey>,
}

impl NewestCertificate {
    fn new(
        mut identity: watch::Receiver<Arc<TlsIdentity>>,
        provider: Arc<CryptoProvider>,
    ) -> Result<Self, rustls::Error> {
        let first = identity.borrow_and_update().clone();
        let current = Arc::new(certified(&first, &provider)?);
        Ok(Self { provider, state: Mutex::new(NewestState { identity, current }) })
    }

    fn current(&self) -> Arc<CertifiedKey> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        // An error: the sender has ended, and the last certificate stays.
        if state.identity.has_changed().unwrap_or(false) {
            let newest = state.identity.borrow_and_update().clone();
            match certified(&newest, &self.provider) {
                Ok(newest) => state.current = Arc::new(newest),
                Err(error) => tracing::warn!(%error, "a new serving certificate is not used"),
            }
        }
        state.current.clone()
    }
}

impl ResolvesServerCert for NewestCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current())
    }
}

fn certified(identity: &TlsIdentity, provider: &CryptoProvider) -> Result<CertifiedKey, rustls::Error> {
    let bad = |error: rustls::pki_types::pem::Error| rustls::Error::General(error.to_string());
    let chain =
        CertificateDer::pem_slice_iter(identity.cert_pem.as_bytes()).collect::<Result<Vec<_>, _>>().map_err(bad)?;
    let key = PrivateKeyDer::from_pem_slice(identity.key_pem.as_bytes()).map_err(bad)?;
    CertifiedKey::from_der(chain, key, provider)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_usable_certificate_is_served() {
        let identity =
            |cert: &str, key: &str| Arc::new(TlsIdentity { cert_pem: cert.to_owned(), key_pem: key.to_owned() });
        let one = identity(include_str!("testdata/one.crt"), include_str!("testdata/one.key"));
        let two = identity(include_str!("testdata/two.crt"), include_str!("testdata/two.key"));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let (sender, receiver) = watch::channel(one.clone());
        let newest = NewestCertificate::new(receiver, provider.clone()).unwrap();
        let serves = |identity: &TlsIdentity| {
            let der = CertificateDer::from_pem_slice(identity.cert_pem.as_bytes()).unwrap();
            newest.current().cert.first() == Some(&der)
        };
        assert!(serves(&one));
        sender.send_replace(two.clone());
        assert!(serves(&two));
        // The certificate of one with the key of the other.
        sender.send_replace(identity(&one.cert_pem, &two.key_pem));
        assert!(serves(&two));
        drop(sender);
        assert!(serves(&two));
        assert!(NewestCertificate::new(watch::channel(identity("", "")).1, provider).is_err());
        let fixed = ServingTls::fixed(TlsIdentity::clone(&one), one.cert_pem.clone().into_bytes());
        assert!(fixed.acceptor().is_ok());
    }
}
