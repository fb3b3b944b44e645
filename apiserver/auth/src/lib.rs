//! Authentication and authorization: PKI, client certificates, authenticators, RBAC, the Node authorizer,
//! impersonation, tokens, reviews.
//!
//! In the order of a request: [`tls::PeerVerifier`] verifies the peer's certificate, and
//! [`Authenticator`] derives a [`UserInfo`] from it or from a token. [`Impersonator`] may replace the user, and
//! [`Authorizer`] decides. [`escalation`] checks writes of RBAC objects; [`tokens`] and [`reviews`]
//! implement the API for these subjects. Everything except the key files is a function over
//! [`ObjectReader`](apiserver_resources::objects::ObjectReader).
//!
//! Absent on purpose: HTTP servers and clients, sockets, the store.
#![warn(missing_docs)]

mod attributes;
mod authenticate;
mod authorize;
mod bootstrap_tokens;
pub mod certificates;
pub mod escalation;
pub mod folder;
#[cfg(test)]
mod fuzz;
pub mod impersonate;
pub mod jwks;
pub mod jwt;
mod leaf;
mod maybe_ready;
pub mod node;
mod node_graph;
mod node_own;
mod node_references;
pub mod own_certificates;
pub mod pki;
mod rbac;
pub mod reviews;
pub mod rules;
pub mod shared_keys;
pub mod signing;
pub mod tls;
mod token_cache;
pub mod tokens;
pub mod websocket_token;

use std::collections::BTreeMap;

pub use attributes::{Attributes, Decision};
pub use authenticate::{AuthenticateToken, Authenticator, Credentials};
pub use authorize::{Authorize, Authorizer};
pub use impersonate::Impersonator;
pub use maybe_ready::MaybeReady;

/// The group whose members bypass authorization.
pub const MASTERS: &str = "system:masters";
/// The group of every authenticated user.
pub const AUTHENTICATED: &str = "system:authenticated";
/// The group of every anonymous request.
pub const UNAUTHENTICATED: &str = "system:unauthenticated";
/// The user of requests without credentials.
pub const ANONYMOUS: &str = "system:anonymous";
/// The group of kubelets.
pub const NODES: &str = "system:nodes";
/// The prefix of kubelets' user names.
pub const NODE_PREFIX: &str = "system:node:";
/// The group of all service accounts; with the suffix `:NAMESPACE`, those of one namespace.
pub const SERVICE_ACCOUNTS: &str = "system:serviceaccounts";
/// The prefix of service accounts' user names.
const SERVICE_ACCOUNT_PREFIX: &str = "system:serviceaccount:";
/// Extra key: the ID of the certificate or token.
pub const CREDENTIAL_ID: &str = "authentication.kubernetes.io/credential-id";
/// Extra key: the pod that a token is bound to.
pub const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
/// Extra key: the UID of that pod.
pub const POD_UID: &str = "authentication.kubernetes.io/pod-uid";
/// Extra key: the node that a token is bound to, or that its pod runs on.
pub const NODE_NAME: &str = "authentication.kubernetes.io/node-name";
/// Extra key: the UID of that node.
pub const NODE_UID: &str = "authentication.kubernetes.io/node-uid";
/// The API group of RBAC.
pub const RBAC_GROUP: &str = "rbac.authorization.k8s.io";

/// The authenticated identity of a request (`authentication.k8s.io` UserInfo).
///
/// In-process components put it into the request's extensions; it is never a header.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct UserInfo {
    /// The user's name.
    pub name: String,
    /// The user's UID, if the authenticator supplies one.
    pub uid: String,
    /// Groups, in the authenticator's order.
    pub groups: Vec<String>,
    /// Extra attributes (`authentication.kubernetes.io/credential-id`, pod and node of a token …).
    pub extra: BTreeMap<String, Vec<String>>,
}

impl UserInfo {
    /// A user of an in-process component, with at most one group of its own.
    #[must_use]
    pub fn component(name: impl Into<String>, group: Option<&str>) -> Self {
        let mut groups: Vec<String> = group.map(str::to_owned).into_iter().collect();
        groups.push(AUTHENTICATED.into());
        Self { name: name.into(), groups, ..Self::default() }
    }

    /// The user of a service account, for in-process code that acts on its behalf.
    #[must_use]
    pub fn service_account(namespace: &str, name: &str) -> Self {
        let mut groups = service_account_groups(namespace);
        groups.push(AUTHENTICATED.into());
        Self { name: service_account_user(namespace, name), groups, ..Self::default() }
    }

    /// Whether the user is in a group.
    #[must_use]
    #[inline]
    pub fn is_in(&self, group: &str) -> bool {
        self.groups.iter().any(|g| g == group)
    }

    /// The node of a kubelet. `Some("")` for a member of `system:nodes` with an invalid name.
    #[must_use]
    #[inline]
    pub fn node(&self) -> Option<&str> {
        if self.is_in(NODES) { self.name.strip_prefix(NODE_PREFIX) } else { None }
    }
}

/// `system:serviceaccount:NAMESPACE:NAME`.
#[must_use]
pub fn service_account_user(namespace: &str, name: &str) -> String {
    format!("{SERVICE_ACCOUNT_PREFIX}{namespace}:{name}")
}

/// Parses namespace and name of a service account's user name.
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

/// The groups of service accounts in a namespace.
#[must_use]
pub fn service_account_groups(namespace: &str) -> Vec<String> {
    vec![SERVICE_ACCOUNTS.to_owned(), format!("{SERVICE_ACCOUNTS}:{namespace}")]
}
