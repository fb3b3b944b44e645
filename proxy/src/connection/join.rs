//! Copies bytes between two connections in both directions, until both ends are done or the stop signal.

use std::net::SocketAddr;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;

/// Buffer size of each direction: tokio's own 8 KiB would cost a system call for each.
const COPY_BYTES: usize = 64 << 10;

/// Copies both ways until both ends are done or `stop`.
pub(crate) async fn join<A, B>(a: &mut A, b: &mut B, stop: &CancellationToken, peer: SocketAddr)
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    tokio::select! {
        result = tokio::io::copy_bidirectional_with_sizes(a, b, COPY_BYTES, COPY_BYTES) => {
            if let Err(error) = result {
                tracing::debug!(%peer, %error, "connection ended");
            }
        }
        () = stop.cancelled() => {}
    }
}
