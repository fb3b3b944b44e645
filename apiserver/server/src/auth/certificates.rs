//! What the TLS listener goes by and may change while it serves: its own certificate, and which certificates of clients
//! don't count any more.

use std::collections::HashSet;
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::sync::watch;

use super::pki::{Identity, PkiError};
use super::tls::provider;

/// SHA-256 of a certificate's DER, as `openssl x509 -fingerprint -sha256` prints it and `system:auth` extras name it.
pub type Fingerprint = [u8; 32];

/// A list of revoked certificates is for the few that got lost, not for all that were ever made.
const REVOKED_MAX: usize = 100_000;

/// See the module.
#[derive(Debug)]
pub struct Certificates {
    serving: ArcSwap<CertifiedKey>,
    revoked: watch::Sender<Arc<HashSet<Fingerprint>>>,
}

impl Certificates {
    /// Serves with `serving`; nobody is revoked.
    pub fn new(serving: &Identity) -> Result<Self, PkiError> {
        let revoked = watch::Sender::new(Arc::default());
        Ok(Self { serving: ArcSwap::from_pointee(certified(serving)?), revoked })
    }

    /// Serves new connections with another certificate.
    ///
    /// # Errors
    /// It can't be read, or its key is none; the old one stays.
    pub fn serve_with(&self, serving: &Identity) -> Result<(), PkiError> {
        self.serving.store(Arc::new(certified(serving)?));
        Ok(())
    }

    /// These and no others don't count any more: requests with them get 401, and their connections end.
    pub fn revoke(&self, revoked: HashSet<Fingerprint>) {
        self.revoked.send_if_modified(|now| {
            let changes = **now != revoked;
            if changes {
                *now = Arc::new(revoked);
            }
            changes
        });
    }

    /// Whether a certificate doesn't count any more.
    #[must_use]
    pub fn is_revoked(&self, fingerprint: &Fingerprint) -> bool {
        self.revoked.borrow().contains(fingerprint)
    }

    /// Waits until a certificate doesn't count any more.
    pub async fn revoked(&self, fingerprint: &Fingerprint) {
        let mut revoked = self.revoked.subscribe();
        if revoked.wait_for(|revoked| revoked.contains(fingerprint)).await.is_err() {
            // Nobody can revoke anything any more.
            std::future::pending().await
        }
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.serving.load_full())
    }
}

fn certified(identity: &Identity) -> Result<CertifiedKey, PkiError> {
    let (certs, key) = identity.der()?;
    CertifiedKey::from_der(certs, key, &provider()).map_err(|error| PkiError::Issue(error.to_string()))
}

/// Reads a list of fingerprints: one a line, in hexadecimal with or without colons; `#` begins a comment.
///
/// # Errors
/// Which line is none.
pub fn read_revoked(text: &str) -> Result<HashSet<Fingerprint>, String> {
    let mut revoked = HashSet::new();
    for (index, line) in text.lines().enumerate() {
        let said = line.split('#').next().unwrap_or_default().trim();
        if said.is_empty() {
            continue;
        }
        let digits: String = said.chars().filter(|c| *c != ':').collect();
        let mut fingerprint = Fingerprint::default();
        if hex::decode_to_slice(&digits, &mut fingerprint).is_err() {
            return Err(format!("line {} is no SHA-256 fingerprint of a certificate", index + 1));
        }
        if revoked.len() == REVOKED_MAX {
            return Err(format!("more than {REVOKED_MAX} certificates: make a new authority instead"));
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
        let wrong = read_revoked(&format!("\n{}", &colons[2..]));
        assert_eq!(wrong, Err("line 2 is no SHA-256 fingerprint of a certificate".into()));
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
