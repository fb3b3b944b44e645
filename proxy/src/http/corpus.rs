//! Ambiguous HTTP messages (`proxy/tests/framing/`), sent to a real listener in front of a plain endpoint that records
//! its input, and in front of a pod.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};

use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use machinery_api::ObjectKey;
use machinery_env::Env;
use machinery_serve::net::{self, Body, CallRejected, Caller, Dial as _, Origin, PodNetwork, Serve, ServicePort};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use crate::plane::{Config, DataPlane};
use crate::routing::in_flight::InFlightCount;
use crate::routing::table::{AppProtocol, Change, Endpoint, Listen, PortRoute};

/// Sent by the driver after each case.
const SENTINEL: &[u8] = b"GET /sentinel HTTP/1.1\r\nHost: sentinel\r\nConnection: close\r\n\r\n";

type RecordedRequests = Arc<Mutex<Vec<String>>>;

#[derive(Debug, Default)]
struct Case {
    name: String,
    bytes: Vec<u8>,
    fields: Vec<(String, Vec<u8>)>,
    status: String,
    broken: bool,
    expected: Vec<String>,
}

fn cases(text: &str) -> Vec<Case> {
    let mut all: Vec<Case> = Vec::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        if let Some(name) = line.strip_prefix("name: ") {
            all.push(Case { name: name.to_owned(), ..Case::default() });
            continue;
        }
        let Some(case) = all.last_mut() else { continue };
        if let Some(bytes) =
            line.strip_prefix("> ").or_else(|| line.strip_prefix("< ")).or_else(|| line.strip_prefix("data: "))
        {
            case.bytes.extend(unescape(bytes));
        } else if let Some(field) = line.strip_prefix("h: ") {
            let (name, value) = field.split_once(' ').unwrap();
            case.fields.push((name.to_owned(), unescape(value)));
        } else if let Some(status) = line.strip_prefix("status: ") {
            case.status = status.to_owned();
        } else if let Some(expected) = line.strip_prefix("forward: ").or_else(|| line.strip_prefix("client: ")) {
            case.expected.push(expected.to_owned());
        } else if line == "broken" {
            case.broken = true;
        } else {
            assert!(line.is_empty(), "not understood: {line}");
        }
    }
    assert!(all.len() > 10);
    all
}

fn unescape(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [byte, tail @ ..] = rest {
        rest = match (byte, tail) {
            (b'\\', [b'x', a, b, tail @ ..]) => {
                let digits = [*a, *b];
                bytes.push(u8::from_str_radix(std::str::from_utf8(&digits).unwrap(), 16).unwrap());
                tail
            }
            (b'\\', [kind, tail @ ..]) => {
                bytes.push(match kind {
                    b'r' => b'\r',
                    b'n' => b'\n',
                    b't' => b'\t',
                    b'0' => 0,
                    other => *other,
                });
                tail
            }
            (byte, tail) => {
                bytes.push(*byte);
                tail
            }
        };
    }
    bytes
}

/// Formats a message like the corpus files; returns the remaining `bytes`.
fn message(bytes: &[u8]) -> Option<(String, &[u8])> {
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")?;
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let mut lines = head.split("\r\n");
    let first = lines.next()?.to_owned();
    let mut fields: Vec<String> =
        lines.map(str::to_ascii_lowercase).filter(|line| !line.starts_with("date:")).collect();
    fields.sort();
    let mut rest = &bytes[end + 4..];
    let mut body = Vec::new();
    if fields.iter().any(|field| field == "transfer-encoding: chunked") {
        loop {
            let line = rest.windows(2).position(|two| two == b"\r\n")?;
            let size = usize::from_str_radix(std::str::from_utf8(&rest[..line]).ok()?, 16).ok()?;
            body.extend(rest.get(line + 2..line + 2 + size)?);
            rest = rest.get(line + 2 + size + 2..)?;
            if size == 0 {
                break;
            }
        }
    } else if let Some(length) = fields.iter().find_map(|field| field.strip_prefix("content-length: ")) {
        let length = length.parse().ok()?;
        body.extend(rest.get(..length)?);
        rest = &rest[length..];
    }
    fields.insert(0, first);
    let mut text = fields.join(" | ");
    if !body.is_empty() {
        text = format!("{text} || {}", String::from_utf8_lossy(&body));
    }
    Some((text, rest))
}

/// A plain endpoint: records messages and sends `answer` for each, or nothing.
async fn endpoint(seen: RecordedRequests, answer: Option<Vec<u8>>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let (seen, answer) = (seen.clone(), answer.clone());
            tokio::spawn(async move {
                let mut bytes = Vec::new();
                while stream.read_buf(&mut bytes).await.is_ok_and(|read| read > 0) {
                    while let Some((text, rest)) = message(&bytes) {
                        bytes = rest.to_vec();
                        seen.lock().unwrap().push(text);
                        match &answer {
                            // One response, then close.
                            Some(answer) => {
                                let _ = stream.write_all(answer).await;
                                return;
                            }
                            None => stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap(),
                        }
                    }
                }
                if !bytes.is_empty() {
                    seen.lock().unwrap().push("incomplete".to_owned());
                }
            });
        }
    });
    address
}

/// A pod that records its requests.
struct Pod(RecordedRequests);

#[async_trait::async_trait]
impl Serve for Pod {
    async fn http(&self, _: &Origin, request: Request<Body>) -> Result<Response<Body>, CallRejected<Request<Body>>> {
        let (head, body) = request.into_parts();
        let body = match body.collect().await {
            Ok(body) => body.to_bytes(),
            Err(_) => {
                self.0.lock().unwrap().push("incomplete".to_owned());
                return Ok(Response::new(Full::default().map_err(|never| match never {}).boxed_unsync()));
            }
        };
        let value = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        let mut fields: Vec<_> = head.headers.iter().map(|(name, text)| format!("{name}: {}", value(text))).collect();
        fields.sort();
        fields.insert(0, format!("{} {} HTTP/1.1", head.method, head.uri));
        let mut text = fields.join(" | ");
        if !body.is_empty() {
            text = format!("{text} || {}", String::from_utf8_lossy(&body));
        }
        self.0.lock().unwrap().push(text);
        Ok(Response::new(Full::from("ok").map_err(|never| match never {}).boxed_unsync()))
    }
}

struct Bench {
    plane: DataPlane,
    listener: SocketAddr,
    seen: RecordedRequests,
    stop: CancellationToken,
    _pod: Option<net::Attached>,
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Bench {
    async fn before_endpoint(answer: Option<Vec<u8>>) -> Self {
        let seen = RecordedRequests::default();
        let address = endpoint(seen.clone(), answer).await;
        Self::new(address, seen, None)
    }

    fn before_pod() -> Self {
        let seen = RecordedRequests::default();
        Self::new("127.66.0.2:80".parse().unwrap(), seen.clone(), Some(Arc::new(Pod(seen))))
    }

    fn new(address: SocketAddr, seen: RecordedRequests, pod: Option<Arc<dyn Serve>>) -> Self {
        let network = PodNetwork::default();
        let config = Config {
            bind: Ipv4Addr::LOCALHOST.into(),
            cluster_ip_listeners: true,
            load_balancer_pool: "127.59.0.0/24".parse().unwrap(),
            is_pool_shared: false,
            cluster_cidrs: vec!["127.64.0.0/14".parse().unwrap()],
            cluster_dns: None,
            cluster_ca_pem: None,
            // The only way to an endpoint on the loopback.
            api_server: Some(address),
            node: "coracle-1".into(),
            nodes: ["coracle-1".to_owned()].into(),
            checkpoint: None,
        };
        let plane = DataPlane::new(Env::real(), config, network.clone()).unwrap();
        let attached = pod.map(|pod| network.attach(net::Listen::tcp(address.ip(), address.port()), pod).unwrap());
        let stop = CancellationToken::new();
        let mut listeners = crate::listen::Listeners::new(plane.state.clone(), stop.clone());
        let listener = loop {
            let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let set = [(Listen::Node(port), route(address, AppProtocol::Http))].into();
            if listeners.apply(Change { set, ..Change::default() }).is_empty() {
                break SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port);
            }
        };
        Self { plane, listener, seen, stop, _pod: attached }
    }

    fn take_seen(&self) -> Vec<String> {
        let mut seen = std::mem::take(&mut *self.seen.lock().unwrap());
        seen.retain(|message| !message.contains("/sentinel"));
        seen
    }
}

fn route(address: SocketAddr, app_protocol: AppProtocol) -> Arc<PortRoute> {
    let endpoint = Endpoint {
        ip: address.ip(),
        port: address.port(),
        node: None,
        hints: crate::routing::table::Hints::default(),
        hostname: String::new(),
        in_flight: InFlightCount::default(),
    };
    let via = Some(Arc::new(ServicePort { service: ObjectKey::new("default", "kubernetes"), port: 80 }));
    Arc::new(PortRoute { via, app_protocol, ready: vec![Arc::new(endpoint)], ..PortRoute::default() })
}

/// Sends bytes, waits for the first response, sends the sentinel, reads to the end.
async fn talk(to: SocketAddr, bytes: &[u8], broken: bool) -> Vec<u8> {
    let mut stream = TcpStream::connect(to).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    if broken {
        stream.shutdown().await.unwrap();
    } else {
        while message(&answer).is_none() && stream.read_buf(&mut answer).await.is_ok_and(|read| read > 0) {}
        // A closed connection cannot be smuggled into.
        let _ = stream.write_all(SENTINEL).await;
    }
    // A reset ends it as well.
    while stream.read_buf(&mut answer).await.is_ok_and(|read| read > 0) {}
    answer
}

async fn requests(bench: &Bench, of_endpoint: bool) {
    let mut wrong = Vec::new();
    for case in cases(include_str!("../../tests/framing/requests.txt")) {
        let answer = talk(bench.listener, &case.bytes, case.broken).await;
        let seen = bench.take_seen();
        if case.broken {
            // The message never ended: no endpoint may have accepted it as complete.
            if seen.iter().any(|seen| seen != "incomplete") {
                wrong.push(format!("{}: {seen:?} reached the endpoint", case.name));
            }
            continue;
        }
        let status = String::from_utf8_lossy(answer.get(9..12).unwrap_or_default()).into_owned();
        let local = bench.listener.to_string();
        let framing = ["transfer-encoding: chunked", "connection: te"];
        let expected: Vec<String> = case.expected.iter().map(|text| text.replace("LOCAL", &local)).collect();
        let plain = |text: &String| match of_endpoint {
            true => text.clone(),
            // A pod receives messages, not connections.
            false => framing.iter().fold(text.clone(), |text, field| text.replace(&format!(" | {field}"), "")),
        };
        let (expected, seen): (Vec<_>, Vec<_>) = (expected.iter().map(plain).collect(), seen);
        if status != case.status || seen != expected {
            wrong.push(format!("{}: {status}, {seen:?}; wanted {}, {expected:?}", case.name, case.status));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[tokio::test]
async fn requests_reach_an_endpoint_in_one_meaning_or_not_at_all() {
    requests(&Bench::before_endpoint(None).await, true).await;
}

#[tokio::test]
async fn requests_reach_a_pod_in_one_meaning_or_not_at_all() {
    requests(&Bench::before_pod(), false).await;
}

#[tokio::test]
async fn answers_reach_a_client_in_one_meaning_or_not_at_all() {
    let mut wrong = Vec::new();
    for case in cases(include_str!("../../tests/framing/responses.txt")) {
        let bench = Bench::before_endpoint(Some(case.bytes)).await;
        let answer = talk(bench.listener, b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", false).await;
        let (got, rest) = message(&answer).unwrap_or_else(|| (format!("{answer:?}"), &[]));
        let got = got.replacen("HTTP/1.1 ", "", 1);
        let (status, fields) = got.split_once(" | ").unwrap_or((&got, ""));
        let mut fields: Vec<&str> = fields.split(" | ").filter(|field| !field.is_empty()).collect();
        fields.retain(|field| *field != "connection: close");
        fields.insert(0, &status[..3]);
        let got = fields.join(" | ");
        let refused = case.expected[0] == "502" && got.starts_with("502 | ");
        if (got != case.expected[0] && !refused) || !rest.is_empty() {
            wrong.push(format!("{}: {got:?}, {rest:?}; wanted {:?}", case.name, case.expected));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// An HTTP/2 frame.
fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags, 0, 0, 0, stream];
    frame.extend(payload);
    frame
}

/// Whether the first stream's request got a 200.
async fn talk_http2(to: SocketAddr, case: &Case) -> bool {
    let mut stream = TcpStream::connect(to).await.unwrap();
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend(frame(4, 0, 0, &[]));
    let mut block = Vec::new();
    for (name, value) in &case.fields {
        // A literal without indexing, with a literal name, neither of them Huffman-coded.
        block.push(0);
        for text in [name.as_bytes(), value] {
            block.push(u8::try_from(text.len()).ok().filter(|length| *length < 127).unwrap());
            block.extend(text);
        }
    }
    let has_body = !case.bytes.is_empty();
    bytes.extend(frame(1, if has_body { 4 } else { 5 }, 1, &block));
    if has_body {
        bytes.extend(frame(0, 1, 1, &case.bytes));
    }
    stream.write_all(&bytes).await.unwrap();
    let mut ok = false;
    let mut head = [0_u8; 9];
    while stream.read_exact(&mut head).await.is_ok() {
        let mut payload = vec![0; usize::from(head[1]) << 8 | usize::from(head[2])];
        if stream.read_exact(&mut payload).await.is_err() {
            break;
        }
        match (head[3], head[8]) {
            // Response head: 0x88 is `:status: 200` in the static table.
            (1, 1) => ok = payload.first() == Some(&0x88),
            // RST_STREAM or GOAWAY.
            (3, 1) | (7, _) => return false,
            _ => {}
        }
        if matches!(head[3], 0 | 1) && head[8] == 1 && head[4] & 1 == 1 {
            return ok;
        }
    }
    false
}

#[tokio::test]
async fn requests_of_http2_reach_an_endpoint_in_one_meaning_or_not_at_all() {
    let bench = Bench::before_endpoint(None).await;
    let mut wrong = Vec::new();
    for case in cases(include_str!("../../tests/framing/http2.txt")) {
        let ok = talk_http2(bench.listener, &case).await;
        let seen = bench.take_seen();
        let whole: Vec<&String> = seen.iter().filter(|seen| *seen != "incomplete").collect();
        if ok != (case.status == "200") || whole != case.expected.iter().collect::<Vec<_>>() {
            wrong.push(format!("{}: {ok}, {seen:?}; wanted {}, {:?}", case.name, case.status, case.expected));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// A guest's call through a Service to the endpoint.
async fn call(bench: &Bench, request: Request<Body>) -> Response<Body> {
    let caller =
        Caller { node: "n".into(), namespace: "default".into(), pod: "a".into(), ip: None, names: Arc::default() };
    bench.plane.http(&caller, request).await.unwrap()
}

fn known_to_guests(bench: &Bench, app_protocol: &str) {
    let address = bench.plane.state.config.api_server.unwrap();
    let key = ObjectKey::new("default", "kubernetes");
    let service = serde_json::json!({"metadata": {"name": "kubernetes", "namespace": "default"},
        "spec": {"clusterIP": "127.64.0.1", "ports": [{"port": 80, "appProtocol": app_protocol}]}});
    let slice = serde_json::json!({"metadata": {"name": "kubernetes", "namespace": "default",
        "labels": {"kubernetes.io/service-name": "kubernetes"}}, "addressType": "IPv4",
        "ports": [{"name": "", "port": address.port()}], "endpoints": [{"addresses": [address.ip()]}]});
    let mut table = crate::routing::table::Table::default();
    let routes = &bench.plane.state.routes;
    routes.install(&table.service(&key, Some(serde_json::from_value(service).unwrap())));
    table.slice(&key, Some(serde_json::from_value(slice).unwrap())).iter().for_each(|change| routes.install(change));
}

fn body(text: &'static str) -> Body {
    Full::from(text).map_err(|never| match never {}).boxed_unsync()
}

#[tokio::test]
async fn guests_set_no_connection_headers() {
    let bench = Bench::before_endpoint(None).await;
    known_to_guests(&bench, "http");
    let request = Request::post("http://kubernetes/x").header("connection", "x-own").header("x-own", "1");
    let request = request.header("transfer-encoding", "gzip").header("upgrade", "websocket").header("x-end", "2");
    let response = call(&bench, request.body(body("abc")).unwrap()).await;
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "ok");
    assert_eq!(bench.take_seen(), ["POST /x HTTP/1.1 | content-length: 3 | host: kubernetes | x-end: 2 || abc"]);
}

#[tokio::test]
async fn a_connection_to_an_endpoint_is_kept_for_the_next_request() {
    let bench = Bench::before_endpoint(None).await;
    known_to_guests(&bench, "http");
    for _ in 0..5 {
        let response = call(&bench, Request::get("http://kubernetes/").body(body("")).unwrap()).await;
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "ok");
        // Pooled once the connection's own task has seen the response's end.
        while bench.plane.state.egress.pooled_connections() == 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(bench.plane.state.egress.pooled_connections(), 1);
    }
}

#[tokio::test]
async fn a_kept_connection_that_has_ended_costs_no_request() {
    let bench = Bench::before_endpoint(Some(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok".to_vec())).await;
    known_to_guests(&bench, "http");
    for _ in 0..20 {
        let response = call(&bench, Request::get("http://kubernetes/").body(body("")).unwrap()).await;
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "ok");
    }
}

#[tokio::test]
async fn an_endpoint_of_h2c_is_spoken_to_in_http2() {
    use hyper_util::rt::{TokioExecutor, TokioIo};
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let connections = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counted = connections.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let service = hyper::service::service_fn(|request: Request<hyper::body::Incoming>| async move {
                let te = request.headers().get("te").cloned();
                let reported = format!("{:?} {} {te:?}", request.version(), request.uri());
                let trailers = http::HeaderMap::from_iter([("grpc-status".parse().unwrap(), "0".parse().unwrap())]);
                let body = Full::<bytes::Bytes>::from(reported).with_trailers(async move { Some(Ok(trailers)) });
                Ok::<_, std::convert::Infallible>(Response::new(body))
            });
            let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            tokio::spawn(server.serve_connection(TokioIo::new(stream), service));
        }
    });
    let bench = Bench::new(address, RecordedRequests::default(), None);
    known_to_guests(&bench, "kubernetes.io/h2c");
    for _ in 0..3 {
        let request = Request::post("http://kubernetes/x").header("te", "trailers").body(body("abc")).unwrap();
        let answer = call(&bench, request).await.into_body().collect().await.unwrap();
        assert_eq!(answer.trailers().unwrap()["grpc-status"], "0");
        assert_eq!(answer.to_bytes(), "HTTP/2.0 http://kubernetes/x Some(\"trailers\")");
    }
    assert_eq!(connections.load(std::sync::atomic::Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_kept_connection_of_http2_that_has_ended_costs_no_request() {
    use hyper_util::rt::{TokioExecutor, TokioIo};
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let over = Arc::new(tokio::sync::Notify::new());
            let answered = over.clone();
            let service = hyper::service::service_fn(move |_: Request<hyper::body::Incoming>| {
                // Each connection serves one response.
                answered.notify_one();
                async { Ok::<_, std::convert::Infallible>(Response::new(Full::<bytes::Bytes>::from("ok"))) }
            });
            tokio::spawn(async move {
                let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                let mut connection = std::pin::pin!(server.serve_connection(TokioIo::new(stream), service));
                tokio::select! {
                    _ = connection.as_mut() => return,
                    () = over.notified() => connection.as_mut().graceful_shutdown(),
                }
                let _ = connection.await;
            });
        }
    });
    let bench = Bench::new(address, RecordedRequests::default(), None);
    known_to_guests(&bench, "h2c");
    for _ in 0..20 {
        let answer = call(&bench, Request::get("http://kubernetes/").body(body("")).unwrap()).await;
        assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "ok");
    }
}

#[tokio::test]
async fn a_websocket_reaches_an_endpoint_outside_and_no_pod() {
    let upgrade =
        b"GET /chat HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\n\r\n";
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut bytes = Vec::new();
        while !bytes.ends_with(b"\r\n\r\n") {
            stream.read_buf(&mut bytes).await.unwrap();
        }
        let head = message(&bytes).unwrap().0;
        let switch = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
        stream.write_all(switch).await.unwrap();
        let mut ping = [0; 4];
        stream.read_exact(&mut ping).await.unwrap();
        stream.write_all(&ping).await.unwrap();
        // Until the client closes.
        let _ = stream.read_buf(&mut bytes).await;
        head
    });
    let bench = Bench::new(address, RecordedRequests::default(), None);
    let mut client = TcpStream::connect(bench.listener).await.unwrap();
    client.write_all(upgrade).await.unwrap();
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\n") {
        assert!(client.read_buf(&mut bytes).await.unwrap() > 0, "{}", String::from_utf8_lossy(&bytes));
    }
    let head = message(&bytes).unwrap().0;
    assert_eq!(head, "HTTP/1.1 101 Switching Protocols | connection: upgrade | upgrade: websocket");
    client.write_all(b"ping").await.unwrap();
    let mut pong = [0; 4];
    client.read_exact(&mut pong).await.unwrap();
    assert_eq!(&pong, b"ping");
    drop(client);
    let wanted = "GET /chat HTTP/1.1 | connection: upgrade | host: a | sec-websocket-key: x | upgrade: websocket";
    assert_eq!(serving.await.unwrap(), wanted);

    let pod = Bench::before_pod();
    let refused = talk(pod.listener, upgrade, false).await;
    assert!(refused.starts_with(b"HTTP/1.1 501"), "{}", String::from_utf8_lossy(&refused));
    assert!(pod.take_seen().is_empty());
}
