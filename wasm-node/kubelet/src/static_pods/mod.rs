//! Static pods: the node runs the pods of a manifest folder independently of the API server, and publishes a mirror of
//! each (<https://kubernetes.io/docs/tasks/configure-pod-container/static-pod/>).
//!
//! [`folder`] reads the manifests, [`manifest`] parses one, [`mirror`] keeps their mirrors in the API.

pub(crate) mod folder;
pub(crate) mod manifest;
pub(crate) mod mirror;

use k8s_openapi::api::core::v1::Pod;

/// The annotation of a mirror: the hash of its manifest.
pub(crate) const MIRROR: &str = "kubernetes.io/config.mirror";
/// The annotation of a manifest's hash, which is its pod's uid.
pub(crate) const HASH: &str = "kubernetes.io/config.hash";
/// The annotation of a pod's source.
pub(crate) const SOURCE: &str = "kubernetes.io/config.source";
/// The annotation of the time when the manifest was first read.
pub(crate) const SEEN: &str = "kubernetes.io/config.seen";

/// The manifest hash of a mirror; `None` if the pod is no mirror.
pub(crate) fn mirrored(pod: &Pod) -> Option<&str> {
    pod.metadata.annotations.as_ref()?.get(MIRROR).map(String::as_str)
}
