//! The node agent: registers its Node, renews its Lease, and runs the pods that are bound to it.
//!
//! The entry point is [`run`]. Agents of one process share its [`SharedNodeParts`]; each has its own identity, folder and
//! podCIDR, as on separate machines.

#[cfg(test)]
mod api_outage;
mod config_files;
mod eviction;
#[cfg(test)]
mod eviction_tests;
#[cfg(test)]
mod fake_api;
mod heartbeat;
mod holder;
#[cfg(test)]
mod hooks;
mod image_gc;
mod lease;
#[cfg(test)]
mod lifecycle;
#[cfg(test)]
mod listening;
#[cfg(test)]
mod multi_container;
#[cfg(test)]
mod outage_restart;
mod pack;
mod pods;
mod pressure;
#[cfg(test)]
mod recreated_objects;
mod register;
mod services;
mod shutdown;
#[cfg(test)]
mod tests;
mod thresholds;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::Service;
use kube::Client;
use machinery_client::Informer;
use machinery_client::events::Recorder;
use machinery_env::Env;
use tokio::sync::{Notify, oneshot, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use self::pressure::ResourceAmount;
use crate::checkpoint::load::private_folder;
use crate::checkpoint::{API_WAIT, Checkpoint};
use crate::config::sources::ConfigSourceManager;
use crate::log;
use crate::pod::addresses::{Addresses, BadCidr};
use crate::pod::node_facts::NodeFacts;
use crate::pod::shared::{NodeContext, NodeIdentity, PodViews};
use crate::server::{self, Requests, ServerError, ServingTls};
use crate::volume::local::LocalVolumes;
use crate::volume::manager::VolumeManager;
use crate::volume::measure::Measurer;
use crate::volume::memory::MemoryFolder;

pub use crate::pod::handover::Handover;
pub use crate::pod::shared::{NodeWarning, SharedNodeParts};
pub use crate::pod::shutdown::{Shutdown, ShutdownGrace};
pub use config_files::{reload_registries, reload_signature_policy};
pub use image_gc::run_image_gc;
pub use register::{Capacity, FileSystem, KUBELET_VERSION, MAX_PODS_DEFAULT};
pub use thresholds::{BadThresholds, EvictionThresholds};

/// The configuration of one node.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    /// The name, such as `coracle-1`.
    pub name: String,
    /// The folder of its pods' volumes and logs.
    pub data_dir: PathBuf,
    /// The InternalIP address.
    pub internal_ip: IpAddr,
    /// The listen address of the kubelet API.
    pub bind: IpAddr,
    /// The port of the kubelet API; 0 = a free one, published in `status.daemonEndpoints`.
    pub kubelet_port: u16,
    /// The serving certificate, and the CA of clients.
    pub tls: ServingTls,
    /// The podCIDR if the cluster assigns none.
    pub pod_cidr: Option<String>,
    /// The node's capacity.
    pub capacity: Capacity,
    /// Labels in addition to those of docs/contract.md §3.
    pub labels: BTreeMap<String, String>,
    /// Annotations of the Node, such as the address of its tunnel.
    pub annotations: BTreeMap<String, String>,
    /// Taints at registration: key, value, effect.
    pub taints: Vec<(String, String, String)>,
    /// Registers with the taint of an external cloud provider, and annotates the address.
    pub external_provider: bool,
    /// Pod addresses are reachable on the host too.
    pub host_pod_listeners: bool,
    /// The idle timeout of exec, attach and port-forward sessions.
    pub streaming_idle: Duration,
    /// Folders that pods may mount by `hostPath`, with their contents.
    pub host_paths: Vec<PathBuf>,
    /// The thresholds of pressure and eviction.
    pub eviction: EvictionThresholds,
    /// The shutdown of the node.
    pub shutdown: Shutdown,
    /// The folder of the node's checkpoint, with which it starts while the API server is unreachable. `None`: it waits
    /// for the API server.
    pub checkpoint: Option<PathBuf>,
    /// The manifests of static pods: a folder or a file.
    pub static_pods: Option<PathBuf>,
    /// A file system in memory, for volumes with `medium: Memory`.
    pub memory_dir: Option<PathBuf>,
    /// The volumes that outlive pods; `None` = own ones, below its data folder.
    pub volumes: Option<Arc<LocalVolumes>>,
    /// The renewal interval of the Lease (upstream: 10 s).
    pub lease_interval: Duration,
    /// The duration of the Lease (upstream: 40 s).
    pub lease_duration: Duration,
    /// The report interval of an unchanged status (upstream: 5 min).
    pub status_interval: Duration,
    /// `containerRuntimeVersion`; [`run`] sets it from the runtime.
    pub runtime_version: String,
}

impl NodeConfig {
    /// A configuration with upstream's intervals.
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
            annotations: BTreeMap::new(),
            taints: Vec::new(),
            external_provider: false,
            host_pod_listeners: false,
            streaming_idle: server::STREAMING_IDLE_DEFAULT,
            host_paths: Vec::new(),
            eviction: EvictionThresholds::default(),
            shutdown: Shutdown::default(),
            checkpoint: None,
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

/// A node whose Ready status was reported by this run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeReady {
    /// The address of its kubelet API.
    pub kubelet: SocketAddr,
}

/// The reason why an agent stopped.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The kubelet API can't be served.
    #[error("node {name}: {source}")]
    Server {
        /// The node.
        name: String,
        /// The cause.
        source: ServerError,
    },
    /// The node's folder can't be used.
    #[error("node {name}: {what}: {source}")]
    Io {
        /// The node.
        name: String,
        /// The failed operation.
        what: &'static str,
        /// The system's error.
        source: std::io::Error,
    },
    /// Another process is this node.
    #[error(
        "node {name}: another process is this node now (machine {machine}): it renews the node's Lease; give each machine a \
         name of its own with --node-name"
    )]
    NameInUse {
        /// The node.
        name: String,
        /// The `machineID` that the other process reports.
        machine: String,
    },
    /// The node's podCIDR can't be used.
    #[error("node {name}: {source}")]
    Cidr {
        /// The node.
        name: String,
        /// The cause.
        source: BadCidr,
    },
    /// The node runs its pods from a checkpoint, or its Node was deleted, and the API has another podCIDR for it: their
    /// addresses aren't its own.
    #[error("node {name}: its podCIDR is {assigned} now, and its pods have addresses of {used}: start it again")]
    CidrChanged {
        /// The node.
        name: String,
        /// The podCIDR of the checkpoint or of the deleted Node.
        used: String,
        /// The podCIDR of the Node.
        assigned: String,
    },
}

/// The local threads of an agent.
struct Local {
    logs: log::Writer,
    measurer: Measurer,
}

impl Local {
    /// Creates the folders and starts the threads.
    fn start(config: &NodeConfig, env: &Env) -> Result<Self, NodeError> {
        let failed = |what| move |source| NodeError::Io { name: config.name.clone(), what, source };
        for folder in ["pods", "logs"] {
            private_folder(&config.data_dir.join(folder)).map_err(failed("making its data folder"))?;
        }
        let budget = log::Budget::of_disk(config.capacity.ephemeral_bytes);
        let logs = log::Writer::start(env.clone(), budget, &config.data_dir.join("logs"))
            .map_err(failed("starting the thread that writes logs"))?;
        let measurer = Measurer::start(env.clone()).map_err(failed("starting the thread that measures volumes"))?;
        Ok(Self { logs, measurer })
    }
}

/// Serves the kubelet API until `stop`. Returns its address.
async fn serve(
    config: &NodeConfig,
    parts: &SharedNodeParts,
    client: &Client,
    pods: &Arc<PodViews>,
    stop: &CancellationToken,
) -> Result<(SocketAddr, JoinHandle<()>), NodeError> {
    let at_server = |source| NodeError::Server { name: config.name.clone(), source };
    let listener = server::bind(&config.name, SocketAddr::new(config.bind, config.kubelet_port)).map_err(at_server)?;
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

/// Waits for a task and propagates its panic: a node that only stopped renewing its Lease would be considered dead.
async fn panic_of(task: &mut JoinHandle<()>) {
    if let Err(ended) = task.await
        && ended.is_panic()
    {
        std::panic::resume_unwind(ended.into_panic());
    }
}

/// The state that the node's pods share; needs the pod CIDR. `registered`: the API has answered.
fn share(
    config: &NodeConfig,
    parts: SharedNodeParts,
    client: Client,
    (local, addresses, pods, checkpoint): (Local, Addresses, Arc<PodViews>, Checkpoint),
    (facts, registered): (watch::Receiver<NodeFacts>, bool),
    stop: &CancellationToken,
) -> NodeContext {
    let api_wait = parts.env.deadline(if registered { API_WAIT } else { Duration::ZERO });
    let services = Informer::new(client.clone(), parts.env.clone(), stop);
    services.watch::<Service>();
    let sources = ConfigSourceManager::new(client.clone(), parts.env.clone(), stop.child_token());
    let sources = Arc::new(sources.with_checkpoint(checkpoint.clone(), api_wait));
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
    NodeContext {
        recorder: Recorder::start_on(client.clone(), parts.env.clone(), "kubelet", config.name.clone(), stop),
        sources,
        checkpoint,
        api_wait,
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

/// Runs a node agent until `stop`. `ready` is notified once the API has accepted a Ready status of this run.
pub fn run(
    config: NodeConfig,
    parts: SharedNodeParts,
    client: Client,
    ready: oneshot::Sender<NodeReady>,
    stop: CancellationToken,
) -> BoxFuture<'static, Result<(), NodeError>> {
    // Boxed, so that the kubelet is compiled here and not again in the program's crate.
    Box::pin(run_agent(config, parts, client, ready, stop))
}

/// Checks that no other process is this node, if the node has a checkpoint.
async fn check_name(
    config: &NodeConfig,
    client: &Client,
    env: &Env,
    checkpoint: &Checkpoint,
    stop: &CancellationToken,
) -> Result<(), NodeError> {
    if config.checkpoint.is_none() {
        return Ok(());
    }
    let requests = machinery_client::request::ApiClient::from(client.clone());
    let recorded = checkpoint.node().map(|node| node.uid);
    let checked = holder::check(&requests, config, env, recorded.as_deref());
    stop.run_until_cancelled(checked).await.unwrap_or(Ok(()))
}

async fn run_agent(
    mut config: NodeConfig,
    parts: SharedNodeParts,
    client: Client,
    ready: oneshot::Sender<NodeReady>,
    stop: CancellationToken,
) -> Result<(), NodeError> {
    // Ends also if the node itself can't go on.
    let stop = stop.child_token();
    let (runtime, version) = parts.runtime.version();
    config.runtime_version = format!("{runtime}://{version}");
    let local = Local::start(&config, &parts.env)?;
    let checkpoint = Checkpoint::open(config.checkpoint.clone(), &config.name);
    let pods = Arc::new(PodViews::default());
    let (kubelet, server) = serve(&config, &parts, &client, &pods, &stop).await?;

    let (uid, node_uid) = watch::channel(None);
    let (images, folder, of_guests) = (parts.images.clone(), config.data_dir.clone(), pods.clone());
    let guest_memory = config.capacity.guest_memory_bytes;
    let (ledger, thresholds) = (parts.runtime.ledger().clone(), config.eviction);
    let observe = Arc::new(move || {
        let left = guest_memory.saturating_sub(eviction::memory_used(&of_guests));
        register::observe(&images, &folder, ResourceAmount { total: guest_memory, free: left }, &ledger, &thresholds)
    });
    let (shortages, short) = watch::channel(Vec::new());
    let mut status_manager =
        heartbeat::NodeStatusManager::new(&config, client.clone(), &parts.env, kubelet.port(), observe, uid, shortages);
    status_manager.set_checkpoint(checkpoint.clone());
    let requests = client.clone().into();
    let mut lease = tokio::spawn(lease::keep(requests, config.clone(), parts.env.clone(), node_uid, stop.clone()));
    if let Err(taken) = check_name(&config, &client, &parts.env, &checkpoint, &stop).await {
        stop.cancel();
        server.abort();
        return Err(taken);
    }
    // With a pod CIDR, pods can run.
    let (cidr, registered) = tokio::select! {
        () = stop.cancelled() => return Ok(()),
        cidr = status_manager.register_or_restore() => cidr,
    };
    let addresses = Addresses::new(&cidr).map_err(|source| NodeError::Cidr { name: config.name.clone(), source })?;
    config.capacity.pods = config.capacity.pods.min(addresses.count());
    status_manager.set_network_ready(config.capacity);
    let shared = Arc::new(share(
        &config,
        parts,
        client,
        (local, addresses, pods, checkpoint.clone()),
        (status_manager.facts(), registered),
        &stop,
    ));
    let env = shared.parts.env.clone();
    let (status, ..) = tokio::join!(
        async { status_manager.run(ready, kubelet, stop.clone()).await.inspect_err(|_| stop.cancel()) },
        checkpoint.run(env, stop.clone()),
        services::record(shared.clone()),
        eviction::run(shared.clone(), short),
        shutdown::run(shared.clone()),
        image_gc::record_node_warnings(shared.clone()),
        pack::run(shared.clone()),
        pods::run(shared),
        panic_of(&mut lease)
    );
    server.abort();
    lease.abort();
    status
}
