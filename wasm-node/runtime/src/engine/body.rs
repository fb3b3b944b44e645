//! A guest's response body. Only the guest's own finish ends it cleanly: a guest that traps, times out or returns
//! without finishing breaks its body off, and the client sees an error.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use machinery_serve::net::BoxError;
use wasmtime_wasi_http::p2::body::HyperOutgoingBody;

use crate::host::exchange::Exchange;

/// Error of a body that was broken off.
#[derive(Debug, thiserror::Error)]
#[error("the guest's response was cut short")]
pub(crate) struct BodyCut;

/// A body that is still being written, or that must end in an error.
pub(crate) struct GuestBody {
    body: HyperOutgoingBody,
    exchange: Arc<Exchange>,
    /// Bytes left of the guest's content-length, where it set one.
    remaining: Option<u64>,
    over: bool,
    /// Whether it is being broken off.
    cutting: bool,
    /// Whether its reader had a chance to send the earlier frames.
    warned: bool,
}

impl GuestBody {
    pub(crate) fn new(body: HyperOutgoingBody, exchange: Arc<Exchange>, length: Option<u64>) -> Self {
        exchange.record_frame();
        Self { body, exchange, remaining: length, over: false, cutting: false, warned: false }
    }

    /// Resets `warned` after a poll that only inspects the body: nothing is sent between such polls.
    pub(crate) fn reset_warning(&mut self) {
        self.warned = false;
    }

    /// Breaks the body off, at the second call. A connection drops unsent data when its body fails, and a client must
    /// see the head, or it treats the request as never started. Between two polls the connection sends.
    fn cut(&mut self, cx: &Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.cutting = true;
        self.exchange.abandoned.notify_one();
        if !std::mem::replace(&mut self.warned, true) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.over = true;
        Poll::Ready(Some(Err(Box::new(BodyCut))))
    }
}

impl Body for GuestBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        if this.over {
            return Poll::Ready(None);
        }
        if this.cutting {
            return this.cut(cx);
        }
        match std::task::ready!(Pin::new(&mut this.body).poll_frame(cx)) {
            Some(Ok(frame)) => {
                this.exchange.record_frame();
                if let Some(data) = frame.data_ref()
                    && let Some(remaining) = &mut this.remaining
                {
                    match remaining.checked_sub(data.len() as u64) {
                        Some(rest) => *remaining = rest,
                        None => return this.cut(cx),
                    }
                }
                Poll::Ready(Some(Ok(frame.map_trailers(strip_trailers))))
            }
            Some(Err(_)) => this.cut(cx),
            None if this.exchange.complete() && this.remaining.unwrap_or(0) == 0 => {
                this.exchange.record_frame();
                this.over = true;
                Poll::Ready(None)
            }
            None => this.cut(cx),
        }
    }

    fn size_hint(&self) -> SizeHint {
        self.remaining.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

trait MapTrailers {
    fn map_trailers(self, strip: fn(&mut http::HeaderMap)) -> Self;
}

impl MapTrailers for Frame<Bytes> {
    fn map_trailers(mut self, strip: fn(&mut http::HeaderMap)) -> Self {
        if let Some(trailers) = self.trailers_mut() {
            strip(trailers);
        }
        self
    }
}

fn strip_trailers(trailers: &mut http::HeaderMap) {
    super::response::strip(trailers);
    trailers.remove(http::header::CONTENT_LENGTH);
}

impl Drop for GuestBody {
    fn drop(&mut self) {
        // The client is gone: further output has no reader.
        if !self.over {
            self.exchange.abandoned.notify_one();
        }
    }
}
