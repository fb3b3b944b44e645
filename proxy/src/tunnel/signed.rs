//! Messages that a node signs with the key of its client certificate.
//!
//! Text form: the scheme of TLS in four hexadecimal digits, the signature, and the chain of certificates (leaf first), each in
//! base64, with dots between them.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::time_provider::TimeProvider as _;
use rustls::{CertificateError, SignatureScheme};

use super::identity::{PeerIdentity, PeerUser, TunnelTls};

/// Maximum length of the text form: some four certificates.
const TEXT_BYTES_MAX: usize = 32 << 10;
/// Maximum certificates of a chain.
const CHAIN_MAX: usize = 8;
/// Schemes of TLS 1.3 for signatures, preferred first.
const SCHEMES: [SignatureScheme; 5] = [
    SignatureScheme::ECDSA_NISTP256_SHA256,
    SignatureScheme::ED25519,
    SignatureScheme::ECDSA_NISTP384_SHA384,
    SignatureScheme::RSA_PSS_SHA256,
    SignatureScheme::RSA_PSS_SHA512,
];

/// A signature with the certificates of its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeSignature {
    scheme: u16,
    signature: Vec<u8>,
    chain: Vec<CertificateDer<'static>>,
}

/// Why a signature is not accepted.
#[derive(Debug, thiserror::Error)]
pub enum SignatureError {
    /// The text form is invalid.
    #[error("the signature is malformed")]
    Malformed,
    /// The certificate isn't valid for the node.
    #[error("the certificate is not the node's: {0}")]
    Certificate(rustls::Error),
    /// The message was not signed by this key.
    #[error("the signature is wrong")]
    Wrong,
}

impl NodeSignature {
    /// The text form, for a header field.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut text = format!("{:04x}.{}", self.scheme, STANDARD.encode(&self.signature));
        for certificate in &self.chain {
            text.push('.');
            text.push_str(&STANDARD.encode(certificate));
        }
        text
    }

    /// Parses the text form.
    ///
    /// # Errors
    /// If it is malformed or too long.
    pub fn parse(text: &str) -> Result<Self, SignatureError> {
        let read = || {
            let mut parts = text.split('.');
            let scheme = parts.next().filter(|scheme| scheme.len() == 4)?;
            let scheme = u16::from_str_radix(scheme, 16).ok()?;
            let mut bytes = parts.map(|part| STANDARD.decode(part).ok().filter(|bytes| !bytes.is_empty()));
            let signature = bytes.next()??;
            let chain: Vec<_> = bytes.map(|bytes| bytes.map(CertificateDer::from)).collect::<Option<_>>()?;
            (1..=CHAIN_MAX).contains(&chain.len()).then_some(Self { scheme, signature, chain })
        };
        (text.len() <= TEXT_BYTES_MAX).then(read).flatten().ok_or(SignatureError::Malformed)
    }
}

impl TunnelTls {
    /// Signs a message as this node; `None` if the key supports none of the schemes.
    pub(super) fn sign(&self, message: &[u8]) -> Option<NodeSignature> {
        let certified = self.newest();
        let signer = certified.key.choose_scheme(&SCHEMES)?;
        let signature = signer.sign(message).ok()?;
        Some(NodeSignature { scheme: signer.scheme().into(), signature, chain: certified.cert.clone() })
    }

    /// Verifies that the node `node` has signed a message: its certificate must be valid now, and the key must fit.
    pub(super) fn verify(&self, node: &str, message: &[u8], signed: &NodeSignature) -> Result<(), SignatureError> {
        let (leaf, intermediates) = signed.chain.split_first().ok_or(SignatureError::Malformed)?;
        let now = self.clock.current_time().unwrap_or(UnixTime::since_unix_epoch(std::time::Duration::MAX));
        self.clients.verify_client_cert(leaf, intermediates, now).map_err(SignatureError::Certificate)?;
        match PeerIdentity::of(leaf) {
            Some(PeerIdentity { user: PeerUser::Node(name), .. }) if &*name == node => {}
            _ => return Err(SignatureError::Certificate(CertificateError::NotValidForName.into())),
        }
        let scheme = SignatureScheme::from(signed.scheme);
        let provider = rustls::crypto::ring::default_provider();
        let known = provider.signature_verification_algorithms.mapping;
        let algorithms = known.iter().find(|(known, _)| *known == scheme && SCHEMES.contains(known));
        let (_, algorithms) = algorithms.ok_or(SignatureError::Wrong)?;
        let leaf = webpki::EndEntityCert::try_from(leaf).map_err(|_| SignatureError::Malformed)?;
        // TLS 1.3 has one algorithm per scheme, the first one.
        let algorithm = algorithms.first().ok_or(SignatureError::Wrong)?;
        leaf.verify_signature(*algorithm, message, &signed.signature).map_err(|_| SignatureError::Wrong)
    }
}

#[cfg(test)]
mod fuzz {
    use super::*;

    #[test]
    fn signatures() {
        bolero::check!().with_type::<String>().for_each(|text| {
            if let Ok(signed) = NodeSignature::parse(text) {
                assert_eq!(NodeSignature::parse(&signed.to_text()).unwrap(), signed);
            }
        });
    }
}
