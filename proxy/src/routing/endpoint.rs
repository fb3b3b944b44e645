//! One address behind a Service port, with its number of requests in flight for load balancing.

use std::net::{IpAddr, SocketAddr};

use k8s_openapi::api::discovery::v1::Endpoint as SliceEndpoint;

use crate::routing::in_flight::InFlightCount;

/// The nodes and zones whose callers prefer an endpoint (KEP-4444, KEP-3015).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hints {
    /// Names of nodes.
    pub nodes: Box<[Box<str>]>,
    /// Names of zones.
    pub zones: Box<[Box<str>]>,
}

impl Hints {
    /// The hints of an endpoint.
    pub(crate) fn of(endpoint: &SliceEndpoint) -> Self {
        let Some(hints) = &endpoint.hints else { return Self::default() };
        let nodes = hints.for_nodes.iter().flatten().map(|node| node.name.as_str().into());
        let zones = hints.for_zones.iter().flatten().map(|zone| zone.name.as_str().into());
        Self { nodes: nodes.collect(), zones: zones.collect() }
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty() && self.zones.is_empty()
    }
}

/// One address behind a Service port.
#[derive(Debug)]
pub struct Endpoint {
    /// The pod's (or other) address.
    pub ip: IpAddr,
    /// The target port.
    pub port: u16,
    /// The endpoint's node, where the slice contains it.
    pub node: Option<String>,
    /// The callers that prefer it.
    pub hints: Hints,
    /// The host name below its Service's: its own, else its address with dashes (as in cluster DNS).
    pub hostname: String,
    /// In-flight requests and connections; shared by all routes to the same address and port.
    pub in_flight: InFlightCount,
}

impl Endpoint {
    /// The socket address.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        SocketAddr::new(self.ip, self.port)
    }
}
