//! Who asks, and whether they may: PKI, TLS, authenticators, RBAC, the Node authorizer, impersonation, tokens, reviews.
//!
//! In the order of a request: [`tls::serve`] hands over the peer's certificate, [`authenticate::Authenticator`] makes a
//! [`UserInfo`] of it or of a token, [`impersonate::impersonate`] may replace that one, [`authorize::Authorizer`]
//! decides. [`escalation`] watches over writes of RBAC objects, [`tokens`] and [`reviews`] answer what is asked about all
//! of this. Everything but the listener and the key files is a pure function over [`ObjectReader`](apiserver_resources::objects::Objects).

pub mod attributes;
pub mod authenticate;
pub mod authorize;
mod bootstrap_tokens;
pub mod certificates;
mod checked;
pub mod escalation;
#[cfg(test)]
mod fuzz;
pub mod impersonate;
pub mod jwks;
pub mod jwt;
mod leaf;
pub mod node;
mod node_graph;
mod node_own;
mod node_references;
pub mod pki;
pub mod rbac;
pub mod reviews;
pub mod rules;
pub mod signing;
pub mod tls;
pub mod tokens;

use std::collections::BTreeMap;

pub use attributes::{Attributes, Decision};
pub use authenticate::{AuthenticateToken, Authenticator, Credentials};
pub use authorize::{Authorize, Authorizer};
pub use impersonate::Impersonator;

/// The group that may do everything; its members skip all checks.
pub const MASTERS: &str = "system:masters";
/// The group of every authenticated user.
pub const AUTHENTICATED: &str = "system:authenticated";
/// The group of every anonymous request.
pub const UNAUTHENTICATED: &str = "system:unauthenticated";
/// Who sent no credentials.
pub const ANONYMOUS: &str = "system:anonymous";
/// The group of kubelets.
pub const NODES: &str = "system:nodes";
/// Kubelets' names begin with it.
pub const NODE_PREFIX: &str = "system:node:";
/// The group of all service accounts; with `:NAMESPACE` behind it, of one namespace's.
pub const SERVICE_ACCOUNTS: &str = "system:serviceaccounts";
/// Service accounts' user names begin with it.
const SERVICE_ACCOUNT_PREFIX: &str = "system:serviceaccount:";
/// Extra: which certificate or token it was.
pub const CREDENTIAL_ID: &str = "authentication.kubernetes.io/credential-id";
/// Extra: the pod that a token is bound to.
pub const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
/// Extra: see [`POD_NAME`].
pub const POD_UID: &str = "authentication.kubernetes.io/pod-uid";
/// Extra: the node that a token is bound to, or its pod runs on.
pub const NODE_NAME: &str = "authentication.kubernetes.io/node-name";
/// Extra: see [`NODE_NAME`].
pub const NODE_UID: &str = "authentication.kubernetes.io/node-uid";
/// The RBAC kinds' API group.
pub const RBAC_GROUP: &str = "rbac.authorization.k8s.io";

/// The authenticated identity of a request (`authentication.k8s.io` UserInfo).
///
/// In-process components put one into the request's extensions; it never travels as a header.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct UserInfo {
    /// The user's name.
    pub name: String,
    /// The user's uid, where the authenticator knows one.
    pub uid: String,
    /// Groups, in the authenticator's order.
    pub groups: Vec<String>,
    /// Extra attributes (`authentication.kubernetes.io/credential-id`, pod and node of a token …).
    pub extra: BTreeMap<String, Vec<String>>,
}

impl UserInfo {
    /// A user with one group, as the process's own components are.
    #[must_use]
    pub fn component(name: impl Into<String>, group: Option<&str>) -> Self {
        let mut groups: Vec<String> = group.map(str::to_owned).into_iter().collect();
        groups.push(AUTHENTICATED.into());
        Self { name: name.into(), groups, ..Self::default() }
    }

    /// A service account, as code of this process acts in its name.
    #[must_use]
    pub fn service_account(namespace: &str, name: &str) -> Self {
        let mut groups = service_account_groups(namespace);
        groups.push(AUTHENTICATED.into());
        Self { name: service_account_user(namespace, name), groups, ..Self::default() }
    }

    /// Whether the user is in a group.
    #[must_use]
    pub fn is_in(&self, group: &str) -> bool {
        self.groups.iter().any(|g| g == group)
    }

    /// The node that this user is the kubelet of: `Some("")` for a member of `system:nodes` with an unusable name.
    #[must_use]
    pub fn node(&self) -> Option<&str> {
        if self.is_in(NODES) { self.name.strip_prefix(NODE_PREFIX) } else { None }
    }
}

/// `system:serviceaccount:NAMESPACE:NAME`.
#[must_use]
pub fn service_account_user(namespace: &str, name: &str) -> String {
    format!("{SERVICE_ACCOUNT_PREFIX}{namespace}:{name}")
}

/// Namespace and name of a service account's user name.
#[must_use]
pub fn parse_service_account(user: &str) -> Option<(&str, &str)> {
    let (namespace, name) = user.strip_prefix(SERVICE_ACCOUNT_PREFIX)?.split_once(':')?;
    let usable = |part: &str, dots: bool| {
        !part.is_empty()
            && part.len() <= if dots { 253 } else { 63 }
            && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || (dots && b == b'.'))
            && part.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric())
            && part.bytes().next_back().is_some_and(|b| b.is_ascii_alphanumeric())
    };
    (usable(namespace, false) && usable(name, true)).then_some((namespace, name))
}

/// The groups of a namespace's service accounts.
#[must_use]
pub fn service_account_groups(namespace: &str) -> Vec<String> {
    vec![SERVICE_ACCOUNTS.to_owned(), format!("{SERVICE_ACCOUNTS}:{namespace}")]
}

#[cfg(test)]
mod tests;
