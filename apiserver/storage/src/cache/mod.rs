//! The one in-memory copy of every object: multi-version map, event rings, indexes, encoded bytes.
//!
//! Fed by the store's committer in revision order, after the sync and before the acknowledgement: what is read here is
//! durable, and a client reads its own writes. Objects are kept as stored bytes with a few extracted facts, never as
//! parsed values. Absent on purpose: selector syntax, HTTP, and any lock held across an await.

mod counts;
mod feed;
mod index;
mod lookup;
pub mod object;
mod register;
mod rest;
mod ring;
pub mod select;
mod watching;

#[cfg(test)]
mod contract;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::ops::Bound;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use machinery_api::{StorageKey, StoragePrefix, StorageScope};
use tokio::sync::watch;

use crate::store::versions::{OutOfReach, Versions};
use crate::store::{Current, Entry, Outcome, Revision, Store, StoreError, Txn, prefix_end};

pub use lookup::Lookup;
pub use object::{Cached, Fields, Resource, write_record};
pub use ring::{Event, Kind, Media, Shape, WatchEncoding};
pub use select::Selectors;
pub use watching::{Watch, WatchEvent};

use counts::Counts;
use feed::Feed;
use index::Index;
use ring::Rings;

/// Objects that are looked at under one lock, some 0.1 ms: a list of everything holds up the writer no longer.
const SLICE_OBJECTS: usize = 1024;
/// How long a read waits until the cache has what the store has (upstream: 3 s).
const SYNC_WAIT: Duration = Duration::from_secs(3);
/// How often the store is asked to expire keys and compact.
const TICK_EVERY: Duration = Duration::from_secs(1);

/// Why a list or watch can't be served at a revision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum VersionError {
    /// Compacted, or the watch was too slow: list again. The oldest revision that is left.
    #[error("too old resource version; the oldest is {0}")]
    Compacted(Revision),
    /// Not reached yet; the current revision.
    #[error("too large resource version; the current is {0}")]
    Future(Revision),
    /// The resource is not registered, or no longer.
    #[error("the resource is not served")]
    Unregistered,
}

impl From<OutOfReach> for VersionError {
    fn from(out: OutOfReach) -> Self {
        match out {
            OutOfReach::Compacted(revision) => Self::Compacted(revision),
            OutOfReach::Future(revision) => Self::Future(revision),
        }
    }
}

/// A page of objects.
#[derive(Debug, Clone)]
pub struct Page {
    /// In key order.
    pub items: Vec<Arc<Cached>>,
    /// The revision that was read; ask for the following pages at it.
    pub revision: Revision,
    /// How many objects come after this page; `None`: that would have to be counted.
    pub remaining: Option<u64>,
    /// The last key of this page where more follow (matching or not): the next page's `start_after`.
    pub next: Option<Arc<str>>,
}

/// What changed among the objects that have one value of an indexed field, up to a revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FieldChanges {
    /// No object has the value.
    Empty,
    /// The keys of the objects that changed, each with its resourceVersion, or `None` where it no longer has the value.
    Since(Revision, Vec<(Arc<str>, Option<Revision>)>),
    /// That is not known any more: the objects have to be listed.
    Lost(Revision),
}

/// How far a resource's shelf has taken in what was there before.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Filled {
    /// Keys up to and with this one; none yet.
    UpTo(Option<Arc<str>>),
    /// Everything.
    Whole,
}

impl Filled {
    fn has(&self, key: &str) -> bool {
        match self {
            Self::UpTo(last) => last.as_deref().is_some_and(|last| key <= last),
            Self::Whole => true,
        }
    }
}

/// What is kept per resource.
struct ResourceCache {
    resource: Resource,
    /// When anything below the prefix last changed.
    changed: Revision,
    /// How far what was there before the resource has been taken into `index` and `counts`.
    filled: Filled,
    index: Index,
    counts: Counts,
    rings: Rings,
}

struct Inner {
    versions: Versions<Arc<Cached>>,
    shelves: HashMap<StoragePrefix, ResourceCache>,
}

/// See the module.
pub struct WatchCache {
    store: Arc<dyn Store>,
    inner: RwLock<Inner>,
    /// The newest revision whose events are all in the rings.
    visible: AtomicU64,
    moved: watch::Sender<Revision>,
    registering: tokio::sync::Mutex<()>,
}

impl WatchCache {
    /// Reads the store into memory and follows it; `resources` can be added to later ([`register`](Self::register)).
    /// A task of the current runtime asks the store every second to expire and compact, as long as the cache lives.
    pub async fn open(store: Arc<dyn Store>, resources: Vec<Resource>) -> Result<Arc<Self>, StoreError> {
        let shelves = resources.into_iter().map(|r| (r.prefix.clone(), ResourceCache::new(r, 0))).collect();
        let cache = Arc::new(Self {
            store: store.clone(),
            inner: RwLock::new(Inner { versions: Versions::new(0), shelves }),
            visible: AtomicU64::new(0),
            moved: watch::Sender::new(0),
            registering: tokio::sync::Mutex::default(),
        });
        // Weak: the store must not keep the cache alive, which keeps the store.
        store.feed(Arc::new(Feed::of(&cache))).await?;
        let weak = Arc::downgrade(&cache);
        tokio::spawn(async move {
            let mut interval = tokio::time::interval(TICK_EVERY);
            interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            let mut rest = rest::Rest::new();
            loop {
                interval.tick().await;
                let Some(cache) = weak.upgrade() else { return };
                rest.tick(&cache).await;
                let store = cache.store.clone();
                drop(cache);
                if let Err(error) = store.tick().await {
                    tracing::warn!(%error, "the store's housekeeping failed");
                }
            }
        });
        Ok(cache)
    }

    /// The store behind.
    #[must_use]
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// The newest visible revision.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.visible.load(Ordering::Acquire)
    }

    /// Waits until `revision` is visible; false: it was not within `timeout`.
    pub async fn until(&self, revision: Revision, timeout: Duration) -> bool {
        if self.revision() >= revision {
            return true;
        }
        let mut moved = self.moved.subscribe();
        tokio::time::timeout(timeout, moved.wait_for(|now| *now >= revision)).await.is_ok_and(|reached| reached.is_ok())
    }

    /// Whether the cache has every acknowledged write at any time, so that [`sync`](Self::sync) does nothing.
    #[must_use]
    pub fn is_current(&self) -> bool {
        matches!(self.store.current(), Current::Fed)
    }

    /// Waits until every write that was acknowledged before this call is here: before anything is decided from what the
    /// cache does not hold, or from an object that may have changed. Free where the store feeds before it acknowledges.
    pub async fn sync(&self) -> Result<(), StoreError> {
        let Current::Ask(newest) = self.store.current() else { return Ok(()) };
        let newest = newest.await?;
        if self.until(newest, SYNC_WAIT).await {
            return Ok(());
        }
        Err(StoreError::Unavailable(format!("revision {newest} has not reached the watch cache")))
    }

    /// Waits until anything after `revision` is visible.
    pub async fn changed(&self, revision: Revision) {
        let mut moved = self.moved.subscribe();
        // The sender lives as long as the cache.
        let _ = moved.wait_for(|now| *now > revision).await;
    }

    /// An entry that the store handed back, as the cache will hold it.
    #[must_use]
    pub fn parsed(&self, entry: &Entry) -> Arc<Cached> {
        Arc::new(Cached::new(entry, self.home(&entry.key).and_then(|(_, fields)| fields)))
    }

    /// One object as of now.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<Arc<Cached>> {
        self.read().versions.get(key).map(|(_, cached)| cached.clone())
    }

    /// Objects below `prefix` (a resource's, or one with a namespace and `/` after it), now or at a revision, after a
    /// key, at most `limit` (0: all).
    pub fn list(
        &self,
        prefix: &str,
        at: Option<Revision>,
        start_after: Option<&str>,
        limit: usize,
        filter: &Selectors,
    ) -> Result<Page, VersionError> {
        let limit = if limit == 0 { usize::MAX } else { limit };
        let inner = self.read();
        let revision = at.unwrap_or(inner.versions.revision());
        inner.versions.check(revision)?;
        let after = |key: &str| start_after.is_none_or(|start| key > start);
        // By name within a namespace or of a cluster-wide resource: one key. (Of all namespaces it is no object's key.)
        if let Some(name) = filter.field_equals("metadata.name")
            && let Some((_, cached)) = inner.versions.get_at(&StorageScope::key_below(prefix, name), revision)?
        {
            let items = Some(cached).filter(|cached| after(&cached.key) && filter.matches(cached)).cloned();
            return Ok(Page { items: items.into_iter().collect(), revision, remaining: Some(0), next: None });
        }
        let now = revision == inner.versions.revision();
        let mut found = Found { limit, items: Vec::new(), more: false };
        if let Some(keys) = inner.shelf(prefix).filter(|_| now).and_then(|shelf| shelf.narrow(filter)) {
            let from = start_after.filter(|start| *start > prefix).map_or(Bound::Included(prefix), Bound::Excluded);
            let below = keys.range::<str, _>((from, Bound::Unbounded)).take_while(|key| key.starts_with(prefix));
            for (_, cached) in below.filter_map(|key| inner.versions.get(key)) {
                if !found.offer(cached, filter) {
                    break;
                }
            }
            return Ok(found.page(revision, None));
        }
        // What is there now is counted as it changes.
        let total = inner.shelf(prefix).and_then(|shelf| shelf.count(prefix));
        let total = total.filter(|_| now && start_after.is_none() && filter.is_empty());
        drop(inner);
        let mut from = start_after.filter(|start| *start > prefix).map(Arc::from);
        match self.slices(prefix, &mut from, revision, |cached| found.offer(cached, filter)) {
            // History went on beneath a list of now, which takes minutes: of what is there now, then.
            Err(VersionError::Compacted(_)) if at.is_none() => {
                return self.list(prefix, at, start_after, limit, filter);
            }
            done => done?,
        }
        Ok(found.page(revision, total))
    }

    /// How many objects there are below a prefix after a key at a revision: looked at one by one, without holding anybody
    /// up.
    pub fn count_after(&self, prefix: &str, after: &str, at: Revision) -> Result<u64, VersionError> {
        let mut count = 0;
        self.slices(prefix, &mut Some(after.into()), at, |_| {
            count += 1;
            true
        })?;
        Ok(count)
    }

    /// Visits objects below a prefix in key order, a slice under each lock, from after `from` until `visit` has enough.
    fn slices(
        &self,
        prefix: &str,
        from: &mut Option<Arc<str>>,
        at: Revision,
        mut visit: impl FnMut(&Arc<Cached>) -> bool,
    ) -> Result<(), VersionError> {
        let end = prefix_end(prefix);
        loop {
            let inner = self.read();
            inner.versions.check(at)?;
            let begin = from.as_deref().map_or(Bound::Included(prefix), Bound::Excluded);
            let mut last = None;
            let mut seen = 0;
            for (key, _, cached) in inner.versions.range(begin, Bound::Excluded(&end), at).take(SLICE_OBJECTS) {
                if !visit(cached) {
                    return Ok(());
                }
                seen += 1;
                last = Some(key);
            }
            if seen < SLICE_OBJECTS {
                return Ok(());
            }
            let last = last.cloned();
            drop(inner);
            *from = last;
        }
    }

    /// Events below `prefix` after `from` (`None`: from now on), filtered. A `from` in the future waits silently.
    pub fn watch(
        self: &Arc<Self>,
        prefix: &str,
        from: Option<Revision>,
        filter: Selectors,
    ) -> Result<Watch, VersionError> {
        let mut inner = self.write();
        let now = inner.versions.revision();
        let compacted = inner.versions.compacted();
        let Some(shelf) = inner.shelf_mut(prefix) else { return Err(VersionError::Unregistered) };
        let topic = ring::Topic::of(&shelf.resource, prefix, &filter);
        let ring = shelf.rings.open(topic);
        Watch::start(self.clone(), ring, prefix, from.unwrap_or(now), filter, compacted)
    }

    /// Writes through the store; what it committed is visible here when it returns.
    pub async fn commit(&self, txn: Txn) -> Result<Outcome, StoreError> {
        let outcome = self.store.txn(txn).await?;
        if let Outcome::Committed(revision) = outcome
            && self.revision() < revision
        {
            // Only a remote store acknowledges before it feeds.
            let mut moved = self.moved.subscribe();
            let _ = moved.wait_for(|now| *now >= revision).await;
        }
        Ok(outcome)
    }

    /// When anything of the resource that `prefix` names last changed: what was computed from a list at or after this
    /// revision still holds.
    #[must_use]
    pub fn resource_revision(&self, prefix: &str) -> Revision {
        let inner = self.read();
        inner.shelf(prefix).map_or(inner.versions.revision(), |shelf| shelf.changed)
    }

    /// What changed after a revision among a resource's objects with a value of an indexed field: those that were written
    /// with it, got it or lost it. An object may come more than once.
    #[must_use]
    pub fn field_changes(&self, prefix: &str, (field, value): (&str, &str), after: Revision) -> FieldChanges {
        let inner = self.read();
        let now = inner.versions.revision();
        let Some(shelf) = inner.shelf(prefix).filter(|shelf| shelf.filled == Filled::Whole) else {
            return FieldChanges::Lost(now);
        };
        let value = match shelf.index.field_value(&shelf.resource, field, value) {
            Some(Some(value)) => value,
            Some(None) => return FieldChanges::Empty,
            None => return FieldChanges::Lost(now),
        };
        let Some(keys) = value.since(after) else { return FieldChanges::Lost(now) };
        let version = |key: &str| Some(inner.versions.get(key).filter(|_| value.has(key))?.1.modified);
        FieldChanges::Since(now, keys.map(|key| (key.clone(), version(key))).collect())
    }

    /// How many objects there are below a prefix (a resource's, or one with a namespace) now.
    #[must_use]
    pub fn count(&self, prefix: &str) -> u64 {
        let inner = self.read();
        inner.shelf(prefix).and_then(|shelf| shelf.count(prefix)).unwrap_or(0)
    }

    /// The resource that a key belongs to, and its fields.
    fn home(&self, key: &str) -> Option<(StoragePrefix, Option<Arc<Fields>>)> {
        let inner = self.read();
        let resource = &inner.shelf(key)?.resource;
        Some((resource.prefix.clone(), resource.fields.clone()))
    }

    fn read(&self) -> RwLockReadGuard<'_, Inner> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Inner> {
        self.inner.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish(&self, revision: Revision) {
        self.visible.store(revision, Ordering::Release);
        self.moved.send_replace(revision);
    }
}

/// Collects one page.
struct Found {
    limit: usize,
    items: Vec<Arc<Cached>>,
    more: bool,
}

impl Found {
    /// False: the page is full, and this one, which may match or not, comes after it.
    fn offer(&mut self, cached: &Arc<Cached>, filter: &Selectors) -> bool {
        if self.items.len() == self.limit {
            self.more = true;
            return false;
        }
        if filter.matches(cached) {
            self.items.push(cached.clone());
        }
        true
    }

    /// `total`: how many there are of which this is the first page.
    fn page(self, revision: Revision, total: Option<u64>) -> Page {
        let next = self.items.last().filter(|_| self.more).map(|cached| cached.key.clone());
        let remaining = match total {
            _ if !self.more => Some(0),
            total => total.map(|total| total.saturating_sub(self.items.len() as u64)),
        };
        Page { items: self.items, revision, remaining, next }
    }
}

impl ResourceCache {
    fn new(resource: Resource, floor: Revision) -> Self {
        Self {
            resource,
            changed: floor,
            filled: Filled::Whole,
            index: Index::default(),
            counts: Counts::default(),
            rings: Rings::new(floor),
        }
    }

    /// The smallest indexed set of keys that holds all that a filter selects, where an index helps.
    fn narrow(&self, filter: &Selectors) -> Option<&std::collections::BTreeSet<Arc<str>>> {
        (self.filled == Filled::Whole).then(|| self.index.narrow(&self.resource, filter)).flatten()
    }

    /// How many objects there are below a prefix, where that is known.
    fn count(&self, prefix: &str) -> Option<u64> {
        (self.filled == Filled::Whole).then(|| self.counts.below(&self.resource, prefix)).flatten()
    }

    fn record(&mut self, revision: Revision, new: Option<Arc<Cached>>, old: Option<Arc<Cached>>) {
        self.changed = revision;
        if let Some(event) = Event::new(revision, new, old) {
            self.rings.push(&self.resource, Arc::new(event));
        }
    }
}

impl Inner {
    /// The shelf of the resource that `key` (an object's, or a prefix with its last `/`) belongs to.
    fn shelf(&self, key: &str) -> Option<&ResourceCache> {
        StorageKey::prefixes(key).find_map(|prefix| self.shelves.get(prefix))
    }

    fn shelf_mut(&mut self, key: &str) -> Option<&mut ResourceCache> {
        let prefix = StorageKey::prefixes(key).find(|prefix| self.shelves.contains_key(*prefix))?;
        self.shelves.get_mut(prefix)
    }
}
