//! An incoming stream that is accepted by its first use: a callee that rejects it has not used it, and its refusal is the
//! response instead.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use http::Response;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::io::TunnelIo;
use super::receive::Receiver;

/// The unsent response of a stream.
#[derive(Clone)]
pub(super) struct Reply(Arc<Mutex<Option<SendResponse<Bytes>>>>);

impl Reply {
    /// The response if none was sent.
    pub(super) fn take(&self) -> Option<SendResponse<Bytes>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// A stream that isn't accepted yet.
pub(super) struct LazyIo {
    reply: Reply,
    receiver: Option<Receiver>,
    io: Option<TunnelIo>,
}

impl LazyIo {
    pub(super) fn new(respond: SendResponse<Bytes>, received: RecvStream) -> Self {
        let reply = Reply(Arc::new(Mutex::new(Some(respond))));
        Self { reply, receiver: Some(Receiver::new(received)), io: None }
    }

    pub(super) fn reply(&self) -> Reply {
        self.reply.clone()
    }

    /// Accepts the stream.
    fn open(&mut self) -> io::Result<Pin<&mut TunnelIo>> {
        if self.io.is_none() {
            let (Some(mut respond), Some(receiver)) = (self.reply.take(), self.receiver.take()) else {
                return Err(io::ErrorKind::ConnectionReset.into());
            };
            let sender = respond.send_response(Response::new(()), false);
            let sender = sender.map_err(|error| io::Error::new(io::ErrorKind::ConnectionReset, error))?;
            self.io = Some(TunnelIo::new(receiver, sender, None));
        }
        self.io.as_mut().map(Pin::new).ok_or_else(|| io::ErrorKind::ConnectionReset.into())
    }
}

impl AsyncRead for LazyIo {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.open()?.poll_read(context, into)
    }
}

impl AsyncWrite for LazyIo {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.open()?.poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.open()?.poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.open()?.poll_shutdown(context)
    }
}
