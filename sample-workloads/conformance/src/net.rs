//! Sockets for tasks: TCP connections, listeners and UDP sockets that wait by [`crate::task`].
use crate::task::{Wait, within};
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use guest::net::bind_any;
use guest::wasip2::io::streams::{InputStream, OutputStream};
use guest::wasip2::sockets::instance_network::instance_network;
use guest::wasip2::sockets::ip_name_lookup::resolve_addresses;
use guest::wasip2::sockets::network::{
    ErrorCode, IpAddress, IpAddressFamily, IpSocketAddress, Ipv4SocketAddress, Ipv6SocketAddress,
};
use guest::wasip2::sockets::tcp::{ShutdownType, TcpSocket};
use guest::wasip2::sockets::tcp_create_socket::create_tcp_socket;
use guest::wasip2::sockets::udp::{
    IncomingDatagram, IncomingDatagramStream, OutgoingDatagram, OutgoingDatagramStream, UdpSocket,
};
use guest::wasip2::sockets::udp_create_socket::create_udp_socket;
use guest::{String, ToString, Vec, format};

/// Connections that wait for their acceptance.
const BACKLOG: u64 = 128;
const READ_BYTES: u64 = 16 * 1024;
/// Bytes of one call of `write`.
const WRITE_BYTES: usize = 64 * 1024;
/// Datagrams of one call.
const DATAGRAMS: u64 = 64;

/// The end of an attempt to reach a server.
pub enum Failure {
    Name(ErrorCode),
    Timeout,
    Refused,
    Other(ErrorCode),
}

impl From<ErrorCode> for Failure {
    fn from(code: ErrorCode) -> Self {
        match code {
            ErrorCode::ConnectionRefused => Self::Refused,
            ErrorCode::Timeout => Self::Timeout,
            other => Self::Other(other),
        }
    }
}

impl Failure {
    /// The failure in the words of Go's `net` package.
    pub fn words(&self) -> String {
        match self {
            Self::Name(code) => format!("no such host ({code})"),
            Self::Timeout => "i/o timeout".into(),
            Self::Refused => "connect: connection refused".into(),
            Self::Other(code) => format!("connect: {code}"),
        }
    }
}

fn ip(address: IpAddress) -> IpAddr {
    match address {
        IpAddress::Ipv4((a, b, c, d)) => Ipv4Addr::new(a, b, c, d).into(),
        IpAddress::Ipv6((a, b, c, d, e, f, g, h)) => Ipv6Addr::new(a, b, c, d, e, f, g, h).into(),
    }
}

fn to_socket_address(address: SocketAddr) -> IpSocketAddress {
    match address {
        SocketAddr::V4(v4) => {
            let [a, b, c, d] = v4.ip().octets();
            IpSocketAddress::Ipv4(Ipv4SocketAddress { port: v4.port(), address: (a, b, c, d) })
        }
        SocketAddr::V6(v6) => {
            let [a, b, c, d, e, f, g, h] = v6.ip().segments();
            let address = (a, b, c, d, e, f, g, h);
            IpSocketAddress::Ipv6(Ipv6SocketAddress { port: v6.port(), flow_info: 0, address, scope_id: 0 })
        }
    }
}

pub fn socket_address(address: IpSocketAddress) -> SocketAddr {
    match address {
        IpSocketAddress::Ipv4(v4) => SocketAddr::new(ip(IpAddress::Ipv4(v4.address)), v4.port),
        IpSocketAddress::Ipv6(v6) => SocketAddr::new(ip(IpAddress::Ipv6(v6.address)), v6.port),
    }
}

fn family(address: IpAddr) -> IpAddressFamily {
    if address.is_ipv4() { IpAddressFamily::Ipv4 } else { IpAddressFamily::Ipv6 }
}

/// Separates `HOST:PORT`; an IPv6 address has brackets.
pub fn split_host_port(text: &str) -> Option<(&str, u16)> {
    let (host, port) = text.rsplit_once(':')?;
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    if bare.is_none() && host.contains(':') {
        return None;
    }
    Some((bare.unwrap_or(host), port.parse().ok()?))
}

/// The addresses of a name, or the address itself.
pub async fn resolve(host: &str) -> Result<Vec<IpAddr>, Failure> {
    if let Ok(address) = host.parse() {
        return Ok(Vec::from([address]));
    }
    let network = instance_network();
    let lookup = resolve_addresses(&network, host).map_err(Failure::Name)?;
    let mut all = Vec::new();
    loop {
        match lookup.resolve_next_address() {
            Ok(Some(address)) => all.push(ip(address)),
            Ok(None) if all.is_empty() => return Err(Failure::Name(ErrorCode::NameUnresolvable)),
            Ok(None) => return Ok(all),
            Err(ErrorCode::WouldBlock) => Wait::new(&lookup, lookup.subscribe()).await,
            Err(error) => return Err(Failure::Name(error)),
        }
    }
}

/// A TCP connection. The order of fields is that of their drops: streams before their socket.
pub struct Stream {
    input: InputStream,
    output: OutputStream,
    socket: TcpSocket,
}

impl Stream {
    /// Connects to the first of the addresses that accepts.
    pub async fn connect(addresses: &[IpAddr], port: u16) -> Result<Self, Failure> {
        let mut problem = Failure::Name(ErrorCode::NameUnresolvable);
        for address in addresses {
            match Self::connect_to(SocketAddr::new(*address, port)).await {
                Ok(stream) => return Ok(stream),
                Err(code) => problem = code.into(),
            }
        }
        Err(problem)
    }

    async fn connect_to(address: SocketAddr) -> Result<Self, ErrorCode> {
        let network = instance_network();
        let socket = create_tcp_socket(family(address.ip()))?;
        socket.start_connect(&network, to_socket_address(address))?;
        let (input, output) = loop {
            match socket.finish_connect() {
                Ok(streams) => break streams,
                Err(ErrorCode::WouldBlock) => Wait::new(&socket, socket.subscribe()).await,
                Err(error) => return Err(error),
            }
        };
        Ok(Self { input, output, socket })
    }

    /// The next bytes; `None` at the end and after a reset.
    pub async fn read(&self) -> Option<Vec<u8>> {
        loop {
            match self.input.read(READ_BYTES) {
                Ok(bytes) if bytes.is_empty() => Wait::new(&self.input, self.input.subscribe()).await,
                Ok(bytes) => return Some(bytes),
                Err(_) => return None,
            }
        }
    }

    /// Writes everything; `None` if the connection is gone.
    pub async fn write(&self, bytes: &[u8]) -> Option<()> {
        let mut rest = bytes;
        while !rest.is_empty() {
            match self.output.check_write().ok()? as usize {
                0 => Wait::new(&self.output, self.output.subscribe()).await,
                permitted => {
                    let (piece, after) = rest.split_at(permitted.min(rest.len()).min(WRITE_BYTES));
                    self.output.write(piece).ok()?;
                    rest = after;
                }
            }
        }
        // The bytes of a socket that is dropped are lost until they are flushed.
        self.output.flush().ok()?;
        while self.output.check_write().ok()? == 0 {
            Wait::new(&self.output, self.output.subscribe()).await;
        }
        Some(())
    }

    /// Sends no more.
    pub fn finish(&self) {
        let _ = self.socket.shutdown(ShutdownType::Send); // fails only if the connection is gone
    }

    /// The peer's address and port.
    pub fn peer(&self) -> String {
        self.socket.remote_address().map_or_else(|_| String::new(), |address| socket_address(address).to_string())
    }

    /// The pod's own address of the connection.
    pub fn own_address(&self) -> Option<IpAddr> {
        self.socket.local_address().ok().map(|address| socket_address(address).ip())
    }
}

/// A listening TCP socket.
pub struct Listener(TcpSocket);

impl Listener {
    pub fn bind(port: u16) -> Result<Self, ErrorCode> {
        let network = instance_network();
        let socket = bind_any(port, |family, address| {
            let socket = create_tcp_socket(family)?;
            socket.start_bind(&network, address)?;
            socket.finish_bind()?;
            Ok(socket)
        })?;
        socket.set_listen_backlog_size(BACKLOG)?;
        socket.start_listen()?;
        socket.finish_listen()?;
        Ok(Self(socket))
    }

    pub async fn accept(&self) -> Result<Stream, ErrorCode> {
        loop {
            match self.0.accept() {
                Ok((socket, input, output)) => return Ok(Stream { input, output, socket }),
                Err(ErrorCode::WouldBlock) => Wait::new(&self.0, self.0.subscribe()).await,
                Err(error) => return Err(error),
            }
        }
    }
}

/// A UDP socket. The order of fields is that of their drops.
pub struct Udp {
    incoming: IncomingDatagramStream,
    outgoing: OutgoingDatagramStream,
    _socket: UdpSocket,
}

impl Udp {
    /// Binds a port of all addresses of the pod.
    pub fn bind(port: u16) -> Result<Self, ErrorCode> {
        let network = instance_network();
        let socket = bind_any(port, |family, address| {
            let socket = create_udp_socket(family)?;
            socket.start_bind(&network, address)?;
            socket.finish_bind()?;
            Ok(socket)
        })?;
        Self::with(socket, None)
    }

    /// Binds a port of one address.
    pub fn bind_at(address: SocketAddr) -> Result<Self, ErrorCode> {
        let socket = create_udp_socket(family(address.ip()))?;
        socket.start_bind(&instance_network(), to_socket_address(address))?;
        socket.finish_bind()?;
        Self::with(socket, None)
    }

    /// Exchanges datagrams with one server.
    pub fn connect(address: SocketAddr) -> Result<Self, ErrorCode> {
        let network = instance_network();
        let socket = create_udp_socket(family(address.ip()))?;
        let any: IpAddr = if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        socket.start_bind(&network, to_socket_address(SocketAddr::new(any, 0)))?;
        socket.finish_bind()?;
        Self::with(socket, Some(to_socket_address(address)))
    }

    fn with(socket: UdpSocket, remote: Option<IpSocketAddress>) -> Result<Self, ErrorCode> {
        let (incoming, outgoing) = socket.stream(remote)?;
        Ok(Self { incoming, outgoing, _socket: socket })
    }

    pub async fn receive(&self) -> Result<Vec<IncomingDatagram>, ErrorCode> {
        loop {
            let received = self.incoming.receive(DATAGRAMS)?;
            if !received.is_empty() {
                return Ok(received);
            }
            Wait::new(&self.incoming, self.incoming.subscribe()).await;
        }
    }

    /// Sends a datagram, to the connected server if no address is given.
    pub async fn send(&self, data: &[u8], to: Option<IpSocketAddress>) -> Result<(), ErrorCode> {
        while self.outgoing.check_send()? == 0 {
            Wait::new(&self.outgoing, self.outgoing.subscribe()).await;
        }
        self.outgoing.send(&[OutgoingDatagram { data: data.to_vec(), remote_address: to }]).map(drop)
    }

    /// Sends a datagram to the connected server and waits for one of it.
    pub async fn exchange(&self, data: &[u8], timeout_ns: u64) -> Result<Vec<u8>, Failure> {
        self.send(data, None).await?;
        match within(timeout_ns, self.receive()).await {
            None => Err(Failure::Timeout),
            Some(received) => Ok(received?.into_iter().next().map(|datagram| datagram.data).unwrap_or_default()),
        }
    }
}
