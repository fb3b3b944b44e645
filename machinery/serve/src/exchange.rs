//! The end of each exchange on a server's connection of HTTP/1: what happens to the rest of a request that its handler
//! doesn't read, which responses announce the connection's end, and what the end of the client's sending means.
//!
//! hyper closes a connection with unread bytes after the response. The client then loses its next request, or the response
//! itself by a reset. So the rest is read and discarded, within limits ([`RequestBody`]), and a response after which the
//! connection can't go on says so ([`BodyProgress::announces_close`]).
//!
//! A client may close its sending half after a request. hyper would take this for the client's end and drop the exchange.
//! So the end of the stream is withheld from hyper while a request runs ([`Exchanges`]). As a client that is gone looks
//! alike, the response has to make progress.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH, EXPECT};
use http::{HeaderValue, Request, Response, StatusCode, Version};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::rt::Timer as _;
use hyper_util::rt::TokioTimer;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::framing;
use crate::guarded_body::GuardedBody;
use crate::hooked::Hook;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// An unread rest of at most this size is discarded, and the connection goes on (Go's `net/http` has the same bound).
const KEPT_REST_BYTES_MAX: u64 = 256 << 10;
/// Bytes that are discarded before a connection is closed, so that its client reads the response, and not a reset: more
/// than the clients' and the system's buffers, and enough for any manifest of a registry.
const DISCARDED_BYTES_MAX: usize = 64 << 20;
/// Time for that.
const DISCARD_TIME_MAX: Duration = Duration::from_secs(5);
/// Time without a written byte after which a connection that its client has half-closed ends. It holds a guest and a seat
/// meanwhile, and nearly all such clients are gone: other servers end such a request at once (Go's `net/http`, nginx).
const HALF_CLOSED_SILENCE_MAX: Duration = Duration::from_secs(5);

const HELD: u8 = 0;
const ENDED: u8 = 1;
const DROPPED: u8 = 2;
/// A rest of unknown size.
const UNKNOWN: u64 = u64::MAX;

/// The state of a connection that its exchanges share.
#[derive(Clone, Default)]
pub(crate) struct Exchanges(Arc<ConnectionState>);

#[derive(Default)]
struct ConnectionState {
    running: AtomicUsize,
    multiplexed: AtomicBool,
    half_closed: CancellationToken,
    /// The connection ends: nothing is discarded any more.
    ending: CancellationToken,
    written: AtomicU64,
    /// The connection's task, which waits for the withheld end.
    reader: Mutex<Option<Waker>>,
    /// The reader of the current request's body.
    body: Mutex<Option<Waker>>,
}

fn wake(waker: &Mutex<Option<Waker>>) {
    let waker = waker.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(waker) = waker {
        waker.wake();
    }
}

fn remember(waker: &Mutex<Option<Waker>>, context: &Context<'_>) {
    *waker.lock().unwrap_or_else(PoisonError::into_inner) = Some(context.waker().clone());
}

impl Exchanges {
    /// Begins the exchange of a request.
    pub(crate) fn begin<B>(&self, request: Request<B>) -> (Request<RequestBody<B>>, Exchange)
    where
        B: Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<BoxError>,
    {
        let version = request.version();
        if version > Version::HTTP_11 {
            self.0.multiplexed.store(true, Ordering::Release);
        }
        self.0.running.fetch_add(1, Ordering::AcqRel);
        let expects_continue = request.headers().contains_key(EXPECT);
        let progress = Arc::new(BodyProgress::of(request.body(), expects_continue));
        let exchange = Exchange { version, progress: progress.clone(), running: Some(RunningExchange(self.clone())) };
        let connection = self.clone();
        let runtime = Handle::try_current().ok();
        (request.map(|body| RequestBody { body: Some(body), progress, connection, runtime }), exchange)
    }

    /// Resolves when the client has half-closed the connection, and its response makes no progress.
    pub(crate) async fn abandoned(&self) {
        self.0.half_closed.cancelled().await;
        loop {
            let written = self.0.written.load(Ordering::Relaxed);
            TokioTimer::new().sleep(HALF_CLOSED_SILENCE_MAX).await;
            if self.0.written.load(Ordering::Relaxed) == written {
                return;
            }
        }
    }

    /// Ends the discarding of unread bodies: the connection closes after its open requests.
    pub(crate) fn end(&self) {
        self.0.ending.cancel();
    }

    fn withholds_end(&self) -> bool {
        self.0.running.load(Ordering::Acquire) > 0 && !self.0.multiplexed.load(Ordering::Acquire)
    }
}

impl<S: AsyncRead + Unpin> Hook<S> for Exchanges {
    fn poll_read(
        &mut self,
        stream: Pin<&mut S>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let (before, has_space) = (into.filled().len(), into.remaining() > 0);
        if !self.0.half_closed.is_cancelled() {
            let polled = stream.poll_read(context, into);
            let ended = matches!(polled, Poll::Ready(Ok(()))) && has_space && into.filled().len() == before;
            if !ended || !self.withholds_end() {
                return polled;
            }
            self.0.half_closed.cancel();
            wake(&self.0.body);
        }
        remember(&self.0.reader, context);
        // The last exchange may have ended before the task was remembered.
        if self.withholds_end() { Poll::Pending } else { Poll::Ready(Ok(())) }
    }

    fn on_write(&mut self, _: usize, _: &[io::IoSlice<'_>]) {
        self.0.written.fetch_add(1, Ordering::Relaxed);
    }
}

/// An exchange whose response isn't complete.
pub(crate) struct RunningExchange(Exchanges);

impl Drop for RunningExchange {
    fn drop(&mut self) {
        let state = &self.0.0;
        state.running.fetch_sub(1, Ordering::AcqRel);
        if state.half_closed.is_cancelled() {
            wake(&state.reader);
        }
    }
}

/// One request with its response.
pub(crate) struct Exchange {
    version: Version,
    progress: Arc<BodyProgress>,
    running: Option<RunningExchange>,
}

impl Exchange {
    /// Completes the response's head, and wraps its body, which ends the exchange.
    pub(crate) fn finish<B: Body>(mut self, mut response: Response<B>) -> Response<ResponseBody<B>> {
        let status = response.status();
        if self.version <= Version::HTTP_11 && status != StatusCode::SWITCHING_PROTOCOLS {
            let ends_with_connection = self.version < Version::HTTP_11
                && framing::has_body(status, false)
                && response.body().size_hint().exact().is_none()
                && !response.headers().contains_key(CONTENT_LENGTH);
            if ends_with_connection || self.progress.announces_close(status) {
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                if self.version < Version::HTTP_11 {
                    // hyper adds `keep-alive` to a response of version 1.1.
                    *response.version_mut() = Version::HTTP_10;
                }
            }
        }
        let running = self.running.take();
        response.map(|body| GuardedBody::new(body, running))
    }
}

/// A response's body, whose end is the exchange's.
pub(crate) type ResponseBody<B> = GuardedBody<B, Option<RunningExchange>>;

/// How much of a request's body its handler has read.
struct BodyProgress {
    phase: AtomicU8,
    rest: AtomicU64,
    /// Whether the client waits for a `100 Continue`, which hyper sends at the first read.
    expects_continue: AtomicBool,
}

impl BodyProgress {
    fn of(body: &impl Body, expects_continue: bool) -> Self {
        let phase = if body.is_end_stream() { ENDED } else { HELD };
        let rest = AtomicU64::new(body.size_hint().exact().unwrap_or(UNKNOWN));
        Self { phase: AtomicU8::new(phase), rest, expects_continue: AtomicBool::new(expects_continue) }
    }

    /// Whether the response with this status is the connection's last one because of its request's body: the rest is large
    /// or of unknown size, and the handler has dropped it, or will after an error.
    fn announces_close(&self, status: StatusCode) -> bool {
        let is_large = || self.rest.load(Ordering::Acquire) > KEPT_REST_BYTES_MAX;
        match self.phase.load(Ordering::Acquire) {
            ENDED => false,
            // Its client sends the body, or its next request: it can't be known.
            _ if self.expects_continue.load(Ordering::Acquire) => true,
            DROPPED => is_large(),
            _ => is_large() && (status.is_redirection() || status.is_client_error() || status.is_server_error()),
        }
    }
}

/// Why a request's body broke.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct BrokenBody(pub(crate) BoxError);

fn broken(error: impl Into<BoxError>) -> BrokenBody {
    BrokenBody(error.into())
}

/// A request's body. Its unread rest is discarded, within limits.
pub struct RequestBody<B = Incoming>
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
{
    body: Option<B>,
    progress: Arc<BodyProgress>,
    connection: Exchanges,
    /// A handler may drop the body on a thread without a runtime.
    runtime: Option<Handle>,
}

impl<B> Body for RequestBody<B>
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BrokenBody;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BrokenBody>>> {
        let this = &mut *self;
        let Some(body) = &mut this.body else { return Poll::Ready(None) };
        this.progress.expects_continue.store(false, Ordering::Release);
        let mut polled = Pin::new(&mut *body).poll_frame(context).map_err(broken);
        if polled.is_pending() {
            remember(&this.connection.0.body, context);
            if this.connection.0.half_closed.is_cancelled() {
                // The end was withheld from hyper, which has passed on all that came before it. Polled again: the rest may
                // have come since.
                polled = Pin::new(&mut *body).poll_frame(context).map_err(broken);
                if polled.is_pending() && !this.connection.0.multiplexed.load(Ordering::Acquire) {
                    polled = Poll::Ready(Some(Err(broken(io::Error::from(io::ErrorKind::UnexpectedEof)))));
                }
            }
        }
        if matches!(polled, Poll::Ready(None | Some(Err(_)))) || body.is_end_stream() {
            this.progress.phase.store(ENDED, Ordering::Release);
        }
        if matches!(polled, Poll::Ready(None | Some(Err(_)))) {
            this.body = None;
        } else {
            this.progress.rest.store(body.size_hint().exact().unwrap_or(UNKNOWN), Ordering::Release);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

impl<B> Drop for RequestBody<B>
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
{
    fn drop(&mut self) {
        let Some(mut body) = self.body.take().filter(|body| !body.is_end_stream()) else { return };
        self.progress.phase.store(DROPPED, Ordering::Release);
        let Some(runtime) = &self.runtime else { return };
        if self.progress.expects_continue.load(Ordering::Acquire) || self.connection.0.half_closed.is_cancelled() {
            return;
        }
        let ending = self.connection.0.ending.clone();
        runtime.spawn(async move {
            let discarded = async {
                let mut left = DISCARDED_BYTES_MAX;
                while let Some(Ok(frame)) = body.frame().await {
                    let Some(rest) = left.checked_sub(frame.data_ref().map_or(0, Bytes::len)) else { return };
                    left = rest;
                }
            };
            tokio::select! {
                () = discarded => {}
                () = ending.cancelled() => {}
                () = TokioTimer::new().sleep(DISCARD_TIME_MAX) => {}
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http_body_util::Full;
    use hyper::service::service_fn;
    use machinery_env::Env;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};

    use super::*;

    /// A body of pieces of 64 KiB that counts the reads, and signals its drop.
    struct Pieces(
        usize,
        Arc<AtomicUsize>,
        #[expect(dead_code, reason = "its drop is the message")] tokio::sync::oneshot::Sender<()>,
    );

    impl Body for Pieces {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            if self.0 == 0 {
                return Poll::Ready(None);
            }
            self.0 -= 1;
            self.1.fetch_add(1, Ordering::Relaxed);
            Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&[0; 1 << 16])))))
        }
    }

    #[tokio::test]
    async fn the_unread_rest_is_discarded_within_a_bound() {
        for (pieces, read) in [(20, 20), (usize::MAX, (DISCARDED_BYTES_MAX >> 16) + 1)] {
            let (count, (sender, dropped)) = (Arc::new(AtomicUsize::new(0)), tokio::sync::oneshot::channel());
            let (request, exchange) = Exchanges::default().begin(Request::new(Pieces(pieces, count.clone(), sender)));
            drop(request);
            assert!(dropped.await.is_err());
            assert_eq!(count.load(Ordering::Relaxed), read);
            let response = exchange.finish(Response::new(Full::<Bytes>::default()));
            assert_eq!(response.headers()[CONNECTION], "close", "of unknown size");
        }
    }

    #[tokio::test]
    async fn a_rest_that_never_comes_does_not_hold_up_the_end_of_its_server() {
        let ending = CancellationToken::new();
        let (mut client, served) = serve_until(ending.clone());
        client.write_all(b"POST /unread HTTP/1.1\r\nhost: a\r\ncontent-length: 1000000\r\n\r\n").await.unwrap();
        let response = read_to(&mut client, "unread").await;
        assert!(response.contains("connection: close"), "{response}");
        let env = Env::real();
        let begun = env.instant();
        ending.cancel();
        served.await.unwrap();
        assert!(env.instant() - begun < DISCARD_TIME_MAX);
    }

    #[test]
    fn a_response_announces_the_end_of_its_connection() {
        const LARGE: u64 = KEPT_REST_BYTES_MAX + 1;
        for (phase, rest, expects, status, close) in [
            (ENDED, 0, false, 405, false),
            (ENDED, 0, true, 200, false),
            (DROPPED, 1, false, 405, false),
            (DROPPED, KEPT_REST_BYTES_MAX, false, 405, false),
            (DROPPED, LARGE, false, 200, true),
            (DROPPED, UNKNOWN, false, 405, true),
            (HELD, LARGE, false, 200, false),
            (HELD, UNKNOWN, false, 200, false),
            (HELD, LARGE, false, 413, true),
            (HELD, UNKNOWN, false, 303, true),
            (HELD, 1, false, 413, false),
            (HELD, 1, true, 417, true),
        ] {
            let progress = BodyProgress {
                phase: AtomicU8::new(phase),
                rest: AtomicU64::new(rest),
                expects_continue: AtomicBool::new(expects),
            };
            let status = StatusCode::from_u16(status).unwrap();
            assert_eq!(progress.announces_close(status), close, "{phase} {rest} {expects} {status}");
        }
    }

    /// A server of one connection; `/unread` drops the body, `/slow` responds in two pieces, others echo it.
    fn serve() -> (DuplexStream, tokio::task::JoinHandle<()>) {
        serve_until(CancellationToken::new())
    }

    fn serve_until(ending: CancellationToken) -> (DuplexStream, tokio::task::JoinHandle<()>) {
        let (client, stream) = tokio::io::duplex(1 << 16);
        let service = service_fn(|request: Request<RequestBody>| async move {
            let path = request.uri().path().to_owned();
            let mut response = Response::new(Full::<Bytes>::default().map_err(|never| match never {}).boxed_unsync());
            *response.body_mut() = match &*path {
                "/unread" => {
                    *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
                    Full::from("unread").map_err(|never| match never {}).boxed_unsync()
                }
                "/slow" => two_pieces().boxed_unsync(),
                _ => match request.collect().await {
                    Ok(body) => Full::from(body.to_bytes()).map_err(|never| match never {}).boxed_unsync(),
                    Err(_) => Full::from("broken").map_err(|never| match never {}).boxed_unsync(),
                },
            };
            Ok::<_, Infallible>(response)
        });
        let served = tokio::spawn(async move {
            let _ = crate::connection::serve(stream, &Env::real(), service, &ending).await;
        });
        (client, served)
    }

    /// Two pieces, with a turn of the runtime between them.
    fn two_pieces() -> impl Body<Data = Bytes, Error = io::Error> + Send {
        struct Slow(u8);
        impl Body for Slow {
            type Data = Bytes;
            type Error = io::Error;

            fn poll_frame(
                mut self: Pin<&mut Self>,
                context: &mut Context<'_>,
            ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
                self.0 += 1;
                match self.0 {
                    1 | 5 => Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"piece"))))),
                    6.. => Poll::Ready(None),
                    _ => {
                        context.waker().wake_by_ref();
                        Poll::Pending
                    }
                }
            }
        }
        Slow(0)
    }

    async fn read_to(client: &mut DuplexStream, end: &str) -> String {
        let mut read = Vec::new();
        while !read.ends_with(end.as_bytes()) {
            if client.read_buf(&mut read).await.unwrap() == 0 {
                break;
            }
        }
        String::from_utf8(read).unwrap()
    }

    #[tokio::test]
    async fn a_connection_goes_on_after_an_unread_body() {
        let (mut client, _served) = serve();
        for _ in 0..20 {
            client.write_all(b"POST /unread HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\n").await.unwrap();
            let response = read_to(&mut client, "unread").await;
            assert!(response.starts_with("HTTP/1.1 405 ") && !response.contains("close"), "{response}");
            // The body comes after the response.
            client.write_all(b"boats").await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_large_unread_body_is_read_after_its_announced_end() {
        const BYTES: usize = 8 << 20;
        let (mut client, served) = serve();
        let head = format!("POST /unread HTTP/1.1\r\nhost: a\r\ncontent-length: {BYTES}\r\n\r\n");
        client.write_all(head.as_bytes()).await.unwrap();
        client.write_all(&vec![b'x'; BYTES]).await.unwrap();
        let response = read_to(&mut client, "unread").await;
        assert!(response.contains("connection: close"), "{response}");
        served.await.unwrap();
    }

    #[tokio::test]
    async fn a_half_closed_client_gets_its_whole_response() {
        for (request, wanted) in [
            ("GET /slow HTTP/1.1\r\nhost: a\r\n\r\n", "\r\n\r\n5\r\npiece\r\n5\r\npiece\r\n0\r\n\r\n"),
            ("POST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nboats", "\r\n\r\nboats"),
            ("POST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\nboats", "\r\n\r\nbroken"),
            ("GET /slow HTTP/1.0\r\nconnection: keep-alive\r\n\r\n", "\r\n\r\npiecepiece"),
        ] {
            let (mut client, served) = serve();
            client.write_all(request.as_bytes()).await.unwrap();
            client.shutdown().await.unwrap();
            let mut response = String::new();
            client.read_to_string(&mut response).await.unwrap();
            assert!(response.ends_with(wanted), "{request}: {response}");
            served.await.unwrap();
        }
    }

    #[tokio::test]
    async fn the_end_of_a_body_of_http_1_0_is_the_connections() {
        let (mut client, served) = serve();
        client.write_all(b"GET /slow HTTP/1.0\r\nconnection: keep-alive\r\n\r\n").await.unwrap();
        let mut response = String::new();
        client.read_to_string(&mut response).await.unwrap();
        assert!(response.contains("connection: close") && !response.contains("keep-alive"), "{response}");
        served.await.unwrap();
        let (mut client, _served) = serve();
        for _ in 0..2 {
            client.write_all(b"GET /unread HTTP/1.0\r\nconnection: keep-alive\r\n\r\n").await.unwrap();
            let response = read_to(&mut client, "unread").await;
            assert!(response.contains("connection: keep-alive"), "{response}");
        }
    }

    /// The connection's end is the response's, and waits for the rest of the request.
    #[tokio::test(start_paused = true)]
    async fn an_http_1_0_client_that_keeps_its_body_back_waits_for_the_end_of_the_discarding() {
        let (mut client, served) = serve();
        let (env, mut response) = (Env::real(), String::new());
        let begun = env.instant();
        client.write_all(b"POST /slow HTTP/1.0\r\ncontent-length: 9\r\n\r\nboats").await.unwrap();
        client.read_to_string(&mut response).await.unwrap();
        assert!(response.ends_with("\r\n\r\npiecepiece"), "{response}");
        assert_eq!((env.instant() - begun).as_secs(), DISCARD_TIME_MAX.as_secs());
        served.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_is_gone_is_served_no_longer_than_its_silence() {
        let exchanges = Exchanges::default();
        let (_request, _exchange) = exchanges.begin(Request::new(Full::<Bytes>::default()));
        let mut hook = exchanges.clone();
        let (client, mut stream) = tokio::io::duplex(8);
        drop(client);
        let mut buffer = [0; 8];
        let mut into = ReadBuf::new(&mut buffer);
        let mut context = Context::from_waker(Waker::noop());
        assert!(hook.poll_read(Pin::new(&mut stream), &mut context, &mut into).is_pending());
        let env = Env::real();
        let begun = env.instant();
        exchanges.abandoned().await;
        assert_eq!(env.instant() - begun, HALF_CLOSED_SILENCE_MAX);
    }
}
