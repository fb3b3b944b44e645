//! The sending half of a stream of bytes: writes are joined while the connection is busy, so that a writer of single
//! bytes doesn't make a frame of each.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use h2::{Reason, SendStream};

use super::STREAM_WINDOW_BYTES;
use super::pieces::Pieces;

/// Bytes of one frame at most, and of one write.
const PIECE_BYTES_MAX: usize = 16 << 10;

#[derive(Default)]
struct Outgoing {
    pieces: Pieces,
    /// The writer has ended its half.
    ended: bool,
    /// The writer resets the stream.
    aborted: bool,
    /// The peer has reset the stream, or the connection ended.
    broken: bool,
    /// The task that sends.
    task: Option<Waker>,
    writer: Option<Waker>,
}

/// The writer's side. The task goes on until all is sent, also after the drop of this.
pub(super) struct Sender(Arc<Mutex<Outgoing>>);

fn lock(shared: &Mutex<Outgoing>) -> MutexGuard<'_, Outgoing> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Sender {
    pub(super) fn start(mut stream: SendStream<Bytes>) -> Self {
        let shared = Arc::new(Mutex::new(Outgoing::default()));
        let sends = shared.clone();
        tokio::spawn(std::future::poll_fn(move |context| poll_send(&mut stream, &sends, context)));
        Self(shared)
    }

    pub(super) fn poll_write(&self, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut outgoing = lock(&self.0);
        if outgoing.broken || outgoing.aborted {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        if outgoing.ended {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let free = (STREAM_WINDOW_BYTES as usize).saturating_sub(outgoing.pieces.bytes());
        if free == 0 && !bytes.is_empty() {
            outgoing.writer = Some(context.waker().clone());
            return Poll::Pending;
        }
        let taken = bytes.len().min(free).min(PIECE_BYTES_MAX);
        outgoing.pieces.push(Bytes::copy_from_slice(&bytes[..taken]));
        wake(outgoing);
        Poll::Ready(Ok(taken))
    }

    /// Ends this half once all is sent.
    pub(super) fn end(&self) {
        let mut outgoing = lock(&self.0);
        outgoing.ended = true;
        wake(outgoing);
    }

    /// Resets the stream, and drops what isn't sent.
    pub(super) fn abort(&self) {
        let mut outgoing = lock(&self.0);
        outgoing.aborted = true;
        wake(outgoing);
    }
}

/// Wakes the sending task.
fn wake(mut outgoing: MutexGuard<'_, Outgoing>) {
    let task = outgoing.task.take();
    drop(outgoing);
    if let Some(task) = task {
        task.wake();
    }
}

/// Sends what is written; ready at the end of the half.
fn poll_send(stream: &mut SendStream<Bytes>, shared: &Mutex<Outgoing>, context: &mut Context<'_>) -> Poll<()> {
    let finish = || {
        let mut outgoing = lock(shared);
        outgoing.broken = true;
        if let Some(writer) = outgoing.writer.take() {
            writer.wake();
        }
        Poll::Ready(())
    };
    if stream.poll_reset(context).is_ready() {
        return finish();
    }
    loop {
        {
            let mut outgoing = lock(shared);
            if outgoing.aborted {
                stream.send_reset(Reason::INTERNAL_ERROR);
                return Poll::Ready(());
            }
            outgoing.task = Some(context.waker().clone());
            if outgoing.pieces.bytes() == 0 {
                if !outgoing.ended {
                    return Poll::Pending;
                }
                // On failure the stream has ended already.
                let _ = stream.send_data(Bytes::new(), true);
                return Poll::Ready(());
            }
        }
        stream.reserve_capacity(1);
        while stream.capacity() == 0 {
            match ready!(stream.poll_capacity(context)) {
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return finish(),
            }
        }
        let mut outgoing = lock(shared);
        let Some(piece) = outgoing.pieces.pop() else { continue };
        let (last, writer) = (outgoing.ended && outgoing.pieces.bytes() == 0, outgoing.writer.take());
        drop(outgoing);
        if let Some(writer) = writer {
            writer.wake();
        }
        match stream.send_data(piece, last) {
            Ok(()) if last => return Poll::Ready(()),
            Ok(()) => {}
            Err(_) => return finish(),
        }
    }
}
