//! The cache's end of the store's feed. Called by the store's writer: what is read out of objects is read before the cache's
//! lock is taken, which everybody's reads wait for.

use std::sync::{Arc, Weak};

use machinery_api::{StorageKey, StoragePrefix};

use super::object::Cached;
use super::{Inner, ResourceCache, Versions, WatchCache};
use crate::store::{Change, Entry, Revision, Sink};

/// See the module.
pub(super) struct Feed(Weak<WatchCache>);

impl Feed {
    /// Weak: the store must not keep the cache alive, which keeps the store.
    pub(super) fn of(cache: &Arc<WatchCache>) -> Self {
        Self(Arc::downgrade(cache))
    }
}

/// What a key's entry becomes in the cache, made before its lock is taken.
struct Made {
    /// The resource that it belonged to then.
    home: Option<StoragePrefix>,
    object: Option<Arc<Cached>>,
}

impl Made {
    fn of(cache: &WatchCache, key: &str, entry: Option<&Entry>) -> Self {
        let (home, fields) = cache.home(key).map_or((None, None), |(home, fields)| (Some(home), fields));
        Self { home, object: entry.map(|entry| Arc::new(Cached::new(entry, fields))) }
    }
}

impl Inner {
    fn apply(&mut self, change: &Change, made: Made) {
        let Made { home, object: mut new } = made;
        let known = home.as_ref().map(|home| home.as_str()).filter(|home| self.shelves.contains_key(*home));
        let search = || StorageKey::prefixes(&change.key).find(|prefix| self.shelves.contains_key(*prefix));
        let prefix = known.or_else(search);
        let mut shelf = prefix.and_then(|prefix| self.shelves.get_mut(prefix));
        if let (Some(shelf), Some(made)) = (&shelf, &new)
            && !made.is_extracted_by(&shelf.resource)
        {
            // Its resource came or changed just now.
            new = Some(Arc::new(made.extracted_by(shelf.resource.fields.clone())));
        }
        let old = self.versions.apply(change.revision, &change.key, new.clone()).map(|(_, cached)| cached);
        if let Some(shelf) = shelf.as_mut() {
            // What lies beyond is counted when it is taken in.
            let counted = shelf.filled.has(&change.key);
            match (&old, &new) {
                _ if !counted => {}
                (None, Some(_)) => shelf.counts.add(&shelf.resource, &change.key),
                (Some(_), None) => shelf.counts.remove(&shelf.resource, &change.key),
                _ => {}
            }
            shelf.index.change(&shelf.resource, (old.as_deref(), new.as_deref()), change.revision);
            shelf.record(change.revision, new, old);
        }
    }
}

impl Sink for Feed {
    fn start(&self, state: Vec<Entry>, revision: Revision) {
        let Some(cache) = self.0.upgrade() else { return };
        let state: Vec<Made> = state.iter().map(|entry| Made::of(&cache, &entry.key, Some(entry))).collect();
        let mut inner = cache.write();
        let Inner { versions, shelves } = &mut *inner;
        for shelf in shelves.values_mut() {
            *shelf = ResourceCache { changed: 0, ..ResourceCache::new(shelf.resource.clone(), revision) };
        }
        let state = state.into_iter().filter_map(|Made { home, object }| {
            let cached = object?;
            // It is fed once, before anybody can add a resource.
            if let Some(shelf) = home.and_then(|home| shelves.get_mut(&home)) {
                shelf.index.add(&shelf.resource, &cached, revision);
                shelf.counts.add(&shelf.resource, &cached.key);
                shelf.changed = shelf.changed.max(cached.modified);
            }
            Some((cached.key.clone(), cached.modified, cached))
        });
        *versions = Versions::filled(revision, state);
        drop(inner);
        cache.publish(revision);
    }

    fn commit(&self, changes: &[Change]) {
        let (Some(cache), Some(last)) = (self.0.upgrade(), changes.last()) else { return };
        let made: Vec<Made> =
            changes.iter().map(|change| Made::of(&cache, &change.key, change.entry.as_ref())).collect();
        let mut inner = cache.write();
        for (change, made) in changes.iter().zip(made) {
            inner.apply(change, made);
        }
        drop(inner);
        cache.publish(last.revision);
    }

    fn compact(&self, revision: Revision) {
        let Some(cache) = self.0.upgrade() else { return };
        let mut inner = cache.write();
        inner.versions.compact(revision);
        for shelf in inner.shelves.values_mut() {
            shelf.rings.forget(revision);
        }
    }
}
