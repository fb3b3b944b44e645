//! The chain of authorizers, in upstream's order: anonymous paths, `system:masters`, Node, RBAC.

use machinery_api::error::ApiResult;

use super::attributes::forbidden;
use super::node::NodeAuthorizer;
use super::rbac::{Granted, Rbac};
use super::{ANONYMOUS, Attributes, Decision, MASTERS, UserInfo};
use apiserver_resources::objects::Objects;

/// All that a request without credentials may see, and only with GET (contract.md §2).
const ANONYMOUS_PATHS: [&str; 5] = ["/healthz", "/livez", "/readyz", "/version", "/version/"];

/// Decides whether a user may do something.
#[derive(Debug)]
pub struct Authorizer {
    rbac: Rbac,
    node: NodeAuthorizer,
}

impl Default for Authorizer {
    fn default() -> Self {
        Self { rbac: Rbac::default(), node: NodeAuthorizer::new(crate::bootstrap::node_rules()) }
    }
}

impl Authorizer {
    /// What the chain comes to. Never fails: what cannot be resolved grants nothing and shows in the reason.
    #[must_use]
    pub fn authorize(&self, objects: &dyn Objects, user: &UserInfo, request: &Attributes<'_>) -> Decision {
        if user.name == ANONYMOUS {
            let open = !request.is_resource && request.verb == "get" && ANONYMOUS_PATHS.contains(&request.path);
            return if open { Decision::allow("") } else { Decision::refuse("") };
        }
        if user.is_in(MASTERS) {
            return Decision::allow("");
        }
        let by_node = self.node.authorize(objects, user, request);
        if by_node.allowed {
            return by_node;
        }
        let mut by_rbac = self.rbac.authorize(objects, user, request);
        if !by_rbac.allowed && !by_node.reason.is_empty() {
            by_rbac.reason = match by_rbac.reason.as_str() {
                "" => by_node.reason,
                reason => format!("{}\n{reason}", by_node.reason),
            };
        }
        by_rbac
    }

    /// [`authorize`](Self::authorize), with upstream's 403 for a refusal.
    pub fn check(&self, objects: &dyn Objects, user: &UserInfo, request: &Attributes<'_>) -> ApiResult<()> {
        let decision = self.authorize(objects, user, request);
        if decision.allowed { Ok(()) } else { Err(forbidden(&user.name, request, &decision.reason)) }
    }

    /// The RBAC rules of a user in a namespace.
    #[must_use]
    pub fn rules_for(&self, objects: &dyn Objects, user: &UserInfo, namespace: &str) -> Granted {
        self.rbac.rules_for(objects, user, namespace)
    }
}
