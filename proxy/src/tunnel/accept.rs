//! The listening side: authenticates peers, verifies the origin of each call, and serves calls by this node's pods.
//!
//! Nothing but TLS reads bytes of an unauthenticated peer. All limits are per connection, per peer and in total.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use h2::server::{Connection, SendResponse};
use h2::{Reason, RecvStream};
use http::{Request, Response};
use http_body::Body as _;
use machinery_serve::accept::{self, ConnectionPermit, Limit, Listener};
use machinery_serve::control_frames::Limited;
use machinery_serve::descriptors::Descriptors;
use machinery_serve::net::{Body, CallRejected, Caller, Origin, Peer, Protocol, Serve, Stream};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

use super::head::{self, CallHead, CallKind, CallerClaim, Refusal};
use super::identity::{PeerIdentity, PeerUser};
use super::io::TunnelIo;
use super::lazy::LazyIo;
use super::link::tune;
use super::liveness::{LastReceived, LivenessStream, PING_INTERVAL};
use super::metrics::Direction;
use super::receive::Receiver;
use super::transmit::{begin, transmit};
use super::{
    ALPN, CONNECTION_WINDOW_BYTES, DRAIN_MAX, FRAME_OVERHEAD_MAX, HEAD_BYTES_MAX, STREAM_WINDOW_BYTES, STREAMS_MAX,
    Tunnel, datagrams,
};

/// Timeout of the handshakes of TLS and HTTP/2 together.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Connections of one node: those of both kinds, and as many that drain.
const NODE_CONNECTIONS_MAX: usize = 4 * super::peer::LINKS_MAX;
/// Connections of all API servers together.
const API_CONNECTIONS_MAX: usize = 64;
/// A connection without a call for so long is closed.
const IDLE_MAX: Duration = Duration::from_secs(300);
/// The name of the policy that refuses an origin.
const POLICY: &str = "tunnel";

/// The number of connections of each peer.
#[derive(Debug, Default)]
pub(super) struct PeerConnections(Mutex<HashMap<PeerKey, usize>>);

/// A node's name; none for API servers.
type PeerKey = Option<Arc<str>>;

impl PeerConnections {
    pub(super) fn enter(self: &Arc<Self>, user: &PeerUser) -> Option<PeerSlot> {
        let (key, max) = match user {
            PeerUser::Node(node) => (Some(node.clone()), NODE_CONNECTIONS_MAX),
            PeerUser::ApiServer => (None, API_CONNECTIONS_MAX),
        };
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(key.clone()).or_default();
        if *count >= max {
            return None;
        }
        *count += 1;
        drop(counts);
        Some(PeerSlot { connections: self.clone(), key })
    }
}

pub(super) struct PeerSlot {
    connections: Arc<PeerConnections>,
    key: PeerKey,
}

impl Drop for PeerSlot {
    fn drop(&mut self) {
        let mut counts = self.connections.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.key);
            }
        }
    }
}

type Tls = TlsStream<LivenessStream<TcpStream>>;

/// The authenticated other end of a connection.
struct ConnectedPeer {
    user: PeerUser,
    address: SocketAddr,
}

/// Serves the tunnel's port until `stop`, then drains its calls.
pub(super) async fn serve(tunnel: Arc<Tunnel>, listener: Listener, stop: &CancellationToken) {
    let limit = Limit::new(Descriptors::process().node_seats(), "tunnel");
    let env = tunnel.env.clone();
    let each = |stream, address, permit: Arc<ConnectionPermit>, ending| {
        let tunnel = tunnel.clone();
        async move { serve_connection(tunnel, stream, address, &permit, &ending).await }
    };
    accept::serve(listener, limit, Some(DRAIN_MAX), &env, stop, each).await;
}

async fn serve_connection(
    tunnel: Arc<Tunnel>,
    stream: TcpStream,
    address: SocketAddr,
    permit: &ConnectionPermit,
    stop: &CancellationToken,
) {
    tune(&stream);
    let last_received = LastReceived::new(&tunnel.env);
    let shakes = handshake(&tunnel, LivenessStream::new(stream, last_received.clone()));
    let (connection, identity) = match tunnel.env.timeout(HANDSHAKE_TIMEOUT, shakes).await {
        Ok(Ok(ready)) => ready,
        Ok(Err(error)) => return tracing::debug!(%address, error, "a peer could not be authenticated"),
        Err(_) => return tracing::debug!(%address, "a peer was too slow to authenticate"),
    };
    let Some(_slot) = tunnel.connections.enter(&identity.user) else {
        tunnel.metrics.refused_connections.inc();
        return tracing::debug!(%address, "a peer has too many connections");
    };
    permit.mark_authenticated();
    let _open = tunnel.metrics.connection(Direction::In);
    let peer = Arc::new(ConnectedPeer { user: identity.user, address });
    let running = run(&tunnel, connection, &peer, identity.expires_at, stop);
    tokio::select! {
        () = running => {}
        () = last_received.silent() => tracing::debug!(%address, "a peer is silent: its connection is closed"),
    }
}

async fn handshake(
    tunnel: &Tunnel,
    stream: LivenessStream<TcpStream>,
) -> Result<(Connection<Limited<Tls>, Bytes>, PeerIdentity), machinery_serve::net::BoxError> {
    let stream = TlsAcceptor::from(tunnel.tls.server.clone()).accept(stream).await?;
    let session = stream.get_ref().1;
    if session.alpn_protocol() != Some(ALPN) {
        return Err("the peer speaks another version of the tunnel".into());
    }
    let leaf = session.peer_certificates().and_then(|chain| chain.first());
    let identity = leaf.and_then(PeerIdentity::of).ok_or("the peer is no node and no API server")?;
    let mut builder = h2::server::Builder::new();
    builder
        .initial_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_concurrent_streams(STREAMS_MAX)
        .max_pending_accept_reset_streams(STREAMS_MAX as usize)
        .max_send_buffer_size(STREAM_WINDOW_BYTES as usize)
        .data_frame_budget(FRAME_OVERHEAD_MAX)
        .max_header_list_size(HEAD_BYTES_MAX);
    Ok((builder.handshake(Limited::of_client(stream)).await?, identity))
}

/// Serves the calls of a connection until its end; drains them after `stop`, after the expiry of the peer's certificate,
/// and once it is idle.
async fn run(
    tunnel: &Arc<Tunnel>,
    mut connection: Connection<Limited<Tls>, Bytes>,
    peer: &Arc<ConnectedPeer>,
    expires_at: i64,
    stop: &CancellationToken,
) {
    let env = &tunnel.env;
    // Dropping it aborts the calls.
    let mut calls = JoinSet::new();
    let mut ticks = env.interval(PING_INTERVAL);
    let mut drained_by = None;
    let mut idle_at = env.deadline(IDLE_MAX);
    loop {
        // Not awaited: the end of each call would wake this task.
        while calls.try_join_next().is_some() {
            idle_at = env.deadline(IDLE_MAX);
        }
        let ends = tokio::select! {
            call = connection.accept() => match call {
                Some(Ok((request, respond))) => {
                    idle_at = env.deadline(IDLE_MAX);
                    calls.spawn(serve_call(tunnel.clone(), peer.clone(), request, respond));
                    false
                }
                Some(Err(error)) => return tracing::debug!(peer = %peer.address, %error, "a peer's connection ended"),
                None => return,
            },
            () = stop.cancelled(), if drained_by.is_none() => true,
            _ = ticks.tick() => {
                (calls.is_empty() && idle_at.passed(env)) || env.now().as_second() >= expires_at
            }
        };
        match &drained_by {
            None if ends => {
                connection.graceful_shutdown();
                drained_by = Some(env.deadline(DRAIN_MAX));
            }
            Some(by) if by.passed(env) => return,
            _ => {}
        }
    }
}

/// Why a call is refused.
enum RefusedCall {
    /// The peer may not claim its origin.
    Origin(&'static str),
    /// The callee isn't here, or the peer isn't known yet: another endpoint may take the call.
    Gone,
}

impl Tunnel {
    /// Verifies a call's origin, and finds its callee.
    fn admit(&self, peer: &ConnectedPeer, head: &CallHead) -> Result<(Origin, Arc<dyn Serve>), RefusedCall> {
        let peers = self.peers.load();
        let table = &peers.table;
        let caller = match (&peer.user, &head.from) {
            (PeerUser::Node(node), _) if !table.knows(node) => return Err(RefusedCall::Gone),
            (PeerUser::Node(node), CallerClaim::Pod { namespace, name, ip }) => {
                if !table.owns(node, *ip) || *node == self.node {
                    return Err(RefusedCall::Origin("the caller's address is not of the peer's range"));
                }
                Peer::Pod(Caller {
                    node: node.clone(),
                    namespace: namespace.clone(),
                    pod: name.clone(),
                    ip: Some(*ip),
                    names: Arc::default(),
                })
            }
            (PeerUser::ApiServer, CallerClaim::Pod { .. }) => {
                return Err(RefusedCall::Origin("an API server has no pods"));
            }
            (_, CallerClaim::Host(address)) if table.owner(address.ip()).is_some() => {
                return Err(RefusedCall::Origin("the host's address is a pod's"));
            }
            (_, CallerClaim::Host(address)) => Peer::Host(*address),
            (_, CallerClaim::Node) => Peer::Host(peer.address),
        };
        let local = head.local;
        match self.network.find_local(local.ip(), head.kind.protocol(), local.port()) {
            Some(serve) => Ok((Origin { peer: caller, local, via: head.via.clone() }, serve)),
            None if table.owns(&self.node, local.ip()) => Err(RefusedCall::Gone),
            None => Err(RefusedCall::Origin("the called address is not of this node's range")),
        }
    }
}

async fn serve_call(
    tunnel: Arc<Tunnel>,
    peer: Arc<ConnectedPeer>,
    request: Request<RecvStream>,
    respond: SendResponse<Bytes>,
) {
    tunnel.metrics.call(Direction::In);
    let (mut parts, received) = request.into_parts();
    if head::is_to_node(&parts) {
        return serve_node(&tunnel, &peer, Request::from_parts(parts, ()), respond).await;
    }
    let admitted = match head::decode(&mut parts) {
        Ok(head) => tunnel.admit(&peer, &head).map(|(origin, serve)| (head.kind, origin, serve)),
        Err(error) => {
            tracing::debug!(peer = %peer.address, %error, "a call was malformed");
            Err(RefusedCall::Origin("malformed"))
        }
    };
    let (kind, origin, serve) = match admitted {
        Ok(admitted) => admitted,
        Err(RefusedCall::Gone) => return refuse(respond, &Refusal::Gone),
        Err(RefusedCall::Origin(why)) => {
            tunnel.metrics.refused_origins.inc();
            if let Some(left_out) = tunnel.refused_log.admit(&peer.user, tunnel.env.elapsed()) {
                tracing::warn!(peer = %peer.address, user = ?peer.user, why, left_out, "a call between nodes was refused");
            }
            return refuse(respond, &Refusal::Denied(POLICY.into()));
        }
    };
    match kind {
        CallKind::Http => serve_http(&*serve, &origin, parts, received, respond).await,
        CallKind::Stream => {
            let io = LazyIo::new(respond, received);
            let reply = io.reply();
            let served = serve.stream(origin, Stream::Tunnel(Box::new(io))).await;
            if let (Err(rejected), Some(respond)) = (served, reply.take()) {
                refuse(respond, &Refusal::from(&rejected));
            }
        }
        CallKind::Datagrams => match serve.datagrams(&origin) {
            Ok(pipe) => {
                let mut respond = respond;
                if let Ok(sender) = respond.send_response(Response::new(()), false) {
                    datagrams::carry(pipe, TunnelIo::new(Receiver::new(received), sender, None)).await;
                }
            }
            Err(rejected) => refuse(respond, &Refusal::from(&rejected)),
        },
    }
}

fn refuse(mut respond: SendResponse<Bytes>, refusal: &Refusal) {
    // Fails if the caller is gone.
    let _ = respond.send_response(refusal.response(), true);
}

/// Serves a call to the node itself. Only other nodes may call.
async fn serve_node(tunnel: &Tunnel, peer: &ConnectedPeer, request: Request<()>, mut respond: SendResponse<Bytes>) {
    let node = match &peer.user {
        PeerUser::Node(node) if tunnel.peers.load().table.knows(node) => node,
        _ => return refuse(respond, &Refusal::Denied(POLICY.into())),
    };
    if let Some(at) = head::decode_speaks(&request) {
        return match tunnel.network.find_local(at.ip(), Protocol::Tcp, at.port()) {
            // Fails if the caller is gone.
            Some(serve) => drop(respond.send_response(head::speaks(serve.speaks_http()), true)),
            None => refuse(respond, &Refusal::Gone),
        };
    }
    let Some(service) = tunnel.node_service.get() else { return refuse(respond, &Refusal::Gone) };
    let response = tokio::select! {
        response = service.call(node, request) => response,
        _ = std::future::poll_fn(|context| respond.poll_reset(context)) => return,
    };
    answer(response, respond).await;
}

/// Serves a request. A caller that gives up drops the callee's work, as within a process.
async fn serve_http(
    serve: &dyn Serve,
    origin: &Origin,
    parts: http::request::Parts,
    received: RecvStream,
    mut respond: SendResponse<Bytes>,
) {
    let body: Body = Receiver::new(received).into_body(&parts.headers, ());
    let served = tokio::select! {
        served = serve.http(origin, Request::from_parts(parts, body)) => served,
        _ = std::future::poll_fn(|context| respond.poll_reset(context)) => return,
    };
    match served {
        Ok(response) => answer(response, respond).await,
        Err(rejected) => {
            let refusal = Refusal::from(&rejected);
            // Sent before the unread request is dropped, which resets the rest of it.
            refuse(respond, &refusal);
            drop::<CallRejected<_>>(rejected);
        }
    }
}

/// Sends a response to its end.
async fn answer(response: Response<Body>, mut respond: SendResponse<Bytes>) {
    let (mut head, body) = response.into_parts();
    head::clean_response(&mut head.headers);
    let body = begin(body).await;
    let ended = body.is_end_stream();
    let mut response = Response::new(());
    *response.status_mut() = head.status;
    *response.headers_mut() = head.headers;
    match respond.send_response(response, ended) {
        Ok(_) if ended => {}
        Ok(stream) => {
            transmit(body, stream).await;
        }
        // The callee's head can't be sent.
        Err(_) => respond.send_reset(Reason::INTERNAL_ERROR),
    }
}
