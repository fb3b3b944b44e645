//! Resets a connection on which a body broke. HTTP/1.1 clients detect a missing last chunk; an HTTP/1.0 client would
//! take any other end of the connection for the body's.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt as _;

use super::{Body, BoxError, Stream};
use crate::hooked::{Hook, Hooked};

/// Whether a body on a connection broke.
#[derive(Clone, Default)]
pub(super) struct ResetOnBrokenBody(Arc<AtomicBool>);

impl ResetOnBrokenBody {
    /// Wraps `body` to detect that it breaks.
    pub(super) fn watch(self, body: Body) -> Body {
        WatchedBody { body, broken: self }.boxed_unsync()
    }

    /// Wraps the connection's stream: a socket is reset at its end if a body broke.
    pub(super) fn connection(&self, stream: Stream) -> Hooked<Stream, Self> {
        Hooked::new(stream, self.clone())
    }
}

struct WatchedBody {
    body: Body,
    broken: ResetOnBrokenBody,
}

impl http_body::Body for WatchedBody {
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

impl Hook<Stream> for ResetOnBrokenBody {
    fn on_end(&mut self, stream: &Stream) {
        if self.0.load(Ordering::Relaxed)
            && let Stream::Tcp(stream) = stream
        {
            // On failure the connection is gone already.
            let _ = stream.set_zero_linger();
        }
    }
}
