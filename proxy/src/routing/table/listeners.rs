//! The listeners of a Service: addresses and ports at which it is entered.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use machinery_serve::net::Protocol;

use crate::routing::table::{PortRoute, ServiceRoutes};

/// Address and port of a listener for a Service port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Listen {
    /// On a ClusterIP.
    Cluster(IpAddr, u16),
    /// On the node's address.
    Node(u16),
    /// On a load balancer's address.
    Balancer(IpAddr, u16),
    /// On an external address.
    External(IpAddr, u16),
    /// On the node's address, for load balancers' health checks.
    Health(u16),
    /// For datagrams.
    Datagrams(Entrance),
}

/// Address and port at which a Service port is entered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Entrance {
    /// On a ClusterIP.
    Cluster(IpAddr, u16),
    /// On the node's address.
    Node(u16),
    /// On a load balancer's address.
    Balancer(IpAddr, u16),
    /// On an external address.
    External(IpAddr, u16),
}

impl Entrance {
    fn listen(self, protocol: Protocol) -> Listen {
        match (protocol, self) {
            (Protocol::Udp, entrance) => Listen::Datagrams(entrance),
            (Protocol::Tcp, Self::Cluster(ip, port)) => Listen::Cluster(ip, port),
            (Protocol::Tcp, Self::Node(port)) => Listen::Node(port),
            (Protocol::Tcp, Self::Balancer(ip, port)) => Listen::Balancer(ip, port),
            (Protocol::Tcp, Self::External(ip, port)) => Listen::External(ip, port),
        }
    }
}

/// The listeners of a Service with their routes.
pub(super) fn listeners(routes: &ServiceRoutes) -> BTreeMap<Listen, Arc<PortRoute>> {
    let mut all = BTreeMap::new();
    for ((protocol, port), route) in &routes.ports {
        let mut open = |entrance: Entrance, route: &Arc<PortRoute>| {
            all.insert(entrance.listen(*protocol), route.clone());
        };
        if let Some(ip) = routes.cluster_ip {
            open(Entrance::Cluster(ip, *port), route);
        }
        let outer = routes.external_local.get(&(*protocol, *port)).unwrap_or(route);
        if let Some(node_port) = route.node_port {
            open(Entrance::Node(node_port), outer);
        }
        routes.balancer.iter().for_each(|ip| open(Entrance::Balancer(*ip, *port), outer));
        routes.external.iter().for_each(|ip| open(Entrance::External(*ip, *port), outer));
    }
    all.extend(routes.health.iter().map(|(port, route)| (Listen::Health(*port), route.clone())));
    all
}
