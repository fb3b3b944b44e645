//! A body that keeps a guard until it has been sent or dropped: a running request, a seat, a span.

use std::pin::Pin;
use std::task::{Context, Poll};

use http_body::{Body, Frame, SizeHint};

pin_project_lite::pin_project! {
    /// A body with its guard.
    #[derive(Debug)]
    pub struct HeldBody<B, G> {
        #[pin]
        body: B,
        held: G,
    }
}

impl<B, G> HeldBody<B, G> {
    /// Wraps `body` so that `held` lasts until its end.
    pub const fn new(body: B, held: G) -> Self {
        Self { body, held }
    }
}

impl<B: Body, G> Body for HeldBody<B, G> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        self.project().body.poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
