//! UDP sockets. Datagrams of each remote address are a flow: a pipe of the pod network that the caller or this socket has opened.
//!
//! - [`flows`]: the flows of a socket.
//! - [`inbox`]: datagrams that wait for the guest.

mod flows;
mod inbox;

use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use machinery_serve::net::{Attached, Protocol, Serve};
use runtime_api::ledger::{Resource, ResourceGuard};

use self::flows::Flows;
pub use self::inbox::Datagram;
use crate::address::{Family, bind_scope, check_remote};
use crate::context::SocketGuard;
use crate::limits::DATAGRAM_BYTES_MAX;
use crate::{SocketContext, SocketError};

/// A UDP socket of a guest.
pub struct UdpSocket {
    context: SocketContext,
    family: Family,
    bound: Option<Bound>,
    remote: Option<SocketAddr>,
    flows: Arc<Flows>,
    _guard: Arc<SocketGuard>,
}

struct Bound {
    local: SocketAddr,
    _attached: Attached,
    _held: ResourceGuard,
}

impl std::fmt::Debug for UdpSocket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UdpSocket").field("remote", &self.remote).finish_non_exhaustive()
    }
}

impl Drop for UdpSocket {
    fn drop(&mut self) {
        self.flows.close();
    }
}

impl UdpSocket {
    /// A new socket.
    ///
    /// # Errors
    /// If a quota is used up.
    pub fn new(context: SocketContext, family: Family) -> Result<Self, SocketError> {
        let guard = context.socket()?;
        let flows = Flows::new(context.clone());
        Ok(Self { context, family, bound: None, remote: None, flows, _guard: guard })
    }

    /// The socket's family.
    #[must_use]
    pub fn family(&self) -> Family {
        self.family
    }

    /// Binds the socket to an address of the pod; port 0 is replaced by a free one.
    ///
    /// # Errors
    /// A bound socket, an address that isn't the pod's, a used port, or a used up quota.
    pub fn bind(&mut self, local: SocketAddr) -> Result<(), SocketError> {
        if self.bound.is_some() {
            return Err(SocketError::InvalidState);
        }
        let pod = self.context.ip()?;
        let scope = bind_scope(self.family, local.ip(), pod)?;
        let held = self.context.ledger.hold(Resource::Listeners, 1)?;
        let serve: Arc<dyn Serve> = self.flows.clone();
        let (port, attached) = self.context.reserve_port(scope, Protocol::Udp, local.port(), &serve)?;
        attached.open();
        self.bound = Some(Bound { local: SocketAddr::new(local.ip(), port), _attached: attached, _held: held });
        Ok(())
    }

    /// Whether it is bound.
    #[must_use]
    pub fn is_bound(&self) -> bool {
        self.bound.is_some()
    }

    /// Sets or removes the only remote address.
    ///
    /// # Errors
    /// If the address can't be a destination, or the socket isn't bound.
    pub fn connect(&mut self, remote: Option<SocketAddr>) -> Result<(), SocketError> {
        if self.bound.is_none() {
            return Err(SocketError::InvalidState);
        }
        if let Some(remote) = remote {
            check_remote(self.family, remote)?;
        }
        self.remote = remote;
        self.flows.restrict(remote);
        Ok(())
    }

    /// The own address.
    ///
    /// # Errors
    /// If the socket isn't bound.
    pub fn local(&self) -> Result<SocketAddr, SocketError> {
        self.bound.as_ref().map(|bound| bound.local).ok_or(SocketError::InvalidState)
    }

    /// The only remote address.
    ///
    /// # Errors
    /// If there is none.
    pub fn remote(&self) -> Result<SocketAddr, SocketError> {
        self.remote.ok_or(SocketError::InvalidState)
    }

    /// Sends one datagram; `None`: to the only remote address. A datagram that finds a full queue is lost, as in any network.
    ///
    /// # Errors
    /// Too many bytes, no destination or another than the only one, or a quota.
    pub fn send(&self, data: Bytes, to: Option<SocketAddr>) -> Result<(), SocketError> {
        if data.len() > DATAGRAM_BYTES_MAX {
            return Err(SocketError::DatagramTooLarge);
        }
        let to = match (to, self.remote) {
            (Some(to), Some(only)) if to != only => return Err(SocketError::InvalidArgument),
            (to, only) => to.or(only).ok_or(SocketError::InvalidArgument)?,
        };
        check_remote(self.family, to)?;
        if self.bound.is_none() {
            return Err(SocketError::InvalidState);
        }
        self.flows.send(to, data)
    }

    /// The next datagram.
    ///
    /// # Errors
    /// If the only remote address can't be reached.
    pub fn poll_receive(&self, cx: &mut Context<'_>) -> Poll<Result<Datagram, SocketError>> {
        self.flows.inbox.poll_receive(cx)
    }

    /// Waits until [`UdpSocket::poll_receive`] would return.
    pub fn poll_receivable(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.flows.inbox.poll_receivable(cx)
    }
}

#[cfg(test)]
mod tests;
