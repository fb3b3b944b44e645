//! TCP sockets of two pods over one pod network.

use std::future::poll_fn;
use std::sync::Arc;

use bytes::Bytes;
use machinery_env::Env;
use machinery_serve::net::{
    Body, Caller, Dial, DialError, Origin, Peer, PodNetwork, Protocol, ResolvedName, Stream, Target, is_pod_loopback,
};
use runtime_api::ledger::{Ledger, Resource};

use super::*;
use crate::SocketLimits;

/// A data plane that knows the pods of one process.
pub(crate) struct Plane(pub(crate) PodNetwork);

#[async_trait::async_trait]
impl Dial for Plane {
    async fn http(&self, _: &Caller, _: http::Request<Body>) -> Result<http::Response<Body>, DialError> {
        Err(DialError::Denied(String::new()))
    }

    async fn stream(&self, caller: &Caller, to: &Target) -> Result<Stream, DialError> {
        let ip: std::net::IpAddr = to.host.parse().unwrap();
        let own = caller.ip.unwrap();
        let serve = match is_pod_loopback(ip) {
            true => self.0.loopback(own, Protocol::Tcp, to.port),
            false => self.0.find(ip, Protocol::Tcp, to.port),
        };
        let serve = serve.ok_or_else(|| DialError::NoEndpoint(to.host.clone()))?;
        let local = SocketAddr::new(if is_pod_loopback(ip) { own } else { ip }, to.port);
        let (near, far) = Stream::pipe();
        tokio::spawn(serve.stream(Origin { peer: Peer::Pod(caller.clone()), local, via: None }, far));
        Ok(near)
    }

    async fn datagrams(&self, caller: &Caller, to: &Target) -> Result<machinery_serve::net::DatagramPipe, DialError> {
        let ip: std::net::IpAddr = to.host.parse().unwrap();
        let serve = self.0.find(ip, Protocol::Udp, to.port).ok_or_else(|| DialError::NoEndpoint(to.host.clone()))?;
        let origin = Origin { peer: Peer::Pod(caller.clone()), local: SocketAddr::new(ip, to.port), via: None };
        serve.datagrams(&origin).map_err(|_| DialError::NoEndpoint(to.host.clone()))
    }

    async fn resolve(&self, _: &Caller, name: &str) -> Result<ResolvedName, DialError> {
        Err(DialError::NameNotFound(name.to_owned()))
    }
}

/// The network of a pod with this last number of its address.
pub(crate) fn context(network: &PodNetwork, last: u8, limits: SocketLimits) -> SocketContext {
    let caller = Caller {
        node: "n".into(),
        namespace: "shop".into(),
        pod: "p".into(),
        ip: Some([127, 66, 0, last].into()),
        names: Arc::default(),
    };
    let ledger = Ledger::container(&Ledger::pod(&Ledger::node()));
    limits.apply(&ledger);
    SocketContext::new(network.clone(), caller, Arc::new(Plane(network.clone())), ledger, Env::real())
}

fn listening(context: &SocketContext, at: &str) -> TcpSocket {
    let mut socket = TcpSocket::new(context.clone(), Family::V4).unwrap();
    socket.bind(at.parse().unwrap()).unwrap();
    socket.listen().unwrap();
    socket
}

async fn connect(context: &SocketContext, to: &str) -> Result<TcpSocket, SocketError> {
    let mut socket = TcpSocket::new(context.clone(), Family::V4)?;
    socket.start_connect(to.parse().unwrap())?;
    poll_fn(|cx| socket.poll_connect(cx)).await?;
    Ok(socket)
}

async fn accept(socket: &mut TcpSocket) -> TcpSocket {
    poll_fn(|cx| socket.poll_accept(cx)).await.unwrap()
}

async fn read(socket: &TcpSocket) -> Result<Bytes, SocketError> {
    poll_fn(|cx| socket.connection().unwrap().poll_read(cx, 1 << 20)).await
}

async fn write(socket: &TcpSocket, bytes: &'static [u8]) {
    let connection = socket.connection().unwrap();
    poll_fn(|cx| connection.poll_writable(cx)).await;
    connection.write(Bytes::from_static(bytes)).unwrap();
}

#[tokio::test]
async fn two_pods_talk_without_a_socket_of_the_host() {
    let network = PodNetwork::default();
    let (a, b) = (context(&network, 2, SocketLimits::default()), context(&network, 3, SocketLimits::default()));
    let mut server = listening(&a, "0.0.0.0:6379");
    let client = connect(&b, "127.66.0.2:6379").await.unwrap();
    let served = accept(&mut server).await;
    assert_eq!(client.remote(), Ok("127.66.0.2:6379".parse().unwrap()));
    assert_eq!(client.local().unwrap().ip(), b.ip().unwrap());
    assert_eq!((served.local(), served.remote().unwrap().ip()), (client.remote(), b.ip().unwrap()));
    write(&client, b"PING").await;
    assert_eq!(read(&served).await.unwrap(), "PING");
    client.shutdown(Shutdown::Send).unwrap();
    assert_eq!(read(&served).await.unwrap(), "");
    write(&served, b"PONG").await;
    assert_eq!(read(&client).await.unwrap(), "PONG");
    assert_eq!(client.connection().unwrap().writable(), Err(SocketError::ConnectionAborted));
    drop(served);
    assert_eq!(read(&client).await.unwrap(), "");
}

#[tokio::test]
async fn a_read_returns_the_waiting_bytes_up_to_its_maximum() {
    static BYTES: [u8; 30_000] = [7; 30_000];
    let network = PodNetwork::default();
    let (server, client) =
        (context(&network, 1, SocketLimits::default()), context(&network, 2, SocketLimits::default()));
    let mut listener = listening(&server, "127.66.0.1:80");
    let caller = connect(&client, "127.66.0.1:80").await.unwrap();
    let accepted = accept(&mut listener).await;
    write(&caller, &BYTES).await;
    let connection = accepted.connection().unwrap();
    let (mut lengths, mut cx) = (Vec::new(), Context::from_waker(std::task::Waker::noop()));
    for max in [1, 9_999, 8_192, usize::MAX] {
        let Poll::Ready(Ok(bytes)) = connection.poll_read(&mut cx, max) else { panic!("nothing to read") };
        assert!(bytes.iter().all(|byte| *byte == 7));
        lengths.push(bytes.len());
    }
    assert_eq!(lengths, [1, 9_999, 8_192, 11_808]);
    assert!(connection.poll_read(&mut cx, 1).is_pending());
    drop(caller);
    assert!(read(&accepted).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_listener_is_reached_by_its_scope() {
    let network = PodNetwork::default();
    let (a, b) = (context(&network, 2, SocketLimits::default()), context(&network, 3, SocketLimits::default()));
    let refused =
        |result: Result<TcpSocket, _>| assert_eq!(result.map(drop).unwrap_err(), SocketError::ConnectionRefused);
    let _own = listening(&a, "127.0.0.1:80");
    connect(&a, "127.0.0.1:80").await.unwrap();
    refused(connect(&b, "127.66.0.2:80").await);
    let _pods = listening(&a, "127.66.0.2:80");
    connect(&b, "127.66.0.2:80").await.unwrap();
    let mut third = TcpSocket::new(a.clone(), Family::V4).unwrap();
    assert_eq!(third.bind("0.0.0.0:80".parse().unwrap()), Err(SocketError::AddressInUse));
    third.bind("0.0.0.0:0".parse().unwrap()).unwrap();
    let port = third.local().unwrap().port();
    assert!(port >= 32_768 && third.is_bound() && third.bind("0.0.0.0:81".parse().unwrap()).is_err());
    let mut second = TcpSocket::new(a.clone(), Family::V4).unwrap();
    let taken = SocketAddr::new([0, 0, 0, 0].into(), port);
    assert_eq!(second.bind(taken), Err(SocketError::AddressInUse));
    drop(third);
    second.bind(taken).unwrap();
}

#[tokio::test]
async fn a_bound_port_refuses_connections_until_it_listens() {
    let network = PodNetwork::default();
    let context = context(&network, 2, SocketLimits::default());
    let mut socket = TcpSocket::new(context.clone(), Family::V4).unwrap();
    socket.bind("0.0.0.0:80".parse().unwrap()).unwrap();
    let early = connect(&context, "127.66.0.2:80").await.map(drop);
    assert_eq!(early, Err(SocketError::ConnectionRefused));
    socket.listen().unwrap();
    assert_eq!(socket.listen(), Err(SocketError::InvalidState));
    connect(&context, "127.66.0.2:80").await.unwrap();
    accept(&mut socket).await;
}

#[tokio::test]
async fn the_backlog_and_the_quotas_reject_and_are_given_back() {
    let network = PodNetwork::default();
    let limits = SocketLimits { connections: 5, listeners: 1, ..SocketLimits::default() };
    let (a, b) = (context(&network, 2, limits), context(&network, 3, SocketLimits::default()));
    let mut server = TcpSocket::new(a.clone(), Family::V4).unwrap();
    assert_eq!(server.set_backlog(0), Err(SocketError::InvalidArgument));
    server.set_backlog(2).unwrap();
    server.bind("0.0.0.0:80".parse().unwrap()).unwrap();
    server.listen().unwrap();
    let mut second = TcpSocket::new(a.clone(), Family::V4).unwrap();
    assert_eq!(second.bind("0.0.0.0:81".parse().unwrap()), Err(SocketError::NewSocketLimit));
    drop(second);
    let serve = network.find(a.ip().unwrap(), Protocol::Tcp, 80).unwrap();
    let offer = |stream| {
        let local = "127.66.0.2:80".parse().unwrap();
        serve.clone().stream(Origin { peer: Peer::Node, local, via: None }, stream)
    };
    let (mut near, mut running) = (Vec::new(), Vec::new());
    let mut offered = async || {
        let (end, far) = Stream::pipe();
        near.push(end);
        let mut serving = Box::pin(offer(far));
        match futures::poll!(&mut serving) {
            Poll::Pending => {
                running.push(serving);
                true
            }
            Poll::Ready(result) => {
                assert!(matches!(result, Err(machinery_serve::net::CallRejected::Busy(_))));
                false
            }
        }
    };
    assert!(offered().await && offered().await && !offered().await, "the backlog has two places");
    let one = accept(&mut server).await;
    let two = accept(&mut server).await;
    assert!(offered().await && offered().await && !offered().await);
    assert_eq!(a.ledger.used(Resource::Sockets), 5);
    drop((one, two));
    assert_eq!(a.ledger.used(Resource::Sockets), 3);
    drop(server);
    assert_eq!((a.ledger.used(Resource::Sockets), a.ledger.used(Resource::Memory)), (0, 0));
    assert!(network.find(a.ip().unwrap(), Protocol::Tcp, 80).is_none());
    for serving in running {
        serving.await.unwrap();
    }
    drop(b);
}

#[tokio::test]
async fn a_caller_that_gives_up_its_seat_ends_the_connection() {
    let network = PodNetwork::default();
    let context = context(&network, 2, SocketLimits::default());
    let mut server = listening(&context, "0.0.0.0:80");
    let serve = network.find(context.ip().unwrap(), Protocol::Tcp, 80).unwrap();
    let (mut near, far) = Stream::pipe();
    let origin = Origin { peer: Peer::Node, local: "127.66.0.2:80".parse().unwrap(), via: None };
    let serving = tokio::spawn(serve.stream(origin, far));
    let served = accept(&mut server).await;
    let reading = tokio::spawn({
        let connection = served.connection().unwrap().clone();
        async move { poll_fn(|cx| connection.poll_read(cx, 1)).await }
    });
    tokio::task::yield_now().await;
    serving.abort();
    assert_eq!(reading.await.unwrap(), Err(SocketError::ConnectionReset), "a waiting guest is woken");
    assert_eq!(tokio::io::AsyncReadExt::read(&mut near, &mut [0]).await.unwrap(), 0, "the stream is closed at once");
    assert_eq!(context.ledger.used(Resource::Sockets), 2, "the guest still has its socket");
    drop(served);
    assert_eq!(context.ledger.used(Resource::Sockets), 1);
}

#[tokio::test]
async fn bytes_leave_although_the_guest_waits_for_nothing_and_after_it_has_closed() {
    let network = PodNetwork::default();
    let context = context(&network, 2, SocketLimits::default());
    let mut server = listening(&context, "0.0.0.0:80");
    let client = connect(&context, "127.66.0.2:80").await.unwrap();
    let served = accept(&mut server).await;
    let chunk = Bytes::from(vec![7; BUFFER]);
    for _ in 0..4 {
        poll_fn(|cx| client.connection().unwrap().poll_writable(cx)).await;
        client.connection().unwrap().write(chunk.clone()).unwrap();
        if client.connection().unwrap().writable() == Ok(0) {
            break;
        }
    }
    assert_eq!(client.connection().unwrap().writable(), Ok(0), "the peer doesn't read");
    assert_eq!(client.connection().unwrap().write(chunk.clone()), Err(SocketError::WouldBlock));
    client.shutdown(Shutdown::Both).unwrap();
    drop(client);
    let mut received = 0;
    loop {
        let bytes = read(&served).await.unwrap();
        if bytes.is_empty() {
            break;
        }
        received += bytes.len();
    }
    assert_eq!(received % BUFFER, 0);
    assert!(received >= 2 * BUFFER);
}

const BUFFER: usize = crate::limits::BUFFER_BYTES_MAX;

#[tokio::test]
async fn unread_bytes_count_in_the_memory_of_the_container_that_wrote_them() {
    static BYTES: [u8; 65_536] = [7; 65_536];
    let network = PodNetwork::default();
    let (a, b) = (context(&network, 2, SocketLimits::default()), context(&network, 3, SocketLimits::default()));
    let limit = 1 << 20;
    b.ledger.set_limit(Resource::Memory, limit);
    let mut server = listening(&a, "0.0.0.0:80");
    let mut pairs = Vec::new();
    for _ in 0..40 {
        let client = connect(&b, "127.66.0.2:80").await.unwrap();
        pairs.push((client, accept(&mut server).await));
    }
    let sockets = b.ledger.used(Resource::Memory);
    for (client, _) in &pairs {
        // The pipe's part and the rest behind it.
        while client.connection().unwrap().writable().unwrap() > 0 {
            let most = client.connection().unwrap().writable().unwrap();
            client.connection().unwrap().write(Bytes::from_static(&BYTES[..most])).unwrap();
        }
    }
    let (used, peak) = (b.ledger.used(Resource::Memory), b.ledger.peak(Resource::Memory));
    assert!(used > sockets + 200_000 && peak <= limit / 2, "{sockets} {used} {peak}");
    assert_eq!(a.ledger.used(Resource::Memory), 41 * crate::limits::SOCKET_BYTES, "a reader pays nothing");
    // Small buffers deliver, too.
    let (client, served) = pairs.pop().unwrap();
    client.shutdown(Shutdown::Send).unwrap();
    let mut seen = 0;
    while let bytes = read(&served).await.unwrap()
        && !bytes.is_empty()
    {
        seen += bytes.len();
    }
    assert!(seen >= crate::limits::SCARCE_BUFFER_BYTES, "{seen}");
    drop((pairs, client, served, server));
    while b.ledger.used(Resource::Memory) > 0 {
        tokio::task::yield_now().await;
    }
}
