//! Collects the frames of an HTTP/2 connection into few writes.
//!
//! h2 flushes after each frame of data, and a connection's task runs after each stream that has data. With a thousand
//! watches that was one system call and one TLS record for each event of each watch. A flush is therefore delayed to the
//! next turn of the connection's task, which comes after the tasks that are ready: until then their frames are collected.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The connection preface of HTTP/2, without its end.
pub(crate) const HTTP2_BEGINNING: &[u8] = b"PRI * HTTP/2";
/// The maximum number of collected bytes: two TLS records.
const COLLECTED_BYTES_MAX: usize = 32 * 1024;
/// Pieces of this size are written at once, without a copy: the frames of a large response.
const DIRECT_BYTES: usize = 8 * 1024;

/// The number of times that a connection's task was polled.
#[derive(Debug, Clone, Default)]
pub(crate) struct Turns(Arc<AtomicU64>);

impl Turns {
    fn begin(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn current(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A connection's future, of which each poll is a turn.
pub(crate) struct InTurns<'a, F> {
    pub(crate) connection: Pin<&'a mut F>,
    pub(crate) turns: &'a Turns,
}

impl<F: Future> Future for InTurns<'_, F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        self.turns.begin();
        self.connection.as_mut().poll(context)
    }
}

/// A stream whose writes are batched if it speaks HTTP/2, and unchanged otherwise.
pub(crate) struct Batched<S> {
    stream: S,
    turns: Turns,
    /// Whether its peer began with the preface of HTTP/2; `None` before the first byte.
    http2: Option<bool>,
    collected: Vec<u8>,
    /// The number of collected bytes that the stream has taken.
    written: usize,
    /// Whether bytes were collected since the last flush.
    is_fresh: bool,
    /// The turn of the first flush of the collected bytes.
    flushed_in: Option<u64>,
}

impl<S: AsyncWrite + Unpin> Batched<S> {
    pub(crate) fn new(stream: S, turns: Turns) -> Self {
        Self { stream, turns, http2: None, collected: Vec::new(), written: 0, is_fresh: false, flushed_in: None }
    }

    fn is_batching(&self) -> bool {
        self.http2 == Some(true)
    }

    /// Writes all collected bytes.
    fn poll_drain(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.collected.len() {
            let rest = &self.collected[self.written..];
            let taken = ready!(Pin::new(&mut self.stream).poll_write(context, rest))?;
            if taken == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += taken;
        }
        // Not kept: most connections are idle most of the time.
        self.collected = Vec::new();
        self.written = 0;
        self.flushed_in = None;
        Poll::Ready(Ok(()))
    }

    /// Collects pieces of so many bytes, after a drain if they don't fit; false if they are to be written directly.
    fn poll_collect<'a>(
        &mut self,
        context: &mut Context<'_>,
        bytes: usize,
        pieces: impl Iterator<Item = &'a [u8]>,
    ) -> Poll<io::Result<bool>> {
        if bytes >= DIRECT_BYTES || self.collected.len() + bytes > COLLECTED_BYTES_MAX {
            ready!(self.poll_drain(context))?;
        }
        if bytes >= DIRECT_BYTES {
            return Poll::Ready(Ok(false));
        }
        pieces.for_each(|piece| self.collected.extend_from_slice(piece));
        self.is_fresh = true;
        Poll::Ready(Ok(true))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Batched<S> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = into.filled().len();
        let polled = Pin::new(&mut this.stream).poll_read(context, into);
        let fresh = &into.filled()[before..];
        if this.http2.is_none() && !fresh.is_empty() {
            this.http2 = Some(fresh.starts_with(HTTP2_BEGINNING));
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Batched<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.is_batching() && ready!(this.poll_collect(context, bytes.len(), std::iter::once(bytes)))? {
            return Poll::Ready(Ok(bytes.len()));
        }
        Pin::new(&mut this.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let bytes = pieces.iter().map(|piece| piece.len()).sum();
        if this.is_batching() && ready!(this.poll_collect(context, bytes, pieces.iter().map(|piece| &**piece)))? {
            return Poll::Ready(Ok(bytes));
        }
        Pin::new(&mut this.stream).poll_write_vectored(context, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    /// Delays the flush of collected bytes to a later turn, in which nothing was collected since the last flush.
    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let is_fresh = std::mem::take(&mut this.is_fresh);
        if !this.collected.is_empty() {
            let turn = this.turns.current();
            if *this.flushed_in.get_or_insert(turn) == turn || is_fresh {
                // The next turn comes after the tasks that are ready now.
                context.waker().wake_by_ref();
                return Poll::Ready(Ok(()));
            }
            ready!(this.poll_drain(context))?;
        }
        Pin::new(&mut this.stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_drain(context))?;
        Pin::new(&mut this.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use tokio::io::AsyncReadExt as _;

    use super::*;

    /// Counts the writes of a stream that takes at most so many bytes at once.
    struct Counted {
        peer: &'static [u8],
        most: usize,
        writes: Vec<Vec<u8>>,
    }

    impl AsyncRead for Counted {
        fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            into.put_slice(std::mem::take(&mut self.peer));
            Poll::Ready(Ok(()))
        }
    }

    impl AsyncWrite for Counted {
        fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            let taken = bytes.len().min(self.most);
            self.writes.push(bytes[..taken].to_vec());
            Poll::Ready(Ok(taken))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    async fn batched(peer: &'static [u8], most: usize) -> (Batched<Counted>, Turns) {
        let turns = Turns::default();
        let mut stream = Batched::new(Counted { peer, most, writes: Vec::new() }, turns.clone());
        stream.read_buf(&mut Vec::new()).await.unwrap();
        (stream, turns)
    }

    fn frame(stream: &mut Batched<Counted>, bytes: &[u8]) {
        let mut context = Context::from_waker(Waker::noop());
        let written = Pin::new(&mut *stream).poll_write(&mut context, bytes);
        assert!(matches!(written, Poll::Ready(Ok(length)) if length == bytes.len()), "{written:?}");
        flush(stream);
    }

    fn flush(stream: &mut Batched<Counted>) {
        let mut context = Context::from_waker(Waker::noop());
        assert!(Pin::new(stream).poll_flush(&mut context).is_ready());
    }

    #[tokio::test]
    async fn frames_of_two_turns_are_one_write() {
        let (mut stream, turns) = batched(b"PRI * HTTP/2.0\r\n", usize::MAX).await;
        turns.begin();
        frame(&mut stream, b"a");
        flush(&mut stream);
        assert!(stream.stream.writes.is_empty(), "others may have frames, too");
        turns.begin();
        frame(&mut stream, b"b");
        frame(&mut stream, b"c");
        flush(&mut stream);
        assert_eq!(stream.stream.writes, [b"abc"]);
        flush(&mut stream);
        turns.begin();
        flush(&mut stream);
        assert_eq!(stream.stream.writes.len(), 1, "nothing is left");
    }

    #[tokio::test]
    async fn much_is_written_before_its_turn_and_in_order() {
        let (mut stream, turns) = batched(b"PRI * HTTP/2.0\r\n", 1000).await;
        turns.begin();
        let frames: Vec<Vec<u8>> = (0..100u8).map(|n| vec![n; 700]).collect();
        frames.iter().for_each(|bytes| frame(&mut stream, bytes));
        assert!(stream.collected.len() <= COLLECTED_BYTES_MAX);
        let large = vec![200; DIRECT_BYTES];
        let mut context = Context::from_waker(Waker::noop());
        let direct = Pin::new(&mut stream).poll_write(&mut context, &large);
        assert!(matches!(direct, Poll::Ready(Ok(1000))), "{direct:?}");
        frame(&mut stream, b"end");
        assert!(Pin::new(&mut stream).poll_shutdown(&mut context).is_ready());
        let expected = [frames.concat(), large[..1000].to_vec(), b"end".to_vec()].concat();
        assert_eq!(stream.stream.writes.concat(), expected);
    }

    #[tokio::test]
    async fn other_protocols_are_written_at_once() {
        let (mut stream, turns) = batched(b"GET / HTTP/1.1\r\n", usize::MAX).await;
        turns.begin();
        frame(&mut stream, b"a");
        frame(&mut stream, b"b");
        assert_eq!(stream.stream.writes, [b"a", b"b"]);
    }
}
