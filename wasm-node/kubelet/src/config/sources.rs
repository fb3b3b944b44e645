//! The ConfigMaps and Secrets that pods reference: each is watched by name, once per node, while a pod needs it.
//!
//! The Node authorizer only allows reads of objects that the node's pods reference, so watches are by name. An
//! immutable object never changes for its holders; its watch only detects the deletion. Later callers then get a new
//! source for the same name.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use k8s_openapi::api::core::v1::{ConfigMap, Container, Secret, Volume};
use kube::Client;
use machinery_client::{Reflector, ReflectorEvent, Typed, typed};
use machinery_env::{Deadline, Env};
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::checkpoint::Checkpoint;
use crate::latest::Wake;
pub use crate::spec::referred::{Content, SourceKind};

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
    /// Whether no newer source has the entry's name.
    fn is_last(&self) -> bool {
        let all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(&self.key).is_none_or(|known| known.ptr_eq(&self.source))
    }

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
    checkpoint: Checkpoint,
    /// Until when the API's answer is awaited before the checkpoint's content is used.
    api_wait: Deadline,
    stop: CancellationToken,
}

impl std::fmt::Debug for ConfigSourceManager {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ConfigSourceManager").finish_non_exhaustive()
    }
}

impl ConfigSourceManager {
    /// A manager without any watch and without a checkpoint.
    #[must_use]
    pub fn new(client: Client, env: Env, stop: CancellationToken) -> Self {
        let api_wait = env.deadline(Duration::ZERO);
        Self { client, env, all: SourceTable::default(), checkpoint: Checkpoint::default(), api_wait, stop }
    }

    /// Records the objects' contents in a checkpoint, and uses those of the earlier run while the API doesn't answer.
    pub(crate) fn with_checkpoint(self, checkpoint: Checkpoint, api_wait: Deadline) -> Self {
        Self { checkpoint, api_wait, ..self }
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
        let kept = KeptContent {
            checkpoint: self.checkpoint.clone(),
            env: self.env.clone(),
            api_wait: self.api_wait,
            key: key.clone(),
            node_stop: self.stop.clone(),
        };
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
                tokio::spawn(watch_source(reflector, known, read, (entry, kept), stop.clone()));
            }
            SourceKind::Secret => {
                let reflector = only(Reflector::of::<Secret>(self.client.clone(), self.env.clone()));
                let read = |secret: Secret| Content {
                    data: secret.data.unwrap_or_default().into_iter().map(|(key, bytes)| (key, bytes.0)).collect(),
                    immutable: secret.immutable == Some(true),
                    uid: secret.metadata.uid.unwrap_or_default(),
                    secret_type: secret.type_.unwrap_or_default(),
                };
                tokio::spawn(watch_source(reflector, known, read, (entry, kept), stop.clone()));
            }
        }
        all.insert(key, Arc::downgrade(&source));
        source
    }
}

/// A source's content in the node's checkpoint.
struct KeptContent {
    checkpoint: Checkpoint,
    env: Env,
    api_wait: Deadline,
    key: Key,
    node_stop: CancellationToken,
}

impl KeptContent {
    /// The content of the agent's earlier run.
    fn earlier(&self) -> Option<SourceState> {
        let (kind, namespace, name) = &self.key;
        self.checkpoint.source(*kind, namespace, name).map(SourceState::Present)
    }

    fn set(&self, state: &SourceState) {
        let (kind, namespace, name) = &self.key;
        let content = if let SourceState::Present(content) = state { Some(content.clone()) } else { None };
        self.checkpoint.set_source(*kind, namespace, name, content);
    }

    /// Waits until the source has no holder, and removes its content, unless the node stops.
    async fn remove_after(&self, stop: &CancellationToken, entry: &TableEntry) {
        stop.cancelled().await;
        if !self.node_stop.is_cancelled() && entry.is_last() {
            let (kind, namespace, name) = &self.key;
            self.checkpoint.set_source(*kind, namespace, name, None);
        }
    }
}

/// Sets the state, and wakes the holders if it has changed.
fn publish((known, wakers): &(watch::Sender<SourceState>, Arc<Wakers>), state: SourceState) {
    let changed = known.send_if_modified(|known| {
        let changed = *known != state;
        *known = state;
        changed
    });
    if changed {
        wakers.wake();
    }
}

/// Watches the object while its source is held.
async fn watch_source<K: Typed>(
    reflector: Reflector,
    known: (watch::Sender<SourceState>, Arc<Wakers>),
    read: impl Fn(K) -> Content + Send,
    (entry, kept): (TableEntry, KeptContent),
    stop: CancellationToken,
) {
    tokio::select! {
        () = kept.remove_after(&stop, &entry) => {}
        () = follow_source(reflector, &known, read, &entry, &kept) => kept.remove_after(&stop, &entry).await,
    }
}

/// Publishes the object's states. Returns once an immutable object was deleted.
async fn follow_source<K: Typed>(
    reflector: Reflector,
    known: &(watch::Sender<SourceState>, Arc<Wakers>),
    read: impl Fn(K) -> Content + Send,
    entry: &TableEntry,
    kept: &KeptContent,
) {
    let mut events = reflector.events();
    // The uid of an immutable object, once it is read.
    let mut immutable_uid: Option<String> = None;
    let mut earlier = kept.earlier();
    loop {
        let event = tokio::select! {
            event = events.next() => event,
            () = kept.env.sleep_until(kept.api_wait), if earlier.is_some() => ReflectorEvent::Interrupted(String::new()),
        };
        let object = match event {
            ReflectorEvent::Replaced(objects, _) => objects.into_iter().next(),
            ReflectorEvent::Applied(object) => Some(object),
            ReflectorEvent::Deleted(_) => None,
            ReflectorEvent::Progress(_) => continue,
            ReflectorEvent::Interrupted(error) => {
                if matches!(&*known.0.borrow(), SourceState::Unknown | SourceState::Failed(_)) {
                    let state = earlier.take().unwrap_or(SourceState::Failed(error));
                    immutable_uid = immutable_uid_of(&state);
                    publish(known, state);
                }
                continue;
            }
        };
        earlier = None;
        if let Some(uid) = &immutable_uid {
            if object.is_some_and(|object| object.metadata().uid.as_ref() == Some(uid)) {
                continue;
            }
            // The holders keep the content; the sender has to live as long as they do.
            entry.remove();
            return;
        }
        let content = object.and_then(|object| typed::<K>(&*object).cloned()).map(&read);
        let is = content.map_or(SourceState::Missing, |content| SourceState::Present(Arc::new(content)));
        immutable_uid = immutable_uid_of(&is);
        if *known.0.borrow() != is {
            kept.set(&is);
        }
        publish(known, is);
    }
}

fn immutable_uid_of(state: &SourceState) -> Option<String> {
    let SourceState::Present(content) = state else { return None };
    content.immutable.then(|| content.uid.clone())
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
