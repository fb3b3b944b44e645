//! Errors and addresses of `guest_sockets` as those of `wasi:sockets` 0.2.

use guest_sockets::SocketError;
use guest_sockets::address::Family;
use wasmtime_wasi::p2::StreamError;
use wasmtime_wasi::p2::bindings::sockets::network::{ErrorCode, IpAddressFamily};

pub(super) fn code(error: SocketError) -> ErrorCode {
    match error {
        SocketError::AccessDenied => ErrorCode::AccessDenied,
        SocketError::NotSupported => ErrorCode::NotSupported,
        SocketError::InvalidArgument => ErrorCode::InvalidArgument,
        SocketError::InvalidState => ErrorCode::InvalidState,
        SocketError::ConcurrencyConflict => ErrorCode::ConcurrencyConflict,
        SocketError::NotInProgress => ErrorCode::NotInProgress,
        SocketError::WouldBlock => ErrorCode::WouldBlock,
        SocketError::NewSocketLimit => ErrorCode::NewSocketLimit,
        SocketError::OutOfMemory => ErrorCode::OutOfMemory,
        SocketError::AddressNotBindable => ErrorCode::AddressNotBindable,
        SocketError::AddressInUse => ErrorCode::AddressInUse,
        SocketError::RemoteUnreachable => ErrorCode::RemoteUnreachable,
        SocketError::ConnectionRefused => ErrorCode::ConnectionRefused,
        SocketError::ConnectionReset => ErrorCode::ConnectionReset,
        SocketError::ConnectionAborted => ErrorCode::ConnectionAborted,
        SocketError::Timeout => ErrorCode::Timeout,
        SocketError::DatagramTooLarge => ErrorCode::DatagramTooLarge,
        SocketError::NameUnresolvable => ErrorCode::NameUnresolvable,
        SocketError::TemporaryResolverFailure => ErrorCode::TemporaryResolverFailure,
    }
}

/// The code of a failed operation.
pub(super) fn failure(error: SocketError) -> wasmtime_wasi::p2::SocketError {
    code(error).into()
}

/// The error of a stream of a connection.
pub(super) fn stream_error(error: SocketError) -> StreamError {
    match error {
        // The guest or the peer has shut the direction down.
        SocketError::ConnectionAborted => StreamError::Closed,
        error => StreamError::LastOperationFailed(wasmtime::Error::new(error)),
    }
}

/// The code behind [`stream_error`].
pub(super) fn of_stream_error(error: &wasmtime::Error) -> Option<ErrorCode> {
    error.downcast_ref::<SocketError>().map(|error| code(*error))
}

pub(super) fn family(of: IpAddressFamily) -> Family {
    match of {
        IpAddressFamily::Ipv4 => Family::V4,
        IpAddressFamily::Ipv6 => Family::V6,
    }
}

pub(super) fn foreign_family(of: Family) -> IpAddressFamily {
    match of {
        Family::V4 => IpAddressFamily::Ipv4,
        Family::V6 => IpAddressFamily::Ipv6,
    }
}
