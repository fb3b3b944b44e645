//! The node agent: registers its Node, keeps its lease, and runs the pods that are bound to it.
//!
//! [`run`] is the whole of it. Several agents live in one process and share its [`NodeParts`]; each has its own
//! identity, folder and podCIDR, as on machines of its own.

#[cfg(test)]
mod away;
mod collect;
#[cfg(test)]
mod evicted;
mod eviction;
mod followed;
mod heartbeat;
#[cfg(test)]
mod hooks;
mod lease;
#[cfg(test)]
mod life;
#[cfg(test)]
mod made_again;
#[cfg(test)]
mod played;
mod pods;
mod pressure;
mod register;
mod rest;
#[cfg(test)]
mod several;
mod shutdown;
#[cfg(test)]
mod tests;
mod thresholds;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Service;
use kube::Client;
use machinery_client::Informer;
use machinery_client::events::Recorder;
use machinery_env::Env;
use tokio::sync::{Notify, oneshot, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use self::pressure::Room;
use crate::config::sources::ConfigSourceManager;
use crate::log;
use crate::pod::addresses::{Addresses, BadCidr};
use crate::pod::node_facts::NodeFacts;
use crate::pod::shared::{NodeIdentity, PodViews, Shared};
use crate::server::{self, Requests, ServerError, ServingTls};
use crate::volume::local::LocalVolumes;
use crate::volume::manager::VolumeManager;
use crate::volume::measure::Measurer;
use crate::volume::memory::MemoryFolder;

pub use crate::pod::shared::{NodeParts, Notice};
pub use crate::pod::shutdown::{Shutdown, ShutdownGrace};
pub use collect::collect;
pub use followed::{follow_registries, follow_signature_policy};
pub use register::{Capacity, KUBELET_VERSION, MAX_PODS_DEFAULT};
pub use thresholds::{BadThresholds, EvictionThresholds};

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
    /// Somebody else knows of its machine: it registers with the taint that waits for that, and tells which address it goes by.
    pub external_provider: bool,
    /// Pod addresses listen on the host too.
    pub host_pod_listeners: bool,
    /// How long a session of exec, attach or port-forward may stand still.
    pub streaming_idle: Duration,
    /// Folders of which pods may have what lies below, as `hostPath`.
    pub host_paths: Vec<PathBuf>,
    /// From when on the node is short, and evicts pods.
    pub eviction: EvictionThresholds,
    /// The end of the node.
    pub shutdown: Shutdown,
    /// Manifests of static pods: a folder, or one file.
    pub static_pods: Option<PathBuf>,
    /// A file system in memory, for volumes of `medium: Memory`.
    pub memory_dir: Option<PathBuf>,
    /// Its volumes that outlive pods; none = of its own, below its data folder.
    pub volumes: Option<Arc<LocalVolumes>>,
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
            external_provider: false,
            host_pod_listeners: false,
            streaming_idle: server::STREAMING_IDLE_DEFAULT,
            host_paths: Vec::new(),
            eviction: EvictionThresholds::default(),
            shutdown: Shutdown::default(),
            static_pods: None,
            memory_dir: None,
            volumes: None,
            lease_interval: Duration::from_secs(10),
            lease_duration: Duration::from_secs(40),
            status_interval: Duration::from_secs(300),
            runtime_version: String::new(),
        }
    }
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

/// What an agent has on its machine.
struct Local {
    logs: log::Writer,
    measurer: Measurer,
}

impl Local {
    /// Makes its folders and starts its threads.
    fn start(config: &NodeConfig, env: &Env) -> Result<Self, NodeError> {
        let failed = |what| move |source| NodeError::Io { name: config.name.clone(), what, source };
        for folder in ["pods", "logs"] {
            private_dir(&config.data_dir.join(folder)).map_err(failed("making its data folder"))?;
        }
        let budget = log::Budget::of_disk(config.capacity.ephemeral_bytes);
        let logs = log::Writer::start(env.clone(), budget, &config.data_dir.join("logs"))
            .map_err(failed("starting the thread that writes logs"))?;
        let measurer = Measurer::start(env.clone()).map_err(failed("starting the thread that measures volumes"))?;
        Ok(Self { logs, measurer })
    }
}

/// Serves the kubelet API until `stop`; answers where.
async fn serve(
    config: &NodeConfig,
    parts: &NodeParts,
    client: &Client,
    pods: &Arc<PodViews>,
    stop: &CancellationToken,
) -> Result<(SocketAddr, JoinHandle<()>), NodeError> {
    let at_server = |source| NodeError::Server { name: config.name.clone(), source };
    let listener = server::bind(SocketAddr::new(config.bind, config.kubelet_port)).await.map_err(at_server)?;
    let address = listener.local_addr().map_err(|source| NodeError::Io {
        name: config.name.clone(),
        what: "asking for the kubelet API's address",
        source,
    })?;
    let serving = server::Kubelet {
        node: config.name.clone(),
        data_dir: config.data_dir.clone(),
        pods: pods.clone(),
        client: client.clone(),
        env: parts.env.clone(),
        runtime: parts.runtime.clone(),
        images: parts.images.clone(),
        network: parts.network.clone(),
        streaming_idle: config.streaming_idle,
        rates: Arc::default(),
        requests: Requests::new(&parts.env),
        stop: stop.clone(),
    };
    let server = server::serve(listener, &config.tls, serving, stop.clone()).map_err(at_server)?;
    Ok((address, tokio::spawn(server)))
}

/// Ends with a task. Its panic goes on here: a node that only stopped to renew its Lease would be taken for dead.
async fn panic_of(task: &mut JoinHandle<()>) {
    if let Err(ended) = task.await
        && ended.is_panic()
    {
        std::panic::resume_unwind(ended.into_panic());
    }
}

/// What the pods of the node share, once it has a block of addresses.
fn share(
    config: &NodeConfig,
    parts: NodeParts,
    client: Client,
    (local, addresses, pods): (Local, Addresses, Arc<PodViews>),
    facts: watch::Receiver<NodeFacts>,
    stop: &CancellationToken,
) -> Shared {
    let services = Informer::new(client.clone(), parts.env.clone(), stop);
    services.watch::<Service>();
    let sources = Arc::new(ConfigSourceManager::new(client.clone(), parts.env.clone(), stop.child_token()));
    let allocatable = Arc::new(config.capacity.allocatable());
    let volumes = VolumeManager {
        requests: client.clone().into(),
        env: parts.env.clone(),
        sources: sources.clone(),
        host_ip: config.internal_ip,
        allocatable: allocatable.clone(),
        host_paths: config.host_paths.clone().into(),
        local: config
            .volumes
            .clone()
            .unwrap_or_else(|| Arc::new(LocalVolumes::new(&config.data_dir, parts.env.clone()))),
        place: Box::new({
            let facts = facts.clone();
            move || (facts.borrow().name.clone(), facts.borrow().labels.clone())
        }),
        memory: match &config.memory_dir {
            Some(dir) => MemoryFolder::open(dir, &parts.env).map(Arc::new),
            None => Err("this node has no file system in memory".into()),
        },
    };
    Shared {
        recorder: Recorder::start_on(client.clone(), parts.env.clone(), "kubelet", config.name.clone(), stop),
        sources,
        volumes: Arc::new(volumes),
        account_tokens: Arc::default(),
        services,
        addresses,
        addresses_freed: Notify::new(),
        facts,
        logs: local.logs,
        measurer: local.measurer,
        shutdown: config.shutdown.clone(),
        guest_memory_bytes: config.capacity.guest_memory_bytes,
        allocatable,
        stop: stop.clone(),
        pods,
        identity: NodeIdentity {
            name: config.name.clone(),
            data_dir: config.data_dir.clone(),
            internal_ip: config.internal_ip,
            bind: config.bind,
            host_pod_listeners: config.host_pod_listeners,
            static_pods: config.static_pods.clone(),
        },
        parts,
        client,
    }
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
    let local = Local::start(&config, &parts.env)?;
    let pods = Arc::new(PodViews::default());
    let (kubelet, server) = serve(&config, &parts, &client, &pods, &stop).await?;

    let (uid, node_uid) = watch::channel(None);
    let (images, folder, of_guests) = (parts.images.clone(), config.data_dir.clone(), pods.clone());
    let guest_memory = config.capacity.guest_memory_bytes;
    let (ledger, thresholds) = (parts.runtime.ledger().clone(), config.eviction);
    let observe = Arc::new(move || {
        let left = guest_memory.saturating_sub(eviction::memory_used(&of_guests));
        register::observe(&images, &folder, Room { total: guest_memory, free: left }, &ledger, &thresholds)
    });
    let (shortages, short) = watch::channel(Vec::new());
    let mut heart =
        heartbeat::NodeStatusManager::new(&config, client.clone(), &parts.env, kubelet.port(), observe, uid, shortages);
    let requests = client.clone().into();
    let mut lease = tokio::spawn(lease::keep(requests, config.clone(), parts.env.clone(), node_uid, stop.clone()));
    // Registered, and with a block of addresses: pods can be run from here on.
    let cidr = tokio::select! {
        () = stop.cancelled() => return Ok(()),
        cidr = heart.register() => cidr,
    };
    let addresses = Addresses::new(&cidr).map_err(|source| NodeError::Cidr { name: config.name.clone(), source })?;
    config.capacity.pods = config.capacity.pods.min(addresses.count());
    heart.beat_ready(config.capacity);
    let shared = Arc::new(share(&config, parts, client, (local, addresses, pods), heart.facts(), &stop));
    tokio::join!(
        heart.run(ready, kubelet, stop.clone()),
        eviction::run(shared.clone(), short),
        shutdown::run(shared.clone()),
        collect::tell(shared.clone()),
        rest::run(shared.clone()),
        pods::run(shared),
        panic_of(&mut lease)
    );
    server.abort();
    lease.abort();
    Ok(())
}
