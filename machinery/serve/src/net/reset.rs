//! A connection that ends in a reset where a body on it broke off. HTTP/1.1 has a last chunk to miss; for a client of
//! HTTP/1.0 any other end of the connection is the body's own.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt as _;

use super::{Body, BoxError, Stream};
use crate::hooked::{Hook, Hooked};

/// Whether a body on a connection broke off.
#[derive(Clone, Default)]
pub(super) struct Broken(Arc<AtomicBool>);

impl Broken {
    /// `body`, whose breaking off is noticed.
    pub(super) fn watch(self, body: Body) -> Body {
        Watched { body, broken: self }.boxed_unsync()
    }

    /// The connection's stream; a socket is reset at its end if one did.
    pub(super) fn connection(&self, stream: Stream) -> Hooked<Stream, Self> {
        Hooked::new(stream, self.clone())
    }
}

struct Watched {
    body: Body,
    broken: Broken,
}

impl http_body::Body for Watched {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        if matches!(frame, Some(Err(_))) {
            self.broken.0.store(true, Ordering::Relaxed);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Hook<Stream> for Broken {
    fn ends(&mut self, stream: &Stream) {
        if self.0.load(Ordering::Relaxed)
            && let Stream::Tcp(stream) = stream
        {
            // Where that fails the connection is gone already.
            let _ = stream.set_zero_linger();
        }
    }
}
