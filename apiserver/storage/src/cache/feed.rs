//! The watch cache's [`Sink`], called by the store's writer. Values are extracted from objects before the cache's lock
//! is taken, which all reads share.

use std::sync::{Arc, Weak};

use machinery_api::{StorageKey, StoragePrefix};

use super::object::Cached;
use super::{CacheState, ResourceCache, Versions, WatchCache};
use crate::store::{Change, Entry, Revision, Sink};

/// Feeds a watch cache.
pub(super) struct Feed(Weak<WatchCache>);

impl Feed {
    /// Weak: the cache holds the store, so the store must not hold the cache.
    pub(super) fn of(cache: &Arc<WatchCache>) -> Self {
        Self(Arc::downgrade(cache))
    }
}

/// The cached form of a key's entry, built before the lock is taken.
struct PreparedEntry {
    /// The key's resource when it was built.
    prefix_hint: Option<StoragePrefix>,
    object: Option<Arc<Cached>>,
}

impl PreparedEntry {
    fn of(cache: &WatchCache, key: &str, entry: Option<&Entry>) -> Self {
        let (prefix_hint, fields) =
            cache.resource_of(key).map_or((None, None), |(prefix, fields)| (Some(prefix), fields));
        Self { prefix_hint, object: entry.map(|entry| Arc::new(Cached::new(entry, fields))) }
    }
}

impl CacheState {
    fn apply(&mut self, change: &Change, prepared: PreparedEntry) {
        let PreparedEntry { prefix_hint, object: mut new } = prepared;
        let known = prefix_hint.as_ref().map(|hint| hint.as_str()).filter(|hint| self.resources.contains_key(*hint));
        let search = || StorageKey::prefixes(&change.key).find(|prefix| self.resources.contains_key(*prefix));
        let prefix = known.or_else(search);
        let mut entry = prefix.and_then(|prefix| self.resources.get_mut(prefix));
        if let (Some(entry), Some(prepared)) = (&entry, &new)
            && !prepared.is_extracted_by(&entry.resource)
        {
            // The resource was registered or changed in between.
            new = Some(Arc::new(prepared.extracted_by(entry.resource.fields.clone())));
        }
        let old = self.versions.apply(change.revision, &change.key, new.clone()).map(|(_, cached)| cached);
        if let Some(entry) = entry.as_mut() {
            // Keys beyond the filled range are counted when they are filled.
            let counted = entry.filled.has(&change.key);
            match (&old, &new) {
                _ if !counted => {}
                (None, Some(_)) => entry.counts.add(&entry.resource, &change.key),
                (Some(_), None) => entry.counts.remove(&entry.resource, &change.key),
                _ => {}
            }
            entry.index.change(&entry.resource, (old.as_deref(), new.as_deref()), change.revision);
            entry.record(change.revision, new, old);
        }
    }
}

impl Sink for Feed {
    fn start(&self, state: Vec<Entry>, revision: Revision) {
        let Some(cache) = self.0.upgrade() else { return };
        let entries: Vec<PreparedEntry> =
            state.iter().map(|entry| PreparedEntry::of(&cache, &entry.key, Some(entry))).collect();
        let mut state = cache.write();
        let CacheState { versions, resources } = &mut *state;
        for entry in resources.values_mut() {
            // The watches of a cache that starts again.
            entry.rings.lose(revision);
            *entry = ResourceCache { changed: 0, ..ResourceCache::new(entry.resource.clone(), revision) };
        }
        let objects = entries.into_iter().filter_map(|PreparedEntry { prefix_hint, object }| {
            let cached = object?;
            // The start is fed once, before any resource can be added.
            if let Some(entry) = prefix_hint.and_then(|prefix| resources.get_mut(&prefix)) {
                entry.index.add(&entry.resource, &cached, revision);
                entry.counts.add(&entry.resource, &cached.key);
                entry.changed = entry.changed.max(cached.modified);
            }
            Some((cached.key.clone(), cached.modified, cached))
        });
        *versions = Versions::filled(revision, objects);
        drop(state);
        cache.publish(revision);
    }

    fn commit(&self, changes: &[Change]) {
        let (Some(cache), Some(last)) = (self.0.upgrade(), changes.last()) else { return };
        let prepared: Vec<PreparedEntry> =
            changes.iter().map(|change| PreparedEntry::of(&cache, &change.key, change.entry.as_ref())).collect();
        let mut state = cache.write();
        for (change, prepared) in changes.iter().zip(prepared) {
            state.apply(change, prepared);
        }
        drop(state);
        cache.publish(last.revision);
    }

    fn progress(&self, revision: Revision) {
        let Some(cache) = self.0.upgrade() else { return };
        cache.write().versions.advance(revision);
        cache.publish(revision);
    }

    fn compact(&self, revision: Revision) {
        let Some(cache) = self.0.upgrade() else { return };
        let mut state = cache.write();
        state.versions.compact(revision);
        for entry in state.resources.values_mut() {
            entry.rings.forget(revision);
        }
    }
}
