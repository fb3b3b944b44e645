//! A worker's copy of its pod: decompressed from its first use in a step until the worker is idle, compressed in
//! between (`docs/decisions/0077-resting-pods.md`). Pure.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use machinery_client::reference_to;

use crate::spec::compressed::{Compressed, Decompressed};
use crate::spec::containers;

/// The newest state of a pod, and the reference to it in events.
#[derive(Debug)]
pub(crate) struct PodObject {
    compressed: Arc<Compressed<Pod>>,
    decompressed: Decompressed<Pod>,
    reference: Arc<ObjectReference>,
}

impl PodObject {
    pub(crate) fn new(compressed: Arc<Compressed<Pod>>) -> Self {
        let reference = Arc::new(reference_to(&*compressed.get()));
        Self { compressed, decompressed: Decompressed::default(), reference }
    }

    /// The pod. It stays decompressed until [`Self::compress`].
    pub(crate) fn get(&self) -> &Arc<Pod> {
        self.decompressed.get(&self.compressed)
    }

    /// The pod, for readers outside of the worker.
    pub(crate) fn compressed(&self) -> &Arc<Compressed<Pod>> {
        &self.compressed
    }

    /// The reference to the pod in events.
    pub(crate) fn reference(&self) -> &Arc<ObjectReference> {
        &self.reference
    }

    /// Replaces the pod by a newer state. Its containers keep their order, as the pod's state refers to them by index.
    /// Returns the new object, for readers outside of the worker.
    pub(crate) fn replace(&mut self, newer: Arc<Compressed<Pod>>) -> Arc<Compressed<Pod>> {
        let ordered = containers::in_stable_order(self.get(), &newer.get());
        self.compressed = ordered.map_or(newer, |ordered| Arc::new(ordered.into()));
        self.decompressed.clear();
        self.compressed.clone()
    }

    /// Compresses the pod. Returns whether it was in use since the last call.
    pub(crate) fn compress(&mut self) -> bool {
        let used = self.decompressed.clear();
        if used {
            self.compressed.compress();
        }
        used
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(version: &str, ephemeral: &[&str]) -> Arc<Compressed<Pod>> {
        let ephemeral: Vec<_> = ephemeral.iter().map(|name| json!({"name": name})).collect();
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u", "resourceVersion": version},
            "spec": {"containers": [{"name": "c"}], "ephemeralContainers": ephemeral},
        }))
        .unwrap();
        Arc::new(pod.into())
    }

    #[test]
    fn a_used_pod_is_compressed_once() {
        let mut object = PodObject::new(pod("1", &[]));
        assert!(!object.compress(), "it was not used");
        assert_eq!(object.get().metadata.resource_version.as_deref(), Some("1"));
        let borrowed = Arc::downgrade(object.get());
        assert!(object.compress() && !object.compress());
        assert!(borrowed.upgrade().is_none(), "the decompressed form is freed");
        assert_eq!(object.get().metadata.name.as_deref(), Some("p"));
    }

    #[test]
    fn a_newer_state_replaces_a_decompressed_one() {
        let mut object = PodObject::new(pod("1", &["a"]));
        assert_eq!(object.get().metadata.resource_version.as_deref(), Some("1"));
        let newer = object.replace(pod("2", &["b", "a"]));
        assert_eq!(object.get().metadata.resource_version.as_deref(), Some("2"));
        assert!(Arc::ptr_eq(object.get(), &newer.get()), "readers share the worker's object");
        let names = containers::names(&containers::spec(object.get())).map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(names, ["c", "a", "b"], "a container keeps its index");
        assert_eq!(object.reference().name.as_deref(), Some("p"));
    }
}
