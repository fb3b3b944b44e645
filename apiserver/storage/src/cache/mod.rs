//! The watch cache: the one in-memory copy of every object, with a multi-version map, event rings, indexes and encoded
//! bytes.
//!
//! The store's writer feeds the watch cache in revision order, after the sync and before the acknowledgement: reads are
//! durable, and a client reads its own writes. Objects are kept as stored bytes with a few extracted facts, never as
//! parsed values. Absent on purpose: selector syntax, HTTP, and any lock held across an await.

mod compress;
mod counts;
mod feed;
mod index;
mod lookup;
pub mod object;
mod register;
mod ring;
pub mod select;
mod watching;

#[cfg(test)]
mod contract;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::ops::Bound;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use machinery_api::{StorageKey, StoragePrefix, StorageScope};
use machinery_env::Env;
use tokio::sync::watch;

use crate::store::versions::{OutOfReach, Versions};
use crate::store::{Current, Entry, Outcome, Revision, Store, StoreError, Txn, prefix_end};

pub use lookup::Lookup;
pub use object::{Cached, Fields, Resource, write_record};
pub use ring::{Event, EventType, Media, Shape, WatchEncoding};
pub use select::Selectors;
pub use watching::{Watch, WatchEvent};

use counts::Counts;
use feed::Feed;
use index::Index;
use ring::Rings;

/// The number of objects visited under one lock, in some 0.1 ms, so that a full list doesn't block the writer.
const SLICE_OBJECTS: usize = 1024;
/// The maximum time that a read waits for the store's revision (upstream: 3 s).
const SYNC_WAIT: Duration = Duration::from_secs(3);
/// The maximum time for an answer of a store in another process (upstream's `etcd-healthcheck-timeout`: 2 s).
const PROBE_MAX: Duration = Duration::from_secs(2);
/// The interval of the store's expiry and compaction.
const TICK_EVERY: Duration = Duration::from_secs(1);

/// Why a revision can't be listed or watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum VersionError {
    /// The revision is compacted, or the watch was too slow: list again. Contains the oldest available revision.
    #[error("too old resource version; the oldest is {0}")]
    Compacted(Revision),
    /// The revision is not reached yet. Contains the current revision.
    #[error("too large resource version; the current is {0}")]
    Future(Revision),
    /// The resource is not registered.
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
    /// The revision of the list; the following pages must use it.
    pub revision: Revision,
    /// The number of objects after this page; `None` if they must be counted.
    pub remaining: Option<u64>,
    /// The last key of this page if there are more objects (matching or not): the next page's `start_after`.
    pub next: Option<Arc<str>>,
}

/// The changes of the objects with one value of an indexed field, up to a revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FieldChanges {
    /// No object has the value.
    Empty,
    /// The keys of the objects that changed, each with its resourceVersion, or `None` where it no longer has the value.
    Since(Revision, Vec<(Arc<str>, Option<Revision>)>),
    /// The changes are no longer known: the objects must be listed.
    Lost(Revision),
}

/// How far a new resource's index and counts have been filled with existing objects.
#[derive(Debug, Clone, PartialEq, Eq)]
enum FillProgress {
    /// Up to and including this key; `None` at the start.
    UpTo(Option<Arc<str>>),
    /// All of them.
    Done,
}

impl FillProgress {
    fn has(&self, key: &str) -> bool {
        match self {
            Self::UpTo(last) => last.as_deref().is_some_and(|last| key <= last),
            Self::Done => true,
        }
    }
}

/// The state of one resource.
struct ResourceCache {
    resource: Resource,
    /// The revision of the last change below the prefix.
    changed: Revision,
    /// How far `index` and `counts` include the objects that existed before the resource.
    filled: FillProgress,
    index: Index,
    counts: Counts,
    rings: Rings,
}

struct CacheState {
    versions: Versions<Arc<Cached>>,
    resources: HashMap<StoragePrefix, ResourceCache>,
}

/// The watch cache of a store.
pub struct WatchCache {
    store: Arc<dyn Store>,
    env: Env,
    state: RwLock<CacheState>,
    /// The newest revision whose events are all in the rings.
    visible: AtomicU64,
    published: watch::Sender<Revision>,
    registering: tokio::sync::Mutex<()>,
    /// Whether the store answered the last probe.
    reachable: AtomicBool,
}

impl WatchCache {
    /// Loads the store into memory and follows it; further resources can be added with [`register`](Self::register). A
    /// task of the current runtime triggers the store's expiry and compaction every second, while the cache lives.
    pub async fn open(env: &Env, store: Arc<dyn Store>, resources: Vec<Resource>) -> Result<Arc<Self>, StoreError> {
        let resources = resources.into_iter().map(|r| (r.prefix.clone(), ResourceCache::new(r, 0))).collect();
        let cache = Arc::new(Self {
            store: store.clone(),
            env: env.clone(),
            state: RwLock::new(CacheState { versions: Versions::new(0), resources }),
            visible: AtomicU64::new(0),
            published: watch::Sender::new(0),
            registering: tokio::sync::Mutex::default(),
            reachable: AtomicBool::new(true),
        });
        // Weak: the cache holds the store, so the store must not hold the cache.
        store.feed(Arc::new(Feed::of(&cache))).await?;
        let weak = Arc::downgrade(&cache);
        let mut interval = env.interval(TICK_EVERY);
        tokio::spawn(async move {
            interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            let mut compressor = compress::ColdCompressor::new();
            let mut failing = false;
            loop {
                interval.tick().await;
                let Some(cache) = weak.upgrade() else { return };
                compressor.tick(&cache).await;
                cache.probe().await;
                let store = cache.store.clone();
                drop(cache);
                let ticked = store.tick().await;
                // Once per series: a process that is taken over has closed its store and serves on for a while.
                if let Err(error) = ticked.as_ref()
                    && !failing
                {
                    tracing::warn!(%error, "the store's expiry or compaction failed");
                }
                failing = ticked.is_err();
            }
        });
        Ok(cache)
    }

    /// The underlying store.
    #[must_use]
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// The newest visible revision.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.visible.load(Ordering::Acquire)
    }

    /// Waits until `revision` is visible; returns false after `timeout`.
    pub async fn wait_for_revision(&self, revision: Revision, timeout: Duration) -> bool {
        if self.revision() >= revision {
            return true;
        }
        let mut published = self.published.subscribe();
        self.env.timeout(timeout, published.wait_for(|now| *now >= revision)).await.is_ok_and(|reached| reached.is_ok())
    }

    /// Whether the cache always has every acknowledged write, so that [`sync`](Self::sync) does nothing.
    #[must_use]
    pub fn is_current(&self) -> bool {
        matches!(self.store.current(), Current::Fed)
    }

    /// Waits until the cache has every write that was acknowledged before this call. Required before a decision relies
    /// on an absent object, or on one that may have changed. Free if the store feeds before it acknowledges.
    pub async fn sync(&self) -> Result<(), StoreError> {
        let Current::WaitFor(newest) = self.store.current() else { return Ok(()) };
        let newest = newest.await?;
        if self.wait_for_revision(newest, SYNC_WAIT).await {
            return Ok(());
        }
        Err(StoreError::Unavailable(format!("revision {newest} has not reached the watch cache")))
    }

    /// Whether a store in another process answered within the last seconds.
    #[must_use]
    pub fn is_reachable(&self) -> bool {
        self.reachable.load(Ordering::Relaxed)
    }

    /// Asks a store in another process for its revision.
    async fn probe(&self) {
        let Current::WaitFor(newest) = self.store.current() else { return };
        let newest = self.env.timeout(PROBE_MAX, newest).await;
        self.reachable.store(newest.is_ok_and(|newest| newest.is_ok()), Ordering::Relaxed);
    }

    /// Waits until a revision after `revision` is visible.
    pub async fn changed(&self, revision: Revision) {
        let mut published = self.published.subscribe();
        // The sender lives as long as the cache.
        let _ = published.wait_for(|now| *now > revision).await;
    }

    /// The cached form of an entry that the store returned.
    #[must_use]
    pub fn cached_entry(&self, entry: &Entry) -> Arc<Cached> {
        Arc::new(Cached::new(entry, self.resource_of(&entry.key).and_then(|(_, fields)| fields)))
    }

    /// The current state of an object.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<Arc<Cached>> {
        self.read().versions.get(key).map(|(_, cached)| cached.clone())
    }

    /// Lists objects below `prefix` (a resource's, or one with a namespace and a trailing `/`), now or at a revision,
    /// after a key, at most `limit` (0: all).
    pub fn list(
        &self,
        prefix: &str,
        at: Option<Revision>,
        start_after: Option<&str>,
        limit: usize,
        filter: &Selectors,
    ) -> Result<Page, VersionError> {
        let limit = if limit == 0 { usize::MAX } else { limit };
        let state = self.read();
        let revision = at.unwrap_or(state.versions.revision());
        state.versions.check(revision)?;
        let after = |key: &str| start_after.is_none_or(|start| key > start);
        // A name within a namespace, or of a cluster-wide resource, is one key. (Across namespaces it isn't an object's
        // key.)
        if let Some(name) = filter.field_equals("metadata.name")
            && let Some((_, cached)) = state.versions.get_at(&StorageScope::key_below(prefix, name), revision)?
        {
            let items = Some(cached).filter(|cached| after(&cached.key) && filter.matches(cached)).cloned();
            return Ok(Page { items: items.into_iter().collect(), revision, remaining: Some(0), next: None });
        }
        let now = revision == state.versions.revision();
        let mut builder = PageBuilder { limit, items: Vec::new(), more: false };
        if let Some(keys) = state.resource(prefix).filter(|_| now).and_then(|entry| entry.narrow(filter)) {
            let from = start_after.filter(|start| *start > prefix).map_or(Bound::Included(prefix), Bound::Excluded);
            let below = keys.range::<str, _>((from, Bound::Unbounded)).take_while(|key| key.starts_with(prefix));
            for (_, cached) in below.filter_map(|key| state.versions.get(key)) {
                if !builder.offer(cached, filter) {
                    break;
                }
            }
            return Ok(builder.page(revision, None));
        }
        // The number of current objects is maintained with each change.
        let total = state.resource(prefix).and_then(|entry| entry.count(prefix));
        let total = total.filter(|_| now && start_after.is_none() && filter.is_empty());
        drop(state);
        let mut from = start_after.filter(|start| *start > prefix).map(Arc::from);
        match self.visit_slices(prefix, &mut from, revision, |cached| builder.offer(cached, filter)) {
            // The revision was compacted during a list of the current state, which takes minutes: start again.
            Err(VersionError::Compacted(_)) if at.is_none() => {
                return self.list(prefix, at, start_after, limit, filter);
            }
            done => done?,
        }
        Ok(builder.page(revision, total))
    }

    /// Counts the objects below a prefix after a key at a revision, one by one, without blocking writers.
    pub fn count_after(&self, prefix: &str, after: &str, at: Revision) -> Result<u64, VersionError> {
        let mut count = 0;
        self.visit_slices(prefix, &mut Some(after.into()), at, |_| {
            count += 1;
            true
        })?;
        Ok(count)
    }

    /// Visits the objects below a prefix after `from` in key order, one slice under each lock, until `visit` returns
    /// false.
    fn visit_slices(
        &self,
        prefix: &str,
        from: &mut Option<Arc<str>>,
        at: Revision,
        mut visit: impl FnMut(&Arc<Cached>) -> bool,
    ) -> Result<(), VersionError> {
        let end = prefix_end(prefix);
        loop {
            let state = self.read();
            state.versions.check(at)?;
            let begin = from.as_deref().map_or(Bound::Included(prefix), Bound::Excluded);
            let mut last = None;
            let mut seen = 0;
            for (key, _, cached) in state.versions.range(begin, Bound::Excluded(&end), at).take(SLICE_OBJECTS) {
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
            drop(state);
            *from = last;
        }
    }

    /// Watches the events below `prefix` after `from` (`None`: from now on), filtered. A `from` in the future waits for
    /// it.
    pub fn watch(
        self: &Arc<Self>,
        prefix: &str,
        from: Option<Revision>,
        filter: Selectors,
    ) -> Result<Watch, VersionError> {
        let mut state = self.write();
        let now = state.versions.revision();
        let compacted = state.versions.compacted();
        let Some(entry) = state.resource_mut(prefix) else { return Err(VersionError::Unregistered) };
        let topic = ring::Topic::of(&entry.resource, prefix, &filter);
        let ring = entry.rings.open(topic);
        Watch::start(self.clone(), ring, prefix, from.unwrap_or(now), filter, compacted)
    }

    /// Commits through the store; the committed revision is visible here on return.
    pub async fn commit(&self, txn: Txn) -> Result<Outcome, StoreError> {
        let outcome = self.store.txn(txn).await?;
        if let Outcome::Committed(revision) = outcome
            && self.revision() < revision
        {
            // Only a remote store acknowledges before it feeds.
            let mut published = self.published.subscribe();
            let _ = published.wait_for(|now| *now >= revision).await;
        }
        Ok(outcome)
    }

    /// The revision of the last change of the resource of `prefix`: results computed from a list at or after it are
    /// still valid.
    #[must_use]
    pub fn resource_revision(&self, prefix: &str) -> Revision {
        let state = self.read();
        state.resource(prefix).map_or(state.versions.revision(), |entry| entry.changed)
    }

    /// The changes after a revision among a resource's objects with a value of an indexed field: those that were
    /// written with it, gained it or lost it. A key may be repeated.
    #[must_use]
    pub fn field_changes(&self, prefix: &str, (field, value): (&str, &str), after: Revision) -> FieldChanges {
        let state = self.read();
        let now = state.versions.revision();
        let Some(entry) = state.resource(prefix).filter(|entry| entry.filled == FillProgress::Done) else {
            return FieldChanges::Lost(now);
        };
        let value = match entry.index.field_value(&entry.resource, field, value) {
            Some(Some(value)) => value,
            Some(None) => return FieldChanges::Empty,
            None => return FieldChanges::Lost(now),
        };
        let Some(keys) = value.since(after) else { return FieldChanges::Lost(now) };
        let version = |key: &str| Some(state.versions.get(key).filter(|_| value.has(key))?.1.modified);
        FieldChanges::Since(now, keys.map(|key| (key.clone(), version(key))).collect())
    }

    /// The current number of objects below a prefix (a resource's, or one with a namespace).
    #[must_use]
    pub fn count(&self, prefix: &str) -> u64 {
        let state = self.read();
        state.resource(prefix).and_then(|entry| entry.count(prefix)).unwrap_or(0)
    }

    /// The resource of a key, and its fields.
    fn resource_of(&self, key: &str) -> Option<(StoragePrefix, Option<Arc<Fields>>)> {
        let state = self.read();
        let resource = &state.resource(key)?.resource;
        Some((resource.prefix.clone(), resource.fields.clone()))
    }

    fn read(&self) -> RwLockReadGuard<'_, CacheState> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, CacheState> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish(&self, revision: Revision) {
        self.visible.store(revision, Ordering::Release);
        self.published.send_replace(revision);
    }
}

/// Collects one page.
struct PageBuilder {
    limit: usize,
    items: Vec<Arc<Cached>>,
    more: bool,
}

impl PageBuilder {
    /// Returns false if the page is full: then more objects follow, matching or not.
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

    /// `total` is the number of objects of which this is the first page.
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
            filled: FillProgress::Done,
            index: Index::default(),
            counts: Counts::default(),
            rings: Rings::new(floor),
        }
    }

    /// The smallest indexed set of keys that contains a filter's result; `None` if no index applies.
    fn narrow(&self, filter: &Selectors) -> Option<&std::collections::BTreeSet<Arc<str>>> {
        (self.filled == FillProgress::Done).then(|| self.index.narrow(&self.resource, filter)).flatten()
    }

    /// The number of objects below a prefix, if known.
    fn count(&self, prefix: &str) -> Option<u64> {
        (self.filled == FillProgress::Done).then(|| self.counts.below(&self.resource, prefix)).flatten()
    }

    fn record(&mut self, revision: Revision, new: Option<Arc<Cached>>, old: Option<Arc<Cached>>) {
        self.changed = revision;
        if let Some(event) = Event::new(revision, new, old) {
            self.rings.push(&self.resource, Arc::new(event));
        }
    }
}

impl CacheState {
    /// The resource of `key` (an object's, or a prefix with its trailing `/`).
    fn resource(&self, key: &str) -> Option<&ResourceCache> {
        StorageKey::prefixes(key).find_map(|prefix| self.resources.get(prefix))
    }

    fn resource_mut(&mut self, key: &str) -> Option<&mut ResourceCache> {
        let prefix = StorageKey::prefixes(key).find(|prefix| self.resources.contains_key(*prefix))?;
        self.resources.get_mut(prefix)
    }
}
