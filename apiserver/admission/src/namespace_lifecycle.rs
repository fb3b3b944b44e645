//! NamespaceLifecycle: rejects creates in missing or terminating namespaces, and deletes of the three initial
//! namespaces.

use machinery_api::error::{ApiError, ApiResult, GroupResource};
use serde_json::Value;

use super::{Context, Effects, MaybeReady, Operation, Plugin};
use apiserver_storage::store::{Compare, Txn};

pub(super) struct NamespaceLifecycle;

impl Plugin for NamespaceLifecycle {
    fn name(&self) -> &'static str {
        "NamespaceLifecycle"
    }

    fn mutate<'a>(
        &'a self,
        context: &'a Context<'_>,
        object: &'a mut Value,
        effects: &'a mut Effects,
    ) -> MaybeReady<'a> {
        admit(context, object, &mut effects.txn).into()
    }
}

const IMMORTAL: [&str; 3] = ["default", "kube-system", "kube-public"];

fn admit(context: &Context<'_>, object: &Value, txn: &mut Txn) -> ApiResult<()> {
    let request = context.request;
    if request.group.is_empty() && request.resource == "namespaces" {
        if request.operation == Operation::Delete && IMMORTAL.contains(&request.name) {
            return Err(request.forbidden(object, "this namespace may not be deleted"));
        }
        return Ok(());
    }
    // Access reviews must not reveal which namespaces exist.
    let review = request.group == "authorization.k8s.io" && request.resource == "localsubjectaccessreviews";
    let changes = matches!(request.operation, Operation::Create | Operation::Update);
    if request.namespace.is_empty() || !changes || review {
        return Ok(());
    }
    let Some(namespace) = context.objects.get("", "namespaces", "", request.namespace) else {
        return Err(ApiError::NotFound(GroupResource::new("", "namespaces"), request.namespace.to_owned()));
    };
    let terminating = namespace["status"]["phase"].as_str() == Some("Terminating")
        || namespace["metadata"]["deletionTimestamp"].is_string();
    if request.operation != Operation::Create {
        return Ok(());
    }
    if !terminating {
        txn.compares.extend(unchanged(context, &namespace));
        return Ok(());
    }
    let name = request.namespace;
    let why = format!("unable to create new content in namespace {name} because it is being terminated");
    Err(match request.forbidden(object, why) {
        ApiError::Forbidden(resource, object, why) => {
            ApiError::NamespaceTerminating(resource, object, why, name.to_owned())
        }
        other => other,
    })
}

/// Requires the namespace to be unchanged at commit, so that no object is created in one that starts to terminate.
fn unchanged(context: &Context<'_>, namespace: &Value) -> Option<Compare> {
    let key = context.objects.key("", "namespaces", "", context.request.namespace)?;
    let modified = namespace["metadata"]["resourceVersion"].as_str()?.parse().ok()?;
    Some(Compare { key: key.into(), modified })
}
