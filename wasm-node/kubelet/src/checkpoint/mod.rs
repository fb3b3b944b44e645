//! The node's checkpoint on its disk: what the agent needs to run its pods after a start without an API server.
//!
//! Layout below the configured folder, each file by [`machinery_client::checkpoint`]: `node.json`, `services.json`,
//! `pods/UID.json`, `sources/HASH.json` (ConfigMaps and Secrets). [`record`] has the contents, [`load`] reads a folder
//! at the start, [`writer`] writes changes in batches. Invariant: no pod waits for a write, and no file ends the node.

pub(crate) mod load;
pub(crate) mod record;
pub(crate) mod writer;

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::Service;
use machinery_env::Env;
use tokio_util::sync::CancellationToken;

use crate::spec::referred::{Content, SourceKind, plain};
use load::Loaded;
use record::{NodeRecord, Origin, PodRecord, ServiceRecord, SourceRecord};
use writer::{Body, Queue};

/// How long a start waits for the API server before it uses the checkpoint. A running server answers within
/// milliseconds; the pods of a node without one are down meanwhile.
pub(crate) const API_WAIT: Duration = Duration::from_secs(5);

/// The name of a pod's file: the uid without characters that could leave the folder.
fn pod_file(uid: &str) -> PathBuf {
    PathBuf::from("pods").join(format!("{}.json", plain(uid)))
}

fn source_file(kind: SourceKind, namespace: &str, name: &str) -> PathBuf {
    PathBuf::from("sources").join(format!("{}.json", record::source_id(kind, namespace, name)))
}

/// The checkpoint of one node; a clone refers to the same one. Without a folder it does nothing and has nothing.
#[derive(Clone, Default)]
pub(crate) struct Checkpoint(Option<Arc<Parts>>);

struct Parts {
    queue: Queue,
    loaded: Mutex<Loaded>,
    /// The last queued Node record, so that an equal one isn't written again.
    node: Mutex<Option<NodeRecord>>,
}

impl Parts {
    fn loaded(&self) -> MutexGuard<'_, Loaded> {
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Checkpoint {
    /// Reads the folder of the node of that name. Creates it if it is missing; a folder that can't be used is logged,
    /// and the node runs without a checkpoint. Blocks.
    pub(crate) fn open(folder: Option<PathBuf>, node: &str) -> Self {
        let Some(folder) = folder else { return Self::default() };
        match load::open(&folder, node) {
            Ok(loaded) => {
                let node = Mutex::new(loaded.node.clone());
                Self(Some(Arc::new(Parts { queue: Queue::new(folder), loaded: Mutex::new(loaded), node })))
            }
            Err(error) => {
                tracing::error!(folder = %folder.display(), %error, "the node has no checkpoint: its folder cannot be used");
                Self::default()
            }
        }
    }

    /// Whether there is a folder.
    pub(crate) fn is_enabled(&self) -> bool {
        self.0.is_some()
    }

    /// Writes queued changes until `stop`, and the last ones after it.
    pub(crate) async fn run(self, env: Env, stop: CancellationToken) {
        match self.0 {
            Some(parts) => parts.queue.run(&env, &stop).await,
            None => stop.cancelled().await,
        }
    }

    /// The Node of the earlier run.
    pub(crate) fn node(&self) -> Option<NodeRecord> {
        self.0.as_ref()?.loaded().node.clone()
    }

    /// Records the Node. Its first uid becomes the origin of the folder's pods.
    pub(crate) fn set_node(&self, mut node: NodeRecord) {
        let Some(parts) = &self.0 else { return };
        let mut known = parts.node.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = &*known {
            node.origin.clone_from(&known.origin);
        }
        if known.as_ref() == Some(&node) {
            return;
        }
        *known = Some(node.clone());
        parts.queue.put("node.json".into(), Body::of(record::NODE, move || record::encode(&node)));
    }

    /// Removes the pods of the earlier run from memory, and returns them in the order of their uids.
    pub(crate) fn take_pods(&self) -> Vec<PodRecord> {
        let Some(parts) = &self.0 else { return Vec::new() };
        std::mem::take(&mut parts.loaded().pods).into_values().collect()
    }

    /// Removes one of these pods from memory, and returns it.
    pub(crate) fn take_pod(&self, uid: &str) -> Option<PodRecord> {
        self.0.as_ref()?.loaded().pods.remove(uid)
    }

    /// Records a pod. `record` is called when the file is written.
    pub(crate) fn set_pod(&self, uid: &str, record: impl Fn(Origin) -> PodRecord + Send + Sync + 'static) {
        let Some(parts) = &self.0 else { return };
        let known = parts.node.lock().unwrap_or_else(PoisonError::into_inner);
        // Pods run after the Node is known.
        let Some(origin) = known.as_ref().map(NodeRecord::origin) else { return };
        drop(known);
        let body = Body::of(record::POD, move || record::encode(&record(origin.clone())));
        parts.queue.put(pod_file(uid), body);
    }

    /// Removes the file of a pod that doesn't exist any more.
    pub(crate) fn remove_pod(&self, uid: &str) {
        if let Some(parts) = &self.0 {
            parts.queue.remove(pod_file(uid));
        }
    }

    /// The content of a ConfigMap or Secret in the earlier run.
    pub(crate) fn source(&self, kind: SourceKind, namespace: &str, name: &str) -> Option<Arc<Content>> {
        let id = record::source_id(kind, namespace, name);
        Some(Arc::new(self.0.as_ref()?.loaded().sources.get(&id)?.content()))
    }

    /// Records a ConfigMap or Secret that pods refer to; `None` if it doesn't exist.
    pub(crate) fn set_source(&self, kind: SourceKind, namespace: &str, name: &str, content: Option<Arc<Content>>) {
        let Some(parts) = &self.0 else { return };
        // The API's state replaces that of the earlier run.
        parts.loaded().sources.remove(&record::source_id(kind, namespace, name));
        let file = source_file(kind, namespace, name);
        let Some(content) = content else { return parts.queue.remove(file) };
        let (namespace, name) = (namespace.to_owned(), name.to_owned());
        let encode = move || record::encode(&SourceRecord::new(kind, &namespace, &name, &content));
        parts.queue.put(file, Body::of(record::SOURCE, encode));
    }

    /// The Services of the earlier run that the environment of a pod in that namespace may show; `None` if none are
    /// recorded.
    pub(crate) fn services(&self, namespace: &str) -> Option<Vec<Arc<Service>>> {
        let parts = self.0.as_ref()?;
        let loaded = parts.loaded();
        let services = loaded.services.as_ref()?.iter();
        Some(services.filter(|service| service.is_visible_in(namespace)).map(|one| Arc::new(one.service())).collect())
    }

    /// Records the cluster's Services.
    pub(crate) fn set_services(&self, services: Vec<ServiceRecord>) {
        if let Some(parts) = &self.0 {
            parts.queue.put("services.json".into(), Body::of(record::SERVICES, move || record::encode(&services)));
        }
    }

    /// Removes the files of pods and sources other than these, after the first list of the node's pods.
    pub(crate) fn retain(&self, pods: &[String], sources: &[(SourceKind, String, String)]) {
        let Some(parts) = &self.0 else { return };
        let sources = sources.iter().map(|(kind, namespace, name)| source_file(*kind, namespace, name));
        let kept = pods.iter().map(|uid| pod_file(uid)).chain(sources).collect();
        parts.queue.retain(kept);
    }
}
