//! An outgoing connection that is being opened.

use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use machinery_serve::net::{Stream, Target};
use tokio_util::task::AbortOnDropHandle;

use crate::limits::CONNECT_TIMEOUT;
use crate::{SocketContext, SocketError};

/// An attempt; dropping it ends it.
pub(super) struct Opening {
    local: SocketAddr,
    remote: SocketAddr,
    task: AbortOnDropHandle<Result<Stream, SocketError>>,
    result: Option<Result<Stream, SocketError>>,
}

impl Opening {
    pub(super) fn start(context: &SocketContext, local: SocketAddr, remote: SocketAddr) -> Self {
        let context = context.clone();
        let task = tokio::spawn(async move {
            let target = Target { host: remote.ip().to_string(), port: remote.port() };
            let opened = context.env.timeout(CONNECT_TIMEOUT, context.dial.stream(&context.caller, &target)).await;
            opened.map_or(Err(SocketError::Timeout), |opened| opened.map_err(SocketError::from))
        });
        Self { local, remote, task: AbortOnDropHandle::new(task), result: None }
    }

    /// The local and the remote address.
    pub(super) fn addresses(&self) -> (SocketAddr, SocketAddr) {
        (self.local, self.remote)
    }

    /// Waits for the end of the attempt.
    pub(super) fn poll_done(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.result.is_none() {
            let opened = ready!(Pin::new(&mut self.task).poll(cx));
            // Without a result, the node is stopping.
            self.result = Some(opened.unwrap_or(Err(SocketError::ConnectionAborted)));
        }
        Poll::Ready(())
    }

    /// The result of the attempt, once.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Stream, SocketError>> {
        ready!(self.poll_done(cx));
        Poll::Ready(self.result.take().unwrap_or(Err(SocketError::ConnectionAborted)))
    }
}
