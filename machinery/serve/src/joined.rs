//! A body for a connection: without empty pieces, and with few small pieces that aren't sent yet.
//!
//! An HTTP/2 sender queues the pieces of a body for a slow reader and bounds the queue by its bytes. Each queued piece
//! costs some 300 bytes besides its content. So a body of single bytes takes hundreds of times the bound, and a body of
//! empty pieces takes memory without end. The source of a body is often hostile: a guest, a client, another server.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame, SizeHint};

/// Pieces below this size count as small: the cost of a queued piece exceeds a quarter of its content.
pub const SMALL_BYTES: usize = 1 << 10;
/// Small pieces of a body that are unsent at once: enough for a reader that keeps up.
const UNSENT_MAX: usize = 64;
/// Beyond [`UNSENT_MAX`], pieces are joined to this size. A consumer that keeps all pieces still gets the whole body.
const JOINED_BYTES: usize = 4 << 10;
/// Empty pieces that one poll drops before it yields: the source may have them without end.
const EMPTY_PIECES_MAX: usize = 64;

type NextFrame<E> = Option<Result<Frame<Bytes>, E>>;

/// A body without empty pieces, whose small pieces are joined while too many are unsent.
///
/// A piece counts as unsent until the connection drops it.
pub struct JoinedBody<B: Body> {
    body: B,
    /// Small pieces that wait.
    joined: BytesMut,
    /// The frame or the end that follows `joined`.
    next: Option<NextFrame<B::Error>>,
    unsent: UnsentPieces,
}

/// No field is pinned.
impl<B: Body + Unpin> Unpin for JoinedBody<B> {}

impl<B> JoinedBody<B>
where
    B: Body<Data = Bytes> + Unpin,
{
    /// Wraps a body.
    pub fn new(body: B) -> Self {
        Self { body, joined: BytesMut::new(), next: None, unsent: UnsentPieces::default() }
    }

    fn take_joined(&mut self) -> Frame<Bytes> {
        Frame::data(self.unsent.track(self.joined.split().freeze()))
    }
}

impl<B> Body for JoinedBody<B>
where
    B: Body<Data = Bytes> + Unpin,
{
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<NextFrame<B::Error>> {
        let this = &mut *self;
        let mut empty = 0;
        loop {
            if this.joined.is_empty()
                && let Some(next) = this.next.take()
            {
                return Poll::Ready(next);
            }
            let is_joining = this.unsent.is_full(context);
            if !this.joined.is_empty() && (!is_joining || this.next.is_some() || this.joined.len() >= JOINED_BYTES) {
                return Poll::Ready(Some(Ok(this.take_joined())));
            }
            let frame = std::task::ready!(Pin::new(&mut this.body).poll_frame(context));
            let length = match &frame {
                Some(Ok(frame)) => frame.data_ref().map(Bytes::len),
                _ => None,
            };
            match (length, frame) {
                (Some(0), _) => {
                    empty += 1;
                    if empty >= EMPTY_PIECES_MAX {
                        context.waker().wake_by_ref();
                        return Poll::Pending;
                    }
                }
                (Some(1..SMALL_BYTES), Some(Ok(frame))) => {
                    let Ok(piece) = frame.into_data() else { continue };
                    if !is_joining {
                        return Poll::Ready(Some(Ok(Frame::data(this.unsent.track(piece)))));
                    }
                    this.joined.extend_from_slice(&piece);
                }
                (_, frame) if this.joined.is_empty() => return Poll::Ready(frame),
                (_, frame) => this.next = Some(frame),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.joined.is_empty()
            && match &self.next {
                Some(next) => next.is_none(),
                None => self.body.is_end_stream(),
            }
    }

    fn size_hint(&self) -> SizeHint {
        let next = match &self.next {
            Some(Some(Ok(frame))) => frame.data_ref().map_or(0, Bytes::len),
            _ => 0,
        };
        let (held, rest) = ((self.joined.len() + next) as u64, self.body.size_hint());
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower().saturating_add(held));
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper.saturating_add(held));
        }
        hint
    }
}

/// The number of a body's small pieces that its connection holds.
#[derive(Debug, Clone, Default)]
pub struct UnsentPieces(Arc<Mutex<UnsentState>>);

#[derive(Debug, Default)]
struct UnsentState {
    count: usize,
    /// The body's task, while there are too many.
    waiting: Option<Waker>,
}

impl UnsentPieces {
    fn lock(&self) -> MutexGuard<'_, UnsentState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether too many are unsent; the task is woken at the next sent one.
    pub fn is_full(&self, context: &Context<'_>) -> bool {
        let mut pieces = self.lock();
        let is_full = pieces.count >= UNSENT_MAX;
        if is_full {
            pieces.waiting = Some(context.waker().clone());
        }
        is_full
    }

    /// Counts a small piece until it is dropped.
    #[must_use]
    pub fn track(&self, piece: Bytes) -> Bytes {
        if piece.len() >= SMALL_BYTES {
            return piece;
        }
        self.lock().count += 1;
        Bytes::from_owner(UnsentPiece { piece, unsent: self.clone() })
    }
}

struct UnsentPiece {
    piece: Bytes,
    unsent: UnsentPieces,
}

impl AsRef<[u8]> for UnsentPiece {
    fn as_ref(&self) -> &[u8] {
        &self.piece
    }
}

impl Drop for UnsentPiece {
    fn drop(&mut self) {
        let waiting = {
            let mut pieces = self.unsent.lock();
            pieces.count -= 1;
            pieces.waiting.take()
        };
        if let Some(waiting) = waiting {
            waiting.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::convert::Infallible;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use http::{HeaderMap, Response};
    use http_body_util::BodyExt as _;
    use hyper_util::rt::{TokioExecutor, TokioIo};
    use proptest::prelude::*;

    use super::*;

    /// A step of a source.
    #[derive(Debug, Clone)]
    enum SourceStep {
        Piece(usize),
        Wait,
    }

    /// Yields pieces of consecutive bytes, then trailers or an error.
    struct Source {
        steps: VecDeque<SourceStep>,
        next_byte: u8,
        end: NextFrame<&'static str>,
    }

    impl Body for Source {
        type Data = Bytes;
        type Error = &'static str;

        fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<NextFrame<&'static str>> {
            match self.steps.pop_front() {
                Some(SourceStep::Wait) => {
                    context.waker().wake_by_ref();
                    Poll::Pending
                }
                Some(SourceStep::Piece(length)) => {
                    let piece = (0..length).map(|_| {
                        self.next_byte = self.next_byte.wrapping_add(1);
                        self.next_byte
                    });
                    let piece: Vec<u8> = piece.collect();
                    Poll::Ready(Some(Ok(Frame::data(piece.into()))))
                }
                None => Poll::Ready(self.end.take()),
            }
        }
    }

    fn steps() -> impl Strategy<Value = Vec<SourceStep>> {
        let piece = prop_oneof![
            4 => Just(SourceStep::Piece(0)),
            8 => (1usize..4).prop_map(SourceStep::Piece),
            1 => (SMALL_BYTES - 1..SMALL_BYTES + 2).prop_map(SourceStep::Piece),
            1 => (0usize..20_000).prop_map(SourceStep::Piece),
            2 => Just(SourceStep::Wait),
        ];
        proptest::collection::vec(piece, 0..1000)
    }

    proptest! {
        #[test]
        fn all_bytes_come_in_order_in_few_small_pieces(
            steps in steps(),
            end in 0..3,
            // How many pieces the connection sends after each poll.
            sends in proptest::collection::vec(0usize..3, 1..20),
        ) {
            let end = match end {
                0 => None,
                1 => Some(Ok(Frame::trailers(HeaderMap::from_iter([(http::header::ETAG, "x".parse().unwrap())])))),
                _ => Some(Err("broken")),
            };
            let ends_as = end.as_ref().map(Result::is_ok);
            let length: usize = steps.iter().map(|step| if let SourceStep::Piece(length) = step { *length } else { 0 }).sum();
            let mut body = JoinedBody::new(Source { steps: steps.into(), next_byte: 0, end });
            let (mut queue, mut bytes): (VecDeque<Bytes>, Vec<u8>) = Default::default();
            let (mut polls, mut context) = (0, Context::from_waker(Waker::noop()));
            let ended = loop {
                for _ in 0..sends[polls % sends.len()] {
                    queue.pop_front();
                }
                polls += 1;
                prop_assert!(polls < 10_000, "it makes no progress");
                match Pin::new(&mut body).poll_frame(&mut context) {
                    Poll::Pending => {}
                    Poll::Ready(Some(Ok(frame))) if frame.is_data() => {
                        let piece = frame.into_data().unwrap();
                        prop_assert!(!piece.is_empty());
                        bytes.extend_from_slice(&piece);
                        queue.push_back(piece);
                        let small = queue.iter().filter(|piece| piece.len() < SMALL_BYTES).count();
                        // A larger frame or the end may follow a joined piece at once.
                        let large = queue.len() - small;
                        prop_assert!(small <= UNSENT_MAX + large + 1, "{small} small pieces, {large} others");
                        prop_assert_eq!(body.size_hint().upper(), None);
                    }
                    Poll::Ready(other) => break other.map(|frame| frame.is_ok()),
                }
            };
            prop_assert_eq!(ended, ends_as);
            prop_assert_eq!(bytes.len(), length);
            prop_assert!(bytes.iter().enumerate().all(|(at, byte)| *byte == (at as u8).wrapping_add(1)));
        }
    }

    #[tokio::test]
    async fn a_consumer_that_keeps_all_pieces_gets_the_whole_body() {
        let steps = std::iter::repeat_n(SourceStep::Piece(1), 100_000).collect();
        let body = JoinedBody::new(Source { steps, next_byte: 0, end: None });
        assert_eq!(body.collect().await.unwrap().to_bytes().len(), 100_000);
    }

    #[test]
    fn an_endless_body_of_empty_pieces_yields_its_thread() {
        let polls = AtomicUsize::new(0);
        let mut body = JoinedBody::new(FromFn(|| {
            polls.fetch_add(1, Ordering::Relaxed);
            Some(Bytes::new())
        }));
        assert!(Pin::new(&mut body).poll_frame(&mut Context::from_waker(Waker::noop())).is_pending());
        drop(body);
        assert_eq!(polls.into_inner(), EMPTY_PIECES_MAX);
    }

    /// A body of the function's pieces.
    struct FromFn<F>(F);

    impl<F: FnMut() -> Option<Bytes> + Unpin> Body for FromFn<F> {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<NextFrame<Infallible>> {
            Poll::Ready((self.0)().map(|piece| Ok(Frame::data(piece))))
        }
    }

    /// Counts the pieces that exist.
    struct Counted(Arc<AtomicUsize>);

    impl AsRef<[u8]> for Counted {
        fn as_ref(&self) -> &[u8] {
            b"x"
        }
    }

    impl Drop for Counted {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// The pieces of one body.
    #[derive(Clone, Default)]
    struct PieceCounts {
        made: Arc<AtomicUsize>,
        alive: Arc<AtomicUsize>,
        most: Arc<AtomicUsize>,
    }

    impl PieceCounts {
        fn make(&self) -> Bytes {
            self.made.fetch_add(1, Ordering::Relaxed);
            self.most.fetch_max(self.alive.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
            Bytes::from_owner(Counted(self.alive.clone()))
        }
    }

    /// HTTP/2 over a narrow pipe, to a client with a large window.
    #[tokio::test]
    async fn few_single_bytes_wait_for_a_slow_reader() {
        const PIECES: usize = 100_000;
        let counts = PieceCounts::default();
        let theirs = counts.clone();
        let service = hyper::service::service_fn(move |_| {
            let counts = theirs.clone();
            let pieces = FromFn(move || (counts.made.load(Ordering::Relaxed) < PIECES).then(|| counts.make()));
            std::future::ready(Ok::<_, Infallible>(Response::new(JoinedBody::new(pieces))))
        });
        let (near, far) = tokio::io::duplex(1 << 10);
        let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        tokio::spawn(server.serve_connection(TokioIo::new(far), service));
        let (mut requests, connection) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
            .initial_stream_window_size(1 << 30)
            .initial_connection_window_size(1 << 30)
            .handshake::<_, http_body_util::Empty<Bytes>>(TokioIo::new(near))
            .await
            .unwrap();
        tokio::spawn(connection);
        let request = http::Request::get("http://a/").body(http_body_util::Empty::new()).unwrap();
        let response = requests.send_request(request).await.unwrap();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        assert_eq!((body.len(), counts.made.load(Ordering::Relaxed)), (PIECES, PIECES));
        let most = counts.most.load(Ordering::Relaxed);
        assert!(most <= UNSENT_MAX + 2, "{most} pieces at once");
    }
}
