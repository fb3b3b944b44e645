//! The destination of a guest's call after its name is resolved.

use std::net::IpAddr;
use std::sync::Arc;

use crate::routing::table::PortRoute;

/// Where a call leads.
pub(crate) enum Resolved {
    /// The caller's own loopback.
    Own,
    /// The name doesn't exist.
    Unknown,
    /// The Service has no such port, or doesn't admit the caller.
    Refused,
    /// A name outside of the cluster.
    Outside(String),
    /// An address.
    Address(IpAddr),
    /// A Service's port.
    Route(Arc<PortRoute>),
}
