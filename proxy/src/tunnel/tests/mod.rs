//! Tests of the tunnel over loopback sockets.

mod byte_servers;
mod calls;
mod faults;
mod hostile;
mod nodes;
mod streams;

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt as _, Empty, Full, StreamBody};
use machinery_env::Env;
use machinery_serve::net::{
    Attached, Body, BoxError, CallRejected, Caller, DatagramPipe, Listen, Origin, Peer, PodNetwork, Protocol, Scope,
    Serve, Stream,
};
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::peers::PeerConfig;
use super::{Config, NodeCertificate, Tunnel};

/// Bound of a wait in a test: a failure, not a measure.
const SOON: Duration = Duration::from_secs(20);

pub(super) struct Ca {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Ca {
    pub(super) fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "test");
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::from_ca_cert_pem(&pem, key).unwrap(), pem }
    }

    /// A certificate for a client or a server that expires after so many seconds, or has expired.
    pub(super) fn issue(&self, name: &str, group: &str, client: bool, seconds: i64) -> Arc<NodeCertificate> {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.distinguished_name.push(DnType::OrganizationName, group);
        let usage = if client { ExtendedKeyUsagePurpose::ClientAuth } else { ExtendedKeyUsagePurpose::ServerAuth };
        params.extended_key_usages.push(usage);
        let end = Env::real().now().as_second() + seconds;
        params.not_before = time::OffsetDateTime::from_unix_timestamp(end - 100_000).unwrap();
        params.not_after = time::OffsetDateTime::from_unix_timestamp(end).unwrap();
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Arc::new(NodeCertificate::from_pem(&certificate.pem(), &key.serialize_pem()).unwrap())
    }

    pub(super) fn node(&self, name: &str) -> Arc<NodeCertificate> {
        self.issue(&format!("system:node:{name}"), "system:nodes", true, 3600)
    }
}

/// A node with its tunnel.
pub(super) struct TestNode {
    pub(super) network: PodNetwork,
    pub(super) tunnel: Arc<Tunnel>,
    pub(super) config: PeerConfig,
    pub(super) certificate: watch::Sender<Arc<NodeCertificate>>,
    pub(super) stop: CancellationToken,
    _stopped: DropGuard,
}

impl TestNode {
    /// A node with the pods of 127.66.N.0/24.
    pub(super) async fn start(ca: &Ca, name: &str, number: u8) -> Self {
        Self::with(ca, ca.node(name), name, number).await
    }

    pub(super) async fn with(ca: &Ca, own: Arc<NodeCertificate>, name: &str, number: u8) -> Self {
        let (certificate, receiver) = watch::channel(own);
        let network = PodNetwork::default();
        let config = Config {
            node: name.into(),
            certificate: receiver,
            ca_pem: ca.pem.clone(),
            pod_cidrs: vec!["127.66.0.0/16".parse().unwrap()],
        };
        let tunnel = Tunnel::new(Env::real(), config, network.clone()).unwrap();
        assert!(network.set_remote(tunnel.clone()).is_ok());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let (serving, stops) = (tunnel.clone(), stop.clone());
        tokio::spawn(async move { serving.serve(listener, &stops).await });
        let pod_cidrs = vec![format!("127.66.{number}.0/24").parse().unwrap()];
        let config = PeerConfig {
            name: name.into(),
            created_at: number.into(),
            pod_cidrs,
            address: Some(address),
            compiled: None,
        };
        Self { network, tunnel, config, certificate, _stopped: stop.clone().drop_guard(), stop }
    }

    pub(super) fn ip(&self, last: u8) -> IpAddr {
        let IpAddr::V4(network) = self.config.pod_cidrs[0].network() else { unreachable!() };
        let [a, b, c, _] = network.octets();
        IpAddr::from([a, b, c, last])
    }

    /// Starts a pod on port 8080.
    pub(super) fn pod(&self, last: u8, pod: TestPod) -> [Attached; 2] {
        let (pod, ip) = (Arc::new(pod), self.ip(last));
        [Protocol::Tcp, Protocol::Udp].map(|protocol| {
            let at = Listen { ip, scope: Scope::Any, protocol, port: 8080 };
            self.network.attach(at, pod.clone()).unwrap()
        })
    }

    /// The origin of a call by this node's pod 9.
    pub(super) fn origin(&self, to: SocketAddr) -> Origin {
        let caller = Caller {
            node: self.config.name.clone(),
            namespace: "shop".into(),
            pod: "caller-0".into(),
            ip: Some(self.ip(9)),
            names: Arc::default(),
        };
        Origin { peer: Peer::Pod(caller), local: to, via: None }
    }

    pub(super) fn find(&self, to: SocketAddr) -> Arc<dyn Serve> {
        self.network.find(to.ip(), Protocol::Tcp, to.port()).expect("a peer has the address")
    }

    pub(super) async fn call(
        &self,
        to: SocketAddr,
        request: Request<Body>,
    ) -> Result<Response<Body>, CallRejected<Request<Body>>> {
        soon(self.find(to).http(&self.origin(to), request)).await
    }
}

pub(super) fn know_each_other(nodes: &[&TestNode]) {
    let configs: Vec<PeerConfig> = nodes.iter().map(|node| node.config.clone()).collect();
    nodes.iter().for_each(|node| node.tunnel.set_nodes(configs.clone()));
}

/// Two nodes with a pod on the second one.
pub(super) async fn pair(pod: TestPod) -> (TestNode, TestNode, [Attached; 2], SocketAddr) {
    let ca = Ca::new();
    let (a, b) = (TestNode::start(&ca, "a", 1).await, TestNode::start(&ca, "b", 2).await);
    know_each_other(&[&a, &b]);
    let attached = b.pod(2, pod);
    let to = SocketAddr::new(b.ip(2), 8080);
    (a, b, attached, to)
}

pub(super) async fn soon<T>(future: impl Future<Output = T>) -> T {
    Env::real().timeout(SOON, future).await.expect("in time")
}

/// Waits for a condition that other tasks make true.
pub(super) async fn until(mut holds: impl FnMut() -> bool) {
    soon(async {
        while !holds() {
            Env::real().sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

pub(super) fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

pub(super) fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

pub(super) fn get(path: &str) -> Request<Body> {
    Request::get(path).header("host", "cart.example").body(empty()).unwrap()
}

pub(super) fn post(path: &str, body: Body) -> Request<Body> {
    Request::post(path).header("host", "cart.example").body(body).unwrap()
}

pub(super) async fn text(response: Response<Body>) -> String {
    let bytes = soon(response.into_body().collect()).await.unwrap().to_bytes();
    String::from_utf8(bytes.to_vec()).unwrap()
}

type Frames = mpsc::Sender<Result<Frame<Bytes>, BoxError>>;

/// A body that is sent frame by frame; without an end it breaks nothing.
pub(super) fn channel() -> (Frames, Body) {
    let (sender, receiver) = mpsc::channel(1);
    let frames = futures::stream::unfold(receiver, |mut receiver| async move {
        let frame = receiver.recv().await?;
        Some((frame, receiver))
    });
    (sender, StreamBody::new(frames).boxed_unsync())
}

pub(super) fn data(bytes: impl Into<Bytes>) -> Result<Frame<Bytes>, BoxError> {
    Ok(Frame::data(bytes.into()))
}

/// How a test's pod treats calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// `/` answers with the origin, `/echo` with the body, `/cut` breaks its response, `/slow` answers with a body as
    /// long as wanted, `/never` doesn't answer, `/read` records the body.
    Serve,
    Gone,
    Busy,
    Closed,
    Denied,
}

/// A pod.
pub(super) struct TestPod {
    mode: Mode,
    /// What `/read` received, and the bytes of a stream: its length, and whether it ended in order.
    pub(super) seen: Arc<Mutex<Vec<(usize, bool)>>>,
    /// The number of requests whose work was given up.
    pub(super) given_up: Arc<Mutex<usize>>,
}

impl TestPod {
    pub(super) fn new(mode: Mode) -> Self {
        Self { mode, seen: Arc::default(), given_up: Arc::default() }
    }

    fn check<T>(&self, offered: T) -> Result<T, CallRejected<T>> {
        match self.mode {
            Mode::Serve => Ok(offered),
            Mode::Gone => Err(CallRejected::gone(offered)),
            Mode::Busy => Err(CallRejected::busy(offered)),
            Mode::Closed => Err(CallRejected::Closed),
            Mode::Denied => Err(CallRejected::Denied("only web".into())),
        }
    }
}

struct CountDrop(Arc<Mutex<usize>>);

impl Drop for CountDrop {
    fn drop(&mut self) {
        *self.0.lock().unwrap() += 1;
    }
}

/// Records what was read of a body once the reading ends, or is given up.
struct Reading {
    seen: Arc<Mutex<Vec<(usize, bool)>>>,
    read: (usize, bool),
}

impl Drop for Reading {
    fn drop(&mut self) {
        self.seen.lock().unwrap().push(self.read);
    }
}

async fn read(mut body: Body, seen: &Arc<Mutex<Vec<(usize, bool)>>>) -> (usize, bool) {
    let mut reading = Reading { seen: seen.clone(), read: (0, false) };
    while let Some(frame) = body.frame().await {
        match frame {
            Ok(frame) => reading.read.0 += frame.data_ref().map_or(0, Bytes::len),
            Err(_) => return reading.read,
        }
    }
    reading.read.1 = true;
    reading.read
}

#[async_trait::async_trait]
impl Serve for TestPod {
    async fn http(&self, from: &Origin, request: Request<Body>) -> Result<Response<Body>, CallRejected<Request<Body>>> {
        let request = self.check(request)?;
        let (head, body) = request.into_parts();
        match head.uri.path() {
            "/echo" => Ok(Response::builder()
                .header("coracle-tunnel-refused", "gone")
                .header("coracle-reason", "kept")
                .body(body)
                .unwrap()),
            "/cut" => {
                let (sender, body) = channel();
                tokio::spawn(async move {
                    sender.send(data("half")).await.unwrap();
                    sender.send(Err("cut".into())).await.unwrap();
                });
                Ok(Response::new(body))
            }
            "/read" => {
                let read = read(body, &self.seen).await;
                Ok(Response::new(full(format!("{read:?}"))))
            }
            "/never" => {
                let _counted = CountDrop(self.given_up.clone());
                std::future::pending().await
            }
            "/slow" => {
                let frames = futures::stream::repeat_with(|| data(vec![7; 16 << 10]));
                Ok(Response::new(StreamBody::new(frames).boxed_unsync()))
            }
            _ => {
                let host = head.headers.get("host").map(|host| host.to_str().unwrap().to_owned());
                Ok(Response::new(full(format!("{} {:?} {from:?}", head.uri, host))))
            }
        }
    }

    async fn stream(self: Arc<Self>, _: Origin, stream: Stream) -> Result<(), CallRejected<Stream>> {
        let mut stream = self.check(stream)?;
        let mut received = Vec::new();
        // The whole first half, and then the other one.
        let ended = stream.read_to_end(&mut received).await.is_ok();
        self.seen.lock().unwrap().push((received.len(), ended));
        if ended {
            let _ = stream.write_all(format!("got {}", received.len()).as_bytes()).await;
        }
        Ok(())
    }

    fn datagrams(&self, _: &Origin) -> Result<DatagramPipe, CallRejected<()>> {
        self.check(())?;
        let (near, mut far) = DatagramPipe::pair();
        tokio::spawn(async move {
            while let Some(datagram) = far.receive.recv().await {
                let _ = far.send.send(datagram).await;
            }
        });
        Ok(near)
    }
}

/// A TCP proxy whose connections can be frozen, and cut.
pub(super) struct FaultyWire {
    pub(super) address: SocketAddr,
    frozen: watch::Sender<bool>,
    cut: CancellationToken,
}

impl FaultyWire {
    pub(super) async fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (frozen, cut) = (watch::Sender::new(false), CancellationToken::new());
        let (freezes, cuts) = (frozen.clone(), cut.clone());
        tokio::spawn(async move {
            loop {
                let Some(Ok((near, _))) = cuts.run_until_cancelled(listener.accept()).await else { return };
                let (freezes, cuts) = (freezes.subscribe(), cuts.clone());
                tokio::spawn(async move {
                    let Ok(far) = TcpStream::connect(target).await else { return };
                    let (near_read, near_write) = near.into_split();
                    let (far_read, far_write) = far.into_split();
                    let ways = futures::future::join(
                        Self::forward(near_read, far_write, freezes.clone()),
                        Self::forward(far_read, near_write, freezes),
                    );
                    cuts.run_until_cancelled(ways).await;
                });
            }
        });
        Self { address, frozen, cut }
    }

    async fn forward(
        mut from: tokio::net::tcp::OwnedReadHalf,
        mut to: tokio::net::tcp::OwnedWriteHalf,
        mut frozen: watch::Receiver<bool>,
    ) {
        let mut buffer = vec![0; 16 << 10];
        loop {
            if frozen.wait_for(|frozen| !frozen).await.is_err() {
                return;
            }
            let read = tokio::select! {
                read = from.read(&mut buffer) => read,
                _ = frozen.changed() => continue,
            };
            let Ok(length @ 1..) = read else { return };
            if to.write_all(&buffer[..length]).await.is_err() {
                return;
            }
        }
    }

    pub(super) fn freeze(&self, frozen: bool) {
        self.frozen.send_replace(frozen);
    }

    pub(super) fn cut(&self) {
        self.cut.cancel();
    }
}

impl Drop for FaultyWire {
    fn drop(&mut self) {
        self.cut();
    }
}
