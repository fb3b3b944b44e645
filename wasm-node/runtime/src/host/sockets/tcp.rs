//! `wasi:sockets/tcp` and `tcp-create-socket`.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::task::Poll;

use guest_sockets::limits::BUFFER_BYTES_MAX;
use guest_sockets::tcp::{Connection, Shutdown, TcpSocket};
use wasmtime::component::Resource;
use wasmtime_wasi::p2::bindings::sockets::network::{ErrorCode, IpAddressFamily, IpSocketAddress, Network};
use wasmtime_wasi::p2::bindings::sockets::tcp::{self, ShutdownType};
use wasmtime_wasi::p2::bindings::sockets::tcp_create_socket;
use wasmtime_wasi::p2::{DynInputStream, DynOutputStream, DynPollable, Pollable, SocketResult, subscribe};

use super::codes::{failure, family, foreign_family};
use super::streams::{Reader, Writer};
use super::{NetworkHandle, Sockets, foreign, handle, no_waker};

type Handle = Resource<tcp::TcpSocket>;
type Streams = (Resource<DynInputStream>, Resource<DynOutputStream>);

/// Defaults of a connection's options (Linux'): idle time and interval in nanoseconds.
const KEEP_ALIVE: KeepAlive = KeepAlive { enabled: false, idle: 7200 * SECOND, interval: 75 * SECOND, count: 9 };
const SECOND: u64 = 1_000_000_000;
/// Default hop limit of a packet (RFC 1700).
const HOP_LIMIT: u8 = 64;

/// A socket of a guest.
pub(super) struct TcpHandle {
    socket: TcpSocket,
    /// The operation that a `finish-…` call completes.
    started: Option<Operation>,
    keep_alive: KeepAlive,
    hop_limit: u8,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Operation {
    Bind,
    Connect,
    Listen,
}

/// The pod network detects a peer that is gone by itself, so that these options are kept and change nothing.
#[derive(Clone, Copy)]
struct KeepAlive {
    enabled: bool,
    idle: u64,
    interval: u64,
    count: u32,
}

impl TcpHandle {
    fn new(socket: TcpSocket) -> Self {
        Self { socket, started: None, keep_alive: KEEP_ALIVE, hop_limit: HOP_LIMIT }
    }

    fn begin(&mut self, operation: Operation) -> SocketResult<()> {
        if self.started.is_some() {
            return Err(ErrorCode::ConcurrencyConflict.into());
        }
        self.started = Some(operation);
        Ok(())
    }

    fn finish(&mut self, operation: Operation) -> SocketResult<()> {
        if self.started != Some(operation) {
            return Err(ErrorCode::NotInProgress.into());
        }
        self.started = None;
        Ok(())
    }
}

#[async_trait::async_trait]
impl Pollable for TcpHandle {
    async fn ready(&mut self) {
        match self.started {
            Some(Operation::Connect) => poll_fn(|cx| self.socket.poll_connected(cx)).await,
            Some(Operation::Bind | Operation::Listen) => {}
            None => poll_fn(|cx| self.socket.poll_acceptable(cx)).await,
        }
    }
}

impl Sockets<'_> {
    fn tcp(&mut self, of: &Handle) -> SocketResult<&mut TcpHandle> {
        Ok(self.0.table.get_mut(&handle::<TcpHandle, _>(of))?)
    }

    fn streams(&mut self, of: &Resource<TcpHandle>, connection: Connection) -> SocketResult<Streams> {
        let input: DynInputStream = Box::new(Reader::new(connection.clone()));
        let output: DynOutputStream = Box::new(Writer(connection));
        let table = &mut self.0.table;
        Ok((table.push_child(input, of)?, table.push_child(output, of)?))
    }
}

/// A value that must not be 0.
fn positive<T: PartialEq + From<u8>>(value: T) -> SocketResult<T> {
    if value == T::from(0) { Err(ErrorCode::InvalidArgument.into()) } else { Ok(value) }
}

impl tcp_create_socket::Host for Sockets<'_> {
    fn create_tcp_socket(&mut self, of: IpAddressFamily) -> SocketResult<Handle> {
        let socket = TcpSocket::new(self.context()?, family(of)).map_err(failure)?;
        Ok(foreign(self.0.table.push(TcpHandle::new(socket))?))
    }
}

impl tcp::Host for Sockets<'_> {}

impl tcp::HostTcpSocket for Sockets<'_> {
    async fn start_bind(&mut self, of: Handle, network: Resource<Network>, local: IpSocketAddress) -> SocketResult<()> {
        self.0.table.get(&handle::<NetworkHandle, _>(&network))?;
        let socket = self.tcp(&of)?;
        if socket.started.is_some() {
            return Err(ErrorCode::ConcurrencyConflict.into());
        }
        socket.socket.bind(SocketAddr::from(local)).map_err(failure)?;
        socket.begin(Operation::Bind)
    }

    fn finish_bind(&mut self, of: Handle) -> SocketResult<()> {
        self.tcp(&of)?.finish(Operation::Bind)
    }

    fn start_connect(&mut self, of: Handle, network: Resource<Network>, remote: IpSocketAddress) -> SocketResult<()> {
        self.0.table.get(&handle::<NetworkHandle, _>(&network))?;
        let socket = self.tcp(&of)?;
        if socket.started.is_some() {
            return Err(ErrorCode::ConcurrencyConflict.into());
        }
        socket.socket.start_connect(SocketAddr::from(remote)).map_err(failure)?;
        socket.begin(Operation::Connect)
    }

    fn finish_connect(&mut self, of: Handle) -> SocketResult<Streams> {
        let socket = self.tcp(&of)?;
        if socket.started != Some(Operation::Connect) {
            return Err(ErrorCode::NotInProgress.into());
        }
        let Poll::Ready(connected) = socket.socket.poll_connect(&mut no_waker()) else {
            return Err(ErrorCode::WouldBlock.into());
        };
        socket.started = None;
        self.streams(&handle(&of), connected.map_err(failure)?)
    }

    async fn start_listen(&mut self, of: Handle) -> SocketResult<()> {
        let socket = self.tcp(&of)?;
        if socket.started.is_some() {
            return Err(ErrorCode::ConcurrencyConflict.into());
        }
        // 0.2 wants an explicit bind.
        if !socket.socket.is_bound() {
            return Err(ErrorCode::InvalidState.into());
        }
        socket.socket.listen().map_err(failure)?;
        socket.begin(Operation::Listen)
    }

    fn finish_listen(&mut self, of: Handle) -> SocketResult<()> {
        self.tcp(&of)?.finish(Operation::Listen)
    }

    fn accept(&mut self, of: Handle) -> SocketResult<(Handle, Resource<DynInputStream>, Resource<DynOutputStream>)> {
        let Poll::Ready(accepted) = self.tcp(&of)?.socket.poll_accept(&mut no_waker()) else {
            return Err(ErrorCode::WouldBlock.into());
        };
        let accepted = accepted.map_err(failure)?;
        let connection = accepted.connection().cloned().ok_or(ErrorCode::InvalidState)?;
        let accepted = self.0.table.push(TcpHandle::new(accepted))?;
        let (input, output) = self.streams(&accepted, connection)?;
        Ok((foreign(accepted), input, output))
    }

    fn local_address(&mut self, of: Handle) -> SocketResult<IpSocketAddress> {
        self.tcp(&of)?.socket.local().map(IpSocketAddress::from).map_err(failure)
    }

    fn remote_address(&mut self, of: Handle) -> SocketResult<IpSocketAddress> {
        self.tcp(&of)?.socket.remote().map(IpSocketAddress::from).map_err(failure)
    }

    fn is_listening(&mut self, of: Handle) -> wasmtime::Result<bool> {
        Ok(self.0.table.get(&handle::<TcpHandle, _>(&of))?.socket.is_listening())
    }

    fn address_family(&mut self, of: Handle) -> wasmtime::Result<IpAddressFamily> {
        Ok(foreign_family(self.0.table.get(&handle::<TcpHandle, _>(&of))?.socket.family()))
    }

    fn set_listen_backlog_size(&mut self, of: Handle, value: u64) -> SocketResult<()> {
        self.tcp(&of)?.socket.set_backlog(value).map_err(failure)
    }

    fn keep_alive_enabled(&mut self, of: Handle) -> SocketResult<bool> {
        Ok(self.tcp(&of)?.keep_alive.enabled)
    }

    fn set_keep_alive_enabled(&mut self, of: Handle, value: bool) -> SocketResult<()> {
        self.tcp(&of)?.keep_alive.enabled = value;
        Ok(())
    }

    fn keep_alive_idle_time(&mut self, of: Handle) -> SocketResult<u64> {
        Ok(self.tcp(&of)?.keep_alive.idle)
    }

    fn set_keep_alive_idle_time(&mut self, of: Handle, value: u64) -> SocketResult<()> {
        self.tcp(&of)?.keep_alive.idle = positive(value)?;
        Ok(())
    }

    fn keep_alive_interval(&mut self, of: Handle) -> SocketResult<u64> {
        Ok(self.tcp(&of)?.keep_alive.interval)
    }

    fn set_keep_alive_interval(&mut self, of: Handle, value: u64) -> SocketResult<()> {
        self.tcp(&of)?.keep_alive.interval = positive(value)?;
        Ok(())
    }

    fn keep_alive_count(&mut self, of: Handle) -> SocketResult<u32> {
        Ok(self.tcp(&of)?.keep_alive.count)
    }

    fn set_keep_alive_count(&mut self, of: Handle, value: u32) -> SocketResult<()> {
        self.tcp(&of)?.keep_alive.count = positive(value)?;
        Ok(())
    }

    fn hop_limit(&mut self, of: Handle) -> SocketResult<u8> {
        Ok(self.tcp(&of)?.hop_limit)
    }

    fn set_hop_limit(&mut self, of: Handle, value: u8) -> SocketResult<()> {
        self.tcp(&of)?.hop_limit = positive(value)?;
        Ok(())
    }

    /// Buffers have one size; the interface lets a host ignore a wish.
    fn receive_buffer_size(&mut self, of: Handle) -> SocketResult<u64> {
        self.tcp(&of).map(|_| BUFFER_BYTES_MAX as u64)
    }

    fn set_receive_buffer_size(&mut self, of: Handle, value: u64) -> SocketResult<()> {
        self.tcp(&of)?;
        positive(value).map(drop)
    }

    fn send_buffer_size(&mut self, of: Handle) -> SocketResult<u64> {
        self.tcp(&of).map(|_| BUFFER_BYTES_MAX as u64)
    }

    fn set_send_buffer_size(&mut self, of: Handle, value: u64) -> SocketResult<()> {
        self.tcp(&of)?;
        positive(value).map(drop)
    }

    fn subscribe(&mut self, of: Handle) -> wasmtime::Result<Resource<DynPollable>> {
        subscribe(&mut self.0.table, handle::<TcpHandle, _>(&of))
    }

    fn shutdown(&mut self, of: Handle, how: ShutdownType) -> SocketResult<()> {
        let how = match how {
            ShutdownType::Receive => Shutdown::Receive,
            ShutdownType::Send => Shutdown::Send,
            ShutdownType::Both => Shutdown::Both,
        };
        self.tcp(&of)?.socket.shutdown(how).map_err(failure)
    }

    fn drop(&mut self, of: Handle) -> wasmtime::Result<()> {
        self.0.table.delete(handle::<TcpHandle, _>(&of))?;
        Ok(())
    }
}
