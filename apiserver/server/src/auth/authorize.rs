//! The chain of authorizers, in upstream's order: anonymous paths, `system:masters`, Node, RBAC.

use std::sync::Arc;

use machinery_api::error::ApiResult;

use super::attributes::forbidden;
use super::node::{NodeAuthorizer, default_rules};
use super::rbac::{Granted, Rbac};
use super::{ANONYMOUS, Attributes, Decision, MASTERS, UNAUTHENTICATED, UserInfo};
use crate::step::Step;
use apiserver_resources::objects::ObjectReader;

/// All that a request without credentials may see, and only with GET (contract.md §2).
const ANONYMOUS_PATHS: [&str; 5] = ["/healthz", "/livez", "/readyz", "/version", "/version/"];

/// One more authorizer, asked after the built-in ones; it may wait.
pub trait Authorize: Send + Sync {
    /// Whether the user may; what it has no opinion about it doesn't allow.
    fn authorize<'a>(
        &'a self,
        objects: &'a dyn ObjectReader,
        user: &'a UserInfo,
        request: &'a Attributes<'_>,
    ) -> Step<'a, Decision>;
}

/// Decides whether a user may do something.
pub struct Authorizer {
    rbac: Rbac,
    node: NodeAuthorizer,
    more: Vec<Arc<dyn Authorize>>,
}

impl Default for Authorizer {
    fn default() -> Self {
        Self { rbac: Rbac::default(), node: NodeAuthorizer::new(default_rules()), more: Vec::new() }
    }
}

impl Authorizer {
    /// Asks these, too, in this order, what the built-in ones don't allow.
    #[must_use]
    pub fn with(mut self, more: Vec<Arc<dyn Authorize>>) -> Self {
        self.more = more;
        self
    }

    /// What the chain comes to. Never fails: what cannot be resolved grants nothing and shows in the reason.
    pub async fn authorize(&self, objects: &dyn ObjectReader, user: &UserInfo, request: &Attributes<'_>) -> Decision {
        // Who is made anonymous with groups of others (impersonation, reviews) has what those are granted.
        if user.name == ANONYMOUS && user.groups.iter().all(|group| group == UNAUTHENTICATED) {
            let open = !request.is_resource && request.verb == "get" && ANONYMOUS_PATHS.contains(&request.path);
            return if open { Decision::allow("") } else { Decision::refuse("") };
        }
        if user.is_in(MASTERS) {
            return Decision::allow("");
        }
        let mut reasons = Vec::new();
        let by_node = self.node.authorize(objects, user, request);
        if by_node.allowed {
            return by_node;
        }
        reasons.push(by_node.reason);
        let by_rbac = self.rbac.authorize(objects, user, request);
        if by_rbac.allowed {
            return by_rbac;
        }
        reasons.push(by_rbac.reason);
        for authorizer in &self.more {
            let decision = authorizer.authorize(objects, user, request).get().await;
            if decision.allowed {
                return decision;
            }
            reasons.push(decision.reason);
        }
        reasons.retain(|reason| !reason.is_empty());
        Decision::refuse(reasons.join("\n"))
    }

    /// [`authorize`](Self::authorize), with upstream's 403 for a refusal.
    pub async fn check(&self, objects: &dyn ObjectReader, user: &UserInfo, request: &Attributes<'_>) -> ApiResult<()> {
        let decision = self.authorize(objects, user, request).await;
        if decision.allowed { Ok(()) } else { Err(forbidden(&user.name, request, &decision.reason)) }
    }

    /// The RBAC rules of a user in a namespace.
    #[must_use]
    pub fn rules_for(&self, objects: &dyn ObjectReader, user: &UserInfo, namespace: &str) -> Granted {
        self.rbac.rules_for(objects, user, namespace)
    }
}
