//! The options of the data plane.

use std::net::{IpAddr, Ipv4Addr};

use clap::Args;
use ipnet::Ipv4Net;
use machinery_rules::address_pool::AddressPool;

/// The port of the tunnel between nodes.
const TUNNEL_PORT: u16 = 10_265;

/// Options of a data plane without a node.
#[derive(Debug, Clone, Args)]
pub struct ProxyOptions {
    /// Name of the node to which `externalTrafficPolicy: Local` and events refer [default: this machine's name]
    #[arg(long, env = "CORACLE_NODE_NAME", value_name = "NAME")]
    pub node_name: Option<String>,
    /// Address on which NodePorts listen [default: all]
    #[arg(long, env = "CORACLE_NODE_IP", value_name = "ADDR")]
    node_ip: Option<IpAddr>,
    /// The cluster's addresses.
    #[command(flatten)]
    pub addresses: AddressOptions,
}

impl ProxyOptions {
    /// The address on which NodePorts listen.
    #[must_use]
    pub fn bind(&self) -> IpAddr {
        self.node_ip.unwrap_or(Ipv4Addr::UNSPECIFIED.into())
    }
}

/// The cluster's addresses, where it doesn't publish them.
#[derive(Debug, Clone, Default, Args)]
pub struct AddressOptions {
    /// Addresses of Services [default: the cluster's own, else 10.96.0.0/12]
    #[arg(long, env = "CORACLE_SERVICE_CIDR", value_name = "CIDR")]
    pub service_cidr: Option<Ipv4Net>,
    /// Addresses of pods [default: the cluster's own, else 10.244.0.0/16]
    #[arg(long, env = "CORACLE_CLUSTER_CIDR", value_name = "CIDR")]
    pub cluster_cidr: Option<Ipv4Net>,
    /// Addresses of LoadBalancer Services and externalIPs; the data plane listens on those that this machine has
    /// [default: the cluster's own]
    #[arg(long, env = "CORACLE_LOAD_BALANCER_POOL", value_name = "POOL")]
    pub load_balancer_pool: Option<AddressPool>,
}

/// Options of the tunnel between nodes.
#[derive(Debug, Clone, Args)]
pub struct TunnelOptions {
    /// Port of the tunnel between nodes; 0 picks a free one
    #[arg(long, env = "CORACLE_TUNNEL_PORT", default_value_t = TUNNEL_PORT, value_name = "PORT")]
    pub tunnel_port: u16,
}

impl Default for TunnelOptions {
    /// The command line without flags, whatever the environment is.
    fn default() -> Self {
        machinery_options::defaults()
    }
}
