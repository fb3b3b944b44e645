//! Bodies written by a guest, of its response and of its own requests: only its own `finish` ends one cleanly. If the guest
//! traps, times out or drops it, the reader gets an error.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt as _;
use wasmtime_wasi_http::Error;
use wasmtime_wasi_http::p2::body::HyperOutgoingBody;

/// An instance's bodies by handle number. A new body reuses a free number, so there are at most as many as handles of an
/// instance.
#[derive(Default)]
pub(super) struct OpenBodies(Vec<(u32, Arc<AtomicBool>)>);

impl OpenBodies {
    fn begin(&mut self, number: u32) -> Arc<AtomicBool> {
        let finished = Arc::new(AtomicBool::new(false));
        match self.0.iter_mut().find(|(known, _)| *known == number) {
            Some((_, known)) => known.clone_from(&finished),
            None => self.0.push((number, finished.clone())),
        }
        finished
    }

    pub(super) fn finish(&mut self, number: u32) {
        if let Some(at) = self.0.iter().position(|(known, _)| *known == number) {
            self.0.swap_remove(at).1.store(true, Ordering::Release);
        }
    }
}

/// A body whose end is an error unless the guest has finished it.
pub(super) struct CheckedBody {
    body: HyperOutgoingBody,
    finished: Arc<AtomicBool>,
}

impl CheckedBody {
    pub(super) fn of(body: HyperOutgoingBody, open: &mut OpenBodies, number: u32) -> HyperOutgoingBody {
        Self { body, finished: open.begin(number) }.boxed_unsync()
    }
}

impl Body for CheckedBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        match std::task::ready!(Pin::new(&mut self.body).poll_frame(cx)) {
            None if !self.finished.load(Ordering::Acquire) => Poll::Ready(Some(Err(Error::HttpProtocolError))),
            frame => Poll::Ready(frame),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use wasmtime_wasi_http::p2::body::{HostOutgoingBody, StreamContext};

    use super::*;

    #[tokio::test]
    async fn a_body_ends_by_its_own_finish_only() {
        let mut open = OpenBodies::default();
        let mut made = |number| {
            let (host, body) = HostOutgoingBody::new(StreamContext::Request, None, 1, 1024);
            (host, CheckedBody::of(body, &mut open, number))
        };
        let (first, forgotten) = made(1);
        let (second, finished) = made(2);
        // The guest dropped the first, and another one reuses its number.
        drop(first);
        let (third, again) = made(1);
        for (number, host) in [(1, third), (2, second)] {
            open.finish(number);
            assert!(host.finish(None).is_ok());
        }
        assert!(open.0.is_empty());
        assert!(forgotten.collect().await.is_err());
        assert!(finished.collect().await.is_ok() && again.collect().await.is_ok());
    }
}
