//! Quotas of a pod's sockets, and bounds of one socket.

use std::time::Duration;

use machinery_serve::net::PIPE_FREE_BYTES;
use runtime_api::ledger::{Ledger, Level, Resource};

/// Quotas of a pod. Each is a row of the pod's ledger, so that `--guest-…` flags and metrics mean the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SocketLimits {
    /// Open sockets: listeners, UDP sockets, connections that are being opened, wait in a backlog, or are open.
    pub connections: u32,
    /// Bound ports: listeners and bound UDP sockets.
    pub listeners: u32,
    /// Datagrams that wait for the guest or for their flow to open.
    pub datagrams: u32,
}

impl Default for SocketLimits {
    fn default() -> Self {
        Self { connections: 1024, listeners: 64, datagrams: 1024 }
    }
}

impl SocketLimits {
    /// Sets these quotas in a container's ledger, at the level of its pod.
    pub fn apply(&self, container: &Ledger) {
        let pod = container.at(Level::Pod);
        pod.set_limit(Resource::Sockets, self.connections.into());
        pod.set_limit(Resource::Listeners, self.listeners.into());
        pod.set_limit(Resource::Datagrams, self.datagrams.into());
    }
}

/// Host memory of a socket: its state, its tasks, and the parts of its buffers that are charged with it ([`SCARCE_BUFFER_BYTES`], and the
/// same of a pipe's direction). What waits beyond is charged as it grows.
pub(crate) const SOCKET_BYTES: u64 = 4 << 10;
/// Maximum bytes of one read, and of the data of a connection that wait for the peer.
pub const BUFFER_BYTES_MAX: usize = 64 << 10;
/// The same of a connection while its container has no memory for buffers.
pub const SCARCE_BUFFER_BYTES: usize = PIPE_FREE_BYTES;
/// Default backlog of a listener: that of most servers.
pub(crate) const BACKLOG_DEFAULT: usize = 128;
/// Maximum backlog of a listener (Linux' `somaxconn`).
pub(crate) const BACKLOG_MAX: usize = 4096;
/// Timeout of opening a connection or a flow.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// Timeout of a lookup: resolvers of libc wait so long.
pub(crate) const LOOKUP_TIMEOUT: Duration = Duration::from_secs(10);
/// Time in which a closed connection's last bytes are sent.
pub(crate) const LINGER_MAX: Duration = Duration::from_secs(30);
/// Maximum bytes of a datagram: 65,535 without the headers of IPv4 and UDP.
pub const DATAGRAM_BYTES_MAX: usize = 65_507;
/// Maximum flows (remote addresses) of a UDP socket. One more ends the flow that was used least recently.
pub(crate) const FLOWS_MAX: usize = 512;
/// Host memory of a flow: its task and its queues without datagrams.
pub(crate) const FLOW_BYTES: u64 = 2 << 10;
/// Time after which an unused flow ends: the interval of common NAT devices (RFC 4787 §4.3 wants two minutes).
pub(crate) const FLOW_IDLE: Duration = Duration::from_secs(120);
/// Datagrams that wait for their flow to open.
pub(crate) const OPENING_DATAGRAMS_MAX: usize = 8;
