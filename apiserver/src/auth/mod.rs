//! Who asks, and whether they may: PKI, TLS, authenticators, RBAC, the Node authorizer, impersonation, tokens, reviews.

use std::collections::BTreeMap;

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
