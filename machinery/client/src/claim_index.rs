//! Index of claims, volumes and pods by the claim or class that links them, so that a claim's pass reads only related
//! objects.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use machinery_api::ObjectKey;

use crate::claims::{claim_names, claim_ref, class_of_claim, class_of_volume, local_node_of, volume_name};
use crate::object::{Object, typed};
use crate::pod::Pod;

type Keys = BTreeSet<Arc<ObjectKey>>;

/// The index of one kind.
#[derive(Debug, Default, Clone)]
pub(crate) struct ClaimIndex {
    /// Pods that use a claim, volumes that name a claim, or claims that name a volume.
    of_claim: HashMap<ObjectKey, Keys>,
    /// By class: volumes that name no claim, or claims that name no volume.
    unlinked: HashMap<Box<str>, Keys>,
    /// Number of this program's volumes on a node, by the value of the node's label.
    local_volumes: HashMap<Box<str>, usize>,
}

/// The index keys of an object.
#[derive(Default)]
struct ClaimLinks<'a> {
    claims: Vec<ObjectKey>,
    class: Option<&'a str>,
    node: Option<&'a str>,
}

impl<'a> ClaimLinks<'a> {
    fn of(object: &'a dyn Object) -> Self {
        if let Some(pod) = typed::<Pod>(object) {
            let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
            let claims = claim_names(pod).map(|name| ObjectKey::new(namespace, name)).collect();
            return Self { claims, ..Self::default() };
        }
        if let Some(claim) = typed::<PersistentVolumeClaim>(object) {
            return match volume_name(claim) {
                "" => Self { class: Some(class_of_claim(claim)), ..Self::default() },
                name => Self { claims: vec![ObjectKey::cluster(name)], ..Self::default() },
            };
        }
        let Some(volume) = typed::<PersistentVolume>(object) else { return Self::default() };
        let node = local_node_of(volume);
        match claim_ref(volume) {
            None => Self { claims: Vec::new(), class: Some(class_of_volume(volume)), node },
            Some(r) => {
                let of = |text: &Option<String>| text.clone().unwrap_or_default();
                Self { claims: vec![ObjectKey::new(of(&r.namespace), of(&r.name))], class: None, node }
            }
        }
    }
}

impl ClaimIndex {
    pub(crate) fn insert(&mut self, key: &Arc<ObjectKey>, object: &dyn Object) {
        let entry = ClaimLinks::of(object);
        for claim in entry.claims {
            self.of_claim.entry(claim).or_default().insert(key.clone());
        }
        if let Some(class) = entry.class {
            self.unlinked.entry(class.into()).or_default().insert(key.clone());
        }
        if let Some(node) = entry.node {
            *self.local_volumes.entry(node.into()).or_default() += 1;
        }
    }

    pub(crate) fn remove(&mut self, key: &ObjectKey, object: &dyn Object) {
        let entry = ClaimLinks::of(object);
        for claim in entry.claims {
            if let Some(keys) = self.of_claim.get_mut(&claim) {
                keys.remove(key);
                if keys.is_empty() {
                    self.of_claim.remove(&claim);
                }
            }
        }
        if let Some(class) = entry.class
            && let Some(keys) = self.unlinked.get_mut(class)
        {
            keys.remove(key);
            if keys.is_empty() {
                self.unlinked.remove(class);
            }
        }
        if let Some(node) = entry.node
            && let Some(count) = self.local_volumes.get_mut(node)
        {
            *count -= 1;
            if *count == 0 {
                self.local_volumes.remove(node);
            }
        }
    }

    pub(crate) fn of_claim(&self, claim: &ObjectKey) -> impl Iterator<Item = &Arc<ObjectKey>> {
        self.of_claim.get(claim).into_iter().flatten()
    }

    pub(crate) fn unlinked(&self, class: &str) -> impl Iterator<Item = &Arc<ObjectKey>> {
        self.unlinked.get(class).into_iter().flatten()
    }

    pub(crate) fn local_volumes(&self, node: &str) -> usize {
        self.local_volumes.get(node).copied().unwrap_or_default()
    }
}
