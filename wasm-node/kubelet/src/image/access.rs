//! Who may use an image that is on the node (KEP-2535, `imagePullCredentialsVerificationPolicy:
//! NeverVerifyPreloadedImages`): a pod that could have pulled it, as far as can be said without asking the registry. Pure.

use serde::{Deserialize, Serialize};

use super::account::AccountIdentity;
use super::keyring::{SecretIdentity, TrackedCredential};
use super::signatures::Rule;

/// Secrets, and ServiceAccounts, that are remembered of one image; upstream's bound of what is written while it only looks.
const SECRETS_MAX: usize = 100;

/// Who was let in by the registry.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Access {
    /// Whoever runs on this node: nobody was asked who they are, or the node is.
    #[serde(default)]
    everybody: bool,
    /// Whoever has one of these.
    #[serde(default)]
    secrets: Vec<Granted>,
    /// Whoever is one of these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    accounts: Vec<AccountIdentity>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Granted {
    secret: SecretIdentity,
    hash: String,
}

/// Why an image may be used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Trust {
    /// By whom. Older records are of images that were free to all.
    #[serde(default = "Access::of_everybody")]
    access: Access,
    /// The rule of the signature policy that it was last found to meet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    verified: Option<String>,
}

impl Trust {
    pub(super) fn new(access: Access, rule: Option<&Rule>) -> Self {
        Self { access, verified: rule.map(|rule| rule.id().to_owned()) }
    }

    /// Whether a pod with these credentials may use the image.
    pub(super) fn admits(&self, credentials: &[TrackedCredential], account: Option<&AccountIdentity>) -> bool {
        self.access.admits(credentials, account)
    }

    /// Whether it is known to meet a rule.
    pub(super) fn meets(&self, rule: &Rule) -> bool {
        self.verified.as_deref() == Some(rule.id())
    }

    /// With what was found of the same image now. What was verified stays so: a signature holds for ever.
    pub(super) fn with(self, other: Self) -> Self {
        Self { access: self.access.with(other.access), verified: other.verified.or(self.verified) }
    }
}

impl Access {
    /// For every pod.
    pub(super) fn of_everybody() -> Self {
        Self { everybody: true, ..Self::default() }
    }

    /// By that credential; none = the registry asked for none.
    pub(super) fn by(credential: Option<&TrackedCredential>) -> Self {
        let Some(tracked) = credential else { return Self::of_everybody() };
        match (tracked.secret.clone(), tracked.account.clone()) {
            (Some(secret), _) => Self { secrets: vec![Granted { secret, hash: tracked.hash() }], ..Self::default() },
            (None, Some(account)) => Self { accounts: vec![account], ..Self::default() },
            (None, None) => Self::of_everybody(),
        }
    }

    /// Whether a pod with these credentials and that ServiceAccount may use the image: one of them is the same as was let in, or of
    /// the same Secret, whose owner may have changed it.
    pub(super) fn admits(&self, credentials: &[TrackedCredential], account: Option<&AccountIdentity>) -> bool {
        let known = |tracked: &TrackedCredential| {
            let hash = tracked.hash();
            let same = |granted: &Granted| Some(&granted.secret) == tracked.secret.as_ref() || granted.hash == hash;
            tracked.secret.is_some() && self.secrets.iter().any(same)
        };
        self.everybody
            || credentials.iter().any(known)
            || account.is_some_and(|account| self.accounts.iter().any(|known| known == account))
    }

    /// With who was let in for the same image now.
    pub(super) fn with(mut self, other: Self) -> Self {
        if self.everybody || other.everybody {
            return Self::of_everybody();
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
    fn who_could_pull_may_use_it() {
        let granted = Access::by(Some(&tracked("a", "1", "p")));
        assert!(granted.admits(&[tracked("a", "1", "p")], None));
        assert!(granted.admits(&[tracked("a", "1", "changed")], None), "the same Secret");
        assert!(granted.admits(&[tracked("b", "2", "p")], None), "the same credential");
        assert!(!granted.admits(&[], None));
        assert!(!granted.admits(&[tracked("a", "2", "other")], None), "a Secret made anew");
        assert!(!granted.admits(&[tracked("b", "1", "other")], None));
        let node = TrackedCredential { secret: None, ..tracked("a", "1", "p") };
        assert!(Access::by(Some(&node)).admits(&[], None), "the node's own account");
        assert!(Access::by(None).admits(&[], None), "a public image");
        let both = granted.clone().with(Access::by(Some(&tracked("b", "2", "q"))));
        assert!(both.admits(&[tracked("a", "1", "p")], None) && both.admits(&[tracked("b", "2", "q")], None));
        assert!(granted.with(Access::by(None)).admits(&[], None));
    }

    #[test]
    fn what_came_for_a_service_account_is_for_that_one() {
        let identity = |name: &str, uid: &str| {
            let (namespace, name, uid) = ("a".to_owned(), name.to_owned(), uid.to_owned());
            AccountIdentity { namespace, name, uid }
        };
        let of = |account: AccountIdentity| {
            let tracked = TrackedCredential { secret: None, account: Some(account), ..tracked("a", "1", "p") };
            Access::by(Some(&tracked))
        };
        let granted = of(identity("robot", "1"));
        assert!(granted.admits(&[], Some(&identity("robot", "1"))));
        for other in [None, Some(identity("robot", "2")), Some(identity("default", "1"))] {
            assert!(!granted.admits(&[tracked("a", "1", "p")], other.as_ref()), "{other:?}");
        }
        let both = granted.with(of(identity("default", "3")));
        assert!(both.admits(&[], Some(&identity("robot", "1"))) && both.admits(&[], Some(&identity("default", "3"))));
        let written = serde_json::to_string(&both).unwrap();
        assert_eq!(serde_json::from_str::<Access>(&written).unwrap(), both);
    }

    #[test]
    fn what_is_remembered_is_bounded_and_tells_no_password() {
        let all = (0..1000).map(|n| Access::by(Some(&tracked("a", &n.to_string(), &format!("secret-{n}")))));
        let all = all.reduce(Access::with).unwrap();
        assert_eq!(all.secrets.len(), SECRETS_MAX);
        assert!(all.admits(&[tracked("a", "999", "x")], None));
        assert!(!serde_json::to_string(&all).unwrap().contains("secret-"));
    }
}
