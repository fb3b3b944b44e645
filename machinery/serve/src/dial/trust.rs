//! Which certificates of servers are accepted. One verifier for all connections of the process.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{VerifierBuilderError, WebPkiServerVerifier, verify_server_name};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::server::danger::ClientCertVerifier;
use rustls::{CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};

use super::tls::provider;

/// Decides on a verified certificate of a peer.
type AcceptsPeer = dyn Fn(&CertificateDer<'_>) -> bool + Send + Sync;

/// The certificates of servers that are accepted.
#[derive(Debug, Clone)]
pub struct Trust(Arc<Verifier>);

#[derive(Debug)]
enum Verifier {
    Any(Arc<CryptoProvider>),
    Authorities { signed: Arc<WebPkiServerVerifier>, listed: Vec<CertificateDer<'static>> },
    Clients { clients: Arc<dyn ClientCertVerifier>, accepts: Accepts },
}

struct Accepts(Box<AcceptsPeer>);

impl std::fmt::Debug for Accepts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Accepts")
    }
}

impl Trust {
    /// Any certificate; its holder must still own the key. It authenticates nothing.
    #[must_use]
    pub fn any() -> Self {
        Self(Arc::new(Verifier::Any(provider())))
    }

    /// Certificates that an authority signed for the server's name.
    ///
    /// # Errors
    /// If there is no authority.
    pub fn authorities(roots: RootCertStore) -> Result<Self, VerifierBuilderError> {
        Self::authorities_or_listed(roots, Vec::new())
    }

    /// The same, and the listed certificates themselves, for their own names and in their own time. Go's
    /// `x509.Certificate.Verify` also accepts a root as the leaf, and `openssl req -x509` creates such certificates.
    ///
    /// # Errors
    /// If there is no authority.
    pub fn authorities_or_listed(
        roots: RootCertStore,
        listed: Vec<CertificateDer<'static>>,
    ) -> Result<Self, VerifierBuilderError> {
        let signed = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider()).build()?;
        Ok(Self(Arc::new(Verifier::Authorities { signed, listed })))
    }

    /// Servers that show the client certificate of a peer, if `accepts` it. The server's name is not compared: the
    /// certificate's subject is the peer.
    pub fn clients(
        clients: Arc<dyn ClientCertVerifier>,
        accepts: impl Fn(&CertificateDer<'_>) -> bool + Send + Sync + 'static,
    ) -> Self {
        Self(Arc::new(Verifier::Clients { clients, accepts: Accepts(Box::new(accepts)) }))
    }

    pub(super) fn verifier(self) -> Arc<dyn ServerCertVerifier> {
        self.0
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        server: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        match self {
            Self::Any(_) => {}
            Self::Authorities { signed, listed } => {
                let verified = signed.verify_server_cert(leaf, others, server, ocsp, now);
                if verified.is_ok() || !listed.contains(leaf) {
                    return verified;
                }
                verify_server_name(&ParsedCertificate::try_from(leaf)?, server)?;
                is_valid_at(leaf, now)?;
            }
            Self::Clients { clients, accepts } => {
                clients.verify_client_cert(leaf, others, now)?;
                if !accepts.0(leaf) {
                    return Err(CertificateError::NotValidForName.into());
                }
            }
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        match self {
            Self::Any(provider) => {
                let algorithms = &provider.signature_verification_algorithms;
                rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
            }
            Self::Authorities { signed, .. } => signed.verify_tls12_signature(message, certificate, signature),
            Self::Clients { clients, .. } => clients.verify_tls12_signature(message, certificate, signature),
        }
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        match self {
            Self::Any(provider) => {
                let algorithms = &provider.signature_verification_algorithms;
                rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
            }
            Self::Authorities { signed, .. } => signed.verify_tls13_signature(message, certificate, signature),
            Self::Clients { clients, .. } => clients.verify_tls13_signature(message, certificate, signature),
        }
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        match self {
            Self::Any(provider) => provider.signature_verification_algorithms.supported_schemes(),
            Self::Authorities { signed, .. } => signed.supported_verify_schemes(),
            Self::Clients { clients, .. } => clients.supported_verify_schemes(),
        }
    }
}

fn is_valid_at(leaf: &CertificateDer<'_>, now: UnixTime) -> Result<(), CertificateError> {
    let (_, certificate) = x509_parser::parse_x509_certificate(leaf).map_err(|_| CertificateError::BadEncoding)?;
    let (valid, now) = (certificate.validity(), i64::try_from(now.as_secs()).unwrap_or(i64::MAX));
    if now < valid.not_before.timestamp() {
        return Err(CertificateError::NotValidYet);
    }
    if now > valid.not_after.timestamp() {
        return Err(CertificateError::Expired);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};

    use super::*;

    /// Like `openssl req -x509 -addext subjectAltName=DNS:hook.example`, valid from 2020 to 2029.
    fn own() -> CertificateDer<'static> {
        let mut params = CertificateParams::new(vec!["hook.example".to_owned()]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        (params.not_before, params.not_after) = (rcgen::date_time_ymd(2020, 1, 1), rcgen::date_time_ymd(2029, 1, 1));
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().clone()
    }

    #[test]
    fn a_certificate_of_the_bundle_itself_is_taken() {
        let (ours, other) = (own(), own());
        let mut roots = RootCertStore::empty();
        roots.add(ours.clone()).unwrap();
        let verifier = Trust::authorities_or_listed(roots.clone(), vec![ours.clone()]).unwrap().verifier();
        let at = |year: i32| {
            UnixTime::since_unix_epoch(Duration::from_secs(
                u64::try_from(rcgen::date_time_ymd(year, 6, 1).unix_timestamp()).unwrap(),
            ))
        };
        let verify = |leaf: &CertificateDer<'_>, host: &str, year: i32| {
            let host = ServerName::try_from(host.to_owned()).unwrap();
            verifier.verify_server_cert(leaf, &[], &host, &[], at(year)).map(drop)
        };
        assert_eq!(verify(&ours, "hook.example", 2026), Ok(()));
        let name = verify(&ours, "other.example", 2026);
        assert!(
            matches!(name, Err(Error::InvalidCertificate(CertificateError::NotValidForNameContext { .. }))),
            "{name:?}"
        );
        assert_eq!(verify(&ours, "hook.example", 2030), Err(CertificateError::Expired.into()));
        assert_eq!(verify(&ours, "hook.example", 2019), Err(CertificateError::NotValidYet.into()));
        assert!(verify(&other, "hook.example", 2026).is_err(), "another key");
        let unlisted = Trust::authorities(roots).unwrap().verifier();
        let host = ServerName::try_from("hook.example").unwrap();
        assert!(unlisted.verify_server_cert(&ours, &[], &host, &[], at(2026)).is_err(), "an authority as the leaf");
        assert!(Trust::any().verifier().verify_server_cert(&other, &[], &host, &[], at(2030)).is_ok());
    }
}
