//! One address that a Service's port leads to, and how busy it is.

use std::net::{IpAddr, SocketAddr};

use crate::pending::Pending;

/// One address that a Service port can send to.
#[derive(Debug)]
pub struct Endpoint {
    /// The pod's (or other) address.
    pub ip: IpAddr,
    /// The target port.
    pub port: u16,
    /// The node that the endpoint is on, where the slice says it.
    pub node: Option<String>,
    /// The name that it has below its Service's: its own host name, else its address with dashes (as cluster DNS).
    pub hostname: String,
    /// Requests and connections that are open; shared by all routes to the same address and port.
    pub pending: Pending,
}

impl Endpoint {
    /// Where it is.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        SocketAddr::new(self.ip, self.port)
    }
}
