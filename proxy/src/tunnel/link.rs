//! One connection to a peer: dials, authenticates, and drives it until it ends or its peer is dead.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use h2::client::{Connection, SendRequest};
use h2::{Ping, PingPong};
use machinery_env::Env;
use machinery_serve::control_frames::Limited;
use machinery_serve::descriptors::{Class, DescriptorPermit, Descriptors};
use machinery_serve::dial::tls::ClientTls;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;

use super::identity::PeerIdentity;
use super::liveness::{LastReceived, LivenessStream, PING_INTERVAL};
use super::metrics::{ConnectionGuard, Direction, TunnelMetrics};
use super::{
    ALPN, CONNECTION_WINDOW_BYTES, DRAIN_MAX, FRAME_OVERHEAD_MAX, HEAD_BYTES_MAX, STREAM_WINDOW_BYTES, STREAMS_MAX,
};

/// Timeout of a connection with its handshakes, below the time that a call waits for it.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(2_500);
/// Unsent bytes in the socket's buffer: more would delay pings behind bulk data.
#[cfg(target_os = "linux")]
const UNSENT_BYTES_MAX: u32 = 256 << 10;

/// Why no connection was made: a label of the metrics.
#[derive(Debug, thiserror::Error)]
pub(super) enum DialFailure {
    #[error("no answer within {} ms", CONNECT_TIMEOUT.as_millis())]
    Timeout,
    #[error("the connection was refused")]
    Refused,
    #[error("{0}")]
    Io(io::Error),
    #[error("TLS: {0}")]
    Identity(rustls::Error),
    #[error("HTTP/2: {0}")]
    Protocol(String),
    #[error("too many open connections in this process: {0}")]
    Descriptors(io::Error),
}

impl DialFailure {
    pub(super) fn outcome(&self) -> &'static str {
        match self {
            Self::Timeout => "timeout",
            Self::Refused => "refused",
            Self::Io(_) => "io",
            Self::Identity(_) => "identity",
            Self::Protocol(_) => "protocol",
            Self::Descriptors(_) => "descriptors",
        }
    }

    /// Classifies a failure: rustls's errors come inside of others.
    fn of(error: io::Error) -> Self {
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        match (inner, error.kind()) {
            (Some(tls), _) => Self::Identity(tls.clone()),
            (None, io::ErrorKind::ConnectionRefused) => Self::Refused,
            _ => Self::Io(error),
        }
    }

    fn of_h2(error: h2::Error) -> Self {
        let text = error.to_string();
        match error.into_io() {
            Some(error) => Self::of(error),
            None => Self::Protocol(text),
        }
    }
}

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LinkEnd {
    /// In order: it was idle, the peer drains, or a certificate expired.
    Closed,
    /// It broke.
    Broken,
    /// The peer was silent.
    Dead,
}

/// A connection's requests: it ends when the last handle is dropped.
pub(super) struct Link {
    pub(super) requests: SendRequest<Bytes>,
    /// Free streams.
    pub(super) streams: Arc<Semaphore>,
    pub(super) state: Arc<LinkState>,
}

/// Shared between a link and the task that drives it.
#[derive(Debug, Default)]
pub(super) struct LinkState {
    /// Takes no new stream.
    retired: AtomicBool,
}

impl LinkState {
    pub(super) fn retire(&self) {
        self.retired.store(true, Ordering::Release);
    }

    pub(super) fn is_retired(&self) -> bool {
        self.retired.load(Ordering::Acquire)
    }
}

/// A connected link's driver, to be run until the end.
pub(super) struct LinkDriver {
    connection: Connection<Limited<Tls>, Bytes>,
    pings: PingPong,
    last_received: LastReceived,
    expires_at: i64,
    state: Arc<LinkState>,
    env: Env,
    _open: ConnectionGuard,
    _held: DescriptorPermit,
}

type Tls = TlsStream<LivenessStream<TcpStream>>;

/// Connects to a peer, authenticates it, and waits for its first answer: only that proves that it accepts this node.
pub(super) async fn connect(
    env: &Env,
    address: SocketAddr,
    tls: &ClientTls,
    metrics: &TunnelMetrics,
) -> Result<(Link, LinkDriver), DialFailure> {
    let held = Descriptors::process().take(Class::Backends).map_err(DialFailure::Descriptors)?;
    let connecting = async {
        let stream = TcpStream::connect(address).await.map_err(DialFailure::of)?;
        tune(&stream);
        let last_received = LastReceived::new(env);
        let name = ServerName::from(address.ip());
        let stream = LivenessStream::new(stream, last_received.clone());
        let stream = tls.connect(name, stream).await.map_err(DialFailure::of)?;
        let session = stream.get_ref().1;
        if session.alpn_protocol() != Some(ALPN) {
            return Err(DialFailure::Protocol("the peer speaks another version of the tunnel".to_owned()));
        }
        let identity = session.peer_certificates().and_then(|chain| PeerIdentity::of(chain.first()?));
        let expires_at = identity.map_or(i64::MIN, |identity| identity.expires_at);
        let (requests, mut connection) =
            builder().handshake(Limited::of_server(stream)).await.map_err(DialFailure::of_h2)?;
        let mut pings = connection.ping_pong().ok_or(DialFailure::Protocol("no pings".to_owned()))?;
        tokio::select! {
            pong = pings.ping(Ping::opaque()) => {
                pong.map_err(DialFailure::of_h2)?;
            }
            ended = &mut connection => {
                ended.map_err(DialFailure::of_h2)?;
                return Err(DialFailure::Protocol("the peer closed the connection".to_owned()));
            }
        }
        Ok((requests, connection, pings, last_received, expires_at))
    };
    let connected = env.timeout(CONNECT_TIMEOUT, connecting).await.map_err(|_| DialFailure::Timeout)?;
    let (requests, connection, pings, last_received, expires_at) = connected?;
    let state = Arc::new(LinkState::default());
    let link = Link { requests, streams: Arc::new(Semaphore::new(STREAMS_MAX as usize)), state: state.clone() };
    let open = metrics.connection(Direction::Out);
    let driver =
        LinkDriver { connection, pings, last_received, expires_at, state, env: env.clone(), _open: open, _held: held };
    Ok((link, driver))
}

/// Sets the options of a connection's socket. A socket that refuses is only slower.
pub(super) fn tune(stream: &TcpStream) {
    let _ = stream.set_nodelay(true);
    #[cfg(target_os = "linux")]
    let _ = socket2::SockRef::from(stream).set_tcp_notsent_lowat(UNSENT_BYTES_MAX);
}

fn builder() -> h2::client::Builder {
    let mut builder = h2::client::Builder::new();
    builder
        .initial_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .initial_max_send_streams(STREAMS_MAX as usize)
        .max_send_buffer_size(STREAM_WINDOW_BYTES as usize)
        .data_frame_budget(FRAME_OVERHEAD_MAX)
        .max_header_list_size(HEAD_BYTES_MAX)
        .enable_push(false);
    builder
}

impl LinkDriver {
    /// Drives the connection until its end, the peer's death or `cut`. Once the peer's certificate has expired, it takes
    /// no new stream, and is cut after a while.
    pub(super) async fn run(mut self, cut: &CancellationToken) -> LinkEnd {
        let mut ticks = self.env.interval(PING_INTERVAL);
        let mut drained_by = None;
        let end = loop {
            tokio::select! {
                ended = &mut self.connection => {
                    let is_orderly = ended.is_ok() || self.state.is_retired();
                    break if is_orderly { LinkEnd::Closed } else { LinkEnd::Broken };
                }
                () = cut.cancelled() => break LinkEnd::Closed,
                () = self.last_received.silent() => break LinkEnd::Dead,
                _ = std::future::poll_fn(|context| self.pings.poll_pong(context)) => {}
                _ = ticks.tick() => {
                    // Fails while the last ping has no answer yet: `last_received` decides.
                    let _ = self.pings.send_ping(Ping::opaque());
                    if self.env.now().as_second() >= self.expires_at {
                        self.state.retire();
                        let by = *drained_by.get_or_insert_with(|| self.env.deadline(DRAIN_MAX));
                        if by.passed(&self.env) {
                            break LinkEnd::Closed;
                        }
                    }
                }
            }
        };
        self.state.retire();
        end
    }
}
