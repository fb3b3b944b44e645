//! `coracle proxy`: the data plane as a process of its own, on a machine without a node.

use std::net::{IpAddr, Ipv4Addr};

use clap::Args;
use ipnet::Ipv4Net;
use machinery_env::Env;
use machinery_options::feature_gates::FeatureFlags;
use machinery_rules::address_pool::AddressPool;

use crate::compose::kubeconfig_process::{self, KubeconfigFlags, KubeconfigParts};
use crate::compose::{self, DataPlaneParts, GivenAddresses};
use crate::config::NetworkConfig;
use tools_command::environment::host_name;
use tools_command::failure::Failure;

/// Upstream's name of this program.
const UPSTREAM: &str = "kube-proxy";

/// Flags of `coracle proxy`.
#[derive(Debug, Clone, Args)]
pub(crate) struct Proxy {
    #[command(flatten)]
    kubeconfig: KubeconfigFlags,
    /// Name of the node to which `externalTrafficPolicy: Local` and events refer [default: this machine's name]
    #[arg(long, env = "CORACLE_NODE_NAME", value_name = "NAME")]
    node_name: Option<String>,
    /// Address on which NodePorts listen [default: all]
    #[arg(long, env = "CORACLE_NODE_IP", value_name = "ADDR")]
    node_ip: Option<IpAddr>,
    #[command(flatten)]
    network: NetworkFlags,
    #[command(flatten)]
    features: FeatureFlags,
}

/// The cluster's addresses, where it doesn't publish them.
#[derive(Debug, Clone, Args)]
pub(super) struct NetworkFlags {
    /// Addresses of Services [default: the cluster's own, else 10.96.0.0/12]
    #[arg(long, env = "CORACLE_SERVICE_CIDR", value_name = "CIDR")]
    service_cidr: Option<Ipv4Net>,
    /// Addresses of pods [default: the cluster's own, else 10.244.0.0/16]
    #[arg(long, env = "CORACLE_CLUSTER_CIDR", value_name = "CIDR")]
    cluster_cidr: Option<Ipv4Net>,
    /// Addresses of LoadBalancer Services and externalIPs; the data plane listens on those that this machine has
    /// [default: the cluster's own]
    #[arg(long, env = "CORACLE_LOAD_BALANCER_POOL", value_name = "POOL")]
    load_balancer_pool: Option<AddressPool>,
}

impl NetworkFlags {
    /// The given addresses.
    pub(super) fn given(&self) -> GivenAddresses {
        let (service_cidr, cluster_cidr) = (self.service_cidr, self.cluster_cidr);
        GivenAddresses {
            network: NetworkConfig { service_cidr, cluster_cidr, node_cidr_mask_size: None },
            balancer_pool: self.load_balancer_pool.clone(),
        }
    }
}

/// Runs until SIGINT or SIGTERM.
///
/// # Errors
/// If the kubeconfig can't be used, or the cluster's addresses can't be read.
pub(crate) fn run(flags: &Proxy) -> Result<(), Failure> {
    let bind = flags.node_ip.unwrap_or(Ipv4Addr::UNSPECIFIED.into());
    let node = flags.node_name.clone().unwrap_or_else(|| host_name().to_lowercase());
    let (given, gates) = (flags.network.given(), flags.features.features());
    kubeconfig_process::run(&flags.kubeconfig, UPSTREAM, (&Env::real(), &gates), async |parts| {
        let KubeconfigParts { env, client, metrics, stops, .. } = parts;
        let plane = compose::lone_plane(&env, &client, &given, (node, bind)).await?;
        metrics.add(|registry| plane.metrics().register(registry));
        let data_plane = DataPlaneParts { plane, client, stop: stops.pods, threads: None, is_awaited: false };
        Ok(data_plane.into())
    })
}
