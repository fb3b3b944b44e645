//! The state that all pods of a node share, and the views of its pods for readers outside of their workers.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use images::Images;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Wire;
use kube::Client;
use machinery_client::Informer;
use machinery_client::events::Recorder;
use machinery_env::{Deadline, Env};
use machinery_serve::net::{Dial, PodNetwork};
use tokio::sync::{Notify, broadcast, watch};
use tokio_util::sync::CancellationToken;

use super::addresses::Addresses;
use super::handover::Handover;
use super::node_facts::NodeFacts;
use super::sandbox::Sandboxes;
use super::shutdown::Shutdown;
use super::totals::Totals;
use super::worker::PodView;
use crate::checkpoint::Checkpoint;
use crate::config::sources::ConfigSourceManager;
use crate::config::tokens::AccountTokens;
use crate::log;
use crate::volume::manager::VolumeManager;
use crate::volume::measure::Measurer;
use crate::volume::paths::plain;
use runtime_api::{LoadError, Runtime};

/// The parts that the node agents of a process share.
#[derive(Clone)]
pub struct SharedNodeParts {
    /// The runtime of guests.
    pub runtime: Arc<dyn Runtime>,
    /// The image store of this machine.
    pub images: Arc<Images>,
    /// Reads the imports of a module's bytes; see the runtime.
    pub imports: fn(&[u8]) -> Result<Vec<String>, LoadError>,
    /// The network in which pods listen.
    pub network: PodNetwork,
    /// The dialer for outgoing calls of guests.
    pub dial: Arc<dyn Dial>,
    /// The clock and the random source.
    pub env: Env,
    /// Warnings about shared parts, which become events of every Node.
    pub node_warnings: broadcast::Sender<NodeWarning>,
    /// The takeover of the process.
    pub handover: Handover,
}

/// A warning event of a Node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeWarning {
    /// The event's reason.
    pub reason: &'static str,
    /// Its message.
    pub message: String,
}

/// The identity of the pods' node.
#[derive(Debug, Clone)]
pub(crate) struct NodeIdentity {
    pub(crate) name: String,
    /// The folder of its pods' volumes and logs.
    pub(crate) data_dir: PathBuf,
    pub(crate) internal_ip: IpAddr,
    /// Its listen address, also for `hostPort`.
    pub(crate) bind: IpAddr,
    /// Pod addresses are reachable on the host too.
    pub(crate) host_pod_listeners: bool,
    /// The manifest folder of static pods.
    pub(crate) static_pods: Option<PathBuf>,
}

/// The state that all pods of one node share.
pub(crate) struct NodeContext {
    pub(crate) identity: NodeIdentity,
    pub(crate) parts: SharedNodeParts,
    pub(crate) client: Client,
    pub(crate) recorder: Recorder,
    pub(crate) sources: Arc<ConfigSourceManager>,
    /// What a start without an API server needs.
    pub(crate) checkpoint: Checkpoint,
    /// Until when a start waits for the API server, if there is a checkpoint.
    pub(crate) api_wait: Deadline,
    pub(crate) volumes: Arc<VolumeManager>,
    pub(crate) account_tokens: Arc<AccountTokens>,
    pub(crate) services: Arc<Informer>,
    pub(crate) addresses: Addresses,
    pub(crate) addresses_freed: Notify,
    /// The Node's admission facts, from the last watch event.
    pub(crate) facts: watch::Receiver<NodeFacts>,
    pub(crate) logs: log::Writer,
    pub(crate) measurer: Measurer,
    /// The shutdown of the node.
    pub(crate) shutdown: Shutdown,
    /// The memory bound of the node's guests, in bytes.
    pub(crate) guest_memory_bytes: u64,
    pub(crate) allocatable: Arc<BTreeMap<String, Wire>>,
    pub(crate) stop: CancellationToken,
    pub(crate) pods: Arc<PodViews>,
}

impl NodeContext {
    /// A pod's folder, which doesn't contain its logs.
    pub(crate) fn pod_dir(&self, uid: &str) -> PathBuf {
        self.identity.data_dir.join("pods").join(plain(uid))
    }

    pub(crate) fn log_dir(&self, uid: &str) -> PathBuf {
        self.identity.data_dir.join("logs").join(plain(uid))
    }

    /// Frees an address, and wakes the pods that wait for one.
    pub(crate) fn free_address(&self, ip: IpAddr) {
        self.addresses.free(ip);
        self.addresses_freed.notify_waiters();
    }

    pub(crate) fn log_path(&self, uid: &str, container: &str, attempt: u32) -> PathBuf {
        log_path(&self.identity.data_dir, uid, container, attempt)
    }
}

/// The log file of one run of a container.
pub(crate) fn log_path(data_dir: &Path, uid: &str, container: &str, attempt: u32) -> PathBuf {
    data_dir.join("logs").join(plain(uid)).join(plain(container)).join(format!("{attempt}.log"))
}

/// The pods of a node, for readers outside of their workers.
#[derive(Debug, Default)]
pub(crate) struct PodViews {
    /// The views by uid.
    pods: Mutex<BTreeMap<String, Arc<PodView>>>,
    /// The sandboxes of the running containers.
    pub(crate) sandboxes: Arc<Sandboxes>,
    /// Counters that outlive the pods.
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
