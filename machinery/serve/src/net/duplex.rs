//! A pipe of bytes within the process, in both directions. Its buffers grow with what waits in them, up to a bound, and an account
//! may refuse that: a connection whose guest has no memory left goes on with small buffers instead of failing.

use std::any::Any;
use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::coop::poll_proceed;

/// Maximum bytes that wait in each direction: a socket's usual window.
pub const PIPE_BYTES: usize = 64 << 10;
/// Bytes of each direction's buffer that no account is asked for.
pub const PIPE_FREE_BYTES: usize = 1 << 10;

/// Grants the memory of buffers.
pub trait BufferAccount: Send + Sync {
    /// Charges bytes of memory; `false`, and nothing is charged: there are none to spare.
    fn take(&self, bytes: usize) -> bool;
    /// Returns charged bytes.
    fn give(&self, bytes: usize);
}

/// An end of a pipe. Dropping it closes both directions: the other end reads what was written before, then the end.
pub struct PipeEnd {
    reads: Arc<Direction>,
    writes: Arc<Direction>,
    _held: Option<Box<dyn Any + Send>>,
}

struct Direction(Mutex<Waiting>);

/// The bytes that were written and not read, and who waits for a change.
#[derive(Default)]
struct Waiting {
    bytes: VecDeque<u8>,
    /// Most bytes that may wait now.
    granted: usize,
    account: Option<Arc<dyn BufferAccount>>,
    /// Bytes of the account.
    charged: usize,
    /// The writer's end was shut down or dropped.
    is_ended: bool,
    /// The reader's end was dropped.
    is_abandoned: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

/// The two ends of a pipe.
#[must_use]
pub(super) fn duplex() -> (PipeEnd, PipeEnd) {
    let direction = || Arc::new(Direction(Mutex::new(Waiting { granted: PIPE_FREE_BYTES, ..Waiting::default() })));
    let (there, back) = (direction(), direction());
    let near = PipeEnd { reads: back.clone(), writes: there.clone(), _held: None };
    (near, PipeEnd { reads: there, writes: back, _held: None })
}

impl PipeEnd {
    /// Charges what this end writes from now on to an account, until it is read. Without one, a direction has the whole of
    /// [`PIPE_BYTES`]. The first account stays.
    pub fn charge_writes(&mut self, account: Arc<dyn BufferAccount>) {
        self.writes.lock().account.get_or_insert(account);
    }

    /// The same end, which owns `held` until it is dropped.
    #[must_use]
    pub(super) fn holding(mut self, held: impl Send + 'static) -> Self {
        self._held = Some(match self._held.take() {
            Some(before) => Box::new((before, held)),
            None => Box::new(held),
        });
        self
    }
}

impl std::fmt::Debug for PipeEnd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PipeEnd").finish_non_exhaustive()
    }
}

impl Direction {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    /// Bytes that can be written now, of those that are wanted.
    fn allow(&mut self, wanted: usize) -> usize {
        let needed = (self.bytes.len() + wanted).min(PIPE_BYTES);
        if needed > self.granted {
            let target = needed.next_power_of_two();
            let more = target - self.granted;
            match &self.account {
                None => self.granted = target,
                Some(account) if account.take(more) => {
                    self.granted = target;
                    self.charged += more;
                }
                Some(_) => {}
            }
        }
        wanted.min(self.granted.saturating_sub(self.bytes.len()))
    }

    /// Returns the memory of an empty buffer, beyond its free part.
    fn shrink(&mut self) {
        if !self.bytes.is_empty() || self.granted == PIPE_FREE_BYTES {
            return;
        }
        self.bytes = VecDeque::new();
        if let Some(account) = &self.account {
            account.give(std::mem::take(&mut self.charged));
        }
        self.granted = PIPE_FREE_BYTES;
    }

    fn write(&mut self, pieces: &[io::IoSlice<'_>]) -> usize {
        let wanted = pieces.iter().map(|piece| piece.len()).sum();
        let allowed = self.allow(wanted);
        self.bytes.reserve(allowed);
        let mut rest = allowed;
        for piece in pieces {
            let taken = piece.len().min(rest);
            self.bytes.extend(&piece[..taken]);
            rest -= taken;
        }
        allowed
    }

    fn read(&mut self, into: &mut ReadBuf<'_>) {
        let (first, second) = self.bytes.as_slices();
        let of_first = first.len().min(into.remaining());
        into.put_slice(&first[..of_first]);
        let of_second = second.len().min(into.remaining());
        into.put_slice(&second[..of_second]);
        self.bytes.drain(..of_first + of_second);
        self.shrink();
    }
}

fn wake(waker: &mut Option<Waker>) {
    if let Some(waker) = waker.take() {
        waker.wake();
    }
}

fn remember(waker: &mut Option<Waker>, cx: &Context<'_>) {
    match waker {
        Some(waker) => waker.clone_from(cx.waker()),
        None => *waker = Some(cx.waker().clone()),
    }
}

impl AsyncRead for PipeEnd {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let coop = ready!(poll_proceed(cx));
        let mut waiting = self.reads.lock();
        if waiting.bytes.is_empty() && !waiting.is_ended && into.remaining() > 0 {
            remember(&mut waiting.reader, cx);
            return Poll::Pending;
        }
        coop.made_progress();
        waiting.read(into);
        wake(&mut waiting.writer);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for PipeEnd {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[io::IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let coop = ready!(poll_proceed(cx));
        let mut waiting = self.writes.lock();
        if waiting.is_ended || waiting.is_abandoned {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if pieces.iter().all(|piece| piece.is_empty()) {
            return Poll::Ready(Ok(0));
        }
        let written = waiting.write(pieces);
        if written == 0 {
            remember(&mut waiting.writer, cx);
            return Poll::Pending;
        }
        coop.made_progress();
        wake(&mut waiting.reader);
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut waiting = self.writes.lock();
        waiting.is_ended = true;
        wake(&mut waiting.reader);
        Poll::Ready(Ok(()))
    }
}

impl Drop for PipeEnd {
    fn drop(&mut self) {
        let mut writes = self.writes.lock();
        writes.is_ended = true;
        wake(&mut writes.reader);
        drop(writes);
        let mut reads = self.reads.lock();
        reads.is_abandoned = true;
        reads.bytes.clear();
        reads.shrink();
        wake(&mut reads.writer);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// An account with a limit.
    struct Limited {
        limit: usize,
        used: AtomicUsize,
    }

    impl BufferAccount for Limited {
        fn take(&self, bytes: usize) -> bool {
            let add = |used| Some(used + bytes).filter(|after| *after <= self.limit);
            self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).is_ok()
        }

        fn give(&self, bytes: usize) {
            self.used.fetch_sub(bytes, Ordering::Relaxed);
        }
    }

    fn charged(limit: usize) -> (PipeEnd, PipeEnd, Arc<Limited>) {
        let account = Arc::new(Limited { limit, used: AtomicUsize::new(0) });
        let (mut near, far) = duplex();
        near.charge_writes(account.clone());
        (near, far, account)
    }

    fn used(account: &Limited) -> usize {
        account.used.load(Ordering::Relaxed)
    }

    /// Writes until the pipe takes no more; returns how much it took.
    async fn fill(end: &mut PipeEnd) -> usize {
        let mut written = 0;
        loop {
            tokio::select! {
                biased;
                more = end.write(&[7; 5000]) => written += more.unwrap(),
                () = std::future::ready(()) => return written,
            }
        }
    }

    #[tokio::test]
    async fn bytes_arrive_in_order_in_any_pieces() {
        let (mut near, mut far) = duplex();
        let sent: Vec<u8> = (0..300_000_u32).map(|n| (n % 251) as u8).collect();
        let expected = sent.clone();
        let writing = tokio::spawn(async move {
            for (n, piece) in sent.chunks(7001).enumerate() {
                let (a, b) = piece.split_at(piece.len() / (n % 3 + 1));
                let mut rest: Vec<u8> = [a, b].concat();
                let slices = [io::IoSlice::new(a), io::IoSlice::new(b)];
                let written = near.write_vectored(&slices).await.unwrap();
                rest.drain(..written);
                near.write_all(&rest).await.unwrap();
            }
        });
        let mut seen = Vec::new();
        far.read_to_end(&mut seen).await.unwrap();
        writing.await.unwrap();
        assert!(seen == expected, "{} of {} bytes", seen.len(), expected.len());
    }

    #[tokio::test]
    async fn unread_bytes_are_charged_to_their_writer() {
        let (mut near, mut far, account) = charged(usize::MAX);
        near.write_all(&[1; PIPE_FREE_BYTES]).await.unwrap();
        assert_eq!(used(&account), 0, "the free part");
        near.write_all(&[1]).await.unwrap();
        assert_eq!(used(&account), PIPE_FREE_BYTES, "twice as much, without the free part");
        assert_eq!(fill(&mut near).await, PIPE_BYTES - PIPE_FREE_BYTES - 1);
        assert_eq!(used(&account), PIPE_BYTES - PIPE_FREE_BYTES);
        far.write_all(&[1; PIPE_BYTES]).await.unwrap();
        assert_eq!(used(&account), PIPE_BYTES - PIPE_FREE_BYTES, "the other direction is the other's");
        far.read_exact(&mut vec![0; PIPE_BYTES]).await.unwrap();
        assert_eq!(used(&account), 0);
    }

    #[tokio::test]
    async fn an_account_without_memory_leaves_a_small_buffer() {
        let (mut near, mut far, account) = charged(0);
        assert_eq!(fill(&mut near).await, PIPE_FREE_BYTES);
        let copying = tokio::spawn(async move { near.write_all(&[3; 100_000]).await });
        let mut seen = vec![0; PIPE_FREE_BYTES + 100_000];
        far.read_exact(&mut seen).await.unwrap();
        copying.await.unwrap().unwrap();
        assert_eq!((used(&account), seen.iter().filter(|byte| **byte == 3).count()), (0, 100_000));
    }

    #[tokio::test]
    async fn bytes_before_the_account_are_not_charged() {
        let (mut near, mut far) = duplex();
        near.write_all(&[1; 9000]).await.unwrap();
        let account = Arc::new(Limited { limit: usize::MAX, used: AtomicUsize::new(0) });
        near.charge_writes(account.clone());
        near.write_all(&[1; 9000]).await.unwrap();
        assert_eq!(used(&account), 16 << 10, "from 16 to 32 KiB");
        far.read_exact(&mut [0; 18_000]).await.unwrap();
        assert_eq!(used(&account), 0);
    }

    #[tokio::test]
    async fn dropped_ends_return_all_memory() {
        let (mut near, far, account) = charged(usize::MAX);
        fill(&mut near).await;
        drop(far);
        assert_eq!(used(&account), 0);
        assert_eq!(near.write(&[1]).await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);

        let (mut near, mut far, account) = charged(usize::MAX);
        near.write_all(&[2; 5000]).await.unwrap();
        drop(near);
        let mut seen = Vec::new();
        far.read_to_end(&mut seen).await.unwrap();
        assert_eq!((seen.len(), used(&account)), (5000, 0), "what was written before is read");
    }

    #[tokio::test]
    async fn a_shut_half_is_an_end_and_the_other_half_goes_on() {
        let (mut near, mut far) = duplex();
        near.shutdown().await.unwrap();
        assert_eq!(far.read(&mut [0; 8]).await.unwrap(), 0);
        far.write_all(b"late").await.unwrap();
        let mut seen = [0; 4];
        near.read_exact(&mut seen).await.unwrap();
        assert_eq!(&seen, b"late");
        assert_eq!(near.write(b"x").await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }

    #[tokio::test]
    async fn waiting_ends_are_woken_by_a_drop() {
        let (mut near, far) = duplex();
        fill(&mut near).await;
        let writing = tokio::spawn(async move { near.write_all(&[0; 10]).await });
        tokio::task::yield_now().await;
        drop(far);
        assert_eq!(writing.await.unwrap().unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }

    #[tokio::test]
    async fn a_pipe_that_is_always_ready_yields_to_others() {
        let (mut near, mut far) = duplex();
        let endless = tokio::spawn(async move {
            let mut byte = [0];
            loop {
                near.write_all(&[1]).await.unwrap();
                far.read_exact(&mut byte).await.unwrap();
            }
        });
        tokio::task::yield_now().await;
        endless.abort();
        assert!(endless.await.unwrap_err().is_cancelled());
    }
}
