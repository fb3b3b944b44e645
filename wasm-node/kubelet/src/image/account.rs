//! The ServiceAccount of the pod that an image is for: what credential providers may be told of it (KEP-4412).

use std::collections::BTreeMap;
use std::fmt;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

/// A ServiceAccount, as one is told from another: one that is made anew under the name is another.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct AccountIdentity {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
}

/// A ServiceAccount as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// Which.
    pub identity: AccountIdentity,
    /// All of its annotations.
    pub annotations: BTreeMap<String, String>,
}

/// How the ServiceAccount of a pod is looked at.
#[async_trait]
pub trait PodAccount: Send + Sync {
    /// As it is now.
    async fn account(&self) -> Result<Account, String>;

    /// A token of it for an audience, bound to the pod.
    async fn token(&self, audience: &str, account: &AccountIdentity) -> Result<String, String>;
}

impl fmt::Debug for dyn PodAccount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PodAccount")
    }
}
