//! Claims, volumes and their classes as decisions see them, and what decisions set aside of them until it is written.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::{CSINode, StorageClass};
use machinery_api::ObjectKey;
use machinery_client::claims;

use crate::pod::{PodClaim, PodInfo};

/// See the module.
#[derive(Debug, Default)]
pub struct Volumes {
    claims: HashMap<ObjectKey, Arc<PersistentVolumeClaim>>,
    volumes: BTreeMap<String, Arc<PersistentVolume>>,
    /// Those that a claim may be given, by class: others are not looked at for each node.
    free: BTreeMap<String, BTreeMap<String, Arc<PersistentVolume>>>,
    classes: BTreeMap<String, Arc<StorageClass>>,
    nodes: BTreeMap<String, Arc<CSINode>>,
    /// Volumes that were given to a claim, which their objects don't say yet.
    assumed: BTreeMap<String, ObjectKey>,
    /// How many pods that have a node use a claim.
    users: HashMap<ObjectKey, usize>,
}

impl Volumes {
    /// A claim is there, changed or gone.
    pub fn set_claim(&mut self, key: &ObjectKey, claim: Option<Arc<PersistentVolumeClaim>>) {
        match claim {
            Some(claim) => self.claims.insert(key.clone(), claim),
            None => self.claims.remove(key),
        };
    }

    /// A volume is there, changed or gone. Says whether it may be given to a claim.
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

    /// A class is there, changed or gone.
    pub fn set_class(&mut self, name: &str, class: Option<Arc<StorageClass>>) {
        match class {
            Some(class) => self.classes.insert(name.to_owned(), class),
            None => self.classes.remove(name),
        };
    }

    /// What drivers say of a node is there, changed or gone.
    pub fn set_node(&mut self, name: &str, node: Option<Arc<CSINode>>) {
        match node {
            Some(node) => self.nodes.insert(name.to_owned(), node),
            None => self.nodes.remove(name),
        };
    }

    /// A claim.
    #[must_use]
    pub fn claim(&self, key: &ObjectKey) -> Option<&PersistentVolumeClaim> {
        self.claims.get(key).map(Arc::as_ref)
    }

    /// A volume.
    #[must_use]
    pub fn volume(&self, name: &str) -> Option<&PersistentVolume> {
        self.volumes.get(name).map(Arc::as_ref)
    }

    /// A class.
    #[must_use]
    pub fn class(&self, name: &str) -> Option<&StorageClass> {
        self.classes.get(name).map(Arc::as_ref)
    }

    /// How many volumes of a driver a node takes, where that is bounded.
    #[must_use]
    pub fn limit(&self, node: &str, driver: &str) -> Option<usize> {
        let driver = self.nodes.get(node)?.spec.drivers.iter().find(|known| known.name == driver)?;
        usize::try_from(driver.allocatable.as_ref()?.count?).ok()
    }

    /// Whether any node bounds how many volumes it takes.
    #[must_use]
    pub fn has_limits(&self) -> bool {
        !self.nodes.is_empty()
    }

    /// The volumes of a class that a claim may be given.
    pub fn free(&self, class: &str, claim: &ObjectKey) -> impl Iterator<Item = &PersistentVolume> {
        let all = self.free.get(class).into_iter().flatten();
        let own = all.filter(move |(name, _)| self.assumed.get(*name).is_none_or(|given| given == claim));
        own.map(|(_, volume)| volume.as_ref())
    }

    /// A volume is given to a claim.
    pub fn assume(&mut self, volume: &str, claim: ObjectKey) {
        self.assumed.insert(volume.to_owned(), claim);
    }

    /// What was given to these claims is given back.
    pub fn give_back(&mut self, is_of: impl Fn(&ObjectKey) -> bool) {
        self.assumed.retain(|_, claim| !is_of(claim));
    }

    /// A pod has a node now, or has none any more.
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

    /// How many pods that have a node use a claim.
    #[must_use]
    pub fn users(&self, claim: &ObjectKey) -> usize {
        self.users.get(claim).copied().unwrap_or_default()
    }
}

/// The keys of a pod's claims.
pub fn claims_of(pod: &PodInfo) -> impl Iterator<Item = (ObjectKey, &PodClaim)> {
    let all = pod.claims.iter().flat_map(|claims| claims.iter());
    all.map(|claim| (ObjectKey::new(&*pod.key.namespace, &*claim.name), claim))
}
