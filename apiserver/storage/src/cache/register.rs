//! Adds and removes resources at run time. Existing objects are indexed one slice at a time, so that a kind with many
//! objects blocks no write; removing a resource ends its watches.

use std::collections::HashMap;
use std::ops::Bound;
use std::sync::Arc;

use super::object::{Cached, Resource};
use super::{FillProgress, ResourceCache, SLICE_OBJECTS, WatchCache};
use crate::store::{Revision, prefix_end};

impl WatchCache {
    /// Adds a resource, or changes its extracted fields; returns when all objects below its prefix are indexed and
    /// counted. Events are available from this call on; watches of an existing resource continue.
    pub async fn register(&self, resource: Resource) {
        // Serialized: two calls for one prefix would fill the same index.
        let _guard = self.registering.lock().await;
        let prefix = resource.prefix.clone();
        self.start_recording(resource);
        while self.fill_slice(prefix.as_str()) {
            tokio::task::yield_now().await;
        }
    }

    /// Removes a resource: its watches end after the pending events. Stored objects are kept.
    pub async fn unregister(&self, prefix: &str) {
        let _guard = self.registering.lock().await;
        let entry = self.write().resources.remove(prefix);
        // Outside the lock: dropping a large index takes some time.
        if let Some(entry) = entry {
            entry.rings.close();
        }
    }

    /// Starts to record changes.
    fn start_recording(&self, resource: Resource) {
        let mut state = self.write();
        let mut entry = ResourceCache::new(resource, state.versions.revision());
        entry.filled = FillProgress::UpTo(None);
        let old = state.resources.remove(&entry.resource.prefix);
        if let Some(old) = old {
            entry.rings = old.rings;
            entry.changed = old.changed;
        }
        state.resources.insert(entry.resource.prefix.clone(), entry);
    }

    /// Fills one more slice of existing objects; returns false after the last.
    fn fill_slice(&self, prefix: &str) -> bool {
        let end = prefix_end(prefix);
        let (resource, from, slice) = {
            let state = self.read();
            let Some(entry) = state.resources.get(prefix) else { return false };
            let FillProgress::UpTo(from) = &entry.filled else { return false };
            let begin = from.as_deref().map_or(Bound::Included(prefix), Bound::Excluded);
            let range = state.versions.range(begin, Bound::Excluded(&end), state.versions.revision());
            let slice: Vec<Arc<Cached>> = range.take(SLICE_OBJECTS).map(|(_, _, cached)| cached.clone()).collect();
            (entry.resource.clone(), from.clone(), slice)
        };
        // Objects may have to be parsed, so not under the lock.
        let extracted_objects: HashMap<(&str, Revision), Arc<Cached>> = slice
            .iter()
            .map(|old| ((&*old.key, old.modified), Arc::new(old.extracted_by(resource.fields.clone()))))
            .collect();
        let last = slice.last().filter(|_| slice.len() == SLICE_OBJECTS).map(|cached| cached.key.clone());

        let mut state = self.write();
        let super::CacheState { versions, resources } = &mut *state;
        let Some(entry) = resources.get_mut(prefix) else { return false };
        let begin = from.as_deref().map_or(Bound::Included(prefix), Bound::Excluded);
        let to = last.as_deref().map_or(Bound::Excluded(&*end), Bound::Included);
        // The current state: objects may have changed since the slice was read.
        let now: Vec<Arc<Cached>> =
            versions.range(begin, to, versions.revision()).map(|(_, _, cached)| cached.clone()).collect();
        let revision = versions.revision();
        for cached in now {
            // A changed object was extracted when the change was applied.
            let extracted = extracted_objects.get(&(&*cached.key, cached.modified)).cloned().unwrap_or(cached);
            entry.index.add(&entry.resource, &extracted, revision);
            entry.counts.add(&entry.resource, &extracted.key);
            versions.replace_latest(&extracted.key.clone(), extracted);
        }
        let more = last.is_some();
        entry.filled = last.map_or(FillProgress::Done, |last| FillProgress::UpTo(Some(last)));
        more
    }
}
