//! The ServiceAccount of the pod that pulls an image, as credential providers receive it (KEP-4412).

use std::collections::BTreeMap;
use std::fmt;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

/// The identity of a ServiceAccount. One that is deleted and recreated under the same name has another uid.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct AccountIdentity {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
}

/// The current state of a ServiceAccount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// Namespace, name and uid.
    pub identity: AccountIdentity,
    /// All of its annotations.
    pub annotations: BTreeMap<String, String>,
}

/// Access to the ServiceAccount of a pod.
#[async_trait]
pub trait PodAccount: Send + Sync {
    /// Returns the current ServiceAccount.
    async fn account(&self) -> Result<Account, String>;

    /// Returns a token of the ServiceAccount for `audience`, bound to the pod.
    async fn token(&self, audience: &str, account: &AccountIdentity) -> Result<String, String>;
}

impl fmt::Debug for dyn PodAccount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PodAccount")
    }
}
