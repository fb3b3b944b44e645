//! RBAC escalation check. Upstream has it in the registry of the four kinds, after all other plugins have changed the
//! object.

use serde_json::Value;

use super::{Context, Effects, MaybeReady, Operation, Plugin};
use apiserver_auth::RBAC_GROUP;
use apiserver_auth::escalation::{RbacWrite, check};

pub(super) struct Escalation;

impl Plugin for Escalation {
    fn name(&self) -> &'static str {
        "RBACEscalation"
    }

    fn mutate<'a>(&'a self, context: &'a Context<'_>, object: &'a mut Value, _: &'a mut Effects) -> MaybeReady<'a> {
        let request = context.request;
        if request.group != RBAC_GROUP || request.operation == Operation::Delete {
            return MaybeReady::Ready(Ok(()));
        }
        MaybeReady::Pending(Box::pin(async move {
            let write = RbacWrite {
                plural: request.resource,
                namespace: request.namespace,
                path_name: request.path_name,
                new: object,
                old: context.old,
            };
            check(context.authorizer, context.objects, request.user, &write).await
        }))
    }
}
