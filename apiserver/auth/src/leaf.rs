//! Parses the fields of a certificate that this cluster's authority issued.

use std::net::IpAddr;

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use x509_parser::prelude::FromDer;

use super::own_certificates::Validity;

/// The parsed fields.
pub(super) struct Leaf {
    pub(super) names: Vec<String>,
    pub(super) subject: String,
    pub(super) issuer_key: Vec<u8>,
    pub(super) public_key: Vec<u8>,
    pub(super) valid: Validity,
}

impl Leaf {
    pub(super) fn parse(pem: &str) -> Option<Self> {
        use x509_parser::extensions::{GeneralName, ParsedExtension};
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).ok()?;
        let (_, cert) = x509_parser::certificate::X509Certificate::from_der(&der).ok()?;
        let mut names = Vec::new();
        let mut issuer_key = Vec::new();
        for extension in cert.extensions() {
            match extension.parsed_extension() {
                ParsedExtension::SubjectAlternativeName(alternative) => {
                    for name in &alternative.general_names {
                        match name {
                            GeneralName::DNSName(name) => names.push((*name).to_owned()),
                            GeneralName::IPAddress(bytes) => names.push(address(bytes)?.to_string()),
                            _ => {}
                        }
                    }
                }
                ParsedExtension::AuthorityKeyIdentifier(id) => {
                    issuer_key = id.key_identifier.as_ref().map(|id| id.0.to_vec()).unwrap_or_default();
                }
                _ => {}
            }
        }
        Some(Self {
            names,
            subject: cert.subject().to_string(),
            issuer_key,
            public_key: cert.public_key().subject_public_key.data.to_vec(),
            valid: Validity::of(&cert)?,
        })
    }
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}
