//! The node agents of a process and what they share: one engine, one blob store and one data plane serve all of them. The
//! same for nodes beside an API server and for a node as a process of its own; the identities differ.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use images::Images;
use kube::Client;
use kubelet::node::{Capacity, Handover, NodeConfig, SharedNodeParts, Shutdown};
use kubelet::server::ServingTls;
use kubelet::volume::local::LocalVolumes;
use kubelet::volume::local_provisioner::{self, LocalVolumesByNode};
use machinery_client::Informer;
use machinery_client::request::ApiClient;
use machinery_env::Env;
use machinery_roles::Component;
use machinery_serve::net::PodNetwork;
use proxy::DataPlane;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use wasm_runtime::engine::Engine;

use super::nodes::guest_memory_bytes;
use crate::config::NodesConfig;
use tools_command::data_dir::DataDir;

/// The second shortest Lease: after three missed renewals its node counts as dead, within 2 s.
const SHORT_LEASE: Duration = Duration::from_secs(2);
/// Maximum unreported warnings of a node: they are rare, minutes apart.
const NODE_WARNINGS_MAX: usize = 16;
/// The tmpfs for all users on Linux; other systems have none.
const MEMORY_DIR: &str = "/dev/shm";
/// Timeout of a node's first Ready report.
const NODE_READY_TIMEOUT: Duration = Duration::from_secs(60);

/// Shared parts of the node agents of a process.
pub(super) struct NodeHost {
    pub(super) env: Env,
    pub(super) data: DataDir,
    pub(super) config: NodesConfig,
    pub(super) engine: Engine,
    pub(super) images: Arc<Images>,
    pub(super) pods: PodNetwork,
    pub(super) data_plane: DataPlane,
    pub(super) agents: Vec<Agent>,
    /// A client that may read the namespaces of the nodes' pods, at least.
    pub(super) namespaces: Client,
    /// The cache and the client of the local volumes' provisioner.
    pub(super) volumes: (Arc<Informer>, ApiClient),
    pub(super) stop: CancellationToken,
    /// The takeover of the process.
    pub(super) handover: Handover,
    /// Cancelled when the process is ready: starts tasks that no start waits for.
    pub(super) ready: CancellationToken,
}

/// The identity of one node agent.
pub(super) struct Agent {
    pub(super) name: String,
    pub(super) client: Client,
    pub(super) tls: ServingTls,
    pub(super) internal_ip: IpAddr,
    /// The port of the kubelet API; 0 = a free one.
    pub(super) kubelet_port: u16,
    pub(super) shutdown: Shutdown,
    /// Registers with the taint of an external cloud provider.
    pub(super) external_provider: bool,
    /// Taints at registration: key, value, effect.
    pub(super) taints: Vec<(String, String, String)>,
    /// Starts from its checkpoint while the API server is away. Then it may be Ready late.
    pub(super) is_autonomous: bool,
}

impl NodeHost {
    /// The agents, and the tasks that serve all of them. Each Node has the `annotations`.
    ///
    /// # Errors
    /// If the machine's resources can't be read.
    pub(super) fn components(&self, annotations: &BTreeMap<String, String>) -> anyhow::Result<Vec<Component>> {
        let parts = SharedNodeParts {
            runtime: Arc::new(self.engine.clone()),
            images: self.images.clone(),
            imports: wasm_runtime::engine::imports,
            network: self.pods.clone(),
            dial: Arc::new(self.data_plane.clone()),
            env: self.env.clone(),
            node_warnings: tokio::sync::broadcast::channel(NODE_WARNINGS_MAX).0,
            handover: self.handover.clone(),
        };
        let volumes: LocalVolumesByNode = self
            .agents
            .iter()
            .map(|agent| {
                let own = LocalVolumes::new(&self.data.node(&agent.name), self.env.clone());
                (agent.name.clone(), Arc::new(own))
            })
            .collect();
        let mut components = vec![
            self.image_gc(&parts),
            self.keyvalue_collector(&parts),
            self.toolbox(),
            self.volume_provisioner(volumes.clone()),
        ];
        components.extend(self.config.images.registries_file.clone().map(|file| self.registries(&parts, file)));
        components.extend(self.config.images.signature_policy_file.clone().map(|file| self.signatures(&parts, file)));
        for agent in &self.agents {
            components.push(self.agent(agent, annotations, &parts, volumes.get(&agent.name).cloned())?);
        }
        Ok(components)
    }

    fn image_gc(&self, parts: &SharedNodeParts) -> Component {
        let (parts, policy) = (parts.clone(), self.config.images.collection);
        let (folder, stop) = (self.data.path().to_owned(), self.stop.clone());
        let run = async move { kubelet::node::run_image_gc(parts, policy, folder, stop).await };
        Component::stopping("image garbage collection", run)
    }

    /// Pulls the sessions' toolbox image once the cluster is ready.
    fn toolbox(&self) -> Component {
        let (images, ready) = (self.images.clone(), self.ready.clone());
        let prepare = async move {
            ready.cancelled().await;
            if let Err(error) = images.prepare_toolbox().await {
                tracing::warn!(%error, "the sessions' toolbox is not ready: the first session will retry");
            }
            std::future::pending::<()>().await;
        };
        Component::until(&self.stop, "preparer of the toolbox", prepare)
    }

    /// Reloads the registry configuration on changes of its file.
    fn registries(&self, parts: &SharedNodeParts, file: PathBuf) -> Component {
        let (parts, stop) = (parts.clone(), self.stop.clone());
        Component::stopping("registries", async move {
            kubelet::node::reload_registries(parts, file, tools_command::environment::proxies(), stop).await;
        })
    }

    /// Reloads the signature policy on changes of its file.
    fn signatures(&self, parts: &SharedNodeParts, file: PathBuf) -> Component {
        let (parts, stop) = (parts.clone(), self.stop.clone());
        let run = async move { kubelet::node::reload_signature_policy(parts, file, stop).await };
        Component::stopping("signature policy", run)
    }

    /// Removes the key-value data of deleted namespaces.
    fn keyvalue_collector(&self, parts: &SharedNodeParts) -> Component {
        let (client, runtime) = (self.namespaces.clone(), parts.runtime.clone());
        let (env, stop) = (self.env.clone(), self.stop.clone());
        let run = async move { kubelet::config::keyvalue::collect(runtime, client, env, stop).await };
        Component::stopping("keyvalue garbage collector", run)
    }

    /// Removes and expands the local volumes of these nodes.
    fn volume_provisioner(&self, nodes: LocalVolumesByNode) -> Component {
        let ((informer, client), env, stop) = (self.volumes.clone(), self.env.clone(), self.stop.clone());
        let run = async move { local_provisioner::run(informer, client, nodes, env, stop).await };
        Component::stopping("local volume provisioner", run)
    }

    fn agent(
        &self,
        agent: &Agent,
        annotations: &BTreeMap<String, String>,
        parts: &SharedNodeParts,
        volumes: Option<Arc<LocalVolumes>>,
    ) -> anyhow::Result<Component> {
        let machine = Capacity::of_machine(self.config.count, self.data.path(), guest_memory_bytes()?);
        let capacity = Capacity { pods: self.config.kubelet.max_pods, ..machine };
        let folder = self.data.node(&agent.name);
        let mut node = NodeConfig::new(agent.name.clone(), folder, agent.internal_ip, agent.tls.clone(), capacity);
        node.bind = self.config.bind;
        node.kubelet_port = agent.kubelet_port;
        node.host_pod_listeners = self.config.kubelet.host_pod_listeners;
        node.external_provider = agent.external_provider;
        node.taints = agent.taints.clone();
        node.annotations = annotations.clone();
        node.checkpoint = agent.is_autonomous.then(|| self.data.node(&agent.name).join("checkpoint"));
        node.streaming_idle = self.config.kubelet.streaming_idle();
        node.host_paths = self.config.kubelet.allow_host_path.clone();
        node.static_pods = self.config.kubelet.pod_manifest_path.clone();
        node.eviction = self.config.kubelet.eviction();
        node.shutdown = agent.shutdown.clone();
        if self.config.short_leases {
            (node.lease_interval, node.lease_duration) = (SHORT_LEASE / 4, SHORT_LEASE);
        }
        node.memory_dir = Some(MEMORY_DIR.into());
        node.volumes = volumes;
        let (reporter, reported) = oneshot::channel();
        let (parts, client, stop) = (parts.clone(), agent.client.clone(), self.stop.clone());
        let run = async move { kubelet::node::run(node, parts, client, reporter, stop).await };
        let (env, is_autonomous) = (self.env.clone(), agent.is_autonomous);
        let ready = async move {
            let reported = env.timeout(NODE_READY_TIMEOUT, reported).await;
            if is_autonomous && reported.is_err() {
                tracing::warn!("the API server has not taken the node's Ready report; its pods run all the same");
                return Ok(());
            }
            reported
                .context("a node did not become Ready in time: see the log with --log-level info")?
                .context("a node ended before it was Ready: see the log with --log-level info")?;
            anyhow::Ok(())
        };
        Ok(Component::new("node", run).ready("waiting for the nodes", ready))
    }
}
