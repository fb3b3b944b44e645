//! The pods of a peer as a `Serve`: sends calls to the peer's tunnel.
//!
//! A rejected call comes back unread: a request's body is rebuilt from what was sent (`record`), a stream has sent
//! nothing before the peer accepted it.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use h2::{Reason, SendStream};
use http::{Method, Request, Response, StatusCode};
use http_body::Body as _;
use machinery_env::Env;
use machinery_serve::net::http::plain;
use machinery_serve::net::{Body, CallRejected, DatagramPipe, Origin, Serve, Stream, empty_body};
use tokio_util::task::AbortOnDropHandle;

use super::datagrams;
use super::head::{self, CallKind, Refusal};
use super::io::TunnelIo;
use super::metrics::{Direction, TunnelMetrics};
use super::peer::{LINKS_MAX, Lease, LinkKind, Peer, Unavailable};
use super::protocols::ProtocolCache;
use super::receive::{BodyGuard, Receiver};
use super::record::Recorder;
use super::transmit::transmit;

/// Connections on which a call is tried: all known ones may be ending.
const ATTEMPTS_MAX: usize = LINKS_MAX + 1;
/// The name of the policy that denies calls whose origin can't be carried.
const POLICY: &str = "tunnel";
/// Buffer of each direction of a carried stream.
const COPY_BYTES: usize = 64 << 10;

/// All pods of a peer: the called address is in the call's `Origin`.
#[derive(Clone)]
pub(super) struct RemotePod {
    pub(super) peer: Arc<Peer>,
    pub(super) env: Env,
    pub(super) metrics: TunnelMetrics,
    pub(super) protocols: Arc<Mutex<ProtocolCache>>,
}

/// Result of offering a request once.
enum Offered {
    Answered(Response<Body>),
    Refused(Refusal, Body),
    /// The connection was ending; another may take it.
    NotSent(Body),
    /// It isn't known whether the callee has seen it.
    Lost(String),
}

/// A running upload: it goes on after the response's end, and stops with a response that is given up.
struct Upload {
    sending: Option<AbortOnDropHandle<()>>,
    _lease: Arc<Lease>,
}

impl BodyGuard for Upload {
    fn complete(&mut self) {
        if let Some(sending) = self.sending.take() {
            drop(sending.detach());
        }
    }
}

fn unavailable(why: Unavailable) -> Refusal {
    match why {
        Unavailable::Down => Refusal::Gone,
        Unavailable::Full => Refusal::Busy,
    }
}

/// Whether the peer has not processed a call that failed so (RFC 9113 §8.7).
fn is_unprocessed(error: &h2::Error) -> bool {
    error.is_remote() && (error.is_go_away() || error.reason() == Some(Reason::REFUSED_STREAM))
}

/// Whether the connection failed, not the stream alone.
fn is_connection_error(error: &h2::Error) -> bool {
    error.is_io() || error.is_go_away()
}

impl RemotePod {
    async fn offer(&self, head: &Request<()>, body: Body) -> Offered {
        let mut lease = match self.peer.lease(LinkKind::Requests).await {
            Ok(lease) => lease,
            Err(why) => return Offered::Refused(unavailable(why), body),
        };
        let ended = body.is_end_stream();
        let sent = match lease.requests.clone().ready().await {
            Ok(ready) => {
                lease.requests = ready;
                lease.requests.send_request(head.clone(), ended)
            }
            Err(error) => Err(error),
        };
        let (response, stream) = match sent {
            Ok(sent) => sent,
            Err(error) if is_connection_error(&error) => {
                lease.link.retire();
                return Offered::NotSent(body);
            }
            Err(error) => return Offered::Lost(error.to_string()),
        };
        let lease = Arc::new(lease);
        let (recorder, sending) = match ended {
            true => (None, None),
            false => {
                let (recorder, sending) = upload(body, stream, lease.clone());
                (Some(recorder), sending)
            }
        };
        let take_back = |recorder: Option<Recorder>| recorder.map_or_else(|| Some(empty_body()), |it| it.take_back());
        match response.await {
            Ok(response) => match Refusal::of(response.headers()) {
                Some(refusal) => {
                    drop(sending);
                    match take_back(recorder) {
                        Some(body) => Offered::Refused(refusal, body),
                        None => Offered::Lost("the node rejected a request after it had read it".to_owned()),
                    }
                }
                None => {
                    recorder.iter().for_each(Recorder::stop);
                    let (head, body) = response.into_parts();
                    let held = Upload { sending, _lease: lease };
                    let body = Receiver::new(body).into_body(&head.headers, held);
                    Offered::Answered(Response::from_parts(head, body))
                }
            },
            Err(error) => {
                drop(sending);
                if is_connection_error(&error) {
                    lease.link.retire();
                }
                match take_back(recorder) {
                    Some(body) if is_unprocessed(&error) && error.is_go_away() => Offered::NotSent(body),
                    Some(body) if is_unprocessed(&error) => Offered::Refused(Refusal::Gone, body),
                    Some(body) if is_connection_error(&error) && may_repeat(head.method()) => {
                        Offered::Refused(Refusal::Gone, body)
                    }
                    _ => Offered::Lost(error.to_string()),
                }
            }
        }
    }

    /// Opens a stream; the peer has accepted it.
    async fn open(&self, from: &Origin, kind: CallKind) -> Result<TunnelIo, CallRejected<()>> {
        self.metrics.call(Direction::Out);
        let head = head::encode_connect(from, kind).map_err(|_| CallRejected::Denied(POLICY.into()))?;
        for _ in 0..ATTEMPTS_MAX {
            let leased = self.peer.lease(LinkKind::Bulk).await;
            let mut lease = leased.map_err(|why| unavailable(why).into_rejected(()))?;
            let Ok(ready) = lease.requests.clone().ready().await else {
                lease.link.retire();
                continue;
            };
            lease.requests = ready;
            let Ok((response, sender)) = lease.requests.send_request(head.clone(), false) else {
                lease.link.retire();
                continue;
            };
            match response.await {
                Ok(response) => match Refusal::of(response.headers()) {
                    Some(refusal) => return Err(refusal.into_rejected(())),
                    None if response.status() == StatusCode::OK => {
                        let receiver = Receiver::new(response.into_body());
                        return Ok(TunnelIo::new(receiver, sender, Some((lease, self.env.clone()))));
                    }
                    None => return Err(CallRejected::Closed),
                },
                // Nothing was sent yet.
                Err(error) if is_connection_error(&error) => lease.link.retire(),
                Err(_) => return Err(CallRejected::gone(())),
            }
        }
        Err(CallRejected::gone(()))
    }
}

impl RemotePod {
    /// Calls the peer itself; `None` without an answer.
    pub(super) async fn call_node(&self, head: &Request<()>) -> Option<Response<Body>> {
        self.metrics.call(Direction::Out);
        for _ in 0..ATTEMPTS_MAX {
            match self.offer(head, empty_body()).await {
                Offered::Answered(response) => return Some(response),
                Offered::NotSent(_) => {}
                Offered::Refused(..) | Offered::Lost(_) => return None,
            }
        }
        None
    }
}

/// Whether a request may be sent again (RFC 9110 §9.2.2).
fn may_repeat(method: &Method) -> bool {
    method.is_idempotent()
}

/// Starts to send a body. A short one is sent at once, without a task.
fn upload(body: Body, stream: SendStream<Bytes>, lease: Arc<Lease>) -> (Recorder, Option<AbortOnDropHandle<()>>) {
    let (recorder, body) = Recorder::record(body);
    let mut sending = Box::pin(async move {
        let _lease = lease;
        transmit(body, stream).await;
    });
    let polled = sending.as_mut().poll(&mut std::task::Context::from_waker(std::task::Waker::noop()));
    let sending = polled.is_pending().then(|| AbortOnDropHandle::new(tokio::spawn(sending)));
    (recorder, sending)
}

/// Carries bytes both ways until both halves have ended. An error on one side is a reset on the other.
async fn carry(mut stream: Stream, mut io: TunnelIo) {
    let copied = tokio::io::copy_bidirectional_with_sizes(&mut stream, &mut io, COPY_BYTES, COPY_BYTES).await;
    if let Err(error) = copied {
        tracing::debug!(%error, "a stream between nodes broke");
        io.abort();
        if let Stream::Tcp(stream) = &stream {
            // On failure the connection is gone already.
            let _ = stream.set_zero_linger();
        }
    }
}

#[async_trait::async_trait]
impl Serve for RemotePod {
    fn outlives_agent(&self) -> bool {
        true
    }

    /// `Some` once the peer has answered lately. An older peer has no answer.
    async fn find_out_http(&self, at: SocketAddr) -> Option<bool> {
        let protocols = || self.protocols.lock().unwrap_or_else(PoisonError::into_inner);
        let known = protocols().find(at, self.env.elapsed());
        if known.is_some() {
            return known;
        }
        let answer = self.call_node(&head::encode_speaks(at).ok()?).await?;
        let is_http = head::read_speaks(answer.headers())?;
        protocols().keep(at, is_http, self.env.elapsed());
        Some(is_http)
    }

    async fn http(&self, from: &Origin, request: Request<Body>) -> Result<Response<Body>, CallRejected<Request<Body>>> {
        self.metrics.call(Direction::Out);
        let (parts, mut body) = request.into_parts();
        let head = match head::encode_http(from, &parts) {
            Ok(head) => head,
            Err(error) => {
                tracing::debug!(%error, "a call cannot be carried");
                return Err(CallRejected::Denied(POLICY.into()));
            }
        };
        for _ in 0..ATTEMPTS_MAX {
            match self.offer(&head, body).await {
                Offered::Answered(response) => return Ok(response),
                Offered::Refused(refusal, body) => {
                    return Err(refusal.into_rejected(Request::from_parts(parts, body)));
                }
                Offered::NotSent(back) => body = back,
                Offered::Lost(why) => {
                    let text = format!("the connection to node {} broke: {why}", self.peer.name);
                    return Ok(plain(StatusCode::BAD_GATEWAY, "connection", &text));
                }
            }
        }
        Err(CallRejected::gone(Request::from_parts(parts, body)))
    }

    async fn connect(&self, from: &Origin) -> Option<Result<Stream, CallRejected<()>>> {
        Some(self.open(from, CallKind::Stream).await.map(|io| Stream::Tunnel(Box::new(io))))
    }

    async fn stream(self: Arc<Self>, from: Origin, stream: Stream) -> Result<(), CallRejected<Stream>> {
        match self.open(&from, CallKind::Stream).await {
            Ok(io) => carry(stream, io).await,
            Err(rejected) => return Err(Refusal::from(&rejected).into_rejected(stream)),
        }
        Ok(())
    }

    fn datagrams(&self, from: &Origin) -> Result<DatagramPipe, CallRejected<()>> {
        let (near, far) = DatagramPipe::pair();
        let remote = self.clone();
        let from = from.clone();
        tokio::spawn(async move {
            // A rejected pipe is dropped, as one to a pod that is gone.
            if let Ok(io) = remote.open(&from, CallKind::Datagrams).await {
                datagrams::carry(far, io).await;
            }
        });
        Ok(near)
    }
}
