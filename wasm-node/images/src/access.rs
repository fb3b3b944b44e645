//! Access to images that are already on the node (KEP-2535, `imagePullCredentialsVerificationPolicy:
//! NeverVerifyPreloadedImages`). A pod gets an image if its credentials could have pulled it, as far as can be decided
//! without a request to the registry. Pure.

use serde::{Deserialize, Serialize};

use super::account::AccountIdentity;
use super::keyring::{SecretIdentity, TrackedCredential};
use super::signatures::Rule;

/// Maximum Secrets, and maximum ServiceAccounts, recorded for one image. Upstream has the same bound for records
/// written while its feature only observes.
const SECRETS_MAX: usize = 100;

/// The credentials that the registry accepted for an image.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PullAccess {
    /// Every pod of this node: the registry required no credential, or accepted the node's own.
    #[serde(default)]
    everybody: bool,
    /// Pods that have one of these Secrets.
    #[serde(default)]
    secrets: Vec<GrantedSecret>,
    /// Pods that run as one of these ServiceAccounts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    accounts: Vec<AccountIdentity>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct GrantedSecret {
    secret: SecretIdentity,
    hash: String,
}

/// The grounds on which pods may use an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Trust {
    /// The accepted credentials. Records of older versions have none; their images are open to every pod.
    #[serde(default = "PullAccess::open_to_all")]
    access: PullAccess,
    /// The id of the signature policy rule that the image met last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    verified: Option<String>,
}

impl Trust {
    pub(super) fn new(access: PullAccess, rule: Option<&Rule>) -> Self {
        Self { access, verified: rule.map(|rule| rule.id().to_owned()) }
    }

    /// Whether a pod with these credentials may use the image.
    pub(super) fn admits(&self, credentials: &[TrackedCredential], account: Option<&AccountIdentity>) -> bool {
        self.access.admits(credentials, account)
    }

    /// Returns whether the image is recorded as meeting `rule`.
    pub(super) fn meets(&self, rule: &Rule) -> bool {
        self.verified.as_deref() == Some(rule.id())
    }

    /// Merges the result of a newer pull of the same image. A verified rule stays, because a signature doesn't expire.
    pub(super) fn merge(self, other: Self) -> Self {
        Self { access: self.access.merge(other.access), verified: other.verified.or(self.verified) }
    }
}

impl PullAccess {
    /// Access for every pod.
    pub(super) fn open_to_all() -> Self {
        Self { everybody: true, ..Self::default() }
    }

    /// Access by `credential`; `None` = the registry required none.
    pub(super) fn granted_by(credential: Option<&TrackedCredential>) -> Self {
        let Some(tracked) = credential else { return Self::open_to_all() };
        match (tracked.secret.clone(), tracked.account.clone()) {
            (Some(secret), _) => {
                Self { secrets: vec![GrantedSecret { secret, hash: tracked.hash() }], ..Self::default() }
            }
            (None, Some(account)) => Self { accounts: vec![account], ..Self::default() },
            (None, None) => Self::open_to_all(),
        }
    }

    /// Returns whether a pod with these credentials and this ServiceAccount may use the image. A credential matches by
    /// its hash, or by its Secret: the content of a Secret may have changed.
    pub(super) fn admits(&self, credentials: &[TrackedCredential], account: Option<&AccountIdentity>) -> bool {
        let known = |tracked: &TrackedCredential| {
            let hash = tracked.hash();
            let same =
                |granted: &GrantedSecret| Some(&granted.secret) == tracked.secret.as_ref() || granted.hash == hash;
            tracked.secret.is_some() && self.secrets.iter().any(same)
        };
        self.everybody
            || credentials.iter().any(known)
            || account.is_some_and(|account| self.accounts.iter().any(|known| known == account))
    }

    /// Adds the credentials accepted by a newer pull of the same image.
    pub(super) fn merge(mut self, other: Self) -> Self {
        if self.everybody || other.everybody {
            return Self::open_to_all();
        }
        for granted in other.secrets {
            self.secrets.retain(|known| known.secret != granted.secret);
            self.secrets.push(granted);
        }
        for account in other.accounts {
            self.accounts.retain(|known| *known != account);
            self.accounts.push(account);
        }
        let excess = self.secrets.len().saturating_sub(SECRETS_MAX);
        self.secrets.drain(..excess);
        let excess = self.accounts.len().saturating_sub(SECRETS_MAX);
        self.accounts.drain(..excess);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::super::keyring::Credential;
    use super::*;

    fn tracked(namespace: &str, uid: &str, password: &str) -> TrackedCredential {
        let secret = SecretIdentity { namespace: namespace.into(), name: "pull".into(), uid: uid.into() };
        let credential = Credential { username: "u".into(), password: password.into() };
        TrackedCredential { credential, secret: Some(secret), account: None }
    }

    #[test]
    fn credentials_that_pulled_may_use_the_image() {
        let granted = PullAccess::granted_by(Some(&tracked("a", "1", "p")));
        assert!(granted.admits(&[tracked("a", "1", "p")], None));
        assert!(granted.admits(&[tracked("a", "1", "changed")], None), "the same Secret");
        assert!(granted.admits(&[tracked("b", "2", "p")], None), "the same credential");
        assert!(!granted.admits(&[], None));
        assert!(!granted.admits(&[tracked("a", "2", "other")], None), "a Secret made anew");
        assert!(!granted.admits(&[tracked("b", "1", "other")], None));
        let node = TrackedCredential { secret: None, ..tracked("a", "1", "p") };
        assert!(PullAccess::granted_by(Some(&node)).admits(&[], None), "the node's own account");
        assert!(PullAccess::granted_by(None).admits(&[], None), "a public image");
        let both = granted.clone().merge(PullAccess::granted_by(Some(&tracked("b", "2", "q"))));
        assert!(both.admits(&[tracked("a", "1", "p")], None) && both.admits(&[tracked("b", "2", "q")], None));
        assert!(granted.merge(PullAccess::granted_by(None)).admits(&[], None));
    }

    #[test]
    fn access_of_a_service_account_is_for_that_account() {
        let identity = |name: &str, uid: &str| {
            let (namespace, name, uid) = ("a".to_owned(), name.to_owned(), uid.to_owned());
            AccountIdentity { namespace, name, uid }
        };
        let of = |account: AccountIdentity| {
            let tracked = TrackedCredential { secret: None, account: Some(account), ..tracked("a", "1", "p") };
            PullAccess::granted_by(Some(&tracked))
        };
        let granted = of(identity("robot", "1"));
        assert!(granted.admits(&[], Some(&identity("robot", "1"))));
        for other in [None, Some(identity("robot", "2")), Some(identity("default", "1"))] {
            assert!(!granted.admits(&[tracked("a", "1", "p")], other.as_ref()), "{other:?}");
        }
        let both = granted.merge(of(identity("default", "3")));
        assert!(both.admits(&[], Some(&identity("robot", "1"))) && both.admits(&[], Some(&identity("default", "3"))));
        let written = serde_json::to_string(&both).unwrap();
        assert_eq!(serde_json::from_str::<PullAccess>(&written).unwrap(), both);
    }

    #[test]
    fn the_cache_of_access_is_bounded_and_has_no_password() {
        let all =
            (0..1000).map(|n| PullAccess::granted_by(Some(&tracked("a", &n.to_string(), &format!("secret-{n}")))));
        let all = all.reduce(PullAccess::merge).unwrap();
        assert_eq!(all.secrets.len(), SECRETS_MAX);
        assert!(all.admits(&[tracked("a", "999", "x")], None));
        assert!(!serde_json::to_string(&all).unwrap().contains("secret-"));
    }
}
