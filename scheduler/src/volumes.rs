//! Claims, volumes and classes for decisions, and the volumes that decisions reserve until they are written.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::{CSINode, StorageClass};
use machinery_api::ObjectKey;
use machinery_client::claims;

use crate::pod::{PodClaim, PodInfo};

/// The state of claims, volumes, classes and CSINodes.
#[derive(Debug, Default)]
pub struct Volumes {
    claims: HashMap<ObjectKey, Arc<PersistentVolumeClaim>>,
    volumes: BTreeMap<String, Arc<PersistentVolume>>,
    /// Volumes that a claim may bind, by class: other volumes are not considered.
    free: BTreeMap<String, BTreeMap<String, Arc<PersistentVolume>>>,
    classes: BTreeMap<String, Arc<StorageClass>>,
    nodes: BTreeMap<String, Arc<CSINode>>,
    /// Volumes assumed for a claim, while their objects don't show it yet.
    assumed: BTreeMap<String, ObjectKey>,
    /// The number of scheduled pods that use each claim.
    users: HashMap<ObjectKey, usize>,
}

impl Volumes {
    /// Adds, updates or removes a claim.
    pub fn set_claim(&mut self, key: &ObjectKey, claim: Option<Arc<PersistentVolumeClaim>>) {
        match claim {
            Some(claim) => self.claims.insert(key.clone(), claim),
            None => self.claims.remove(key),
        };
    }

    /// Adds, updates or removes a volume. Returns whether a claim may bind it.
    pub fn set_volume(&mut self, name: &str, volume: Option<Arc<PersistentVolume>>) -> bool {
        if let Some(old) = self.volumes.remove(name)
            && let Some(of_class) = self.free.get_mut(claims::class_of_volume(&old))
        {
            of_class.remove(name);
            if of_class.is_empty() {
                self.free.remove(claims::class_of_volume(&old));
            }
        }
        let Some(volume) = volume else { return false };
        let claim = claims::claim_ref(&volume);
        let free = claim.is_none_or(|claim| claim.uid.as_deref().unwrap_or_default().is_empty());
        if free {
            let of_class = self.free.entry(claims::class_of_volume(&volume).to_owned()).or_default();
            of_class.insert(name.to_owned(), volume.clone());
        } else {
            self.assumed.remove(name);
        }
        self.volumes.insert(name.to_owned(), volume);
        free
    }

    /// Adds, updates or removes a class.
    pub fn set_class(&mut self, name: &str, class: Option<Arc<StorageClass>>) {
        match class {
            Some(class) => self.classes.insert(name.to_owned(), class),
            None => self.classes.remove(name),
        };
    }

    /// Adds, updates or removes a CSINode.
    pub fn set_node(&mut self, name: &str, node: Option<Arc<CSINode>>) {
        match node {
            Some(node) => self.nodes.insert(name.to_owned(), node),
            None => self.nodes.remove(name),
        };
    }

    #[must_use]
    pub fn claim(&self, key: &ObjectKey) -> Option<&PersistentVolumeClaim> {
        self.claims.get(key).map(Arc::as_ref)
    }

    #[must_use]
    pub fn volume(&self, name: &str) -> Option<&PersistentVolume> {
        self.volumes.get(name).map(Arc::as_ref)
    }

    #[must_use]
    pub fn class(&self, name: &str) -> Option<&StorageClass> {
        self.classes.get(name).map(Arc::as_ref)
    }

    /// The maximum number of a driver's volumes on a node; none: unlimited.
    #[must_use]
    pub fn limit(&self, node: &str, driver: &str) -> Option<usize> {
        let driver = self.nodes.get(node)?.spec.drivers.iter().find(|known| known.name == driver)?;
        usize::try_from(driver.allocatable.as_ref()?.count?).ok()
    }

    /// Whether any node has a limit.
    #[must_use]
    pub fn has_limits(&self) -> bool {
        !self.nodes.is_empty()
    }

    /// The volumes of a class that a claim may bind.
    pub fn free(&self, class: &str, claim: &ObjectKey) -> impl Iterator<Item = &PersistentVolume> {
        let all = self.free.get(class).into_iter().flatten();
        let own = all.filter(move |(name, _)| self.assumed.get(*name).is_none_or(|given| given == claim));
        own.map(|(_, volume)| volume.as_ref())
    }

    /// Assumes a volume for a claim.
    pub fn assume(&mut self, volume: &str, claim: ObjectKey) {
        self.assumed.insert(volume.to_owned(), claim);
    }

    /// Drops the assumptions for these claims.
    pub fn drop_assumptions(&mut self, is_of: impl Fn(&ObjectKey) -> bool) {
        self.assumed.retain(|_, claim| !is_of(claim));
    }

    /// Counts a pod's claims: the pod was scheduled, or removed.
    pub fn count(&mut self, pod: &PodInfo, is_there: bool) {
        for claim in pod.claims.iter().flat_map(|claims| claims.iter()) {
            let key = ObjectKey::new(&*pod.key.namespace, &*claim.name);
            let users = self.users.entry(key.clone()).or_default();
            *users = if is_there { *users + 1 } else { users.saturating_sub(1) };
            if *users == 0 {
                self.users.remove(&key);
            }
        }
    }

    /// The number of scheduled pods that use a claim.
    #[must_use]
    pub fn users(&self, claim: &ObjectKey) -> usize {
        self.users.get(claim).copied().unwrap_or_default()
    }
}

pub fn claims_of(pod: &PodInfo) -> impl Iterator<Item = (ObjectKey, &PodClaim)> {
    let all = pod.claims.iter().flat_map(|claims| claims.iter());
    all.map(|claim| (ObjectKey::new(&*pod.key.namespace, &*claim.name), claim))
}
