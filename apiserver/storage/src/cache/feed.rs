//! The cache's end of the store's feed. Called by the store's writer: what is read out of objects is read before the cache's
//! lock is taken, which everybody's reads wait for.

use std::sync::{Arc, Weak};

use machinery_api::StorageKey;

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

impl Inner {
    /// `new`: what the change makes of the object.
    fn apply(&mut self, change: &Change, mut new: Option<Arc<Cached>>) {
        let prefix = StorageKey::prefixes(&change.key).find(|prefix| self.shelves.contains_key(*prefix));
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
            let same = |(old, new): (&Arc<Cached>, &Arc<Cached>)| shelf.resource.indexes_alike(old, new);
            if !old.as_ref().zip(new.as_ref()).is_some_and(same) {
                if let Some(old) = &old {
                    shelf.index.remove(&shelf.resource, old);
                }
                if let Some(new) = &new {
                    shelf.index.add(&shelf.resource, new);
                }
            }
            shelf.record(change.revision, new, old);
        }
    }
}

impl Sink for Feed {
    fn start(&self, state: Vec<Entry>, revision: Revision) {
        let Some(cache) = self.0.upgrade() else { return };
        let state: Vec<Arc<Cached>> =
            state.iter().map(|entry| Arc::new(Cached::new(entry, cache.fields(&entry.key)))).collect();
        let mut inner = cache.write();
        let Inner { versions, shelves } = &mut *inner;
        for shelf in shelves.values_mut() {
            *shelf = ResourceCache { changed: 0, ..ResourceCache::new(shelf.resource.clone(), revision) };
        }
        let state = state.into_iter().map(|cached| {
            let prefix = StorageKey::prefixes(&cached.key).find(|prefix| shelves.contains_key(*prefix));
            if let Some(shelf) = prefix.and_then(|prefix| shelves.get_mut(prefix)) {
                shelf.index.add(&shelf.resource, &cached);
                shelf.counts.add(&shelf.resource, &cached.key);
                shelf.changed = shelf.changed.max(cached.modified);
            }
            (cached.key.clone(), cached.modified, cached)
        });
        *versions = Versions::filled(revision, state);
        drop(inner);
        cache.publish(revision);
    }

    fn commit(&self, changes: &[Change]) {
        let (Some(cache), Some(last)) = (self.0.upgrade(), changes.last()) else { return };
        let made = |change: &Change| {
            change.entry.as_ref().map(|entry| Arc::new(Cached::new(entry, cache.fields(&change.key))))
        };
        let made: Vec<Option<Arc<Cached>>> = changes.iter().map(made).collect();
        let mut inner = cache.write();
        for (change, new) in changes.iter().zip(made) {
            inner.apply(change, new);
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
