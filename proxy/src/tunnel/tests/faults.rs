//! Dead, unreachable and ending peers.

use super::*;
use crate::tunnel::metrics::Direction;
use crate::tunnel::peer::LinkKind;

/// How much later than promised a busy machine may observe something.
const LATE_MAX: u64 = 3;

/// Two nodes; the first reaches the second over a wire with faults.
async fn wired(pod: TestPod) -> (TestNode, TestNode, FaultyWire, [Attached; 2], SocketAddr) {
    let (a, b, attached, to) = pair(pod).await;
    let wire = FaultyWire::to(b.config.address.unwrap()).await;
    let seen = PeerConfig { address: Some(wire.address), ..b.config.clone() };
    a.tunnel.set_nodes(vec![a.config.clone(), seen]);
    (a, b, wire, attached, to)
}

fn is_down(node: &TestNode) -> bool {
    node.tunnel.peers.load().remotes.iter().flatten().any(|remote| remote.peer.is_down())
}

#[tokio::test]
async fn a_frozen_peer_is_found_within_three_seconds_on_both_sides() {
    let pod = TestPod::new(Mode::Serve);
    let (seen, given_up) = (pod.seen.clone(), pod.given_up.clone());
    let (a, _b, wire, _pod, to) = wired(pod).await;
    let env = Env::real();
    let spawn = |request| {
        let (serve, origin) = (a.find(to), a.origin(to));
        tokio::spawn(async move { serve.http(&origin, request).await })
    };
    let (sender, body) = channel();
    let (getting, reading) = (spawn(get("/never")), spawn(post("/read", body)));
    soon(sender.send(data("half"))).await.unwrap();
    let mut stream = soon(a.find(to).connect(&a.origin(to))).await.unwrap().unwrap();
    // The connections have been up, and idle, for longer than the pings.
    env.sleep(Duration::from_millis(3500)).await;
    assert!(!getting.is_finished() && !reading.is_finished(), "an idle connection lives");
    wire.freeze(true);
    let frozen_at = env.elapsed();
    // A GET is offered to the next endpoint; a POST may have been seen.
    assert!(matches!(soon(getting).await.unwrap(), Err(CallRejected::Gone(_))));
    let answer = soon(reading).await.unwrap().unwrap();
    assert_eq!((answer.status().as_u16(), &answer.headers()["coracle-reason"]), (502, &"connection".parse().unwrap()));
    assert!(soon(stream.read_u8()).await.is_err(), "not an end");
    let took = env.elapsed() - frozen_at;
    assert!(took < Duration::from_secs(3 * LATE_MAX), "{took:?}");
    until(|| !seen.lock().unwrap().is_empty() && *given_up.lock().unwrap() == 1).await;
    assert_eq!(seen.lock().unwrap()[0], (4, false), "the callee's side, too");
    let took = env.elapsed() - frozen_at;
    assert!(took < Duration::from_secs(3 * LATE_MAX), "{took:?}");
    // Calls fail at once now, and succeed once the peer is back.
    until(|| is_down(&a)).await;
    let called_at = env.elapsed();
    assert!(matches!(a.call(to, get("/")).await, Err(CallRejected::Gone(_))));
    assert!(env.elapsed() - called_at < Duration::from_millis(1000 * LATE_MAX));
    wire.freeze(false);
    until(|| !is_down(&a)).await;
    assert!(a.call(to, get("/")).await.is_ok());
}

#[tokio::test]
async fn a_broken_connection_returns_only_repeatable_requests() {
    let (a, _b, wire, _pod, to) = wired(TestPod::new(Mode::Serve)).await;
    let spawn = |request| {
        let (serve, origin) = (a.find(to), a.origin(to));
        tokio::spawn(async move { serve.http(&origin, request).await })
    };
    let put = |size: usize| Request::put("/never").body(full(vec![7; size])).unwrap();
    let repeated = [spawn(get("/never")), spawn(put(5)), spawn(put(100_000))];
    let lost = [spawn(post("/never", full("5")))];
    until(|| a.tunnel.metrics.open(Direction::Out) == 1).await;
    Env::real().sleep(Duration::from_millis(200)).await;
    wire.cut();
    for (call, size) in repeated.into_iter().zip([0, 5, 100_000]) {
        let Err(CallRejected::Gone(back)) = soon(call).await.unwrap() else { panic!("{size}") };
        assert_eq!(back.into_body().collect().await.unwrap().to_bytes().len(), size);
    }
    for call in lost {
        assert_eq!(soon(call).await.unwrap().unwrap().status(), 502);
    }
}

#[tokio::test]
async fn an_unreachable_peer_costs_no_wait_and_is_dialled_with_delays() {
    let (a, b, _pod, to) = pair(TestPod::new(Mode::Serve)).await;
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let gone = PeerConfig { address: Some(free), ..b.config.clone() };
    a.tunnel.set_nodes(vec![a.config.clone(), gone]);
    let env = Env::real();
    for _ in 0..100 {
        let begun = env.elapsed();
        assert!(matches!(a.call(to, get("/")).await, Err(CallRejected::Gone(_))));
        assert!(env.elapsed() - begun < Duration::from_secs(LATE_MAX));
    }
    // A silent one: the first call waits for a bounded time.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let gone = PeerConfig { address: Some(silent.local_addr().unwrap()), ..b.config.clone() };
    a.tunnel.set_nodes(vec![a.config.clone(), gone]);
    let begun = env.elapsed();
    let calls = (0..20).map(|_| a.call(to, get("/")));
    for result in futures::future::join_all(calls).await {
        assert!(matches!(result, Err(CallRejected::Gone(_))));
    }
    assert!(env.elapsed() - begun < Duration::from_secs(4 * LATE_MAX));
    let mut dials = 0;
    while env.timeout(Duration::from_millis(10), silent.accept()).await.is_ok() {
        dials += 1;
    }
    assert_eq!(dials, 1, "one dial at a time");
}

#[tokio::test]
async fn a_stopped_peer_drains_its_calls() {
    let (a, b, _pod, to) = pair(TestPod::new(Mode::Serve)).await;
    let (sender, body) = channel();
    let response = a.call(to, post("/echo", body)).await.unwrap();
    b.stop.cancel();
    until(|| {
        let peers = a.tunnel.peers.load();
        let remote = peers.remotes.iter().flatten().next().unwrap();
        remote.peer.open_links(LinkKind::Requests) == 1
    })
    .await;
    sender.send(data("boats")).await.unwrap();
    drop(sender);
    assert_eq!(text(response).await, "boats", "a running call ends");
    until(|| a.tunnel.metrics.open(Direction::Out) == 0).await;
    let post = a.call(to, post("/", full("x"))).await;
    assert!(matches!(post, Err(CallRejected::Gone(_))), "not a lost request: {post:?}");
}

#[tokio::test]
async fn new_connections_use_the_newest_certificate_and_old_ones_end() {
    let ca = Ca::new();
    let short = |name: &str, seconds| ca.issue(&format!("system:node:{name}"), "system:nodes", true, seconds);
    let a = TestNode::with(&ca, short("a", 6), "a", 1).await;
    let b = TestNode::start(&ca, "b", 2).await;
    know_each_other(&[&a, &b]);
    let _pod = b.pod(2, TestPod::new(Mode::Serve));
    let to = SocketAddr::new(b.ip(2), 8080);
    assert!(a.call(to, get("/")).await.is_ok());
    a.certificate.send_replace(ca.node("a"));
    assert!(a.call(to, get("/")).await.is_ok());
    assert_eq!(b.tunnel.metrics.open(Direction::In), 1, "the connection stays");
    // It ends with its certificate, and calls go on by another one.
    until(|| b.tunnel.metrics.open(Direction::In) == 0).await;
    assert!(a.call(to, get("/")).await.is_ok());
    // And so at the other end.
    b.certificate.send_replace(short("b", -5));
    a.tunnel.set_nodes(Vec::new());
    know_each_other(&[&a, &b]);
    assert!(matches!(a.call(to, get("/")).await, Err(CallRejected::Gone(_))), "expired");
    b.certificate.send_replace(ca.node("b"));
    until(|| !is_down(&a)).await;
    assert!(a.call(to, get("/")).await.is_ok());
}
