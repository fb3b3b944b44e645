//! Indexed reads of claims, volumes and their users from the cache.

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use machinery_api::ObjectKey;

use crate::cache::ObjectCache;
use crate::object::Kind;
use crate::pod::Pod;

impl ObjectCache {
    /// The pods that use a claim, in order of name.
    pub fn users_of_claim(&self, claim: &ObjectKey) -> impl Iterator<Item = &Pod> {
        self.by_claim(move |index| index.of_claim(claim))
    }

    /// The volumes that name a claim, whatever the uid.
    pub fn volumes_naming(&self, claim: &ObjectKey) -> impl Iterator<Item = &PersistentVolume> {
        self.by_claim(move |index| index.of_claim(claim))
    }

    /// The volumes of a class that name no claim.
    pub fn volumes_of_class(&self, class: &str) -> impl Iterator<Item = &PersistentVolume> {
        self.by_claim(move |index| index.unlinked(class))
    }

    /// The claims of a class that name no volume.
    pub fn claims_of_class(&self, class: &str) -> impl Iterator<Item = &PersistentVolumeClaim> {
        self.by_claim(move |index| index.unlinked(class))
    }

    /// The claims that name a volume, bound or not.
    pub fn claims_naming(&self, volume: &ObjectKey) -> impl Iterator<Item = &PersistentVolumeClaim> {
        self.by_claim(move |index| index.of_claim(volume))
    }

    /// Number of volumes of [`LOCAL_DRIVER`](crate::claims::LOCAL_DRIVER) on a node, by the value of its label.
    #[must_use]
    pub fn local_volumes_on(&self, node: &str) -> usize {
        self.claim_index(&Kind::of::<PersistentVolume>()).map_or(0, |index| index.local_volumes(node))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::object::{Object, Typed};
    use std::sync::Arc;

    fn put<K: Typed + Object>(view: &mut ObjectCache, object: Value) {
        let object: K = crate::read(object).unwrap();
        view.put(&Kind::of::<K>(), Arc::new(object));
    }

    fn volume(spec: Value) -> Value {
        json!({"metadata": {"name": "v"}, "spec": spec})
    }

    fn names<K: Typed + Object>(found: Vec<&K>) -> Vec<String> {
        found.into_iter().filter_map(|one| Object::metadata(one).name.clone()).collect()
    }

    #[test]
    fn volumes_are_found_by_claim_and_by_class() {
        let (mut view, claim) = (ObjectCache::default(), ObjectKey::new("a", "c"));
        put::<PersistentVolume>(&mut view, volume(json!({"storageClassName": "s"})));
        assert_eq!(names(view.volumes_of_class("s").collect()), ["v"]);
        put::<PersistentVolume>(&mut view, volume(json!({"claimRef": {"namespace": "a", "name": "c"}})));
        assert!(view.volumes_of_class("s").next().is_none());
        assert_eq!(names(view.volumes_naming(&claim).collect()), ["v"]);
        view.remove(&Kind::of::<PersistentVolume>(), &ObjectKey::cluster("v"), 0);
        assert!(view.volumes_naming(&claim).next().is_none());
    }

    #[test]
    fn claims_are_found_while_they_name_no_volume() {
        let mut view = ObjectCache::default();
        let claim = |spec: Value| json!({"metadata": {"name": "c", "namespace": "a"}, "spec": spec});
        put::<PersistentVolumeClaim>(&mut view, claim(json!({"storageClassName": "s"})));
        assert_eq!(names(view.claims_of_class("s").collect()), ["c"]);
        put::<PersistentVolumeClaim>(&mut view, claim(json!({"storageClassName": "s", "volumeName": "v"})));
        assert!(view.claims_of_class("s").next().is_none());
        assert_eq!(names(view.claims_naming(&ObjectKey::cluster("v")).collect()), ["c"]);
    }

    #[test]
    fn pods_are_found_by_the_claims_that_they_use() {
        let mut view = ObjectCache::default();
        let volumes =
            json!([{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}, {"name": "own", "ephemeral": {}}]);
        put::<Pod>(
            &mut view,
            json!({"metadata": {"name": "p", "namespace": "a"}, "spec": {"containers": [], "volumes": volumes}}),
        );
        for (claim, users) in [("c", 1), ("p-own", 1), ("own", 0)] {
            assert_eq!(view.users_of_claim(&ObjectKey::new("a", claim)).count(), users, "{claim}");
        }
        view.remove(&Kind::of::<Pod>(), &ObjectKey::new("a", "p"), 0);
        assert_eq!(view.users_of_claim(&ObjectKey::new("a", "c")).count(), 0);
    }

    #[test]
    fn volumes_of_a_node_are_counted() {
        let mut view = ObjectCache::default();
        let on = |node: &str| {
            let of = json!([{"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]);
            let affinity = json!({"required": {"nodeSelectorTerms": [{"matchExpressions": of}]}});
            volume(json!({"csi": {"driver": "local.coracle.dev", "volumeHandle": "h"}, "nodeAffinity": affinity}))
        };
        put::<PersistentVolume>(&mut view, on("n"));
        assert_eq!((view.local_volumes_on("n"), view.local_volumes_on("m")), (1, 0));
        put::<PersistentVolume>(&mut view, on("m"));
        assert_eq!((view.local_volumes_on("n"), view.local_volumes_on("m")), (0, 1));
    }
}
