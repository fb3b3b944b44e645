//! The node agent: registers its Node, keeps its lease, and runs the pods that are bound to it.
//!
//! [`run`] is the whole of it. Several agents live in one process and share its [`NodeParts`]; each has its own
//! identity, folder and podCIDR, as on machines of its own.

mod collect;
mod eviction;
mod heartbeat;
mod lease;
#[cfg(test)]
mod life;
mod pods;
mod register;
#[cfg(test)]
mod tests;
pub(crate) mod totals;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Wire;
use kube::Client;
use machinery_client::Informer;
use machinery_client::events::Recorder;
use machinery_env::Env;
use machinery_serve::net::{Dial, PodNetwork};
use tokio::sync::{Notify, oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::image::Images;
use crate::log;
use crate::pod::addresses::{Addresses, BadCidr};
use crate::pod::sources::ConfigSourceManager;
use crate::pod::worker::PodView;
use crate::server::{self, ServerError, ServingTls};
use crate::volume::measure::Measurer;
use runtime_api::Runtime;

pub use collect::collect;
pub use register::{Capacity, KUBELET_VERSION};

/// What is one node's own.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    /// `coracle-1`.
    pub name: String,
    /// Where its pods' volumes and logs lie.
    pub data_dir: PathBuf,
    /// InternalIP.
    pub internal_ip: IpAddr,
    /// Where the kubelet API listens.
    pub bind: IpAddr,
    /// Its port; 0 = a free one, published in `status.daemonEndpoints`.
    pub kubelet_port: u16,
    /// Its certificate, and the CA of those who may ask.
    pub tls: ServingTls,
    /// Used where the cluster assigns none.
    pub pod_cidr: Option<String>,
    /// What the node has.
    pub capacity: Capacity,
    /// Labels beside those of contract.md §3.
    pub labels: BTreeMap<String, String>,
    /// Taints that it registers with: key, value, effect.
    pub taints: Vec<(String, String, String)>,
    /// Pod addresses listen on the host too.
    pub host_pod_listeners: bool,
    /// How often the lease is renewed (upstream: 10 s), and how long it holds (40 s).
    pub lease_interval: Duration,
    /// See above.
    pub lease_duration: Duration,
    /// How often an unchanged status is reported (upstream: 5 min).
    pub status_interval: Duration,
    /// `containerRuntimeVersion`: [`run`] asks the runtime.
    pub runtime_version: String,
}

impl NodeConfig {
    /// A configuration with upstream's times.
    #[must_use]
    pub fn new(name: String, data_dir: PathBuf, internal_ip: IpAddr, tls: ServingTls, capacity: Capacity) -> Self {
        Self {
            name,
            data_dir,
            internal_ip,
            bind: internal_ip,
            kubelet_port: 0,
            tls,
            pod_cidr: None,
            capacity,
            labels: BTreeMap::new(),
            taints: Vec::new(),
            host_pod_listeners: false,
            lease_interval: Duration::from_secs(10),
            lease_duration: Duration::from_secs(40),
            status_interval: Duration::from_secs(300),
            runtime_version: String::new(),
        }
    }
}

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
}

/// A node that was reported Ready by this run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeReady {
    /// Where its kubelet API listens.
    pub kubelet: SocketAddr,
}

/// Why an agent ended.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The kubelet API can't be served.
    #[error("node {name}: {source}")]
    Server {
        /// The node.
        name: String,
        /// Why.
        source: ServerError,
    },
    /// Its folder can't be used.
    #[error("node {name}: {what}: {source}")]
    Io {
        /// The node.
        name: String,
        /// What was being done.
        what: &'static str,
        /// The system's error.
        source: std::io::Error,
    },
    /// Its podCIDR can't be used.
    #[error("node {name}: {source}")]
    Cidr {
        /// The node.
        name: String,
        /// Why.
        source: BadCidr,
    },
}

/// What all parts of one agent share.
pub(crate) struct Shared {
    pub(crate) config: NodeConfig,
    pub(crate) parts: NodeParts,
    pub(crate) client: Client,
    pub(crate) recorder: Recorder,
    pub(crate) sources: ConfigSourceManager,
    pub(crate) services: Arc<Informer>,
    pub(crate) addresses: Addresses,
    pub(crate) addresses_freed: Notify,
    pub(crate) logs: log::Writer,
    pub(crate) measurer: Measurer,
    pub(crate) allocatable: BTreeMap<String, Wire>,
    pub(crate) stop: CancellationToken,
    /// By uid.
    pub(crate) pods: Arc<PodViews>,
}

/// The pods of a node, for whoever looks at them from outside of their workers.
#[derive(Debug, Default)]
pub(crate) struct PodViews {
    /// By uid.
    pods: Mutex<BTreeMap<String, Arc<PodView>>>,
    /// What outlives them.
    pub(crate) totals: totals::Totals,
}

impl PodViews {
    pub(crate) fn all(&self) -> Vec<Arc<PodView>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    fn get(&self, uid: &str) -> Option<Arc<PodView>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner).get(uid).cloned()
    }

    fn insert(&self, uid: &str, view: Arc<PodView>) {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner).insert(uid.to_owned(), view);
    }

    fn remove(&self, uid: &str) {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
    }
}

impl Shared {
    /// What a pod has on the disk, but for its logs.
    pub(crate) fn pod_dir(&self, uid: &str) -> PathBuf {
        self.config.data_dir.join("pods").join(plain(uid))
    }

    pub(crate) fn log_dir(&self, uid: &str) -> PathBuf {
        self.config.data_dir.join("logs").join(plain(uid))
    }

    /// Gives an address back, and says so to the pods that wait for one.
    pub(crate) fn free_address(&self, ip: IpAddr) {
        self.addresses.free(ip);
        self.addresses_freed.notify_waiters();
    }

    pub(crate) fn log_path(&self, uid: &str, container: &str, attempt: u32) -> PathBuf {
        log_path(&self.config.data_dir, uid, container, attempt)
    }
}

/// Where the log of one run of a container lies.
pub(crate) fn log_path(data_dir: &Path, uid: &str, container: &str, attempt: u32) -> PathBuf {
    data_dir.join("logs").join(plain(uid)).join(plain(container)).join(format!("{attempt}.log"))
}

/// The API has checked these names; a path is made of nothing else all the same.
fn plain(name: &str) -> String {
    let plain: String = name.chars().filter(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_')).collect();
    if plain.is_empty() { "none".to_owned() } else { plain }
}

/// A folder that only this user reads: Secrets lie in it for as long as their pods live.
fn private_dir(path: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(path)?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700))?;
    }
    Ok(())
}

/// Runs a node agent until `stop`. `ready` hears when the API has taken a Ready status from this run.
pub async fn run(
    mut config: NodeConfig,
    parts: NodeParts,
    client: Client,
    ready: oneshot::Sender<NodeReady>,
    stop: CancellationToken,
) -> Result<(), NodeError> {
    let (runtime, version) = parts.runtime.version();
    config.runtime_version = format!("{runtime}://{version}");
    let name = config.name.clone();
    let io = |what| {
        let name = name.clone();
        move |source| NodeError::Io { name, what, source }
    };
    for folder in ["pods", "logs"] {
        private_dir(&config.data_dir.join(folder)).map_err(io("making its data folder"))?;
    }
    let budget = log::Budget::of_disk(config.capacity.ephemeral_bytes);
    let logs = log::Writer::start(parts.env.clone(), budget, &config.data_dir.join("logs"))
        .map_err(io("starting the thread that writes logs"))?;
    let measurer = Measurer::start(parts.env.clone()).map_err(io("starting the thread that measures volumes"))?;
    let pods = Arc::new(PodViews::default());
    let at_server = |source| NodeError::Server { name: name.clone(), source };
    let listener = server::bind(SocketAddr::new(config.bind, config.kubelet_port)).await.map_err(at_server)?;
    let kubelet = listener.local_addr().map_err(io("asking for the kubelet API's address"))?;
    let serving = server::Kubelet {
        node: name.clone(),
        data_dir: config.data_dir.clone(),
        pods: pods.clone(),
        client: client.clone(),
        env: parts.env.clone(),
        runtime: parts.runtime.clone(),
    };
    let tls = config.tls.clone();
    let server = server::serve(listener, &tls, serving, stop.clone()).map_err(at_server)?;
    let server = tokio::spawn(server);

    let (uid, node_uid) = watch::channel(None);
    let (images, folder, of_guests) = (parts.images.clone(), config.data_dir.clone(), pods.clone());
    let guest_memory = config.capacity.guest_memory_bytes;
    let look = Arc::new(move || register::look(&images, &folder, guest_memory, eviction::memory_used(&of_guests)));
    let (shortages, short) = watch::channel(register::Shortages::default());
    let mut heart =
        heartbeat::NodeStatusManager::new(&config, client.clone(), &parts.env, kubelet.port(), look, uid, shortages);
    let requests = client.clone().into();
    let lease = lease::keep(requests, config.clone(), parts.env.clone(), node_uid, stop.clone());
    let lease = tokio::spawn(lease);
    // Registered, and with a block of addresses: pods can be run from here on.
    let cidr = tokio::select! {
        () = stop.cancelled() => return Ok(()),
        cidr = heart.register() => cidr,
    };
    let addresses = Addresses::new(&cidr).map_err(|source| NodeError::Cidr { name: name.clone(), source })?;
    config.capacity.pods = config.capacity.pods.min(addresses.count());
    let services = Informer::new(client.clone(), parts.env.clone(), &stop);
    services.watch::<Service>();
    let shared = Arc::new(Shared {
        recorder: Recorder::start_on(client.clone(), parts.env.clone(), "kubelet", name.clone(), &stop),
        sources: ConfigSourceManager::new(client.clone(), parts.env.clone(), stop.child_token()),
        services,
        addresses,
        addresses_freed: Notify::new(),
        logs,
        measurer,
        allocatable: config.capacity.allocatable(),
        stop: stop.clone(),
        pods,
        config,
        parts,
        client,
    });
    heart.beat_ready(shared.config.capacity);
    tokio::join!(heart.run(ready, kubelet, stop.clone()), eviction::run(shared.clone(), short), pods::run(shared));
    server.abort();
    lease.abort();
    Ok(())
}
