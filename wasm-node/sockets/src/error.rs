//! Errors of sockets, as `wasi:sockets` names them.

use std::io;

use machinery_serve::net::DialError;
use runtime_api::ledger::Exceeded;

/// An error of a socket operation: the `error-code` of `wasi:sockets` (0.2) with the same meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SocketError {
    /// The destination isn't allowed, or the container has no network.
    #[error("access denied")]
    AccessDenied,
    /// The operation isn't supported.
    #[error("not supported")]
    NotSupported,
    /// An address of the other family, a port 0, an address that can't be a destination.
    #[error("invalid argument")]
    InvalidArgument,
    /// The operation doesn't fit the socket's state.
    #[error("invalid state")]
    InvalidState,
    /// Another operation of the socket is in progress.
    #[error("another operation is in progress")]
    ConcurrencyConflict,
    /// No such operation was started.
    #[error("not in progress")]
    NotInProgress,
    /// The operation isn't complete yet.
    #[error("would block")]
    WouldBlock,
    /// The pod's or the node's quota of sockets is used up.
    #[error("too many sockets")]
    NewSocketLimit,
    /// The container's memory limit leaves no memory for the operation.
    #[error("out of memory")]
    OutOfMemory,
    /// The address isn't the pod's.
    #[error("the address is not this pod's")]
    AddressNotBindable,
    /// The port is used by another socket or server of the pod, or no port is free.
    #[error("address in use")]
    AddressInUse,
    /// The destination can't be reached.
    #[error("unreachable")]
    RemoteUnreachable,
    /// Nothing listens there.
    #[error("connection refused")]
    ConnectionRefused,
    /// The peer reset the connection.
    #[error("connection reset")]
    ConnectionReset,
    /// The connection ended otherwise.
    #[error("connection aborted")]
    ConnectionAborted,
    /// The destination didn't answer in time.
    #[error("timed out")]
    Timeout,
    /// A datagram has more bytes than one can carry.
    #[error("datagram too large")]
    DatagramTooLarge,
    /// The name doesn't exist.
    #[error("name does not exist")]
    NameUnresolvable,
    /// Name servers didn't answer; a later lookup may succeed.
    #[error("name servers do not answer")]
    TemporaryResolverFailure,
}

impl From<Exceeded> for SocketError {
    fn from(_: Exceeded) -> Self {
        Self::NewSocketLimit
    }
}

impl From<DialError> for SocketError {
    fn from(error: DialError) -> Self {
        match error {
            // Addresses are called here, not names: an unknown one isn't routed.
            DialError::NameNotFound(_) => Self::RemoteUnreachable,
            // A Service without endpoints refuses connections.
            DialError::NoEndpoint(_) => Self::ConnectionRefused,
            DialError::Denied(_) => Self::AccessDenied,
            DialError::Timeout(_) => Self::Timeout,
            DialError::Connection { source, .. } => source.downcast_ref().map_or(Self::ConnectionAborted, Self::of_io),
        }
    }
}

impl SocketError {
    /// The error of an operation on a stream.
    #[must_use]
    pub fn of_io(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionRefused => Self::ConnectionRefused,
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => Self::ConnectionReset,
            io::ErrorKind::TimedOut => Self::Timeout,
            io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => Self::RemoteUnreachable,
            io::ErrorKind::PermissionDenied => Self::AccessDenied,
            io::ErrorKind::OutOfMemory => Self::OutOfMemory,
            _ => Self::ConnectionAborted,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_dial_error_is_an_error_of_the_interface() {
        let connection =
            |kind: io::ErrorKind| DialError::Connection { address: "a".into(), source: io::Error::from(kind).into() };
        for (error, expected) in [
            (DialError::NoEndpoint("a".into()), SocketError::ConnectionRefused),
            (DialError::Denied("a".into()), SocketError::AccessDenied),
            (DialError::Timeout("a".into()), SocketError::Timeout),
            (DialError::NameNotFound("a".into()), SocketError::RemoteUnreachable),
            (connection(io::ErrorKind::ConnectionRefused), SocketError::ConnectionRefused),
            (connection(io::ErrorKind::ConnectionReset), SocketError::ConnectionReset),
            (connection(io::ErrorKind::HostUnreachable), SocketError::RemoteUnreachable),
            (DialError::Connection { address: "a".into(), source: "tls".into() }, SocketError::ConnectionAborted),
        ] {
            assert_eq!(SocketError::from(error), expected);
        }
    }
}
