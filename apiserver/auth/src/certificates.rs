//! The certificates that the TLS listener can change at runtime: its serving certificate and the list of revoked client
//! certificates.

use std::collections::HashSet;
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;

use super::pki::{Identity, PkiError};
use super::tls::provider;

/// SHA-256 of a certificate's DER, as `openssl x509 -fingerprint -sha256` prints it and `system:auth` extras name it.
pub type Fingerprint = [u8; 32];

/// Precedes a user in the hash of its entry, so that no certificate has that hash.
const USER_DOMAIN: &[u8] = b"coracle: all certificates of the user ";
/// Begins the line of a user.
const USER_LINE: &str = "user ";

/// The entry of the list that revokes all certificates of a user, those of later too.
#[must_use]
pub fn user_entry(user: &str) -> Fingerprint {
    Sha256::new().chain_update(USER_DOMAIN).chain_update(user).finalize().into()
}

/// The maximum length of the list. It is meant for lost certificates, not for all that were ever issued.
const REVOKED_MAX: usize = 100_000;

/// The serving certificate and the revoked client certificates.
#[derive(Debug)]
pub struct Certificates {
    serving: ArcSwap<CertifiedKey>,
    revoked: watch::Sender<Arc<HashSet<Fingerprint>>>,
}

impl Certificates {
    /// Starts with the serving certificate and an empty revocation list.
    pub fn new(serving: &Identity) -> Result<Self, PkiError> {
        let revoked = watch::Sender::new(Arc::default());
        Ok(Self { serving: ArcSwap::from_pointee(certified(serving)?), revoked })
    }

    /// Replaces the serving certificate for new connections.
    ///
    /// # Errors
    /// Fails if the certificate or key is invalid; the old one stays in use.
    pub fn serve_with(&self, serving: &Identity) -> Result<(), PkiError> {
        self.serving.store(Arc::new(certified(serving)?));
        Ok(())
    }

    /// Replaces the revocation list. Requests with a listed certificate get 401, and their connections are closed.
    pub fn revoke(&self, revoked: HashSet<Fingerprint>) {
        self.revoked.send_if_modified(|now| {
            let changes = **now != revoked;
            if changes {
                *now = Arc::new(revoked);
            }
            changes
        });
    }

    /// Adds certificates to the revoked ones.
    pub fn revoke_also(&self, more: &HashSet<Fingerprint>) {
        let revoked = &**self.revoked.borrow() | more;
        self.revoke(revoked);
    }

    /// Whether a certificate is revoked.
    #[must_use]
    pub fn is_revoked(&self, fingerprint: &Fingerprint) -> bool {
        self.revoked.borrow().contains(fingerprint)
    }

    /// Waits until one of these entries is revoked.
    pub async fn revoked(&self, entries: &[Fingerprint]) {
        let mut revoked = self.revoked.subscribe();
        if revoked.wait_for(|revoked| entries.iter().any(|entry| revoked.contains(entry))).await.is_err() {
            // The sender is gone, so the list cannot change any more.
            std::future::pending().await
        }
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.serving.load_full())
    }
}

pub(super) fn certified(identity: &Identity) -> Result<CertifiedKey, PkiError> {
    let (certs, key) = identity.der()?;
    CertifiedKey::from_der(certs, key, &provider()).map_err(|error| PkiError::Issue(error.to_string()))
}

/// Parses a list: one fingerprint per line, hexadecimal with or without colons, or `user NAME` for all certificates of a user;
/// `#` starts a comment.
///
/// # Errors
/// Returns the number of the invalid line.
pub(crate) fn read_revoked(text: &str) -> Result<HashSet<Fingerprint>, String> {
    let mut revoked = HashSet::new();
    for (index, line) in text.lines().enumerate() {
        let entry = line.split('#').next().unwrap_or_default().trim();
        if entry.is_empty() {
            continue;
        }
        if revoked.len() == REVOKED_MAX {
            return Err(format!("more than {REVOKED_MAX} certificates: replace the authority instead"));
        }
        if let Some(user) = entry.strip_prefix(USER_LINE) {
            revoked.insert(user_entry(user.trim()));
            continue;
        }
        let digits: String = entry.chars().filter(|c| *c != ':').collect();
        let mut fingerprint = Fingerprint::default();
        if hex::decode_to_slice(&digits, &mut fingerprint).is_err() {
            return Err(format!(
                "line {} is neither a SHA-256 fingerprint of a certificate nor `user NAME`",
                index + 1
            ));
        }
        revoked.insert(fingerprint);
    }
    Ok(revoked)
}

#[cfg(test)]
mod tests {
    use bolero::check;

    use super::*;

    #[test]
    fn a_list_is_read_as_openssl_prints_fingerprints() {
        let colons = vec!["AB"; 32].join(":");
        let text = format!("# lost laptop\n{colons}  # ada\n\n{}\n", "ab".repeat(32));
        assert_eq!(read_revoked(&text), Ok([[0xab; 32]].into()));
        assert_eq!(read_revoked(""), Ok(HashSet::new()));
        assert_eq!(read_revoked("user  system:node:n1 # gone"), Ok([user_entry("system:node:n1")].into()));
        assert_ne!(user_entry("system:node:n1"), user_entry("system:node:n10"));
        assert!(read_revoked("system:node:n1").is_err());
        let wrong = read_revoked(&format!("\n{}", &colons[2..]));
        assert_eq!(wrong, Err("line 2 is neither a SHA-256 fingerprint of a certificate nor `user NAME`".into()));
    }

    #[test]
    fn any_list_is_read_or_refused() {
        check!().for_each(|bytes: &[u8]| {
            let text = String::from_utf8_lossy(bytes);
            if let Ok(revoked) = read_revoked(&text) {
                let printed: String = revoked.iter().map(|one| hex::encode(one) + "\n").collect();
                assert_eq!(read_revoked(&printed), Ok(revoked));
            }
        });
    }
}
