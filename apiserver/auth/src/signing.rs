//! Signs CertificateSigningRequests with the authority's key. Subject and public key are copied in DER, because rcgen
//! builds a subject with at most one value per attribute, and a user of several groups has several.

use jiff::Timestamp;
use machinery_env::Env;
use machinery_rules::certificate_request::CertificateRequest;
use rcgen::{KeyPair, SigningKey as _};
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject as _;
use x509_parser::extensions::ParsedExtension;
use x509_parser::prelude::{FromDer as _, X509Certificate};
use yasna::models::{GeneralizedTime, ObjectIdentifier, UTCTime};
use yasna::{DERWriter, Tag};

use super::leaf::Leaf;
use super::pki::{Pki, PkiError};

/// Key usage bits by the API's names.
const KEY_USAGES: &[(&str, usize)] = &[
    ("signing", 0),
    ("digital signature", 0),
    ("content commitment", 1),
    ("key encipherment", 2),
    ("data encipherment", 3),
    ("key agreement", 4),
    ("cert sign", 5),
    ("crl sign", 6),
    ("encipher only", 7),
    ("decipher only", 8),
];
/// Extended key usages by the API's names.
const PURPOSES: &[(&str, &[u64])] = &[
    ("any", &[2, 5, 29, 37, 0]),
    ("server auth", &[1, 3, 6, 1, 5, 5, 7, 3, 1]),
    ("client auth", &[1, 3, 6, 1, 5, 5, 7, 3, 2]),
    ("code signing", &[1, 3, 6, 1, 5, 5, 7, 3, 3]),
    ("email protection", &[1, 3, 6, 1, 5, 5, 7, 3, 4]),
    ("s/mime", &[1, 3, 6, 1, 5, 5, 7, 3, 4]),
    ("ipsec end system", &[1, 3, 6, 1, 5, 5, 7, 3, 5]),
    ("ipsec tunnel", &[1, 3, 6, 1, 5, 5, 7, 3, 6]),
    ("ipsec user", &[1, 3, 6, 1, 5, 5, 7, 3, 7]),
    ("timestamping", &[1, 3, 6, 1, 5, 5, 7, 3, 8]),
    ("ocsp signing", &[1, 3, 6, 1, 5, 5, 7, 3, 9]),
    ("microsoft sgc", &[1, 3, 6, 1, 4, 1, 311, 10, 3, 3]),
    ("netscape sgc", &[2, 16, 840, 1, 113_730, 4, 1]),
];
const KEY_USAGE: &[u64] = &[2, 5, 29, 15];
const ALTERNATIVE_NAME: &[u64] = &[2, 5, 29, 17];
const BASIC_CONSTRAINTS: &[u64] = &[2, 5, 29, 19];
const AUTHORITY_KEY: &[u64] = &[2, 5, 29, 35];
const EXTENDED_KEY_USAGE: &[u64] = &[2, 5, 29, 37];

/// The contents of a certificate to sign.
#[derive(Debug, Clone, Copy)]
pub struct CertificateTemplate<'a> {
    /// Subject and public key.
    pub request: &'a CertificateRequest,
    /// Usages by the API's names.
    pub usages: &'a [String],
    /// The start of its validity.
    pub not_before: Timestamp,
    /// Capped at the authority's own expiry.
    pub not_after: Timestamp,
}

/// The authority's fields that go into signed certificates.
struct Authority {
    subject: Vec<u8>,
    key_id: Option<Vec<u8>>,
    not_after: Timestamp,
    /// Whether it may sign certificates (RFC 5280 §4.2.1.9).
    signs: bool,
}

impl Authority {
    fn parse(pem: &str) -> Option<Self> {
        let der = pem::parse(pem).ok()?.into_contents();
        let (_, certificate) = X509Certificate::from_der(&der).ok()?;
        let key_id = certificate.extensions().iter().find_map(|extension| match extension.parsed_extension() {
            ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
            _ => None,
        });
        let not_after = Timestamp::from_second(certificate.validity().not_after.timestamp()).ok()?;
        let signs = certificate.is_ca();
        Some(Self { subject: certificate.subject().as_raw().to_vec(), key_id, not_after, signs })
    }
}

impl Pki {
    /// Signs a certificate and returns it in PEM. It expires no later than the authority and is never an authority
    /// itself.
    pub fn sign(&self, template: &CertificateTemplate<'_>) -> Result<String, PkiError> {
        sign(self.env(), self.ca_pem(), self.issuer().key(), template)
    }
}

/// An authority of the administrator, as upstream's `--cluster-signing-cert-file` and `--cluster-signing-key-file`.
pub struct CertificateSigner {
    env: Env,
    certificate: String,
    key: KeyPair,
}

impl std::fmt::Debug for CertificateSigner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("CertificateSigner(…)")
    }
}

impl CertificateSigner {
    /// Reads the authority's certificate and its key in PEM: PKCS #8, or PKCS #1 as kubeadm writes it.
    ///
    /// # Errors
    /// If the certificate is no authority's, or the key is another one's or of an unsupported type.
    pub fn from_pem(env: &Env, certificate: &str, key: &str) -> Result<Self, PkiError> {
        let failed = |why: &str| PkiError::Issue(why.to_owned());
        let der = match PrivateKeyDer::from_pem_slice(key.as_bytes()) {
            Ok(PrivateKeyDer::Pkcs8(key)) => key,
            Ok(PrivateKeyDer::Pkcs1(key)) => as_pkcs8(key.secret_pkcs1_der()).into(),
            Ok(_) => return Err(failed("the key is not in PKCS #8: convert it with `openssl pkcs8 -topk8 -nocrypt`")),
            Err(_) => return Err(failed("the key is not a private key in PEM")),
        };
        let key = KeyPair::try_from(&der)?;
        algorithm(key.algorithm())?;
        let leaf = Leaf::parse(certificate).ok_or_else(|| failed("the certificate is none in PEM"))?;
        if leaf.public_key != key.public_key_raw() {
            return Err(failed("the key is not the certificate's"));
        }
        match Authority::parse(certificate) {
            Some(authority) if authority.signs => {
                Ok(Self { env: env.clone(), certificate: certificate.to_owned(), key })
            }
            _ => Err(failed("the certificate is not a certificate authority's")),
        }
    }

    /// As [`Pki::sign`].
    pub fn sign(&self, template: &CertificateTemplate<'_>) -> Result<String, PkiError> {
        sign(&self.env, &self.certificate, &self.key, template)
    }
}

/// An RSA key of PKCS #1 in PKCS #8 (RFC 5208 §5, RFC 8017 A.1).
fn as_pkcs8(pkcs1: &[u8]) -> Vec<u8> {
    const RSA: &[u64] = &[1, 2, 840, 113_549, 1, 1, 1];
    yasna::construct_der(|writer| {
        writer.write_sequence(|writer| {
            writer.next().write_u8(0);
            write_algorithm(writer.next(), (RSA, true));
            writer.next().write_bytes(pkcs1);
        });
    })
}

fn sign(env: &Env, ca_pem: &str, key: &KeyPair, template: &CertificateTemplate<'_>) -> Result<String, PkiError> {
    let authority = Authority::parse(ca_pem).ok_or_else(|| PkiError::Issue("the authority can't be read".into()))?;
    let not_after = template.not_after.min(authority.not_after);
    if template.not_before >= not_after || env.now() >= not_after {
        return Err(PkiError::Issue(format!("the signer has expired: NotAfter={}", authority.not_after)));
    }
    let algorithm = algorithm(key.algorithm())?;
    let mut serial = [0u8; 16];
    env.fill(&mut serial);
    // Positive and not zero (RFC 5280 §4.1.2.2).
    serial[0] = (serial[0] & 0x7f) | 0x40;
    let body = yasna::construct_der(|writer| {
        writer.write_sequence(|writer| {
            writer.next().write_tagged(Tag::context(0), |writer| writer.write_u8(2));
            writer.next().write_bigint_bytes(&serial, true);
            write_algorithm(writer.next(), algorithm);
            writer.next().write_der(&authority.subject);
            writer.next().write_sequence(|writer| {
                write_time(writer.next(), template.not_before);
                write_time(writer.next(), not_after);
            });
            writer.next().write_der(&template.request.subject_der);
            writer.next().write_der(&template.request.public_key_der);
            writer.next().write_tagged(Tag::context(3), |writer| {
                writer.write_sequence(|writer| {
                    for (id, critical, value) in extensions(template, authority.key_id.as_deref()) {
                        write_extension(writer.next(), id, critical, &value);
                    }
                });
            });
        });
    });
    let signature = key.sign(&body)?;
    let whole = yasna::construct_der(|writer| {
        writer.write_sequence(|writer| {
            writer.next().write_der(&body);
            write_algorithm(writer.next(), algorithm);
            writer.next().write_bitvec_bytes(&signature, signature.len() * 8);
        });
    });
    Ok(pem::encode_config(&pem::Pem::new("CERTIFICATE", whole), unix_lines()))
}

fn unix_lines() -> pem::EncodeConfig {
    pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF)
}

/// An algorithm identifier: its OID, and whether an explicit NULL follows.
type Algorithm = (&'static [u64], bool);

fn algorithm(of: &rcgen::SignatureAlgorithm) -> Result<Algorithm, PkiError> {
    let supported: [(&rcgen::SignatureAlgorithm, Algorithm); 4] = [
        (&rcgen::PKCS_ECDSA_P256_SHA256, (&[1, 2, 840, 10045, 4, 3, 2], false)),
        (&rcgen::PKCS_ECDSA_P384_SHA384, (&[1, 2, 840, 10045, 4, 3, 3], false)),
        (&rcgen::PKCS_ED25519, (&[1, 3, 101, 112], false)),
        (&rcgen::PKCS_RSA_SHA256, (&[1, 2, 840, 113_549, 1, 1, 11], true)),
    ];
    let algorithm = supported.iter().find(|(supported, _)| *supported == of).map(|(_, algorithm)| *algorithm);
    algorithm.ok_or_else(|| PkiError::Issue("the authority's key is of an unsupported type".into()))
}

fn write_algorithm(writer: DERWriter<'_>, (id, explicit_null): Algorithm) {
    writer.write_sequence(|writer| {
        writer.next().write_oid(&ObjectIdentifier::from_slice(id));
        if explicit_null {
            writer.next().write_null();
        }
    });
}

/// Years before 2050 are encoded with two digits (RFC 5280 §4.1.2.5).
fn write_time(writer: DERWriter<'_>, at: Timestamp) {
    let at = time::OffsetDateTime::from_unix_timestamp(at.as_second()).unwrap_or(time::OffsetDateTime::UNIX_EPOCH);
    if (1950..2050).contains(&at.year()) {
        writer.write_utctime(&UTCTime::from_datetime(at));
    } else {
        writer.write_generalized_time(&GeneralizedTime::from_datetime(at));
    }
}

fn write_extension(writer: DERWriter<'_>, id: &[u64], critical: bool, value: &[u8]) {
    writer.write_sequence(|writer| {
        writer.next().write_oid(&ObjectIdentifier::from_slice(id));
        if critical {
            writer.next().write_bool(true);
        }
        writer.next().write_bytes(value);
    });
}

/// The extensions, in upstream's order.
fn extensions(
    template: &CertificateTemplate<'_>,
    authority_key: Option<&[u8]>,
) -> Vec<(&'static [u64], bool, Vec<u8>)> {
    let mut list = Vec::new();
    let is_requested = |word: &str| template.usages.iter().any(|usage| usage == word);
    let bits: Vec<usize> = KEY_USAGES.iter().filter(|(word, _)| is_requested(word)).map(|(_, bit)| *bit).collect();
    if let Some(last) = bits.iter().max() {
        let mut bytes = [0u8; 2];
        for bit in &bits {
            bytes[bit / 8] |= 0x80 >> (bit % 8);
        }
        let bytes = &bytes[..=last / 8];
        list.push((KEY_USAGE, true, yasna::construct_der(|writer| writer.write_bitvec_bytes(bytes, last + 1))));
    }
    let mut purposes: Vec<&[u64]> = PURPOSES.iter().filter(|(word, _)| is_requested(word)).map(|(_, id)| *id).collect();
    purposes.dedup();
    if !purposes.is_empty() {
        let value = yasna::construct_der(|writer| {
            writer.write_sequence(|writer| {
                for id in &purposes {
                    writer.next().write_oid(&ObjectIdentifier::from_slice(id));
                }
            });
        });
        list.push((EXTENDED_KEY_USAGE, false, value));
    }
    // An empty sequence: no authority.
    list.push((BASIC_CONSTRAINTS, true, yasna::construct_der(|writer| writer.write_sequence(|_| {}))));
    if let Some(id) = authority_key {
        let value = yasna::construct_der(|writer| {
            writer.write_sequence(|writer| {
                writer.next().write_tagged_implicit(Tag::context(0), |writer| writer.write_bytes(id));
            });
        });
        list.push((AUTHORITY_KEY, false, value));
    }
    if let Some(value) = alternative_names(template.request) {
        // A certificate with an empty subject is identified by these names alone, so that they are critical.
        let absent = template.request.common_name.is_empty() && template.request.organizations.is_empty();
        list.push((ALTERNATIVE_NAME, absent, value));
    }
    list
}

fn alternative_names(request: &CertificateRequest) -> Option<Vec<u8>> {
    let text = |tag: u64, names: &[String]| -> Vec<(u64, Vec<u8>)> {
        names.iter().map(|name| (tag, name.clone().into_bytes())).collect()
    };
    let addresses = request.ip_addresses.iter().map(|ip| match ip {
        std::net::IpAddr::V4(ip) => (7, ip.octets().to_vec()),
        std::net::IpAddr::V6(ip) => (7, ip.octets().to_vec()),
    });
    let names: Vec<(u64, Vec<u8>)> = text(2, &request.dns_names)
        .into_iter()
        .chain(text(1, &request.emails))
        .chain(addresses)
        .chain(text(6, &request.uris))
        .collect();
    (!names.is_empty()).then(|| {
        yasna::construct_der(|writer| {
            writer.write_sequence(|writer| {
                for (tag, name) in &names {
                    writer.next().write_tagged_implicit(Tag::context(*tag), |writer| writer.write_bytes(name));
                }
            });
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, DnType, SanType};

    fn request_of(params: &CertificateParams) -> CertificateRequest {
        let pem = params.serialize_request(&KeyPair::generate().unwrap()).unwrap().pem().unwrap();
        CertificateRequest::verified(pem.as_bytes()).unwrap()
    }

    #[test]
    fn signed_certificates_have_the_requested_names_and_verify() {
        let dir = tempfile::tempdir().unwrap();
        let (env, _) = Env::seeded(1, "2026-01-01T00:00:00Z".parse().unwrap());
        let pki = Pki::open_or_create(dir.path(), &env, &[]).unwrap();
        let mut params = CertificateParams::new(vec!["n1.example".to_owned()]).unwrap();
        params.subject_alt_names.push(SanType::IpAddress("192.0.2.7".parse().unwrap()));
        params.distinguished_name.push(DnType::OrganizationName, "system:nodes");
        params.distinguished_name.push(DnType::CommonName, "system:node:n1");
        let request = request_of(&params);
        let usages = ["digital signature", "key encipherment", "server auth"].map(str::to_owned);
        let template = CertificateTemplate {
            request: &request,
            usages: &usages,
            not_before: "2025-12-31T23:55:00Z".parse().unwrap(),
            not_after: "2026-06-01T00:00:00Z".parse().unwrap(),
        };
        let signed = pki.sign(&template).unwrap();
        assert_eq!(machinery_rules::certificate_request::check_certificates(signed.as_bytes()), Ok(()));
        let (der, ca) = (pem::parse(&signed).unwrap(), pem::parse(pki.ca_pem()).unwrap());
        let (_, certificate) = X509Certificate::from_der(der.contents()).unwrap();
        let (_, ca) = X509Certificate::from_der(ca.contents()).unwrap();
        certificate.verify_signature(Some(ca.public_key())).unwrap();
        assert_eq!(certificate.issuer(), ca.subject());
        assert_eq!(certificate.public_key().raw, request.public_key_der);
        assert_eq!(certificate.subject().as_raw(), request.subject_der);
        assert_eq!(certificate.validity().not_after.timestamp(), template.not_after.as_second());
        let usage = certificate.key_usage().unwrap().unwrap().value;
        assert!(usage.digital_signature() && usage.key_encipherment() && !usage.key_cert_sign());
        let purposes = certificate.extended_key_usage().unwrap().unwrap().value;
        assert!(purposes.server_auth && !purposes.client_auth);
        assert!(!certificate.basic_constraints().unwrap().unwrap().value.ca);
        let names = certificate.subject_alternative_name().unwrap().unwrap();
        assert_eq!((names.critical, names.value.general_names.len()), (false, 2));

        // The lifetime is capped by the authority's, and a template that starts after its expiry is rejected.
        let long = CertificateTemplate { not_after: "2099-01-01T00:00:00Z".parse().unwrap(), ..template };
        let der = pem::parse(pki.sign(&long).unwrap()).unwrap();
        let (_, certificate) = X509Certificate::from_der(der.contents()).unwrap();
        assert_eq!(certificate.validity().not_after, ca.validity().not_after);
        let late = CertificateTemplate { not_before: "2098-01-01T00:00:00Z".parse().unwrap(), ..long };
        assert!(pki.sign(&late).unwrap_err().to_string().contains("has expired"));
    }

    #[test]
    fn an_authority_of_files_signs() {
        let dir = tempfile::tempdir().unwrap();
        let (env, _) = Env::seeded(1, "2026-01-01T00:00:00Z".parse().unwrap());
        let pki = Pki::open_or_create(dir.path(), &env, &[]).unwrap();
        let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
        let signer = CertificateSigner::from_pem(&env, pki.ca_pem(), &read("ca.key")).unwrap();
        let request = request_of(&CertificateParams::new(vec!["n1".to_owned()]).unwrap());
        let usages = ["server auth".to_owned()];
        let not_after = "2026-06-01T00:00:00Z".parse().unwrap();
        let template = CertificateTemplate { request: &request, usages: &usages, not_before: env.now(), not_after };
        assert!(signer.sign(&template).unwrap().contains("BEGIN CERTIFICATE"));
        // As kubeadm writes them.
        let (certificate, key) = (include_str!("testdata/rsa-ca.pem"), include_str!("testdata/rsa-ca.key"));
        let signed = CertificateSigner::from_pem(&env, certificate, key).unwrap().sign(&template).unwrap();
        let (der, ca) = (pem::parse(&signed).unwrap(), pem::parse(certificate).unwrap());
        let (_, ca) = X509Certificate::from_der(ca.contents()).unwrap();
        let (_, leaf) = X509Certificate::from_der(der.contents()).unwrap();
        leaf.verify_signature(Some(ca.public_key())).unwrap();
        let why = |certificate: &str, key: &str| {
            CertificateSigner::from_pem(&env, certificate, key).map(drop).unwrap_err().to_string()
        };
        assert!(why(certificate, &read("ca.key")).contains("not the certificate's"));
        assert!(why(&pki.admin().cert_pem, &pki.admin().key_pem).contains("authority's"));
        assert!(why("x", key).contains("none in PEM") && why(certificate, "x").contains("not a private key"));
        let sec1 = key.replace("RSA PRIVATE KEY", "EC PRIVATE KEY");
        assert!(why(certificate, &sec1).contains("openssl pkcs8"));
    }
}
