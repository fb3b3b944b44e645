//! Servers of bytes on another node.

use http::Version;

use super::*;
use crate::streams::tests::{ByteServer, Does};

/// Two nodes with a server of bytes on the second one.
async fn bytes_pair(does: Does) -> (TestNode, TestNode, [Attached; 2], SocketAddr) {
    let ca = Ca::new();
    let (a, b) = (TestNode::start(&ca, "a", 1).await, TestNode::start(&ca, "b", 2).await);
    know_each_other(&[&a, &b]);
    let (server, ip) = (ByteServer::new(does), b.ip(2));
    let attached = [Protocol::Tcp, Protocol::Udp].map(|protocol| {
        let at = Listen { ip, scope: Scope::Any, protocol, port: 8080 };
        b.network.attach(at, server.clone()).unwrap()
    });
    (a, b, attached, SocketAddr::new(ip, 8080))
}

#[tokio::test]
async fn a_node_answers_for_its_servers_whether_they_speak_http() {
    let (a, b, attached, to) = bytes_pair(Does::Echo("")).await;
    let _http = b.pod(3, TestPod::new(Mode::Serve));
    let ask = async |at: SocketAddr| soon(a.find(at).find_out_http(at)).await;
    let absent = SocketAddr::new(b.ip(4), 8080);
    assert_eq!(
        (ask(to).await, ask(SocketAddr::new(b.ip(3), 8080)).await, ask(absent).await),
        (Some(false), Some(true), None)
    );
    drop(attached);
    assert_eq!(ask(to).await, Some(false), "kept for a while");
    a.tunnel.set_nodes(vec![a.config.clone()]);
    b.tunnel.set_nodes(vec![b.config.clone()]);
}

#[tokio::test]
async fn requests_and_streams_and_datagrams_reach_a_server_of_bytes_on_another_node() {
    let (a, _b, _attached, to) = bytes_pair(Does::Http).await;
    for (version, seen) in [(Version::HTTP_11, "HTTP/1.1"), (Version::HTTP_2, "HTTP/2.0")] {
        let mut request = post("/a", full("boats"));
        *request.version_mut() = version;
        assert_eq!(text(a.call(to, request).await.unwrap()).await, format!("{seen} /a boats"));
    }
    let (a, _b, _attached, to) = bytes_pair(Does::Echo("+")).await;
    let mut stream = soon(a.find(to).connect(&a.origin(to))).await.unwrap().unwrap();
    stream.write_all(b"boats").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut received = String::new();
    soon(stream.read_to_string(&mut received)).await.unwrap();
    assert_eq!(received, "+boats");
    let mut pipe = a.find(to).datagrams(&a.origin(to)).unwrap();
    pipe.send.send(Bytes::from_static(b"oars")).await.unwrap();
    assert_eq!(soon(pipe.receive.recv()).await.unwrap(), "+oars");
}
