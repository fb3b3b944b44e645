//! The receiving half of a stream: takes frames from the connection as they come, and releases their window when the
//! reader takes the bytes.
//!
//! The window bounds the unread bytes; the frames are joined (`Pieces`), because h2 closes a connection with too many
//! small frames that aren't read: one slow reader would break all other calls. Any reset is an error: only END_STREAM
//! ends a body.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use h2::RecvStream;
use http::HeaderMap;
use http::header::CONTENT_LENGTH;
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt as _;
use machinery_serve::net::{Body, BoxError, empty_body};
use tokio_util::task::AbortOnDropHandle;

use super::pieces::Pieces;

/// How a stream's incoming half ended.
#[derive(Debug)]
enum ReceiveEnd {
    Complete(Option<HeaderMap>),
    Broken(h2::Error),
    /// The reader has seen the end.
    Seen,
}

#[derive(Debug, Default)]
struct Received {
    pieces: Pieces,
    end: Option<ReceiveEnd>,
    reader: Option<Waker>,
}

type SharedReceived = Arc<Mutex<Received>>;

fn lock(shared: &SharedReceived) -> MutexGuard<'_, Received> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The incoming half of a stream. Dropping it before its end resets the stream.
pub(super) struct Receiver {
    shared: SharedReceived,
    window: h2::FlowControl,
    /// Takes frames until the end.
    _task: Option<AbortOnDropHandle<()>>,
}

impl Receiver {
    pub(super) fn new(mut stream: RecvStream) -> Self {
        let (shared, window) = (SharedReceived::default(), stream.flow_control().clone());
        // Short bodies have come with their head: no task is needed for them.
        let ended = poll_receive(&mut stream, &shared, &mut Context::from_waker(Waker::noop())).is_ready();
        let task = (!ended).then(|| {
            let shared = shared.clone();
            let receives = async move { poll_fn(|context| poll_receive(&mut stream, &shared, context)).await };
            AbortOnDropHandle::new(tokio::spawn(receives))
        });
        Self { shared, window, _task: task }
    }

    /// The next bytes; `None` at the end. The caller [releases](Self::release) them.
    pub(super) fn poll_bytes(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, h2::Error>>> {
        let mut received = lock(&self.shared);
        if let Some(piece) = received.pieces.pop() {
            return Poll::Ready(Some(Ok(piece)));
        }
        match &mut received.end {
            Some(end @ ReceiveEnd::Broken(_)) => match std::mem::replace(end, ReceiveEnd::Seen) {
                ReceiveEnd::Broken(error) => Poll::Ready(Some(Err(error))),
                ReceiveEnd::Complete(_) | ReceiveEnd::Seen => Poll::Ready(None),
            },
            Some(ReceiveEnd::Complete(_) | ReceiveEnd::Seen) => Poll::Ready(None),
            None => {
                received.reader = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }

    /// Lets the peer send as many bytes more.
    pub(super) fn release(&mut self, bytes: usize) {
        // Fails only for more than was received.
        let _ = self.window.release_capacity(bytes);
    }

    /// Whether the incoming half has ended and all was read.
    pub(super) fn has_ended(&self) -> bool {
        let received = lock(&self.shared);
        received.end.is_some() && received.pieces.bytes() == 0
    }

    fn trailers(&mut self) -> Option<HeaderMap> {
        match &mut lock(&self.shared).end {
            Some(ReceiveEnd::Complete(trailers)) => trailers.take(),
            _ => None,
        }
    }

    /// The body of a message with these header fields; `guard` lives as long as it.
    pub(super) fn into_body(self, headers: &HeaderMap, mut guard: impl BodyGuard) -> Body {
        let ended = {
            let received = lock(&self.shared);
            received.pieces.bytes() == 0 && matches!(received.end, Some(ReceiveEnd::Complete(None)))
        };
        if ended {
            guard.complete();
            return empty_body();
        }
        let length = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
        ReceivedBody { receiver: self, left: length, guard }.boxed_unsync()
    }
}

/// Moves frames into `shared`; ready at the end of the stream.
fn poll_receive(stream: &mut RecvStream, shared: &SharedReceived, context: &mut Context<'_>) -> Poll<()> {
    loop {
        let (piece, end) = match stream.poll_data(context) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Some(Ok(piece))) => (piece, None),
            Poll::Ready(Some(Err(error))) => (Bytes::new(), Some(ReceiveEnd::Broken(error))),
            Poll::Ready(None) => match ready!(stream.poll_trailers(context)) {
                Ok(trailers) => (Bytes::new(), Some(ReceiveEnd::Complete(trailers))),
                Err(error) => (Bytes::new(), Some(ReceiveEnd::Broken(error))),
            },
        };
        let ended = end.is_some();
        let reader = {
            let mut received = lock(shared);
            received.pieces.push(piece);
            received.end = end;
            received.reader.take()
        };
        if let Some(reader) = reader {
            reader.wake();
        }
        if ended {
            return Poll::Ready(());
        }
    }
}

/// What a body keeps until it is dropped.
pub(super) trait BodyGuard: Send + Unpin + 'static {
    /// The body was read to its end.
    fn complete(&mut self) {}
}

impl BodyGuard for () {}

struct ReceivedBody<T: BodyGuard> {
    receiver: Receiver,
    /// The rest of `Content-Length`, if given; h2 compares it with the received bytes.
    left: Option<u64>,
    guard: T,
}

impl<T: BodyGuard> Drop for ReceivedBody<T> {
    fn drop(&mut self) {
        if http_body::Body::is_end_stream(self) {
            self.guard.complete();
        }
    }
}

impl<T: BodyGuard> http_body::Body for ReceivedBody<T> {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        Poll::Ready(match ready!(this.receiver.poll_bytes(context)) {
            Some(Ok(piece)) => {
                this.receiver.release(piece.len());
                this.left = this.left.map(|left| left.saturating_sub(piece.len() as u64));
                Some(Ok(Frame::data(piece)))
            }
            Some(Err(error)) => Some(Err(error.into())),
            None => this.receiver.trailers().map(|trailers| Ok(Frame::trailers(trailers))),
        })
    }

    fn is_end_stream(&self) -> bool {
        let received = lock(&self.receiver.shared);
        received.pieces.bytes() == 0 && matches!(received.end, Some(ReceiveEnd::Complete(None) | ReceiveEnd::Seen))
    }

    fn size_hint(&self) -> SizeHint {
        let received = lock(&self.receiver.shared);
        match (&received.end, self.left) {
            (Some(ReceiveEnd::Complete(_)), _) => SizeHint::with_exact(received.pieces.bytes() as u64),
            (_, Some(left)) => SizeHint::with_exact(left),
            _ => SizeHint::default(),
        }
    }
}
