//! The group `networking.k8s.io`: ingress, network policies, and the addresses of Services.

pub(crate) mod ingressclasses;
pub(crate) mod ingresses;
pub(crate) mod ipaddresses;
pub(crate) mod networkpolicies;
pub(crate) mod servicecidrs;

use serde_json::Value;

use crate::field::{ErrorList, Path};
use crate::read::{has, text};
use crate::rules;

/// A required field that is a valid path segment.
fn segment(errors: &mut ErrorList, of: &Value, key: &str, path: &Path<'_>) {
    let (value, at) = (text(of, key), path.child(key));
    if value.is_empty() {
        errors.required(&at, "");
    } else {
        errors.invalid_each(&at, value, rules::path_segment(value, false));
    }
}

/// A reference to an object by API group, kind and name.
fn typed_reference(errors: &mut ErrorList, reference: &Value, path: &Path<'_>) {
    if has(reference, "apiGroup") {
        let group = text(reference, "apiGroup");
        errors.invalid_each(&path.child("apiGroup"), group, rules::dns_subdomain(group));
    }
    segment(errors, reference, "kind", path);
    segment(errors, reference, "name", path);
}
