//! The sending half of a message: sends a body within the peer's window.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use h2::{Reason, SendStream};
use http_body::{Body as _, Frame};
use machinery_serve::net::{Body, BoxError};

/// Frames below this size are joined while more of them are ready …
const SMALL_BYTES: usize = 1 << 10;
/// … up to this size.
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
    let mut sending = Sending { body, stream, joined: BytesMut::new(), next: None };
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

type NextFrame = Option<Result<Frame<Bytes>, BoxError>>;

struct Sending {
    body: Body,
    stream: SendStream<Bytes>,
    /// Small frames.
    joined: BytesMut,
    /// What comes after `joined`, if it was taken from the body already.
    next: Option<NextFrame>,
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
        loop {
            let frame = match Pin::new(&mut self.body).poll_frame(context) {
                Poll::Pending if self.joined.is_empty() => return Poll::Pending,
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
        Poll::Ready(Some(Some(Ok(Frame::data(self.joined.split().freeze())))))
    }
}

fn small_data(frame: &NextFrame) -> Option<&Bytes> {
    let data = frame.as_ref()?.as_ref().ok()?.data_ref()?;
    (data.len() < SMALL_BYTES).then_some(data)
}
