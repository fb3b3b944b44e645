//! Streams of bytes and datagrams.

use super::*;

async fn open(a: &TestNode, to: SocketAddr) -> Stream {
    soon(a.find(to).connect(&a.origin(to))).await.unwrap().unwrap()
}

#[tokio::test]
async fn halves_of_a_stream_end_one_by_one() {
    let (a, _b, _pod, to) = pair(TestPod::new(Mode::Serve)).await;
    for size in [0, 10, 1 << 20] {
        let stream = open(&a, to).await;
        let (mut reads, mut writes) = tokio::io::split(stream);
        soon(writes.write_all(&vec![7; size])).await.unwrap();
        writes.shutdown().await.unwrap();
        let mut received = String::new();
        soon(reads.read_to_string(&mut received)).await.unwrap();
        assert_eq!(received, format!("got {size}"));
    }
    let metrics = &a.tunnel.metrics;
    assert_eq!(metrics.open(crate::tunnel::metrics::Direction::Out), 1, "the places came back");
}

#[tokio::test]
async fn a_host_s_socket_is_carried_with_its_end_and_its_reset() {
    let pod = TestPod::new(Mode::Serve);
    let seen = pod.seen.clone();
    let (a, _b, _pod, to) = pair(pod).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let dial = async || {
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (served, _) = listener.accept().await.unwrap();
        let (serve, origin) = (a.find(to), a.origin(to));
        let carried = tokio::spawn(async move { serve.stream(origin, Stream::Tcp(served)).await.map_err(|_| ()) });
        client.write_all(b"boats").await.unwrap();
        (client, carried)
    };
    let (mut client, carried) = dial().await;
    client.shutdown().await.unwrap();
    let mut received = String::new();
    soon(client.read_to_string(&mut received)).await.unwrap();
    assert_eq!(received, "got 5");
    soon(carried).await.unwrap().unwrap();
    let (client, carried) = dial().await;
    until(|| a.tunnel.metrics.open(crate::tunnel::metrics::Direction::Out) > 0).await;
    Env::real().sleep(Duration::from_millis(100)).await;
    client.set_zero_linger().unwrap();
    drop(client);
    soon(carried).await.unwrap().unwrap();
    until(|| seen.lock().unwrap().len() == 2).await;
    assert_eq!(seen.lock().unwrap()[1], (5, false), "a reset is no end");
}

#[tokio::test]
async fn a_dropped_stream_is_closed_with_all_its_bytes() {
    let pod = TestPod::new(Mode::Serve);
    let seen = pod.seen.clone();
    let (a, _b, _pod, to) = pair(pod).await;
    let mut stream = open(&a, to).await;
    soon(stream.write_all(&vec![7; 100_000])).await.unwrap();
    drop(stream);
    until(|| seen.lock().unwrap().len() == 1).await;
    assert_eq!(seen.lock().unwrap()[0], (100_000, true));
}

#[tokio::test]
async fn a_rejected_stream_comes_back_unread() {
    for mode in [Mode::Gone, Mode::Busy, Mode::Closed, Mode::Denied] {
        let (a, _b, _pod, to) = pair(TestPod::new(mode)).await;
        let (near, mut far) = Stream::pipe();
        far.write_all(b"boats").await.unwrap();
        let rejected = soon(a.find(to).stream(a.origin(to), near)).await.unwrap_err();
        let mut back = match (mode, rejected) {
            (Mode::Gone, CallRejected::Gone(back)) | (Mode::Busy, CallRejected::Busy(back)) => back,
            (Mode::Closed, CallRejected::Closed) | (Mode::Denied, CallRejected::Denied(_)) => continue,
            (_, other) => panic!("{mode:?}: {other:?}"),
        };
        let mut received = [0; 5];
        back.read_exact(&mut received).await.unwrap();
        assert_eq!(&received, b"boats");
    }
}

#[tokio::test]
async fn datagrams_keep_their_borders() {
    let (a, _b, _pod, to) = pair(TestPod::new(Mode::Serve)).await;
    let mut pipe = a.find(to).datagrams(&a.origin(to)).unwrap();
    for size in [0, 1, 1400, 65_507, 7] {
        pipe.send.send(Bytes::from(vec![7; size])).await.unwrap();
        assert_eq!(soon(pipe.receive.recv()).await.unwrap().len(), size);
    }
    let (a, _b, _pod, to) = pair(TestPod::new(Mode::Gone)).await;
    let mut pipe = a.find(to).datagrams(&a.origin(to)).unwrap();
    assert!(soon(pipe.receive.recv()).await.is_none(), "a rejected pipe closes");
}
