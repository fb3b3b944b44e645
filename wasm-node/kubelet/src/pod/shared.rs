//! What the pods of one node share, and what is known of them outside of their workers.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Wire;
use kube::Client;
use machinery_client::Informer;
use machinery_client::events::Recorder;
use machinery_env::Env;
use machinery_serve::net::{Dial, PodNetwork};
use tokio::sync::{Notify, broadcast, watch};
use tokio_util::sync::CancellationToken;

use super::addresses::Addresses;
use super::node_facts::NodeFacts;
use super::sandbox::Sandboxes;
use super::shutdown::Shutdown;
use super::totals::Totals;
use super::worker::PodView;
use crate::config::sources::ConfigSourceManager;
use crate::config::tokens::AccountTokens;
use crate::image::Images;
use crate::log;
use crate::volume::manager::VolumeManager;
use crate::volume::measure::Measurer;
use crate::volume::paths::plain;
use runtime_api::Runtime;

/// What the node agents of a process share.
#[derive(Clone)]
pub struct NodeParts {
    /// Runs guests.
    pub runtime: Arc<dyn Runtime>,
    /// The images of this machine.
    pub images: Arc<Images>,
    /// Where pods answer.
    pub network: PodNetwork,
    /// How guests call out.
    pub dial: Arc<dyn Dial>,
    /// Clock and randomness.
    pub env: Env,
    /// What each node tells of what they share.
    pub notices: broadcast::Sender<Notice>,
}

/// A warning about a Node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// The event's reason.
    pub reason: &'static str,
    /// Its message.
    pub message: String,
}

/// Which node pods are on.
#[derive(Debug, Clone)]
pub(crate) struct NodeIdentity {
    pub(crate) name: String,
    /// Where its pods' volumes and logs lie.
    pub(crate) data_dir: PathBuf,
    pub(crate) internal_ip: IpAddr,
    /// Where it listens, also for `hostPort`.
    pub(crate) bind: IpAddr,
    /// Pod addresses listen on the host too.
    pub(crate) host_pod_listeners: bool,
    /// Manifests of static pods.
    pub(crate) static_pods: Option<PathBuf>,
}

/// What all pods of one node share.
pub(crate) struct Shared {
    pub(crate) identity: NodeIdentity,
    pub(crate) parts: NodeParts,
    pub(crate) client: Client,
    pub(crate) recorder: Recorder,
    pub(crate) sources: Arc<ConfigSourceManager>,
    pub(crate) volumes: Arc<VolumeManager>,
    pub(crate) account_tokens: Arc<AccountTokens>,
    pub(crate) services: Arc<Informer>,
    pub(crate) addresses: Addresses,
    pub(crate) addresses_freed: Notify,
    /// What of the Node decides on pods, as the API showed it last.
    pub(crate) facts: watch::Receiver<NodeFacts>,
    pub(crate) logs: log::Writer,
    pub(crate) measurer: Measurer,
    /// The end of the node.
    pub(crate) shutdown: Shutdown,
    /// What the node's guests may hold.
    pub(crate) guest_memory_bytes: u64,
    pub(crate) allocatable: Arc<BTreeMap<String, Wire>>,
    pub(crate) stop: CancellationToken,
    pub(crate) pods: Arc<PodViews>,
}

impl Shared {
    /// What a pod has on the disk, but for its logs.
    pub(crate) fn pod_dir(&self, uid: &str) -> PathBuf {
        self.identity.data_dir.join("pods").join(plain(uid))
    }

    pub(crate) fn log_dir(&self, uid: &str) -> PathBuf {
        self.identity.data_dir.join("logs").join(plain(uid))
    }

    /// Gives an address back, and says so to the pods that wait for one.
    pub(crate) fn free_address(&self, ip: IpAddr) {
        self.addresses.free(ip);
        self.addresses_freed.notify_waiters();
    }

    pub(crate) fn log_path(&self, uid: &str, container: &str, attempt: u32) -> PathBuf {
        log_path(&self.identity.data_dir, uid, container, attempt)
    }
}

/// Where the log of one run of a container lies.
pub(crate) fn log_path(data_dir: &Path, uid: &str, container: &str, attempt: u32) -> PathBuf {
    data_dir.join("logs").join(plain(uid)).join(plain(container)).join(format!("{attempt}.log"))
}

/// The pods of a node, for whoever looks at them from outside of their workers.
#[derive(Debug, Default)]
pub(crate) struct PodViews {
    /// By uid.
    pods: Mutex<BTreeMap<String, Arc<PodView>>>,
    /// Of the containers that run.
    pub(crate) sandboxes: Arc<Sandboxes>,
    /// What outlives them.
    pub(crate) totals: Totals,
}

impl PodViews {
    pub(crate) fn all(&self) -> Vec<Arc<PodView>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    pub(crate) fn get(&self, uid: &str) -> Option<Arc<PodView>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner).get(uid).cloned()
    }

    pub(crate) fn insert(&self, uid: &str, view: Arc<PodView>) {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner).insert(uid.to_owned(), view);
    }

    pub(crate) fn remove(&self, uid: &str) {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
    }
}
