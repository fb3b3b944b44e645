//! A cache of the objects that each node's pods reference, for the Node authorizer.
//!
//! A lookup first applies the changes of the node's pods since its last one, so that its cost is the number of changes.
//! An object that no pod references costs one lookup. An entry is removed with the last pod of its node. All entries
//! together hold at most as many pods as the largest cluster has; the least recently used are evicted first.
//!
//! Invariant: a result reflects a state at least as new as the call. No pods are read while the lock of all nodes is
//! held.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use apiserver_resources::objects::{ChangesRead, ObjectReader};
use machinery_api::ObjectKey;

use super::node_references::{Reference, ReferenceKind, claim_of_volume, is_on_node, of_pod, secrets_of_volume};

/// The maximum number of pods in all entries: those of the largest cluster that upstream supports.
const PODS_MAX: usize = 150_000;
/// The number of entries that triggers the first sweep for deleted nodes. The next one runs at twice the remaining
/// number.
const FIRST_SWEEP_NODES: usize = 64;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The reference graph of all nodes.
#[derive(Debug)]
pub(super) struct NodeGraph {
    /// Locked for lookups only.
    nodes: Mutex<Nodes>,
    volumes: Mutex<VolumeSecrets>,
}

impl Default for NodeGraph {
    fn default() -> Self {
        Self::with_pods_max(PODS_MAX)
    }
}

impl NodeGraph {
    fn with_pods_max(pods_max: usize) -> Self {
        Self { nodes: Mutex::new(Nodes::new(pods_max)), volumes: Mutex::default() }
    }

    /// Whether a pod of the node references an object now: directly, or a Secret through the volume of a claim.
    pub(super) fn references(&self, objects: &dyn ObjectReader, node: &str, reference: &Reference) -> bool {
        let entry = lock(&self.nodes).open(node);
        let mut pods = lock(&entry);
        let before = pods.len();
        if pods.witness_references(objects, node, reference) {
            return true;
        }
        pods.refresh(objects, node);
        let referenced = pods.references(reference) || self.is_secret_of_claim(objects, &pods, reference);
        if pods.len() != before || pods.len() == 0 {
            // Under the node's lock, so that sizes are recorded in order.
            self.resize(objects, node, &entry, pods.len());
        }
        referenced
    }

    fn is_secret_of_claim(&self, objects: &dyn ObjectReader, pods: &NodePods, reference: &Reference) -> bool {
        if reference.kind != ReferenceKind::Secret || pods.claims == 0 {
            return false;
        }
        let mut volumes = lock(&self.volumes);
        volumes.refresh(objects);
        let mut claims = volumes.claims.get(&reference.object).into_iter().flatten();
        claims.any(|claim| pods.references(&Reference { kind: ReferenceKind::Claim, object: claim.clone() }))
    }

    fn resize(&self, objects: &dyn ObjectReader, node: &str, entry: &Entry, pods: usize) {
        let to_sweep = lock(&self.nodes).resize(node, entry, pods);
        if to_sweep.is_empty() {
            return;
        }
        let is_empty = |node: &str| {
            let field = ("spec.nodeName", node);
            objects.field_changes("", "pods", field, u64::MAX, &mut |_, _, _| {}) == ChangesRead::Empty
        };
        let gone = to_sweep.into_iter().filter(|node| is_empty(node)).collect::<Vec<_>>();
        lock(&self.nodes).finish_sweep(&gone);
    }
}

/// The pods of a node under a lock of their own.
type Entry = Arc<Mutex<NodePods>>;

/// All entries, in the order of their use.
#[derive(Debug)]
struct Nodes {
    entries: HashMap<Arc<str>, NodeEntry>,
    /// Nodes by time of last use, oldest first.
    uses: BTreeMap<u64, Arc<str>>,
    last_use: u64,
    pods: usize,
    pods_max: usize,
    sweep_nodes: usize,
}

#[derive(Debug)]
struct NodeEntry {
    entry: Entry,
    used: u64,
    pods: usize,
}

impl Nodes {
    fn new(pods_max: usize) -> Self {
        let (entries, uses) = (HashMap::new(), BTreeMap::new());
        Self { entries, uses, last_use: 0, pods: 0, pods_max, sweep_nodes: FIRST_SWEEP_NODES }
    }

    /// Returns the entry of a node and marks it as most recently used.
    fn open(&mut self, node: &str) -> Entry {
        self.last_use += 1;
        let used = self.last_use;
        if let Some(entry) = self.entries.get_mut(node) {
            if let Some(name) = self.uses.remove(&entry.used) {
                self.uses.insert(used, name);
            }
            entry.used = used;
            return entry.entry.clone();
        }
        let (name, entry): (Arc<str>, Entry) = (node.into(), Arc::default());
        self.uses.insert(used, name.clone());
        self.entries.insert(name, NodeEntry { entry: entry.clone(), used, pods: 0 });
        entry
    }

    fn remove(&mut self, node: &str) {
        if let Some(entry) = self.entries.remove(node) {
            self.uses.remove(&entry.used);
            self.pods -= entry.pods;
        }
    }

    /// Records an entry's number of pods and evicts others. Returns the nodes to check for deletion, if a sweep is due.
    fn resize(&mut self, node: &str, entry: &Entry, pods: usize) -> Vec<Arc<str>> {
        // The entry was evicted meanwhile. It is dropped with its last user.
        let Some(current) = self.entries.get_mut(node).filter(|current| Arc::ptr_eq(&current.entry, entry)) else {
            return Vec::new();
        };
        let before = std::mem::replace(&mut current.pods, pods);
        self.pods = self.pods - before + pods;
        if pods == 0 {
            self.remove(node);
            return Vec::new();
        }
        while self.pods > self.pods_max && self.entries.len() > 1 {
            let Some(oldest) = self.uses.values().find(|oldest| ***oldest != *node).cloned() else { break };
            self.remove(&oldest);
        }
        if self.entries.len() < self.sweep_nodes {
            return Vec::new();
        }
        self.sweep_nodes = usize::MAX;
        self.entries.keys().cloned().collect()
    }

    fn finish_sweep(&mut self, gone: &[Arc<str>]) {
        gone.iter().for_each(|node| self.remove(node));
        self.sweep_nodes = (2 * self.entries.len()).max(FIRST_SWEEP_NODES);
    }
}

/// The pods of one node and the objects that they reference.
#[derive(Debug, Default)]
struct NodePods {
    /// The revision up to which changes are applied.
    revision: u64,
    pods: HashMap<Arc<ObjectKey>, PodReferences>,
    /// The pods that reference each object.
    pods_by_reference: HashMap<Arc<Reference>, Vec<Arc<ObjectKey>>>,
    /// The number of PersistentVolumeClaims among those objects.
    claims: usize,
}

/// The objects that one pod references, at one resourceVersion.
#[derive(Debug)]
struct PodReferences {
    version: u64,
    references: Vec<Arc<Reference>>,
}

impl NodePods {
    fn len(&self) -> usize {
        self.pods.len()
    }

    fn references(&self, reference: &Reference) -> bool {
        self.pods_by_reference.contains_key(reference)
    }

    /// Whether the first pod that referenced the object still does, without a read of other pods.
    fn witness_references(&mut self, objects: &dyn ObjectReader, node: &str, reference: &Reference) -> bool {
        let Some(witness) = self.pods_by_reference.get(reference).and_then(|pods| pods.first()).cloned() else {
            return false;
        };
        let version = objects.version("", "pods", &witness.namespace, &witness.name);
        if version.is_some() && self.pods.get(&witness).map(|pod| pod.version) == version {
            return true;
        }
        match version {
            Some(version) => self.read(objects, node, &witness, version),
            None => self.remove(&witness),
        }
        self.pods_by_reference.get(reference).is_some_and(|pods| pods.contains(&witness))
    }

    /// Applies the changes since the last call.
    fn refresh(&mut self, objects: &dyn ObjectReader, node: &str) {
        let of_node = ("spec.nodeName", node);
        let mut changes: Vec<(ObjectKey, Option<u64>)> = Vec::new();
        let mut add = |namespace: &str, name: &str, version| changes.push((ObjectKey::new(namespace, name), version));
        match objects.field_changes("", "pods", of_node, self.revision, &mut add) {
            ChangesRead::Empty => return *self = Self::default(),
            ChangesRead::UpTo(revision) => self.revision = revision,
            ChangesRead::Lost(revision) => {
                let mut existing = HashSet::new();
                objects.each("", "pods", None, Some(of_node), &mut |namespace, name, version| {
                    existing.insert(ObjectKey::new(namespace, name));
                    changes.push((ObjectKey::new(namespace, name), Some(version)));
                });
                let gone = self.pods.keys().filter(|pod| !existing.contains(&***pod)).cloned().collect::<Vec<_>>();
                gone.iter().for_each(|pod| self.remove(pod));
                self.revision = revision;
            }
        }
        for (pod, version) in changes {
            match version {
                Some(version) if self.pods.get(&pod).is_some_and(|cached| cached.version == version) => {}
                Some(version) => self.read(objects, node, &pod, version),
                None => self.remove(&pod),
            }
        }
    }

    /// Reads a pod whose resourceVersion changed. A still newer version may be read; its change is then applied by the
    /// next call.
    fn read(&mut self, objects: &dyn ObjectReader, node: &str, pod: &ObjectKey, version: u64) {
        let object = objects.get_uncached("", "pods", &pod.namespace, &pod.name);
        let Some(object) = object.filter(|object| is_on_node(object, node)) else { return self.remove(pod) };
        let references = of_pod(&object);
        if let Some(pod_entry) = self.pods.get_mut(pod)
            && pod_entry.references.iter().map(|reference| &**reference).eq(&references)
        {
            pod_entry.version = version;
            return;
        }
        self.remove(pod);
        let pod = Arc::new(pod.clone());
        let references = references.into_iter().map(|reference| self.add(reference, &pod)).collect();
        self.pods.insert(pod, PodReferences { version, references });
    }

    fn add(&mut self, reference: Reference, pod: &Arc<ObjectKey>) -> Arc<Reference> {
        let shared = self.pods_by_reference.get_key_value(&reference).map(|(shared, _)| shared.clone());
        let reference = shared.unwrap_or_else(|| {
            self.claims += usize::from(reference.kind == ReferenceKind::Claim);
            Arc::new(reference)
        });
        self.pods_by_reference.entry(reference.clone()).or_default().push(pod.clone());
        reference
    }

    fn remove(&mut self, pod: &ObjectKey) {
        let Some(pod_entry) = self.pods.remove(pod) else { return };
        for reference in pod_entry.references {
            let Some(pods) = self.pods_by_reference.get_mut(&reference) else { continue };
            if let Some(at) = pods.iter().position(|other| **other == *pod) {
                pods.swap_remove(at);
            }
            if pods.is_empty() {
                self.claims -= usize::from(reference.kind == ReferenceKind::Claim);
                self.pods_by_reference.remove(&reference);
            }
        }
    }
}

/// The Secrets that PersistentVolumes reference, by claim. Changed volumes are read again when the revision changes.
/// All nodes share the map.
#[derive(Debug, Default)]
struct VolumeSecrets {
    /// `None` before the first read.
    revision: Option<u64>,
    volumes: HashMap<String, Volume>,
    /// The claims whose volumes reference a Secret.
    claims: HashMap<ObjectKey, BTreeSet<ObjectKey>>,
}

#[derive(Debug)]
struct Volume {
    version: u64,
    /// The claim of the volume and the Secrets that the volume references.
    secrets: Option<(ObjectKey, BTreeSet<ObjectKey>)>,
}

impl VolumeSecrets {
    fn refresh(&mut self, objects: &dyn ObjectReader) {
        let revision = objects.revision("", "persistentvolumes");
        if self.revision == Some(revision) {
            return;
        }
        let mut old = std::mem::take(&mut self.volumes);
        let mut changed = Vec::new();
        objects.each("", "persistentvolumes", None, None, &mut |_, name, version| match old.remove_entry(name) {
            Some((name, cached)) if cached.version == version => drop(self.volumes.insert(name, cached)),
            _ => changed.push((name.to_owned(), version)),
        });
        for (name, version) in changed {
            let secrets = objects.get_uncached("", "persistentvolumes", "", &name).and_then(|volume| {
                let claim = claim_of_volume(&volume)?;
                let secrets = secrets_of_volume(&volume, &claim);
                (!secrets.is_empty()).then_some((claim, secrets))
            });
            self.volumes.insert(name, Volume { version, secrets });
        }
        self.claims.clear();
        for (claim, secrets) in self.volumes.values().filter_map(|volume| volume.secrets.as_ref()) {
            for secret in secrets {
                self.claims.entry(secret.clone()).or_default().insert(claim.clone());
            }
        }
        self.revision = Some(revision);
    }
}

#[cfg(test)]
mod tests;
