//! How much webhooks may answer: each a bounded piece, and all together what this server has room for.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// An answer of no more than this is read at once.
const SMALL_BYTES_MAX: usize = 64 << 10;
/// What is beyond that, of all answers that are under way.
const TOGETHER_BYTES_MAX: usize = 128 << 20;

/// What somebody answered. Its bytes count until it goes.
pub(crate) struct Answer {
    pub(crate) bytes: Bytes,
    _room: Option<OwnedSemaphorePermit>,
}

/// The room that answers share.
#[derive(Clone)]
pub(crate) struct Room(Arc<Semaphore>);

impl Default for Room {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(TOGETHER_BYTES_MAX)))
    }
}

impl Room {
    /// Reads a body of at most `max` bytes; a large one waits until there is room for it.
    pub(super) async fn read<B>(&self, mut body: B, max: usize) -> Result<Answer, String>
    where
        B: http_body::Body<Data = Bytes> + Unpin,
        B::Error: std::fmt::Display,
    {
        let mut bytes = BytesMut::new();
        let mut room: Option<OwnedSemaphorePermit> = None;
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| format!("reading the answer: {error}"))?;
            let Ok(data) = frame.into_data() else { continue };
            if bytes.len() + data.len() > max {
                return Err("reading the answer: length limit exceeded".into());
            }
            bytes.extend_from_slice(&data);
            if bytes.len() > SMALL_BYTES_MAX {
                self.grow(&mut room, bytes.len()).await?;
            }
        }
        Ok(Answer { bytes: bytes.freeze(), _room: room })
    }

    async fn grow(&self, room: &mut Option<OwnedSemaphorePermit>, bytes: usize) -> Result<(), String> {
        let has = room.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        // In steps as large as what is there, so that it is asked for seldom.
        let lacks = if bytes > has { bytes.max(has * 2).min(TOGETHER_BYTES_MAX) - has } else { return Ok(()) };
        let more = u32::try_from(lacks).map_err(|error| error.to_string())?;
        let more = self.0.clone().acquire_many_owned(more).await.map_err(|error| error.to_string())?;
        match room {
            Some(room) => room.merge(more),
            None => *room = Some(more),
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
        let room = Room::default();
        let small = room.read(body(1), usize::MAX).await.unwrap();
        assert_eq!((small.bytes.len(), room.0.available_permits()), (1 << 16, TOGETHER_BYTES_MAX));
        let error = room.read(body(3), 2 << 16).await.err();
        assert_eq!(error.as_deref(), Some("reading the answer: length limit exceeded"));
        assert_eq!(room.0.available_permits(), TOGETHER_BYTES_MAX, "what failed holds nothing");
        let large = room.read(body(1000), usize::MAX).await.unwrap();
        assert!(room.0.available_permits() <= TOGETHER_BYTES_MAX - large.bytes.len());
        let another = body(1500);
        let mut waits = pin!(room.read(another, usize::MAX));
        assert!(waits.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        drop(large);
        assert!(matches!(waits.as_mut().poll(&mut Context::from_waker(Waker::noop())), Poll::Ready(Ok(_))));
    }
}
