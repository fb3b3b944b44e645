//! A response body that keeps a guard until it ends: its endpoint's request in flight, or its span.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt as _;
use machinery_serve::net::{Body, BoxError};

struct HeldBody<T> {
    body: Body,
    _held: T,
}

/// Wraps `body` so that `held` lasts until its end.
pub(crate) fn holding(body: Body, held: impl Send + Unpin + 'static) -> Body {
    if body.is_end_stream() {
        return body;
    }
    HeldBody { body, _held: held }.boxed_unsync()
}

impl<T: Unpin> http_body::Body for HeldBody<T> {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
