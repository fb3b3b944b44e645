//! Counts requests in a gauge from their start to their end, including cancellation.

use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::Body;
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use prometheus_client::metrics::gauge::Gauge;

/// A request that is counted in the gauge until this is dropped.
#[derive(Debug)]
pub(super) struct GaugeGuard(Gauge);

impl GaugeGuard {
    /// Increments the gauge.
    pub(super) fn begin(gauge: Gauge) -> Self {
        gauge.inc();
        Self(gauge)
    }

    /// Keeps the request counted until `body` has been read or is dropped.
    pub(super) fn hold_until_read(self, body: Body) -> Body {
        Body::new(CountedBody { body, _gauge_guard: self })
    }
}

impl Drop for GaugeGuard {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// A body that holds the count of its request.
struct CountedBody {
    body: Body,
    _gauge_guard: GaugeGuard,
}

impl http_body::Body for CountedBody {
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
        let read = GaugeGuard::begin(gauge.clone()).hold_until_read(Body::from("text"));
        let left = GaugeGuard::begin(gauge.clone()).hold_until_read(Body::from("text"));
        assert_eq!((gauge.get(), http_body::Body::size_hint(&read).exact()), (2, Some(4)));
        assert_eq!(read.collect().await.unwrap().to_bytes(), "text");
        assert_eq!(gauge.get(), 1);
        drop(left);
        assert_eq!(gauge.get(), 0);
    }
}
