//! One address behind a Service port, with its number of requests in flight for load balancing.

use std::net::{IpAddr, SocketAddr};

use crate::in_flight::InFlightCount;

/// One address behind a Service port.
#[derive(Debug)]
pub struct Endpoint {
    /// The pod's (or other) address.
    pub ip: IpAddr,
    /// The target port.
    pub port: u16,
    /// The endpoint's node, where the slice contains it.
    pub node: Option<String>,
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
