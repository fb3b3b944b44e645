//! The holder's side of certificates: requests for them, and the content of the own ones.

use jiff::Timestamp;
use machinery_env::Env;
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, SanType};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::certificates::certified;
use super::leaf::Leaf;
use super::pki::{Identity, PkiError, self_signed_params};

/// A new key, and a request for its certificate.
#[derive(Clone)]
pub struct CertificateOrder {
    /// The request in PEM (PKCS #10).
    pub request_pem: String,
    /// The private key in PEM (PKCS #8).
    pub key_pem: String,
}

impl std::fmt::Debug for CertificateOrder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("CertificateOrder(…)")
    }
}

impl CertificateOrder {
    /// Makes an ECDSA P-256 key and a request with the user as CN, the group as O, and these names and addresses.
    ///
    /// # Errors
    /// If a name is no ASCII text.
    pub fn new(user: &str, group: &str, names: &[String]) -> Result<Self, PkiError> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.subject_alt_names = alternative_names(names)?;
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, group);
        params.distinguished_name.push(DnType::CommonName, user);
        let key = KeyPair::generate()?;
        Ok(Self { request_pem: params.serialize_request(&key)?.pem()?, key_pem: key.serialize_pem() })
    }
}

/// Names and addresses as alternative names.
pub(super) fn alternative_names(names: &[String]) -> Result<Vec<SanType>, PkiError> {
    let alternative = |name: &String| {
        Ok(match name.parse() {
            Ok(ip) => SanType::IpAddress(ip),
            Err(_) => SanType::DnsName(name.clone().try_into()?),
        })
    };
    names.iter().map(alternative).collect()
}

/// A serving certificate that is signed by its own key, valid for a year: clients that verify it refuse it.
///
/// # Errors
/// If a name is no ASCII text.
pub fn self_signed(env: &Env, user: &str, names: &[String]) -> Result<Identity, PkiError> {
    let params = self_signed_params(env, user, names)?;
    let key = KeyPair::generate()?;
    Ok(Identity { cert_pem: params.self_signed(&key)?.pem(), key_pem: key.serialize_pem() })
}

/// The content of a certificate whose key is at hand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnCertificate {
    /// The last common name.
    pub user: String,
    /// The organizations.
    pub groups: Vec<String>,
    /// The DNS names and IP addresses.
    pub names: Vec<String>,
    /// The start of its validity.
    pub not_before: Timestamp,
    /// The end of its validity.
    pub not_after: Timestamp,
}

impl OwnCertificate {
    /// Reads the first certificate, and checks that the key is its own.
    ///
    /// # Errors
    /// If certificate or key can't be read or don't belong together.
    pub fn read(identity: &Identity) -> Result<Self, PkiError> {
        certified(identity)?;
        let failed = |why: &str| PkiError::Issue(why.to_owned());
        let leaf = Leaf::parse(&identity.cert_pem).ok_or_else(|| failed("the certificate can't be read"))?;
        let der = CertificateDer::from_pem_slice(identity.cert_pem.as_bytes()).map_err(|e| failed(&e.to_string()))?;
        let (_, certificate) = X509Certificate::from_der(&der).map_err(|e| failed(&e.to_string()))?;
        let time = |seconds: i64| Timestamp::from_second(seconds).map_err(|e| failed(&e.to_string()));
        let subject = certificate.subject();
        let text = |part: &x509_parser::x509::AttributeTypeAndValue<'_>| part.as_str().map(str::to_owned).ok();
        Ok(Self {
            user: subject.iter_common_name().last().and_then(text).unwrap_or_default(),
            groups: subject.iter_organization().filter_map(text).collect(),
            names: leaf.names,
            not_before: time(certificate.validity().not_before.timestamp())?,
            not_after: time(certificate.validity().not_after.timestamp())?,
        })
    }
}

/// The period in which a certificate is valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// Its start.
    pub not_before: Timestamp,
    /// Its end.
    pub not_after: Timestamp,
}

impl Validity {
    pub(super) fn of(certificate: &X509Certificate<'_>) -> Option<Self> {
        let (start, end) = (certificate.validity().not_before, certificate.validity().not_after);
        Some(Self {
            not_before: Timestamp::from_second(start.timestamp()).ok()?,
            not_after: Timestamp::from_second(end.timestamp()).ok()?,
        })
    }

    /// Whether the period contains a time. Both ends are inside, as in upstream's verification.
    #[must_use]
    pub fn contains(&self, now: Timestamp) -> bool {
        (self.not_before..=self.not_after).contains(&now)
    }
}

/// The validity of the first certificate in a PEM text; `None` if it has none that can be read.
#[must_use]
pub fn validity(pem: &str) -> Option<Validity> {
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).ok()?;
    let (_, certificate) = X509Certificate::from_der(&der).ok()?;
    Validity::of(&certificate)
}

#[cfg(test)]
mod tests {
    use machinery_rules::certificate_request::CertificateRequest;

    use super::super::pki::Pki;
    use super::super::signing::CertificateTemplate;
    use super::*;

    #[test]
    fn an_order_passes_the_servers_checks_and_its_certificate_is_held() {
        let dir = tempfile::tempdir().unwrap();
        let (env, _) = Env::seeded(1, "2026-01-01T00:00:00Z".parse().unwrap());
        let pki = Pki::open_or_create(dir.path(), &env, &[]).unwrap();
        let names = ["n1", "192.0.2.1", "2001:db8::1"].map(str::to_owned);
        let order = CertificateOrder::new("system:node:n1", "system:nodes", &names).unwrap();
        let request = CertificateRequest::verified(order.request_pem.as_bytes()).unwrap();
        assert_eq!(request.subject_attributes(), Some(2));
        assert_eq!(
            (request.common_name.as_str(), request.organizations.as_slice()),
            ("system:node:n1", &["system:nodes".to_owned()][..])
        );
        assert_eq!((request.dns_names.len(), request.ip_addresses.len()), (1, 2));
        let usages = ["digital signature".to_owned(), "server auth".to_owned()];
        let not_after: Timestamp = "2026-06-01T00:00:00Z".parse().unwrap();
        let template = CertificateTemplate { request: &request, usages: &usages, not_before: env.now(), not_after };
        let cert_pem = pki.sign(&template).unwrap();
        let held = OwnCertificate::read(&Identity { cert_pem: cert_pem.clone(), key_pem: order.key_pem }).unwrap();
        assert_eq!((held.user.as_str(), held.names.as_slice()), ("system:node:n1", names.as_slice()));
        assert_eq!((held.not_before, held.not_after), (env.now(), not_after));
        let read = validity(&cert_pem);
        assert_eq!(read, Some(Validity { not_before: env.now(), not_after }));
        let other = pki.issue_client("x", "").unwrap();
        assert_eq!(validity(&other.key_pem), None);
        for (cert_pem, key_pem) in
            [(cert_pem, other.key_pem.clone()), (String::new(), other.key_pem), (other.cert_pem, String::new())]
        {
            assert!(OwnCertificate::read(&Identity { cert_pem, key_pem }).is_err());
        }
    }

    #[test]
    fn a_self_signed_certificate_is_read() {
        let (env, _) = Env::seeded(1, "2026-01-01T00:00:00Z".parse().unwrap());
        let identity = self_signed(&env, "n1", &["n1".to_owned()]).unwrap();
        let held = OwnCertificate::read(&identity).unwrap();
        assert_eq!((held.user.as_str(), held.names), ("n1", vec!["n1".to_owned()]));
        assert!(held.not_before < env.now() && held.not_after > env.now());
        assert!(self_signed(&env, "n1", &["ü".to_owned()]).is_err());
    }
}
