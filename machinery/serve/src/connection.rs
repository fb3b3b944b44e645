//! HTTP on one connection of a server for untrusted clients: common timeouts and sizes (API server, kubelet, registry),
//! so that a client which sends slowly, stays silent or never reads holds no resources for long.
//!
//! The pod network has limits and framing of its own: [`crate::net::http`].

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_TYPE, HOST};
use http::{HeaderValue, Method, Request, Response, StatusCode, Version, request};
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use hyper::ext::ReasonPhrase;
use hyper::service::Service;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use machinery_env::Env;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::CancellationToken;

use crate::batched::{Batched, HTTP2_BEGINNING, InTurns, Turns};
use crate::control_frames;
use crate::exchange::Exchanges;
pub use crate::exchange::{BrokenBody, RequestBody};
use crate::framing::HEADERS_MAX;
use crate::guarded_body::GuardedBody;
use crate::hooked::{Hook, Hooked};
use crate::joined::JoinedBody;
use crate::last_request::{LastRequest, idle_max};
use crate::net::BoxError;

/// HTTP/1.1: timeout of a request's head, from its first byte or the connection's start (upstream's).
const HEADER_TIMEOUT: Duration = Duration::from_secs(32);
/// HTTP/1.1: timeout between the last response and the first byte of the next request (upstream's).
const KEPT_ALIVE_MAX: Duration = Duration::from_secs(90);
/// HTTP/2: interval of pings on a silent connection; it is closed without an answer.
const PING_INTERVAL: Duration = Duration::from_secs(30);
/// Timeout of a ping's answer.
const PING_TIMEOUT: Duration = Duration::from_secs(15);
/// Idle timeout of a connection, so that idle ones don't occupy seats.
const IDLE_MAX: Duration = Duration::from_secs(180);
/// Interval of the idle check.
const IDLE_CHECK: Duration = Duration::from_secs(60);
/// HTTP/2 streams at once per connection (upstream's default).
const STREAMS_MAX: u32 = 250;
/// Maximum bytes of a request's header fields: tokens are long, and impersonation adds more.
const HEADER_BYTES_MAX: u32 = 64 * 1024;

/// Serves HTTP/1.1 and HTTP/2, upgrades included, until the connection ends, is idle for long, or `stop`; running
/// requests are completed first, and an idle connection has [`idle_max`] for one more. The discarding of unread bodies ends then.
///
/// # Errors
/// If the connection breaks.
pub async fn serve<S, V, B>(stream: S, env: &Env, service: V, stop: &CancellationToken) -> Result<(), BoxError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    V: Service<Request<RequestBody>, Response = Response<B>, Error = Infallible> + Send + 'static,
    V::Future: Send + 'static,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let activity = Arc::new(Activity::new(env));
    let last = Arc::new(LastRequest::new(stop.clone()));
    let exchanges = Exchanges::default();
    let (seen, announcer, begun) = (activity.clone(), last.clone(), exchanges.clone());
    let counted = hyper::service::service_fn(move |request: Request<Incoming>| {
        let running = RunningRequest::begin(&seen);
        announcer.observe(request.version());
        let (request, exchange) = begun.begin(request);
        let (head, body) = request.into_parts();
        let answer = match check_host(&head) {
            Ok(()) => Ok(service.call(Request::from_parts(head, body))),
            Err(why) => Err(why),
        };
        let (seen, announcer) = (seen.clone(), announcer.clone());
        async move {
            let mut answer = match answer {
                Ok(answer) => answer.await.map(|answer| answer.map(Either::Left)),
                Err(why) => Ok(bad_request(why).map(Either::Right)),
            };
            answer.iter_mut().for_each(|answer| announcer.announce(answer));
            if answer.as_ref().is_ok_and(|answer| answer.status() == StatusCode::SWITCHING_PROTOCOLS) {
                seen.upgraded.store(true, Ordering::Release);
            }
            // The body holds the guards until it has been sent or dropped.
            answer.map(|answer| {
                let response = exchange.finish(answer);
                response.map(|body| GuardedBody::new(JoinedBody::new(Box::pin(body)), running))
            })
        }
    });
    let turns = Turns::default();
    let stream = Hooked::new(control_frames::Limited::of_client(stream), exchanges.clone());
    let stream = Hooked::new(stream, RequestHeadTimeout::new(activity.clone(), HEADER_TIMEOUT));
    let stream = Batched::new(stream, turns.clone());
    let server = builder();
    let serving = server.serve_connection_with_upgrades(TokioIo::new(stream), counted);
    tokio::pin!(serving);
    let abandoned = exchanges.abandoned();
    tokio::pin!(abandoned);
    loop {
        tokio::select! {
            ended = InTurns { connection: serving.as_mut(), turns: &turns } => return ended,
            () = abandoned.as_mut() => return Ok(()),
            () = last.passed(env, idle_max) => {
                if !last.has_begun() {
                    return Ok(());
                }
            }
            () = env.sleep(IDLE_CHECK) => {
                if !activity.is_idle() {
                    continue;
                }
            }
        }
        serving.as_mut().graceful_shutdown();
        exchanges.end();
        return tokio::select! {
            ended = InTurns { connection: serving, turns: &turns } => ended,
            () = abandoned => Ok(()),
        };
    }
}

/// Why a request of HTTP/1 is rejected for its `Host`, as by Go's server (`net/http`): the status line's phrase. HTTP/2
/// has frames of its own for that.
fn check_host(head: &request::Parts) -> Result<(), &'static str> {
    if head.version > Version::HTTP_11 {
        return Ok(());
    }
    let mut hosts = head.headers.get_all(HOST).iter();
    match (hosts.next(), hosts.next()) {
        (None, _) if head.version == Version::HTTP_11 && head.method != Method::CONNECT => {
            Err("Bad Request: missing required Host header")
        }
        (Some(_), Some(_)) => Err("Bad Request"),
        (Some(host), None) if !host.as_bytes().iter().all(|byte| is_host_byte(*byte)) => {
            Err("Bad Request: malformed Host header")
        }
        _ => Ok(()),
    }
}

/// Whether a byte is allowed in a `Host` (`httpguts.ValidHostHeader`).
fn is_host_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!$%&'()*+,-.:;=[]_~".contains(&byte)
}

/// Closes the connection as well: the following bytes can't be trusted to be a request.
fn bad_request(why: &'static str) -> Response<Full<Bytes>> {
    let mut answer = Response::new(Full::from(format!("400 {why}")));
    *answer.status_mut() = StatusCode::BAD_REQUEST;
    answer.extensions_mut().insert(ReasonPhrase::from_static(why.as_bytes()));
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    answer
}

fn builder() -> auto::Builder<TokioExecutor> {
    let mut server = auto::Builder::new(TokioExecutor::new());
    server.http1().timer(TokioTimer::new()).header_read_timeout(KEPT_ALIVE_MAX).max_headers(HEADERS_MAX);
    server
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEADER_BYTES_MAX);
    server
}

/// Activity of a connection.
struct Activity {
    env: Env,
    /// Number of requests begun.
    begun: AtomicUsize,
    running: AtomicUsize,
    /// When the last request ended, in seconds of the environment's monotonic clock.
    ended_at: AtomicU64,
    /// Whether the connection was upgraded to another protocol, which has timeouts of its own.
    upgraded: AtomicBool,
}

impl Activity {
    fn new(env: &Env) -> Self {
        let ended_at = AtomicU64::new(env.elapsed().as_secs());
        Self {
            env: env.clone(),
            begun: AtomicUsize::new(0),
            running: AtomicUsize::new(0),
            ended_at,
            upgraded: AtomicBool::new(false),
        }
    }

    fn is_idle(&self) -> bool {
        let since = self.env.elapsed().as_secs().saturating_sub(self.ended_at.load(Ordering::Acquire));
        self.running.load(Ordering::Acquire) == 0 && since >= IDLE_MAX.as_secs()
    }
}

/// A running request, from its head to the end of its response.
struct RunningRequest(Arc<Activity>);

impl RunningRequest {
    fn begin(activity: &Arc<Activity>) -> Self {
        activity.running.fetch_add(1, Ordering::AcqRel);
        activity.begun.fetch_add(1, Ordering::AcqRel);
        Self(activity.clone())
    }
}

impl Drop for RunningRequest {
    fn drop(&mut self) {
        self.0.ended_at.store(self.0.env.elapsed().as_secs(), Ordering::Release);
        self.0.running.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Closes a stream if the head of a request (HTTP/1.1) takes longer than [`HEADER_TIMEOUT`] from its first byte.
struct RequestHeadTimeout {
    activity: Arc<Activity>,
    /// Whether it speaks HTTP/2, which has timeouts of its own.
    http2: bool,
    /// The number of requests before the head that is being received, if any.
    head: Option<usize>,
    time_max: Duration,
    deadline: Pin<Box<tokio::time::Sleep>>,
}

impl RequestHeadTimeout {
    /// For a new connection: its first request is due from now on.
    fn new(activity: Arc<Activity>, time_max: Duration) -> Self {
        let deadline = Box::pin(activity.env.sleep(time_max));
        Self { activity, http2: false, head: Some(0), time_max, deadline }
    }
}

impl<S: AsyncRead + Unpin> Hook<S> for RequestHeadTimeout {
    fn poll_read(
        &mut self,
        stream: Pin<&mut S>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        let polled = stream.poll_read(context, into);
        let fresh = &into.filled()[before..];
        self.http2 |= self.head == Some(0) && fresh.starts_with(HTTP2_BEGINNING);
        if self.http2 || self.activity.upgraded.load(Ordering::Acquire) {
            return polled;
        }
        let begun = self.activity.begun.load(Ordering::Acquire);
        if self.head.is_some_and(|head| head != begun) {
            self.head = None;
        }
        // Bytes during a request are its body.
        if !fresh.is_empty() && self.head.is_none() && self.activity.running.load(Ordering::Acquire) == 0 {
            self.head = Some(begun);
            self.deadline.as_mut().reset(self.activity.env.deadline(self.time_max).instant());
        }
        if polled.is_pending() && self.head.is_some() && self.deadline.as_mut().poll(context).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        polled
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::Full;
    use hyper::service::service_fn;
    use jiff::Timestamp;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[test]
    fn a_connection_is_idle_when_its_last_answer_ended_long_ago() {
        let (env, clock) = Env::seeded(1, Timestamp::UNIX_EPOCH);
        let activity = Arc::new(Activity::new(&env));
        let watch = RunningRequest::begin(&activity);
        clock.advance(IDLE_MAX * 2);
        assert!(!activity.is_idle(), "a watch runs");
        drop(watch);
        assert!(!activity.is_idle(), "it has only just ended");
        clock.advance(IDLE_MAX);
        assert!(activity.is_idle());
    }

    #[tokio::test]
    async fn a_request_names_one_host() {
        const REFUSED: &str = "HTTP/1.1 400 Bad Request";
        let (env, stop) = (Env::real(), CancellationToken::new());
        let service = |_| async { Ok::<_, Infallible>(Response::new(Full::<Bytes>::from("served"))) };
        for (head, status, end) in [
            (
                "GET / HTTP/1.1\r\n",
                "HTTP/1.1 400 Bad Request: missing required Host header\r\n",
                ": missing required Host header",
            ),
            ("GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n", "HTTP/1.1 400 Bad Request\r\n", "400 Bad Request"),
            ("GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n", "HTTP/1.0 400 Bad Request\r\n", "400 Bad Request"),
            ("GET / HTTP/1.1\r\nHost: a b\r\n", REFUSED, ": malformed Host header"),
            ("GET / HTTP/1.1\r\nHost: a/b\r\n", REFUSED, ": malformed Host header"),
            ("GET / HTTP/1.1\r\nHost: a@b\r\n", REFUSED, ": malformed Host header"),
            ("GET / HTTP/1.0\r\n", "HTTP/1.0 200 OK\r\n", "served"),
            ("GET / HTTP/1.1\r\nHost:\r\nConnection: close\r\n", "HTTP/1.1 200 OK\r\n", "served"),
            ("GET / HTTP/1.1\r\nHost: [::1]:x%$\r\nConnection: close\r\n", "HTTP/1.1 200 OK\r\n", "served"),
        ] {
            let (mut client, stream) = tokio::io::duplex(1 << 20);
            client.write_all(format!("{head}\r\n").as_bytes()).await.unwrap();
            let served = serve(stream, &env, service_fn(service), &stop);
            let mut text = String::new();
            let (_, read) = tokio::join!(served, client.read_to_string(&mut text));
            read.unwrap();
            assert!(text.starts_with(status) && text.ends_with(end), "{head}: {text}");
        }
    }

    #[tokio::test]
    async fn an_idle_connection_has_one_more_request_when_its_server_ends() {
        let (env, stop) = (Env::real(), CancellationToken::new());
        let service = |_| async { Ok::<_, Infallible>(Response::new(Full::<Bytes>::from("served"))) };
        let (mut client, stream) = tokio::io::duplex(1 << 20);
        let ended = stop.clone();
        let asks = async move {
            client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
            let mut first = vec![0; 4096];
            let length = client.read(&mut first).await.unwrap();
            assert!(!String::from_utf8_lossy(&first[..length]).contains("connection: close"));
            ended.cancel();
            client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
            let mut last = String::new();
            client.read_to_string(&mut last).await.unwrap();
            last
        };
        let (served, last) = tokio::join!(serve(stream, &env, service_fn(service), &stop), asks);
        served.unwrap();
        assert!(last.contains("connection: close") && last.ends_with("served"), "{last}");
    }

    #[tokio::test(start_paused = true)]
    async fn an_unfinished_head_does_not_hold_up_the_end() {
        let (env, stop) = (Env::real(), CancellationToken::new());
        let service = |_| async { Ok::<_, Infallible>(Response::new(Full::<Bytes>::from("served"))) };
        for head in ["", "GET / HT", "PRI * HTTP/2.0\r\n"] {
            let (mut client, stream) = tokio::io::duplex(1 << 20);
            client.write_all(head.as_bytes()).await.unwrap();
            stop.cancel();
            let begun = env.instant();
            let _ = serve(stream, &env, service_fn(service), &stop).await;
            assert!(env.instant() - begun <= 2 * idle_max(false), "{head:?}");
        }
    }

    #[tokio::test]
    async fn impersonation_may_name_hundreds_of_groups() {
        let service = |request: Request<Incoming>| async move {
            let groups = request.headers().get_all("impersonate-group").iter().count();
            Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(groups.to_string()))))
        };
        for (groups, answer) in [(150, "\r\n\r\n150"), (2 * HEADERS_MAX, "HTTP/1.1 431 ")] {
            let (mut client, stream) = tokio::io::duplex(1 << 20);
            let head = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "Impersonate-Group: g\r\n".repeat(groups));
            client.write_all(head.as_bytes()).await.unwrap();
            let server = builder();
            let connection = server.serve_connection(TokioIo::new(stream), service_fn(service));
            let mut read = vec![0; 4096];
            let answered = async move {
                let length = client.read(&mut read).await.unwrap();
                read.truncate(length);
                read
            };
            let (_, read) = tokio::join!(connection, answered);
            let text = String::from_utf8(read).unwrap();
            assert!(text.contains(answer), "{groups}: {text}");
        }
    }

    #[tokio::test]
    async fn a_head_has_its_time_and_a_body_more() {
        const TIME_MAX: Duration = Duration::from_millis(100);
        let env = Env::real();
        let connection = || {
            let activity = Arc::new(Activity::new(&env));
            let (stream, client) = tokio::io::duplex(64);
            (Hooked::new(stream, RequestHeadTimeout::new(activity.clone(), TIME_MAX)), client, activity)
        };
        let ended = async |heads: &mut Hooked<tokio::io::DuplexStream, RequestHeadTimeout>| {
            heads.read(&mut [0]).await.map_err(|e| e.kind())
        };
        // A connection without bytes.
        let (mut heads, _client, _) = connection();
        assert_eq!(ended(&mut heads).await, Err(io::ErrorKind::TimedOut));
        // Trickling bytes don't extend the timeout: a slow writer is cut off.
        let (mut heads, mut client, activity) = connection();
        let began = env.elapsed();
        let timers = env.clone();
        let trickle = tokio::spawn(async move {
            while client.write_all(b"x").await.is_ok() {
                timers.sleep(TIME_MAX / 20).await;
            }
        });
        while ended(&mut heads).await.is_ok() {}
        assert!(env.elapsed() - began >= TIME_MAX);
        drop(heads);
        trickle.await.unwrap();
        // A body, and the time to the next request, are not the head's; the next head is.
        let (stream, mut client) = tokio::io::duplex(64);
        let mut heads = Hooked::new(stream, RequestHeadTimeout::new(activity.clone(), TIME_MAX));
        let request = RunningRequest::begin(&activity);
        client.write_all(b"b").await.unwrap();
        assert_eq!(ended(&mut heads).await, Ok(1));
        assert!(env.timeout(TIME_MAX * 3, ended(&mut heads)).await.is_err());
        drop(request);
        assert!(env.timeout(TIME_MAX * 3, ended(&mut heads)).await.is_err());
        client.write_all(b"G").await.unwrap();
        assert_eq!(ended(&mut heads).await, Ok(1));
        assert_eq!(ended(&mut heads).await, Err(io::ErrorKind::TimedOut));
        // Other protocols and HTTP/2 have timeouts of their own.
        let (mut heads, mut client, activity) = connection();
        activity.upgraded.store(true, Ordering::Release);
        client.write_all(b"\x80\x03").await.unwrap();
        assert_eq!(ended(&mut heads).await, Ok(1));
        assert_eq!(ended(&mut heads).await, Ok(1));
        assert!(env.timeout(TIME_MAX * 3, ended(&mut heads)).await.is_err());
        let (mut heads, mut client, _) = connection();
        client.write_all(HTTP2_BEGINNING).await.unwrap();
        heads.read_exact(&mut [0; 12]).await.unwrap();
        assert!(env.timeout(TIME_MAX * 3, ended(&mut heads)).await.is_err());
    }
}
