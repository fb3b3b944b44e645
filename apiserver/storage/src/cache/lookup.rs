//! [`ObjectReader`] over the watch cache (a lister): authorizers, admission and allocators read other objects through
//! it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use futures::future::BoxFuture;
use machinery_api::selector::FieldRequirement;
use machinery_api::{ObjectName, StorageKey, StoragePrefix, StorageScope};
use serde_json::Value;

use super::{Cached, FieldChanges, Selectors, WatchCache};
use apiserver_resources::objects::{ChangesRead, ObjectReader};

/// The stored size of the objects whose parsed form is cached for later lookups; the parsed form is about five times as
/// large.
const PARSED_BYTES_MAX: usize = 1024 * 1024;

type Prefix = dyn Fn(&str, &str) -> Option<StoragePrefix> + Send + Sync;

/// Looks up objects in the watch cache.
pub struct Lookup {
    cache: Arc<WatchCache>,
    /// The storage prefix of a group and plural.
    prefix: Box<Prefix>,
    parsed: Mutex<ParsedObjects>,
}

#[derive(Default)]
struct ParsedObjects {
    values: VecDeque<(usize, Arc<Value>)>,
    bytes: usize,
}

impl Lookup {
    /// Looks up objects in `cache`; `prefix` gives the storage prefix of a group and plural.
    pub fn new(
        cache: Arc<WatchCache>,
        prefix: impl Fn(&str, &str) -> Option<StoragePrefix> + Send + Sync + 'static,
    ) -> Self {
        Self { cache, prefix: Box::new(prefix), parsed: Mutex::default() }
    }

    /// The key range of a resource, or of one namespace.
    fn scope(&self, group: &str, plural: &str, namespace: Option<&str>) -> Option<StorageScope> {
        let prefix = (self.prefix)(group, plural)?;
        Some(namespace.map_or_else(|| prefix.all(), |namespace| prefix.namespace(namespace)))
    }

    fn parsed(&self, object: &Cached) -> Arc<Value> {
        let value = object.shared();
        // A value that others hold is cached already.
        if Arc::strong_count(&value) == 1 {
            let mut parsed = self.parsed.lock().unwrap_or_else(PoisonError::into_inner);
            parsed.bytes += object.stored_len();
            parsed.values.push_back((object.stored_len(), value.clone()));
            while parsed.bytes > PARSED_BYTES_MAX {
                let Some((bytes, _)) = parsed.values.pop_front() else { break };
                parsed.bytes -= bytes;
            }
        }
        value
    }
}

impl ObjectReader for Lookup {
    fn get(&self, group: &str, plural: &str, namespace: &str, name: &str) -> Option<Arc<Value>> {
        let key = self.key(group, plural, namespace, name)?;
        self.cache.get(key.as_str()).map(|object| self.parsed(&object))
    }

    fn get_uncached(&self, group: &str, plural: &str, namespace: &str, name: &str) -> Option<Arc<Value>> {
        let key = self.key(group, plural, namespace, name)?;
        self.cache.get(key.as_str()).map(|object| object.shared())
    }

    fn version(&self, group: &str, plural: &str, namespace: &str, name: &str) -> Option<u64> {
        let key = self.key(group, plural, namespace, name)?;
        self.cache.get(key.as_str()).map(|object| object.modified)
    }

    fn list(&self, group: &str, plural: &str, namespace: Option<&str>) -> Vec<Arc<Value>> {
        let Some(scope) = self.scope(group, plural, namespace) else { return Vec::new() };
        // The newest revision can always be read.
        let page = self.cache.list(scope.as_str(), None, None, 0, &Selectors::default());
        page.map(|page| page.items.iter().map(|object| self.parsed(object)).collect()).unwrap_or_default()
    }

    fn each(
        &self,
        group: &str,
        plural: &str,
        namespace: Option<&str>,
        field: Option<(&'static str, &str)>,
        visit: &mut dyn FnMut(&str, &str, u64),
    ) {
        let Some(scope) = self.scope(group, plural, namespace) else { return };
        let fields = field.map(|(field, value)| FieldRequirement::equals(field, value).into());
        let filter = Selectors { fields: fields.unwrap_or_default(), ..Selectors::default() };
        if let Ok(page) = self.cache.list(scope.as_str(), None, None, 0, &filter) {
            for object in &page.items {
                let ObjectName { namespace, name } = object.object_name();
                visit(namespace, name, object.modified);
            }
        }
    }

    fn field_changes(
        &self,
        group: &str,
        plural: &str,
        field: (&'static str, &str),
        after: u64,
        visit: &mut dyn FnMut(&str, &str, Option<u64>),
    ) -> ChangesRead {
        let Some(prefix) = (self.prefix)(group, plural) else { return ChangesRead::Empty };
        match self.cache.field_changes(prefix.as_str(), field, after) {
            FieldChanges::Empty => ChangesRead::Empty,
            FieldChanges::Lost(revision) => ChangesRead::Lost(revision),
            FieldChanges::Since(revision, changes) => {
                for (key, version) in &changes {
                    if let Some(ObjectName { namespace, name }) = prefix.name_of(key) {
                        visit(namespace, name, *version);
                    }
                }
                ChangesRead::UpTo(revision)
            }
        }
    }

    fn revision(&self, group: &str, plural: &str) -> u64 {
        (self.prefix)(group, plural).map_or(0, |prefix| self.cache.resource_revision(prefix.as_str()))
    }

    fn key(&self, group: &str, plural: &str, namespace: &str, name: &str) -> Option<StorageKey> {
        Some((self.prefix)(group, plural)?.object(ObjectName::new(namespace, name)))
    }

    fn at(&self, key: &StorageKey) -> Option<(Arc<Value>, u64)> {
        self.cache.get(key.as_str()).map(|object| (object.shared(), object.modified))
    }

    fn now(&self) -> u64 {
        self.cache.revision()
    }

    fn changed(&self, after: u64) -> BoxFuture<'_, ()> {
        Box::pin(self.cache.changed(after))
    }

    fn newest(&self) -> Option<BoxFuture<'_, Result<(), String>>> {
        if self.cache.is_current() {
            return None;
        }
        Some(Box::pin(async { self.cache.sync().await.map_err(|error| error.to_string()) }))
    }
}
