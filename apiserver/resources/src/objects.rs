//! Reading other objects while a request is handled: the seam between the cache and what needs look-ups
//! (authorizers, admission, allocators), so that those are tested over a map.

use std::sync::Arc;

use futures::future::BoxFuture;
use machinery_api::error::ApiResult;
use machinery_api::{ApiError, StorageKey};
use serde_json::Value;

/// How a read of changes ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChangesRead {
    /// No object has the value of the field.
    Empty,
    /// All changes up to this revision were visited.
    UpTo(u64),
    /// The changes are not known back to the revision that was given, and none was visited: a list of all objects that is
    /// read from now on is complete up to this revision.
    Lost(u64),
}

/// The current objects, by resource. Stored rows only; values are in the stored version and carry their resourceVersion.
pub trait ObjectReader: Send + Sync {
    /// One object; `namespace` is empty for cluster-wide resources.
    fn get(&self, group: &str, plural: &str, namespace: &str, name: &str) -> Option<Arc<Value>>;

    /// The same for an object that nobody else will look up in this state: its parsed form is not kept for the next one.
    fn read_once(&self, group: &str, plural: &str, namespace: &str, name: &str) -> Option<Arc<Value>> {
        self.get(group, plural, namespace, name)
    }

    /// The resourceVersion of one object, without reading it.
    fn version(&self, group: &str, plural: &str, namespace: &str, name: &str) -> Option<u64> {
        let key = self.key(group, plural, namespace, name)?;
        self.at(&key).map(|(_, version)| version)
    }

    /// All objects of a resource, or those of one namespace, in key order.
    fn list(&self, group: &str, plural: &str, namespace: Option<&str>) -> Vec<Arc<Value>>;

    /// Namespace, name and resourceVersion of each object, in key order, without reading it: for indexes that read only
    /// what changed. Narrowed to a namespace, and to a value of a field that field selectors know.
    fn each(
        &self,
        group: &str,
        plural: &str,
        namespace: Option<&str>,
        field: Option<(&'static str, &str)>,
        visit: &mut dyn FnMut(&str, &str, u64),
    );

    /// Visits what changed after a revision among the objects with a value of an indexed field: namespace, name and
    /// resourceVersion, which is `None` where an object no longer has the value. An object may come more than once. For
    /// indexes that follow one value at the cost of its changes.
    fn field_changes(
        &self,
        group: &str,
        plural: &str,
        field: (&'static str, &str),
        after: u64,
        visit: &mut dyn FnMut(&str, &str, Option<u64>),
    ) -> ChangesRead;

    /// The revision at which the resource last changed: what is computed from a list may be kept until this moves.
    fn revision(&self, group: &str, plural: &str) -> u64;

    /// Where an object of a resource is stored, whether or not it is there.
    fn key(&self, group: &str, plural: &str, namespace: &str, name: &str) -> Option<StorageKey>;

    /// What is stored under a key, and since which revision: for reservations, which no resource serves.
    fn at(&self, key: &StorageKey) -> Option<(Arc<Value>, u64)>;

    /// The newest revision that is visible.
    fn now(&self) -> u64;

    /// Waits until anything changes after a revision.
    fn changed(&self, after: u64) -> BoxFuture<'_, ()>;

    /// Waits until everything is visible that was acknowledged to anybody, before somebody is turned away because something is
    /// not there; the error says why it can't be known. `None`: it is visible.
    fn newest(&self) -> Option<BoxFuture<'_, Result<(), String>>> {
        None
    }
}

/// Objects that are made when they are asked for, and stored nowhere: each with kind, apiVersion and metadata.
pub trait ObjectSource: Send + Sync + std::fmt::Debug {
    /// The one of a name; `namespace` is empty for cluster-wide resources.
    fn get<'a>(&'a self, namespace: &'a str, name: &'a str) -> BoxFuture<'a, Option<Value>>;

    /// All of them, or those of one namespace, in the order of their names.
    fn list<'a>(&'a self, namespace: Option<&'a str>) -> BoxFuture<'a, Vec<Value>>;

    /// What a 404 calls the resource, where it is not the plural.
    fn missing_as(&self) -> Option<&'static str> {
        None
    }

    /// A metric of the object of a namespace and name, or of all that labels choose (`*`).
    fn metric<'a>(
        &'a self,
        of: (&'a str, &'a str),
        metric: &'a str,
        labels: &'a str,
    ) -> BoxFuture<'a, ApiResult<Value>> {
        let _ = (of, metric, labels);
        Box::pin(async { Err(ApiError::NoSuchResource) })
    }
}

pub mod memory {
    //! The same over a map, for tests of what decides.

    use std::collections::BTreeMap;
    use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

    use serde_json::Value;

    use futures::future::BoxFuture;
    use machinery_api::{ObjectName, StorageKey};

    use super::{ChangesRead, ObjectReader};

    type Key = (String, String, String, String);

    /// Objects that a test put there.
    #[derive(Default)]
    pub struct Map {
        inner: Mutex<Inner>,
        reservations: Mutex<BTreeMap<StorageKey, Arc<Value>>>,
    }

    #[derive(Default)]
    struct Inner {
        /// Each with the revision of its last change.
        objects: BTreeMap<Key, (Arc<Value>, u64)>,
        /// Of each group and plural.
        revisions: BTreeMap<(String, String), u64>,
        /// All changes after `floor`, with what was there before.
        changes: Vec<(u64, Key, Option<Arc<Value>>)>,
        floor: u64,
        now: u64,
    }

    impl Inner {
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

    impl Map {
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

        /// Forgets which changes there were.
        pub fn lose_changes(&self) {
            let mut inner = lock(&self.inner);
            inner.changes.clear();
            inner.floor = inner.now;
        }
    }

    impl ObjectReader for Map {
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
