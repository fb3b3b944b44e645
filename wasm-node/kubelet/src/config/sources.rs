//! The ConfigMaps and Secrets that pods reference: each is watched by name, once per node, while a pod needs it.
//!
//! The Node authorizer only allows reads of objects that the node's pods reference, so watches are by name. An
//! immutable object never changes for its holders; its watch only detects the deletion. Later callers then get a new
//! source for the same name.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use k8s_openapi::api::core::v1::{ConfigMap, Container, Secret, Volume};
use kube::Client;
use machinery_client::{Reflector, ReflectorEvent, Typed, typed};
use machinery_env::Env;
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::latest::Wake;

/// The kind of the object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SourceKind {
    /// A ConfigMap.
    ConfigMap,
    /// A Secret.
    Secret,
}

impl SourceKind {
    /// The lower-case word in "not found" messages.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::ConfigMap => "configmap",
            Self::Secret => "secret",
        }
    }

    /// The kind's name.
    #[must_use]
    pub fn kind(self) -> &'static str {
        match self {
            Self::ConfigMap => "ConfigMap",
            Self::Secret => "Secret",
        }
    }
}

/// The content of a ConfigMap or Secret.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Content {
    /// The data by key.
    pub data: BTreeMap<String, Vec<u8>>,
    /// The object is immutable.
    pub immutable: bool,
    /// The object's uid.
    pub uid: String,
    /// A Secret's type.
    pub secret_type: String,
}

/// The state of a source.
#[derive(Debug, Clone, PartialEq)]
pub enum SourceState {
    /// Not read yet.
    Unknown,
    /// The object can't be read.
    Failed(String),
    /// The object doesn't exist.
    Missing,
    /// The object's content.
    Present(Arc<Content>),
}

/// Wakers of workers: a worker needs no task per referenced object.
#[derive(Default)]
struct Wakers(Mutex<Vec<Weak<dyn Wake>>>);

impl Wakers {
    fn add(&self, waker: Weak<dyn Wake>) {
        let mut wakers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if wakers.len() == wakers.capacity() {
            wakers.retain(|waker| waker.strong_count() > 0);
        }
        wakers.push(waker);
    }

    fn wake(&self) {
        let wakers = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        wakers.iter().filter_map(Weak::upgrade).for_each(|waker| waker.wake());
    }
}

/// An object that is watched while this is held.
pub struct ConfigSource {
    /// The current state.
    pub known: watch::Receiver<SourceState>,
    wakers: Arc<Wakers>,
    _stop: DropGuard,
}

impl std::fmt::Debug for ConfigSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ConfigSource").field("known", &self.known).finish_non_exhaustive()
    }
}

impl ConfigSource {
    pub(crate) fn of(known: watch::Receiver<SourceState>, stop: CancellationToken) -> Self {
        Self { known, wakers: Arc::default(), _stop: stop.drop_guard() }
    }

    /// Rings the bell at each change.
    pub(crate) fn wake_on_change(&self, waker: Weak<dyn Wake>) {
        self.wakers.add(waker);
    }

    /// Waits for the first known state.
    pub async fn read(&self) -> SourceState {
        let mut known = self.known.clone();
        match known.wait_for(|known| *known != SourceState::Unknown).await {
            Ok(known) => known.clone(),
            Err(_) => SourceState::Failed("the node is being stopped".into()),
        }
    }
}

type Key = (SourceKind, String, String);
type SourceTable = Arc<Mutex<HashMap<Key, Weak<ConfigSource>>>>;

/// The entry of a source in the manager's table.
struct TableEntry {
    all: SourceTable,
    key: Key,
    source: Weak<ConfigSource>,
}

impl TableEntry {
    /// Removes the entry: the next caller gets a new source.
    fn remove(&self) {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        if all.get(&self.key).is_some_and(|known| known.ptr_eq(&self.source)) {
            all.remove(&self.key);
        }
    }
}

/// The sources of all pods of this node.
pub struct ConfigSourceManager {
    client: Client,
    env: Env,
    all: SourceTable,
    stop: CancellationToken,
}

impl std::fmt::Debug for ConfigSourceManager {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ConfigSourceManager").finish_non_exhaustive()
    }
}

impl ConfigSourceManager {
    /// A manager without any watch.
    #[must_use]
    pub fn new(client: Client, env: Env, stop: CancellationToken) -> Self {
        Self { client, env, all: SourceTable::default(), stop }
    }

    /// Returns the source of that object, and starts its watch if there is none.
    pub fn get(&self, kind: SourceKind, namespace: &str, name: &str) -> Arc<ConfigSource> {
        let key = (kind, namespace.to_owned(), name.to_owned());
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(source) = all.get(&key).and_then(Weak::upgrade) {
            return source;
        }
        all.retain(|_, source| source.strong_count() > 0);
        let (known, receiver) = watch::channel(SourceState::Unknown);
        let stop = self.stop.child_token();
        let source = Arc::new(ConfigSource::of(receiver, stop.clone()));
        let known = (known, source.wakers.clone());
        let entry = TableEntry { all: self.all.clone(), key: key.clone(), source: Arc::downgrade(&source) };
        let only = |reflector: Reflector| reflector.within(namespace).selecting(format!("metadata.name={name}"));
        match kind {
            SourceKind::ConfigMap => {
                let reflector = only(Reflector::of::<ConfigMap>(self.client.clone(), self.env.clone()));
                let read = |map: ConfigMap| Content {
                    data: map
                        .data
                        .unwrap_or_default()
                        .into_iter()
                        .map(|(key, text)| (key, text.into_bytes()))
                        .chain(map.binary_data.unwrap_or_default().into_iter().map(|(key, bytes)| (key, bytes.0)))
                        .collect(),
                    immutable: map.immutable == Some(true),
                    uid: map.metadata.uid.unwrap_or_default(),
                    secret_type: String::new(),
                };
                tokio::spawn(watch_source(reflector, known, read, entry, stop.clone()));
            }
            SourceKind::Secret => {
                let reflector = only(Reflector::of::<Secret>(self.client.clone(), self.env.clone()));
                let read = |secret: Secret| Content {
                    data: secret.data.unwrap_or_default().into_iter().map(|(key, bytes)| (key, bytes.0)).collect(),
                    immutable: secret.immutable == Some(true),
                    uid: secret.metadata.uid.unwrap_or_default(),
                    secret_type: secret.type_.unwrap_or_default(),
                };
                tokio::spawn(watch_source(reflector, known, read, entry, stop.clone()));
            }
        }
        all.insert(key, Arc::downgrade(&source));
        source
    }
}

async fn watch_source<K: Typed>(
    reflector: Reflector,
    (known, wakers): (watch::Sender<SourceState>, Arc<Wakers>),
    read: impl Fn(K) -> Content + Send,
    entry: TableEntry,
    stop: CancellationToken,
) {
    let mut events = reflector.events();
    // The uid of an immutable object, once it is read.
    let mut immutable_uid: Option<String> = None;
    loop {
        let event = tokio::select! {
            () = stop.cancelled() => return,
            event = events.next() => event,
        };
        let object = match event {
            ReflectorEvent::Replaced(objects, _) => objects.into_iter().next(),
            ReflectorEvent::Applied(object) => Some(object),
            ReflectorEvent::Deleted(_) => None,
            ReflectorEvent::Progress(_) => continue,
            ReflectorEvent::Interrupted(error) => {
                let failed = known.send_if_modified(|known| {
                    let unknown = matches!(known, SourceState::Unknown | SourceState::Failed(_));
                    if unknown {
                        *known = SourceState::Failed(error);
                    }
                    unknown
                });
                if failed {
                    wakers.wake();
                }
                continue;
            }
        };
        if let Some(uid) = &immutable_uid {
            if object.is_some_and(|object| object.metadata().uid.as_ref() == Some(uid)) {
                continue;
            }
            entry.remove();
            // The holders keep the content; the sender has to live as long as they do.
            stop.cancelled().await;
            return;
        }
        let content = object.and_then(|object| typed::<K>(&*object).cloned()).map(&read);
        let is = content.map_or(SourceState::Missing, |content| SourceState::Present(Arc::new(content)));
        if let SourceState::Present(content) = &is {
            immutable_uid = content.immutable.then(|| content.uid.clone());
        }
        let changed = known.send_if_modified(|known| {
            let changed = *known != is;
            *known = is;
            changed
        });
        if changed {
            wakers.wake();
        }
    }
}

/// All ConfigMaps and Secrets that volumes reference, in order.
#[must_use]
pub fn named_by_volumes(volumes: &[Volume]) -> Vec<(SourceKind, String)> {
    let mut names = BTreeSet::new();
    for volume in volumes {
        if let Some(map) = &volume.config_map {
            names.insert((SourceKind::ConfigMap, map.name.clone()));
        }
        if let Some(name) = volume.secret.as_ref().and_then(|secret| secret.secret_name.clone()) {
            names.insert((SourceKind::Secret, name));
        }
        for source in volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten()) {
            if let Some(map) = &source.config_map {
                names.insert((SourceKind::ConfigMap, map.name.clone()));
            }
            if let Some(secret) = &source.secret {
                names.insert((SourceKind::Secret, secret.name.clone()));
            }
        }
    }
    names.into_iter().collect()
}

/// All ConfigMaps and Secrets that a container's environment references, in order.
#[must_use]
pub fn named_by_environment(container: &Container) -> Vec<(SourceKind, String)> {
    let mut names = BTreeSet::new();
    for from in container.env_from.iter().flatten() {
        if let Some(map) = &from.config_map_ref {
            names.insert((SourceKind::ConfigMap, map.name.clone()));
        }
        if let Some(secret) = &from.secret_ref {
            names.insert((SourceKind::Secret, secret.name.clone()));
        }
    }
    for from in container.env.iter().flatten().filter_map(|variable| variable.value_from.as_ref()) {
        if let Some(map) = &from.config_map_key_ref {
            names.insert((SourceKind::ConfigMap, map.name.clone()));
        }
        if let Some(secret) = &from.secret_key_ref {
            names.insert((SourceKind::Secret, secret.name.clone()));
        }
    }
    names.into_iter().collect()
}
