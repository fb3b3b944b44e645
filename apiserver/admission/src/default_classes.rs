//! DefaultStorageClass and DefaultIngressClass: set the newest class that is marked as default on objects without a
//! class.

use machinery_api::error::ApiResult;
use serde_json::{Value, json};

use super::{Context, Immediate, Operation};

pub(super) const STORAGE: Immediate =
    Immediate { name: "DefaultStorageClass", mutate: Some(default_storage), validate: None };
pub(super) const INGRESS: Immediate =
    Immediate { name: "DefaultIngressClass", mutate: Some(default_ingress), validate: None };

const STORAGE_DEFAULTS: &[&str] =
    &["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"];
const INGRESS_DEFAULT: &[&str] = &["ingressclass.kubernetes.io/is-default-class"];
const STORAGE_ANNOTATION: &str = "volume.beta.kubernetes.io/storage-class";
const INGRESS_ANNOTATION: &str = "kubernetes.io/ingress.class";

/// Returns the newest class marked as default. Among classes created at the same time, the first by name wins.
fn newest(context: &Context<'_>, group: &str, plural: &str, marks: &[&str]) -> Option<String> {
    let marked =
        |class: &&std::sync::Arc<Value>| marks.iter().any(|mark| class["metadata"]["annotations"][*mark] == "true");
    let text = |class: &Value, field: &str| class["metadata"][field].as_str().unwrap_or_default().to_owned();
    let classes = context.objects.list(group, plural, None);
    let mut marked: Vec<_> = classes.iter().filter(marked).collect();
    marked.sort_by_key(|class| (std::cmp::Reverse(text(class, "creationTimestamp")), text(class, "name")));
    marked.first().map(|class| text(class, "name"))
}

fn set(object: &mut Value, field: &str, class: Option<String>) {
    let Some(class) = class else { return };
    let Some(object) = object.as_object_mut() else { return };
    let spec = object.entry("spec").or_insert_with(|| json!({}));
    if spec.is_object() {
        spec[field] = json!(class);
    }
}

fn default_storage(context: &Context<'_>, claim: &mut Value) -> ApiResult<()> {
    let request = context.request;
    let has_class = claim["metadata"]["annotations"].get(STORAGE_ANNOTATION).is_some()
        || claim["spec"]["storageClassName"].is_string();
    if request.is("persistentvolumeclaims") && request.operation == Operation::Create && !has_class {
        set(claim, "storageClassName", newest(context, "storage.k8s.io", "storageclasses", STORAGE_DEFAULTS));
    }
    Ok(())
}

fn default_ingress(context: &Context<'_>, ingress: &mut Value) -> ApiResult<()> {
    let request = context.request;
    let is_ingress = (request.group, request.resource, request.subresource) == ("networking.k8s.io", "ingresses", "");
    let has_class = ingress["metadata"]["annotations"].get(INGRESS_ANNOTATION).is_some()
        || ingress["spec"]["ingressClassName"].is_string();
    if is_ingress && request.operation == Operation::Create && !has_class {
        set(ingress, "ingressClassName", newest(context, "networking.k8s.io", "ingressclasses", INGRESS_DEFAULT));
    }
    Ok(())
}
