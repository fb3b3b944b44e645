//! StorageObjectInUseProtection adds finalizers to storage objects; PersistentVolumeClaimResize checks that claims may
//! grow.

use machinery_api::error::ApiResult;
use machinery_api::quantity::Quantity;
use serde_json::{Value, json};

use super::{Context, Immediate, Operation, list_mut};

pub(super) const PROTECTION: Immediate =
    Immediate { name: "StorageObjectInUseProtection", mutate: Some(protect), validate: None };
pub(super) const RESIZE: Immediate =
    Immediate { name: "PersistentVolumeClaimResize", mutate: None, validate: Some(resize) };

/// The finalizer that protects an object while it is in use.
fn finalizer(context: &Context<'_>) -> Option<&'static str> {
    let request = context.request;
    match (request.group, request.resource, request.subresource) {
        ("", "persistentvolumes", "") => Some("kubernetes.io/pv-protection"),
        ("", "persistentvolumeclaims", "") => Some("kubernetes.io/pvc-protection"),
        ("storage.k8s.io", "volumeattributesclasses", "") => Some("kubernetes.io/vac-protection"),
        _ => None,
    }
}

fn protect(context: &Context<'_>, object: &mut Value) -> ApiResult<()> {
    if context.request.operation != Operation::Create {
        return Ok(());
    }
    let Some(finalizer) = finalizer(context) else { return Ok(()) };
    let Some(finalizers) = list_mut(object, "metadata", "finalizers") else { return Ok(()) };
    if !finalizers.iter().any(|one| one == finalizer) {
        finalizers.push(json!(finalizer));
    }
    Ok(())
}

fn size(claim: &Value) -> Option<Quantity> {
    match &claim["spec"]["resources"]["requests"]["storage"] {
        Value::String(text) => Quantity::parse(text).ok(),
        Value::Number(number) => Quantity::parse(&number.to_string()).ok(),
        _ => None,
    }
}

fn class(claim: &Value) -> &str {
    let annotation = claim["metadata"]["annotations"]["volume.beta.kubernetes.io/storage-class"].as_str();
    annotation.or_else(|| claim["spec"]["storageClassName"].as_str()).unwrap_or_default()
}

fn resize(context: &Context<'_>, claim: &Value) -> ApiResult<()> {
    let request = context.request;
    let Some(old) = context.old.filter(|_| request.is("persistentvolumeclaims")) else { return Ok(()) };
    if request.operation != Operation::Update || size(claim) <= size(old) {
        return Ok(());
    }
    if old["status"]["phase"] != "Bound" {
        return Err(request.forbidden(claim, "Only bound persistent volume claims can be expanded"));
    }
    let (name, before) = (class(claim), class(old));
    let grows = |class: &Value| class["allowVolumeExpansion"] == true;
    let found = context.objects.get("storage.k8s.io", "storageclasses", "", name);
    if name.is_empty() || name != before || !found.is_some_and(|class| grows(&class)) {
        let why = "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must \
                   support resize";
        return Err(request.forbidden(claim, why));
    }
    Ok(())
}
