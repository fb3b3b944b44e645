//! Claims, volumes and pods by what binds them to each other, so that a claim's pass looks at what may concern it and at nothing else.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use machinery_api::ObjectKey;

use crate::claims::{claim_names, claim_ref, class_of_claim, class_of_volume, local_node_of, volume_name};
use crate::object::{Object, typed};
use crate::pod::Pod;

type Keys = BTreeSet<Arc<ObjectKey>>;

/// See the module. One for each kind.
#[derive(Debug, Default, Clone)]
pub(crate) struct ClaimIndex {
    /// Pods that use a claim, volumes that name it, or claims that name a volume.
    of_claim: HashMap<ObjectKey, Keys>,
    /// By class: volumes that name no claim, or claims that name no volume.
    alone: HashMap<Box<str>, Keys>,
    /// How many volumes of this program's a node keeps, by the value of its label.
    kept_by: HashMap<Box<str>, usize>,
}

/// By what an object is found.
#[derive(Default)]
struct Entry<'a> {
    claims: Vec<ObjectKey>,
    class: Option<&'a str>,
    node: Option<&'a str>,
}

impl<'a> Entry<'a> {
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
        let entry = Entry::of(object);
        for claim in entry.claims {
            self.of_claim.entry(claim).or_default().insert(key.clone());
        }
        if let Some(class) = entry.class {
            self.alone.entry(class.into()).or_default().insert(key.clone());
        }
        if let Some(node) = entry.node {
            *self.kept_by.entry(node.into()).or_default() += 1;
        }
    }

    pub(crate) fn remove(&mut self, key: &ObjectKey, object: &dyn Object) {
        let entry = Entry::of(object);
        for claim in entry.claims {
            if let Some(keys) = self.of_claim.get_mut(&claim) {
                keys.remove(key);
                if keys.is_empty() {
                    self.of_claim.remove(&claim);
                }
            }
        }
        if let Some(class) = entry.class
            && let Some(keys) = self.alone.get_mut(class)
        {
            keys.remove(key);
            if keys.is_empty() {
                self.alone.remove(class);
            }
        }
        if let Some(node) = entry.node
            && let Some(count) = self.kept_by.get_mut(node)
        {
            *count -= 1;
            if *count == 0 {
                self.kept_by.remove(node);
            }
        }
    }

    pub(crate) fn of_claim(&self, claim: &ObjectKey) -> impl Iterator<Item = &Arc<ObjectKey>> {
        self.of_claim.get(claim).into_iter().flatten()
    }

    pub(crate) fn alone(&self, class: &str) -> impl Iterator<Item = &Arc<ObjectKey>> {
        self.alone.get(class).into_iter().flatten()
    }

    pub(crate) fn kept_by(&self, node: &str) -> usize {
        self.kept_by.get(node).copied().unwrap_or_default()
    }
}
