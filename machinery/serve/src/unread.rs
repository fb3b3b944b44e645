//! Drains the unread rest of a request's body. With unread bytes an HTTP/1.1 connection would be closed, and the client
//! would lose the unread response or its next request.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use machinery_env::Env;

/// Limits of a drain: beyond either one the connection is closed.
#[derive(Debug, Clone, Copy)]
pub struct UnreadBounds {
    /// Bytes beyond those read by the handler.
    pub bytes: usize,
    /// Wall clock time from the handler's end.
    pub time: Duration,
}

impl UnreadBounds {
    /// For handlers that read bodies of at most `body_bytes_max`: twice as much again, within 5 s.
    #[must_use]
    pub const fn beyond(body_bytes_max: usize) -> Self {
        Self { bytes: 2 * body_bytes_max, time: Duration::from_secs(5) }
    }
}

/// A request's body that is drained on drop.
pub struct UnreadBody<B>
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
{
    body: Option<B>,
    bounds: UnreadBounds,
    env: Env,
}

impl<B> UnreadBody<B>
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
{
    /// Drains the rest of `body` on drop.
    pub fn new(body: B, bounds: UnreadBounds, env: Env) -> Self {
        Self { body: Some(body), bounds, env }
    }
}

impl<B> Body for UnreadBody<B>
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
{
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        let polled = Pin::new(body).poll_frame(context);
        if matches!(polled, Poll::Ready(None | Some(Err(_)))) {
            self.body = None;
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

impl<B> Drop for UnreadBody<B>
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
{
    fn drop(&mut self) {
        let Some(body) = self.body.take().filter(|body| !body.is_end_stream()) else { return };
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let UnreadBounds { bytes, time } = self.bounds;
            runtime.spawn(self.env.timeout(time, async move {
                let (mut body, mut left) = (body, bytes);
                while let Some(Ok(frame)) = body.frame().await {
                    let Some(rest) = left.checked_sub(frame.data_ref().map_or(0, Bytes::len)) else { return };
                    left = rest;
                }
            }));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::oneshot;

    use super::*;

    /// Yields a number of pieces, counts the reads, and signals its drop.
    struct Pieces(
        usize,
        Arc<AtomicUsize>,
        #[expect(dead_code, reason = "its drop is the message")] oneshot::Sender<()>,
    );

    impl Body for Pieces {
        type Data = Bytes;
        type Error = std::convert::Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
            if self.0 == 0 {
                return Poll::Ready(None);
            }
            self.0 -= 1;
            self.1.fetch_add(1, Ordering::Relaxed);
            Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&[0; 1 << 16])))))
        }
    }

    async fn taken(pieces: usize) -> usize {
        let (count, (sender, dropped)) = (Arc::new(AtomicUsize::new(0)), oneshot::channel());
        drop(UnreadBody::new(Pieces(pieces, count.clone(), sender), UnreadBounds::beyond(3 << 20), Env::real()));
        assert!(dropped.await.is_err());
        count.load(Ordering::Relaxed)
    }

    #[tokio::test]
    async fn the_unread_rest_is_drained_within_a_bound() {
        assert_eq!(taken(20).await, 20);
        assert_eq!(taken(usize::MAX).await, (6 << 4) + 1);
    }
}
