//! TLS of the listener: its configuration, and the verification of client certificates.
//!
//! As upstream, a client certificate is requested but optional. An invalid one results in 401 for the request, not in a
//! failed handshake. The handshake therefore only proves possession of the key, and [`PeerVerifier::verify`] verifies
//! the certificate afterwards.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use machinery_env::Env;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::CryptoProvider;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::time_provider::TimeProvider;
use rustls::{DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, UnixTime};
use sha2::{Digest, Sha256};
use x509_parser::prelude::FromDer;

use super::certificates::{Certificates, Fingerprint, user_entry};
use super::own_certificates::Validity;
use super::pki::PkiError;
use super::{CREDENTIAL_ID, UserInfo};

/// The state of the peer's certificate.
#[derive(Debug, Clone)]
pub enum PeerCertificate {
    /// The peer sent none.
    Absent,
    /// The certificate is this user's, in this period.
    Verified(Arc<UserInfo>, Validity),
    /// The certificate was not valid at the handshake: by its period, revoked, of another authority, or not for clients.
    Invalid,
}

impl PeerCertificate {
    /// The user of a certificate that is valid now. A connection outlives its certificate, and clocks are set.
    #[must_use]
    pub fn user_at(&self, now: Timestamp) -> Option<&Arc<UserInfo>> {
        match self {
            Self::Verified(user, valid) if valid.contains(now) => Some(user),
            Self::Verified(..) | Self::Absent | Self::Invalid => None,
        }
    }
}

/// Verifies the certificates of clients.
#[derive(Clone)]
pub struct PeerVerifier {
    certificates: Arc<Certificates>,
    verifier: Arc<dyn ClientCertVerifier>,
    env: Env,
}

impl std::fmt::Debug for PeerVerifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PeerVerifier(…)")
    }
}

impl PeerVerifier {
    /// Verifies against the authority `ca_pem` and the revocation list of `certificates`.
    ///
    /// # Errors
    /// Fails if the authority's certificate is invalid.
    pub fn new(env: &Env, certificates: Arc<Certificates>, ca_pem: &str) -> Result<Self, PkiError> {
        let failed = |why: &dyn std::fmt::Display| PkiError::Issue(why.to_string());
        let mut roots = RootCertStore::empty();
        let ca = CertificateDer::from_pem_slice(ca_pem.as_bytes()).map_err(|e| failed(&e))?;
        roots.add(ca).map_err(|e| failed(&e))?;
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider())
            .allow_unauthenticated()
            .build()
            .map_err(|e| failed(&e))?;
        Ok(Self { certificates, verifier, env: env.clone() })
    }

    /// The configuration of a listener with the serving certificate, HTTP/2 and HTTP/1.1.
    ///
    /// # Errors
    /// Fails if the provider lacks the protocol versions.
    pub fn server_config(&self) -> Result<ServerConfig, PkiError> {
        let mut config = ServerConfig::builder_with_details(provider(), Arc::new(EnvTime(self.env.clone())))
            .with_safe_default_protocol_versions()
            .map_err(|error| PkiError::Issue(error.to_string()))?
            .with_client_cert_verifier(Arc::new(AnyCertificate(self.verifier.clone())))
            .with_cert_resolver(self.certificates.clone());
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        // Session resumption is disabled: a resumed session would carry a certificate that was verified at an earlier
        // time.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(config)
    }

    /// Verifies the chain that a client sent, leaf first.
    #[must_use]
    pub fn verify(&self, chain: Option<&[CertificateDer<'_>]>) -> PeerCertificate {
        let Some((leaf, intermediates)) = chain.and_then(<[_]>::split_first) else { return PeerCertificate::Absent };
        if self.certificates.is_revoked(&fingerprint(leaf)) {
            return PeerCertificate::Invalid;
        }
        let now = UnixTime::since_unix_epoch(Duration::from_secs(self.env.now().as_second().max(0).cast_unsigned()));
        if self.verifier.verify_client_cert(leaf, intermediates, now).is_err() {
            return PeerCertificate::Invalid;
        }
        let known = subject(leaf).filter(|(user, _)| !self.certificates.is_revoked(&user_entry(&user.name)));
        known.map_or(PeerCertificate::Invalid, |(user, valid)| PeerCertificate::Verified(Arc::new(user), valid))
    }

    /// Waits until one of the [`revocation_entries`] is revoked.
    pub async fn revoked(&self, entries: &[Fingerprint]) {
        self.certificates.revoked(entries).await;
    }
}

/// The fingerprint of a certificate.
#[must_use]
pub fn fingerprint(leaf: &CertificateDer<'_>) -> Fingerprint {
    Sha256::digest(leaf).into()
}

/// The entries of the revocation list that revoke a certificate: its own, and its user's.
#[must_use]
pub fn revocation_entries(leaf: &CertificateDer<'_>) -> Vec<Fingerprint> {
    let user = subject(leaf).map(|(user, _)| user_entry(&user.name));
    std::iter::once(fingerprint(leaf)).chain(user).collect()
}

/// The user in a certificate, and its period. Of several common names the last one counts, as in Go and in
/// `CertificateRequest`: the approved name is the user.
fn subject(leaf: &CertificateDer<'_>) -> Option<(UserInfo, Validity)> {
    let (_, cert) = x509_parser::certificate::X509Certificate::from_der(leaf).ok()?;
    let name = cert.subject().iter_common_name().last()?.as_str().ok()?.to_owned();
    if name.is_empty() {
        return None;
    }
    let groups = cert
        .subject()
        .iter_organization()
        .map(|o| o.as_str().map(str::to_owned))
        .collect::<Result<Vec<_>, _>>()
        .ok()?;
    let valid = Validity::of(&cert)?;
    let id = format!("X509SHA256={}", hex::encode(fingerprint(leaf)));
    let extra = std::iter::once((CREDENTIAL_ID.to_owned(), vec![id])).collect();
    Some((UserInfo { name, uid: String::new(), groups, extra }, valid))
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

/// Accepts any certificate whose key the client holds; [`PeerVerifier::verify`] verifies it afterwards.
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
    use machinery_rules::certificate_request::CertificateRequest;
    use rcgen::{CertificateParams, KeyPair};
    use rustls_pki_types::pem::PemObject as _;

    use super::super::pki::Pki;
    use super::super::signing::CertificateTemplate;
    use super::*;

    /// A subject of two common names, as no tool writes it.
    fn two_names(first: &str, last: &str) -> Vec<u8> {
        yasna::construct_der(|writer| {
            writer.write_sequence(|writer| {
                for name in [first, last] {
                    writer.next().write_set(|writer| {
                        writer.next().write_sequence(|writer| {
                            writer.next().write_oid(&yasna::models::ObjectIdentifier::from_slice(&[2, 5, 4, 3]));
                            writer.next().write_utf8_string(name);
                        });
                    });
                }
            });
        })
    }

    #[test]
    fn the_approved_name_is_the_user() {
        let dir = tempfile::tempdir().unwrap();
        let env = Env::seeded(1, "2026-01-01T00:00:00Z".parse().unwrap()).0;
        let pki = Pki::open_or_create(dir.path(), &env, &[]).unwrap();
        let pem = CertificateParams::default().serialize_request(&KeyPair::generate().unwrap()).unwrap().pem().unwrap();
        let mut request = CertificateRequest::parse(pem.as_bytes()).unwrap();
        request.subject_der = two_names("system:kube-controller-manager", "system:node:n1");
        assert_eq!(request.subject_attributes(), Some(2));
        let usages = ["client auth".to_owned()];
        let not_after = "2026-06-01T00:00:00Z".parse().unwrap();
        let template = CertificateTemplate { request: &request, usages: &usages, not_before: env.now(), not_after };
        let signed = pki.sign(&template).unwrap();
        let leaf = CertificateDer::from_pem_slice(signed.as_bytes()).unwrap();
        // Approvers and admission see the last one.
        assert_eq!(subject(&leaf).unwrap().0.name, "system:node:n1");
    }
}
