//! Which objects the pods of each node name: the Node authorizer's memory.
//!
//! A node's pods are followed by what changed of them since its last question, so that a question costs what changed, and
//! an object that no pod names costs one look-up. An entry goes with its node's last pod; in all, entries hold at most as
//! many pods as the largest cluster has, and the least recently used go first.
//!
//! Invariant: an answer holds for a state of the objects that is not older than the question. No node's pods are read while
//! the lock of all nodes is held.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use apiserver_resources::objects::{ChangesRead, ObjectReader};
use machinery_api::ObjectKey;

use super::node_references::{Kind, Reference, claim_of_volume, is_on_node, of_pod, secrets_of_volume};

/// The pods that all entries hold at most: those of the largest cluster that upstream supports.
const PODS_MAX: usize = 150_000;
/// Entries whose nodes may be gone are searched for when there are this many, and then at twice as many as were left.
const FIRST_SWEEP_NODES: usize = 64;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// See the module.
#[derive(Debug)]
pub(super) struct NodeGraph {
    /// Held for look-ups only.
    nodes: Mutex<Nodes>,
    volumes: Mutex<VolumeSecrets>,
}

impl Default for NodeGraph {
    fn default() -> Self {
        Self::holding(PODS_MAX)
    }
}

impl NodeGraph {
    fn holding(pods_max: usize) -> Self {
        Self { nodes: Mutex::new(Nodes::new(pods_max)), volumes: Mutex::default() }
    }

    /// Whether a pod of the node names an object, as of now: directly, or a Secret by the volume of a claim.
    pub(super) fn names(&self, objects: &dyn ObjectReader, node: &str, wanted: &Reference) -> bool {
        let entry = lock(&self.nodes).open(node);
        let mut pods = lock(&entry);
        let before = pods.len();
        if pods.witness_names(objects, node, wanted) {
            return true;
        }
        pods.refresh(objects, node);
        let named = pods.names(wanted) || self.is_secret_of_claim(objects, &pods, wanted);
        if pods.len() != before || pods.len() == 0 {
            // With the node's lock held, so that sizes arrive in their order.
            self.resize(objects, node, &entry, pods.len());
        }
        named
    }

    fn is_secret_of_claim(&self, objects: &dyn ObjectReader, pods: &NodePods, wanted: &Reference) -> bool {
        if wanted.kind != Kind::Secret || pods.claims == 0 {
            return false;
        }
        let mut volumes = lock(&self.volumes);
        volumes.refresh(objects);
        let mut claims = volumes.claims.get(&wanted.object).into_iter().flatten();
        claims.any(|claim| pods.names(&Reference { kind: Kind::Claim, object: claim.clone() }))
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
        lock(&self.nodes).swept(&gone);
    }
}

/// A lock for each node.
type Entry = Arc<Mutex<NodePods>>;

/// The entries, by use.
#[derive(Debug)]
struct Nodes {
    entries: HashMap<Arc<str>, Held>,
    /// When each was used last, the oldest first.
    uses: BTreeMap<u64, Arc<str>>,
    last_use: u64,
    pods: usize,
    pods_max: usize,
    sweep_nodes: usize,
}

#[derive(Debug)]
struct Held {
    entry: Entry,
    used: u64,
    pods: usize,
}

impl Nodes {
    fn new(pods_max: usize) -> Self {
        let (entries, uses) = (HashMap::new(), BTreeMap::new());
        Self { entries, uses, last_use: 0, pods: 0, pods_max, sweep_nodes: FIRST_SWEEP_NODES }
    }

    /// The entry of a node, which is the most recently used one now.
    fn open(&mut self, node: &str) -> Entry {
        self.last_use += 1;
        let used = self.last_use;
        if let Some(held) = self.entries.get_mut(node) {
            if let Some(name) = self.uses.remove(&held.used) {
                self.uses.insert(used, name);
            }
            held.used = used;
            return held.entry.clone();
        }
        let (name, entry): (Arc<str>, Entry) = (node.into(), Arc::default());
        self.uses.insert(used, name.clone());
        self.entries.insert(name, Held { entry: entry.clone(), used, pods: 0 });
        entry
    }

    fn remove(&mut self, node: &str) {
        if let Some(held) = self.entries.remove(node) {
            self.uses.remove(&held.used);
            self.pods -= held.pods;
        }
    }

    /// Takes in how many pods an entry has now, and evicts others. Returns the nodes whose entries may be useless, where it is
    /// time to search for such.
    fn resize(&mut self, node: &str, entry: &Entry, pods: usize) -> Vec<Arc<str>> {
        // Evicted meanwhile: it is dropped with its last user.
        let Some(held) = self.entries.get_mut(node).filter(|held| Arc::ptr_eq(&held.entry, entry)) else {
            return Vec::new();
        };
        let before = std::mem::replace(&mut held.pods, pods);
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

    fn swept(&mut self, gone: &[Arc<str>]) {
        gone.iter().for_each(|node| self.remove(node));
        self.sweep_nodes = (2 * self.entries.len()).max(FIRST_SWEEP_NODES);
    }
}

/// The pods of one node, and the objects that they name.
#[derive(Debug, Default)]
struct NodePods {
    /// All changes up to this revision are in.
    revision: u64,
    pods: HashMap<Arc<ObjectKey>, NamedByPod>,
    /// The pods that name each object.
    named: HashMap<Arc<Reference>, Vec<Arc<ObjectKey>>>,
    /// How many of those objects are PersistentVolumeClaims.
    claims: usize,
}

/// The objects that one pod names, at one resourceVersion.
#[derive(Debug)]
struct NamedByPod {
    version: u64,
    references: Vec<Arc<Reference>>,
}

impl NodePods {
    fn len(&self) -> usize {
        self.pods.len()
    }

    fn names(&self, wanted: &Reference) -> bool {
        self.named.contains_key(wanted)
    }

    /// Whether one of the pods that named the object at their last read still does: what is allowed reads no other pod.
    fn witness_names(&mut self, objects: &dyn ObjectReader, node: &str, wanted: &Reference) -> bool {
        let Some(witness) = self.named.get(wanted).and_then(|pods| pods.first()).cloned() else { return false };
        let version = objects.version("", "pods", &witness.namespace, &witness.name);
        if version.is_some() && self.pods.get(&witness).map(|pod| pod.version) == version {
            return true;
        }
        match version {
            Some(version) => self.read(objects, node, &witness, version),
            None => self.remove(&witness),
        }
        self.named.get(wanted).is_some_and(|pods| pods.contains(&witness))
    }

    /// Reads what changed since the last time.
    fn refresh(&mut self, objects: &dyn ObjectReader, node: &str) {
        let of_node = ("spec.nodeName", node);
        let mut changes: Vec<(ObjectKey, Option<u64>)> = Vec::new();
        let mut add = |namespace: &str, name: &str, version| changes.push((ObjectKey::new(namespace, name), version));
        match objects.field_changes("", "pods", of_node, self.revision, &mut add) {
            ChangesRead::Empty => return *self = Self::default(),
            ChangesRead::UpTo(revision) => self.revision = revision,
            ChangesRead::Lost(revision) => {
                let mut there = HashSet::new();
                objects.each("", "pods", None, Some(of_node), &mut |namespace, name, version| {
                    there.insert(ObjectKey::new(namespace, name));
                    changes.push((ObjectKey::new(namespace, name), Some(version)));
                });
                let gone = self.pods.keys().filter(|pod| !there.contains(&***pod)).cloned().collect::<Vec<_>>();
                gone.iter().for_each(|pod| self.remove(pod));
                self.revision = revision;
            }
        }
        for (pod, version) in changes {
            match version {
                Some(version) if self.pods.get(&pod).is_some_and(|known| known.version == version) => {}
                Some(version) => self.read(objects, node, &pod, version),
                None => self.remove(&pod),
            }
        }
    }

    /// Reads a pod that has another resourceVersion now. It may be newer already when it is read: its change is seen then.
    fn read(&mut self, objects: &dyn ObjectReader, node: &str, pod: &ObjectKey, version: u64) {
        let object = objects.read_once("", "pods", &pod.namespace, &pod.name);
        let Some(object) = object.filter(|object| is_on_node(object, node)) else { return self.remove(pod) };
        let references = of_pod(&object);
        if let Some(known) = self.pods.get_mut(pod)
            && known.references.iter().map(|reference| &**reference).eq(&references)
        {
            known.version = version;
            return;
        }
        self.remove(pod);
        let pod = Arc::new(pod.clone());
        let references = references.into_iter().map(|reference| self.add(reference, &pod)).collect();
        self.pods.insert(pod, NamedByPod { version, references });
    }

    fn add(&mut self, reference: Reference, pod: &Arc<ObjectKey>) -> Arc<Reference> {
        let known = self.named.get_key_value(&reference).map(|(known, _)| known.clone());
        let reference = known.unwrap_or_else(|| {
            self.claims += usize::from(reference.kind == Kind::Claim);
            Arc::new(reference)
        });
        self.named.entry(reference.clone()).or_default().push(pod.clone());
        reference
    }

    fn remove(&mut self, pod: &ObjectKey) {
        let Some(known) = self.pods.remove(pod) else { return };
        for reference in known.references {
            let Some(pods) = self.named.get_mut(&reference) else { continue };
            if let Some(at) = pods.iter().position(|other| **other == *pod) {
                pods.swap_remove(at);
            }
            if pods.is_empty() {
                self.claims -= usize::from(reference.kind == Kind::Claim);
                self.named.remove(&reference);
            }
        }
    }
}

/// The Secrets that PersistentVolumes name, related to their claims. Read again as far as volumes changed, and only when any
/// did; all nodes share that.
#[derive(Debug, Default)]
struct VolumeSecrets {
    /// `None`: nothing was read yet.
    revision: Option<u64>,
    volumes: HashMap<String, Volume>,
    /// The claims whose volumes name a Secret.
    claims: HashMap<ObjectKey, BTreeSet<ObjectKey>>,
}

#[derive(Debug)]
struct Volume {
    version: u64,
    /// Its claim, and the Secrets that it names.
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
            Some((name, known)) if known.version == version => drop(self.volumes.insert(name, known)),
            _ => changed.push((name.to_owned(), version)),
        });
        for (name, version) in changed {
            let secrets = objects.read_once("", "persistentvolumes", "", &name).and_then(|volume| {
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
