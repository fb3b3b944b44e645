//! The data plane's role. It runs on the guests' threads: a request is handed to a guest without a change of thread.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use ::proxy::DataPlane;
use ::proxy::options::AddressOptions;
use anyhow::Context as _;
use apiserver_auth::pki::Pki;
use kube::Client;
use machinery_env::Env;
use machinery_roles::Component;
use machinery_serve::net::PodNetwork;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::ground::Ground;
use super::identities::ComponentIdentity;
use super::node_configuration::{self, NodeConfiguration};
use super::nodes::node_names;
use crate::config::ClusterConfig;
use crate::network::Network;

/// The data plane's configuration.
pub(super) fn config(config: &ClusterConfig, network: &Network, pki: &Pki, api_server: SocketAddr) -> proxy::Config {
    proxy::Config {
        bind: config.nodes.bind,
        cluster_ip_listeners: network.services.network().is_loopback(),
        cluster_cidrs: vec![network.services.into(), network.pods.into()],
        load_balancer_pool: config.controllers.balancers.pool().clone(),
        is_pool_shared: false,
        cluster_dns: network.dns().map(Into::into),
        cluster_ca_pem: Some(pki.ca_pem().to_owned()),
        api_server: Some(api_server),
        node: "coracle".into(),
        nodes: node_names(config.nodes.count).collect(),
        // The API server is in this process.
        checkpoint: None,
    }
}

/// Whether this machine takes connections to an address of the Services: they are loopback addresses, or a local route leads
/// there (docs/addresses.md).
pub(super) fn is_bindable(address: Ipv4Addr) -> bool {
    std::net::TcpListener::bind((address, 0)).is_ok()
}

/// The data plane's configuration on a machine without an API server.
pub(super) fn config_of(cluster: &NodeConfiguration, node: String, bind: IpAddr) -> proxy::Config {
    proxy::Config {
        bind,
        cluster_ip_listeners: cluster.dns.is_some_and(is_bindable),
        cluster_cidrs: vec![cluster.services.into(), cluster.pods.into()],
        load_balancer_pool: cluster.balancer_pool.clone(),
        is_pool_shared: true,
        cluster_dns: cluster.dns.map(Into::into),
        cluster_ca_pem: None,
        api_server: None,
        nodes: [node.clone()].into(),
        node,
        checkpoint: None,
    }
}

/// A data plane without pods, for a node's name and the address of its NodePorts.
///
/// # Errors
/// If the cluster's addresses can't be read.
pub(crate) async fn lone_plane(
    env: &Env,
    client: &Client,
    given: &AddressOptions,
    (node, bind): (String, IpAddr),
) -> anyhow::Result<DataPlane> {
    let cluster = node_configuration::resolve(client, given).await?;
    Ok(DataPlane::new(env.clone(), config_of(&cluster, node, bind), PodNetwork::default())?)
}

/// The data plane, which isn't started.
pub(crate) struct DataPlaneParts {
    pub(crate) plane: DataPlane,
    /// Reads Services and their endpoints.
    pub(crate) client: Client,
    pub(crate) stop: CancellationToken,
    /// `None`: the threads of the control plane.
    pub(crate) threads: Option<Handle>,
    /// The start waits until it has the Services.
    pub(crate) is_awaited: bool,
}

impl DataPlaneParts {
    /// That of a cluster.
    pub(super) fn of(ground: &Ground) -> Self {
        let plane = ground.pods.plane.clone();
        ground.metrics.add(|registry| plane.metrics().register(registry));
        Self {
            plane,
            client: ground.client(ComponentIdentity::Proxy),
            stop: ground.stops.pods.clone(),
            threads: ground.plane_threads(),
            is_awaited: true,
        }
    }

    /// The data plane.
    pub(super) fn build(self) -> Vec<Component> {
        let Self { plane, client, stop, threads, is_awaited } = self;
        let (synced, routes_known) = tokio::sync::oneshot::channel();
        let synced = move || {
            // Without a receiver the cluster is stopping, or nothing waits.
            let _ = synced.send(());
        };
        let run = async move { proxy::run(plane, client, stop, synced).await };
        let component = Component::stopping("data plane", run).on(threads);
        if !is_awaited {
            return vec![component];
        }
        let known = async move {
            routes_known.await.context("the data plane stopped before its first sync; see --log-level info")
        };
        vec![component.ready("waiting for the data plane", known)]
    }
}
