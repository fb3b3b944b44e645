//! Static pods: a node runs what manifests in a folder say, whatever the API server does, and shows each in the API by a mirror
//! (<https://kubernetes.io/docs/tasks/configure-pod-container/static-pod/>).
//!
//! [`folder`] reads the manifests, [`manifest`] makes a pod of one, [`mirror`] keeps their mirrors in the API.

pub(crate) mod folder;
pub(crate) mod manifest;
pub(crate) mod mirror;

use k8s_openapi::api::core::v1::Pod;

/// On a mirror: the hash of the manifest that it mirrors.
pub(crate) const MIRROR: &str = "kubernetes.io/config.mirror";
/// The hash of a manifest, which is its pod's uid.
pub(crate) const HASH: &str = "kubernetes.io/config.hash";
/// Where a pod comes from.
pub(crate) const SOURCE: &str = "kubernetes.io/config.source";
/// When its manifest was first seen.
pub(crate) const SEEN: &str = "kubernetes.io/config.seen";

/// The hash that a mirror names; none of a pod that is no mirror.
pub(crate) fn mirrored(pod: &Pod) -> Option<&str> {
    pod.metadata.annotations.as_ref()?.get(MIRROR).map(String::as_str)
}
