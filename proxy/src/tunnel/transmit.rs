//! The sending half of a message: sends a body within the peer's window.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};

use bytes::{Bytes, BytesMut};
use h2::{Reason, SendStream};
use http_body::{Body as _, Frame};
use http_body_util::BodyExt as _;
use machinery_serve::joined::{SMALL_BYTES, UnsentPieces};
use machinery_serve::net::{Body, BoxError};

/// Small frames are joined up to this size while more of them are ready, or while too many of them are unsent.
const JOINED_BYTES_MAX: usize = 8 << 10;

/// How the sending of a body ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transmitted {
    /// Sent, or queued, to its end.
    Complete,
    /// The body broke: the stream was reset.
    Broken,
    /// The peer reset the stream, or the connection ended.
    Stopped,
}

/// Sends a body to its end. A body that breaks resets the stream, so that it never looks complete.
///
/// Frames are taken from the body only while the window has space: `record` relies on it.
pub(super) async fn transmit(body: Body, stream: SendStream<Bytes>) -> Transmitted {
    let mut sending = Sending { body, stream, joined: BytesMut::new(), next: None, unsent: UnsentPieces::default() };
    loop {
        let Some(frame) = poll_fn(|context| sending.poll_frame(context)).await else { return Transmitted::Stopped };
        let stream = &mut sending.stream;
        let sent = match frame {
            None => return finish(stream.send_data(Bytes::new(), true)),
            Some(Err(_)) => {
                stream.send_reset(Reason::INTERNAL_ERROR);
                return Transmitted::Broken;
            }
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => {
                    let ends = match &sending.next {
                        Some(next) => next.is_none(),
                        None => sending.body.is_end_stream(),
                    };
                    match stream.send_data(data, ends) {
                        sent if ends => return finish(sent),
                        sent => sent,
                    }
                }
                Err(frame) => match frame.into_trailers() {
                    Ok(trailers) => return finish(stream.send_trailers(trailers)),
                    Err(_) => Ok(()),
                },
            },
        };
        if sent.is_err() {
            return Transmitted::Stopped;
        }
    }
}

fn finish(sent: Result<(), h2::Error>) -> Transmitted {
    if sent.is_ok() { Transmitted::Complete } else { Transmitted::Stopped }
}

/// A body with its first frame, if that comes at once: the frame leaves in one write with the head, and the receiver gets both
/// together.
pub(super) async fn begin(mut body: Body) -> Body {
    for last in [false, true] {
        if body.is_end_stream() {
            break;
        }
        let polled = Pin::new(&mut body).poll_frame(&mut Context::from_waker(Waker::noop()));
        if let Poll::Ready(first) = polled {
            return BegunBody { first: Some(first), body }.boxed_unsync();
        }
        if !last {
            // The callee writes its body just after its head.
            tokio::task::yield_now().await;
        }
    }
    body
}

/// A body whose first frame was taken.
struct BegunBody {
    first: Option<NextFrame>,
    body: Body,
}

impl http_body::Body for BegunBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<NextFrame> {
        match self.first.take() {
            Some(first) => Poll::Ready(first),
            None => Pin::new(&mut self.body).poll_frame(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.first {
            Some(first) => first.is_none(),
            None => self.body.is_end_stream(),
        }
    }
}

type NextFrame = Option<Result<Frame<Bytes>, BoxError>>;

struct Sending {
    body: Body,
    stream: SendStream<Bytes>,
    /// Small frames.
    joined: BytesMut,
    /// What comes after `joined`, if it was taken from the body already.
    next: Option<NextFrame>,
    unsent: UnsentPieces,
}

impl Sending {
    /// The next frame of the body once the window has space; `None` if the stream was reset.
    fn poll_frame(&mut self, context: &mut Context<'_>) -> Poll<Option<NextFrame>> {
        if self.stream.poll_reset(context).is_ready() {
            return Poll::Ready(None);
        }
        // Only reserved capacity is assigned: with a single byte, frames would be single bytes.
        self.stream.reserve_capacity(JOINED_BYTES_MAX);
        while self.stream.capacity() == 0 {
            match ready!(self.stream.poll_capacity(context)) {
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return Poll::Ready(None),
            }
        }
        if let Some(next) = self.next.take() {
            return Poll::Ready(Some(next));
        }
        let most = JOINED_BYTES_MAX.min(self.stream.capacity());
        let least = if self.unsent.is_full(context) { SMALL_BYTES.min(most) } else { 1 };
        loop {
            let frame = match Pin::new(&mut self.body).poll_frame(context) {
                Poll::Pending if self.joined.len() < least => return Poll::Pending,
                Poll::Pending => break,
                Poll::Ready(frame) => frame,
            };
            match small_data(&frame) {
                Some(data) => {
                    self.joined.extend_from_slice(data);
                    if self.joined.len() >= most {
                        break;
                    }
                }
                None if self.joined.is_empty() => return Poll::Ready(Some(frame)),
                None => {
                    self.next = Some(frame);
                    break;
                }
            }
        }
        Poll::Ready(Some(Some(Ok(Frame::data(self.unsent.track(self.joined.split().freeze()))))))
    }
}

fn small_data(frame: &NextFrame) -> Option<&Bytes> {
    let data = frame.as_ref()?.as_ref().ok()?.data_ref()?;
    (data.len() < SMALL_BYTES).then_some(data)
}

#[cfg(test)]
mod tests {
    use futures::StreamExt as _;
    use http_body_util::StreamBody;

    use super::*;

    fn body(frames: Vec<&'static str>, late: bool) -> Body {
        let waits = async move {
            for _ in 0..if late { 5 } else { 0 } {
                tokio::task::yield_now().await;
            }
            futures::stream::iter(frames).map(|text| Ok::<_, BoxError>(Frame::data(Bytes::from(text))))
        };
        StreamBody::new(futures::stream::once(waits).flatten()).boxed_unsync()
    }

    #[tokio::test]
    async fn a_begun_body_has_all_its_frames() {
        for late in [false, true] {
            for frames in [vec![], vec!["oars"], vec!["oars", " and ", "boats"]] {
                let begun = begin(body(frames.clone(), late)).await;
                // Only a body that has begun knows that it is empty.
                assert_eq!(begun.is_end_stream(), frames.is_empty() && !late, "{frames:?}, {late}");
                assert_eq!(begun.collect().await.unwrap().to_bytes(), frames.concat());
            }
        }
    }
}
