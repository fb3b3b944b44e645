//! The way of a client's datagrams to its endpoint, as the flows of all listeners keep it.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use socket2::SockRef;
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::state::flows::FlowTable;

/// A flow by its listener's address and its client's.
pub(crate) type FlowKey = (SocketAddr, SocketAddr);
/// The flows of all listeners.
pub(crate) type Flows = FlowTable<FlowKey, FlowTarget>;

/// The way of a client's datagrams to its endpoint.
#[derive(Debug, Clone)]
pub(crate) struct FlowTarget {
    pub(crate) to: ToEndpoint,
    /// Ends the flow.
    pub(crate) stop: CancellationToken,
}

#[derive(Debug, Clone)]
pub(crate) enum ToEndpoint {
    Socket(Arc<UdpSocket>),
    Pod(mpsc::Sender<Bytes>),
}

impl ToEndpoint {
    /// Sends a datagram, or drops it if the endpoint is slow, as a network would.
    pub(crate) fn send(&self, datagram: &[u8]) {
        match self {
            Self::Socket(socket) => send_now(socket, datagram),
            Self::Pod(pod) => drop(pod.try_send(Bytes::copy_from_slice(datagram))),
        }
    }
}

/// Sends a datagram over a connected socket without a wait. tokio's own `try_send` fails on a socket that its reactor has
/// not seen yet, and so on the first datagram.
pub(crate) fn send_now(socket: &UdpSocket, datagram: &[u8]) {
    if let Err(error) = SockRef::from(socket).send(datagram) {
        tracing::trace!(%error, "a datagram was dropped");
    }
}
