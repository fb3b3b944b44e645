//! The address and the credentials of a shared store. No text of this file's errors and no `Debug` contains a password.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use percent_encoding::percent_decode_str;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use url::{Host, Url};

/// Redis' port.
const PORT: u16 = 6379;
/// Maximum bytes of a password.
const PASSWORD_BYTES_MAX: usize = 4096;
const FORM: &str = "redis://[USER[:PASSWORD]@]HOST[:PORT][/DB], or rediss:// for TLS";

/// Content of the files beside the address.
#[derive(Clone, Default)]
pub struct SharedStoreFiles {
    /// The password's file, read at each connect.
    pub password: Option<PathBuf>,
    /// Authorities of the server's certificate (PEM); `None`: the public ones.
    pub ca_pem: Option<Vec<u8>>,
    /// Client certificate and its key (PEM).
    pub identity_pem: Option<(Vec<u8>, Vec<u8>)>,
}

/// A shared store: an address in Redis' form, and the files with its credentials.
#[derive(Clone)]
pub struct SharedStoreConfig {
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) database: i64,
    pub(super) user: Option<String>,
    password: Option<String>,
    password_file: Option<PathBuf>,
    tls: Option<Arc<ClientConfig>>,
}

impl fmt::Debug for SharedStoreConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SharedStoreConfig").field(&self.shown()).finish()
    }
}

impl SharedStoreConfig {
    /// Reads an address (<https://www.iana.org/assignments/uri-schemes/prov/redis>) with its files.
    ///
    /// # Errors
    /// The address has another form, the password is given twice, files of TLS belong to an address without it, or a
    /// certificate is invalid. The text doesn't contain the address.
    pub fn new(address: &str, files: SharedStoreFiles) -> Result<Self, String> {
        let form = || format!("must be {FORM}");
        let url = Url::parse(address).map_err(|_| form())?;
        let is_encrypted = match url.scheme() {
            "redis" => false,
            "rediss" => true,
            _ => return Err(form()),
        };
        if url.query().is_some() || url.fragment().is_some() {
            return Err(form());
        }
        // Only web schemes have their hosts checked by the parser.
        let host = match url.host().ok_or_else(form)? {
            Host::Domain(name) => name.to_owned(),
            Host::Ipv4(address) => address.to_string(),
            Host::Ipv6(address) => address.to_string(),
        };
        ServerName::try_from(host.as_str()).map_err(|_| form())?;
        let database = match url.path().trim_start_matches('/') {
            "" => 0,
            digits if digits.bytes().all(|digit| digit.is_ascii_digit()) => {
                digits.parse::<u16>().map_err(|_| form())?
            }
            _ => return Err(form()),
        };
        let plain = |text: &str| percent_decode_str(text).decode_utf8().map(String::from).map_err(|_| form());
        let user = Some(plain(url.username())?).filter(|user| !user.is_empty());
        let password = url.password().map(plain).transpose()?;
        if password.is_some() && files.password.is_some() {
            return Err("the password is in the address and in a file: one of them".to_owned());
        }
        if password.as_ref().is_some_and(|password| password.len() > PASSWORD_BYTES_MAX) {
            return Err(format!("the password has more than {PASSWORD_BYTES_MAX} bytes"));
        }
        if user.is_some() && password.is_none() && files.password.is_none() {
            return Err("the address names a user without a password".to_owned());
        }
        if !is_encrypted && (files.ca_pem.is_some() || files.identity_pem.is_some()) {
            return Err("certificates need an address with rediss://".to_owned());
        }
        Ok(Self {
            host,
            port: url.port().unwrap_or(PORT),
            database: database.into(),
            user,
            password,
            password_file: files.password.clone(),
            tls: if is_encrypted { Some(tls(&files)?) } else { None },
        })
    }

    /// The address without user and password, for messages.
    #[must_use]
    pub fn shown(&self) -> String {
        let scheme = if self.tls.is_some() { "rediss" } else { "redis" };
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        format!("{scheme}://{host}:{}/{}", self.port, self.database)
    }

    pub(super) fn tls(&self) -> Option<&Arc<ClientConfig>> {
        self.tls.as_ref()
    }

    /// The password as it is now.
    ///
    /// # Errors
    /// Its file can't be read, is empty or too large.
    pub fn password(&self) -> Result<Option<String>, String> {
        use std::io::Read as _;
        let Some(file) = &self.password_file else { return Ok(self.password.clone()) };
        let failed = |error: &dyn fmt::Display| format!("the password's file {}: {error}", file.display());
        let mut text = String::new();
        let opened = std::fs::File::open(file).map_err(|error| failed(&error))?;
        let bytes = PASSWORD_BYTES_MAX as u64 + 3;
        opened.take(bytes).read_to_string(&mut text).map_err(|error| failed(&error))?;
        match text.trim_end_matches(['\r', '\n']) {
            "" => Err(failed(&"is empty")),
            password if password.len() > PASSWORD_BYTES_MAX => Err(failed(&"is too large")),
            password => Ok(Some(password.to_owned())),
        }
    }
}

/// The TLS settings of connections.
fn tls(files: &SharedStoreFiles) -> Result<Arc<ClientConfig>, String> {
    let mut roots = RootCertStore::empty();
    match &files.ca_pem {
        None => roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
        Some(pem) => {
            for certificate in certificates(pem, "authorities")? {
                roots.add(certificate).map_err(|error| format!("authorities: {error}"))?;
            }
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots);
    let config = match &files.identity_pem {
        None => builder.with_no_client_auth(),
        Some((chain, key)) => {
            let chain = certificates(chain, "client certificate")?;
            let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| format!("key: {error}"))?;
            builder.with_client_auth_cert(chain, key).map_err(|error| format!("client certificate: {error}"))?
        }
    };
    Ok(Arc::new(config))
}

fn certificates(pem: &[u8], name: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match found {
        Ok(found) if found.is_empty() => Err(format!("{name}: no certificate in PEM")),
        Ok(found) => Ok(found),
        Err(error) => Err(format!("{name}: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(address: &str) -> Result<SharedStoreConfig, String> {
        SharedStoreConfig::new(address, SharedStoreFiles::default())
    }

    #[test]
    fn addresses_have_defaults() {
        let found = read("redis://h").unwrap();
        assert_eq!((&*found.shown(), found.user.clone(), found.password()), ("redis://h:6379/0", None, Ok(None)));
        let found = read("rediss://me:p%40ss:@[::1]:7/12").unwrap();
        assert_eq!((&*found.shown(), &*found.host), ("rediss://[::1]:7/12", "::1"));
        assert_eq!((found.user.as_deref(), found.password()), (Some("me"), Ok(Some("p@ss:".into()))));
        assert_eq!(format!("{found:?}"), "SharedStoreConfig(\"rediss://[::1]:7/12\")");
        assert_eq!(read("redis://:secret@127.0.0.1:1").unwrap().password(), Ok(Some("secret".into())));
    }

    #[test]
    fn other_addresses_are_refused_without_their_password() {
        for wrong in [
            "",
            "h",
            "h:1",
            "http://h",
            "redis:",
            "redis://",
            "redis://:1",
            "redis://h:99999",
            "redis://h/x",
            "redis://h/1/2",
            "redis://h/-1",
            "redis://h/70000",
            "redis://h?db=1",
            "redis://h#1",
            "redis://me@h",
            "redis://me:secret@a b",
            "redis://me:secret@h/x",
            "unix:///secret",
        ] {
            let error = read(wrong).unwrap_err();
            assert!(!error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn passwords_come_from_one_place_and_are_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("password");
        let files = || SharedStoreFiles { password: Some(file.clone()), ..SharedStoreFiles::default() };
        assert!(SharedStoreConfig::new("redis://:secret@h", files()).is_err());
        let config = SharedStoreConfig::new("redis://me@h", files()).unwrap();
        assert!(config.password().unwrap_err().contains("password"));
        for (content, wanted) in [("one\n", Some("one")), ("two words \r\n", Some("two words ")), ("\n", None)] {
            std::fs::write(&file, content).unwrap();
            assert_eq!(config.password().ok().flatten().as_deref(), wanted);
        }
        std::fs::write(&file, "x".repeat(PASSWORD_BYTES_MAX + 1)).unwrap();
        assert!(config.password().unwrap_err().ends_with("is too large"));
    }

    #[test]
    fn certificates_need_tls_and_are_checked_at_the_start() {
        let of = |address, pem: &str| {
            SharedStoreConfig::new(
                address,
                SharedStoreFiles { ca_pem: Some(pem.into()), ..SharedStoreFiles::default() },
            )
        };
        assert_eq!(of("redis://h", "").unwrap_err(), "certificates need an address with rediss://");
        assert_eq!(of("rediss://h", "x").unwrap_err(), "authorities: no certificate in PEM");
        let garbage = "-----BEGIN CERTIFICATE-----\neA==\n-----END CERTIFICATE-----\n";
        assert!(of("rediss://h", garbage).unwrap_err().starts_with("authorities: "));
    }
}
