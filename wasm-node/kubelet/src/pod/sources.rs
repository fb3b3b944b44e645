//! The ConfigMaps and Secrets that pods name: each watched once per node, by its name alone, while a pod needs it.
//!
//! By name, as the Node authorizer lets a node read no more than what its pods name.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::{ConfigMap, Container, Secret, Volume};
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client};
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

/// Before a broken watch is tried again.
const RETRY: Duration = Duration::from_secs(1);

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

/// One object that is watched for as long as this is held.
#[derive(Debug)]
pub struct Source {
    /// What is known of it.
    pub known: watch::Receiver<Known>,
    _stop: DropGuard,
}

impl Source {
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

/// All that pods of this node name.
pub struct Sources {
    client: Client,
    all: Mutex<HashMap<Key, Weak<Source>>>,
    stop: CancellationToken,
}

impl std::fmt::Debug for Sources {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sources").finish_non_exhaustive()
    }
}

impl Sources {
    /// Watches nothing yet.
    #[must_use]
    pub fn new(client: Client, stop: CancellationToken) -> Self {
        Self { client, all: Mutex::default(), stop }
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
        match kind {
            SourceKind::ConfigMap => {
                let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), namespace);
                let read = |map: ConfigMap| Content {
                    data: map
                        .data
                        .unwrap_or_default()
                        .into_iter()
                        .map(|(key, text)| (key, text.into_bytes()))
                        .chain(map.binary_data.unwrap_or_default().into_iter().map(|(key, bytes)| (key, bytes.0)))
                        .collect(),
                    immutable: map.immutable == Some(true),
                };
                tokio::spawn(follow(api, name.to_owned(), known, read, stop.clone()));
            }
            SourceKind::Secret => {
                let api: Api<Secret> = Api::namespaced(self.client.clone(), namespace);
                let read = |secret: Secret| Content {
                    data: secret.data.unwrap_or_default().into_iter().map(|(key, bytes)| (key, bytes.0)).collect(),
                    immutable: secret.immutable == Some(true),
                };
                tokio::spawn(follow(api, name.to_owned(), known, read, stop.clone()));
            }
        }
        let source = Arc::new(Source { known: receiver, _stop: stop.drop_guard() });
        all.insert(key, Arc::downgrade(&source));
        source
    }
}

async fn follow<K, F>(api: Api<K>, name: String, known: watch::Sender<Known>, read: F, stop: CancellationToken)
where
    K: kube::Resource + Clone + serde::de::DeserializeOwned + std::fmt::Debug + Send + 'static,
    F: Fn(K) -> Content + Send,
{
    let config = watcher::Config::default().fields(&format!("metadata.name={name}")).streaming_lists();
    let mut events = std::pin::pin!(watcher(api, config));
    let mut seen = false;
    loop {
        let event = tokio::select! {
            () = stop.cancelled() => return,
            event = events.next() => event,
        };
        let is = match event {
            Some(Ok(Event::Init)) => {
                seen = false;
                continue;
            }
            Some(Ok(Event::InitApply(object) | Event::Apply(object))) => {
                seen = true;
                Known::Present(Arc::new(read(object)))
            }
            Some(Ok(Event::InitDone)) if seen => continue,
            Some(Ok(Event::InitDone | Event::Delete(_))) => Known::Missing,
            Some(Err(error)) => {
                tracing::debug!(name, %error, "an object that pods name cannot be watched, trying again");
                known.send_if_modified(|known| {
                    let unknown = matches!(known, Known::Unknown | Known::Failed(_));
                    if unknown {
                        *known = Known::Failed(error.to_string());
                    }
                    unknown
                });
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(RETRY) => continue,
                }
            }
            None => return,
        };
        let ends = matches!(&is, Known::Present(content) if content.immutable);
        known.send_if_modified(|known| {
            let changed = *known != is;
            *known = is;
            changed
        });
        if ends {
            // It stays as it is until nobody holds it; the sender has to live as long.
            stop.cancelled().await;
            return;
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
