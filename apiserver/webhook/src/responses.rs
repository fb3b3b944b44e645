//! Limits the memory of webhook responses: each has a maximum size, and all large ones share a budget.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Responses up to this size are outside the shared budget.
const SMALL_BYTES_MAX: usize = 64 << 10;
/// The budget of all larger responses in progress.
const BUDGET_BYTES_MAX: usize = 128 << 20;

/// A response. Its bytes count against the budget until it is dropped.
pub struct WebhookResponse {
    /// The body.
    pub bytes: Bytes,
    _permit: Option<OwnedSemaphorePermit>,
}

/// The shared budget, in bytes.
#[derive(Clone)]
pub(crate) struct ResponseBudget(Arc<Semaphore>);

impl Default for ResponseBudget {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(BUDGET_BYTES_MAX)))
    }
}

impl ResponseBudget {
    /// Reads a body of at most `max` bytes. A large one waits for the budget.
    pub(super) async fn read<B>(&self, mut body: B, max: usize) -> Result<WebhookResponse, String>
    where
        B: http_body::Body<Data = Bytes> + Unpin,
        B::Error: std::fmt::Display,
    {
        let mut bytes = BytesMut::new();
        let mut permit: Option<OwnedSemaphorePermit> = None;
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| format!("reading the answer: {error}"))?;
            let Ok(data) = frame.into_data() else { continue };
            if bytes.len() + data.len() > max {
                return Err("reading the answer: length limit exceeded".into());
            }
            bytes.extend_from_slice(&data);
            if bytes.len() > SMALL_BYTES_MAX {
                self.grow(&mut permit, bytes.len()).await?;
            }
        }
        Ok(WebhookResponse { bytes: bytes.freeze(), _permit: permit })
    }

    async fn grow(&self, permit: &mut Option<OwnedSemaphorePermit>, bytes: usize) -> Result<(), String> {
        let held = permit.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        // Acquires at least as much again as is held, to reduce the number of acquisitions.
        let missing = if bytes > held { bytes.max(held * 2).min(BUDGET_BYTES_MAX) - held } else { return Ok(()) };
        let more = u32::try_from(missing).map_err(|error| error.to_string())?;
        let more = self.0.clone().acquire_many_owned(more).await.map_err(|error| error.to_string())?;
        match permit {
            Some(permit) => permit.merge(more),
            None => *permit = Some(more),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::future::Future as _;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use futures::stream;
    use http_body::Frame;
    use http_body_util::StreamBody;

    use super::*;

    fn body(pieces: usize) -> StreamBody<impl stream::Stream<Item = Result<Frame<Bytes>, Infallible>>> {
        let piece = Bytes::from(vec![b' '; 1 << 16]);
        StreamBody::new(stream::iter((0..pieces).map(move |_| Ok(Frame::data(piece.clone())))))
    }

    #[tokio::test]
    async fn answers_are_bounded_each_and_together() {
        let permit = ResponseBudget::default();
        let small = permit.read(body(1), usize::MAX).await.unwrap();
        assert_eq!((small.bytes.len(), permit.0.available_permits()), (1 << 16, BUDGET_BYTES_MAX));
        let error = permit.read(body(3), 2 << 16).await.err();
        assert_eq!(error.as_deref(), Some("reading the answer: length limit exceeded"));
        assert_eq!(permit.0.available_permits(), BUDGET_BYTES_MAX, "what failed holds nothing");
        let large = permit.read(body(1000), usize::MAX).await.unwrap();
        assert!(permit.0.available_permits() <= BUDGET_BYTES_MAX - large.bytes.len());
        let another = body(1500);
        let mut waits = pin!(permit.read(another, usize::MAX));
        assert!(waits.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        drop(large);
        assert!(matches!(waits.as_mut().poll(&mut Context::from_waker(Waker::noop())), Poll::Ready(Ok(_))));
    }
}
