//! Control frames of an HTTP/2 peer: counted against a budget, so that a connection of PING, SETTINGS, PRIORITY or
//! WINDOW_UPDATE frames, which no request pays for, ends. hyper and h2 answer such frames without a limit, before any
//! authentication. A server floods as well as a client.
//!
//! `Scanner` and `Budget` are pure; [`Limited`] applies them to the stream of a connection.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use hyper::rt::Timer as _;
use hyper_util::rt::TokioTimer;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::hooked::{Hook, Hooked};

/// Control frames at once. Clients begin with fewer than ten.
const FRAMES_MAX: u64 = 2000;
/// Control frames a second without a request: keep-alives need fewer than one. Each costs some microseconds.
const FRAMES_PER_SECOND: u64 = 100;
/// Control frames that each sent frame of a message allows: its receiver may answer it with a PING, which measures the
/// bandwidth, and with two WINDOW_UPDATEs …
const FRAMES_PER_SENT: u64 = 4;
/// … and so many more bytes allow another one: receivers send a WINDOW_UPDATE for each part that they read.
const SENT_BYTES_PER_FRAME: u64 = 1 << 10;
/// What sent frames have allowed and the peer has not used yet: a peer that lags behind answers some 100 MiB at once, and
/// has received all of them.
const SENT_FRAMES_MAX: u64 = 1 << 17;
/// So many bytes of a control frame's content cost as much as another frame: SETTINGS may repeat a value often.
const CONTENT_BYTES_PER_FRAME: u64 = 256;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const GOAWAY: u8 = 7;
/// Error code of GOAWAY.
const ENHANCE_YOUR_CALM: u8 = 11;
const HEADER_BYTES: usize = 9;
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A frame's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FrameHeader {
    length: u32,
    kind: u8,
    stream: u32,
}

/// What the bytes of a direction are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Position {
    /// So many bytes of the preface came.
    Preface(usize),
    /// So many bytes of a frame's header came.
    Header(usize),
    /// So many bytes of the frame's content are left.
    Content(u32),
    /// No HTTP/2.
    Other,
}

/// Finds the frames of one direction of a connection. Pure.
#[derive(Debug)]
pub(crate) struct Scanner {
    position: Position,
    header: [u8; HEADER_BYTES],
}

impl Scanner {
    /// Of a client, which may speak another protocol.
    pub(crate) fn of_client() -> Self {
        Self { position: Position::Preface(0), header: [0; HEADER_BYTES] }
    }

    /// Of a server that speaks HTTP/2.
    pub(crate) fn of_server() -> Self {
        Self { position: Position::Header(0), header: [0; HEADER_BYTES] }
    }

    /// Whether the client has sent the preface.
    pub(crate) fn is_http2(&self) -> bool {
        matches!(self.position, Position::Header(_) | Position::Content(_))
    }

    /// Whether a frame begins next.
    fn is_between_frames(&self) -> bool {
        self.position == Position::Header(0)
    }

    /// Scans the next bytes.
    pub(crate) fn scan(&mut self, mut bytes: &[u8], mut each: impl FnMut(FrameHeader)) {
        while let Some(first) = bytes.first() {
            match self.position {
                Position::Other => return,
                Position::Preface(at) => {
                    bytes = &bytes[1..];
                    self.position = match PREFACE.get(at..) {
                        Some([expected]) if expected == first => Position::Header(0),
                        Some([expected, ..]) if expected == first => Position::Preface(at + 1),
                        _ => Position::Other,
                    };
                }
                Position::Header(have) => {
                    let taken = bytes.len().min(HEADER_BYTES - have);
                    self.header[have..have + taken].copy_from_slice(&bytes[..taken]);
                    bytes = &bytes[taken..];
                    self.position = Position::Header(have + taken);
                    if have + taken == HEADER_BYTES {
                        let [a, b, c, kind, _, stream @ ..] = self.header;
                        let length = u32::from_be_bytes([0, a, b, c]);
                        let stream = u32::from_be_bytes(stream) & (u32::MAX >> 1);
                        each(FrameHeader { length, kind, stream });
                        self.position = if length == 0 { Position::Header(0) } else { Position::Content(length) };
                    }
                }
                Position::Content(left) => {
                    let taken = bytes.len().min(left as usize);
                    bytes = &bytes[taken..];
                    let left = left - taken as u32;
                    self.position = if left == 0 { Position::Header(0) } else { Position::Content(left) };
                }
            }
        }
    }
}

/// The control frames that a peer may send. Pure.
#[derive(Debug)]
pub(crate) struct Budget {
    left: u64,
    /// What sent frames have allowed.
    earned: u64,
    /// Up to when the time's share was added.
    refilled_at: Duration,
}

impl Budget {
    pub(crate) fn new(now: Duration) -> Self {
        Self { left: FRAMES_MAX, earned: 0, refilled_at: now }
    }

    /// Adds what a sent frame allows.
    pub(crate) fn sent(&mut self, frame: FrameHeader) {
        if matches!(frame.kind, DATA | HEADERS) {
            let more = FRAMES_PER_SENT + u64::from(frame.length) / SENT_BYTES_PER_FRAME;
            self.earned = (self.earned + more).min(SENT_FRAMES_MAX);
        }
    }

    fn add(&mut self, frames: u64) {
        self.left = (self.left + frames).min(FRAMES_MAX);
    }

    /// Charges a received frame; false if the budget is used up. `now` is called only then.
    #[must_use]
    pub(crate) fn received(&mut self, frame: FrameHeader, now: impl FnOnce() -> Duration) -> bool {
        // Requests and their bodies have limits of their own, in h2 and in the server.
        if matches!(frame.kind, DATA | HEADERS | CONTINUATION) {
            return true;
        }
        let cost = 1 + u64::from(frame.length) / CONTENT_BYTES_PER_FRAME;
        if let Some(earned) = self.earned.checked_sub(cost) {
            self.earned = earned;
            return true;
        }
        if self.left < cost {
            let now = now();
            let passed = now.saturating_sub(self.refilled_at);
            self.add(u64::try_from(passed.as_millis()).unwrap_or(u64::MAX).saturating_mul(FRAMES_PER_SECOND) / 1000);
            self.refilled_at = self.refilled_at.max(now);
        }
        match self.left.checked_sub(cost) {
            Some(left) => {
                self.left = left;
                true
            }
            None => false,
        }
    }
}

/// A connection's stream that ends when its peer has used up the budget.
pub type Limited<S> = Hooked<S, FrameLimit>;

/// The hook of [`Limited`].
pub struct FrameLimit {
    /// The clock of the connection's own timeouts.
    timer: TokioTimer,
    began: Instant,
    peer: Scanner,
    own: Scanner,
    budget: Budget,
    /// The newest stream of the peer.
    newest: u32,
    is_over: bool,
    /// Whether the peer was given the reason.
    is_ended: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Limited<S> {
    /// Counts the frames of a client, which may speak another protocol, from the beginning of its connection.
    pub fn of_client(stream: S) -> Self {
        Self::new(stream, FrameLimit::new(Scanner::of_client(), Scanner::of_server()))
    }

    /// Counts the frames of a server that speaks HTTP/2, from the beginning of the connection to it.
    pub fn of_server(stream: S) -> Self {
        Self::new(stream, FrameLimit::new(Scanner::of_server(), Scanner::of_client()))
    }
}

impl FrameLimit {
    fn new(peer: Scanner, own: Scanner) -> Self {
        let timer = TokioTimer::new();
        let (began, budget) = (timer.now(), Budget::new(Duration::ZERO));
        Self { timer, began, peer, own, budget, newest: 0, is_over: false, is_ended: false }
    }

    /// Counts received bytes.
    fn count(&mut self, bytes: &[u8]) {
        let Self { timer, began, peer, budget, newest, is_over, .. } = self;
        peer.scan(bytes, |frame| {
            if frame.kind == HEADERS {
                *newest = frame.stream.max(*newest);
            }
            *is_over |= !budget.received(frame, || timer.now().saturating_duration_since(*began));
        });
    }

    /// Ends the connection, with the reason for the peer if that can be written at once.
    fn end(&mut self, mut stream: Pin<&mut (impl AsyncWrite + ?Sized)>, context: &mut Context<'_>) -> io::Error {
        if self.own.is_between_frames() && !std::mem::replace(&mut self.is_ended, true) {
            let mut frame = [0; HEADER_BYTES + 8];
            (frame[2], frame[3]) = (8, GOAWAY);
            frame[HEADER_BYTES..HEADER_BYTES + 4].copy_from_slice(&self.newest.to_be_bytes());
            frame[HEADER_BYTES + 7] = ENHANCE_YOUR_CALM;
            if stream.as_mut().poll_write(context, &frame).is_ready() {
                let _ = stream.poll_flush(context);
            }
        }
        io::Error::new(io::ErrorKind::ConnectionAborted, "too many control frames of HTTP/2")
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Hook<S> for FrameLimit {
    fn poll_read(
        &mut self,
        mut stream: Pin<&mut S>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        let polled = stream.as_mut().poll_read(context, into);
        if self.peer.position != Position::Other {
            self.count(&into.filled()[before..]);
        }
        if self.is_over { Poll::Ready(Err(self.end(stream, context))) } else { polled }
    }

    fn on_write(&mut self, mut written: usize, pieces: &[io::IoSlice<'_>]) {
        if !self.peer.is_http2() {
            return;
        }
        let Self { own, budget, .. } = self;
        for piece in pieces {
            let taken = piece.len().min(written);
            own.scan(&piece[..taken], |frame| budget.sent(frame));
            written -= taken;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use bytes::Bytes;
    use http_body_util::{BodyExt as _, Full};
    use hyper_util::rt::{TokioExecutor, TokioIo};
    use machinery_env::Env;
    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio_util::sync::CancellationToken;

    use super::*;

    const SETTINGS: u8 = 4;
    const PING: u8 = 6;
    const PRIORITY: u8 = 2;
    const WINDOW_UPDATE: u8 = 8;

    fn frame(kind: u8, stream: u32, content: &[u8]) -> Vec<u8> {
        let length = (content.len() as u32).to_be_bytes();
        let header = [length[1], length[2], length[3], kind, 0];
        [&header[..], &stream.to_be_bytes(), content].concat()
    }

    fn header(kind: u8, length: u32) -> FrameHeader {
        FrameHeader { length, kind, stream: 0 }
    }

    proptest! {
        /// However the bytes are cut.
        #[test]
        fn each_frame_is_found_once(
            frames in proptest::collection::vec((any::<u8>(), 0..u32::MAX >> 1, 0usize..300), 0..40),
            cuts in proptest::collection::vec(1usize..60, 1..20),
        ) {
            let mut bytes = PREFACE.to_vec();
            for (kind, stream, length) in &frames {
                bytes.extend(frame(*kind, *stream, &vec![7; *length]));
            }
            let (mut scanner, mut found, mut rest) = (Scanner::of_client(), Vec::new(), &bytes[..]);
            for cut in cuts.iter().cycle() {
                let (now, later) = rest.split_at(rest.len().min(*cut));
                scanner.scan(now, |frame| found.push((frame.kind, frame.stream, frame.length as usize)));
                rest = later;
                if rest.is_empty() {
                    break;
                }
            }
            prop_assert_eq!(found, frames);
            prop_assert!(scanner.is_http2() && scanner.is_between_frames());
        }

        #[test]
        fn any_bytes_are_scanned(bytes in proptest::collection::vec(any::<u8>(), 0..2000), is_http2 in any::<bool>()) {
            let mut scanner = if is_http2 { Scanner::of_server() } else { Scanner::of_client() };
            let mut frames = 0;
            scanner.scan(&bytes, |_| frames += 1);
            prop_assert!(frames <= bytes.len() / HEADER_BYTES);
        }

        #[test]
        fn frames_of_a_client_are_bounded_by_time_and_responses(
            steps in proptest::collection::vec((0u64..50, 0u64..3, 0u64..40), 1..2000),
        ) {
            let (mut budget, mut now) = (Budget::new(Duration::ZERO), Duration::ZERO);
            let (mut taken, mut allowed) = (0, FRAMES_MAX);
            for (millis, responses, pings) in steps {
                now += Duration::from_millis(millis);
                for _ in 0..responses {
                    budget.sent(header(DATA, 100));
                    allowed += FRAMES_PER_SENT;
                }
                for _ in 0..pings {
                    taken += u64::from(budget.received(header(PING, 8), || now));
                }
                let by_time = now.as_millis() as u64 * FRAMES_PER_SECOND / 1000;
                prop_assert!(taken <= allowed + by_time, "{taken} of {allowed} and {by_time}");
            }
        }
    }

    #[test]
    fn other_protocols_are_not_counted() {
        for beginning in ["GET / HTTP/1.1\r\n", "PRI * HTTP/1.1\r\n", "POST / HTTP/1.1\r\n"] {
            let mut scanner = Scanner::of_client();
            scanner.scan(beginning.as_bytes(), |frame| panic!("{frame:?}"));
            assert_eq!(scanner.position, Position::Other);
        }
    }

    #[test]
    fn a_quiet_client_is_allowed_more_with_time_and_one_of_large_frames_less() {
        let mut budget = Budget::new(Duration::ZERO);
        assert!((0..FRAMES_MAX).all(|_| budget.received(header(PING, 8), || Duration::ZERO)));
        assert!(!budget.received(header(PING, 8), || Duration::ZERO));
        assert!(budget.received(header(PING, 8), || Duration::from_secs(1)));
        let mut budget = Budget::new(Duration::ZERO);
        let large = (0..FRAMES_MAX).take_while(|_| budget.received(header(SETTINGS, 16_384), || Duration::ZERO));
        assert_eq!(large.count() as u64, FRAMES_MAX / 65);
    }

    const BODY_BYTES: usize = 10 << 20;

    async fn serve(stream: tokio::io::DuplexStream) {
        let body = Bytes::from(vec![1; BODY_BYTES]);
        let service = hyper::service::service_fn(move |_| {
            std::future::ready(Ok::<_, Infallible>(http::Response::new(Full::from(body.clone()))))
        });
        let _ = crate::connection::serve(stream, &Env::real(), service, &CancellationToken::new()).await;
    }

    /// Each kind of frame that needs no request, without end: the server says why, and ends the connection.
    #[tokio::test]
    async fn a_flood_of_control_frames_ends_its_connection() {
        let floods = [
            frame(PING, 0, &[0; 8]),
            frame(SETTINGS, 0, &[0, 4, 0, 0, 255, 255]),
            frame(SETTINGS, 0, &[]),
            frame(PRIORITY, 1, &[0, 0, 0, 3, 1]),
            frame(WINDOW_UPDATE, 0, &[0, 0, 0, 1]),
            frame(200, 0, &[]),
        ];
        for flood in floods {
            // The answers fit: the last one is written as a whole.
            let (mut client, server) = tokio::io::duplex(1 << 20);
            let serving = tokio::spawn(serve(server));
            client.write_all(PREFACE).await.unwrap();
            client.write_all(&frame(SETTINGS, 0, &[])).await.unwrap();
            let (mut reads, mut writes) = tokio::io::split(client);
            let floods = async {
                let mut sent = 0;
                while writes.write_all(&flood).await.is_ok() && sent < 50 * FRAMES_MAX {
                    sent += 1;
                }
                sent
            };
            let mut answer = Vec::new();
            let (sent, _) = tokio::join!(floods, reads.read_to_end(&mut answer));
            assert!(sent < 50 * FRAMES_MAX, "{flood:?}");
            serving.await.unwrap();
            let reason = frame(GOAWAY, 0, &[0, 0, 0, 0, 0, 0, 0, ENHANCE_YOUR_CALM]);
            assert!(answer.ends_with(&reason), "{flood:?}: {:?}", &answer[answer.len().saturating_sub(40)..]);
        }
    }

    /// The same by a server, towards a client that has sent one request.
    #[tokio::test]
    async fn a_flood_of_a_server_ends_its_connection() {
        let (client, mut server) = tokio::io::duplex(1 << 20);
        let (mut requests, connection) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
            .handshake::<_, http_body_util::Empty<Bytes>>(TokioIo::new(Limited::of_server(client)))
            .await
            .unwrap();
        let connection = tokio::spawn(connection);
        let request = http::Request::get("http://a/").body(http_body_util::Empty::new()).unwrap();
        let response = tokio::spawn(async move { requests.send_request(request).await.map(drop) });
        server.write_all(&frame(SETTINGS, 0, &[])).await.unwrap();
        let mut sent = 0;
        while sent < 50 * FRAMES_MAX && server.write_all(&frame(PING, 0, &[0; 8])).await.is_ok() {
            sent += 1;
            if sent % 100 == 0 {
                tokio::task::yield_now().await;
            }
        }
        assert!(sent < 50 * FRAMES_MAX);
        assert!(connection.await.unwrap().is_err() && response.await.unwrap().is_err());
    }

    /// A client that answers each received frame is served.
    #[tokio::test]
    async fn control_frames_of_a_download_are_no_flood() {
        let (client, server) = tokio::io::duplex(1 << 16);
        tokio::spawn(serve(server));
        // A window of one frame: a WINDOW_UPDATE of the stream and one of the connection for each.
        let (mut requests, connection) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
            .initial_stream_window_size(16 << 10)
            .initial_connection_window_size(16 << 10)
            .handshake::<_, http_body_util::Empty<Bytes>>(TokioIo::new(client))
            .await
            .unwrap();
        tokio::spawn(connection);
        for _ in 0..10 {
            let request = http::Request::get("http://a/").body(http_body_util::Empty::new()).unwrap();
            let response = requests.send_request(request).await.unwrap();
            assert_eq!(response.into_body().collect().await.unwrap().to_bytes().len(), BODY_BYTES);
        }
    }
}
