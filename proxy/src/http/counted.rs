//! A response body that keeps its endpoint's request in flight until it ends.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt as _;
use machinery_serve::net::{Body, BoxError};

use crate::in_flight::InFlightGuard;

struct InFlightBody {
    body: Body,
    _open: InFlightGuard,
}

/// Wraps `body` so that `open` lasts until its end.
pub(crate) fn counted(body: Body, open: InFlightGuard) -> Body {
    if body.is_end_stream() {
        return body;
    }
    InFlightBody { body, _open: open }.boxed_unsync()
}

impl http_body::Body for InFlightBody {
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
