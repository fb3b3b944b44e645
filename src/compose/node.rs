//! A node as a process of its own: kubelet, runtime and data plane, against an API server elsewhere.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use http::Uri;
use images::Images;
use k8s_openapi::api::core::v1::{Node, PersistentVolume};
use kube::Client;
use kubelet::node::{Handover, Shutdown};
use kubelet::server::ServingTls;
use machinery_api::names;
use machinery_client::Informer;
use machinery_env::Env;
use machinery_roles::Stops;
use machinery_serve::net::PodNetwork;
use proxy::DataPlane;
use proxy::options::AddressOptions;
use tokio_util::sync::CancellationToken;
use tools_command::data_dir::DataDir;
use tools_command::progress::Progress;
use wasm_runtime::engine::Engine;

use super::ProcessRoles;
use super::dns::DnsParts;
use super::membership::{MembershipParts, access};
use super::metrics::Metrics;
use super::node_configuration::{self, NodeConfiguration};
use super::node_host::{Agent, NodeHost};
use super::nodes::{self, NodesParts};
use super::process::{DRAIN, Lifecycle, PodLayer, Process};
use super::proxy::{self as plane, DataPlaneParts};
use super::tunnel::TunnelParts;
use crate::config::NodesConfig;
use tools_joining::node::{JoinedNode, NodeSource, join};
use tools_joining::serving::serving;

/// The configuration of a node process.
#[derive(Debug, Clone)]
pub(crate) struct NodeProcessConfig {
    pub(crate) name: String,
    /// One node.
    pub(crate) nodes: NodesConfig,
    /// The address at which other machines reach this one.
    pub(crate) address: IpAddr,
    pub(crate) kubelet_port: u16,
    pub(crate) tunnel_port: u16,
    /// Used instead of the cluster's own.
    pub(crate) given: AddressOptions,
}

/// The taint of a node in a cluster that isn't Coracle's.
const FOREIGN_TAINT: &str = "coracle.dev/wasm";

/// A node process that is ready.
pub(crate) struct NodeProcess {
    pub(crate) process: Process,
    /// The API server that it joined by.
    pub(crate) server: Uri,
}

/// What all parts of the process use.
struct Parts<'a> {
    env: &'a Env,
    config: &'a NodeProcessConfig,
    data: &'a DataDir,
    metrics: &'a Metrics,
    node: &'a JoinedNode,
    cluster: &'a NodeConfiguration,
    /// The client of the data plane.
    client: Client,
    stops: &'a Stops,
    ready: &'a CancellationToken,
    pods: PodNetwork,
}

impl NodeProcess {
    /// Joins the cluster, starts the node, and waits until its Ready report is accepted.
    ///
    /// # Errors
    /// If the node can't join, a resource is unavailable, or the node isn't ready in time.
    pub(crate) async fn start(
        env: &Env,
        config: &NodeProcessConfig,
        source: NodeSource,
        data: &DataDir,
        metrics: &Metrics,
        progress: Progress,
    ) -> anyhow::Result<Self> {
        let lock = data.lock()?;
        let (stops, ready) = (Stops::default(), CancellationToken::new());
        progress.doing("joining the cluster");
        let (node, renewal) = join(env, source, &data.pki(), &config.name).await?;
        let (certificates, serving_renewal) = serving(env, &node)?;
        progress.doing("reading the cluster's addresses");
        let cluster = node_configuration::known(env, &node, &config.given, &data.node_configuration()).await?;
        let parts = Parts {
            env,
            config,
            data,
            metrics,
            node: &node,
            cluster: &cluster,
            client: node.data_plane_client(env, cluster.is_coracle)?,
            stops: &stops,
            ready: &ready,
            pods: PodNetwork::default(),
        };
        let (layer, engine, images) = parts.pod_layer()?;
        let serving_tls = ServingTls::rotating(certificates, node.ca_pem.clone().into_bytes());
        let roles = ProcessRoles {
            data_plane: Some(parts.data_plane(&layer)),
            dns: Some(parts.dns(&layer)),
            nodes: Some(parts.nodes(&layer, &engine, &images, serving_tls)),
            membership: Some(MembershipParts {
                env: env.clone(),
                node: node.clone(),
                cluster: cluster.clone(),
                images,
                servers: cluster.is_coracle.then(|| node.data_plane_client(env, true)).transpose()?,
                renewals: (Box::pin(renewal), Box::pin(serving_renewal)),
                stop: stops.components.clone(),
            }),
            ..ProcessRoles::default()
        };
        let lifecycle = Lifecycle {
            env: env.clone(),
            stops: stops.clone(),
            ready: ready.clone(),
            drain_max: DRAIN,
            conditions: Vec::new(),
            pods: Some(layer),
            server: None,
            held: vec![Box::new(lock)],
            only: None,
        };
        Ok(Self { process: Process::start(lifecycle, roles, progress).await?, server: node.server })
    }
}

impl Parts<'_> {
    /// The data plane, the engine and its images.
    fn pod_layer(&self) -> anyhow::Result<(PodLayer, Engine, Arc<Images>)> {
        let nodes = &self.config.nodes;
        let plane = DataPlane::new(self.env.clone(), self.plane(), self.pods.clone())?;
        let engine = nodes::engine(self.env, self.data, nodes)?;
        let blobs = nodes::blob_store(self.data)?;
        let images = nodes::images(self.env, nodes, &engine, (&blobs, access(&self.cluster.registries, self.node)))?;
        let layer = PodLayer {
            plane,
            engine: Some(engine.clone()),
            handover: Handover::default(),
            shutdowns: vec![Shutdown::new(nodes.kubelet.shutdown_grace())],
            nodes: vec![self.config.name.clone()],
            client: self.node.client.clone(),
        };
        Ok((layer, engine, images))
    }

    fn plane(&self) -> proxy::Config {
        proxy::Config {
            cluster_ca_pem: Some(self.node.ca_pem.clone()),
            api_server: local_address(&self.node.server),
            checkpoint: Some(self.data.node(&self.config.name).join("routes")),
            ..plane::config_of(self.cluster, self.config.name.clone(), self.config.nodes.bind)
        }
    }

    fn data_plane(&self, layer: &PodLayer) -> DataPlaneParts {
        self.metrics.add(|registry| layer.plane.metrics().register(registry));
        DataPlaneParts {
            plane: layer.plane.clone(),
            client: self.client.clone(),
            stop: self.stops.pods.clone(),
            threads: layer.threads(),
            is_awaited: true,
        }
    }

    fn dns(&self, layer: &PodLayer) -> DnsParts {
        DnsParts {
            data: self.data.clone(),
            cluster: self.cluster.dns,
            plane: layer.plane.clone(),
            stop: self.stops.pods.clone(),
            threads: layer.threads(),
        }
    }

    fn nodes(&self, layer: &PodLayer, engine: &Engine, images: &Arc<Images>, tls: ServingTls) -> NodesParts {
        let client = &self.node.client;
        let informer = Informer::new(client.clone(), self.env.clone(), &self.stops.components);
        // What a node may read (docs/decisions/0129-node-rights.md).
        informer.watch_selected::<PersistentVolume>("", &format!("{}={}", names::VOLUME_NODE, self.config.name));
        informer.watch_selected::<Node>(&format!("metadata.name={}", self.config.name), "");
        let agents = layer.shutdowns.iter().map(|shutdown| Agent {
            name: self.config.name.clone(),
            client: client.clone(),
            tls: tls.clone(),
            internal_ip: self.config.address,
            kubelet_port: self.config.kubelet_port,
            shutdown: shutdown.clone(),
            external_provider: false,
            taints: taints(self.cluster),
            is_autonomous: true,
        });
        let host = NodeHost {
            env: self.env.clone(),
            data: self.data.clone(),
            config: self.config.nodes.clone(),
            engine: engine.clone(),
            images: images.clone(),
            pods: self.pods.clone(),
            data_plane: layer.plane.clone(),
            agents: agents.collect(),
            namespaces: client.clone(),
            volumes: (informer, client.clone().into()),
            stop: self.stops.components.clone(),
            handover: layer.handover.clone(),
            ready: self.ready.clone(),
        };
        NodesParts { host, tunnel: Some(self.tunnel(layer)), metrics: self.metrics.clone() }
    }

    fn tunnel(&self, layer: &PodLayer) -> TunnelParts {
        TunnelParts {
            bind: SocketAddr::new(self.config.address, self.config.tunnel_port),
            env: self.env.clone(),
            node: self.config.name.clone(),
            certificate: self.node.certificate.clone(),
            ca_pem: self.node.ca_pem.clone(),
            pod_cidrs: vec![self.cluster.pods.into()],
            pods: self.pods.clone(),
            peers: Some(self.data.node(&self.config.name).join("peers")),
            client: self.client.clone(),
            stop: self.stops.pods.clone(),
            threads: layer.threads(),
        }
    }
}

/// The taints of a Node at its registration.
fn taints(cluster: &NodeConfiguration) -> Vec<(String, String, String)> {
    let foreign = !cluster.is_coracle;
    foreign.then(|| (FOREIGN_TAINT.to_owned(), String::new(), "NoSchedule".to_owned())).into_iter().collect()
}

/// The address of an API server on this machine's loopback.
fn local_address(server: &Uri) -> Option<SocketAddr> {
    let ip: IpAddr = server.host()?.parse().ok()?;
    ip.is_loopback().then(|| SocketAddr::new(ip, server.port_u16().unwrap_or(443)))
}
