//! The keys that all API servers of a cluster have: the authority and the key of service account tokens.

use std::path::Path;

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use serde_json::{Value, json};
use x509_parser::prelude::FromDer as _;

use super::folder::PkiFolder;
use super::pki::{PkiError, hash_of_public_key};

/// The keys, in PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct SharedKeys {
    authority: String,
    authority_key: String,
    service_account_key: String,
}

impl std::fmt::Debug for SharedKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SharedKeys(…)")
    }
}

impl SharedKeys {
    /// Whether a folder has an authority, and so the keys of a cluster.
    #[must_use]
    pub fn are_in(folder: &Path) -> bool {
        folder.join("ca.crt").exists()
    }

    /// Reads the keys from the folder of an API server.
    ///
    /// # Errors
    /// If a file is missing or can't be read.
    pub fn read(folder: &Path) -> Result<Self, PkiError> {
        let files = PkiFolder::existing(folder);
        Ok(Self {
            authority: files.read_required("ca.crt")?,
            authority_key: files.read_required("ca.key")?,
            service_account_key: files.read_required("sa.key")?,
        })
    }

    /// Writes the keys to a folder, readable by this user only. The authority is last: without it, there are no keys.
    ///
    /// # Errors
    /// If the folder can't be written.
    pub fn write(&self, folder: &Path) -> Result<(), PkiError> {
        let files = PkiFolder::open(folder)?;
        files.write("sa.key", &self.service_account_key)?;
        files.write("ca.key", &self.authority_key)?;
        files.write("ca.crt", &self.authority)
    }

    /// The authority's hash; none: it is no certificate.
    #[must_use]
    pub fn authority_hash(&self) -> Option<String> {
        Authority::parse(&self.authority).map(|authority| authority.hash)
    }

    /// The keys as JSON, which another machine reads.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        let Self { authority, authority_key, service_account_key } = self;
        let keys = json!({"ca.crt": authority, "ca.key": authority_key, "sa.key": service_account_key});
        keys.to_string().into_bytes()
    }

    /// Reads the JSON of [`SharedKeys::to_json`]; none: it is something else.
    #[must_use]
    pub fn from_json(json: &[u8]) -> Option<Self> {
        let keys: Value = serde_json::from_slice(json).ok()?;
        let file = |name: &str| keys[name].as_str().map(str::to_owned);
        Some(Self { authority: file("ca.crt")?, authority_key: file("ca.key")?, service_account_key: file("sa.key")? })
    }
}

/// The certificate of a cluster's authority.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authority {
    /// The certificate in DER.
    pub der: Vec<u8>,
    /// As [`Pki::ca_hash`](super::pki::Pki::ca_hash).
    pub hash: String,
}

impl Authority {
    /// Reads one certificate in PEM; none: it is none, or several.
    #[must_use]
    pub fn parse(pem: &str) -> Option<Self> {
        let mut certificates = CertificateDer::pem_slice_iter(pem.as_bytes());
        let only = certificates.next()?.ok()?;
        if certificates.next().is_some() {
            return None;
        }
        Self::from_der(&only)
    }

    /// The certificate in PEM.
    #[must_use]
    pub fn pem(&self) -> String {
        let config = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
        pem::encode_config(&pem::Pem::new("CERTIFICATE", self.der.as_slice()), config)
    }

    /// Reads a certificate in DER; none: it is none.
    #[must_use]
    pub fn from_der(der: &[u8]) -> Option<Self> {
        let (_, certificate) = x509_parser::certificate::X509Certificate::from_der(der).ok()?;
        let hash = hash_of_public_key(certificate.public_key().raw);
        Some(Self { der: der.to_vec(), hash })
    }
}

#[cfg(test)]
mod tests {
    use machinery_env::Env;

    use super::super::pki::Pki;
    use super::*;

    #[test]
    fn a_second_folder_has_the_same_authority() {
        let (env, _) = Env::seeded(1, "2026-01-01T00:00:00Z".parse().unwrap());
        let folder = tempfile::tempdir().unwrap();
        let (one, two) = (folder.path().join("one"), folder.path().join("two"));
        assert!(SharedKeys::read(&one).unwrap_err().to_string().contains("ca.crt"));
        let first = Pki::open_or_create(&one, &env, &[]).unwrap();
        let keys = SharedKeys::read(&one).unwrap();
        assert_eq!(keys.authority_hash(), Some(first.ca_hash()));
        assert_eq!(SharedKeys::from_json(&keys.to_json()), Some(keys.clone()));
        assert_eq!(SharedKeys::from_json(b"{}"), None);
        keys.write(&two).unwrap();
        assert!(SharedKeys::are_in(&two));
        let second = Pki::open_or_create(&two, &env, &[]).unwrap();
        assert_eq!((first.ca_hash(), first.ca_pem()), (second.ca_hash(), second.ca_pem()));
        assert_eq!(first.service_account().id(), second.service_account().id());
        assert_eq!(format!("{keys:?}"), "SharedKeys(…)");
        let authority = Authority::parse(first.ca_pem()).unwrap();
        assert_eq!(Authority::parse(&authority.pem()), Some(authority));
        for bad in ["", "x", &format!("{0}{0}", first.ca_pem())] {
            assert_eq!(Authority::parse(bad), None);
        }
    }
}
