//! Reads of other objects during a request: the interface between the cache and its readers (authorizers, admission,
//! allocators), so that tests run them over a map.

use std::sync::Arc;

use futures::future::BoxFuture;
use machinery_api::error::ApiResult;
use machinery_api::{ApiError, StorageKey};
use serde_json::Value;

/// The result of a read of changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChangesRead {
    /// No object has the value of the field.
    Empty,
    /// All changes up to this revision were visited.
    UpTo(u64),
    /// The changes since the given revision are no longer known, and none was visited. A list that is read from now
    /// on is complete up to this revision.
    Lost(u64),
}

/// The current objects, by resource. Stored rows only; values have the stored version and their resourceVersion.
pub trait ObjectReader: Send + Sync {
    /// One object; `namespace` is empty for cluster-wide resources.
    fn get(&self, group: &str, plural: &str, namespace: &str, name: &str) -> Option<Arc<Value>>;

    /// As [`get`](Self::get), without caching the parsed form: for an object that is read once per revision.
    fn get_uncached(&self, group: &str, plural: &str, namespace: &str, name: &str) -> Option<Arc<Value>> {
        self.get(group, plural, namespace, name)
    }

    /// The resourceVersion of one object, without reading it.
    fn version(&self, group: &str, plural: &str, namespace: &str, name: &str) -> Option<u64> {
        let key = self.key(group, plural, namespace, name)?;
        self.at(&key).map(|(_, version)| version)
    }

    /// All objects of a resource, or those of one namespace, in key order.
    fn list(&self, group: &str, plural: &str, namespace: Option<&str>) -> Vec<Arc<Value>>;

    /// Namespace, name and resourceVersion of each object, in key order, without parsing it: for indexes that read
    /// only changed objects. Filtered by a namespace, and by the value of an indexed field.
    fn each(
        &self,
        group: &str,
        plural: &str,
        namespace: Option<&str>,
        field: Option<(&'static str, &str)>,
        visit: &mut dyn FnMut(&str, &str, u64),
    );

    /// Visits the changes after a revision among the objects with a value of an indexed field: namespace, name and
    /// resourceVersion, which is `None` if the object no longer has the value. Objects may repeat. For indexes that
    /// follow one value at the cost of its changes.
    fn field_changes(
        &self,
        group: &str,
        plural: &str,
        field: (&'static str, &str),
        after: u64,
        visit: &mut dyn FnMut(&str, &str, Option<u64>),
    ) -> ChangesRead;

    /// The revision of the resource's last change: values computed from a list are valid until it increases.
    fn revision(&self, group: &str, plural: &str) -> u64;

    /// The storage key of an object, whether or not it exists.
    fn key(&self, group: &str, plural: &str, namespace: &str, name: &str) -> Option<StorageKey>;

    /// The value of a key and its revision: for reservations, which no resource serves.
    fn at(&self, key: &StorageKey) -> Option<(Arc<Value>, u64)>;

    /// The latest visible revision.
    fn now(&self) -> u64;

    /// Waits for any change after a revision.
    fn changed(&self, after: u64) -> BoxFuture<'_, ()>;

    /// Waits until every acknowledged write is visible, before a request is rejected because an object is missing.
    /// The error says why the latest revision is unknown. `None`: everything is visible.
    fn newest(&self) -> Option<BoxFuture<'_, Result<(), String>>> {
        None
    }
}

/// Label selectors of a request for a metric.
#[derive(Debug, Clone, Copy, Default)]
pub struct MetricSelectors<'a> {
    /// `labelSelector`: of the objects.
    pub objects: &'a str,
    /// `metricLabelSelector`: of the metric's own labels.
    pub metric: &'a str,
}

/// Objects that are computed on request and never stored: each with kind, apiVersion and metadata.
pub trait ObjectSource: Send + Sync + std::fmt::Debug {
    /// The object with a name; `namespace` is empty for cluster-wide resources.
    fn get<'a>(&'a self, namespace: &'a str, name: &'a str) -> BoxFuture<'a, Option<Value>>;

    /// All objects, or those of one namespace, ordered by name.
    fn list<'a>(&'a self, namespace: Option<&'a str>) -> BoxFuture<'a, Vec<Value>>;

    /// The resource's name in a 404, if it is not the plural.
    fn not_found_name(&self) -> Option<&'static str> {
        None
    }

    /// A metric of the object with a namespace and name, or of all that a selector chooses (`*`).
    fn metric<'a>(
        &'a self,
        of: (&'a str, &'a str),
        metric: &'a str,
        selectors: MetricSelectors<'a>,
    ) -> BoxFuture<'a, ApiResult<Value>> {
        let _ = (of, metric, selectors);
        Box::pin(async { Err(ApiError::NoSuchResource) })
    }
}

pub mod memory {
    //! An implementation over a map, for tests.

    use std::collections::BTreeMap;
    use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

    use serde_json::Value;

    use futures::future::BoxFuture;
    use machinery_api::{ObjectName, StorageKey};

    use super::{ChangesRead, ObjectReader};

    type Key = (String, String, String, String);

    /// The objects of a test.
    #[derive(Default)]
    pub struct MemoryObjects {
        inner: Mutex<MemoryState>,
        reservations: Mutex<BTreeMap<StorageKey, Arc<Value>>>,
    }

    #[derive(Default)]
    struct MemoryState {
        /// Each with the revision of its last change.
        objects: BTreeMap<Key, (Arc<Value>, u64)>,
        /// The revision of the last change, by group and plural.
        revisions: BTreeMap<(String, String), u64>,
        /// All changes after `floor`, with the previous objects.
        changes: Vec<(u64, Key, Option<Arc<Value>>)>,
        floor: u64,
        now: u64,
    }

    impl MemoryState {
        fn change(&mut self, key: Key, object: Option<Value>) {
            self.now += 1;
            self.revisions.insert((key.0.clone(), key.1.clone()), self.now);
            let before = match object {
                Some(object) => self.objects.insert(key.clone(), (Arc::new(object), self.now)),
                None => self.objects.remove(&key),
            };
            self.changes.push((self.now, key, before.map(|(object, _)| object)));
        }
    }

    fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
        mutex.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn has(object: &Value, (field, value): (&str, &str)) -> bool {
        object.pointer(&format!("/{}", field.replace('.', "/"))).and_then(Value::as_str) == Some(value)
    }

    impl MemoryObjects {
        /// Adds or replaces an object by its metadata.
        pub fn put(&self, group: &str, plural: &str, object: Value) {
            let part = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
            let key = (group.into(), plural.into(), part("namespace"), part("name"));
            lock(&self.inner).change(key, Some(object));
        }

        /// Adds or removes (`None`) a reservation.
        pub fn reserve(&self, key: StorageKey, holder: Option<Value>) {
            let mut reservations = lock(&self.reservations);
            match holder {
                Some(holder) => drop(reservations.insert(key, Arc::new(holder))),
                None => drop(reservations.remove(&key)),
            }
        }

        /// Removes an object.
        pub fn remove(&self, group: &str, plural: &str, namespace: &str, name: &str) {
            lock(&self.inner).change((group.into(), plural.into(), namespace.into(), name.into()), None);
        }

        /// Compacts the history of changes.
        pub fn compact_history(&self) {
            let mut inner = lock(&self.inner);
            inner.changes.clear();
            inner.floor = inner.now;
        }
    }

    impl ObjectReader for MemoryObjects {
        fn get(&self, group: &str, plural: &str, namespace: &str, name: &str) -> Option<Arc<Value>> {
            let key = (group.into(), plural.into(), namespace.into(), name.into());
            lock(&self.inner).objects.get(&key).map(|(object, _)| object.clone())
        }

        fn version(&self, group: &str, plural: &str, namespace: &str, name: &str) -> Option<u64> {
            let key = (group.into(), plural.into(), namespace.into(), name.into());
            lock(&self.inner).objects.get(&key).map(|(_, version)| *version)
        }

        fn list(&self, group: &str, plural: &str, namespace: Option<&str>) -> Vec<Arc<Value>> {
            let inner = lock(&self.inner);
            let mine = inner.objects.iter().filter(|((g, p, n, _), _)| {
                g == group && p == plural && namespace.is_none_or(|namespace| n == namespace)
            });
            mine.map(|(_, (object, _))| object.clone()).collect()
        }

        fn each(
            &self,
            group: &str,
            plural: &str,
            namespace: Option<&str>,
            field: Option<(&'static str, &str)>,
            visit: &mut dyn FnMut(&str, &str, u64),
        ) {
            let mut selected = Vec::new();
            for ((g, p, n, name), (object, version)) in &lock(&self.inner).objects {
                let listed = g == group && p == plural && namespace.is_none_or(|namespace| n == namespace);
                if listed && field.is_none_or(|field| has(object, field)) {
                    selected.push((n.clone(), name.clone(), *version));
                }
            }
            selected.iter().for_each(|(namespace, name, version)| visit(namespace, name, *version));
        }

        fn field_changes(
            &self,
            group: &str,
            plural: &str,
            field: (&'static str, &str),
            after: u64,
            visit: &mut dyn FnMut(&str, &str, Option<u64>),
        ) -> ChangesRead {
            let inner = lock(&self.inner);
            let mut all = inner.objects.iter().filter(|((g, p, ..), _)| g == group && p == plural);
            if !all.any(|(_, (object, _))| has(object, field)) {
                return ChangesRead::Empty;
            }
            if after < inner.floor {
                return ChangesRead::Lost(inner.now);
            }
            let changes = inner.changes.iter().filter(|(at, (g, p, ..), _)| *at > after && g == group && p == plural);
            let mut changed = Vec::new();
            for (_, key, before) in changes {
                let version = inner.objects.get(key).filter(|(object, _)| has(object, field)).map(|(_, at)| *at);
                if version.is_some() || before.as_ref().is_some_and(|before| has(before, field)) {
                    changed.push((key.2.clone(), key.3.clone(), version));
                }
            }
            let now = inner.now;
            drop(inner);
            changed.iter().for_each(|(namespace, name, version)| visit(namespace, name, *version));
            ChangesRead::UpTo(now)
        }

        fn revision(&self, group: &str, plural: &str) -> u64 {
            lock(&self.inner).revisions.get(&(group.into(), plural.into())).copied().unwrap_or_default()
        }

        fn key(&self, _: &str, plural: &str, namespace: &str, name: &str) -> Option<StorageKey> {
            Some(StorageKey::object(plural, ObjectName::new(namespace, name)))
        }

        fn at(&self, key: &StorageKey) -> Option<(Arc<Value>, u64)> {
            lock(&self.reservations).get(key).cloned().map(|holder| (holder, 1))
        }

        fn now(&self) -> u64 {
            lock(&self.inner).now
        }

        fn changed(&self, after: u64) -> BoxFuture<'_, ()> {
            Box::pin(async move {
                futures::future::poll_fn(|context| {
                    if self.now() > after {
                        return std::task::Poll::Ready(());
                    }
                    context.waker().wake_by_ref();
                    std::task::Poll::Pending
                })
                .await;
            })
        }
    }
}
