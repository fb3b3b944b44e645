//! What is being answered: counted from where it begins to where it ends, however it ends.

use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::Body;
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use prometheus_client::metrics::gauge::Gauge;

/// One that is under way; it is over when this is dropped.
#[derive(Debug)]
pub(super) struct UnderWay(Gauge);

impl UnderWay {
    /// One more is.
    pub(super) fn begin(gauge: Gauge) -> Self {
        gauge.inc();
        Self(gauge)
    }

    /// It lasts as long as somebody reads `body`.
    pub(super) fn until_read(self, body: Body) -> Body {
        Body::new(Counted { body, _under_way: self })
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// A body whose request is under way.
struct Counted {
    body: Body,
    _under_way: UnderWay,
}

impl http_body::Body for Counted {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
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
    use http_body_util::BodyExt as _;

    use super::*;

    #[tokio::test]
    async fn a_request_is_under_way_until_its_body_is_read_or_left() {
        let gauge = Gauge::<i64>::default();
        let read = UnderWay::begin(gauge.clone()).until_read(Body::from("text"));
        let left = UnderWay::begin(gauge.clone()).until_read(Body::from("text"));
        assert_eq!((gauge.get(), http_body::Body::size_hint(&read).exact()), (2, Some(4)));
        assert_eq!(read.collect().await.unwrap().to_bytes(), "text");
        assert_eq!(gauge.get(), 1);
        drop(left);
        assert_eq!(gauge.get(), 0);
    }
}
