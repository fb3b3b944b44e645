//! The ConfigMaps and Secrets that pods name: each watched once per node, by its name alone, while a pod needs it.
//!
//! By name, as the Node authorizer lets a node read no more than what its pods name. The content of an immutable object never
//! changes for its holders. The watch goes on only to notice the object's deletion: later callers get a new source, with the object that has the
//! name then.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use k8s_openapi::api::core::v1::{ConfigMap, Container, Secret, Volume};
use kube::Client;
use machinery_client::{Reflector, ReflectorEvent, Typed, typed};
use machinery_env::Env;
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::latest::Bell;

/// What kind of object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SourceKind {
    /// A ConfigMap.
    ConfigMap,
    /// A Secret.
    Secret,
}

impl SourceKind {
    /// As in "not found".
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

/// What such an object holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Content {
    /// By key.
    pub data: BTreeMap<String, Vec<u8>>,
    /// It never changes.
    pub immutable: bool,
    /// The object's uid.
    pub uid: String,
    /// A Secret's type.
    pub secret_type: String,
}

/// What is known of one.
#[derive(Debug, Clone, PartialEq)]
pub enum Known {
    /// Nothing yet.
    Unknown,
    /// It can't be read.
    Failed(String),
    /// There is none.
    Missing,
    /// This.
    Present(Arc<Content>),
}

/// Who is told of changes and waits for something else: a pod's worker has no task for each object that its pod names.
#[derive(Default)]
struct Bells(Mutex<Vec<Weak<dyn Bell>>>);

impl Bells {
    fn add(&self, bell: Weak<dyn Bell>) {
        let mut bells = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if bells.len() == bells.capacity() {
            bells.retain(|bell| bell.strong_count() > 0);
        }
        bells.push(bell);
    }

    fn ring(&self) {
        let bells = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        bells.iter().filter_map(Weak::upgrade).for_each(|bell| bell.ring());
    }
}

/// One object that is watched for as long as this is held.
pub struct Source {
    /// What is known of it.
    pub known: watch::Receiver<Known>,
    bells: Arc<Bells>,
    _stop: DropGuard,
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Source").field("known", &self.known).finish_non_exhaustive()
    }
}

impl Source {
    pub(crate) fn of(known: watch::Receiver<Known>, stop: CancellationToken) -> Self {
        Self { known, bells: Arc::default(), _stop: stop.drop_guard() }
    }

    /// Rings it at each change.
    pub(crate) fn rings(&self, bell: Weak<dyn Bell>) {
        self.bells.add(bell);
    }

    /// What it is, once that is known.
    pub async fn read(&self) -> Known {
        let mut known = self.known.clone();
        match known.wait_for(|known| *known != Known::Unknown).await {
            Ok(known) => known.clone(),
            Err(_) => Known::Failed("the node is being stopped".into()),
        }
    }
}

type Key = (SourceKind, String, String);
type All = Arc<Mutex<HashMap<Key, Weak<Source>>>>;

/// The entry of a source in the manager's table.
struct TableEntry {
    all: All,
    key: Key,
    source: Weak<Source>,
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

/// All that pods of this node name.
pub struct ConfigSourceManager {
    client: Client,
    env: Env,
    all: All,
    stop: CancellationToken,
}

impl std::fmt::Debug for ConfigSourceManager {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ConfigSourceManager").finish_non_exhaustive()
    }
}

impl ConfigSourceManager {
    /// Watches nothing yet.
    #[must_use]
    pub fn new(client: Client, env: Env, stop: CancellationToken) -> Self {
        Self { client, env, all: All::default(), stop }
    }

    /// Watches that object, or joins who does.
    pub fn get(&self, kind: SourceKind, namespace: &str, name: &str) -> Arc<Source> {
        let key = (kind, namespace.to_owned(), name.to_owned());
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(source) = all.get(&key).and_then(Weak::upgrade) {
            return source;
        }
        all.retain(|_, source| source.strong_count() > 0);
        let (known, receiver) = watch::channel(Known::Unknown);
        let stop = self.stop.child_token();
        let source = Arc::new(Source::of(receiver, stop.clone()));
        let known = (known, source.bells.clone());
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
                tokio::spawn(follow(reflector, known, read, entry, stop.clone()));
            }
            SourceKind::Secret => {
                let reflector = only(Reflector::of::<Secret>(self.client.clone(), self.env.clone()));
                let read = |secret: Secret| Content {
                    data: secret.data.unwrap_or_default().into_iter().map(|(key, bytes)| (key, bytes.0)).collect(),
                    immutable: secret.immutable == Some(true),
                    uid: secret.metadata.uid.unwrap_or_default(),
                    secret_type: secret.type_.unwrap_or_default(),
                };
                tokio::spawn(follow(reflector, known, read, entry, stop.clone()));
            }
        }
        all.insert(key, Arc::downgrade(&source));
        source
    }
}

async fn follow<K: Typed>(
    reflector: Reflector,
    (known, bells): (watch::Sender<Known>, Arc<Bells>),
    read: impl Fn(K) -> Content + Send,
    entry: TableEntry,
    stop: CancellationToken,
) {
    let mut events = reflector.events();
    // The uid of an immutable object, once it is read.
    let mut settled: Option<String> = None;
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
                    let unknown = matches!(known, Known::Unknown | Known::Failed(_));
                    if unknown {
                        *known = Known::Failed(error);
                    }
                    unknown
                });
                if failed {
                    bells.ring();
                }
                continue;
            }
        };
        if let Some(uid) = &settled {
            if object.is_some_and(|object| object.metadata().uid.as_ref() == Some(uid)) {
                continue;
            }
            entry.remove();
            // The holders keep the content; the sender has to live as long as they do.
            stop.cancelled().await;
            return;
        }
        let content = object.and_then(|object| typed::<K>(&*object).cloned()).map(&read);
        let is = content.map_or(Known::Missing, |content| Known::Present(Arc::new(content)));
        if let Known::Present(content) = &is {
            settled = content.immutable.then(|| content.uid.clone());
        }
        let changed = known.send_if_modified(|known| {
            let changed = *known != is;
            *known = is;
            changed
        });
        if changed {
            bells.ring();
        }
    }
}

/// Every ConfigMap and Secret that volumes name, in order.
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

/// Every ConfigMap and Secret that a container's environment names, in order.
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
