//! `/portForward/NAMESPACE/POD`: byte streams to ports of a pod, for `kubectl port-forward` and clients of the older
//! WebSocket protocol.
//!
//! A stream ends at the pod's listener on its loopback, through a pipe: no socket of the host is opened, and no other
//! address can be reached.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::body::Body;
use axum::extract::{Path, RawQuery, Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use bytes::{Bytes, BytesMut};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use machinery_env::{Deadline, Env};
use machinery_serve::accept::ConnectionPermit;
use machinery_serve::net::{Origin, Peer, PodNetwork, Protocol, Serve, Stream};
use machinery_streaming::spdy::{self, Headers, SpdyStream};
use machinery_streaming::websocket::{self, Channels};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::Kubelet;
use super::output::Output;
use super::requests::InFlightRequest;
use super::upgrade::{self, Upgrade};

/// Maximum time between the two streams of a pair (upstream's).
const PAIR_TIMEOUT: Duration = Duration::from_secs(30);
/// Maximum time for the client to read the last bytes after the session's end.
const FINAL_READ_TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum opened streams that wait for their pair or for a worker.
const OPENED_QUEUED_MAX: usize = 8;
/// Bytes read from a pod at once.
const READ_BYTES: usize = 32 << 10;
/// Maximum queued messages of one numbered channel for the pod.
const CHUNKS_QUEUED_MAX: usize = 16;

/// SPDY's protocol, and its name over a WebSocket.
const PROTOCOL: &str = "portforward.k8s.io";
const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";
/// Numbered channels of binary messages.
const CHANNELS: &str = "v4.channel.k8s.io";

/// Accepts the upgrade, or returns the error response with upstream's words.
pub(super) async fn upgrade(
    State(kubelet): State<Kubelet>,
    Path((namespace, name)): Path<(String, String)>,
    RawQuery(query): RawQuery,
    Extension(permit): Extension<Arc<ConnectionPermit>>,
    Extension(counted): Extension<Arc<InFlightRequest>>,
    mut request: Request,
) -> Response {
    let Some(seen) = kubelet.pod(&namespace, &name) else {
        return (StatusCode::NOT_FOUND, "pod does not exist").into_response();
    };
    let (headers, wire) = match choose(request.headers(), &query.unwrap_or_default()) {
        Ok(chosen) => chosen,
        Err(refused) => return *refused,
    };
    let pod = ForwardedPod {
        network: kubelet.network.clone(),
        name,
        uid: seen.id.uid.clone(),
        ip: seen.status.get().pod_ip.as_deref().and_then(|ip| ip.parse().ok()),
        idle: kubelet.streaming_idle,
        env: kubelet.env.clone(),
    };
    let upgraded = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let _held = (permit, counted);
        let session = async {
            let io = upgraded.await.map_err(io::Error::other)?;
            pod.serve(TokioIo::new(io), wire).await
        };
        tokio::select! {
            done = session => {
                if let Err(error) = done {
                    tracing::debug!(%error, "a port-forward session ended");
                }
            }
            () = kubelet.stop.cancelled() => {}
        }
    });
    let mut response = (StatusCode::SWITCHING_PROTOCOLS, Body::empty()).into_response();
    response.headers_mut().extend(headers);
    response
}

/// The transport of the streams.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Wire {
    Spdy,
    Tunnel,
    /// Two channels for each port: its data and its errors.
    Channels(Vec<u16>),
}

/// Negotiates the protocol; returns it with the response's headers.
fn choose(headers: &HeaderMap, query: &str) -> Result<(HeaderMap, Wire), Box<Response>> {
    let (answer, upgrade) = upgrade::negotiate(headers, &[TUNNEL, CHANNELS, ""], &[PROTOCOL])?;
    let wire = match upgrade {
        Upgrade::Spdy(_) => Wire::Spdy,
        Upgrade::WebSocket(TUNNEL) => Wire::Tunnel,
        Upgrade::WebSocket(_) => Wire::Channels(ports(query).map_err(upgrade::bad_request)?),
    };
    Ok((answer, wire))
}

/// Parses the ports of a WebSocket with numbered channels.
fn ports(query: &str) -> Result<Vec<u16>, String> {
    /// Each takes two of 256 channels.
    const PORTS_MAX: usize = 100;
    let values: Vec<&str> = query.split('&').filter_map(|pair| pair.strip_prefix("port=")).collect();
    if values.is_empty() {
        return Err("query parameter \"port\" is required".into());
    }
    let mut ports = Vec::new();
    for text in values.iter().flat_map(|value| value.split(',')) {
        ports.push(port(text)?);
    }
    if ports.len() > PORTS_MAX { Err(format!("at most {PORTS_MAX} ports can be forwarded at once")) } else { Ok(ports) }
}

fn port(text: &str) -> Result<u16, String> {
    match text.parse() {
        Ok(0) => Err(format!("port {text:?} must be > 0")),
        Ok(port) => Ok(port),
        Err(error) => Err(format!("unable to parse {text:?} as a port: {error}")),
    }
}

/// Returns a stream's port, and whether it is the data stream; `None` if its headers are invalid.
fn part(headers: &Headers) -> Option<(u16, bool)> {
    let port = port(headers.get("port")?).ok()?;
    match headers.get("streamtype")? {
        "data" => Some((port, true)),
        "error" => Some((port, false)),
        _ => None,
    }
}

/// Returns the key of a stream's pair. Old clients number no pairs: the error stream comes first, and the next one is
/// its data stream.
fn pair_of(stream: &SpdyStream, is_data: bool) -> String {
    match stream.headers.get("requestid") {
        Some(id) if !id.is_empty() => id.to_owned(),
        _ if is_data => stream.id.wrapping_sub(2).to_string(),
        _ => stream.id.to_string(),
    }
}

/// A pod whose ports are forwarded.
#[derive(Debug, Clone)]
struct ForwardedPod {
    network: PodNetwork,
    name: String,
    uid: String,
    ip: Option<IpAddr>,
    /// Idle timeout of the session.
    idle: Duration,
    env: Env,
}

impl ForwardedPod {
    async fn serve(self, io: TokioIo<Upgraded>, wire: Wire) -> io::Result<()> {
        match wire {
            Wire::Spdy => self.serve_pairs(io).await,
            Wire::Tunnel => {
                let tunnel = websocket::tunnel(io, self.env.clone()).await;
                self.serve_pairs(tunnel).await
            }
            Wire::Channels(ports) => self.serve_channels(io, &ports).await,
        }
    }

    /// Serves pairs of streams, as many concurrently as the session allows.
    async fn serve_pairs(self, io: impl tokio::io::AsyncRead + tokio::io::AsyncWrite) -> io::Result<()> {
        let (opened, mut streams) = mpsc::channel(OPENED_QUEUED_MAX);
        let env = self.env.clone();
        let session = spdy::serve(io, self.idle, &env, |headers| part(headers).is_some(), opened);
        let pairs = async move {
            let mut waiting: HashMap<String, (SpdyStream, bool, Deadline)> = HashMap::new();
            let mut served = JoinSet::new();
            loop {
                let oldest = waiting.values().map(|(_, _, due)| *due).min();
                let stream: SpdyStream = tokio::select! {
                    stream = streams.recv() => match stream {
                        Some(stream) => stream,
                        None => std::future::pending().await,
                    },
                    Some(_) = served.join_next(), if !served.is_empty() => continue,
                    () = wait_until(&self.env, oldest) => {
                        let passed = |due: Deadline| due.passed(&self.env);
                        for (id, (stream, is_data, _)) in waiting.extract_if(|_, (_, _, due)| passed(*due)) {
                            if !is_data {
                                let why = format!("(request={id}) timed out waiting for streams");
                                let _ = stream.outgoing.send(why.into()).await;
                            }
                            let _ = stream.outgoing.reset().await;
                        }
                        continue;
                    }
                };
                let Some((port, is_data)) = part(&stream.headers) else { continue };
                let id = pair_of(&stream, is_data);
                match waiting.remove(&id) {
                    None => {
                        let due = self.env.deadline(PAIR_TIMEOUT);
                        waiting.insert(id, (stream, is_data, due));
                    }
                    Some(first) if first.1 == is_data => {
                        let _ = stream.outgoing.reset().await;
                        waiting.insert(id, first);
                    }
                    Some((first, _, _)) => {
                        let (data, error) = if is_data { (stream, first) } else { (first, stream) };
                        let (to, errors) = (Output::Spdy(data.outgoing), Output::Spdy(error.outgoing));
                        let pod = self.clone();
                        served.spawn(async move { pod.serve_pair(port, to, errors, data.incoming).await });
                    }
                }
            }
        };
        tokio::select! {
            done = session => done,
            done = pairs => done,
        }
    }

    /// Serves one connection to a port, whose errors have a separate stream.
    async fn serve_pair(&self, port: u16, mut data: Output, mut errors: Output, incoming: mpsc::Receiver<Bytes>) {
        let done = match self.connect(port) {
            Err(why) => errors.send(why.into()).await,
            Ok((serve, local)) => {
                let (own, other) = Stream::pipe();
                let serving = serve.stream(Origin { peer: Peer::Node, local, via: None }, other);
                let copying = copy(own, incoming, &data);
                tokio::pin!(copying);
                tokio::select! {
                    done = &mut copying => done,
                    served = serving => match served {
                        // Its last output may still be in the pipe.
                        Ok(()) => copying.await,
                        Err(_) => errors.send(self.refused(port).into()).await,
                    },
                }
            }
        };
        // Without a client the error has no reader.
        if done.is_ok() {
            let _ = data.finish().await;
            let _ = errors.finish().await;
        }
    }

    /// Returns the listener on a port of the pod's loopback with its address there, as upstream; else that on the pod's own
    /// address.
    fn connect(&self, port: u16) -> Result<(Arc<dyn Serve>, SocketAddr), String> {
        let refused = || self.refused(port);
        let ip = self.ip.ok_or_else(refused)?;
        let own = self.network.loopback(ip, Protocol::Tcp, port).map(|serve| (serve, Ipv4Addr::LOCALHOST.into()));
        let found = own.or_else(|| Some((self.network.find_local(ip, Protocol::Tcp, port)?, ip)));
        found.map(|(serve, ip)| (serve, SocketAddr::new(ip, port))).ok_or_else(refused)
    }

    fn refused(&self, port: u16) -> String {
        let Self { name, uid, .. } = self;
        format!(
            "error forwarding port {port} to pod {name}, uid {uid}: dial tcp4 127.0.0.1:{port}: connect: connection refused"
        )
    }

    /// Serves two numbered channels for each port. Both begin with the port as two bytes in little-endian order.
    async fn serve_channels(self, io: TokioIo<Upgraded>, ports: &[u16]) -> io::Result<()> {
        let (Channels { mut incoming, outgoing }, session) = websocket::channels(io, self.idle, self.env.clone());
        let serves = async {
            let mut pieces = Vec::new();
            let mut served = JoinSet::new();
            for (n, port) in (0u8..).step_by(2).zip(ports.iter().copied()) {
                let [data, errors] = [n, n + 1].map(|channel| Output::Channel(channel, outgoing.clone()));
                for output in [&data, &errors] {
                    output.send(Bytes::copy_from_slice(&port.to_le_bytes())).await?;
                }
                let (to, bytes) = mpsc::channel(CHUNKS_QUEUED_MAX);
                pieces.push(to);
                let pod = self.clone();
                served.spawn(async move { pod.serve_pair(port, data, errors, bytes).await });
            }
            drop(outgoing);
            loop {
                let message = tokio::select! {
                    message = incoming.recv() => message,
                    left = served.join_next() => match left {
                        Some(_) => continue,
                        None => return io::Result::Ok(()),
                    },
                };
                let Some((channel, bytes)) = message else { return Ok(()) };
                let to = pieces.get(usize::from(channel / 2)).filter(|_| channel % 2 == 0);
                if let Some(to) = to {
                    // A pod that has closed its side ends its own pair only; a stalled one ends the session by the idle
                    // timeout.
                    let _ = to.send(bytes).await;
                }
            }
        };
        tokio::pin!(session);
        tokio::select! {
            done = &mut session => return done,
            done = serves => done?,
        }
        drop(incoming);
        // The last bytes may not have been sent yet.
        self.env.timeout(FINAL_READ_TIMEOUT, session).await.unwrap_or(Ok(()))
    }
}

/// Copies in both directions until the pod's end: a client that has sent everything still receives the response.
async fn copy(to: Stream, mut incoming: mpsc::Receiver<Bytes>, output: &Output) -> io::Result<()> {
    let (mut read, mut write) = tokio::io::split(to);
    let up = async {
        while let Some(bytes) = incoming.recv().await {
            write.write_all(&bytes).await?;
        }
        write.shutdown().await
    };
    let down = async {
        let mut buffer = BytesMut::new();
        loop {
            buffer.reserve(READ_BYTES);
            if read.read_buf(&mut buffer).await? == 0 {
                return io::Result::Ok(());
            }
            output.send(buffer.split().freeze()).await?;
        }
    };
    tokio::pin!(up, down);
    tokio::select! {
        done = &mut down => done,
        // A pod that stops reading may still write.
        _ = &mut up => down.await,
    }
}

async fn wait_until(env: &Env, due: Option<Deadline>) {
    match due {
        Some(due) => env.sleep_until(due).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;
    use http::Response;
    use http_body_util::{BodyExt as _, Full};
    use machinery_serve::net::{self, CallRejected, Listen, Scope};
    use machinery_streaming::spdy::{Decoder, Encoder, Frame};
    use tokio::io::DuplexStream;

    use super::*;

    /// Answers `hello PATH` to requests from the node.
    struct Hello;

    #[async_trait::async_trait]
    impl Serve for Hello {
        async fn http(
            &self,
            from: &Origin,
            request: http::Request<net::Body>,
        ) -> Result<Response<net::Body>, CallRejected<http::Request<net::Body>>> {
            assert_eq!(from.peer, Peer::Node);
            let body = Full::from(format!("hello {}", request.uri().path())).map_err(|never| match never {});
            Ok(Response::new(body.boxed_unsync()))
        }
    }

    struct Gone;

    #[async_trait::async_trait]
    impl Serve for Gone {
        async fn http(
            &self,
            _: &Origin,
            request: http::Request<net::Body>,
        ) -> Result<Response<net::Body>, CallRejected<http::Request<net::Body>>> {
            Err(CallRejected::gone(request))
        }

        async fn stream(self: Arc<Self>, _: Origin, stream: Stream) -> Result<(), CallRejected<Stream>> {
            Err(CallRejected::gone(stream))
        }
    }

    /// Reads all, and sends it back with its own address before it.
    struct Echo;

    #[async_trait::async_trait]
    impl Serve for Echo {
        async fn http(
            &self,
            _: &Origin,
            _: http::Request<net::Body>,
        ) -> Result<Response<net::Body>, CallRejected<http::Request<net::Body>>> {
            Err(CallRejected::Closed)
        }

        async fn stream(self: Arc<Self>, from: Origin, mut stream: Stream) -> Result<(), CallRejected<Stream>> {
            let mut received = Vec::new();
            let _ = stream.read_to_end(&mut received).await;
            let _ = stream.write_all(&[from.local.to_string().as_bytes(), b" ", &received].concat()).await;
            Ok(())
        }
    }

    struct Client {
        io: DuplexStream,
        encoder: Encoder,
        decoder: Decoder,
        buffer: BytesMut,
        /// The text of each stream; after its end, also whether it was reset.
        received: HashMap<u32, (String, Option<bool>)>,
    }

    impl Client {
        async fn send(&mut self, frame: Frame) {
            let mut out = BytesMut::new();
            self.encoder.encode(&frame, &mut out).unwrap();
            self.io.write_all(&out).await.unwrap();
        }

        async fn open(&mut self, id: u32, kind: &str, port: &str, request: &str) {
            let headers = [("streamtype", kind), ("port", port), ("requestid", request)];
            let headers = Headers(headers.map(|(name, value)| (name.to_owned(), value.to_owned())).into());
            self.send(Frame::SynStream { id, fin: false, headers }).await;
        }

        /// Reads a stream until its end, and returns whether that was a reset. Data of other streams is stored.
        async fn all_of(&mut self, wanted: u32) -> (String, bool) {
            loop {
                while let Some(frame) = self.decoder.decode(&mut self.buffer).unwrap() {
                    match frame {
                        Frame::Data { id, fin, bytes } => {
                            let (text, ended) = self.received.entry(id).or_default();
                            *text += std::str::from_utf8(&bytes).unwrap();
                            *ended = ended.or(fin.then_some(false));
                        }
                        Frame::Reset { id, .. } => self.received.entry(id).or_default().1 = Some(true),
                        _ => {}
                    }
                }
                if let Some((text, Some(reset))) = self.received.get(&wanted) {
                    return (text.clone(), *reset);
                }
                assert_ne!(self.io.read_buf(&mut self.buffer).await.unwrap(), 0, "ended: {:?}", self.received);
            }
        }
    }

    /// Starts a client of a pod that serves on ports 80 and 81, 90 of its loopback, and 91 of its address, as long as the
    /// guards live.
    fn start() -> (Client, Vec<net::Attached>) {
        let network = PodNetwork::default();
        let ip: IpAddr = "127.66.0.9".parse().unwrap();
        let pod = ForwardedPod {
            network: network.clone(),
            name: "p".into(),
            uid: "u".into(),
            ip: Some(ip),
            idle: Duration::from_secs(60),
            env: Env::real(),
        };
        let ports = [(80, Arc::new(Hello) as Arc<dyn Serve>), (81, Arc::new(Gone))];
        let mut attached: Vec<_> =
            ports.into_iter().map(|(port, serve)| network.attach(Listen::tcp(ip, port), serve).unwrap()).collect();
        attached.extend(
            [(Scope::Loopback, 90), (Scope::Pod, 91)].map(|(scope, port)| {
                network.attach(Listen { scope, ..Listen::tcp(ip, port) }, Arc::new(Echo)).unwrap()
            }),
        );
        let (own, other) = tokio::io::duplex(1 << 16);
        tokio::spawn(pod.serve_pairs(other));
        let client = Client {
            io: own,
            encoder: Encoder::default(),
            decoder: Decoder::default(),
            buffer: BytesMut::new(),
            received: HashMap::new(),
        };
        (client, attached)
    }

    #[tokio::test]
    async fn stream_pairs_reach_served_ports_only() {
        let (mut client, _ports) = start();
        for (n, path) in [(0, "a"), (1, "b")] {
            client.open(4 * n + 1, "error", "80", &n.to_string()).await;
            client.open(4 * n + 3, "data", "80", &n.to_string()).await;
            let request = format!("GET /{path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
            client.send(Frame::Data { id: 4 * n + 3, fin: false, bytes: request.into() }).await;
        }
        for (id, path) in [(3, "a"), (7, "b")] {
            let (answer, reset) = client.all_of(id).await;
            assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with(&format!("hello /{path}")), "{answer}");
            assert!(!reset);
        }
        let refused = "dial tcp4 127.0.0.1:82: connect: connection refused";
        client.open(9, "error", "82", "2").await;
        client.open(11, "data", "82", "2").await;
        let (message, _) = client.all_of(9).await;
        assert_eq!(message, format!("error forwarding port 82 to pod p, uid u: {refused}"));
        // An old client numbers no pairs.
        client.open(13, "error", "81", "").await;
        client.open(15, "data", "81", "").await;
        assert!(client.all_of(13).await.0.ends_with("127.0.0.1:81: connect: connection refused"));
        // Neither a port nor a kind of stream.
        client.open(17, "data", "0", "3").await;
        assert_eq!(client.all_of(17).await, (String::new(), true));
        client.open(19, "input", "80", "3").await;
        assert_eq!(client.all_of(19).await, (String::new(), true));
    }

    #[tokio::test]
    async fn streams_reach_listeners_of_the_loopback_and_of_the_pods_address_with_their_half_close() {
        let (mut client, _ports) = start();
        for (n, (port, own)) in (0u32..).zip([("90", "127.0.0.1:90"), ("91", "127.66.0.9:91")]) {
            client.open(4 * n + 1, "error", port, &n.to_string()).await;
            client.open(4 * n + 3, "data", port, &n.to_string()).await;
            client.send(Frame::Data { id: 4 * n + 3, fin: true, bytes: "boats".into() }).await;
            assert_eq!(client.all_of(4 * n + 3).await, (format!("{own} boats"), false));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_without_its_pair_is_reset_in_time() {
        let (mut client, _ports) = start();
        client.open(1, "error", "80", "0").await;
        assert_eq!(client.all_of(1).await, ("(request=0) timed out waiting for streams".into(), true));
    }

    #[test]
    fn the_protocol_is_one_of_both_sides() {
        let choose = |fields: &[(&'static str, &'static str)], query: &str| {
            let fields = fields.iter().map(|(name, value)| ((*name).parse().unwrap(), HeaderValue::from_static(value)));
            let headers: HeaderMap = fields.collect();
            super::choose(&headers, query).map(|(headers, wire)| (headers.len(), wire)).map_err(|r| r.status().as_u16())
        };
        const KEY: (&str, &str) = ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==");
        let websocket = |protocol: Option<&'static str>| {
            let mut fields =
                vec![("connection", "Upgrade"), ("upgrade", "websocket"), ("sec-websocket-version", "13"), KEY];
            fields.extend(protocol.map(|protocol| ("sec-websocket-protocol", protocol)));
            fields
        };
        assert_eq!(choose(&websocket(Some(TUNNEL)), ""), Ok((4, Wire::Tunnel)));
        assert_eq!(choose(&websocket(Some(CHANNELS)), "port=80,81&port=9"), Ok((4, Wire::Channels(vec![80, 81, 9]))));
        assert_eq!(choose(&websocket(None), "port=80"), Ok((3, Wire::Channels(vec![80]))));
        for query in ["", "port=", "port=0", "port=65536", "port=x"] {
            assert_eq!(choose(&websocket(Some(CHANNELS)), query), Err(400), "{query}");
        }
        assert_eq!(choose(&websocket(Some("v9")), "port=80"), Err(400));
        let spdy = |version| choose(&[("connection", "Upgrade"), ("upgrade", "SPDY/3.1"), version], "");
        assert_eq!(spdy(("x-stream-protocol-version", PROTOCOL)), Ok((3, Wire::Spdy)));
        assert_eq!(spdy(("x-stream-protocol-version", "other")), Err(403));
        assert_eq!(spdy(("x-other", "")), Err(400));
        assert_eq!(choose(&[], ""), Err(400));
    }
}
