//! A stream of the tunnel as a stream of bytes. END_STREAM is the end of a half; a reset is an error of both.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use h2::SendStream;
use machinery_env::Env;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::peer::Lease;
use super::receive::Receiver;
use super::send::Sender;

/// Time for the peer to take the last bytes of a stream that was closed on this side.
const LINGER: Duration = Duration::from_secs(10);
/// Bytes that a closed stream still receives and discards.
const LINGER_BYTES_MAX: usize = 1 << 20;

/// One end of a stream. Dropping it closes it like a socket: sent bytes still arrive.
pub(super) struct TunnelIo {
    /// `None` only during the drop.
    receiver: Option<Receiver>,
    unread: Bytes,
    sender: Sender,
    /// On the dialling side: the place on its connection, and the clock.
    lease: Option<(Lease, Env)>,
}

impl TunnelIo {
    pub(super) fn new(receiver: Receiver, sender: SendStream<Bytes>, lease: Option<(Lease, Env)>) -> Self {
        Self { receiver: Some(receiver), unread: Bytes::new(), sender: Sender::start(sender), lease }
    }

    /// Resets the stream: the peer sees an error.
    pub(super) fn abort(&mut self) {
        self.sender.abort();
    }
}

fn reset(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, error)
}

impl AsyncRead for TunnelIo {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let Some(receiver) = &mut this.receiver else { return Poll::Ready(Ok(())) };
        if this.unread.is_empty() {
            match ready!(receiver.poll_bytes(context)) {
                Some(Ok(bytes)) => this.unread = bytes,
                Some(Err(error)) => return Poll::Ready(Err(reset(error))),
                None => return Poll::Ready(Ok(())),
            }
        }
        let taken = this.unread.len().min(into.remaining());
        into.put_slice(&this.unread[..taken]);
        this.unread.advance(taken);
        receiver.release(taken);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for TunnelIo {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.sender.poll_write(context, bytes)
    }

    /// The sending task waits for nothing but the peer.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.sender.end();
        Poll::Ready(Ok(()))
    }
}

impl Drop for TunnelIo {
    fn drop(&mut self) {
        self.sender.end();
        let (Some(receiver), Some((lease, env))) = (self.receiver.take(), self.lease.take()) else { return };
        if receiver.has_ended() {
            return;
        }
        // A client that gives up the other half resets the stream, which discards what is still to be sent.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                let _ = env.timeout(LINGER, discard(receiver)).await;
                drop(lease);
            });
        }
    }
}

/// Discards what comes until the peer's end.
async fn discard(mut receiver: Receiver) {
    let mut discarded = 0;
    while discarded < LINGER_BYTES_MAX
        && let Some(Ok(bytes)) = std::future::poll_fn(|context| receiver.poll_bytes(context)).await
    {
        discarded += bytes.len();
        receiver.release(bytes.len());
    }
}
