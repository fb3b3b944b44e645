//! A request's body that can be taken back: keeps what was sent until the response's head comes.
//!
//! The receiver reads nothing of a body before the callee has accepted the call, and releases no window for unread bytes.
//! So a rejected request has sent at most one window, which the recording bounds: bytes beyond it mean that the callee
//! has read, and end the recording.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt as _;
use machinery_serve::net::{Body, BoxError};

use super::STREAM_WINDOW_BYTES;
use super::pieces::Pieces;

#[derive(Default)]
struct Recording {
    /// `None` once it was taken back.
    body: Option<Body>,
    /// What was sent; `None` if it isn't kept.
    sent: Option<Pieces>,
    trailers: Option<HeaderMap>,
    ended: bool,
}

/// The recording of a body.
#[derive(Clone)]
pub(super) struct Recorder(Arc<Mutex<Recording>>);

impl Recorder {
    /// Records `body`: the returned one is sent.
    pub(super) fn record(body: Body) -> (Self, Body) {
        let size = body.size_hint();
        let recording = Recording { body: Some(body), sent: Some(Pieces::default()), ..Recording::default() };
        let recorder = Self(Arc::new(Mutex::new(recording)));
        let sending = RecordedBody { recorder: recorder.clone(), size };
        (recorder, sending.boxed_unsync())
    }

    fn lock(&self) -> MutexGuard<'_, Recording> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps nothing any more.
    pub(super) fn stop(&self) {
        self.lock().sent = None;
    }

    /// Takes the body back as it was before; the one that is being sent breaks. `None` if too much was sent.
    pub(super) fn take_back(&self) -> Option<Body> {
        let mut recording = self.lock();
        let body = recording.body.take()?;
        let sent = recording.sent.take()?;
        let (trailers, ended) = (recording.trailers.take(), recording.ended);
        Some(ReplayedBody { sent, rest: (!ended).then_some(body), trailers }.boxed_unsync())
    }
}

struct RecordedBody {
    recorder: Recorder,
    size: SizeHint,
}

impl http_body::Body for RecordedBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let mut recording = self.recorder.lock();
        let recording = &mut *recording;
        let Some(body) = &mut recording.body else {
            return Poll::Ready(Some(Err("the call was rejected".into())));
        };
        let frame = ready!(Pin::new(&mut *body).poll_frame(context));
        match &frame {
            None => recording.ended = true,
            // A broken body cannot be sent again.
            Some(Err(_)) => recording.sent = None,
            Some(Ok(frame)) => {
                if let Some(sent) = &mut recording.sent {
                    if let Some(data) = frame.data_ref() {
                        if sent.bytes() >= STREAM_WINDOW_BYTES as usize {
                            recording.sent = None;
                        } else {
                            sent.push(data.clone());
                        }
                    } else if let Some(trailers) = frame.trailers_ref() {
                        recording.trailers = Some(trailers.clone());
                        recording.ended = true;
                    }
                }
                recording.ended |= body.is_end_stream();
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        let recording = self.recorder.lock();
        recording.body.as_ref().is_some_and(http_body::Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.size
    }
}

/// What was sent, and then the rest of the body.
struct ReplayedBody {
    sent: Pieces,
    rest: Option<Body>,
    trailers: Option<HeaderMap>,
}

impl http_body::Body for ReplayedBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if let Some(piece) = self.sent.pop() {
            return Poll::Ready(Some(Ok(Frame::data(piece))));
        }
        match &mut self.rest {
            Some(rest) => Pin::new(rest).poll_frame(context),
            None => Poll::Ready(self.trailers.take().map(|trailers| Ok(Frame::trailers(trailers)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.sent.bytes() == 0
            && self.trailers.is_none()
            && self.rest.as_ref().is_none_or(http_body::Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        let sent = self.sent.bytes() as u64;
        let rest = match &self.rest {
            Some(rest) => rest.size_hint(),
            None => SizeHint::with_exact(0),
        };
        let mut size = SizeHint::new();
        if let Some(upper) = rest.upper() {
            size.set_upper(upper.saturating_add(sent));
        }
        size.set_lower(rest.lower().saturating_add(sent));
        size
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::StreamBody;

    type Frames = Vec<Result<Frame<Bytes>, BoxError>>;

    fn body(frames: Frames) -> Body {
        StreamBody::new(futures::stream::iter(frames)).boxed_unsync()
    }

    fn data(size: usize) -> Result<Frame<Bytes>, BoxError> {
        Ok(Frame::data(Bytes::from(vec![7; size])))
    }

    fn trailers() -> Result<Frame<Bytes>, BoxError> {
        Ok(Frame::trailers(HeaderMap::from_iter([(http::header::ETAG, "1".parse().unwrap())])))
    }

    #[tokio::test]
    async fn a_body_is_taken_back_as_it_was() {
        for sent in 0..=4 {
            let (recorder, mut sending) = Recorder::record(body(vec![data(5), data(3000), trailers()]));
            for _ in 0..sent {
                let _ = sending.frame().await;
            }
            let again = recorder.take_back().unwrap().collect().await.unwrap();
            assert_eq!(again.trailers().unwrap().len(), 1);
            assert_eq!(again.to_bytes().len(), 3005, "{sent} frames");
            assert!(sending.frame().await.unwrap().is_err(), "what is being sent breaks");
            assert!(recorder.take_back().is_none());
        }
    }

    #[tokio::test]
    async fn no_more_than_a_window_is_kept() {
        let window = STREAM_WINDOW_BYTES as usize;
        let (recorder, mut sending) = Recorder::record(body(vec![data(window - 1), data(window), data(1)]));
        let _ = (sending.frame().await, sending.frame().await);
        assert!(recorder.lock().sent.is_some(), "the window had one byte left");
        let _ = sending.frame().await;
        assert!(recorder.take_back().is_none());
        let (recorder, mut sending) = Recorder::record(body(vec![data(1), Err("cut".into())]));
        let _ = (sending.frame().await, sending.frame().await);
        assert!(recorder.take_back().is_none(), "a broken body");
        let (recorder, mut sending) = Recorder::record(body(vec![data(1)]));
        let _ = sending.frame().await;
        recorder.stop();
        assert!(recorder.take_back().is_none());
    }
}
