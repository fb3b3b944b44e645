//! TCP and UDP over `wasi:sockets`, without blocking calls: an event loop waits with [`wait`], then reads and writes.
//!
//! Handles are dropped children first, so the order of fields matters: a pollable before its stream, a stream before its socket.
use crate::Vec;
use core::cell::OnceCell;
use wasip2::clocks::monotonic_clock::subscribe_duration;
pub use wasip2::io::poll::{Pollable, poll as wait};
use wasip2::io::streams::{InputStream, OutputStream, StreamError};
use wasip2::sockets::instance_network::instance_network;
use wasip2::sockets::ip_name_lookup::resolve_addresses;
pub use wasip2::sockets::network::ErrorCode;
use wasip2::sockets::network::{
    IpAddress, IpAddressFamily, IpSocketAddress, Ipv4SocketAddress, Ipv6SocketAddress, Network,
};
use wasip2::sockets::tcp::{ShutdownType, TcpSocket};
use wasip2::sockets::tcp_create_socket::create_tcp_socket;
use wasip2::sockets::udp::{
    IncomingDatagram, IncomingDatagramStream, OutgoingDatagram, OutgoingDatagramStream, UdpSocket,
};
use wasip2::sockets::udp_create_socket::create_udp_socket;

/// All addresses of the pod. A pod has one family, IPv4 unless the cluster is an IPv6 one.
const ANY: [(IpAddressFamily, IpAddress); 2] = [
    (IpAddressFamily::Ipv4, IpAddress::Ipv4((0, 0, 0, 0))),
    (IpAddressFamily::Ipv6, IpAddress::Ipv6((0, 0, 0, 0, 0, 0, 0, 0))),
];

fn socket_address(ip: IpAddress, port: u16) -> IpSocketAddress {
    match ip {
        IpAddress::Ipv4(address) => IpSocketAddress::Ipv4(Ipv4SocketAddress { port, address }),
        IpAddress::Ipv6(address) => {
            IpSocketAddress::Ipv6(Ipv6SocketAddress { port, flow_info: 0, address, scope_id: 0 })
        }
    }
}

/// Binds a port of all addresses of the first family that the pod has.
pub fn bind_any<T>(
    port: u16,
    bind: impl Fn(IpAddressFamily, IpSocketAddress) -> Result<T, ErrorCode>,
) -> Result<T, ErrorCode> {
    let [first, second] = ANY;
    match bind(first.0, socket_address(first.1, port)) {
        Err(ErrorCode::AddressNotBindable | ErrorCode::NotSupported) => bind(second.0, socket_address(second.1, port)),
        bound => bound,
    }
}

/// A listening TCP socket.
pub struct Listener {
    ready: Pollable,
    socket: TcpSocket,
}

impl Listener {
    /// Listens on a port of the pod's address and of its loopback. `backlog` connections may wait for [`Listener::accept`].
    pub fn bind(port: u16, backlog: u64) -> Result<Self, ErrorCode> {
        let network = instance_network();
        let socket = bind_any(port, |family, address| {
            let socket = create_tcp_socket(family)?;
            socket.start_bind(&network, address)?;
            socket.finish_bind()?;
            Ok(socket)
        })?;
        socket.set_listen_backlog_size(backlog)?;
        socket.start_listen()?;
        socket.finish_listen()?;
        Ok(Self { ready: socket.subscribe(), socket })
    }

    /// Is ready when a connection waits.
    pub fn acceptable(&self) -> &Pollable {
        &self.ready
    }

    /// The next connection; `None` if none waits.
    pub fn accept(&self) -> Result<Option<Connection>, ErrorCode> {
        match self.socket.accept() {
            Ok((socket, input, output)) => Ok(Some(Connection::new(socket, input, output))),
            Err(ErrorCode::WouldBlock) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// The result of a read.
pub enum Read {
    Bytes(Vec<u8>),
    /// Nothing has arrived yet.
    Nothing,
    /// The peer sends no more.
    End,
}

/// The connection failed: the peer reset it, or its node is gone.
pub struct Broken;

/// A TCP connection.
pub struct Connection {
    readable: Pollable,
    /// Most connections never wait for their peer to read, and a handle costs memory of the host.
    writable: OnceCell<Pollable>,
    input: InputStream,
    output: OutputStream,
    socket: TcpSocket,
}

impl Connection {
    fn new(socket: TcpSocket, input: InputStream, output: OutputStream) -> Self {
        Self { readable: input.subscribe(), writable: OnceCell::new(), input, output, socket }
    }

    /// Opens a connection to a name or an address, and waits for it.
    pub fn open(host: &str, port: u16) -> Result<Self, ErrorCode> {
        let network = instance_network();
        let mut problem = ErrorCode::NameUnresolvable;
        for ip in addresses(&network, host)? {
            match Self::connect(&network, ip, port) {
                Ok(connection) => return Ok(connection),
                Err(error) => problem = error,
            }
        }
        Err(problem)
    }

    fn connect(network: &Network, ip: IpAddress, port: u16) -> Result<Self, ErrorCode> {
        let family = match ip {
            IpAddress::Ipv4(_) => IpAddressFamily::Ipv4,
            IpAddress::Ipv6(_) => IpAddressFamily::Ipv6,
        };
        let socket = create_tcp_socket(family)?;
        socket.start_connect(network, socket_address(ip, port))?;
        loop {
            match socket.finish_connect() {
                Ok((input, output)) => return Ok(Self::new(socket, input, output)),
                Err(ErrorCode::WouldBlock) => socket.subscribe().block(),
                Err(error) => return Err(error),
            }
        }
    }

    /// Is ready when [`Connection::read`] has something to return.
    pub fn readable(&self) -> &Pollable {
        &self.readable
    }

    /// Is ready when [`Connection::write`] takes bytes.
    pub fn writable(&self) -> &Pollable {
        self.writable.get_or_init(|| self.output.subscribe())
    }

    /// Reads at most `max` bytes.
    pub fn read(&self, max: usize) -> Result<Read, Broken> {
        match self.input.read(max as u64) {
            Ok(bytes) if bytes.is_empty() => Ok(Read::Nothing),
            Ok(bytes) => Ok(Read::Bytes(bytes)),
            Err(StreamError::Closed) => Ok(Read::End),
            Err(StreamError::LastOperationFailed(_)) => Err(Broken),
        }
    }

    /// Writes what the connection takes now; the number of bytes.
    pub fn write(&self, bytes: &[u8]) -> Result<usize, Broken> {
        let permitted = self.output.check_write().map_err(|_| Broken)? as usize;
        let bytes = &bytes[..permitted.min(bytes.len())];
        if !bytes.is_empty() {
            self.output.write(bytes).map_err(|_| Broken)?;
        }
        Ok(bytes.len())
    }

    /// Sends no more: the peer reads the end after the last byte.
    pub fn finish(&self) {
        let _ = self.socket.shutdown(ShutdownType::Send); // fails only if the connection is gone
    }
}

/// The addresses of a name, or the one that `host` is.
fn addresses(network: &Network, host: &str) -> Result<Vec<IpAddress>, ErrorCode> {
    let lookup = resolve_addresses(network, host)?;
    let mut all = Vec::new();
    loop {
        match lookup.resolve_next_address() {
            Ok(Some(ip)) => all.push(ip),
            Ok(None) => return Ok(all),
            Err(ErrorCode::WouldBlock) => lookup.subscribe().block(),
            Err(error) => return Err(error),
        }
    }
}

/// A bound UDP socket.
pub struct Datagrams {
    ready: Pollable,
    incoming: IncomingDatagramStream,
    outgoing: OutgoingDatagramStream,
    _socket: UdpSocket,
}

impl Datagrams {
    /// Binds a port of the pod's address and of its loopback.
    pub fn bind(port: u16) -> Result<Self, ErrorCode> {
        let network = instance_network();
        let socket = bind_any(port, |family, address| {
            let socket = create_udp_socket(family)?;
            socket.start_bind(&network, address)?;
            socket.finish_bind()?;
            Ok(socket)
        })?;
        let (incoming, outgoing) = socket.stream(None)?;
        Ok(Self { ready: incoming.subscribe(), incoming, outgoing, _socket: socket })
    }

    /// Is ready when a datagram waits.
    pub fn receivable(&self) -> &Pollable {
        &self.ready
    }

    /// The datagrams that wait, at most `max`.
    pub fn receive(&self, max: usize) -> Result<Vec<IncomingDatagram>, ErrorCode> {
        self.incoming.receive(max as u64)
    }

    /// Sends datagrams. One that the network doesn't take is lost, as any datagram may be.
    pub fn send(&self, datagrams: &[OutgoingDatagram]) -> Result<(), ErrorCode> {
        let mut rest = datagrams;
        while !rest.is_empty() {
            let permitted = self.outgoing.check_send()? as usize;
            match permitted.min(rest.len()) {
                0 => self.outgoing.subscribe().block(),
                count => {
                    let sent = self.outgoing.send(&rest[..count]).unwrap_or(0) as usize;
                    rest = &rest[sent.max(1)..]; // what was refused is lost
                }
            }
        }
        Ok(())
    }
}

/// Is ready after this time.
pub fn after_ms(ms: u64) -> Pollable {
    subscribe_duration(ms.saturating_mul(1_000_000))
}
