//! Parses and checks certificate requests (PKCS#10) and certificates in PEM, as in CertificateSigningRequests. The
//! input is untrusted: it comes from every user who may create a CertificateSigningRequest.

use std::net::IpAddr;

use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::x509::X509Name;

/// Maximum size, far above any real request or certificate.
const PEM_BYTES_MAX: usize = 1 << 20;
const REQUEST: &str = "CERTIFICATE REQUEST";
const CERTIFICATE: &str = "CERTIFICATE";

/// The requested properties of a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateRequest {
    /// The subject's common name: the user of a client certificate.
    pub common_name: String,
    /// The subject's organizations: the groups of a client certificate.
    pub organizations: Vec<String>,
    /// Alternative names that are DNS names.
    pub dns_names: Vec<String>,
    /// Alternative names that are addresses.
    pub ip_addresses: Vec<IpAddr>,
    /// Alternative names that are mail addresses.
    pub emails: Vec<String>,
    /// Alternative names that are URIs.
    pub uris: Vec<String>,
    /// The subject in DER, as in the request.
    pub subject_der: Vec<u8>,
    /// The public key in DER, as in the request.
    pub public_key_der: Vec<u8>,
}

impl CertificateRequest {
    /// Parses the first PEM block; [`verified`](Self::verified) also checks its signature.
    pub fn parse(pem: &[u8]) -> Result<Self, String> {
        let der = request_der(pem)?;
        read(&request(&der)?)
    }

    /// The number of attributes in the subject; none: it can't be read.
    #[must_use]
    pub fn subject_attributes(&self) -> Option<usize> {
        let (rest, subject) = X509Name::from_der(&self.subject_der).ok()?;
        rest.is_empty().then(|| subject.iter_attributes().count())
    }

    /// Parses a request and checks its signature by its own key.
    pub fn verified(pem: &[u8]) -> Result<Self, String> {
        let der = request_der(pem)?;
        let request = request(&der)?;
        let parsed = read(&request)?;
        if request.verify_signature().is_err() {
            return Err("x509: the signature is not one of the request's key".into());
        }
        Ok(parsed)
    }
}

fn request_der(pem: &[u8]) -> Result<Vec<u8>, String> {
    let wrong = || format!("PEM block type must be {REQUEST}");
    if pem.len() > PEM_BYTES_MAX {
        return Err("the request is too long".into());
    }
    let block = pem::parse(pem).map_err(|_| wrong())?;
    if block.tag() == REQUEST { Ok(block.into_contents()) } else { Err(wrong()) }
}

fn request(der: &[u8]) -> Result<X509CertificationRequest<'_>, String> {
    match X509CertificationRequest::from_der(der) {
        Ok(([], request)) => Ok(request),
        Ok(_) => Err("asn1: syntax error: trailing data".into()),
        Err(_) => Err("asn1: structure error: not a certificate request".into()),
    }
}

fn read(request: &X509CertificationRequest<'_>) -> Result<CertificateRequest, String> {
    let info = &request.certification_request_info;
    // A name in another string type is an error: who verifies the certificate may read what is skipped here.
    let texts = |found: &mut dyn Iterator<Item = &x509_parser::x509::AttributeTypeAndValue<'_>>| {
        let texts = found.map(|part| part.as_str().map(str::to_owned)).collect::<Result<Vec<String>, _>>();
        texts.map_err(|_| "x509: the subject has a name in an unsupported string type".to_owned())
    };
    let mut parsed = CertificateRequest {
        // As in Go: the last one counts.
        common_name: texts(&mut info.subject.iter_common_name())?.pop().unwrap_or_default(),
        organizations: texts(&mut info.subject.iter_organization())?,
        dns_names: Vec::new(),
        ip_addresses: Vec::new(),
        emails: Vec::new(),
        uris: Vec::new(),
        subject_der: info.subject.as_raw().to_vec(),
        public_key_der: info.subject_pki.raw.to_vec(),
    };
    for extension in request.requested_extensions().into_iter().flatten() {
        let ParsedExtension::SubjectAlternativeName(alternative) = extension else { continue };
        for name in &alternative.general_names {
            match name {
                GeneralName::DNSName(name) => parsed.dns_names.push((*name).to_owned()),
                GeneralName::RFC822Name(name) => parsed.emails.push((*name).to_owned()),
                GeneralName::URI(name) => parsed.uris.push((*name).to_owned()),
                GeneralName::IPAddress(bytes) => parsed.ip_addresses.push(address(bytes)?),
                _ => {}
            }
        }
    }
    Ok(parsed)
}

fn address(bytes: &[u8]) -> Result<IpAddr, String> {
    if let Ok(four) = <[u8; 4]>::try_from(bytes) {
        return Ok(IpAddr::from(four));
    }
    let sixteen = <[u8; 16]>::try_from(bytes);
    sixteen.map(IpAddr::from).map_err(|_| format!("x509: cannot parse IP address of length {}", bytes.len()))
}

/// Checks certificates in PEM: at least one block, certificates only, no headers.
pub fn check_certificates(pem: &[u8]) -> Result<(), String> {
    for block in blocks(pem)? {
        if block.tag() != CERTIFICATE {
            return Err(format!("only CERTIFICATE PEM blocks are allowed, found {:?}", block.tag()));
        }
        if block.headers().iter().next().is_some() {
            return Err("no PEM block headers are permitted".into());
        }
        match X509Certificate::from_der(block.contents()) {
            Ok(([], _)) => {}
            Ok(_) => return Err("x509: trailing data".into()),
            Err(_) => return Err("x509: malformed certificate".into()),
        }
    }
    Ok(())
}

/// The end of validity of the first certificate in PEM, in seconds since 1970.
#[must_use]
pub fn ends_at(pem: &[u8]) -> Option<i64> {
    let first = blocks(pem).ok()?.into_iter().next()?;
    let (_, certificate) = X509Certificate::from_der(first.contents()).ok()?;
    Some(certificate.validity().not_after.timestamp())
}

fn blocks(pem: &[u8]) -> Result<Vec<pem::Pem>, String> {
    if pem.len() > PEM_BYTES_MAX {
        return Err("the certificate is too long".into());
    }
    let none = || "must contain at least one CERTIFICATE PEM block".to_owned();
    let blocks = pem::parse_many(pem).map_err(|_| none())?;
    if blocks.is_empty() { Err(none()) } else { Ok(blocks) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of `openssl req`-like tools: O=team, CN=ann, key P-256, as in the recorded answers.
    const ANN: &str = include_str!("testdata/certificate-request.pem");

    #[test]
    fn a_request_names_its_subject() {
        let request = CertificateRequest::verified(ANN.as_bytes()).unwrap();
        assert_eq!((request.common_name.as_str(), request.organizations.as_slice()), ("ann", &["team".to_owned()][..]));
        assert!(request.dns_names.is_empty() && request.ip_addresses.is_empty());
        // One bit of the signature, which is at the end.
        let mut der = pem::parse(ANN).unwrap().into_contents();
        *der.last_mut().unwrap() ^= 1;
        let forged = pem::encode(&pem::Pem::new(REQUEST, der.clone()));
        assert!(CertificateRequest::parse(forged.as_bytes()).is_ok());
        assert!(CertificateRequest::verified(forged.as_bytes()).unwrap_err().contains("signature"));
        der.push(0);
        let longer = pem::encode(&pem::Pem::new(REQUEST, der));
        assert_eq!(CertificateRequest::parse(longer.as_bytes()), Err("asn1: syntax error: trailing data".into()));
    }

    #[test]
    fn invalid_requests_are_errors() {
        let wrong = Err("PEM block type must be CERTIFICATE REQUEST".to_owned());
        assert_eq!(CertificateRequest::parse(b""), wrong);
        assert_eq!(CertificateRequest::parse(&[0, 1, 2]), wrong);
        let other = ANN.replace("CERTIFICATE REQUEST", "CERTIFICATE");
        assert_eq!(CertificateRequest::parse(other.as_bytes()), wrong);
        assert_eq!(check_certificates(b"x"), Err("must contain at least one CERTIFICATE PEM block".into()));
        let found = "only CERTIFICATE PEM blocks are allowed, found \"CERTIFICATE REQUEST\"";
        assert_eq!(check_certificates(ANN.as_bytes()), Err(found.into()));
        assert_eq!(check_certificates(other.as_bytes()), Err("x509: malformed certificate".into()));
    }

    #[test]
    fn any_bytes_are_read_or_refused() {
        let whole = ANN.as_bytes().to_vec();
        bolero::check!().with_type::<Vec<u8>>().for_each(|bytes| {
            let _ = CertificateRequest::verified(bytes);
            let _ = check_certificates(bytes);
            let as_request = pem::encode(&pem::Pem::new(REQUEST, bytes.clone()));
            let _ = CertificateRequest::verified(as_request.as_bytes());
            // A request with some bytes of its own changed.
            let mut changed = whole.clone();
            for pair in bytes.chunks_exact(2) {
                let at = usize::from(pair[0]) % changed.len();
                changed[at] = pair[1];
            }
            let _ = CertificateRequest::verified(&changed);
        });
    }
}
