//! UDP sockets of two pods over one pod network.

use std::future::poll_fn;

use machinery_serve::net::PodNetwork;
use runtime_api::ledger::Resource;

use super::*;
use crate::SocketLimits;
use crate::tcp::tests::context;

fn bound(context: &SocketContext, at: &str) -> UdpSocket {
    let mut socket = UdpSocket::new(context.clone(), Family::V4).unwrap();
    socket.bind(at.parse().unwrap()).unwrap();
    socket
}

async fn receive(socket: &UdpSocket) -> Result<Datagram, SocketError> {
    poll_fn(|cx| socket.poll_receive(cx)).await
}

#[tokio::test]
async fn a_query_is_answered_over_the_callers_flow() {
    let network = PodNetwork::default();
    let (a, b) = (context(&network, 2, SocketLimits::default()), context(&network, 3, SocketLimits::default()));
    let (server, client) = (bound(&a, "0.0.0.0:53"), bound(&b, "0.0.0.0:0"));
    let to: SocketAddr = "127.66.0.2:53".parse().unwrap();
    client.send("one".into(), Some(to)).unwrap();
    client.send("two".into(), Some(to)).unwrap();
    let (first, second) = (receive(&server).await.unwrap(), receive(&server).await.unwrap());
    assert_eq!((&*first.data, &*second.data), (&b"one"[..], &b"two"[..]));
    assert_eq!((first.from, first.from.ip()), (second.from, b.ip().unwrap()));
    server.send("answer".into(), Some(first.from)).unwrap();
    assert_eq!(receive(&client).await.unwrap(), Datagram { data: "answer".into(), from: to });
    client.send(Bytes::new(), Some(to)).unwrap();
    assert_eq!(receive(&server).await.unwrap().data, "");
}

#[tokio::test]
async fn a_connected_socket_has_one_peer_and_hears_of_its_absence() {
    let network = PodNetwork::default();
    let context = context(&network, 2, SocketLimits::default());
    let mut client = bound(&context, "0.0.0.0:0");
    let nowhere: SocketAddr = "127.66.0.9:53".parse().unwrap();
    client.connect(Some(nowhere)).unwrap();
    assert_eq!(client.send("x".into(), Some("127.66.0.8:53".parse().unwrap())), Err(SocketError::InvalidArgument));
    client.send("x".into(), None).unwrap();
    assert_eq!(receive(&client).await, Err(SocketError::ConnectionRefused));
    client.connect(None).unwrap();
    assert_eq!(client.send("x".into(), None), Err(SocketError::InvalidArgument));
    let large = Bytes::from(vec![0; DATAGRAM_BYTES_MAX + 1]);
    assert_eq!(client.send(large, Some(nowhere)), Err(SocketError::DatagramTooLarge));
}

#[tokio::test]
async fn a_flood_is_lost_within_the_quota_and_the_memory_is_given_back() {
    let network = PodNetwork::default();
    let limits = SocketLimits { datagrams: 10, ..SocketLimits::default() };
    let (a, b) = (context(&network, 2, limits), context(&network, 3, SocketLimits::default()));
    let (server, client) = (bound(&a, "0.0.0.0:53"), bound(&b, "0.0.0.0:0"));
    let to: SocketAddr = "127.66.0.2:53".parse().unwrap();
    for _ in 0..50 {
        for _ in 0..20 {
            client.send("x".into(), Some(to)).unwrap();
        }
        tokio::task::yield_now().await;
    }
    poll_fn(|cx| server.poll_receivable(cx)).await;
    while a.ledger.used(Resource::Datagrams) < 10 {
        client.send("x".into(), Some(to)).unwrap();
        tokio::task::yield_now().await;
    }
    for _ in 0..10 {
        receive(&server).await.unwrap();
    }
    drop((server, client));
    while a.ledger.used(Resource::Memory) + b.ledger.used(Resource::Memory) > 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!((a.ledger.used(Resource::Datagrams), a.ledger.used(Resource::Listeners)), (0, 0));
}

#[tokio::test]
async fn flows_are_bounded_and_the_oldest_ends() {
    let network = PodNetwork::default();
    let context = context(&network, 2, SocketLimits::default());
    let server = bound(&context, "0.0.0.0:53");
    let serve = network.find(context.ip().unwrap(), Protocol::Udp, 53).unwrap();
    let call = |port: u16| {
        let peer = machinery_serve::net::Peer::Host(SocketAddr::new([10, 0, 0, 1].into(), port));
        let origin = machinery_serve::net::Origin { peer, local: "127.66.0.2:53".parse().unwrap(), via: None };
        serve.datagrams(&origin).unwrap()
    };
    let mut first = call(1);
    let all: Vec<_> = (2..=1000).map(call).collect();
    assert!(first.receive.recv().await.is_none(), "the oldest flow was closed");
    assert_eq!(context.ledger.used(Resource::Memory), crate::limits::SOCKET_BYTES + 512 * crate::limits::FLOW_BYTES);
    all[998].send.try_send("x".into()).unwrap();
    assert_eq!(receive(&server).await.unwrap().from.port(), 1000);
    drop(server);
    assert!(network.find(context.ip().unwrap(), Protocol::Udp, 53).is_none());
}
