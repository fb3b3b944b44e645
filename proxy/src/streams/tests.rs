//! Servers of bytes behind Services: connections of host processes, calls of guests, over the data plane.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::{Request, Response};
use http_body_util::BodyExt as _;
use machinery_api::ObjectKey;
use machinery_env::Env;
use machinery_serve::net::http::{request_over_pipe, serve};
use machinery_serve::net::{
    Attached, Body, CallRejected, DatagramPipe, Dial as _, DialError, Listen as At, Origin, Protocol, RemotePods,
    Serve, Stream, Target,
};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::listen::Listeners;
use crate::plane::tests::{PlaneWithTable, add_endpoints, attach, caller, get, plane, text};
use crate::routing::table::{Change, Listen};

/// What a server of bytes does with its connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Does {
    /// Reads all, then writes it back with its name before it.
    Echo(&'static str),
    /// Serves HTTP by itself: answers with the request's version, its path and its body.
    Http,
    /// Switches the protocol of its connection, and then echoes.
    Switch,
    /// Has no place in its backlog.
    Full,
}

/// A server of bytes, as a guest with sockets is.
pub(crate) struct ByteServer {
    does: Does,
    /// The bytes of each connection, and whether it ended in order.
    pub(crate) seen: Arc<Mutex<Vec<(usize, bool)>>>,
    this: std::sync::Weak<Self>,
}

impl ByteServer {
    pub(crate) fn new(does: Does) -> Arc<Self> {
        Arc::new_cyclic(|this| Self { does, seen: Arc::default(), this: this.clone() })
    }
}

async fn answer(request: Request<Body>) -> Response<Body> {
    let (head, body) = request.into_parts();
    let says = format!("{:?} {} ", head.version, head.uri.path());
    let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let bytes = [says.as_bytes(), &body].concat();
    Response::new(http_body_util::Full::from(bytes).map_err(|never| match never {}).boxed_unsync())
}

#[async_trait::async_trait]
impl Serve for ByteServer {
    fn speaks_http(&self) -> bool {
        false
    }

    async fn http(&self, from: &Origin, request: Request<Body>) -> Result<Response<Body>, CallRejected<Request<Body>>> {
        match self.this.upgrade() {
            Some(this) => request_over_pipe(this, from, request).await,
            None => Err(CallRejected::gone(request)),
        }
    }

    async fn stream(self: Arc<Self>, from: Origin, mut stream: Stream) -> Result<(), CallRejected<Stream>> {
        match self.does {
            Does::Full => return Err(CallRejected::busy(stream)),
            Does::Http => {
                let _ = serve(stream, from.local, std::future::pending(), answer, || ()).await;
            }
            Does::Switch => {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") && stream.read_buf(&mut head).await.unwrap_or(0) > 0 {}
                let switches = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
                let _ = stream.write_all(switches.as_bytes()).await;
                let (mut read, mut write) = tokio::io::split(stream);
                let _ = tokio::io::copy(&mut read, &mut write).await;
            }
            Does::Echo(name) => {
                let mut received = Vec::new();
                let ended = stream.read_to_end(&mut received).await.is_ok();
                self.seen.lock().unwrap().push((received.len(), ended));
                let _ = stream.write_all(&[name.as_bytes(), &received].concat()).await;
            }
        }
        Ok(())
    }

    fn datagrams(&self, _: &Origin) -> Result<DatagramPipe, CallRejected<()>> {
        let Does::Echo(name) = self.does else { return Err(CallRejected::Closed) };
        let (near, mut far) = DatagramPipe::pair();
        tokio::spawn(async move {
            while let Some(datagram) = far.receive.recv().await {
                let _ = far.send.send([name.as_bytes(), &datagram].concat().into()).await;
            }
        });
        Ok(near)
    }
}

pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> T {
    Env::real().timeout(Duration::from_secs(20), future).await.expect("in time")
}

fn key() -> ObjectKey {
    ObjectKey::new("shop", "db")
}

/// A Service `db` with the endpoint 127.66.0.2:8080, and its node port.
struct Bench {
    plane: PlaneWithTable,
    listeners: Listeners,
    port: u16,
    _stopped: DropGuard,
}

impl Bench {
    fn new(app_protocol: Option<&str>) -> Self {
        let plane = plane();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let ports = json!([{"port": 80, "nodePort": port, "appProtocol": app_protocol}]);
        let spec = json!({"clusterIP": "127.64.0.12", "ports": ports});
        plane.service(&key(), Some(json!({"metadata": {"name": "db", "namespace": "shop"}, "spec": spec})));
        add_endpoints(&plane, "db", &["127.66.0.2"]);
        let stop = CancellationToken::new();
        let listeners = Listeners::new(plane.state.clone(), stop.clone());
        let mut bench = Self { plane, listeners, port, _stopped: stop.drop_guard() };
        bench.follow_routes();
        bench
    }

    /// Opens the listener, or gives it the newest route.
    fn follow_routes(&mut self) {
        let route = self.plane.state.routes.of(&key()).unwrap().tcp(80).unwrap().clone();
        let set = [(Listen::Node(self.port), route)].into();
        assert!(self.listeners.apply(Change { set, ..Change::default() }).is_empty());
    }

    fn attach(&self, server: Arc<ByteServer>) -> Attached {
        let at = At::tcp("127.66.0.2".parse().unwrap(), 8080);
        self.plane.state.network.attach(at, server).unwrap()
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(("127.0.0.1", self.port)).await.unwrap()
    }

    /// Sends `bytes`, ends its half, and reads the rest.
    async fn exchange(&self, bytes: &str) -> String {
        let mut client = self.connect().await;
        let _ = client.write_all(bytes.as_bytes()).await;
        let _ = client.shutdown().await;
        let mut received = String::new();
        let _ = soon(client.read_to_string(&mut received)).await;
        received
    }
}

#[tokio::test]
async fn a_connection_to_a_server_of_bytes_is_passed_on_as_it_is() {
    let bench = Bench::new(None);
    let server = ByteServer::new(Does::Echo("+"));
    let attached = bench.attach(server.clone());
    assert_eq!(bench.exchange("PING\r\n").await, "+PING\r\n");
    assert_eq!(bench.plane.metrics().requests_parsed.get(), 0);
    let client = bench.connect().await;
    client.set_zero_linger().unwrap();
    drop(client);
    soon(async {
        while server.seen.lock().unwrap().len() < 2 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(*server.seen.lock().unwrap(), [(6, true), (0, false)], "a reset is no end");
    // While the server starts again, its clients meet no other protocol.
    drop(attached);
    assert_eq!(bench.exchange("PING\r\n").await, "");
    let _attached = bench.attach(ByteServer::new(Does::Full));
    assert_eq!(bench.exchange("PING\r\n").await, "");
}

#[tokio::test]
async fn a_service_follows_the_protocol_of_its_endpoint() {
    let bench = Bench::new(None);
    let request = "GET /a HTTP/1.1\r\nhost: db\r\nconnection: close\r\n\r\n";
    let http = attach(&bench.plane, "127.66.0.2", "three boats");
    assert!(bench.exchange(request).await.ends_with("three boats"));
    assert_eq!(bench.plane.metrics().requests_parsed.get(), 1);
    drop(http);
    assert!(bench.exchange(request).await.starts_with("HTTP/1.1 503"));
    let bytes = bench.attach(ByteServer::new(Does::Echo("")));
    assert_eq!(bench.exchange(request).await, request);
    drop(bytes);
    let _http = attach(&bench.plane, "127.66.0.2", "three boats");
    assert!(bench.exchange(request).await.ends_with("three boats"));
}

#[tokio::test]
async fn requests_to_a_server_of_bytes_are_balanced_by_the_app_protocol() {
    for (app_protocol, seen) in [("http", "HTTP/1.1"), ("kubernetes.io/h2c", "HTTP/2.0")] {
        let bench = Bench::new(Some(app_protocol));
        let _attached = bench.attach(ByteServer::new(Does::Http));
        let response = bench.exchange("PUT /a HTTP/1.1\r\nhost: db\r\ncontent-length: 5\r\n\r\nboats").await;
        assert!(response.ends_with(&format!("{seen} /a boats")), "{response}");
        assert_eq!(bench.plane.metrics().requests_parsed.get(), 1);
        let response = soon(bench.plane.http(&caller(), get("http://db/b"))).await.unwrap();
        assert_eq!(text(response).await, format!("{seen} /b "), "a guest");
    }
}

#[tokio::test]
async fn an_upgrade_reaches_a_server_of_bytes_and_no_handler_of_requests() {
    let bench = Bench::new(Some("kubernetes.io/ws"));
    let upgrade = "GET /chat HTTP/1.1\r\nhost: db\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
    let ask = async || {
        let mut client = bench.connect().await;
        client.write_all(upgrade.as_bytes()).await.unwrap();
        let mut head = Vec::new();
        while !head.windows(4).any(|end| end == b"\r\n\r\n") && soon(client.read_buf(&mut head)).await.unwrap_or(0) > 0
        {
        }
        (client, String::from_utf8(head).unwrap())
    };
    {
        let _attached = bench.attach(ByteServer::new(Does::Switch));
        let (mut client, head) = ask().await;
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        client.write_all(b"boats").await.unwrap();
        let mut echoed = [0; 5];
        soon(client.read_exact(&mut echoed)).await.unwrap();
        assert_eq!(&echoed, b"boats");
    }
    let _attached = attach(&bench.plane, "127.66.0.2", "three boats");
    let (_client, head) = ask().await;
    assert!(head.starts_with("HTTP/1.1 501 "), "{head}");
}

#[tokio::test]
async fn guests_reach_a_server_of_bytes_by_requests_and_by_streams() {
    let mut bench = Bench::new(None);
    let to = |host: &str, port| Target { host: host.to_owned(), port };
    {
        let _attached = bench.attach(ByteServer::new(Does::Http));
        for uri in ["http://db/a", "http://127.66.0.2:8080/a"] {
            let response = soon(bench.plane.http(&caller(), get(uri))).await.unwrap();
            assert_eq!(text(response).await, "HTTP/1.1 /a ", "{uri}");
        }
    }
    {
        let _attached = bench.attach(ByteServer::new(Does::Echo("+")));
        for (host, port) in [("db", 80), ("127.64.0.12", 80), ("127.66.0.2", 8080)] {
            let mut stream = bench.plane.stream(&caller(), &to(host, port)).await.unwrap();
            stream.write_all(b"boats").await.unwrap();
            stream.shutdown().await.unwrap();
            let mut received = String::new();
            soon(stream.read_to_string(&mut received)).await.unwrap();
            assert_eq!(received, "+boats", "{host}");
        }
    }
    let _full = bench.attach(ByteServer::new(Does::Full));
    let refused = bench.plane.stream(&caller(), &to("127.66.0.2", 8080)).await;
    assert!(matches!(refused, Err(DialError::Connection { .. })), "{refused:?}");
    let refused = bench.plane.stream(&caller(), &to("db", 80)).await;
    assert!(matches!(refused, Err(DialError::NoEndpoint(_))), "{refused:?}");
    // Another endpoint takes what the first one rejects.
    add_endpoints(&bench.plane, "db", &["127.66.0.2", "127.66.0.3"]);
    bench.follow_routes();
    let at = At::tcp("127.66.0.3".parse().unwrap(), 8080);
    let _other = bench.plane.state.network.attach(at, ByteServer::new(Does::Echo("-"))).unwrap();
    for _ in 0..5 {
        assert!(bench.plane.stream(&caller(), &to("db", 80)).await.is_ok());
        assert_eq!(bench.exchange("boats").await, "-boats");
    }
}

/// The server of another node, which is known only by its answer.
struct Remote {
    server: Arc<ByteServer>,
    answers: Option<bool>,
}

#[async_trait::async_trait]
impl Serve for Remote {
    async fn find_out_http(&self, _: SocketAddr) -> Option<bool> {
        self.answers
    }

    async fn http(&self, from: &Origin, request: Request<Body>) -> Result<Response<Body>, CallRejected<Request<Body>>> {
        self.server.http(from, request).await
    }

    async fn stream(self: Arc<Self>, from: Origin, stream: Stream) -> Result<(), CallRejected<Stream>> {
        self.server.clone().stream(from, stream).await
    }
}

struct Elsewhere(Arc<Remote>);

impl RemotePods for Elsewhere {
    fn find(&self, _: IpAddr, _: Protocol, _: u16) -> Option<Arc<dyn Serve>> {
        Some(self.0.clone())
    }
}

#[tokio::test]
async fn a_remote_server_has_the_protocol_that_its_node_reports() {
    for (answers, response) in [(Some(false), "+PING\r\n"), (Some(true), "HTTP/1.1 400 "), (None, "HTTP/1.1 400 ")] {
        let bench = Bench::new(None);
        let remote = Remote { server: ByteServer::new(Does::Echo("+")), answers };
        assert!(bench.plane.state.network.set_remote(Arc::new(Elsewhere(Arc::new(remote)))).is_ok());
        let received = bench.exchange("PING\r\n").await;
        assert!(received.starts_with(response), "{answers:?}: {received}");
    }
}

#[tokio::test]
async fn the_protocol_is_that_of_the_servers_which_are_known() {
    let plane = plane();
    let route = |ips: &[&str]| Arc::new(crate::routing::table::tests::route(ips));
    let at = |ip: &str| At { ip: ip.parse().unwrap(), port: 80, ..At::tcp("127.66.0.2".parse().unwrap(), 80) };
    let attach = |ip: &str, server: Arc<dyn Serve>| plane.state.network.attach(at(ip), server).unwrap();
    let _bytes = attach("127.66.0.2", ByteServer::new(Does::Echo("")));
    let _http = attach("127.66.0.3", Arc::new(crate::plane::tests::FixedReply("")));
    for (ips, is_http) in [
        (&["127.66.0.2"][..], false),
        (&["127.66.0.3"], true),
        (&["127.66.0.2", "127.66.0.3"], false),
        (&["127.66.0.9", "127.66.0.2"], false),
        (&["127.66.0.9"], true),
        (&["192.0.2.1"], false),
        (&["192.0.2.1", "127.66.0.3"], true),
        (&[], true),
    ] {
        assert_eq!(plane.state.is_http(&route(ips)).await, is_http, "{ips:?}");
    }
    let udp = At { protocol: Protocol::Udp, ..at("127.66.0.3") };
    let server: Arc<dyn Serve> = ByteServer::new(Does::Echo(""));
    let _udp = plane.state.network.attach(udp, server).unwrap();
    assert!(plane.state.is_http(&route(&["127.66.0.3"])).await, "UDP is another port");
    assert!(plane.state.leads_outside(&route(&["192.0.2.1"])) && !plane.state.leads_outside(&route(&["127.66.0.2"])));
}
