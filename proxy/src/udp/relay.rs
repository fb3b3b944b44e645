//! Sockets that exchange datagrams with one address, and their relay for guests.

use std::cell::RefCell;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use bytes::Bytes;
use machinery_serve::net::DatagramPipe;
use tokio::net::UdpSocket;

use crate::state::flow_target::send_now;

/// Maximum size of a datagram.
const DATAGRAM_BYTES_MAX: usize = 65_535;

thread_local! {
    /// One buffer for each thread: used between two waits, never across one.
    pub(crate) static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; DATAGRAM_BYTES_MAX].into_boxed_slice());
}

/// A socket with a port of its own that exchanges datagrams with one address.
pub(crate) fn connected(to: SocketAddr) -> io::Result<UdpSocket> {
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = std::net::UdpSocket::bind(SocketAddr::new(any, 0))?;
    socket.connect(to)?;
    socket.set_nonblocking(true)?;
    UdpSocket::from_std(socket)
}

/// Receives a datagram of a connected socket. An ICMP error is no end: the endpoint may come back.
pub(crate) async fn receive(socket: &UdpSocket, each: impl Fn(&[u8])) -> io::Result<()> {
    socket.readable().await?;
    BUFFER.with_borrow_mut(|buffer| match socket.try_recv(buffer) {
        Ok(length) => {
            each(&buffer[..length]);
            Ok(())
        }
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::ConnectionRefused) => Ok(()),
        Err(error) => Err(error),
    })
}

/// Connects a guest's pipe with a socket until the guest drops its end. `held` is released then.
pub(crate) fn relay(socket: UdpSocket, held: impl Send + 'static) -> DatagramPipe {
    let (near, far) = DatagramPipe::pair();
    tokio::spawn(async move {
        let _held = held;
        let DatagramPipe { send, receive: mut from_guest } = far;
        loop {
            tokio::select! {
                datagram = from_guest.recv() => match datagram {
                    Some(datagram) => send_now(&socket, &datagram),
                    None => return,
                },
                received = receive(&socket, |datagram| drop(send.try_send(Bytes::copy_from_slice(datagram)))) => {
                    if received.is_err() || send.is_closed() {
                        return;
                    }
                }
            }
        }
    });
    near
}
