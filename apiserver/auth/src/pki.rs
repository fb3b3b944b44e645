//! The cluster's certificate authority: the serving and client certificates and the key for service account tokens. All
//! are stored in one folder and renewed before they expire.

use std::collections::HashSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use machinery_env::Env;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData as _, SerialNumber,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest as _, Sha256};

use super::certificates::{self, Fingerprint};
use super::folder::PkiFolder;
use super::jwt::SigningKey;
use super::leaf::Leaf;
use super::own_certificates::{Validity, alternative_names};

/// The lifetime of the authority, as kubeadm's.
const CA_VALID: Duration = Duration::from_hours(10 * 365 * 24);
/// The lifetime of issued certificates, as kubeadm's.
const LEAF_VALID: Duration = Duration::from_hours(365 * 24);
/// Certificates with less remaining lifetime than this are renewed.
const LEAF_RENEW: Duration = Duration::from_hours(90 * 24);
/// `notBefore` is this much in the past, for machines whose clocks are behind.
const BACKDATE: Duration = Duration::from_mins(5);
/// The API server's names inside the cluster.
const SERVER_NAMES: [&str; 5] =
    ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local", "localhost"];

/// Why keys or certificates could not be read or created.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: String,
        /// The cause.
        source: std::io::Error,
    },
    /// A file has invalid content.
    #[error("{path} is damaged: {why}; restore it, or remove the whole pki folder to make new keys")]
    Damaged {
        /// The file.
        path: String,
        /// The reason.
        why: String,
    },
    /// The list of revoked certificates is invalid.
    #[error("{}: {why}; fix the line, or remove the file to revoke no certificate", path.display())]
    Revoked {
        /// The file.
        path: PathBuf,
        /// The reason.
        why: String,
    },
    /// A certificate could not be issued.
    #[error("cannot issue a certificate: {0}")]
    Issue(String),
}

impl From<rcgen::Error> for PkiError {
    fn from(error: rcgen::Error) -> Self {
        Self::Issue(error.to_string())
    }
}

/// A certificate (PEM) and its private key.
#[derive(Clone, PartialEq, Eq)]
pub struct Identity {
    /// The certificate in PEM.
    pub cert_pem: String,
    /// The private key in PEM (PKCS#8).
    pub key_pem: String,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Identity(…)")
    }
}

impl Identity {
    /// Converts the certificates and the key for rustls.
    pub fn der(&self) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), PkiError> {
        let certs = CertificateDer::pem_slice_iter(self.cert_pem.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .map_err(|e| PkiError::Issue(e.to_string()))?;
        let key = PrivateKeyDer::from_pem_slice(self.key_pem.as_bytes()).map_err(|e| PkiError::Issue(e.to_string()))?;
        Ok((certs, key))
    }
}

/// The certificates that are renewed automatically.
#[derive(Debug, Clone)]
pub struct IssuedCertificates {
    /// The API server's serving certificate.
    pub serving: Identity,
    /// The client certificate of `kubernetes-admin` in `system:masters`.
    pub admin: Identity,
}

/// The cluster's keys and certificates.
pub struct Pki {
    env: Env,
    dir: PathBuf,
    /// The names and addresses of the API server.
    names: Vec<String>,
    ca_pem: String,
    issuer: Issuer<'static, KeyPair>,
    serving: Identity,
    admin: Identity,
    /// The certificates at the last read of the folder.
    last_read: Mutex<IssuedCertificates>,
    service_account: Arc<SigningKey>,
}

impl std::fmt::Debug for Pki {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Pki(…)")
    }
}

/// Checks the files of a folder that [`Pki::open_or_create`] and [`Pki::revoked`] can't do without. Writes nothing: another
/// process may own the folder.
///
/// # Errors
/// If one of them is damaged.
pub fn check(dir: &Path) -> Result<(), PkiError> {
    if !dir.exists() {
        return Ok(());
    }
    let files = PkiFolder::existing(dir);
    if let (Some(cert), Some(key)) = (files.read("ca.crt")?, files.read("ca.key")?) {
        parse_authority(&files, cert, &key)?;
    }
    if let Some(pem) = files.read("sa.key")? {
        SigningKey::from_pem(&pem).map_err(|e| files.damaged("sa.key", &e))?;
    }
    read_revoked(&files, dir).map(drop)
}

/// The authority of a certificate and a key.
fn parse_authority(files: &PkiFolder, cert: String, key: &str) -> Result<(String, Issuer<'static, KeyPair>), PkiError> {
    let key = KeyPair::from_pem(key).map_err(|e| files.damaged("ca.key", &e))?;
    let public = key.public_key_raw().to_vec();
    let issuer = Issuer::from_ca_cert_pem(&cert, key).map_err(|e| files.damaged("ca.crt", &e))?;
    match Leaf::parse(&cert) {
        Some(leaf) if leaf.public_key == public => Ok((cert, issuer)),
        _ => Err(files.damaged("ca.crt", &"it doesn't belong to ca.key")),
    }
}

fn read_revoked(files: &PkiFolder, dir: &Path) -> Result<HashSet<Fingerprint>, PkiError> {
    let text = files.read("revoked")?.unwrap_or_default();
    certificates::read_revoked(&text).map_err(|why| PkiError::Revoked { path: dir.join("revoked"), why })
}

impl Pki {
    /// Opens the folder and creates missing files. `sans` are names and addresses of the API server other than the
    /// fixed ones: bind addresses and the address of the `kubernetes` Service.
    ///
    /// The serving and admin certificates are reissued if the names change or expiry is near. The authority and the
    /// token key are created once and never replaced.
    pub fn open_or_create(dir: &Path, env: &Env, sans: &[String]) -> Result<Self, PkiError> {
        let files = PkiFolder::open(dir)?;
        let (ca_pem, issuer) = match (files.read("ca.crt")?, files.read("ca.key")?) {
            (Some(cert), Some(key)) => parse_authority(&files, cert, &key)?,
            (None, None) => {
                let key = KeyPair::generate()?;
                let params = authority_params(env)?;
                let cert = params.self_signed(&key)?.pem();
                // The key is written first: a certificate without its key would be unusable.
                files.write("ca.key", &key.serialize_pem())?;
                files.write("ca.crt", &cert)?;
                let issuer = Issuer::from_ca_cert_pem(&cert, key)?;
                (cert, issuer)
            }
            // A start was interrupted between the two files. Nothing has been issued with that key yet.
            (None, Some(key)) => {
                let key = KeyPair::from_pem(&key).map_err(|e| files.damaged("ca.key", &e))?;
                let cert = authority_params(env)?.self_signed(&key)?.pem();
                files.write("ca.crt", &cert)?;
                let issuer = Issuer::from_ca_cert_pem(&cert, key)?;
                (cert, issuer)
            }
            (Some(_), None) => return Err(files.damaged("ca.key", &"it is missing beside ca.crt")),
        };
        let service_account = match files.read("sa.key")? {
            Some(pem) => SigningKey::from_pem(&pem).map_err(|e| files.damaged("sa.key", &e))?,
            None => {
                let key = KeyPair::generate()?;
                let pem = key.serialize_pem();
                files.write("sa.key", &pem)?;
                SigningKey::from_pem(&pem).map_err(|e| PkiError::Issue(e.to_string()))?
            }
        };
        files.write_changed("sa.pub", &service_account.public_pem())?;

        let mut names: Vec<String> = SERVER_NAMES.iter().map(ToString::to_string).collect();
        names.extend(["127.0.0.1".to_owned(), "::1".to_owned()]);
        for san in sans {
            let unspecified = san.parse::<IpAddr>().is_ok_and(|ip| ip.is_unspecified());
            if !unspecified && !names.contains(san) {
                names.push(san.clone());
            }
        }
        let certificates = load_certificates(&files, env, &issuer, &names, None)?;
        Ok(Self {
            env: env.clone(),
            dir: dir.to_owned(),
            names,
            ca_pem,
            issuer,
            serving: certificates.serving.clone(),
            admin: certificates.admin.clone(),
            last_read: Mutex::new(certificates),
            service_account: Arc::new(service_account),
        })
    }

    /// Reads the serving and admin certificates from the folder, and reissues them if expiry is near.
    ///
    /// # Errors
    /// Fails if the folder cannot be read or written.
    pub fn reload_and_renew(&self) -> Result<IssuedCertificates, PkiError> {
        let mut last_read = self.last_read.lock().unwrap_or_else(PoisonError::into_inner);
        *last_read =
            load_certificates(&PkiFolder::open(&self.dir)?, &self.env, &self.issuer, &self.names, Some(&last_read))?;
        Ok(last_read.clone())
    }

    /// The revoked client certificates, from the folder's file `revoked`.
    ///
    /// # Errors
    /// Fails if the file cannot be read or has invalid content.
    pub fn revoked(&self) -> Result<HashSet<Fingerprint>, PkiError> {
        read_revoked(&PkiFolder::existing(&self.dir), &self.dir)
    }

    /// The authority's certificate in PEM.
    #[must_use]
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// The authority's hash, as kubeadm's `--discovery-token-ca-cert-hash`: `sha256:` and the SHA-256 of its public key
    /// (SubjectPublicKeyInfo, DER) in hexadecimal.
    #[must_use]
    pub fn ca_hash(&self) -> String {
        hash_of_public_key(&self.issuer.key().subject_public_key_info())
    }

    /// A certificate of this authority and then the authority's own: a client that knows only the authority's hash finds it
    /// there.
    #[must_use]
    pub fn with_authority(&self, leaf: &Identity) -> Identity {
        Identity { cert_pem: format!("{}{}", leaf.cert_pem, self.ca_pem), key_pem: leaf.key_pem.clone() }
    }

    /// The API server's serving certificate.
    #[must_use]
    pub fn serving(&self) -> &Identity {
        &self.serving
    }

    pub(super) fn issuer(&self) -> &Issuer<'static, KeyPair> {
        &self.issuer
    }

    pub(super) fn env(&self) -> &Env {
        &self.env
    }

    /// The client certificate of `kubernetes-admin` in `system:masters`.
    #[must_use]
    pub fn admin(&self) -> &Identity {
        &self.admin
    }

    /// The key that signs service account tokens.
    #[must_use]
    pub fn service_account(&self) -> &Arc<SigningKey> {
        &self.service_account
    }

    /// Issues a client certificate with the user as CN and the group as O (none if empty).
    pub fn issue_client(&self, user: &str, group: &str) -> Result<Identity, PkiError> {
        issue(&self.env, &self.issuer, &CertificateSpec { name: user, group, sans: &[], server: false, client: true })
    }

    /// Issues a serving certificate, such as a kubelet's (`system:node:NAME` in `system:nodes`, with its names and
    /// addresses).
    pub fn issue_serving(&self, name: &str, group: &str, sans: &[String]) -> Result<Identity, PkiError> {
        issue(&self.env, &self.issuer, &CertificateSpec { name, group, sans, server: true, client: false })
    }
}

/// A self-contained kubeconfig with the context `coracle`.
#[must_use]
pub fn kubeconfig(server: &str, ca_pem: &str, user: &str, identity: &Identity) -> String {
    use base64::Engine as _;
    let b64 = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
    // JSON strings are YAML strings, so that no value can break the structure.
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    format!(
        "apiVersion: v1\nkind: Config\nclusters:\n- name: coracle\n  cluster:\n    server: {server}\n    \
         certificate-authority-data: {ca}\nusers:\n- name: {user}\n  user:\n    client-certificate-data: {cert}\n    \
         client-key-data: {key}\ncontexts:\n- name: coracle\n  context:\n    cluster: coracle\n    user: {user}\n\
         current-context: coracle\npreferences: {{}}\n",
        server = quoted(server),
        user = quoted(user),
        ca = b64(ca_pem),
        cert = b64(&identity.cert_pem),
        key = b64(&identity.key_pem),
    )
}

/// The hash of a public key (SubjectPublicKeyInfo, DER): `sha256:` and hexadecimal digits.
pub(super) fn hash_of_public_key(der: &[u8]) -> String {
    let hex = Sha256::digest(der).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    format!("sha256:{hex}")
}

/// The contents of a certificate to issue.
struct CertificateSpec<'a> {
    name: &'a str,
    group: &'a str,
    sans: &'a [String],
    server: bool,
    client: bool,
}

fn load_certificates(
    files: &PkiFolder,
    env: &Env,
    issuer: &Issuer<'static, KeyPair>,
    names: &[String],
    last_read: Option<&IssuedCertificates>,
) -> Result<IssuedCertificates, PkiError> {
    let spec = CertificateSpec { name: "kube-apiserver", group: "", sans: names, server: true, client: false };
    let serving = load_or_issue(files, "apiserver", env, issuer, &spec, last_read.map(|last_read| &last_read.serving))?;
    let spec =
        CertificateSpec { name: "kubernetes-admin", group: super::MASTERS, sans: &[], server: false, client: true };
    let admin = load_or_issue(files, "admin", env, issuer, &spec, last_read.map(|last_read| &last_read.admin))?;
    Ok(IssuedCertificates { serving, admin })
}

/// Reads `<stem>.crt` and `<stem>.key`, and reissues them if they are missing, invalid, for other names, or near
/// expiry. If both equal `last_read`, only the expiry is checked, which avoids generating a key for the comparison.
fn load_or_issue(
    files: &PkiFolder,
    stem: &str,
    env: &Env,
    issuer: &Issuer<'static, KeyPair>,
    spec: &CertificateSpec<'_>,
    last_read: Option<&Identity>,
) -> Result<Identity, PkiError> {
    let (cert_file, key_file) = (format!("{stem}.crt"), format!("{stem}.key"));
    if let (Some(cert_pem), Some(key_pem)) = (files.read(&cert_file)?, files.read(&key_file)?)
        && let Some(leaf) = Leaf::parse(&cert_pem)
        && is_current(&leaf.valid, env.now())
    {
        let loaded = Identity { cert_pem, key_pem };
        if last_read == Some(&loaded) || matches_spec(&leaf, &loaded.key_pem, env, issuer, spec)? {
            return Ok(loaded);
        }
    }
    let identity = issue(env, issuer, spec)?;
    files.write(&key_file, &identity.key_pem)?;
    files.write(&cert_file, &identity.cert_pem)?;
    Ok(identity)
}

/// Whether a certificate is valid now and has time left. One of the future was issued before the clock was set back: no client
/// accepts it.
fn is_current(valid: &Validity, now: Timestamp) -> bool {
    valid.contains(now) && now.saturating_add(LEAF_RENEW).is_ok_and(|renewal| renewal < valid.not_after)
}

/// Whether the certificate has the names, subject and issuer of one issued now, and belongs to the key.
fn matches_spec(
    leaf: &Leaf,
    key_pem: &str,
    env: &Env,
    issuer: &Issuer<'static, KeyPair>,
    spec: &CertificateSpec<'_>,
) -> Result<bool, PkiError> {
    let Ok(key) = KeyPair::from_pem(key_pem) else { return Ok(false) };
    let fresh = Leaf::parse(&issue(env, issuer, spec)?.cert_pem);
    let same = fresh.is_some_and(|fresh| {
        fresh.names == leaf.names && fresh.subject == leaf.subject && fresh.issuer_key == leaf.issuer_key
    });
    Ok(same && leaf.public_key == key.public_key_raw())
}

fn authority_params(env: &Env) -> Result<CertificateParams, PkiError> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name = DistinguishedName::new();
    // The same name in every cluster: key identifiers tell authorities apart (`matches_spec`).
    params.distinguished_name.push(DnType::CommonName, "coracle");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    validity(&mut params, env, CA_VALID)?;
    Ok(params)
}

fn issue(env: &Env, issuer: &Issuer<'static, KeyPair>, spec: &CertificateSpec<'_>) -> Result<Identity, PkiError> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.subject_alt_names = alternative_names(spec.sans)?;
    params.distinguished_name = DistinguishedName::new();
    if !spec.group.is_empty() {
        params.distinguished_name.push(DnType::OrganizationName, spec.group);
    }
    params.distinguished_name.push(DnType::CommonName, spec.name);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    if spec.server {
        params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
    }
    if spec.client {
        params.extended_key_usages.push(ExtendedKeyUsagePurpose::ClientAuth);
    }
    validity(&mut params, env, LEAF_VALID)?;
    let key = KeyPair::generate()?;
    let cert_pem = params.signed_by(&key, issuer)?.pem();
    Ok(Identity { cert_pem, key_pem: key.serialize_pem() })
}

/// A serving certificate without an authority.
pub(super) fn self_signed_params(env: &Env, name: &str, sans: &[String]) -> Result<CertificateParams, PkiError> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.subject_alt_names = alternative_names(sans)?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    validity(&mut params, env, LEAF_VALID)?;
    Ok(params)
}

fn validity(params: &mut CertificateParams, env: &Env, valid: Duration) -> Result<(), PkiError> {
    let now = env.now();
    let at = |instant: Timestamp| {
        time::OffsetDateTime::from_unix_timestamp(instant.as_second()).map_err(|e| PkiError::Issue(e.to_string()))
    };
    params.not_before = at(now.saturating_sub(BACKDATE).unwrap_or(Timestamp::UNIX_EPOCH))?;
    params.not_after = at(now.saturating_add(valid).unwrap_or(now))?;
    let mut serial = [0u8; 16];
    env.fill(&mut serial);
    // Positive and not zero (RFC 5280 §4.1.2.2).
    serial[0] = (serial[0] & 0x7f) | 0x40;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn env() -> (Env, std::sync::Arc<machinery_env::ManualClock>) {
        Env::seeded(1, "2026-01-01T00:00:00Z".parse().unwrap())
    }

    #[test]
    fn a_folder_is_made_once_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("pki");
        let (env, clock) = env();
        let sans = ["192.0.2.7".to_owned()];
        let first = Pki::open_or_create(&dir, &env, &sans).unwrap();
        let again = Pki::open_or_create(&dir, &env, &sans).unwrap();
        assert_eq!(first.ca_pem(), again.ca_pem());
        assert_eq!(first.serving().cert_pem, again.serving().cert_pem);
        assert_eq!(first.service_account().id(), again.service_account().id());

        let other = Pki::open_or_create(&dir, &env, &["192.0.2.8".to_owned()]).unwrap();
        assert_eq!(first.ca_pem(), other.ca_pem());
        assert_ne!(first.serving().cert_pem, other.serving().cert_pem, "new names need a new certificate");
        assert_eq!(first.admin().cert_pem, other.admin().cert_pem);

        clock.advance(LEAF_VALID - LEAF_RENEW);
        let renewed = Pki::open_or_create(&dir, &env, &sans).unwrap();
        assert_ne!(first.admin().cert_pem, renewed.admin().cert_pem, "near its end");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
            assert_eq!(mode(&dir), 0o700);
            for entry in fs::read_dir(&dir).unwrap() {
                assert_eq!(mode(&entry.unwrap().path()), 0o600);
            }
        }
    }

    #[test]
    fn a_server_that_runs_for_a_year_renews_and_reads_revocations() {
        let dir = tempfile::tempdir().unwrap();
        let (env, clock) = env();
        let pki = Pki::open_or_create(dir.path(), &env, &[]).unwrap();
        assert_eq!(pki.reload_and_renew().unwrap().serving, *pki.serving());
        clock.advance(LEAF_VALID - LEAF_RENEW);
        let renewed = pki.reload_and_renew().unwrap();
        assert_ne!((&renewed.serving, &renewed.admin), (pki.serving(), pki.admin()));
        assert_eq!(pki.reload_and_renew().unwrap().admin, renewed.admin, "once");
        // A pair that an administrator placed is used if the authority issued it, and replaced otherwise.
        let another = pki.issue_client("kubernetes-admin", crate::MASTERS).unwrap();
        fs::write(dir.path().join("admin.crt"), &another.cert_pem).unwrap();
        fs::write(dir.path().join("admin.key"), &another.key_pem).unwrap();
        assert_eq!(pki.reload_and_renew().unwrap().admin, another);
        fs::write(dir.path().join("admin.key"), &renewed.admin.key_pem).unwrap();
        let mended = pki.reload_and_renew().unwrap().admin;
        assert!(mended != another && mended != renewed.admin, "a key of another certificate");
        assert_eq!(pki.revoked().unwrap().len(), 0);
        fs::write(dir.path().join("revoked"), "ab".repeat(32)).unwrap();
        assert_eq!(pki.revoked().unwrap(), [[0xab; 32]].into());
        check(dir.path()).unwrap();
        fs::write(dir.path().join("revoked"), "nonsense").unwrap();
        assert!(check(dir.path()).unwrap_err().to_string().contains("revoked"));
        let error = pki.revoked().unwrap_err().to_string();
        assert!(error.contains("line 1") && error.contains("fix the line"), "{error}");
    }

    /// The clock was years ahead, and is set back.
    #[test]
    fn certificates_of_the_future_are_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let (env, clock) = env();
        let first = Pki::open_or_create(dir.path(), &env, &[]).unwrap();
        let (ahead, _) = Env::seeded(2, "2027-06-01T00:00:00Z".parse().unwrap());
        let later = Pki::open_or_create(dir.path(), &ahead, &[]).unwrap();
        assert_ne!(first.serving(), later.serving());
        let mended = Pki::open_or_create(dir.path(), &env, &[]).unwrap();
        assert!(mended.serving() != later.serving() && mended.admin() != later.admin(), "at the next start");
        Pki::open_or_create(dir.path(), &ahead, &[]).unwrap();
        let renewed = first.reload_and_renew().unwrap();
        let valid = crate::own_certificates::validity(&renewed.serving.cert_pem).unwrap();
        assert!(valid.contains(env.now()), "while the server runs");
        assert_eq!(first.reload_and_renew().unwrap().serving, renewed.serving, "once");
        clock.advance(Duration::from_hours(1));
        assert_eq!(first.reload_and_renew().unwrap().serving, renewed.serving);
    }

    #[test]
    fn a_damaged_authority_is_never_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let (env, _) = env();
        Pki::open_or_create(dir.path(), &env, &[]).unwrap();
        fs::write(dir.path().join("ca.key"), "nonsense").unwrap();
        let error = Pki::open_or_create(dir.path(), &env, &[]).unwrap_err().to_string();
        assert!(error.contains("ca.key is damaged"), "{error}");
        fs::remove_file(dir.path().join("ca.key")).unwrap();
        assert!(Pki::open_or_create(dir.path(), &env, &[]).is_err());
        // An unreadable leaf certificate is reissued.
        let dir = tempfile::tempdir().unwrap();
        Pki::open_or_create(dir.path(), &env, &[]).unwrap();
        fs::write(dir.path().join("apiserver.crt"), "nonsense").unwrap();
        Pki::open_or_create(dir.path(), &env, &[]).unwrap();
    }
}
