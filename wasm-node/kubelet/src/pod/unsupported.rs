//! The fields of a Pod that this node doesn't support ([`machinery_rules::unsupported`]): a pod with one stays Pending, with an event.

use k8s_openapi::api::core::v1::Pod;
pub use machinery_rules::unsupported::{Unsupported, sentence};
use serde_json::Value;

use crate::spec::containers;

/// All unsupported fields of a pod, in order.
#[must_use]
pub fn fields(pod: &Pod) -> Vec<Unsupported> {
    machinery_rules::unsupported::fields(&serde_json::to_value(&pod.spec).unwrap_or(Value::Null), "spec")
}

/// The unsupported fields of an ephemeral container: the pod may already be running, and it continues.
#[must_use]
pub fn ephemeral_fields(pod: &Pod, name: &str) -> Vec<Unsupported> {
    let spec = serde_json::to_value(containers::spec(pod)).unwrap_or(Value::Null);
    machinery_rules::unsupported::ephemeral(&spec, "spec", Some(name))
}
