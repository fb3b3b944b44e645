//! Peers that may not do what they try.

use super::*;
use crate::tunnel::accept::PeerConnections;
use crate::tunnel::metrics::Direction;
use h2::client::SendRequest;

/// Whether a node with this certificate reaches `b`'s pod as node `a`.
async fn reaches(ca: &Ca, certificate: Arc<NodeCertificate>) -> bool {
    let b = TestNode::start(ca, "b", 2).await;
    let a = TestNode::with(ca, certificate, "a", 1).await;
    know_each_other(&[&a, &b]);
    let _pod = b.pod(2, TestPod::new(Mode::Serve));
    a.call(SocketAddr::new(b.ip(2), 8080), get("/")).await.is_ok()
}

#[tokio::test]
async fn only_valid_certificates_of_nodes_are_accepted() {
    let (ca, other) = (Ca::new(), Ca::new());
    assert!(reaches(&ca, ca.node("a")).await);
    for (why, certificate) in [
        ("another CA", other.node("a")),
        ("expired", ca.issue("system:node:a", "system:nodes", true, -10)),
        ("a serving certificate", ca.issue("system:node:a", "system:nodes", false, 3600)),
        ("not in the group", ca.issue("system:node:a", "developers", true, 3600)),
        ("no node", ca.issue("jane", "system:nodes", true, 3600)),
        ("no name", ca.issue("system:node:", "system:nodes", true, 3600)),
        ("an administrator cannot claim a pod", ca.issue("kubernetes-admin", "system:masters", true, 3600)),
        ("a node's pods are its own", ca.node("b")),
        ("an unknown node", ca.node("c")),
    ] {
        assert!(!reaches(&ca, certificate).await, "{why}");
    }
}

#[tokio::test]
async fn only_the_dialled_node_is_accepted() {
    let ca = Ca::new();
    let a = TestNode::start(&ca, "a", 1).await;
    for (why, certificate) in [
        ("another node", ca.node("c")),
        ("an administrator", ca.issue("kubernetes-admin", "system:masters", true, 3600)),
        ("another CA", Ca::new().node("b")),
        ("expired", ca.issue("system:node:b", "system:nodes", true, -10)),
        ("a serving certificate", ca.issue("system:node:b", "system:nodes", false, 3600)),
    ] {
        let b = TestNode::with(&ca, certificate, "b", 2).await;
        know_each_other(&[&a, &b]);
        let _pod = b.pod(2, TestPod::new(Mode::Serve));
        let call = a.call(SocketAddr::new(b.ip(2), 8080), get("/")).await;
        assert!(matches!(call, Err(CallRejected::Gone(_))), "{why}");
        assert_eq!(b.tunnel.metrics.open(Direction::In), 0, "{why}");
    }
}

/// A raw connection to `to` with a certificate.
async fn raw(ca: &Ca, certificate: Arc<NodeCertificate>, to: &TestNode) -> Option<SendRequest<Bytes>> {
    let (_sender, receiver) = watch::channel(certificate);
    let tls = crate::tunnel::TunnelTls::new(&Env::real(), &ca.pem, receiver).unwrap();
    let address = to.config.address.unwrap();
    let stream = TcpStream::connect(address).await.ok()?;
    let stream = tls.client(&to.config.name).unwrap().connect(address.ip().into(), stream).await.ok()?;
    let (requests, mut connection) = h2::client::handshake(stream).await.ok()?;
    let mut pings = connection.ping_pong().unwrap();
    tokio::spawn(connection);
    soon(pings.ping(h2::Ping::opaque())).await.ok()?;
    Some(requests)
}

#[tokio::test]
async fn origins_that_a_peer_may_not_claim_are_refused_and_counted() {
    let ca = Ca::new();
    let (a, b) = (TestNode::start(&ca, "a", 1).await, TestNode::start(&ca, "b", 2).await);
    know_each_other(&[&a, &b]);
    let _pod = b.pod(2, TestPod::new(Mode::Serve));
    let admin = ca.issue("kubernetes-admin", "system:masters", true, 3600);
    let nodes = raw(&ca, ca.node("a"), &b).await.unwrap();
    let admins = raw(&ca, admin, &b).await.unwrap();
    let own = "http://127.66.2.2:8080/";
    for (requests, uri, from, accepted) in [
        (&nodes, own, Some("pod shop web 127.66.1.7"), true),
        (&nodes, own, Some("host 192.0.2.1:5"), true),
        (&nodes, own, Some("node"), true),
        (&admins, own, Some("host 192.0.2.1:5"), true),
        (&admins, own, Some("node"), true),
        (&admins, own, Some("pod shop web 127.66.1.7"), false),
        (&nodes, own, Some("pod shop web 127.66.2.7"), false),
        (&nodes, own, Some("pod shop web 127.66.3.7"), false),
        (&nodes, own, Some("pod shop web 192.0.2.1"), false),
        (&nodes, own, Some("host 127.66.2.7:5"), false),
        (&nodes, own, Some("host 127.66.1.7:5"), false),
        (&nodes, own, Some("pod shop web"), false),
        (&nodes, own, Some("root"), false),
        (&nodes, own, None, false),
        (&nodes, "http://127.66.1.2:8080/", Some("node"), false),
        (&nodes, "http://127.0.0.1:8080/", Some("node"), false),
        (&nodes, "http://web/", Some("node"), false),
    ] {
        let before = b.tunnel.metrics.refused_origins.get();
        let mut request = Request::get(uri).version(http::Version::HTTP_2);
        if let Some(from) = from {
            request = request.header("coracle-tunnel-from", from);
        }
        let mut requests = soon(requests.clone().ready()).await.unwrap();
        let (response, _) = requests.send_request(request.body(()).unwrap(), true).unwrap();
        let response = soon(response).await.unwrap();
        let refused = response.headers().get("coracle-tunnel-refused").map(|value| value.to_str().unwrap());
        assert_eq!(refused, (!accepted).then_some("denied tunnel"), "{from:?} to {uri}");
        assert_eq!(b.tunnel.metrics.refused_origins.get() - before, u64::from(!accepted));
    }
    // A Node that was deleted has no rights any more.
    b.tunnel.set_nodes(vec![b.config.clone()]);
    let mut requests = soon(nodes.ready()).await.unwrap();
    let request = Request::get(own).header("coracle-tunnel-from", "node").body(()).unwrap();
    let (response, _) = requests.send_request(request, true).unwrap();
    assert_eq!(soon(response).await.unwrap().headers()["coracle-tunnel-refused"], "gone");
}

#[tokio::test]
async fn floods_of_connections_are_bounded_and_harm_no_other_peer() {
    let ca = Ca::new();
    let (a, b) = (TestNode::start(&ca, "a", 1).await, TestNode::start(&ca, "b", 2).await);
    know_each_other(&[&a, &b]);
    let _pod = b.pod(2, TestPod::new(Mode::Serve));
    let to = SocketAddr::new(b.ip(2), 8080);
    // Silent ones, garbage, and plain HTTP/2: no byte reaches anything but TLS.
    let mut silent = Vec::new();
    for garbage in [&b""[..], &[0xff; 100], b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"] {
        for _ in 0..20 {
            let mut stream = TcpStream::connect(b.config.address.unwrap()).await.unwrap();
            let _ = stream.write_all(garbage).await;
            silent.push(stream);
        }
    }
    assert!(a.call(to, get("/")).await.is_ok());
    let mut mine = Vec::new();
    for _ in 0..40 {
        mine.extend(raw(&ca, ca.node("c"), &b).await);
    }
    assert_eq!(mine.len(), 16, "of one node");
    assert_eq!(b.tunnel.metrics.refused_connections.get(), 24);
    assert!(a.call(to, get("/")).await.is_ok(), "others are served");
}

#[tokio::test]
async fn connections_that_say_nothing_are_closed() {
    let ca = Ca::new();
    let b = TestNode::start(&ca, "b", 2).await;
    // Authenticated, but without pings.
    let _requests = raw(&ca, ca.node("a"), &b).await.unwrap();
    until(|| b.tunnel.metrics.open(Direction::In) == 1).await;
    until(|| b.tunnel.metrics.open(Direction::In) == 0).await;
    // Not authenticated.
    let mut stream = TcpStream::connect(b.config.address.unwrap()).await.unwrap();
    assert_eq!(soon(stream.read(&mut [0; 10])).await.unwrap_or(0), 0);
}

#[test]
fn slots_come_back() {
    use crate::tunnel::identity::PeerUser;
    let connections = Arc::new(PeerConnections::default());
    let user = PeerUser::Node("a".into());
    for _ in 0..3 {
        let slots: Vec<_> = std::iter::from_fn(|| connections.enter(&user)).collect();
        assert_eq!(slots.len(), 16);
        assert!(connections.enter(&PeerUser::ApiServer).is_some());
    }
}
