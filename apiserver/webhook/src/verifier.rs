//! Verifies a webhook's certificate: it is signed by an authority of the `caBundle`, or is itself in the bundle. Go's
//! `x509.Certificate.Verify` also accepts a root as the leaf, and `openssl req -x509` creates such certificates.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use apiserver_auth::tls;

#[derive(Debug)]
struct Verifier {
    signed: Arc<WebPkiServerVerifier>,
    /// The certificates of the bundle.
    trusted: Vec<CertificateDer<'static>>,
}

/// Accepts certificates signed by the roots, and the trusted certificates themselves.
///
/// # Errors
/// Fails if there is no root.
pub(super) fn verifier(
    roots: RootCertStore,
    trusted: Vec<CertificateDer<'static>>,
) -> Result<Arc<dyn ServerCertVerifier>, String> {
    let signed = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), tls::provider()).build();
    Ok(Arc::new(Verifier { signed: signed.map_err(|error| error.to_string())?, trusted }))
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
        let verified = self.signed.verify_server_cert(leaf, others, server, ocsp, now);
        if verified.is_ok() || !self.trusted.contains(leaf) {
            return verified;
        }
        verify_server_name(&ParsedCertificate::try_from(leaf)?, server)?;
        is_valid_at(leaf, now)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signed.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signed.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.signed.supported_verify_schemes()
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
        let verifier = verifier(roots, vec![ours.clone()]).unwrap();
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
        assert!(verify(&other, "hook.example", 2026).is_err(), "of somebody else");
    }
}
