//! A stream wrapper with a hook on reads, writes and the end; it forwards all other calls.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A stream's hook; the defaults do nothing.
pub trait Hook<S: AsyncRead + Unpin>: Unpin {
    /// Reads from the stream.
    fn poll_read(
        &mut self,
        stream: Pin<&mut S>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        stream.poll_read(context, into)
    }

    /// Called after the first `written` bytes of these pieces were written.
    fn on_write(&mut self, _written: usize, _pieces: &[io::IoSlice<'_>]) {}

    /// Called before the stream is dropped.
    fn on_end(&mut self, _: &S) {}
}

/// A stream with its hook.
#[derive(Debug)]
pub struct Hooked<S: AsyncRead + Unpin, H: Hook<S>> {
    stream: S,
    hook: H,
}

impl<S: AsyncRead + Unpin, H: Hook<S>> Hooked<S, H> {
    /// Wraps a stream.
    pub fn new(stream: S, hook: H) -> Self {
        Self { stream, hook }
    }
}

impl<S: AsyncRead + Unpin, H: Hook<S>> Drop for Hooked<S, H> {
    fn drop(&mut self) {
        self.hook.on_end(&self.stream);
    }
}

impl<S: AsyncRead + Unpin, H: Hook<S>> AsyncRead for Hooked<S, H> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.hook.poll_read(Pin::new(&mut this.stream), context, into)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin, H: Hook<S>> AsyncWrite for Hooked<S, H> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(context, bytes);
        if let Poll::Ready(Ok(written)) = polled {
            self.hook.on_write(written, &[io::IoSlice::new(bytes)]);
        }
        polled
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(context, pieces);
        if let Poll::Ready(Ok(written)) = polled {
            self.hook.on_write(written, pieces);
        }
        polled
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
