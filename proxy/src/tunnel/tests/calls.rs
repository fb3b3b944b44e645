//! Requests: origin, bodies, trailers, back-pressure, rejections.

use super::*;
use crate::plane::tests as planes;
use crate::tunnel::STREAM_WINDOW_BYTES;
use http::HeaderMap;
use machinery_api::ObjectKey;
use machinery_serve::net::{Dial as _, ServicePort};
use serde_json::json;

#[tokio::test]
async fn a_request_keeps_its_head_and_its_origin() {
    let (a, _b, _pod, to) = pair(TestPod::new(Mode::Serve)).await;
    let response = a.call(to, get("/x?y=z")).await.unwrap();
    let seen = text(response).await;
    assert!(seen.starts_with("/x?y=z Some(\"cart.example\") "), "{seen}");
    for part in ["caller-0", "namespace: \"shop\"", "127.66.1.9", "node: \"a\"", "local: 127.66.2.2:8080"] {
        assert!(seen.contains(part), "{part} in {seen}");
    }
    let via = ServicePort { service: ObjectKey::new("shop", "cart"), port: 80 };
    let host = Origin { peer: Peer::Host("192.0.2.7:99".parse().unwrap()), via: Some(Arc::new(via)), ..a.origin(to) };
    let guests = Request::get("http://cart/").body(empty()).unwrap();
    let seen = text(a.find(to).http(&host, guests).await.unwrap()).await;
    assert!(seen.starts_with("http://cart/ None ") && seen.contains("192.0.2.7:99") && seen.contains("cart"), "{seen}");
    let node = Origin { peer: Peer::Node, ..a.origin(to) };
    let seen = text(a.find(to).http(&node, get("/")).await.unwrap()).await;
    assert!(seen.contains("Host(127.0.0.1:"), "the kubelet of another node is a host: {seen}");
    assert_eq!(a.tunnel.metrics.open(crate::tunnel::metrics::Direction::Out), 1, "one connection for all");
}

#[tokio::test]
async fn bodies_and_trailers_flow_both_ways_at_once() {
    let (a, _b, _pod, to) = pair(TestPod::new(Mode::Serve)).await;
    let (sender, body) = channel();
    let response = a.call(to, post("/echo", body)).await.unwrap();
    assert!(!response.headers().contains_key("coracle-tunnel-refused"), "a callee cannot set it");
    assert_eq!(response.headers()["coracle-reason"], "kept");
    let mut body = response.into_body();
    for size in [1, 70_000, 3] {
        soon(sender.send(data(vec![7; size]))).await.unwrap();
        let mut received = 0;
        while received < size {
            received += soon(body.frame()).await.unwrap().unwrap().into_data().unwrap().len();
        }
        assert_eq!(received, size);
    }
    let trailers = HeaderMap::from_iter([(http::header::ETAG, "1".parse().unwrap())]);
    sender.send(Ok(Frame::trailers(trailers.clone()))).await.unwrap();
    drop(sender);
    assert_eq!(soon(body.frame()).await.unwrap().unwrap().into_trailers().unwrap(), trailers);
    assert!(soon(body.frame()).await.is_none());
}

#[tokio::test]
async fn a_large_body_arrives_whole_and_a_slow_reader_stops_only_its_own() {
    let (a, _b, _pod, to) = pair(TestPod::new(Mode::Serve)).await;
    let large = vec![7; 5 << 20];
    // Unread responses, each as long as its window.
    let mut unread = Vec::new();
    for _ in 0..40 {
        unread.push(a.call(to, get("/slow")).await.unwrap());
    }
    let response = a.call(to, post("/echo", full(large.clone()))).await.unwrap();
    assert_eq!(soon(response.into_body().collect()).await.unwrap().to_bytes(), large);
    let one = unread.pop().unwrap();
    let mut body = one.into_body();
    for _ in 0..100 {
        assert!(soon(body.frame()).await.unwrap().is_ok(), "a reader that resumes gets more");
    }
}

#[tokio::test]
async fn a_sender_is_stopped_by_its_reader() {
    let (a, _b, _pod, to) = pair(TestPod::new(Mode::Serve)).await;
    let sent = Arc::new(Mutex::new(0));
    let counts = sent.clone();
    let frames = futures::stream::repeat_with(move || {
        *counts.lock().unwrap() += 1 << 10;
        data(vec![7; 1 << 10])
    });
    let body = StreamBody::new(frames).boxed_unsync();
    let serve = a.find(to);
    let origin = a.origin(to);
    let call = tokio::spawn(async move { serve.http(&origin, post("/never", body)).await.map(|_| ()) });
    let bound = 2 * STREAM_WINDOW_BYTES as usize;
    until(|| *sent.lock().unwrap() >= STREAM_WINDOW_BYTES as usize).await;
    Env::real().sleep(Duration::from_millis(300)).await;
    assert!(*sent.lock().unwrap() <= bound, "nothing reads: {} bytes were sent", sent.lock().unwrap());
    call.abort();
}

#[tokio::test]
async fn rejected_requests_come_back_unread() {
    let ca = Ca::new();
    let (a, b) = (TestNode::start(&ca, "a", 1).await, TestNode::start(&ca, "b", 2).await);
    know_each_other(&[&a, &b]);
    let modes = [Mode::Gone, Mode::Busy, Mode::Closed, Mode::Denied];
    let _pods: Vec<_> = (2..).zip(modes).map(|(last, mode)| b.pod(last, TestPod::new(mode))).collect();
    let large = STREAM_WINDOW_BYTES as usize * 3;
    for (last, mode) in (2..).zip(modes) {
        for size in [0, 5, 100_000, large] {
            let to = SocketAddr::new(b.ip(last), 8080);
            let request = post("/echo", full(vec![7; size]));
            let back = match (mode, a.call(to, request).await.map(|_| ()).unwrap_err()) {
                (Mode::Gone, CallRejected::Gone(back)) | (Mode::Busy, CallRejected::Busy(back)) => back,
                (Mode::Closed, CallRejected::Closed) => continue,
                (Mode::Denied, CallRejected::Denied(policy)) => {
                    assert_eq!(&*policy, "only web");
                    continue;
                }
                (_, other) => panic!("{mode:?}: {other:?}"),
            };
            assert_eq!((back.uri().path(), &back.headers()["host"]), ("/echo", &"cart.example".parse().unwrap()));
            let body = back.into_body().collect().await.unwrap().to_bytes();
            assert_eq!(body, vec![7; size]);
        }
    }
    let missing = SocketAddr::new(b.ip(200), 8080);
    assert!(matches!(a.call(missing, get("/")).await, Err(CallRejected::Gone(_))), "no such pod");
}

#[tokio::test]
async fn the_data_plane_takes_the_next_endpoint_of_any_node() {
    let ca = Ca::new();
    let plane = planes::plane();
    let (a, b) = (TestNode::start(&ca, "a", 1).await, TestNode::start(&ca, "b", 2).await);
    let mut dead = b.config.clone();
    (dead.name, dead.pod_cidrs) = ("dead".into(), vec!["127.66.3.0/24".parse().unwrap()]);
    dead.address = Some(std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap());
    b.tunnel.set_nodes(vec![a.config.clone(), b.config.clone()]);
    a.tunnel.set_nodes(vec![a.config.clone(), b.config.clone(), dead]);
    assert!(plane.state.network.set_remote(a.tunnel.clone()).is_ok());
    let _pods =
        [b.pod(2, TestPod::new(Mode::Gone)), b.pod(3, TestPod::new(Mode::Busy)), b.pod(4, TestPod::new(Mode::Serve))];
    let spec = json!({"clusterIP": "127.64.0.11", "ports": [{"port": 80}]});
    let key = ObjectKey::new("shop", "web");
    plane.service(&key, Some(json!({"metadata": {"name": "web", "namespace": "shop"}, "spec": spec})));
    planes::add_endpoints(&plane, "web", &["127.66.2.2", "127.66.2.3", "127.66.3.1", "127.66.2.4"]);
    let mut caller = planes::caller();
    caller.ip = Some(a.ip(9));
    for _ in 0..20 {
        let request = Request::post("http://web/echo").body(full("three boats")).unwrap();
        let response = soon(plane.http(&caller, request)).await.unwrap();
        assert_eq!(text(response).await, "three boats");
    }
    let to = machinery_serve::net::Target { host: "web".into(), port: 80 };
    for _ in 0..10 {
        let mut stream = soon(plane.stream(&caller, &to)).await.unwrap();
        stream.write_all(b"boats").await.unwrap();
        stream.shutdown().await.unwrap();
        let mut received = String::new();
        soon(stream.read_to_string(&mut received)).await.unwrap();
        assert_eq!(received, "got 5");
    }
}

#[tokio::test]
async fn cut_bodies_never_look_complete() {
    let pod = TestPod::new(Mode::Serve);
    let (seen, given_up) = (pod.seen.clone(), pod.given_up.clone());
    let (a, _b, _pod, to) = pair(pod).await;
    let response = a.call(to, get("/cut")).await.unwrap();
    let collected = soon(response.into_body().collect()).await;
    assert!(collected.is_err(), "a cut response");
    // An upload that breaks, and one whose caller gives up.
    let (sender, body) = channel();
    let (serve, origin) = (a.find(to), a.origin(to));
    let call = tokio::spawn(async move { serve.http(&origin, post("/read", body)).await.map(|_| ()) });
    soon(sender.send(data("half"))).await.unwrap();
    soon(sender.send(Err("cut".into()))).await.unwrap();
    until(|| seen.lock().unwrap().len() == 1).await;
    assert_eq!(seen.lock().unwrap()[0], (4, false), "a cut request");
    call.abort();
    let (sender, body) = channel();
    let (serve, origin) = (a.find(to), a.origin(to));
    let call = tokio::spawn(async move { serve.http(&origin, post("/never", body)).await.map(|_| ()) });
    soon(sender.send(data("half"))).await.unwrap();
    until(|| a.tunnel.metrics.open(crate::tunnel::metrics::Direction::Out) == 1).await;
    Env::real().sleep(Duration::from_millis(50)).await;
    call.abort();
    until(|| *given_up.lock().unwrap() == 1).await;
}

#[tokio::test]
async fn an_upload_goes_on_after_a_whole_response_and_stops_with_one_given_up() {
    let (a, _b, _pod, to) = pair(TestPod::new(Mode::Serve)).await;
    let (sender, body) = channel();
    let response = a.call(to, post("/echo", body)).await.unwrap();
    drop(response);
    // The callee drops the upload, so that its sender is stopped.
    until(|| sender.try_send(data("more")).is_err_and(|error| matches!(error, mpsc::error::TrySendError::Closed(_))))
        .await;
}

#[tokio::test]
async fn many_small_unread_frames_break_no_other_call() {
    let (a, _b, _pod, to) = pair(TestPod::new(Mode::Serve)).await;
    let mut calls = Vec::new();
    for _ in 0..4 {
        let frames = futures::stream::repeat_with(|| data("x"));
        let (serve, origin, body) = (a.find(to), a.origin(to), StreamBody::new(frames).boxed_unsync());
        calls.push(tokio::spawn(async move { serve.http(&origin, post("/never", body)).await.map(|_| ()) }));
    }
    for _ in 0..20 {
        assert_eq!(text(a.call(to, post("/echo", full("boats"))).await.unwrap()).await, "boats");
        Env::real().sleep(Duration::from_millis(20)).await;
    }
    assert!(calls.iter().all(|call| !call.is_finished()), "they still wait");
    let mut stream = soon(a.find(to).connect(&a.origin(to))).await.unwrap().unwrap();
    for _ in 0..2 * STREAM_WINDOW_BYTES {
        soon(stream.write_all(b"x")).await.unwrap();
    }
    stream.shutdown().await.unwrap();
    let mut received = String::new();
    soon(stream.read_to_string(&mut received)).await.unwrap();
    assert_eq!(received, "got 262144");
    calls.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test]
async fn further_connections_carry_the_excess_of_one() {
    let (a, _b, _pod, to) = pair(TestPod::new(Mode::Serve)).await;
    let mut open = Vec::new();
    for _ in 0..(crate::tunnel::STREAMS_MAX + 10) {
        open.push(a.call(to, get("/slow")).await.unwrap());
    }
    assert_eq!(a.tunnel.metrics.open(crate::tunnel::metrics::Direction::Out), 2);
    assert!(!text(a.call(to, get("/")).await.unwrap()).await.is_empty());
}
