//! RBAC escalation: upstream checks it in the registry of the four kinds, after all other plugins changed the object.

use machinery_api::error::ApiResult;
use serde_json::Value;

use super::{Context, Immediate, Operation};
use crate::auth::RBAC_GROUP;
use crate::auth::escalation::{Write, check};

pub(super) const PLUGIN: Immediate = Immediate { name: "RBACEscalation", mutate: Some(admit), validate: None };

fn admit(context: &Context<'_>, object: &mut Value) -> ApiResult<()> {
    let request = context.request;
    if request.group != RBAC_GROUP || request.operation == Operation::Delete {
        return Ok(());
    }
    let write = Write {
        plural: request.resource,
        namespace: request.namespace,
        path_name: request.name,
        new: object,
        old: context.old,
    };
    check(context.authorizer, context.objects, request.user, &write)
}
