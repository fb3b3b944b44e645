//! Which fields of a Pod this node doesn't act on ([`machinery_api::unsupported`]): a pod that sets one stays Pending and is told so.

use k8s_openapi::api::core::v1::Pod;
pub use machinery_api::unsupported::{Unsupported, sentence};
use serde_json::Value;

use crate::spec::containers;

/// Every such field of a pod, in order.
#[must_use]
pub fn fields(pod: &Pod) -> Vec<Unsupported> {
    machinery_api::unsupported::fields(&serde_json::to_value(&pod.spec).unwrap_or(Value::Null), "spec")
}

/// The same of one of its ephemeral containers: those come when the pod runs, and it runs on.
#[must_use]
pub fn ephemeral_fields(pod: &Pod, name: &str) -> Vec<Unsupported> {
    let spec = serde_json::to_value(containers::spec(pod)).unwrap_or(Value::Null);
    machinery_api::unsupported::ephemeral(&spec, "spec", Some(name))
}
