//! A node's certificates in `pki/` of its data folder: one file for a certificate, its key, and the hashes of the cluster's
//! authorities. One file is replaced at once, so that these always belong together.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use apiserver_auth::folder::{create_folder, write_private};
use apiserver_auth::own_certificates::OwnCertificate;
use apiserver_auth::pki::Identity;
use apiserver_auth::shared_keys::Authority;
use jiff::Timestamp;
use machinery_client::TlsIdentity;

/// The line of an authority's hash, before the PEM blocks.
const AUTHORITY: &str = "authority ";
const KEY_BEGINS: &str = "-----BEGIN PRIVATE KEY-----";
/// Far above any chain of certificates.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// The authorities of a cluster, which its API servers' certificates are of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Authorities(Vec<Authority>);

impl Authorities {
    /// Reads certificates in DER; none: there is none, or one can't be read.
    pub(crate) fn of<'a>(ders: impl IntoIterator<Item = &'a Vec<u8>>) -> Option<Self> {
        let authorities = ders.into_iter().map(|der| Authority::from_der(der)).collect::<Option<Vec<_>>>()?;
        (!authorities.is_empty()).then_some(Self(authorities))
    }

    pub(crate) fn pem(&self) -> String {
        self.0.iter().map(Authority::pem).collect()
    }

    pub(crate) fn der(&self) -> Vec<Vec<u8>> {
        self.0.iter().map(|authority| authority.der.clone()).collect()
    }

    fn hashes(&self) -> BTreeSet<&str> {
        self.0.iter().map(|authority| authority.hash.as_str()).collect()
    }
}

/// A certificate with its content.
#[derive(Debug, Clone)]
pub(crate) struct NodeCertificate {
    pub(crate) identity: Arc<TlsIdentity>,
    pub(crate) content: OwnCertificate,
}

impl NodeCertificate {
    /// # Errors
    /// If certificate or key can't be read or don't belong together.
    pub(crate) fn new(cert_pem: String, key_pem: String) -> anyhow::Result<Self> {
        let identity = Identity { cert_pem, key_pem };
        let content = OwnCertificate::read(&identity)?;
        let Identity { cert_pem, key_pem } = identity;
        Ok(Self { identity: Arc::new(TlsIdentity { cert_pem, key_pem }), content })
    }

    /// Whether it is a user's, and valid now.
    pub(crate) fn is_valid(&self, user: &str, now: Timestamp) -> bool {
        self.content.user == user && !self.has_expired(now) && !self.begins_later(now)
    }

    pub(crate) fn has_expired(&self, now: Timestamp) -> bool {
        now >= self.content.not_after
    }

    /// Whether its period begins later. Either it was issued by a clock that was set back since, and no API server accepts it,
    /// or this machine's clock is behind, and it is good.
    pub(crate) fn begins_later(&self, now: Timestamp) -> bool {
        now < self.content.not_before
    }
}

/// The files of a node.
#[derive(Debug, Clone)]
pub(crate) struct Folder(PathBuf);

/// One of the certificates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Use {
    Client,
    Serving,
}

impl Folder {
    pub(crate) fn new(path: &Path) -> Self {
        Self(path.to_owned())
    }

    fn certificate(&self, of: Use) -> PathBuf {
        self.0.join(match of {
            Use::Client => "kubelet-client.pem",
            Use::Serving => "kubelet-serving.pem",
        })
    }

    fn authority(&self) -> PathBuf {
        self.0.join("kubelet-ca.pem")
    }

    /// The stored certificate, if it is of this cluster, of the user, and not at its end.
    pub(crate) fn read(&self, of: Use, cluster: &Authorities, user: &str, now: Timestamp) -> Option<NodeCertificate> {
        let path = self.certificate(of);
        let text = read_bounded(&path)?;
        let known: BTreeSet<&str> = text.lines().map_while(|line| line.strip_prefix(AUTHORITY)).collect();
        let reason = match split(&text).and_then(|(cert, key)| NodeCertificate::new(cert, key).ok()) {
            _ if known.is_disjoint(&cluster.hashes()) => "it is another cluster's",
            None => "it can't be read",
            Some(held) if held.content.user != user => "it is another node's",
            Some(held) if held.has_expired(now) => "it has expired",
            Some(held) => return Some(held),
        };
        tracing::warn!(file = %path.display(), "the certificate is not used: {reason}");
        None
    }

    /// # Errors
    /// If the folder can't be written.
    pub(crate) fn write(&self, of: Use, cluster: &Authorities, identity: &TlsIdentity) -> anyhow::Result<()> {
        create_folder(&self.0)?;
        let hashes: String = cluster.hashes().iter().map(|hash| format!("{AUTHORITY}{hash}\n")).collect();
        let end = |pem: &str| format!("{}\n", pem.trim_end());
        let text = format!("{hashes}{}{}", end(&identity.cert_pem), end(&identity.key_pem));
        Ok(write_private(&self.certificate(of), &text)?)
    }

    /// The stored authority with a hash.
    pub(crate) fn read_authority(&self, hash: &str) -> Option<Authorities> {
        let found = Authority::parse(&read_bounded(&self.authority())?)?;
        (found.hash == hash).then(|| Authorities(vec![found]))
    }

    /// # Errors
    /// If the folder can't be written.
    pub(crate) fn write_authority(&self, authority: &Authorities) -> anyhow::Result<()> {
        create_folder(&self.0)?;
        write_private(&self.authority(), &authority.pem()).context("the cluster's authority")
    }
}

fn read_bounded(path: &Path) -> Option<String> {
    let size = std::fs::metadata(path).ok()?.len();
    if size > FILE_BYTES_MAX { None } else { std::fs::read_to_string(path).ok() }
}

/// The certificates and the key.
fn split(text: &str) -> Option<(String, String)> {
    let (head, _) = text.split_once(KEY_BEGINS)?;
    let certificates = head.find("-----BEGIN CERTIFICATE-----")?;
    Some((head[certificates..].to_owned(), text[head.len()..].to_owned()))
}

#[cfg(test)]
mod tests {
    use apiserver_auth::pki::Pki;
    use machinery_env::Env;

    use super::*;

    #[test]
    fn a_certificate_is_kept_for_its_node_and_cluster_until_its_end() {
        let temp = tempfile::tempdir().unwrap();
        let (env, clock) = Env::seeded(1, "2026-01-01T00:00:00Z".parse().unwrap());
        let cluster = |name: &str| {
            let pki = Pki::open_or_create(&temp.path().join(name), &env, &[]).unwrap();
            let authority = Authority::parse(pki.ca_pem()).unwrap();
            (pki, Authorities(vec![authority]))
        };
        let ((one, ours), (_, other)) = (cluster("one"), cluster("two"));
        let folder = Folder::new(&temp.path().join("pki"));
        assert!(folder.read(Use::Client, &ours, "system:node:n1", env.now()).is_none());
        let issued = one.issue_client("system:node:n1", "system:nodes").unwrap();
        let identity = TlsIdentity { cert_pem: issued.cert_pem, key_pem: issued.key_pem };
        folder.write(Use::Client, &ours, &identity).unwrap();
        let held = folder.read(Use::Client, &ours, "system:node:n1", env.now()).unwrap();
        assert_eq!(held.identity.cert_pem.trim_end(), identity.cert_pem.trim_end());
        assert_eq!(held.identity.key_pem.trim_end(), identity.key_pem.trim_end());
        assert!(folder.read(Use::Serving, &ours, "system:node:n1", env.now()).is_none());
        let earlier = "2025-06-01T00:00:00Z".parse().unwrap();
        let later = folder.read(Use::Client, &ours, "system:node:n1", earlier).unwrap();
        assert!(later.begins_later(earlier) && !later.is_valid("system:node:n1", earlier), "the clock was set back");
        assert!(held.is_valid("system:node:n1", env.now()) && !held.is_valid("system:node:n2", env.now()));
        assert!(folder.read(Use::Client, &other, "system:node:n1", env.now()).is_none(), "another cluster");
        assert!(folder.read(Use::Client, &ours, "system:node:n2", env.now()).is_none(), "another node");
        // One authority of several is enough: they are being replaced.
        let both = Authorities([other.0.clone(), ours.0.clone()].concat());
        assert!(folder.read(Use::Client, &both, "system:node:n1", env.now()).is_some());
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            let mode = std::fs::metadata(folder.certificate(Use::Client)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
        clock.advance(std::time::Duration::from_hours(365 * 24));
        assert!(folder.read(Use::Client, &ours, "system:node:n1", env.now()).is_none(), "expired");
        std::fs::write(folder.certificate(Use::Client), "nonsense").unwrap();
        assert!(folder.read(Use::Client, &ours, "system:node:n1", env.now()).is_none(), "damaged");
    }

    #[test]
    fn an_authority_is_known_by_its_hash() {
        let temp = tempfile::tempdir().unwrap();
        let (env, _) = Env::seeded(1, "2026-01-01T00:00:00Z".parse().unwrap());
        let pki = Pki::open_or_create(&temp.path().join("one"), &env, &[]).unwrap();
        let authorities = Authorities(vec![Authority::parse(pki.ca_pem()).unwrap()]);
        let folder = Folder::new(&temp.path().join("pki"));
        assert_eq!(folder.read_authority(&pki.ca_hash()), None);
        folder.write_authority(&authorities).unwrap();
        assert_eq!(folder.read_authority(&pki.ca_hash()), Some(authorities.clone()));
        assert_eq!(folder.read_authority("sha256:00"), None);
        assert_eq!(Authorities::of(&authorities.der()), Some(authorities));
        assert_eq!(Authorities::of(&[vec![1]]), None);
        assert_eq!(Authorities::of(&[]), None);
    }
}
