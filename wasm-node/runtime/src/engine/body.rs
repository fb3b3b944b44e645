//! A response body on its way out: what the guest wrote, ended only by the guest's own finish. A guest that traps,
//! runs out of time or returns without finishing cuts its body, and the client sees it cut, never as a clean end.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use machinery_serve::net::BoxError;
use wasmtime_wasi_http::p2::body::HyperOutgoingBody;

use crate::host::exchange::Exchange;

/// Why a body broke off.
#[derive(Debug, thiserror::Error)]
#[error("the guest's response was cut short")]
pub(crate) struct Cut;

/// A body that is still being written, or that must end in an error.
pub(crate) struct GuestBody {
    body: HyperOutgoingBody,
    exchange: Arc<Exchange>,
    /// What the guest's content-length leaves, where it set one.
    remaining: Option<u64>,
    over: bool,
    /// It is to break off.
    cutting: bool,
    /// Its reader was given a moment to send on what came before.
    warned: bool,
}

impl GuestBody {
    pub(crate) fn new(body: HyperOutgoingBody, exchange: Arc<Exchange>, length: Option<u64>) -> Self {
        exchange.step();
        Self { body, exchange, remaining: length, over: false, cutting: false, warned: false }
    }

    /// So far it was only looked at: nothing is sent between such polls.
    pub(crate) fn only_looked_at(&mut self) {
        self.warned = false;
    }

    /// Breaks the body off, at the second call: a connection drops what it has not sent yet when its body fails, and a
    /// client must see the head, or it takes the request for one that never began. Between two polls it sends.
    fn cut(&mut self, cx: &Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.cutting = true;
        self.exchange.abandoned.notify_one();
        if !std::mem::replace(&mut self.warned, true) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.over = true;
        Poll::Ready(Some(Err(Box::new(Cut))))
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
                this.exchange.step();
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
                this.exchange.step();
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
        // The client is gone: what the guest would still write has no reader.
        if !self.over {
            self.exchange.abandoned.notify_one();
        }
    }
}
