//! A node as a process of its own: kubelet, runtime and data plane, against an API server elsewhere.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use images::{Images, RegistryAccess};
use k8s_openapi::api::core::v1::{Node, PersistentVolume};
use kube::Client;
use kubelet::node::{Handover, Shutdown};
use kubelet::server::ServingTls;
use machinery_api::names;
use machinery_client::{Informer, TlsIdentity};
use machinery_env::Env;
use machinery_serve::net::PodNetwork;
use machinery_serve::sockets::Layer;
use prometheus_client::registry::Registry;
use proxy::DataPlane;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use wasm_runtime::engine::Engine;

use super::node_configuration::{self, GivenAddresses, NodeConfiguration};
use super::node_host::{Agent, NodeHost};
use super::role::{Component, RunningComponents};
use super::tunnel::{self, BoundTunnel, TunnelParts};
use super::{DRAIN, Leaving, dns, nodes, proxy as plane, retire_control, serves_tls, share_keyvalue_files};
use crate::compiled;
use crate::config::NodesConfig;
use crate::takeover::HandedOver;
use crate::takeover::resumption::{self, Resumption};
use tools_command::data_dir::{DataDir, Lock};
use tools_command::progress::Progress;
use tools_joining::node::{JoinedNode, NodeSource, join};
use tools_joining::serving::serving;

/// Interval of reading the cluster's registries: an API server that was added is pulled from after it.
const REGISTRIES_INTERVAL: Duration = Duration::from_secs(60);

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
    pub(crate) given: GivenAddresses,
}

/// The taint of a node in a cluster that isn't Coracle's.
const FOREIGN_TAINT: &str = "coracle.dev/wasm";

/// A node process that is ready.
pub(crate) struct NodeProcess {
    /// The API server that it joined by.
    pub(crate) server: Uri,
    env: Env,
    failures: mpsc::Receiver<anyhow::Error>,
    components: RunningComponents,
    pods: RunningComponents,
    shutdown: Shutdown,
    handover: Handover,
    plane: DataPlane,
    pub(crate) engine: Engine,
    lock: Lock,
}

/// What all parts of the process use.
struct Parts<'a> {
    env: &'a Env,
    config: &'a NodeProcessConfig,
    data: &'a DataDir,
    node: &'a JoinedNode,
    serving: ServingTls,
    stop: CancellationToken,
    /// The stop of the layer of pods.
    pods_stop: CancellationToken,
    handover: Handover,
}

impl NodeProcess {
    /// Joins the cluster, starts the node, and waits until its Ready report is accepted. Adds the metrics of the data plane
    /// to `metrics`.
    ///
    /// # Errors
    /// If the node can't join, a resource is unavailable, or the node isn't ready in time.
    pub(crate) async fn start(
        env: &Env,
        config: &NodeProcessConfig,
        source: NodeSource,
        data: &DataDir,
        metrics: &mut Registry,
        progress: Progress,
    ) -> anyhow::Result<Self> {
        let lock = data.lock()?;
        let (stop, pods_stop) = (CancellationToken::new(), CancellationToken::new());
        progress.doing("joining the cluster");
        let (node, renewal) = join(env, source, &data.pki(), &config.name).await?;
        let (certificates, serving_renewal) = serving(env, &node)?;
        progress.doing("reading the cluster's addresses");
        let cluster = node_configuration::known(env, &node, &config.given, &data.node_configuration()).await?;
        let handover = Handover::default();
        let parts = Parts {
            env,
            config,
            data,
            node: &node,
            serving: ServingTls::rotating(certificates, node.ca_pem.clone().into_bytes()),
            stop: stop.clone(),
            pods_stop: pods_stop.clone(),
            handover: handover.clone(),
        };
        let (shutdown, ready) = (Shutdown::new(config.nodes.kubelet.shutdown_grace()), CancellationToken::new());
        let (mut components, plane, engine) = parts.components(&cluster, shutdown.clone(), ready.clone(), metrics)?;
        let resumption = Resumption::begin(env, &node.client, [config.name.clone()], &plane).await;
        components.push(Component::until(&stop, "client certificate", renewal));
        if cluster.is_coracle {
            let (node, timers, client) = (node.clone(), env.clone(), node.data_plane_client(env, true)?);
            components.push(Component::until(&stop, "list of API servers", async move {
                node.follow_servers(&timers, &client).await
            }));
        }
        components.push(Component::until(&stop, "serving certificate", serving_renewal));
        let (failed, mut failures) = mpsc::channel(1);
        let mut running = RunningComponents::new(stop, failed.clone());
        let mut pods = RunningComponents::new(pods_stop, failed);
        let start = |component: Component| match component.layer {
            Layer::Control => running.start(component),
            Layer::Pods => pods.start(component),
        };
        let waits: Vec<_> = components.into_iter().filter_map(start).collect();
        for wait in waits {
            progress.doing(wait.what);
            wait.met(env, &mut failures).await?;
        }
        if let Some(resumption) = resumption {
            progress.doing("waiting for the pods");
            resumption.finish(env).await;
            resumption::close_unclaimed_later(env);
        }
        ready.cancel();
        let server = node.server.clone();
        Ok(Self {
            server,
            env: env.clone(),
            failures,
            components: running,
            pods,
            shutdown,
            handover,
            plane,
            engine,
            lock,
        })
    }

    /// Waits for a component that ended before the stop.
    pub(crate) async fn failed(&mut self) -> anyhow::Error {
        match self.failures.recv().await {
            Some(error) => error,
            None => std::future::pending().await,
        }
    }

    /// Drains and stops everything: pods terminate first, within their grace period.
    pub(crate) async fn stop(self) {
        self.shutdown.run(&self.env).await;
        self.end().await;
    }

    /// Ends for a process that has this one's listening sockets, and releases the data folder to it. Pods aren't terminated:
    /// the other process starts them again, and their servers serve on here meanwhile.
    pub(crate) async fn hand_over(self, given: HandedOver) -> Leaving {
        let Self { env, components, pods, handover, plane, engine, lock, .. } = self;
        retire_control(&env, Some(&plane), &handover, components).await;
        share_keyvalue_files(engine).await;
        drop(lock);
        given.released(&env).await;
        Leaving { env, given, pods, handover }
    }

    async fn end(self) {
        let Self { env, mut components, mut pods, .. } = self;
        if let (false, _) | (_, false) = tokio::join!(components.drain(&env, DRAIN), pods.drain(&env, DRAIN)) {
            tracing::warn!("components did not end in time and are aborted");
        }
        components.abort().await;
        pods.abort().await;
    }
}

impl Parts<'_> {
    /// The pods' and the data plane's components.
    fn components(
        &self,
        cluster: &NodeConfiguration,
        shutdown: Shutdown,
        ready: CancellationToken,
        metrics: &mut Registry,
    ) -> anyhow::Result<(Vec<Component>, DataPlane, Engine)> {
        let pods = PodNetwork::default();
        let data_plane = DataPlane::new(self.env.clone(), self.plane(cluster), pods.clone())?;
        let engine = nodes::engine(self.env, self.data, &self.config.nodes)?;
        let blobs = nodes::blob_store(self.data)?;
        let images =
            nodes::images(self.env, &self.config.nodes, &engine, (&blobs, access(&cluster.registries, self.node)))?;
        let client = &self.node.client;
        let threads = Some(engine.guest_runtime().clone());
        let proxy = self.node.data_plane_client(self.env, cluster.is_coracle)?;
        let tunnel = self.tunnel(cluster, &pods, proxy.clone(), threads.clone())?;
        tunnel.tunnel.metrics().register(metrics);
        data_plane.metrics().register(metrics);
        let mut annotations: BTreeMap<_, _> = [(names::TUNNEL_ADDRESS.to_owned(), tunnel.address.to_string())].into();
        if self.config.nodes.share_compiled {
            compiled::start(self.env, &engine, &tunnel.tunnel).register(metrics);
            annotations.insert(names::COMPILED_MODULES.to_owned(), compiled::key(&engine));
        }
        let agent = Agent {
            name: self.config.name.clone(),
            client: client.clone(),
            tls: self.serving.clone(),
            internal_ip: self.config.address,
            kubelet_port: self.config.kubelet_port,
            shutdown,
            external_provider: false,
            taints: taints(cluster),
            annotations,
            is_autonomous: true,
        };
        let informer = Informer::new(client.clone(), self.env.clone(), &self.stop);
        // What a node may read (docs/decisions/0129-node-rights.md).
        informer.watch_selected::<PersistentVolume>("", &format!("{}={}", names::VOLUME_NODE, self.config.name));
        informer.watch_selected::<Node>(&format!("metadata.name={}", self.config.name), "");
        let host = NodeHost {
            env: self.env.clone(),
            data: self.data.clone(),
            config: self.config.nodes.clone(),
            engine: engine.clone(),
            images: images.clone(),
            pods,
            data_plane: data_plane.clone(),
            agents: vec![agent],
            namespaces: client.clone(),
            volumes: (informer, client.clone().into()),
            stop: self.stop.clone(),
            handover: self.handover.clone(),
            ready,
        };
        let mut components = vec![plane::component(data_plane.clone(), proxy, self.pods_stop.clone(), threads.clone())];
        components.push(self.follow_registries(cluster, images));
        let stop = self.pods_stop.clone();
        components.push(dns::component(self.data, cluster.dns, data_plane.clone(), stop, threads)?);
        components.extend(tunnel.components);
        components.extend(host.components()?);
        Ok((components, data_plane, engine))
    }

    fn tunnel(
        &self,
        cluster: &NodeConfiguration,
        pods: &PodNetwork,
        client: Client,
        threads: Option<Handle>,
    ) -> anyhow::Result<BoundTunnel> {
        let parts = TunnelParts {
            env: self.env.clone(),
            node: self.config.name.clone(),
            certificate: self.node.certificate.clone(),
            ca_pem: self.node.ca_pem.clone(),
            pod_cidrs: vec![cluster.pods.into()],
            pods: pods.clone(),
            peers: Some(self.data.node(&self.config.name).join("peers")),
            client,
            stop: self.pods_stop.clone(),
            threads,
        };
        tunnel::bind(self.config.address, self.config.tunnel_port, parts)
    }

    fn plane(&self, cluster: &NodeConfiguration) -> proxy::Config {
        proxy::Config {
            cluster_ca_pem: Some(self.node.ca_pem.clone()),
            api_server: local_address(&self.node.server),
            checkpoint: Some(self.data.node(&self.config.name).join("routes")),
            ..plane::config_of(cluster, self.config.name.clone(), self.config.nodes.bind)
        }
    }

    /// Follows the cluster's list of registries and the node's certificate.
    fn follow_registries(&self, cluster: &NodeConfiguration, images: Arc<Images>) -> Component {
        let (env, mut node) = (self.env.clone(), self.node.clone());
        let mut known = cluster.registries.clone();
        Component::until(&self.stop, "registries of the API servers", async move {
            loop {
                env.sleep(REGISTRIES_INTERVAL).await;
                let renewed = node.certificate.has_changed().unwrap_or(false);
                match node_configuration::read(&node.client).await {
                    // New clients are only made for a change.
                    Ok(Some(cluster)) if renewed || cluster.registries != known => {
                        node.certificate.mark_unchanged();
                        images.configure_built_in(access(&cluster.registries, &node));
                        known = cluster.registries;
                    }
                    Ok(_) => {}
                    Err(error) => tracing::debug!("{error:#}"),
                }
            }
        })
    }
}

/// How a node pulls from the API servers' registries: its certificate authenticates it.
fn access(registries: &[String], node: &JoinedNode) -> Vec<RegistryAccess> {
    let access = |address: &String| RegistryAccess {
        address: address.clone(),
        credentials: None,
        ca_pem: serves_tls(address).then(|| node.ca_pem.clone().into_bytes()),
        identity_pem: serves_tls(address).then(|| identity_pem(&node.certificate.borrow())),
    };
    registries.iter().map(access).collect()
}

/// The taints of a Node at its registration.
fn taints(cluster: &NodeConfiguration) -> Vec<(String, String, String)> {
    let foreign = !cluster.is_coracle;
    foreign.then(|| (FOREIGN_TAINT.to_owned(), String::new(), "NoSchedule".to_owned())).into_iter().collect()
}

fn identity_pem(identity: &TlsIdentity) -> Vec<u8> {
    format!("{}\n{}", identity.cert_pem, identity.key_pem).into_bytes()
}

/// The address of an API server on this machine's loopback.
fn local_address(server: &Uri) -> Option<SocketAddr> {
    let ip: IpAddr = server.host()?.parse().ok()?;
    ip.is_loopback().then(|| SocketAddr::new(ip, server.port_u16().unwrap_or(443)))
}
