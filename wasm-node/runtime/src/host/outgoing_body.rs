//! Bodies written by a guest, of its response and of its own requests: only its own `finish` ends one cleanly. If the guest
//! traps, times out or drops it, the reader gets an error.
//!
//! Empty writes end in the guest's own call: a queue for a slow reader counts bytes, and would hold them without end.

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
        // The channel of the guest's writes yields by itself.
        loop {
            match std::task::ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) if frame.data_ref().is_some_and(Bytes::is_empty) => {}
                None if !self.finished.load(Ordering::Acquire) => {
                    return Poll::Ready(Some(Err(Error::HttpProtocolError)));
                }
                frame => return Poll::Ready(frame),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Set when a store ends in any way, before it is dropped.
#[derive(Clone, Default)]
pub(crate) struct StoreEnd(Arc<AtomicBool>);

impl StoreEnd {
    pub(crate) fn set(&self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Ends a store when dropped: declared after it, or a field before it.
pub(crate) struct EndOnDrop(pub(crate) StoreEnd);

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        self.0.set();
    }
}

/// A body of a request of WASI 0.3. The end of its channel is that of the body only while the store lives: a store that is
/// dropped closes the channel as well.
pub(super) struct LiveBody {
    body: HyperOutgoingBody,
    store: StoreEnd,
}

impl LiveBody {
    pub(super) fn of(body: HyperOutgoingBody, store: StoreEnd) -> HyperOutgoingBody {
        Self { body, store }.boxed_unsync()
    }
}

impl Body for LiveBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        loop {
            match std::task::ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) if frame.data_ref().is_some_and(Bytes::is_empty) => {}
                None if self.store.0.load(Ordering::Acquire) => {
                    return Poll::Ready(Some(Err(Error::HttpProtocolError)));
                }
                frame => return Poll::Ready(frame),
            }
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
    use wasmtime_wasi::p2::{OutputStream as _, StreamError};
    use wasmtime_wasi_http::p2::body::{HostOutgoingBody, StreamContext};

    use super::super::io::NonEmptyWrites;
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

    #[tokio::test]
    async fn a_request_of_an_ended_store_is_broken_off() {
        let made = |frames: Vec<&'static str>| {
            let frames = frames.into_iter().map(|text| Ok(Frame::data(Bytes::from(text))));
            http_body_util::StreamBody::new(futures::stream::iter(frames.collect::<Vec<_>>())).boxed_unsync()
        };
        let store = StoreEnd::default();
        let (whole, cut) = (made(vec!["", "a", "", "b", ""]), made(vec!["a"]));
        let whole = LiveBody::of(whole, store.clone()).collect().await.unwrap();
        assert_eq!(whole.to_bytes(), "ab");
        let cut = LiveBody::of(cut, store.clone());
        drop(EndOnDrop(store));
        assert!(cut.collect().await.is_err());
    }

    #[tokio::test]
    async fn empty_writes_reach_no_reader() {
        let (mut host, body) = HostOutgoingBody::new(StreamContext::Response, None, 1, 1024);
        let mut open = OpenBodies::default();
        let mut body = CheckedBody::of(body, &mut open, 1);
        // By the body: as if the guest's stream had passed it on.
        let mut bare = host.take_output_stream().unwrap();
        bare.write(Bytes::new()).unwrap();
        bare.write("a".into()).unwrap();
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "a");
        // By the stream: more of them than the channel holds, and nothing waits.
        let mut stream = NonEmptyWrites(bare);
        for _ in 0..1000 {
            stream.blocking_write_and_flush(Bytes::new()).await.unwrap();
        }
        stream.blocking_write_and_flush("b".into()).await.unwrap();
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "b");
        drop(body);
        assert!(matches!(stream.write(Bytes::new()), Err(StreamError::Closed)));
    }
}
