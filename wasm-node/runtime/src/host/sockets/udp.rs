//! `wasi:sockets/udp` and `udp-create-socket`.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;

use guest_sockets::limits::{BUFFER_BYTES_MAX, DATAGRAM_BYTES_MAX};
use guest_sockets::udp::{Datagram, UdpSocket};
use wasmtime::component::Resource;
use wasmtime_wasi::p2::bindings::sockets::network::{ErrorCode, IpAddressFamily, IpSocketAddress, Network};
use wasmtime_wasi::p2::bindings::sockets::udp::{
    self, IncomingDatagram, IncomingDatagramStream, OutgoingDatagram, OutgoingDatagramStream,
};
use wasmtime_wasi::p2::bindings::sockets::udp_create_socket;
use wasmtime_wasi::p2::{DynPollable, Pollable, SocketError, SocketResult, subscribe};

use super::codes::{failure, family, foreign_family};
use super::{NetworkHandle, Sockets, foreign, handle, no_waker};

/// Maximum datagrams of one call.
const BATCH_MAX: usize = 16;
/// Default hop limit of a packet (RFC 1700).
const HOP_LIMIT: u8 = 64;

type Handle = Resource<udp::UdpSocket>;
type Streams = (Resource<IncomingDatagramStream>, Resource<OutgoingDatagramStream>);

/// A socket of a guest.
pub(super) struct UdpHandle {
    socket: Arc<Mutex<UdpSocket>>,
    is_binding: bool,
    hop_limit: u8,
}

/// Its received datagrams.
struct Incoming {
    socket: Arc<Mutex<UdpSocket>>,
}

/// Its way to send.
struct Outgoing {
    socket: Arc<Mutex<UdpSocket>>,
    /// The number of datagrams that the last `check-send` has permitted.
    permitted: usize,
}

fn lock(socket: &Mutex<UdpSocket>) -> MutexGuard<'_, UdpSocket> {
    socket.lock().unwrap_or_else(PoisonError::into_inner)
}

#[async_trait::async_trait]
impl Pollable for UdpHandle {
    /// No operation of the socket itself waits.
    async fn ready(&mut self) {}
}

#[async_trait::async_trait]
impl Pollable for Incoming {
    async fn ready(&mut self) {
        poll_fn(|cx| lock(&self.socket).poll_receivable(cx)).await;
    }
}

#[async_trait::async_trait]
impl Pollable for Outgoing {
    /// A datagram that finds a full queue is lost, so sending never waits.
    async fn ready(&mut self) {}
}

impl Sockets<'_> {
    fn udp(&mut self, of: &Handle) -> SocketResult<&mut UdpHandle> {
        Ok(self.0.table.get_mut(&handle::<UdpHandle, _>(of))?)
    }
}

impl udp_create_socket::Host for Sockets<'_> {
    async fn create_udp_socket(&mut self, of: IpAddressFamily) -> SocketResult<Handle> {
        let socket = UdpSocket::new(self.context()?, family(of)).map_err(failure)?;
        let socket = UdpHandle { socket: Arc::new(Mutex::new(socket)), is_binding: false, hop_limit: HOP_LIMIT };
        Ok(foreign(self.0.table.push(socket)?))
    }
}

impl udp::Host for Sockets<'_> {}

impl udp::HostUdpSocket for Sockets<'_> {
    async fn start_bind(&mut self, of: Handle, network: Resource<Network>, local: IpSocketAddress) -> SocketResult<()> {
        self.0.table.get(&handle::<NetworkHandle, _>(&network))?;
        let socket = self.udp(&of)?;
        if socket.is_binding {
            return Err(ErrorCode::ConcurrencyConflict.into());
        }
        lock(&socket.socket).bind(SocketAddr::from(local)).map_err(failure)?;
        socket.is_binding = true;
        Ok(())
    }

    fn finish_bind(&mut self, of: Handle) -> SocketResult<()> {
        let socket = self.udp(&of)?;
        if !std::mem::take(&mut socket.is_binding) {
            return Err(ErrorCode::NotInProgress.into());
        }
        Ok(())
    }

    async fn stream(&mut self, of: Handle, remote: Option<IpSocketAddress>) -> SocketResult<Streams> {
        let of = handle::<UdpHandle, _>(&of);
        let has_streams =
            self.0.table.iter_children(&of)?.any(|child| child.is::<Incoming>() || child.is::<Outgoing>());
        if has_streams {
            return Err(SocketError::trap(wasmtime::Error::msg("the socket's streams must be dropped first")));
        }
        let socket = self.0.table.get(&of)?.socket.clone();
        lock(&socket).connect(remote.map(SocketAddr::from)).map_err(failure)?;
        let incoming = Incoming { socket: socket.clone() };
        let incoming = self.0.table.push_child(incoming, &of)?;
        let outgoing = self.0.table.push_child(Outgoing { socket, permitted: 0 }, &of)?;
        Ok((foreign(incoming), foreign(outgoing)))
    }

    fn local_address(&mut self, of: Handle) -> SocketResult<IpSocketAddress> {
        let local = lock(&self.udp(&of)?.socket).local();
        local.map(IpSocketAddress::from).map_err(failure)
    }

    fn remote_address(&mut self, of: Handle) -> SocketResult<IpSocketAddress> {
        let remote = lock(&self.udp(&of)?.socket).remote();
        remote.map(IpSocketAddress::from).map_err(failure)
    }

    fn address_family(&mut self, of: Handle) -> wasmtime::Result<IpAddressFamily> {
        let socket = self.0.table.get(&handle::<UdpHandle, _>(&of))?;
        Ok(foreign_family(lock(&socket.socket).family()))
    }

    fn unicast_hop_limit(&mut self, of: Handle) -> SocketResult<u8> {
        Ok(self.udp(&of)?.hop_limit)
    }

    fn set_unicast_hop_limit(&mut self, of: Handle, value: u8) -> SocketResult<()> {
        let socket = self.udp(&of)?;
        if value == 0 {
            return Err(ErrorCode::InvalidArgument.into());
        }
        socket.hop_limit = value;
        Ok(())
    }

    /// Buffers have one size; the interface lets a host ignore a wish.
    fn receive_buffer_size(&mut self, of: Handle) -> SocketResult<u64> {
        self.udp(&of).map(|_| BUFFER_BYTES_MAX as u64)
    }

    fn set_receive_buffer_size(&mut self, of: Handle, value: u64) -> SocketResult<()> {
        self.udp(&of)?;
        if value == 0 { Err(ErrorCode::InvalidArgument.into()) } else { Ok(()) }
    }

    fn send_buffer_size(&mut self, of: Handle) -> SocketResult<u64> {
        self.udp(&of).map(|_| BUFFER_BYTES_MAX as u64)
    }

    fn set_send_buffer_size(&mut self, of: Handle, value: u64) -> SocketResult<()> {
        self.udp(&of)?;
        if value == 0 { Err(ErrorCode::InvalidArgument.into()) } else { Ok(()) }
    }

    fn subscribe(&mut self, of: Handle) -> wasmtime::Result<Resource<DynPollable>> {
        subscribe(&mut self.0.table, handle::<UdpHandle, _>(&of))
    }

    fn drop(&mut self, of: Handle) -> wasmtime::Result<()> {
        self.0.table.delete(handle::<UdpHandle, _>(&of))?;
        Ok(())
    }
}

impl udp::HostIncomingDatagramStream for Sockets<'_> {
    fn receive(&mut self, of: Resource<IncomingDatagramStream>, max: u64) -> SocketResult<Vec<IncomingDatagram>> {
        let socket = self.0.table.get(&handle::<Incoming, _>(&of))?.socket.clone();
        let max = usize::try_from(max).unwrap_or(BATCH_MAX).min(BATCH_MAX);
        let (mut datagrams, mut bytes) = (Vec::new(), 0);
        while datagrams.len() < max && bytes <= DATAGRAM_BYTES_MAX {
            match lock(&socket).poll_receive(&mut no_waker()) {
                Poll::Pending => break,
                Poll::Ready(Ok(Datagram { data, from })) => {
                    bytes += data.len();
                    datagrams.push(IncomingDatagram { data: data.into(), remote_address: from.into() });
                }
                Poll::Ready(Err(_)) if !datagrams.is_empty() => break,
                Poll::Ready(Err(error)) => return Err(failure(error)),
            }
        }
        Ok(datagrams)
    }

    fn subscribe(&mut self, of: Resource<IncomingDatagramStream>) -> wasmtime::Result<Resource<DynPollable>> {
        subscribe(&mut self.0.table, handle::<Incoming, _>(&of))
    }

    fn drop(&mut self, of: Resource<IncomingDatagramStream>) -> wasmtime::Result<()> {
        self.0.table.delete(handle::<Incoming, _>(&of))?;
        Ok(())
    }
}

impl udp::HostOutgoingDatagramStream for Sockets<'_> {
    fn check_send(&mut self, of: Resource<OutgoingDatagramStream>) -> SocketResult<u64> {
        self.0.table.get_mut(&handle::<Outgoing, _>(&of))?.permitted = BATCH_MAX;
        Ok(BATCH_MAX as u64)
    }

    fn send(&mut self, of: Resource<OutgoingDatagramStream>, datagrams: Vec<OutgoingDatagram>) -> SocketResult<u64> {
        if datagrams.is_empty() {
            return Ok(0);
        }
        let outgoing = self.0.table.get_mut(&handle::<Outgoing, _>(&of))?;
        if datagrams.len() > std::mem::take(&mut outgoing.permitted) {
            return Err(SocketError::trap(wasmtime::Error::msg("a send beyond what check-send permitted")));
        }
        let socket = outgoing.socket.clone();
        let mut sent = 0;
        for OutgoingDatagram { data, remote_address } in datagrams {
            match lock(&socket).send(data.into(), remote_address.map(SocketAddr::from)) {
                Ok(()) => sent += 1,
                Err(_) if sent > 0 => break,
                Err(error) => return Err(failure(error)),
            }
        }
        Ok(sent)
    }

    fn subscribe(&mut self, of: Resource<OutgoingDatagramStream>) -> wasmtime::Result<Resource<DynPollable>> {
        subscribe(&mut self.0.table, handle::<Outgoing, _>(&of))
    }

    async fn drop(&mut self, of: Resource<OutgoingDatagramStream>) -> wasmtime::Result<()> {
        self.0.table.delete(handle::<Outgoing, _>(&of))?;
        Ok(())
    }
}
