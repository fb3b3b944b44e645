//! An outgoing connection that is being opened.

use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use machinery_serve::net::{Stream, Target};
use tokio::sync::oneshot;
use tokio::task::AbortHandle;

use crate::limits::CONNECT_TIMEOUT;
use crate::{SocketContext, SocketError};

/// An attempt; dropping it ends it.
pub(super) struct Opening {
    local: SocketAddr,
    remote: SocketAddr,
    receiver: oneshot::Receiver<Result<Stream, SocketError>>,
    result: Option<Result<Stream, SocketError>>,
    task: AbortHandle,
}

impl Drop for Opening {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Opening {
    pub(super) fn start(context: &SocketContext, local: SocketAddr, remote: SocketAddr) -> Self {
        let (sender, receiver) = oneshot::channel();
        let context = context.clone();
        let task = tokio::spawn(async move {
            let target = Target { host: remote.ip().to_string(), port: remote.port() };
            let opened = context.env.timeout(CONNECT_TIMEOUT, context.dial.stream(&context.caller, &target)).await;
            let _ = sender.send(match opened {
                Ok(opened) => opened.map_err(SocketError::from),
                Err(_) => Err(SocketError::Timeout),
            });
        });
        Self { local, remote, receiver, result: None, task: task.abort_handle() }
    }

    /// The local and the remote address.
    pub(super) fn addresses(&self) -> (SocketAddr, SocketAddr) {
        (self.local, self.remote)
    }

    /// Waits for the end of the attempt.
    pub(super) fn poll_done(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.result.is_none() {
            let received = ready!(Pin::new(&mut self.receiver).poll(cx));
            // Without a result, the node is stopping.
            self.result = Some(received.unwrap_or(Err(SocketError::ConnectionAborted)));
        }
        Poll::Ready(())
    }

    /// The result of the attempt, once.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Stream, SocketError>> {
        ready!(self.poll_done(cx));
        Poll::Ready(self.result.take().unwrap_or(Err(SocketError::ConnectionAborted)))
    }
}
