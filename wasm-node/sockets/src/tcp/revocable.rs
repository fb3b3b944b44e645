//! A caller's stream that the caller can take back: when its listener stops or its seat is given to another client, the connection
//! ends although the guest still has it.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use futures::task::AtomicWaker;
use machinery_serve::net::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;

/// The guest's end of the stream.
pub(super) struct RevocableStream {
    state: Arc<RevocableState>,
    /// Dropped with it: the guest has closed the connection.
    _ended: oneshot::Sender<()>,
}

/// Ends the stream when it is dropped.
pub(super) struct RevokeOnDrop(Arc<RevocableState>);

struct RevocableState {
    stream: Mutex<Option<Stream>>,
    reader: AtomicWaker,
    writer: AtomicWaker,
}

/// The guest's end of a stream, the caller's right to it, and the receiver of the guest's close.
pub(super) fn revocable(stream: Stream) -> (Stream, RevokeOnDrop, oneshot::Receiver<()>) {
    let (reader, writer) = (AtomicWaker::new(), AtomicWaker::new());
    let state = Arc::new(RevocableState { stream: Mutex::new(Some(stream)), reader, writer });
    let (ended, end) = oneshot::channel();
    let guest = RevocableStream { state: state.clone(), _ended: ended };
    (Stream::Tunnel(Box::new(guest)), RevokeOnDrop(state), end)
}

impl Drop for RevokeOnDrop {
    fn drop(&mut self) {
        let stream = self.0.stream.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(stream);
        self.0.reader.wake();
        self.0.writer.wake();
    }
}

impl RevocableState {
    /// Polls the stream, unless it was taken back.
    fn poll<T>(&self, poll: impl FnOnce(Pin<&mut Stream>) -> Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        match &mut *self.stream.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(stream) => poll(Pin::new(stream)),
            None => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
        }
    }
}

impl AsyncRead for RevocableStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.state.reader.register(cx.waker());
        self.state.poll(|stream| stream.poll_read(cx, into))
    }
}

impl AsyncWrite for RevocableStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.state.writer.register(cx.waker());
        self.state.poll(|stream| stream.poll_write(cx, bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.state.writer.register(cx.waker());
        self.state.poll(|stream| stream.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.state.writer.register(cx.waker());
        self.state.poll(|stream| stream.poll_shutdown(cx))
    }
}
