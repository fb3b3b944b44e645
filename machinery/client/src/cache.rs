//! An indexed cache of the watched objects: the only input of a controller's decision beside its context.
//!
//! A cache is plain data. In a process [`crate::informer::Informer`] keeps it in step with the server; a test builds it
//! from objects, and [`crate::simulate`] applies plans to it.

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};

pub use crate::change::Change;
use crate::claim_index::ClaimIndex;
use crate::label_index::{LabelIndex, has_index_of_labels, is_indexed};
use crate::losses::Losses;
use crate::object::{Kind, Object, Typed, controller_of, key_of, typed, version_of};
use crate::pod::Pod;
use crate::selector::{Labels, contains, selects};
use machinery_api::ObjectKey;

/// How long a node's deletion is remembered: longer than any decision that waits for it.
const GONE_REMEMBERED: Duration = Duration::from_secs(600);

/// One cached object.
#[derive(Debug, Clone)]
struct CachedObject {
    object: Arc<dyn Object>,
    /// When this version was received, by the process's monotonic clock: see [`ObjectCache::seen_at`].
    seen_at: Duration,
    /// When the first version of this object (of its uid) was received.
    appeared_at: Duration,
}

/// The objects of one kind with their indexes.
#[derive(Debug, Default, Clone)]
struct KindTable {
    /// The objects by key. All indexes share the key's allocation.
    objects: BTreeMap<Arc<ObjectKey>, CachedObject>,
    /// Index by the uid of each owner.
    by_owner: HashMap<String, BTreeSet<Arc<ObjectKey>>>,
    /// Objects without a controller.
    uncontrolled: BTreeSet<Arc<ObjectKey>>,
    by_uid: HashMap<Box<str>, Arc<ObjectKey>>,
    /// Pods by node name.
    by_node: HashMap<Box<str>, BTreeSet<Arc<ObjectKey>>>,
    /// Pods and EndpointSlices by label.
    by_label: LabelIndex,
    /// Pods, claims and volumes by claim.
    by_claim: ClaimIndex,
    /// Deleted nodes with the time of the deletion event: see [`ObjectCache::node_gone_at`].
    gone: BTreeMap<ObjectKey, Duration>,
    /// Early losses of pods.
    losses: Losses,
    /// The server's version up to which this table is complete.
    seen: u64,
    /// The watch failed, and no event arrived since.
    interrupted: bool,
    synced: bool,
    /// Polled at an interval: nothing waits for its first list, since a server may not have the kind at all.
    polled: bool,
    /// When the last complete list was received.
    replaced_at: Option<Duration>,
}

/// The cached objects of all watched kinds.
#[derive(Debug, Default, Clone)]
pub struct ObjectCache {
    tables: BTreeMap<Kind, KindTable>,
    /// The present monotonic time: the time stamp of received objects.
    elapsed: Duration,
    /// Groups whose discovery failed, with the reason: their objects are unknown.
    pub undiscovered: BTreeMap<String, String>,
}

impl ObjectCache {
    // --- reading, typed --------------------------------------------------------------------------------------------

    /// One object.
    #[must_use]
    pub fn get<K: Typed>(&self, key: &ObjectKey) -> Option<&K> {
        self.tables.get(&Kind::of::<K>())?.objects.get(key).and_then(|e| typed(&*e.object))
    }

    /// One object, shared.
    #[must_use]
    pub fn get_arc<K: Typed>(&self, key: &ObjectKey) -> Option<Arc<K>> {
        let object: Arc<dyn Any + Send + Sync> = self.tables.get(&Kind::of::<K>())?.objects.get(key)?.object.clone();
        object.downcast().ok()
    }

    /// All objects of a kind, in order of namespace and name.
    pub fn all<K: Typed>(&self) -> impl Iterator<Item = &K> {
        self.tables.get(&Kind::of::<K>()).into_iter().flat_map(|t| t.objects.values()).filter_map(|e| typed(&*e.object))
    }

    /// A namespace's objects of a kind, in order of name.
    pub fn list<'a, K: Typed>(&'a self, namespace: &'a str) -> impl Iterator<Item = &'a K> {
        self.tables
            .get(&Kind::of::<K>())
            .into_iter()
            .flat_map(move |t| within(&t.objects, namespace))
            .filter_map(|(_, e)| typed(&*e.object))
    }

    /// A namespace's objects that a selector matches, in order of name. For pods and EndpointSlices only the objects
    /// with the rarest required label are tested.
    pub fn chosen<'a, K: Typed>(&'a self, namespace: &'a str, selector: &'a LabelSelector) -> Vec<&'a K> {
        let wanted = selector.match_labels.as_ref().filter(|wanted| !wanted.is_empty());
        let chosen = |object: &&K| selects(selector, Object::metadata(*object).labels.as_ref());
        match wanted {
            Some(wanted) => self.labelled(namespace, wanted).into_iter().filter(chosen).collect(),
            None => self.list(namespace).filter(chosen).collect(),
        }
    }

    /// A namespace's objects that have all of these labels, in order of name: indexed as [`chosen`](Self::chosen).
    pub fn labelled<'a, K: Typed>(&'a self, namespace: &'a str, wanted: &'a Labels) -> Vec<&'a K> {
        let has = |object: &&K| contains(Object::metadata(*object).labels.as_ref(), wanted);
        let Some(table) = self.tables.get(&Kind::of::<K>()) else { return Vec::new() };
        if !is_indexed::<K>() || wanted.is_empty() {
            return self.list(namespace).filter(has).collect();
        }
        let keys = table.by_label.candidates(namespace, wanted).filter(|key| key.namespace == namespace);
        keys.filter_map(|key| table.objects.get(key)).filter_map(|entry| typed(&*entry.object)).filter(has).collect()
    }

    /// The objects that name `uid` among their owners, in order.
    pub fn owned<K: Typed>(&self, uid: &str) -> impl Iterator<Item = &K> {
        let table = self.tables.get(&Kind::of::<K>());
        let keys = table.and_then(|t| t.by_owner.get(uid));
        keys.into_iter()
            .flatten()
            .filter_map(move |k| table.and_then(|t| t.objects.get(k)))
            .filter_map(|e| typed(&*e.object))
    }

    /// The objects that `uid` controls, in order.
    pub fn controlled<'a, K: Typed>(&'a self, uid: &'a str) -> impl Iterator<Item = &'a K> {
        self.owned::<K>(uid).filter(move |o| controller_of(Object::metadata(*o)).is_some_and(|c| c.uid == uid))
    }

    /// A namespace's objects without a controller, in order.
    pub fn uncontrolled<'a, K: Typed>(&'a self, namespace: &'a str) -> impl Iterator<Item = &'a K> {
        self.tables
            .get(&Kind::of::<K>())
            .into_iter()
            .flat_map(move |t| {
                let from = ObjectKey::new(namespace, "");
                let keys = t.uncontrolled.range::<ObjectKey, _>(from..).take_while(move |k| k.namespace == namespace);
                keys.filter_map(|k| t.objects.get(k))
            })
            .filter_map(|e| typed(&*e.object))
    }

    /// The pods bound to a node, in order of namespace and name.
    pub fn on_node(&self, node: &str) -> impl Iterator<Item = &Pod> {
        let table = self.tables.get(&Kind::of::<Pod>());
        let keys = table.and_then(|t| t.by_node.get(node));
        keys.into_iter()
            .flatten()
            .filter_map(move |k| table.and_then(|t| t.objects.get(k)))
            .filter_map(|e| typed(&*e.object))
    }

    pub(crate) fn claim_index(&self, kind: &Kind) -> Option<&ClaimIndex> {
        self.tables.get(kind).map(|table| &table.by_claim)
    }

    /// Objects in their kind's [`ClaimIndex`].
    pub(crate) fn by_claim<'a, K: Typed, I>(
        &'a self,
        keys: impl FnOnce(&'a ClaimIndex) -> I,
    ) -> impl Iterator<Item = &'a K>
    where
        I: Iterator<Item = &'a Arc<ObjectKey>>,
    {
        let table = self.tables.get(&Kind::of::<K>());
        let found = table.map(|table| keys(&table.by_claim).filter_map(move |key| table.objects.get(key)));
        found.into_iter().flatten().filter_map(|entry| typed(&*entry.object))
    }

    // --- reading, any kind -----------------------------------------------------------------------------------------

    /// The kinds that are watched.
    pub fn kinds(&self) -> impl Iterator<Item = &Kind> {
        self.tables.keys()
    }

    /// Whether a kind is watched.
    #[must_use]
    pub fn watches(&self, kind: &Kind) -> bool {
        self.tables.contains_key(kind)
    }

    /// The metadata of one object of any kind.
    #[must_use]
    pub fn metadata(&self, kind: &Kind, key: &ObjectKey) -> Option<&ObjectMeta> {
        self.tables.get(kind)?.objects.get(key).map(|e| e.object.metadata())
    }

    /// One object of any kind.
    #[must_use]
    pub fn object(&self, kind: &Kind, key: &ObjectKey) -> Option<&Arc<dyn Object>> {
        self.tables.get(kind)?.objects.get(key).map(|e| &e.object)
    }

    /// When the cached version of an object was received, by the monotonic clock of this process ([`Env::elapsed`]; a
    /// decision compares it with [`Context::elapsed`]). Deadlines of others' writes (leases, heartbeats) are counted
    /// from here, as upstream's `probeTimestamp`: independent of writers' clocks, of clock steps and of a suspended
    /// machine. Every version counts, of any writer and with any change.
    ///
    /// [`Env::elapsed`]: machinery_env::Env::elapsed
    /// [`Context::elapsed`]: crate::Context::elapsed
    #[must_use]
    pub fn seen_at(&self, kind: &Kind, key: &ObjectKey) -> Option<Duration> {
        self.tables.get(kind)?.objects.get(key).map(|e| e.seen_at)
    }

    /// When the first version of an object was received, on the scale of [`seen_at`](Self::seen_at): the base of
    /// deadlines that others' writes must not move. Objects older than the cache count from the cache's start.
    #[must_use]
    pub fn appeared_at(&self, kind: &Kind, key: &ObjectKey) -> Option<Duration> {
        self.tables.get(kind)?.objects.get(key).map(|e| e.appeared_at)
    }

    /// The number of a controller's early losses: pods that ended, were deleted or terminated within
    /// [`EARLY`](crate::losses::EARLY) of their first version. The count restarts after ten minutes without a loss.
    #[must_use]
    pub fn early_losses(&self, owner_uid: &str) -> u64 {
        self.tables.get(&Kind::of::<Pod>()).map_or(0, |table| table.losses.of(owner_uid))
    }

    /// When a node's deletion was received, on the scale of [`seen_at`](Self::seen_at); `None` if the node exists, was
    /// gone before the cache's start, or its deletion is no longer remembered.
    #[must_use]
    pub fn node_gone_at(&self, name: &str) -> Option<Duration> {
        self.tables.get(&Kind::of::<Node>())?.gone.get(&ObjectKey::cluster(name)).copied()
    }

    /// The metadata of a kind's objects: of one namespace, or of all if it is empty.
    pub fn metadata_of<'a>(&'a self, kind: &Kind, namespace: &'a str) -> impl Iterator<Item = &'a ObjectMeta> {
        self.tables
            .get(kind)
            .into_iter()
            .flat_map(move |t| within(&t.objects, namespace))
            .map(|(_, e)| e.object.metadata())
    }

    /// The object with that uid.
    #[must_use]
    pub fn by_uid(&self, uid: &str) -> Option<(&Kind, &ObjectKey, &ObjectMeta)> {
        self.tables.iter().find_map(|(kind, table)| {
            let key = table.by_uid.get(uid)?;
            Some((kind, &**key, table.objects.get(key)?.object.metadata()))
        })
    }

    /// All objects, of every kind, that name `uid` among their owners.
    pub fn dependents<'a>(&'a self, uid: &'a str) -> impl Iterator<Item = (&'a Kind, &'a ObjectKey, &'a ObjectMeta)> {
        self.tables.iter().flat_map(move |(kind, t)| {
            let keys = t.by_owner.get(uid).into_iter().flatten();
            keys.filter_map(move |k| t.objects.get(k).map(|e| (kind, &**k, e.object.metadata())))
        })
    }

    /// At most `most` objects of a kind after a key, as changes from nothing: pages through the cache.
    #[must_use]
    pub fn changes_after(&self, kind: &Kind, after: Option<&ObjectKey>, most: usize) -> Vec<Change> {
        let Some(table) = self.tables.get(kind) else { return Vec::new() };
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let objects = table.objects.range::<ObjectKey, _>((from, Bound::Unbounded)).take(most);
        let change = |(key, entry): (&Arc<ObjectKey>, &CachedObject)| Change {
            kind: kind.clone(),
            key: key.clone(),
            old: None,
            new: Some(entry.object.clone()),
        };
        objects.map(change).collect()
    }

    /// All objects, as changes from nothing.
    pub fn as_changes(&self) -> impl Iterator<Item = Change> {
        self.tables.iter().flat_map(|(kind, t)| {
            t.objects.iter().map(|(key, e)| Change {
                kind: kind.clone(),
                key: key.clone(),
                old: None,
                new: Some(e.object.clone()),
            })
        })
    }

    /// Whether a kind was listed completely at least once.
    #[must_use]
    pub fn synced(&self, kind: &Kind) -> bool {
        self.tables.get(kind).is_some_and(|t| t.synced)
    }

    /// Whether every watched kind was listed completely; polled kinds may be missing.
    #[must_use]
    pub fn all_synced(&self) -> bool {
        self.tables.values().all(|t| t.synced || t.polled)
    }

    /// When a kind's last complete list was received, on the scale of [`Context::elapsed`]: the age of a polled kind.
    ///
    /// [`Context::elapsed`]: crate::Context::elapsed
    #[must_use]
    pub fn replaced_at(&self, kind: &Kind) -> Option<Duration> {
        self.tables.get(kind)?.replaced_at
    }

    /// The server's version up to which a kind is known; `None` if it isn't watched.
    #[must_use]
    pub fn seen(&self, kind: &Kind) -> Option<u64> {
        self.tables.get(kind).map(|t| t.seen)
    }

    /// Whether a kind is polled because it can't be watched.
    #[must_use]
    pub fn is_polled(&self, kind: &Kind) -> bool {
        self.tables.get(kind).is_some_and(|table| table.polled)
    }

    /// Whether a kind's changes are received now, as far as is known: false from a failure of its watch until the next
    /// event.
    #[must_use]
    pub fn is_followed(&self, kind: &Kind) -> bool {
        self.tables.get(kind).is_some_and(|table| !table.interrupted)
    }

    // --- writing: by the owner that keeps the cache in step ----------------------------------------------------------

    /// Sets the monotonic time stamp of objects received from now on.
    pub fn set_elapsed(&mut self, elapsed: Duration) {
        self.elapsed = elapsed;
    }

    /// Adds a table for a kind.
    pub fn open(&mut self, kind: &Kind) {
        self.tables.entry(kind.clone()).or_default();
    }

    /// Adds a table for a polled kind.
    pub fn open_polled(&mut self, kind: &Kind) {
        self.tables.entry(kind.clone()).or_default().polled = true;
    }

    /// Removes a kind with its objects.
    pub fn close(&mut self, kind: &Kind) -> Vec<Change> {
        let changes = self.replace(kind, Vec::new(), 0);
        self.tables.remove(kind);
        changes
    }

    /// Adds or replaces one object. A state older than the cached one is dropped.
    pub fn put(&mut self, kind: &Kind, object: Arc<dyn Object>) -> Option<Change> {
        self.put_version(kind, object, false)
    }

    fn put_version(&mut self, kind: &Kind, object: Arc<dyn Object>, takes_older: bool) -> Option<Change> {
        let key = key_of(object.metadata());
        let table = self.tables.entry(kind.clone()).or_default();
        let version = version_of(object.metadata());
        let known = table.objects.get_key_value(&key).map(|(key, old)| (key.clone(), old.clone()));
        let (shared, appeared_at, old) = match known {
            Some((shared, CachedObject { object: old, appeared_at, .. })) => {
                let same = old.metadata().uid == object.metadata().uid;
                if version != 0 && version_of(old.metadata()) > version && same && !takes_older {
                    return None;
                }
                table.unindex(&shared, &*old);
                table.losses.changed(&*old, same.then_some(&*object), appeared_at, self.elapsed);
                (shared, if same { appeared_at } else { self.elapsed }, Some(old))
            }
            None => (Arc::new(key), self.elapsed, None),
        };
        table.index(&shared, &*object);
        table.gone.remove(&*shared);
        let entry = CachedObject { object: object.clone(), seen_at: self.elapsed, appeared_at };
        table.objects.insert(shared.clone(), entry);
        table.record_version(version);
        Some(Change { kind: kind.clone(), key: shared, old, new: Some(object) })
    }

    /// Removes one object; `version` is that of its deletion.
    pub fn remove(&mut self, kind: &Kind, key: &ObjectKey, version: u64) -> Option<Change> {
        let table = self.tables.get_mut(kind)?;
        table.record_version(version);
        let (key, CachedObject { object: old, appeared_at, .. }) = table.objects.remove_entry(key)?;
        table.unindex(&key, &*old);
        table.losses.changed(&*old, None, appeared_at, self.elapsed);
        if *kind == Kind::of::<Node>() {
            table.gone.insert((*key).clone(), self.elapsed);
            let (gone, now) = (&mut table.gone, self.elapsed);
            gone.retain(|_, at| now.saturating_sub(*at) < GONE_REMEMBERED);
        }
        Some(Change { kind: kind.clone(), key, old: Some(old), new: None })
    }

    /// Replaces a kind's objects by a complete list at `version`. A list below the known version is of a server that was
    /// restored: its objects replace newer ones, too.
    pub fn replace(&mut self, kind: &Kind, objects: Vec<Arc<dyn Object>>, version: u64) -> Vec<Change> {
        self.open(kind);
        let went_back = version != 0 && self.tables[kind].seen > version;
        let listed: BTreeSet<ObjectKey> = objects.iter().map(|o| key_of(o.metadata())).collect();
        let known = self.tables[kind].objects.keys();
        let gone: Vec<Arc<ObjectKey>> = known.filter(|key| !listed.contains(&***key)).cloned().collect();
        let mut changes: Vec<Change> = gone.iter().filter_map(|key| self.remove(kind, key, 0)).collect();
        for object in objects {
            let same = self.object(kind, &key_of(object.metadata())).is_some_and(|known| {
                known.metadata().uid == object.metadata().uid
                    && known.metadata().resource_version.is_some()
                    && known.metadata().resource_version == object.metadata().resource_version
            });
            if !same {
                changes.extend(self.put_version(kind, object, went_back));
            }
        }
        self.progress(kind, version);
        if let Some(table) = self.tables.get_mut(kind) {
            if went_back {
                table.seen = version;
            }
            table.synced = true;
            table.replaced_at = Some(self.elapsed);
        }
        changes
    }

    /// Records that a kind is complete up to `version`.
    pub fn progress(&mut self, kind: &Kind, version: u64) {
        if let Some(table) = self.tables.get_mut(kind) {
            table.record_version(version);
        }
    }

    /// Records that the watch of a kind failed: its objects age.
    pub fn interrupt(&mut self, kind: &Kind) {
        if let Some(table) = self.tables.get_mut(kind) {
            table.interrupted = true;
        }
    }
}

impl KindTable {
    fn record_version(&mut self, version: u64) {
        self.seen = self.seen.max(version);
        self.interrupted = false;
    }

    fn index(&mut self, key: &Arc<ObjectKey>, object: &dyn Object) {
        let metadata = object.metadata();
        if let Some(node) = node_of(object) {
            self.by_node.entry(node.into()).or_default().insert(key.clone());
        }
        if has_index_of_labels(object) {
            self.by_label.insert(key, metadata.labels.as_ref());
        }
        self.by_claim.insert(key, object);
        if let Some(uid) = &metadata.uid {
            self.by_uid.insert(uid.as_str().into(), key.clone());
        }
        for owner in metadata.owner_references.as_deref().unwrap_or_default() {
            self.by_owner.entry(owner.uid.clone()).or_default().insert(key.clone());
        }
        if controller_of(metadata).is_none() {
            self.uncontrolled.insert(key.clone());
        }
    }

    fn unindex(&mut self, key: &ObjectKey, object: &dyn Object) {
        let metadata = object.metadata();
        if let Some(node) = node_of(object)
            && let Some(keys) = self.by_node.get_mut(node)
        {
            keys.remove(key);
            if keys.is_empty() {
                self.by_node.remove(node);
            }
        }
        if has_index_of_labels(object) {
            self.by_label.remove(key, metadata.labels.as_ref());
        }
        self.by_claim.remove(key, object);
        if let Some(uid) = &metadata.uid {
            self.by_uid.remove(uid.as_str());
        }
        for owner in metadata.owner_references.as_deref().unwrap_or_default() {
            if let Some(keys) = self.by_owner.get_mut(&owner.uid) {
                keys.remove(key);
                if keys.is_empty() {
                    self.by_owner.remove(&owner.uid);
                }
            }
        }
        self.uncontrolled.remove(key);
    }
}

/// The node that a pod is bound to; `None` for other kinds.
fn node_of(object: &dyn Object) -> Option<&str> {
    let pod = typed::<Pod>(object)?;
    pod.spec.as_ref()?.node_name.as_deref().filter(|name| !name.is_empty())
}

fn within<'a>(
    objects: &'a BTreeMap<Arc<ObjectKey>, CachedObject>,
    namespace: &'a str,
) -> impl Iterator<Item = (&'a Arc<ObjectKey>, &'a CachedObject)> {
    objects
        .range::<ObjectKey, _>(ObjectKey::new(namespace, "")..)
        .take_while(move |(k, _)| namespace.is_empty() || k.namespace == namespace)
}

#[cfg(test)]
mod tests;
