//! The sending half of a stream: sends a body within the peer's window.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{Reason, SendStream};
use http_body::{Body as _, Frame};
use machinery_serve::net::{Body, BoxError};

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
/// A frame is taken from the body only while the window has space: `record` relies on it.
pub(super) async fn transmit(mut body: Body, mut stream: SendStream<Bytes>) -> Transmitted {
    loop {
        let Some(frame) = poll_fn(|context| poll_step(&mut body, &mut stream, context)).await else {
            return Transmitted::Stopped;
        };
        let sent = match frame {
            None => return finish(stream.send_data(Bytes::new(), true)),
            Some(Err(_)) => {
                stream.send_reset(Reason::INTERNAL_ERROR);
                return Transmitted::Broken;
            }
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) if body.is_end_stream() => return finish(stream.send_data(data, true)),
                Ok(data) if data.is_empty() => Ok(()),
                Ok(data) => stream.send_data(data, false),
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

/// The next frame of the body once the window has space; `None` if the stream was reset.
fn poll_step(body: &mut Body, stream: &mut SendStream<Bytes>, context: &mut Context<'_>) -> Poll<Option<NextFrame>> {
    if stream.poll_reset(context).is_ready() {
        return Poll::Ready(None);
    }
    stream.reserve_capacity(1);
    while stream.capacity() == 0 {
        match ready!(stream.poll_capacity(context)) {
            Some(Ok(_)) => {}
            Some(Err(_)) | None => return Poll::Ready(None),
        }
    }
    Pin::new(body).poll_frame(context).map(Some)
}
