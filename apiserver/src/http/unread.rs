//! What a handler leaves of a request's body is read off: with unread bytes an HTTP/1.1 connection would be closed under the
//! client, which then loses the answer that it has not read yet, or the request that it sends next.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, Limited};

use super::dispatch::BODY_BYTES_MAX;

/// A refused body that is this much longer than an allowed one costs its connection.
const REST_BYTES_MAX: usize = 2 * BODY_BYTES_MAX;
/// A client that still writes has this long to come to an end.
const REST_TIME_MAX: Duration = Duration::from_secs(5);

/// A request's body.
pub struct Unread<B>
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<axum::BoxError>,
{
    body: Option<B>,
}

impl<B> Unread<B>
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<axum::BoxError>,
{
    /// A body as handlers take it.
    pub fn body(body: B) -> axum::body::Body {
        if body.is_end_stream() {
            return axum::body::Body::new(body);
        }
        axum::body::Body::new(Self { body: Some(body) })
    }
}

impl<B> Body for Unread<B>
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<axum::BoxError>,
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

impl<B> Drop for Unread<B>
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<axum::BoxError>,
{
    fn drop(&mut self) {
        let Some(body) = self.body.take().filter(|body| !body.is_end_stream()) else { return };
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(tokio::time::timeout(REST_TIME_MAX, async move {
                let mut rest = Limited::new(body, REST_BYTES_MAX);
                while let Some(Ok(_)) = rest.frame().await {}
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

    /// Gives so many pieces, counts those that were taken, and says when it was let go.
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
        drop(Unread::body(Pieces(pieces, count.clone(), sender)));
        assert!(dropped.await.is_err());
        count.load(Ordering::Relaxed)
    }

    #[tokio::test]
    async fn the_rest_is_read_off_within_a_bound() {
        assert_eq!(taken(20).await, 20);
        assert_eq!(taken(usize::MAX).await, (REST_BYTES_MAX >> 16) + 1);
    }
}
