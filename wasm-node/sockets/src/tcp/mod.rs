//! TCP sockets: a state machine over the pod network.
//!
//! - [`connection`]: an open connection, read and written by polls.
//! - [`listener`]: a bound port and its backlog.

pub mod connection;
mod listener;
mod outgoing;
mod revocable;

use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use machinery_serve::net::Scope;

pub use self::connection::Connection;
use self::connection::ConnectionState;
use self::listener::Listener;
pub(crate) use self::listener::remote_of;
use self::outgoing::Opening;
use crate::address::{Family, bind_scope, check_remote};
use crate::context::SocketGuard;
use crate::limits::{BACKLOG_DEFAULT, BACKLOG_MAX};
use crate::{SocketContext, SocketError};

/// Direction that a guest shuts down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shutdown {
    /// No more reads.
    Receive,
    /// No more writes: the peer reads the end.
    Send,
    /// Both.
    Both,
}

/// A TCP socket of a guest.
pub struct TcpSocket {
    context: SocketContext,
    family: Family,
    guard: Arc<SocketGuard>,
    backlog: usize,
    state: TcpState,
}

enum TcpState {
    Unbound,
    /// The port is reserved; connections to it are refused.
    Bound(Listener),
    Listening(Listener),
    Opening(Opening),
    Connected(Connection),
    /// An attempt failed: such a socket can't be used again (as `wasi:sockets` has it).
    Closed,
}

impl std::fmt::Debug for TcpSocket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = match &self.state {
            TcpState::Unbound => "unbound",
            TcpState::Bound(_) => "bound",
            TcpState::Listening(_) => "listening",
            TcpState::Opening(_) => "opening",
            TcpState::Connected(_) => "connected",
            TcpState::Closed => "closed",
        };
        f.debug_struct("TcpSocket").field("state", &state).finish_non_exhaustive()
    }
}

impl TcpSocket {
    /// A new socket.
    ///
    /// # Errors
    /// If a quota is used up.
    pub fn new(context: SocketContext, family: Family) -> Result<Self, SocketError> {
        let guard = context.socket()?;
        Ok(Self { context, family, guard, backlog: BACKLOG_DEFAULT, state: TcpState::Unbound })
    }

    /// The socket of an accepted connection.
    fn accepted(context: SocketContext, family: Family, guard: Arc<SocketGuard>, connection: Connection) -> Self {
        Self { context, family, guard, backlog: BACKLOG_DEFAULT, state: TcpState::Connected(connection) }
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
        let TcpState::Unbound = self.state else { return Err(SocketError::InvalidState) };
        let pod = self.context.ip()?;
        let scope = bind_scope(self.family, local.ip(), pod)?;
        self.state = TcpState::Bound(Listener::bind(&self.context, (local.ip(), scope), local.port())?);
        Ok(())
    }

    /// The number of connections that may wait for [`TcpSocket::poll_accept`]; larger values are reduced to 4,096.
    ///
    /// # Errors
    /// If it is 0, or the socket is connected.
    pub fn set_backlog(&mut self, connections: u64) -> Result<(), SocketError> {
        if connections == 0 {
            return Err(SocketError::InvalidArgument);
        }
        self.backlog = usize::try_from(connections).unwrap_or(BACKLOG_MAX).min(BACKLOG_MAX);
        match &self.state {
            TcpState::Unbound | TcpState::Bound(_) => Ok(()),
            TcpState::Listening(listener) => {
                listener.set_backlog(self.backlog);
                Ok(())
            }
            _ => Err(SocketError::InvalidState),
        }
    }

    /// Begins to accept connections. An unbound socket gets a free port on all addresses.
    ///
    /// # Errors
    /// If the socket listens or is connected.
    pub fn listen(&mut self) -> Result<(), SocketError> {
        if let TcpState::Unbound = self.state {
            let any = match self.family {
                Family::V4 => [0, 0, 0, 0].into(),
                Family::V6 => std::net::Ipv6Addr::UNSPECIFIED.into(),
            };
            self.bind(SocketAddr::new(any, 0))?;
        }
        match std::mem::replace(&mut self.state, TcpState::Closed) {
            TcpState::Bound(listener) => {
                listener.listen(self.backlog);
                self.state = TcpState::Listening(listener);
                Ok(())
            }
            other => {
                self.state = other;
                Err(SocketError::InvalidState)
            }
        }
    }

    /// Whether it listens.
    #[must_use]
    pub fn is_listening(&self) -> bool {
        matches!(self.state, TcpState::Listening(_))
    }

    /// Whether it is bound to a port, and neither listens nor is connected.
    #[must_use]
    pub fn is_bound(&self) -> bool {
        matches!(self.state, TcpState::Bound(_))
    }

    /// The next connection of the backlog.
    ///
    /// # Errors
    /// If the socket doesn't listen.
    pub fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<Result<Self, SocketError>> {
        let TcpState::Listening(listener) = &self.state else { return Poll::Ready(Err(SocketError::InvalidState)) };
        let (connection, guard) = ready!(listener.poll_accept(&self.context, cx));
        Poll::Ready(Ok(Self::accepted(self.context.clone(), self.family, guard, connection)))
    }

    /// Waits until [`TcpSocket::poll_accept`] would return a connection; returns at once if the socket doesn't listen.
    pub fn poll_acceptable(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &self.state {
            TcpState::Listening(listener) => listener.poll_acceptable(cx),
            _ => Poll::Ready(()),
        }
    }

    /// Begins to open a connection, within 30 s.
    ///
    /// # Errors
    /// A destination that can't be called, or a socket that listens or is connected.
    pub fn start_connect(&mut self, remote: SocketAddr) -> Result<(), SocketError> {
        let local = match &self.state {
            TcpState::Unbound => None,
            TcpState::Bound(listener) => Some(listener.address()),
            _ => return Err(SocketError::InvalidState),
        };
        check_remote(self.family, remote)?;
        let port = || SocketAddr::new(self.context.own_ip(remote.is_ipv4()), self.context.next_port());
        let local = match local {
            Some(local) if local.ip().is_unspecified() => {
                SocketAddr::new(self.context.own_ip(remote.is_ipv4()), local.port())
            }
            Some(local) => local,
            None => port(),
        };
        self.state = TcpState::Opening(Opening::start(&self.context, local, remote));
        Ok(())
    }

    /// Completes [`TcpSocket::start_connect`].
    ///
    /// # Errors
    /// If the connection failed: the socket is closed then. [`SocketError::NotInProgress`] without an attempt.
    pub fn poll_connect(&mut self, cx: &mut Context<'_>) -> Poll<Result<Connection, SocketError>> {
        let TcpState::Opening(opening) = &mut self.state else {
            return Poll::Ready(Err(SocketError::NotInProgress));
        };
        let opened = ready!(opening.poll(cx));
        let (local, remote) = opening.addresses();
        Poll::Ready(match opened {
            Ok(mut stream) => {
                stream.charge_writes(self.context.buffers.clone());
                let state = ConnectionState { context: &self.context, guard: self.guard.clone(), local, remote };
                let connection = Connection::new(stream, state);
                self.state = TcpState::Connected(connection.clone());
                Ok(connection)
            }
            Err(error) => {
                self.state = TcpState::Closed;
                Err(error)
            }
        })
    }

    /// Waits until [`TcpSocket::poll_connect`] would return; at once if no attempt is in progress.
    pub fn poll_connected(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.state {
            TcpState::Opening(opening) => opening.poll_done(cx),
            _ => Poll::Ready(()),
        }
    }

    /// The connection of a connected socket.
    #[must_use]
    pub fn connection(&self) -> Option<&Connection> {
        match &self.state {
            TcpState::Connected(connection) => Some(connection),
            _ => None,
        }
    }

    /// The socket's own address.
    ///
    /// # Errors
    /// If it isn't bound.
    pub fn local(&self) -> Result<SocketAddr, SocketError> {
        match &self.state {
            TcpState::Bound(listener) | TcpState::Listening(listener) => Ok(listener.address()),
            TcpState::Connected(connection) => Ok(connection.local()),
            TcpState::Opening(opening) => Ok(opening.addresses().0),
            TcpState::Unbound | TcpState::Closed => Err(SocketError::InvalidState),
        }
    }

    /// The peer's address.
    ///
    /// # Errors
    /// If the socket isn't connected.
    pub fn remote(&self) -> Result<SocketAddr, SocketError> {
        self.connection().map(Connection::remote).ok_or(SocketError::InvalidState)
    }

    /// Shuts one or both directions of the connection down.
    ///
    /// # Errors
    /// If the socket isn't connected.
    pub fn shutdown(&self, how: Shutdown) -> Result<(), SocketError> {
        let connection = self.connection().ok_or(SocketError::InvalidState)?;
        if how != Shutdown::Send {
            connection.shut_reads();
        }
        if how != Shutdown::Receive {
            connection.shut_writes();
        }
        Ok(())
    }
}

/// Where a bound socket can be reached.
type Bind = (std::net::IpAddr, Scope);

#[cfg(test)]
pub(crate) mod tests;
