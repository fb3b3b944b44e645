//! The authorizer chain, in upstream's order: anonymous paths, `system:masters`, Node, RBAC, additional authorizers.

use std::sync::Arc;

use machinery_api::error::ApiResult;

use super::attributes::forbidden;
use super::node::{NodeAuthorizer, default_rules};
use super::rbac::{Rbac, ResolvedRules};
use super::{ANONYMOUS, Attributes, Decision, MASTERS, UNAUTHENTICATED, UserInfo};
use crate::maybe_ready::MaybeReady;
use apiserver_resources::objects::ObjectReader;

/// The paths that are open to anonymous GET requests (docs/contract.md §2).
const ANONYMOUS_PATHS: [&str; 5] = ["/healthz", "/livez", "/readyz", "/version", "/version/"];

/// An additional authorizer, called after the built-in ones. It may wait.
pub trait Authorize: Send + Sync {
    /// Decides for a user. No opinion is returned as a decision that does not allow.
    fn authorize<'a>(
        &'a self,
        objects: &'a dyn ObjectReader,
        user: &'a UserInfo,
        request: &'a Attributes<'_>,
    ) -> MaybeReady<'a, Decision>;
}

/// The authorizer chain.
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
    /// Adds authorizers, called in this order if the built-in ones do not allow a request.
    #[must_use]
    pub fn with_authorizers(mut self, more: Vec<Arc<dyn Authorize>>) -> Self {
        self.more = more;
        self
    }

    /// Runs the chain. It never fails: unresolvable rules grant nothing and appear in the reason.
    pub async fn authorize(&self, objects: &dyn ObjectReader, user: &UserInfo, request: &Attributes<'_>) -> Decision {
        // An anonymous user with other groups (impersonation, reviews) has the rights of those groups.
        if user.name == ANONYMOUS && user.groups.iter().all(|group| group == UNAUTHENTICATED) {
            let open = !request.is_resource && request.verb == "get" && ANONYMOUS_PATHS.contains(&request.path);
            return if open { Decision::allow("") } else { Decision::no_opinion("") };
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
        Decision::no_opinion(reasons.join("\n"))
    }

    /// Like [`authorize`](Self::authorize), with upstream's 403 for a request that is not allowed.
    pub async fn check(&self, objects: &dyn ObjectReader, user: &UserInfo, request: &Attributes<'_>) -> ApiResult<()> {
        let decision = self.authorize(objects, user, request).await;
        if decision.allowed { Ok(()) } else { Err(forbidden(&user.name, request, &decision.reason)) }
    }

    /// The RBAC rules of a user in a namespace.
    #[must_use]
    pub(crate) fn rules_for(&self, objects: &dyn ObjectReader, user: &UserInfo, namespace: &str) -> ResolvedRules {
        self.rbac.rules_for(objects, user, namespace)
    }
}
