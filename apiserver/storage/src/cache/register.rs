//! Resources come and go while the cache is used: what is there already is taken in a slice at a time, so that adding a
//! kind with many objects holds up no write; a resource that goes ends its watches.

use std::collections::HashMap;
use std::ops::Bound;
use std::sync::Arc;

use super::object::{Cached, Resource};
use super::{Filled, ResourceCache, SLICE_OBJECTS, WatchCache};
use crate::store::{Revision, prefix_end};

impl WatchCache {
    /// Adds a resource, or changes what is extracted of its objects; returns when all that is stored below its prefix can be
    /// listed by index and counted. Events reach back to this call only; watches on a resource that was there before go on.
    pub async fn register(&self, resource: Resource) {
        // One at a time: two of the same prefix would fill one shelf from two ends.
        let _only = self.registering.lock().await;
        let prefix = resource.prefix.clone();
        self.put_up(resource);
        while self.fill(prefix.as_str()) {
            tokio::task::yield_now().await;
        }
    }

    /// Removes a resource: its watches end when they have shown what happened before. What is stored stays.
    pub async fn unregister(&self, prefix: &str) {
        let _only = self.registering.lock().await;
        let shelf = self.write().shelves.remove(prefix);
        // Outside the lock: an index of many objects takes a while to free.
        if let Some(shelf) = shelf {
            shelf.rings.close();
        }
    }

    /// From now on, changes are recorded.
    fn put_up(&self, resource: Resource) {
        let mut inner = self.write();
        let mut shelf = ResourceCache::new(resource, inner.versions.revision());
        shelf.filled = Filled::UpTo(None);
        let old = inner.shelves.remove(&shelf.resource.prefix);
        if let Some(old) = old {
            shelf.rings = old.rings;
            shelf.changed = old.changed;
        }
        inner.shelves.insert(shelf.resource.prefix.clone(), shelf);
    }

    /// Takes in one more slice of what is there; false: that was the last.
    fn fill(&self, prefix: &str) -> bool {
        let end = prefix_end(prefix);
        let (resource, from, slice) = {
            let inner = self.read();
            let Some(shelf) = inner.shelves.get(prefix) else { return false };
            let Filled::UpTo(from) = &shelf.filled else { return false };
            let begin = from.as_deref().map_or(Bound::Included(prefix), Bound::Excluded);
            let range = inner.versions.range(begin, Bound::Excluded(&end), inner.versions.revision());
            let slice: Vec<Arc<Cached>> = range.take(SLICE_OBJECTS).map(|(_, _, cached)| cached.clone()).collect();
            (shelf.resource.clone(), from.clone(), slice)
        };
        // Objects may have to be parsed for that: not under the lock.
        let ready: HashMap<(&str, Revision), Arc<Cached>> = slice
            .iter()
            .map(|old| ((&*old.key, old.modified), Arc::new(old.extracted_by(resource.fields.clone()))))
            .collect();
        let last = slice.last().filter(|_| slice.len() == SLICE_OBJECTS).map(|cached| cached.key.clone());

        let mut inner = self.write();
        let super::Inner { versions, shelves } = &mut *inner;
        let Some(shelf) = shelves.get_mut(prefix) else { return false };
        let begin = from.as_deref().map_or(Bound::Included(prefix), Bound::Excluded);
        let to = last.as_deref().map_or(Bound::Excluded(&*end), Bound::Included);
        // As it is now: some of it may have changed since it was read.
        let now: Vec<Arc<Cached>> =
            versions.range(begin, to, versions.revision()).map(|(_, _, cached)| cached.clone()).collect();
        let revision = versions.revision();
        for cached in now {
            // What changed since was applied with the resource as it is.
            let extracted = ready.get(&(&*cached.key, cached.modified)).cloned().unwrap_or(cached);
            shelf.index.add(&shelf.resource, &extracted, revision);
            shelf.counts.add(&shelf.resource, &extracted.key);
            versions.replace_latest(&extracted.key.clone(), extracted);
        }
        let more = last.is_some();
        shelf.filled = last.map_or(Filled::Whole, |last| Filled::UpTo(Some(last)));
        more
    }
}
